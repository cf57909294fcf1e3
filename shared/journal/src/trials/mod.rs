//! Seeded trials: random work on a [`SimFs`] that loses power, dies, fills up and fails, checked against a model
//! of the promise (feature `sim`). `MUSTER_TRIALS` sets how many the tests run.
//!
//! The model knows what was appended, what was accepted (seen below the durable mark, or served after an
//! opening), what was released and which drops were confirmed. After every opening: each accepted record that was
//! not released is served once, unchanged and in order, or listed as dropped, never both; nothing is served
//! that was not appended; no accepted position is given out again; no damage is reported where no bit was flipped.

mod model;

use crate::sim::{Loss, Rng, SimFs};
use crate::types::{
    AppendError, DropReason, DropRecord, EpochPolicy, JournalError, Options, Pin, Sabotage, WhenFull,
    WriterMode,
};
use crate::{Journal, Reader};
use model::{Model, check};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// Openings in one trial.
const LIVES: u64 = 6;
/// The name of the trials' pinning reader.
const READER: &str = "uplink";

/// A trial that broke the promise.
#[derive(Debug, thiserror::Error)]
#[error("trial with seed {seed} failed: {why}")]
pub struct TrialFailure {
    /// Repeats it: `run(seed..seed + 1, ..)`.
    pub seed: u64,
    /// What was broken.
    pub why: String,
}

/// What the trials went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Trials run.
    pub trials: u64,
    /// Openings.
    pub lives: u64,
    /// Lives that ended by a power cut.
    pub power_cuts: u64,
    /// Lives that ended by a dead process.
    pub kills: u64,
    /// Records appended.
    pub appended: u64,
    /// Records accepted.
    pub accepted: u64,
    /// Accepted records that were dropped with a record.
    pub dropped: u64,
    /// Appends refused because something was full.
    pub refused: u64,
    /// Syncs that failed.
    pub sync_failures: u64,
    /// Torn bytes cut off.
    pub torn_bytes: u64,
}

/// How many trials the tests run: `MUSTER_TRIALS`, else `default`.
#[must_use]
pub fn count(default: u64) -> u64 {
    std::env::var("MUSTER_TRIALS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs one trial per seed, leaving out what `sabotage` says.
///
/// # Errors
/// The first trial that breaks the promise, with its seed.
pub fn run(seeds: Range<u64>, sabotage: Sabotage) -> Result<Summary, TrialFailure> {
    let mut summary = Summary::default();
    for seed in seeds {
        let mut trial = Trial::new(seed, sabotage);
        trial.run(&mut summary).map_err(|why| TrialFailure { seed, why })?;
        summary.trials += 1;
    }
    Ok(summary)
}

struct Trial {
    rng: Rng,
    fs: SimFs,
    options: Options,
    clock_us: Arc<AtomicI64>,
    model: Model,
    serial: u64,
}

/// How a life ended.
enum End {
    Closed,
    PowerCut,
    Killed,
}

impl Trial {
    fn new(seed: u64, sabotage: Sabotage) -> Self {
        let mut rng = Rng::new(seed);
        let segment_bytes = 4096 * (1 + rng.below(4));
        let options = Options {
            dir: PathBuf::from("/journal"),
            epoch: if rng.one_in(2) { EpochPolicy::PerOpen } else { EpochPolicy::PerLog },
            segment_bytes,
            bytes_max: segment_bytes * (4 + rng.below(8)),
            age_max: rng.one_in(4).then_some(Duration::from_secs(600)),
            record_bytes_max: 2048,
            batch_bytes_max: 4096,
            when_full: if rng.one_in(2) { WhenFull::Refuse } else { WhenFull::DropOldest },
            writer: WriterMode::Caller,
            sabotage,
            ..Options::default()
        };
        Self {
            rng,
            fs: SimFs::new(seed),
            options,
            clock_us: Arc::new(AtomicI64::new(1_700_000_000_000_000)),
            model: Model::default(),
            serial: 0,
        }
    }

    fn run(&mut self, summary: &mut Summary) -> Result<(), String> {
        for life in 0..LIVES {
            // The last life has no faults: whatever was accepted must come out of it.
            let last = life + 1 == LIVES;
            if !last && self.rng.one_in(3) {
                self.fs.cut_after(1 + self.rng.below(12));
            }
            summary.lives += 1;
            let end = match self.open(summary)? {
                Some(journal) => self.live(journal, last, summary)?,
                None => End::PowerCut,
            };
            let loss = match end {
                End::Closed => Loss::Unsynced,
                End::PowerCut => {
                    summary.power_cuts += 1;
                    Loss::Random
                }
                End::Killed => {
                    summary.kills += 1;
                    Loss::Process
                }
            };
            self.fs.set_budget(None);
            self.fs = self.fs.reboot(loss);
            self.model.forget_unaccepted_reads();
        }
        summary.appended += self.model.appended_count();
        summary.accepted += self.model.accepted_count();
        Ok(())
    }

    /// Opens and checks; None where the power was cut meanwhile.
    fn open(&mut self, summary: &mut Summary) -> Result<Option<Journal<SimFs>>, String> {
        let clock = Arc::clone(&self.clock_us);
        let opened =
            Journal::open(self.fs.clone(), self.options.clone(), move || clock.load(Ordering::Relaxed));
        let (journal, opened) = match opened {
            Ok(opened) => opened,
            Err(_) if self.fs.is_cut() => return Ok(None),
            Err(error) => return Err(format!("cannot open: {error:?}")),
        };
        summary.torn_bytes += opened.tail_bytes_dropped;
        check(opened.corrupt.is_empty(), || format!("damage reported: {:?}", opened.corrupt))?;
        check(!opened.control_lost, || "control state lost".to_owned())?;
        self.model.opened(opened.next_seq)?;
        self.verify(&journal)?;
        Ok((!self.fs.is_cut()).then_some(journal))
    }

    /// Reads all that is there and compares it with the model.
    fn verify(&mut self, journal: &Journal<SimFs>) -> Result<(), String> {
        let mut reader = match journal.reader("audit", 0, Pin::Follows) {
            Ok(reader) => reader,
            Err(_) if self.fs.is_cut() => return Ok(()),
            Err(error) => return Err(format!("no reader: {error:?}")),
        };
        reader.seek(journal.first_seq());
        let mut held = Vec::new();
        let read = reader.next_batch(usize::MAX, |record| {
            held.push((record.epoch, record.seq, record.payload.to_vec()));
        });
        if let Err(error) = read {
            return if self.fs.is_cut() { Ok(()) } else { Err(format!("cannot read: {error:?}")) };
        }
        self.model.verify(&held, &journal.drops(), &journal.openings())
    }

    fn live(&mut self, journal: Journal<SimFs>, last: bool, summary: &mut Summary) -> Result<End, String> {
        let Ok(mut reader) = journal.reader(READER, 0, Pin::Pins) else {
            return if self.fs.is_cut() { Ok(End::PowerCut) } else { Err("reader refused".to_owned()) };
        };
        if !last && !self.fs.is_cut() && self.rng.one_in(2) {
            self.fs.cut_after(1 + self.rng.below(120));
        }
        let actions = 10 + self.rng.below(60);
        for _ in 0..actions {
            self.act(&journal, &mut reader, last, summary)?;
            if self.fs.is_cut() {
                return Ok(End::PowerCut);
            }
            if let Some(why) = journal.stats().failed {
                check(why.contains("simulated sync failure"), || format!("stopped for no reason: {why}"))?;
                summary.sync_failures += 1;
                self.fs.cut();
                return Ok(if self.rng.one_in(2) { End::PowerCut } else { End::Killed });
            }
        }
        self.fs.set_budget(None);
        match self.rng.below(if last { 1 } else { 3 }) {
            0 => {
                self.fs.fail_syncs(0, 0);
                let committed =
                    journal.commit().map(|_| ()).map_err(|error| format!("last commit: {error:?}"));
                committed.or_else(|why| self.if_cut(why))?;
                self.model.accept_below(journal.durable_next())?;
                self.verify(&journal)?;
                drop(reader);
                journal
                    .close()
                    .map_err(|error| format!("close: {error:?}"))
                    .or_else(|why| self.if_cut(why))?;
                Ok(if self.fs.is_cut() { End::PowerCut } else { End::Closed })
            }
            1 => {
                self.fs.cut();
                Ok(End::Killed)
            }
            _ => {
                self.fs.cut();
                Ok(End::PowerCut)
            }
        }
    }

    fn if_cut(&self, why: String) -> Result<(), String> {
        if self.fs.is_cut() { Ok(()) } else { Err(why) }
    }

    fn act(
        &mut self,
        journal: &Journal<SimFs>,
        reader: &mut Reader<SimFs>,
        last: bool,
        summary: &mut Summary,
    ) -> Result<(), String> {
        match self.rng.below(16) {
            0..=6 => self.append(journal, summary)?,
            7..=9 => match journal.commit() {
                Ok(next) => self.model.accept_below(next)?,
                Err(error) => self.tolerate(journal, &error)?,
            },
            10 | 11 => self.read(journal, reader)?,
            12 => {
                let upto = self.model.release_point(&mut self.rng);
                self.model.released(upto);
                journal.release(READER, upto).map_err(|error| format!("release: {error:?}"))?;
            }
            13 => self.report_drops(journal, summary)?,
            14 if !last => match self.rng.below(3) {
                0 => self.fs.fail_syncs(self.rng.below(3) as u32, 1 + self.rng.below(3) as u32),
                1 => self.fs.set_budget(Some(self.fs.used_bytes() + self.rng.below(6000))),
                _ => self.fs.set_budget(None),
            },
            _ => {
                let step_us = if self.rng.one_in(4) { 400_000_000 } else { 1_000_000 };
                self.clock_us.fetch_add(step_us, Ordering::Relaxed);
            }
        }
        // Whatever the durable mark says is accepted, whoever asked.
        self.model.accept_below(journal.durable_next())
    }

    fn append(&mut self, journal: &Journal<SimFs>, summary: &mut Summary) -> Result<(), String> {
        for _ in 0..=self.rng.below(8) {
            self.serial += 1;
            let size = if self.rng.one_in(10) { self.rng.below(2000) } else { self.rng.below(120) };
            let payload = model::payload(self.serial, size as usize);
            match journal.append((self.serial % 5) as u8, &payload) {
                Ok(seq) => self.model.appended(journal.epoch(), seq, payload),
                Err(AppendError::Full { .. }) => {
                    summary.refused += 1;
                    return Ok(());
                }
                Err(AppendError::Failed) => return Ok(()),
                Err(error) => return Err(format!("append: {error:?}")),
            }
        }
        Ok(())
    }

    fn read(&mut self, journal: &Journal<SimFs>, reader: &mut Reader<SimFs>) -> Result<(), String> {
        let mut got = Vec::new();
        let bytes_max = self.rng.below(4000) as usize;
        let durable = journal.durable_next();
        let read = reader
            .next_batch(bytes_max, |record| got.push((record.epoch, record.seq, record.payload.to_vec())));
        match read {
            Ok(batch) => {
                check(batch.next <= durable, || format!("served {} above durable {durable}", batch.next))?;
                self.model.delivered(&got, &batch)
            }
            Err(error) => self.tolerate(journal, &error),
        }
    }

    fn report_drops(&mut self, journal: &Journal<SimFs>, summary: &mut Summary) -> Result<(), String> {
        let drops = journal.drops();
        if self.rng.one_in(3) {
            if let Some((epoch, seq)) = self.model.some_delivered(&mut self.rng) {
                let reason = DropReason(4);
                let record = DropRecord { epoch, first: seq, last: seq, class: 0, reason, bytes: 1 };
                // It may become durable even where the call could not say so any more.
                self.model.refused(epoch, seq);
                journal.record_drop(record).or_else(|error| self.tolerate(journal, &error))?;
            }
            return Ok(());
        }
        // Whether or not the confirmation becomes durable: the server knows them now.
        summary.dropped += drops.iter().map(|drop| drop.last - drop.first + 1).sum::<u64>();
        self.model.confirmed(&drops);
        match journal.confirm_drops(&drops) {
            Ok(()) => Ok(()),
            Err(error) => self.tolerate(journal, &error),
        }
    }

    /// Errors that a fault explains.
    fn tolerate(&self, journal: &Journal<SimFs>, error: &JournalError) -> Result<(), String> {
        let explained = self.fs.is_cut()
            || journal.stats().failed.is_some()
            || matches!(error, JournalError::DiskFull | JournalError::DropsFull);
        check(explained, || format!("unexplained error: {error:?}"))
    }
}
