//! `muster-loadtest enrol`: enrols a fleet and keeps its identities for later runs.

use super::{Place, enrol, tenant_names};
use crate::identity::{Member, generated_name};
use crate::observe::provision::{self, Owner};
use crate::observe::{ServerFacts, ServerHandle};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The most devices: as many as a run takes.
const DEVICES_MAX: u32 = 1 << 17;
/// The most tenants: as many as a run takes.
const TENANTS_MAX: u16 = 1_000;

/// Enrols devices through claims, as real ones do, and writes their identities to a file that `run --identities`
/// takes. The last line of output is JSON.
#[derive(clap::Args, Clone, Debug)]
pub struct EnrolArgs {
    /// The server's admin API, `host:port`.
    #[arg(long)]
    pub api: String,
    /// Its bootstrap file: tenant and owner.
    #[arg(long)]
    pub bootstrap: PathBuf,
    /// Its enrolment listener, `host:port`, where that is another than its claims say.
    #[arg(long)]
    pub enroll_addr: Option<String>,
    /// Devices.
    #[arg(long, default_value_t = 10_000)]
    pub devices: u32,
    /// Tenants that they belong to, in turn.
    #[arg(long, default_value_t = 1)]
    pub tenants: u16,
    /// The file of identities: a line of JSON for each device, for its owner's eyes only.
    #[arg(long)]
    pub save_identities: PathBuf,
    /// Write the certificate of the server's authority here (PEM): `--ca` of later runs.
    #[arg(long)]
    pub save_ca: Option<PathBuf>,
    /// No progress on the terminal.
    #[arg(long)]
    pub quiet: bool,
}

/// Enrols a fleet.
///
/// # Errors
/// The server cannot be reached or refuses, or a file cannot be written.
pub fn run(args: &EnrolArgs) -> Result<()> {
    if !(1..=DEVICES_MAX).contains(&args.devices) || !(1..=TENANTS_MAX).contains(&args.tenants) {
        bail!("--devices must be 1 to {DEVICES_MAX}, --tenants 1 to {TENANTS_MAX}");
    }
    let (owner, tenant) = read_bootstrap(&args.bootstrap)?;
    let facts = ServerFacts { http: Some(args.api.clone()), ..ServerFacts::default() };
    let server = ServerHandle::new(facts);
    let accesses = provision::tenants(&server, &owner, &tenant_names(&tenant, args.tenants))?;
    let member = |number: u32| {
        let tenant = (number % u32::from(args.tenants)) as u16;
        Member { tenant, name: generated_name(number), token: None }
    };
    let members: Vec<Member> = (0..args.devices).map(member).collect();
    let place = Place { server: &server, accesses: &accesses, listener: args.enroll_addr.as_deref() };
    let began = Instant::now();
    let told = |done: u32| {
        if !args.quiet && done.is_multiple_of(1_000) {
            eprintln!("  {done} of {} devices enrolled", args.devices);
        }
    };
    let enrolled = enrol(place, &members, &args.save_identities, &told)?;
    if let Some(path) = &args.save_ca {
        std::fs::write(path, &enrolled.ca_pem).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("{}", json!({ "devices": args.devices, "claims": enrolled.claims, "seconds": seconds }));
    Ok(())
}

/// What a first start of the server writes.
#[derive(serde::Deserialize)]
struct Bootstrap {
    tenant: String,
    email: String,
    password: String,
}

/// The owner and the first tenant of a bootstrap file.
///
/// # Errors
/// It cannot be read, or is none.
pub(crate) fn read_bootstrap(path: &Path) -> Result<(Owner, String)> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let Bootstrap { tenant, email, password } =
        serde_json::from_str(&text).with_context(|| format!("{} is no bootstrap file", path.display()))?;
    Ok((Owner { email, password }, tenant))
}
