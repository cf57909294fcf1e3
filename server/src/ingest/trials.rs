//! Power-cut trials of the log with its store: the oracle of the promise, from seeds.
//!
//! The log lives on the journal's simulated disk, which loses power inside any operation; the store is a real
//! SQLite file whose writer is stopped between any two steps. A power cut takes it back to any of its commits since
//! the last sync, that one included. Agents are modelled: each keeps what was not acknowledged and sends it again,
//! reports its marks, drops a few records, sends garbage now and then. In the end: stored = distinct serials = accepted - dropped, nothing lost.
//!
//! `MUSTER_TRIALS` sets how many run; a failure prints its seed (`MUSTER_SEED` repeats it).

mod kept;

use super::{BATCH_BYTES_MAX, Consumer, IngestError, Step};
use crate::platform::clock::{Clock as _, ManualClock};
use crate::platform::db::{DbError, Scope, sqlite::Sync, sqlite::Tx};
use crate::platform::event_log::{EventLog, Kind, NewRecord, Origin};
use crate::platform::telemetry::{
    self, CrashPoint, Faults, ReadingsQuery, TelemetryError, TelemetryStore, Totals,
};
use kept::Kept;
use muster_journal::sim::{Loss, Rng, SimFs};
use muster_journal::{Sabotage, WriterMode};
use muster_wire::{
    DropRange, DropReason, QueueId, QueueState, Reading, State, Telemetry, TenantId, UpClass, Value,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

const LIVES: u64 = 5;
const TRIALS_DEFAULT: u64 = 40;

/// A record in an agent's queue.
#[derive(Clone, Copy)]
struct Held {
    /// Where it stands in the log, once it was sent on this connection.
    position: Option<u64>,
}

struct Agent {
    name: String,
    queue_id: u64,
    next: u64,
    /// Not acknowledged yet, by seq.
    held: BTreeMap<u64, Held>,
    garbage: BTreeSet<u64>,
    drops: Vec<(u64, u64)>,
}

impl Agent {
    fn released(&self) -> u64 {
        self.held.keys().next().copied().unwrap_or(self.next)
    }

    fn body(&self, seq: u64) -> Vec<u8> {
        if self.garbage.contains(&seq) {
            return b"\xffgarbage".to_vec();
        }
        let reading = |metric: &str, value| Reading {
            metric: metric.into(),
            value: Value::Number(value),
            offset_us: None,
        };
        Telemetry { readings: vec![reading("serial", seq as f64), reading("other", 0.0)] }.encode()
    }

    fn state(&self, closed: bool) -> Vec<u8> {
        let queue_id = QueueId(self.queue_id);
        let drop = |&(first, last): &(u64, u64)| DropRange {
            class: UpClass::Telemetry.number(),
            queue_id,
            first,
            last,
            reason: DropReason::QueueFull,
        };
        let queue = QueueState {
            class: UpClass::Telemetry.number(),
            queue_id,
            first: 1,
            released: self.released(),
            next: self.next,
            closed,
        };
        State {
            queues: vec![queue],
            drops: self.drops.iter().map(drop).collect(),
            uptime_s: 0,
            inferences: 0,
        }
        .encode()
    }
}

/// Where the store is to stop next, shared with its hook.
type Armed = Arc<Mutex<Option<CrashPoint>>>;

struct Trial {
    rng: Rng,
    fs: SimFs,
    sabotage: Sabotage,
    clock: Arc<ManualClock>,
    dir: tempfile::TempDir,
    store: TelemetryStore,
    kept: Kept,
    armed: Armed,
    agents: Vec<Agent>,
}

/// Ends a life early; the trial goes on with the next.
enum Ended {
    PowerCut,
    Failed(String),
}

fn open_store(dir: &tempfile::TempDir, armed: &Armed, kept: &Kept) -> TelemetryStore {
    let (armed, kept, path) = (armed.clone(), kept.clone(), dir.path().to_owned());
    let faults = Faults::when(move |point| {
        if point == CrashPoint::AfterSync {
            kept.synced(&path);
        }
        let mut armed = armed.lock().unwrap();
        let hit = *armed == Some(point);
        if hit {
            *armed = None;
        }
        hit
    });
    let options = telemetry::Options { sync: Sync::OffForTrials, faults, ..telemetry::Options::default() };
    TelemetryStore::open(&dir.path().join("telemetry.db"), options).unwrap()
}

/// Gives each agent a shard of its own: neighbours by id share one.
fn spread_over_shards(tx: &mut Tx<'_>) -> Result<(), DbError> {
    tx.execute("INSERT INTO tenant (id, name) VALUES (1, 'acme')", &[])?;
    const DEVICES: &str =
        "INSERT INTO device (id, tenant_id, name) VALUES (1, 1, 'dev-0'), (17, 1, 'dev-1'), (33, 1, 'dev-2')";
    tx.execute(DEVICES, &[]).map(drop)
}

impl Trial {
    fn new(seed: u64, sabotage: Sabotage) -> Self {
        let mut rng = Rng::new(seed);
        let agent = |at: u64, queue_id| Agent {
            name: format!("dev-{at}"),
            queue_id,
            next: 1,
            held: BTreeMap::new(),
            garbage: BTreeSet::new(),
            drops: Vec::new(),
        };
        let agents = (0..3).map(|at| agent(at, 1 + rng.next_u64() / 2)).collect();
        let (dir, armed) = (tempfile::tempdir().unwrap(), Armed::default());
        let kept = Kept::default();
        let store = open_store(&dir, &armed, &kept);
        store.db().write_blocking(spread_over_shards).unwrap();
        let clock = ManualClock::at(1_700_000_000_000_000);
        let fs = SimFs::new(seed);
        Self { rng, fs, sabotage, clock, dir, store, kept, armed, agents }
    }

    /// A power cut takes the store back to one of its commits since the last sync.
    fn lose_commits(&mut self) {
        let mut copies = std::mem::take(&mut *self.kept.copies.lock().unwrap());
        if copies.is_empty() {
            return;
        }
        let at = self.rng.below(copies.len() as u64) as usize;
        self.dir = copies.swap_remove(at);
        self.store = open_store(&self.dir, &self.armed, &self.kept);
        self.kept.keep(self.dir.path());
    }

    fn run(&mut self) -> Result<(), String> {
        for life in 0..LIVES {
            let is_last = life + 1 == LIVES;
            if !is_last && self.rng.one_in(2) {
                self.fs.cut_after(1 + self.rng.below(60));
            }
            let ended = self.life(is_last);
            match ended {
                Ok(()) => {}
                Err(Ended::PowerCut) if !is_last => {}
                Err(Ended::PowerCut) => return Err("the power was cut in the last life".into()),
                Err(Ended::Failed(why)) => return Err(why),
            }
            let losses = [Loss::Random, Loss::Unsynced, Loss::Process];
            self.fs.cut();
            let loss = losses[self.rng.below(3) as usize];
            self.fs = self.fs.reboot(loss);
            if !is_last && !matches!(loss, Loss::Process) {
                self.lose_commits();
            } else if self.rng.one_in(4) {
                self.store = open_store(&self.dir, &self.armed, &self.kept);
            }
            // Connections are gone: what was not acknowledged is sent again.
            for held in self.agents.iter_mut().flat_map(|agent| agent.held.values_mut()) {
                held.position = None;
            }
        }
        self.verify()
    }

    fn options(&self) -> muster_journal::Options {
        muster_journal::Options {
            dir: "/log".into(),
            segment_bytes: 4096,
            bytes_max: 16 * 4096,
            record_bytes_max: 2048,
            batch_bytes_max: 16 * 1024,
            writer: WriterMode::Caller,
            sabotage: self.sabotage,
            ..muster_journal::Options::default()
        }
    }

    /// An error of the log is the power cut, or a fault.
    fn cut_or<E: Into<anyhow::Error>>(&self, error: E) -> Ended {
        if self.fs.is_cut() { Ended::PowerCut } else { Ended::Failed(format!("{:#}", error.into())) }
    }

    fn life(&mut self, is_last: bool) -> Result<(), Ended> {
        let log = EventLog::open_journal(self.fs.clone(), self.options(), self.clock.clone());
        let log = log.map_err(|error| self.cut_or(error))?;
        let consumer = Consumer::begin(log.clone(), self.store.clone(), self.clock.clone(), Vec::new());
        let batch_bytes = [100, 500, 1_000_000][self.rng.below(3) as usize];
        let mut consumer = consumer.map_err(|error| self.cut_or(error))?.by_hand(batch_bytes);
        let actions = if is_last { 0 } else { 10 + self.rng.below(60) };
        for _ in 0..actions {
            self.clock.advance_us(self.rng.below(2_000_000) as i64 - 500_000);
            match self.rng.below(12) {
                0..4 => self.send(&log, false)?,
                4..7 => self.acknowledge(&log)?,
                7..10 => self.consume(&mut consumer)?,
                10 => self.drop_some(),
                _ => self.report(&log, false)?,
            }
        }
        if is_last {
            self.drain(&log, &mut consumer)?;
        }
        Ok(())
    }

    /// An agent accepts a few records and sends some of what it holds, oldest or newest first.
    fn send(&mut self, log: &EventLog<SimFs>, all: bool) -> Result<(), Ended> {
        let at = self.rng.below(self.agents.len() as u64) as usize;
        let (fresh, newest_first) = (self.rng.below(4), self.rng.one_in(2));
        let limit = if all { usize::MAX } else { 1 + self.rng.below(6) as usize };
        for _ in 0..if all { 0 } else { fresh } {
            let is_garbage = self.rng.one_in(12);
            let agent = &mut self.agents[at];
            agent.held.insert(agent.next, Held { position: None });
            if is_garbage {
                agent.garbage.insert(agent.next);
            }
            agent.next += 1;
        }
        let agents = if all { 0..self.agents.len() } else { at..at + 1 };
        for at in agents {
            let mut seqs: Vec<u64> = self.agents[at].held.keys().copied().collect();
            if newest_first {
                seqs.reverse();
            }
            for seq in seqs.into_iter().take(limit) {
                // Sent again while in flight now and then: the answer got lost.
                if self.agents[at].held[&seq].position.is_some() && !self.rng.one_in(8) {
                    continue;
                }
                let (queue_id, body) = (self.agents[at].queue_id, self.agents[at].body(seq));
                let origin = Origin::Queue { queue_id, seq };
                let position = self.append(log, at, UpClass::Telemetry, origin, &body)?;
                let held = self.agents[at].held.get_mut(&seq).expect("taken from it");
                held.position = held.position.or(position);
            }
        }
        Ok(())
    }

    /// None where the log is full: the agent keeps it.
    fn append(
        &self,
        log: &EventLog<SimFs>,
        at: usize,
        class: UpClass,
        origin: Origin,
        body: &[u8],
    ) -> Result<Option<u64>, Ended> {
        let record = NewRecord {
            kind: Kind::Message,
            tenant: "acme",
            device: &self.agents[at].name,
            class: class.number(),
            qos: 1,
            origin,
            measured_at_us: self.clock.now_us(),
            body,
        };
        match log.append(&record) {
            Ok(position) => Ok(Some(position)),
            Err(crate::platform::event_log::AppendError::Full) => Ok(None),
            Err(error) => Err(self.cut_or(error)),
        }
    }

    /// The log is synced, then PUBACKs go out: agents release what is below the durable mark.
    fn acknowledge(&mut self, log: &EventLog<SimFs>) -> Result<(), Ended> {
        log.commit().map_err(|error| self.cut_or(error))?;
        let durable = log.durable_next();
        for agent in &mut self.agents {
            agent.held.retain(|_, held| held.position.is_none_or(|position| position >= durable));
        }
        Ok(())
    }

    fn consume(&mut self, consumer: &mut Consumer<SimFs>) -> Result<(), Ended> {
        if self.rng.one_in(2) {
            let point = CrashPoint::ALL[self.rng.below(CrashPoint::ALL.len() as u64) as usize];
            *self.armed.lock().unwrap() = Some(point);
        }
        let stepped = consumer.step();
        self.kept.keep(self.dir.path());
        let (flushes, syncs) = (self.rng.below(4), self.rng.one_in(3));
        let mut stepped = stepped.map(drop);
        for _ in 0..flushes {
            stepped = stepped.and_then(|()| consumer.flush_next());
            self.kept.keep(self.dir.path());
        }
        let stepped = stepped.and_then(|()| if syncs { consumer.sync() } else { Ok(()) });
        *self.armed.lock().unwrap() = None;
        match stepped {
            Ok(_) | Err(IngestError::Store(TelemetryError::Crashed(_))) => Ok(()),
            Err(error) => Err(self.cut_or(error)),
        }
    }

    /// An agent's queue is full: its oldest records go, whether or not a copy is on its way.
    fn drop_some(&mut self) {
        let at = self.rng.below(self.agents.len() as u64) as usize;
        let agent = &mut self.agents[at];
        for _ in 0..self.rng.below(3) {
            let Some((seq, _)) = agent.held.pop_first() else { return };
            agent.drops.push((seq, seq));
        }
    }

    fn report(&mut self, log: &EventLog<SimFs>, closed: bool) -> Result<(), Ended> {
        for at in 0..self.agents.len() {
            let body = self.agents[at].state(closed);
            self.append(log, at, UpClass::State, Origin::Direct, &body)?;
        }
        Ok(())
    }

    /// No more faults: everything is sent, acknowledged, reported and stored.
    fn drain(&mut self, log: &EventLog<SimFs>, consumer: &mut Consumer<SimFs>) -> Result<(), Ended> {
        for _ in 0..100 {
            self.send(log, true)?;
            self.acknowledge(log)?;
            if self.agents.iter().all(|agent| agent.held.is_empty()) {
                self.report(log, false)?;
                log.commit().map_err(|error| self.cut_or(error))?;
            }
            while let Step::Stored { .. } = consumer.step().map_err(|error| self.cut_or(error))? {
                consumer.finish().map_err(|error| self.cut_or(error))?;
            }
            if self.agents.iter().all(|agent| agent.held.is_empty()) {
                return Ok(());
            }
        }
        Err(Ended::Failed("agents cannot get rid of their records".into()))
    }

    fn verify(&self) -> Result<(), String> {
        let accepted: u64 = self.agents.iter().map(|agent| agent.next - 1).sum();
        let scope = || Scope::Tenant(TenantId::parse("acme").unwrap());
        let totals = self.store.read_blocking(move |view| telemetry::totals(view, &scope())).unwrap();
        let mut stored = 0;
        for agent in &self.agents {
            let query = ReadingsQuery {
                device: agent.name.clone(),
                metric: "serial".into(),
                from_us: i64::MIN,
                to_us: i64::MAX,
                step: None,
                limit: telemetry::POINTS_MAX,
            };
            let points = self
                .store
                .read_blocking(move |view| telemetry::readings(view, &scope(), &query))
                .unwrap()
                .points;
            let serials: Vec<u64> = points
                .iter()
                .filter_map(|point| point.value.as_ref()?.as_number())
                .map(|n| n as u64)
                .collect();
            let distinct: BTreeSet<u64> = serials.iter().copied().collect();
            stored += serials.len() as u64;
            expect(serials.len() == distinct.len(), || format!("{}: duplicates in {serials:?}", agent.name))?;
            let dropped: BTreeSet<u64> =
                agent.drops.iter().flat_map(|(first, last)| *first..=*last).collect();
            for seq in 1..agent.next {
                let expected =
                    distinct.contains(&seq) != agent.garbage.contains(&seq) || dropped.contains(&seq);
                expect(expected, || format!("{}: seq {seq} is neither stored nor dropped", agent.name))?;
            }
        }
        let dropped: u64 = totals.dropped.values().sum();
        let Totals { lost, pending, .. } = totals;
        expect(lost == 0 && pending == 0, || format!("lost {lost}, pending {pending}"))?;
        expect(totals.stored == stored, || format!("ledger says {} stored, {stored} are", totals.stored))?;
        expect(stored + dropped == accepted, || {
            format!("{accepted} accepted, {stored} stored, {dropped} dropped")
        })
    }
}

fn expect(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn nothing_accepted_is_lost_and_nothing_is_stored_twice() {
    let seeds = match env("MUSTER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + env("MUSTER_TRIALS").unwrap_or(TRIALS_DEFAULT),
    };
    for seed in seeds {
        if let Err(why) = Trial::new(seed, Sabotage::None).run() {
            panic!("trial with MUSTER_SEED={seed} failed: {why}");
        }
    }
}

#[test]
fn without_fdatasync_the_trials_fail() {
    let broken =
        (1..=TRIALS_DEFAULT).filter_map(|seed| Trial::new(seed, Sabotage::SkipFdatasync).run().err());
    let losses = broken.filter(|why| why.contains("neither stored nor dropped")).count();
    assert!(losses > 0, "the trials cannot tell whether the log is synced");
}

#[test]
fn a_log_that_is_released_before_the_store_is_synced_makes_the_trials_fail() {
    let run = |seed| {
        let mut trial = Trial::new(seed, Sabotage::None);
        trial.kept.ignores_syncs = true;
        trial.store = open_store(&trial.dir, &trial.armed, &trial.kept);
        trial.run().err()
    };
    let broken = (1..=TRIALS_DEFAULT).filter_map(run);
    let losses = broken.filter(|why| why.contains("neither stored nor dropped")).count();
    assert!(losses > 0, "the trials cannot tell whether the store is synced");
}

/// One record on its way, stopped between each two steps; the rest of the way is walked by the next life.
#[test]
fn each_crash_point_is_survived() {
    let points = CrashPoint::ALL.map(Some).into_iter().chain([None]);
    for (point, is_synced) in points.flat_map(|point| [(point, false), (point, true)]) {
        let mut trial = Trial::new(7, Sabotage::None);
        let walked = (|| {
            let log = EventLog::open_journal(trial.fs.clone(), trial.options(), trial.clock.clone());
            let log = log.map_err(|error| trial.cut_or(error))?;
            let consumer = Consumer::begin(log.clone(), trial.store.clone(), trial.clock.clone(), Vec::new());
            let mut consumer = consumer.map_err(|error| trial.cut_or(error))?.by_hand(BATCH_BYTES_MAX);
            for _ in 0..20 {
                trial.send(&log, false)?;
            }
            if is_synced {
                trial.acknowledge(&log)?;
            }
            *trial.armed.lock().unwrap() = point;
            let stepped = consumer.step().and_then(|step| consumer.finish().map(|()| step));
            let expected = match point {
                Some(point) if is_synced => {
                    matches!(stepped, Err(IngestError::Store(TelemetryError::Crashed(at))) if at == point)
                }
                // Nothing may be read before it is synced.
                _ if !is_synced => matches!(stepped, Ok(Step::Idle)),
                _ => matches!(stepped, Ok(Step::Stored { .. })),
            };
            *trial.armed.lock().unwrap() = None;
            if expected { Ok(()) } else { Err(Ended::Failed(format!("{stepped:?}"))) }
        })();
        if let Err(Ended::Failed(why)) = walked {
            panic!("{point:?}: {why}");
        }
        trial.fs.cut();
        trial.fs = trial.fs.reboot(Loss::Unsynced);
        trial.store = open_store(&trial.dir, &trial.armed, &trial.kept);
        for held in trial.agents.iter_mut().flat_map(|agent| agent.held.values_mut()) {
            held.position = None;
        }
        assert!(trial.life(true).is_ok());
        trial.verify().unwrap_or_else(|why| panic!("{point:?}, synced {is_synced}: {why}"));
    }
}
