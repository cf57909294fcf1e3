//! Every topic class by every identity, allowed or refused, to publish and to subscribe.

use crate::kit::{API_TOKEN, Client, Hello, Rig, envelope};
use muster_server::platform::event_log::Kind;
use muster_wire::{CreditRequest, DownClass, UpClass};

fn right_payload(class: UpClass) -> Vec<u8> {
    match class {
        UpClass::Senml => br#"[{"n":"t","v":1}]"#.to_vec(),
        UpClass::Telemetry | UpClass::Event => envelope(class, 7, 1, b"x"),
        UpClass::Credit => envelope(class, 0, 0, &CreditRequest { backlog: 1 }.encode()),
        _ => envelope(class, 0, 0, b"x"),
    }
}

/// Who publishes, where, and what an MQTT 5 client is told.
fn publish_table() -> Vec<(&'static str, String, Vec<u8>, u8)> {
    let mut table = Vec::new();
    for class in UpClass::ALL {
        let name = class.as_str();
        for (owner, device_code) in [("acme/pump", 0), ("acme/fan", 0x87), ("other/pump", 0x87)] {
            let topic = format!("muster/{owner}/up/{name}");
            table.push(("acme/pump", topic.clone(), right_payload(class), device_code));
            table.push(("api", topic, right_payload(class), 0x87));
        }
    }
    for class in DownClass::ALL {
        for owner in ["acme/pump", "acme/fan", "other/pump"] {
            let topic = format!("muster/{owner}/dn/{}", class.as_str());
            table.push(("acme/pump", topic.clone(), right_payload(UpClass::Senml), 0x87));
            table.push(("api", topic, right_payload(UpClass::Senml), 0x87));
        }
    }
    for topic in ["x", "muster", "$SYS/x", "muster/acme/pump/up", "muster/acme/pump/up/unknown", "/", "é/x"]
    {
        table.push(("acme/pump", topic.to_owned(), right_payload(UpClass::Senml), 0x90));
    }
    table
}

#[test]
fn a_publish_is_taken_on_its_own_topic_only() {
    let rig = Rig::new();
    let (mut expected, mut rejected) = (0, 0);
    for version in [5, 4] {
        let mut device = rig.device(version, "acme/pump");
        let mut integration = rig.integration(version);
        for (at, (who, topic, payload, code)) in publish_table().into_iter().enumerate() {
            let packet_id = u16::try_from(at + 1).unwrap();
            if who == "api" && version == 4 {
                // 3.1.1 cannot be told; a client that is no device has nothing to store it under.
                integration.publish(1, packet_id, &topic, &payload);
                assert_eq!(integration.end(), None, "{who} {topic}");
                integration = rig.integration(version);
                continue;
            }
            let client = if who == "api" { &mut integration } else { &mut device };
            let told = client.publish_acked(packet_id, &topic, &payload);
            assert_eq!(told, if version == 5 { code } else { 0 }, "{who} {topic}");
            // What is for the gateway itself is taken and goes no further.
            expected += usize::from(code == 0 && !topic.ends_with("/credit"));
            rejected += usize::from(code != 0 && version == 4);
        }
    }
    assert_eq!(rig.messages().len(), expected);
    let stored = rig.stored(1);
    let kept: Vec<_> = stored.iter().filter(|each| matches!(each.kind, Kind::Rejected { .. })).collect();
    assert_eq!(kept.len(), rejected, "what a 3.1.1 device was acknowledged for is kept with its reason");
    assert!(stored.iter().all(|record| record.name == "acme/pump"), "nothing under another name");
}

#[test]
fn a_subscribe_is_granted_on_own_topics_only() {
    let rig = Rig::new();
    // Path, an MQTT 5 device's code, an integration client's code.
    let mut table = vec![
        ("muster/acme/pump/dn/#".to_owned(), 1, 0x87),
        ("muster/acme/pump/dn/+".to_owned(), 1, 0x87),
        ("muster/acme/+/up/#".to_owned(), 0x87, 1),
        ("muster/acme/+/up/+".to_owned(), 0x87, 1),
        ("muster/acme/#".to_owned(), 0x87, 0x87),
        ("muster/+/+/up/#".to_owned(), 0x87, 0x87),
        ("muster/other/+/up/#".to_owned(), 0x87, 0x87),
        ("#".to_owned(), 0x87, 0x87),
        ("$SYS/#".to_owned(), 0x87, 0x87),
        ("$share/g/muster/acme/pump/dn/#".to_owned(), 0x9E, 0x9E),
        ("$share/g/muster/acme/+/up/#".to_owned(), 0x9E, 0x9E),
        ("muster/acme/pump/dn/x#".to_owned(), 0x8F, 0x8F),
    ];
    for (owner, own_tenant, own) in
        [("acme/pump", true, true), ("acme/fan", true, false), ("other/pump", false, false)]
    {
        for class in DownClass::ALL {
            let path = format!("muster/{owner}/dn/{}", class.as_str());
            table.push((path, if own { 1 } else { 0x87 }, 0x87));
        }
        for class in UpClass::ALL {
            let path = format!("muster/{owner}/up/{}", class.as_str());
            let followed = own_tenant && class != UpClass::Credit;
            table.push((path, 0x87, if followed { 1 } else { 0x87 }));
        }
    }
    for version in [5, 4] {
        let mut device = rig.device(version, "acme/pump");
        let mut integration = rig.integration(version);
        for (at, (path, device_code, integration_code)) in table.iter().enumerate() {
            let packet_id = u16::try_from(at + 1).unwrap();
            let told = |code: u8| if version == 4 && code > 1 { 0x80 } else { code };
            assert_eq!(device.subscribe(packet_id, path, 1), told(*device_code), "device {path}");
            assert_eq!(
                integration.subscribe(packet_id, path, 1),
                told(*integration_code),
                "integration {path}"
            );
            if *device_code == 1 {
                let codes = device.unsubscribe(packet_id, path);
                assert_eq!(codes, if version == 5 { vec![0, 0] } else { vec![] }, "{path}");
            }
        }
    }
}

#[test]
fn qos_two_is_granted_as_one_and_filters_are_bounded() {
    let rig = Rig::new();
    let mut client = rig.integration(5);
    assert_eq!(client.subscribe(1, "muster/acme/+/up/#", 2), 1);
    for at in 1..32_u16 {
        assert_eq!(client.subscribe(at, &format!("muster/acme/d{at}/up/#"), 0), 0);
    }
    assert_eq!(client.subscribe(99, "muster/acme/d99/up/#", 0), 0x97);
    assert_eq!(client.unsubscribe(1, "muster/acme/d99/up/#"), [0, 0x11]);
    assert_eq!(client.unsubscribe(1, "muster/acme/d1/up/#"), [0, 0]);
    assert_eq!(client.subscribe(99, "muster/acme/d99/up/#", 0), 0);
}

#[test]
fn a_connect_is_answered_by_who_asks() {
    let rig = Rig::new();
    let pump = Hello::device("acme/pump");
    let senml = "muster/acme/pump/up/senml";
    let long = "x".repeat(129);
    let table: Vec<(Hello<'_>, u8, u8, &str)> = vec![
        (Hello { user: None, password: None, ..pump }, 0x87, 5, "no_credentials"),
        (Hello { password: Some("wrong"), ..pump }, 0x86, 4, "bad_login"),
        (Hello { user: Some("acme/nobody"), ..pump }, 0x86, 4, "bad_login"),
        (Hello { user: Some("api"), ..pump }, 0x86, 4, "bad_login"),
        (Hello { user: Some("acme/pump"), password: Some(API_TOKEN), ..pump }, 0x86, 4, "bad_login"),
        (Hello { client_id: &long, ..pump }, 0x85, 2, "client_id"),
        (Hello { will: Some(("muster/acme/fan/up/death", b"", 1, false)), ..pump }, 0x87, 5, "will_topic"),
        (Hello { will: Some((senml, b"", 1, false)), ..pump }, 0x87, 5, "will_topic"),
        (Hello { will: Some(("muster/acme/pump/up/death", b"", 2, false)), ..pump }, 0x9B, 5, "will_qos"),
        (Hello { will: Some(("muster/acme/pump/up/death", b"", 1, true)), ..pump }, 0x9A, 5, "will_retain"),
    ];
    for (hello, code, code_v3, reason) in table {
        for (version, expect) in [(5, code), (4, code_v3)] {
            let before = rig.metric("gateway_connects_refused_total", reason);
            let mut client = Client::open(rig.plain(), version);
            assert_eq!(client.try_hello(&hello), expect, "{reason} {version}");
            assert_eq!(client.end(), None);
            rig.wait_metric("gateway_connects_refused_total", reason, before + 1);
        }
    }
    let mut client = Client::open(rig.plain(), 4);
    assert_eq!(client.try_hello(&Hello { client_id: "", clean: false, ..pump }), 2);
    Client::open(rig.plain(), 5).hello(&Hello { client_id: &long[1..], ..pump });
    let mut client = Client::open(rig.plain(), 5);
    let method = Hello { properties: &[0x15, 0, 1, b'x'], ..pump };
    assert_eq!(client.try_hello(&method), 0x8C);
}

#[test]
fn the_connack_tells_every_limit() {
    let rig = Rig::new();
    let mut client = Client::open(rig.plain(), 5);
    let asks = [0x11, 0, 0, 0, 60];
    client.hello(&Hello { client_id: "", keep_alive_s: 0, properties: &asks, ..Hello::device("acme/pump") });
    let bytes_max = u32::try_from(muster_wire::PUBLISH_BYTES_MAX).unwrap().to_be_bytes();
    let mut expect = vec![0, 0, 0];
    expect.extend_from_slice(&[0x11, 0, 0, 0, 0, 0x21, 0, 32, 0x24, 1, 0x25, 0, 0x27]);
    expect.extend_from_slice(&bytes_max);
    expect.extend_from_slice(&[0x12, 0, 9]);
    expect.extend_from_slice(b"acme/pump");
    expect.extend_from_slice(&[0x22, 0, 0, 0x29, 0, 0x2A, 0, 0x13, 0x04, 0xB0]);
    expect[2] = u8::try_from(expect.len() - 3).unwrap();
    assert_eq!(client.connack, expect);
    let mut client = Client::open(rig.plain(), 4);
    client.hello(&Hello::device("acme/fan"));
    assert_eq!(client.connack, [0, 0]);
}
