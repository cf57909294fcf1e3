//! The generator against a broker that is not ours, so that a mistake in its MQTT shows.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use muster_loadtest::{Command, Common, Outcome, run};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A mosquitto of one test, ended with it.
struct Broker {
    process: Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts a broker; none where it is not installed, which counts as a skipped test.
fn broker(test: &str) -> Option<Broker> {
    let program = ["/usr/sbin/mosquitto", "/usr/bin/mosquitto", "/usr/local/sbin/mosquitto"];
    let Some(program) = program.into_iter().find(|path| Path::new(path).exists()) else {
        skip(test, "mosquitto is not installed");
        return None;
    };
    let dir = tempfile::tempdir().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let config = dir.path().join("mosquitto.conf");
    std::fs::write(
        &config,
        format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nmax_inflight_messages 0\n"
        ),
    )
    .unwrap();
    let process = std::process::Command::new(program)
        .arg("-c")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let broker = Broker { process, address, _dir: dir };
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(&broker.address).is_err() {
        assert!(Instant::now() < deadline, "mosquitto does not listen");
        std::thread::yield_now();
    }
    Some(broker)
}

fn skip(test: &str, why: &str) {
    let line = format!("{test}: {why}\n");
    match std::env::var_os("MUSTER_SKIPS_FILE") {
        None => eprint!("skipped {line}"),
        Some(path) => {
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
            file.write_all(line.as_bytes()).unwrap();
        }
    }
}

fn common(broker: &Broker, mqtt: u8, devices: u32) -> Common {
    Common {
        addr: broker.address.clone(),
        devices,
        seconds: 1.0,
        tenant: "bench".to_owned(),
        token_prefix: Some("token-".to_owned()),
        tokens: None,
        ca: None,
        ca_key: None,
        server_name: None,
        mqtt,
        keep_alive: 60,
        concurrency: 64,
        connect_timeout: 60.0,
        drain_timeout: 30.0,
        server_pid: Some(broker.process.id()),
        seed: Some(1),
    }
}

fn assert_all_acked(outcome: &Outcome) {
    let messages = outcome.messages.as_ref().unwrap();
    assert_eq!((messages.lost, messages.stray_acks, outcome.reconnects), (0, 0, 0), "{outcome:?}");
    assert_eq!(messages.published, messages.acked, "{outcome:?}");
    assert!(messages.refused.is_empty() && outcome.closed.is_empty(), "{outcome:?}");
}

#[test]
fn every_device_connects_and_stays() {
    let Some(broker) = broker("every_device_connects_and_stays") else { return };
    for mqtt in [4, 5] {
        let outcome = run(&Command::Idle(common(&broker, mqtt, 300))).unwrap();
        assert!(outcome.closed.is_empty() && outcome.connects_per_s > 0.0, "{outcome:?}");
        assert!(outcome.connect_cost.server.is_some());
        let line: serde_json::Value = serde_json::from_str(&outcome.json()).unwrap();
        assert_eq!(line["devices"], 300);
    }
}

#[test]
fn a_fleet_leaves_and_comes_back_as_a_whole() {
    let Some(broker) = broker("a_fleet_leaves_and_comes_back_as_a_whole") else { return };
    for again in [false, true] {
        let outcome = run(&Command::BenchConnect { common: common(&broker, 5, 300), again }).unwrap();
        assert!(outcome.closed.is_empty(), "{outcome:?}");
        assert_eq!(outcome.reconnects, if again { 300 } else { 0 });
        assert_eq!(outcome.again_cost.is_some(), again);
    }
}

#[test]
fn a_steady_rate_is_sent_and_acknowledged() {
    let Some(broker) = broker("a_steady_rate_is_sent_and_acknowledged") else { return };
    for mqtt in [4, 5] {
        let common = common(&broker, mqtt, 100);
        let outcome = run(&Command::BenchRate { common, rate: 500.0, warmup: 0.2, defiant: false }).unwrap();
        assert_all_acked(&outcome);
        assert_eq!(outcome.messages.as_ref().unwrap().published, 500);
        assert!(outcome.messages.as_ref().unwrap().puback_ms.p50 > 0.0);
    }
}

#[test]
fn a_blast_keeps_windows_full_and_loses_nothing() {
    let Some(broker) = broker("a_blast_keeps_windows_full_and_loses_nothing") else { return };
    for mqtt in [4, 5] {
        // mosquitto allows 20 unacknowledged publishes unless told otherwise; its CONNACK says so to version 5.
        let outcome = run(&Command::BenchBlast { common: common(&broker, mqtt, 10), window: 20 }).unwrap();
        assert_all_acked(&outcome);
        assert!(outcome.messages.as_ref().unwrap().acked > 1_000, "{outcome:?}");
    }
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let Some(broker) = broker("a_server_that_is_not_there_is_named") else { return };
    let mut common = common(&broker, 5, 3);
    drop(broker);
    common.server_pid = None;
    common.connect_timeout = 0.5;
    let error = run(&Command::BenchConnect { common, again: false }).unwrap_err().to_string();
    assert!(error.contains("0 of 3 devices") && error.contains("refused"), "{error}");
}
