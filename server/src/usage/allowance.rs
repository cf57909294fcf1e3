//! What each tenant may still send: atomics, one set a tenant, asked for every PUBLISH.
//!
//! The gateway takes a tenant's [`Allowance`] once a connection and asks [`Allowance::admit`] for each message: no lock, no
//! allocation, and no memory that two tenants share. The service sets limits through the [`Board`](super::Board), the meter tells
//! what it alone knows (storage, inference) and takes the refusals.
//!
//! Promise: however many connections and threads, the messages admitted within a day are at most the day's hard limit,
//! and within any time at most the burst and what the rate earned in it, to the message. A message that is
//! admitted and then not taken is given back.

use super::model::{Quota, Quotas, Refused};
use muster_wire::UpClass;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Steps of the gateway's coarse clock, which rates go by.
pub const TICKS_PER_S: u32 = 10;

/// No limit.
const NONE: u64 = u64::MAX;

/// One tenant's limits and what is used of them.
#[derive(Debug)]
pub struct Allowance {
    per_s: AtomicU64,
    burst: AtomicU64,
    messages_max: AtomicU64,
    bytes_max: AtomicU64,
    connections_max: AtomicU64,
    /// The tick of the last filling in the upper half; tokens in the lower, [`TICKS_PER_S`] of them a message.
    bucket: AtomicU64,
    messages: AtomicU64,
    bytes: AtomicU64,
    connections: AtomicU64,
    is_over_inference: AtomicBool,
    is_over_storage: AtomicBool,
    refused: [AtomicU64; 13],
}

impl Default for Allowance {
    fn default() -> Self {
        let none = || AtomicU64::new(NONE);
        Self {
            per_s: none(),
            burst: none(),
            messages_max: none(),
            bytes_max: none(),
            connections_max: none(),
            // As full as a burst can be; it is cut to the burst at the first look.
            bucket: AtomicU64::new(u64::from(u32::MAX)),
            messages: AtomicU64::default(),
            bytes: AtomicU64::default(),
            connections: AtomicU64::default(),
            is_over_inference: AtomicBool::default(),
            is_over_storage: AtomicBool::default(),
            refused: std::array::from_fn(|_| AtomicU64::default()),
        }
    }
}

impl Allowance {
    /// Puts limits in force; what is used stays.
    pub(super) fn set(&self, quotas: &Quotas) {
        let hard = |quota| quotas.limit(quota).hard.unwrap_or(NONE);
        self.per_s.store(hard(Quota::MessagesPerS), Ordering::Relaxed);
        self.burst.store(quotas.burst, Ordering::Relaxed);
        self.messages_max.store(hard(Quota::MessagesPerDay), Ordering::Relaxed);
        self.bytes_max.store(hard(Quota::BytesPerDay), Ordering::Relaxed);
        self.connections_max.store(hard(Quota::Connections), Ordering::Relaxed);
    }

    /// Takes one message of a body with `bytes` at a tick of the coarse clock.
    ///
    /// # Errors
    /// The quota that it is over; nothing is taken then. The caller counts it with [`Self::refuse`].
    pub fn admit(&self, class: UpClass, bytes: u64, tick: u32) -> Result<(), Refused> {
        let is_stored = matches!(class, UpClass::Telemetry | UpClass::Event | UpClass::Senml);
        if is_stored && self.is_over_storage.load(Ordering::Relaxed) {
            return Err(Refused::StorageBytes);
        }
        if class == UpClass::Event && self.is_over_inference.load(Ordering::Relaxed) {
            return Err(Refused::InferenceMsPerDay);
        }
        self.take(bytes, tick)
    }

    /// As [`Self::admit`], of what is neither stored nor inferred: what the log keeps of a refused message.
    ///
    /// # Errors
    /// The quota that it is over; nothing is taken then.
    pub fn take(&self, bytes: u64, tick: u32) -> Result<(), Refused> {
        if !self.take_token(tick) {
            return Err(Refused::MessagesPerS);
        }
        if !take(&self.messages, 1, &self.messages_max) {
            self.give_token();
            return Err(Refused::MessagesPerDay);
        }
        if !take(&self.bytes, bytes, &self.bytes_max) {
            give(&self.messages, 1);
            self.give_token();
            return Err(Refused::BytesPerDay);
        }
        Ok(())
    }

    /// Gives back what [`Self::admit`] took: the message was not taken after all.
    pub fn give_back(&self, bytes: u64) {
        self.give_token();
        give(&self.messages, 1);
        give(&self.bytes, bytes);
    }

    /// Counts messages that nobody was asked about: a will, and what the log held before this process began.
    pub fn charge(&self, messages: u64, bytes: u64) {
        self.messages.fetch_add(messages, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn take_token(&self, tick: u32) -> bool {
        let per_s = self.per_s.load(Ordering::Relaxed);
        if per_s == NONE {
            return true;
        }
        let full = self.burst.load(Ordering::Relaxed).saturating_mul(TICKS_PER_S.into()).min(u32::MAX.into());
        let taken = self.bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bucket| {
            let (filled_at, tokens) = ((bucket >> 32) as u32, bucket & u64::from(u32::MAX));
            // A thread that read the clock before the last one did has earned nothing.
            let passed = tick.wrapping_sub(filled_at);
            let (passed, filled_at) = if passed > u32::MAX / 2 { (0, filled_at) } else { (passed, tick) };
            let tokens = tokens.saturating_add(u64::from(passed).saturating_mul(per_s)).min(full);
            Some(u64::from(filled_at) << 32 | tokens.checked_sub(TICKS_PER_S.into())?)
        });
        taken.is_ok()
    }

    fn give_token(&self) {
        if self.per_s.load(Ordering::Relaxed) == NONE {
            return;
        }
        let _always = self.bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bucket| {
            let (filled_at, tokens) = (bucket >> 32, bucket & u64::from(u32::MAX));
            Some(filled_at << 32 | (tokens + u64::from(TICKS_PER_S)).min(u32::MAX.into()))
        });
    }

    /// Whether a quota that refused may admit again within ticks, by time alone.
    #[must_use]
    pub fn refills(&self, quota: Refused) -> bool {
        quota == Refused::MessagesPerS && self.per_s.load(Ordering::Relaxed) > 0
    }

    /// Counts a refusal.
    pub fn refuse(&self, reason: Refused) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Takes the refusals counted since the last call.
    pub(super) fn take_refused(&self) -> [u64; 13] {
        std::array::from_fn(|at| match self.refused[at].load(Ordering::Relaxed) {
            0 => 0,
            _ => self.refused[at].swap(0, Ordering::Relaxed),
        })
    }

    /// As [`Self::take_refused`], for the gateway's tests.
    #[cfg(test)]
    pub fn take_refused_for_test(&self) -> [u64; 13] {
        self.take_refused()
    }

    /// Whether one more connection may be made.
    #[must_use]
    pub fn has_place(&self) -> bool {
        self.connections.load(Ordering::Relaxed) < self.connections_max.load(Ordering::Relaxed)
    }

    /// A connection was made.
    pub fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection ended.
    pub fn disconnected(&self) {
        give(&self.connections, 1);
    }

    /// Open connections.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Messages and bytes of the day so far.
    #[must_use]
    pub fn used(&self) -> (u64, u64) {
        (self.messages.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// What the meter alone knows: whether the day's inference and the storage are used up. True where one no longer is.
    #[must_use]
    pub(super) fn set_over(&self, inference: bool, storage: bool) -> bool {
        let was_inference = self.is_over_inference.swap(inference, Ordering::Relaxed);
        let was_storage = self.is_over_storage.swap(storage, Ordering::Relaxed);
        (was_inference && !inference) || (was_storage && !storage)
    }

    /// A day begins of which nothing was used.
    pub(super) fn new_day(&self) {
        self.messages.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        self.is_over_inference.store(false, Ordering::Relaxed);
    }
}

/// Takes `more` of a counter unless it would pass the limit.
fn take(counter: &AtomicU64, more: u64, max: &AtomicU64) -> bool {
    let max = max.load(Ordering::Relaxed);
    if max == NONE {
        counter.fetch_add(more, Ordering::Relaxed);
        return true;
    }
    let fits = |used: u64| used.checked_add(more).filter(|used| *used <= max);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
}

/// Takes back; a counter that a new day emptied meanwhile stays empty.
fn give(counter: &AtomicU64, less: u64) {
    let _always =
        counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(used.saturating_sub(less)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::config::{LimitSection, QuotaRateSection};
    use crate::usage::Board;
    use crate::usage::model::{DAY_US, QuotaSpec};

    const CLASS: UpClass = UpClass::Telemetry;

    fn board(spec: QuotaSpec) -> Board {
        let board = Board::new();
        board.set_own("acme", Some(spec));
        board.at(0);
        board
    }

    fn rate(hard: u64, burst: u64) -> QuotaSpec {
        let rate = QuotaRateSection { soft: None, hard: Some(hard), burst: Some(burst) };
        QuotaSpec { messages_per_s: Some(rate), ..QuotaSpec::default() }
    }

    fn day(messages: Option<u64>, bytes: Option<u64>) -> QuotaSpec {
        let limit = |hard| Some(LimitSection { soft: None, hard });
        QuotaSpec { messages_per_day: limit(messages), bytes_per_day: limit(bytes), ..QuotaSpec::default() }
    }

    #[test]
    fn a_burst_passes_then_the_rate_to_the_message() {
        let board = board(rate(7, 5));
        let acme = board.of("acme");
        let taken = |tick| (0..1_000).take_while(|_| acme.admit(CLASS, 1, tick).is_ok()).count();
        assert_eq!(taken(0), 5);
        assert_eq!(
            (1..=100).map(taken).sum::<usize>(),
            70,
            "seven a second for ten seconds, though no tick earns one"
        );
        assert_eq!(taken(100_000), 5, "a pause earns no more than a burst");
        assert_eq!(
            acme.admit(CLASS, 1, 99_999),
            Err(Refused::MessagesPerS),
            "a clock read late earns nothing"
        );
        acme.give_back(1);
        assert_eq!(taken(100_000), 1);
        assert_eq!((0..1_000).filter(|_| board.of("other").admit(CLASS, 1, 0).is_ok()).count(), 1_000);
    }

    #[test]
    fn threads_of_many_connections_share_one_days_quota_exactly() {
        const QUOTA: u64 = 10_000;
        let board = board(day(Some(QUOTA), None));
        let admitted: usize = std::thread::scope(|scope| {
            let sender = || {
                let acme = board.of("acme");
                scope.spawn(move || (0..QUOTA).filter(|_| acme.admit(CLASS, 3, 0).is_ok()).count())
            };
            let senders: Vec<_> = (0..10).map(|_| sender()).collect();
            senders.into_iter().map(|sender| sender.join().unwrap()).sum()
        });
        assert_eq!(admitted as u64, QUOTA);
        assert_eq!(board.of("acme").used(), (QUOTA, 3 * QUOTA));
        board.at(DAY_US - 1);
        assert_eq!(board.of("acme").admit(CLASS, 3, 0), Err(Refused::MessagesPerDay));
        board.at(DAY_US);
        assert_eq!(board.of("acme").admit(CLASS, 3, 0), Ok(()), "a new day");
        board.at(0);
        assert_eq!(board.of("acme").used(), (1, 3), "a clock set back by little is not believed");
    }

    #[test]
    fn a_clock_that_was_years_ahead_is_believed_again_when_it_is_right() {
        let board = board(day(Some(2), None));
        let acme = board.of("acme");
        board.at(4_000 * DAY_US);
        assert_eq!((acme.admit(CLASS, 1, 0), board.day(), board.changes()), (Ok(()), 4_000, 2));
        board.at(5 * DAY_US);
        assert_eq!((acme.used(), board.day(), board.changes()), ((0, 0), 5, 3));
        assert_eq!([(); 3].map(|()| acme.admit(CLASS, 1, 0).is_ok()), [true, true, false]);
        board.at(6 * DAY_US);
        assert_eq!(acme.admit(CLASS, 1, 0), Ok(()), "and its days go on");
    }

    #[test]
    fn what_one_quota_refuses_no_other_counts() {
        let board = board(QuotaSpec { bytes_per_day: day(None, Some(10)).bytes_per_day, ..rate(1, 3) });
        let acme = board.of("acme");
        assert_eq!(acme.admit(CLASS, 6, 0), Ok(()));
        assert_eq!(acme.admit(CLASS, 5, 0), Err(Refused::BytesPerDay));
        assert_eq!(acme.used(), (1, 6));
        assert_eq!(acme.admit(CLASS, 4, 0), Ok(()));
        assert_eq!(acme.admit(CLASS, 0, 0), Ok(()), "the refused one gave its token back");
        assert_eq!(acme.admit(CLASS, 0, 0), Err(Refused::MessagesPerS));
    }

    #[test]
    fn limits_change_while_connections_are_up() {
        let board = board(day(Some(1), None));
        let acme = board.of("acme");
        assert_eq!(
            (acme.admit(CLASS, 1, 0), acme.admit(CLASS, 1, 0)),
            (Ok(()), Err(Refused::MessagesPerDay))
        );
        board.set_own("acme", None);
        assert_eq!(acme.admit(CLASS, 1, 0), Ok(()));
        board.set_defaults(Quotas::default().with(&day(Some(2), None)));
        assert_eq!(acme.admit(CLASS, 1, 0), Err(Refused::MessagesPerDay));
    }

    #[test]
    fn storage_and_inference_refuse_what_would_add_to_them() {
        let board = board(QuotaSpec::default());
        let acme = board.of("acme");
        assert!(!acme.set_over(true, false));
        assert_eq!(acme.admit(UpClass::Event, 1, 0), Err(Refused::InferenceMsPerDay));
        assert_eq!(acme.admit(CLASS, 1, 0), Ok(()));
        assert!(acme.set_over(false, true), "events are let in again");
        for class in UpClass::ALL {
            let stored = [UpClass::Telemetry, UpClass::Event, UpClass::Senml].contains(&class);
            assert_eq!(acme.admit(class, 1, 0).is_err(), stored, "{class:?}");
        }
        board.at(DAY_US);
        assert_eq!(acme.admit(CLASS, 1, 0), Err(Refused::StorageBytes), "a new day frees no storage");
    }

    #[test]
    fn connections_are_bounded_and_refusals_taken_once() {
        let limit = Some(LimitSection { soft: None, hard: Some(2) });
        let board = board(QuotaSpec { connections: limit, ..QuotaSpec::default() });
        let acme = board.of("acme");
        acme.connected();
        assert!(acme.has_place());
        acme.connected();
        assert!(!acme.has_place());
        acme.disconnected();
        assert!(acme.has_place());
        acme.refuse(Refused::Connections);
        assert_eq!(acme.take_refused()[Refused::Connections as usize], 1);
        assert_eq!(acme.take_refused(), [0; 13]);
    }
}
