//! What waits in one device, and in which order it leaves: live before what is sent again, before the backlog.
//!
//! Called by `engine`. A device that speaks flow control (it heard of credit on this connection) spends one credit
//! for each record that is not live. An *ordered* device keeps the order of its making instead, as one that opens
//! and clears alerts must. Bound: [`WAITING_MAX`] messages a device.

use crate::record::{Due, InFlight};
use std::collections::VecDeque;

/// Messages that wait for a device's connection, window or credit.
pub(crate) const WAITING_MAX: usize = 4_096;

/// What leaves next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Next {
    /// A message that has no number yet.
    New { due: Due, is_backlog: bool },
    /// One that was sent before.
    Again(InFlight),
}

/// The lanes of one device.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    live: VecDeque<Due>,
    again: VecDeque<InFlight>,
    backlog: VecDeque<Due>,
    /// Credit that is left; none: the server asked for no flow control on this connection.
    credit: Option<u32>,
    /// Nobody has said yet whether there is flow control: nothing but live leaves.
    is_unsure: bool,
    /// The first of its making leaves first, whatever it waited for.
    pub(crate) is_ordered: bool,
}

impl Lanes {
    /// Messages that wait.
    pub(crate) fn len(&self) -> usize {
        self.live.len() + self.backlog_len()
    }

    /// Those of them that need credit.
    pub(crate) fn backlog_len(&self) -> usize {
        self.again.len() + self.backlog.len()
    }

    /// Takes a message; false where the device holds as many as it may.
    pub(crate) fn push(&mut self, due: Due, is_online: bool) -> bool {
        if self.len() >= WAITING_MAX {
            return false;
        }
        if is_online || self.is_ordered {
            self.live.push_back(due);
        } else {
            self.backlog.push_back(due);
        }
        true
    }

    /// Takes a message as one that waited already; false where the device holds as many as it may.
    pub(crate) fn push_backlog(&mut self, due: Due) -> bool {
        let room = self.len() < WAITING_MAX;
        if room {
            self.backlog.push_back(due);
        }
        room
    }

    /// Keeps a message that the server refused for now.
    pub(crate) fn keep(&mut self, message: InFlight) {
        self.again.push_back(message);
    }

    /// The connection is gone: what was in flight is sent again, what was live is backlog.
    pub(crate) fn disconnected(&mut self, in_flight: &mut VecDeque<InFlight>) {
        for message in std::mem::take(in_flight).into_iter().rev() {
            if message.seq != 0 {
                self.again.push_front(message);
            }
        }
        if !self.is_ordered {
            self.backlog.append(&mut self.live);
        }
        self.credit = None;
        self.is_unsure = false;
    }

    /// A connection begins: the backlog waits until the server's word, or until [`Self::nobody_spoke`].
    pub(crate) fn connected(&mut self) {
        (self.credit, self.is_unsure) = (Some(0), true);
    }

    /// No word of flow control came: the server has none.
    pub(crate) fn nobody_spoke(&mut self) {
        if self.is_unsure {
            (self.credit, self.is_unsure) = (None, false);
        }
    }

    /// The server granted credit, or announced that it will.
    pub(crate) fn granted(&mut self, records: u32) {
        self.is_unsure = false;
        self.credit = Some(self.credit.unwrap_or(0).saturating_add(records));
    }

    /// Whether more credit should be asked for: under control, and less is left than half of what waits.
    pub(crate) fn wants_credit(&self) -> bool {
        self.credit.is_some_and(|left| (left as usize) * 2 < self.backlog_len())
    }

    fn spend(&mut self) -> bool {
        match &mut self.credit {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    /// The message that leaves next, if one may.
    pub(crate) fn pop(&mut self) -> Option<Next> {
        if self.is_ordered {
            let again = self.again.pop_front().map(Next::Again);
            return again.or_else(|| self.live.pop_front().map(|due| Next::New { due, is_backlog: false }));
        }
        if let Some(due) = self.live.pop_front() {
            return Some(Next::New { due, is_backlog: false });
        }
        if self.backlog_len() == 0 || !self.spend() {
            return None;
        }
        let again =
            self.again.pop_front().map(|message| Next::Again(InFlight { is_backlog: true, ..message }));
        again.or_else(|| self.backlog.pop_front().map(|due| Next::New { due, is_backlog: true }))
    }

    /// Numbers of class telemetry that were given and wait to be sent again.
    pub(crate) fn again(&self) -> impl Iterator<Item = &InFlight> {
        self.again.iter()
    }

    /// Gives memory of a drained backlog back.
    pub(crate) fn shrink(&mut self) {
        for lane in [&mut self.live, &mut self.backlog] {
            if lane.is_empty() && lane.capacity() > 0 {
                *lane = VecDeque::new();
            }
        }
        if self.again.is_empty() && self.again.capacity() > 0 {
            self.again = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::What;

    fn due(intended_ns: u64) -> Due {
        Due { intended_ns, what: What::Telemetry }
    }

    fn sent(seq: u32) -> InFlight {
        InFlight { packet_id: 1, what: What::Telemetry, is_backlog: false, seq, intended_ns: 0, sent_ns: 0 }
    }

    /// The intended time of a new message, or 1,000 and the number of one that goes again.
    fn drain(lanes: &mut Lanes) -> Vec<u64> {
        let number = |next| match next {
            Next::New { due, .. } => due.intended_ns,
            Next::Again(message) => 1_000 + u64::from(message.seq),
        };
        std::iter::from_fn(|| lanes.pop().map(number)).collect()
    }

    #[test]
    fn live_leaves_before_what_is_sent_again_and_that_before_the_backlog() {
        let mut lanes = Lanes::default();
        lanes.push(due(1), false);
        lanes.disconnected(&mut VecDeque::from([sent(7), sent(8)]));
        lanes.push(due(2), true);
        assert_eq!((lanes.len(), lanes.backlog_len()), (4, 3));
        assert_eq!(drain(&mut lanes), [2, 1_007, 1_008, 1]);
        lanes.push(due(3), true);
        lanes.disconnected(&mut VecDeque::new());
        lanes.push(due(4), true);
        assert_eq!(drain(&mut lanes), [4, 3], "what was live before the connection broke is backlog");
    }

    #[test]
    fn an_ordered_device_keeps_the_order_of_making() {
        let mut lanes = Lanes { is_ordered: true, ..Lanes::default() };
        lanes.push(due(1), false);
        lanes.disconnected(&mut VecDeque::from([sent(7)]));
        lanes.granted(0);
        lanes.push(due(2), true);
        assert_eq!(drain(&mut lanes), [1_007, 1, 2]);
    }

    #[test]
    fn backlog_leaves_against_credit_only_and_live_without() {
        let mut lanes = Lanes::default();
        for at in 0..4 {
            lanes.push(due(at), false);
        }
        lanes.granted(0);
        assert!(lanes.wants_credit());
        lanes.push(due(9), true);
        assert_eq!(drain(&mut lanes), [9]);
        lanes.granted(3);
        assert!(!lanes.wants_credit());
        assert_eq!(drain(&mut lanes), [0, 1, 2]);
        assert!(lanes.wants_credit());
        lanes.disconnected(&mut VecDeque::new());
        assert_eq!(drain(&mut lanes), [3], "a connection without flow control drains freely");
        assert!(!lanes.wants_credit());
    }

    #[test]
    fn a_backlog_waits_for_the_servers_word_and_not_for_ever() {
        let mut lanes = Lanes::default();
        lanes.push(due(1), false);
        lanes.connected();
        lanes.push(due(2), true);
        assert_eq!(drain(&mut lanes), [2]);
        lanes.nobody_spoke();
        assert_eq!(drain(&mut lanes), [1]);
        lanes.push(due(3), false);
        lanes.connected();
        lanes.granted(0);
        lanes.nobody_spoke();
        assert_eq!(drain(&mut lanes), [0_u64; 0], "the server spoke");
    }

    #[test]
    fn reports_are_not_sent_again() {
        let mut lanes = Lanes::default();
        lanes.disconnected(&mut VecDeque::from([sent(0), sent(3)]));
        assert_eq!(drain(&mut lanes), [1_003]);
    }

    #[test]
    fn a_device_holds_a_bounded_number_of_messages() {
        let mut lanes = Lanes::default();
        for at in 0..WAITING_MAX as u64 {
            assert!(lanes.push(due(at), at % 2 == 0));
        }
        assert!(!lanes.push(due(0), true) && !lanes.push(due(0), false) && !lanes.push_backlog(due(0)));
        assert_eq!(lanes.len(), WAITING_MAX);
        drain(&mut lanes);
        lanes.shrink();
        assert!(lanes.push_backlog(due(0)));
    }
}
