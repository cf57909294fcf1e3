//! Whole pages.

use super::super::model::{FaultMark, Invariant, Report, Sample};
use super::super::synthetic;
use super::*;

/// Elements that have no end.
const EMPTY: [&str; 3] = ["!doctype", "meta", "br"];

/// Every element of the page ends, in the right order, and every id stands once.
#[track_caller]
fn well_formed(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut ids = std::collections::BTreeSet::new();
    let (head, rest) = page.split_once("<style>").unwrap();
    let (style, rest) = rest.split_once("</style>").unwrap();
    assert!(!style.contains('<') && !style.contains("url(") && !style.contains("@import"));
    for tag in head.split('<').skip(1).chain(rest.split('<').skip(1)) {
        let tag = &tag[..tag.find('>').expect(tag)];
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "</{name}> in {page}"),
            None if tag.ends_with('/') || EMPTY.contains(&tag.split(' ').next().unwrap()) => {}
            None => open.push(tag.split(' ').next().unwrap()),
        }
        if let Some((_, id)) = tag.split_once(" id=\"") {
            let id = &id[..id.find('"').unwrap()];
            assert!(ids.insert(id.to_owned()), "{id} stands twice");
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn a_page_needs_nothing_from_anywhere_and_runs_nothing() {
    let page = page(&synthetic::report(1, 300));
    well_formed(&page);
    for part in ["<script", "http://", "https://", " src=", "<link", "javascript:", " onload", " href="] {
        assert!(!page.contains(part), "{part}");
    }
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn a_report_of_nothing_is_a_page_too() {
    let page = page(&Report::default());
    well_formed(&page);
    assert!(
        page.contains("No invariant was checked.")
            && page.contains("Not measured in this run: Publish to PUBACK")
    );
    assert_eq!(page.matches("<small>not measured</small>").count(), 7);
}

#[test]
fn one_sample_is_a_page_too() {
    let mut report = synthetic::report(1, 300);
    report.samples.truncate(1);
    well_formed(&page(&report));
    report.samples = vec![Sample::default()];
    well_formed(&page(&report));
}

#[test]
fn every_text_of_a_report_is_escaped() {
    let evil = "</style></script><img src=x onerror=alert(1)>\"'&\u{1b}".to_owned();
    let mut report = synthetic::report(1, 5);
    let setup = &mut report.setup;
    for text in [&mut setup.profile, &mut setup.machine, &mut setup.transport, &mut setup.target] {
        *text = evil.clone();
    }
    setup.command = vec![evil.clone()];
    report.invariants = vec![Invariant { name: evil.clone(), held: false, detail: evil.clone() }];
    report.totals.refused.insert(evil.clone(), 1);
    report.totals.closed.insert(evil.clone(), 1);
    let latency = report.latency["puback"];
    report.latency.insert(evil.clone(), latency);
    report.faults = vec![FaultMark { kind: evil.clone(), from_s: 1.0, until_s: 2.0, detail: evil }];
    let page = page(&report);
    well_formed(&page);
    assert!(!page.contains("<img") && !page.contains('\u{1b}'));
}

#[test]
fn a_broken_invariant_is_said_first_with_its_detail() {
    let mut report = synthetic::report(1, 5);
    assert!(page(&report).contains("All 4 invariants held."));
    report.invariants[2].held = false;
    let page = page(&report);
    assert!(page.contains("1 of 4 invariants broke."));
    let place = |text: &str| page.find(text).unwrap();
    assert!(place("<code>tenants_apart</code>") < place("<code>stored_exactly_once</code>"));
    assert!(page.contains("0 messages reached another tenant&#39;s subscriber"));
}

#[test]
fn every_fault_is_listed_and_marked_in_every_plot() {
    let report = synthetic::report(1, 300);
    let page = page(&report);
    let plots = page.matches("<figure class=\"plot\">").count();
    assert_eq!(plots, courses::COURSES.len());
    let instants = report.faults.iter().filter(|fault| fault.from_s == fault.until_s).count();
    assert_eq!(page.matches("<line class=\"instant\"").count(), instants * plots);
    assert_eq!(page.matches("<rect class=\"band\"").count(), (report.faults.len() - instants) * plots);
    assert_eq!(page.matches("class=\"number\"").count(), report.faults.len());
    assert!(page.contains("tenant &lt;t-3&gt; at 20 times its rate"));
}

#[test]
fn more_faults_than_are_drawn_are_counted() {
    let mut report = synthetic::report(1, 5);
    report.faults = vec![report.faults[0].clone(); svg::MARKS_MAX + 7];
    let page = page(&report);
    assert_eq!(page.matches("class=\"number\"").count(), svg::MARKS_MAX);
    assert!(page.contains("and 7 more"));
}

#[test]
fn a_table_has_no_more_rows_than_its_bound() {
    let mut report = synthetic::report(1, 5);
    report.totals.refused = (0..ROWS_MAX as u64 + 50).map(|at| (format!("reason-{at:04}"), at)).collect();
    report.invariants = vec![report.invariants[0].clone(); ROWS_MAX + 50];
    let page = page(&report);
    assert_eq!(page.matches("reason-").count(), ROWS_MAX);
    assert_eq!(page.matches("<li class=\"held\">").count(), ROWS_MAX);
}

#[test]
fn a_days_page_stays_small() {
    let mut report = synthetic::report(1, 60);
    let minute = report.samples.clone();
    report.setup.seconds = 86_400.0;
    report.samples =
        (0..86_400).map(|second| Sample { at_s: second as f64, ..minute[second % 60].clone() }).collect();
    let page = page(&report);
    assert!(page.len() < 1_000_000, "{}", page.len());
}

#[test]
fn the_command_can_be_pasted_into_a_shell() {
    let mut report = synthetic::report(1, 5);
    report.setup.command = ["run", "--tenant", "it's one", "", "a=b"].map(str::to_owned).to_vec();
    assert!(page(&report).contains("run --tenant &#39;it&#39;\\&#39;&#39;s one&#39; &#39;&#39; a=b"));
}
