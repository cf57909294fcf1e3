//! Renewal: the certificate is exchanged for the next one while the uplink goes on.
//!
//! [`crate::app`] runs [`Keeper::run`] beside the uplink. Due is what has a third of its life left, by the date or by the
//! time since it was issued as far as this device has seen it pass, whichever comes first: a clock that stands in the past
//! delays nothing. Also due is what the server refused as past its time. The next key is on the disk before it is asked
//! with, so a lost reply is repeated for the same key; the new identity replaces the old one by one rename.
//! Bounds: failures wait from 10 s to an hour with jitter; between two renewals lies at least a tenth of a life, and a
//! minute; the minute alone where the server's answer was due already.

use super::enroll::{EnrollError, identity_of};
use super::exchange::{Listener, ask};
use super::keys;
use super::store::{self, Identity};
use crate::clock::{AgentClock, SharedClock};
use crate::supervisor::chain;
use crate::tls;
use crate::uplink::{Backoff, random_u64};
use rustls::ClientConfig;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// The first and the longest wait between two tries.
const RETRY_DELAY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3_600));
/// How often the date is looked at, which may have been set meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_secs(3_600);
/// The shortest time between two renewals; the server allows none earlier.
const GAP_MIN: Duration = Duration::from_secs(61);

/// When a certificate is due. Pure: takes the date and the time since it was taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Schedule {
    due_us: i64,
    /// Until it is due by age, from when the schedule was made.
    due_in: Duration,
    life: Duration,
}

fn duration(us: i64) -> Duration {
    Duration::from_micros(u64::try_from(us).unwrap_or(0))
}

impl Schedule {
    /// `issued_us` is when the server issued it, `now_us` this device's date.
    fn new(issued_us: i64, ends_us: i64, now_us: i64) -> Self {
        let life_us = ends_us.saturating_sub(issued_us).max(0);
        let due_us = ends_us.saturating_sub(life_us / 3);
        let age_us = now_us.saturating_sub(issued_us).clamp(0, life_us);
        let due_in = duration((life_us - life_us / 3).saturating_sub(age_us));
        Self { due_us, due_in, life: duration(life_us) }
    }

    /// How long until it is due; zero: now.
    fn wait(&self, now_us: i64, held: Duration) -> Duration {
        let by_date = duration(self.due_us.saturating_sub(now_us));
        by_date.min(self.due_in.saturating_sub(held))
    }

    /// Until the next renewal, whatever this device's date says. Where the server gave what is due by its own time, it
    /// repeated an old answer: then the next may come as soon as it allows one.
    fn gap(&self, told_us: i64) -> Duration {
        if told_us >= self.due_us { GAP_MIN } else { (self.life / 10).max(GAP_MIN) }
    }
}

fn schedule(identity: &Identity, now_us: i64) -> Option<Schedule> {
    let chain = tls::certificates(&identity.certificate_pem, "the device's certificate").ok()?;
    let (from_us, ends_us) = keys::validity_us(chain.first()?)?;
    let told_us = identity.server_time_us;
    let issued_us = if (from_us..=ends_us).contains(&told_us) { told_us } else { from_us };
    Some(Schedule::new(issued_us, ends_us, now_us))
}

#[derive(Serialize)]
struct Question<'a> {
    csr_pem: &'a str,
}

/// Exchanges the identity in `dir` for the next one, and keeps that.
///
/// # Errors
/// The server is away or refuses; the old identity stays.
pub async fn renew(
    dir: &Path,
    identity: &Identity,
    listener: &Listener,
    clock: SharedClock,
) -> Result<Identity, EnrollError> {
    let key_pem = store::load_key(dir, identity)?;
    let own = (identity.certificate_pem.as_str(), key_pem.as_str());
    let config = tls::client(&identity.ca_pem, Some(own), clock)?;
    let (next_file, next_pem) = store::next_key(dir, identity)?;
    let csr_pem = keys::signing_request(&next_pem, identity.device.as_str())?;
    let answer = ask(listener, "/api/v1/renew", &Question { csr_pem: &csr_pem }, config).await?;
    if (&answer.tenant, &answer.device) != (&identity.tenant, &identity.device) {
        return Err(EnrollError::Answer("it is another device's".into()));
    }
    tls::certificates(&answer.ca_pem, "the CAs in the answer")?;
    let next = identity_of(answer, listener, &next_pem, next_file)?;
    Ok(store::put_in_force(dir, next)?)
}

/// What the keeper shares with the uplink.
#[derive(Clone)]
pub struct Shared {
    /// What the next connection shows.
    pub tls: Arc<watch::Sender<Option<Arc<ClientConfig>>>>,
    /// The server refused the certificate as past its time.
    pub refused: Arc<Notify>,
}

/// Renews one device's identity for as long as the agent runs.
pub struct Keeper {
    /// Where it is kept.
    pub dir: PathBuf,
    /// The identity in force.
    pub identity: Identity,
    /// Where to renew.
    pub listener: Listener,
    /// The agent's time.
    pub clock: Arc<AgentClock>,
    /// The uplink's side.
    pub shared: Shared,
    /// The waits between tries; for tests.
    pub retry_delay: (Duration, Duration),
}

impl Keeper {
    /// A keeper with the ordinary waits.
    #[must_use]
    pub fn new(
        dir: PathBuf,
        identity: Identity,
        listener: Listener,
        clock: Arc<AgentClock>,
        shared: Shared,
    ) -> Self {
        Self { dir, identity, listener, clock, shared, retry_delay: RETRY_DELAY }
    }

    /// Never ends.
    pub async fn run(mut self) {
        let (min, max) = self.retry_delay;
        let mut delay = Backoff::new(min, max, random_u64());
        let mut held = Instant::now();
        let mut not_before = Duration::ZERO;
        let mut is_refused = false;
        let now_us = || crate::clock::Clock::now_us(&*self.clock);
        let Some(mut due) = schedule(&self.identity, now_us()) else {
            tracing::error!("the device's certificate cannot be read, it will not be renewed");
            return std::future::pending().await;
        };
        loop {
            let wait = due.wait(now_us(), held.elapsed()).max(not_before.saturating_sub(held.elapsed()));
            if !wait.is_zero() && !is_refused {
                tokio::select! {
                    () = tokio::time::sleep(wait.min(LOOK_INTERVAL)) => {}
                    // Within the gap it is no reason: the uplink is refused again behind it.
                    () = self.shared.refused.notified() => is_refused = held.elapsed() >= not_before,
                }
                continue;
            }
            let clock: SharedClock = self.clock.clone();
            match renew(&self.dir, &self.identity, &self.listener, clock.clone()).await {
                Ok(next) => {
                    self.clock.learn(next.server_time_us);
                    held = Instant::now();
                    due = schedule(&next, now_us()).unwrap_or(due);
                    not_before = due.gap(next.server_time_us);
                    is_refused = false;
                    delay.reset();
                    tracing::info!(device = %next.device, life_s = due.life.as_secs(), "certificate renewed");
                    show(&self.dir, &next, clock, &self.shared);
                    self.identity = next;
                }
                Err(error) => {
                    let wait = delay.next_wait();
                    let (error, wait_ms) = (chain(&error), wait.as_millis());
                    tracing::warn!(error, wait_ms, "certificate not renewed, will try again");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }
}

/// Hands the new certificate to the uplink's next connection.
fn show(dir: &Path, identity: &Identity, clock: SharedClock, shared: &Shared) {
    let key = store::load_key(dir, identity).map_err(EnrollError::from);
    let config = key
        .and_then(|key| Ok(tls::client(&identity.ca_pem, Some((&identity.certificate_pem, &key)), clock)?));
    match config {
        // A transport without TLS stays without.
        Ok(config) => {
            shared.tls.send_if_modified(|shown| {
                let is_shown = shown.is_some();
                if is_shown {
                    *shown = Some(config);
                }
                is_shown
            });
        }
        Err(error) => tracing::error!(error = chain(&error), "the renewed certificate cannot be used"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_US: i64 = 86_400_000_000;

    fn days(days: i64) -> Duration {
        duration(days * DAY_US)
    }

    #[test]
    fn it_is_due_with_a_third_of_its_life_left_by_date_or_by_age() {
        let issued = 1_000 * DAY_US;
        let check = |now: i64, held: i64, expect: i64| {
            let due = Schedule::new(issued, issued + 90 * DAY_US, issued + now * DAY_US);
            let date = issued + (now + held) * DAY_US;
            assert_eq!(
                due.wait(date, days(held)),
                days(expect),
                "taken over on day {now}, {held} days later"
            );
        };
        for (now, held, expect) in [(0, 0, 60), (0, 59, 1), (0, 60, 0), (10, 20, 30), (70, 0, 0), (500, 0, 0)]
        {
            check(now, held, expect);
        }
        // The date stands still, or lies in the past: age counts from when the device got it.
        let due = Schedule::new(issued, issued + 90 * DAY_US, 0);
        assert_eq!(due.wait(0, days(59)), days(1));
        assert_eq!(due.wait(0, days(60)), Duration::ZERO);
        // The date jumped ahead.
        let due = Schedule::new(issued, issued + 90 * DAY_US, issued);
        assert_eq!(due.wait(issued + 61 * DAY_US, Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn renewals_lie_apart_but_what_came_overdue_is_renewed_soon() {
        let issued = 1_000 * DAY_US;
        let due = Schedule::new(issued, issued + 90 * DAY_US, issued);
        assert_eq!(due.gap(issued), days(9));
        assert_eq!(due.gap(issued + 60 * DAY_US - 1), days(9));
        assert_eq!(due.gap(issued + 60 * DAY_US), GAP_MIN);
        assert_eq!(due.gap(issued + 500 * DAY_US), GAP_MIN);
        assert_eq!(Schedule::new(issued, issued + 60_000_000, issued).gap(issued), GAP_MIN);
    }
}
