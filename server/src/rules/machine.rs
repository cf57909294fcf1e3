//! The state machine of one rule on one subject (a metric or pipeline of one device). Pure.
//!
//! Quiet -> Pending when the condition begins to hold; Pending -> Firing once it held for `for`; Firing -> Quiet when
//! the clear condition holds. While the condition holds, the clear condition is not asked: a rule whose two
//! conditions overlap stays firing rather than flapping.

use serde::{Deserialize, Serialize};

/// The place in the log where a condition began to hold: it names the alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Opening {
    /// The log position.
    pub position: u64,
    /// The reading within the record.
    pub index: u32,
}

/// Where a rule stands on a subject. Times are of the caller's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The condition does not hold.
    #[default]
    Quiet,
    /// The condition holds, not long enough yet.
    Pending {
        /// Since when.
        since_us: i64,
        /// Where it began.
        opening: Opening,
    },
    /// An alert is open.
    Firing,
}

/// What the machine is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A value came.
    Seen {
        /// The condition's answer.
        holds: bool,
        /// The clear condition's answer; only looked at where `holds` is false.
        clears: bool,
        /// Where the value stands in the log.
        opening: Opening,
    },
    /// Time passed.
    Tick,
    /// No more values will come.
    Ended,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Open an alert.
    Open {
        /// Names it.
        opening: Opening,
        /// When the condition had held long enough.
        at_us: i64,
    },
    /// Clear the open alert.
    Clear {
        /// When.
        at_us: i64,
    },
}

impl Phase {
    /// When time alone will change the phase.
    #[must_use]
    pub fn due_us(&self, for_us: i64) -> Option<i64> {
        match self {
            Self::Pending { since_us, .. } => Some(since_us.saturating_add(for_us)),
            Self::Quiet | Self::Firing => None,
        }
    }

    /// Whether the clear condition's answer can matter at this time.
    #[must_use]
    pub fn asks_clear(&self, for_us: i64, now_us: i64) -> bool {
        matches!(self, Self::Firing) || self.due_us(for_us).is_some_and(|due_us| due_us <= now_us)
    }
}

/// Takes one step. At most an opening that fell due, then one more decision.
#[must_use]
pub fn step(phase: &mut Phase, for_us: i64, input: Input, now_us: i64) -> Vec<Decision> {
    let mut decisions = Vec::new();
    if let Phase::Pending { since_us, opening } = *phase {
        let due_us = since_us.saturating_add(for_us);
        if due_us <= now_us && input != Input::Ended {
            *phase = Phase::Firing;
            decisions.push(Decision::Open { opening, at_us: due_us });
        }
    }
    match (*phase, input) {
        (_, Input::Tick) => {}
        (Phase::Quiet, Input::Seen { holds: true, opening, .. }) if for_us > 0 => {
            *phase = Phase::Pending { since_us: now_us, opening };
        }
        (Phase::Quiet, Input::Seen { holds: true, opening, .. }) => {
            *phase = Phase::Firing;
            decisions.push(Decision::Open { opening, at_us: now_us });
        }
        (Phase::Pending { .. }, Input::Seen { holds: false, .. } | Input::Ended) => *phase = Phase::Quiet,
        (Phase::Firing, Input::Seen { holds: false, clears: true, .. } | Input::Ended) => {
            *phase = Phase::Quiet;
            decisions.push(Decision::Clear { at_us: now_us });
        }
        (Phase::Quiet | Phase::Pending { .. } | Phase::Firing, Input::Seen { .. } | Input::Ended) => {}
    }
    decisions
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(position: u64) -> Opening {
        Opening { position, index: 0 }
    }

    fn seen(holds: bool, clears: bool, position: u64) -> Input {
        Input::Seen { holds, clears, opening: at(position) }
    }

    /// Runs inputs `(now, input)` and tells what was decided at which.
    fn run(for_us: i64, inputs: &[(i64, Input)]) -> Vec<String> {
        let mut phase = Phase::Quiet;
        let mut told = Vec::new();
        for (now_us, input) in inputs {
            for decision in step(&mut phase, for_us, *input, *now_us) {
                told.push(match decision {
                    Decision::Open { opening, at_us } => {
                        format!("{now_us}: open {} at {at_us}", opening.position)
                    }
                    Decision::Clear { at_us } => format!("{now_us}: clear at {at_us}"),
                });
            }
        }
        told
    }

    #[test]
    fn without_a_duration_it_opens_at_once_and_clears_with_hysteresis() {
        let (hot, warm, cool) =
            (|p| seen(true, false, p), |p| seen(false, false, p), |p| seen(false, true, p));
        check(
            0,
            &[(1, cool(1)), (2, hot(2)), (3, hot(3)), (4, warm(4)), (5, hot(5)), (6, cool(6)), (7, hot(7))],
            &["2: open 2 at 2", "6: clear at 6", "7: open 7 at 7"],
        );
    }

    #[test]
    fn a_duration_must_hold_without_a_break() {
        let (hot, cool) = (|p| seen(true, false, p), |p| seen(false, true, p));
        check(
            10,
            &[
                (0, hot(1)),
                (9, hot(2)),
                (9, cool(3)),
                (10, hot(4)),
                (19, hot(5)),
                (20, hot(6)),
                (21, cool(7)),
            ],
            &["20: open 4 at 20", "21: clear at 21"],
        );
    }

    #[test]
    fn time_alone_opens_and_a_late_value_opens_before_it_clears() {
        let (hot, cool) = (|p| seen(true, false, p), |p| seen(false, true, p));
        check(
            10,
            &[(0, hot(1)), (5, Input::Tick), (12, Input::Tick), (13, Input::Tick)],
            &["12: open 1 at 10"],
        );
        check(10, &[(0, hot(1)), (12, cool(2))], &["12: open 1 at 10", "12: clear at 12"]);
    }

    #[test]
    fn overlapping_conditions_do_not_flap() {
        check(0, &[(1, seen(true, true, 1)), (2, seen(true, true, 2))], &["1: open 1 at 1"]);
    }

    #[test]
    fn an_end_of_data_clears_and_forgets() {
        let hot = |p| seen(true, false, p);
        check(0, &[(1, hot(1)), (2, Input::Ended), (3, Input::Ended)], &["1: open 1 at 1", "2: clear at 2"]);
        check(10, &[(1, hot(1)), (12, Input::Ended), (13, Input::Tick)], &[]);
    }

    #[track_caller]
    fn check(for_us: i64, inputs: &[(i64, Input)], expect: &[&str]) {
        assert_eq!(run(for_us, inputs), expect);
    }

    proptest! {
        #[test]
        fn opens_and_clears_take_turns(
            for_us in 0_i64..20,
            steps in prop::collection::vec((0_i64..8, 0_u8..5, any::<bool>()), 0..60),
        ) {
            let (mut phase, mut now_us, mut open) = (Phase::Quiet, 0, false);
            for (position, (wait_us, kind, clears)) in steps.into_iter().enumerate() {
                now_us += wait_us;
                let input = match kind {
                    0 => Input::Tick,
                    1 => Input::Ended,
                    holds => seen(holds == 2, clears, position as u64),
                };
                for decision in step(&mut phase, for_us, input, now_us) {
                    let opens = matches!(decision, Decision::Open { .. });
                    prop_assert_ne!(opens, open);
                    open = opens;
                }
                prop_assert_eq!(open, phase == Phase::Firing);
            }
        }
    }
}
