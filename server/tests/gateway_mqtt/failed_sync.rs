//! The log's fdatasync fails: what was not synced is not acknowledged, and no sync is tried again on the same file.

use crate::kit::{Client, Hello, Rig, config, telemetry, wait_until};
use muster_journal::{Options, RealFs, Sabotage, SyncFaults};
use muster_server::platform::clock::SystemClock;
use muster_server::platform::event_log::{EventLog, Origin, RECORD_BYTES_MAX};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const TOPIC: &str = "muster/acme/pump/up/telemetry";

fn rig(dir: tempfile::TempDir, faults: &'static AtomicU32) -> Rig {
    let options = Options {
        dir: dir.path().join("log"),
        record_bytes_max: RECORD_BYTES_MAX,
        sabotage: Sabotage::FailFdatasync(SyncFaults(faults)),
        ..Options::default()
    };
    let log = EventLog::open_journal(RealFs, options, Arc::new(SystemClock)).unwrap();
    Rig::on(config(), Arc::new(SystemClock), dir, log)
}

/// The queue numbers of the stored messages, in the log's order.
fn seqs(rig: &Rig) -> Vec<u64> {
    let seq = |origin| if let Origin::Queue { seq, .. } = origin { seq } else { 0 };
    rig.messages().into_iter().map(|record| seq(record.origin)).collect()
}

#[test]
fn after_a_failed_sync_the_records_go_to_a_fresh_segment_and_are_acknowledged_once_they_are_there() {
    static FAULTS: AtomicU32 = AtomicU32::new(0);
    let rig = rig(tempfile::tempdir().unwrap(), &FAULTS);
    for (failures, first) in [(1_u32, 1_u16), (2, 101)] {
        let mut pump = rig.device(5, "acme/pump");
        assert_eq!(pump.publish_acked(first, TOPIC, &telemetry(u64::from(first), b"before")), 0);
        let before = rig.log.stats();
        FAULTS.store(failures, Ordering::SeqCst);
        for id in first + 1..=first + 20 {
            pump.publish(1, id, TOPIC, &telemetry(u64::from(id), b"while it fails"));
        }
        for id in first + 1..=first + 20 {
            assert_eq!(pump.puback(), (id, 0));
        }
        let after = rig.log.stats();
        assert_eq!(FAULTS.load(Ordering::SeqCst), 0, "the failures happened");
        assert_eq!(after.sync_failures - before.sync_failures, u64::from(failures));
        assert_eq!(after.segments, before.segments + 1, "the segment whose sync failed takes nothing more");
        assert!(after.failed.is_none());
    }
    assert_eq!(seqs(&rig), (1..=21).chain(101..=121).collect::<Vec<_>>(), "each once, in order");
}

#[test]
fn a_log_that_stopped_acknowledges_nothing_and_what_was_acknowledged_is_there_after_a_restart() {
    static FAULTS: AtomicU32 = AtomicU32::new(0);
    let rig = rig(tempfile::tempdir().unwrap(), &FAULTS);
    let mut pump = rig.device(5, "acme/pump");
    let mut fan = rig.device(4, "acme/fan");
    let mut bystander = rig.device(5, "acme/bystander");
    assert_eq!(pump.publish_acked(1, TOPIC, &telemetry(1, b"stored")), 0);
    FAULTS.store(u32::MAX, Ordering::SeqCst);
    pump.publish(1, 2, TOPIC, &telemetry(2, b"not stored"));
    wait_until("the log stops", || rig.log.stats().failed.is_some());
    pump.publish(1, 3, TOPIC, &telemetry(3, b"too late"));
    // Whatever was answered before this stands before the PINGRESP: no PUBACK.
    pump.ping();
    let topic = |id: &str| format!("muster/acme/{id}/up/telemetry");
    assert_eq!(bystander.publish_acked(1, &topic("bystander"), &telemetry(1, b"late")), 0x80, "keep it");
    fan.publish(1, 1, &topic("fan"), &telemetry(1, b"late"));
    // 3.1.1 cannot be told to keep it, so it is not answered at all.
    assert_eq!(fan.receive(), None);
    for (version, code) in [(5, 0x88), (4, 3)] {
        let mut late = Client::open(rig.plain(), version);
        let hello = Hello { client_id: "late", ..Hello::device("other/pump") };
        assert_eq!(late.try_hello(&hello), code, "MQTT {version}");
    }

    let Rig { gateway, log, dir, .. } = rig;
    gateway.stop();
    assert!(log.close().is_err());
    drop(log);
    FAULTS.store(0, Ordering::SeqCst);
    let again = self::rig(dir, &FAULTS);
    assert_eq!(seqs(&again), [1], "what was not acknowledged is not there");
    let mut pump = again.device(5, "acme/pump");
    for seq in [2, 3] {
        assert_eq!(pump.publish_acked(seq, TOPIC, &telemetry(u64::from(seq), b"again")), 0);
    }
    assert_eq!(seqs(&again), [1, 2, 3]);
}
