//! How the agent comes to the server: who it is, enrolment, and the uplink's settings.
//!
//! Called by the composition root. The uplink's task joins by itself, so sources are read while the server is away.

use super::{AppError, EnrollError};
use crate::clock::{AgentClock, SharedClock};
use crate::config::{Config, Transport};
use crate::identity::{self, Claim, Identity, Keeper, Listener};
use crate::metrics::Metrics;
use crate::queue::Queue;
use crate::supervisor::{Exit, Stop, Supervisor, chain};
use crate::tls;
use crate::uplink::{Backoff, Security, Settings, Uplink, random_u64};
use muster_wire::{Birth, DeviceId, NAME_BYTES_MAX, RunningModel, TenantId};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The largest file of a claim, a token or a CA.
pub(super) const SECRET_BYTES_MAX: u64 = 1024 * 1024;
/// The enrolment listener's port where nothing says it.
const ENROLL_PORT_DEFAULT: u16 = 8443;
/// The first and the longest wait between two tries to enrol.
const ENROLL_DELAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

pub(super) enum Who {
    Token { tenant: TenantId, device: DeviceId, token: String, ca_pem: String },
    Enrolled(Box<Identity>),
    Claim(Claim),
}

fn read_secret(path: &PathBuf) -> Result<String, AppError> {
    let fail = |source| AppError::Secret { path: path.clone(), source };
    let mut text = String::new();
    File::open(path).map_err(fail)?.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text).map_err(fail)?;
    if text.len() as u64 > SECRET_BYTES_MAX {
        return Err(AppError::SecretTooLarge { path: path.clone() });
    }
    Ok(text.trim().to_owned())
}

pub(super) fn who_am_i(config: &Config) -> Result<Who, AppError> {
    let settings = &config.identity;
    if let (Some(tenant), Some(device), Some(file)) =
        (&settings.tenant, &settings.device, &settings.token_file)
    {
        let ca_pem = config.uplink.ca_file.as_ref().map(read_secret).transpose()?.unwrap_or_default();
        let (tenant, device) = (TenantId::parse(tenant)?, DeviceId::parse(device)?);
        return Ok(Who::Token { tenant, device, token: read_secret(file)?, ca_pem });
    }
    if let Some(identity) = identity::load(&config.identity_dir())? {
        return Ok(Who::Enrolled(Box::new(identity)));
    }
    let claim = match (&settings.claim, &settings.claim_file) {
        (Some(claim), _) => claim.clone(),
        (None, Some(file)) => read_secret(file)?,
        (None, None) => return Err(AppError::NoIdentity),
    };
    Ok(Who::Claim(Claim::parse(&claim)?))
}

/// Enrols with `claim`, as `muster-agent enroll` does.
///
/// # Errors
/// The claim is malformed or refused, or there is no connection.
pub async fn enroll(config: &Config, claim: &str) -> Result<Identity, AppError> {
    let clock: SharedClock = Arc::new(AgentClock::default());
    let claim = Claim::parse(claim)?;
    let name = config.identity.device_name.as_deref();
    Ok(identity::enroll(&config.identity_dir(), &claim, name, clock).await?)
}

/// The waits between tries to enrol, with jitter: a fleet that is switched on at one moment does not ask at one.
fn enroll_delay(seed: u64) -> Backoff {
    let (min, max) = ENROLL_DELAY;
    Backoff::new(min, max, seed)
}

/// Between one and one and a half times as long.
fn jittered(wait: Duration) -> Duration {
    wait + wait.mul_f64(0.5 * (random_u64() % 1_000) as f64 / 1_000.0)
}

async fn enroll_patiently(
    config: &Config,
    claim: &Claim,
    clock: &Arc<AgentClock>,
) -> Result<Identity, AppError> {
    let mut delay = enroll_delay(random_u64());
    loop {
        let name = config.identity.device_name.as_deref();
        match identity::enroll(&config.identity_dir(), claim, name, clock.clone()).await {
            Ok(identity) => {
                tracing::info!(tenant = %identity.tenant, device = %identity.device, "enrolled");
                return Ok(identity);
            }
            Err(EnrollError::Pending { retry_after_s }) => {
                // A person decides: hours are nothing unusual. With jitter.
                tracing::info!(retry_after_s, "enrolment waits for approval");
                delay.reset();
                tokio::time::sleep(jittered(Duration::from_secs(retry_after_s))).await;
            }
            Err(error) if error.is_passing() => {
                let wait = delay.next_wait();
                tracing::warn!(
                    error = chain(&error),
                    wait_ms = wait.as_millis(),
                    "not enrolled, will try again"
                );
                tokio::time::sleep(wait).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

pub(super) fn spawn_uplink(
    supervisor: &Supervisor,
    config: &Config,
    models: Vec<RunningModel>,
    queue: &Queue,
    metrics: &Metrics,
    clock: &Arc<AgentClock>,
    stop: Stop,
) -> JoinHandle<()> {
    let (config, queue, metrics, clock) = (config.clone(), queue.clone(), metrics.clone(), Arc::clone(clock));
    supervisor.spawn("uplink".into(), move || {
        let (config, queue, metrics, clock) =
            (config.clone(), queue.clone(), metrics.clone(), Arc::clone(&clock));
        let (models, mut stop) = (models.clone(), stop.clone());
        async move {
            let settings = tokio::select! {
                settings = uplink_settings(&config, &clock) => settings,
                () = stop.wait() => return Exit::Done,
            };
            match settings {
                Ok((mut settings, keeper)) => {
                    settings.about.models = models;
                    let uplink = Uplink::new(queue, clock, metrics, stop, Arc::new(settings));
                    let keeping = async {
                        match keeper {
                            Some(keeper) => keeper.run().await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        ended = uplink.run() => ended.into(),
                        () = keeping => Exit::Failed("nobody keeps the certificate".into()),
                    }
                }
                Err(error) => Exit::Failed(chain(&error)),
            }
        }
    })
}

/// How to connect, and who keeps the certificate fresh where there is one.
async fn uplink_settings(
    config: &Config,
    clock: &Arc<AgentClock>,
) -> Result<(Settings, Option<Keeper>), AppError> {
    let plain = config.uplink.transport == Transport::Plain;
    let shared: SharedClock = clock.clone();
    let identity = match who_am_i(config)? {
        Who::Token { tenant, device, token, ca_pem } => {
            let tls = if plain { None } else { Some(tls::client(&ca_pem, None, shared)?) };
            let host = config.uplink.host.clone().unwrap_or_default();
            let port = config.uplink.port.unwrap_or_default();
            let security = Security::fixed(tls);
            return Ok((settings(config, (host, port), (tenant, device), Some(token), security), None));
        }
        Who::Enrolled(identity) => *identity,
        Who::Claim(claim) => enroll_patiently(config, &claim, clock).await?,
    };
    clock.learn(identity.server_time_us);
    let key = identity::load_key(&config.identity_dir(), &identity)?;
    let own = (identity.certificate_pem.as_str(), key.as_str());
    let tls = if plain { None } else { Some(tls::client(&identity.ca_pem, Some(own), shared)?) };
    let (sender, receiver) = watch::channel(tls);
    let shared = identity::Shared { tls: Arc::new(sender), refused: Arc::default() };
    let security = Security { tls: receiver, refused: shared.refused.clone() };
    let host = config.uplink.host.clone().unwrap_or_else(|| identity.mqtt_host.clone());
    let port = config.uplink.port.unwrap_or(identity.mqtt_port);
    let who = (identity.tenant.clone(), identity.device.clone());
    let listener = renewal_listener(config, &identity);
    let keeper = Keeper::new(config.identity_dir(), identity, listener, clock.clone(), shared);
    Ok((settings(config, (host, port), who, None, security), Some(keeper)))
}

/// Where to renew. An identity of an older agent does not say: its claim does, or it is the usual port.
fn renewal_listener(config: &Config, identity: &Identity) -> Listener {
    if let (Some(host), Some(port)) = (&identity.enroll_host, identity.enroll_port) {
        return Listener { host: host.clone(), port };
    }
    let claim = config.identity.claim.as_deref().and_then(|claim| Claim::parse(claim).ok());
    match claim {
        Some(Claim { host, port, .. }) => Listener { host, port },
        None => Listener { host: identity.mqtt_host.clone(), port: ENROLL_PORT_DEFAULT },
    }
}

/// What of a text the wire takes.
fn short(mut text: String) -> String {
    while text.len() > NAME_BYTES_MAX {
        text.pop();
    }
    text
}

fn settings(
    config: &Config,
    (host, port): (String, u16),
    (tenant, device): (TenantId, DeviceId),
    token: Option<String>,
    security: Security,
) -> Settings {
    let ms = |ms: u32| Duration::from_millis(ms.into());
    let uplink = &config.uplink;
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Settings {
        host,
        port,
        security,
        tenant,
        device,
        token,
        keep_alive_s: uplink.keep_alive_s,
        reconnect_delay: (ms(uplink.reconnect_delay_ms_min), ms(uplink.reconnect_delay_ms_max)),
        state_interval: Duration::from_secs(uplink.state_interval_s.into()),
        about: Birth {
            agent_version: env!("CARGO_PKG_VERSION").into(),
            os: short(sysinfo::System::long_os_version().unwrap_or_default()),
            arch: std::env::consts::ARCH.into(),
            boot_id: short(boot_id.trim().to_owned()),
            pipelines: config.pipelines.iter().map(|pipeline| pipeline.name.clone()).collect(),
            ..Birth::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_secrets_file_of_the_largest_size_is_read_and_a_larger_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let max = usize::try_from(SECRET_BYTES_MAX).unwrap();
        std::fs::write(&path, "t".repeat(max)).unwrap();
        assert_eq!(read_secret(&path).unwrap().len(), max);
        std::fs::write(&path, "t".repeat(max + 1)).unwrap();
        let error = read_secret(&path).unwrap_err().to_string();
        assert!(error.ends_with("token: expected at most 1048576 bytes"), "{error}");
    }

    #[test]
    fn a_text_is_cut_to_what_the_wire_takes() {
        assert_eq!(short("x".repeat(NAME_BYTES_MAX)), "x".repeat(NAME_BYTES_MAX));
        assert_eq!(short("x".repeat(NAME_BYTES_MAX + 1)), "x".repeat(NAME_BYTES_MAX));
        assert_eq!(
            short(format!("x{}", "é".repeat(64))),
            format!("x{}", "é".repeat(63)),
            "between characters"
        );
    }

    #[test]
    fn devices_switched_on_together_do_not_enrol_in_step() {
        let (min, max) = ENROLL_DELAY;
        let waits = |seed| {
            let mut delay = enroll_delay(seed);
            (0..20).map(move |_| delay.next_wait()).collect::<Vec<_>>()
        };
        let fleet: Vec<_> = (0..50).map(waits).collect();
        let first: BTreeSet<_> = fleet.iter().map(|waits| waits[0]).collect();
        assert!(first.len() > 40, "{first:?}");
        assert!(fleet.iter().flatten().all(|wait| (min / 2..=max).contains(wait)));
        assert!(fleet.iter().all(|waits| waits[19] >= max / 2));
    }
}
