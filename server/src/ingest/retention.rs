//! Runs the store's retention hourly.

use crate::platform::clock::Clock;
use crate::platform::telemetry::{Policy, Retained, TelemetryStore};
use crate::platform::threads::Stop;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_secs(3600);

/// Gives the policy that holds now; asked before each pass.
pub type PolicySource = Box<dyn Fn() -> Policy + Send>;

pub(super) fn run(store: &TelemetryStore, clock: &dyn Clock, policy: &PolicySource, stop: &Stop) {
    loop {
        match store.retain(&policy(), clock.now_us()) {
            Ok(retained) if retained.readings + retained.rows + retained.days + retained.series > 0 => {
                let Retained { readings, days, rows, series } = retained;
                tracing::info!(readings, days, rows, series, "expired telemetry deleted");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "retention failed, will retry in an hour"),
        }
        if stop.wait(INTERVAL) {
            return;
        }
    }
}
