//! Runs the store's retention hourly.

use super::Stop;
use crate::platform::clock::Clock;
use crate::platform::telemetry::{Policy, TelemetryStore};
use std::time::Duration;

const INTERVAL: Duration = Duration::from_secs(3600);

/// Gives the policy that holds now; asked before each pass.
pub type PolicySource = Box<dyn Fn() -> Policy + Send>;

pub(super) fn run(store: &TelemetryStore, clock: &dyn Clock, policy: &PolicySource, stop: &Stop) {
    loop {
        match store.retain(&policy(), clock.now_us()) {
            Ok(retained) if retained.readings + retained.rows + retained.days > 0 => {
                let (readings, days, rows) = (retained.readings, retained.days, retained.rows);
                tracing::info!(readings, days, rows, "expired telemetry deleted");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "retention failed, will retry in an hour"),
        }
        if stop.wait(INTERVAL) {
            return;
        }
    }
}
