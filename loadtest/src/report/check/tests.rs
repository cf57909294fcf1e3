//! What a check lets pass and what not.

use super::super::synthetic;
use super::*;

/// Runs of the same work; each seed has noise of its own.
fn runs(seeds: std::ops::RangeInclusive<u64>) -> Vec<Report> {
    let setup = synthetic::report(1, 120).setup;
    seeds.map(|seed| Report { setup: setup.clone(), ..synthetic::report(seed, 120) }).collect()
}

fn baseline() -> Baseline {
    Baseline::of(&runs(1..=5)).unwrap()
}

fn checked(run: Report) -> Checked {
    check(&baseline(), &[run], Machines::Same).unwrap()
}

fn outcome(checked: &Checked, name: &str) -> Outcome {
    checked.figures.iter().find(|row| row.name == name).expect(name).outcome
}

fn run() -> Report {
    runs(9..=9).remove(0)
}

#[test]
fn another_run_of_the_same_program_is_no_regression() {
    for run in runs(6..=40) {
        let checked = checked(run);
        assert!(checked.held && checked.notes.is_empty(), "{}", checked.text());
    }
}

#[test]
fn a_worse_figure_is_a_regression_that_is_named_with_its_size() {
    let mut slow = run();
    slow.latency.get_mut("stored").unwrap().p95_ms *= 3.0;
    let found = checked(slow);
    assert!(!found.held);
    assert_eq!(outcome(&found, "stored_p95_ms"), Outcome::Regressed);
    assert_eq!(found.figures.iter().filter(|row| row.outcome == Outcome::Regressed).count(), 1);
    let text = found.text();
    let line = text.lines().find(|line| line.starts_with("stored_p95_ms")).unwrap();
    assert!(line.contains("REGRESSED by ") && line.contains("times the baseline)"), "{line}");
    assert!(text.contains("check: FAILED: "), "{text}");
}

#[test]
fn a_better_figure_is_none() {
    let mut fast = run();
    fast.latency.get_mut("stored").unwrap().p95_ms /= 30.0;
    fast.cost.server_rss_bytes = Some(1);
    assert!(checked(fast).held);
}

#[test]
fn a_ratio_regresses_downwards() {
    let mut run = run();
    run.totals.success_ratio = 0.9;
    let found = checked(run);
    assert_eq!(outcome(&found, "success_ratio"), Outcome::Regressed, "{}", found.text());
}

#[test]
fn runs_that_differ_much_have_a_wide_bound_and_equal_ones_their_floors() {
    let spread = |mad| Spread { median: 0.5, mad, least: 0.0, greatest: 1.0 };
    let cores = figures::of(&run()).into_iter().find(|figure| figure.name == "server_cpu_cores").unwrap();
    assert_eq!(bound(&cores, spread(0.0), 5, 0.0), 0.5 * 1.15);
    let wide = bound(&cores, spread(0.1), 5, 0.0);
    assert!((wide - (0.5 + 4.0 * 0.1 * 1.4826 * 1.206)).abs() < 1e-9, "{wide}");
    assert_eq!(bound(&cores, Spread { median: 0.001, ..spread(0.0) }, 5, 0.0), 0.021);
    // Others' load widens it.
    assert_eq!(bound(&cores, spread(0.0), 5, 0.5), 0.5 * 1.15 * 1.5);
}

#[test]
fn a_busy_machine_is_no_regression_and_what_it_makes_meaningless_is_skipped_and_said() {
    let mut busy = run();
    busy.cost.other_load_cores += 0.87;
    busy.cost.server_cpu_cores = busy.cost.server_cpu_cores.map(|cores| cores * 1.8);
    for latency in busy.latency.values_mut() {
        latency.p50_ms *= 4.0;
        latency.p95_ms *= 15.0;
    }
    let found = checked(busy.clone());
    assert!(found.held, "{}", found.text());
    assert_eq!(outcome(&found, "puback_p95_ms"), Outcome::Skipped);
    assert_eq!(outcome(&found, "server_cpu_cores"), Outcome::Held);
    assert!(found.notes[0].contains("0.87 cores busier") && found.notes[0].contains("puback_p95_ms"));
    // Memory is not the others' fault.
    busy.cost.server_rss_bytes = Some(900_000_000);
    assert_eq!(outcome(&checked(busy), "server_rss_bytes"), Outcome::Regressed);
}

#[test]
fn a_little_more_load_widens_the_bound_of_latencies() {
    let mut run = run();
    run.latency.get_mut("service").unwrap().p95_ms *= 2.0;
    assert_eq!(outcome(&checked(run.clone()), "service_p95_ms"), Outcome::Regressed);
    run.cost.other_load_cores += 0.15;
    assert_eq!(outcome(&checked(run), "service_p95_ms"), Outcome::Held);
}

#[test]
fn a_broken_invariant_and_a_lost_message_are_never_noise() {
    let mut broken = run();
    broken.cost.other_load_cores += 1.5;
    broken.invariants[1].held = false;
    let found = checked(broken);
    assert!(!found.held);
    assert_eq!(found.broken, ["run 1: nothing_lost: lost 0 over 4 tenants"]);

    let mut lost = run();
    lost.totals.ledger.as_mut().unwrap().lost = 1;
    let mut three = runs(6..=8);
    three.push(lost);
    let found = check(&baseline(), &three, Machines::Same).unwrap();
    // The median of the four is 0, and still one of them lost a message.
    assert!(!found.held && found.broken == ["run 4: 1 lost"], "{:?}", found.broken);

    let unchecked = Report { invariants: Vec::new(), ..run() };
    assert_eq!(checked(unchecked).broken, ["run 1: no invariant was checked"]);
}

#[test]
fn a_baseline_that_lost_messages_does_not_allow_it() {
    let mut bad = runs(1..=3);
    for run in &mut bad {
        run.totals.ledger.as_mut().unwrap().lost = 100;
    }
    let found = check(&Baseline::of(&bad).unwrap(), &bad[..1], Machines::Same).unwrap();
    assert_eq!(outcome(&found, "lost"), Outcome::Regressed);
}

#[test]
fn a_measurement_that_went_away_is_a_failure_and_a_new_one_is_said() {
    let mut run = run();
    run.latency.remove("alert");
    run.latency.insert("twin".to_owned(), run.latency["stored"]);
    let found = checked(run);
    assert!(!found.held);
    assert_eq!(outcome(&found, "alert_p95_ms"), Outcome::Missing);
    assert_eq!(outcome(&found, "twin_p95_ms"), Outcome::New);
    assert!(
        found.notes.iter().any(|note| note.contains("not in the baseline") && note.contains("twin_p95_ms"))
    );
}

#[test]
fn the_median_of_several_runs_counts() {
    let mut three = runs(6..=8);
    three[0].latency.get_mut("stored").unwrap().p95_ms *= 50.0;
    assert!(check(&baseline(), &three, Machines::Same).unwrap().held);
    three[1].latency.get_mut("stored").unwrap().p95_ms *= 50.0;
    assert!(!check(&baseline(), &three, Machines::Same).unwrap().held);
}

#[test]
fn other_work_is_refused_and_another_machine_skips_what_belongs_to_the_machine() {
    let mut other = run();
    other.setup.devices = 10;
    let error = check(&baseline(), &[run(), other], Machines::Same).unwrap_err().to_string();
    assert_eq!(error, "the baseline is of other work: `devices` is 2000 there and 10 in run 2");

    let mut foreign = run();
    foreign.setup.machine = "a faster one".to_owned();
    foreign.latency.get_mut("puback").unwrap().p50_ms *= 90.0;
    let found = checked(foreign.clone());
    assert!(found.held && found.notes[0].contains("another machine"), "{:?}", found.notes);
    assert_eq!(outcome(&found, "puback_p50_ms"), Outcome::Skipped);
    assert_eq!(outcome(&found, "success_ratio"), Outcome::Held);
    assert!(!check(&baseline(), &[foreign], Machines::Any).unwrap().held);
}
