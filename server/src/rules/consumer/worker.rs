//! The consumer without its thread: decodes records for the engine and commits what it decides.

use crate::alerts::service as alerts;
use crate::platform::clock::SharedClock;
use crate::platform::db::{Db, DbError, Fence};
use crate::platform::event_log::{Kind, LogRecord, Origin};
use crate::platform::live::LiveBus;
use crate::rules::engine::{Body, DeviceSource, Engine, LabelSource, Observation};
use crate::rules::service::RuleBoard;
use crate::rules::snapshot::{self, Checkpoint};
use crate::rules::store::Cursor;
use muster_wire::senml::{self, Moment};
use muster_wire::{Event, Reading, Telemetry, UpClass};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Records between two commits.
pub const CHECKPOINT_RECORDS: u64 = 10_000;
/// Time between two commits.
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// Time between two commits while an alert waits to be seen: people and programs wait for it.
pub const CHECKPOINT_EVERY_ALERT: Duration = Duration::from_millis(20);
/// Changes that force a commit, so that an alert storm stays within memory: about 50 MB.
pub const CHECKPOINT_EFFECTS: usize = 50_000;
/// Records before the cursor that are read again after a start, to know copies of them.
pub const WARM_RECORDS: u64 = 50_000;

/// What the worker stands on.
#[derive(Clone)]
pub struct Parts {
    /// The registry.
    pub db: Db,
    /// Stamps commits.
    pub clock: SharedClock,
    /// Shared with the service: changed rules, health.
    pub board: Arc<RuleBoard>,
    /// Told of alerts after their commit.
    pub live: LiveBus,
    /// Gives devices' labels.
    pub labels: LabelSource,
    /// Tells which devices are registered.
    pub known: DeviceSource,
    /// Refuses commits once another process reads the log for this registry.
    pub fence: Fence,
}

/// The worker.
pub struct Worker {
    parts: Parts,
    engine: Engine,
    cursor: Cursor,
    gaps: Vec<(std::ops::RangeInclusive<u64>, &'static str)>,
    records: u64,
    skipped: u64,
    committed: Instant,
    generation: u64,
    /// Devices were deleted: the next commit deletes what is stored of them.
    prunes: bool,
    /// A commit that failed and has to be tried again.
    waiting: Option<Arc<Checkpoint>>,
}

impl Worker {
    /// Reads rules and snapshot back. `epoch` names the log, `held` is the range of positions that it holds.
    ///
    /// # Errors
    /// The database failed.
    pub fn open(parts: Parts, epoch: u64, held: Range<u64>) -> Result<Self, DbError> {
        let first = held.start;
        let generation = parts.board.generation();
        let (rules, restored) = parts
            .db
            .read_blocking(|tx| Ok::<_, DbError>((snapshot::rules(tx, &[])?, snapshot::restore(tx)?)))?;
        let mut engine = Engine::new(epoch, parts.labels.clone());
        engine.set_rules(rules);
        engine.restore(restored.snapshot);
        engine.forget_devices(&parts.known);
        let mut gaps: Vec<(std::ops::RangeInclusive<u64>, _)> = Vec::new();
        let position = match restored.cursor {
            // Another log: from its beginning. What is pending or firing stays: the devices are the same.
            Some(cursor) if cursor.log_epoch != epoch => first,
            Some(cursor) if cursor.position < first => {
                gaps.push((cursor.position..=first - 1, "the log no longer holds it"));
                first
            }
            // An older copy of the log was put back: what it no longer holds was judged before.
            Some(cursor) => cursor.position.min(held.end),
            None => first,
        };
        let skipped = gaps.iter().map(|(range, _)| range.end() - range.start() + 1).sum();
        let cursor = Cursor { log_epoch: epoch, position, time: engine.time() };
        Ok(Self {
            parts,
            engine,
            cursor,
            gaps,
            records: 0,
            skipped,
            committed: Instant::now(),
            generation,
            prunes: true,
            waiting: None,
        })
    }

    /// The next position to read.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.cursor.position
    }

    /// The engine, for its counters.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Notes a record before the cursor, so that a copy of it after the cursor is known.
    pub fn warm(&mut self, record: &LogRecord<'_>) {
        if record.position < self.cursor.position
            && let Some(origin) = origin(record)
        {
            self.engine.note(record.tenant, record.device, origin);
        }
    }

    /// Positions that the rules never saw, since the start.
    #[must_use]
    pub fn skipped_positions(&self) -> u64 {
        self.skipped
    }

    /// Takes the next record.
    pub fn observe(&mut self, record: &LogRecord<'_>) {
        self.cursor.position = record.position + 1;
        self.records += 1;
        let class = UpClass::from_number(record.class).filter(|_| record.kind == Kind::Message);
        let readings;
        let event;
        let body = match class {
            Some(UpClass::Telemetry | UpClass::Senml)
                if self.engine.wants(record.tenant, record.device, true) =>
            {
                readings = decode_readings(record);
                if readings.is_empty() { Body::Time } else { Body::Readings(&readings) }
            }
            Some(UpClass::Event) if self.engine.wants(record.tenant, record.device, false) => {
                // What cannot be decoded is the store's to account for.
                event = Event::decode(record.body).ok();
                event.as_ref().map_or(Body::Time, Body::Event)
            }
            _ => Body::Time,
        };
        // A foreign device's readings bring their own times, relative to this.
        let measured_at_us =
            if class == Some(UpClass::Senml) { record.received_at_us } else { record.measured_at_us };
        self.engine.observe(&Observation {
            position: record.position,
            received_at_us: record.received_at_us,
            tenant: record.tenant,
            device: record.device,
            origin: origin(record),
            measured_at_us,
            body,
        });
    }

    /// Notes positions that could not be read.
    pub fn skipped(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.gaps.push((range.start..=range.end - 1, "the reader was moved forward"));
        self.skipped += range.end - range.start;
        self.cursor.position = self.cursor.position.max(range.end);
        self.records += 1;
    }

    /// Whether it is time to commit.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.waiting.is_some()
            || self.prunes
            || self.records >= CHECKPOINT_RECORDS
            || self.engine.effects().len() >= CHECKPOINT_EFFECTS
            || self.due_in().is_some_and(|wait| wait.is_zero())
    }

    /// How long until what was decided is committed; none where nothing was.
    #[must_use]
    pub fn due_in(&self) -> Option<Duration> {
        let effects = self.engine.effects();
        let every = match self.records > 0 || !effects.is_empty() {
            false => return None,
            true if effects.opened.is_empty() && effects.cleared.is_empty() => CHECKPOINT_EVERY,
            true => CHECKPOINT_EVERY_ALERT,
        };
        Some(every.saturating_sub(self.committed.elapsed()))
    }

    /// Commits everything since the last commit, then tells who watches. Where it fails, call it again before
    /// anything else: what could not be committed is kept.
    ///
    /// # Errors
    /// The database failed.
    pub fn checkpoint(&mut self) -> Result<(), DbError> {
        self.commit_waiting()?;
        self.cursor.time = self.engine.time();
        let (effects, gaps) = (self.engine.take_effects(), std::mem::take(&mut self.gaps));
        let known = std::mem::take(&mut self.prunes).then(|| self.parts.known.clone());
        self.waiting = Some(Arc::new(Checkpoint { cursor: self.cursor, effects, gaps, known }));
        self.commit_waiting()
    }

    fn commit_waiting(&mut self) -> Result<(), DbError> {
        let Some(checkpoint) = self.waiting.clone() else { return Ok(()) };
        let now_us = self.parts.clock.now_us();
        let fence = self.parts.fence.clone();
        let changed = self.parts.db.write_blocking(move |tx| {
            fence.check(tx)?;
            snapshot::commit(tx, &checkpoint, now_us)
        })?;
        self.waiting = None;
        (self.records, self.committed) = (0, Instant::now());
        for (tenant, alert) in &changed {
            alerts::announce(&self.parts.live, tenant.as_str(), alert);
        }
        let health = self
            .engine
            .health()
            .map(|(tenant, id, health)| ((tenant.to_owned(), id.to_owned()), health.clone()));
        self.parts.board.set_health(health.collect());
        Ok(())
    }

    /// Loads the rules again where they changed; commits before, so that state and rules stay together.
    ///
    /// # Errors
    /// The database failed; the rules before stay.
    pub fn reload_if_changed(&mut self) -> Result<(), DbError> {
        let generation = self.parts.board.generation();
        if generation == self.generation {
            return Ok(());
        }
        let running: Vec<_> = self.engine.rules().cloned().collect();
        let rules = self.parts.db.read_blocking(move |tx| snapshot::rules(tx, &running))?;
        tracing::info!(rules = rules.len(), generation, "rules loaded");
        self.engine.set_rules(rules);
        self.generation = generation;
        self.checkpoint()
    }

    /// Forgets devices where the board asks for it, and commits that, so that nothing of them is written later.
    ///
    /// # Errors
    /// The database failed; it is done at the next call.
    pub fn forget_if_asked(&mut self) -> Result<(), DbError> {
        let asked = self.parts.board.asked();
        if self.parts.board.has_forgotten(asked) {
            return Ok(());
        }
        self.forget_devices();
        self.checkpoint()?;
        self.parts.board.set_forgotten(asked);
        Ok(())
    }

    /// Labels changed.
    pub fn forget_labels(&mut self) {
        self.engine.forget_labels();
    }

    /// Devices were deleted. What the log still holds of them may be learned again; the next deletion or start
    /// forgets that too.
    pub fn forget_devices(&mut self) {
        self.engine.forget_devices(&self.parts.known);
        self.prunes = true;
    }
}

fn origin(record: &LogRecord<'_>) -> Option<(u8, u64, u64)> {
    match record.origin {
        Origin::Queue { queue_id, seq } => Some((record.class, queue_id, seq)),
        Origin::Direct => None,
    }
}

fn decode_readings(record: &LogRecord<'_>) -> Vec<Reading> {
    if record.class != UpClass::Senml.number() {
        return Telemetry::decode(record.body).map(|telemetry| telemetry.readings).unwrap_or_default();
    }
    let resolved = senml::decode(record.body).unwrap_or_default();
    let reading = |resolved: senml::Resolved| {
        let offset_us = match resolved.moment {
            Moment::Absolute(at_us) => at_us.saturating_sub(record.received_at_us),
            Moment::Relative(by_us) => by_us,
        };
        Reading { metric: resolved.metric, value: resolved.value, offset_us: Some(offset_us) }
    };
    resolved.into_iter().map(reading).collect()
}
