//! What is called better, worse and noise.

use super::super::model::{Invariant, Sample};
use super::super::synthetic;
use super::*;

#[track_caller]
fn told(a: &Report, b: &Report, name: &str, expected: Verdict) {
    let found = compare(a, b);
    let row = found.figures.iter().find(|row| row.name == name).expect(name);
    assert_eq!(row.verdict, expected, "{row:?}");
}

#[test]
fn a_run_is_the_same_as_itself() {
    let report = synthetic::report(1, 120);
    let found = compare(&report, &report);
    let verdicts = [Verdict::Better, Verdict::Worse, Verdict::Unclear, Verdict::Missing];
    assert!(found.figures.iter().all(|row| !verdicts.contains(&row.verdict)), "{found:?}");
    assert!(found.notes.is_empty() && found.broken.is_empty());
}

#[test]
fn the_direction_decides_what_is_worse() {
    let a = synthetic::report(1, 120);
    let mut b = a.clone();
    b.totals.success_ratio = 0.999;
    b.cost.server_rss_bytes = Some(400_000_000);
    b.cost.server_cpu_cores = Some(0.1);
    for (name, there, back) in [
        ("success_ratio", Verdict::Worse, Verdict::Better),
        ("server_rss_bytes", Verdict::Worse, Verdict::Better),
        ("server_cpu_cores", Verdict::Better, Verdict::Worse),
        ("server_cpu_us_per_message", Verdict::Better, Verdict::Worse),
    ] {
        told(&a, &b, name, there);
        told(&b, &a, name, back);
    }
}

#[test]
fn one_lost_message_is_never_noise() {
    let a = synthetic::report(1, 120);
    let mut b = a.clone();
    b.totals.ledger.as_mut().unwrap().lost = 1;
    told(&a, &b, "lost", Verdict::Worse);
}

#[test]
fn a_difference_below_the_floors_is_noise() {
    let a = synthetic::report(1, 120);
    let mut b = a.clone();
    let service = b.latency.get_mut("service").unwrap();
    service.p50_ms += 0.19;
    service.p95_ms *= 1.2;
    service.p99_ms *= 1.6;
    told(&a, &b, "service_p50_ms", Verdict::Same);
    told(&a, &b, "service_p95_ms", Verdict::Same);
    told(&a, &b, "service_p99_ms", Verdict::Worse);
}

#[test]
fn a_figure_that_wanders_during_the_runs_needs_more_to_differ() {
    let mut a = synthetic::report(1, 100);
    a.faults.clear();
    for (at, sample) in a.samples.iter_mut().enumerate() {
        sample.server_cpu_cores = Some(0.4 + at as f64 * 0.002);
    }
    let steady: Vec<Sample> =
        a.samples.iter().map(|sample| Sample { server_cpu_cores: Some(0.5), ..sample.clone() }).collect();
    let mut b = a.clone();
    a.cost.server_cpu_cores = Some(0.4);
    b.cost.server_cpu_cores = Some(0.48);
    told(&a, &b, "server_cpu_cores", Verdict::Same);
    a.samples.clone_from(&steady);
    b.samples = steady;
    told(&a, &b, "server_cpu_cores", Verdict::Worse);
}

#[test]
fn a_busier_machine_excuses_being_worse_and_not_what_load_does_not_touch() {
    let a = synthetic::report(1, 120);
    let mut b = a.clone();
    b.cost.other_load_cores = a.cost.other_load_cores + 0.5;
    b.cost.server_rss_bytes = Some(400_000_000);
    b.latency.get_mut("puback").unwrap().p50_ms *= 50.0;
    b.latency.get_mut("alert").unwrap().p50_ms /= 50.0;
    told(&a, &b, "puback_p50_ms", Verdict::Unclear);
    told(&b, &a, "puback_p50_ms", Verdict::Unclear);
    told(&a, &b, "server_rss_bytes", Verdict::Worse);
    // Better in spite of the load is better.
    told(&a, &b, "alert_p50_ms", Verdict::Better);
}

#[test]
fn maxima_and_figures_of_one_run_only_are_shown_and_not_judged() {
    let a = synthetic::report(1, 120);
    let mut b = a.clone();
    b.latency.remove("alert");
    b.latency.get_mut("puback").unwrap().max_ms *= 90.0;
    b.latency.insert("twin".to_owned(), b.latency["puback"]);
    told(&a, &b, "puback_max_ms", Verdict::Unjudged);
    told(&a, &b, "alert_p95_ms", Verdict::Missing);
    told(&a, &b, "twin_p95_ms", Verdict::Missing);
    told(&a, &b, "connects", Verdict::Unjudged);
}

#[test]
fn the_text_has_a_line_a_figure_and_names_what_broke() {
    let a = synthetic::report(1, 120);
    let mut b = synthetic::report(2, 120);
    b.invariants.push(Invariant {
        name: "nothing\u{1b}".to_owned(),
        held: false,
        detail: "3 lost".to_owned(),
    });
    b.setup.devices = 9;
    let found = compare(&a, &b);
    let text = found.text();
    assert!(text.contains("note: not the same work: `setup.devices` is 2000 in a and 9 in b"), "{text}");
    assert!(text.contains("broken invariant of b: nothing?: 3 lost"), "{text}");
    let rules = RULE.len() + found.notes.len();
    assert_eq!(text.lines().count(), found.figures.len() + 3 + rules, "{text}");
}

#[test]
fn the_page_draws_both_runs_in_each_plot() {
    let (a, b) = (synthetic::report(1, 120), synthetic::report(2, 90));
    let page = page(&compare(&a, &b), ["one<.json", "two.json"], &a, &b);
    assert!(page.contains("one&lt;.json") && !page.contains("one<") && page.contains("Before you compare"));
    let plots = page.matches("<figure class=\"plot\">").count();
    assert!(plots >= 10, "{plots}");
    assert_eq!(page.matches("<path class=\"l0").count(), plots);
    assert_eq!(page.matches("<path class=\"l1").count(), plots);
    assert!(page.contains(">a1<") && page.contains(">b1<"));
}
