//! Ranges that the types cannot carry.

use super::{Config, ConfigError};
use crate::platform::blob::BlobUrl;
use std::ops::RangeInclusive;

type Checked = Result<(), ConfigError>;

fn refuse(key: &'static str, why: impl Into<String>) -> Checked {
    Err(ConfigError::Value { key, why: why.into() })
}

fn within(key: &'static str, value: u64, range: RangeInclusive<u64>) -> Checked {
    if range.contains(&value) {
        return Ok(());
    }
    refuse(key, format!("is {value}, must be {} to {}", range.start(), range.end()))
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// Names the key and what was expected.
    pub fn validate(&self) -> Checked {
        if self.data_dir.as_os_str().is_empty() {
            return refuse("data_dir", "is empty, must be a directory");
        }
        self.validate_roles()?;
        self.validate_blob()?;
        if let Err(error) = self.log.filter.parse::<tracing_subscriber::EnvFilter>() {
            return refuse("log.filter", format!("is not a filter: {error}"));
        }
        self.validate_listeners()?;
        within("http.body_bytes_max", self.http.body_bytes_max as u64, 4096..=64 << 20)?;
        within("http.timeout_s", self.http.timeout_s, 1..=600)?;
        let rate = &self.http.rate;
        within("http.rate.principal_per_s", rate.principal_per_s.into(), 0..=1_000_000)?;
        within("http.rate.principal_burst", rate.principal_burst.into(), 1..=10_000_000)?;
        within("http.rate.address_per_s", rate.address_per_s.into(), 0..=1_000_000)?;
        within("http.rate.address_burst", rate.address_burst.into(), 1..=10_000_000)?;
        within("auth.session_hours", self.auth.session_hours.into(), 1..=24 * 31)?;
        within("auth.login_failures_max", self.auth.login_failures_max.into(), 1..=1000)?;
        within("auth.lockout_minutes", self.auth.lockout_minutes.into(), 1..=24 * 60)?;
        within("auth.token_days_max", self.auth.token_days_max.into(), 1..=3660)?;
        within("event_log.segment_bytes", self.event_log.segment_bytes, 1 << 20..=1 << 30)?;
        within("event_log.bytes_max", self.event_log.bytes_max, 4 * self.event_log.segment_bytes..=1 << 50)?;
        within("event_log.disk_reserve_bytes", self.event_log.disk_reserve_bytes, 0..=1 << 40)?;
        within("telemetry.outbox_bytes_max", self.telemetry.outbox_bytes_max, 1 << 20..=1 << 40)?;
        within("quota.devices_max", self.quota.devices_max.into(), 1..=10_000_000)?;
        within("quota.claims_max", self.quota.claims_max.into(), 1..=1_000_000)?;
        within("quota.api_tokens_max", self.quota.api_tokens_max.into(), 1..=100_000)?;
        within("quota.users_max", self.quota.users_max.into(), 1..=100_000)?;
        self.quota.validate_limits()?;
        within("limits.device_messages_per_s", self.limits.device_messages_per_s.into(), 1..=1_000_000)?;
        within("limits.device_messages_burst", self.limits.device_messages_burst.into(), 1..=10_000_000)?;
        within("retention.telemetry_days", self.retention.telemetry_days.into(), 1..=36_500)?;
        for (tenant, days) in &self.retention.tenants {
            if let Err(error) = muster_wire::TenantId::check(tenant) {
                return refuse("retention.tenants", error.to_string());
            }
            within("retention.tenants", (*days).into(), 1..=36_500)?;
        }
        within("retention.alerts_days", self.retention.alerts_days.into(), 1..=36_500)
    }

    fn validate_roles(&self) -> Checked {
        if let Err(why) = self.roles.check() {
            return refuse("roles", why);
        }
        let (registry, telemetry) = (self.registry.url.is_some(), self.telemetry.url.is_some());
        let with_url = [
            ("registry.password_file", &self.registry.password_file, registry, "registry.url"),
            ("registry.ca_file", &self.registry.ca_file, registry, "registry.url"),
            ("telemetry.password_file", &self.telemetry.password_file, telemetry, "telemetry.url"),
            ("telemetry.ca_file", &self.telemetry.ca_file, telemetry, "telemetry.url"),
        ];
        for (key, path, is_there, url) in with_url {
            if path.is_some() && !is_there {
                return refuse(key, format!("is set without {url}, must be absent"));
            }
        }
        if telemetry && self.roles.is_gateway_alone() {
            return refuse("telemetry.url", "is set for a gateway alone, must be absent: it stores nothing");
        }
        if self.registry.url.is_some() && self.roles.is_gateway_alone() {
            let why = "is set for a gateway alone, must be absent: it reads another server's registry.dir; beside a \
                       registry that processes share it would need an event log that they share, which is not built yet";
            return refuse("registry.url", why);
        }
        if self.registry.url.is_none() && self.roles.is_api_alone() {
            let why = "is absent, must be the PostgreSQL database of the process that is gateway and worker: a registry.db is \
                       one process's own";
            return refuse("registry.url", why);
        }
        match &self.registry.dir {
            None if self.roles.is_gateway_alone() => refuse(
                "registry.dir",
                "is absent, must be the data directory of the server whose devices a gateway lets in",
            ),
            Some(_) if !self.roles.is_gateway_alone() => refuse(
                "registry.dir",
                "is set beside roles that keep a registry of their own, must be absent or roles = [\"gateway\"]",
            ),
            Some(dir) if *dir == self.data_dir => refuse(
                "registry.dir",
                "is data_dir, must be another server's: a gateway keeps a log of its own",
            ),
            Some(dir) if dir.as_os_str().is_empty() => {
                refuse("registry.dir", "is empty, must be a directory")
            }
            _ => Ok(()),
        }
    }

    fn validate_blob(&self) -> Checked {
        let section = &self.blob;
        let BlobUrl::S3 { .. } = section.url.as_ref().unwrap_or(&BlobUrl::Folder("blobs".into())) else {
            let of_bucket = [
                ("blob.endpoint", section.endpoint.is_some()),
                ("blob.access_key_id", section.access_key_id.is_some()),
                ("blob.secret_key_file", section.secret_key_file.is_some()),
                ("blob.ca_file", section.ca_file.is_some()),
                ("blob.allow_http", section.allow_http),
            ];
            let set = of_bucket.iter().find(|(_, is_set)| *is_set);
            return set
                .map_or(Ok(()), |(key, _)| refuse(key, "is set, but blob.url is a folder, must be absent"));
        };
        if let Some(endpoint) = &section.endpoint {
            let expected = "must be https://host[:port]";
            let (scheme, rest) = endpoint.split_once("://").unwrap_or_default();
            if !matches!(scheme, "https" | "http") || rest.is_empty() || rest.contains(['/', '@', '?']) {
                return refuse("blob.endpoint", format!("is {endpoint:?}, {expected}"));
            }
            if scheme == "http" && !section.allow_http {
                return refuse(
                    "blob.endpoint",
                    format!("is without TLS, {expected}, or set blob.allow_http"),
                );
            }
        }
        if section.region.is_empty() {
            return refuse("blob.region", "is empty, must be the region that requests are signed for");
        }
        for (key, is_set) in [
            ("blob.access_key_id", section.access_key_id.is_some()),
            ("blob.secret_key_file", section.secret_key_file.is_some()),
        ] {
            if !is_set {
                return refuse(key, "is absent, must be set for a bucket");
            }
        }
        Ok(())
    }

    fn validate_listeners(&self) -> Checked {
        let is_deaf = self.mqtt.tls_listen.is_none() && self.mqtt.plain_listen.is_none();
        if is_deaf && !self.roles.is_api_alone() {
            return refuse(
                "mqtt.tls_listen",
                "is absent and so is mqtt.plain_listen: no device could connect",
            );
        }
        if self.mqtt.plain_listen.is_some_and(|address| !address.ip().is_loopback()) {
            return refuse("mqtt.plain_listen", "must be a loopback address: it takes passwords without TLS");
        }
        within("mqtt.connections_max", self.mqtt.connections_max as u64, 1..=10_000_000)?;
        within("mqtt.worker_threads", self.mqtt.worker_threads as u64, 1..=256)?;
        within("enroll.attempts_per_minute", self.enroll.attempts_per_minute.into(), 1..=100_000)?;
        if !(1..=64).contains(&self.pki.hosts.len()) {
            return refuse("pki.hosts", "must hold 1 to 64 host names or addresses");
        }
        for host in &self.pki.hosts {
            if !is_host(host) {
                return refuse(
                    "pki.hosts",
                    format!("holds {host:?}, which is neither a host name nor an address"),
                );
            }
        }
        within("pki.device_days", self.pki.device_days.into(), 1..=825)?;
        within("pki.server_days", self.pki.server_days.into(), 1..=825)?;
        for origin in &self.http.origins {
            let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            if rest.is_none_or(|rest| rest.is_empty() || rest.contains('/')) {
                return refuse("http.origins", format!("holds {origin:?}, must be scheme://host[:port]"));
            }
        }
        Ok(())
    }
}

fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.parse::<std::net::IpAddr>().is_ok() || (text.len() <= 253 && text.split('.').all(label))
}
