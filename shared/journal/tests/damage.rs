//! Cut files, flipped bits, lost files: what is served is right, and what is missing is listed.

mod support;

use muster_journal::sim::{Loss, SimFs};
use muster_journal::{DropReason, EpochPolicy, Journal, JournalError, Options, Pin, Seq, inspect};
use std::collections::BTreeSet;
use std::path::Path;
use support::{copy, fill, open, options, payload, segments, served, try_open};

const RECORDS: u64 = 120;

/// A journal of several segments; closed, or left as a power cut leaves it.
fn written(closed: bool) -> SimFs {
    let fs = SimFs::new(1);
    let (journal, _) = open(&fs, &options());
    fill(&journal, RECORDS, 7);
    if closed {
        journal.close().expect("closes");
        return fs;
    }
    fs.cut();
    drop(journal);
    fs.reboot(Loss::Unsynced)
}

/// Every accepted record is served or listed as corrupt, never both; returns how many are listed.
fn check_complete(journal: &Journal<SimFs>, accepted: Seq) -> u64 {
    let (records, _) = served(journal);
    let drops = journal.drops();
    assert!(drops.iter().all(|drop| drop.reason == DropReason::CORRUPT));
    let dropped: BTreeSet<Seq> = drops.iter().flat_map(|drop| drop.first..=drop.last).collect();
    for seq in 1..=accepted {
        let (there, listed) = (records.contains_key(&seq), dropped.contains(&seq));
        assert!(there != listed, "{seq}: served {there}, dropped {listed}");
    }
    dropped.len() as u64
}

#[test]
fn newest_segment_cut_at_every_byte_keeps_the_whole_records_before_the_cut() {
    let fs = written(false);
    let newest = segments(&fs).pop().expect("a segment");
    let bytes = fs.read_file(&newest).expect("bytes");
    let mut kept_before = 0;
    for cut in 0..=bytes.len() {
        let fs = copy(&fs);
        fs.write_file(&newest, &bytes[..cut]);
        let (journal, opened) = open(&fs, &options());
        assert!(opened.corrupt.is_empty(), "cut at {cut}: {:?}", opened.corrupt);
        let (records, skipped) = served(&journal);
        let kept = records.len() as u64;
        assert!(skipped.is_empty() && records.keys().copied().eq(1..=kept), "cut at {cut}");
        assert!(kept >= kept_before, "cut at {cut}");
        kept_before = kept;
        // And it goes on from there.
        assert_eq!(journal.append(1, &payload(kept + 1)), Ok(kept + 1));
        journal.commit().expect("commits");
        assert_eq!(served(&journal).0.len() as u64, kept + 1);
    }
    assert_eq!(kept_before, RECORDS);
}

#[test]
fn closed_journal_cut_at_every_byte_lists_what_is_gone_and_gives_no_seq_twice() {
    let fs = written(true);
    let newest = segments(&fs).pop().expect("a segment");
    let bytes = fs.read_file(&newest).expect("bytes");
    for cut in 0..bytes.len() {
        let fs = copy(&fs);
        fs.write_file(&newest, &bytes[..cut]);
        let (journal, opened) = open(&fs, &options());
        assert_eq!(opened.next_seq, RECORDS + 1, "cut at {cut}");
        assert!(check_complete(&journal, RECORDS) > 0, "cut at {cut}");
    }
}

#[test]
fn every_flipped_bit_of_a_closed_journal_is_noticed_or_harmless() {
    let fs = written(true);
    let mut listed = 0;
    for path in segments(&fs) {
        let bits = fs.read_file(&path).expect("bytes").len() as u64 * 8;
        for bit in (0..bits).step_by(5) {
            let fs = copy(&fs);
            assert!(fs.flip_bit(&path, bit));
            let (journal, opened) = open(&fs, &options());
            assert_eq!(opened.next_seq, RECORDS + 1);
            let dropped = check_complete(&journal, RECORDS);
            // The header has two copies; everywhere else exactly the record that was hit is gone.
            assert_eq!(dropped, u64::from(bit >= 128 * 8), "{path:?} bit {bit}");
            listed += dropped;
            // Known damage is not reported again.
            journal.confirm_drops(&journal.drops()).expect("confirms");
            journal.close().expect("closes");
            let (journal, opened) = open(&fs, &options());
            assert!(opened.corrupt.is_empty() && journal.drops().is_empty());
        }
    }
    assert!(listed > 0);
}

#[test]
fn flipped_bit_before_the_last_batch_is_damage_even_without_an_orderly_end() {
    let fs = written(false);
    let newest = segments(&fs).pop().expect("a segment");
    assert!(fs.flip_bit(&newest, 200 * 8));
    let (journal, opened) = open(&fs, &options());
    assert_eq!((opened.next_seq, opened.corrupt.len()), (RECORDS + 1, 1));
    assert_eq!(check_complete(&journal, RECORDS), 1);
}

#[test]
fn reader_finds_damage_that_came_after_opening_and_writes_it_down() {
    let fs = written(true);
    let (journal, _) = open(&fs, &options());
    for path in segments(&fs) {
        assert!(fs.flip_bit(&path, 300 * 8 + 3));
    }
    let (_, skipped) = served(&journal);
    assert_eq!(skipped.len(), segments(&fs).len());
    assert_eq!(check_complete(&journal, RECORDS), skipped.len() as u64);
    journal.close().expect("closes");
    let (journal, opened) = open(&fs, &options());
    assert!(opened.corrupt.is_empty());
    assert_eq!(check_complete(&journal, RECORDS), skipped.len() as u64);
}

#[test]
fn each_lost_segment_is_listed() {
    let fs = written(true);
    for (at, path) in segments(&fs).iter().enumerate() {
        let fs = copy(&fs);
        fs.write_file(path, b"");
        let (journal, opened) = open(&fs, &options());
        assert_eq!(opened.corrupt.len(), 1, "segment {at}");
        assert!(check_complete(&journal, RECORDS) > 0);
    }
}

#[test]
fn flipped_bits_in_the_control_state_lose_no_record() {
    let fs = written(true);
    let control = Path::new("/journal/control");
    for bit in (0..300 * 8).step_by(3) {
        for slots in [&[0][..], &[1], &[0, 1]] {
            let fs = copy(&fs);
            for slot in slots {
                assert!(fs.flip_bit(control, slot * 128 * 1024 * 8 + bit));
            }
            let (journal, opened) = open(&fs, &options());
            assert_eq!(served(&journal).0.len() as u64, RECORDS, "bit {bit} of {slots:?}");
            assert_eq!(opened.next_seq, RECORDS + 1);
            assert_eq!(journal.openings()[0].next, RECORDS + 1);
        }
    }
}

#[test]
fn heavily_damaged_segment_is_given_up_and_listed_whole() {
    let fs = written(true);
    let path = segments(&fs).remove(0);
    let bits = fs.read_file(&path).expect("bytes").len() as u64 * 8;
    for bit in (128 * 8..bits).step_by(640) {
        assert!(fs.flip_bit(&path, bit));
    }
    let (journal, _) = open(&fs, &options());
    assert!(check_complete(&journal, RECORDS) > 16);
}

#[test]
fn position_that_a_cursor_has_seen_is_never_given_again() {
    let fs = SimFs::new(1);
    let options = Options { epoch: EpochPolicy::PerLog, ..options() };
    let (journal, first) = open(&fs, &options);
    fill(&journal, 50, 10);
    fs.cut();
    drop(journal);
    let fs = fs.reboot(Loss::Unsynced);
    // The disk lost the end of the log, and nothing on it says so; the consumer's cursor does.
    let newest = segments(&fs).pop().expect("a segment");
    let bytes = fs.read_file(&newest).expect("bytes");
    fs.write_file(&newest, &bytes[..bytes.len() / 2]);
    {
        let fs = copy(&fs);
        let (journal, _) = open(&fs, &options);
        assert!(matches!(
            journal.reader("store", 51, Pin::Pins),
            Err(JournalError::BeyondEnd { from: 51, .. })
        ));
    }
    let (journal, opened) = open(&fs, &Options { next_seq_min: 51, ..options });
    assert_eq!((opened.next_seq, opened.epoch), (51, first.epoch));
    assert_eq!(opened.corrupt.len(), 1);
    assert!(check_complete(&journal, 50) > 0);
}

#[test]
fn newer_format_is_refused_and_untouched() {
    let fs = written(true);
    let control = Path::new("/journal/control");
    let mut bytes = fs.read_file(control).expect("control");
    for slot in bytes.chunks_exact_mut(128 * 1024) {
        let len = u32::from_le_bytes(slot[12..16].try_into().expect("four")) as usize;
        slot[8] = 9;
        let crc = crc32c::crc32c(&slot[..24 + len]);
        slot[24 + len..28 + len].copy_from_slice(&crc.to_le_bytes());
    }
    fs.write_file(control, &bytes);
    assert!(matches!(try_open(&fs, &options()), Err(JournalError::Version { version: 9, .. })));
    assert!(matches!(inspect(&fs, Path::new("/journal")), Err(JournalError::Version { .. })));
    assert_eq!(fs.read_file(control), Some(bytes));
}
