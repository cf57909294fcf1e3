//! `xtask demo`: a server and three agents on this machine, from a fresh clone, with nothing else installed.
//!
//! Promise: everything lives below `target/demo` and is made anew each time; it prints where to look and the
//! login, then a live line; Ctrl-C ends agents and server in order. With `--seconds` it ends by itself and
//! fails unless all held: readings of every agent, inferences of both models, an alert opened and one cleared
//! by a rule on real data, nothing lost, nothing duplicated.
//!
//! `--engines services` puts the registry into PostgreSQL, readings and events into ClickHouse and files into a bucket of
//! an S3 server, all of which it starts; at the end one device is exported into the bucket and erased. `--outage` stops
//! PostgreSQL or ClickHouse for a minute in the middle, and the server must say so.

pub(crate) mod agents;
mod engines;
mod erase;
pub(crate) mod watch;

use crate::cargo;
use crate::http::Client;
use crate::process::{catch_interrupts, interrupted};
use crate::server::Server;
use agents::{Agent, Role};
use anyhow::{Context, Result};
use engines::{Engine, Engines, Services};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};
use watch::{Alerts, Sample};

/// The page's port, where it is free.
const HTTP_PORT: u16 = 8080;
/// Between two live lines.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long records may be on their way when the summary is made.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Command line of `xtask demo`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// End after this time, with a summary; fail unless all held.
    #[arg(long)]
    seconds: Option<u64>,
    /// Where the server keeps its data: files of its own, or servers that the demo starts.
    #[arg(long, value_enum, default_value_t = Engines::Embedded)]
    engines: Engines,
    /// Stop this one for a minute, 20 s after the start (with `--engines services`).
    #[arg(long, value_enum)]
    outage: Option<Engine>,
}

/// Runs the demo; answers whether all held.
///
/// # Errors
/// A program cannot be built or started, or the API fails.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    println!("building the server and the agent (the first time takes some minutes)");
    cargo::build_programs()?;
    catch_interrupts();
    let dir = cargo::target_dir().join("demo");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    let binaries = cargo::dev_binaries();
    let mut services = Services::start(arguments.engines, arguments.outage, &dir)?;
    let settings = services.settings();
    let more: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let mut server =
        Server::start(&binaries.join("muster-server"), &dir.join("server"), http_address(), &more)?;
    create_rules(&server)?;
    let mut fleet = Vec::new();
    for role in Role::ALL {
        fleet.push(Agent::start(role, &binaries.join("muster-agent"), &dir.join(role.device()), &server)?);
    }
    print_welcome(&server, arguments, &services);
    let mut alerts = Alerts::default();
    let outcome = watch_fleet(&mut server, &mut fleet, arguments, &mut services, &mut alerts);
    let outcome = outcome.and_then(|()| finish(&server, &mut fleet, arguments, &services, &mut alerts));
    let stopped = stop(&mut server, &mut fleet);
    let held = outcome?;
    stopped?;
    Ok(held)
}

/// The usual port, or any free one where another program has it.
fn http_address() -> SocketAddr {
    let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, HTTP_PORT));
    if TcpListener::bind(usual).is_ok() { usual } else { SocketAddr::from((Ipv4Addr::LOCALHOST, 0)) }
}

/// Rules that a person would want on such a fleet.
fn rules() -> [Value; 4] {
    [
        json!({
            "name": "Unusual motion",
            "on": { "event": { "pipelines": ["motion"], "kinds": ["anomaly"] } },
            "condition": "event.label == \"anomaly\"",
            "severity": "warning",
            "message": "{device}: unusual motion"
        }),
        json!({
            "name": "Digit hard to read",
            "on": { "event": { "pipelines": ["digits"], "kinds": ["classification"] } },
            "condition": "event.score < 0.6",
            "severity": "info",
            "message": "{device}: a digit is hard to read"
        }),
        json!({
            "name": "Memory nearly full",
            "selector": { "devices": [Role::Host.device()] },
            "on": { "telemetry": { "metrics": ["memory_used_percent"] } },
            "condition": "value > 95.0",
            "clear": "value < 90.0",
            "for_s": 10,
            "severity": "critical",
            "message": "{device}: {value} % of memory in use"
        }),
        json!({
            "name": "Disk nearly full",
            "selector": { "devices": [Role::Host.device()] },
            "on": { "telemetry": { "metrics": ["disk_used_percent"] } },
            "condition": "value > 95.0",
            "clear": "value < 90.0",
            "for_s": 60,
            "severity": "warning",
            "message": "{device}: {value} % of the disk in use"
        }),
    ]
}

fn create_rules(server: &Server) -> Result<()> {
    let mut api = server.api();
    for rule in rules() {
        api.post(&server.path("rules"), &rule).with_context(|| format!("rule {}", rule["name"]))?;
    }
    Ok(())
}

fn print_welcome(server: &Server, arguments: &Arguments, services: &Services) {
    println!("\n  page      http://{}/", server.http);
    println!("  API docs  http://{}/docs", server.http);
    println!("  login     {}  password {}", server.email, server.password);
    println!("  files     {}", server.data_dir.parent().unwrap_or(&server.data_dir).display());
    for setting in services.settings() {
        println!("  engine    {setting}");
    }
    match arguments.seconds {
        None => println!("\nthree agents run; Ctrl-C ends the demo\n"),
        Some(seconds) => println!("\nthree agents run; the demo ends after {seconds} s\n"),
    }
}

/// Prints the live line until the time is over or the user interrupts.
fn watch_fleet(
    server: &mut Server,
    fleet: &mut [Agent],
    arguments: &Arguments,
    services: &mut Services,
    alerts: &mut Alerts,
) -> Result<()> {
    let began = Instant::now();
    let mut api = server.api();
    let mut before: Option<(Instant, Sample)> = None;
    let mut line = LiveLine { in_place: std::io::stdout().is_terminal() };
    while !interrupted() && arguments.seconds.is_none_or(|seconds| began.elapsed().as_secs() < seconds) {
        server.process.expect_running()?;
        for agent in &mut *fleet {
            agent.process.expect_running()?;
        }
        let now = Instant::now();
        services.at(began.elapsed(), &mut api)?;
        let sample = match watch::look(server, &mut api, alerts) {
            Ok(sample) => sample,
            // What does not answer while its engine is away answers again after it.
            Err(error) if services.is_away() => {
                services.tell_once(&error);
                wait_unless_interrupted(LOOK_INTERVAL);
                continue;
            }
            Err(error) => return Err(error),
        };
        if let Some((then, earlier)) = &before {
            line.show(began.elapsed(), now.duration_since(*then), earlier, &sample, alerts);
        }
        before = Some((now, sample));
        wait_unless_interrupted(LOOK_INTERVAL.saturating_sub(now.elapsed()));
    }
    println!();
    Ok(())
}

/// The status line: overwritten on a terminal, one line each time elsewhere.
struct LiveLine {
    in_place: bool,
}

impl LiveLine {
    fn show(&mut self, since: Duration, step: Duration, before: &Sample, now: &Sample, alerts: &Alerts) {
        let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / step.as_secs_f64();
        let text = format!(
            "{:>4} s  readings {:>6.1}/s  inferences {:>5.1}/s  alerts {} opened, {} cleared  ledger: {} stored, {} pending, lost = {}",
            since.as_secs(),
            rate(before.readings, now.readings),
            rate(before.inferences, now.inferences),
            alerts.opened(),
            alerts.cleared(),
            now.stored,
            now.pending,
            now.lost,
        );
        if self.in_place {
            print!("\r{text}\x1b[K");
            // A terminal that is gone ends the demo by its signal.
            let _ = std::io::stdout().flush();
        } else {
            println!("{text}");
        }
    }
}

fn wait_unless_interrupted(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time && !interrupted() {
        std::thread::sleep(Duration::from_millis(20).min(time));
    }
}

/// Ends the agents, waits until what they sent is stored, and prints the summary.
fn finish(
    server: &Server,
    fleet: &mut Vec<Agent>,
    arguments: &Arguments,
    services: &Services,
    alerts: &mut Alerts,
) -> Result<bool> {
    if arguments.seconds.is_none() {
        return Ok(true);
    }
    if interrupted() {
        eprintln!("interrupted before the end");
        return Ok(false);
    }
    let mut api = server.api();
    let sample = settled(server, &mut api, alerts)?;
    let models: Vec<Option<String>> =
        Role::ALL.iter().map(|role| watch::newest_model(server, &mut api, *role)).collect::<Result<_>>()?;
    stop_agents(fleet)?;
    let mut verdicts = watch::verdicts(&sample, &models, alerts);
    verdicts.extend(services.verdict());
    if let Some(running) = services.running() {
        verdicts.extend(erase::device(server, &mut api, running)?);
    }
    println!("{:<32} {:>10}", "summary", "found");
    for verdict in &verdicts {
        println!(
            "{:<32} {:>10}  {}",
            verdict.what,
            verdict.found,
            if verdict.held { "ok" } else { "MISSED" }
        );
    }
    let held = verdicts.iter().all(|verdict| verdict.held);
    println!("{}", if held { "all held" } else { "not all held" });
    Ok(held)
}

/// Looks until nothing is pending, or the time is over: agents go on meanwhile.
fn settled(server: &Server, api: &mut Client, alerts: &mut Alerts) -> Result<Sample> {
    let began = Instant::now();
    loop {
        let sample = watch::look(server, api, alerts)?;
        let cleared = alerts.cleared() > 0;
        if (sample.pending == 0 && cleared) || began.elapsed() > SETTLE_TIMEOUT || interrupted() {
            return Ok(sample);
        }
        wait_unless_interrupted(Duration::from_millis(250));
    }
}

fn stop_agents(fleet: &mut Vec<Agent>) -> Result<()> {
    let outcomes: Vec<Result<()>> = fleet
        .iter_mut()
        .map(|agent| agent.process.stop().with_context(|| format!("agent {}", agent.role.device())))
        .collect();
    fleet.clear();
    outcomes.into_iter().collect()
}

/// Agents first, so that the server hears their last words.
fn stop(server: &mut Server, fleet: &mut Vec<Agent>) -> Result<()> {
    let agents = stop_agents(fleet);
    server.process.stop()?;
    agents
}
