//! Runs the store's sender: blocks of the outbox go to ClickHouse, one after the other.

use crate::platform::condition::Condition;
use crate::platform::http_kit::chain;
use crate::platform::telemetry::TelemetryError;
use crate::platform::telemetry::clickhouse::Sender;
use crate::platform::threads::Stop;
use std::time::{Duration, Instant};

/// Pause where nothing waits.
const PAUSE: Duration = Duration::from_millis(200);
/// How often an idle sender asks whether ClickHouse is there, and tells it of changed retention.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);
/// Blocks that are sent after the store was told to stop; the rest is sent after the next start.
const LAST_BLOCKS_MAX: usize = 64;

/// Sends until told to stop. Errors are tried again for ever.
pub(super) fn run(mut sender: Sender, condition: &Condition, stop: &Stop) -> Sender {
    let _ending = condition.until_end();
    let (mut delay, mut checked) = (RETRY_DELAY_MIN, None);
    while !stop.is_set() {
        match step(&mut sender, &mut checked) {
            Ok(sent) => {
                condition.works();
                delay = RETRY_DELAY_MIN;
                if !sent {
                    stop.wait(PAUSE);
                }
            }
            Err(error) => {
                let why = chain(&error);
                tracing::warn!(
                    error = why,
                    delay_ms = delay.as_millis(),
                    "sending to ClickHouse failed, will retry"
                );
                condition.fails(why);
                stop.wait(delay);
                delay = (delay * 2).min(RETRY_DELAY_MAX);
            }
        }
    }
    sender
}

fn step(sender: &mut Sender, checked: &mut Option<Instant>) -> Result<bool, TelemetryError> {
    let sent = sender.send_next()?;
    if !sent && checked.is_none_or(|at| at.elapsed() >= CHECK_INTERVAL) {
        sender.check()?;
        sender.retain()?;
        *checked = Some(Instant::now());
    }
    Ok(sent)
}

/// Sends what the store flushed at its end, as far as ClickHouse takes it at once.
pub(super) fn finish(mut sender: Sender) {
    for _ in 0..LAST_BLOCKS_MAX {
        match sender.send_next() {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                let why = chain(&error);
                return tracing::warn!(error = why, "blocks for ClickHouse are left for the next start");
            }
        }
    }
}
