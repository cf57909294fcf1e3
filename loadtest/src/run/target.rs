//! What a run runs against: a server of its own, one that is there, or any MQTT broker; and the fleet made at it.
//!
//! Called by `run` before anything is sent. Devices are registered, enrolled through claims, or taken from a file of
//! identities as they are. They belong to the tenants in turn, or as the file says; the first ones are watched and all
//! belong to the first tenant.

use super::PROCESSES_MAX;
use super::args::{RunArgs, Transport};
use super::order::PartConfig;
use super::profile::Watched;
use super::subscriber::Way;
use crate::enrol::file::fleet;
use crate::enrol::{Place, enrol, read_bootstrap, tenant_names};
use crate::identity::{Member, client_config, generated_name};
use crate::modes::resolve;
use crate::observe::handle::{Access, ServerFacts, ServerHandle};
use crate::observe::http::Client;
use crate::observe::provision::{self, Login, Owner, WrittenRule};
use crate::observe::server::{ManagedServer, ServerOptions};
use crate::payload::{LEVEL_METRIC, SERIAL_METRIC};
use anyhow::{Context, Result, bail};
use rustls::pki_types::ServerName;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A probe that is watched until it is stored, and devices whose readings open alerts.
const WATCHED: Watched = Watched { probes: 1, alarms: 4 };
/// A metric of the measured message whose values never change.
const CALM_METRIC: &str = "cpu_ratio";
/// What the names of rules on it begin with; a number follows.
const CALM_RULE: &str = "loadtest rule ";
/// Descriptors of a generator process for everything but devices: the server's API, probes, subscribers, logs.
const OTHER_FILES: u64 = 256;
/// Descriptors of the first process for each further one: its input and its output.
const PIPES: u64 = 2;
/// Settings that keep limits of normal operation out of a run's figures.
const OWN_SETTINGS: [(&str, &str); 2] =
    [("quota.devices_max", "200000"), ("enroll.attempts_per_minute", "100000")];

/// The server and the fleet at it.
pub(crate) struct Target {
    /// A server that this program started.
    pub(crate) own: Option<ManagedServer>,
    /// Where the server is; of a broker the process only.
    pub(crate) handle: ServerHandle,
    /// One a tenant; none of a broker, or where the API is not given.
    pub(crate) accesses: Vec<Access>,
    pub(crate) tenants: Vec<String>,
    pub(crate) members: Vec<Member>,
    pub(crate) watched: Watched,
    /// The rule that the alarm devices' levels open alerts of.
    pub(crate) alarm_rule: Option<WrittenRule>,
    /// Devices have readings of an earlier run, whose serials cannot be told from this one's.
    pub(crate) has_past: bool,
    address: String,
    is_broker: bool,
    is_tls: bool,
    ca: Option<PathBuf>,
    ca_key: Option<PathBuf>,
    /// The file with each device's own certificate and key.
    identities: Option<PathBuf>,
    server_name: Option<String>,
}

impl Target {
    /// Starts or finds the server.
    ///
    /// # Errors
    /// The server does not start, or the arguments do not say how to find one.
    pub(crate) fn open(args: &RunArgs, work_dir: &Path) -> Result<Self> {
        if args.enrol && args.transport != Transport::Mtls {
            bail!("--enrol gives devices certificates: it needs --transport mtls");
        }
        if let Some(address) = &args.plain_mqtt {
            return Self::broker(args, address);
        }
        if let Some(binary) = &args.server {
            return Self::own(args, binary, work_dir);
        }
        let owner =
            args.bootstrap.as_deref().filter(|_| args.api.is_some()).map(read_bootstrap).transpose()?;
        let (Some(addr), true) = (&args.addr, owner.is_some() || args.identities.is_some()) else {
            bail!(
                "give one of: --server BINARY; --api with --bootstrap and --addr; --plain-mqtt; --identities with \
                 --addr"
            );
        };
        let facts = ServerFacts { http: args.api.clone(), pid: args.server_pid, ..ServerFacts::default() };
        let mut target = Self::empty(ServerHandle::new(facts), addr.clone());
        (target.ca, target.ca_key) = (args.ca.clone(), args.ca_key.clone());
        target.server_name = args.server_name.clone();
        target.check_transport(args)?;
        target.fleet(args, owner, work_dir)?;
        Ok(target)
    }

    fn empty(handle: ServerHandle, address: String) -> Self {
        Self {
            own: None,
            handle,
            accesses: Vec::new(),
            tenants: Vec::new(),
            members: Vec::new(),
            watched: Watched::default(),
            alarm_rule: None,
            has_past: false,
            address,
            is_broker: false,
            is_tls: false,
            ca: None,
            ca_key: None,
            identities: None,
            server_name: None,
        }
    }

    fn broker(args: &RunArgs, address: &str) -> Result<Self> {
        if args.transport != Transport::Plain {
            bail!("--plain-mqtt speaks plain TCP only");
        }
        let facts = ServerFacts { pid: args.server_pid, ..ServerFacts::default() };
        let mut target = Self::empty(ServerHandle::new(facts), address.to_owned());
        target.is_broker = true;
        target.tenants = vec!["bench".to_owned()];
        let member = |number| Member { tenant: 0, name: generated_name(number), token: None };
        target.members = (0..args.devices).map(member).collect();
        Ok(target)
    }

    fn own(args: &RunArgs, binary: &Path, work_dir: &Path) -> Result<Self> {
        let mut set: Vec<(String, String)> =
            OWN_SETTINGS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        for setting in &args.set {
            let (key, value) = setting.split_once('=').context("--set: expected key=value")?;
            set.push((key.to_owned(), value.to_owned()));
        }
        let dir = args.dir.clone().unwrap_or_else(|| work_dir.join("server"));
        let options =
            ServerOptions { binary: binary.to_owned(), dir, set, plain: args.transport == Transport::Plain };
        let server = ManagedServer::start(options)?;
        let addresses = server.addresses();
        let address = match args.transport {
            Transport::Plain => addresses.mqtt_plain.context("the server has no plain MQTT listener")?,
            Transport::Tls | Transport::Mtls => addresses.mqtt_tls,
        };
        let mut target = Self::empty(server.handle().clone(), address.to_string());
        (target.ca, target.ca_key) = (Some(server.ca()), Some(server.ca_key()));
        target.server_name = Some("localhost".to_owned());
        let (owner, tenant) = (server.owner().clone(), server.access().tenant.clone());
        target.own = Some(server);
        target.fleet(args, Some((owner, tenant)), work_dir)?;
        Ok(target)
    }

    fn check_transport(&self, args: &RunArgs) -> Result<()> {
        let has_keys = self.ca_key.is_some() || args.enrol || args.identities.is_some();
        match args.transport {
            Transport::Mtls if !has_keys => {
                bail!("--transport mtls needs one of --enrol, --identities and --ca-key")
            }
            // An enrolment tells the authority, which its claim pins.
            Transport::Tls | Transport::Mtls if self.ca.is_none() && !args.enrol => {
                bail!("--transport {} needs --ca", args.transport.name())
            }
            _ => Ok(()),
        }
    }

    /// Makes the tenants, devices and rules, or takes the devices of a file as they are.
    fn fleet(&mut self, args: &RunArgs, owner: Option<(Owner, String)>, work_dir: &Path) -> Result<()> {
        self.is_tls = args.transport != Transport::Plain;
        let login = if args.transport == Transport::Mtls { Login::Certificate } else { Login::Token };
        match (&args.identities, &owner) {
            (Some(file), _) => self.take(args, file, login)?,
            (None, Some((_, first))) => {
                let tenant_of = |number: u32| {
                    if number < WATCHED.count() { 0 } else { (number % u32::from(args.tenants)) as u16 }
                };
                let member =
                    |number| Member { tenant: tenant_of(number), name: generated_name(number), token: None };
                self.tenants = tenant_names(first, args.tenants);
                self.members = (0..args.devices).map(member).collect();
            }
            (None, None) => bail!("nobody to register devices as"),
        }
        let Some((owner, _)) = owner else { return Ok(()) };
        self.accesses = provision::tenants(&self.handle, &owner, &self.tenants)?;
        if args.enrol {
            self.enrol(args, work_dir)?;
        } else if args.identities.is_none() {
            self.register(args, login)?;
        }
        self.has_past = self.look_for_past()?;
        self.watched = WATCHED;
        let alarms: Vec<String> = (WATCHED.probes..WATCHED.count())
            .map(|number| self.members[number as usize].name.clone())
            .collect();
        let rule =
            provision::alarm_rule(&self.handle, &self.accesses[0], "loadtest level", LEVEL_METRIC, &alarms)?;
        self.alarm_rule = Some(rule);
        self.make_rules(args)
    }

    /// Takes the devices of a file; those that are watched come first.
    fn take(&mut self, args: &RunArgs, file: &Path, login: Login) -> Result<()> {
        let found = fleet(file, args.devices, login)?;
        if found.tenants.len() != usize::from(args.tenants) {
            let (file, count) = (file.display(), found.tenants.len());
            bail!("these devices of {file} belong to {count} tenants: give --tenants {count}");
        }
        let mut left = WATCHED.count();
        let (mut members, others): (Vec<Member>, Vec<Member>) =
            found.members.into_iter().partition(|member| {
                let is_watched = member.tenant == 0 && left > 0;
                left -= u32::from(is_watched);
                is_watched
            });
        if left > 0 {
            let (file, all, first) = (file.display(), WATCHED.count(), &found.tenants[0]);
            bail!("the first tenant of {file} needs {all} devices: {first} has {}", members.len());
        }
        members.extend(others);
        (self.tenants, self.members) = (found.tenants, members);
        self.identities = Some(file.to_owned()).filter(|_| login == Login::Certificate);
        Ok(())
    }

    /// Registers the devices, with tokens where they need them.
    fn register(&mut self, args: &RunArgs, login: Login) -> Result<()> {
        for (tenant, access) in self.accesses.iter().enumerate() {
            let mine: Vec<usize> = (0..self.members.len())
                .filter(|at| usize::from(self.members[*at].tenant) == tenant)
                .collect();
            let names: Vec<String> = mine.iter().map(|at| self.members[*at].name.clone()).collect();
            let all = names.len();
            let told = |done: u32| {
                if !args.quiet && done.is_multiple_of(1_000) {
                    eprintln!("  {}: {done} of {all} devices registered", access.tenant);
                }
            };
            let tokens = provision::devices(&self.handle, access, &names, login, &told)?;
            for (at, token) in mine.into_iter().zip(tokens) {
                self.members[at].token = token;
            }
        }
        Ok(())
    }

    /// Enrols the devices through claims; the authority that they learn is the server's.
    fn enrol(&mut self, args: &RunArgs, work_dir: &Path) -> Result<()> {
        let file = args.save_identities.clone().unwrap_or_else(|| work_dir.join("identities"));
        let told = |done: u32| {
            if !args.quiet && done.is_multiple_of(1_000) {
                eprintln!("  {done} of {} devices enrolled", args.devices);
            }
        };
        let listener = args.enroll_addr.as_deref();
        let place = Place { server: &self.handle, accesses: &self.accesses, listener };
        let enrolled = enrol(place, &self.members, &file, &told)?;
        self.identities = Some(file);
        if self.ca.is_none() {
            let ca = work_dir.join("ca.pem");
            std::fs::write(&ca, enrolled.ca_pem).with_context(|| format!("cannot write {}", ca.display()))?;
            self.ca = Some(ca);
        }
        Ok(())
    }

    /// Whether a tenant's first device has serials already.
    fn look_for_past(&self) -> Result<bool> {
        for (tenant, access) in self.accesses.iter().enumerate() {
            let is_of = |member: &&Member| usize::from(member.tenant) == tenant;
            let Some(first) = self.members.iter().find(is_of) else { continue };
            let (name, from, to) = (&first.name, i64::MIN, i64::MAX);
            let path = format!("devices/{name}/readings?metric={SERIAL_METRIC}&from={from}&to={to}&limit=1");
            let found = Client::of(&self.handle, access).get(&access.path(&path));
            let found = found.with_context(|| format!("cannot read what {name} has sent before"))?;
            if found["points"].as_array().is_some_and(|points| !points.is_empty()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Rules that watch a share of the first tenant's devices each, spread evenly, and never fire. What an earlier run
    /// made beyond them is deleted: it would be part of this one's cost.
    fn make_rules(&self, args: &RunArgs) -> Result<()> {
        let is_left = |name: &str| calm_rule_number(name).is_some_and(|number| number >= args.rules);
        let deleted = provision::delete_rules(&self.handle, &self.accesses[0], is_left)
            .context("cannot delete what an earlier run left")?;
        if deleted > 0 && !args.quiet {
            eprintln!("  {deleted} rules of an earlier run deleted");
        }
        let first: Vec<&str> = self
            .members
            .iter()
            .filter(|member| member.tenant == 0)
            .map(|member| member.name.as_str())
            .collect();
        for number in 0..args.rules as usize {
            let pick = |at: usize| first[(number * 7 + at * 97) % first.len()];
            let devices: std::collections::BTreeSet<&str> =
                (0..args.rule_devices as usize).map(pick).collect();
            let draft = serde_json::json!({
                "name": format!("{CALM_RULE}{number}"),
                "selector": { "devices": devices, "labels": {} },
                "on": { "telemetry": { "metrics": [CALM_METRIC] } },
                "condition": "value > 1000.0 && last.serial > 0.0",
                "severity": "warning",
                "message": "{device} is at {value}",
            });
            provision::rule(&self.handle, &self.accesses[0], &draft).context("cannot make a rule")?;
            if !args.quiet && (number + 1).is_multiple_of(250) {
                eprintln!("  {} of {} rules made", number + 1, args.rules);
            }
        }
        Ok(())
    }

    /// Shares the fleet between the sending parts.
    ///
    /// # Errors
    /// A process would need more files than it may open, or would not hold all watched devices.
    pub(crate) fn parts(&self, args: &RunArgs, seed: u64) -> Result<Vec<PartConfig>> {
        let files = crate::timer::raise_open_files().context("cannot read the limit of open files")?;
        let shares = shares(args.devices, args.processes, files)?;
        let part = |(number, Range { start: first, end }): (u32, Range<u32>)| {
            let members = self.members[first as usize..end as usize].to_vec();
            let watched = if number == 0 { self.watched } else { Watched::default() };
            PartConfig {
                address: self.address.clone(),
                mqtt: args.mqtt,
                keep_alive_s: args.keep_alive,
                concurrency: args.concurrency.div_ceil(args.processes),
                connect_timeout_s: args.connect_timeout,
                seed: seed.wrapping_add(u64::from(number)),
                profile: args.profile,
                watched,
                rate: args.rate * f64::from(end - first) / f64::from(args.devices),
                seconds: args.seconds,
                tenants: self.tenants.clone(),
                members,
                first_number: first,
                ca: self.ca.clone().filter(|_| self.is_tls),
                ca_key: self
                    .ca_key
                    .clone()
                    .filter(|_| args.transport == Transport::Mtls && self.identities.is_none()),
                identities: self.identities.clone(),
                server_name: self.server_name.clone(),
                credits: self.is_muster() && !args.no_credits,
                reports: self.is_muster(),
            }
        };
        Ok((0..).zip(shares).map(part).collect())
    }

    /// How a tenant's own software reaches the server.
    pub(crate) fn way(&self) -> Result<Way> {
        let tls = match &self.ca {
            Some(ca) if self.is_tls => {
                let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
                let name = self.server_name.as_deref().unwrap_or(host).to_owned();
                Some((Arc::new(client_config(ca)?), ServerName::try_from(name)?))
            }
            _ => None,
        };
        Ok(Way { address: resolve(&self.address)?, tls })
    }

    /// Whether it is ours.
    pub(crate) fn is_muster(&self) -> bool {
        !self.is_broker
    }
}

/// The number in the name of a rule of [`Target::make_rules`].
fn calm_rule_number(name: &str) -> Option<u32> {
    name.strip_prefix(CALM_RULE)?.parse().ok()
}

/// The devices of each process, by number: as many each, but for one.
///
/// # Errors
/// The first process, which has most to open, could not open its files, or would not hold all watched devices.
fn shares(devices: u32, processes: u32, files: u64) -> Result<Vec<Range<u32>>> {
    let share = |processes: u32| devices.div_ceil(processes);
    let needed =
        |processes: u32| u64::from(share(processes)) + OTHER_FILES + PIPES * u64::from(processes - 1);
    if needed(processes) > files {
        let advice = match (processes..=PROCESSES_MAX).find(|more| needed(*more) <= files) {
            Some(enough) => format!("give --processes {enough}"),
            None => "raise the limit".to_owned(),
        };
        let share = share(processes);
        bail!("{share} devices a process need more than the {files} files that one may open: {advice}");
    }
    let first_of =
        |number: u32| (u64::from(devices) * u64::from(number)).div_ceil(u64::from(processes)) as u32;
    let shares: Vec<_> = (0..processes).map(|number| first_of(number)..first_of(number + 1)).collect();
    if devices / processes < WATCHED.count() {
        let enough = devices / WATCHED.count();
        bail!(
            "{devices} devices in {processes} processes are too few each: give --processes {enough} or less"
        );
    }
    Ok(shares)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_shared_as_evenly_as_may_be_and_each_stands_once() {
        for (devices, processes) in [(10, 1), (10, 2), (17, 3), (100_000, 6), (131_072, 64), (321, 64)] {
            let shares = shares(devices, processes, 1 << 20).unwrap();
            assert_eq!(shares.len(), processes as usize);
            let all: Vec<u32> = shares.iter().cloned().flatten().collect();
            assert!(all.iter().copied().eq(0..devices), "{shares:?}");
            let sizes: Vec<u32> = shares.iter().map(|share| share.end - share.start).collect();
            let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
            assert!(most - least <= 1 && sizes[0] == *most, "{sizes:?}");
        }
    }

    #[test]
    fn no_process_opens_more_files_than_it_may_and_the_advice_is_enough() {
        let files = 20_000;
        assert!(shares(19_744, 1, files).is_ok());
        let refused = |devices, processes, files| shares(devices, processes, files).unwrap_err().to_string();
        assert_eq!(
            refused(19_745, 1, files),
            "19745 devices a process need more than the 20000 files that one may open: give --processes 2"
        );
        // The pipes to further processes count, too.
        assert!(shares(19_742 * 2, 2, files).is_ok());
        assert!(refused(19_742 * 2 + 1, 2, files).ends_with("give --processes 3"));
        assert!(refused(100_000, 1, files).ends_with("give --processes 6"));
        assert!(shares(100_000, 6, files).is_ok());
        assert!(refused(131_072, 1, 1_024).ends_with("raise the limit"));
        for processes in 1..=PROCESSES_MAX {
            if let Ok(shares) = shares(131_072, processes, files) {
                let most = u64::from(shares[0].end) + OTHER_FILES + PIPES * (u64::from(processes) - 1);
                assert!(most <= files, "{processes}: {most}");
            }
        }
    }

    #[test]
    fn the_first_process_holds_every_watched_device() {
        assert!(shares(10, 2, 20_000).is_ok());
        let error = shares(10, 3, 20_000).unwrap_err().to_string();
        assert_eq!(error, "10 devices in 3 processes are too few each: give --processes 2 or less");
        assert!(shares(10, 64, 20_000).is_err());
    }

    #[test]
    fn a_rule_of_an_earlier_run_is_known_by_its_name() {
        assert_eq!(calm_rule_number("loadtest rule 17"), Some(17));
        for name in ["loadtest level", "loadtest rule", "loadtest rule x", "my loadtest rule 1"] {
            assert_eq!(calm_rule_number(name), None, "{name}");
        }
    }
}
