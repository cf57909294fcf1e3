//! Kills and cuts under load, with the oracle of the promise after each.

use muster_tests::agent::{Agent, Load};
use muster_tests::oracle::assert_exactly_once;
use muster_tests::proxy::Proxy;
use muster_tests::server::Server;
use muster_tests::{trials, wait_for};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

const DEVICE: &str = "trial";

/// Fields are dropped in this order: the processes end, and show their logs, before their files go.
struct Rig {
    agent: Agent,
    proxy: Proxy,
    server: Server,
    _dir: tempfile::TempDir,
}

fn rig(server_config: &str, load: &Load) -> Rig {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let server = Server::start_with(&dir.path().join("server"), server_config);
    let proxy = Proxy::start(server.address("mqtt_tls"));
    let claim = server.claim(DEVICE);
    let mut agent = Agent::new(&dir.path().join("agent"), &claim, proxy.addr(), load);
    agent.start();
    let mut rig = Rig { agent, proxy, server, _dir: dir };
    rig.wait_for_more(50);
    rig
}

impl Rig {
    fn stored(&self) -> Result<u64, String> {
        let path = format!("/api/v1/tenants/default/devices/{DEVICE}/ledger");
        let answer = self.server.api.call("GET", &path, None).map_err(|error| error.to_string())?;
        let ledger: serde_json::Value =
            serde_json::from_str(&answer.text).map_err(|error| error.to_string())?;
        ledger["totals"]["stored"].as_u64().ok_or(answer.text)
    }

    /// Waits until the store holds `more` records above what it holds now.
    fn wait_for_more(&mut self, more: u64) {
        let before = self.stored().unwrap_or(0);
        wait_for(&format!("{more} more records in the store"), || match self.stored()? {
            now if now >= before + more => Ok(()),
            now => Err(format!("{now} stored, {before} before")),
        });
    }

    fn restart_server(&mut self) {
        self.server.kill();
        self.server.start_again();
        self.proxy.retarget(self.server.address("mqtt_tls"));
    }
}

/// The moment of a fault is not asserted on, so sleeping here cannot make a test pass or fail.
fn a_moment(rng: &mut StdRng) {
    std::thread::sleep(Duration::from_millis(rng.random_range(1..400)));
}

#[test]
fn server_killed_at_random_moments_loses_nothing() {
    let seed = 7;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rig = rig("", &Load::default());
    for _ in 0..trials(20) {
        a_moment(&mut rng);
        rig.restart_server();
    }
    rig.wait_for_more(50);
    let told = assert_exactly_once(&mut rig.server, &mut rig.agent, DEVICE, seed);
    assert!(told.accepted > 100, "the load ran: {told:?}");
}

#[test]
fn agent_killed_at_random_moments_loses_nothing() {
    let seed = 8;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rig = rig("", &Load::default());
    for _ in 0..trials(20) {
        a_moment(&mut rng);
        rig.agent.kill();
        rig.agent.start();
    }
    rig.wait_for_more(50);
    let told = assert_exactly_once(&mut rig.server, &mut rig.agent, DEVICE, seed);
    assert!(told.accepted > 100, "the load ran: {told:?}");
}

#[test]
fn network_cut_and_restored_loses_nothing() {
    let seed = 9;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rig = rig("", &Load::default());
    for _ in 0..trials(20) {
        rig.proxy.cut();
        a_moment(&mut rng);
        rig.proxy.restore();
        a_moment(&mut rng);
    }
    rig.wait_for_more(50);
    assert_exactly_once(&mut rig.server, &mut rig.agent, DEVICE, seed);
}

#[test]
fn an_agent_cut_off_until_its_queue_is_full_lists_what_it_dropped() {
    let seed = 10;
    let mut rig = rig("", &Load { rows_per_s: 20_000, queue_bytes_max: 1 << 20 });
    rig.proxy.cut();
    rig.agent.stop();
    rig.agent.start();
    wait_for("the queue to drop its oldest records", || {
        rig.agent.stop();
        let told = rig.agent.inspect();
        rig.agent.start();
        std::thread::sleep(Duration::from_millis(500));
        if told.dropped > 0 { Ok(()) } else { Err(format!("{told:?}")) }
    });
    rig.proxy.restore();
    rig.wait_for_more(50);
    let told = assert_exactly_once(&mut rig.server, &mut rig.agent, DEVICE, seed);
    assert!(told.dropped > 0, "{told:?}");
}
