//! `bench noisy`: a quiet tenant's latency without and with another that sends ten times its quota, in turns.
//!
//! One server with every consumer. The quiet tenant's devices send at a steady rate in each half of a pair; in the second
//! half the noisy tenant's do too, at ten times what its quota allows, for all of the measured time. What it was admitted is
//! read from its meter: at most its rate and one burst. What it sent besides is read from the gateway's refusals.
//!
//! The noisy tenant's generator runs at the lowest priority: its devices would be elsewhere, and what is measured is what the
//! server lets them do to others, not what they take of this machine's cores.

use super::load::{Found, Target};
use super::{Bar, Options, Report, fresh_dir, median, provision};
use crate::cargo;
use crate::http::Client;
use crate::process::{Process, catch_interrupts, wait_for};
use crate::server::Server;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The quiet tenant's connections.
const QUIET_DEVICES: u32 = 1_000;
/// Its messages a second.
const QUIET_RATE: &str = "1000";
/// The noisy tenant's connections.
const NOISY_DEVICES: u32 = 500;
/// Its quota, messages a second and at once.
const NOISY_QUOTA: u64 = 500;
/// What it sends: ten times that.
const NOISY_RATE: &str = "5000";
/// Of its quota it must get so much: it always has more to send.
const NOISY_PART_MIN: f64 = 0.3;
/// Interleaved pairs.
const PAIRS: usize = 5;
const NOISY_TENANT: &str = "noisy";
const START_TIMEOUT: Duration = Duration::from_secs(30);

struct Bench {
    server: Server,
    quiet: Target,
    noisy: Target,
    dir: PathBuf,
}

/// Runs the bench.
///
/// # Errors
/// A program cannot be built or run.
pub(crate) fn run(options: Options) -> Result<Report> {
    if !options.no_build {
        cargo::build_dist(&["muster-server", "muster-loadtest"])?;
    }
    catch_interrupts();
    let mut report = Report::new("noisy");
    let mut bench = Bench::start(&fresh_dir("noisy")?)?;
    let (pairs, seconds) = if options.quick { (1, "5") } else { (PAIRS, "10") };
    let (mut alone, mut beside, mut ratios, mut other) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut admitted, mut refused, mut sent) = (0_f64, 0_f64, Vec::new());
    for pair in 0..pairs {
        println!("pair {} of {pairs}", pair + 1);
        let without = bench.quiet_run(seconds)?;
        let (before, refused_before) = (bench.noisy_messages()?, bench.refused_by_quota()?);
        let (began, mut noise) = (Instant::now(), bench.make_noise()?);
        let with = bench.quiet_run(seconds)?;
        // Else there was less noise than was meant.
        noise.expect_running()?;
        // Killed: it would wait for its last acknowledgements.
        drop(noise);
        bench.wait_connections(|open| open == 0.0)?;
        // The meter commits each second.
        let meant = NOISY_QUOTA as f64 * (began.elapsed().as_secs_f64() + 1.0);
        std::thread::sleep(Duration::from_secs(2));
        let part = (bench.noisy_messages()? - before) / meant;
        ensure!(part > NOISY_PART_MIN, "the noisy tenant used {part:.2} of its quota: it made no noise");
        admitted = admitted.max(part);
        refused += with.sum("/messages/refused")? + with.sum("/messages/refused_for_now")?;
        sent.push(part + (bench.refused_by_quota()? - refused_before) / meant);
        ratios.push(p95(&with) / p95(&without));
        alone.push(p95(&without));
        beside.push(p95(&with));
        other.push(without.number("/cost/other_load_cores"));
    }
    report.figure("quiet_puback_p95_ms", median(alone));
    report.figure("quiet_beside_noisy_puback_p95_ms", median(beside));
    report.barred("noisy_tenant_p95_ratio", median(ratios), Bar::AtMost, 1.5);
    report.barred("quiet_refused", refused, Bar::AtMost, 0.0);
    // Admitted in the worst pair, as a part of rate x time; the burst comes on top, once.
    report.barred("noisy_admitted_of_quota", admitted, Bar::AtMost, 1.1);
    report.figure("noisy_sent_of_quota", median(sent));
    report.figure("other_load_cores", other.into_iter().fold(0.0, f64::max));
    bench.server.process.stop()?;
    Ok(report)
}

fn p95(run: &Found) -> f64 {
    run.number("/messages/puback_ms/p95")
}

impl Bench {
    fn start(dir: &Path) -> Result<Self> {
        let http = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let flags = ["--mqtt-plain-listen", "127.0.0.1:0"];
        let server =
            Server::start(&cargo::dist_binaries().join("muster-server"), &dir.join("server"), http, &flags)?;
        let (address, server_pid) = (server.address("mqtt_plain")?, server.process.pid());
        let target = |tenant: &str| Target {
            address,
            server_pid,
            tenant: tenant.to_owned(),
            tokens: dir.join(format!("{tenant}.csv")),
            ca: None,
        };
        let (quiet, noisy) = (target(&server.tenant), target(NOISY_TENANT));
        println!("making {QUIET_DEVICES} and {NOISY_DEVICES} devices");
        provision::devices(&server, QUIET_DEVICES, &quiet.tokens)?;
        let token = noisy_tenant(&server)?;
        provision::devices_of(
            NOISY_TENANT,
            || Client::new(server.http, &token),
            NOISY_DEVICES,
            &noisy.tokens,
        )?;
        Ok(Self { server, quiet, noisy, dir: dir.to_owned() })
    }

    fn quiet_run(&self, seconds: &str) -> Result<Found> {
        self.quiet.run(
            "bench-rate",
            QUIET_DEVICES,
            &["--rate", QUIET_RATE, "--seconds", seconds, "--warmup", "2"],
        )
    }

    /// Starts the noisy tenant, and waits until all of it is connected.
    fn make_noise(&self) -> Result<Process> {
        let more = ["--rate", NOISY_RATE, "--seconds", "600", "--warmup", "0", "--defiant"];
        let generator = self.noisy.command("bench-rate", NOISY_DEVICES, &more);
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(generator.get_program()).args(generator.get_args());
        let noise = Process::start("muster-loadtest", &mut command, &self.dir.join("noise.log"))?;
        self.wait_connections(|open| open >= f64::from(NOISY_DEVICES))?;
        Ok(noise)
    }

    fn wait_connections(&self, enough: impl Fn(f64) -> bool) -> Result<()> {
        let mut api = self.server.api();
        wait_for("the noisy tenant's connections", START_TIMEOUT, || {
            Ok(enough(metric(&mut api, "gateway_connections")?).then_some(()))
        })
    }

    /// PUBLISHes that the quota refused so far; the quiet tenant has none.
    fn refused_by_quota(&self) -> Result<f64> {
        metric(&mut self.server.api(), r#"gateway_publishes_refused_total{reason="quota_messages_per_s"}"#)
    }

    /// What its meter counted of the noisy tenant, today and yesterday.
    fn noisy_messages(&self) -> Result<f64> {
        let answer = self.server.api().get("/api/v1/usage?limit=500")?;
        let rows = answer["items"].as_array().context("no usage")?;
        let of_noisy = rows.iter().filter(|row| row["tenant"] == NOISY_TENANT);
        Ok(of_noisy.filter_map(|row| row["messages"].as_f64()).sum())
    }
}

/// Makes the second tenant with its quota; gives an API token of it.
fn noisy_tenant(server: &Server) -> Result<String> {
    let mut person = login(server, &server.password)?;
    let new = "a password of the bench";
    person.post("/api/v1/auth/password", &json!({ "old_password": server.password, "new_password": new }))?;
    let mut person = login(server, new)?;
    person.post("/api/v1/tenants", &json!({ "id": NOISY_TENANT, "name": "Noisy" }))?;
    let rate = json!({ "messages_per_s": { "hard": NOISY_QUOTA, "burst": NOISY_QUOTA } });
    person.put(&format!("/api/v1/tenants/{NOISY_TENANT}/quota"), &rate)?;
    let scopes = json!({ "name": "bench", "scopes": ["devices:read", "devices:write"], "days": 1 });
    let answer = person.post(&format!("/api/v1/tenants/{NOISY_TENANT}/api-tokens"), &scopes)?;
    Ok(answer["secret"].as_str().context("the server gave no token")?.to_owned())
}

/// The first owner's session.
fn login(server: &Server, password: &str) -> Result<Client> {
    let body = json!({ "email": server.email, "password": password });
    let answer = Client::new(server.http, "").call("POST", "/api/v1/auth/login", Some(&body))?;
    let session = answer.session.with_context(|| format!("no session: {}", answer.body.trim()))?;
    Ok(Client::with_session(server.http, &session))
}

/// The value of a metric, with its labels as `/metrics` prints them.
fn metric(api: &mut Client, name: &str) -> Result<f64> {
    let text = api.call("GET", "/metrics", None)?.body;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.parse().ok()).with_context(|| format!("no metric {name}"))
}
