//! Reads lines that a child process writes: JSON objects, or numbers that the configuration names.
//!
//! Without an interval the child runs on; when it ends or is silent too long the source fails, and its supervisor starts
//! both again after 0.2 s, doubling to 60 s. With an interval it is started each time and read to its end; runs never
//! overlap. Each child leads a process group of its own: what is left of the group when the run ends is killed, and the
//! child is reaped. A child that writes faster than its pipelines take is held back by the pipe.
//!
//! Limits: a line of 64 KiB, 1,000 fields. A bad line is counted (`agent_refused_total{reason="bad_row"}`), told (the
//! first ten of a start) and passed over. Standard error goes to the log, 256 bytes of a line: the first ten lines of a
//! start as warnings, further ones for debugging only.

use super::csv::{LINE_BYTES_MAX, told};
use super::{Content, Ended, Sample, SourceContext};
use crate::config::ExecSource;
use crate::metrics::{ExecEnd, Refusal};
use muster_wire::{METRICS_PER_DEVICE_MAX, Value};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

/// The longest run where an interval but no timeout is set.
const RUN_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a child may take to leave once it closed its output or was told to end.
const LEAVE_TIME_MAX: Duration = Duration::from_secs(1);
/// How often it is looked whether it left.
const LEAVE_LOOK: Duration = Duration::from_millis(10);
/// Bytes of a line of standard error that the log shows.
const COMPLAINT_BYTES_MAX: usize = 256;
/// Lines of standard error that are warnings.
const COMPLAINTS_TOLD_MAX: u64 = 10;

/// Why a child gave no more lines.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// There is no such program.
    #[error("command: expected a program in PATH or a path to one, found {program:?}")]
    NotFound {
        /// What was looked for.
        program: PathBuf,
    },
    /// It may not be executed.
    #[error("command: expected a file that this user may execute, found {}", program.display())]
    NotExecutable {
        /// The file.
        program: PathBuf,
    },
    /// It did not start.
    #[error("cannot start {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its output or its end cannot be read.
    #[error("cannot read what {} gives", program.display())]
    Read {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It ended.
    #[error("{} ended: {status}", program.display())]
    Ended {
        /// The program.
        program: PathBuf,
        /// How.
        status: ExitStatus,
    },
    /// It ran or was silent for too long.
    #[error("{} {what} {timeout_ms} ms, it was killed", program.display())]
    Timeout {
        /// The program.
        program: PathBuf,
        /// What it did for so long.
        what: &'static str,
        /// The bound.
        timeout_ms: u128,
    },
}

/// Why a run ends before its child.
enum Halt {
    /// The agent stops, or nobody reads the source any more.
    Stopped,
    Failed(ExecError),
}

impl From<Ended> for Halt {
    fn from(Ended: Ended) -> Self {
        Self::Stopped
    }
}

/// Finds the program as a start would.
///
/// # Errors
/// It is not there or may not be executed.
pub fn check(config: &ExecSource) -> Result<PathBuf, ExecError> {
    let program = config.program();
    let executable =
        |file: &Path| file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok();
    if program.components().count() > 1 {
        return match (executable(&program), program.exists()) {
            (true, _) => Ok(program),
            (false, true) => Err(ExecError::NotExecutable { program }),
            (false, false) => Err(ExecError::NotFound { program }),
        };
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&folders).map(|folder| folder.join(&program)).find(|file| executable(file));
    found.ok_or(ExecError::NotFound { program })
}

pub(super) async fn run(config: ExecSource, context: SourceContext) -> Result<(), ExecError> {
    let columns = config.columns.iter().map(|name| Arc::from(name.as_str())).collect();
    let mut reader =
        Reader { config, context, columns, lines: 0, rows: 0, bad: 0, complaints: Arc::default() };
    let Some(interval_ms) = reader.config.interval_ms else {
        let program = reader.config.program();
        return match reader.run_once().await {
            Ok(status) => Err(ExecError::Ended { program, status }),
            Err(Halt::Failed(error)) => Err(error),
            Err(Halt::Stopped) => Ok(()),
        };
    };
    let mut beat = tokio::time::interval(Duration::from_millis(interval_ms));
    beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = beat.tick() => {}
            () = reader.context.stop.wait() => return Ok(()),
        }
        let name = &reader.config.name.clone();
        match reader.run_once().await {
            Ok(status) if status.success() => {}
            Ok(status) => tracing::warn!(source = name, %status, "the command failed"),
            Err(Halt::Failed(error)) => {
                tracing::warn!(source = name, error = crate::supervisor::chain(&error), "the command failed");
            }
            Err(Halt::Stopped) => return Ok(()),
        }
    }
}

/// Runs the command and hands its lines on.
struct Reader {
    config: ExecSource,
    context: SourceContext,
    columns: Vec<Arc<str>>,
    lines: u64,
    rows: u64,
    bad: u64,
    complaints: Arc<AtomicU64>,
}

impl Reader {
    async fn run_once(&mut self) -> Result<ExitStatus, Halt> {
        let run = self.run_uncounted().await;
        let end = match &run {
            Ok(status) if status.success() => ExecEnd::Success,
            Err(Halt::Failed(ExecError::Timeout { .. })) => ExecEnd::Timeout,
            Ok(_) | Err(Halt::Failed(_)) => ExecEnd::Failure,
            Err(Halt::Stopped) => return run,
        };
        self.context.metrics.exec_ended(end);
        run
    }

    async fn run_uncounted(&mut self) -> Result<ExitStatus, Halt> {
        let program = self.config.program();
        let started = Group::start(&self.config);
        let mut group =
            started.map_err(|source| Halt::Failed(ExecError::Start { program: program.clone(), source }))?;
        let (output, errors) = (group.child.stdout.take(), group.child.stderr.take());
        let mut complaints = JoinSet::new();
        if let Some(errors) = errors {
            complaints.spawn(tell(self.config.name.clone(), errors, Arc::clone(&self.complaints)));
        }
        let read = match output {
            Some(output) => self.read(BufReader::new(output), &group).await,
            None => Ok(()),
        };
        let status = group.end().await;
        read?;
        status.map_err(|source| Halt::Failed(ExecError::Read { program, source }))
    }

    /// Reads until the output's end, and waits for the child's.
    async fn read(&mut self, mut output: impl AsyncBufRead + Unpin, group: &Group) -> Result<(), Halt> {
        let timeout = self.config.timeout_ms.map(Duration::from_millis);
        let each_run = self.config.interval_ms.is_some();
        let mut left = if each_run { timeout.or(Some(RUN_TIME_MAX)) } else { timeout };
        let (bound, mut line) = (left, Vec::new());
        loop {
            let started = Instant::now();
            let read = tokio::select! {
                read = within(left, next_line(&mut output, &mut line, LINE_BYTES_MAX as usize - 1)) => read,
                () = self.context.stop.wait() => return Err(Halt::Stopped),
            };
            // What counts is the child's time; the time that a full pipeline takes does not.
            left = left.map(|left| if each_run { left.saturating_sub(started.elapsed()) } else { left });
            match read {
                Some(Ok(Line::End)) => break,
                Some(Ok(found)) if left != Some(Duration::ZERO) => self.take(&found, &line).await?,
                Some(Ok(_)) | None => return Err(self.timeout(bound)),
                Some(Err(source)) => {
                    let program = self.config.program();
                    return Err(Halt::Failed(ExecError::Read { program, source }));
                }
            }
        }
        let left = if each_run { left.unwrap_or(RUN_TIME_MAX) } else { LEAVE_TIME_MAX };
        tokio::select! {
            gone = group.leaves_within(left) => if gone { Ok(()) } else { Err(self.timeout(Some(left))) },
            () = self.context.stop.wait() => Err(Halt::Stopped),
        }
    }

    fn timeout(&self, bound: Option<Duration>) -> Halt {
        let what = if self.config.interval_ms.is_some() { "ran for more than" } else { "was silent for" };
        let timeout_ms = bound.unwrap_or_default().as_millis();
        Halt::Failed(ExecError::Timeout { program: self.config.program(), what, timeout_ms })
    }

    async fn take(&mut self, found: &Line, line: &[u8]) -> Result<(), Halt> {
        self.lines += 1;
        let row = match found {
            Line::TooLong => Err(format!("a line of less than {LINE_BYTES_MAX} bytes")),
            Line::Whole | Line::End => row(line, &self.columns),
        };
        match row {
            Ok(values) if values.is_empty() => {}
            Ok(values) => {
                self.rows += 1;
                let content = Content::Row { values, number: self.rows };
                let measured_at_us = self.context.clock.now_us();
                return Ok(self.context.send(Sample { measured_at_us, content }).await?);
            }
            Err(expected) => {
                self.bad += 1;
                self.context.metrics.refuse(Refusal::BadRow);
                if let Some(further) = told(self.bad) {
                    let (source, line) = (&self.config.name, self.lines);
                    tracing::warn!(source, line, expected, "bad line passed over{further}");
                }
            }
        }
        // A child that writes nothing of use waits for nothing else.
        tokio::task::yield_now().await;
        Ok(())
    }
}

/// A child and what it starts. Dropped before its end, all of it is killed.
struct Group {
    child: Child,
    id: Option<Pid>,
}

impl Group {
    fn start(config: &ExecSource) -> std::io::Result<Self> {
        let child = Command::new(config.program())
            .args(config.command.iter().skip(1))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            // The agent alone answers to the service manager.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_PID")
            .env_remove("WATCHDOG_USEC")
            .spawn()?;
        let id = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(Self { child, id })
    }

    /// Whether the child ended. It stays unreaped, so its number is nobody else's and the group can be signalled.
    fn has_left(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.id.is_none_or(|id| !matches!(waitid(WaitId::Pid(id), look), Ok(None)))
    }

    async fn leaves_within(&self, time: Duration) -> bool {
        let wait = async {
            while !self.has_left() {
                tokio::time::sleep(LEAVE_LOOK).await;
            }
        };
        tokio::time::timeout(time, wait).await.is_ok()
    }

    /// Ends what still runs: told first, killed a second later.
    async fn end(mut self) -> std::io::Result<ExitStatus> {
        if !self.has_left() {
            self.signal(Signal::TERM);
            self.leaves_within(LEAVE_TIME_MAX).await;
        }
        self.signal(Signal::KILL);
        let status = self.child.wait().await;
        self.id = None;
        status
    }

    fn signal(&self, signal: Signal) {
        if let Some(id) = self.id {
            // Nothing is left of a group that cannot be signalled.
            let _ = kill_process_group(id, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Hands standard error to the log until it is closed.
async fn tell(source: String, errors: impl AsyncRead + Unpin, told: Arc<AtomicU64>) {
    let (mut errors, mut line) = (BufReader::new(errors), Vec::new());
    while let Ok(Line::Whole | Line::TooLong) = next_line(&mut errors, &mut line, COMPLAINT_BYTES_MAX).await {
        let text = String::from_utf8_lossy(&line);
        if told.fetch_add(1, Ordering::Relaxed) < COMPLAINTS_TOLD_MAX {
            tracing::warn!(source, stderr = %text.escape_debug(), "the command complains");
        } else {
            tracing::debug!(source, stderr = %text.escape_debug(), "the command complains");
        }
    }
}

async fn within<T>(time: Option<Duration>, future: impl Future<Output = T>) -> Option<T> {
    match time {
        Some(time) => tokio::time::timeout(time, future).await.ok(),
        None => Some(future.await),
    }
}

/// What was read.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Whole,
    /// The line's first bytes; the others are skipped.
    TooLong,
    End,
}

async fn next_line(
    reader: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
    bytes_max: usize,
) -> std::io::Result<Line> {
    line.clear();
    let (mut found, mut started) = (Line::Whole, false);
    loop {
        let bytes = reader.fill_buf().await?;
        if bytes.is_empty() {
            return Ok(if started { found } else { Line::End });
        }
        started = true;
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let part = &bytes[..end.unwrap_or(bytes.len())];
        let room = bytes_max - line.len();
        line.extend_from_slice(&part[..part.len().min(room)]);
        if part.len() > room {
            found = Line::TooLong;
        }
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            return Ok(found);
        }
    }
}

type Row = Vec<(Arc<str>, Value)>;

/// A line's values; what was expected where it is bad.
fn row(line: &[u8], columns: &[Arc<str>]) -> Result<Row, String> {
    let text = std::str::from_utf8(line).map_err(|_| "UTF-8".to_owned())?.trim();
    match (text, columns) {
        ("", _) => Ok(Vec::new()),
        (text, []) => fields(text),
        (text, columns) => numbers(text, columns),
    }
}

/// Numbers in the order of the columns; between commas nothing may stand, which leaves its column out.
fn numbers(text: &str, columns: &[Arc<str>]) -> Result<Row, String> {
    let cells: Vec<&str> = if text.contains(',') {
        text.split(',').map(str::trim).collect()
    } else {
        text.split_whitespace().collect()
    };
    if cells.len() != columns.len() {
        return Err(format!("{} numbers, as many as columns, found {}", columns.len(), cells.len()));
    }
    let mut values = Vec::with_capacity(cells.len());
    for (cell, name) in cells.into_iter().zip(columns).filter(|(cell, _)| !cell.is_empty()) {
        let number = cell.parse().map_err(|_| format!("a number under {name:?}"))?;
        values.push((Arc::clone(name), Value::Number(number)));
    }
    Ok(values)
}

/// The fields of a JSON object; those of an object within one carry both names with a dot between.
fn fields(text: &str) -> Result<Row, String> {
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(text).map_err(|error| format!("a JSON object ({error})"))?;
    let mut values = Vec::new();
    flatten(object, "", &mut values)?;
    Ok(values)
}

fn flatten(
    object: serde_json::Map<String, serde_json::Value>,
    prefix: &str,
    values: &mut Row,
) -> Result<(), String> {
    for (key, value) in object {
        let name = format!("{prefix}{key}");
        let value = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::Object(inner) => {
                flatten(inner, &format!("{name}."), values)?;
                continue;
            }
            serde_json::Value::Array(_) => return Err(format!("no list under {name:?}")),
            serde_json::Value::Bool(flag) => Value::Bool(flag),
            serde_json::Value::String(text) => Value::Text(text),
            serde_json::Value::Number(number) => Value::Number(number.as_f64().unwrap_or(f64::NAN)),
        };
        if values.len() == METRICS_PER_DEVICE_MAX {
            return Err(format!("at most {METRICS_PER_DEVICE_MAX} fields"));
        }
        values.push((Arc::from(name), value));
    }
    Ok(())
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
