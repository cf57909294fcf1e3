//! The part `x-mqtt` of docs/api/asyncapi.yaml against the gateway's limits and closed sets, in both directions.

use super::codec::{CONNECT_BYTES_MAX, Version};
use super::connect::CLIENT_ID_BYTES_MAX;
use super::connection::{PENDING_BYTES_MAX, UNACKED_MAX_V3};
use super::down::UNACKED_MAX;
use super::encode::{self, Limits};
use super::link::{FILTERS_MAX, OUTBOX_BYTES_MAX, OUTBOX_MESSAGES_MAX};
use super::metrics::SUBACKS;
use super::publish::SENML_BYTES_MAX;
use super::reason::{CloseReason, ConnectRefusal, Refusal};
use super::{Config, TICKS_PER_S, credit, live};
use crate::platform::config;
use std::collections::BTreeMap;
use yaml_rust2::{Yaml, YamlLoader};

fn mqtt() -> Yaml {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api/asyncapi.yaml");
    let document = YamlLoader::load_from_str(&std::fs::read_to_string(path).unwrap()).unwrap().remove(0);
    document["x-mqtt"].clone()
}

/// The numbers of a map.
fn numbers(node: &Yaml) -> BTreeMap<&str, i64> {
    let pairs = node.as_hash().unwrap().iter();
    pairs.filter_map(|(key, value)| Some((key.as_str()?, value.as_i64()?))).collect()
}

/// A table of reasons: name, codes and whatever else is a bool.
fn reasons(node: &Yaml) -> Vec<(String, i64, Option<i64>, Option<bool>)> {
    let told = |row: &Yaml| {
        assert!(row["when"].as_str().is_some_and(|when| !when.is_empty()), "{row:?}");
        let name = row["reason"].as_str().unwrap().to_owned();
        let code = row["code"].as_i64().unwrap();
        (name, code, row["code-3.1.1"].as_i64(), row["permanent"].as_bool())
    };
    node.as_vec().unwrap().iter().map(told).collect()
}

fn integer(number: usize) -> i64 {
    i64::try_from(number).unwrap()
}

#[test]
fn the_connack_is_the_documents() {
    let config = Config::default();
    let limits = Limits {
        receive_maximum: config.receive_maximum,
        packet_bytes_max: u32::try_from(config.packet_bytes_max).unwrap(),
        keep_alive_s: config.keep_alive_s_max,
        assigned_client_id: None,
        asks_session: false,
    };
    let mut out = Vec::new();
    encode::connack(&mut out, Version::Five, &limits);
    let mut told = BTreeMap::from([("session-present", i64::from(out[2]))]);
    let mut properties = &out[5..];
    while let [id, rest @ ..] = properties {
        let (name, bytes) = match id {
            0x13 => ("server-keep-alive-max-s", 2),
            0x21 => ("receive-maximum", 2),
            0x22 => ("topic-alias-maximum", 2),
            0x24 => ("maximum-qos", 1),
            0x25 => ("retain-available", 1),
            0x27 => ("maximum-packet-size", 4),
            0x29 => ("subscription-identifiers-available", 1),
            0x2A => ("shared-subscriptions-available", 1),
            other => panic!("property {other:#x} is not in the document"),
        };
        let value = rest[..bytes].iter().fold(0, |value, byte| value << 8 | i64::from(*byte));
        told.insert(name, value);
        properties = &rest[bytes..];
    }
    assert_eq!(numbers(&mqtt()["connack"]), told);
}

#[test]
fn limits_are_the_documents() {
    let connect =
        [("bytes-max", integer(CONNECT_BYTES_MAX)), ("client-id-bytes-max", integer(CLIENT_ID_BYTES_MAX))];
    assert_eq!(numbers(&mqtt()["connect"]), BTreeMap::from(connect));
    let limits = config::LimitsSection::default();
    let expect = [
        ("publish-messages-per-s", i64::from(limits.device_messages_per_s)),
        ("publish-messages-burst", i64::from(limits.device_messages_burst)),
        ("pending-bytes-while-log-is-full", integer(PENDING_BYTES_MAX)),
        ("filters-per-integration-client", integer(FILTERS_MAX)),
        ("outbox-messages", integer(OUTBOX_MESSAGES_MAX)),
        ("outbox-bytes", integer(OUTBOX_BYTES_MAX)),
        ("unacknowledged-to-a-client", integer(UNACKED_MAX)),
        ("unacknowledged-from-a-3.1.1-client", integer(UNACKED_MAX_V3)),
        ("credit-records-of-one-grant", i64::from(credit::GRANT_MAX)),
        ("devices-waiting-for-credit", integer(credit::WAITING_MAX)),
    ];
    assert_eq!(numbers(&mqtt()["limits"]), BTreeMap::from(expect));
    assert_eq!(
        live::TAKEOVER_TICKS / TICKS_PER_S,
        10,
        "`connect.session` and `takeover_rate` say 10 seconds"
    );
    assert_eq!(SENML_BYTES_MAX, muster_wire::senml::SENML_BYTES_MAX, "the gateway's and the decoder's");
}

#[test]
fn reason_codes_are_the_documents() {
    let document = mqtt();
    let connack = ConnectRefusal::ALL.map(|refusal| {
        let (code, code_v3) = (i64::from(refusal.code()), i64::from(refusal.code_v3()));
        (refusal.label().to_owned(), code, Some(code_v3), None)
    });
    assert_eq!(reasons(&document["connack-reasons"]), connack);
    let puback = Refusal::ALL.map(|refusal| {
        (refusal.label().to_owned(), i64::from(refusal.code()), None, Some(refusal.is_permanent()))
    });
    assert_eq!(reasons(&document["puback-reasons"]), puback);
    let suback = SUBACKS.map(|(code, label)| (label.to_owned(), i64::from(code), None, None));
    assert_eq!(reasons(&document["suback-reasons"]), suback);
    let disconnect: Vec<_> = CloseReason::ALL
        .iter()
        .filter_map(|reason| Some((reason.label().to_owned(), i64::from(reason.code()?), None, None)))
        .collect();
    assert_eq!(reasons(&document["disconnect-reasons"]), disconnect);
}
