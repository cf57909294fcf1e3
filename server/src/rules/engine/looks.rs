//! Which rules look at which metric or pipeline: of the whole tenant once, and of each of its devices. Pure.
//!
//! A fleet has a set for every device, so a set is three boxed lists of numbers: a tenant's rules name few metrics,
//! which are numbered once. Looking a name up costs one hash and a binary search in each set.

use crate::rules::model::{CompiledRule, Trigger};
use std::collections::{BTreeSet, HashMap};

/// Stands for every name, behind all numbers of [`Names`].
const ANY: u32 = u32::MAX;

/// Numbers the metrics and pipelines that a tenant's rules name.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<Box<str>, u32>);

impl Names {
    pub(super) fn of_all<'a>(rules: impl Iterator<Item = &'a CompiledRule>) -> Self {
        let mut numbers = HashMap::new();
        for rule in rules {
            for name in wanted(rule).iter().map(String::as_str).chain(rule.last_keys()) {
                let next = u32::try_from(numbers.len()).unwrap_or(ANY);
                if !numbers.contains_key(name) {
                    numbers.insert(Box::from(name), next);
                }
            }
        }
        Self(numbers)
    }

    /// The name's number; none where no rule names it.
    pub(super) fn of(&self, name: &str) -> Option<u32> {
        self.0.get(name).copied()
    }
}

/// The metrics or pipelines of a rule's trigger.
fn wanted(rule: &CompiledRule) -> &[String] {
    match &rule.on {
        Trigger::Telemetry { metrics } => metrics,
        Trigger::Event { pipelines, .. } => pipelines,
    }
}

/// Rules by what they look at.
#[derive(Debug, Default)]
pub(super) struct RuleSet {
    /// `(metric, rule)` by metric, [`ANY`] last; rules of a metric in the order in which they came.
    metrics: Box<[(u32, u32)]>,
    /// `(pipeline, rule)` likewise.
    pipelines: Box<[(u32, u32)]>,
    /// Metrics whose last values some rule reads, ascending.
    last: Box<[u32]>,
}

impl RuleSet {
    /// Of rules with their places, whose names are all numbered.
    pub(super) fn of<'a>(rules: impl Iterator<Item = (u32, &'a CompiledRule)>, names: &Names) -> Self {
        let (mut metrics, mut pipelines, mut last) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (at, rule) in rules {
            let looks = match &rule.on {
                Trigger::Telemetry { .. } => &mut metrics,
                Trigger::Event { .. } => &mut pipelines,
            };
            let wanted = wanted(rule);
            let named: BTreeSet<u32> = wanted.iter().filter_map(|name| names.of(name)).collect();
            let any = wanted.is_empty().then_some(ANY);
            looks.extend(named.into_iter().chain(any).map(|name| (name, at)));
            last.extend(rule.last_keys().filter_map(|name| names.of(name)));
        }
        metrics.sort_by_key(|(name, _)| *name);
        pipelines.sort_by_key(|(name, _)| *name);
        Self { metrics: metrics.into(), pipelines: pipelines.into(), last: last.into_iter().collect() }
    }

    /// Whether any rule looks at readings (or events).
    pub(super) fn wants(&self, readings: bool) -> bool {
        if readings { !self.metrics.is_empty() || !self.last.is_empty() } else { !self.pipelines.is_empty() }
    }

    /// Adds the rules that look at a metric (or pipeline): those that name it, then those that look at all.
    pub(super) fn matching(&self, readings: bool, name: Option<u32>, found: &mut Vec<u32>) {
        let looks = if readings { &self.metrics } else { &self.pipelines };
        for name in name.into_iter().chain([ANY]) {
            let first = looks.partition_point(|(other, _)| *other < name);
            let of_name = looks[first..].iter().take_while(|(other, _)| *other == name);
            found.extend(of_name.map(|(_, rule)| *rule));
        }
    }

    pub(super) fn reads_last(&self, metric: u32) -> bool {
        self.last.binary_search(&metric).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::validate::{Written, compile};
    use muster_wire::TenantId;
    use serde_json::{Value, json};

    fn rule(on: &Value, condition: &str) -> CompiledRule {
        let spec = json!({ "on": on, "condition": condition, "severity": "info" });
        let (tenant, spec) = (TenantId::parse("acme").unwrap(), serde_json::from_value(spec).unwrap());
        compile(&Written { tenant: &tenant, id: "r", version: 1, name: "rule", spec: &spec }).unwrap()
    }

    #[test]
    fn rules_are_found_by_name_and_those_of_all_names_always() {
        let metrics = |names: &[&str]| json!({ "telemetry": { "metrics": names } });
        let pipelines = |names: &[&str]| json!({ "event": { "pipelines": names } });
        let rules = [
            rule(&metrics(&["b", "a", "b"]), "value > 1.0"),
            rule(&metrics(&[]), "value > last.c"),
            rule(&metrics(&["a"]), "true"),
            rule(&pipelines(&["a"]), "true"),
            rule(&metrics(&["b"]), "last.a > 1.0 || last.c > 1.0"),
        ];
        let names = Names::of_all(rules.iter());
        let placed = [4_usize, 0, 1, 2, 3].map(|at| (at as u32, &rules[at]));
        let set = RuleSet::of(placed.into_iter(), &names);
        let found = |readings, name| {
            let mut found = vec![9];
            set.matching(readings, names.of(name), &mut found);
            found.split_off(1)
        };
        assert_eq!(found(true, "a"), [0, 2, 1]);
        assert_eq!(found(true, "b"), [4, 0, 1], "in the order in which they came");
        assert_eq!((found(true, "c"), found(true, "unknown")), (vec![1], vec![1]));
        assert_eq!((found(false, "a"), found(false, "b")), (vec![3], vec![]));
        let reads = |name| names.of(name).is_some_and(|name| set.reads_last(name));
        assert_eq!((reads("a"), reads("b"), reads("c"), reads("d")), (true, false, true, false));
        assert_eq!((set.wants(true), set.wants(false)), (true, true));
    }

    #[test]
    fn a_set_wants_what_its_rules_look_at_only() {
        let wants = |rules: &[CompiledRule]| {
            let names = Names::of_all(rules.iter());
            let set = RuleSet::of((0..).zip(rules), &names);
            (set.wants(true), set.wants(false))
        };
        let event = json!({ "event": {} });
        assert_eq!(wants(&[]), (false, false));
        assert_eq!(wants(&[rule(&json!({ "telemetry": {} }), "true")]), (true, false));
        assert_eq!(wants(&[rule(&event, "true")]), (false, true));
        assert_eq!(wants(&[rule(&event, "last.a > 1.0")]), (true, true), "the last value has to be known");
    }
}
