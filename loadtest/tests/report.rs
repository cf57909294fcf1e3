//! The commands on reports, as programs call them: what is printed, and how they end.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use muster_loadtest::report::model::{self, Report};
use muster_loadtest::report::store;
use std::process::{Command, Output};
use tempfile::{TempDir, tempdir};

#[path = "../src/report/synthetic.rs"]
mod synthetic;

/// Runs a line whose words are separated by spaces, in the directory.
fn ran(dir: &TempDir, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-loadtest"));
    command.current_dir(dir.path()).args(line.split(' ')).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Directories `1`, `2`... with runs of the same work.
fn runs(count: u64) -> TempDir {
    let dir = tempdir().unwrap();
    for seed in 1..=count {
        let setup = synthetic::report(1, 60).setup;
        let report = Report { setup, ..synthetic::report(seed, 60) };
        store::save(&dir.path().join(seed.to_string()), &report).unwrap();
    }
    dir
}

#[test]
fn a_regression_fails_the_program_and_a_difference_does_not() {
    let dir = runs(4);
    assert!(ran(&dir, "check --update base/line.json 1 2 3").status.success());
    let good = ran(&dir, "check --baseline base/line.json 4/report.json");
    assert!(good.status.success(), "{}", text(&good.stdout));

    let mut worse = store::read(&dir.path().join("4")).unwrap();
    worse.invariants[0] = model::Invariant { held: false, ..worse.invariants[0].clone() };
    store::save(&dir.path().join("4"), &worse).unwrap();
    let bad = ran(&dir, "check --baseline base/line.json 4");
    assert_eq!(bad.status.code(), Some(1));
    assert!(text(&bad.stdout).contains("BROKEN run 1: stored_exactly_once"), "{}", text(&bad.stdout));

    let compared = ran(&dir, "compare 1 4 --out pages");
    assert!(compared.status.success());
    assert!(text(&compared.stdout).contains("broken invariant of b: stored_exactly_once"));
    assert!(dir.path().join("pages/compare.html").is_file());
}

#[test]
fn json_is_one_line() {
    let dir = runs(3);
    assert!(ran(&dir, "check --update base.json 1 2 3").status.success());
    for line in
        ["compare 1 2 --json", "check --baseline base.json 1 --json", "capacity 1 --devices 9000 --json"]
    {
        let output = ran(&dir, line);
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        let printed = text(&output.stdout);
        assert_eq!(printed.lines().count(), 1, "{line}");
        serde_json::from_str::<serde_json::Value>(&printed).unwrap();
    }
}

#[test]
fn an_error_names_the_file_and_the_field() {
    let dir = runs(1);
    let path = dir.path().join("1/report.json");
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, good.replacen("\"devices\": 2000", "\"devices\": \"many\"", 1)).unwrap();
    let output = ran(&dir, "render 1 --out pages");
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("1/report.json: field `setup.devices`: invalid type"), "{said}");
    assert!(!dir.path().join("pages").exists());
}
