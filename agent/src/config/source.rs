//! `[[source]]`: one struct per kind.

use serde::Deserialize;
use std::path::PathBuf;

/// A source, told apart by `kind`.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SourceConfig {
    /// The machine itself.
    Host(HostSource),
    /// Rows of a file.
    Csv(CsvSource),
    /// Pictures of a folder or a list.
    Images(ImagesSource),
}

/// `kind = "host"`: CPU, memory, disk, network and temperature of this machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSource {
    /// Unique among the sources.
    pub name: String,
    /// 200 to 86,400,000 ms; absent: 5,000.
    #[serde(default = "host_interval_ms")]
    pub interval_ms: u64,
    /// The mount point whose use is measured; absent: `/`.
    #[serde(default = "root")]
    pub disk: PathBuf,
}

/// `kind = "csv"`: a file with a header line, replayed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CsvSource {
    /// Unique among the sources.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// The columns to read; absent: all but the timestamp.
    #[serde(default)]
    pub columns: Vec<String>,
    /// Seconds, milliseconds or microseconds since 1970, or `YYYY-MM-DD HH:MM:SS`: gives the rows' timing.
    pub timestamp_column: Option<String>,
    /// Rows a second where no column gives the timing, above 0 and up to 100,000.
    pub rate_hz: Option<f64>,
    /// Divides the waits: 60 replays an hour in a minute. Absent: 1.
    #[serde(default = "one")]
    pub speed: f64,
    /// `timed` (absent), or `fastest`: as fast as the queue takes rows.
    #[serde(default)]
    pub pace: Pace,
    /// `once` (absent), or `loop`.
    #[serde(default)]
    pub wrap: Wrap,
    /// Which time the readings carry: `replay` (absent: when the row was read) or `original`.
    #[serde(default)]
    pub stamp: Stamp,
}

/// When the next row comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// As the timestamps or the rate say.
    #[default]
    Timed,
    /// At once.
    Fastest,
}

/// What happens at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wrap {
    /// The source is done.
    #[default]
    Once,
    /// It starts again.
    Loop,
}

/// Which time a replayed reading carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stamp {
    /// The agent's time when the row was read.
    #[default]
    Replay,
    /// The row's own timestamp.
    Original,
}

/// `kind = "images"`: pictures, as a camera would give them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagesSource {
    /// Unique among the sources.
    pub name: String,
    /// A folder; its jpg, png and bmp files in the order of their names.
    pub folder: Option<PathBuf>,
    /// Or a list of files.
    #[serde(default)]
    pub files: Vec<PathBuf>,
    /// 1 to 86,400,000 ms between two pictures; absent: 1,000.
    #[serde(default = "image_interval_ms")]
    pub interval_ms: u64,
    /// `once` (absent), or `loop`.
    #[serde(default)]
    pub wrap: Wrap,
}

fn host_interval_ms() -> u64 {
    5_000
}

fn image_interval_ms() -> u64 {
    1_000
}

fn root() -> PathBuf {
    PathBuf::from("/")
}

fn one() -> f64 {
    1.0
}

impl SourceConfig {
    /// The source's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Host(host) => &host.name,
            Self::Csv(csv) => &csv.name,
            Self::Images(images) => &images.name,
        }
    }

    pub(super) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let (one, many): (Option<&mut PathBuf>, &mut [PathBuf]) = match self {
            Self::Host(_) => (None, &mut []),
            Self::Csv(csv) => (Some(&mut csv.path), &mut []),
            Self::Images(images) => (images.folder.as_mut(), &mut images.files),
        };
        one.into_iter().chain(many.iter_mut())
    }
}
