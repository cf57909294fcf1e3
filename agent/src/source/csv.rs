//! Replays a CSV file with a header line: in its own timing, at a rate, or as fast as the queue takes it.
//!
//! The timing is the pure [`Schedule`]; the file is streamed, so its size does not matter. Limits: a line of
//! 64 KiB, 1,000 columns. A cell is a number, `true`/`false`, or text; an empty one is left out.
//!
//! Promise: a row is replayed once a round. A bad row is counted (`agent_refused_total{reason="bad_row"}`), told with
//! its file and line (the first [`BAD_ROWS_TOLD_MAX`] of a replay) and passed over; a file that fails while it is read
//! ends its round. Neither starts the replay again at its first row: those rows are in the queue already.

use super::time::parse_us;
use super::{Content, Ended, Sample, SourceContext};
use crate::config::{CsvSource, Pace, Stamp, Wrap};
use crate::metrics::Refusal;
use crate::supervisor::chain;
use muster_wire::{METRICS_PER_DEVICE_MAX, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The longest line, in bytes.
pub(super) const LINE_BYTES_MAX: u64 = 64 * 1024;
/// A gap in the timestamps longer than this is cut to it.
const GAP_MAX: Duration = Duration::from_secs(3600);
/// Bad rows of one replay that the log names; the others are only counted.
const BAD_ROWS_TOLD_MAX: u64 = 10;
/// Lines that [`check`] reads of one file.
pub const LINES_CHECKED_MAX: u64 = 1_000_000;

/// Why a file cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum CsvError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line is not what it should be.
    #[error("{}:{line}: expected {expected}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What was expected.
        expected: String,
    },
}

/// One row of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// From the timestamp column.
    pub time_us: Option<i64>,
    /// The selected cells that are not empty.
    pub values: Vec<(Arc<str>, Value)>,
}

/// Streams rows.
#[derive(Debug)]
pub struct CsvReader {
    path: PathBuf,
    lines: BufReader<File>,
    line: u64,
    text: String,
    columns: Vec<(usize, Arc<str>)>,
    time_at: Option<usize>,
}

impl CsvReader {
    /// Opens a file and finds the columns in its header; no names: all but the timestamp.
    ///
    /// # Errors
    /// The file cannot be read, or a column is not there.
    pub fn open(path: &Path, columns: &[String], timestamp_column: Option<&str>) -> Result<Self, CsvError> {
        let file = File::open(path).map_err(|source| CsvError::Read { path: path.to_owned(), source })?;
        let lines = BufReader::new(file);
        let (path, text) = (path.to_owned(), String::new());
        let mut reader = Self { path, lines, line: 0, text, columns: Vec::new(), time_at: None };
        if !reader.next_line()? {
            return Err(reader.expected("a header line"));
        }
        let header: Vec<Arc<str>> = split(reader.text.trim_start_matches('\u{feff}'))
            .ok_or_else(|| reader.expected("a header line with closed quotes"))?
            .into_iter()
            .map(|name| Arc::from(name.trim()))
            .collect();
        let find = |name: &str| {
            let missing = || reader.expected(format!("a column {name:?} among {header:?}"));
            header.iter().position(|known| &**known == name).ok_or_else(missing)
        };
        let time_at = timestamp_column.map(find).transpose()?;
        let chosen: Vec<usize> = if columns.is_empty() {
            (0..header.len()).filter(|at| Some(*at) != time_at).collect()
        } else {
            columns.iter().map(|name| find(name)).collect::<Result<_, _>>()?
        };
        if chosen.len() > METRICS_PER_DEVICE_MAX {
            return Err(reader.expected(format!("at most {METRICS_PER_DEVICE_MAX} columns")));
        }
        reader.columns = chosen.into_iter().map(|at| (at, Arc::clone(&header[at]))).collect();
        reader.time_at = time_at;
        Ok(reader)
    }

    /// The next row; None at the end. After a bad line the next call goes on with the line after it.
    ///
    /// # Errors
    /// A line that is too long, not UTF-8, without closed quotes, or without the timestamp; the file cannot be read.
    pub fn next_row(&mut self) -> Result<Option<Row>, CsvError> {
        self.next_row_within(u64::MAX)
    }

    /// As [`Self::next_row`], but None also where `lines_max` lines were read.
    fn next_row_within(&mut self, lines_max: u64) -> Result<Option<Row>, CsvError> {
        loop {
            if self.line >= lines_max || !self.next_line()? {
                return Ok(None);
            }
            if !self.text.trim().is_empty() {
                break;
            }
        }
        let cells = split(&self.text).ok_or_else(|| self.expected("closed quotes"))?;
        let time_us = match self.time_at {
            None => None,
            Some(at) => {
                let time = cells.get(at).and_then(|cell| parse_us(cell));
                Some(time.ok_or_else(|| self.expected("a timestamp"))?)
            }
        };
        let cell = |(at, name): &(usize, Arc<str>)| Some((Arc::clone(name), value(cells.get(*at)?.trim())?));
        Ok(Some(Row { time_us, values: self.columns.iter().filter_map(cell).collect() }))
    }

    fn next_line(&mut self) -> Result<bool, CsvError> {
        self.line += 1;
        let mut raw = std::mem::take(&mut self.text).into_bytes();
        raw.clear();
        let read = (&mut self.lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut raw);
        let bytes = read.map_err(|source| self.unreadable(source))?;
        if bytes as u64 == LINE_BYTES_MAX && !raw.ends_with(b"\n") {
            self.lines.skip_until(b'\n').map_err(|source| self.unreadable(source))?;
            return Err(self.expected(format!("a line of less than {LINE_BYTES_MAX} bytes")));
        }
        self.text = String::from_utf8(raw).map_err(|_| self.expected("UTF-8"))?;
        Ok(bytes > 0)
    }

    fn unreadable(&self, source: std::io::Error) -> CsvError {
        CsvError::Read { path: self.path.clone(), source }
    }

    fn expected(&self, expected: impl Into<String>) -> CsvError {
        CsvError::Line { path: self.path.clone(), line: self.line, expected: expected.into() }
    }
}

fn value(cell: &str) -> Option<Value> {
    match cell {
        "" => None,
        "true" | "True" | "TRUE" => Some(Value::Bool(true)),
        "false" | "False" | "FALSE" => Some(Value::Bool(false)),
        text => Some(text.parse().map_or_else(|_| Value::Text(text.to_owned()), Value::Number)),
    }
}

/// Cells of a line; quotes may hold commas, and two quotes stand for one. None where a quote stays open.
fn split(line: &str) -> Option<Vec<String>> {
    let mut cells = vec![String::new()];
    let mut quoted = false;
    let mut chars = line.trim_end_matches(['\n', '\r']).chars().peekable();
    while let Some(c) = chars.next() {
        let cell = cells.last_mut().expect("the list starts with a cell and only grows");
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                cell.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            c => cell.push(c),
        }
    }
    (!quoted).then_some(cells)
}

/// When rows are due, as time since the replay's start.
#[derive(Clone, Debug)]
pub struct Schedule {
    pace: Pace,
    speed: f64,
    period: Option<Duration>,
    due: Duration,
    last_us: Option<i64>,
}

impl Schedule {
    /// The schedule that a configuration asks for.
    #[must_use]
    pub fn new(config: &CsvSource) -> Self {
        let period = config.rate_hz.map(|rate| Duration::from_secs_f64(1.0 / rate));
        Self { pace: config.pace, speed: config.speed, period, due: Duration::ZERO, last_us: None }
    }

    /// When the next row is due. Timestamps that go back, and the jump from a file's end to its start, wait for
    /// nothing; a rate beside a timestamp column sets the pace alone.
    pub fn next_due(&mut self, time_us: Option<i64>) -> Duration {
        if self.pace == Pace::Fastest {
            return Duration::ZERO;
        }
        let gap = match (self.period, time_us, self.last_us) {
            (Some(period), ..) => period,
            (None, Some(now), Some(last)) => {
                Duration::from_micros(u64::try_from(now.saturating_sub(last)).unwrap_or(0)).min(GAP_MAX)
            }
            _ => Duration::ZERO,
        };
        let first = self.last_us.is_none();
        self.last_us = Some(time_us.unwrap_or(0));
        if !first {
            self.due += gap.div_f64(self.speed);
        }
        self.due
    }
}

/// Reads a whole file, or its first [`LINES_CHECKED_MAX`] lines; returns how many rows it found.
///
/// # Errors
/// The file's first bad row, or why it cannot be read.
pub fn check(config: &CsvSource) -> Result<u64, CsvError> {
    check_lines(config, LINES_CHECKED_MAX)
}

fn check_lines(config: &CsvSource, lines_max: u64) -> Result<u64, CsvError> {
    let mut rows = CsvReader::open(&config.path, &config.columns, config.timestamp_column.as_deref())?;
    let mut count = 0;
    while rows.next_row_within(lines_max)?.is_some() {
        count += 1;
    }
    Ok(count)
}

pub(super) async fn run(config: CsvSource, mut context: SourceContext) -> Result<(), CsvError> {
    let mut schedule = Schedule::new(&config);
    let start = Instant::now();
    let (mut number, mut bad) = (0, 0);
    loop {
        let before = number;
        let mut rows = CsvReader::open(&config.path, &config.columns, config.timestamp_column.as_deref())?;
        loop {
            let row = match rows.next_row() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                Err(error @ CsvError::Line { .. }) => {
                    bad += 1;
                    pass_over(&config, &error, bad, &context).await;
                    if context.stop.is_up() {
                        return Ok(());
                    }
                    continue;
                }
                Err(error) => {
                    tracing::error!(
                        source = config.name,
                        error = chain(&error),
                        "the file's rest is not replayed"
                    );
                    break;
                }
            };
            number += 1;
            if replay(row, number, &config, &mut schedule, start, &mut context).await == Err(Ended) {
                return Ok(());
            }
        }
        if config.wrap == Wrap::Once || number == before {
            tracing::info!(source = config.name, rows = number, bad_rows = bad, "replay is done");
            return Ok(());
        }
    }
}

async fn pass_over(config: &CsvSource, error: &CsvError, bad: u64, context: &SourceContext) {
    context.metrics.refuse(Refusal::BadRow);
    if let Some(further) = told(bad) {
        tracing::warn!(source = config.name, error = chain(error), "bad row passed over{further}");
    }
    // A file of nothing but bad rows waits for nothing else.
    tokio::task::yield_now().await;
}

/// What is told with a replay's bad row, by its number; None where nothing is.
pub(super) fn told(bad: u64) -> Option<&'static str> {
    match bad {
        ..BAD_ROWS_TOLD_MAX => Some(""),
        BAD_ROWS_TOLD_MAX => Some("; further ones are only counted"),
        _ => None,
    }
}

async fn replay(
    row: Row,
    number: u64,
    config: &CsvSource,
    schedule: &mut Schedule,
    start: Instant,
    context: &mut SourceContext,
) -> Result<(), Ended> {
    let wait = schedule.next_due(row.time_us).saturating_sub(start.elapsed());
    if !wait.is_zero() {
        context.pause(wait).await?;
    }
    let now_us = context.clock.now_us();
    let measured_at_us = match config.stamp {
        Stamp::Replay => now_us,
        Stamp::Original => row.time_us.unwrap_or(now_us),
    };
    context.send(Sample { measured_at_us, content: Content::Row { values: row.values, number } }).await
}

#[cfg(test)]
#[path = "csv_tests.rs"]
mod tests;
