//! What a simulated device sends: readings, inference results, levels that open alerts, reports, and broken things.
//!
//! `engine` keeps these in each device's lanes; `payload` makes their bytes.

use muster_wire::UpClass;

/// One message's meaning. Two bytes: tens of thousands of them wait at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Five readings, the first a serial.
    Telemetry,
    /// An inference result with a serial as its subject.
    Event,
    /// A serial and a level: with an odd number it opens an alert, with the even one behind it ends it.
    Level,
    /// A record that was sent before, once more, as it was.
    Copy,
    /// The queue's marks, as an agent reports them.
    State,
    /// The request for credit.
    CreditRequest,
    /// Something that the server must refuse or set aside.
    Poison(Poison),
}

/// A broken message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Poison {
    /// No envelope at all: refused with 0x99.
    Garbage,
    /// A whole envelope with a body that is none: acknowledged, and listed as dropped (malformed).
    Body,
    /// Another device's topic: refused with 0x87.
    Topic,
    /// A version from the future: refused with 0x83.
    Version,
}

impl Poison {
    pub(crate) const ALL: [Self; 4] = [Self::Garbage, Self::Body, Self::Topic, Self::Version];

    /// The reason that the server must give (MQTT 5).
    pub(crate) fn reason(self) -> u8 {
        match self {
            Self::Garbage => 0x99,
            Self::Body => 0,
            Self::Topic => 0x87,
            Self::Version => 0x83,
        }
    }
}

/// Which opening of an alert a device's level is: the n-th, or none where it ends one.
pub(crate) fn excursion(seq: u32) -> Option<u32> {
    (seq % 2 == 1).then_some(seq.div_ceil(2))
}

impl What {
    /// The topic's class.
    pub(crate) fn class(self) -> UpClass {
        match self {
            Self::Event => UpClass::Event,
            Self::State => UpClass::State,
            Self::CreditRequest => UpClass::Credit,
            Self::Telemetry | Self::Level | Self::Copy | Self::Poison(_) => UpClass::Telemetry,
        }
    }

    /// Whether it takes a number of its class's queue.
    pub(crate) fn is_record(self) -> bool {
        matches!(self, Self::Telemetry | Self::Event | Self::Level | Self::Poison(Poison::Body))
    }

    /// Whether it must end up in the store, once.
    pub(crate) fn is_stored(self) -> bool {
        self.is_record() && !matches!(self, Self::Poison(_))
    }
}

/// A message that the schedule made and that has no number yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// When the schedule wanted it sent.
    pub(crate) intended_ns: u64,
    pub(crate) what: What,
}

/// A publish without its PUBACK, or one that waits to be sent again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    pub(crate) packet_id: u16,
    pub(crate) what: What,
    /// It waited for a connection, or goes out for a second time.
    pub(crate) is_backlog: bool,
    /// Its number in its class's queue; of a copy, the original's; 0 for what is no record.
    pub(crate) seq: u32,
    pub(crate) intended_ns: u64,
    /// When it was handed to the socket.
    pub(crate) sent_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_open_and_end_in_turn() {
        assert_eq!([1, 2, 3, 4, 5].map(excursion), [Some(1), None, Some(2), None, Some(3)]);
    }
}
