//! The agent's time: the only place that reads the system clock.
//!
//! Called by everything that stamps or schedules. Promise: [`AgentClock::now_us`] is never below the
//! build's time nor below the last time that the server told, and it keeps running where the system
//! clock stands before either (a device without a battery-backed clock starts in 1970).
//! Monotonic durations come from [`std::time::Instant`], which no step of the clock moves.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// Time as the agent's modules take it.
pub trait Clock: Send + Sync + 'static {
    /// Microseconds since 1970 (UTC).
    fn now_us(&self) -> i64;
}

/// A clock that modules share.
pub type SharedClock = Arc<dyn Clock>;

/// When this program was built, microseconds since 1970.
#[must_use]
pub fn build_time_us() -> i64 {
    env!("MUSTER_BUILD_EPOCH_S").parse::<i64>().map_or(0, |seconds| seconds.saturating_mul(1_000_000))
}

/// The system clock, raised to a floor that runs on.
#[derive(Debug)]
pub struct AgentClock {
    floor: Mutex<Floor>,
}

#[derive(Clone, Copy, Debug)]
struct Floor {
    at_us: i64,
    learned: Instant,
}

impl Floor {
    fn now_us(&self) -> i64 {
        self.at_us.saturating_add(i64::try_from(self.learned.elapsed().as_micros()).unwrap_or(i64::MAX))
    }
}

impl Default for AgentClock {
    fn default() -> Self {
        Self::with_floor(build_time_us())
    }
}

impl AgentClock {
    /// A clock that starts no lower than `floor_us`.
    #[must_use]
    pub fn with_floor(floor_us: i64) -> Self {
        Self { floor: Mutex::new(Floor { at_us: floor_us, learned: Instant::now() }) }
    }

    /// Takes note of a time that the server told; a lower one than known changes nothing.
    pub fn learn(&self, server_us: i64) {
        let mut floor = self.floor.lock().unwrap_or_else(PoisonError::into_inner);
        if server_us > floor.now_us() {
            *floor = Floor { at_us: server_us, learned: Instant::now() };
        }
    }
}

impl Clock for AgentClock {
    fn now_us(&self) -> i64 {
        let floor = *self.floor.lock().unwrap_or_else(PoisonError::into_inner);
        system_us().max(floor.now_us())
    }
}

// The one reading of the system clock; everything else takes a Clock.
#[allow(clippy::disallowed_methods)]
fn system_us() -> i64 {
    let since = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// TLS checks certificates against the agent's time, not against the system's.
pub struct TlsTime(pub SharedClock);

impl std::fmt::Debug for TlsTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsTime")
    }
}

impl rustls::time_provider::TimeProvider for TlsTime {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        let since = Duration::from_micros(u64::try_from(self.0.now_us()).ok()?);
        Some(rustls::pki_types::UnixTime::since_unix_epoch(since))
    }
}

/// A clock that tests move by hand.
#[derive(Debug, Default)]
pub struct ManualClock(std::sync::atomic::AtomicI64);

impl ManualClock {
    /// A clock at `now_us`.
    #[must_use]
    pub fn at(now_us: i64) -> Self {
        Self(now_us.into())
    }

    /// Moves the clock.
    pub fn advance_us(&self, by_us: i64) {
        self.0.fetch_add(by_us, std::sync::atomic::Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_us(&self) -> i64 {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_never_below_build_or_server_time() {
        let clock = AgentClock::default();
        assert!(clock.now_us() >= build_time_us());
        let ahead = system_us() + 3_600_000_000;
        clock.learn(ahead);
        assert!(clock.now_us() >= ahead);
        clock.learn(ahead - 1_000_000);
        assert!(clock.now_us() >= ahead, "an older server time moves nothing back");
    }
}
