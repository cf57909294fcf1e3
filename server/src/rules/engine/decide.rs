//! One record's decisions: evaluate what matches, step the machine, note the effects.

use super::effects::{ClearedAlert, Evidence, StateKey, StoredState, Stream, alert_id};
use super::fleet::{Instances, Parts, Timed};
use super::health::{Asked, Slot};
use super::{Body, Engine, INSTANCES_MAX, Instance, Observation, Sink, TimerTarget};
use crate::alerts::model::NewAlert;
use crate::platform::expr::CelMap;
use crate::rules::facts::{Facts, Subject, remember};
use crate::rules::machine::{Decision, Input, Opening, Phase, step};
use crate::rules::model::{CompiledRule, HISTORICAL_AGE_US, Trigger};
use muster_wire::{Event, Reading};
use std::sync::Arc;

/// A device clock before 2020 was never set: what it sends is taken as live, not as years old.
const CLOCK_FLOOR_US: i64 = 1_577_836_800_000_000;

/// Where and when a value came.
#[derive(Clone, Copy)]
struct Moment {
    stream: Stream,
    /// The stream's time.
    now_us: i64,
    opening: Opening,
}

impl Instance {
    pub(super) fn is(&self, subject: &str, stream: Stream) -> bool {
        self.stream == stream && self.subject.as_ref() == subject
    }
}

fn stream_of(received_at_us: i64, measured_at_us: i64) -> Stream {
    let old = received_at_us.saturating_sub(measured_at_us) > HISTORICAL_AGE_US;
    if old && measured_at_us >= CLOCK_FLOOR_US { Stream::Historical } else { Stream::Live }
}

impl Engine {
    pub(super) fn decide(&mut self, seen: &Observation<'_>) {
        let Some(rules) = self.tenants.get_mut(seen.tenant) else { return };
        if seen.origin.is_some_and(|origin| rules.is_copy(seen.device, origin)) {
            self.sink.stats.duplicates += 1;
            return;
        }
        let parts = rules.parts(seen.device, &self.labels);
        match seen.body {
            Body::Readings(readings) => self.sink.readings(parts, seen, readings),
            Body::Event(event) => self.sink.event(parts, seen, event),
            Body::Time => {}
        }
    }

    /// A timer fell due.
    pub(super) fn time_passed(&mut self, target: &TimerTarget, due_us: i64) {
        let Some(rules) = self.tenants.get_mut(&target.tenant) else { return };
        let timed = rules.timed(&target.device, target.rule, &target.subject, target.stream);
        let Some(Timed { slot, device, instances, at }) = timed else { return };
        let Some(instance) = instances.get_mut(&target.rule).and_then(|all| all.get_mut(at)) else { return };
        instance.timer = None;
        let (input, now_us) = match target.stream {
            Stream::Live if !slot.runs() => (Input::Ended, due_us),
            Stream::Live => (Input::Tick, due_us),
            Stream::Historical => (Input::Ended, self.sink.time.log_us),
        };
        let decisions = step(&mut instance.phase, slot.rule.for_us(), input, now_us);
        let place = Place { tenant: &target.tenant, device, rule: &slot.rule, at: target.rule };
        let why = if input == Input::Ended { "data_ended" } else { "condition" };
        self.sink.settle(&place, instances, at, &decisions, why);
    }
}

/// Which rule on which device.
struct Place<'a> {
    tenant: &'a Arc<str>,
    device: &'a Arc<str>,
    rule: &'a Arc<CompiledRule>,
    at: u32,
}

impl Sink {
    fn moment(&self, seen: &Observation<'_>, measured_at_us: i64, index: u32) -> Moment {
        let stream = stream_of(seen.received_at_us, measured_at_us);
        let now_us = match stream {
            Stream::Live => self.time.running_us(),
            Stream::Historical => measured_at_us,
        };
        Moment { stream, now_us, opening: Opening { position: seen.position, index } }
    }

    fn readings(&mut self, mut parts: Parts<'_>, seen: &Observation<'_>, readings: &[Reading]) {
        // All values of a record are known before any is judged. Old values are seen with their own record's only.
        let mut old = CelMap::default();
        for reading in readings {
            if !parts.reads_last(&reading.metric) {
                continue;
            }
            match stream_of(seen.received_at_us, measured_at(seen, reading)) {
                Stream::Historical => remember(&mut old, &reading.metric, &reading.value),
                Stream::Live => {
                    remember(parts.last, &reading.metric, &reading.value);
                    let key = (parts.tenant.to_string(), parts.device.to_string(), reading.metric.clone());
                    self.effects.lasts.insert(key, reading.value.clone());
                }
            }
        }
        let mut found = Vec::new();
        for (index, reading) in (0_u32..).zip(readings) {
            parts.matching(true, &reading.metric, &mut found);
            let moment = self.moment(seen, measured_at(seen, reading), index);
            let subject = Subject::Reading { metric: &reading.metric, value: &reading.value };
            for rule in &found {
                self.judge(&mut parts, *rule, subject, moment, &old);
            }
        }
    }

    fn event(&mut self, mut parts: Parts<'_>, seen: &Observation<'_>, event: &Event) {
        let mut found = Vec::new();
        parts.matching(false, &event.pipeline, &mut found);
        let moment = self.moment(seen, seen.measured_at_us, 0);
        for rule in found {
            let wanted = match &parts.slots[rule as usize].rule.on {
                Trigger::Event { kinds, .. } => kinds.is_empty() || kinds.contains(&event.kind),
                Trigger::Telemetry { .. } => false,
            };
            if wanted {
                self.judge(&mut parts, rule, Subject::Event(event), moment, &CelMap::default());
            }
        }
    }

    /// One rule on one value.
    fn judge(
        &mut self,
        parts: &mut Parts<'_>,
        rule: u32,
        subject: Subject<'_>,
        moment: Moment,
        old: &CelMap<'static>,
    ) {
        let slot = &mut parts.slots[rule as usize];
        if !slot.runs() {
            return;
        }
        let last = if moment.stream == Stream::Live { &*parts.last } else { old };
        let facts = Facts { subject, device: parts.device, labels: &parts.watch.labels, last };
        let Some(holds) = self.ask(parts.tenant, slot, Asked::Condition, &facts) else { return };
        let known = parts.instances.get(&rule);
        let known = known.and_then(|all| all.iter().position(|known| known.is_of(subject, moment.stream)));
        if !holds && known.is_none() {
            return;
        }
        let at = known.or_else(|| self.begin(parts.instances, rule, slot, &facts, moment.stream));
        let Some(at) = at else { return };
        let Some(instance) = parts.instances.get_mut(&rule).and_then(|all| all.get_mut(at)) else { return };
        let for_us = slot.rule.for_us();
        let asks = !holds && instance.phase.asks_clear(for_us, moment.now_us);
        let clears = match asks {
            true if slot.rule.clear.is_some() => {
                self.ask(parts.tenant, slot, Asked::Clear, &facts).unwrap_or(false)
            }
            asks => asks,
        };
        let before = instance.phase;
        let input = Input::Seen { holds, clears, opening: moment.opening };
        let decisions = step(&mut instance.phase, for_us, input, moment.now_us);
        let place = Place { tenant: parts.tenant, device: parts.device, rule: &slot.rule, at: rule };
        if instance.phase != before || !decisions.is_empty() {
            self.settle(&place, parts.instances, at, &decisions, "condition");
        } else if moment.stream == Stream::Historical {
            self.arm(place.tenant, place.device, rule, for_us, instance);
        }
    }

    fn ask(&mut self, tenant: &str, slot: &mut Slot, asked: Asked, facts: &Facts<'_>) -> Option<bool> {
        let errors = slot.health.errors;
        let answer = slot.ask(asked, facts);
        self.stats.evaluations += 1;
        self.stats.errors += slot.health.errors - errors;
        if let Some(reason) = slot.fresh.take() {
            let row = (tenant.to_owned(), slot.rule.id.to_string(), slot.rule.version, reason);
            self.effects.quarantined.push(row);
        }
        answer
    }

    /// A quiet instance for a condition that begins to hold.
    fn begin(
        &mut self,
        all: &mut Instances,
        rule: u32,
        slot: &Slot,
        facts: &Facts<'_>,
        stream: Stream,
    ) -> Option<usize> {
        if self.instances >= INSTANCES_MAX {
            self.stats.instances_refused += 1;
            return None;
        }
        self.instances += 1;
        let subject: Arc<str> = match facts.subject {
            Subject::Reading { metric, .. } => format!("{METRIC}{metric}").into(),
            Subject::Event(event) => format!("{PIPELINE}{}", event.pipeline).into(),
        };
        let message = slot.rule.message.fill(|hole| match hole {
            "rule" => Some(slot.rule.name.clone()),
            "severity" => Some(slot.rule.severity.as_str().to_owned()),
            other => facts.hole(other),
        });
        let evidence = Evidence { value: facts.value(), message };
        let of_rule = all.entry(rule).or_default();
        of_rule.push(Instance { subject, stream, phase: Phase::Quiet, evidence, alert: None, timer: None });
        Some(of_rule.len() - 1)
    }

    /// Notes what an instance's step decided, and drops the instance when it is quiet again.
    fn settle(
        &mut self,
        place: &Place<'_>,
        all: &mut Instances,
        at: usize,
        decisions: &[Decision],
        why: &'static str,
    ) {
        let Some(of_rule) = all.get_mut(&place.at) else { return };
        let instance = &mut of_rule[at];
        let key = StateKey::new(place.tenant, &place.rule.id, place.device, instance);
        for decision in decisions {
            match *decision {
                Decision::Open { opening, at_us } => {
                    let id = alert_id(self.epoch, &key, place.rule.version, opening);
                    let opened_at_us = self.shown_us(instance.stream, at_us);
                    self.effects.opened.push(new_alert(place, instance, id.clone(), opened_at_us));
                    instance.alert = Some(id);
                }
                Decision::Clear { at_us } => {
                    let at_us = if why == "data_ended" {
                        self.time.log_us
                    } else {
                        self.shown_us(instance.stream, at_us)
                    };
                    if let Some(id) = instance.alert.take() {
                        let tenant = place.rule.tenant.clone();
                        self.effects.cleared.push(ClearedAlert { tenant, id, at_us, why });
                    }
                }
            }
        }
        if instance.phase == Phase::Quiet {
            let gone = of_rule.swap_remove(at);
            if let Some(timer) = gone.timer {
                self.timers.remove(&timer);
            }
            if of_rule.is_empty() {
                all.remove(&place.at);
            }
            self.instances -= 1;
            self.effects.states.insert(key, None);
        } else {
            self.arm(place.tenant, place.device, place.at, place.rule.for_us(), instance);
            self.effects.states.insert(key, Some(StoredState::of(instance, place.rule.version)));
        }
    }

    /// A stream's time as people read it.
    fn shown_us(&self, stream: Stream, at_us: i64) -> i64 {
        match stream {
            Stream::Live => at_us + self.time.idle_us,
            Stream::Historical => at_us,
        }
    }
}

const METRIC: &str = "metric:";
const PIPELINE: &str = "pipeline:";

impl Instance {
    /// Compares without building the subject's text.
    fn is_of(&self, subject: Subject<'_>, stream: Stream) -> bool {
        let name = match subject {
            Subject::Reading { metric, .. } => self.subject.strip_prefix(METRIC).map(|name| name == metric),
            Subject::Event(event) => self.subject.strip_prefix(PIPELINE).map(|name| name == event.pipeline),
        };
        self.stream == stream && name == Some(true)
    }
}

fn measured_at(seen: &Observation<'_>, reading: &Reading) -> i64 {
    seen.measured_at_us.saturating_add(reading.offset_us.unwrap_or(0))
}

fn new_alert(place: &Place<'_>, instance: &Instance, id: String, opened_at_us: i64) -> NewAlert {
    let rule = place.rule;
    NewAlert {
        tenant: rule.tenant.clone(),
        id,
        device: place.device.to_string(),
        rule_id: rule.id.to_string(),
        rule_version: rule.version,
        rule_name: rule.name.clone(),
        subject: instance.subject.to_string(),
        severity: rule.severity,
        historical: instance.stream == Stream::Historical,
        value: instance.evidence.value.clone(),
        message: instance.evidence.message.clone(),
        opened_at_us,
    }
}
