//! What the journal may forget once the server knows it: past openings and confirmed drops, one JSON line each.
//!
//! It serves `muster-agent queue inspect`, the oracle of accepted and dropped ranges, and nothing else: losing
//! the file loses no record. A line is on the disk before the journal forgets what it says; a crash between
//! the two repeats the line, which readers merge. Limit: [`HISTORY_BYTES_MAX`]; beyond, the older half goes.

use super::{QueueClass, QueueError};
use muster_journal::Opening;
use muster_wire::{DropRange, DropReason, QueueId};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The largest history, in bytes; a line has about 90.
pub(super) const HISTORY_BYTES_MAX: u64 = 1024 * 1024;
const FILE_NAME: &str = "history.jsonl";

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Line {
    /// A closed opening that accepted `first..next`, all of it released.
    Opening { class: u8, queue_id: QueueId, first: u64, next: u64 },
    /// A confirmed drop of `first..=last`.
    Drop { class: u8, queue_id: QueueId, first: u64, last: u64, reason: DropReason },
    /// Older lines were cut off here.
    Truncated,
}

impl Line {
    pub(super) fn opening(class: QueueClass, opening: &Opening) -> Self {
        let class = class.up().number();
        Self::Opening { class, queue_id: QueueId(opening.epoch), first: opening.first, next: opening.next }
    }

    pub(super) fn dropped(drop: &DropRange) -> Self {
        let DropRange { class, queue_id, first, last, reason } = *drop;
        Self::Drop { class, queue_id, first, last, reason }
    }
}

/// The file, open for appending.
#[derive(Debug)]
pub(super) struct History {
    path: PathBuf,
    file: File,
    bytes: u64,
}

fn fail(path: &Path) -> impl Fn(std::io::Error) -> QueueError + use<> {
    let path = path.to_owned();
    move |source| QueueError::History { path: path.clone(), source }
}

impl History {
    pub(super) fn open(dir: &Path) -> Result<Self, QueueError> {
        let path = dir.join(FILE_NAME);
        let fail = fail(&path);
        let held = read_bytes(&path).map_err(&fail)?;
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(&fail)?;
        let whole = held.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < held.len() {
            // A crash cut the last line; what it said comes again.
            file.set_len(whole as u64).map_err(&fail)?;
        }
        let mut history = Self { path, file, bytes: whole as u64 };
        history.shorten();
        Ok(history)
    }

    pub(super) fn append(&mut self, lines: &[Line]) -> Result<(), QueueError> {
        let text = format(lines);
        let fail = fail(&self.path);
        // A write that failed (a full disk) may have left a part, which the next line must not be glued to.
        if self.file.metadata().map_err(&fail)?.len() != self.bytes {
            self.file.set_len(self.bytes).map_err(&fail)?;
        }
        self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data()).map_err(&fail)?;
        self.bytes += text.len() as u64;
        self.shorten();
        Ok(())
    }

    /// Cuts the older half off where the file is too long; on a full disk it stays as it is for now.
    fn shorten(&mut self) {
        if self.bytes <= HISTORY_BYTES_MAX {
            return;
        }
        let fresh = self.path.with_extension("new");
        match self.half(&fresh) {
            Ok((file, bytes)) => (self.file, self.bytes) = (file, bytes),
            Err(error) => {
                tracing::warn!(%error, "the queue's history cannot be shortened now");
                let _ = std::fs::remove_file(&fresh);
            }
        }
    }

    /// Puts the newer half in the file's place.
    fn half(&self, fresh: &Path) -> std::io::Result<(File, u64)> {
        let text = String::from_utf8_lossy(&read_bytes(&self.path)?).into_owned();
        let half = text.len() / 2;
        let keep = text.as_bytes()[half..]
            .iter()
            .position(|byte| *byte == b'\n')
            .map_or("", |at| &text[half + at + 1..]);
        let kept = format(&[Line::Truncated]) + keep;
        match std::fs::remove_file(fresh) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().create_new(true).append(true).open(fresh)?;
        file.write_all(kept.as_bytes())?;
        file.sync_data()?;
        std::fs::rename(fresh, &self.path)?;
        Ok((file, kept.len() as u64))
    }
}

fn format(lines: &[Line]) -> String {
    let mut text = String::new();
    for line in lines {
        text.push_str(&serde_json::to_string(line).expect("a line of numbers and names serializes"));
        text.push('\n');
    }
    text
}

fn read_bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

/// Every line that can be read.
pub(super) fn read(dir: &Path) -> Result<Vec<Line>, QueueError> {
    let path = dir.join(FILE_NAME);
    let bytes = read_bytes(&path).map_err(fail(&path))?;
    let lines = String::from_utf8_lossy(&bytes);
    Ok(lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening(first: u64) -> Line {
        Line::Opening { class: 1, queue_id: QueueId(first), first, next: first + 1 }
    }

    #[test]
    fn lines_survive_a_cut_and_a_reopening() {
        let dir = tempfile::tempdir().unwrap();
        History::open(dir.path()).unwrap().append(&[opening(1), opening(2)]).unwrap();
        let path = dir.path().join(FILE_NAME);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 5]).unwrap();
        History::open(dir.path()).unwrap().append(&[opening(3)]).unwrap();
        assert_eq!(read(dir.path()).unwrap(), [opening(1), opening(3)]);
    }

    #[test]
    fn what_a_failed_write_left_is_cut_before_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path()).unwrap();
        history.append(&[opening(1)]).unwrap();
        // As a write that found the disk full leaves it; the journal then tries the same lines again.
        let part = format(&[opening(2)]);
        let mut file = OpenOptions::new().append(true).open(dir.path().join(FILE_NAME)).unwrap();
        file.write_all(&part.as_bytes()[..part.len() - 5]).unwrap();
        history.append(&[opening(2), opening(3)]).unwrap();
        assert_eq!(read(dir.path()).unwrap(), [opening(1), opening(2), opening(3)]);
        assert_eq!(file.metadata().unwrap().len(), history.bytes);
    }

    #[test]
    fn where_the_older_half_cannot_be_cut_the_line_is_kept_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path()).unwrap();
        // The shorter file cannot be made: its name is taken by a directory.
        let blocked = dir.path().join(FILE_NAME).with_extension("new");
        std::fs::create_dir(&blocked).unwrap();
        let many: Vec<_> = (1..12_000).map(opening).collect();
        history.append(&many).unwrap();
        history.append(&many).unwrap();
        assert!(history.bytes > HISTORY_BYTES_MAX);
        drop(history);
        let mut history = History::open(dir.path()).unwrap();
        assert_eq!(read(dir.path()).unwrap().len(), 2 * many.len());
        std::fs::remove_dir(&blocked).unwrap();
        history.append(&[opening(12_000)]).unwrap();
        assert!(history.bytes <= HISTORY_BYTES_MAX);
        let lines = read(dir.path()).unwrap();
        assert_eq!((lines.first(), lines.last()), (Some(&Line::Truncated), Some(&opening(12_000))));
    }

    #[test]
    fn the_bound_cuts_the_older_half() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path()).unwrap();
        let many: Vec<_> = (1..2000).map(opening).collect();
        while read(dir.path()).unwrap().first() != Some(&Line::Truncated) {
            history.append(&many).unwrap();
        }
        assert!(history.bytes <= HISTORY_BYTES_MAX);
        assert_eq!(read(dir.path()).unwrap().last(), many.last());
    }
}
