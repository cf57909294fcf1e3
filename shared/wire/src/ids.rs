//! Identifiers that stand in topics, certificates and rows. Parsed once at the edge, trusted inside.

use std::fmt;

/// Why a text is not an identifier.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{noun} {text:?} is not valid: expected {expected}")]
pub struct IdError {
    noun: &'static str,
    text: String,
    expected: &'static str,
}

fn check(
    noun: &'static str,
    text: &str,
    max: usize,
    expected: &'static str,
    extra: &[u8],
) -> Result<(), IdError> {
    let first_ok = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    let rest_ok = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || extra.contains(&b));
    if first_ok && rest_ok && text.len() <= max {
        return Ok(());
    }
    let mut shown = text.to_owned();
    shown.truncate(text.char_indices().take(80).last().map_or(0, |(at, c)| at + c.len_utf8()));
    Err(IdError { noun, text: shown, expected })
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $noun:literal, $max:literal, $expected:literal, $extra:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Box<str>);

        impl $name {
            /// The longest accepted text, in bytes.
            pub const BYTES_MAX: usize = $max;

            /// Parses the identifier.
            ///
            /// # Errors
            /// Names the text and what was expected.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                Self::check(text)?;
                Ok(Self(text.into()))
            }

            /// Checks a text without keeping it.
            ///
            /// # Errors
            /// As [`Self::parse`].
            pub fn check(text: &str) -> Result<(), IdError> {
                check($noun, text, $max, $expected, $extra)
            }

            /// The identifier's text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id!(
    /// A tenant: 1 to 36 of `a-z 0-9 -`, starting with a letter or digit.
    TenantId, "tenant id", 36, "1 to 36 of a-z, 0-9 and '-', starting with a letter or digit", b"-"
);
text_id!(
    /// A device within its tenant: 1 to 64 of `A-Z a-z 0-9 . _ -`, starting with a letter or digit.
    DeviceId, "device id", 64, "1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', starting with a letter or digit",
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZ._-"
);

/// One opening of an agent's journal for writing: 64 random bits, shown as 16 hex digits.
///
/// Zero stands for "no queue" (a foreign device, or a message that is not a queue record).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, minicbor::Encode, minicbor::Decode,
)]
#[cbor(transparent)]
pub struct QueueId(#[n(0)] pub u64);

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl serde::Serialize for QueueId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for QueueId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16)
            .map(Self)
            .map_err(|_| serde::de::Error::custom("queue id: expected 16 hex digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_refuse_what_a_topic_cannot_carry() {
        for bad in ["", "a/b", "+", "#", "é", "-a", "a b", "A", &"x".repeat(37)] {
            assert!(TenantId::parse(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "a/b", "+", "é", ".a", "a b", &"x".repeat(65)] {
            assert!(DeviceId::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(TenantId::parse("acme-1").unwrap().as_str(), "acme-1");
        assert_eq!(DeviceId::parse("Cam_1.left").unwrap().as_str(), "Cam_1.left");
    }

    #[test]
    fn a_long_bad_id_is_shortened_in_its_error() {
        let error = TenantId::parse(&"é".repeat(1000)).unwrap_err().to_string();
        assert!(error.len() < 300, "{error}");
    }
}
