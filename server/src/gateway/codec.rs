//! Decodes what clients send: `rumqttd::protocol` behind a guard.
//!
//! Called by `connect` (the first packet) and `connection` (all others). The guard: the first byte is
//! looked at before anything else and must be a client's packet with its required flags; `check` frames
//! the packet and bounds it before it is buffered; only whole frames reach the codec, and any error of
//! it is final, since it consumes frames that it then calls incomplete.
//!
//! Promise: no input panics (a panic of the codec is caught and reported as malformed), and nothing is
//! consumed while a frame is incomplete. Limits: the caller's `packet_bytes_max` and
//! [`CONNECT_BYTES_MAX`]. Both are tested with random, cut and mutated frames in `codec_tests`.

use super::reason::CloseReason;
use bytes::{Bytes, BytesMut};
use rumqttd::protocol::{self, Packet, Protocol, v4, v5};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The largest CONNECT: ids, a token and a will envelope, no more.
pub(crate) const CONNECT_BYTES_MAX: usize = 8 * 1024;

/// Which protocol a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// MQTT 3.1.1.
    Three,
    /// MQTT 5.
    Five,
}

/// A PUBLISH as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Publish {
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    /// Zero with QoS 0.
    pub(crate) packet_id: u16,
    /// Not yet looked at: any bytes.
    pub(crate) topic: Bytes,
    pub(crate) payload: Bytes,
    pub(crate) has_topic_alias: bool,
}

impl Publish {
    /// Copies the parts into memory of their own, so that the read buffer is free again.
    pub(crate) fn detach(self) -> Self {
        let (at, whole) = (self.topic.len(), [&self.topic[..], &self.payload[..]].concat());
        let mut topic = Bytes::from(whole);
        let payload = topic.split_off(at);
        Self { topic, payload, ..self }
    }

    /// The bytes that it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.topic.len() + self.payload.len()
    }
}

/// One filter of a SUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilterAsked {
    pub(crate) path: String,
    pub(crate) qos: u8,
}

/// A packet of a client after its CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    Publish(Publish),
    PubAck { packet_id: u16 },
    Subscribe { packet_id: u16, filters: Vec<FilterAsked>, has_identifier: bool },
    Unsubscribe { packet_id: u16, filters: Vec<String> },
    PingReq,
    Disconnect { with_will: bool },
}

/// A CONNECT as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Connect {
    pub(crate) version: Version,
    pub(crate) keep_alive_s: u16,
    pub(crate) client_id: String,
    pub(crate) clean: bool,
    pub(crate) login: Option<(String, String)>,
    pub(crate) will: Option<WillAsked>,
    pub(crate) asks_session: bool,
    pub(crate) asks_authentication_method: bool,
    pub(crate) receive_maximum: u16,
    pub(crate) packet_bytes_max: Option<u32>,
}

/// The will of a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WillAsked {
    pub(crate) topic: Bytes,
    pub(crate) payload: Bytes,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
}

/// Why bytes are no packet. Each closes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// Not the protocol.
    #[error("malformed packet")]
    Malformed,
    /// A packet that a client must not send, or not at this point.
    #[error("packet type {0} is not a client's to send now")]
    PacketType(u8),
    /// Larger than allowed, known before it is buffered.
    #[error("packet is too large")]
    TooLarge,
    /// The codec panicked; caught.
    #[error("codec panicked")]
    Panicked,
}

impl From<FrameError> for CloseReason {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Malformed | FrameError::Panicked => Self::Malformed,
            FrameError::PacketType(_) => Self::ProtocolError,
            FrameError::TooLarge => Self::PacketTooLarge,
        }
    }
}

/// Why the first bytes are no CONNECT that we understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Not a CONNECT.
    #[error("first packet")]
    Frame(#[from] FrameError),
    /// A CONNECT of another protocol version.
    #[error("protocol version is not 3.1.1 or 5")]
    Version,
}

const CONNECT: u8 = 1;
const PUBLISH: u8 = 3;
const PUBACK: u8 = 4;
const SUBSCRIBE: u8 = 8;
const UNSUBSCRIBE: u8 = 10;
const PINGREQ: u8 = 12;
const DISCONNECT: u8 = 14;

/// Checks the first byte of a packet after the CONNECT: type and flags.
fn check_first_byte(first: u8) -> Result<(), FrameError> {
    let (kind, flags) = (first >> 4, first & 0x0F);
    match (kind, flags) {
        (PUBLISH, _) | (SUBSCRIBE | UNSUBSCRIBE, 0b0010) | (PUBACK | PINGREQ | DISCONNECT, 0) => Ok(()),
        (SUBSCRIBE | UNSUBSCRIBE | PUBACK | PINGREQ | DISCONNECT, _) => Err(FrameError::Malformed),
        _ => Err(FrameError::PacketType(kind)),
    }
}

/// Frames a packet without consuming it: its header where it is whole, `None` where more must come. `bytes_max` is of
/// the whole packet, header included, as the CONNACK tells it.
fn frame(buffer: &[u8], bytes_max: usize) -> Result<Option<v4::FixedHeader>, FrameError> {
    use protocol::Error::{InsufficientBytes, PayloadSizeLimitExceeded};
    match v4::check(buffer.iter(), bytes_max) {
        Ok(header) if header.frame_length() <= bytes_max => Ok(Some(header)),
        Err(InsufficientBytes(missing)) if buffer.len() + missing <= bytes_max => Ok(None),
        Ok(_) | Err(InsufficientBytes(_) | PayloadSizeLimitExceeded(_)) => Err(FrameError::TooLarge),
        Err(_) => Err(FrameError::Malformed),
    }
}

/// The bytes that are still missing from the packet at the front, where its length is known.
pub(crate) fn bytes_missing(buffer: &[u8], bytes_max: usize) -> usize {
    match v4::check(buffer.iter(), bytes_max) {
        Err(protocol::Error::InsufficientBytes(missing)) => missing,
        _ => 0,
    }
}

/// Runs the codec on a buffer that holds a whole frame of a client's packet.
fn read_whole(buffer: &mut BytesMut, version: Version) -> Result<Packet, FrameError> {
    let read = AssertUnwindSafe(|| match version {
        Version::Three => v4::V4.read_mut(buffer, usize::MAX),
        Version::Five => v5::V5.read_mut(buffer, usize::MAX),
    });
    match catch_unwind(read) {
        Ok(Ok(packet)) => Ok(packet),
        Ok(Err(_)) => Err(FrameError::Malformed),
        Err(_) => Err(FrameError::Panicked),
    }
}

/// Takes the next packet after the CONNECT; `None` where it is incomplete, with nothing consumed.
///
/// # Errors
/// Each closes the connection; the buffer must not be read again.
pub(crate) fn next_packet(
    buffer: &mut BytesMut,
    version: Version,
    bytes_max: usize,
) -> Result<Option<Incoming>, FrameError> {
    let Some(first) = buffer.first().copied() else { return Ok(None) };
    check_first_byte(first)?;
    let Some(header) = frame(buffer, bytes_max)? else { return Ok(None) };
    let body = &buffer[header.fixed_header_len..header.frame_length()];
    match first >> 4 {
        PUBLISH => {
            let packet_id = publish_packet_id(first, body);
            publish(read_whole(buffer, version)?, first, packet_id).map(Some)
        }
        // The codec wants properties after a reason code; the protocol does not.
        DISCONNECT if version == Version::Five && body.len() == 1 => {
            let with_will = body[0] == 0x04;
            let _consumed = buffer.split_to(header.frame_length());
            Ok(Some(Incoming::Disconnect { with_will }))
        }
        _ => other(read_whole(buffer, version)?).map(Some),
    }
}

/// The packet id, which the codec keeps to itself. Zero where there is none.
fn publish_packet_id(first: u8, body: &[u8]) -> u16 {
    if first & 0b0110 == 0 {
        return 0;
    }
    let topic_bytes = body.first_chunk::<2>().map_or(0, |length| usize::from(u16::from_be_bytes(*length)));
    let after_topic = body.get(2 + topic_bytes..).unwrap_or_default();
    after_topic.first_chunk::<2>().map_or(0, |id| u16::from_be_bytes(*id))
}

fn publish(packet: Packet, first: u8, packet_id: u16) -> Result<Incoming, FrameError> {
    let Packet::Publish(publish, properties) = packet else { return Err(FrameError::Malformed) };
    let has_topic_alias = properties.as_ref().is_some_and(|each| each.topic_alias.is_some());
    if properties.is_some_and(|each| !each.subscription_identifiers.is_empty()) {
        return Err(FrameError::PacketType(PUBLISH));
    }
    Ok(Incoming::Publish(Publish {
        qos: (first & 0b0110) >> 1,
        retain: publish.retain,
        packet_id,
        topic: publish.topic,
        payload: publish.payload,
        has_topic_alias,
    }))
}

fn other(packet: Packet) -> Result<Incoming, FrameError> {
    match packet {
        Packet::PubAck(ack, _) => Ok(Incoming::PubAck { packet_id: ack.pkid }),
        Packet::Subscribe(subscribe, properties) if subscribe.pkid != 0 => Ok(Incoming::Subscribe {
            packet_id: subscribe.pkid,
            filters: subscribe
                .filters
                .into_iter()
                .map(|filter| FilterAsked { path: filter.path, qos: filter.qos as u8 })
                .collect(),
            has_identifier: properties.is_some_and(|each| each.id.is_some()),
        }),
        Packet::Unsubscribe(unsubscribe, _) if unsubscribe.pkid != 0 && !unsubscribe.filters.is_empty() => {
            Ok(Incoming::Unsubscribe { packet_id: unsubscribe.pkid, filters: unsubscribe.filters })
        }
        Packet::PingReq(_) => Ok(Incoming::PingReq),
        Packet::Disconnect(disconnect, _) => {
            let with_will =
                disconnect.reason_code == protocol::DisconnectReasonCode::DisconnectWithWillMessage;
            Ok(Incoming::Disconnect { with_will })
        }
        _ => Err(FrameError::Malformed),
    }
}

/// Takes the CONNECT; `None` where it is incomplete, with nothing consumed.
///
/// # Errors
/// Each closes the connection; the buffer must not be read again.
pub(crate) fn first_packet(buffer: &mut BytesMut) -> Result<Option<Connect>, ConnectError> {
    let Some(first) = buffer.first().copied() else { return Ok(None) };
    if first != CONNECT << 4 {
        return Err(FrameError::PacketType(first >> 4).into());
    }
    let Some(header) = frame(buffer, CONNECT_BYTES_MAX)? else { return Ok(None) };
    let body = &buffer[header.fixed_header_len..header.frame_length()];
    let (version, flags) = match body {
        [0, 4, b'M', b'Q', b'T', b'T', 4, flags, ..] => (Version::Three, *flags),
        [0, 4, b'M', b'Q', b'T', b'T', 5, flags, ..] => (Version::Five, *flags),
        [0, 4, b'M', b'Q', b'T', b'T', ..] | [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', ..] => {
            return Err(ConnectError::Version);
        }
        _ => return Err(FrameError::Malformed.into()),
    };
    if flags & 1 != 0 {
        return Err(FrameError::Malformed.into());
    }
    let Packet::Connect(connect, properties, will, _, login) = read_whole(buffer, version)? else {
        return Err(FrameError::Malformed.into());
    };
    let asks_session = match version {
        Version::Three => !connect.clean_session,
        Version::Five => {
            properties.as_ref().is_some_and(|each| each.session_expiry_interval.unwrap_or(0) > 0)
        }
    };
    let receive_maximum = properties.as_ref().and_then(|each| each.receive_maximum).unwrap_or(u16::MAX);
    let packet_bytes_max = properties.as_ref().and_then(|each| each.max_packet_size);
    if receive_maximum == 0 || packet_bytes_max == Some(0) {
        return Err(FrameError::PacketType(CONNECT).into());
    }
    Ok(Some(Connect {
        version,
        keep_alive_s: connect.keep_alive,
        client_id: connect.client_id,
        clean: connect.clean_session,
        login: login.map(|login| (login.username, login.password)),
        will: will.map(|will| WillAsked {
            topic: will.topic,
            payload: will.message,
            qos: will.qos as u8,
            retain: will.retain,
        }),
        asks_session,
        asks_authentication_method: properties.is_some_and(|each| each.authentication_method.is_some()),
        receive_maximum,
        packet_bytes_max,
    }))
}
