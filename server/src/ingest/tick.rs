//! Appends a tick record each second while the log is idle, so that rules see time pass.

use crate::platform::event_log::{AppendError, EventLog};
use crate::platform::threads::Stop;
use muster_journal::Fs;
use std::time::Duration;

/// Twice as often as ticks are due: a tick is never later than a second and a half after the last record.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

pub(super) fn run<F: Fs>(log: &EventLog<F>, stop: &Stop) {
    loop {
        match log.tick_if_idle() {
            // A full log has records enough to tell the time.
            Ok(_) | Err(AppendError::Full | AppendError::TooLarge) => {}
            Err(AppendError::Failed) => {
                tracing::error!("the event log stopped: no more ticks");
                return;
            }
        }
        if stop.wait(CHECK_INTERVAL) {
            return;
        }
    }
}
