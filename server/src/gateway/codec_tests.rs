//! The decode path against bytes that no client should send: random, cut, mutated, and the known panics.

use super::codec::{self, CONNECT_BYTES_MAX, FrameError, Incoming, Version};
use bytes::BytesMut;
use proptest::prelude::*;

const PACKET_BYTES_MAX: usize = 1024;

/// Frames of every client packet in both versions, with and without properties.
fn corpus() -> Vec<Vec<u8>> {
    let connect = |level: u8, flags: u8, rest: &[u8]| {
        let body = [&[0, 4], &b"MQTT"[..], &[level, flags, 0, 60], rest].concat();
        [&[0x10, u8::try_from(body.len()).unwrap()], &body[..]].concat()
    };
    vec![
        connect(4, 2, &[0, 1, b'c']),
        connect(4, 0xC2, &[0, 1, b'c', 0, 1, b'u', 0, 1, b'p']),
        connect(4, 0xC6, &[0, 1, b'c', 0, 1, b't', 0, 1, b'm', 0, 1, b'u', 0, 1, b'p']),
        connect(5, 2, &[0, 0, 1, b'c']),
        connect(5, 2, &[8, 0x11, 0, 0, 0, 9, 0x21, 0, 9, 0, 1, b'c']),
        connect(5, 0x0E, &[0, 0, 1, b'c', 5, 0x18, 0, 0, 0, 9, 0, 1, b't', 0, 1, b'm']),
        vec![0x30, 5, 0, 1, b't', b'x', b'y'],
        vec![0x32, 7, 0, 1, b't', 0, 7, b'x', b'y'],
        vec![0x32, 7, 0, 1, b't', 0, 7, 0, b'y'],
        vec![0x32, 10, 0, 1, b't', 0, 7, 3, 0x23, 0, 1, b'y'],
        vec![0x32, 9, 0, 1, b't', 0, 7, 2, 0x0B, 1, b'y'],
        vec![0x40, 2, 0, 7],
        vec![0x40, 4, 0, 7, 0x10, 0],
        vec![0x82, 6, 0, 7, 0, 1, b't', 1],
        vec![0x82, 7, 0, 7, 0, 0, 1, b't', 1],
        vec![0x82, 9, 0, 7, 2, 0x0B, 1, 0, 1, b't', 1],
        vec![0xA2, 5, 0, 7, 0, 1, b't'],
        vec![0xA2, 6, 0, 7, 0, 0, 1, b't'],
        vec![0xC0, 0],
        vec![0xE0, 0],
        vec![0xE0, 1, 4],
        vec![0xE0, 2, 4, 0],
        vec![0xE0, 7, 0x81, 5, 0x1F, 0, 2, b'n', b'o'],
    ]
}

/// Reads all packets; says how it ended. Panics where a promise is broken.
fn read_all(bytes: &[u8], version: Version) -> Result<Vec<Incoming>, FrameError> {
    let mut buffer = BytesMut::from(bytes);
    let mut packets = Vec::new();
    loop {
        let before = buffer.clone();
        match codec::next_packet(&mut buffer, version, PACKET_BYTES_MAX) {
            Ok(Some(packet)) => {
                assert!(buffer.len() < before.len(), "a packet consumes");
                packets.push(packet);
            }
            Ok(None) => {
                assert_eq!(buffer, before, "an incomplete packet consumes nothing");
                return Ok(packets);
            }
            Err(FrameError::Panicked) => panic!("the codec panicked on {bytes:02x?}"),
            Err(error) => return Err(error),
        }
    }
}

fn read_first(bytes: &[u8]) {
    let mut buffer = BytesMut::from(bytes);
    let before = buffer.clone();
    match codec::first_packet(&mut buffer) {
        Ok(None) => assert_eq!(buffer, before, "an incomplete CONNECT consumes nothing"),
        Err(codec::ConnectError::Frame(FrameError::Panicked)) => panic!("the codec panicked on {bytes:02x?}"),
        Ok(Some(_)) | Err(_) => {}
    }
}

fn read_every_way(bytes: &[u8]) {
    read_first(bytes);
    for version in [Version::Three, Version::Five] {
        let _any_answer = read_all(bytes, version);
    }
}

#[test]
fn every_corpus_packet_is_a_packet_in_one_version_at_least() {
    for frame in corpus() {
        let ok = if frame[0] == 0x10 {
            codec::first_packet(&mut BytesMut::from(&frame[..])).is_ok_and(|connect| connect.is_some())
        } else {
            let packets =
                [Version::Three, Version::Five].map(|version| read_all(&frame, version).map(|all| all.len()));
            // A subscription identifier in a client's PUBLISH is whole and refused.
            packets.contains(&Ok(1)) || packets.contains(&Err(FrameError::PacketType(3)))
        };
        assert!(ok, "{frame:02x?}");
    }
}

#[test]
fn the_known_panics_are_refused_by_their_first_byte() {
    for frame in
        [&[0xB2, 2, 0, 1][..], &[0xB0, 2, 0, 1], &[0x20, 2, 0, 0], &[0x20, 3, 0, 0, 0], &[0x20, 0], &[0xB0]]
    {
        for version in [Version::Three, Version::Five] {
            assert_eq!(read_all(frame, version), Err(FrameError::PacketType(frame[0] >> 4)), "{frame:02x?}");
        }
    }
}

#[test]
fn every_server_packet_and_every_reserved_flag_is_refused() {
    for first in 0..=u8::MAX {
        let refused =
            read_all(&[first, 0], Version::Five).is_err() && read_all(&[first], Version::Five).is_err();
        let may_come = matches!(first >> 4, 3) || [0x40, 0x82, 0xA2, 0xC0, 0xE0].contains(&first);
        assert_eq!(refused, !may_come || read_all(&[first], Version::Five).is_err(), "{first:#x}");
        assert!(may_come || refused, "{first:#x}");
    }
}

#[test]
fn topics_that_are_not_ascii_reach_the_caller_as_bytes() {
    for topic in ["é", "éclair/x", "\u{10FFFF}", "+/#", "$SYS"] {
        let mut frame = vec![0x30, 0, 0, u8::try_from(topic.len()).unwrap()];
        frame.extend_from_slice(topic.as_bytes());
        frame[1] = u8::try_from(frame.len() - 2).unwrap();
        let packets = read_all(&frame, Version::Three).unwrap();
        assert!(matches!(&packets[..], [Incoming::Publish(publish)] if publish.topic == topic.as_bytes()));
    }
}

#[test]
fn a_packet_over_the_limit_is_refused_by_its_header() {
    let header = [0x32, 0xFF, 0xFF, 0xFF, 0x7F];
    assert_eq!(read_all(&header, Version::Five), Err(FrameError::TooLarge));
    assert_eq!(read_all(&[0x32, 0xFF, 0xFF, 0xFF, 0xFF], Version::Five), Err(FrameError::Malformed));
    let connect = codec::first_packet(&mut BytesMut::from(&[0x10, 0xFF, 0x7F][..]));
    const { assert!(CONNECT_BYTES_MAX < 0x3FFF) };
    assert_eq!(connect, Err(codec::ConnectError::Frame(FrameError::TooLarge)));
}

/// A QoS 0 PUBLISH of so many bytes, header included.
fn publish_of(bytes: usize) -> Vec<u8> {
    let body = [&[0, 1, b't'][..], &vec![b'x'; bytes - 6]].concat();
    let length = [u8::try_from(body.len() % 128).unwrap() | 0x80, u8::try_from(body.len() / 128).unwrap()];
    [&[0x30], &length[..], &body].concat()
}

#[test]
fn a_packet_of_the_limit_is_taken_and_one_byte_more_is_refused_by_its_header() {
    let whole = publish_of(PACKET_BYTES_MAX);
    assert_eq!(whole.len(), PACKET_BYTES_MAX);
    assert_eq!(read_all(&whole, Version::Three).unwrap().len(), 1);
    let larger = publish_of(PACKET_BYTES_MAX + 1);
    assert_eq!(read_all(&larger, Version::Three), Err(FrameError::TooLarge));
    assert_eq!(read_all(&larger[..3], Version::Three), Err(FrameError::TooLarge));
}

#[test]
fn a_connect_of_the_limit_is_taken_and_one_byte_more_is_refused_by_its_header() {
    let connect = |bytes: usize| {
        let password = bytes - 21;
        let text = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
        let body = [
            &[0, 4, b'M', b'Q', b'T', b'T', 4, 0xC2, 0, 60, 0, 1, b'c', 0, 1, b'u'][..],
            &text(password),
            &vec![b'p'; password],
        ]
        .concat();
        let length =
            [u8::try_from(body.len() % 128).unwrap() | 0x80, u8::try_from(body.len() / 128).unwrap()];
        [&[0x10], &length[..], &body].concat()
    };
    let read = |bytes: &[u8]| codec::first_packet(&mut BytesMut::from(bytes)).map(|found| found.is_some());
    let whole = connect(CONNECT_BYTES_MAX);
    assert_eq!((whole.len(), read(&whole)), (CONNECT_BYTES_MAX, Ok(true)));
    let refused = Err(codec::ConnectError::Frame(FrameError::TooLarge));
    assert_eq!(read(&connect(CONNECT_BYTES_MAX + 1)), refused);
    assert_eq!(read(&connect(CONNECT_BYTES_MAX + 1)[..3]), refused);
}

#[test]
fn qos_and_packet_id_are_read_beside_the_codec() {
    let frame = [0x32, 8, 0, 2, b'a', b'b', 0x12, 0x34, 0, b'x'];
    let packets = read_all(&frame, Version::Five).unwrap();
    let [Incoming::Publish(publish)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!((publish.qos, publish.packet_id, &publish.payload[..]), (1, 0x1234, &b"x"[..]));
    assert!(read_all(&[0x32, 5, 0, 1, b'a', 0, 0], Version::Three).is_err(), "packet id 0");
    assert!(read_all(&[0x36, 5, 0, 1, b'a', 0, 1], Version::Three).is_err(), "QoS 3");
}

#[test]
fn every_prefix_and_every_one_byte_change_of_the_corpus_is_survived() {
    for frame in corpus() {
        for cut in 0..=frame.len() {
            read_every_way(&frame[..cut]);
        }
        for at in 0..frame.len() {
            for value in 0..=u8::MAX {
                let mut changed = frame.clone();
                changed[at] = value;
                read_every_way(&changed);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_every_way(&bytes);
    }

    #[test]
    fn random_bodies_behind_a_right_header_are_survived(
        kind in 0u8..16, flags in 0u8..16, body in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        let mut frame = vec![kind << 4 | flags, u8::try_from(body.len()).unwrap()];
        frame.extend_from_slice(&body);
        read_every_way(&frame);
    }

    #[test]
    fn mutated_streams_of_packets_are_survived(
        picks in prop::collection::vec(0usize..23, 1..6),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let frames = corpus();
        let mut stream: Vec<u8> = picks.iter().flat_map(|pick| frames[*pick].clone()).collect();
        for (at, value) in &changes {
            let at = at.index(stream.len());
            stream[at] = *value;
        }
        stream.truncate(cut.index(stream.len()) + 1);
        read_every_way(&stream);
    }
}
