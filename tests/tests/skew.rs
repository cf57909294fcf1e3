//! The build of the tag before this one beside this build: its agent, its files with a backlog in them, and the way back.
//!
//! `cargo xtask trials --only skew` builds that tag and names its binaries; without them the test is listed as skipped.

use muster_tests::agent::Load;
use muster_tests::process::binary_of;
use muster_tests::rig::Rig;
use muster_tests::{skip, wait_for};
use std::path::PathBuf;

/// The directory with the binaries of the tag before this one.
const PREVIOUS: &str = "MUSTER_PREVIOUS_BINARIES";

#[test]
fn the_tag_before_this_one_upgrades_with_its_backlog_and_a_downgrade_is_refused() {
    let Some(previous) = std::env::var_os(PREVIOUS).map(PathBuf::from) else {
        skip(
            "the_tag_before_this_one_upgrades_with_its_backlog_and_a_downgrade_is_refused",
            "needs the binaries of the tag before this one",
        );
        return;
    };
    assert!(binary_of(Some(&previous), "muster-server").exists(), "{} holds no build", previous.display());
    let dir = tempfile::tempdir().unwrap();
    // A log that nothing reads: the old server leaves a backlog in it.
    let mut rig = Rig::start_build(dir.path(), "", &Load::default(), Some(&previous));
    rig.server.stop();
    let config = dir.path().join("server/muster-server.toml");
    assert!(config.exists());
    // The agent goes on into its queue, and its server is killed with records that were never flushed.
    rig.wait_for_accepted(200);
    rig.start_server();
    rig.wait_for_more(500);
    rig.server.kill();
    rig.wait_for_accepted(200);

    // This server on the old one's files, with the old agent.
    rig.server.use_build(None);
    rig.start_server();
    rig.wait_for_more(500);

    // This agent on the old one's queue, with a backlog in it.
    rig.proxy.cut();
    rig.wait_for_accepted(200);
    rig.agent.kill();
    rig.agent.use_build(None);
    rig.agent.start();
    rig.proxy.restore();
    rig.wait_for_more(500);

    // The way back: the old build says that the files are of a newer one, and changes nothing.
    rig.server.stop();
    rig.server.use_build(Some(&previous));
    let why = rig.server.try_start().unwrap_err();
    assert!(why.contains("newer"), "{why}");
    rig.server.use_build(None);
    rig.start_server();
    wait_for("the store to work", || match rig.server.part("store")? {
        now if now == "ok" => Ok(()),
        now => Err(now),
    });
    rig.wait_for_more(50);
    rig.assert_exactly_once(31);
}
