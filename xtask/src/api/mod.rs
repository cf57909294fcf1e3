//! `xtask api`, also a part of `xtask test`: schemathesis over the whole OpenAPI document, against a real server.
//!
//! Promise: every operation of the document is called, but for streams; a finding fails it and is printed with the
//! request that shows it. Requests go to a sandbox tenant with its own objects. The seed is printed and can be given.
//! Needs Python 3.11 with venv; schemathesis is installed below `target/` where it is missing.

mod seed;

use crate::cargo;
use crate::process::catch_interrupts;
use crate::server::Server;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// What is installed.
const SCHEMATHESIS: &str = "schemathesis==4.32.*";
/// What each answer is held against.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
     response_schema_conformance,negative_data_rejection,ignored_auth";
/// How requests are made: boundary values of every field, random ones, and chains where one answer feeds the next.
const PHASES: &str = "examples,coverage,fuzzing,stateful";
/// The operations that another listener serves.
const ENROLMENT: [&str; 2] = ["/api/v1/enroll", "/api/v1/renew"];
/// Ids that exist go into the paths.
const HOOKS: &str = include_str!("hooks.py");

/// Command line of `xtask api`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Random requests an operation.
    #[arg(long, default_value_t = 50)]
    examples: u32,
    /// Makes the same requests again.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Passed on to schemathesis (for example `--include-path /api/v1/tenants`).
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Builds the server and checks its API; answers whether there was no finding.
///
/// # Errors
/// The build fails, schemathesis cannot be installed, or the server does not start.
pub(crate) fn run(arguments: &Arguments) -> Result<bool> {
    cargo::build_programs()?;
    check(arguments)
}

/// As [`run`] with its defaults, on programs that are built.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_built() -> Result<bool> {
    check(&Arguments { examples: 50, seed: 1, rest: Vec::new() })
}

fn check(arguments: &Arguments) -> Result<bool> {
    catch_interrupts();
    let program = install()?;
    let dir = cargo::target_dir().join("api-check");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let server = start(&dir)?;
    let began = Instant::now();
    let token = seed::sandbox(&server)?;
    println!("sandbox is filled after {} s", began.elapsed().as_secs());
    let document = server.api().get("/api/v1/openapi.json")?;
    std::fs::write(dir.join("openapi.json"), document.to_string()).context("cannot write the document")?;
    std::fs::write(dir.join("hooks.py"), HOOKS).context("cannot write the hooks")?;
    let claim = server.api().post(&server.path("claims"), &json!({}))?;
    let claim = claim["claim"].as_str().with_context(|| format!("no claim in {claim}"))?.to_owned();
    let pass = Pass { program, dir, arguments, token, claim, server: &server };
    pass.make_device();
    let api = pass.schemathesis(&format!("http://{}", server.http), &pass.without_streams(&document))?;
    let paths = ENROLMENT.iter().flat_map(|path| ["--include-path", *path]);
    let more: Vec<String> = paths.chain(["--tls-verify", "false"]).map(str::to_owned).collect();
    let enrolment = pass.schemathesis(&format!("https://{}", server.address("enroll")?), &more)?;
    println!("api: seed {}, {} s", arguments.seed, began.elapsed().as_secs());
    if !(api && enrolment) {
        eprintln!("the API does not do what its document says: see above");
    }
    Ok(api && enrolment)
}

/// A server of its own, with every default but the ports.
fn start(dir: &Path) -> Result<Server> {
    let binary = cargo::dev_binaries().join("muster-server");
    let any = "127.0.0.1:0".parse().context("an address")?;
    Server::start(&binary, &dir.join("server"), any, &["--mqtt-plain-listen", "127.0.0.1:0"])
}

/// The program, installed below `target/` where it is missing.
fn install() -> Result<PathBuf> {
    let home = cargo::target_dir().join("schemathesis");
    let program = home.join("bin").join("schemathesis");
    let works = |program: &Path| {
        let mut asked = Command::new(program);
        asked.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        asked.status().is_ok_and(|status| status.success())
    };
    if works(&program) {
        return Ok(program);
    }
    println!("installing {SCHEMATHESIS}");
    let _ = std::fs::remove_dir_all(&home);
    cargo::run(Command::new("python3").args(["-m", "venv"]).arg(&home))
        .context("Python 3.11 with venv is needed")?;
    let pip = home.join("bin").join("pip");
    cargo::run(Command::new(pip).args(["install", "-q", "--disable-pip-version-check", SCHEMATHESIS]))?;
    ensure!(works(&program), "{} does not run", program.display());
    Ok(program)
}

/// One check of one server.
struct Pass<'a> {
    program: PathBuf,
    dir: PathBuf,
    arguments: &'a Arguments,
    token: String,
    /// For the device that is renewed.
    claim: String,
    server: &'a Server,
}

impl Pass<'_> {
    /// A device's key and signing request beside the hooks, which enrol it; without openssl nobody is enrolled.
    fn make_device(&self) {
        let mut command = Command::new("openssl");
        command.current_dir(&self.dir).args([
            "req",
            "-new",
            "-newkey",
            "ec",
            "-nodes",
            "-subj",
            "/CN=device",
        ]);
        command.args([
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-keyout",
            "device.key",
            "-out",
            "device.csr",
        ]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if !command.status().is_ok_and(|status| status.success()) {
            let _ = std::fs::remove_file(self.dir.join("device.csr"));
            eprintln!("openssl is missing or failed: enrolment and renewal are not seen to succeed");
        }
    }

    /// Leaves out what never ends, and what another listener serves.
    fn without_streams(&self, document: &Value) -> Vec<String> {
        let empty = serde_json::Map::new();
        let paths = document["paths"].as_object().unwrap_or(&empty);
        let streams = paths.iter().filter(|(_, item)| {
            let content = &item["get"]["responses"]["200"]["content"];
            content.as_object().is_some_and(|content| content.contains_key("text/event-stream"))
        });
        let left_out = streams.map(|(path, _)| path.as_str()).chain(ENROLMENT);
        left_out.flat_map(|path| ["--exclude-path".to_owned(), path.to_owned()]).collect()
    }

    fn schemathesis(&self, url: &str, more: &[String]) -> Result<bool> {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.dir).arg("run").arg("openapi.json").args(["--url", url, "--no-color"]);
        command.args(["--checks", CHECKS, "--phases", PHASES, "--continue-on-failure"]);
        command.args(["--max-examples", &self.arguments.examples.to_string()]);
        command.args(["--seed", &self.arguments.seed.to_string(), "--generation-database", "none"]);
        command.args(["--suppress-health-check", "all", "--warnings", "off"]);
        command.args(["--header", &format!("Authorization: Bearer {}", self.token)]);
        command.args(more).args(&self.arguments.rest);
        command.env("SCHEMATHESIS_HOOKS", "hooks").env("PYTHONPATH", &self.dir);
        command.env("MUSTER_API_URL", format!("http://{}", self.server.http));
        command.env("MUSTER_API_TENANT", seed::TENANT).env("MUSTER_API_TOKEN", &self.token);
        command.env("MUSTER_API_ENROLL", format!("https://{}", self.server.address("enroll")?));
        command.env("MUSTER_API_CLAIM", &self.claim);
        command.env("MUSTER_API_SEED", self.arguments.seed.to_string());
        Ok(command.stdin(Stdio::null()).status().context("cannot start schemathesis")?.success())
    }
}
