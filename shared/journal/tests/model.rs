//! Random actions against a small model, shrunk by proptest where they disagree.

mod support;

use muster_journal::sim::{Loss, SimFs};
use muster_journal::{AppendError, EpochPolicy, Journal, Options, Pin, Reader, Seq, WhenFull};
use proptest::prelude::*;
use std::collections::BTreeMap;
use support::{NOW_US, options};

#[derive(Clone, Debug)]
enum Action {
    Append(u8),
    AppendLarge,
    Commit,
    Read(u16),
    Release,
    ReadHolding(u16),
    ReleaseHolding,
    ConfirmDrops,
    Reopen,
    Crash(Loss),
    CutAfter(u8),
    FailSyncs(u8),
    FillDisk(u16),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => any::<u8>().prop_map(Action::Append),
        1 => Just(Action::AppendLarge),
        5 => Just(Action::Commit),
        4 => any::<u16>().prop_map(Action::Read),
        3 => Just(Action::Release),
        2 => any::<u16>().prop_map(Action::ReadHolding),
        1 => Just(Action::ReleaseHolding),
        1 => Just(Action::ConfirmDrops),
        1 => Just(Action::Reopen),
        1 => prop_oneof![Just(Loss::Process), Just(Loss::Unsynced), Just(Loss::Random)].prop_map(Action::Crash),
        1 => any::<u8>().prop_map(Action::CutAfter),
        1 => (1..3u8).prop_map(Action::FailSyncs),
        1 => any::<u16>().prop_map(Action::FillDisk),
    ]
}

/// The journal under test with what the model knows about it.
struct World {
    fs: SimFs,
    options: Options,
    open: Option<Open>,
    /// What each position may hold: several payloads where a crash gave an unaccepted position again.
    appended: BTreeMap<Seq, Vec<Vec<u8>>>,
    durable_next: Seq,
    released: Seq,
    /// What the reader that holds half released.
    released_holding: Seq,
    /// The disk has an end, where the reader that holds half gives way earlier.
    disk_ends: bool,
    confirmed: u64,
}

struct Open {
    journal: Journal<SimFs>,
    reader: Reader<SimFs>,
    holding: Reader<SimFs>,
}

impl World {
    fn new(seed: u64, bytes_max: u64, when_full: WhenFull, epoch: EpochPolicy) -> Self {
        let options = Options { bytes_max, when_full, epoch, ..options() };
        let mut world = Self {
            fs: SimFs::new(seed),
            options,
            open: None,
            appended: BTreeMap::new(),
            durable_next: 1,
            released: 1,
            released_holding: 1,
            disk_ends: false,
            confirmed: 0,
        };
        world.reopen(Loss::Process);
        world
    }

    fn reopen(&mut self, loss: Loss) {
        self.open = None;
        self.fs.set_budget(None);
        self.fs = self.fs.reboot(loss);
        let opened = Journal::open(self.fs.clone(), self.options.clone(), || NOW_US);
        let (journal, opened) = opened.expect("opens");
        assert!(opened.corrupt.is_empty() && opened.next_seq >= self.durable_next);
        self.durable_next = opened.next_seq;
        let reader = journal.reader("uplink", 0, Pin::Pins).expect("reader");
        let holding = journal.reader("rules", 0, Pin::HoldsHalf).expect("reader");
        if std::mem::take(&mut self.disk_ends) {
            self.released_holding = self.released_holding.max(journal.first_seq());
        }
        self.open = Some(Open { journal, reader, holding });
        self.audit();
    }

    /// Released, dropped or served: every durable position is exactly one of them.
    fn audit(&self) {
        let Some(Open { journal, .. }) = &self.open else { return };
        let mut reader = journal.reader("audit", 0, Pin::Follows).expect("reader");
        reader.seek(journal.first_seq());
        let mut served = 0;
        let batch = reader
            .next_batch(usize::MAX, |record| {
                let known = self.appended.get(&record.seq);
                assert!(known.is_some_and(|known| known.iter().any(|payload| payload == record.payload)));
                served += u64::from(record.seq >= self.released);
            })
            .expect("reads");
        assert_eq!((batch.next, batch.skipped.len()), (journal.durable_next(), 0));
        let first = journal.first_seq().max(self.released);
        assert_eq!(served, journal.durable_next().saturating_sub(first));
        let dropped: u64 = journal.drops().iter().map(|drop| drop.last - drop.first + 1).sum();
        // What lies before the first record held was released or dropped.
        assert!(first - self.released <= dropped + self.confirmed, "{first} {} {dropped}", self.released);
        self.audit_holding();
    }

    /// A reader is moved forward only where it would hold more than half, give or take a segment.
    fn audit_holding(&self) {
        let Some(Open { journal, .. }) = &self.open else { return };
        let moved = journal.first_seq() > self.released_holding;
        if moved && self.options.when_full == WhenFull::Refuse {
            let bytes = journal.stats().bytes;
            assert!(
                bytes + self.options.segment_bytes > self.options.bytes_max / 2,
                "moved with {bytes} bytes"
            );
        }
    }

    fn run(&mut self, action: &Action) {
        let Some(Open { journal, reader, holding }) = self.open.as_mut() else { return };
        match action {
            Action::Append(size) => append(journal, &mut self.appended, usize::from(*size)),
            Action::AppendLarge => append(journal, &mut self.appended, 2048),
            Action::Commit => drop(journal.commit()),
            Action::Read(bytes) => drop(reader.next_batch(usize::from(*bytes), |_| {})),
            Action::Release => {
                journal.release("uplink", reader.position()).expect("releases");
                self.released = self.released.max(reader.position());
            }
            Action::ReadHolding(bytes) => drop(holding.next_batch(usize::from(*bytes), |_| {})),
            Action::ReleaseHolding => {
                journal.release("rules", holding.position()).expect("releases");
                self.released_holding = self.released_holding.max(holding.position());
            }
            Action::ConfirmDrops => {
                let drops = journal.drops();
                self.confirmed += drops.iter().map(|drop| drop.last - drop.first + 1).sum::<u64>();
                drop(journal.confirm_drops(&drops));
            }
            Action::Reopen => {
                self.fs.set_budget(None);
                drop(journal.commit());
                self.durable_next = self.durable_next.max(journal.durable_next());
                return self.reopen(Loss::Unsynced);
            }
            Action::Crash(loss) => {
                self.durable_next = self.durable_next.max(journal.durable_next());
                self.fs.cut();
                return self.reopen(*loss);
            }
            Action::CutAfter(operations) => self.fs.cut_after(1 + u64::from(*operations % 32)),
            Action::FailSyncs(count) => self.fs.fail_syncs(0, u32::from(*count)),
            Action::FillDisk(bytes) => {
                self.fs.set_budget(Some(self.fs.used_bytes() + u64::from(*bytes % 8000)));
                self.disk_ends = true;
            }
        }
        self.durable_next = self.durable_next.max(journal.durable_next());
        let failed = journal.stats().failed.is_some();
        if self.disk_ends {
            self.released_holding = self.released_holding.max(journal.first_seq());
        }
        self.audit_holding();
        if self.fs.is_cut() || failed {
            self.fs.cut();
            self.reopen(Loss::Random);
        }
    }
}

fn append(journal: &Journal<SimFs>, appended: &mut BTreeMap<Seq, Vec<Vec<u8>>>, size: usize) {
    let next = journal.stats().next_seq;
    let payload = vec![(next % 251) as u8; size];
    match journal.append(1, &payload) {
        Ok(seq) => {
            assert_eq!(seq, next);
            appended.entry(seq).or_default().push(payload);
        }
        Err(AppendError::TooLarge { .. }) => panic!("fits"),
        Err(AppendError::Full { .. } | AppendError::Failed) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_actions_agree_with_the_model(
        seed in any::<u64>(),
        refuse in any::<bool>(),
        per_open in any::<bool>(),
        bytes_max in prop_oneof![Just(16 * 1024), Just(64 * 1024)],
        actions in prop::collection::vec(action(), 1..120),
    ) {
        let when_full = if refuse { WhenFull::Refuse } else { WhenFull::DropOldest };
        let epoch = if per_open { EpochPolicy::PerOpen } else { EpochPolicy::PerLog };
        let mut world = World::new(seed, bytes_max, when_full, epoch);
        for action in &actions {
            world.run(action);
        }
        world.reopen(Loss::Unsynced);
    }
}
