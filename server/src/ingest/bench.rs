//! The decoded blast: how many five-reading messages a core decodes and stores, with key, de-duplication
//! and ledger. Called by `bench gateway` and by `examples/decoded_blast.rs`.

use super::{Consumer, IngestError, Step};
use crate::platform::clock::{Clock as _, ManualClock, SharedClock};
use crate::platform::event_log::{AppendError, EventLog, Kind, NewRecord, Options, Origin};
use crate::platform::telemetry::{Options as StoreOptions, TelemetryStore};
use muster_wire::{Reading, Telemetry, UpClass, Value};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Devices that send, as many as the connections of the gateway's blast.
pub const DEVICES_DEFAULT: u64 = 100;
const READINGS: usize = 5;
/// Pause of a sender that has nothing to send.
const IDLE: Duration = Duration::from_millis(5);

/// What the blast measured. Appending to the log happens before and is not counted.
#[derive(Clone, Copy, Debug)]
pub struct Blast {
    /// Messages stored.
    pub messages: u64,
    /// Readings stored.
    pub readings: u64,
    /// Wall time of reading, decoding and storing, up to the last flush.
    pub seconds: f64,
    /// Processor time of the process meanwhile.
    pub cpu_seconds: f64,
    /// Batches.
    pub batches: u64,
}

impl Blast {
    /// Messages per second of processor time.
    #[must_use]
    pub fn messages_per_core(&self) -> f64 {
        self.messages as f64 / self.cpu_seconds
    }
}

/// Fills a log in `dir` with messages of so many devices, in turns, and stores it.
///
/// # Errors
/// The log or the store failed.
pub fn decoded_blast(
    dir: &Path,
    messages: u64,
    devices: u64,
    clock: SharedClock,
) -> Result<Blast, IngestError> {
    let log = fill(dir, messages, devices, &clock)?;
    let store = TelemetryStore::open(&dir.join("telemetry.db"), StoreOptions::default())?;
    store_all(log, &store, clock)
}

/// Fills a log in `dir` with messages of five readings, of so many devices in turns.
///
/// # Errors
/// The log failed.
pub fn fill(dir: &Path, messages: u64, devices: u64, clock: &SharedClock) -> Result<EventLog, IngestError> {
    let log = EventLog::open(&Options::at(&dir.join("log")), clock.clone())?;
    let names: Vec<String> = (0..devices).map(|device| format!("dev-{device:05}")).collect();
    for at in 0..messages {
        append(&log, &names[(at % devices) as usize], at / devices + 1, clock.now_us())?;
    }
    log.commit()?;
    Ok(log)
}

/// Stores all that a log holds, up to the last flush; where readings go to ClickHouse, up to its last acknowledgement.
///
/// # Errors
/// The log, the store or ClickHouse failed.
pub fn store_all(log: EventLog, store: &TelemetryStore, clock: SharedClock) -> Result<Blast, IngestError> {
    let mut consumer = Consumer::begin(log, store.clone(), clock, Vec::new())?;
    let mut blast = Blast { messages: 0, readings: 0, seconds: 0.0, cpu_seconds: 0.0, batches: 0 };
    let sender = store.sender()?;
    let is_flushed = AtomicBool::new(false);
    let (began, cpu) = (Instant::now(), cpu_seconds());
    std::thread::scope(|scope| {
        let sending = sender.map(|mut sender| {
            let is_flushed = &is_flushed;
            scope.spawn(move || -> Result<(), IngestError> {
                loop {
                    let was_flushed = is_flushed.load(Ordering::Acquire);
                    if !sender.send_next()? {
                        if was_flushed {
                            return Ok(());
                        }
                        std::thread::sleep(IDLE);
                    }
                }
            })
        });
        let mut store_to_the_end = || -> Result<(), IngestError> {
            while let Step::Stored { batch, .. } = consumer.step()? {
                blast.messages += batch.messages;
                blast.readings += batch.readings;
                blast.batches += 1;
            }
            consumer.finish()
        };
        let stored = store_to_the_end();
        is_flushed.store(true, Ordering::Release);
        let sent = sending.map(|thread| thread.join().expect("the sender does not panic"));
        stored.and(sent.unwrap_or(Ok(())))
    })?;
    blast.seconds = began.elapsed().as_secs_f64();
    blast.cpu_seconds = cpu_seconds() - cpu;
    Ok(blast)
}

/// Stores messages whose times go from the clock's to `end_us`, in as many slices as there are days and more: the log never
/// holds more than one.
///
/// # Errors
/// The log or the store failed.
pub fn store_over_time(
    dir: &Path,
    store: &TelemetryStore,
    clock: &Arc<ManualClock>,
    (messages, devices): (u64, u64),
    end_us: i64,
) -> Result<(), IngestError> {
    const SLICE: u64 = 100_000;
    let log = EventLog::open(&Options::at(&dir.join("log")), clock.clone())?;
    let mut consumer = Consumer::begin(log.clone(), store.clone(), clock.clone(), Vec::new())?;
    let names: Vec<String> = (0..devices).map(|device| format!("dev-{device:05}")).collect();
    let begin_us = clock.now_us();
    for at in 0..messages {
        clock
            .set(begin_us + ((i128::from(end_us - begin_us) * i128::from(at)) / i128::from(messages)) as i64);
        append(&log, &names[(at % devices) as usize], at / devices + 1, clock.now_us())?;
        if (at + 1) % SLICE == 0 {
            log.commit()?;
            while let Step::Stored { .. } = consumer.step()? {}
        }
    }
    log.commit()?;
    while let Step::Stored { .. } = consumer.step()? {}
    consumer.finish()
}

fn append(log: &EventLog, device: &str, seq: u64, now_us: i64) -> Result<(), IngestError> {
    const METRICS: [&str; READINGS] = ["cpu_pct", "memory_pct", "disk_pct", "temperature_c", "load"];
    let reading = |(index, metric): (usize, &&str)| Reading {
        metric: (*metric).to_owned(),
        value: Value::Number((seq as f64 * 0.37 + index as f64 * 11.0) % 100.0),
        offset_us: None,
    };
    let body = Telemetry { readings: METRICS.iter().enumerate().map(reading).collect() }.encode();
    let record = NewRecord {
        kind: Kind::Message,
        tenant: "bench",
        device,
        class: UpClass::Telemetry.number(),
        qos: 1,
        origin: Origin::Queue { queue_id: 0x5eed, seq },
        measured_at_us: now_us,
        body: &body,
    };
    loop {
        match log.append(&record) {
            Ok(_) => return Ok(()),
            // The memory batch is full: wait for the disk, and for the journal's own word where it stopped.
            Err(AppendError::Full | AppendError::TooLarge | AppendError::Failed) => {
                log.commit()?;
            }
        }
    }
}

/// Processor time that the process has used, of all threads.
fn cpu_seconds() -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    #[allow(
        unsafe_code,
        reason = "getrusage fills the struct that it is given; zeroes are a valid one if it fails"
    )]
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
