//! The emulated agent at work: its check of both bundles, and two devices of a real server.

use crate::cargo;
use crate::demo::agents::{Agent, Role};
use crate::demo::watch::stored_of_class;
use crate::http::Client;
use crate::process::wait_for;
use crate::server::Server;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// An emulator is slow, and the machine may be busy.
const WAIT: Duration = Duration::from_secs(180);
/// Those with a model.
const ROLES: [Role; 2] = [Role::Motion, Role::Camera];
/// Readings records and inferences that must be stored of each device.
const STORED: u64 = 5;

/// `muster-agent check` with each bundle; prints what it said.
///
/// # Errors
/// It refuses one.
pub(super) fn check(program: &Path, dir: &Path) -> Result<()> {
    for role in ROLES {
        let dir = dir.join("check").join(role.device());
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let config = dir.join("agent.toml");
        let text = format!(
            "version = 1\ndata_dir = \"data\"\n\n{}",
            role.pipelines(&cargo::root().join("agent/models"))
        );
        std::fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        println!("muster-agent check with {}, emulated:", role.model().unwrap_or_default());
        let output = Command::new(program).arg("check").arg("--config").arg(&config).output();
        let output = output.with_context(|| format!("cannot start {}", program.display()))?;
        for line in [output.stdout, output.stderr].iter().flat_map(|said| said.split(|byte| *byte == b'\n')) {
            if !line.is_empty() {
                println!("  {}", String::from_utf8_lossy(line));
            }
        }
        if !output.status.success() {
            bail!("muster-agent check ended with {}", output.status);
        }
    }
    Ok(())
}

/// Two emulated devices enrol with a server of this machine, score and publish; answers whether all held.
///
/// # Errors
/// A program cannot be started, a device's readings or inferences do not come in time, or the API fails.
pub(super) fn fleet(server: &Path, program: &Path, dir: &Path) -> Result<bool> {
    let dir = dir.join("fleet");
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    println!("a server of this machine, and two emulated devices");
    let http = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut server = Server::start(server, &dir.join("server"), http, &[])?;
    let outcome = devices(&server, program, &dir);
    let stopped = server.process.stop();
    let held = outcome?;
    stopped?;
    Ok(held)
}

fn devices(server: &Server, program: &Path, dir: &Path) -> Result<bool> {
    let mut agents = Vec::new();
    for role in ROLES {
        agents.push(Agent::start(role, program, &dir.join(role.device()), server)?);
        println!("  {}: enrolled, and runs", role.device());
    }
    let mut api = server.api();
    for agent in &mut agents {
        let device = agent.role.device();
        wait_for(&format!("readings and inferences of {device}"), WAIT, || {
            agent.process.expect_running()?;
            let ledger = api.get(&server.path(&format!("devices/{device}/ledger")))?;
            let enough = |class| stored_of_class(&ledger, class) >= STORED;
            Ok((enough("telemetry") && enough("event")).then_some(()))
        })?;
    }
    // In order: an agent's last words say what it has sent, and the ledger counts what is missing.
    for agent in &mut agents {
        agent.process.stop().with_context(|| format!("agent {}", agent.role.device()))?;
    }
    let mut held = true;
    for role in ROLES {
        held &= device(server, &mut api, role)?;
    }
    let totals = api.get(&server.path("ledger"))?;
    let number = |name: &str| totals[name].as_u64().with_context(|| format!("the ledger holds no {name}"));
    let (stored, lost, duplicated) = (number("stored")?, number("lost")?, number("duplicated")?);
    held &= stored > 0 && lost == 0 && duplicated == 0;
    println!("  ledger: {stored} stored, lost = {lost}, duplicated = {duplicated}");
    println!("{}", if held { "all held" } else { "not all held" });
    Ok(held)
}

/// Prints what the API shows of a device; answers whether it shows readings, and events of its model.
fn device(server: &Server, api: &mut Client, role: Role) -> Result<bool> {
    let device = role.device();
    let ledger = api.get(&server.path(&format!("devices/{device}/ledger")))?;
    let last = api.get(&server.path(&format!("devices/{device}/last")))?;
    let events = api.get(&server.path(&format!("events?device={device}&limit=1")))?;
    let metrics = last["items"].as_array().map_or(0, Vec::len);
    let newest = &events["items"][0];
    println!(
        "  {device}: {} records of readings ({metrics} metrics), {} inferences; the newest: {} {} {}",
        stored_of_class(&ledger, "telemetry"),
        stored_of_class(&ledger, "event"),
        newest["model"],
        newest["label"],
        newest["score"],
    );
    Ok(shows(role, &last, newest))
}

fn shows(role: Role, last: &Value, newest: &Value) -> bool {
    let has_readings = last["items"].as_array().is_some_and(|items| !items.is_empty());
    has_readings && role.model().is_some_and(|model| newest["model"] == model)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_device_shows_readings_and_events_of_its_own_model() {
        let last = json!({"items": [{"metric": "digits.score", "value": 0.9}]});
        let event = |model: &str| json!({ "model": model });
        assert!(shows(Role::Camera, &last, &event("meter-digits")));
        assert!(!shows(Role::Camera, &last, &event("motion-anomaly")));
        assert!(!shows(Role::Camera, &last, &Value::Null));
        assert!(!shows(Role::Camera, &json!({"items": []}), &event("meter-digits")));
    }
}
