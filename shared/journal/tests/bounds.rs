//! The bounds that a damaged disk or a caller can drive: at each the journal works, beyond it refuses or gives up in
//! the way that it promises.

mod support;

use muster_journal::sim::SimFs;
use muster_journal::{
    AppendError, DROPS_MAX, DropReason, DropRecord, Journal, JournalError, Options, Pin,
    READER_NAME_BYTES_MAX, RECORD_BYTES_LIMIT, SeqRange,
};
use support::{open, options, segments, try_open};

/// Records of 100 bytes: 80 fill a segment of 8 KiB behind its header of 128 bytes.
const PAYLOAD: [u8; 68] = [7; 68];
const RECORDS: u64 = 80;

fn roomy() -> Options {
    Options { segment_bytes: 8192, bytes_max: 4 * 1024 * 1024, ..options() }
}

/// A closed journal of full segments.
fn written(count: u64) -> SimFs {
    let fs = SimFs::new(1);
    let (journal, _) = open(&fs, &roomy());
    append(&journal, count);
    journal.close().expect("closes");
    assert_eq!(segments(&fs).len() as u64, count);
    fs
}

fn append(journal: &Journal<SimFs>, segments: u64) {
    for _ in 0..segments {
        for _ in 0..RECORDS {
            journal.append(1, &PAYLOAD).expect("appends");
        }
        journal.commit().expect("commits");
    }
}

/// Damages the second, the fourth and so on of a segment's records, `count` in all.
fn damage(fs: &SimFs, segment: usize, count: u64) {
    let path = &segments(fs)[segment];
    for at in 0..count {
        assert!(fs.flip_bit(path, (128 + 100 * (2 * at + 1) + 50) * 8));
    }
}

fn drop_record(seq: u64, reason: u8) -> DropRecord {
    DropRecord { epoch: 1, first: seq, last: seq, class: 0, reason: DropReason(reason), bytes: 10 }
}

#[test]
fn sixteen_damaged_ranges_of_a_segment_are_told_apart_and_at_the_next_its_rest_is_given_up() {
    let alone = |seq| SeqRange { first: seq, next: seq + 1 };
    for damaged in [16, 17, 30] {
        let fs = written(2);
        damage(&fs, 0, damaged);
        let (_, opened) = open(&fs, &roomy());
        let mut expect: Vec<_> = (1..=16).map(|at| alone(2 * at)).collect();
        if damaged > 16 {
            expect.push(SeqRange { first: 34, next: RECORDS + 1 });
        }
        assert_eq!(opened.corrupt, expect, "{damaged} damaged");
        assert_eq!(opened.next_seq, 2 * RECORDS + 1);
    }
}

#[test]
fn more_damage_than_the_control_state_holds_is_refused_each_time() {
    let fs = written(160);
    for segment in 0..160 {
        damage(&fs, segment, 17);
    }
    for _ in 0..2 {
        let error = try_open(&fs, &roomy()).err().expect("2,720 ranges do not fit");
        assert!(matches!(error, JournalError::TooCorrupt), "{error}");
        assert!(error.to_string().contains("damaged ranges than the 131072 bytes"), "{error}");
    }
    let fs = written(160);
    for segment in 0..100 {
        damage(&fs, segment, 17);
    }
    let (journal, opened) = open(&fs, &roomy());
    assert_eq!((opened.corrupt.len(), journal.drops().len()), (1_700, 1_700));
}

#[test]
fn at_the_bound_of_drop_records_a_reader_stops_at_new_damage_until_some_are_confirmed() {
    let fs = SimFs::new(1);
    let (journal, _) = open(&fs, &roomy());
    append(&journal, 1);
    for at in 1..DROPS_MAX as u64 {
        journal.record_drop(drop_record(1_000 + 2 * at, 9)).expect("records");
    }
    damage(&fs, 0, 2);
    let mut reader = journal.reader("audit", 1, Pin::Follows).expect("reader");
    let mut seqs = Vec::new();
    let error =
        reader.next_batch(usize::MAX, |record| seqs.push(record.seq)).expect_err("no room to list it");
    assert!(matches!(error, JournalError::DropsFull), "{error}");
    assert!(error.to_string().contains("at most 1024"), "{error}");
    assert_eq!((seqs.as_slice(), reader.position(), journal.drops().len()), (&[1, 3][..], 4, DROPS_MAX));
    journal.confirm_drops(&journal.drops()).expect("confirms");
    let batch = reader.next_batch(usize::MAX, |record| seqs.push(record.seq)).expect("goes on");
    assert_eq!(batch.skipped, [SeqRange { first: 4, next: 5 }]);
    assert_eq!((seqs.len() as u64, batch.next, journal.drops().len()), (RECORDS - 2, RECORDS + 1, 1));
}

#[test]
fn drop_reasons_beyond_those_with_a_total_share_the_last_one() {
    let fs = SimFs::new(1);
    let (journal, _) = open(&fs, &roomy());
    for reason in 1..=40 {
        journal.record_drop(drop_record(u64::from(reason), reason)).expect("records");
    }
    let totals = journal.stats().dropped;
    let expect: Vec<_> = (1..=31).map(|reason| (DropReason(reason), 1, 10)).collect();
    assert_eq!(totals.split_last(), Some((&(DropReason(32), 9, 90), expect.as_slice())));
}

#[test]
fn a_readers_name_has_a_longest() {
    let fs = SimFs::new(1);
    let (journal, _) = open(&fs, &roomy());
    let longest = "r".repeat(READER_NAME_BYTES_MAX);
    journal.reader(&longest, 0, Pin::Pins).expect("registers");
    for name in [String::new(), "r".repeat(READER_NAME_BYTES_MAX + 1)] {
        let error = journal.reader(&name, 0, Pin::Pins).err().expect("refused").to_string();
        assert!(error.contains(&format!("{name:?}")) && error.contains("1 to 64 bytes"), "{error}");
    }
    journal.close().expect("closes");
    let (journal, _) = open(&fs, &roomy());
    assert_eq!(journal.released(&longest), Some(1), "it is found again");
}

#[test]
fn the_largest_record_is_taken_and_one_byte_more_is_not() {
    let fs = SimFs::new(1);
    let (journal, _) = open(&fs, &roomy());
    let max = roomy().record_bytes_max;
    journal.append(1, &vec![1; max]).expect("appends");
    let refused = journal.append(1, &vec![1; max + 1]).expect_err("too large");
    assert_eq!(refused, AppendError::TooLarge { bytes: max + 1, max });
    assert_eq!(refused.to_string(), "record has 2049 bytes, more than 2048");
}

#[test]
fn options_beyond_their_bounds_are_refused_by_name() {
    let huge = Options {
        segment_bytes: 32 << 20,
        bytes_max: 128 << 20,
        batch_bytes_max: 32 << 20,
        record_bytes_max: RECORD_BYTES_LIMIT,
        ..options()
    };
    let smallest = Options { segment_bytes: 4096, bytes_max: 4 * 4096, ..options() };
    for options in [&huge, &smallest] {
        open(&SimFs::new(1), options);
    }
    let cases = [
        (
            Options { record_bytes_max: RECORD_BYTES_LIMIT + 1, ..huge.clone() },
            "record_bytes_max must be at most",
        ),
        (Options { batch_bytes_max: RECORD_BYTES_LIMIT + 31, ..huge }, "must fit batch_bytes_max"),
        (Options { segment_bytes: 4095, ..smallest.clone() }, "segment_bytes must be at least 4096"),
        (Options { bytes_max: 4 * 4096 - 1, ..smallest }, "bytes_max four times that"),
    ];
    for (options, part) in cases {
        let error = try_open(&SimFs::new(1), &options).err().expect(part).to_string();
        assert!(error.contains(part), "{error}");
    }
}
