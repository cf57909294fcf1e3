//! A device that was away for months: its certificate is past its time, and it comes back by itself.

use muster_tests::agent::Load;
use muster_tests::rig::{DEVICE, Rig};
use muster_tests::wait_for;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType, SerialNumber};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

const DAY_S: u64 = 86_400;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A certificate of the device for its own key, signed by the server's authority, whose time ended long ago.
fn long_expired(server: &Path, key: &KeyPair, serial: &[u8], now: Duration) -> (String, u64, u64) {
    let authority = KeyPair::from_pem(&read(&server.join("pki/ca.key"))).expect("the authority's key");
    let issuer =
        Issuer::from_ca_cert_pem(&read(&server.join("pki/ca.pem")), authority).expect("its certificate");
    let (from, until) = (now.as_secs() - 200 * DAY_S, now.as_secs() - 110 * DAY_S);
    let mut params = CertificateParams::default();
    let at = |second: u64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(second);
    (params.not_before, params.not_after) = (at(from), at(until));
    params.serial_number = Some(SerialNumber::from_slice(serial));
    let name = format!("muster://default/{DEVICE}").try_into().expect("a name of letters");
    params.subject_alt_names = vec![SanType::URI(name)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    (params.signed_by(key, &issuer).expect("it is signed").pem(), from, until)
}

/// Makes the device's only certificate one that ended months ago, as the registry and the device remember it.
fn months_go_by(server: &Path, identity: &Path, enroll_port: u16) {
    let now = Duration::from_micros(muster_server_now());
    let key = KeyPair::from_pem(&read(&identity.join("device.key"))).expect("the device's key");
    let serial = [0x41; 16];
    let (pem, from, until) = long_expired(server, &key, &serial, now);
    let registry = rusqlite::Connection::open(server.join("registry.db")).expect("the registry opens");
    let sql = "UPDATE certificates SET serial = ?1, issued_at_us = ?2, expires_at_us = ?3 WHERE device = ?4";
    let us = |second: u64| i64::try_from(second * 1_000_000).expect("it is a date");
    let changed = registry.execute(sql, (hex::encode(serial), us(from), us(until), DEVICE));
    assert_eq!(changed.expect("the registry is free"), 1);
    drop(registry);
    let file = identity.join("identity.json");
    let mut kept: Value = serde_json::from_str(&read(&file)).expect("it is JSON");
    kept["certificate_pem"] = json!(pem);
    kept["server_time_us"] = json!(us(from));
    kept["enroll_port"] = json!(enroll_port);
    std::fs::write(file, kept.to_string()).expect("the identity can be written");
}

fn muster_server_now() -> u64 {
    use muster_server::platform::clock::{Clock as _, SystemClock};
    SystemClock.now_us().unsigned_abs()
}

#[test]
fn a_device_that_was_away_for_months_renews_and_loses_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let mut rig = Rig::start_in(dir.path(), "", &Load::default());
    rig.agent.stop();
    // Its certificate ends while the server runs: the registry is asked, not what the server remembers.
    let identity = dir.path().join("agent/data/identity");
    let enroll_port = rig.server.address("enroll").port();
    months_go_by(&rig.server.data_dir(), &identity, enroll_port);
    rig.agent.start();
    rig.wait_for_more(200);
    assert_eq!(rig.agent.log_count("certificate renewed"), 1);
    let audit = rig.server.api.get("/api/v1/tenants/default/audit?limit=500");
    let renewed: Vec<&Value> = audit["items"].as_array().expect("a list").iter().collect();
    let renewed: Vec<_> = renewed.into_iter().filter(|entry| entry["action"] == "device.renew").collect();
    assert_eq!((renewed.len(), &renewed[0]["actor"]), (1, &json!(format!("device:{DEVICE}"))), "{audit}");
    let told = rig.assert_exactly_once(0);
    assert!(told.accepted > 200, "{told:?}");
}

#[test]
fn a_device_that_is_disabled_meanwhile_stays_out_and_comes_back_when_it_may() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let mut rig = Rig::start_in(dir.path(), "", &Load::default());
    rig.agent.stop();
    let identity = dir.path().join("agent/data/identity");
    months_go_by(&rig.server.data_dir(), &identity, rig.server.address("enroll").port());
    let device = format!("/api/v1/tenants/default/devices/{DEVICE}");
    let set = |rig: &Rig, enabled: bool| {
        let body = json!({ "enabled": enabled });
        drop(rig.server.api.call("PATCH", &device, Some(&body)).expect("the server answers").ok());
    };
    set(&rig, false);
    rig.agent.start();
    wait_for("the renewal to be refused", || match rig.agent.log_count("the device is disabled") {
        0 => Err("not yet".to_owned()),
        _ => Ok(()),
    });
    assert_eq!(rig.agent.log_count("certificate renewed"), 0);
    set(&rig, true);
    rig.wait_for_more(100);
    rig.assert_exactly_once(1);
}
