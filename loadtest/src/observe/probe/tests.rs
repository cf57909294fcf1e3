use super::alert::{AlertView, EARLY_MAX, Matcher};
use super::*;
use crate::observe::handle::{Access, ServerFacts, ServerHandle};
use crate::observe::provision::{WrittenRule, alarm_value};
use crate::observe::testing::{Fake, Request};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;

const LONG: Duration = Duration::from_secs(60);

/// Waits until a probe saw as many.
fn wait_for(count: usize, mut take: impl FnMut() -> Vec<Observed>) -> Vec<Observed> {
    let (began, mut all) = (Instant::now(), Vec::new());
    while all.len() < count {
        assert!(began.elapsed() < LONG, "{} of {count} were seen", all.len());
        all.extend(take());
        std::thread::sleep(Duration::from_millis(5));
    }
    all
}

fn stored(value: f64, intended: Instant) -> StoredWatch {
    StoredWatch { device: "probe".into(), metric: "serial".into(), value, measured_at_us: 77, intended }
}

#[test]
fn a_message_is_looked_for_until_it_is_there() {
    let there = Arc::new(AtomicBool::new(false));
    let seen = there.clone();
    let fake = Fake::start(move |request: &Request| {
        assert_eq!(request.path, "/api/v1/tenants/acme/devices/probe/readings");
        assert_eq!((request.number("from"), request.number("to")), (77, 78));
        // Another record of the same time is none of ours.
        let mut points = vec![json!({ "ts_us": 77, "value": 4.0 })];
        if seen.load(Ordering::Relaxed) {
            points.push(json!({ "ts_us": 77, "value": 5.0 }));
        }
        Ok((200, json!({ "points": points, "truncated": false }).to_string()))
    });
    let probe = StoredProbe::start(&fake.handle, &fake.access("acme")).unwrap();
    let intended = Instant::now();
    probe.watch(stored(5.0, intended));
    while fake.requests.lock().unwrap().len() < 5 {
        assert!(intended.elapsed() < LONG, "it does not look");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(probe.take(), []);
    // Away, and back.
    let http = fake.handle.facts().http;
    fake.handle.change(|facts| facts.http = None);
    there.store(true, Ordering::Relaxed);
    fake.handle.change(|facts| facts.http = http);
    let observed = wait_for(1, || probe.take());
    assert!(observed[0].at > intended && observed[0].ms > 0.0, "{observed:?}");
    probe.watch(stored(6.0, Instant::now()));
    let count = fake.requests.lock().unwrap().len();
    while fake.requests.lock().unwrap().len() < count + 2 {
        assert!(intended.elapsed() < LONG, "it does not look");
        std::thread::sleep(Duration::from_millis(1));
    }
    let result = probe.finish();
    assert_eq!((result.histogram.len(), result.given_up, result.not_watched, result.waiting), (1, 0, 0, 1));
    assert_eq!(result.latency().unwrap().count, 1);
}

#[test]
fn a_message_that_never_comes_is_given_up_and_too_many_are_not_watched() {
    let fake = Fake::start(|_| Ok((200, json!({ "points": [], "truncated": false }).to_string())));
    let probe = StoredProbe::start(&fake.handle, &fake.access("acme")).unwrap();
    let Some(long_ago) = Instant::now().checked_sub(GIVE_UP_AFTER + Duration::from_secs(1)) else { return };
    probe.watch(stored(1.0, long_ago));
    let began = Instant::now();
    while probe.0.board.lock().result.given_up == 0 {
        assert!(began.elapsed() < LONG, "it is not given up");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Far in the future: none is looked for, all wait.
    let future = Instant::now() + LONG * 60;
    let until = |what: &str, is_it: &dyn Fn(&ProbeResult) -> bool| {
        let began = Instant::now();
        while !is_it(&probe.0.board.lock().result) {
            assert!(began.elapsed() < LONG, "{what}: {:?}", probe.0.board.lock().result);
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    for _ in 0..WATCHED_MAX {
        probe.watch(stored(1.0, future));
    }
    until("as many as it may watch", &|result| result.waiting == WATCHED_MAX as u64);
    for _ in 0..5 {
        probe.watch(stored(1.0, future));
    }
    until("five are not watched", &|result| result.not_watched == 5);
    let result = probe.finish();
    assert_eq!((result.given_up, result.waiting, result.histogram.len()), (1, WATCHED_MAX as u64, 0));
    assert_eq!(result.latency(), None);
}

#[test]
fn what_is_there_at_the_end_is_seen_though_no_look_was_due() {
    let there = Arc::new(AtomicBool::new(false));
    let seen = there.clone();
    let fake = Fake::start(move |_| {
        let points = if seen.load(Ordering::Relaxed) { vec![json!({ "value": 5.0 })] } else { Vec::new() };
        Ok((200, json!({ "points": points, "truncated": false }).to_string()))
    });
    let probe = StoredProbe::start(&fake.handle, &fake.access("acme")).unwrap();
    let began = Instant::now();
    let Some(intended) = began.checked_sub(Duration::from_secs(1)) else { return };
    probe.watch(stored(5.0, intended));
    // By then a quarter of a second lies between two looks.
    while fake.requests.lock().unwrap().len() < 9 {
        assert!(began.elapsed() < LONG, "it does not look");
        std::thread::sleep(Duration::from_millis(1));
    }
    there.store(true, Ordering::Relaxed);
    let result = probe.finish();
    assert_eq!((result.histogram.len(), result.given_up, result.waiting), (1, 0, 0));
}

#[test]
fn observations_that_nobody_takes_are_bounded() {
    let (board, now) = (Board::new(), Instant::now());
    for number in 0..OBSERVED_MAX as u64 + 5 {
        board.seen(now, now + Duration::from_micros(number));
    }
    let found = board.lock();
    assert_eq!((found.observed.len(), found.result.histogram.len()), (OBSERVED_MAX, OBSERVED_MAX as u64 + 5));
    assert!((found.observed[0].ms - 0.005).abs() < 1e-9, "{:?}", found.observed[0]);
}

fn alert(device: &str, rule: &str, value: Value) -> AlertView {
    serde_json::from_value(json!({ "device": device, "rule_id": rule, "rule_version": 2, "value": value }))
        .unwrap()
}

fn r1() -> WrittenRule {
    WrittenRule { id: "r1".into(), version: 2 }
}

fn watch(device: &str, excursion: u32, intended: Instant) -> AlertWatch {
    AlertWatch { device: device.into(), excursion, intended }
}

#[test]
fn an_alert_is_matched_to_its_own_excursion() {
    let (mut matcher, now) = (Matcher::of(&r1()), Instant::now());
    let at = |ms| now + Duration::from_millis(ms);
    for (device, excursion, ms) in [("a", 1, 1), ("a", 2, 2), ("b", 1, 3)] {
        assert_eq!(matcher.watch(watch(device, excursion, at(ms))), Ok(None));
    }
    let value = |excursion| json!(alarm_value(excursion));
    assert_eq!(matcher.seen(alert("a", "r1", value(2)), at(50)), Some(at(2)));
    assert_eq!(matcher.seen(alert("a", "r1", value(2)), at(51)), None, "once");
    assert_eq!(matcher.seen(alert("b", "other", value(1)), at(52)), None);
    assert_eq!(matcher.seen(alert("b", "r1", json!(3.5)), at(52)), None);
    assert_eq!(matcher.seen(alert("b", "r1", json!("hot")), at(52)), None);
    assert_eq!(matcher.seen(alert("b", "r1", value(1)), at(53)), Some(at(3)));
    // One that came before its excursion was told of, and was cleared meanwhile.
    assert_eq!(matcher.seen(alert("c", "r1", value(9)), at(60)), None);
    assert_eq!(matcher.seen(alert("c", "r1", value(9)), at(61)), None);
    assert_eq!(matcher.watch(watch("c", 9, at(55))), Ok(Some((at(55), at(60)))));
    // One of the rule's version before is of an earlier run.
    let mut earlier = alert("a", "r1", value(1));
    earlier.rule_version = 1;
    assert_eq!(matcher.seen(earlier, at(62)), None);
    // One that came before it was intended was opened by somebody else.
    assert_eq!(matcher.seen(alert("c", "r1", value(10)), at(60)), None);
    assert_eq!(matcher.watch(watch("c", 10, at(65))), Ok(None));
    assert_eq!(matcher.seen(alert("c", "r1", value(10)), at(70)), Some(at(65)));
    assert_eq!(matcher.give_up(at(0)), 0);
    assert_eq!(matcher.give_up(at(1)), 1);
    assert_eq!(matcher.seen(alert("a", "r1", value(1)), at(70)), None);
}

#[test]
fn what_a_matcher_holds_is_bounded() {
    let (mut matcher, now) = (Matcher::of(&r1()), Instant::now());
    for number in 0..WATCHED_MAX as u32 {
        assert_eq!(matcher.watch(watch("a", number, now)), Ok(None));
    }
    assert_eq!(matcher.watch(watch("b", 0, now)), Err(watch("b", 0, now)));
    for number in 0..=EARLY_MAX as u32 {
        assert_eq!(matcher.seen(alert("early", "r1", json!(alarm_value(number))), now), None);
    }
    // Of the early ones the oldest is gone.
    assert_eq!(matcher.seen(alert("a", "r1", json!(alarm_value(0))), now), Some(now));
    assert_eq!(matcher.watch(watch("early", 0, now)), Ok(None));
    assert_eq!(matcher.seen(alert("a", "r1", json!(alarm_value(1))), now), Some(now));
    assert_eq!(matcher.watch(watch("early", 1, now)), Ok(Some((now, now))));
}

/// Reads a request's head; its first line.
fn read_head(stream: &mut BufReader<TcpStream>) -> String {
    let mut first = String::new();
    stream.read_line(&mut first).unwrap();
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).unwrap();
    }
    first
}

fn send(stream: &mut BufReader<TcpStream>, text: &str) {
    stream.get_mut().write_all(text.as_bytes()).unwrap();
}

#[test]
fn an_overdue_alert_is_looked_up() {
    let fake = Fake::start(|request: &Request| {
        if request.path.ends_with("/live") {
            return Err(b"HTTP/1.1 200 OK\r\n\r\nevent: hello\nid: a-1\ndata: fresh\n\n".to_vec());
        }
        // Two pages; the alert is on the second.
        let (device, next) = match request.query.get("cursor") {
            None => ("other", Some("2")),
            Some(_) => ("pump", None),
        };
        let item = json!({ "device": device, "rule_id": "r1", "rule_version": 2, "value": alarm_value(1) });
        Ok((200, json!({ "items": [item], "next_cursor": next }).to_string()))
    });
    let probe = AlertProbe::start(&fake.handle, &fake.access("acme"), &r1()).unwrap();
    let Some(long_ago) = Instant::now().checked_sub(LONG) else { return };
    probe.watch(watch("pump", 1, long_ago));
    assert!(wait_for(1, || probe.take())[0].ms >= 60_000.0);
    let result = probe.finish();
    assert_eq!((result.histogram.len(), result.seen_late, result.waiting), (1, 1, 0));
}

#[test]
fn alerts_that_the_stream_missed_are_found_in_the_list() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let http = Some(listener.local_addr().unwrap().to_string());
    let handle = ServerHandle::new(ServerFacts { http, ..ServerFacts::default() });
    let access = Access { tenant: "acme".into(), token: "t".into() };
    let (go, gone_on) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        let accept = || BufReader::new(listener.accept().unwrap().0);
        let mut live = accept();
        assert!(read_head(&mut live).contains("/live?kinds=alert "));
        send(&mut live, "HTTP/1.1 200 OK\r\n\r\nevent: hello\nid: a-1\ndata: fresh\n\n");
        let event = json!({ "device": "pump", "rule_id": "r1", "rule_version": 2, "value": alarm_value(1), "state": "open" });
        gone_on
            .recv_timeout(LONG)
            .map(|()| send(&mut live, &format!("event: alert\nid: a-2\ndata: {event}\n\n")))
            .unwrap();
        // Killed; excursion 2 opened meanwhile.
        gone_on.recv_timeout(LONG).unwrap();
        drop(live);
        let mut live = accept();
        read_head(&mut live);
        send(&mut live, "HTTP/1.1 200 OK\r\n\r\nevent: reset\nid: b-1\ndata: events were missed\n\n");
        let mut list = accept();
        let path = read_head(&mut list);
        assert!(path.starts_with("GET /api/v1/tenants/acme/alerts?rule=r1&limit=500 "), "{path}");
        let item = |number| json!({ "device": "pump", "rule_id": "r1", "rule_version": 2, "value": alarm_value(number), "state": "open" });
        let body = json!({ "items": [item(3), item(2), item(1)], "next_cursor": null }).to_string();
        send(&mut list, &format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        let _ = gone_on.recv_timeout(LONG);
    });
    let probe = AlertProbe::start(&handle, &access, &r1()).unwrap();
    probe.watch(watch("pump", 1, Instant::now()));
    go.send(()).unwrap();
    assert_eq!(wait_for(1, || probe.take()).len(), 1);
    // Not overdue for long: only the reset makes it look.
    probe.watch(watch("pump", 2, Instant::now() + LONG));
    go.send(()).unwrap();
    assert_eq!(wait_for(1, || probe.take()).len(), 1);
    go.send(()).unwrap();
    let result = probe.finish();
    assert_eq!((result.histogram.len(), result.seen_late, result.given_up, result.waiting), (2, 1, 0, 0));
    server.join().unwrap();
}
