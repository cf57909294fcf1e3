//! Seeded trials of the queue with the uplink's core on a disk that loses power: after any number of lives the server
//! has each accepted record, or its drop. `MUSTER_TRIALS` sets how many; a failure names its seed.
//!
//! The server here is a set of keys. It checks every report as the ledger does: nothing below a reported release mark
//! may be neither stored nor dropped.

use super::core::{Core, Lane, Verdict, judge};
use super::lanes::{Fetch, Lanes};
use crate::clock::ManualClock;
use crate::config;
use crate::queue::{Bounds, Queue, QueueClass, QueueError, Report, Seq};
use muster_journal::sim::{Loss, Rng, SimFs};
use muster_journal::{JournalError, Sabotage, WriterMode};
use muster_wire::{DropReason, QueueId};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const LIVES: u64 = 5;
const TRIALS_DEFAULT: u64 = 60;

type Key = (u8, QueueId, Seq);

#[derive(Default)]
struct Server {
    stored: BTreeMap<Key, u64>,
    dropped: BTreeSet<Key>,
    dropped_reports: u64,
}

impl Server {
    fn store(&mut self, key: Key, serial: u64) -> Result<(), String> {
        match self.stored.insert(key, serial) {
            Some(before) if before != serial => Err(format!("{key:?} came as {before} and as {serial}")),
            _ => Ok(()),
        }
    }

    fn hear(&mut self, report: &Report) -> Result<(), String> {
        for drop in &report.drops {
            self.dropped_reports += 1;
            self.dropped.extend((drop.first..=drop.last).map(|seq| (drop.class, drop.queue_id, seq)));
        }
        for state in &report.queues {
            for seq in state.first..state.released {
                let key = (state.class, state.queue_id, seq);
                if !self.stored.contains_key(&key) && !self.dropped.contains(&key) {
                    return Err(format!("lost: {key:?} is below the release mark {}", state.released));
                }
            }
        }
        Ok(())
    }
}

struct Trial {
    rng: Rng,
    fs: SimFs,
    sabotage: Sabotage,
    server: Server,
    appended: BTreeMap<Key, u64>,
    accepted: BTreeSet<Key>,
    serial: u64,
}

struct Life {
    queue: Queue<SimFs>,
    core: Core,
    lanes: Lanes<SimFs>,
    in_flight: Vec<(QueueClass, QueueId, Seq, u64)>,
    now: Duration,
    /// What the server gave on this connection, where it controls the backlog.
    credit: Option<u64>,
}

/// A step's failure: the disk's, which a cut explains, or a broken promise.
enum Broken {
    Queue(QueueError),
    Promise(String),
}

impl From<QueueError> for Broken {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl From<String> for Broken {
    fn from(why: String) -> Self {
        Self::Promise(why)
    }
}

fn bounds(sabotage: Sabotage) -> Bounds {
    let mut bounds = Bounds::from_config(&config::Queue::default());
    for options in &mut bounds.classes {
        options.segment_bytes = 4096;
        options.bytes_max = 8 * 4096;
        options.age_max = None;
        options.batch_bytes_max = 4096;
        options.record_bytes_max = 1024;
        options.writer = WriterMode::Caller;
        options.sabotage = sabotage;
    }
    bounds
}

impl Trial {
    fn run(seed: u64, sabotage: Sabotage) -> Result<Server, String> {
        let (rng, fs) = (Rng::new(seed), SimFs::new(seed));
        let (server, appended, accepted) = (Server::default(), BTreeMap::new(), BTreeSet::new());
        let mut trial = Self { rng, fs, sabotage, server, appended, accepted, serial: 0 };
        for life in 0..LIVES {
            let last = life + 1 == LIVES;
            trial.life(last)?;
            trial.fs.set_budget(None);
            let loss = if trial.rng.one_in(4) { Loss::Process } else { Loss::Random };
            trial.fs = trial.fs.reboot(loss);
        }
        trial.settle_accounts()?;
        Ok(trial.server)
    }

    fn life(&mut self, last: bool) -> Result<(), String> {
        if !last && self.rng.one_in(2) {
            let operations = if self.rng.one_in(3) { 12 } else { 200 };
            self.fs.cut_after(1 + self.rng.below(operations));
        }
        let clock = Arc::new(ManualClock::at(1_700_000_000_000_000));
        let lived = Queue::open(self.fs.clone(), Path::new("/queue"), bounds(self.sabotage), clock)
            .and_then(|queue| {
                let core = Core::new(queue.released(), 1);
                let lanes = Lanes::open(&queue)?;
                Ok(Life { queue, core, lanes, in_flight: Vec::new(), now: Duration::ZERO, credit: None })
            })
            .map_err(Broken::Queue)
            .and_then(|mut life| self.live(&mut life, last));
        match lived {
            Err(Broken::Promise(why)) => Err(why),
            Err(Broken::Queue(error)) if !self.fs.is_cut() => Err(format!("the queue failed: {error:?}")),
            Ok(()) | Err(Broken::Queue(_)) => Ok(()),
        }
    }

    fn live(&mut self, life: &mut Life, last: bool) -> Result<(), Broken> {
        self.connect(life);
        for _ in 0..self.rng.below(80) {
            let step = self.step(life);
            self.note_accepted(&life.queue);
            match step {
                // A full disk refuses for now; nothing is lost by that.
                Err(Broken::Queue(QueueError::Journal { source: JournalError::DiskFull, .. })) => {}
                other => other?,
            }
            if self.fs.is_cut() {
                break;
            }
        }
        if !last {
            // What was on its way may have arrived before the end, its answer not.
            for (class, queue_id, seq, serial) in std::mem::take(&mut life.in_flight) {
                if self.rng.one_in(2) {
                    self.server.store((class.up().number(), queue_id, seq), serial)?;
                }
            }
            return Ok(());
        }
        self.drain(life)
    }

    fn step(&mut self, life: &mut Life) -> Result<(), Broken> {
        life.now += Duration::from_millis(50);
        match self.rng.below(11) {
            0..=3 => self.append(life),
            4 => self.commit(life)?,
            5 | 6 => {
                self.grant(life, 9);
                self.pump(life)?;
            }
            7 => {
                for _ in 0..self.rng.below(8) {
                    self.answer(life)?;
                }
            }
            8 => {
                let report = life.queue.report();
                self.server.hear(&report)?;
                if self.rng.one_in(2) {
                    life.queue.confirm(&report)?;
                }
            }
            9 => {
                let room = self.fs.used_bytes() + self.rng.below(9000);
                self.fs.set_budget(self.rng.one_in(2).then_some(room));
            }
            _ => {
                life.in_flight.clear();
                self.connect(life);
            }
        }
        Ok(())
    }

    /// Half of the servers control the backlog.
    fn connect(&mut self, life: &mut Life) {
        life.core.connected(life.queue.accepted_next(), life.now);
        life.credit = self.rng.one_in(2).then_some(0);
        life.core.subscribed(life.credit.is_some(), life.now);
        if life.credit.is_some() {
            life.core.credit(7, 0, life.now);
        }
    }

    /// The server may answer a request for credit, with less.
    fn grant(&mut self, life: &mut Life, most: u64) {
        if let (Some(asked), Some(credit)) = (life.core.ask(life.now), &mut life.credit) {
            let records = asked.min(self.rng.below(most + 1));
            *credit += records;
            life.core.credit(7, u32::try_from(records).unwrap(), life.now);
        }
    }

    fn append(&mut self, life: &Life) {
        for _ in 0..=self.rng.below(6) {
            let class = QueueClass::ALL[usize::from(self.rng.one_in(3))];
            let mut body = vec![0; 8 + usize::try_from(self.rng.below(700)).unwrap()];
            body[..8].copy_from_slice(&(self.serial + 1).to_le_bytes());
            // A full batch waits for the next commit.
            if let Ok(seq) = life.queue.append(class, 7, &body) {
                self.serial += 1;
                self.appended.insert((class.up().number(), life.queue.queue_id(class), seq), self.serial);
            }
        }
    }

    fn commit(&mut self, life: &Life) -> Result<(), Broken> {
        for class in QueueClass::ALL {
            let next = life.queue.next_seq(class);
            if next > 1 {
                life.queue.wait_accepted(class, next - 1)?;
            }
        }
        Ok(())
    }

    fn note_accepted(&mut self, queue: &Queue<SimFs>) {
        let marks = queue.accepted_next();
        for class in QueueClass::ALL {
            let (number, queue_id) = (class.up().number(), queue.queue_id(class));
            let from = (number, queue_id, 0);
            let upto = (number, queue_id, marks[class.index()]);
            self.accepted.extend(self.appended.range(from..upto).map(|(key, _)| *key));
        }
    }

    fn pump(&mut self, life: &mut Life) -> Result<(), Broken> {
        while let Some(want) = life.core.next(life.queue.accepted_next(), life.now) {
            match life.lanes.fetch(want)? {
                Fetch::Nothing => break,
                Fetch::Gone { upto } => life.core.gone(want, upto),
                Fetch::Record(record) => {
                    if life.core.found(want, record.seq) {
                        if let Some(credit) = life.credit.as_mut().filter(|_| want.lane == Lane::Backlog) {
                            let left = credit.checked_sub(1);
                            *credit =
                                left.ok_or("a record of the backlog was sent without credit".to_owned())?;
                        }
                        let (time, body) = record.body.ok_or("a record of another build".to_owned())?;
                        let serial = body.first_chunk::<8>().ok_or("a short record".to_owned())?;
                        let serial = u64::from_le_bytes(*serial);
                        if time != 7 || record.seq >= life.queue.accepted_next()[want.class.index()] {
                            return Err(Broken::Promise("a record was read that was not accepted".into()));
                        }
                        life.in_flight.push((want.class, record.queue_id, record.seq, serial));
                    }
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, life: &mut Life) -> Result<(), Broken> {
        if life.in_flight.is_empty() {
            return Ok(());
        }
        let at = usize::try_from(self.rng.below(life.in_flight.len() as u64)).unwrap();
        let (class, queue_id, seq, serial) = life.in_flight.swap_remove(at);
        let reason = [0x00, 0x00, 0x00, 0x00, 0x10, 0x97, 0x99][usize::try_from(self.rng.below(7)).unwrap()];
        match judge(reason) {
            Verdict::Release => {
                self.server.store((class.up().number(), queue_id, seq), serial)?;
                life.core.settle(class, seq);
            }
            Verdict::Keep => life.core.keep(class, seq, life.now),
            Verdict::Drop(reason) => {
                assert_eq!(reason, DropReason::RefusedPayload);
                life.queue.record_drop(class, queue_id, seq, reason, 1)?;
                life.core.settle(class, seq);
            }
        }
        self.release(life)
    }

    fn release(&mut self, life: &Life) -> Result<(), Broken> {
        for class in QueueClass::ALL {
            life.queue.release(class, life.core.released(class))?;
        }
        Ok(())
    }

    /// The last life: no faults; everything must reach the server.
    fn drain(&mut self, life: &mut Life) -> Result<(), Broken> {
        self.fs.set_budget(None);
        self.commit(life)?;
        self.note_accepted(&life.queue);
        for _ in 0..10_000 {
            life.now += Duration::from_secs(60);
            self.grant(life, 9);
            self.pump(life)?;
            self.answer(life)?;
            let drained = life.core.is_drained(life.queue.accepted_next());
            let report = life.queue.report();
            self.server.hear(&report)?;
            life.queue.confirm(&report)?;
            if drained && !life.queue.has_drops() && !report.more {
                self.release(life)?;
                return Ok(self.server.hear(&life.queue.report())?);
            }
        }
        Err(Broken::Promise("the queue does not drain".into()))
    }

    fn settle_accounts(&self) -> Result<(), String> {
        for key in &self.accepted {
            if !self.server.stored.contains_key(key) && !self.server.dropped.contains(key) {
                return Err(format!("accepted {key:?} is neither stored nor dropped"));
            }
        }
        let serials: BTreeSet<_> = self.server.stored.values().collect();
        if serials.len() != self.server.stored.len() {
            return Err("a serial is stored twice".into());
        }
        for (key, serial) in &self.server.stored {
            if self.appended.get(key) != Some(serial) {
                return Err(format!("stored {key:?} was never appended"));
            }
        }
        Ok(())
    }
}

#[test]
fn nothing_accepted_is_lost_over_power_cuts() {
    let count = muster_journal::trials::count(TRIALS_DEFAULT);
    let (mut stored, mut drops) = (0, 0);
    for seed in 0..count {
        let server = Trial::run(seed, Sabotage::None).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        stored += server.stored.len();
        drops += server.dropped_reports;
    }
    assert!(stored > 0 && drops > 0, "the trials did no work");
}

#[test]
fn without_the_fdatasync_the_trials_fail() {
    let failed = (0..200).any(|seed| Trial::run(seed, Sabotage::SkipFdatasync).is_err());
    assert!(failed, "a queue that never syncs was not noticed");
}
