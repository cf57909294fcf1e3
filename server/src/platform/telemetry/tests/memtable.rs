//! What the memtable holds, when it is flushed, and what a crash takes of it.

use super::*;
use std::ops::Range;

impl Bench {
    /// The process is killed: the store is read from its cursor on again.
    fn crash(&mut self) {
        let next = self.next;
        let start = self.store.begin(LogSpan { epoch: EPOCH, first: 1, next }, NOON).unwrap();
        self.next = start.from;
    }

    fn shards_pending(&self) -> usize {
        let memtable = self.store.memtable();
        (0..SHARDS).filter(|shard| memtable.is_pending(*shard)).count()
    }
}

/// Devices in two shards: 16 neighbours fill the first.
fn two_shards(bench: &mut Bench) -> (&'static str, &'static str) {
    const NAMES: [&str; 17] =
        ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q"];
    bench.write(&NAMES.map(|name| of(name, 1)));
    bench.store.flush_all().unwrap();
    (NAMES[0], NAMES[16])
}

#[test]
fn what_a_crash_takes_comes_to_the_same_when_it_is_read_again() {
    let mut bench = Bench::new();
    let (first, second) = two_shards(&mut bench);
    let bad = |seq| Message { body: b"garbage".to_vec(), ..of(second, seq) };
    let messages = [of(first, 2), of(second, 2), event(3), bad(4), of(first, 2), event(3)];
    let ask = |bench: &Bench| {
        let totals = bench.store.read_blocking(|view| totals(view, &acme())).unwrap();
        let rows = bench.wait(bench.store.events(&acme(), &EventQuery { limit: 9, ..EventQuery::default() }));
        let letters = bench.store.read_blocking(|view| dead_letters(view, &acme(), None, 9)).unwrap();
        (totals, rows.unwrap(), letters)
    };
    let begin = bench.next;
    bench.write(&messages);
    let before = ask(&bench);
    assert_eq!((before.0.stored, before.0.duplicates, before.0.events, before.0.dead_letters), (20, 2, 1, 1));
    // Nothing flushed, one shard flushed, and the other: the same batch each time.
    for flushes in 0..3 {
        for _ in 0..flushes {
            bench.store.flush_next().unwrap();
        }
        let end = bench.next;
        bench.crash();
        assert!(bench.next >= begin && bench.next <= end, "{flushes}");
        let passed_over = (bench.next - begin) as usize;
        if passed_over < messages.len() {
            bench.write(&messages[passed_over..]);
        }
        assert_eq!(ask(&bench), before, "{flushes} flushes");
    }
    // What a run before this one left for ClickHouse is seen once it is sent.
    bench.send();
    assert_eq!(bench.values(second, "t"), [number(1.0), number(2.0)]);
}

/// What is read again in several batches, with flushes in between, meets marks that are ahead of it.
#[test]
fn a_flush_while_the_log_is_read_again_moves_no_mark_back() {
    let mut bench = Bench::embedded();
    let (first, second) = two_shards(&mut bench);
    let begin = bench.next;
    let foreign = Message { device: second, ..senml(r#"[{"n":"x","v":3}]"#) };
    let messages = [of(first, 2), of(second, 2), foreign];
    bench.write(&messages);
    // The first shard was flushed last: the second's turn comes first.
    bench.store.memtable().turn = 0;
    assert!(bench.store.flush_next().unwrap());
    assert_eq!(bench.shards_pending(), 1);
    bench.crash();
    assert_eq!(bench.next, begin, "the first shard's mark");
    for message in &messages {
        bench.write(std::slice::from_ref(message));
        bench.store.flush_next().unwrap();
    }
    let totals = bench.totals();
    assert_eq!((totals.stored, totals.readings, totals.duplicates), (17 + 3, 17 + 3, 0));
    assert_eq!(bench.values(second, "x"), [number(3.0)]);
}

#[test]
fn a_range_that_became_unreadable_is_noted_though_the_mark_is_ahead_of_it() {
    let mut bench = Bench::new();
    bench.write(&[event(1), event(2)]);
    let lost = |bench: &Bench| {
        let system = Scope::System("test");
        bench.store.read_blocking(move |view| lost_ranges(view, &system, 0)).unwrap().len()
    };
    for noted in [1, 1] {
        bench.crash();
        assert_eq!(bench.next, 1);
        let mut batch = RawBatch::new(EPOCH, 1);
        (batch.next, batch.skipped) = (3, vec![Range { start: 1, end: 3 }]);
        bench.store.apply(batch, false).unwrap();
        bench.next = 3;
        assert_eq!(lost(&bench), noted);
    }
}

#[test]
fn a_shard_is_flushed_alone_and_the_log_is_released_behind_the_last() {
    let mut bench = Bench::embedded();
    let (first, second) = two_shards(&mut bench);
    let begin = bench.next;
    assert_eq!(bench.store.settle().unwrap(), begin);
    bench.write(&[of(first, 2), of(second, 2)]);
    assert_eq!((bench.shards_pending(), bench.store.settle().unwrap()), (2, begin));
    assert!(bench.store.flush_next().unwrap());
    assert_eq!((bench.shards_pending(), bench.store.settle().unwrap()), (1, begin));
    assert!(bench.store.flush_next().unwrap());
    assert_eq!((bench.shards_pending(), bench.store.settle().unwrap()), (0, begin + 2));
    assert!(!bench.store.flush_next().unwrap());
}

#[test]
fn over_its_bounds_the_fullest_shard_is_flushed() {
    let mut bench = Bench::embedded();
    let (first, second) = two_shards(&mut bench);
    let full = |device, seq, readings| {
        let all = vec![("t", Value::Bool(true)); readings];
        Message { device, ..telemetry(seq, &all) }
    };
    let half = SHARD_ENTRIES_MAX / 128 - 1;
    let messages: Vec<Message> = (2..130).map(|seq| full(first, seq, half)).collect();
    bench.write(&messages);
    bench.write(&[of(second, 2)]);
    assert!(!bench.store.flush_overfull().unwrap(), "exactly full");
    bench.write(&[of(first, 130)]);
    assert!(bench.store.flush_overfull().unwrap());
    assert_eq!(bench.shards_pending(), 1, "the other stays");
}

#[test]
fn readings_and_queues_are_bounded_over_all_shards() {
    let bench = Bench::new();
    let fill = |entries: usize| {
        let mut memtable = bench.store.memtable();
        for (at, shard) in memtable.shards.iter_mut().enumerate() {
            shard.records = entries / SHARDS + usize::from(at < entries % SHARDS);
        }
        memtable.overfull()
    };
    assert_eq!(fill(ENTRIES_MAX), None);
    assert!(fill(ENTRIES_MAX + 1).is_some());
    assert_eq!(fill(0), None);
    let openings = |count: u64| {
        let of = |first| (first..first + 20).map(|at| (at, 1, 1, 1, false)).collect::<Vec<_>>();
        (0..count / 20).map(|at| state(&of(1 + at * 20), &[])).collect::<Vec<_>>()
    };
    let mut bench = Bench::new();
    bench.write(&openings(DIRTY_QUEUES_MAX as u64));
    assert_eq!(bench.store.memtable().overfull(), None);
    bench.write(&[one(1)]);
    assert_eq!(bench.store.memtable().overfull(), Some(0));
}

#[test]
fn a_reader_that_never_meets_the_tables_moment_is_told_so() {
    let mut bench = Bench::new();
    bench.write(&[one(1)]);
    bench.store.memtable().position.as_mut().unwrap().marks.shards[0] += 1;
    let asked = bench.store.read_blocking(|view| totals(view, &acme()));
    assert!(matches!(asked, Err(DbError::Busy)), "{asked:?}");
}
