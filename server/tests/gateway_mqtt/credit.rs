//! Credit for backlogs: announced on a subscription, granted in turn to who asks, and never in the log.

use crate::kit::{Client, Rig, TOKEN, config, device, envelope, telemetry, tenant, wait_until};
use muster_server::devices::directory::{DeviceAuth, token_hash};
use muster_server::platform::clock::SystemClock;
use muster_server::platform::event_log::Kind;
use muster_wire::{Credit, CreditRequest, UpClass};
use std::sync::Arc;

const GRANT_MAX: u32 = 64;

fn gauge(rig: &Rig, name: &str) -> f64 {
    let families = rig.registry.gather();
    let family = families.iter().find(|family| family.name() == name).expect("a gauge");
    family.get_metric()[0].get_gauge().get_value()
}

fn request(backlog: u64) -> Vec<u8> {
    envelope(UpClass::Credit, 0, 0, &CreditRequest { backlog }.encode())
}

/// A registered device's connection that follows its `dn/credit`.
fn follower(rig: &Rig, version: u8, id: &str) -> Client {
    let auth = DeviceAuth { enabled: true, token_sha256: Some(token_hash(TOKEN)) };
    rig.directory.set_device(&tenant("acme"), &device(id), auth);
    let mut client = rig.device(version, &format!("acme/{id}"));
    assert_eq!(client.subscribe(1, &format!("muster/acme/{id}/dn/+"), 1), 1);
    client
}

fn ask(client: &mut Client, id: &str, backlog: u64) {
    client.publish(0, 0, &format!("muster/acme/{id}/up/credit"), &request(backlog));
}

fn asked(rig: &Rig, end: &str) -> u64 {
    rig.metric("gateway_credit_requests_total", end)
}

#[test]
fn a_device_is_told_that_it_is_under_control_and_granted_what_it_asks_for() {
    let rig = Rig::new();
    for version in [5, 4] {
        let mut pump = follower(&rig, version, "pump");
        let announced = pump.credit.expect("the announcement follows the SUBACK");
        assert_eq!(announced.records, 0);
        for (backlog, records) in [(1, 1), (60, 60), (u64::MAX, GRANT_MAX)] {
            ask(&mut pump, "pump", backlog);
            assert_eq!(pump.next_credit(), Credit { records, ..announced });
        }
        let acked = pump.publish_acked(7, "muster/acme/pump/up/credit", &request(2));
        assert_eq!((acked, pump.next_credit().records), (0, 2), "QoS 1 is acknowledged");
        assert_eq!(pump.publish_acked(8, "muster/acme/pump/up/telemetry", &telemetry(1, b"live")), 0);
        // A filter that covers it already tells nothing new.
        assert_eq!(pump.subscribe(2, "muster/acme/pump/dn/credit", 0), 0);
        pump.ping();
        pump.send(&[0xE0, 0]);
        wait_until("the client is gone", || rig.gateway.connections() == 0);
    }
    assert_eq!(rig.metric("gateway_credit_granted_total", ""), 2 * (1 + 60 + 64 + 2));
    assert_eq!(asked(&rig, "queued"), 8);
    let mut deaf = rig.device(5, "acme/fan");
    ask(&mut deaf, "fan", 60);
    deaf.ping();
    assert_eq!(asked(&rig, "not_subscribed"), 1);
    assert!(rig.messages().iter().all(|message| message.class == UpClass::Telemetry.number()));
}

#[test]
fn two_hundred_that_wait_are_all_granted_in_turn_beside_one_that_never_stops_asking() {
    const WAITING: usize = 200;
    let rig = Rig::new();
    let mut greedy = follower(&rig, 5, "greedy");
    let ids: Vec<String> = (0..WAITING).map(|at| format!("d{at}")).collect();
    let mut clients: Vec<Client> = ids.iter().map(|id| follower(&rig, 5, id)).collect();
    let flood: Vec<u8> = (0..500)
        .flat_map(|_| greedy.publish_bytes(0, 0, 0, b"muster/acme/greedy/up/credit", &request(u64::MAX)))
        .collect();
    greedy.send(&flood);
    for (client, id) in clients.iter_mut().zip(&ids) {
        ask(client, id, 1_000);
    }
    // 200 grants of 64 records are more than the fleet's budget of a second.
    for (client, id) in clients.iter_mut().zip(&ids) {
        assert_eq!(client.next_credit().records, GRANT_MAX, "{id}");
    }
    assert_eq!(greedy.next_credit().records, GRANT_MAX);
    wait_until("the line is empty", || gauge(&rig, "gateway_credit_waiting") == 0.0);
    let granted = rig.metric("gateway_credit_granted_total", "");
    let of_greedy = granted - WAITING as u64 * u64::from(GRANT_MAX);
    assert_eq!(asked(&rig, "queued") + asked(&rig, "repeated"), 500 + WAITING as u64);
    assert_eq!(of_greedy, (asked(&rig, "queued") - WAITING as u64) * u64::from(GRANT_MAX));
    for client in &mut clients {
        client.ping();
    }
    assert_eq!(rig.gateway.connections(), WAITING + 1);
    assert!(gauge(&rig, "gateway_credit_budget") > 0.0);
}

#[test]
fn who_leaves_the_line_is_passed_over() {
    let rig = Rig::new();
    let mut stays = follower(&rig, 5, "stays");
    for at in 0..50 {
        let id = format!("d{at}");
        let mut goes = follower(&rig, 5, &id);
        ask(&mut goes, &id, 64);
    }
    ask(&mut stays, "stays", 5);
    assert_eq!(stays.next_credit().records, 5);
    wait_until("the line is empty", || gauge(&rig, "gateway_credit_waiting") == 0.0);
    wait_until("only one is left", || rig.gateway.connections() == 1);
    stays.ping();
}

#[test]
fn another_start_is_another_epoch() {
    let rig = Rig::new();
    let epoch = |rig: &Rig| follower(rig, 5, "pump").credit.map(|credit| credit.epoch);
    let before = epoch(&rig);
    assert!(before.is_some());
    wait_until("the client is gone", || rig.gateway.connections() == 0);
    assert_eq!(epoch(&rig), before, "one start, one epoch");
    let Rig { gateway, log, dir, .. } = rig;
    gateway.stop();
    let again = Rig::on(config(), Arc::new(SystemClock), dir, log);
    assert_ne!(epoch(&again), before);
}

#[test]
fn what_is_no_request_is_counted_and_harms_nobody() {
    let rig = Rig::new();
    let topic = "muster/acme/pump/up/credit";
    let bad = [
        Vec::new(),
        b"garbage".to_vec(),
        request(0),
        envelope(UpClass::Credit, 7, 1, &CreditRequest { backlog: 60 }.encode()),
        envelope(UpClass::State, 0, 0, &CreditRequest { backlog: 60 }.encode()),
        envelope(UpClass::Credit, 0, 0, &[0; 65]),
        vec![0x9b; 200_000],
    ];
    let mut bystander = follower(&rig, 5, "bystander");
    for version in [5, 4] {
        let before = asked(&rig, "malformed");
        let mut pump = follower(&rig, version, "pump");
        for payload in &bad {
            pump.publish(0, 0, topic, payload);
            assert_eq!(pump.publish_acked(9, topic, payload), if version == 5 { 0x99 } else { 0 });
        }
        assert_eq!(asked(&rig, "malformed") - before, 2 * bad.len() as u64);
        ask(&mut pump, "pump", 3);
        assert_eq!(pump.next_credit().records, 3, "the same connection goes on");
        if version == 4 {
            // A retained one would be stored as rejected on any other topic.
            let bytes = pump.publish_bytes(1, 1, 10, topic.as_bytes(), &request(4));
            pump.send(&bytes);
            assert_eq!(pump.puback(), (10, 0));
        }
        pump.send(&[0xE0, 0]);
        wait_until("the client is gone", || rig.gateway.connections() == 1);
    }
    ask(&mut bystander, "bystander", 4);
    assert_eq!(bystander.next_credit().records, 4);
    rig.log.commit().unwrap();
    let stored = rig.stored(1);
    assert!(
        stored.iter().all(|each| matches!(each.kind, Kind::Connected | Kind::Disconnected { .. })),
        "{stored:?}"
    );
}
