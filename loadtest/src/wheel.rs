//! A hashed timer wheel: reconnects, keep-alives and time-outs of many devices, cheap to set.
//!
//! Called by `engine`. A timer cannot be cancelled; its owner ignores one that no longer matters.

/// The wheel's resolution.
const TICK_NS: u64 = 10_000_000;
/// Slots of the wheel; longer timers wait for further rounds.
const SLOTS: usize = 1024;

struct Entry<T> {
    tick: u64,
    what: T,
}

/// Timers that fall due at or after their time, within one tick.
pub(crate) struct Wheel<T> {
    slots: Vec<Vec<Entry<T>>>,
    /// Ticks before this one were handed out.
    next_tick: u64,
    waiting: usize,
}

impl<T> Wheel<T> {
    pub(crate) fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| Vec::new()).collect(), next_tick: 0, waiting: 0 }
    }

    /// Sets a timer.
    pub(crate) fn set(&mut self, due_ns: u64, what: T) {
        let tick = due_ns.div_ceil(TICK_NS).max(self.next_tick);
        self.slots[tick as usize % SLOTS].push(Entry { tick, what });
        self.waiting += 1;
    }

    /// When to look again, while a timer waits.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        (self.waiting > 0).then_some(self.next_tick * TICK_NS)
    }

    /// Moves the timers that are due by `now_ns` into `due`.
    pub(crate) fn take_due(&mut self, now_ns: u64, due: &mut Vec<T>) {
        let last = now_ns / TICK_NS;
        if self.waiting == 0 {
            self.next_tick = self.next_tick.max(last + 1);
            return;
        }
        // After a long pause one round over the slots finds everything.
        let ticks = (last + 1).saturating_sub(self.next_tick).min(SLOTS as u64);
        let first = (last + 1).saturating_sub(ticks).max(self.next_tick);
        for tick in first..=last {
            let slot = &mut self.slots[tick as usize % SLOTS];
            for entry in slot.extract_if(.., |entry| entry.tick <= last) {
                self.waiting -= 1;
                due.push(entry.what);
            }
        }
        self.next_tick = self.next_tick.max(last + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(wheel: &mut Wheel<u32>, now_ns: u64) -> Vec<u32> {
        let mut found = Vec::new();
        wheel.take_due(now_ns, &mut found);
        found.sort_unstable();
        found
    }

    #[test]
    fn timers_fall_due_in_their_tick_and_never_early() {
        let mut wheel = Wheel::new();
        wheel.set(25_000_000, 1);
        wheel.set(30_000_000, 2);
        wheel.set(SLOTS as u64 * TICK_NS + 30_000_000, 3);
        assert_eq!(due(&mut wheel, 29_000_000), [0_u32; 0]);
        assert_eq!(due(&mut wheel, 30_000_000), [1, 2]);
        assert_eq!(due(&mut wheel, SLOTS as u64 * TICK_NS + 29_000_000), [0_u32; 0]);
        assert_eq!(wheel.next_ns(), Some(SLOTS as u64 * TICK_NS + 30_000_000));
        assert_eq!(due(&mut wheel, SLOTS as u64 * TICK_NS + 31_000_000), [3]);
        assert_eq!(wheel.next_ns(), None);
    }

    #[test]
    fn a_long_pause_loses_no_timer() {
        let mut wheel = Wheel::new();
        for at in 0..5_000 {
            wheel.set(at * 7_000_000, u32::try_from(at).unwrap());
        }
        assert_eq!(due(&mut wheel, 100_000_000_000).len(), 5_000);
        wheel.set(1, 1);
        assert_eq!(due(&mut wheel, 100_020_000_000), [1]);
    }
}
