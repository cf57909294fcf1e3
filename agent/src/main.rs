//! `muster-agent`: run, enroll, check, bench-model, queue inspect.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use muster_agent::app;
use muster_agent::bench_model;
use muster_agent::config::{Config, SourceConfig};
use muster_agent::queue::inspect;
use muster_agent::source::{LINES_CHECKED_MAX, PcmShape, check_csv, check_exec, check_pcm};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Threads for pipelines come on top of these (models loading, a look at the machine, closing the queue).
const BLOCKING_THREADS: usize = 4;
/// How long threads may go on after everything is taken down.
const EXIT_TIME_MAX: Duration = Duration::from_secs(1);

/// Muster's device agent: reads sources, scores them, and sends readings and events to the server.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs until SIGTERM.
    Run {
        /// The configuration file.
        #[arg(long, short, default_value = "/etc/muster/agent.toml")]
        config: PathBuf,
    },
    /// Enrols with a claim from the server and ends.
    Enroll {
        /// The configuration file.
        #[arg(long, short, default_value = "/etc/muster/agent.toml")]
        config: PathBuf,
        /// `muster-claim:<host>:<port>:<token>:<sha256>`, shown once by the server.
        claim: String,
    },
    /// Checks the configuration and self-tests the models.
    Check {
        /// The configuration file.
        #[arg(long, short, default_value = "/etc/muster/agent.toml")]
        config: PathBuf,
    },
    /// Measures what each engine and form of a model bundle costs on this device, and tells which one the agent picks.
    ///
    /// Each runs in a process of its own. Load: reading, planning and the self-test. First answer: CPU time of the process
    /// from its start to the end of the first inference behind the self-test. Min, median and P95: single inferences, one
    /// thread. RSS: resident memory of the process with the model loaded. Largest difference: of the golden samples' outputs.
    BenchModel(bench_model::Ask),
    /// What `bench-model` starts for each engine and form.
    #[command(hide = true)]
    BenchCandidate(bench_model::AskOne),
    /// Looks into the durable queue.
    Queue {
        #[command(subcommand)]
        command: QueueCommand,
    },
}

#[derive(Subcommand)]
enum QueueCommand {
    /// Prints accepted and dropped ranges per class and queue_id.
    Inspect {
        /// The configuration file.
        #[arg(long, short, default_value = "/etc/muster/agent.toml")]
        config: PathBuf,
        /// One line of JSON instead of text.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    match command(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("muster-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command(command: Command) -> Result<()> {
    match command {
        Command::Run { config } => run(&config),
        Command::Enroll { config, claim } => enroll(&config, &claim),
        Command::Check { config } => check(&config),
        Command::BenchModel(ask) => Ok(bench_model::run(&ask)?),
        Command::BenchCandidate(ask) => Ok(bench_model::run_one(&ask)?),
        Command::Queue { command: QueueCommand::Inspect { config, json } } => queue_inspect(&config, json),
    }
}

/// Levels by target: the regular expressions that `EnvFilter` takes too would cost a device more than they bring.
fn log_filter(config: &Config) -> Result<Targets> {
    config.log.filter.parse().with_context(|| format!("log.filter {:?}", config.log.filter))
}

fn start_log(config: &Config) -> Result<()> {
    let filter = log_filter(config)?;
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr);
    let log = tracing_subscriber::registry().with(lines.with_filter(filter));
    log.try_init().map_err(|error| anyhow::anyhow!("cannot start the log: {error}"))
}

fn runtime(pipelines: usize) -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(pipelines + BLOCKING_THREADS)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .context("cannot start the runtime")
}

fn run(file: &Path) -> Result<()> {
    let config = Config::load(file)?;
    start_log(&config)?;
    let runtime = runtime(config.pipelines.len())?;
    let ended = runtime.block_on(app::run(config));
    runtime.shutdown_timeout(EXIT_TIME_MAX);
    Ok(ended?)
}

fn enroll(file: &Path, claim: &str) -> Result<()> {
    let config = Config::load(file)?;
    start_log(&config)?;
    let identity = runtime(0)?.block_on(app::enroll(&config, claim))?;
    println!(
        "enrolled as {}/{}, server {}:{}",
        identity.tenant, identity.device, identity.mqtt_host, identity.mqtt_port
    );
    Ok(())
}

fn check(file: &Path) -> Result<()> {
    let config = Config::load(file)?;
    log_filter(&config)?;
    for source in &config.sources {
        if let Some(found) = check_source(source).with_context(|| format!("source {:?}", source.name()))? {
            println!("source {}: {found}", source.name());
        }
    }
    for line in app::check_models(&config)? {
        println!("{line}");
    }
    println!(
        "{}: {} sources, {} pipelines, ok",
        file.display(),
        config.sources.len(),
        config.pipelines.len()
    );
    Ok(())
}

/// What is to say of a source that was looked at.
fn check_source(source: &SourceConfig) -> Result<Option<String>> {
    Ok(match source {
        SourceConfig::Csv(csv) => {
            let rows = check_csv(csv)?;
            Some(format!("{rows} good rows and no other in at most {LINES_CHECKED_MAX} lines"))
        }
        SourceConfig::Exec(exec) => Some(format!("the command is {}", check_exec(exec)?.display())),
        SourceConfig::Pcm(pcm) => {
            let PcmShape { rate_hz, channels, encoding } = check_pcm(pcm)?;
            let bits = 8 * encoding.bytes();
            Some(format!("{rate_hz} samples a second, {channels} channels, {bits} bits"))
        }
        SourceConfig::Host(_) | SourceConfig::Images(_) => None,
    })
}

fn queue_inspect(file: &Path, json: bool) -> Result<()> {
    let config = Config::load(file)?;
    let inspection = inspect(&config.queue_dir())?;
    if json {
        println!("{}", serde_json::to_string(&inspection)?);
        return Ok(());
    }
    for class in &inspection.classes {
        println!(
            "{}: accepted {}, dropped {}, released below {}, next {}",
            class.class, class.accepted, class.dropped, class.released, class.next
        );
        for range in &class.openings {
            println!("  accepted {} {}..={}", range.queue_id, range.first, range.last);
        }
        for range in &class.drops {
            println!(
                "  dropped  {} {}..={} {}",
                range.queue_id,
                range.first,
                range.last,
                range.reason.as_str()
            );
        }
    }
    Ok(())
}
