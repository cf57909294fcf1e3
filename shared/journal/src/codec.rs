//! Bytes of a segment: its header and its records. Little-endian; golden bytes below.
//!
//! A record's checksum starts from a salt made of the segment's id and epoch, so that bytes of another
//! segment (a payload that holds a copy of a journal, a recycled block) are never taken for a record.

/// The format that this build writes.
pub(crate) const SEGMENT_VERSION: u16 = 1;
/// Two copies of the header, so that one flipped bit does not cost the segment.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 2 * HEADER_COPY_BYTES;
/// Bytes before each payload.
pub(crate) const RECORD_HEADER_BYTES: usize = 32;

const HEADER_COPY_BYTES: usize = 64;
const SEGMENT_MAGIC: [u8; 8] = *b"MUSTERJ\n";
const RECORD_MAGIC: u16 = 0xB5E7;

const LEN_AT: usize = 4;
const SEQ_AT: usize = 8;
const TIME_AT: usize = 16;
const LAG_AT: usize = 24;
const CLASS_AT: usize = 28;
const MAGIC_AT: usize = 30;

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) id: u64,
    pub(crate) epoch: u64,
    pub(crate) first_seq: u64,
    pub(crate) created_at_us: i64,
}

/// Why a header was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    Damaged,
    Version(u16),
}

impl SegmentHeader {
    pub(crate) fn salt(&self) -> u32 {
        salt(self.id, self.epoch)
    }

    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut copy = [0u8; HEADER_COPY_BYTES];
        copy[..8].copy_from_slice(&SEGMENT_MAGIC);
        copy[8..10].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
        copy[16..24].copy_from_slice(&self.id.to_le_bytes());
        copy[24..32].copy_from_slice(&self.epoch.to_le_bytes());
        copy[32..40].copy_from_slice(&self.first_seq.to_le_bytes());
        copy[40..48].copy_from_slice(&self.created_at_us.to_le_bytes());
        let crc = crc32c::crc32c(&copy[..60]);
        copy[60..].copy_from_slice(&crc.to_le_bytes());
        let mut bytes = [0u8; SEGMENT_HEADER_BYTES];
        bytes[..HEADER_COPY_BYTES].copy_from_slice(&copy);
        bytes[HEADER_COPY_BYTES..].copy_from_slice(&copy);
        bytes
    }

    /// Decodes whichever copy is whole.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let mut fault = HeaderFault::Damaged;
        for copy in bytes.chunks_exact(HEADER_COPY_BYTES).take(2) {
            match Self::decode_copy(copy) {
                Ok(header) => return Ok(header),
                Err(HeaderFault::Version(version)) => fault = HeaderFault::Version(version),
                Err(HeaderFault::Damaged) => {}
            }
        }
        Err(fault)
    }

    fn decode_copy(copy: &[u8]) -> Result<Self, HeaderFault> {
        if copy[..8] != SEGMENT_MAGIC || u32_at(copy, 60) != crc32c::crc32c(&copy[..60]) {
            return Err(HeaderFault::Damaged);
        }
        let version = u16_at(copy, 8);
        if version != SEGMENT_VERSION {
            return Err(HeaderFault::Version(version));
        }
        Ok(Self {
            id: u64_at(copy, 16),
            epoch: u64_at(copy, 24),
            first_seq: u64_at(copy, 32),
            created_at_us: u64_at(copy, 40) as i64,
        })
    }
}

pub(crate) fn salt(id: u64, epoch: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&id.to_le_bytes()), &epoch.to_le_bytes())
}

/// A record's header without its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) len: u32,
    pub(crate) seq: u64,
    pub(crate) appended_at_us: i64,
    /// `seq` less the first seq of the batch that was written and synced with it.
    pub(crate) lag: u32,
    pub(crate) class: u8,
}

impl RecordHeader {
    pub(crate) fn record_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.len as usize
    }

    /// All below was durable when this record was written.
    pub(crate) fn durable_before(&self) -> u64 {
        self.seq.saturating_sub(u64::from(self.lag))
    }

    /// Writes the header without checksum and lag, which the writer fills in.
    pub(crate) fn put(&self, bytes: &mut [u8]) {
        bytes[LEN_AT..SEQ_AT].copy_from_slice(&self.len.to_le_bytes());
        bytes[SEQ_AT..TIME_AT].copy_from_slice(&self.seq.to_le_bytes());
        bytes[TIME_AT..LAG_AT].copy_from_slice(&self.appended_at_us.to_le_bytes());
        bytes[LAG_AT..CLASS_AT].copy_from_slice(&self.lag.to_le_bytes());
        bytes[CLASS_AT] = self.class;
        bytes[CLASS_AT + 1] = 0;
        bytes[MAGIC_AT..RECORD_HEADER_BYTES].copy_from_slice(&RECORD_MAGIC.to_le_bytes());
    }

    /// Reads a header whose magic fits; the checksum is checked by [`is_whole`].
    pub(crate) fn get(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < RECORD_HEADER_BYTES || u16_at(bytes, MAGIC_AT) != RECORD_MAGIC {
            return None;
        }
        Some(Self {
            len: u32_at(bytes, LEN_AT),
            seq: u64_at(bytes, SEQ_AT),
            appended_at_us: u64_at(bytes, TIME_AT) as i64,
            lag: u32_at(bytes, LAG_AT),
            class: bytes[CLASS_AT],
        })
    }
}

/// Fills in lag and checksum of a record that [`RecordHeader::put`] began; `record` is header and payload.
pub(crate) fn seal(record: &mut [u8], salt: u32, lag: u32) {
    record[LAG_AT..CLASS_AT].copy_from_slice(&lag.to_le_bytes());
    let crc = crc32c::crc32c_append(salt, &record[LEN_AT..]);
    record[..LEN_AT].copy_from_slice(&crc.to_le_bytes());
}

/// True where the checksum of header and payload fits this segment.
pub(crate) fn is_whole(record: &[u8], salt: u32) -> bool {
    u32_at(record, 0) == crc32c::crc32c_append(salt, &record[LEN_AT..])
}

/// The next place at or after `from` where a record's magic stands, as an offset of the record's start.
pub(crate) fn find_magic(bytes: &[u8], from: usize) -> Option<usize> {
    let magic = RECORD_MAGIC.to_le_bytes();
    let mut at = from;
    while at + RECORD_HEADER_BYTES <= bytes.len() {
        if bytes[at + MAGIC_AT] == magic[0] && bytes[at + MAGIC_AT + 1] == magic[1] {
            return Some(at);
        }
        at += 1;
    }
    None
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let mut word = [0; 2];
    word.copy_from_slice(&bytes[at..at + 2]);
    u16::from_le_bytes(word)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn golden_segment_header_version_1() {
        let header = SegmentHeader { id: 7, epoch: 0x1122_3344_5566_7788, first_seq: 42, created_at_us: -1 };
        let bytes = header.encode();
        let copy = "4d55535445524a0a01000000000000000700000000000000\
                    88776655443322112a00000000000000ffffffffffffffff000000000000000000000000";
        assert_eq!(hex(&bytes[..60]), copy);
        assert_eq!(bytes[..64], bytes[64..]);
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
    }

    #[test]
    fn golden_record_version_1() {
        let mut bytes = vec![0; RECORD_HEADER_BYTES];
        RecordHeader { len: 2, seq: 9, appended_at_us: 1_000_000, lag: 0, class: 3 }.put(&mut bytes);
        bytes.extend_from_slice(b"hi");
        seal(&mut bytes, salt(7, 8), 4);
        assert_eq!(
            hex(&bytes[4..]),
            "02000000090000000000000040420f000000000004000000\
                    0300e7b56869"
        );
        assert!(is_whole(&bytes, salt(7, 8)));
        assert!(!is_whole(&bytes, salt(7, 9)));
        assert_eq!(RecordHeader::get(&bytes).expect("magic").durable_before(), 5);
    }

    #[test]
    fn header_survives_any_single_flipped_bit_and_names_a_newer_version() {
        let header = SegmentHeader { id: 1, epoch: 2, first_seq: 3, created_at_us: 4 };
        let bytes = header.encode();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&damaged), Ok(header), "bit {bit}");
        }
        let mut newer = bytes;
        for copy in newer.chunks_exact_mut(HEADER_COPY_BYTES) {
            copy[8] = 2;
            let crc = crc32c::crc32c(&copy[..60]);
            copy[60..].copy_from_slice(&crc.to_le_bytes());
        }
        assert_eq!(SegmentHeader::decode(&newer), Err(HeaderFault::Version(2)));
    }
}
