//! A token bucket on the gateway's coarse clock: pure, eight bytes a connection.

use super::TICKS_PER_S;

/// How many messages a second a device may send, and how many at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Messages a second; 0 lifts the limit.
    pub per_s: u32,
    /// Messages at once.
    pub burst: u32,
}

/// One device's bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    tokens: f32,
    filled_at_tick: u32,
}

impl Bucket {
    /// A full bucket.
    #[allow(clippy::cast_precision_loss, reason = "limits are small numbers")]
    pub(crate) fn full(limit: RateLimit, tick: u32) -> Self {
        Self { tokens: limit.burst as f32, filled_at_tick: tick }
    }

    /// Takes one message's token; says whether there was one.
    #[allow(clippy::cast_precision_loss, reason = "limits are small numbers")]
    pub(crate) fn take(&mut self, limit: RateLimit, tick: u32) -> bool {
        if limit.per_s == 0 {
            return true;
        }
        let passed = tick.wrapping_sub(self.filled_at_tick);
        if passed > 0 {
            let earned = passed as f32 * limit.per_s as f32 / TICKS_PER_S as f32;
            self.tokens = (self.tokens + earned).min(limit.burst as f32);
            self.filled_at_tick = tick;
        }
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }

    /// Gives the token back: the message waits for another reason.
    pub(crate) fn give_back(&mut self) {
        self.tokens += 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_the_rate() {
        let limit = RateLimit { per_s: 10, burst: 3 };
        let mut bucket = Bucket::full(limit, 0);
        let taken = |bucket: &mut Bucket, tick| (0..100).take_while(|_| bucket.take(limit, tick)).count();
        assert_eq!(taken(&mut bucket, 0), 3);
        assert_eq!(taken(&mut bucket, TICKS_PER_S / 5), 2);
        assert_eq!(taken(&mut bucket, TICKS_PER_S * 100), 3, "a pause earns no more than a burst");
        bucket.give_back();
        assert!(bucket.take(limit, TICKS_PER_S * 100));
    }

    #[test]
    fn zero_lifts_the_limit() {
        let limit = RateLimit { per_s: 0, burst: 0 };
        let mut bucket = Bucket::full(limit, 0);
        assert!((0..1_000).all(|_| bucket.take(limit, 0)));
    }
}
