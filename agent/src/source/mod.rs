//! Reads the world: the machine itself, rows of a file, lines of a child process, pictures, sound.
//!
//! Started by [`crate::app`]; each source is handed the senders of the pipelines that read it and calls nothing
//! else. Promise: values keep their order; a full pipeline makes its source wait, and the beats of the `host` source that
//! fall due meanwhile are skipped, so nothing is buffered without bound. Limit: 64 samples per pipeline.

mod csv;
mod exec;
mod host;
mod images;
mod pcm;
mod time;

pub use csv::{CsvError, CsvReader, LINES_CHECKED_MAX, Schedule, check as check_csv};
pub use exec::{ExecError, check as check_exec};
pub use pcm::{
    Encoding, PcmError, PcmReader, PcmShape, SILENCE_DBFS, check as check_pcm, levels, rate_hz as pcm_rate_hz,
};

use crate::clock::SharedClock;
use crate::config::SourceConfig;
use crate::metrics::Metrics;
use crate::supervisor::{Exit, Stop};
use muster_wire::Value;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Samples that wait for one pipeline: enough to ride out a slow inference, few enough to stay in memory.
const SAMPLES_WAITING_MAX: usize = 64;

/// What a source read at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Microseconds since 1970.
    pub measured_at_us: i64,
    /// The row, the picture or the sound.
    pub content: Content,
}

/// A sample's values.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Named values, in the source's order.
    Row {
        /// Name and value; a value may still be against the wire's rules.
        values: Vec<(Arc<str>, Value)>,
        /// The row's number, from 1.
        number: u64,
    },
    /// A picture, still on the disk.
    Image {
        /// The file.
        path: PathBuf,
    },
    /// A block of sound; it ends when the sample was measured.
    Audio {
        /// One channel, -1 to 1.
        samples: Arc<[f32]>,
        /// Samples a second.
        rate_hz: u32,
        /// The block's number, from 1.
        number: u64,
    },
}

/// Everything a source needs.
#[derive(Clone)]
pub struct SourceContext {
    /// Stamps.
    pub clock: SharedClock,
    /// Counts.
    pub metrics: Metrics,
    /// Ends the source.
    pub stop: Stop,
    /// The pipelines that read it.
    pub sinks: Vec<mpsc::Sender<Sample>>,
}

/// The way of samples to one pipeline.
#[must_use]
pub fn sample_channel() -> (mpsc::Sender<Sample>, mpsc::Receiver<Sample>) {
    mpsc::channel(SAMPLES_WAITING_MAX)
}

/// Nobody reads the source any more, or the agent stops.
#[derive(Debug, PartialEq, Eq)]
struct Ended;

impl SourceContext {
    /// Hands a sample to every pipeline, waiting for room.
    async fn send(&mut self, sample: Sample) -> Result<(), Ended> {
        self.metrics.samples.inc();
        let (last, others) = self.sinks.split_last().ok_or(Ended)?;
        for sink in others {
            tokio::select! {
                sent = sink.send(sample.clone()) => sent.map_err(|_| Ended)?,
                () = self.stop.wait() => return Err(Ended),
            }
        }
        tokio::select! {
            sent = last.send(sample) => sent.map_err(|_| Ended),
            () = self.stop.wait() => Err(Ended),
        }
    }

    /// Waits; `Ended` where the agent stops first.
    async fn pause(&mut self, wait: std::time::Duration) -> Result<(), Ended> {
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = self.stop.wait() => Err(Ended),
        }
    }
}

/// Runs a source until it is done or the agent stops.
pub async fn run(config: SourceConfig, context: SourceContext) -> Exit {
    match config {
        SourceConfig::Host(host) => host::run(host, context).await,
        SourceConfig::Csv(csv) => csv::run(csv, context).await.into(),
        SourceConfig::Images(images) => images::run(images, context).await.into(),
        SourceConfig::Exec(exec) => exec::run(exec, context).await.into(),
        SourceConfig::Pcm(pcm) => pcm::run(pcm, context).await.into(),
    }
}
