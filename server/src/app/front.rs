//! The gateway of a process, from its parts and its configuration.

use super::certificate::Certificates;
use super::limits::rate;
use super::{AppError, Parts};
use crate::devices::directory::Directory;
use crate::gateway::{self, Gateway};
use crate::platform::clock::SharedClock;
use crate::platform::config::Config;
use crate::platform::ends::Ends;
use crate::platform::event_log::EventLog;
use crate::usage::Board;
use std::sync::Arc;

/// What a gateway works with, besides its configuration and certificates.
pub(super) struct Front {
    pub(super) log: EventLog,
    pub(super) directory: Arc<Directory>,
    pub(super) clock: SharedClock,
    pub(super) quotas: Arc<Board>,
    pub(super) metrics: prometheus::Registry,
    pub(super) ends: Arc<Ends>,
}

impl Front {
    pub(super) fn of(parts: &Parts) -> Self {
        Self {
            log: parts.log.clone(),
            directory: parts.directory.clone(),
            clock: parts.clock.clone(),
            quotas: parts.slices.usage.board().clone(),
            metrics: parts.metrics.clone(),
            ends: parts.page.presence.ends(),
        }
    }
}

pub(super) fn start_gateway(
    config: &Config,
    front: Front,
    certificates: &Certificates,
) -> Result<Gateway, AppError> {
    let server_config = |_| gateway::server_config(certificates.listeners(), certificates.devices());
    let tls = config.mqtt.tls_listen.map(server_config);
    let settings = gateway::Config {
        tls_listen: config.mqtt.tls_listen,
        plain_listen: config.mqtt.plain_listen,
        worker_threads: config.mqtt.worker_threads,
        connections_max: config.mqtt.connections_max,
        rate: rate(config),
        ..gateway::Config::default()
    };
    let Front { log, directory, clock, quotas, metrics, ends } = front;
    let dependencies = gateway::Dependencies { log, directory, clock, quotas, tls: tls.transpose()?, ends };
    Ok(Gateway::start(settings, dependencies, &metrics)?)
}
