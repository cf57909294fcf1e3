//! One agent, a network that can be cut, one server: what most fault tests stand on.

use crate::agent::{Agent, Inspection, Load};
use crate::oracle;
use crate::proxy::Proxy;
use crate::server::Server;
use crate::wait_for;
use std::path::Path;
use tempfile::TempDir;

/// The agent's name at the server.
pub const DEVICE: &str = "trial";

/// Fields are dropped in this order: the processes end, and show their logs, before their files go.
pub struct Rig {
    /// Gives each record a serial.
    pub agent: Agent,
    /// Between the two.
    pub proxy: Proxy,
    /// Stores them.
    pub server: Server,
    _dir: Option<TempDir>,
}

impl Rig {
    /// Starts both in a temporary directory, and waits until records are stored.
    ///
    /// # Panics
    /// When that does not happen.
    #[must_use]
    pub fn start(server_config: &str, load: &Load) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let mut rig = Self::start_in(dir.path(), server_config, load);
        rig._dir = Some(dir);
        rig
    }

    /// As [`Self::start`], in `server` and `agent` of a directory that the caller prepared.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_in(dir: &Path, server_config: &str, load: &Load) -> Self {
        Self::start_build(dir, server_config, load, None)
    }

    /// As [`Self::start_in`], both with the binaries of another build.
    ///
    /// # Panics
    /// As [`Self::start`].
    #[must_use]
    pub fn start_build(dir: &Path, server_config: &str, load: &Load, build: Option<&Path>) -> Self {
        let server = Server::start_build(&dir.join("server"), server_config, build);
        let proxy = Proxy::start(server.address("mqtt_tls"));
        let claim = server.claim(DEVICE);
        let mut agent = Agent::new(&dir.join("agent"), &claim, proxy.addr(), load);
        agent.use_build(build);
        agent.start();
        let mut rig = Self { agent, proxy, server, _dir: None };
        rig.wait_for_more(50);
        rig
    }

    /// Records that the ledger counts as stored.
    ///
    /// # Errors
    /// The server does not tell.
    pub fn stored(&self) -> Result<u64, String> {
        let path = format!("/api/v1/tenants/default/devices/{DEVICE}/ledger");
        let answer = self.server.api.call("GET", &path, None).map_err(|error| error.to_string())?;
        let ledger: serde_json::Value =
            serde_json::from_str(&answer.text).map_err(|error| error.to_string())?;
        ledger["totals"]["stored"].as_u64().ok_or(answer.text)
    }

    /// Waits until the store holds `more` records above what it holds now.
    ///
    /// # Panics
    /// At the deadline.
    pub fn wait_for_more(&mut self, more: u64) {
        let before = self.stored().unwrap_or(0);
        wait_for(&format!("{more} more records in the store"), || match self.stored()? {
            now if now >= before + more => Ok(()),
            now => Err(format!("{now} stored, {before} before")),
        });
    }

    /// Waits until the agent accepted `more` records above what it has accepted now.
    ///
    /// # Panics
    /// At the deadline.
    pub fn wait_for_accepted(&self, more: u64) {
        let before = self.agent.inspect().next;
        wait_for(&format!("{more} more records in the agent's queue"), || match self.agent.inspect().next {
            now if now >= before + more => Ok(()),
            now => Err(format!("{now} accepted, {before} before")),
        });
    }

    /// Kills the server and starts it again.
    pub fn restart_server(&mut self) {
        self.server.kill();
        self.start_server();
    }

    /// Starts the server again; the network leads to its new port.
    pub fn start_server(&mut self) {
        self.server.start_again();
        self.proxy.retarget(self.server.address("mqtt_tls"));
    }

    /// Drains and stops everything, and asserts the promise.
    ///
    /// # Panics
    /// When a reading is lost or stored twice.
    pub fn assert_exactly_once(&mut self, seed: u64) -> Inspection {
        oracle::assert_exactly_once(&mut self.server, &mut self.agent, DEVICE, seed)
    }
}
