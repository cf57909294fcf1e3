//! What a device may send: from the configuration to the gateway, also after a reload.

use crate::gateway;
use crate::platform::config::{Config, Live};
use crate::usage::{Board, Quotas};
use std::sync::Arc;
use tokio::sync::watch;

/// What the configuration lets a device send.
pub(super) fn rate(config: &Config) -> gateway::RateLimit {
    let limits = &config.limits;
    gateway::RateLimit { per_s: limits.device_messages_per_s, burst: limits.device_messages_burst }
}

/// Puts reloaded quotas in force until the server stops.
pub(super) async fn follow_quotas(quotas: Arc<Board>, config: Live, stop: watch::Receiver<bool>) {
    let take = |config: &Config| quotas.set_defaults(Quotas::of_config(&config.quota));
    follow(config, take, stop).await;
}

/// Hands reloaded limits to the gateway until the server stops.
pub(super) async fn follow_limits(
    set: gateway::RateSetter,
    quotas: Arc<Board>,
    config: Live,
    stop: watch::Receiver<bool>,
) {
    let take = |config: &Config| {
        set.set(rate(config));
        quotas.set_defaults(Quotas::of_config(&config.quota));
    };
    follow(config, take, stop).await;
}

async fn follow(config: Live, take: impl Fn(&Config), mut stop: watch::Receiver<bool>) {
    let mut changes = config.subscribe();
    // It may have been reloaded before this task ran first.
    take(&config.get());
    loop {
        tokio::select! {
            changed = changes.changed() => match changed {
                Ok(()) => take(&config.get()),
                Err(_) => return,
            },
            _ = stop.changed() => return,
        }
    }
}
