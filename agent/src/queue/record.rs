//! A queue record's bytes: `[version = 1][measured_at_us, i64 little endian][body]`.
//!
//! The envelope is made when the record is sent, since it carries the seq that the journal gives.

/// Bytes before the body.
pub(super) const HEAD_BYTES: usize = 9;
const VERSION: u8 = 1;

/// A record's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Body<'a> {
    /// The device's time, microseconds since 1970.
    pub measured_at_us: i64,
    /// The CBOR of the class's message.
    pub bytes: &'a [u8],
}

pub(super) fn write(out: &mut Vec<u8>, measured_at_us: i64, body: &[u8]) {
    out.push(VERSION);
    out.extend_from_slice(&measured_at_us.to_le_bytes());
    out.extend_from_slice(body);
}

impl<'a> Body<'a> {
    /// Reads a record's bytes; None where another build wrote them.
    #[must_use]
    pub fn read(payload: &'a [u8]) -> Option<Self> {
        let (head, bytes) = payload.split_first_chunk::<HEAD_BYTES>()?;
        let [VERSION, time @ ..] = *head else { return None };
        Some(Self { measured_at_us: i64::from_le_bytes(time), bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_of_version_1() {
        let mut bytes = Vec::new();
        write(&mut bytes, 0x0102_0304, b"body");
        assert_eq!(hex::encode(&bytes), "010403020100000000626f6479");
        assert_eq!(Body::read(&bytes), Some(Body { measured_at_us: 0x0102_0304, bytes: b"body" }));
    }

    #[test]
    fn foreign_bytes_are_no_record() {
        assert_eq!(Body::read(b""), None);
        assert_eq!(Body::read(b"\x01short"), None);
        assert_eq!(Body::read(b"\x02123456789"), None);
    }
}
