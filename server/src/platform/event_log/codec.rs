//! The bytes of a log record. Fixed head, little endian, then names and body.
//!
//! ```text
//! 0  version  u8 = 1      4  origin  u8: 0 direct, 1 queue     22  queue_id u64, seq u64 (only if origin is 1)
//! 1  kind     u8          5  qos     u8                         .   tenant: u8 length, bytes
//! 2  argument u8          6  received_at_us i64                 .   device: u8 length, bytes
//! 3  class    u8         14  measured_at_us i64                 .   body: the rest
//! ```
//! A number is never reused; golden bytes per version stand in `tests.rs`.

/// The version that this build writes.
pub const CODEC_VERSION: u8 = 1;
/// The largest record: an envelope's body and the names.
pub const RECORD_BYTES_MAX: usize = muster_wire::ENVELOPE_BYTES_MAX + 1024;

const HEAD_BYTES: usize = 22;

/// Why bytes are not a log record.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum CodecError {
    /// Written by a newer build.
    #[error("record version {0} is not known")]
    Version(u8),
    /// A kind that this build does not know.
    #[error("record kind {0} is not known")]
    Kind(u8),
    /// Cut short, or a field that cannot be.
    #[error("record is malformed at {0}")]
    Malformed(&'static str),
}

/// What a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A device's message: its body waits to be decoded.
    Message,
    /// Nothing happened for a second; carries time only.
    Tick,
    /// A message that was refused for good, with the MQTT reason. The body may be cut.
    Rejected {
        /// The MQTT 5 reason code, also where the client spoke 3.1.1.
        reason: u8,
    },
    /// A device's connection was accepted.
    Connected,
    /// A device's connection ended.
    Disconnected {
        /// The MQTT 5 reason code: 0 for a clean DISCONNECT.
        reason: u8,
    },
}

impl Kind {
    /// The number in the record; never reused.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Message => 1,
            Self::Tick => 2,
            Self::Rejected { .. } => 3,
            Self::Connected => 4,
            Self::Disconnected { .. } => 5,
        }
    }

    fn argument(self) -> u8 {
        match self {
            Self::Rejected { reason } | Self::Disconnected { reason } => reason,
            Self::Message | Self::Tick | Self::Connected => 0,
        }
    }

    fn from_numbers(number: u8, argument: u8) -> Result<Self, CodecError> {
        Ok(match number {
            1 => Self::Message,
            2 => Self::Tick,
            3 => Self::Rejected { reason: argument },
            4 => Self::Connected,
            5 => Self::Disconnected { reason: argument },
            unknown => return Err(CodecError::Kind(unknown)),
        })
    }
}

/// Where the message has its identity from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A record of an agent's queue: the key for de-duplication.
    Queue {
        /// The opening of the agent's journal, never 0.
        queue_id: u64,
        /// From 1.
        seq: u64,
    },
    /// No queue record: birth, state, death, and foreign devices. The log position is its key.
    Direct,
}

/// A record to append; the log adds `received_at_us` and the position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewRecord<'a> {
    /// What it tells.
    pub kind: Kind,
    /// Empty for a tick; at most 255 bytes.
    pub tenant: &'a str,
    /// Empty for a tick; at most 255 bytes.
    pub device: &'a str,
    /// [`muster_wire::UpClass::number`], 0 where there is none.
    pub class: u8,
    /// The QoS that the message came with.
    pub qos: u8,
    /// Its identity.
    pub origin: Origin,
    /// The device's clock; 0 where it told none (SenML, ticks).
    pub measured_at_us: i64,
    /// The envelope's body, still sealed; SenML: the whole payload.
    pub body: &'a [u8],
}

/// A record read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRecord<'a> {
    /// From 1, growing by 1.
    pub position: u64,
    /// The server's clock when it came in; never steps back within a log.
    pub received_at_us: i64,
    /// What it tells.
    pub kind: Kind,
    /// Empty for a tick.
    pub tenant: &'a str,
    /// Empty for a tick.
    pub device: &'a str,
    /// [`muster_wire::UpClass::number`], 0 where there is none.
    pub class: u8,
    /// The QoS that the message came with.
    pub qos: u8,
    /// Its identity.
    pub origin: Origin,
    /// The device's clock; 0 where it told none.
    pub measured_at_us: i64,
    /// The sealed body.
    pub body: &'a [u8],
}

impl NewRecord<'_> {
    /// A record that carries time only.
    #[must_use]
    pub fn tick() -> Self {
        Self {
            kind: Kind::Tick,
            tenant: "",
            device: "",
            class: 0,
            qos: 0,
            origin: Origin::Direct,
            measured_at_us: 0,
            body: &[],
        }
    }

    /// The bytes that [`Self::encode`] writes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let origin = if matches!(self.origin, Origin::Queue { .. }) { 16 } else { 0 };
        HEAD_BYTES + origin + 2 + self.tenant.len() + self.device.len() + self.body.len()
    }

    pub(super) fn encode(&self, received_at_us: i64, out: &mut Vec<u8>) {
        let origin = u8::from(matches!(self.origin, Origin::Queue { .. }));
        out.extend_from_slice(&[
            CODEC_VERSION,
            self.kind.number(),
            self.kind.argument(),
            self.class,
            origin,
            self.qos,
        ]);
        out.extend_from_slice(&received_at_us.to_le_bytes());
        out.extend_from_slice(&self.measured_at_us.to_le_bytes());
        if let Origin::Queue { queue_id, seq } = self.origin {
            out.extend_from_slice(&queue_id.to_le_bytes());
            out.extend_from_slice(&seq.to_le_bytes());
        }
        for name in [self.tenant, self.device] {
            let bytes = u8::try_from(name.len())
                .expect("tenant and device ids are at most 64 bytes, parsed at the edge");
            out.push(bytes);
            out.extend_from_slice(name.as_bytes());
        }
        out.extend_from_slice(self.body);
    }
}

impl<'a> LogRecord<'a> {
    /// Decodes a record; the body is not looked at.
    ///
    /// # Errors
    /// A newer version or kind, or damaged bytes (which the journal's checksum makes unlikely).
    pub fn decode(position: u64, bytes: &'a [u8]) -> Result<Self, CodecError> {
        let mut rest = bytes;
        let [version, kind, argument, class, origin, qos] = take(&mut rest, "head")?;
        if version != CODEC_VERSION {
            return Err(CodecError::Version(version));
        }
        let kind = Kind::from_numbers(kind, argument)?;
        let received_at_us = i64::from_le_bytes(take(&mut rest, "received_at")?);
        let measured_at_us = i64::from_le_bytes(take(&mut rest, "measured_at")?);
        let origin = match origin {
            0 => Origin::Direct,
            1 => Origin::Queue {
                queue_id: u64::from_le_bytes(take(&mut rest, "queue_id")?),
                seq: u64::from_le_bytes(take(&mut rest, "seq")?),
            },
            _ => return Err(CodecError::Malformed("origin")),
        };
        let tenant = take_name(&mut rest, "tenant")?;
        let device = take_name(&mut rest, "device")?;
        Ok(Self {
            position,
            received_at_us,
            kind,
            tenant,
            device,
            class,
            qos,
            origin,
            measured_at_us,
            body: rest,
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8], field: &'static str) -> Result<[u8; N], CodecError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(CodecError::Malformed(field))?;
    *rest = tail;
    Ok(*head)
}

fn take_name<'a>(rest: &mut &'a [u8], field: &'static str) -> Result<&'a str, CodecError> {
    let [bytes] = take(rest, field)?;
    let (name, tail) = rest.split_at_checked(usize::from(bytes)).ok_or(CodecError::Malformed(field))?;
    *rest = tail;
    std::str::from_utf8(name).map_err(|_| CodecError::Malformed(field))
}
