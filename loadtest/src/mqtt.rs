//! The least of MQTT that a load generator needs: CONNECT, PUBLISH, PUBACK, SUBSCRIBE, PINGREQ out; CONNACK,
//! PUBLISH, PUBACK, SUBACK, PINGRESP, DISCONNECT in. Written from the standards, independent of the server's codec on purpose.
//!
//! Called by `connection` and `engine`. Decoding never panics: a peer's bytes are untrusted.

/// The largest packet that is accepted from a server, in bytes.
const INCOMING_BYTES_MAX: usize = 64 * 1024;

/// Protocol level of the CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1.
    V311,
    /// MQTT 5.
    V5,
}

/// What a server may send to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// The answer to CONNECT.
    ConnAck {
        /// 0 is success.
        reason: u8,
        /// How many publishes may be unacknowledged (MQTT 5).
        receive_maximum: Option<u16>,
        /// The keep-alive that the server wants instead (MQTT 5).
        server_keep_alive_s: Option<u16>,
    },
    /// The answer to a PUBLISH at QoS 1.
    PubAck {
        /// Which publish.
        packet_id: u16,
        /// Below 0x80 is success; always 0 for MQTT 3.1.1.
        reason: u8,
    },
    /// A message to this client, at QoS 0 or 1.
    Publish {
        /// Its topic.
        topic: &'a str,
        /// Its bytes.
        payload: &'a [u8],
        /// What its PUBACK must say, at QoS 1.
        packet_id: Option<u16>,
    },
    /// The answer to SUBSCRIBE.
    SubAck {
        /// The first filter's code; below 0x80 is the granted QoS.
        code: u8,
    },
    /// The answer to PINGREQ.
    PingResp,
    /// The server ends the connection (MQTT 5).
    Disconnect {
        /// Why.
        reason: u8,
    },
}

/// Why bytes are not a packet of ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MqttError {
    /// A packet type that no device should get.
    #[error("packet of type {0}")]
    Type(u8),
    /// Too short for its type, or a length that is no length.
    #[error("malformed packet of type {0}")]
    Malformed(u8),
    /// More bytes than a client needs to accept.
    #[error("packet of {0} bytes, more than {INCOMING_BYTES_MAX}")]
    TooLarge(usize),
}

/// The PINGREQ packet.
pub const PINGREQ: [u8; 2] = [0xC0, 0];
/// The DISCONNECT packet of a normal end.
pub const DISCONNECT: [u8; 2] = [0xE0, 0];

/// Who connects, and how.
#[derive(Clone, Copy, Debug)]
pub struct Connect<'a> {
    /// Client id.
    pub client_id: &'a str,
    /// User name and password, where the identity is not a certificate.
    pub login: Option<(&'a str, &'a str)>,
    /// Keep-alive in seconds.
    pub keep_alive_s: u16,
}

impl Connect<'_> {
    /// Appends the CONNECT packet: clean start, no will.
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        const CLEAN_START: u8 = 0x02;
        const USER_AND_PASSWORD: u8 = 0xC0;
        let properties = usize::from(version == Version::V5);
        let login = self.login.map_or(0, |(user, password)| 4 + user.len() + password.len());
        out.push(0x10);
        put_length(out, 10 + properties + 2 + self.client_id.len() + login);
        put_text(out, "MQTT");
        out.push(match version {
            Version::V311 => 4,
            Version::V5 => 5,
        });
        out.push(if self.login.is_some() { CLEAN_START | USER_AND_PASSWORD } else { CLEAN_START });
        out.extend_from_slice(&self.keep_alive_s.to_be_bytes());
        if version == Version::V5 {
            out.push(0);
        }
        put_text(out, self.client_id);
        if let Some((user, password)) = self.login {
            put_text(out, user);
            put_text(out, password);
        }
    }
}

/// Appends a PUBLISH: at QoS 1 with a packet id, at QoS 0 without one.
pub fn publish(version: Version, topic: &str, packet_id: Option<u16>, payload: &[u8], out: &mut Vec<u8>) {
    let properties = usize::from(version == Version::V5);
    let id_bytes = if packet_id.is_some() { 2 } else { 0 };
    out.push(if packet_id.is_some() { 0x32 } else { 0x30 });
    put_length(out, 2 + topic.len() + id_bytes + properties + payload.len());
    put_text(out, topic);
    if let Some(packet_id) = packet_id {
        out.extend_from_slice(&packet_id.to_be_bytes());
    }
    if version == Version::V5 {
        out.push(0);
    }
    out.extend_from_slice(payload);
}

/// Appends a PUBACK of success.
pub fn pub_ack(packet_id: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(&[0x40, 2]);
    out.extend_from_slice(&packet_id.to_be_bytes());
}

/// Appends a SUBSCRIBE of one filter.
pub fn subscribe(version: Version, filter: &str, qos: u8, packet_id: u16, out: &mut Vec<u8>) {
    let properties = usize::from(version == Version::V5);
    out.push(0x82);
    put_length(out, 2 + properties + 2 + filter.len() + 1);
    out.extend_from_slice(&packet_id.to_be_bytes());
    if version == Version::V5 {
        out.push(0);
    }
    put_text(out, filter);
    out.push(qos);
}

/// Texts are at most 65,535 bytes: names, tokens and topics of ours are far below.
fn put_text(out: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&text.as_bytes()[..usize::from(length)]);
}

fn put_length(out: &mut Vec<u8>, mut length: usize) {
    loop {
        let low = (length & 0x7F) as u8;
        length >>= 7;
        out.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            return;
        }
    }
}

/// A variable byte integer: its value and its own length; none where bytes are missing.
fn length(bytes: &[u8]) -> Result<Option<(usize, usize)>, ()> {
    let mut value = 0_usize;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((value, at + 1)));
        }
    }
    if bytes.len() >= 4 { Err(()) } else { Ok(None) }
}

/// Decodes the first packet and tells how many bytes it took; none where bytes are missing.
///
/// # Errors
/// A packet that no device should get, or one that is malformed.
pub fn decode(version: Version, bytes: &[u8]) -> Result<Option<(Incoming<'_>, usize)>, MqttError> {
    let Some(first) = bytes.first() else { return Ok(None) };
    let kind = first >> 4;
    let malformed = MqttError::Malformed(kind);
    let Some((body_bytes, own)) = length(&bytes[1..]).map_err(|()| MqttError::Malformed(kind))? else {
        return Ok(None);
    };
    if body_bytes > INCOMING_BYTES_MAX {
        return Err(MqttError::TooLarge(body_bytes));
    }
    let end = 1 + own + body_bytes;
    let Some(body) = bytes.get(1 + own..end) else { return Ok(None) };
    let packet = match kind {
        2 => conn_ack(version, body).ok_or(malformed)?,
        3 => message(version, *first, body).ok_or(malformed)?,
        4 => {
            let [high, low, rest @ ..] = body else { return Err(malformed) };
            Incoming::PubAck {
                packet_id: u16::from_be_bytes([*high, *low]),
                reason: rest.first().copied().unwrap_or(0),
            }
        }
        9 => Incoming::SubAck { code: *body.last().ok_or(malformed)? },
        13 => Incoming::PingResp,
        14 => Incoming::Disconnect { reason: body.first().copied().unwrap_or(0) },
        _ => return Err(MqttError::Type(kind)),
    };
    Ok(Some((packet, end)))
}

/// A PUBLISH's topic, packet id and payload; none where it is malformed or of QoS 2.
fn message(version: Version, first: u8, body: &[u8]) -> Option<Incoming<'_>> {
    let topic_bytes = usize::from(u16::from_be_bytes([*body.first()?, *body.get(1)?]));
    let topic = std::str::from_utf8(body.get(2..2 + topic_bytes)?).ok()?;
    let mut rest = body.get(2 + topic_bytes..)?;
    let packet_id = match first >> 1 & 3 {
        0 => None,
        1 => {
            let id = u16::from_be_bytes([*rest.first()?, *rest.get(1)?]);
            rest = rest.get(2..)?;
            Some(id)
        }
        _ => return None,
    };
    if version == Version::V5 {
        let (bytes, own) = length(rest).ok()??;
        rest = rest.get(own + bytes..)?;
    }
    Some(Incoming::Publish { topic, payload: rest, packet_id })
}

fn conn_ack(version: Version, body: &[u8]) -> Option<Incoming<'static>> {
    let [_flags, reason, rest @ ..] = body else { return None };
    let (mut receive_maximum, mut server_keep_alive_s) = (None, None);
    if version == Version::V5 && !rest.is_empty() {
        let (bytes, own) = length(rest).ok()??;
        let mut properties = rest.get(own..own + bytes)?;
        while let Some((id, value)) = properties.split_first() {
            let taken = property_bytes(*id, value)?;
            let number = || Some(u16::from_be_bytes([*value.first()?, *value.get(1)?]));
            match id {
                0x21 => receive_maximum = Some(number()?),
                0x13 => server_keep_alive_s = Some(number()?),
                _ => {}
            }
            properties = value.get(taken..)?;
        }
    }
    Some(Incoming::ConnAck { reason: *reason, receive_maximum, server_keep_alive_s })
}

/// The bytes of a CONNACK property's value.
fn property_bytes(id: u8, value: &[u8]) -> Option<usize> {
    let text = |at: usize| Some(2 + usize::from(u16::from_be_bytes([*value.get(at)?, *value.get(at + 1)?])));
    match id {
        0x24 | 0x25 | 0x28 | 0x29 | 0x2A => Some(1),
        0x13 | 0x21 | 0x22 => Some(2),
        0x11 | 0x27 => Some(4),
        0x12 | 0x15 | 0x16 | 0x1A | 0x1C | 0x1F => text(0),
        0x26 => {
            let key = text(0)?;
            Some(key + text(key)?)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_and_publish_have_the_bytes_of_the_standard() {
        let connect = Connect { client_id: "c", login: Some(("u", "pw")), keep_alive_s: 60 };
        let mut out = Vec::new();
        connect.encode(Version::V311, &mut out);
        assert_eq!(out, b"\x10\x14\x00\x04MQTT\x04\xc2\x00\x3c\x00\x01c\x00\x01u\x00\x02pw");
        out.clear();
        Connect { login: None, ..connect }.encode(Version::V5, &mut out);
        assert_eq!(out, b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x01c");
        out.clear();
        publish(Version::V5, "t", Some(7), &[9; 200], &mut out);
        assert_eq!(&out[..9], b"\x32\xce\x01\x00\x01t\x00\x07\x00");
        assert_eq!(out.len(), 9 + 200);
        out.clear();
        publish(Version::V311, "t", None, &[9], &mut out);
        assert_eq!(out, b"\x30\x04\x00\x01t\x09");
        out.clear();
        subscribe(Version::V5, "a/b", 1, 2, &mut out);
        assert_eq!(out, b"\x82\x09\x00\x02\x00\x00\x03a/b\x01");
        out.clear();
        pub_ack(258, &mut out);
        assert_eq!(out, b"\x40\x02\x01\x02");
    }

    #[test]
    fn a_message_is_decoded_with_its_packet_id() {
        for (version, qos) in [(Version::V5, 0), (Version::V5, 1), (Version::V311, 0), (Version::V311, 1)] {
            let packet_id = (qos == 1).then_some(9);
            let mut out = Vec::new();
            publish(version, "x/y", packet_id, b"hello", &mut out);
            let expect = Incoming::Publish { topic: "x/y", payload: b"hello", packet_id };
            assert_eq!(decode(version, &out), Ok(Some((expect, out.len()))));
            for cut in 0..out.len() {
                assert_eq!(decode(version, &out[..cut]), Ok(None), "{cut}");
            }
        }
        let suback = b"\x90\x04\x00\x02\x00\x01";
        assert_eq!(decode(Version::V5, suback), Ok(Some((Incoming::SubAck { code: 1 }, 6))));
    }

    #[test]
    fn answers_are_decoded_and_cut_ones_wait() {
        let five = b"\x20\x0b\x00\x00\x08\x21\x00\x20\x24\x01\x13\x00\x3c";
        let expect =
            Incoming::ConnAck { reason: 0, receive_maximum: Some(32), server_keep_alive_s: Some(60) };
        assert_eq!(decode(Version::V5, five), Ok(Some((expect, 13))));
        for cut in 0..five.len() {
            assert_eq!(decode(Version::V5, &five[..cut]), Ok(None), "{cut}");
        }
        let puback = b"\x40\x04\x00\x07\x99\x00\x40\x02\x00\x08";
        let refused = Incoming::PubAck { packet_id: 7, reason: 0x99 };
        assert_eq!(decode(Version::V5, puback), Ok(Some((refused, 6))));
        assert_eq!(
            decode(Version::V311, &puback[6..]),
            Ok(Some((Incoming::PubAck { packet_id: 8, reason: 0 }, 4)))
        );
    }

    #[test]
    fn hostile_bytes_are_errors() {
        assert_eq!(decode(Version::V5, b"\x40\x01\x00"), Err(MqttError::Malformed(4)));
        assert_eq!(decode(Version::V5, b"\x40\xff\xff\xff\xff"), Err(MqttError::Malformed(4)));
        assert_eq!(decode(Version::V5, b"\x80\x00"), Err(MqttError::Type(8)));
        // No topic; a topic longer than the packet; QoS 2; no packet id; properties that are missing.
        for bad in [&b"\x30\x00"[..], b"\x30\x02\x00\x01", b"\x34\x03\x00\x01t", b"\x32\x03\x00\x01t"] {
            assert_eq!(decode(Version::V5, bad), Err(MqttError::Malformed(3)), "{bad:?}");
        }
        assert_eq!(decode(Version::V5, b"\x30\x03\x00\x01t"), Err(MqttError::Malformed(3)));
        assert_eq!(decode(Version::V5, b"\x90\x00"), Err(MqttError::Malformed(9)));
        assert_eq!(decode(Version::V5, b"\x20\xff\xff\x7f"), Err(MqttError::TooLarge(2_097_151)));
        assert_eq!(decode(Version::V5, b"\x20\x04\x00\x00\x01\x21"), Err(MqttError::Malformed(2)));
    }

    #[test]
    fn a_packet_of_the_largest_size_is_waited_for_and_a_larger_one_is_not() {
        assert_eq!(decode(Version::V5, b"\x20\x80\x80\x04"), Ok(None));
        let error = decode(Version::V5, b"\x20\x81\x80\x04").unwrap_err();
        assert_eq!(error.to_string(), "packet of 65537 bytes, more than 65536");
    }
}
