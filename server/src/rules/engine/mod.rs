//! The engine: records in, effects out. No IO.
//!
//! Who calls me: `consumer` feeds every log record in order ([`Engine::observe`]) and takes what is to be committed
//! ([`Engine::take_effects`]); `snapshot` puts back what was committed ([`Engine::restore`]).
//!
//! Time is the log's. A silence of more than [`GAP_US`] in a log that ticks each second means that the server was
//! down: it counts as one second, so that a restart neither opens what nobody measured nor forgets what was pending.
//! Data older than five minutes runs in a stream of its own, on the device's time, and opens `historical` alerts;
//! that stream ends when nothing came for [`HISTORICAL_IDLE_US`].
//!
//! Limits: [`INSTANCES_MAX`] subjects pending or firing at once; further ones are counted and not tracked.

mod copies;
mod decide;
mod effects;
mod fleet;
mod health;
mod looks;

pub use effects::{ClearedAlert, Effects, Evidence, LastKey, StateKey, StoredState, Stream, alert_id};
pub use fleet::{DeviceSource, LabelSource};

use super::facts::remember;
use super::machine::Phase;
use super::model::{CompiledRule, RuleHealth};
use fleet::{Moved, TenantRules};
use muster_wire::{Event, Reading, Value};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Silence in the log that means the server was down.
pub const GAP_US: i64 = 10 * 1_000_000;
/// What such a silence counts as.
const GAP_COUNTS_US: i64 = 1_000_000;
/// A stream of old data ends when nothing came for this long.
pub const HISTORICAL_IDLE_US: i64 = 5 * 60 * 1_000_000;
/// Subjects that may be pending or firing at once: about 100 MB.
pub const INSTANCES_MAX: usize = 200_000;

/// The log's time, with the time that the server was down taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogTime {
    /// `received_at_us` of the newest record.
    pub log_us: i64,
    /// How long the log was silent, beyond what counts.
    pub idle_us: i64,
}

impl LogTime {
    fn advance(&mut self, received_at_us: i64) {
        let silence = received_at_us.saturating_sub(self.log_us);
        if self.log_us != 0 && silence > GAP_US {
            self.idle_us += silence - GAP_COUNTS_US;
        }
        self.log_us = self.log_us.max(received_at_us);
    }

    /// The time that durations are measured in.
    #[must_use]
    pub fn running_us(&self) -> i64 {
        self.log_us - self.idle_us
    }
}

/// One record of the log, decoded as far as rules need it.
#[derive(Clone, Copy)]
pub struct Observation<'a> {
    /// Its place in the log.
    pub position: u64,
    /// When the server got it.
    pub received_at_us: i64,
    /// Whose; empty for a tick.
    pub tenant: &'a str,
    /// Whose; empty for a tick.
    pub device: &'a str,
    /// `(class, queue_id, seq)` of a queue record: a copy of one that was judged is passed over.
    pub origin: Option<(u8, u64, u64)>,
    /// The device's time.
    pub measured_at_us: i64,
    /// What came.
    pub body: Body<'a>,
}

/// What a record brings.
#[derive(Clone, Copy)]
pub enum Body<'a> {
    /// Readings.
    Readings(&'a [Reading]),
    /// An inference result.
    Event(&'a Event),
    /// Only the time.
    Time,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Records seen.
    pub records: u64,
    /// Conditions evaluated.
    pub evaluations: u64,
    /// Evaluations that failed.
    pub errors: u64,
    /// Copies of records passed over.
    pub duplicates: u64,
    /// Rules in quarantine now.
    pub quarantined: u64,
    /// Subjects not tracked since [`INSTANCES_MAX`] was reached.
    pub instances_refused: u64,
}

/// One rule on one subject of one device, pending or firing.
#[derive(Debug)]
struct Instance {
    subject: Arc<str>,
    stream: Stream,
    phase: Phase,
    evidence: Evidence,
    alert: Option<String>,
    timer: Option<TimerId>,
}

type TimerId = (i64, u64);

#[derive(Clone, Debug)]
struct TimerTarget {
    tenant: Arc<str>,
    device: Arc<str>,
    rule: u32,
    subject: Arc<str>,
    stream: Stream,
}

/// All tenants' rules with what they know.
pub struct Engine {
    tenants: HashMap<Arc<str>, TenantRules>,
    labels: LabelSource,
    sink: Sink,
}

/// What every decision writes to.
struct Sink {
    epoch: u64,
    time: LogTime,
    timers: BTreeMap<TimerId, TimerTarget>,
    next_timer: u64,
    instances: usize,
    effects: Effects,
    stats: EngineStats,
}

/// What was committed: the engine continues from it.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The engine's time.
    pub time: LogTime,
    /// What was pending or firing.
    pub states: Vec<(StateKey, StoredState)>,
    /// Last values that rules read.
    pub lasts: Vec<(LastKey, Value)>,
    /// Rule versions that no longer run: `(tenant, rule, version, reason)`.
    pub quarantined: Vec<(String, String, i64, String)>,
}

impl Engine {
    /// An engine without rules, for a log.
    #[must_use]
    pub fn new(epoch: u64, labels: LabelSource) -> Self {
        let sink = Sink {
            epoch,
            time: LogTime::default(),
            timers: BTreeMap::new(),
            next_timer: 0,
            instances: 0,
            effects: Effects::default(),
            stats: EngineStats::default(),
        };
        Self { tenants: HashMap::new(), labels, sink }
    }

    /// The engine's time.
    #[must_use]
    pub fn time(&self) -> LogTime {
        self.sink.time
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        let quarantined = self.tenants.values().map(TenantRules::quarantined).sum();
        EngineStats { quarantined, ..self.sink.stats }
    }

    /// What waits to be committed.
    #[must_use]
    pub fn effects(&self) -> &Effects {
        &self.sink.effects
    }

    /// Takes what waits to be committed.
    pub fn take_effects(&mut self) -> Effects {
        std::mem::take(&mut self.sink.effects)
    }

    /// Every rule's health, by tenant and id.
    pub fn health(&self) -> impl Iterator<Item = (&str, &str, &RuleHealth)> {
        self.tenants.iter().flat_map(|(tenant, rules)| {
            rules.slots().map(move |slot| (tenant.as_ref(), slot.rule.id.as_ref(), &slot.health))
        })
    }

    /// Every rule.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<CompiledRule>> {
        self.tenants.values().flat_map(|rules| rules.slots().map(|slot| &slot.rule))
    }

    /// Whether a record of the tenant's device can matter: what it brings need not be decoded otherwise.
    pub fn wants(&mut self, tenant: &str, device: &str, readings: bool) -> bool {
        let labels = &self.labels;
        self.tenants.get_mut(tenant).is_some_and(|rules| rules.wants(device, readings, labels))
    }

    /// Notes a record that was judged before the cursor, so that a copy of it is known after a restart.
    pub fn note(&mut self, tenant: &str, device: &str, origin: (u8, u64, u64)) {
        if let Some(rules) = self.tenants.get_mut(tenant) {
            rules.is_copy(device, origin);
        }
    }

    /// Devices or labels changed: selectors are resolved again when a device is next seen.
    pub fn forget_labels(&mut self) {
        self.tenants.values_mut().for_each(TenantRules::forget_labels);
    }

    /// Forgets devices that were deleted: what is pending ends, and their open alerts are cleared.
    pub fn forget_devices(&mut self, is_known: &DeviceSource) {
        let Sink { time, timers, instances, effects, .. } = &mut self.sink;
        for rules in self.tenants.values_mut() {
            let tenant = rules.name.clone();
            for gone in rules.take_unknown(|device| is_known(&tenant, device)) {
                if let Some(timer) = gone.instance.timer {
                    timers.remove(&timer);
                }
                *instances -= 1;
                let key = StateKey::new(&tenant, &gone.rule_id, &gone.device, &gone.instance);
                let stored = StoredState::of(&gone.instance, gone.version);
                effects.forget(key, &stored, time.log_us, "device_removed");
            }
        }
        effects.lasts.retain(|(tenant, device, _), _| is_known(tenant, device));
    }

    /// Puts a committed snapshot back. Call [`Self::set_rules`] first: what no rule of the same version owns any
    /// more is cleared.
    pub fn restore(&mut self, snapshot: Snapshot) {
        self.sink.time = snapshot.time;
        for (tenant, rule, version, reason) in snapshot.quarantined {
            if let Some(rules) = self.tenants.get_mut(tenant.as_str()) {
                rules.quarantine(&rule, version, reason);
            }
        }
        for ((tenant, device, metric), value) in snapshot.lasts {
            if let Some(rules) = self.tenants.get_mut(tenant.as_str()) {
                remember(&mut rules.device(&device).last, &metric, &value);
            }
        }
        for (key, stored) in snapshot.states {
            let rules = self.tenants.get_mut(key.tenant.as_str());
            let place =
                rules.and_then(|rules| rules.find(&key.rule_id, stored.version).map(|rule| (rules, rule)));
            match place {
                Some((rules, rule)) => {
                    let instance = stored.into_instance(&key);
                    self.sink.put_back(rules, &key.device, rule, instance);
                }
                None => self.sink.effects.forget(key, &stored, self.sink.time.log_us, "rule_changed"),
            }
        }
    }

    /// Replaces all rules. Open alerts of rules that changed, were disabled or removed are cleared.
    pub fn set_rules(&mut self, rules: Vec<Arc<CompiledRule>>) {
        let mut by_tenant: HashMap<Arc<str>, Vec<Arc<CompiledRule>>> = HashMap::new();
        for rule in rules {
            by_tenant.entry(rule.tenant.as_str().into()).or_default().push(rule);
        }
        let mut before = std::mem::take(&mut self.tenants);
        for tenant in before.keys() {
            by_tenant.entry(tenant.clone()).or_default();
        }
        self.sink.timers.clear();
        self.sink.instances = 0;
        for (tenant, rules) in by_tenant {
            let old = before.remove(&tenant);
            let (mut fresh, moved) = TenantRules::replacing(old, &tenant, rules);
            for Moved { device, rule_id, version, instance, to } in moved {
                match to {
                    Some(rule) => self.sink.put_back(&mut fresh, &device, rule, instance),
                    None => {
                        let key = StateKey::new(&tenant, &rule_id, &device, &instance);
                        let stored = StoredState::of(&instance, version);
                        self.sink.effects.forget(key, &stored, self.sink.time.log_us, "rule_changed");
                    }
                }
            }
            if !fresh.is_empty() {
                self.tenants.insert(tenant, fresh);
            }
        }
    }

    /// Takes one record of the log.
    pub fn observe(&mut self, seen: &Observation<'_>) {
        self.sink.stats.records += 1;
        self.sink.time.advance(seen.received_at_us);
        self.fire_timers();
        match seen.body {
            Body::Time => {}
            Body::Readings(_) | Body::Event(_) => self.decide(seen),
        }
    }

    fn fire_timers(&mut self) {
        let now_us = self.sink.time.running_us();
        while let Some(entry) = self.sink.timers.first_entry() {
            let (due_us, _) = *entry.key();
            if due_us > now_us {
                return;
            }
            let target = entry.remove();
            self.time_passed(&target, due_us);
        }
    }
}

impl Sink {
    /// Arms the timer that the phase needs, in place of the one before.
    fn arm(&mut self, tenant: &Arc<str>, device: &Arc<str>, rule: u32, for_us: i64, instance: &mut Instance) {
        if let Some(before) = instance.timer.take() {
            self.timers.remove(&before);
        }
        let due_us = match instance.stream {
            Stream::Live => instance.phase.due_us(for_us),
            Stream::Historical => Some(self.time.running_us() + HISTORICAL_IDLE_US),
        };
        let Some(due_us) = due_us else { return };
        let id = (due_us, self.next_timer);
        self.next_timer += 1;
        let (subject, stream) = (instance.subject.clone(), instance.stream);
        let target = TimerTarget { tenant: tenant.clone(), device: device.clone(), rule, subject, stream };
        self.timers.insert(id, target);
        instance.timer = Some(id);
    }

    fn put_back(&mut self, rules: &mut TenantRules, device: &str, rule: u32, mut instance: Instance) {
        let for_us = rules.slot(rule).rule.for_us();
        let tenant = rules.name.clone();
        let device = rules.device(device);
        instance.timer = None;
        self.arm(&tenant, &device.name, rule, for_us, &mut instance);
        device.instances.entry(rule).or_default().push(instance);
        self.instances += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::validate::{Written, compile};
    use muster_wire::TenantId;

    #[test]
    fn subjects_beyond_the_bound_are_counted_and_tracked_once_there_is_room() {
        let spec =
            serde_json::json!({"on": {"telemetry": {}}, "condition": "value > 30.0", "severity": "info"});
        let spec = serde_json::from_value(spec).unwrap();
        let tenant = TenantId::parse("acme").unwrap();
        let rule =
            compile(&Written { tenant: &tenant, id: "r", version: 1, name: "hot", spec: &spec }).unwrap();
        let mut engine = Engine::new(7, Arc::new(|_: &str, _: &str| BTreeMap::new()));
        engine.set_rules(vec![Arc::new(rule)]);
        // As if others had taken all places but two.
        engine.sink.instances = INSTANCES_MAX - 2;
        let mut opened_by = |device: &str, value: f64| {
            let readings = [Reading { metric: "t".into(), value: Value::Number(value), offset_us: None }];
            engine.observe(&Observation {
                position: 1,
                received_at_us: 1,
                tenant: "acme",
                device,
                origin: None,
                measured_at_us: 1,
                body: Body::Readings(&readings),
            });
            (engine.take_effects().opened.len(), engine.stats().instances_refused)
        };
        assert_eq!((opened_by("a", 31.0), opened_by("b", 31.0)), ((1, 0), (1, 0)));
        assert_eq!((opened_by("c", 31.0), opened_by("c", 31.0)), ((0, 1), (0, 2)));
        assert_eq!(opened_by("a", 31.0), (0, 2), "it has its place");
        assert_eq!(opened_by("a", 20.0), (0, 2));
        assert_eq!(opened_by("c", 31.0), (1, 2));
    }
}
