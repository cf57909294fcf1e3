//! Power cuts, dead processes, full disks and failing syncs, from seeds; and that the trials notice when a step
//! of the durable path is left out.

use muster_journal::Sabotage;
use muster_journal::trials::{count, run};

/// Trials by default; `MUSTER_TRIALS=1000 cargo test -p muster-journal --test trials` runs more.
const TRIALS: u64 = 200;

#[test]
fn nothing_accepted_is_lost_in_the_trials() {
    let summary = run(0..count(TRIALS), Sabotage::None).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{summary:?}");
    assert!(
        summary.power_cuts > summary.trials && summary.kills > 0 && summary.torn_bytes > 0,
        "{summary:?}"
    );
    assert!(
        summary.dropped > 0 && summary.refused > 0 && summary.accepted > summary.trials * 10,
        "{summary:?}"
    );
}

fn is_noticed(sabotage: Sabotage) {
    let failure = run(0..TRIALS, sabotage).expect_err("the trials did not notice");
    println!("{sabotage:?}: {failure}");
}

#[test]
fn journal_without_fdatasync_fails_the_trials() {
    is_noticed(Sabotage::SkipFdatasync);
}

#[test]
fn journal_without_directory_sync_fails_the_trials() {
    is_noticed(Sabotage::SkipDirSync);
}

#[test]
fn journal_without_control_sync_fails_the_trials() {
    is_noticed(Sabotage::SkipControlSync);
}

#[test]
fn journal_that_retries_a_failed_fdatasync_fails_the_trials() {
    is_noticed(Sabotage::RetryFdatasync);
}
