//! Full disks, failing syncs, bounds, ages, threads.

mod support;

use muster_journal::sim::{Loss, SimFs};
use muster_journal::{
    AppendError, DROPS_MAX, DropReason, DropRecord, EpochPolicy, Fs as _, FullOf, Journal, JournalError,
    OPENINGS_MAX, Options, Pin, READERS_MAX, SeqRange, WhenFull, WriterMode, inspect,
};
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{NOW_US, fill, open, options, payload, segments, served};

#[test]
fn one_failed_sync_moves_the_batch_to_a_fresh_segment_and_the_old_bytes_are_void() {
    for skip in 0..4 {
        let fs = SimFs::new(u64::from(skip));
        let (journal, _) = open(&fs, &options());
        fill(&journal, 5, 5);
        fs.fail_syncs(skip, 1);
        fill(&journal, 20, 5);
        assert_eq!(journal.stats().sync_failures, 1);
        assert_eq!(served(&journal).0.len(), 25);
        fs.cut();
        drop(journal);
        let fs = fs.reboot(Loss::Unsynced);
        let (journal, opened) = open(&fs, &options());
        assert_eq!((opened.next_seq, opened.corrupt), (26, vec![]));
        assert_eq!(served(&journal).0.len(), 25);
    }
}

#[test]
fn three_failed_syncs_in_a_row_stop_the_journal_and_keep_what_was_accepted() {
    let fs = SimFs::new(3);
    let (journal, _) = open(&fs, &options());
    fill(&journal, 10, 5);
    fs.fail_syncs(0, 3);
    journal.append(1, &payload(11)).expect("appends");
    assert!(matches!(journal.wait_durable(11), Err(JournalError::Failed(_))));
    assert_eq!(journal.append(1, b"more"), Err(AppendError::Failed));
    assert!(journal.stats().failed.is_some());
    assert!(matches!(journal.close(), Err(JournalError::Failed(_))));
    let (journal, opened) = open(&fs, &options());
    assert_eq!((opened.next_seq, served(&journal).0.len()), (11, 10));
}

#[test]
fn full_disk_holds_the_batch_back_and_writes_it_when_there_is_space() {
    let fs = SimFs::new(1);
    let (journal, _) = open(&fs, &options());
    fill(&journal, 30, 10);
    fs.set_budget(Some(fs.used_bytes() + 50));
    for seq in 31..=33 {
        assert_eq!(journal.append(1, &payload(seq)), Ok(seq));
    }
    assert!(matches!(journal.commit(), Err(JournalError::DiskFull)));
    assert_eq!(journal.append(1, b"later"), Err(AppendError::Full { of: FullOf::Disk }));
    assert_eq!((journal.durable_next(), journal.stats().stalled), (31, Some(FullOf::Disk)));
    // The control state does not need space.
    journal.record_drop(drop_record(1, 2)).expect("records");
    fs.set_budget(None);
    assert_eq!(journal.commit().expect("commits"), 34);
    assert_eq!(served(&journal).0.len(), 33);
    assert!(journal.append(1, &payload(34)).is_ok());
}

#[test]
fn the_disks_reserve_is_left_to_others_and_counts_as_a_full_disk() {
    let fs = SimFs::new(1);
    let reserve = 64 * 1024;
    let (journal, _) = open(&fs, &Options { disk_reserve_bytes: reserve, ..options() });
    fill(&journal, 10, 10);
    fs.set_budget(Some(fs.used_bytes() + reserve + 16 * 1024));
    let free = || fs.free_bytes(Path::new("/journal")).expect("tells");
    while journal.append(1, &[0; 500]).is_ok() && journal.commit().is_ok() {}
    assert_eq!(journal.stats().stalled, Some(FullOf::Disk));
    assert!((reserve..reserve + 8 * 1024).contains(&free()), "{} bytes are free", free());
    fs.set_budget(None);
    journal.commit().expect("commits once there is more");
}

#[test]
fn on_a_full_disk_a_released_segment_goes_though_it_is_written_to() {
    let fs = SimFs::new(1);
    let (journal, _) = open(&fs, &Options { segment_bytes: 64 * 1024, ..options() });
    let mut reader = journal.reader("store", 0, Pin::Pins).expect("reader");
    fill(&journal, 30, 10);
    fs.set_budget(Some(fs.used_bytes()));
    let last = journal.append(1, &payload(31)).expect("appends");
    assert!(matches!(journal.commit(), Err(JournalError::DiskFull)));
    while reader.next_batch(1 << 20, |_| {}).expect("reads").records > 0 {}
    journal.release("store", reader.position()).expect("releases");
    assert_eq!(journal.commit().expect("the freed space takes the batch"), last + 1);
    assert_eq!((journal.first_seq(), journal.drops()), (last, vec![]));
    journal.close().expect("closes");
    drop(reader);
    let (journal, opened) = open(&fs, &options());
    assert_eq!((opened.next_seq, served(&journal).0.len()), (last + 1, 1));
}

#[test]
fn on_a_full_disk_a_reader_that_holds_half_gives_way_before_its_bound() {
    let fs = SimFs::new(1);
    let (journal, _) = open(&fs, &Options { bytes_max: 1 << 30, segment_bytes: 4096, ..options() });
    journal.reader("store", 0, Pin::Pins).expect("reader");
    let mut rules = journal.reader("rules", 0, Pin::HoldsHalf).expect("reader");
    let append = || journal.append(1, &[0; 2000]);
    let store = |next| journal.release("store", next).expect("releases");
    for _ in 0..20 {
        append().expect("there is space");
        store(journal.commit().expect("commits"));
    }
    assert_eq!(journal.first_seq(), 1, "far below its bound all is held");

    fs.set_budget(Some(fs.used_bytes()));
    for _ in 0..40 {
        append().expect("the batch is empty");
        // The first try finds the disk full, the second one makes room.
        let next = journal.commit().or_else(|_| journal.commit()).expect("the reader that lags gives way");
        assert!(next - journal.first_seq() >= 5, "no more than is needed");
        store(next);
    }
    let batch = rules.next_batch(1, |_| {}).expect("reads");
    assert_eq!(batch.skipped, vec![SeqRange { first: 1, next: journal.first_seq() }]);
    assert!(journal.drops().is_empty() && journal.first_seq() > 40);
}

#[test]
fn full_disk_under_drop_oldest_frees_the_oldest_segment_with_a_record() {
    let fs = SimFs::new(1);
    let options = Options { when_full: WhenFull::DropOldest, ..options() };
    let (journal, _) = open(&fs, &options);
    journal.reader("uplink", 0, Pin::Pins).expect("registers");
    fill(&journal, 200, 10);
    fs.set_budget(Some(fs.used_bytes()));
    fill(&journal, 200, 10);
    let (records, _) = served(&journal);
    let drops = journal.drops();
    assert_eq!((drops.len(), drops[0].first, drops[0].reason), (1, 1, DropReason::QUEUE_FULL));
    assert_eq!(records.len() as u64 + drops[0].last, 400);
    assert_eq!(journal.stats().dropped, [(DropReason::QUEUE_FULL, drops[0].last, drops[0].bytes)]);
    journal.close().expect("closes");
    let seen = inspect(&fs, Path::new("/journal")).expect("inspects");
    assert_eq!((seen.next_seq, seen.drops.clone()), (401, drops));
    let held: u64 = seen.held.iter().map(|part| part.1.count()).sum();
    assert_eq!(held, records.len() as u64);
}

#[test]
fn released_records_are_removed_without_a_drop_record() {
    let fs = SimFs::new(1);
    let (journal, _) = open(&fs, &options());
    let mut reader = journal.reader("store", 0, Pin::Pins).expect("reader");
    let mut late = journal.reader("live", 1, Pin::Follows).expect("reader");
    fill(&journal, 300, 10);
    while reader.next_batch(500, |_| {}).expect("reads").records > 0 {}
    journal.release("store", reader.position()).expect("releases");
    assert_eq!(journal.released("store"), Some(301));
    fill(&journal, 1, 1);
    assert!(journal.first_seq() > 200 && journal.drops().is_empty());
    let batch = late.next_batch(1, |_| {}).expect("reads");
    assert_eq!(batch.skipped, [SeqRange { first: 1, next: journal.first_seq() }]);
    late.seek(301);
    assert_eq!(late.next_batch(1, |record| assert_eq!(record.seq, 301)).expect("reads").records, 1);
    assert!(!late.wait(Duration::ZERO));
    journal.close().expect("closes");
    drop((reader, late));
    assert_eq!(open(&fs, &options()).0.released("store"), Some(301));
}

#[test]
fn a_reader_that_holds_half_keeps_its_records_until_it_lags_by_half_the_bound() {
    let fs = SimFs::new(1);
    let options = Options { bytes_max: 64 * 1024, ..options() };
    let (journal, _) = open(&fs, &options);
    journal.reader("store", 0, Pin::Pins).expect("reader");
    let mut rules = journal.reader("rules", 0, Pin::HoldsHalf).expect("reader");
    // One record a segment, each of one block.
    let append = |records: u64| {
        for _ in 0..records {
            journal.append(1, &[0; 2048]).expect("the reader that lags never fills the journal");
            journal.append(1, &[0; 1800]).expect("the reader that lags never fills the journal");
            journal.release("store", journal.commit().expect("commits")).expect("releases");
        }
    };
    append(8);
    assert_eq!((journal.stats().released, journal.first_seq()), (17, 1), "half of the bound is held");
    assert_eq!(rules.next_batch(1, |_| {}).expect("reads").next, 2);
    append(20);
    let first = journal.first_seq();
    assert!(first > 17 && journal.stats().bytes > options.bytes_max / 2 - 4096, "the newest half is held");
    let batch = rules.next_batch(1, |_| {}).expect("reads");
    assert_eq!((batch.skipped, batch.records), (vec![SeqRange { first: 2, next: first }], 1));
    assert!(journal.drops().is_empty(), "what a pinning reader released is no drop");

    journal.release("rules", 50).expect("releases");
    append(1);
    assert!((49..=50).contains(&journal.first_seq()), "what all released goes at once");
    drop(rules);
    journal.close().expect("closes");
    let (journal, _) = open(&fs, &options);
    assert_eq!(journal.reader("rules", 0, Pin::HoldsHalf).expect("reader").position(), 50);
    journal.release("store", journal.durable_next()).expect("releases");
    fill(&journal, 1, 1);
    assert!(journal.first_seq() <= 50, "it holds after a restart, too");
    journal.forget_reader("rules").expect("forgets");
    fill(&journal, 1, 1);
    assert!(journal.first_seq() > 50, "nobody holds");
}

fn drop_record(first: u64, last: u64) -> DropRecord {
    DropRecord { epoch: 1, first, last, class: 0, reason: DropReason(4), bytes: 0 }
}

#[test]
fn at_the_bound_of_drop_records_appends_are_refused_until_some_are_confirmed() {
    let fs = SimFs::new(1);
    let options = Options { when_full: WhenFull::DropOldest, bytes_max: 16 * 1024, ..options() };
    let (journal, _) = open(&fs, &options);
    for at in 0..DROPS_MAX as u64 {
        journal.record_drop(drop_record(2 * at + 1, 2 * at + 1)).expect("records");
    }
    assert!(matches!(journal.record_drop(drop_record(9_000, 9_000)), Err(JournalError::DropsFull)));
    let mut refused = None;
    for _ in 0..100 {
        let appended = journal.append(1, &[0; 1000]).map_err(Some);
        refused = appended.err().flatten().or(refused);
        if journal.commit().is_err() {
            refused = journal.append(1, &[0; 1000]).err();
            break;
        }
    }
    assert_eq!(refused, Some(AppendError::Full { of: FullOf::DropRecords }));
    journal.confirm_drops(&journal.drops()).expect("confirms");
    journal.commit().expect("goes on");
    assert_eq!(journal.drops().len(), 1);
}

#[test]
fn readers_openings_and_the_batch_are_bounded() {
    let fs = SimFs::new(1);
    let (journal, _) = open(&fs, &options());
    for at in 0..READERS_MAX {
        journal.reader(&format!("r{at}"), 0, Pin::Follows).expect("registers");
    }
    assert!(matches!(journal.reader("one more", 0, Pin::Follows), Err(JournalError::Reader(_))));
    journal.forget_reader("r0").expect("forgets");
    journal.reader("one more", 0, Pin::Follows).expect("registers");
    assert!(matches!(journal.release("r0", 1), Err(JournalError::UnknownReader(_))));
    let full = loop {
        if let Err(error) = journal.append(1, &[0; 100]) {
            break error;
        }
    };
    assert_eq!(full, AppendError::Full { of: FullOf::Memory });
    journal.close().expect("closes");

    let options = Options { bytes_max: 4 * 1024 * 1024, ..options() };
    for _ in 0..OPENINGS_MAX + 3 {
        let (journal, _) = open(&fs, &options);
        journal.append(1, b"x").expect("appends");
        journal.close().expect("closes");
    }
    let (journal, _) = open(&fs, &options);
    assert_eq!(journal.openings().len(), OPENINGS_MAX);
    assert_eq!(journal.stats().openings_evicted, 5);
    let oldest = journal.openings()[0];
    journal.forget_opening(oldest.epoch).expect("forgets");
    journal.forget_opening(journal.epoch()).expect("keeps the current one");
    assert_eq!(journal.openings().len(), OPENINGS_MAX - 1);
    journal.close().expect("closes");
    let (journal, _) = open(&fs, &options);
    let again = journal.openings();
    assert!(again.len() == OPENINGS_MAX - 1 && again.iter().all(|opening| opening.epoch != oldest.epoch));
}

#[test]
fn old_records_expire_with_a_record_but_not_before_the_clock_was_set() {
    for (start_us, expires) in [(NOW_US, true), (0, false)] {
        let fs = SimFs::new(1);
        let options = Options { age_max: Some(Duration::from_secs(3600)), ..options() };
        let clock = Arc::new(AtomicI64::new(start_us));
        let now = Arc::clone(&clock);
        let (journal, _) = Journal::open(fs, options, move || now.load(Ordering::Relaxed)).expect("opens");
        fill(&journal, 10, 5);
        clock.store(NOW_US + 2 * 3_600_000_000, Ordering::Relaxed);
        journal.confirm_drops(&[]).expect("a step of the writer");
        let expired = journal.drops().first().map(|drop| (drop.first, drop.last, drop.reason));
        assert_eq!(expired, expires.then_some((1, 10, DropReason::EXPIRED)));
        assert_eq!(served(&journal).0.len(), if expires { 0 } else { 10 });
    }
}

#[test]
fn log_keeps_its_epoch_and_an_empty_one_too() {
    let fs = SimFs::new(1);
    let options = Options { epoch: EpochPolicy::PerLog, ..options() };
    let (journal, first) = open(&fs, &options);
    journal.close().expect("closes");
    for _ in 0..3 {
        let (journal, opened) = open(&fs, &options);
        assert_eq!(opened.epoch, first.epoch);
        fill(&journal, 10, 10);
        assert_eq!(journal.openings().len(), 1);
        journal.close().expect("closes");
    }
    assert_eq!(inspect(&fs, Path::new("/journal")).expect("inspects").held.len(), 3);
    assert_eq!(segments(&fs).len(), 3);
}

#[test]
fn callback_that_panics_stops_the_journal_instead_of_hanging_it() {
    let fs = SimFs::new(1);
    let options = Options { writer: WriterMode::Thread, ..options() };
    let (journal, _) = open(&fs, &options);
    journal.on_durable(Box::new(|_| panic!("on purpose")));
    let seq = journal.append(1, &payload(1)).expect("appends");
    // The record became durable before the callback; what follows is refused.
    journal.wait_durable(seq).expect("durable");
    while journal.append(1, b"more") != Err(AppendError::Failed) {
        std::thread::yield_now();
    }
    assert!(journal.close().is_err());
}

/// Threads append, the writer syncs, the power goes: whatever any of them saw as durable is there.
#[test]
fn concurrent_appenders_lose_nothing_that_was_durable() {
    for seed in 0..20 {
        let fs = SimFs::new(seed);
        let options = Options { writer: WriterMode::Thread, segment_bytes: 16 * 1024, ..options() };
        let (journal, _) = open(&fs, &options);
        let durable = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&durable);
        journal.on_durable(Box::new(move |next| seen.store(next, Ordering::SeqCst)));
        let appended = Mutex::new(Vec::new());
        fs.cut_after(40 + seed * 7);
        std::thread::scope(|scope| {
            for worker in 0..3u64 {
                let (journal, appended) = (journal.clone(), &appended);
                scope.spawn(move || {
                    for at in 0.. {
                        let text = format!("{worker}:{at}");
                        match journal.append(1, text.as_bytes()) {
                            Ok(seq) => {
                                appended.lock().expect("lock").push((seq, text));
                                if at % 16 == 0 && journal.wait_durable(seq).is_err() {
                                    return;
                                }
                            }
                            Err(AppendError::Full { .. }) => std::thread::yield_now(),
                            Err(_) => return,
                        }
                    }
                });
            }
        });
        assert!(fs.is_cut());
        let accepted = durable.load(Ordering::SeqCst).max(journal.durable_next());
        drop(journal);
        let fs = fs.reboot(Loss::Random);
        let (journal, opened) = open(&fs, &options);
        assert!(opened.next_seq >= accepted && opened.corrupt.is_empty(), "seed {seed}");
        let appended: std::collections::HashMap<_, _> =
            appended.into_inner().expect("lock").into_iter().collect();
        let mut reader = journal.reader("audit", 1, Pin::Follows).expect("reader");
        let mut next = 1;
        let read = reader.next_batch(usize::MAX, |record| {
            assert_eq!(record.seq, next, "seed {seed}");
            // The cut may have come between the append and the note of it.
            let known = appended.get(&record.seq).map(|text| text.as_bytes());
            assert!(known.is_none_or(|known| known == record.payload), "seed {seed}: {}", record.seq);
            next += 1;
        });
        assert!(read.expect("reads").skipped.is_empty());
        assert_eq!(next, opened.next_seq, "seed {seed}");
    }
}
