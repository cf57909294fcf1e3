//! Leave to send the backlog, as the server gives it on `dn/credit`: pure, values and `now` in, decisions out.
//!
//! Part of `core`. A server that controls its fleet says so with an announcement right behind the SUBACK; from then
//! on each record of the backlog needs credit on that connection. Live records never do. A server that says nothing
//! leaves the backlog free.
//!
//! Promise: while a backlog waits without enough credit a request is due at once and each [`ASK_AGAIN`] after, so a
//! request or grant that was lost holds nothing up for longer. Credit ends with its connection.

use std::time::Duration;

/// A connection whose SUBACK does not come sends its backlog after this.
pub const SUBACK_WAIT: Duration = Duration::from_secs(30);
/// An announcement comes in the same write as the SUBACK; who hears none for this long is free.
pub const ANNOUNCE_WAIT: Duration = Duration::from_millis(250);
/// Without a grant a request is repeated after this.
pub const ASK_AGAIN: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Not known yet: the backlog waits for the server's word.
    Unknown { until: Duration },
    /// The server controls nothing.
    Free,
    /// Each record of the backlog takes one of `left`.
    Controlled { epoch: u64, left: u64, last_grant: u64, ask_at: Duration },
}

/// What the backlog may do on one connection.
#[derive(Debug)]
pub struct Allowance {
    rule: Rule,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { rule: Rule::Free }
    }
}

impl Allowance {
    /// A connection began: what was granted on another is gone.
    pub fn connected(&mut self, now: Duration) {
        self.rule = Rule::Unknown { until: now + SUBACK_WAIT };
    }

    /// The SUBACK came; without the subscription nothing will be heard.
    pub fn subscribed(&mut self, granted: bool, now: Duration) {
        if let Rule::Unknown { .. } = self.rule {
            self.rule = if granted { Rule::Unknown { until: now + ANNOUNCE_WAIT } } else { Rule::Free };
        }
    }

    /// A message about credit came. Another epoch is another start of the server, which knows nothing of the credit
    /// that an earlier one gave.
    pub fn heard(&mut self, epoch: u64, records: u32, now: Duration) {
        let records = u64::from(records);
        match &mut self.rule {
            Rule::Controlled { epoch: known, left, last_grant, ask_at } if *known == epoch => {
                if records > 0 {
                    (*left, *last_grant, *ask_at) = (left.saturating_add(records), records, now);
                }
            }
            rule => *rule = Rule::Controlled { epoch, left: records, last_grant: records, ask_at: now },
        }
    }

    /// Whether a record of the backlog may be sent.
    #[must_use]
    pub fn may_send(&self, now: Duration) -> bool {
        match self.rule {
            Rule::Unknown { until } => now >= until,
            Rule::Free => true,
            Rule::Controlled { left, .. } => left > 0,
        }
    }

    /// A record of the backlog was sent.
    pub fn spend(&mut self) {
        if let Rule::Controlled { left, .. } = &mut self.rule {
            *left = left.saturating_sub(1);
        }
    }

    /// When to look again with `backlog` records waiting: for the server's word, or to ask.
    #[must_use]
    pub fn look_at(&self, backlog: u64, now: Duration) -> Option<Duration> {
        match self.rule {
            Rule::Unknown { until } if backlog > 0 && now < until => Some(until),
            Rule::Controlled { left, last_grant, ask_at, .. } if backlog > left && left <= last_grant / 2 => {
                Some(ask_at)
            }
            _ => None,
        }
    }

    /// How many records to ask for now; counts as asked.
    pub fn ask(&mut self, backlog: u64, now: Duration) -> Option<u64> {
        let due = self.look_at(backlog, now).is_some_and(|at| at <= now);
        match &mut self.rule {
            Rule::Controlled { left, ask_at, .. } if due => {
                *ask_at = now + ASK_AGAIN;
                Some(backlog - *left)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);
    const MS: Duration = Duration::from_millis(1);

    fn connected() -> Allowance {
        let mut allowance = Allowance::default();
        allowance.connected(NOW);
        allowance
    }

    #[test]
    fn the_backlog_waits_for_the_servers_word_and_not_for_ever() {
        let mut silent = connected();
        assert!(!silent.may_send(NOW + SUBACK_WAIT - MS));
        assert_eq!(silent.look_at(1, NOW), Some(NOW + SUBACK_WAIT));
        assert_eq!(silent.look_at(0, NOW), None);
        assert!(silent.may_send(NOW + SUBACK_WAIT));
        assert_eq!(silent.look_at(1, NOW + SUBACK_WAIT), None, "it may send: nothing to wait for");
        silent.subscribed(true, NOW + MS);
        assert!(!silent.may_send(NOW + ANNOUNCE_WAIT) && silent.may_send(NOW + MS + ANNOUNCE_WAIT));
        assert_eq!(silent.ask(1, NOW), None);
        let mut refused = connected();
        refused.subscribed(false, NOW);
        assert!(refused.may_send(NOW));
        // The word may come late, and stands against a SUBACK behind it.
        silent.heard(7, 0, NOW + SUBACK_WAIT);
        silent.subscribed(true, NOW + SUBACK_WAIT);
        assert!(!silent.may_send(NOW + SUBACK_WAIT * 2));
        silent.connected(NOW);
        silent.subscribed(false, NOW);
        assert!(silent.may_send(NOW), "another connection");
    }

    #[test]
    fn a_request_is_due_at_once_then_each_five_seconds_until_a_grant() {
        let mut allowance = connected();
        allowance.heard(7, 0, NOW);
        assert_eq!(allowance.look_at(0, NOW), None, "without a backlog nothing is asked");
        assert_eq!(allowance.ask(60, NOW), Some(60));
        assert_eq!(allowance.ask(60, NOW + ASK_AGAIN - MS), None);
        assert_eq!(allowance.look_at(60, NOW), Some(NOW + ASK_AGAIN));
        assert_eq!(allowance.ask(60, NOW + ASK_AGAIN), Some(60));
        // An announcement is no answer.
        allowance.heard(7, 0, NOW + ASK_AGAIN);
        assert_eq!(allowance.ask(60, NOW + ASK_AGAIN), None);
        allowance.heard(7, 64, NOW + ASK_AGAIN);
        assert_eq!(allowance.ask(60, NOW + ASK_AGAIN * 2), None, "enough");
    }

    #[test]
    fn the_next_request_is_due_when_half_of_the_last_grant_is_spent_and_not_enough_is_left() {
        let mut allowance = connected();
        allowance.heard(7, 10, NOW);
        for left in (6..=10).rev() {
            assert_eq!(allowance.ask(100, NOW), None, "{left}");
            allowance.spend();
        }
        assert_eq!(allowance.look_at(5, NOW), None, "what is left is enough for these");
        assert_eq!(allowance.ask(100, NOW), Some(95));
        assert_eq!(allowance.ask(100, NOW), None);
        for _ in 0..5 {
            assert!(allowance.may_send(NOW));
            allowance.spend();
        }
        assert!(!allowance.may_send(NOW));
        allowance.spend();
        allowance.heard(7, 1, NOW);
        assert!(allowance.may_send(NOW), "nothing was owed");
        allowance.spend();
        assert_eq!(allowance.ask(1, NOW), Some(1), "a grant of one asks when it is spent");
        allowance.heard(7, u32::MAX, NOW);
        allowance.heard(7, u32::MAX, NOW);
        assert!(allowance.may_send(NOW));
    }

    #[test]
    fn another_epoch_takes_back_what_an_earlier_one_gave() {
        let mut allowance = connected();
        allowance.heard(7, 64, NOW);
        allowance.heard(8, 0, NOW);
        assert!(!allowance.may_send(NOW));
        assert_eq!(allowance.ask(60, NOW), Some(60));
        allowance.heard(9, 3, NOW);
        (0..3).for_each(|_| allowance.spend());
        assert!(!allowance.may_send(NOW));
    }
}
