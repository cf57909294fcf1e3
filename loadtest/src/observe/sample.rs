//! One look a second at what the server and this machine are doing, on a thread.
//!
//! `run` starts it and puts what it saw into the report. The server's process and address are looked up at each look:
//! one that is down, frozen or elsewhere gives none of its numbers, and never an error. Its processor time is summed up
//! over restarts; what a killed process used since the look before is lost to it and counts as other load.
//! Bounds: [`SECONDS_MAX`] seconds wait to be taken (then the oldest go), [`SCRAPE_TIME_MAX`] for the server's answer.

use super::handle::ServerHandle;
use super::http::Client;
use super::scrape::LogMarks;
use crate::meter::{cpu_s, machine_busy_s, rss_bytes};
use crate::report::model;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, VecDeque};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Looks that wait to be taken.
pub const SECONDS_MAX: usize = model::SAMPLES_MAX;
/// The longest wait for the server's metrics: a frozen one must not delay the next look.
pub const SCRAPE_TIME_MAX: Duration = Duration::from_millis(500);
/// The unit in which the system counts a file's blocks, whatever the file system.
const BLOCK_BYTES: u64 = 512;
/// Between two looks at whether to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// What a look saw of the second before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Second {
    /// When it looked.
    pub at: Instant,
    /// Cores that the server kept busy.
    pub server_cpu_cores: Option<f64>,
    /// Its memory.
    pub server_rss_bytes: Option<u64>,
    /// Its open files.
    pub server_files: Option<u64>,
    /// Its event log.
    pub log: LogMarks,
    /// Cores that the generator's processes kept busy.
    pub generator_cpu_cores: f64,
    /// Cores that all else kept busy, time taken by the host included.
    pub other_load_cores: f64,
}

impl Second {
    /// Writes what it saw into a sample.
    pub fn fill(&self, sample: &mut model::Sample) {
        sample.server_cpu_cores = self.server_cpu_cores;
        sample.server_rss_bytes = self.server_rss_bytes;
        sample.server_files = self.server_files;
        sample.log_depth = self.log.depth();
        sample.log_bytes = self.log.bytes;
        sample.rules_lag = self.log.rules_lag();
        sample.generator_cpu_cores = self.generator_cpu_cores;
        sample.other_load_cores = self.other_load_cores;
    }
}

/// The looking thread; dropping it ends it.
pub struct Sampler {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    looks: Mutex<Looks>,
}

struct Looks {
    meters: Meters,
    seconds: VecDeque<Second>,
}

impl Sampler {
    /// Begins to look; `generator` are this run's other processes.
    ///
    /// # Errors
    /// `/proc` cannot be read, or no thread started.
    pub fn start(server: &ServerHandle, generator: Vec<u32>) -> Result<Self> {
        let meters = Meters::start(server, generator)?;
        let looks = Mutex::new(Looks { meters, seconds: VecDeque::new() });
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), looks });
        let (mine, client) = (shared.clone(), Client::new(server, "").time_max(SCRAPE_TIME_MAX));
        let thread = std::thread::Builder::new().name("sampler".into()).spawn(move || mine.run(client));
        Ok(Self { shared, thread: Some(thread.context("cannot start a thread")?) })
    }

    /// What was seen since the last call.
    #[must_use]
    pub fn take(&self) -> Vec<Second> {
        self.shared.lock().seconds.drain(..).collect()
    }

    /// The cost is counted from here on.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn begin_cost(&self) -> Result<()> {
        self.shared.lock().meters.begin()
    }

    /// What it cost since then.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn cost(&self) -> Result<model::Cost> {
        self.shared.lock().meters.cost()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Looks> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut client: Client) {
        let mut next = Instant::now() + INTERVAL;
        while !self.stop.load(Ordering::Acquire) {
            let left = next.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                std::thread::sleep(left.min(STOP_INTERVAL));
                continue;
            }
            // A look that came late is followed by the next at its own time.
            while next <= Instant::now() {
                next += INTERVAL;
            }
            let log = LogMarks::of(&mut client).unwrap_or_default();
            let mut looks = self.lock();
            // Without `/proc` there is nothing to tell; the cost says so at the end.
            if let Ok(second) = looks.meters.look(log) {
                keep(&mut looks.seconds, second);
            }
        }
    }
}

fn keep(seconds: &mut VecDeque<Second>, second: Second) {
    if seconds.len() >= SECONDS_MAX {
        seconds.pop_front();
    }
    seconds.push_back(second);
}

/// The counters behind the looks.
struct Meters {
    server: ServerHandle,
    track: ServerTrack,
    generator: Processes,
    at: Instant,
    /// Sums at the last look.
    last: Sums,
    began: Instant,
    /// Sums where the cost began.
    start: Sums,
    rss_max: Option<u64>,
    files_max: Option<u64>,
    stored_start: Option<u64>,
}

/// CPU seconds so far.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    server: f64,
    generator: f64,
    machine: f64,
}

impl Meters {
    fn start(server: &ServerHandle, generator: Vec<u32>) -> Result<Self> {
        let now = Instant::now();
        let mut meters = Self {
            server: server.clone(),
            track: ServerTrack::default(),
            generator: Processes::new(generator),
            at: now,
            last: Sums::default(),
            began: now,
            start: Sums::default(),
            rss_max: None,
            files_max: None,
            stored_start: None,
        };
        meters.begin()?;
        Ok(meters)
    }

    fn sums(&mut self) -> Result<Sums> {
        let server = self.track.cpu_s(self.server.facts().pid);
        Ok(Sums { server, generator: self.generator.cpu_s(), machine: machine_busy_s()? })
    }

    fn begin(&mut self) -> Result<()> {
        self.start = self.sums()?;
        (self.began, self.at, self.last) = (Instant::now(), Instant::now(), self.start);
        (self.rss_max, self.files_max) = (None, None);
        self.note_memory();
        self.stored_start = self.stored_bytes();
        Ok(())
    }

    /// The server's memory and files now.
    fn note_memory(&mut self) -> (Option<u64>, Option<u64>) {
        let pid = self.server.facts().pid;
        let rss = pid.and_then(|pid| rss_bytes(pid).ok());
        let files = pid.and_then(open_files);
        (self.rss_max, self.files_max) = (self.rss_max.max(rss), self.files_max.max(files));
        (rss, files)
    }

    fn look(&mut self, log: LogMarks) -> Result<Second> {
        let (now, sums) = (Instant::now(), self.sums()?);
        let (server_rss_bytes, server_files) = self.note_memory();
        let cores = Cores::between(self.last, sums, now.duration_since(self.at));
        (self.at, self.last) = (now, sums);
        Ok(Second {
            at: now,
            server_cpu_cores: server_rss_bytes.map(|_| cores.server),
            server_rss_bytes,
            server_files,
            log,
            generator_cpu_cores: cores.generator,
            other_load_cores: cores.other,
        })
    }

    fn cost(&mut self) -> Result<model::Cost> {
        let sums = self.sums()?;
        self.note_memory();
        let cores = Cores::between(self.start, sums, self.began.elapsed());
        let grown = self.stored_start.zip(self.stored_bytes());
        Ok(model::Cost {
            // None where no process of it was ever seen.
            server_cpu_cores: self.rss_max.map(|_| cores.server),
            server_rss_bytes: self.rss_max,
            server_files: self.files_max,
            generator_cpu_cores: cores.generator,
            generator_rss_bytes: self.generator.rss_bytes(),
            other_load_cores: cores.other,
            stored_bytes: grown.map(|(start, end)| end.saturating_sub(start)),
        })
    }

    fn stored_bytes(&self) -> Option<u64> {
        self.server.facts().data_dir.as_deref().map(bytes_below)
    }
}

/// Cores kept busy between two looks.
struct Cores {
    server: f64,
    generator: f64,
    other: f64,
}

impl Cores {
    fn between(from: Sums, to: Sums, time: Duration) -> Self {
        let seconds = time.as_secs_f64().max(0.001);
        let (server, generator) = (to.server - from.server, to.generator - from.generator);
        let other = to.machine - from.machine - server - generator;
        let cores = |cpu_s: f64| (cpu_s / seconds).max(0.0);
        Self { server: cores(server), generator: cores(generator), other: cores(other) }
    }
}

/// One life of a process: ids are given again.
type Life = (u32, u64);

fn life(pid: u32) -> Option<Life> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 22, counted behind the command's name: when it was started.
    let started = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?;
    Some((pid, started.parse().ok()?))
}

/// The server's CPU seconds over its restarts; never less than before.
#[derive(Default)]
struct ServerTrack {
    life: Option<Life>,
    /// Of this life, at the last look.
    seen_s: f64,
    sum_s: f64,
    has_looked: bool,
}

impl ServerTrack {
    fn cpu_s(&mut self, pid: Option<u32>) -> f64 {
        let now = pid.and_then(|pid| Some((life(pid)?, cpu_s(pid).ok()?)));
        if let Some((life, cpu_s)) = now {
            if self.life == Some(life) {
                self.sum_s += (cpu_s - self.seen_s).max(0.0);
                self.seen_s = self.seen_s.max(cpu_s);
            } else {
                // A process that is new since the last look used all of its time since then.
                self.sum_s += if self.has_looked { cpu_s } else { 0.0 };
                (self.life, self.seen_s) = (Some(life), cpu_s);
            }
        }
        self.has_looked = true;
        self.sum_s
    }
}

/// This process and the run's others; one that ended keeps what it used.
struct Processes(BTreeMap<u32, f64>);

impl Processes {
    fn new(others: Vec<u32>) -> Self {
        Self(others.into_iter().chain([std::process::id()]).map(|pid| (pid, 0.0)).collect())
    }

    fn cpu_s(&mut self) -> f64 {
        for (pid, used) in &mut self.0 {
            *used = used.max(cpu_s(*pid).unwrap_or(0.0));
        }
        self.0.values().sum()
    }

    fn rss_bytes(&self) -> u64 {
        self.0.keys().filter_map(|pid| rss_bytes(*pid).ok()).sum()
    }
}

/// Linux 6.2 tells the count as the directory's size; before, the entries are counted.
fn open_files(pid: u32) -> Option<u64> {
    let dir = PathBuf::from(format!("/proc/{pid}/fd"));
    match std::fs::metadata(&dir).ok()?.len() {
        0 => Some(std::fs::read_dir(dir).ok()?.count() as u64),
        count => Some(count),
    }
}

/// Bytes of the files below a directory; what vanishes meanwhile is not counted. The server's has no links and two levels.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let bytes = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
        // What it takes of the disk: files may have holes.
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |meta| meta.blocks() * BLOCK_BYTES),
        _ => 0,
    };
    entries.flatten().map(bytes).sum()
}

#[cfg(test)]
mod tests;
