//! A disk that is full for real, under the server and under the agent, with the oracle of the promise after each.

use muster_tests::agent::Load;
use muster_tests::rig::Rig;
use muster_tests::small_disk::SmallDisk;
use muster_tests::wait_for;

/// No rate limit, so that a backlog drains within a test; a log of small segments.
const LIMITS: &str = "[limits]
device_messages_per_s = 1000000
device_messages_burst = 1000000
[event_log]
segment_bytes = 1048576
";
const MIB: u64 = 1 << 20;
const LOG_FULL: &str = "full: Disk";

fn load() -> Load {
    Load { rows_per_s: 1_000, ..Load::default() }
}

/// Takes all space but `leave` until the server says that its log is full.
fn fill_until_the_log_is_full(rig: &Rig, disk: &SmallDisk, leave: u64) {
    wait_for("the log to be full", || {
        disk.fill(leave);
        match rig.server.part("event_log")? {
            told if told == LOG_FULL => Ok(()),
            told => Err(format!("{told}, {} bytes are free", disk.free_bytes())),
        }
    });
}

/// Logs in, which writes a session, and makes a claim.
fn assert_registry_works(rig: &Rig, device: &str) {
    let me = rig.server.api.post("/api/v1/auth/login", &rig.server.owner_login());
    assert_eq!(me["kind"], "user", "{me}");
    assert!(rig.server.claim(device).starts_with("muster-claim:"));
}

#[test]
fn a_server_disk_that_others_filled_loses_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let data = dir.path().join("server/data");
    let Some(disk) = SmallDisk::mount("a_server_disk_that_others_filled_loses_nothing", &data, 64 * MIB)
    else {
        return;
    };
    let mut rig = Rig::start_in(dir.path(), &format!("{LIMITS}disk_reserve_bytes = 0"), &load());
    for round in 0..3 {
        let connections = rig.agent.connections();
        fill_until_the_log_is_full(&rig, &disk, 0);
        // The sources go on, the disk stays full.
        rig.wait_for_accepted(1_000);
        fill_until_the_log_is_full(&rig, &disk, 0);
        assert_eq!(rig.agent.connections(), connections, "nobody was disconnected");
        if round == 1 {
            rig.server.kill();
            match rig.server.try_start() {
                Ok(()) => rig.server.kill(),
                Err(why) => assert!(why.contains("disk is full") || why.contains("No space left"), "{why}"),
            }
        }
        disk.give_back();
        if round == 1 {
            rig.start_server();
        }
        rig.wait_for_more(1_000);
    }
    let told = rig.assert_exactly_once(0);
    assert_eq!(told.dropped, 0, "{told:?}");
}

#[test]
fn a_log_that_filled_its_disk_leaves_the_registry_room() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let data = dir.path().join("server/data");
    let Some(disk) = SmallDisk::mount("a_log_that_filled_its_disk_leaves_the_registry_room", &data, 96 * MIB)
    else {
        return;
    };
    let config = format!("{LIMITS}disk_reserve_bytes = {}", 32 * MIB);
    let mut rig = Rig::start_in(dir.path(), &config, &load());
    // The server itself takes the last that is not reserved.
    disk.fill(34 * MIB);
    wait_for("the log to be full", || match rig.server.part("event_log")? {
        told if told == LOG_FULL => Ok(()),
        told => Err(format!("{told}, {} bytes are free", disk.free_bytes())),
    });
    assert_registry_works(&rig, "second");
    // Somebody else takes most of the reserve: now the store waits, too.
    fill_until_the_log_is_full(&rig, &disk, 4 * MIB);
    assert_registry_works(&rig, "third");
    rig.wait_for_accepted(1_000);
    assert!(disk.free_bytes() > 2 * MIB, "{} bytes are free", disk.free_bytes());
    rig.restart_server();
    assert_registry_works(&rig, "fourth");
    disk.give_back();
    rig.wait_for_more(1_000);
    let told = rig.assert_exactly_once(0);
    assert_eq!(told.dropped, 0, "{told:?}");
}

#[test]
fn a_server_whose_log_fails_for_good_stops_and_loses_nothing() {
    let mut rig = Rig::start(LIMITS, &load());
    let (log, gone) = (rig.server.data_dir().join("log"), rig.server.data_dir().join("gone"));
    std::fs::rename(&log, &gone).expect("the log's directory can be moved");
    // The next segment cannot be made.
    let (status, tail) = rig.server.wait_for_end();
    assert!(!status.success() && tail.contains("the event log stopped: "), "{status}\n{tail}");
    std::fs::rename(&gone, &log).expect("the log's directory can be moved back");
    rig.start_server();
    rig.wait_for_more(1_000);
    let told = rig.assert_exactly_once(0);
    assert_eq!(told.dropped, 0, "{told:?}");
}

#[test]
fn an_agent_on_a_full_disk_runs_on_and_lists_what_it_dropped() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let data = dir.path().join("agent/data");
    let name = "an_agent_on_a_full_disk_runs_on_and_lists_what_it_dropped";
    let Some(disk) = SmallDisk::mount(name, &data, 8 * MIB) else { return };
    let mut rig = Rig::start_in(dir.path(), LIMITS, &load());
    // Cut off, its own queue fills the disk: the oldest records go, and are listed.
    rig.proxy.cut();
    disk.fill(MIB);
    wait_for("the queue to drop its oldest records", || match rig.agent.inspect() {
        told if told.dropped > 0 => Ok(()),
        told => Err(format!("{told:?}")),
    });
    // Others take every byte that it frees, until it holds nothing of what it held.
    let held = rig.agent.inspect().next;
    wait_for("everything older to be dropped", || {
        disk.fill(0);
        match rig.agent.inspect() {
            told if told.dropped + told.released >= held => Ok(()),
            told => Err(format!("{told:?}, {held} accepted before")),
        }
    });
    assert!(rig.agent.is_running(), "a full disk ends no agent");
    // Nor does it keep one from starting, with or without a server.
    rig.agent.kill();
    rig.agent.start();
    rig.proxy.restore();
    let connections = rig.agent.connections();
    rig.agent.kill();
    rig.agent.start();
    wait_for("the agent to connect on a full disk", || match rig.agent.connections() {
        now if now > connections => Ok(()),
        now => Err(format!("connected {now} times")),
    });
    assert!(rig.agent.is_running(), "a full disk ends no agent");
    disk.give_back();
    rig.wait_for_more(1_000);
    let told = rig.assert_exactly_once(0);
    assert!(told.dropped > 0, "{told:?}");
}
