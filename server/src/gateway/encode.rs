//! Encodes what the server sends. By hand: the codec cannot set a PUBLISH's QoS and packet id, lacks
//! reason codes, and these eight packets are short.
//!
//! Called by `connect` and `connection`. Writes to a `Vec` only; packet sizes are the callers' concern.

use super::codec::Version;
use super::reason::ConnectRefusal;

/// What an accepting CONNACK tells an MQTT 5 client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits<'a> {
    pub(crate) receive_maximum: u16,
    pub(crate) packet_bytes_max: u32,
    pub(crate) keep_alive_s: u16,
    pub(crate) assigned_client_id: Option<&'a str>,
    pub(crate) asks_session: bool,
}

fn remaining_length(out: &mut Vec<u8>, mut length: usize) {
    loop {
        #[allow(clippy::cast_possible_truncation, reason = "masked to seven bits")]
        let low = (length & 0x7F) as u8;
        length >>= 7;
        if length == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    let length = u16::try_from(text.len()).expect("topics and client ids are far below 64 KiB");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(text);
}

fn packet(out: &mut Vec<u8>, first: u8, body: &[u8]) {
    out.push(first);
    remaining_length(out, body.len());
    out.extend_from_slice(body);
}

/// CONNACK that accepts.
pub(crate) fn connack(out: &mut Vec<u8>, version: Version, limits: &Limits<'_>) {
    let mut body = vec![0, 0];
    if version == Version::Five {
        let mut properties = Vec::with_capacity(48);
        if limits.asks_session {
            properties.extend_from_slice(&[0x11, 0, 0, 0, 0]);
        }
        properties.push(0x21);
        properties.extend_from_slice(&limits.receive_maximum.to_be_bytes());
        properties.extend_from_slice(&[0x24, 1, 0x25, 0, 0x27]);
        properties.extend_from_slice(&limits.packet_bytes_max.to_be_bytes());
        if let Some(id) = limits.assigned_client_id {
            properties.push(0x12);
            text(&mut properties, id.as_bytes());
        }
        properties.extend_from_slice(&[0x22, 0, 0, 0x29, 0, 0x2A, 0, 0x13]);
        properties.extend_from_slice(&limits.keep_alive_s.to_be_bytes());
        remaining_length(&mut body, properties.len());
        body.extend_from_slice(&properties);
    }
    packet(out, 0x20, &body);
}

/// CONNACK that refuses. Without a version (the client speaks neither), 3.1.1's form.
pub(crate) fn connack_refused(out: &mut Vec<u8>, version: Option<Version>, reason: ConnectRefusal) {
    match version {
        Some(Version::Five) => packet(out, 0x20, &[0, reason.code(), 0]),
        _ => packet(out, 0x20, &[0, reason.code_v3()]),
    }
}

/// PUBACK; 3.1.1 has no reason code.
pub(crate) fn puback(out: &mut Vec<u8>, version: Version, packet_id: u16, code: u8) {
    let [high, low] = packet_id.to_be_bytes();
    if version == Version::Five && code != 0 {
        out.extend_from_slice(&[0x40, 3, high, low, code]);
    } else {
        out.extend_from_slice(&[0x40, 2, high, low]);
    }
}

/// SUBACK, one code a filter. 3.1.1 knows 0x80 only as a refusal.
pub(crate) fn suback(out: &mut Vec<u8>, version: Version, packet_id: u16, codes: &[u8]) {
    let mut body = packet_id.to_be_bytes().to_vec();
    match version {
        Version::Three => body.extend(codes.iter().map(|code| (*code).min(0x80))),
        Version::Five => {
            body.push(0);
            body.extend_from_slice(codes);
        }
    }
    packet(out, 0x90, &body);
}

/// UNSUBACK; 3.1.1 has no codes.
pub(crate) fn unsuback(out: &mut Vec<u8>, version: Version, packet_id: u16, codes: &[u8]) {
    let mut body = packet_id.to_be_bytes().to_vec();
    if version == Version::Five {
        body.push(0);
        body.extend_from_slice(codes);
    }
    packet(out, 0xB0, &body);
}

/// PINGRESP.
pub(crate) fn pingresp(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xD0, 0]);
}

/// DISCONNECT with a reason. MQTT 5 only.
pub(crate) fn disconnect(out: &mut Vec<u8>, code: u8) {
    out.extend_from_slice(&[0xE0, 2, code, 0]);
}

/// The bytes that a PUBLISH will take.
pub(crate) fn publish_bytes(topic: &str, payload: &[u8]) -> usize {
    5 + 2 + topic.len() + 2 + 1 + payload.len()
}

/// PUBLISH without properties; QoS 1 where there is a packet id.
pub(crate) fn publish(
    out: &mut Vec<u8>,
    version: Version,
    packet_id: Option<u16>,
    topic: &str,
    payload: &[u8],
) {
    let properties = usize::from(version == Version::Five);
    let id = if packet_id.is_some() { 2 } else { 0 };
    out.push(if packet_id.is_some() { 0x32 } else { 0x30 });
    remaining_length(out, 2 + topic.len() + id + properties + payload.len());
    text(out, topic.as_bytes());
    if let Some(packet_id) = packet_id {
        out.extend_from_slice(&packet_id.to_be_bytes());
    }
    if version == Version::Five {
        out.push(0);
    }
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use rumqttd::protocol::{Packet, Protocol, v4, v5};

    fn read(version: Version, bytes: &[u8]) -> Packet {
        let mut buffer = BytesMut::from(bytes);
        let packet = match version {
            Version::Three => v4::V4.read_mut(&mut buffer, 1 << 20),
            Version::Five => v5::V5.read_mut(&mut buffer, 1 << 20),
        };
        assert!(buffer.is_empty(), "the whole packet is read");
        packet.unwrap()
    }

    #[test]
    fn the_codec_reads_back_every_packet_but_those_it_cannot() {
        for version in [Version::Three, Version::Five] {
            let mut out = Vec::new();
            publish(&mut out, version, Some(7), "a/b", &[1; 300]);
            let Packet::Publish(publish, _) = read(version, &out) else { panic!("publish") };
            assert_eq!((&publish.topic[..], publish.payload.len()), (&b"a/b"[..], 300));
            out.clear();
            puback(&mut out, version, 9, 0x87);
            let Packet::PubAck(ack, _) = read(version, &out) else { panic!("puback") };
            assert_eq!(ack.pkid, 9);
            out.clear();
            suback(&mut out, version, 3, &[0, 0x87]);
            let Packet::SubAck(ack, _) = read(version, &out) else { panic!("suback") };
            assert_eq!((ack.pkid, ack.return_codes.len()), (3, 2));
            out.clear();
            pingresp(&mut out);
            assert!(matches!(read(version, &out), Packet::PingResp(_)));
        }
    }

    #[test]
    fn golden_bytes_of_what_the_codec_cannot_read() {
        let mut out = Vec::new();
        let limits = Limits {
            receive_maximum: 32,
            packet_bytes_max: 0x0004_0000,
            keep_alive_s: 60,
            assigned_client_id: Some("c1"),
            asks_session: true,
        };
        connack(&mut out, Version::Five, &limits);
        let expect = [
            0x20, 0x23, 0, 0, 0x20, 0x11, 0, 0, 0, 0, 0x21, 0, 32, 0x24, 1, 0x25, 0, 0x27, 0, 4, 0, 0, 0x12,
            0, 2, b'c', b'1', 0x22, 0, 0, 0x29, 0, 0x2A, 0, 0x13, 0, 60,
        ];
        assert_eq!(out, expect);
        out.clear();
        connack(&mut out, Version::Three, &limits);
        connack_refused(&mut out, Some(Version::Five), ConnectRefusal::LogFull);
        connack_refused(&mut out, None, ConnectRefusal::Version);
        disconnect(&mut out, 0x8E);
        unsuback(&mut out, Version::Five, 5, &[0, 0x11]);
        let expect = [
            &[0x20, 2, 0, 0][..],
            &[0x20, 3, 0, 0x89, 0],
            &[0x20, 2, 0, 1],
            &[0xE0, 2, 0x8E, 0],
            &[0xB0, 5, 0, 5, 0, 0, 0x11],
        ];
        assert_eq!(out, expect.concat());
    }
}
