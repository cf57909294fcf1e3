//! What the model answers, and what it admits.

use super::super::model::{FaultMark, Ledger};
use super::*;

/// A server that costs 0.05 cores and 150 µs a message, 40 MB and 12 kB a connection, 1 MB and 60 B a reading.
fn run(devices: u32, rate: f64) -> (String, Report) {
    let mut report = Report::default();
    report.setup.devices = devices;
    report.setup.seconds = 600.0;
    report.setup.readings_per_message = 5.0;
    report.setup.transport = "mtls".to_owned();
    report.totals.acked = (rate * 600.0) as u64;
    report.totals.ledger = Some(Ledger { stored: report.totals.acked, ..Ledger::default() });
    report.cost.server_cpu_cores = Some(0.05 + rate * 150e-6);
    report.cost.server_rss_bytes = Some(40_000_000 + u64::from(devices) * 12_000);
    report.cost.stored_bytes = Some(1_000_000 + (rate * 600.0 * 5.0 * 60.0) as u64);
    (format!("{devices}.json"), report)
}

fn fleet() -> Fleet {
    Fleet {
        devices: 20_000,
        messages_per_device_per_s: 0.1,
        readings_per_message: 5.0,
        retention_days: 30.0,
        transport: Transport::Tls,
        event_log_bytes: 4 << 30,
        rules: None,
    }
}

fn near(one: Option<f64>, other: f64) {
    let one = one.expect("a value");
    assert!((one - other).abs() <= other * 1e-6, "{one} {other}");
}

fn has(found: &Capacity, part: &str) -> bool {
    found.warnings.iter().any(|warning| warning.contains(part))
}

#[test]
fn two_sizes_predict_a_third_exactly_where_the_server_is_a_straight_line() {
    let runs = [run(2_000, 200.0), run(10_000, 1_000.0)];
    let found = capacity(&runs, Some(fleet()), None).unwrap();
    let needs = found.needs.clone().unwrap();
    assert_eq!((needs.messages_per_s, needs.readings_per_s), (2_000.0, 10_000.0));
    near(needs.cores, 0.05 + 2_000.0 * 150e-6);
    assert_eq!(needs.cores_to_provide, Some(1.0));
    near(needs.memory_bytes, 40e6 + 20_000.0 * 12e3);
    near(needs.storage_bytes_per_day, 10_000.0 * 86_400.0 * 60.0);
    near(needs.disk_bytes, 1e6 + 30.0 * 10_000.0 * 86_400.0 * 60.0 + (4_u64 << 30) as f64);
    assert!(
        !has(&found, "one size") && !has(&found, "one rate") && has(&found, "differ in devices and in rate")
    );
}

#[test]
fn a_prediction_is_held_against_the_other_run() {
    let runs = [run(2_000, 200.0), run(10_000, 1_000.0)];
    let found = capacity(&runs, None, Some(&run(5_000, 3_000.0))).unwrap();
    assert_eq!(found.verified.len(), 3);
    for row in &found.verified {
        near(row.ratio, 1.0);
    }
    // One run alone cannot know the fixed part.
    let found = capacity(&runs[..1], None, Some(&runs[1])).unwrap();
    assert!(found.verified[0].ratio.unwrap() > 1.5, "{:?}", found.verified);
    assert!(has(&found, "a second run at another rate"));
    let text = found.text();
    assert!(text.contains("predicted") && text.lines().any(|line| line.starts_with("cores ")), "{text}");
}

#[test]
fn what_no_run_measured_is_unknown() {
    let mut one = run(2_000, 200.0);
    one.1.cost = super::super::model::Cost::default();
    let found = capacity(&[one], Some(fleet()), Some(&run(10_000, 1_000.0))).unwrap();
    let needs = found.needs.clone().unwrap();
    assert_eq!((needs.cores, needs.memory_bytes, needs.disk_bytes), (None, None, None));
    for field in ["`cost.server_cpu_cores`", "`cost.server_rss_bytes`", "`cost.stored_bytes`"] {
        assert!(has(&found, field), "{field}");
    }
    assert!(found.verified.iter().all(|row| row.predicted.is_none() && row.ratio.is_none()));
    assert_eq!(found.text().matches("unknown").count(), 3 + 4 + 3 + 3);
}

#[test]
fn far_from_the_measured_sizes_the_answer_is_called_a_guess() {
    let runs = [run(2_000, 200.0), run(10_000, 1_000.0)];
    let large = Fleet { devices: 100_001, messages_per_device_per_s: 1.0, ..fleet() };
    let found = capacity(&runs, Some(large), None).unwrap();
    assert!(
        has(&found, "more connections than") && has(&found, "100 times more messages"),
        "{:?}",
        found.warnings
    );
    assert!(has(&found, "no run reached 100,001 messages"));
    assert!(has(&found, "readings on disk"));
    let within = Fleet { devices: 100_000, messages_per_device_per_s: 0.1, retention_days: 0.002, ..fleet() };
    let found = capacity(&runs, Some(within), None).unwrap();
    assert!(!has(&found, "a guess"), "{:?}", found.warnings);
    let small = Fleet { devices: 10, ..fleet() };
    assert!(has(&capacity(&runs, Some(small), None).unwrap(), "1,000 times fewer connections"));
}

#[test]
fn another_transport_corrects_the_memory_and_says_what_it_does_not_know() {
    let runs = [run(2_000, 200.0), run(10_000, 1_000.0)];
    let found = capacity(&runs, Some(Fleet { transport: Transport::Plain, ..fleet() }), None).unwrap();
    near(found.needs.clone().unwrap().memory_bytes, 40e6 + 20_000.0 * (12e3 - 8.6e3));
    assert!(has(&found, "encryption is not known"));
    let mut plain = run(10_000, 1_000.0);
    plain.1.setup.transport = "plain".to_owned();
    let error = capacity(&[run(1, 1.0), plain], None, None).unwrap_err().to_string();
    assert!(error.starts_with("10000.json: field `setup.transport` is plain"), "{error}");
}

#[test]
fn fuller_messages_cost_by_the_reading_and_emptier_ones_by_the_message() {
    let runs = [run(2_000, 200.0), run(10_000, 1_000.0)];
    let cores = |readings| {
        let found = capacity(&runs, Some(Fleet { readings_per_message: readings, ..fleet() }), None).unwrap();
        assert_eq!(has(&found, "readings a message"), (readings - 5.0).abs() > 0.5);
        found.needs.unwrap().cores
    };
    near(cores(5.0), 0.35);
    near(cores(1.0), 0.35);
    near(cores(10.0), 0.65);
}

#[test]
fn rules_cost_what_their_bench_says() {
    let rules =
        Rules { count: 1_000, devices_each: 200, evaluations_per_core_s: 500_000.0, bytes_each: 30_000.0 };
    let runs = [run(2_000, 200.0), run(10_000, 1_000.0)];
    let found = capacity(&runs, Some(Fleet { rules: Some(rules), ..fleet() }), None).unwrap();
    let needs = found.needs.clone().unwrap();
    // 10 rules a device, 2,000 messages a second.
    near(needs.cores, 0.35 + 20_000.0 / 500_000.0);
    near(needs.memory_bytes, 40e6 + 20_000.0 * 12e3 + 30e6);
    assert!(has(&found, "bench of rules"));
    // More devices than any fleet has are a slip of the keyboard.
    let all = Rules { devices_each: u32::MAX, ..rules };
    assert!(capacity(&runs, Some(Fleet { rules: Some(all), ..fleet() }), None).is_err());
}

#[test]
fn faults_short_runs_and_busy_machines_are_said() {
    let mut one = run(2_000, 200.0);
    one.1.faults.push(FaultMark::default());
    one.1.cost.other_load_cores = 0.5;
    one.1.totals.ledger = None;
    one.1.setup.seconds = 60.0;
    let found = capacity(&[one], None, None).unwrap();
    for part in ["had faults", "busy machine", "less than 5 minutes", "no ledger"] {
        assert!(has(&found, part), "{part}");
    }
}

#[test]
fn fleets_that_cannot_be_and_reports_of_nothing_are_refused() {
    let runs = [run(2_000, 200.0)];
    let refused = |fleet: Fleet, field: &str| {
        let error = capacity(&runs, Some(fleet), None).unwrap_err().to_string();
        assert!(error.starts_with(field), "{error}");
    };
    refused(Fleet { devices: 0, ..fleet() }, "--devices");
    refused(Fleet { messages_per_device_per_s: f64::NAN, ..fleet() }, "--messages-per-device-per-s");
    refused(Fleet { readings_per_message: 1e9, ..fleet() }, "--readings");
    refused(Fleet { retention_days: -1.0, ..fleet() }, "--retention-days");
    assert_eq!(capacity(&[], None, None).unwrap_err(), CapacityError::NoReport);
    let nothing = ("nothing.json".to_owned(), Report::default());
    let error = capacity(&[nothing], None, None).unwrap_err().to_string();
    assert!(error.starts_with("nothing.json: field `setup.seconds`"), "{error}");
}
