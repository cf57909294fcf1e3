//! `muster-server`: command line of the fleet server.

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use muster_server::app::audit::AuditRegistry;
use muster_server::app::{self, DataDirLock, RunOptions};
use muster_server::devices::pki;
use muster_server::http;
use muster_server::platform::clock::{Clock as _, SystemClock};
use muster_server::platform::config::{Config, Live, Sources};
use muster_server::platform::observability;
use muster_server::tenants::Tenants;
use muster_server::tenants::audit::export::{Format, Span};
use muster_server::tenants::audit::verify::Mark;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Muster's fleet server.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the server until SIGTERM or SIGINT.
    Run {
        #[command(flatten)]
        config: ConfigArgs,
        /// Checks the configuration and ends.
        #[arg(long)]
        check_config: bool,
        /// Written once everything listens: the real addresses, as JSON.
        #[arg(long, value_name = "FILE")]
        ready_file: Option<PathBuf>,
        /// Written on the first start (mode 0600): the owner's one-time password and an API token.
        #[arg(long, value_name = "FILE")]
        bootstrap_file: Option<PathBuf>,
    },
    /// Checks the configuration and prints what is in force.
    CheckConfig(ConfigArgs),
    /// Prints the OpenAPI document.
    Openapi,
    /// Works on the data directory of a stopped server.
    #[command(subcommand)]
    Admin(Admin),
    /// Reads the audit chains, also while the server runs.
    #[command(subcommand)]
    Audit(Audit),
    /// Works on the certificate authorities in a data directory; the server may run.
    #[command(subcommand)]
    Pki(PkiCommand),
}

#[derive(Subcommand)]
enum Audit {
    /// Walks the chains and says which row of which is not what was written. Ends with status 2 where one is not.
    Verify {
        #[command(flatten)]
        config: ConfigArgs,
        /// One tenant's chain, or - for the server's own; none: every chain.
        #[arg(long, value_name = "TENANT", allow_hyphen_values = true)]
        tenant: Option<String>,
        /// A row that an earlier verification printed: it must still be there. Needs --tenant.
        #[arg(long, value_name = "SEQ:HASH", requires = "tenant")]
        noted: Option<Mark>,
    },
    /// Writes a chain to the standard output, oldest row first.
    Export {
        #[command(flatten)]
        config: ConfigArgs,
        /// The tenant, or - for the server's own chain.
        #[arg(long, value_name = "TENANT", allow_hyphen_values = true)]
        tenant: String,
        /// From this time on, microseconds since 1970.
        #[arg(long, default_value_t = i64::MIN, hide_default_value = true)]
        from: i64,
        /// Up to, not including.
        #[arg(long, default_value_t = i64::MAX, hide_default_value = true)]
        to: i64,
        /// ndjson or csv.
        #[arg(long, default_value = "ndjson")]
        format: Format,
    },
}

#[derive(Subcommand)]
enum PkiCommand {
    /// Makes a second authority, which devices move to; a server that runs takes it up on SIGHUP, or within seconds.
    /// `POST /api/v1/authorities/retire` ends the old one.
    Rotate(ConfigArgs),
}

#[derive(Subcommand)]
enum Admin {
    /// Gives an account a new one-time password and ends its sessions.
    ResetPassword {
        #[command(flatten)]
        config: ConfigArgs,
        /// The account's address.
        email: String,
    },
}

#[derive(Args)]
struct ConfigArgs {
    /// The configuration file; none: defaults.
    #[arg(long, value_name = "FILE", env = "MUSTER_SERVER_CONFIG")]
    config: Option<PathBuf>,
    /// Sets a key: section.key=value. May be repeated; wins over environment and file.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// Short for --set data_dir=...
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// What this process does: gateway,worker,api (the default), gateway, or api. Short for --set roles=...
    #[arg(long, value_name = "LIST")]
    roles: Option<String>,
    /// The data directory of the server whose devices a gateway lets in. Short for --set registry.dir=...
    #[arg(long, value_name = "DIR")]
    registry_dir: Option<PathBuf>,
    /// Short for --set http.listen=...
    #[arg(long, value_name = "ADDRESS")]
    http_listen: Option<String>,
    /// Short for --set enroll.listen=...
    #[arg(long, value_name = "ADDRESS")]
    enroll_listen: Option<String>,
    /// Short for --set mqtt.tls_listen=...
    #[arg(long, value_name = "ADDRESS")]
    mqtt_tls_listen: Option<String>,
    /// Short for --set mqtt.plain_listen=...
    #[arg(long, value_name = "ADDRESS")]
    mqtt_plain_listen: Option<String>,
    /// Short for --set log.filter=...
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected section.key=value")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

impl ConfigArgs {
    fn sources(self) -> Sources {
        let mut flags = self.set;
        let quoted = |text: String| format!("{text:?}");
        let shorts = [
            ("data_dir", self.data_dir.map(|dir| quoted(dir.display().to_string()))),
            ("roles", self.roles.map(quoted)),
            ("registry.dir", self.registry_dir.map(|dir| quoted(dir.display().to_string()))),
            ("http.listen", self.http_listen),
            ("enroll.listen", self.enroll_listen),
            ("mqtt.tls_listen", self.mqtt_tls_listen),
            ("mqtt.plain_listen", self.mqtt_plain_listen),
            ("log.filter", self.log.map(quoted)),
        ];
        let given = shorts.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        flags.extend(given);
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Sources { file: self.config, env: env.collect(), flags }
    }
}

/// The status where an audit chain is broken.
const BROKEN: u8 = 2;

fn main() -> ExitCode {
    match obey(Cli::parse().command) {
        Ok(status) => status,
        Err(error) => {
            // With its causes, on one line.
            eprintln!("muster-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn obey(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run { config, check_config: true, .. } | Command::CheckConfig(config) => {
            let config = config.sources().load()?;
            print!("{}", config_text(&config)?);
        }
        Command::Run { config, check_config: false, ready_file, bootstrap_file } => {
            run(RunOptions { sources: config.sources(), ready_file, bootstrap_file })?;
        }
        Command::Openapi => {
            println!("{}", http::openapi().to_pretty_json()?);
        }
        Command::Pki(PkiCommand::Rotate(config)) => rotate(&config.sources().load()?)?,
        Command::Admin(Admin::ResetPassword { config, email }) => reset_password(config.sources(), email)?,
        Command::Audit(Audit::Verify { config, tenant, noted }) => {
            return verify_audit(config.sources(), tenant, noted);
        }
        Command::Audit(Audit::Export { config, tenant, from, to, format }) => {
            let span = Span { from_us: from, to_us: to };
            let mut registry = audit_registry(config.sources())?;
            registry.export(&tenant, span, format, &mut std::io::stdout().lock())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn audit_registry(sources: Sources) -> anyhow::Result<AuditRegistry> {
    let config = sources.load()?;
    Ok(runtime()?.block_on(AuditRegistry::open(&config))?)
}

fn verify_audit(sources: Sources, tenant: Option<String>, noted: Option<Mark>) -> anyhow::Result<ExitCode> {
    let mut registry = audit_registry(sources)?;
    let chains = match tenant {
        Some(tenant) => vec![tenant],
        None => registry.chains()?,
    };
    let mut status = ExitCode::SUCCESS;
    for chain in chains {
        match registry.verify(&chain, noted)? {
            (rows, Ok(at)) => println!("{chain}: {rows} rows are good, the last is {at}"),
            (rows, Err(fault)) => {
                println!("{chain}: BROKEN after {rows} good rows: {fault}");
                status = ExitCode::from(BROKEN);
            }
        }
    }
    Ok(status)
}

fn config_text(config: &Config) -> anyhow::Result<String> {
    config.to_toml().context("print the configuration")
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")
}

fn run(options: RunOptions) -> anyhow::Result<()> {
    let config = options.sources.load()?;
    let log = observability::start_logging(&config.log.filter)?;
    runtime()?.block_on(app::run(options, config, Arc::new(SystemClock), log))?;
    Ok(())
}

fn rotate(config: &Config) -> anyhow::Result<()> {
    let held = pki::rotate(&config.data_dir.join("pki"), SystemClock.now_us())?;
    for anchor in &held.trusted {
        let role =
            if *anchor == held.serving { "server's certificate" } else { "devices' next certificates" };
        println!("{} {role}", hex::encode(anchor.key_sha256));
    }
    Ok(())
}

fn reset_password(sources: Sources, email: String) -> anyhow::Result<()> {
    let config = sources.load()?;
    anyhow::ensure!(
        config.roles.is_all() || config.roles.is_api_alone(),
        "a process with these roles has no accounts: reset it where the API runs"
    );
    // A registry that processes share is not in the directory, and may be changed beside them.
    let lock = config.registry.url.is_none().then(|| DataDirLock::take(&config.data_dir));
    let _lock = lock.transpose().context("stop the server first")?;
    let password = runtime()?.block_on(async {
        let registry = app::open_registry(&config).await?;
        let tenants = Tenants::open(registry, Arc::new(SystemClock), Live::new(config)).await?;
        tenants.reset_password(&email).await
    })?;
    println!("one-time password of {email}: {password}");
    Ok(())
}
