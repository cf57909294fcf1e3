//! The envelope around every native message: what the gateway reads; the body stays sealed bytes.
//!
//! `[version, class, queue_id, seq, measured_at, body]`, a CBOR array of six. `seq` counts from 1 per
//! class within a queue; 0 marks a message that is no queue record (birth, state, death).

use crate::{DeviceId, QueueId, TenantId, UpClass};
use minicbor::{Decoder, Encoder};

/// The version that this build writes.
pub const WIRE_VERSION: u8 = 1;

/// The largest envelope with its body, in bytes.
pub const ENVELOPE_BYTES_MAX: usize = 256 * 1024;

/// The largest sequence number: stores hold it in 63 bits.
pub const SEQ_MAX: u64 = i64::MAX as u64;

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// More bytes than the type allows.
    #[error("{what} has {bytes} bytes, more than {max}")]
    TooLarge {
        /// The message family.
        what: &'static str,
        /// The bytes given.
        bytes: usize,
        /// The bytes allowed.
        max: usize,
    },
    /// A version this build does not know. A newer sender: keep the message, do not drop it.
    #[error("wire version {0} is not known, newest is {WIRE_VERSION}")]
    Version(u8),
    /// Not CBOR of the expected shape.
    #[error("{what} is malformed: {why}")]
    Malformed {
        /// The message family.
        what: &'static str,
        /// The decoder's reason.
        why: String,
    },
    /// Decoded, but against a rule of the type.
    #[error("{what}: {field} {rule}")]
    Rule {
        /// The message family.
        what: &'static str,
        /// The field at fault.
        field: String,
        /// What was expected.
        rule: &'static str,
    },
}

pub(crate) fn malformed(what: &'static str, error: &minicbor::decode::Error) -> WireError {
    WireError::Malformed { what, why: error.to_string() }
}

/// A message's frame with its sealed body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Must equal the topic's class.
    pub class: UpClass,
    /// The journal opening that the record belongs to; zero with `seq` zero.
    pub queue_id: QueueId,
    /// Position within (queue, class), from 1; 0 where the message is no queue record.
    pub seq: u64,
    /// The device's clock, microseconds since 1970 (UTC).
    pub measured_at_us: i64,
    /// The CBOR of the class's message type.
    pub body: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Decodes the frame; the body is not looked at.
    ///
    /// # Errors
    /// Too large, an unknown version, or malformed.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, WireError> {
        const WHAT: &str = "envelope";
        if bytes.len() > ENVELOPE_BYTES_MAX {
            return Err(WireError::TooLarge { what: WHAT, bytes: bytes.len(), max: ENVELOPE_BYTES_MAX });
        }
        let bad = |error: minicbor::decode::Error| malformed(WHAT, &error);
        let shape = |why: &str| WireError::Malformed { what: WHAT, why: why.to_owned() };
        let mut d = Decoder::new(bytes);
        let fields = d.array().map_err(bad)?;
        let version = d.u8().map_err(bad)?;
        if version != WIRE_VERSION {
            return Err(WireError::Version(version));
        }
        if fields != Some(6) {
            return Err(shape("expected an array of 6"));
        }
        let class = UpClass::from_number(d.u8().map_err(bad)?).ok_or_else(|| shape("class is not known"))?;
        let queue_id = QueueId(d.u64().map_err(bad)?);
        let seq = d.u64().map_err(bad)?;
        if (seq == 0) != (queue_id.0 == 0) || seq > SEQ_MAX {
            return Err(shape("queue_id and seq must both be 0, or seq in 1..=SEQ_MAX"));
        }
        let measured_at_us = d.i64().map_err(bad)?;
        let body = d.bytes().map_err(bad)?;
        if d.position() != bytes.len() {
            return Err(shape("bytes after the message"));
        }
        Ok(Self { class, queue_id, seq, measured_at_us, body })
    }

    /// Encodes the frame around the body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new(Vec::with_capacity(self.body.len() + 36));
        let written = e
            .array(6)
            .and_then(|e| e.u8(WIRE_VERSION))
            .and_then(|e| e.u8(self.class.number()))
            .and_then(|e| e.u64(self.queue_id.0))
            .and_then(|e| e.u64(self.seq))
            .and_then(|e| e.i64(self.measured_at_us))
            .and_then(|e| e.bytes(self.body));
        written.expect("writing to a Vec cannot fail");
        e.into_writer()
    }
}

/// The bytes that a full topic and the largest envelope may take in one MQTT PUBLISH.
pub const PUBLISH_BYTES_MAX: usize = ENVELOPE_BYTES_MAX + 6 + TenantId::BYTES_MAX + DeviceId::BYTES_MAX + 64;
