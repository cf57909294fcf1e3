//! The one type that formats and parses topics: `muster/{tenant}/{device}/{up|dn}/{class}`.

use crate::{DeviceId, IdError, TenantId};
use std::fmt;

/// What a device sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpClass {
    /// Readings.
    Telemetry,
    /// Inference results.
    Event,
    /// Twin as reported, and the queue's marks.
    State,
    /// Answers to commands.
    Result,
    /// Progress of an update.
    Ota,
    /// Log lines.
    Log,
    /// Sent once after each connect.
    Birth,
    /// The will.
    Death,
    /// RFC 8428 packs of foreign devices.
    Senml,
    /// A request for credit, for the gateway itself: never a record of the log.
    Credit,
}

/// What the server sends to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DownClass {
    /// Desired state.
    Twin,
    /// Commands.
    Command,
    /// Update targets.
    Ota,
    /// Flow control.
    Credit,
}

impl UpClass {
    /// Every class, in the order of its number.
    pub const ALL: [Self; 10] = [
        Self::Telemetry,
        Self::Event,
        Self::State,
        Self::Result,
        Self::Ota,
        Self::Log,
        Self::Birth,
        Self::Death,
        Self::Senml,
        Self::Credit,
    ];

    /// The topic's last level.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Telemetry => "telemetry",
            Self::Event => "event",
            Self::State => "state",
            Self::Result => "result",
            Self::Ota => "ota",
            Self::Log => "log",
            Self::Birth => "birth",
            Self::Death => "death",
            Self::Senml => "senml",
            Self::Credit => "credit",
        }
    }

    /// The number that stands in envelopes and log records; never reused.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Telemetry => 1,
            Self::Event => 2,
            Self::State => 3,
            Self::Result => 4,
            Self::Ota => 5,
            Self::Log => 6,
            Self::Birth => 7,
            Self::Death => 8,
            Self::Senml => 9,
            Self::Credit => 10,
        }
    }

    /// The class of a number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.number() == number)
    }
}

impl DownClass {
    /// Every class.
    pub const ALL: [Self; 4] = [Self::Twin, Self::Command, Self::Ota, Self::Credit];

    /// The topic's last level.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Twin => "twin",
            Self::Command => "command",
            Self::Ota => "ota",
            Self::Credit => "credit",
        }
    }
}

/// Direction and class: the last two levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Leg {
    /// From the device.
    Up(UpClass),
    /// To the device.
    Down(DownClass),
}

/// A parsed topic that borrows its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Topic<'a> {
    tenant: &'a str,
    device: &'a str,
    leg: Leg,
}

/// Why a text is not a topic of ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TopicError {
    /// Another number of levels, or another first level.
    #[error("topic is not muster/{{tenant}}/{{device}}/{{up|dn}}/{{class}}")]
    Shape,
    /// A bad tenant or device level.
    #[error("topic level")]
    Id(#[from] IdError),
    /// An unknown direction or class.
    #[error("topic class is not known")]
    Class,
}

impl<'a> Topic<'a> {
    /// The longest topic that formats, in bytes.
    pub const BYTES_MAX: usize = 7 + TenantId::BYTES_MAX + 1 + DeviceId::BYTES_MAX + 1 + 2 + 1 + 9;

    /// The topic that a device publishes `class` on.
    #[must_use]
    pub fn up(tenant: &'a TenantId, device: &'a DeviceId, class: UpClass) -> Self {
        Self { tenant: tenant.as_str(), device: device.as_str(), leg: Leg::Up(class) }
    }

    /// The topic that a device receives `class` on.
    #[must_use]
    pub fn down(tenant: &'a TenantId, device: &'a DeviceId, class: DownClass) -> Self {
        Self { tenant: tenant.as_str(), device: device.as_str(), leg: Leg::Down(class) }
    }

    /// Parses a topic name. Wildcards and foreign prefixes are refused; nothing is allocated.
    ///
    /// # Errors
    /// Says which part is off.
    pub fn parse(text: &'a str) -> Result<Self, TopicError> {
        let mut levels = text.split('/');
        let mut next = || levels.next().ok_or(TopicError::Shape);
        let (root, tenant, device, way, class) = (next()?, next()?, next()?, next()?, next()?);
        if root != "muster" || levels.next().is_some() {
            return Err(TopicError::Shape);
        }
        TenantId::check(tenant)?;
        DeviceId::check(device)?;
        let leg = match way {
            "up" => UpClass::ALL.into_iter().find(|known| known.as_str() == class).map(Leg::Up),
            "dn" => DownClass::ALL.into_iter().find(|known| known.as_str() == class).map(Leg::Down),
            _ => None,
        };
        Ok(Self { tenant, device, leg: leg.ok_or(TopicError::Class)? })
    }

    /// The tenant level.
    #[must_use]
    pub fn tenant(&self) -> &'a str {
        self.tenant
    }

    /// The device level.
    #[must_use]
    pub fn device(&self) -> &'a str {
        self.device
    }

    /// Direction and class.
    #[must_use]
    pub fn leg(&self) -> Leg {
        self.leg
    }
}

impl fmt::Display for Topic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (way, class) = match self.leg {
            Leg::Up(class) => ("up", class.as_str()),
            Leg::Down(class) => ("dn", class.as_str()),
        };
        write!(f, "muster/{}/{}/{way}/{class}", self.tenant, self.device)
    }
}
