//! Measures the journal alone: appended records a second with group fsync beside the raw rate of the same
//! bytes, and recovery with a warm cache. The last line is JSON.
//!
//! `journal-bench [--quick] [--check] [--dir DIR]`

use muster_journal::{AppendError, Journal, JournalError, Options, RealFs, WhenFull};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const PAYLOAD_BYTES: usize = 128;
const RECORD_BYTES: usize = PAYLOAD_BYTES + 32;
const ROUNDS: usize = 3;
const APPEND_RECORDS_PER_S_MIN: f64 = 1_000_000.0;
const RECOVER_1GB_S_MAX: f64 = 2.0;

struct Sizes {
    append_records: u64,
    recover_bytes: u64,
    rounds: usize,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    let dir = args.iter().position(|arg| arg == "--dir").and_then(|at| args.get(at + 1));
    let dir = dir
        .map_or_else(std::env::temp_dir, PathBuf::from)
        .join(format!("journal-bench-{}", std::process::id()));
    let sizes = if has("--quick") {
        Sizes { append_records: 200_000, recover_bytes: 64 << 20, rounds: 1 }
    } else {
        Sizes { append_records: 4_000_000, recover_bytes: 1 << 30, rounds: ROUNDS }
    };
    let outcome = bench(&dir, &sizes);
    let _ = std::fs::remove_dir_all(&dir);
    match outcome {
        Ok(held) if held || !has("--check") => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("journal-bench: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn bench(dir: &Path, sizes: &Sizes) -> Result<bool, JournalError> {
    let mut appended = Vec::new();
    let mut raw = Vec::new();
    for round in 0..sizes.rounds {
        let rate = append(&dir.join("append"), sizes.append_records)?;
        let raw_rate = raw_write(&dir.join("raw"), sizes.append_records as usize * RECORD_BYTES);
        println!(
            "round {}: {:.0} records/s of {PAYLOAD_BYTES} bytes ({:.0} MB/s); raw write and one fdatasync {:.0} MB/s",
            round + 1,
            rate,
            rate * RECORD_BYTES as f64 / 1e6,
            raw_rate / 1e6
        );
        appended.push(rate);
        raw.push(raw_rate);
    }
    let (append_records_per_s, raw_rate) = (median(&mut appended), median(&mut raw));
    let ratio = append_records_per_s * RECORD_BYTES as f64 / raw_rate;
    println!("append: median {append_records_per_s:.0} records/s, {ratio:.2} of the raw rate");
    let recover_1gb_s = recover(&dir.join("recover"), sizes)?;
    println!(
        "{{\"bench\":\"journal\",\"figures\":{{\"append_records_per_s\":{append_records_per_s:.0},\"recover_1gb_s\":{recover_1gb_s:.3}}},\
         \"bars\":{{\"append_records_per_s\":[\">=\",1000000],\"recover_1gb_s\":[\"<=\",2]}}}}"
    );
    Ok(append_records_per_s >= APPEND_RECORDS_PER_S_MIN && recover_1gb_s <= RECOVER_1GB_S_MAX)
}

fn open(dir: &Path) -> Result<Journal, JournalError> {
    let options = Options {
        dir: dir.to_owned(),
        bytes_max: 16 << 30,
        when_full: WhenFull::Refuse,
        ..Options::default()
    };
    let started = Instant::now();
    Ok(Journal::open(RealFs, options, move || started.elapsed().as_micros() as i64)?.0)
}

/// Appends from one thread and waits for the last record's fsync; records a second.
fn append(dir: &Path, records: u64) -> Result<f64, JournalError> {
    let journal = open(dir)?;
    let payload = [0x5A; PAYLOAD_BYTES];
    let started = Instant::now();
    for _ in 0..records {
        while let Err(error) = journal.append(1, &payload) {
            match error {
                // The disk is behind: what a caller with back-pressure would see.
                AppendError::Full { .. } => std::thread::sleep(Duration::from_micros(200)),
                other => panic!("{other}"),
            }
        }
    }
    journal.commit()?;
    let rate = records as f64 / started.elapsed().as_secs_f64();
    let stats = journal.stats();
    println!("  {} batches, {:.0} records a batch", stats.batches, records as f64 / stats.batches as f64);
    journal.close()?;
    let _ = std::fs::remove_dir_all(dir);
    Ok(rate)
}

/// As `dd bs=1M conv=fdatasync`; bytes a second.
fn raw_write(path: &Path, bytes: usize) -> f64 {
    let block = vec![0x5A; 1 << 20];
    let started = Instant::now();
    let written = File::create(path).and_then(|mut file| {
        let mut left = bytes;
        while left > 0 {
            let part = left.min(block.len());
            file.write_all(&block[..part])?;
            left -= part;
        }
        file.sync_data()
    });
    let rate = bytes as f64 / started.elapsed().as_secs_f64();
    let _ = std::fs::remove_file(path);
    if let Err(error) = written {
        panic!("raw write: {error}");
    }
    rate
}

/// Opens a journal of that size, just written, scaled to 1 GB; seconds.
fn recover(dir: &Path, sizes: &Sizes) -> Result<f64, JournalError> {
    let records = sizes.recover_bytes / RECORD_BYTES as u64;
    append_and_keep(dir, records)?;
    let mut times = Vec::new();
    for _ in 0..sizes.rounds {
        let started = Instant::now();
        let journal = open(dir)?;
        times.push(started.elapsed().as_secs_f64());
        journal.close()?;
    }
    let seconds = median(&mut times);
    let scaled = seconds * 1e9 / (records as f64 * RECORD_BYTES as f64);
    println!("recover: {records} records in {seconds:.3} s, {scaled:.3} s per GB");
    Ok(scaled)
}

fn append_and_keep(dir: &Path, records: u64) -> Result<(), JournalError> {
    let journal = open(dir)?;
    let payload = [0xA5; PAYLOAD_BYTES];
    for _ in 0..records {
        while journal.append(1, &payload).is_err() {
            journal.commit()?;
        }
    }
    journal.close()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
