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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::config::Sources;
    use crate::usage::Quota;

    #[tokio::test]
    async fn a_reload_while_the_server_starts_is_not_missed() {
        let config = Live::new(Config::default());
        let board = Arc::new(Board::new());
        board.set_defaults(Quotas::of_config(&config.get().quota));
        let flags = vec![("quota.messages_per_day.hard".to_owned(), "5".to_owned())];
        config.reload(&Sources { flags, ..Sources::default() }).unwrap();
        let (stop, stopped) = watch::channel(false);
        let task =
            tokio::spawn(follow_limits(gateway::RateSetter::default(), board.clone(), config, stopped));
        tokio::task::yield_now().await;
        assert_eq!(board.quotas("acme").limit(Quota::MessagesPerDay).hard, Some(5));
        stop.send_replace(true);
        task.await.unwrap();
    }
}
