//! Replays a file of sound in blocks, as a microphone would give them: in real time, faster, or as fast as it is taken.
//!
//! Several channels become one, their mean. The file is streamed, so its size does not matter; the last block is
//! shorter where the sound ends. A block's time is that of its end, and it is given then. Limit: a second of sound in a
//! block; with the 64 blocks that wait for a pipeline and 16,000 samples a second that is 4 MB at most. A file that
//! fails while it is read ends its round.

mod wav;

pub use wav::Encoding;

use super::{Content, Ended, Sample, SourceContext};
use crate::config::{Pace, PcmFormat, PcmSource, SOUND_CHANNELS_MAX, SOUND_RATE_HZ_MIN, Wrap};
use crate::supervisor::chain;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Why a file cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum PcmError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The header is not what it should be.
    #[error("{}: {field}: expected {expected}, found {found}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The header's field.
        field: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
}

/// The rate of a file's sound, where it can be told before it is replayed.
#[must_use]
pub fn rate_hz(config: &PcmSource) -> Option<u32> {
    config.rate_hz.or_else(|| PcmReader::open(config).ok().map(|reader| reader.shape().rate_hz))
}

/// How the samples of a file are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcmShape {
    /// Samples a second and channel.
    pub rate_hz: u32,
    /// Channels, side by side.
    pub channels: u16,
    /// Of one sample.
    pub encoding: Encoding,
}

/// Streams blocks of one channel.
#[derive(Debug)]
pub struct PcmReader {
    path: PathBuf,
    shape: PcmShape,
    bytes: std::io::Take<BufReader<File>>,
    raw: Vec<u8>,
}

impl PcmReader {
    /// Opens the file and reads its header.
    ///
    /// # Errors
    /// The file cannot be read, or its header names the field that does not fit.
    pub fn open(config: &PcmSource) -> Result<Self, PcmError> {
        let path = config.path.clone();
        let read_error = |source| PcmError::Read { path: path.clone(), source };
        let mut bytes = BufReader::new(File::open(&path).map_err(read_error)?);
        let (shape, length) = match config.format {
            PcmFormat::Wav => wav::read_header(&mut bytes, &path)?,
            PcmFormat::S16le => {
                let rate_hz = config.rate_hz.unwrap_or(SOUND_RATE_HZ_MIN);
                let channels = config.channels.unwrap_or(1).clamp(1, SOUND_CHANNELS_MAX);
                (PcmShape { rate_hz, channels, encoding: Encoding::Int16 }, u64::MAX)
            }
        };
        Ok(Self { path, shape, bytes: bytes.take(length), raw: Vec::new() })
    }

    /// How the samples are stored.
    #[must_use]
    pub fn shape(&self) -> PcmShape {
        self.shape
    }

    /// The next samples, at most `count` a channel, -1 to 1; None at the end. A moment that is not whole is left out.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn next_block(&mut self, count: usize) -> Result<Option<Vec<f32>>, PcmError> {
        let encoding = self.shape.encoding;
        let moment = encoding.bytes() * usize::from(self.shape.channels);
        self.raw.clear();
        let wanted = (count * moment) as u64;
        let read = (&mut self.bytes).take(wanted).read_to_end(&mut self.raw);
        read.map_err(|source| PcmError::Read { path: self.path.clone(), source })?;
        let mono = |moment: &[u8]| {
            let sum: f32 = moment.chunks_exact(encoding.bytes()).map(|bytes| encoding.sample(bytes)).sum();
            sum / f32::from(self.shape.channels)
        };
        let samples: Vec<f32> = self.raw.chunks_exact(moment).map(mono).collect();
        Ok((!samples.is_empty()).then_some(samples))
    }
}

/// Reads a file's header, and its first block.
///
/// # Errors
/// The file cannot be read, or its header names the field that does not fit.
pub fn check(config: &PcmSource) -> Result<PcmShape, PcmError> {
    let mut reader = PcmReader::open(config)?;
    let shape = reader.shape();
    let empty = |path: &Path| PcmError::Header {
        path: path.to_owned(),
        field: "data",
        expected: "samples".into(),
        found: "none".into(),
    };
    match reader.next_block(1)? {
        Some(_) => Ok(shape),
        None => Err(empty(&config.path)),
    }
}

pub(super) async fn run(config: PcmSource, mut context: SourceContext) -> Result<(), PcmError> {
    let start = Instant::now();
    let (mut number, mut given) = (0, Duration::ZERO);
    loop {
        let before = number;
        let mut reader = PcmReader::open(&config)?;
        let rate_hz = reader.shape().rate_hz;
        let count = rate_hz as usize * config.block_ms as usize / 1_000;
        loop {
            let samples = match reader.next_block(count) {
                Ok(Some(samples)) => samples,
                Ok(None) => break,
                Err(error) => {
                    let (source, error) = (&config.name, chain(&error));
                    tracing::error!(source, error, "the file's rest is not replayed");
                    break;
                }
            };
            number += 1;
            given += Duration::from_secs_f64(samples.len() as f64 / f64::from(rate_hz));
            let due = match config.pace {
                Pace::Timed => given.div_f64(config.speed),
                Pace::Fastest => Duration::ZERO,
            };
            let content = Content::Audio { samples: samples.into(), rate_hz, number };
            if replay(content, due.saturating_sub(start.elapsed()), &mut context).await == Err(Ended) {
                return Ok(());
            }
        }
        if config.wrap == Wrap::Once || number == before {
            tracing::info!(source = config.name, blocks = number, "replay is done");
            return Ok(());
        }
    }
}

async fn replay(content: Content, wait: Duration, context: &mut SourceContext) -> Result<(), Ended> {
    if !wait.is_zero() {
        context.pause(wait).await?;
    }
    let measured_at_us = context.clock.now_us();
    context.send(Sample { measured_at_us, content }).await
}

/// A block's levels in dB of full scale: a sine wave that reaches 1 has an RMS level of -3.01 and a peak of 0. Silence has
/// [`SILENCE_DBFS`].
#[must_use]
pub fn levels(samples: &[f32]) -> [(Arc<str>, f64); 2] {
    let square: f64 = samples.iter().map(|sample| f64::from(*sample).powi(2)).sum();
    let mean = square / samples.len().max(1) as f64;
    let peak = samples.iter().fold(0.0f64, |peak, sample| peak.max(f64::from(sample.abs())));
    let broken = samples.iter().any(|sample| !sample.is_finite());
    let dbfs = |amplitude: f64| if broken { f64::NAN } else { (20.0 * amplitude.log10()).max(SILENCE_DBFS) };
    [("level_dbfs".into(), dbfs(mean.sqrt())), ("peak_dbfs".into(), dbfs(peak))]
}

/// The level of silence, below what 24 bits can hold.
pub const SILENCE_DBFS: f64 = -160.0;

#[cfg(test)]
mod tests;
