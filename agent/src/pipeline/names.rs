//! The metric names of this device, at most a thousand.

use crate::metrics::Refusal;
use muster_wire::{METRICS_PER_DEVICE_MAX, check_metric_name};
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// Names seen so far; pipelines share it.
#[derive(Debug, Default)]
pub struct MetricNames(Mutex<HashSet<Box<str>>>);

impl MetricNames {
    /// Lets a known name pass, and a new one while there is room.
    ///
    /// # Errors
    /// A name against the wire's rule, or one too many.
    pub fn admit(&self, name: &str) -> Result<(), Refusal> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(name) {
            return Ok(());
        }
        check_metric_name(name).map_err(|_| Refusal::BadName)?;
        if known.len() >= METRICS_PER_DEVICE_MAX {
            return Err(Refusal::TooManyMetrics);
        }
        known.insert(name.into());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thousand_and_first_name_is_refused_and_the_known_ones_stay() {
        let names = MetricNames::default();
        (0..METRICS_PER_DEVICE_MAX).for_each(|n| names.admit(&format!("m{n}")).unwrap());
        assert_eq!(names.admit("one.more"), Err(Refusal::TooManyMetrics));
        assert_eq!(names.admit("m7"), Ok(()));
        assert_eq!(MetricNames::default().admit("a b"), Err(Refusal::BadName));
    }
}
