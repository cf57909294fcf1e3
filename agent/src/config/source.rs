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
    /// Lines of a child process.
    Exec(ExecSource),
    /// Sound of a file.
    Pcm(PcmSource),
}

impl SourceConfig {
    /// Why the keys of a source are refused, with the place; none where they are not, or the kind is unknown.
    pub(super) fn error_in(keys: &str) -> Option<toml::de::Error> {
        let kind = toml::from_str::<toml::Table>(keys).ok()?.get("kind")?.as_str()?.to_owned();
        let is_kind = |line: &str| {
            line.split('=').next().is_some_and(|key| key.trim().trim_matches(['"', '\'']) == "kind")
        };
        // As many bytes, so that places stay.
        let blank = |line: &str| " ".repeat(line.trim_end_matches('\n').len()) + "\n";
        let keys: String = keys
            .split_inclusive('\n')
            .map(|line| if is_kind(line) { blank(line) } else { line.to_owned() })
            .collect();
        // A value over several lines is still in there.
        toml::from_str::<toml::Table>(&keys).ok()?;
        match kind.as_str() {
            "host" => toml::from_str::<HostSource>(&keys).err(),
            "csv" => toml::from_str::<CsvSource>(&keys).err(),
            "images" => toml::from_str::<ImagesSource>(&keys).err(),
            "exec" => toml::from_str::<ExecSource>(&keys).err(),
            "pcm" => toml::from_str::<PcmSource>(&keys).err(),
            _ => None,
        }
    }
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

/// `kind = "exec"`: lines that a child process writes to its standard output.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecSource {
    /// Unique among the sources.
    pub name: String,
    /// The program and its arguments; no shell. A program with a `/` counts from the file's folder, another is
    /// looked up in `PATH`.
    pub command: Vec<String>,
    /// Names of the numbers in a line; absent: a line is a JSON object.
    #[serde(default)]
    pub columns: Vec<String>,
    /// 200 to 86,400,000 ms between two starts of the child; absent: it runs on.
    pub interval_ms: Option<u64>,
    /// 1 to 86,400,000 ms: the longest run beside `interval_ms` (absent: 5,000), else the longest silence (absent:
    /// any).
    pub timeout_ms: Option<u64>,
    /// The configuration file's folder.
    #[serde(skip)]
    pub folder: PathBuf,
}

impl ExecSource {
    /// The program's file, or its bare name.
    #[must_use]
    pub fn program(&self) -> PathBuf {
        let program = self.command.first().map_or("", String::as_str);
        if program.contains('/') { self.folder.join(program) } else { program.into() }
    }
}

/// `kind = "pcm"`: a file of sound, given in blocks as a microphone would.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PcmSource {
    /// Unique among the sources.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// `wav` (absent), or `s16le`: samples without a header.
    #[serde(default)]
    pub format: PcmFormat,
    /// Samples a second and channel of an `s16le` file, 1,000 to 192,000.
    pub rate_hz: Option<u32>,
    /// Channels of an `s16le` file, 1 to 8.
    pub channels: Option<u16>,
    /// 10 to 1,000 ms of sound in a block; absent: 1,000.
    #[serde(default = "block_ms")]
    pub block_ms: u32,
    /// Divides the waits. Absent: 1.
    #[serde(default = "one")]
    pub speed: f64,
    /// `timed` (absent), or `fastest`: as fast as the queue takes blocks.
    #[serde(default)]
    pub pace: Pace,
    /// `once` (absent), or `loop`.
    #[serde(default)]
    pub wrap: Wrap,
}

/// What stands in a file of sound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PcmFormat {
    /// RIFF WAVE: integers of 8, 16, 24 or 32 bits, or 32-bit floats.
    #[default]
    Wav,
    /// 16-bit integers, little-endian, the channels of one moment side by side.
    S16le,
}

fn block_ms() -> u32 {
    1_000
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
            Self::Exec(exec) => &exec.name,
            Self::Pcm(pcm) => &pcm.name,
        }
    }

    pub(super) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let (one, many): (Option<&mut PathBuf>, &mut [PathBuf]) = match self {
            Self::Host(_) => (None, &mut []),
            Self::Csv(csv) => (Some(&mut csv.path), &mut []),
            Self::Images(images) => (images.folder.as_mut(), &mut images.files),
            Self::Exec(exec) => (Some(&mut exec.folder), &mut []),
            Self::Pcm(pcm) => (Some(&mut pcm.path), &mut []),
        };
        one.into_iter().chain(many.iter_mut())
    }
}
