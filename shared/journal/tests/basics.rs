//! The public API on the machine's file system.

use muster_journal::{
    AppendError, Batch, FullOf, Journal, JournalError, Opened, Options, Pin, RealFs, Seq, Urgency, WhenFull,
};
use std::path::Path;

fn options(dir: &Path) -> Options {
    Options {
        dir: dir.to_owned(),
        segment_bytes: 4096,
        bytes_max: 64 * 1024,
        record_bytes_max: 1024,
        ..Options::default()
    }
}

fn open(options: &Options) -> (Journal, Opened) {
    Journal::open(RealFs, options.clone(), || 1_700_000_000_000_000).expect("opens")
}

fn read_all(journal: &Journal, from: Seq) -> (Vec<(Seq, u64, Vec<u8>)>, Batch) {
    let mut reader = journal.reader("test", from, Pin::Follows).expect("reader");
    let mut records = Vec::new();
    let batch = reader
        .next_batch(usize::MAX, |record| records.push((record.seq, record.epoch, record.payload.to_vec())))
        .expect("reads");
    (records, batch)
}

#[test]
fn records_survive_reopening_and_seq_continues_under_a_new_epoch() {
    let dir = tempfile::tempdir().expect("tempdir");
    let options = options(dir.path());
    let (journal, opened) = open(&options);
    assert_eq!((opened.first_seq, opened.next_seq), (1, 1));
    let first_epoch = journal.epoch();
    for at in 0..200u32 {
        journal.append(1, &at.to_le_bytes()).expect("appends");
        if at % 50 == 0 {
            journal.commit().expect("commits");
        }
    }
    assert_eq!(journal.commit().expect("commits"), 201);
    journal.close().expect("closes");

    let (journal, opened) = open(&options);
    assert_eq!((opened.first_seq, opened.next_seq, opened.tail_bytes_dropped), (1, 201, 0));
    assert_ne!(journal.epoch(), first_epoch);
    assert_eq!(journal.append(1, b"later").expect("appends"), 201);
    journal.wait_durable(201).expect("durable");
    let (records, batch) = read_all(&journal, 1);
    assert_eq!((records.len(), batch.next, batch.skipped.len()), (201, 202, 0));
    assert!(records.iter().take(200).all(|record| record.1 == first_epoch));
    assert_eq!(records[200], (201, journal.epoch(), b"later".to_vec()));
    let openings = journal.openings();
    assert_eq!(openings.len(), 2);
    assert_eq!((openings[0].first, openings[0].next, openings[0].closed), (1, 201, true));
    assert_eq!((openings[1].first, openings[1].next, openings[1].closed), (201, 202, false));
}

#[test]
fn second_handle_on_the_same_directory_is_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (journal, _) = open(&options(dir.path()));
    let again = Journal::open(RealFs, options(dir.path()), || 0);
    assert!(matches!(again, Err(JournalError::Locked { .. })));
    drop(journal);
    open(&options(dir.path()));
}

#[test]
fn refuse_keeps_everything_until_released_and_drop_oldest_lists_what_goes() {
    for when_full in [WhenFull::Refuse, WhenFull::DropOldest] {
        let dir = tempfile::tempdir().expect("tempdir");
        let options = Options { when_full, ..options(dir.path()) };
        let (journal, _) = open(&options);
        journal.reader("uplink", 0, Pin::Pins).expect("registers");
        let mut accepted = 0;
        for _ in 0..200 {
            match journal.append(3, &[7; 1000]) {
                Ok(seq) => accepted = seq,
                Err(error) => assert_eq!(error, AppendError::Full { of: FullOf::Bytes }),
            }
            journal.commit().expect("commits");
        }
        assert!(journal.stats().bytes <= 64 * 1024);
        let (records, _) = read_all(&journal, journal.first_seq());
        let dropped: u64 = journal.drops().iter().map(|drop| drop.last - drop.first + 1).sum();
        assert_eq!(records.len() as u64 + dropped, accepted);
        match when_full {
            WhenFull::Refuse => {
                assert!(accepted < 200 && dropped == 0);
                journal.release("uplink", accepted + 1).expect("releases");
                // The second call returns after the step that removed segments for the first.
                journal.confirm_drops(&[]).expect("a step of the writer");
                journal.confirm_drops(&[]).expect("a step of the writer");
                assert!(journal.append(3, &[7; 1000]).is_ok());
            }
            WhenFull::DropOldest => {
                assert!(accepted == 200 && dropped > 0);
                let drops = journal.drops();
                assert_eq!((drops.len(), drops[0].first, drops[0].class), (1, 1, 3));
            }
        }
    }
}

#[test]
fn encoding_closure_that_panics_leaves_the_batch_whole() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (journal, _) = open(&options(dir.path()));
    journal.append(1, b"before").expect("appends");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = journal.append_with(1, 4, Urgency::Now, |buf| {
            buf.extend_from_slice(b"ab");
            panic!("on purpose");
        });
    }));
    assert!(panicked.is_err());
    assert_eq!(journal.append_with(1, 99, Urgency::Now, |buf| buf.extend_from_slice(b"after")), Ok(2));
    assert!(matches!(journal.append(1, &[0; 1025]), Err(AppendError::TooLarge { .. })));
    journal.commit().expect("commits");
    let payloads: Vec<_> = read_all(&journal, 1).0.into_iter().map(|record| record.2).collect();
    assert_eq!(payloads, [b"before".to_vec(), b"after".to_vec()]);
}

#[test]
fn a_record_that_nobody_waits_for_is_written_all_the_same() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (journal, _) = open(&options(dir.path()));
    let append = |urgency| journal.append_with(1, 1, urgency, |buf| buf.push(7)).expect("appends");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let written = |seq| {
        // Without `wait_durable`: a caller that waits would wake the writer itself.
        while journal.durable_next() <= seq {
            assert!(std::time::Instant::now() < deadline, "record {seq} stays in memory");
            std::thread::yield_now();
        }
    };
    written(append(Urgency::Soon));
    let (first, second) = (append(Urgency::Soon), append(Urgency::Soon));
    written(second);
    let batches = journal.stats().batches;
    assert!(first < second && batches <= 3, "{batches} batches");
    append(Urgency::Soon);
    written(append(Urgency::Now));
    written(append(Urgency::Soon));
    journal.close().expect("closes");
}

#[test]
fn who_waited_for_a_record_sees_the_mark_above_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (journal, _) = open(&Options { bytes_max: 1024 * 1024, ..options(dir.path()) });
    for _ in 0..2_000 {
        let seq = journal.append(1, b"x").expect("appends");
        journal.wait_durable(seq).expect("durable");
        assert!(journal.durable_next() > seq, "{seq} is durable, and the mark does not say so");
    }
}
