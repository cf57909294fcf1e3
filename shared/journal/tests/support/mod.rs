//! Shared by the integration tests: small journals on the simulated file system, written by the caller.
#![allow(dead_code, reason = "each test binary uses its part")]

use muster_journal::sim::SimFs;
use muster_journal::{Journal, JournalError, Opened, Options, Pin, Seq, SeqRange, WriterMode};
use std::collections::BTreeMap;
use std::path::PathBuf;

pub const NOW_US: i64 = 1_700_000_000_000_000;

pub fn options() -> Options {
    Options {
        dir: PathBuf::from("/journal"),
        segment_bytes: 4096,
        bytes_max: 1024 * 1024,
        record_bytes_max: 2048,
        writer: WriterMode::Caller,
        ..Options::default()
    }
}

pub fn try_open(fs: &SimFs, options: &Options) -> Result<(Journal<SimFs>, Opened), JournalError> {
    Journal::open(fs.clone(), options.clone(), || NOW_US)
}

pub fn open(fs: &SimFs, options: &Options) -> (Journal<SimFs>, Opened) {
    try_open(fs, options).expect("opens")
}

pub fn payload(seq: Seq) -> Vec<u8> {
    let size = 8 + (seq * 37 % 90) as usize;
    seq.to_le_bytes().iter().copied().cycle().take(size).map(|byte| byte ^ 0x35).collect()
}

/// Appends records whose payload follows from their seq, `batch` at a time.
pub fn fill(journal: &Journal<SimFs>, records: u64, batch: u64) {
    for at in 0..records {
        let seq = journal.stats().next_seq;
        assert_eq!(journal.append(1, &payload(seq)).expect("appends"), seq);
        if at % batch == batch - 1 {
            journal.commit().expect("commits");
        }
    }
    journal.commit().expect("commits");
}

/// All that is served, checked against [`payload`], and what is skipped.
pub fn served(journal: &Journal<SimFs>) -> (BTreeMap<Seq, u64>, Vec<SeqRange>) {
    let mut reader = journal.reader("audit", 0, Pin::Follows).expect("reader");
    reader.seek(journal.first_seq());
    let mut records = BTreeMap::new();
    let mut last = 0;
    let batch = reader
        .next_batch(usize::MAX, |record| {
            assert!(record.seq > last, "{} after {last}", record.seq);
            assert_eq!(record.payload, payload(record.seq), "payload of {}", record.seq);
            last = record.seq;
            records.insert(record.seq, record.epoch);
        })
        .expect("reads");
    assert_eq!(batch.next, journal.durable_next());
    (records, batch.skipped)
}

/// Copies every file of a disk, as they are, to a new disk.
pub fn copy(fs: &SimFs) -> SimFs {
    let copied = SimFs::new(7);
    for path in fs.files() {
        copied.write_file(&path, &fs.read_file(&path).expect("file"));
    }
    copied
}

/// The segment files, oldest first.
pub fn segments(fs: &SimFs) -> Vec<PathBuf> {
    fs.files().into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "seg")).collect()
}
