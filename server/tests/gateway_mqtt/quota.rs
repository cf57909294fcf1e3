//! The noisy tenant over real sockets: a day's quota to the message, the other tenant untouched, and what either MQTT
//! version is told.

use crate::kit::{Client, DEADLINE, Hello, Rig, TOKEN, config, device, telemetry, tenant, wait_until};
use muster_server::devices::directory::{DeviceAuth, token_hash};
use muster_server::platform::clock::ManualClock;
use muster_server::platform::config::LimitSection;
use muster_server::usage::Board;
use muster_server::usage::model::QuotaSpec;
use std::collections::HashMap;
use std::time::Instant;

/// 2026-11-22 at noon.
const NOON_US: i64 = 1_795_348_800_000_000;
const DAY_US: i64 = 86_400_000_000;
const WINDOW: usize = 32;

fn a_day(board: &Board, hard: u64) {
    let limit = LimitSection { soft: None, hard: Some(hard) };
    board.set_own("acme", Some(QuotaSpec { messages_per_day: Some(limit), ..QuotaSpec::default() }));
}

/// Publishes `count` messages, a window at once; gives the PUBACKs by code.
fn publish_all(mut client: Client, name: &str, count: usize) -> HashMap<u8, usize> {
    let topic = format!("muster/{name}/up/telemetry");
    let (mut codes, mut sent) = (HashMap::new(), 0);
    let begun = Instant::now();
    while codes.values().sum::<usize>() < count {
        let mut burst = Vec::new();
        while sent < count && sent - codes.values().sum::<usize>() < WINDOW {
            let id = u16::try_from(sent % 60_000 + 1).unwrap();
            burst.extend(client.publish_bytes(1, 0, id, topic.as_bytes(), &telemetry(1 + sent as u64, b"x")));
            sent += 1;
        }
        client.send(&burst);
        *codes.entry(client.puback().1).or_default() += 1;
        assert!(begun.elapsed() < DEADLINE, "waited too long for {name}");
    }
    codes
}

#[test]
fn a_tenant_at_ten_times_its_days_quota_is_admitted_its_quota_and_the_other_is_refused_nothing() {
    const QUOTA: usize = 1_000;
    let clock = ManualClock::at(NOON_US);
    let rig = Rig::with_clock(config(), clock.clone(), |_| {});
    a_day(&rig.quotas, QUOTA as u64);
    let auth = DeviceAuth { enabled: true, token_sha256: Some(token_hash(TOKEN)) };
    let names: Vec<_> = (0..20).map(|at| format!("acme/d{at}")).collect();
    for name in &names {
        rig.directory.set_device(&tenant("acme"), &device(&name[5..]), auth);
    }
    let (noisy, quiet) = std::thread::scope(|scope| {
        let each = 10 * QUOTA / names.len();
        let senders: Vec<_> = names
            .iter()
            .map(|name| {
                let client = rig.device(5, name);
                scope.spawn(move || publish_all(client, name, each))
            })
            .collect();
        let client = rig.device(5, "other/pump");
        let quiet = scope.spawn(move || publish_all(client, "other/pump", QUOTA));
        let mut noisy: HashMap<u8, usize> = HashMap::new();
        for sender in senders {
            sender
                .join()
                .unwrap()
                .into_iter()
                .for_each(|(code, count)| *noisy.entry(code).or_default() += count);
        }
        (noisy, quiet.join().unwrap())
    });
    assert_eq!(noisy, HashMap::from([(0, QUOTA), (0x97, 9 * QUOTA)]));
    assert_eq!(quiet, HashMap::from([(0, QUOTA)]), "0 refused");
    let admitted = rig.messages().iter().filter(|message| message.name.starts_with("acme/")).count();
    assert_eq!((admitted, rig.messages().len()), (QUOTA, 2 * QUOTA));
    assert_eq!(rig.metric("gateway_publishes_refused_total", "quota_messages_per_day"), 9 * QUOTA as u64);
    wait_until("all have gone by themselves", || rig.gateway.connections() == 0);
    // Midnight: the quota begins anew.
    clock.set(NOON_US + DAY_US);
    wait_until("a new day", || rig.quotas.of("acme").used().0 == 0);
    assert_eq!(
        rig.device(5, "acme/d0").publish_acked(1, "muster/acme/d0/up/telemetry", &telemetry(1, b"x")),
        0
    );
}

#[test]
fn over_its_tenants_quota_a_3_1_1_device_waits_and_is_still_there_the_next_day() {
    let clock = ManualClock::at(NOON_US);
    let rig = Rig::with_clock(config(), clock.clone(), |_| {});
    a_day(&rig.quotas, 2);
    let mut three = rig.device(4, "acme/pump");
    for at in 1..=4 {
        three.publish(1, at, "muster/acme/pump/up/telemetry", &telemetry(at.into(), b"x"));
    }
    assert_eq!((three.puback(), three.puback()), ((1, 0), (2, 0)));
    // Its control packets pass, QoS 0 and MQTT 5 are refused meanwhile.
    three.ping();
    let mut five = rig.device(5, "acme/fan");
    assert_eq!(five.publish_acked(1, "muster/acme/fan/up/telemetry", &telemetry(1, b"x")), 0x97);
    five.publish(0, 0, "muster/acme/fan/up/telemetry", &telemetry(2, b"x"));
    rig.wait_metric("gateway_qos0_refused_total", "quota_messages_per_day", 1);
    clock.set(NOON_US + DAY_US);
    assert_eq!((three.puback(), three.puback()), ((3, 0), (4, 0)));
    assert_eq!(rig.messages().len(), 4, "nothing is lost and nothing twice");
}

#[test]
fn a_tenant_over_its_quota_of_connections_is_told_and_others_connect() {
    let rig = Rig::new();
    let limit = LimitSection { soft: None, hard: Some(1) };
    rig.quotas.set_own("acme", Some(QuotaSpec { connections: Some(limit), ..QuotaSpec::default() }));
    let _one = rig.device(5, "acme/pump");
    for (version, code) in [(5, 0x97), (4, 3)] {
        let mut client = Client::open(rig.plain(), version);
        assert_eq!(client.try_hello(&Hello::device("acme/fan")), code);
    }
    rig.device(5, "other/pump").ping();
    assert_eq!(rig.metric("gateway_connects_refused_total", "quota"), 2);
}
