use super::super::handle::ServerFacts;
use super::*;
use std::process::{Child, Command};

fn spin(until: impl Fn() -> bool) {
    let mut sum = 0_u64;
    while !until() {
        for _ in 0..100_000 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }
}

/// A process that keeps a core busy until it is dropped.
struct Busy(Child);

impl Busy {
    fn start() -> Self {
        Self(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_servers_time_is_summed_over_restarts_and_never_goes_back() {
    let mut track = ServerTrack::default();
    let used = |busy: &Busy| cpu_s(busy.0.id()).unwrap();
    let first = Busy::start();
    spin(|| used(&first) > 0.05);
    assert!(track.cpu_s(Some(first.0.id())) < 0.001, "what was used before the first look is not counted");
    spin(|| used(&first) > 0.15);
    let before = track.cpu_s(Some(first.0.id()));
    assert!(before > 0.01, "{before}");
    drop(first);
    // Down, with or without its old process id.
    let down = track.cpu_s(None);
    assert!((before - down).abs() < f64::EPSILON, "{before} {down}");
    let second = Busy::start();
    spin(|| used(&second) > 0.05);
    let after = track.cpu_s(Some(second.0.id()));
    assert!(after >= before + 0.05, "all of a new process counts: {before} {after}");
    assert!(track.cpu_s(Some(second.0.id())) >= after);
}

#[test]
fn a_server_that_is_down_has_no_numbers_and_the_rest_goes_on() {
    let server = ServerHandle::new(ServerFacts { pid: Some(u32::MAX), ..ServerFacts::default() });
    let mut meters = Meters::start(&server, vec![u32::MAX]).unwrap();
    let second = meters.look(LogMarks::default()).unwrap();
    assert_eq!((second.server_cpu_cores, second.server_rss_bytes, second.server_files), (None, None, None));
    let cost = meters.cost().unwrap();
    assert_eq!((cost.server_cpu_cores, cost.server_rss_bytes, cost.stored_bytes), (None, None, None));
    assert!(cost.generator_rss_bytes > 100_000, "{cost:?}");

    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("log")).unwrap();
    server.change(|facts| {
        facts.pid = Some(std::process::id());
        facts.data_dir = Some(dir.path().to_owned());
    });
    meters.begin().unwrap();
    std::fs::write(dir.path().join("log/1"), vec![7; 100_000]).unwrap();
    let second =
        meters.look(LogMarks { durable: Some(9), stored: Some(4), judged: Some(9), bytes: None }).unwrap();
    assert!(second.server_rss_bytes > Some(100_000) && second.server_files > Some(2), "{second:?}");
    let cost = meters.cost().unwrap();
    assert!(cost.server_cpu_cores.is_some() && cost.stored_bytes >= Some(100_000), "{cost:?}");
    let mut sample = model::Sample::default();
    second.fill(&mut sample);
    assert_eq!((sample.log_depth, sample.rules_lag, sample.log_bytes), (Some(5), Some(0), None));
}

#[test]
fn looks_are_taken_once_and_bounded() {
    let server = ServerHandle::default();
    let mut meters = Meters::start(&server, Vec::new()).unwrap();
    let second = meters.look(LogMarks::default()).unwrap();
    let mut seconds = VecDeque::new();
    for number in 0..=SECONDS_MAX as u64 {
        let log = LogMarks { bytes: Some(number), ..LogMarks::default() };
        keep(&mut seconds, Second { log, ..second.clone() });
    }
    assert_eq!((seconds.len(), seconds[0].log.bytes), (SECONDS_MAX, Some(1)));

    let sampler = Sampler::start(&server, Vec::new()).unwrap();
    keep(&mut sampler.shared.lock().seconds, second.clone());
    let taken = sampler.take();
    assert_eq!(taken.first(), Some(&second));
    assert_eq!(sampler.take().first().filter(|found| **found == second), None);
    let began = Instant::now();
    while sampler.take().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60), "no look was taken");
        std::thread::sleep(Duration::from_millis(20));
    }
}
