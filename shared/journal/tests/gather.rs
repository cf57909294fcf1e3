//! Records that nobody waits for gather in memory: fewer syncs, and the promise stays what it was.

mod support;

use muster_journal::sim::{Loss, SimFs};
use muster_journal::{Journal, Options, Seq, Urgency, WriterMode, Written};
use std::time::{Duration, Instant};
use support::{open, options, payload, served};

/// Longer than any test runs.
const FOREVER: Duration = Duration::from_secs(3_600);

fn gathering() -> Options {
    let (segment_bytes, batch_bytes_max) = (1024 * 1024, 64 * 1024);
    let bytes_max = 8 * segment_bytes;
    Options {
        writer: WriterMode::Thread,
        linger: FOREVER,
        segment_bytes,
        bytes_max,
        batch_bytes_max,
        ..options()
    }
}

fn append(journal: &Journal<SimFs>, urgency: Urgency) -> Seq {
    let body = payload(journal.stats().next_seq);
    journal.append_with(1, body.len(), urgency, |buf| buf.extend_from_slice(&body)).expect("appends")
}

/// A journal whose writer sleeps, with one record in it.
fn asleep(fs: &SimFs, options: &Options) -> Journal<SimFs> {
    let (journal, _) = open(fs, options);
    let seq = append(&journal, Urgency::Now);
    journal.wait_durable(seq).expect("durable");
    journal
}

#[test]
fn records_within_the_interval_share_one_write_and_one_sync() {
    let journal = asleep(&SimFs::new(1), &gathering());
    let before = journal.stats();
    let last = 201;
    for seq in 2..=last {
        assert_eq!(append(&journal, Urgency::Soon), seq);
    }
    let bytes: u64 = (2..=last).map(|seq| 32 + payload(seq).len() as u64).sum();
    // Many times what a record waits by default.
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(journal.durable_next(), 2, "the interval is not over");
    journal.wait_durable(last).expect("who waits has it written");
    let after = journal.stats();
    assert_eq!((after.durable_next, after.batches - before.batches), (202, 1));
    assert_eq!(after.written.syncs - before.written.syncs, 1);
    assert_eq!(after.written.bytes - before.written.bytes, bytes);
    // The first of them lies in the block that the record before them began.
    let blocks = (before.written.bytes + bytes).div_ceil(4096);
    assert_eq!(after.written.block_bytes - before.written.block_bytes, blocks * 4096);
}

#[test]
fn what_each_record_costs_alone_is_counted() {
    let journal = asleep(&SimFs::new(1), &gathering());
    let first = journal.stats().written;
    assert_eq!(first, Written { bytes: 128 + 32 + 45, block_bytes: 4096, syncs: 2 }, "file and directory");
    for _ in 0..3 {
        let seq = append(&journal, Urgency::Now);
        journal.wait_durable(seq).expect("durable");
    }
    let written = journal.stats().written;
    assert_eq!((written.block_bytes, written.syncs), (4 * 4096, 5), "a whole block for a few bytes");
    journal.confirm_drops(&[]).expect("the control state is written");
    let control = journal.stats().written;
    assert_eq!((control.block_bytes - written.block_bytes, control.syncs), (4096, 6));
}

#[test]
fn a_batch_that_is_half_full_waits_for_nobody() {
    let options = gathering();
    let journal = asleep(&SimFs::new(1), &options);
    let (mut last, mut bytes) = (0, 0);
    while bytes <= options.batch_bytes_max / 2 {
        last = append(&journal, Urgency::Soon);
        bytes += 32 + payload(last).len();
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while journal.durable_next() <= last {
        assert!(Instant::now() < deadline, "record {last} stays in memory");
        std::thread::yield_now();
    }
    assert_eq!((journal.stats().batches, journal.stats().refused), (2, 0));
}

#[test]
fn a_power_cut_takes_what_gathered_and_nothing_that_was_accepted() {
    for loss in [Loss::Unsynced, Loss::Random] {
        let fs = SimFs::new(7);
        let journal = asleep(&fs, &gathering());
        (0..50).for_each(|_| assert!(append(&journal, Urgency::Soon) > 1));
        assert_eq!(journal.commit().expect("commits"), 52);
        let lost = append(&journal, Urgency::Soon);
        assert!(journal.durable_next() <= lost, "not accepted while it gathers");
        let fs = fs.reboot(loss);
        drop(journal);
        let (journal, opened) = open(&fs, &gathering());
        assert_eq!((opened.first_seq, opened.next_seq), (1, 52));
        assert_eq!(served(&journal).0.len(), 51);
    }
}

#[test]
fn an_orderly_end_writes_what_gathered() {
    let fs = SimFs::new(1);
    let journal = asleep(&fs, &gathering());
    append(&journal, Urgency::Soon);
    journal.close().expect("closes");
    assert_eq!(open(&fs, &gathering()).1.next_seq, 3);
}
