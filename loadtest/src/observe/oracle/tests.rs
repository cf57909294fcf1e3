use super::*;
use crate::observe::testing::{Fake, Reply, Request};
use crate::payload::serial_value;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

/// What a fake server holds: readings `(time, value)` by path of the device.
#[derive(Default)]
struct Store {
    readings: BTreeMap<String, Vec<(i64, Value)>>,
    /// Device, version of the rule, value.
    alerts: Vec<(String, i64, f64)>,
    /// Readings that an answer holds at most.
    page: usize,
    /// Whoever asks is answered.
    open_to_all: bool,
    lost: u64,
}

impl Store {
    fn answer(&self, request: &Request) -> Reply {
        let path = request.path.strip_prefix("/api/v1/tenants/").unwrap();
        let (tenant, rest) = path.split_once('/').unwrap();
        if !self.open_to_all && request.token() != format!("token-of-{tenant}") {
            return Ok((404, "{}".into()));
        }
        let body = match rest {
            "ledger" => json!({ "accepted": 5, "stored": 3, "dropped": { "malformed": 1, "expired": 1 },
                                "pending": 0, "lost": self.lost, "duplicated": 9 }),
            "alerts" => self.alerts(request),
            _ if rest.ends_with("/readings") && request.query.contains_key("from") => {
                return self.points(request, path);
            }
            _ => json!({ "items": [] }),
        };
        Ok((200, body.to_string()))
    }

    fn points(&self, request: &Request, path: &str) -> Reply {
        let device = path.strip_suffix("/readings").unwrap();
        let Some(readings) = self.readings.get(device) else { return Ok((404, "no device".into())) };
        let (from, to) = (request.number("from"), request.number("to"));
        let mut found: Vec<_> = readings.iter().filter(|(at, _)| (from..to).contains(at)).collect();
        found.sort_by_key(|(at, _)| *at);
        let truncated = found.len() > self.page;
        found.truncate(self.page);
        let point = |(at, value): &&(i64, Value)| json!({ "ts_us": at, "value": value, "count": 1, "clock_suspect": false });
        let points: Vec<Value> = found.iter().map(point).collect();
        Ok((200, json!({ "points": points, "truncated": truncated }).to_string()))
    }

    /// Two a page.
    fn alerts(&self, request: &Request) -> Value {
        let of_device: Vec<_> =
            self.alerts.iter().filter(|(device, ..)| request.query.get("device") == Some(device)).collect();
        let from: usize = request.query.get("cursor").map_or(0, |cursor| cursor.parse().unwrap());
        let items: Vec<Value> = of_device
            .iter()
            .skip(from)
            .take(2)
            .map(|(device, version, value)| json!({ "device": device, "rule_version": version, "value": value }))
            .collect();
        let next = (from + 2 < of_device.len()).then(|| (from + 2).to_string());
        json!({ "items": items, "next_cursor": next })
    }
}

/// A fake whose log is drained.
fn fake(store: Store) -> Fake {
    let store = Arc::new(store);
    Fake::start(move |request| match request.path.as_str() {
        "/metrics" => {
            Ok((200, "event_log_durable_position 9\nevent_log_stored_position 9\nrules_position 9\n".into()))
        }
        _ => store.answer(request),
    })
}

fn serial(device: u32, seq: u32) -> Value {
    json!(serial_value(device, seq) as f64)
}

/// Devices `a0` (number 1) and `a1` (2) of tenant `a`, `b0` (3) of tenant `b`; each acknowledged 1 to 3, sent 4.
fn expected() -> Expected {
    let device = |(number, tenant, name): (u32, usize, &str)| ExpectedDevice {
        number,
        tenant,
        name: name.to_owned(),
        accepted: vec![1..=3],
        maybe: vec![4..=4],
    };
    let alarms = ExpectedAlarms {
        tenant: 1,
        device: "b0".into(),
        rule: WrittenRule { id: "r1".into(), version: 2 },
        opened: vec![1..=3],
        maybe: vec![],
    };
    Expected {
        devices: [(1, 0, "a0"), (2, 0, "a1"), (3, 1, "b0")].map(device).to_vec(),
        alarms: vec![alarms],
    }
}

fn store() -> Store {
    let all = |number: u32| (1..=3).map(|seq| (i64::from(seq), serial(number, seq))).collect::<Vec<_>>();
    let devices = [("a/devices/a0", 1), ("a/devices/a1", 2), ("b/devices/b0", 3)];
    let readings = devices.map(|(path, number)| (path.to_owned(), all(number))).into();
    let alerts = (1..=3).map(|number| ("b0".to_owned(), 2, 1_000_000.0 + f64::from(number))).collect();
    Store { readings, alerts, page: 2, open_to_all: false, lost: 0 }
}

fn judged(store: Store) -> (Verdict, Vec<u32>) {
    let fake = fake(store);
    let tenants = [fake.access("a"), fake.access("b")];
    let done = Mutex::new(Vec::new());
    let progress = |count| done.lock().unwrap().push(count);
    let verdict = judge(&fake.handle, &tenants, &expected(), Duration::from_secs(60), &progress).unwrap();
    (verdict, done.into_inner().unwrap())
}

/// Breaks a store in one way and tells which invariants broke.
#[track_caller]
fn check(break_it: impl FnOnce(&mut Store), expect: &[&str], detail: &str) {
    let mut store = store();
    break_it(&mut store);
    let (verdict, _) = judged(store);
    let broken: Vec<_> = verdict.invariants.iter().filter(|invariant| !invariant.held).collect();
    let names: Vec<_> = broken.iter().map(|invariant| invariant.name.as_str()).collect();
    assert_eq!(names, expect, "{:?}", verdict.invariants);
    assert!(broken.iter().all(|invariant| invariant.detail.contains(detail)), "{detail}: {broken:?}");
    assert_eq!(verdict.held(), expect.is_empty());
}

#[test]
fn a_store_that_holds_what_it_should_is_cleared() {
    let (verdict, mut done) = judged(store());
    done.sort_unstable();
    assert_eq!(done, [1, 2, 3]);
    let names: Vec<_> =
        verdict.invariants.iter().map(|invariant| (invariant.name.as_str(), invariant.held)).collect();
    let all = [
        "log_drained",
        "stored_exactly_once",
        "nothing_lost",
        "nothing_unexpected",
        "tenants_apart",
        "alerts_once",
    ];
    assert_eq!(names, all.map(|name| (name, true)), "{:?}", verdict.invariants);
    assert_eq!((verdict.counts.accepted, verdict.counts.found, verdict.counts.maybe_found), (9, 9, 0));
    let ledger = Ledger { accepted: 10, stored: 6, dropped: 4, pending: 0, lost: 0, duplicated: 0 };
    assert_eq!(verdict.ledger, ledger);
    // Unanswered, and there after all.
    check(|store| store.readings.get_mut("a/devices/a0").unwrap().push((9, serial(1, 4))), &[], "");
}

#[test]
fn each_fault_breaks_its_invariant() {
    let readings = |path: &'static str| {
        move |store: &mut Store, more: Vec<(i64, Value)>| {
            store.readings.get_mut(path).unwrap().extend(more);
        }
    };
    let (a0, b0) = (readings("a/devices/a0"), readings("b/devices/b0"));
    check(
        |store| drop(store.readings.get_mut("a/devices/a1").unwrap().remove(1)),
        &["stored_exactly_once"],
        "8 of 9 acknowledged serials found, and 0 of 3 unanswered; 1 missing (a1/2), 0 duplicated",
    );
    check(|store| a0(store, vec![(7, serial(1, 3))]), &["stored_exactly_once"], "1 duplicated (a0/3)");
    check(
        |store| a0(store, vec![(7, serial(1, 9))]),
        &["nothing_unexpected"],
        "1 serials that were never sent (a0/9)",
    );
    check(|store| a0(store, vec![(7, json!("x"))]), &["nothing_unexpected"], "never sent (a0: \"x\")");
    check(
        |store| a0(store, vec![(7, serial(2, 1))]),
        &["nothing_unexpected"],
        "1 of another device (a0 has a1/1)",
    );
    check(
        |store| b0(store, vec![(7, serial(1, 1))]),
        &["tenants_apart"],
        "1 serials of other tenants (b0 has a0/1)",
    );
    check(|store| b0(store, vec![(7, serial(77, 1))]), &["tenants_apart"], "(b0 has device 77/1)");
    check(
        |store| drop(store.readings.remove("a/devices/a1")),
        &["stored_exactly_once"],
        "1 devices not readable (a1: GET",
    );
    check(|store| store.lost = 1, &["nothing_lost"], "0 pending + 2 lost");
    check(
        |store| store.open_to_all = true,
        &["tenants_apart"],
        "24 requests with another tenant's token, 24 not answered by 404",
    );
    check(|store| drop(store.alerts.pop()), &["alerts_once"], "1 without (b0/3)");
    check(
        |store| store.alerts.push(("b0".into(), 2, 1_000_001.0)),
        &["alerts_once"],
        "1 opened again (b0/1)",
    );
    // What the rule's version before opened is an earlier run's.
    check(|store| store.alerts.push(("b0".into(), 1, 1_000_001.0)), &[], "");
    check(|store| store.alerts[0].1 = 1, &["alerts_once"], "2 alerts opened; 1 without (b0/1)");
}

#[test]
fn examples_are_bounded_and_the_first() {
    let mut sum = Faults::default();
    // Devices 1, 4, 7... and 0, 3, 6... and 2, 5, 8...: as three threads take them.
    for begin in [1, 0, 2] {
        let mut part = Faults::default();
        for at in (begin..300).step_by(3) {
            part.add(at, 2, [format!("d{at}/1"), format!("d{at}/2")]);
        }
        assert_eq!((part.count, part.examples.len()), (200, EXAMPLES_MAX));
        sum.join(part);
    }
    assert_eq!((sum.count, sum.examples.len()), (600, EXAMPLES_MAX));
    assert_eq!(&sum.examples[..3], ["d0/1", "d0/2", "d1/1"]);
    assert_eq!(sum.examples[EXAMPLES_MAX - 1], "d9/2");
}

/// Times of a device's readings, and the readings of a page.
#[track_caller]
fn paged(times: &[i64], page: usize, expect: Result<(), &str>) {
    let readings: Vec<_> = times.iter().enumerate().map(|(at, time)| (*time, json!(at))).collect();
    let store =
        Store { readings: BTreeMap::from([("a/devices/d".to_owned(), readings)]), page, ..Store::default() };
    let fake = fake(store);
    let (access, mut found) = (fake.access("a"), Vec::new());
    let mut client = Client::of(&fake.handle, &access);
    let read =
        readings::serials(&mut client, &access, "d", |value| found.push(value.as_u64().unwrap() as usize));
    assert_eq!(read.map_err(|error| error.to_string()), expect.map_err(str::to_owned), "{times:?} {page}");
    found.sort_unstable();
    if expect.is_ok() {
        assert_eq!(found, (0..times.len()).collect::<Vec<_>>(), "{times:?} {page}");
    }
}

#[test]
fn pages_are_exact_wherever_times_are() {
    let now = 1_700_000_000_000_000;
    paged(&[], 2, Ok(()));
    paged(&[5], 2, Ok(()));
    for page in 3..=10 {
        paged(&[1, 2, 3, 4, 5, 6, 7, 8, 9], page, Ok(()));
        paged(&[now, 5, now, i64::MIN, 5, i64::MAX - 1, now + 1, now + 1, -7, i64::MAX - 1], page, Ok(()));
    }
    paged(&[1, 1, 2, 2, 2, 3, 3], 4, Ok(()));
    // Three at one time fill a page of three: the last one's page is the last, and good.
    paged(&[1, 2, 2, 2], 3, Ok(()));
    paged(&[1, 2, 2, 2, 2], 3, Err("more than 10000 readings at 2 us"));
    paged(&[1, 2, 2, 2, 3], 3, Err("more than 10000 readings at 2 us"));
}

#[test]
fn a_serial_that_was_on_its_way_is_found_in_the_second_look() {
    // Six looks until the store comes to the end; then the missing one is there.
    let (looks, late) = (AtomicU64::new(0), store());
    let mut early = store();
    early.readings.get_mut("a/devices/a1").unwrap().clear();
    let fake = Fake::start(move |request| {
        let past = looks.load(Ordering::Relaxed) >= 40;
        if request.path == "/metrics" {
            let stored = if past { 100 } else { 70 };
            looks.fetch_add(1, Ordering::Relaxed);
            let text = format!(
                "event_log_durable_position 100\nevent_log_stored_position {stored}\nrules_position 100\n"
            );
            return Ok((200, text));
        }
        if past { late.answer(request) } else { early.answer(request) }
    });
    let tenants = [fake.access("a"), fake.access("b")];
    let verdict = judge(&fake.handle, &tenants, &expected(), Duration::from_secs(60), &|_| {}).unwrap();
    assert!(verdict.held(), "{:?}", verdict.invariants);
    let asked = |device: &str| {
        let path = format!("/api/v1/tenants/a/devices/{device}/readings");
        let requests = fake.requests.lock().unwrap();
        requests.iter().filter(|request| request.path == path && request.query.contains_key("from")).count()
    };
    // One page and the next, and for the device that lacked some once more from the begin.
    assert_eq!((asked("a0"), asked("a1")), (2, 3));
}

#[test]
fn a_log_that_does_not_drain_is_told() {
    let never = store();
    let fake = Fake::start(move |request| match request.path.as_str() {
        "/metrics" => Ok((
            200,
            "event_log_durable_position 900\nevent_log_stored_position 9\nrules_position 900\n".into(),
        )),
        _ => never.answer(request),
    });
    let tenants = [fake.access("a"), fake.access("b")];
    let verdict = judge(&fake.handle, &tenants, &expected(), Duration::from_millis(300), &|_| {}).unwrap();
    let drained = &verdict.invariants[0];
    assert!(
        !drained.held && drained.detail.starts_with("891 records not stored, 0 not judged"),
        "{drained:?}"
    );
}
