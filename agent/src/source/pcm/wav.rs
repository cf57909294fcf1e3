//! The header of a RIFF WAVE file, as Microsoft's Multimedia Programming Interface (1991) and `WAVEFORMATEXTENSIBLE` have it.

use super::{PcmError, PcmShape};
use crate::config::{SOUND_CHANNELS_MAX, SOUND_RATE_HZ_MAX, SOUND_RATE_HZ_MIN};
use std::fmt::Display;
use std::io::{BufRead, Read};
use std::path::Path;

/// Chunks before the samples.
const CHUNKS_MAX: usize = 64;
/// Bytes of a chunk before the samples: pictures and names may stand there.
const CHUNK_BYTES_MAX: u32 = 64 << 20;

/// How one sample is stored, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// 8 bits, 128 is silence.
    Uint8,
    /// 16 bits.
    Int16,
    /// 24 bits.
    Int24,
    /// 32 bits.
    Int32,
    /// IEEE float.
    Float32,
}

impl Encoding {
    /// Bytes of a sample.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Uint8 => 1,
            Self::Int16 => 2,
            Self::Int24 => 3,
            Self::Int32 | Self::Float32 => 4,
        }
    }

    /// What a format tag and a number of bits mean.
    fn of(tag: u16, bits: u16) -> Option<Self> {
        match (tag, bits) {
            (TAG_PCM, 8) => Some(Self::Uint8),
            (TAG_PCM, 16) => Some(Self::Int16),
            (TAG_PCM, 24) => Some(Self::Int24),
            (TAG_PCM, 32) => Some(Self::Int32),
            (TAG_FLOAT, 32) => Some(Self::Float32),
            _ => None,
        }
    }

    /// One sample, -1 to 1; 0 for another number of bytes than [`Self::bytes`].
    pub(super) fn sample(self, bytes: &[u8]) -> f32 {
        match (self, bytes) {
            (Self::Uint8, [a]) => (f32::from(*a) - 128.0) / 128.0,
            (Self::Int16, [a, b]) => f32::from(i16::from_le_bytes([*a, *b])) / 32_768.0,
            (Self::Int24, [a, b, c]) => i32::from_le_bytes([0, *a, *b, *c]) as f32 / 2_147_483_648.0,
            (Self::Int32, [a, b, c, d]) => i32::from_le_bytes([*a, *b, *c, *d]) as f32 / 2_147_483_648.0,
            (Self::Float32, [a, b, c, d]) => f32::from_le_bytes([*a, *b, *c, *d]),
            _ => 0.0,
        }
    }
}

const TAG_PCM: u16 = 1;
const TAG_FLOAT: u16 = 3;
/// The tag stands in the first bytes of `SubFormat` then.
const TAG_EXTENSIBLE: u16 = 0xfffe;

/// Reads up to the first sample. Returns how samples are stored, and how many bytes of them follow.
pub(super) fn read_header(bytes: &mut impl BufRead, path: &Path) -> Result<(PcmShape, u64), PcmError> {
    let mut header = Header { bytes, path };
    let [riff, _, wave] = header.words("RIFF")?;
    header.ensure(&riff == b"RIFF", "RIFF", "\"RIFF\" at the file's start", riff.escape_ascii())?;
    header.ensure(&wave == b"WAVE", "WAVE", "\"WAVE\" at byte 8", wave.escape_ascii())?;
    let mut shape = None;
    for _ in 0..CHUNKS_MAX {
        let [name, length] = header.words("data")?;
        let length = u32::from_le_bytes(length);
        match (&name, shape) {
            (b"data", Some(shape)) => {
                // A recorder that was cut off, or wrote to a pipe, left no length.
                let endless = length == 0 || length == u32::MAX;
                return Ok((shape, if endless { u64::MAX } else { u64::from(length) }));
            }
            (b"data", None) => header.ensure(false, "fmt", "a chunk \"fmt \" before \"data\"", "none")?,
            (b"fmt ", _) => shape = Some(header.format(length)?),
            _ => header.skip(length)?,
        }
    }
    let expected = format!("a chunk \"data\" among the first {CHUNKS_MAX}");
    Err(header.wrong("data", expected, "none"))
}

struct Header<'a, R> {
    bytes: &'a mut R,
    path: &'a Path,
}

impl<R: BufRead> Header<'_, R> {
    fn wrong(&self, field: &'static str, expected: impl Display, found: impl Display) -> PcmError {
        let (expected, found) = (expected.to_string(), found.to_string());
        PcmError::Header { path: self.path.to_owned(), field, expected, found }
    }

    fn ensure(
        &self,
        holds: bool,
        field: &'static str,
        expected: impl Display,
        found: impl Display,
    ) -> Result<(), PcmError> {
        if holds { Ok(()) } else { Err(self.wrong(field, expected, found)) }
    }

    fn fill(&mut self, field: &'static str, into: &mut [u8]) -> Result<(), PcmError> {
        self.bytes.read_exact(into).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => self.wrong(field, "more bytes", "the file's end"),
            _ => PcmError::Read { path: self.path.to_owned(), source },
        })
    }

    fn words<const COUNT: usize>(&mut self, field: &'static str) -> Result<[[u8; 4]; COUNT], PcmError> {
        let mut words = [[0; 4]; COUNT];
        self.fill(field, words.as_flattened_mut())?;
        Ok(words)
    }

    /// Skips the rest of a chunk; chunks begin at even places.
    fn skip(&mut self, length: u32) -> Result<(), PcmError> {
        self.ensure(length <= CHUNK_BYTES_MAX, "chunk", format!("at most {CHUNK_BYTES_MAX} bytes"), length)?;
        let wanted = u64::from(length) + u64::from(length % 2);
        let skipped = std::io::copy(&mut (&mut *self.bytes).take(wanted), &mut std::io::sink());
        skipped.map_err(|source| PcmError::Read { path: self.path.to_owned(), source })?;
        Ok(())
    }

    fn format(&mut self, length: u32) -> Result<PcmShape, PcmError> {
        self.ensure(length >= 16, "fmt", "at least 16 bytes", length)?;
        let mut fields = [0; 16];
        self.fill("fmt", &mut fields)?;
        let short = |at: usize| u16::from_le_bytes([fields[at], fields[at + 1]]);
        let (mut tag, channels, align, bits) = (short(0), short(2), short(12), short(14));
        let rate_hz = u32::from_le_bytes([fields[4], fields[5], fields[6], fields[7]]);
        let mut left = length - 16;
        if tag == TAG_EXTENSIBLE && left >= 24 {
            let mut extension = [0; 24];
            self.fill("fmt", &mut extension)?;
            tag = u16::from_le_bytes([extension[8], extension[9]]);
            left -= 24;
        }
        let tags = "1 (integers) or 3 (floats)";
        self.ensure(tag == TAG_PCM || tag == TAG_FLOAT, "format tag", tags, tag)?;
        let depths = if tag == TAG_PCM { "8, 16, 24 or 32" } else { "32" };
        let encoding = Encoding::of(tag, bits).ok_or_else(|| self.wrong("bits", depths, bits))?;
        let most = SOUND_CHANNELS_MAX;
        self.ensure((1..=most).contains(&channels), "channels", format!("1 to {most}"), channels)?;
        let (low, high) = (SOUND_RATE_HZ_MIN, SOUND_RATE_HZ_MAX);
        self.ensure((low..=high).contains(&rate_hz), "rate", format!("{low} to {high} Hz"), rate_hz)?;
        let whole = usize::from(channels) * encoding.bytes();
        self.ensure(usize::from(align) == whole, "block align", format!("{whole} bytes"), align)?;
        self.skip(left)?;
        Ok(PcmShape { rate_hz, channels, encoding })
    }
}
