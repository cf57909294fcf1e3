//! The reader killed between each two of its steps, and commits whose answer is lost: the counts equal the log's.

use super::Rig;
use crate::platform::db::Scope;
use crate::platform::event_log::{EventLog, Kind, NewRecord, Options};
use crate::testing::START_US;
use crate::usage::consumer::Worker;
use crate::usage::consumer::{MeterError, worker::Step};
use crate::usage::gap::Gap;
use crate::usage::model::DAY_US;
use crate::usage::store;
use muster_wire::UpClass;

/// A small generator: what is tried follows from the seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn append_some(rig: &Rig, dice: &mut Dice) {
    for _ in 0..dice.below(30) {
        let tenant = ["acme", "other", "third"][usize::try_from(dice.below(3)).unwrap()];
        match dice.below(8) {
            0 => rig.event(tenant, u32::try_from(dice.below(5_000)).unwrap()),
            1 => rig.append(tenant, Kind::Rejected { reason: 0x99 }, UpClass::Telemetry, b"cut"),
            2 => rig.append(tenant, Kind::Message, UpClass::Telemetry, b"not decodable"),
            3 => rig.append(tenant, Kind::Connected, UpClass::Telemetry, b""),
            4 => {
                rig.log.append(&NewRecord::tick()).unwrap();
            }
            _ => rig.telemetry(tenant, usize::try_from(dice.below(5)).unwrap()),
        }
        // Some records lie beyond midnight.
        rig.clock.advance_us(i64::try_from(dice.below(2)).unwrap() * DAY_US / 97);
    }
}

/// One step of a reader's life; true where the process is to die after it.
fn live(rig: &Rig, worker: &mut Worker, dice: &mut Dice) -> bool {
    append_some(rig, dice);
    match dice.below(10) {
        0..=3 => rig.read(worker, dice.below(40)),
        step @ 4..=6 => {
            let fault = [Step::CursorMoved, Step::RowsWritten, Step::Answered];
            worker.fault = Some(fault[usize::try_from(step).unwrap() - 4]);
            // Nothing to commit is no fault.
            let _may_fail = worker.commit();
            worker.fault = None;
            return dice.below(2) == 0;
        }
        7 => return true,
        _ => worker.commit().unwrap(),
    }
    dice.below(6) == 0
}

#[test]
fn killed_between_any_two_steps_the_counts_equal_the_logs() {
    // On PostgreSQL each seed starts a server of its own.
    let seeds = if std::env::var(crate::testing::ENGINE).is_ok() { 3 } else { 40 };
    for seed in 1..=seeds {
        let mut rig = Rig::new();
        let mut dice = Dice(seed);
        for _life in 0..12 {
            let mut worker = rig.open();
            for _step in 0..30 {
                if live(&rig, &mut worker, &mut dice) {
                    break;
                }
            }
        }
        let mut worker = rig.open();
        rig.read(&mut worker, u64::MAX / 2);
        worker.commit().unwrap();
        assert_eq!(rig.stored(), rig.held(), "seed {seed}");
        assert_eq!(worker.committed(), rig.log.durable_next(), "seed {seed}");
    }
}

#[test]
fn a_reader_that_was_replaced_adds_nothing() {
    let mut rig = Rig::new();
    rig.telemetry("acme", 1);
    let (mut old, mut new) = (rig.open(), rig.open());
    rig.read(&mut old, 10);
    rig.read(&mut new, 10);
    new.commit().unwrap();
    assert!(matches!(old.commit(), Err(MeterError::Moved)));
    assert!(matches!(old.commit(), Err(MeterError::Moved)), "it stays so");
    assert_eq!(rig.stored(), rig.held());
}

fn gaps(rig: &Rig) -> Vec<Gap> {
    let scope = Scope::System("usage: the meter counts every tenant's records");
    rig.db.read_blocking(move |tx| store::gaps_between(tx, &scope, (0, i64::MAX), 10)).unwrap()
}

#[test]
fn servers_with_logs_of_their_own_take_turns_and_each_record_counts_once() {
    let (mut rig, dir) = (Rig::new(), tempfile::tempdir().unwrap());
    let options = Options { segment_bytes: 1 << 20, ..Options::at(dir.path()) };
    let mut other = EventLog::open(&options, rig.clock.clone()).unwrap();
    let known =
        |gaps: &[Gap]| gaps.iter().map(|gap| (gap.log_epoch, gap.first, gap.last)).collect::<Vec<_>>();
    let mut expect = Vec::new();
    for turn in 0..5 {
        rig.telemetry("acme", 1);
        rig.telemetry("acme", 1);
        let mut worker = rig.open();
        rig.read(&mut worker, 1);
        worker.commit().unwrap();
        // The second of each turn was not read before the other took over.
        let unread = worker.position();
        assert_eq!(known(&gaps(&rig)), expect, "turn {turn}");
        assert_eq!(worker.committed(), unread);
        expect = vec![(rig.log.epoch(), unread, None)];
        std::mem::swap(&mut rig.log, &mut other);
    }
    for _ in 0..2 {
        let mut worker = rig.open();
        rig.read(&mut worker, u64::MAX / 2);
        worker.commit().unwrap();
        std::mem::swap(&mut rig.log, &mut other);
    }
    let held = |rig: &Rig| rig.held().values().map(|counts| counts.messages).sum::<u64>();
    let mut sent = held(&rig);
    std::mem::swap(&mut rig.log, &mut other);
    sent += held(&rig);
    let stored: u64 = rig.stored().values().map(|counts| counts.messages).sum();
    assert_eq!((stored, sent), (10, 10), "none twice, none left out");
}

#[test]
fn another_log_is_counted_from_its_beginning_and_what_is_gone_is_a_gap() {
    let mut rig = Rig::new();
    rig.telemetry("acme", 1);
    let mut worker = rig.open();
    rig.read(&mut worker, 10);
    worker.commit().unwrap();
    let epoch = rig.log.epoch();
    let other = Worker::open(rig.parts.clone(), epoch ^ 1, 1..2).unwrap();
    assert_eq!(other.position(), 1, "another log");
    let mut behind = Worker::open(rig.parts.clone(), epoch, 5..9).unwrap();
    assert_eq!((behind.position(), behind.is_due()), (5, true), "what the log lost is no longer there");
    behind.commit().unwrap();
    let found = gaps(&rig);
    assert_eq!((found.len(), found[0].first, found[0].last), (1, 2, Some(4)));
    assert_eq!(found[0].since_us, START_US, "received after what was counted last");
    let ahead = Worker::open(rig.parts.clone(), epoch, 1..2).unwrap();
    assert_eq!(ahead.position(), 2, "an older copy of the log: nothing is counted twice");
    drop(rig.dir);
}
