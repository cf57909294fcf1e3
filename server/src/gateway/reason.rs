//! Why a packet is refused or a connection ends: closed sets, each with its MQTT code and metric label.
//!
//! Every other gateway module speaks in these; `metrics` counts them, `encode` writes their codes.

use crate::usage::Refused;

/// Why a PUBLISH, SUBSCRIBE or will is refused. The connection lives on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// A wire version newer than ours: the sender keeps the message.
    UnknownVersion,
    /// The log cannot take it now for another reason than room: the sender keeps the message.
    LogFailed,
    /// A topic that is not this identity's to use.
    ForeignTopic,
    /// A topic that does not parse.
    BadTopic,
    /// Over the rate limit: the sender keeps the message.
    Rate,
    /// An envelope that does not decode, or does not fit its topic.
    BadPayload,
    /// RETAIN from an MQTT 3.1.1 client; an MQTT 5 client is disconnected for it.
    Retain,
    /// Over one of the tenant's quotas: the sender keeps the message.
    Quota(Refused),
}

impl Refusal {
    /// Every refusal, in the order of its number.
    pub(crate) const ALL: [Self; 12] = [
        Self::UnknownVersion,
        Self::LogFailed,
        Self::ForeignTopic,
        Self::BadTopic,
        Self::Rate,
        Self::BadPayload,
        Self::Retain,
        Self::Quota(Refused::MessagesPerS),
        Self::Quota(Refused::MessagesPerDay),
        Self::Quota(Refused::BytesPerDay),
        Self::Quota(Refused::InferenceMsPerDay),
        Self::Quota(Refused::StorageBytes),
    ];

    /// The MQTT 5 reason code; also the reason in a rejected record.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::LogFailed => 0x80,
            Self::UnknownVersion => 0x83,
            Self::ForeignTopic => 0x87,
            Self::BadTopic => 0x90,
            Self::Rate | Self::Quota(_) => 0x97,
            Self::BadPayload => 0x99,
            Self::Retain => 0x9A,
        }
    }

    /// Whether sending the same message again can never succeed.
    pub(crate) fn is_permanent(self) -> bool {
        matches!(self, Self::ForeignTopic | Self::BadTopic | Self::BadPayload | Self::Retain)
    }

    /// The metric label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::UnknownVersion => "unknown_version",
            Self::LogFailed => "log_failed",
            Self::ForeignTopic => "foreign_topic",
            Self::BadTopic => "bad_topic",
            Self::Rate => "rate",
            Self::BadPayload => "bad_payload",
            Self::Retain => "retain",
            Self::Quota(Refused::MessagesPerS) => "quota_messages_per_s",
            Self::Quota(Refused::MessagesPerDay) => "quota_messages_per_day",
            Self::Quota(Refused::BytesPerDay) => "quota_bytes_per_day",
            Self::Quota(Refused::InferenceMsPerDay) => "quota_inference_ms_per_day",
            Self::Quota(Refused::StorageBytes) => "quota_storage_bytes",
            Self::Quota(_) => "quota",
        }
    }

    /// What the tenant's meter counts it as.
    pub(crate) fn metered(self) -> Refused {
        match self {
            Self::UnknownVersion => Refused::UnknownVersion,
            Self::LogFailed => Refused::LogFailed,
            Self::ForeignTopic => Refused::ForeignTopic,
            Self::BadTopic => Refused::BadTopic,
            Self::Rate => Refused::DeviceRate,
            Self::BadPayload => Refused::BadPayload,
            Self::Retain => Refused::Retain,
            Self::Quota(quota) => quota,
        }
    }
}

macro_rules! closes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $code:expr, $label:literal;)*) => {
        /// Why a connection ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub(crate) enum CloseReason { $($(#[$doc])* $name = $number,)* }

        impl CloseReason {
            /// Every reason.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The metric label.
            pub(crate) fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// The reason of a number; numbers only cross threads.
            pub(crate) fn from_number(number: u8) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| *reason as u8 == number)
            }

            /// The reason code of the DISCONNECT that an MQTT 5 client gets; none where it closed first.
            pub(crate) fn code(self) -> Option<u8> {
                match self { $(Self::$name => $code,)* }
            }
        }
    };
}

closes! {
    /// The client sent DISCONNECT.
    Goodbye = 1, None, "goodbye";
    /// The client sent DISCONNECT and asked for its will.
    GoodbyeWithWill = 2, None, "goodbye_with_will";
    /// The client closed or reset the connection without a DISCONNECT.
    Lost = 3, None, "lost";
    /// Nothing came for 1.5 keep-alives.
    KeepAlive = 4, Some(0x8D), "keep_alive";
    /// The same identity connected again.
    TakenOver = 5, Some(0x8E), "taken_over";
    /// The device was disabled or removed, or its credential was revoked.
    Disabled = 6, Some(0x98), "disabled";
    /// The server is stopping.
    ShuttingDown = 7, Some(0x8B), "shutting_down";
    /// Bytes that are not the protocol.
    Malformed = 8, Some(0x81), "malformed";
    /// A packet that a client must not send, or not now.
    ProtocolError = 9, Some(0x82), "protocol_error";
    /// A packet over the size limit.
    PacketTooLarge = 10, Some(0x95), "packet_too_large";
    /// More unacknowledged PUBLISHes than Receive Maximum.
    ReceiveMaximum = 11, Some(0x93), "receive_maximum";
    /// A topic alias, though none is allowed.
    TopicAlias = 12, Some(0x94), "topic_alias";
    /// A PUBLISH with QoS 2.
    QosTwo = 13, Some(0x9B), "qos_2";
    /// A PUBLISH with RETAIN.
    Retain = 14, Some(0x9A), "retain";
    /// A subscription identifier, though they are not supported.
    SubscriptionIdentifier = 15, Some(0xA1), "subscription_identifier";
    /// A subscriber that reads more slowly than its tenant's devices write.
    SubscriberTooSlow = 16, Some(0x97), "subscriber_too_slow";
    /// An MQTT 3.1.1 client's message was refused for now, which 3.1.1 cannot say in an acknowledgement.
    RefusedForNow = 17, Some(0x97), "refused_for_now";
    /// An MQTT 3.1.1 integration client published.
    NotAuthorized = 18, Some(0x87), "not_authorized";
    /// A fault of the server.
    ServerFault = 19, Some(0x80), "server_fault";
    /// The certificate or API token that it connected with is past its time.
    Expired = 20, Some(0x87), "expired";
}

impl CloseReason {
    /// Whether the client's will stays unsent: only a plain DISCONNECT withdraws it.
    pub(crate) fn withdraws_will(self) -> bool {
        self == Self::Goodbye
    }

    /// The MQTT 5 reason code that its `Disconnected` record carries.
    pub(crate) fn record_code(self) -> u8 {
        match self {
            Self::Goodbye => 0x00,
            Self::GoodbyeWithWill => 0x04,
            _ => self.code().unwrap_or(0x80),
        }
    }
}

/// Why a CONNECT is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ConnectRefusal {
    /// A protocol name or level other than 3.1.1 and 5.
    Version,
    /// An empty client id without clean session (3.1.1).
    ClientId,
    /// Enhanced authentication was asked for.
    AuthenticationMethod,
    /// Neither certificate nor login.
    NoCredentials,
    /// An unknown name, or a wrong or expired token.
    BadLogin,
    /// A certificate without our name in it, revoked, or past its time.
    BadCertificate,
    /// The identity is known, but disabled or removed.
    Disabled,
    /// The log has no room.
    LogFull,
    /// As many connections as allowed.
    TooMany,
    /// As many connections as the tenant's quota allows.
    Quota,
    /// The second takeover of one identity within the limit.
    TakeoverRate,
    /// The will's topic is not the identity's own.
    WillTopic,
    /// The will asks for QoS 2.
    WillQos,
    /// The will asks to be retained.
    WillRetain,
    /// The server is stopping or its log failed.
    Unavailable,
}

impl ConnectRefusal {
    /// Every refusal.
    pub(crate) const ALL: [Self; 15] = [
        Self::Version,
        Self::ClientId,
        Self::AuthenticationMethod,
        Self::NoCredentials,
        Self::BadLogin,
        Self::BadCertificate,
        Self::Disabled,
        Self::LogFull,
        Self::TooMany,
        Self::Quota,
        Self::TakeoverRate,
        Self::WillTopic,
        Self::WillQos,
        Self::WillRetain,
        Self::Unavailable,
    ];

    /// The CONNACK reason code of MQTT 5.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Version => 0x84,
            Self::ClientId => 0x85,
            Self::BadLogin => 0x86,
            Self::NoCredentials | Self::BadCertificate | Self::Disabled | Self::WillTopic => 0x87,
            Self::Unavailable => 0x88,
            Self::LogFull | Self::TooMany => 0x89,
            Self::Quota => 0x97,
            Self::AuthenticationMethod => 0x8C,
            Self::WillRetain => 0x9A,
            Self::WillQos => 0x9B,
            Self::TakeoverRate => 0x9F,
        }
    }

    /// The CONNACK return code of MQTT 3.1.1.
    pub(crate) fn code_v3(self) -> u8 {
        match self {
            Self::Version => 1,
            Self::ClientId => 2,
            Self::LogFull | Self::TooMany | Self::Quota | Self::TakeoverRate | Self::Unavailable => 3,
            Self::BadLogin => 4,
            Self::AuthenticationMethod
            | Self::NoCredentials
            | Self::BadCertificate
            | Self::Disabled
            | Self::WillTopic
            | Self::WillQos
            | Self::WillRetain => 5,
        }
    }

    /// The metric label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::ClientId => "client_id",
            Self::AuthenticationMethod => "authentication_method",
            Self::NoCredentials => "no_credentials",
            Self::BadLogin => "bad_login",
            Self::BadCertificate => "bad_certificate",
            Self::Disabled => "disabled",
            Self::LogFull => "log_full",
            Self::TooMany => "too_many",
            Self::Quota => "quota",
            Self::TakeoverRate => "takeover_rate",
            Self::WillTopic => "will_topic",
            Self::WillQos => "will_qos",
            Self::WillRetain => "will_retain",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Why a socket ended before its CONNECT was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum EarlyEnd {
    /// The client closed.
    Lost,
    /// No CONNECT came in time.
    ConnectTimeout,
    /// The TLS handshake did not end in time.
    HandshakeTimeout,
    /// The client's certificate is past its time.
    CertificateExpired,
    /// The client's certificate is not signed by our authority.
    CertificateUntrusted,
    /// Another fault in the handshake.
    Handshake,
    /// The first packet is not a CONNECT, or one that does not parse.
    NotConnect,
    /// A CONNECT over its size limit.
    ConnectTooLarge,
    /// Closed to make place: too many sockets before their CONNECT.
    Evicted,
}

impl EarlyEnd {
    /// Every end.
    pub(crate) const ALL: [Self; 9] = [
        Self::Lost,
        Self::ConnectTimeout,
        Self::HandshakeTimeout,
        Self::CertificateExpired,
        Self::CertificateUntrusted,
        Self::Handshake,
        Self::NotConnect,
        Self::ConnectTooLarge,
        Self::Evicted,
    ];

    /// The metric label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::ConnectTimeout => "connect_timeout",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateUntrusted => "certificate_untrusted",
            Self::Handshake => "handshake",
            Self::NotConnect => "not_connect",
            Self::ConnectTooLarge => "connect_too_large",
            Self::Evicted => "evicted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn labels_and_numbers_are_distinct() {
        let refusals: HashSet<_> = Refusal::ALL.iter().map(|each| each.label()).collect();
        assert_eq!(refusals.len(), Refusal::ALL.len());
        let connects: HashSet<_> = ConnectRefusal::ALL.iter().map(|each| each.label()).collect();
        assert_eq!(connects.len(), ConnectRefusal::ALL.len());
        let early: HashSet<_> = EarlyEnd::ALL.iter().map(|each| each.label()).collect();
        assert_eq!(early.len(), EarlyEnd::ALL.len());
        let closes: HashSet<_> = CloseReason::ALL.iter().map(|each| each.label()).collect();
        assert_eq!(closes.len(), CloseReason::ALL.len());
        for reason in CloseReason::ALL {
            assert_eq!(CloseReason::from_number(*reason as u8), Some(*reason));
        }
    }

    #[test]
    fn what_a_sender_keeps_and_what_it_drops_follows_the_promise() {
        for refusal in Refusal::ALL {
            let drops = [0x87, 0x90, 0x99, 0x9A].contains(&refusal.code());
            assert_eq!(refusal.is_permanent(), drops, "{refusal:?}");
            assert!(drops || [0x80, 0x83, 0x97].contains(&refusal.code()), "{refusal:?}");
        }
    }
}
