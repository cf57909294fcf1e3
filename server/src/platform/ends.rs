//! Why devices are gone: the newest end of each device's connection, since this process started.
//!
//! The gateway notes an end when it writes its record to the log; the page's presence reads it. Nothing here is durable, as
//! presence is not: after a start nobody is connected, and nothing is known of why. Bound: [`ENDS_MAX`] devices; those
//! whose last end is oldest are forgotten first, half of them at a time.

use std::collections::HashMap;
use std::mem;
use std::sync::{Mutex, PoisonError};

/// Devices that are remembered.
pub const ENDS_MAX: usize = 1 << 17;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The gateway's label of the reason.
    pub reason: &'static str,
    /// The server's time, microseconds since 1970 (UTC).
    pub at_us: i64,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Box<str>, End>,
    old: HashMap<Box<str>, End>,
}

/// Ends by `tenant/device`.
#[derive(Debug, Default)]
pub struct Ends(Mutex<Generations>);

impl Ends {
    /// Notes an end.
    pub fn note(&self, tenant: &str, device: &str, end: End) {
        self.note_within(ENDS_MAX, tenant, device, end);
    }

    fn note_within(&self, max: usize, tenant: &str, device: &str, end: End) {
        let name = format!("{tenant}/{device}").into_boxed_str();
        let mut ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ends.old.remove(&name);
        if ends.young.len() >= max / 2 && !ends.young.contains_key(&name) {
            ends.old = mem::take(&mut ends.young);
        }
        ends.young.insert(name, end);
    }

    /// The newest end of a device's connection.
    #[must_use]
    pub fn of(&self, tenant: &str, device: &str) -> Option<End> {
        let name = format!("{tenant}/{device}");
        let ends = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ends.young.get(name.as_str()).or_else(|| ends.old.get(name.as_str())).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_end_counts_and_the_oldest_go_over_the_bound() {
        let ends = Ends::default();
        let note = |device: usize, at_us| {
            ends.note_within(8, "acme", &device.to_string(), End { reason: "lost", at_us });
            let held = ends.0.lock().unwrap();
            assert!(held.young.len() + held.old.len() <= 8);
        };
        for device in 0..20 {
            note(device, 1);
            note(0, 2);
        }
        assert_eq!(
            ends.of("acme", "0"),
            Some(End { reason: "lost", at_us: 2 }),
            "it is noted again and again"
        );
        assert!(ends.of("acme", "1").is_none() && ends.of("acme", "19").is_some());
        assert!(ends.of("other", "0").is_none());
    }
}
