use super::*;
use crate::rules::engine::{GAP_US, HISTORICAL_IDLE_US};
use crate::rules::model::{
    FOR_S_MAX, SELECTOR_DEVICES_MAX, SELECTOR_LABELS_MAX, TEMPLATE_CHARS_MAX, TRIGGER_NAMES_MAX,
};
use serde_json::json;

#[test]
fn an_alert_opens_once_and_clears_with_hysteresis() {
    let mut bench = Bench::new(&[hot("r", 0)]);
    for value in [20.0, 31.0, 35.0, 27.0, 33.0] {
        bench.reading("d1", "temp_c", value);
        bench.ticks(1);
    }
    assert_eq!(bench.decided(), ["+r d1 metric:temp_c @1"]);
    bench.reading("d1", "temp_c", 24.0);
    bench.reading("d1", "temp_c", 31.0);
    assert_eq!(bench.decided(), ["+r d1 metric:temp_c @5", "-condition @5"]);
}

#[test]
fn the_alert_tells_what_opened_it() {
    let mut bench = Bench::new(&[hot("r", 5)]);
    bench.reading("d1", "temp_c", 31.25);
    bench.reading("d1", "temp_c", 99.0);
    bench.ticks(6);
    let alert = bench.opened().remove(0);
    assert_eq!(
        (alert.message.as_str(), alert.value, alert.historical),
        ("d1 at 31.25", Value::Number(31.25), false)
    );
    assert_eq!((alert.rule_name.as_str(), alert.rule_version, alert.id.len()), ("rule r", 1, 32));
}

#[test]
fn a_duration_is_measured_on_the_logs_time() {
    let mut bench = Bench::new(&[hot("r", 10)]);
    bench.reading("d1", "temp_c", 31.0);
    bench.ticks(9);
    assert!(bench.decided().is_empty());
    bench.ticks(1);
    assert_eq!(bench.decided(), ["+r d1 metric:temp_c @10"]);
    bench.reading("d2", "temp_c", 31.0);
    bench.ticks(5);
    bench.reading("d2", "temp_c", 29.0);
    bench.ticks(20);
    assert!(bench.decided().is_empty(), "it did not hold for ten seconds");
}

#[test]
fn the_servers_down_time_is_nobodys_measurement() {
    let mut bench = Bench::new(&[hot("r", 10)]);
    bench.reading("d1", "temp_c", 31.0);
    bench.ticks(3);
    bench.now_us += 3600 * SECOND;
    bench.ticks(1);
    assert!(bench.decided().is_empty(), "an hour without the server is one second");
    bench.ticks(6);
    assert_eq!(bench.decided(), ["+r d1 metric:temp_c @3610"]);
    let mut bench = Bench::new(&[hot("r", 10)]);
    bench.reading("d1", "temp_c", 31.0);
    bench.now_us += GAP_US;
    bench.reading("d1", "temp_c", 31.0);
    assert_eq!(bench.decided(), ["+r d1 metric:temp_c @10"], "a silence within the bound counts in full");
}

#[test]
fn subjects_and_devices_are_told_apart() {
    let any = json!({"on": {"telemetry": {}}, "condition": "value > 30.0", "severity": "info"});
    let mut bench = Bench::new(&[rule("any", any)]);
    for (device, metric) in [("d1", "a"), ("d1", "b"), ("d2", "a"), ("d1", "a")] {
        bench.reading(device, metric, 31.0);
    }
    assert_eq!(bench.decided(), ["+any d1 metric:a @0", "+any d1 metric:b @0", "+any d2 metric:a @0"]);
    bench.reading("d1", "b", 1.0);
    assert_eq!(bench.decided(), ["-condition @0"]);
}

#[test]
fn selectors_pick_devices_by_id_and_label() {
    let on = json!({"telemetry": {"metrics": ["m"]}});
    let picks = |selector: serde_json::Value| json!({"on": on.clone(), "selector": selector, "condition": "value > 0.0", "severity": "info"});
    let mut bench = Bench::new(&[
        rule("all", picks(json!({}))),
        rule("ids", picks(json!({"devices": ["d2", "d3", "d2"]}))),
        rule("north", picks(json!({"labels": {"site": "north"}}))),
        rule("both", picks(json!({"devices": ["d1", "d2"], "labels": {"site": "south"}}))),
        rule("none", picks(json!({"labels": {"zone": "x"}}))),
    ]);
    for device in ["d1", "d2", "d9"] {
        bench.reading(device, "m", 1.0);
    }
    let mut decided = bench.decided();
    decided.sort();
    assert_eq!(
        decided,
        ["+all d1", "+all d2", "+all d9", "+both d2", "+ids d2", "+north d1"]
            .map(|at| format!("{at} metric:m @0"))
    );
}

#[test]
fn events_are_judged_by_pipeline_and_kind() {
    let on = |kinds: &[&str]| json!({"event": {"pipelines": ["vib"], "kinds": kinds}});
    let condition =
        "event.label == 'anomaly' && event.score > 0.8 && has(event.subject) && labels.site == 'north'";
    let with = |kinds| json!({"on": on(kinds), "condition": condition, "severity": "critical", "message": "{pipeline} {label} {score} {subject} {labels.site} {severity}"});
    let mut bench = Bench::new(&[rule("an", with(&["anomaly"])), rule("de", with(&["detection"]))]);
    bench.event("d1", "vib", "normal", 0.9);
    bench.event("d1", "other", "anomaly", 0.9);
    bench.event("d2", "vib", "anomaly", 0.9);
    assert!(bench.decided().is_empty());
    bench.event("d1", "vib", "anomaly", 0.9);
    let opened = bench.opened();
    assert_eq!(
        opened.iter().map(|alert| alert.message.as_str()).collect::<Vec<_>>(),
        ["vib anomaly 0.9 row 7 north critical"]
    );
    bench.event("d1", "vib", "normal", 0.1);
    assert_eq!(bench.decided(), ["-condition @0"]);
}

#[test]
fn last_values_join_metrics_of_a_device() {
    let condition = "value > 30.0 && last.door == 'open' && last[\"fan\"] < 1.0";
    let json =
        json!({"on": {"telemetry": {"metrics": ["temp_c"]}}, "condition": condition, "severity": "info"});
    let mut bench = Bench::new(&[rule("r", json)]);
    bench.reading("d1", "temp_c", 31.0);
    assert!(bench.decided().is_empty(), "a missing value is no answer");
    bench.reading("d1", "door", "open");
    bench.reading("d1", "fan", 0.0);
    bench.reading("d2", "temp_c", 31.0);
    bench.reading("d1", "unread", 1.0);
    assert!(bench.decided().is_empty());
    bench.reading("d1", "temp_c", 31.0);
    assert_eq!(
        bench.engine.effects().lasts.len(),
        0,
        "only what a rule reads is kept, and d1's temperature is not"
    );
    assert_eq!(bench.decided(), ["+r d1 metric:temp_c @0"]);
    let health = bench.engine.health().next().unwrap().2;
    assert_eq!((health.unknown, health.errors), (2, 0));
}

#[test]
fn a_records_own_values_are_all_known_before_any_is_judged() {
    let json =
        json!({"on": {"telemetry": {"metrics": ["a"]}}, "condition": "value > last.b", "severity": "info"});
    let mut bench = Bench::new(&[rule("r", json)]);
    let reading =
        |metric: &str, value| Reading { metric: metric.into(), value: Value::Number(value), offset_us: None };
    bench.feed("d1", 0, None, Body::Readings(&[reading("a", 2.0), reading("b", 1.0)]));
    assert_eq!(bench.decided(), ["+r d1 metric:a @0"]);
}

#[test]
fn old_data_opens_historical_alerts_on_the_devices_time() {
    let mut bench = Bench::new(&[hot("r", 10)]);
    bench.reading("d1", "temp_c", 20.0);
    for (age_s, value) in [(900, 31.0), (895, 31.0), (885, 31.0), (600, 31.0), (500, 20.0)] {
        bench.old_reading("d1", "temp_c", value, age_s * SECOND);
        bench.reading("d1", "temp_c", 20.0);
    }
    assert_eq!(bench.decided(), ["+r d1 metric:temp_c old @-890", "-condition @-500"]);
    bench.old_reading("d1", "temp_c", 31.0, 400 * SECOND);
    bench.old_reading("d1", "temp_c", 31.0, 350 * SECOND);
    assert_eq!(bench.decided(), ["+r d1 metric:temp_c old @-390"]);
    bench.ticks(HISTORICAL_IDLE_US / SECOND - 1);
    assert!(bench.decided().is_empty());
    bench.ticks(1);
    assert_eq!(bench.decided(), ["-data_ended @300"]);
    bench.old_reading("d1", "temp_c", 31.0, 290 * SECOND);
    bench.ticks(11);
    assert_eq!(bench.decided(), ["+r d1 metric:temp_c @310"], "younger than five minutes is live");
}

#[test]
fn a_clock_that_was_never_set_sends_live_data() {
    let mut bench = Bench::new(&[hot("r", 0)]);
    bench.old_reading("d1", "temp_c", 31.0, START - 1_000);
    bench.old_reading("d2", "temp_c", 31.0, -10 * 365 * 86_400 * SECOND);
    assert_eq!(bench.decided(), ["+r d1 metric:temp_c @0", "+r d2 metric:temp_c @0"]);
}

#[test]
fn copies_of_a_record_change_nothing() {
    let mut bench = Bench::new(&[hot("r", 0)]);
    let body = |value| [Reading { metric: "temp_c".into(), value: Value::Number(value), offset_us: None }];
    for seq in 1..=3 {
        bench.feed("d1", 0, Some((1, 9, seq)), Body::Readings(&body(if seq == 2 { 31.0 } else { 20.0 })));
    }
    assert_eq!(bench.decided(), ["+r d1 metric:temp_c @0", "-condition @0"]);
    for seq in 1..=3 {
        bench.feed("d1", 0, Some((1, 9, seq)), Body::Readings(&body(31.0)));
    }
    assert!(bench.decided().is_empty());
    assert_eq!(bench.engine.stats().duplicates, 3);
    bench.feed("d1", 0, Some((1, 10, 1)), Body::Readings(&body(31.0)));
    assert_eq!(bench.decided().len(), 1, "another queue counts anew");
}

#[test]
fn what_an_agent_sends_again_after_a_crash_opens_no_second_alert() {
    let mut bench = Bench::new(&[hot("r", 0)]);
    let send = |bench: &mut Bench, seq: u64| {
        let value = if seq == 3 { 31.0 } else { 20.0 };
        let reading = Reading { metric: "temp_c".into(), value: Value::Number(value), offset_us: None };
        bench.feed("d1", 0, Some((1, 9, seq)), Body::Readings(&[reading]));
    };
    // Live records before the backlog, as an agent sends that comes back.
    (150..=200).chain(1..150).for_each(|seq| send(&mut bench, seq));
    assert_eq!(bench.decided(), ["+r d1 metric:temp_c @0", "-condition @0"]);
    (1..=200).for_each(|seq| send(&mut bench, seq));
    assert!(bench.decided().is_empty());
    assert_eq!(bench.engine.stats().duplicates, 200);
    send(&mut bench, 201);
    assert_eq!(bench.engine.stats().duplicates, 200, "what comes next is no copy");
}

#[test]
fn a_changed_or_removed_rule_clears_its_alerts_and_others_stay() {
    let (a, b) = (hot("a", 0), hot("b", 0));
    let mut bench = Bench::new(&[a.clone(), b.clone()]);
    bench.reading("d1", "temp_c", 31.0);
    assert_eq!(bench.decided().len(), 2);
    let changed = try_rule("b", 2, hot_json(0)).unwrap();
    bench.engine.set_rules(vec![a.clone(), changed]);
    assert_eq!(bench.decided(), ["-rule_changed @0"]);
    bench.reading("d1", "temp_c", 31.0);
    assert_eq!(
        bench.decided(),
        ["+b d1 metric:temp_c @0"],
        "the new version decides anew, the other rule is firing"
    );
    bench.engine.set_rules(Vec::new());
    assert_eq!(bench.decided(), ["-rule_changed @0", "-rule_changed @0"]);
    assert!(!bench.engine.wants("acme", "d1", true));
}

#[test]
fn pending_survives_a_reload_of_other_rules() {
    let mut bench = Bench::new(&[hot("b", 10)]);
    bench.reading("d1", "temp_c", 31.0);
    bench.ticks(5);
    bench.engine.set_rules(vec![hot("a", 10), hot("b", 10)]);
    bench.ticks(5);
    assert_eq!(bench.decided(), ["+b d1 metric:temp_c @10"]);
}

#[test]
fn a_rule_that_only_fails_is_quarantined_until_it_changes() {
    let json = json!({"on": {"telemetry": {"metrics": ["m"]}}, "condition": "value * 2.0 > 1.0", "severity": "info"});
    let mut bench = Bench::new(&[rule("r", json.clone()), hot("other", 0)]);
    for _ in 0..999 {
        bench.reading("d1", "m", "text");
    }
    bench.reading("d1", "m", 5.0);
    for _ in 0..1_000 {
        bench.reading("d2", "m", "text");
    }
    let quarantined = bench.engine.take_effects().quarantined;
    assert_eq!(quarantined.len(), 1);
    assert!(quarantined[0].3.contains("1000 evaluations in a row failed"), "{quarantined:?}");
    bench.reading("d3", "m", 5.0);
    bench.reading("d3", "temp_c", 31.0);
    assert_eq!(bench.decided(), ["+other d3 metric:temp_c @0"], "it no longer runs, others do");
    let (_, _, health) = bench.engine.health().find(|(_, id, _)| *id == "r").unwrap();
    assert_eq!(health.errors, 1_999);
    bench.engine.set_rules(vec![try_rule("r", 2, json).unwrap()]);
    bench.reading("d3", "m", 5.0);
    assert!(bench.decided().contains(&"+r d3 metric:m @0".to_owned()));
}

#[test]
fn records_of_no_interest_need_not_be_decoded() {
    let events = json!({"on": {"event": {}}, "condition": "event.score > 0.5", "selector": {"devices": ["d1"]}, "severity": "info"});
    let mut bench = Bench::new(&[rule("r", events)]);
    assert!(bench.engine.wants("acme", "d1", false));
    assert!(!bench.engine.wants("acme", "d2", false));
    assert!(!bench.engine.wants("acme", "d1", true));
    assert!(!bench.engine.wants("other", "d1", false));
}

#[test]
fn validation_names_field_and_place() {
    let base = hot_json(0);
    let with = |field: &str, value: serde_json::Value| {
        let mut json = base.clone();
        json[field] = value;
        let error = try_rule("r", 1, json).err().unwrap_or_else(|| panic!("{field} was accepted"));
        let at = error.position.map_or_else(String::new, |at| format!(" ({at})"));
        format!("{}{at}: {}", error.field, error.message)
    };
    let errors = [
        with("condition", json!("value >")),
        with("condition", json!("event.score > 1.0")),
        with("condition", json!("value * 2 > 10.0")),
        with("condition", json!("metric")),
        with("clear", json!("valeu < 1")),
        with("message", json!("{label}")),
        with("message", json!("x".repeat(301))),
        with("for_s", json!(700_000)),
        with("on", json!({"telemetry": {"metrics": ["a b"]}})),
        with("on", json!({"event": {"pipelines": [""]}})),
        with("selector", json!({"devices": ["ok", "a/b"]})),
        with("selector", json!({"labels": {"": "x"}})),
        with("selector", json!({"devices": vec!["d"; 1001]})),
    ]
    .join("\n");
    insta::assert_snapshot!(errors);
}

#[test]
fn every_list_and_number_of_a_rule_is_taken_to_its_bound_and_no_further() {
    let names = |prefix: &str, count: usize| (0..count).map(|at| format!("{prefix}{at}")).collect::<Vec<_>>();
    let labels = |count: usize| -> serde_json::Map<_, _> {
        names("k", count).into_iter().map(|key| (key, json!("v"))).collect()
    };
    let check = |field: &str, at: &str, most: &str, give: &dyn Fn(usize) -> serde_json::Value, max: usize| {
        let with = |count: usize| {
            let mut json = json!({"on": {"telemetry": {}}, "condition": "true", "severity": "info"});
            json[field] = give(count);
            try_rule("r", 1, json)
        };
        assert!(with(max).is_ok(), "{at}: {:?}", with(max).err());
        let error = with(max + 1).unwrap_err();
        assert_eq!((error.field.as_str(), error.message.as_str()), (at, most));
    };
    let devices = |count: usize| json!({"devices": names("d", count)});
    check("selector", "selector.devices", "must hold at most 1000", &devices, SELECTOR_DEVICES_MAX);
    let carried = |count: usize| json!({"labels": labels(count)});
    check("selector", "selector.labels", "must hold at most 16", &carried, SELECTOR_LABELS_MAX);
    let metrics = |count: usize| json!({"telemetry": {"metrics": names("m", count)}});
    check("on", "on.telemetry.metrics", "must hold at most 64", &metrics, TRIGGER_NAMES_MAX);
    check("for_s", "for_s", "must be at most 604800 (a week)", &|seconds| json!(seconds), FOR_S_MAX as usize);
    let text = |chars: usize| json!("é".repeat(chars));
    check("message", "message", "must be at most 300 characters", &text, TEMPLATE_CHARS_MAX);
    let pipelines = |count: usize| json!({"event": {"pipelines": names("p", count)}});
    check("on", "on.event.pipelines", "must hold at most 64", &pipelines, TRIGGER_NAMES_MAX);
    let kinds = |count: usize| json!({"event": {"kinds": vec!["anomaly"; count]}});
    check("on", "on.event.kinds", "must hold at most 64", &kinds, TRIGGER_NAMES_MAX);
}
