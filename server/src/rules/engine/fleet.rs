//! One tenant's rules, indexed, and what is known of each of its devices.
//!
//! A rule that selects every device stands in one shared set; others are resolved once a device is first seen and
//! kept with it until rules or labels change. So a record costs two look-ups and the rules that match it.

use super::copies::Judged;
use super::health::Slot;
use super::looks::{Names, RuleSet};
use super::{Instance, Stream};
use crate::platform::expr::CelMap;
use crate::rules::facts::text_map;
use crate::rules::model::CompiledRule;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Gives a device's labels: `(tenant, device)`.
pub type LabelSource = Arc<dyn Fn(&str, &str) -> BTreeMap<String, String> + Send + Sync>;

/// Says whether a device is registered: `(tenant, device)`.
pub type DeviceSource = Arc<dyn Fn(&str, &str) -> bool + Send + Sync>;

/// A device's instances, by rule.
pub(super) type Instances = HashMap<u32, Vec<Instance>>;

/// What is known of a device.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: Arc<str>,
    watch: Option<Watch>,
    pub(super) last: CelMap<'static>,
    pub(super) instances: Instances,
    judged: Judged,
}

#[derive(Debug)]
pub(super) struct Watch {
    own: RuleSet,
    pub(super) labels: CelMap<'static>,
}

impl Device {
    fn new(name: &str) -> Self {
        let (last, instances) = (CelMap::default(), HashMap::new());
        Self { name: name.into(), watch: None, last, instances, judged: Judged::default() }
    }
}

/// One tenant's rules and devices.
#[derive(Debug)]
pub(super) struct TenantRules {
    pub(super) name: Arc<str>,
    slots: Vec<Slot>,
    names: Names,
    everyone: RuleSet,
    listed: HashMap<Box<str>, Vec<u32>>,
    labelled: Vec<u32>,
    devices: HashMap<Arc<str>, Device>,
}

/// A pending or firing instance whose rules are being replaced, or whose device is gone.
pub(super) struct Moved {
    pub(super) device: Arc<str>,
    pub(super) rule_id: Arc<str>,
    pub(super) version: i64,
    pub(super) instance: Instance,
    /// Its place among the new rules; none where its version is gone.
    pub(super) to: Option<u32>,
}

/// The parts of a tenant that one record's decision needs, borrowed apart.
pub(super) struct Parts<'a> {
    pub(super) tenant: &'a Arc<str>,
    pub(super) slots: &'a mut [Slot],
    names: &'a Names,
    everyone: &'a RuleSet,
    pub(super) watch: &'a Watch,
    pub(super) device: &'a Arc<str>,
    pub(super) last: &'a mut CelMap<'static>,
    pub(super) instances: &'a mut Instances,
}

/// The instance that a timer is of: `instances` of the slot's rule, at `at`.
pub(super) struct Timed<'a> {
    pub(super) slot: &'a Slot,
    pub(super) device: &'a Arc<str>,
    pub(super) instances: &'a mut Instances,
    pub(super) at: usize,
}

impl Parts<'_> {
    /// The rules that look at a metric (or pipeline) of the device.
    pub(super) fn matching(&self, readings: bool, name: &str, found: &mut Vec<u32>) {
        found.clear();
        let name = self.names.of(name);
        self.everyone.matching(readings, name, found);
        self.watch.own.matching(readings, name, found);
    }

    /// Whether some rule reads the metric's last value.
    pub(super) fn reads_last(&self, metric: &str) -> bool {
        let name = self.names.of(metric);
        name.is_some_and(|name| self.everyone.reads_last(name) || self.watch.own.reads_last(name))
    }
}

impl TenantRules {
    fn new(name: &Arc<str>, mut rules: Vec<Arc<CompiledRule>>) -> Self {
        rules.sort_by(|a, b| a.id.cmp(&b.id));
        let names = Names::of_all(rules.iter().map(AsRef::as_ref));
        let placed = || (0_u32..).zip(&rules);
        let is_everyones = |rule: &CompiledRule| rule.devices.is_empty() && rule.labels.is_empty();
        let everyone = RuleSet::of(
            placed().filter(|(_, rule)| is_everyones(rule)).map(|(at, rule)| (at, rule.as_ref())),
            &names,
        );
        let mut listed: HashMap<Box<str>, Vec<u32>> = HashMap::new();
        for (at, rule) in placed() {
            for device in rule.devices.iter() {
                listed.entry(device.into()).or_default().push(at);
            }
        }
        listed.values_mut().for_each(Vec::shrink_to_fit);
        let labelled = placed()
            .filter(|(_, rule)| rule.devices.is_empty() && !rule.labels.is_empty())
            .map(|(at, _)| at)
            .collect();
        let slots = rules.into_iter().map(Slot::new).collect();
        Self { name: name.clone(), slots, names, everyone, listed, labelled, devices: HashMap::new() }
    }

    /// The tenant with new rules: what did not change keeps its health, its last values and its instances.
    pub(super) fn replacing(
        old: Option<Self>,
        name: &Arc<str>,
        rules: Vec<Arc<CompiledRule>>,
    ) -> (Self, Vec<Moved>) {
        let mut fresh = Self::new(name, rules);
        let Some(old) = old else { return (fresh, Vec::new()) };
        let mut moved = Vec::new();
        let places: Vec<_> =
            old.slots.iter().map(|slot| fresh.find(&slot.rule.id, slot.rule.version)).collect();
        fresh.devices = old.devices;
        for device in fresh.devices.values_mut() {
            device.watch = None;
            for (rule, instances) in std::mem::take(&mut device.instances) {
                let slot = &old.slots[rule as usize].rule;
                moved.extend(instances.into_iter().map(|instance| Moved {
                    device: device.name.clone(),
                    rule_id: slot.id.clone(),
                    version: slot.version,
                    instance,
                    to: places[rule as usize],
                }));
            }
        }
        for (slot, place) in old.slots.into_iter().zip(places) {
            if let Some(at) = place {
                fresh.slots[at as usize] = slot;
            }
        }
        (fresh, moved)
    }

    /// Takes out the devices that are not registered any more; gives what was pending or firing on them.
    pub(super) fn take_unknown(&mut self, is_known: impl Fn(&str) -> bool) -> Vec<Moved> {
        let mut gone = Vec::new();
        for (name, device) in self.devices.extract_if(|name, _| !is_known(name)) {
            for (rule, instances) in device.instances {
                let CompiledRule { id: rule_id, version, .. } = &*self.slots[rule as usize].rule;
                gone.extend(instances.into_iter().map(|instance| Moved {
                    device: name.clone(),
                    rule_id: rule_id.clone(),
                    version: *version,
                    instance,
                    to: None,
                }));
            }
        }
        gone
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    pub(super) fn slot(&self, at: u32) -> &Slot {
        &self.slots[at as usize]
    }

    /// The place of a rule's version.
    pub(super) fn find(&self, id: &str, version: i64) -> Option<u32> {
        let at = self.slots.binary_search_by(|slot| slot.rule.id.as_ref().cmp(id)).ok()?;
        (self.slots[at].rule.version == version).then(|| u32::try_from(at).ok()).flatten()
    }

    pub(super) fn quarantine(&mut self, id: &str, version: i64, reason: String) {
        if let Some(at) = self.find(id, version) {
            self.slots[at as usize].health.quarantined = Some(reason);
        }
    }

    /// How many rules no longer run.
    pub(super) fn quarantined(&self) -> u64 {
        self.slots.iter().filter(|slot| !slot.runs()).count() as u64
    }

    pub(super) fn forget_labels(&mut self) {
        self.devices.values_mut().for_each(|device| device.watch = None);
    }

    /// The device, known from now on.
    pub(super) fn device(&mut self, name: &str) -> &mut Device {
        if !self.devices.contains_key(name) {
            let device = Device::new(name);
            self.devices.insert(device.name.clone(), device);
        }
        self.devices.get_mut(name).expect("it was inserted above")
    }

    /// Whether any rule looks at the device's readings (or events).
    pub(super) fn wants(&mut self, device: &str, readings: bool, labels: &LabelSource) -> bool {
        self.everyone.wants(readings) || self.parts(device, labels).watch.own.wants(readings)
    }

    /// Notes a queue record; says whether it is a copy.
    pub(super) fn is_copy(&mut self, device: &str, (class, queue_id, seq): (u8, u64, u64)) -> bool {
        self.device(device).judged.is_copy(class, queue_id, seq)
    }

    /// Borrows what a decision needs, with the device's rules resolved.
    pub(super) fn parts(&mut self, device: &str, labels: &LabelSource) -> Parts<'_> {
        if self.devices.get(device).is_none_or(|known| known.watch.is_none()) {
            let watch = self.resolve(device, labels);
            self.device(device).watch = Some(watch);
        }
        let Device { name, watch, last, instances, .. } =
            self.devices.get_mut(device).expect("it was resolved above");
        Parts {
            tenant: &self.name,
            slots: &mut self.slots,
            names: &self.names,
            everyone: &self.everyone,
            watch: watch.as_ref().expect("it was resolved above"),
            device: name,
            last,
            instances,
        }
    }

    fn resolve(&self, device: &str, source: &LabelSource) -> Watch {
        let labels = source(&self.name, device);
        let listed = self.listed.get(device).into_iter().flatten();
        let carries =
            |rule: &CompiledRule| rule.labels.iter().all(|(key, value)| labels.get(key) == Some(value));
        let candidates = listed.chain(&self.labelled).map(|at| (*at, self.slots[*at as usize].rule.as_ref()));
        let own = RuleSet::of(candidates.filter(|(_, rule)| carries(rule)), &self.names);
        let labels = text_map(labels.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        Watch { own, labels }
    }

    /// The instances of a rule on a device, for a timer.
    pub(super) fn timed(
        &mut self,
        device: &str,
        rule: u32,
        subject: &str,
        stream: Stream,
    ) -> Option<Timed<'_>> {
        let Device { name: device, instances, .. } = self.devices.get_mut(device)?;
        let at = instances.get(&rule)?.iter().position(|known| known.is(subject, stream))?;
        Some(Timed { slot: &self.slots[rule as usize], device, instances, at })
    }
}
