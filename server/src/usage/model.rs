//! Quotas, days and counts as values: nothing here knows a database, a clock or a connection.

pub use super::calendar::{
    DAY_US, day_of, day_text, month_after, month_start, month_text, parse_day, parse_month,
};

use crate::platform::config::{LimitSection, QuotaRateSection, QuotaSection};
use serde::{Deserialize, Serialize};

/// Days that meters are kept.
pub const RETENTION_DAYS: i64 = 400;
/// Bytes that a stored reading is taken to need, its part of indexes and ledger included: as measured
/// (docs/guide/capacity.md).
pub const READING_BYTES: u64 = 45;
/// Bytes that a stored event is taken to need beside its body.
pub const EVENT_BYTES: u64 = 120;

macro_rules! closed {
    ($(#[$top:meta])* $type:ident { $($(#[$doc:meta])* $name:ident = $text:tt;)* }) => {
        $(#[$top])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        pub enum $type { $($(#[$doc])* #[serde(rename = $text)] $name,)* }

        impl $type {
            /// All of them, in the order of their number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable text.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The one of a stored text.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|each| each.as_str() == text)
            }
        }
    };
}

closed! {
    /// What a tenant has a quota of.
    Quota {
        /// Messages a second of all its devices.
        MessagesPerS = "messages_per_s";
        /// Messages of a day (UTC).
        MessagesPerDay = "messages_per_day";
        /// Bytes of their bodies of a day (UTC).
        BytesPerDay = "bytes_per_day";
        /// Milliseconds that its devices' models ran on a day (UTC).
        InferenceMsPerDay = "inference_ms_per_day";
        /// Bytes of its telemetry in the store, by estimate.
        StorageBytes = "storage_bytes";
        /// Registered devices.
        Devices = "devices";
        /// Open MQTT connections.
        Connections = "connections";
    }
}

closed! {
    /// Why the gateway refused something of a tenant.
    Refused {
        /// A wire version newer than the server's.
        UnknownVersion = "unknown_version";
        /// The event log failed.
        LogFailed = "log_failed";
        /// A topic that is not the device's.
        ForeignTopic = "foreign_topic";
        /// A topic that does not parse.
        BadTopic = "bad_topic";
        /// The device's own rate.
        DeviceRate = "device_rate";
        /// A body that does not decode.
        BadPayload = "bad_payload";
        /// RETAIN.
        Retain = "retain";
        /// The quota of messages a second.
        MessagesPerS = "messages_per_s";
        /// The quota of messages a day.
        MessagesPerDay = "messages_per_day";
        /// The quota of bytes a day.
        BytesPerDay = "bytes_per_day";
        /// The quota of inference a day.
        InferenceMsPerDay = "inference_ms_per_day";
        /// The quota of storage.
        StorageBytes = "storage_bytes";
        /// The quota of connections: CONNECTs, not messages.
        Connections = "connections";
    }
}

closed! {
    /// How far a tenant has come with a quota.
    Level {
        /// The soft limit is reached: the tenant is warned.
        Soft = "soft";
        /// The hard limit is reached: more is refused.
        Hard = "hard";
    }
}

impl Quota {
    /// What is refused beyond its hard limit; devices are the API's to refuse.
    #[must_use]
    pub fn refusal(self) -> Option<Refused> {
        match self {
            Self::MessagesPerS => Some(Refused::MessagesPerS),
            Self::MessagesPerDay => Some(Refused::MessagesPerDay),
            Self::BytesPerDay => Some(Refused::BytesPerDay),
            Self::InferenceMsPerDay => Some(Refused::InferenceMsPerDay),
            Self::StorageBytes => Some(Refused::StorageBytes),
            Self::Connections => Some(Refused::Connections),
            Self::Devices => None,
        }
    }
}

impl Refused {
    /// What a refused record of the log was refused for.
    #[must_use]
    pub fn of_code(code: u8) -> Self {
        match code {
            0x87 => Self::ForeignTopic,
            0x90 => Self::BadTopic,
            0x9A => Self::Retain,
            _ => Self::BadPayload,
        }
    }
}

/// A tenant's quotas of its own; what is absent is as the server's configuration says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QuotaSpec {
    /// Messages a second of all the tenant's devices, with a burst.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_per_s: Option<QuotaRateSection>,
    /// Messages between two midnights (UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_per_day: Option<LimitSection>,
    /// Bytes of their bodies between two midnights (UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_day: Option<LimitSection>,
    /// Milliseconds that its devices' models ran between two midnights (UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inference_ms_per_day: Option<LimitSection>,
    /// Bytes of its telemetry in the store, by estimate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_bytes: Option<LimitSection>,
    /// Registered devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub devices: Option<LimitSection>,
    /// Open MQTT connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<LimitSection>,
}

impl QuotaSpec {
    /// The first field that cannot be, and why.
    #[must_use]
    pub fn fault(&self) -> Option<(&'static str, String)> {
        if let Some(why) = self.messages_per_s.and_then(|rate| rate.fault()) {
            return Some((Quota::MessagesPerS.as_str(), why));
        }
        Quota::ALL.iter().find_map(|quota| Some((quota.as_str(), self.limit(*quota)?.fault()?)))
    }

    /// The limits that it gives for a quota.
    #[must_use]
    pub fn limit(&self, quota: Quota) -> Option<LimitSection> {
        match quota {
            Quota::MessagesPerS => self.messages_per_s.map(limit_of),
            Quota::MessagesPerDay => self.messages_per_day,
            Quota::BytesPerDay => self.bytes_per_day,
            Quota::InferenceMsPerDay => self.inference_ms_per_day,
            Quota::StorageBytes => self.storage_bytes,
            Quota::Devices => self.devices,
            Quota::Connections => self.connections,
        }
    }
}

fn limit_of(rate: QuotaRateSection) -> LimitSection {
    LimitSection { soft: rate.soft, hard: rate.hard }
}

/// Every quota of a tenant, as it is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quotas {
    limits: [LimitSection; 7],
    /// Messages at once.
    pub burst: u64,
}

impl Quotas {
    /// The limits of one quota.
    #[must_use]
    pub fn limit(&self, quota: Quota) -> LimitSection {
        self.limits[quota as usize]
    }

    /// As the configuration says.
    #[must_use]
    pub fn of_config(section: &QuotaSection) -> Self {
        let devices = LimitSection {
            soft: section.devices_soft.map(u64::from),
            hard: Some(section.devices_max.into()),
        };
        let limits = [
            limit_of(section.messages_per_s),
            section.messages_per_day,
            section.bytes_per_day,
            section.inference_ms_per_day,
            section.storage_bytes,
            devices,
            section.connections,
        ];
        Self { limits, burst: burst_of(section.messages_per_s) }
    }

    /// With a tenant's own in place of those that it has.
    #[must_use]
    pub fn with(mut self, spec: &QuotaSpec) -> Self {
        for quota in Quota::ALL {
            if let Some(limit) = spec.limit(*quota) {
                self.limits[*quota as usize] = limit;
            }
        }
        if let Some(rate) = spec.messages_per_s {
            self.burst = burst_of(rate);
        }
        self
    }
}

/// Messages at once, where a rate does not tell: those of ten seconds.
fn burst_of(rate: QuotaRateSection) -> u64 {
    rate.burst
        .unwrap_or_else(|| rate.hard.unwrap_or(0).saturating_mul(10))
        .min(crate::platform::config::QUOTA_BURST_MAX)
}

/// What a tenant used in a day, or more of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages that the log took.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Readings in them.
    pub readings: u64,
    /// Events among them.
    pub events: u64,
    /// Bytes of the events' bodies.
    pub event_bytes: u64,
    /// Time that models ran, as events tell.
    pub inference_us: u64,
    /// The most messages in one second.
    pub peak_per_s: u64,
    /// Messages refused, by [`Refused`].
    pub refused: [u64; 13],
}

impl Counts {
    /// Adds what was counted later.
    pub fn add(&mut self, more: &Self) {
        self.messages += more.messages;
        self.bytes += more.bytes;
        self.readings += more.readings;
        self.events += more.events;
        self.event_bytes += more.event_bytes;
        self.inference_us += more.inference_us;
        self.peak_per_s = self.peak_per_s.max(more.peak_per_s);
        self.refused.iter_mut().zip(more.refused).for_each(|(all, more)| *all += more);
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What of it lies in the store: an estimate that no other tenant changes.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.readings * READING_BYTES + self.event_bytes + self.events * EVENT_BYTES
    }
}

/// A stored day of a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DayRow {
    /// Whose.
    pub tenant: String,
    /// Days since 1970 (UTC).
    pub day: i64,
    /// What was used.
    pub counts: Counts,
    /// The most devices.
    pub devices: u64,
    /// The most bytes in the store, by estimate.
    pub storage_bytes: u64,
}

/// A limit that a tenant came to on a day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whose.
    pub tenant: String,
    /// Days since 1970 (UTC).
    pub day: i64,
    /// Of what.
    pub quota: Quota,
    /// Which limit.
    pub level: Level,
    /// Used when it was noticed.
    pub used: u64,
    /// The limit then.
    pub allowed: u64,
    /// When it was noticed.
    pub at_us: i64,
}

/// What a tenant uses now, for [`levels`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// By [`Quota`].
    pub by: [u64; 7],
    /// Messages refused since the last look, by [`Refused`].
    pub refused: [u64; 13],
}

/// Which limits are reached: quota, level, used and allowed.
pub fn levels(quotas: &Quotas, used: &Used) -> impl Iterator<Item = (Quota, Level, u64, u64)> {
    let (quotas, used) = (*quotas, *used);
    Quota::ALL.iter().flat_map(move |quota| {
        let (limit, now) = (quotas.limit(*quota), used.by[*quota as usize]);
        let refused = quota.refusal().is_some_and(|reason| used.refused[reason as usize] > 0);
        // A rate's peak may pass its hard limit by the burst; it is reached when something was refused.
        let by_use = *quota != Quota::MessagesPerS && limit.hard.is_some_and(|hard| now >= hard);
        let soft =
            limit.soft.filter(|soft| now >= *soft || refused).map(|soft| (*quota, Level::Soft, now, soft));
        let hard = limit.hard.filter(|_| refused || by_use).map(|hard| (*quota, Level::Hard, now, hard));
        soft.into_iter().chain(hard)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_own_quotas_replace_the_configurations() {
        let section = QuotaSection {
            messages_per_s: QuotaRateSection { hard: Some(5), ..QuotaRateSection::default() },
            bytes_per_day: LimitSection { soft: Some(1), hard: Some(2) },
            ..QuotaSection::default()
        };
        let defaults = Quotas::of_config(&section);
        assert_eq!((defaults.burst, defaults.limit(Quota::Devices).hard), (50, Some(100_000)));
        let own = QuotaSpec {
            messages_per_s: Some(QuotaRateSection { hard: Some(7), burst: Some(9), soft: None }),
            bytes_per_day: Some(LimitSection::default()),
            ..QuotaSpec::default()
        };
        let both = defaults.with(&own);
        assert_eq!((both.burst, both.limit(Quota::MessagesPerS).hard), (9, Some(7)));
        assert_eq!(both.limit(Quota::BytesPerDay), LimitSection::default(), "lifted");
        assert_eq!(both.limit(Quota::Devices), defaults.limit(Quota::Devices));
    }

    #[test]
    fn a_spec_says_what_cannot_be() {
        let limit = |soft, hard| QuotaSpec {
            storage_bytes: Some(LimitSection { soft, hard }),
            ..QuotaSpec::default()
        };
        assert_eq!(limit(Some(5), Some(5)).fault(), None);
        assert_eq!(limit(Some(6), Some(5)).fault().unwrap().0, "storage_bytes");
        let most = crate::platform::config::QUOTA_MAX;
        assert_eq!(limit(Some(most), None).fault(), None);
        assert!(limit(Some(most + 1), None).fault().unwrap().1.contains("must be 0 to"));
        let rate = |hard, burst| QuotaSpec {
            messages_per_s: Some(QuotaRateSection { soft: None, hard, burst }),
            ..QuotaSpec::default()
        };
        let (per_s, burst) =
            (crate::platform::config::QUOTA_PER_S_MAX, crate::platform::config::QUOTA_BURST_MAX);
        assert_eq!(rate(Some(per_s), Some(burst)).fault(), None);
        assert_eq!(rate(Some(per_s + 1), None).fault().unwrap().0, "messages_per_s");
        assert_eq!(rate(None, Some(burst + 1)).fault().unwrap().0, "messages_per_s");
    }

    #[test]
    fn levels_are_reached_by_use_and_by_refusal() {
        let spec = QuotaSpec {
            messages_per_s: Some(QuotaRateSection { soft: Some(5), hard: Some(10), burst: None }),
            messages_per_day: Some(LimitSection { soft: Some(80), hard: Some(100) }),
            ..QuotaSpec::default()
        };
        let quotas = Quotas::default().with(&spec);
        let reached = |peak, day, refused: u64| {
            let mut used = Used::default();
            used.by[Quota::MessagesPerS as usize] = peak;
            used.by[Quota::MessagesPerDay as usize] = day;
            used.refused[Refused::MessagesPerS as usize] = refused;
            levels(&quotas, &used).map(|(quota, level, ..)| (quota, level)).collect::<Vec<_>>()
        };
        assert_eq!(reached(4, 79, 0), []);
        assert_eq!(
            reached(5, 80, 0),
            [(Quota::MessagesPerS, Level::Soft), (Quota::MessagesPerDay, Level::Soft)]
        );
        assert_eq!(reached(11, 0, 0), [(Quota::MessagesPerS, Level::Soft)], "a burst is not refused");
        assert_eq!(
            reached(1, 0, 1),
            [(Quota::MessagesPerS, Level::Soft), (Quota::MessagesPerS, Level::Hard)]
        );
        assert_eq!(
            reached(0, 100, 0),
            [(Quota::MessagesPerDay, Level::Soft), (Quota::MessagesPerDay, Level::Hard)]
        );
    }

    #[test]
    fn texts_are_distinct_and_read_back() {
        for quota in Quota::ALL {
            assert_eq!(Quota::parse(quota.as_str()), Some(*quota));
        }
        for reason in Refused::ALL {
            assert_eq!(Refused::parse(reason.as_str()), Some(*reason));
        }
        assert_eq!(
            (Quota::ALL.len(), Refused::ALL.len()),
            (7, 13),
            "the arrays by number have these lengths"
        );
    }
}
