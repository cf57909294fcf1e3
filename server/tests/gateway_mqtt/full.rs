//! The log is full for more than three keep-alives: nobody is disconnected, nothing is lost, new CONNECTs
//! are told to come back.

use crate::kit::{Client, Hello, Rig, config, telemetry, wait_until};
use muster_server::platform::event_log::{Kind, NewRecord, Origin, Pin};
use std::collections::HashSet;
use std::time::{Duration, Instant};

const KEEP_ALIVE_S: u16 = 1;
const BODY: [u8; 900] = [0; 900];

fn small_log() -> Rig {
    Rig::with(config(), |options| {
        options.bytes_max = 2 * 1024 * 1024;
        options.segment_bytes = 512 * 1024;
    })
}

fn connect(rig: &Rig, version: u8, name: &str) -> Client {
    let mut client = Client::open(rig.plain(), version);
    client.hello(&Hello { keep_alive_s: KEEP_ALIVE_S, ..Hello::device(name) });
    client
}

/// Fills the log until not even a record without a body fits.
fn fill(rig: &Rig) {
    let body = vec![0; 100_000];
    let tick = NewRecord::tick();
    wait_until("nothing fits", || {
        let before = rig.log.stats().next_seq;
        while rig.log.append(&NewRecord { body: &body, ..tick }).is_ok() {}
        while rig.log.append(&tick).is_ok() {}
        // What waits in memory may free some room of the bound once it is written.
        rig.log.wait_durable(rig.log.stats().next_seq - 1).unwrap();
        rig.log.stats().next_seq == before
    });
}

#[test]
fn full_for_three_keep_alives_disconnects_nobody_and_loses_nothing() {
    let rig = small_log();
    // As the store does: pins the log until its effects are durable.
    let pin = rig.log.reader("store", 1, Pin::Pins).unwrap();
    let topic = |id: &str| format!("muster/acme/{id}/up/telemetry");
    let mut idle = connect(&rig, 5, "other/pump");
    let mut fan = connect(&rig, 4, "acme/fan");
    let mut bystander = connect(&rig, 5, "acme/bystander");
    let mut pump = connect(&rig, 5, "acme/pump");
    assert_eq!(pump.publish_acked(1, &topic("pump"), &telemetry(1, &BODY)), 0);
    fill(&rig);
    pump.publish(1, 2, &topic("pump"), &telemetry(2, &BODY));

    // A 3.1.1 sender floods without reading or pinging: it is read to 8 KiB, then left alone.
    let mut flood = Vec::new();
    for at in 1..=100_u16 {
        flood.extend(fan.publish_bytes(1, 0, at, topic("fan").as_bytes(), &telemetry(u64::from(at), &BODY)));
    }
    fan.send(&flood);
    // An MQTT 5 sender fills its window with small messages; its pings pass.
    for at in 1..=32_u16 {
        bystander.publish(1, at, &topic("bystander"), &telemetry(u64::from(at), b"small"));
    }
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(3_500) * u32::from(KEEP_ALIVE_S) {
        idle.ping();
        pump.ping();
        bystander.ping();
        std::thread::sleep(Duration::from_millis(300));
    }
    for (version, code) in [(5, 0x89), (4, 3)] {
        let mut late = Client::open(rig.plain(), version);
        assert_eq!(late.try_hello(&Hello { user: Some("acme/pump"), ..Hello::device("acme/pump") }), code);
    }
    assert!(rig.metric("gateway_connects_refused_total", "log_full") >= 2);
    assert_eq!(rig.gateway.connections(), 4, "nobody was disconnected");

    // The store catches up, and goes on releasing.
    let stored = std::thread::scope(|scope| {
        let all = scope.spawn(|| {
            let (mut pin, mut all) = (pin, Vec::new());
            while all.len() < 134 {
                pin.wait(Duration::from_millis(100));
                let batch = pin.next_batch(1 << 20, |record| {
                    if record.kind == Kind::Message {
                        let Origin::Queue { seq, .. } = record.origin else { panic!("{record:?}") };
                        all.push((record.device.to_owned(), seq));
                    }
                });
                rig.log.release("store", batch.unwrap().next).unwrap();
            }
            all
        });
        assert_eq!(pump.puback(), (2, 0));
        for at in 1..=32 {
            assert_eq!(bystander.puback(), (at, 0));
        }
        for at in 1..=100 {
            assert_eq!(fan.puback(), (at, 0));
        }
        all.join().unwrap()
    });
    let distinct: HashSet<_> = stored.iter().collect();
    assert_eq!((stored.len(), distinct.len()), (134, stored.len()), "each once");
    for client in [&mut idle, &mut pump, &mut bystander, &mut fan] {
        client.ping();
    }
    wait_until("a CONNECT is welcome again", || {
        let mut late = Client::open(rig.plain(), 5);
        late.try_hello(&Hello { client_id: "late", ..Hello::device("acme/pump") }) != 0x89
    });
}

#[test]
fn presence_records_wait_for_room() {
    let rig = small_log();
    let mut pin = rig.log.reader("store", 1, Pin::Pins).unwrap();
    let death = "muster/acme/fan/up/death";
    let mut fan = Client::open(rig.plain(), 5);
    fan.hello(&Hello { will: Some((death, b"while full", 1, false)), ..Hello::device("acme/fan") });
    fill(&rig);
    drop(fan);
    rig.wait_metric("gateway_disconnects_total", "lost", 1);
    let mut kinds = Vec::new();
    wait_until("the will and the end are stored", || {
        let batch = pin.next_batch(1 << 20, |record| {
            if record.device == "fan" {
                kinds.push(record.kind);
            }
        });
        rig.log.release("store", batch.unwrap().next).unwrap();
        kinds.len() == 3
    });
    assert_eq!(kinds, [Kind::Connected, Kind::Message, Kind::Disconnected { reason: 0x80 }]);
    assert_eq!(rig.metric("gateway_presence_lost_total", ""), 0);
}
