//! Each connection is an open file: takes as many as the system lets us, and knows how many may be needed.

use crate::gateway;
use crate::platform::config::Config;
use crate::platform::http_kit::serve::CONNECTIONS_MAX;

/// Files that are no connections: logs, databases, listeners, the runtime's own.
const OTHERS: usize = 64;

/// Open files that a process needs whose every listener is full.
pub(super) fn needed(config: &Config) -> u64 {
    if config.roles.is_api_alone() {
        return (CONNECTIONS_MAX + OTHERS) as u64;
    }
    let http_listeners = if config.roles.is_gateway_alone() { 1 } else { 2 };
    let mqtt_listeners = [config.mqtt.tls_listen, config.mqtt.plain_listen].iter().flatten().count();
    let early = mqtt_listeners * gateway::Config::default().early_max;
    (config.mqtt.connections_max + early + http_listeners * CONNECTIONS_MAX + OTHERS) as u64
}

/// Raises the soft limit of open files to the hard one; gives the limit in force.
#[allow(unsafe_code, reason = "getrlimit and setrlimit have no safe form in the standard library")]
pub(super) fn raise_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid pointer to a local value of the right type.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return 0;
        }
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) == 0 {
            limit = raised;
        }
    }
    limit.rlim_cur
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_need_no_more_than_twenty_thousand_files() {
        let mut config = Config::default();
        config.mqtt.plain_listen = config.mqtt.tls_listen;
        let needed = needed(&config);
        assert!(needed <= 20_000, "{needed}");
        config.mqtt.connections_max += 41;
        assert!(super::needed(&config) > 20_000, "{needed}");
    }
}
