//! Kills and cuts under load, with the oracle of the promise after each.

use muster_tests::agent::Load;
use muster_tests::rig::Rig;
use muster_tests::{trials, wait_for};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

/// The moment of a fault is not asserted on, so sleeping here cannot make a test pass or fail.
fn a_moment(rng: &mut StdRng) {
    std::thread::sleep(Duration::from_millis(rng.random_range(1..400)));
}

#[test]
fn server_killed_at_random_moments_loses_nothing() {
    let seed = 7;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rig = Rig::start("", &Load::default());
    for _ in 0..trials(20) {
        a_moment(&mut rng);
        rig.restart_server();
    }
    rig.wait_for_more(50);
    let told = rig.assert_exactly_once(seed);
    assert!(told.accepted > 100, "the load ran: {told:?}");
}

#[test]
fn agent_killed_at_random_moments_loses_nothing() {
    let seed = 8;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rig = Rig::start("", &Load::default());
    for _ in 0..trials(20) {
        a_moment(&mut rng);
        rig.agent.kill();
        rig.agent.start();
    }
    rig.wait_for_more(50);
    let told = rig.assert_exactly_once(seed);
    assert!(told.accepted > 100, "the load ran: {told:?}");
}

#[test]
fn network_cut_and_restored_loses_nothing() {
    let seed = 9;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rig = Rig::start("", &Load::default());
    for _ in 0..trials(20) {
        rig.proxy.cut();
        a_moment(&mut rng);
        rig.proxy.restore();
        a_moment(&mut rng);
    }
    rig.wait_for_more(50);
    rig.assert_exactly_once(seed);
}

#[test]
fn an_agent_cut_off_until_its_queue_is_full_lists_what_it_dropped() {
    let seed = 10;
    let mut rig = Rig::start("", &Load { rows_per_s: 20_000, queue_bytes_max: 1 << 20 });
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
    let told = rig.assert_exactly_once(seed);
    assert!(told.dropped > 0, "{told:?}");
}
