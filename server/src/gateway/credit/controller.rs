//! How fast backlogs may come: pure, values and `now` in, decisions out.
//!
//! Called by `credit` once a turn. Additive increase, multiplicative decrease: while links wait and all is well the
//! budget grows by [`BUDGET_STEP`] a turn; when the log, the disk, the store or the gateway's own threads fall
//! behind it is cut to 0.7 of itself and left alone for [`SETTLE`], so that the cut shows first. What backlogs do not
//! use is not saved up beyond [`BURST`].

use std::time::Duration;

/// Records a second that a gateway begins with, and begins again with after [`IDLE`].
pub(crate) const BUDGET_START: i64 = 10_000;
/// The least: with live data over every target a backlog still drains.
pub(crate) const BUDGET_MIN: i64 = 500;
/// The most: more than the log and the store of one machine take.
pub(crate) const BUDGET_MAX: i64 = 200_000;
/// Added in a turn in which links wait and all is well: 10,000 records a second, each second.
pub(crate) const BUDGET_STEP: i64 = 500;
/// After a cut nothing changes for this long.
pub(crate) const SETTLE: Duration = Duration::from_millis(500);
/// Without a wish for this long the budget begins again.
pub(crate) const IDLE: Duration = Duration::from_secs(10);
/// What is not used may be granted at once later, up to this much time of it.
pub(crate) const BURST: Duration = Duration::from_millis(100);
/// From append to disk, where the disk is not slower by nature.
pub(crate) const DISK_DELAY_MAX: Duration = Duration::from_millis(50);
/// A disk that is slower by nature may take this many times its usual delay.
pub(crate) const DISK_DELAY_FACTOR: u32 = 4;
/// The usual delay that is believed at most.
pub(crate) const DISK_DELAY_USUAL_MAX: Duration = Duration::from_millis(250);
/// A turn that comes later than this tells that the gateway's threads have more to do than they can: handshakes.
pub(crate) const LATE_MAX: Duration = Duration::from_millis(100);
/// How long a durable record may wait for the store: four of the times between two of its syncs.
pub(crate) const STORE_LAG_MAX: Duration = Duration::from_secs(2);

const MICRO: i64 = 1_000_000;

/// What one turn looks at.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Signals {
    /// Links wait for credit.
    pub(crate) waits: bool,
    /// From append to disk: the newest measured, or how long it lasts already. None where nothing was appended.
    pub(crate) disk_delay: Option<Duration>,
    /// How much later than due this turn came.
    pub(crate) late: Duration,
    /// The log's bytes on disk.
    pub(crate) log_bytes: u64,
    /// Those that it may have.
    pub(crate) log_bytes_max: u64,
    /// The log takes nothing now.
    pub(crate) log_is_full: bool,
    /// How long the oldest record waits that the store has yet to sync; zero where there is no store.
    pub(crate) store_lag: Duration,
}

/// Why the budget was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The log is full, or on its way: rules that lag may hold half of it, so it is more than that.
    Log,
    /// The store lags.
    Store,
    /// Appended records take long to reach the disk.
    Disk,
    /// The gateway's threads are behind.
    Threads,
}

impl Cut {
    /// Every reason.
    pub(crate) const ALL: [Self; 4] = [Self::Log, Self::Store, Self::Disk, Self::Threads];

    /// The label of its counter.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Store => "store",
            Self::Disk => "disk",
            Self::Threads => "threads",
        }
    }
}

/// The fleet's budget and what is left of it.
#[derive(Debug)]
pub(crate) struct Controller {
    budget: i64,
    /// Millionths of a record; below zero after a grant that was larger than what was left.
    bank: i64,
    turned_at: Duration,
    settled_at: Duration,
    wished_at: Duration,
    usual_delay: Duration,
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

impl Controller {
    pub(crate) fn new(now: Duration) -> Self {
        Self {
            budget: BUDGET_START,
            bank: 0,
            turned_at: now,
            settled_at: now,
            wished_at: now,
            usual_delay: Duration::ZERO,
        }
    }

    /// Records a second.
    pub(crate) fn budget(&self) -> i64 {
        self.budget
    }

    /// Whether another grant may be made now.
    pub(crate) fn may_grant(&self) -> bool {
        self.bank > 0
    }

    /// A grant was made.
    pub(crate) fn spend(&mut self, records: u32) {
        self.bank -= i64::from(records) * MICRO;
    }

    /// Time passed: earns what may be granted and moves the budget. Tells why, where it was cut.
    pub(crate) fn turn(&mut self, now: Duration, signals: &Signals) -> Option<Cut> {
        let passed = now.saturating_sub(self.turned_at).min(BURST);
        self.turned_at = now;
        self.bank = (self.bank + self.budget * micros(passed)).min(self.budget * micros(BURST));
        if signals.waits {
            self.wished_at = now;
        }
        let idle = now.saturating_sub(self.wished_at) >= IDLE;
        if let Some(cut) = self.over_target(signals) {
            if idle {
                self.learn(signals);
            }
            if now < self.settled_at || self.budget == BUDGET_MIN {
                return None;
            }
            self.budget = (self.budget * 7 / 10).max(BUDGET_MIN);
            self.settled_at = now + SETTLE;
            return Some(cut);
        }
        if idle {
            self.learn(signals);
            self.budget = BUDGET_START;
        } else if signals.waits && now >= self.settled_at {
            self.budget = (self.budget + BUDGET_STEP).min(BUDGET_MAX);
        }
        None
    }

    fn over_target(&self, signals: &Signals) -> Option<Cut> {
        let disk_delay_max = (self.usual_delay * DISK_DELAY_FACTOR).max(DISK_DELAY_MAX);
        if signals.log_is_full || signals.log_bytes / 5 > signals.log_bytes_max / 8 {
            Some(Cut::Log)
        } else if signals.store_lag > STORE_LAG_MAX {
            Some(Cut::Store)
        } else if signals.disk_delay.is_some_and(|delay| delay > disk_delay_max) {
            Some(Cut::Disk)
        } else if signals.late > LATE_MAX {
            Some(Cut::Threads)
        } else {
            None
        }
    }

    /// What the disk's delay is while no backlog comes.
    fn learn(&mut self, signals: &Signals) {
        if let Some(delay) = signals.disk_delay {
            self.usual_delay = (self.usual_delay * 15 + delay.min(DISK_DELAY_USUAL_MAX)) / 16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = Duration::from_millis(50);
    const WELL: Signals = Signals {
        waits: true,
        disk_delay: Some(Duration::from_millis(1)),
        late: Duration::ZERO,
        log_bytes: 1_000,
        log_bytes_max: 8_000,
        log_is_full: false,
        store_lag: Duration::ZERO,
    };

    /// Turns of one kind, one after another; gives the reasons of the cuts.
    fn turns(controller: &mut Controller, now: &mut Duration, count: u32, signals: &Signals) -> Vec<Cut> {
        let mut one = || {
            *now += TURN;
            controller.turn(*now, signals)
        };
        (0..count).filter_map(|_| one()).collect()
    }

    fn fresh() -> (Controller, Duration) {
        (Controller::new(Duration::ZERO), Duration::ZERO)
    }

    #[test]
    fn over_a_target_the_budget_is_cut_with_the_reason_and_at_it_not() {
        let ms = Duration::from_millis;
        let table = [
            (Signals { log_bytes: 5_000, ..WELL }, None),
            (Signals { log_bytes: 5_005, ..WELL }, Some(Cut::Log)),
            (Signals { log_is_full: true, ..WELL }, Some(Cut::Log)),
            (Signals { store_lag: STORE_LAG_MAX, ..WELL }, None),
            (Signals { store_lag: STORE_LAG_MAX + ms(1), ..WELL }, Some(Cut::Store)),
            (Signals { disk_delay: Some(DISK_DELAY_MAX), ..WELL }, None),
            (Signals { disk_delay: Some(DISK_DELAY_MAX + ms(1)), ..WELL }, Some(Cut::Disk)),
            (Signals { disk_delay: None, ..WELL }, None),
            (Signals { late: LATE_MAX, ..WELL }, None),
            (Signals { late: LATE_MAX + ms(1), ..WELL }, Some(Cut::Threads)),
            (Signals { waits: false, store_lag: Duration::MAX, ..WELL }, Some(Cut::Store)),
        ];
        for (signals, expect) in table {
            let (mut controller, mut now) = fresh();
            let cuts = turns(&mut controller, &mut now, 1, &signals);
            assert_eq!(cuts.first().copied(), expect, "{signals:?}");
            let budget = if expect.is_some() { BUDGET_START * 7 / 10 } else { BUDGET_START + BUDGET_STEP };
            assert_eq!(controller.budget(), budget, "{signals:?}");
        }
    }

    #[test]
    fn a_cut_is_given_time_to_show() {
        let (mut controller, mut now) = fresh();
        let over = Signals { store_lag: Duration::MAX, ..WELL };
        assert_eq!(turns(&mut controller, &mut now, 10, &over), [Cut::Store]);
        assert_eq!(turns(&mut controller, &mut now, 1, &over), [Cut::Store]);
        let cut_twice = BUDGET_START * 7 / 10 * 7 / 10;
        assert_eq!(turns(&mut controller, &mut now, 9, &WELL), []);
        assert_eq!(controller.budget(), cut_twice, "nor does it grow before");
        turns(&mut controller, &mut now, 1, &WELL);
        assert_eq!(controller.budget(), cut_twice + BUDGET_STEP);
    }

    #[test]
    fn the_budget_has_bounds_and_only_waiting_links_make_it_grow() {
        let (mut controller, mut now) = fresh();
        turns(&mut controller, &mut now, 1, &Signals { waits: false, ..WELL });
        assert_eq!(controller.budget(), BUDGET_START);
        turns(&mut controller, &mut now, 1_000, &WELL);
        assert_eq!(controller.budget(), BUDGET_MAX);
        let cuts = turns(&mut controller, &mut now, 1_000, &Signals { log_is_full: true, ..WELL });
        assert_eq!(controller.budget(), BUDGET_MIN);
        // 200,000 * 0.7^17 < 500: no cut is told that changes nothing.
        assert_eq!(cuts.len(), 17);
        let idle = u32::try_from(IDLE.as_millis() / TURN.as_millis()).unwrap();
        turns(&mut controller, &mut now, idle, &Signals { waits: false, ..WELL });
        assert_eq!(controller.budget(), BUDGET_START, "begins again");
    }

    #[test]
    fn what_is_granted_follows_the_budget_and_little_is_saved_up() {
        let (mut controller, mut now) = fresh();
        assert!(!controller.may_grant());
        let granted = |controller: &mut Controller| {
            let mut grants = 0_i64;
            while controller.may_grant() {
                controller.spend(64);
                grants += 1;
            }
            grants * 64
        };
        // A long silence, then at most a burst and the one grant that goes over it.
        now += Duration::from_secs(60);
        controller.turn(now, &Signals { waits: false, ..WELL });
        let burst = BUDGET_START * micros(BURST) / MICRO;
        assert!((burst..burst + 64).contains(&granted(&mut controller)));
        let mut all = 0;
        for _ in 0..200 {
            turns(&mut controller, &mut now, 1, &Signals { waits: false, ..WELL });
            all += granted(&mut controller);
        }
        // Ten seconds at the start's budget, but for a grant at either end.
        assert!(all.abs_diff(BUDGET_START * 10) <= 64, "{all}");
    }

    #[test]
    fn ten_thousand_devices_with_sixty_records_each_drain_in_under_half_a_minute() {
        let (mut controller, mut now) = fresh();
        let mut waiting = 10_000;
        while waiting > 0 {
            turns(&mut controller, &mut now, 1, &WELL);
            while waiting > 0 && controller.may_grant() {
                controller.spend(60);
                waiting -= 1;
            }
        }
        assert!(now < Duration::from_secs(30), "{now:?}");
    }

    #[test]
    fn a_disk_that_is_slow_by_nature_is_known_from_the_time_without_a_backlog() {
        let slow = |ms| Signals { disk_delay: Some(Duration::from_millis(ms)), ..WELL };
        let calm = |ms| Signals { waits: false, ..slow(ms) };
        let (mut controller, mut now) = fresh();
        turns(&mut controller, &mut now, 2_000, &calm(80));
        assert_eq!(turns(&mut controller, &mut now, 20, &slow(300)), [], "a card that always takes 80 ms");
        assert_eq!(turns(&mut controller, &mut now, 1, &slow(330)), [Cut::Disk]);
        turns(&mut controller, &mut now, 4_000, &calm(60_000));
        let most = (DISK_DELAY_USUAL_MAX * DISK_DELAY_FACTOR).as_millis();
        let most = u64::try_from(most).unwrap();
        assert_eq!(turns(&mut controller, &mut now, 30, &slow(most - 1)), []);
        assert_eq!(turns(&mut controller, &mut now, 1, &slow(most + 1)), [Cut::Disk], "a bound even then");
    }
}
