//! A rule's slot: its expressions, what they cost, and when that is too much.

use crate::platform::expr::{EvalError, Expression, VariableResolver};
use crate::rules::model::{CompiledRule, RuleHealth};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Failures in a row, without one answer, that quarantine a rule.
pub const FAILURES_MAX: u32 = 1_000;
/// Evaluations over which the cost is averaged.
pub const COST_WINDOW: u32 = 256;
/// The mean cost of a window that quarantines a rule: 500 times the usual.
pub const COST_MEAN_MAX: Duration = Duration::from_millis(1);

/// The most that one evaluation is charged with: a thread that the system put aside for a while is not a slow rule.
pub const COST_ONCE_MAX: Duration = Duration::from_millis(10);

/// A rule with its health.
#[derive(Debug)]
pub struct Slot {
    pub(super) rule: Arc<CompiledRule>,
    pub(super) health: RuleHealth,
    failures: u32,
    window: u32,
    spent: Duration,
    /// Set when the quarantine is new and not committed yet.
    pub(super) fresh: Option<String>,
}

/// Which of a rule's conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Condition,
    Clear,
}

impl Slot {
    pub(super) fn new(rule: Arc<CompiledRule>) -> Self {
        let health = RuleHealth { version: rule.version, ..RuleHealth::default() };
        Self { rule, health, failures: 0, window: 0, spent: Duration::ZERO, fresh: None }
    }

    /// Whether it still runs.
    pub(super) fn runs(&self) -> bool {
        self.health.quarantined.is_none()
    }

    /// Evaluates; no answer where a value is missing or the evaluation failed.
    pub(super) fn ask(&mut self, asked: Asked, facts: &dyn VariableResolver) -> Option<bool> {
        let started = Instant::now();
        let expression: &Expression = match (asked, &self.rule.clear) {
            (Asked::Clear, Some(clear)) => clear,
            (Asked::Condition | Asked::Clear, _) => &self.rule.condition,
        };
        let answer = expression.eval_bool(facts);
        self.charge(started.elapsed());
        self.health.evaluations += 1;
        match answer {
            Ok(answer) => {
                self.failures = 0;
                Some(answer)
            }
            Err(EvalError::MissingKey(_)) => {
                self.health.unknown += 1;
                None
            }
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    fn failed(&mut self, error: &EvalError) {
        self.health.errors += 1;
        self.failures += 1;
        self.health.last_error = Some(error.to_string());
        if *error == EvalError::Panicked {
            self.quarantine("its evaluation panicked".into());
        } else if self.failures >= FAILURES_MAX {
            self.quarantine(format!("{FAILURES_MAX} evaluations in a row failed, the last with: {error}"));
        }
    }

    fn charge(&mut self, spent: Duration) {
        self.spent += spent.min(COST_ONCE_MAX);
        self.window += 1;
        if self.window < COST_WINDOW {
            return;
        }
        if self.spent / self.window > COST_MEAN_MAX {
            self.quarantine(format!(
                "{COST_WINDOW} evaluations took over {} ms each",
                COST_MEAN_MAX.as_millis()
            ));
        }
        (self.window, self.spent) = (0, Duration::ZERO);
    }

    fn quarantine(&mut self, reason: String) {
        if self.runs() {
            tracing::warn!(rule_id = %self.rule.id, version = self.rule.version, %reason, "rule quarantined");
            self.fresh = Some(reason.clone());
            self.health.quarantined = Some(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::validate::{Written, compile};
    use muster_wire::TenantId;

    fn slot() -> Slot {
        let spec = serde_json::json!({"on": {"telemetry": {}}, "condition": "true", "severity": "info"});
        let spec = serde_json::from_value(spec).unwrap();
        let tenant = TenantId::parse("acme").unwrap();
        let rule =
            compile(&Written { tenant: &tenant, id: "r", version: 1, name: "slow", spec: &spec }).unwrap();
        Slot::new(Arc::new(rule))
    }

    /// Whether it still runs after a window of these costs.
    fn runs_after(slot: &mut Slot, one: Duration, others: Duration) -> bool {
        slot.charge(one);
        (1..COST_WINDOW).for_each(|_| slot.charge(others));
        slot.runs()
    }

    #[test]
    fn a_mean_cost_over_the_bound_quarantines_once_its_window_is_full() {
        let (mut slot, over) = (slot(), COST_MEAN_MAX + Duration::from_nanos(1));
        assert!(runs_after(&mut slot, COST_MEAN_MAX, COST_MEAN_MAX));
        (1..COST_WINDOW).for_each(|_| slot.charge(over));
        assert!(slot.runs());
        slot.charge(over);
        assert_eq!(slot.fresh.as_deref(), Some("256 evaluations took over 1 ms each"));
        assert!(!slot.runs());
    }

    #[test]
    fn one_evaluation_is_charged_with_no_more_than_its_bound() {
        let hour = Duration::from_secs(3_600);
        assert!(runs_after(&mut slot(), hour, Duration::ZERO));
        let left = (COST_MEAN_MAX * COST_WINDOW - COST_ONCE_MAX) / (COST_WINDOW - 1);
        assert!(runs_after(&mut slot(), hour, left));
        assert!(!runs_after(&mut slot(), hour, left + Duration::from_micros(1)));
    }

    #[test]
    fn failures_in_a_row_quarantine_at_their_bound() {
        let mut slot = slot();
        let error = EvalError::Failed("no".into());
        (1..FAILURES_MAX).for_each(|_| slot.failed(&error));
        assert!(slot.runs());
        slot.failed(&error);
        assert!(!slot.runs());
    }
}
