//! Signals: stop on SIGTERM and SIGINT, reload on SIGHUP or when a file changes (configuration, server certificate).

use super::certificate::Certificates;
use crate::platform::config::{Live, Sources};
use crate::platform::http_kit::chain;
use crate::platform::observability::LogControl;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often the file's time is looked at.
const POLL: Duration = Duration::from_secs(5);

/// Waits for the end. Signals are watched from the call on, not from the first wait: one that comes while the server
/// starts, or right behind its ready file, ends it in order.
pub(super) fn until_stop_signal() -> impl Future<Output = ()> {
    let watched = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async move {
        let (Ok(mut term), Ok(mut int)) = watched else {
            tracing::error!("signals cannot be watched, only a kill ends the server");
            return std::future::pending().await;
        };
        tokio::select! {
            _ = term.recv() => tracing::info!(signal = "SIGTERM", "stop asked for"),
            _ = int.recv() => tracing::info!(signal = "SIGINT", "stop asked for"),
        }
    }
}

fn changed_at(sources: &Sources) -> Option<SystemTime> {
    std::fs::metadata(sources.file.as_ref()?).and_then(|file| file.modified()).ok()
}

async fn hangup(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Applies changes until it is aborted.
pub(super) async fn follow(
    live: Live,
    sources: Sources,
    log: LogControl,
    certificates: Option<Arc<Certificates>>,
) {
    let mut hangups = signal(SignalKind::hangup()).ok();
    let mut seen = changed_at(&sources);
    loop {
        tokio::select! {
            () = hangup(&mut hangups) => {
                if let Some(certificates) = &certificates {
                    certificates.apply();
                }
            }
            () = tokio::time::sleep(POLL) => {
                if let Some(certificates) = &certificates {
                    certificates.poll();
                }
                let now = changed_at(&sources);
                if now == seen || now.is_none() {
                    continue;
                }
            }
        }
        seen = changed_at(&sources);
        apply(&live, &sources, &log);
    }
}

fn apply(live: &Live, sources: &Sources, log: &LogControl) {
    match live.reload(sources) {
        Ok((applied, refused)) => {
            if let Err(error) = log.set(&live.get().log.filter) {
                tracing::error!(error = %chain(&error), "log filter stays");
            }
            tracing::info!(?applied, "configuration reloaded");
            if !refused.is_empty() {
                tracing::warn!(?refused, "these changes need a restart and are ignored until then");
            }
        }
        Err(error) => tracing::error!(error = %chain(&error), "configuration is refused, the old one stays"),
    }
}
