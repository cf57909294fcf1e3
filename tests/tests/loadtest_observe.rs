//! What `muster-loadtest` sees of a real server, and how it judges one: killed, frozen, with a store that cannot commit.

use muster_loadtest::mqtt::{self, Connect, Incoming, Version};
use muster_loadtest::observe::oracle::{self, Expected, ExpectedAlarms, ExpectedDevice, Verdict};
use muster_loadtest::observe::outage::StoreOutage;
use muster_loadtest::observe::probe::{AlertProbe, AlertWatch, StoredProbe, StoredWatch};
use muster_loadtest::observe::provision::{self, Login, WrittenRule, alarm_value};
use muster_loadtest::observe::sample::{Sampler, Second};
use muster_loadtest::observe::scrape::{LogMarks, metric};
use muster_loadtest::observe::server::{ManagedServer, ServerOptions};
use muster_loadtest::observe::{Access, http::Client};
use muster_loadtest::payload::{Payload, RecordId, queue_id, serial_value};
use muster_server::platform::clock::{Clock as _, SystemClock};
use muster_tests::process::binary;
use muster_tests::{DEADLINE, wait_for};
use muster_wire::{Envelope, QueueId, Reading, Telemetry, UpClass, Value};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// A day in November 2023.
const NOW_US: i64 = 1_700_000_000_000_000;

fn start(dir: &Path) -> ManagedServer {
    let set = vec![("event_log.segment_bytes".to_owned(), "1048576".to_owned())];
    let options = ServerOptions { binary: binary("muster-server"), dir: dir.to_owned(), set, plain: true };
    ManagedServer::start(options).expect("a server starts")
}

/// A device that sends one message at a time, and each until it is acknowledged.
struct Device {
    tenant: String,
    name: String,
    number: u32,
    token: String,
    server: SocketAddr,
    stream: Option<TcpStream>,
    queue: u64,
    seq: u32,
}

impl Device {
    /// Sends a record and waits for its PUBACK, over as many connections as it takes.
    fn send(&mut self, payload: &[u8]) {
        wait_for("a PUBACK", || self.try_send(payload));
    }

    fn try_send(&mut self, payload: &[u8]) -> Result<(), String> {
        let outcome = self.exchange(payload);
        if outcome.is_err() {
            self.stream = None;
        }
        outcome
    }

    fn exchange(&mut self, payload: &[u8]) -> Result<(), String> {
        let mut packet = Vec::new();
        if self.stream.is_none() {
            let stream = TcpStream::connect(self.server).map_err(|error| error.to_string())?;
            stream.set_read_timeout(Some(Duration::from_secs(10))).map_err(|error| error.to_string())?;
            self.stream = Some(stream);
            let user = format!("{}/{}", self.tenant, self.name);
            let login = Some((user.as_str(), self.token.as_str()));
            Connect { client_id: &self.name, login, keep_alive_s: 60 }.encode(Version::V5, &mut packet);
            self.ask(&packet, |answer| matches!(answer, Incoming::ConnAck { reason: 0, .. }))?;
        }
        packet.clear();
        let topic = format!("muster/{}/{}/up/telemetry", self.tenant, self.name);
        mqtt::publish(Version::V5, &topic, Some(1), payload, &mut packet);
        self.ask(
            &packet,
            |answer| matches!(answer, Incoming::PubAck { packet_id: 1, reason } if *reason < 0x80),
        )
    }

    /// Sends a packet; an error where its answer is not the expected one.
    fn ask(&mut self, packet: &[u8], is_expected: impl FnOnce(&Incoming<'_>) -> bool) -> Result<(), String> {
        let stream = self.stream.as_mut().ok_or("no connection")?;
        stream.write_all(packet).map_err(|error| error.to_string())?;
        let mut bytes = Vec::new();
        loop {
            let decoded = mqtt::decode(Version::V5, &bytes).map_err(|error| error.to_string())?;
            if let Some((answer, _)) = decoded {
                return if is_expected(&answer) { Ok(()) } else { Err(format!("{answer:?}")) };
            }
            let mut more = [0; 256];
            match stream.read(&mut more) {
                Ok(0) => return Err("closed".into()),
                Ok(count) => bytes.extend_from_slice(&more[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Sends the next serial, measured then.
    fn serial(&mut self, measured_at_us: i64) {
        self.seq += 1;
        let id = RecordId { queue_id: queue_id(self.queue), device: self.number, seq: self.seq };
        self.send(Payload::new().record(id, measured_at_us));
    }

    /// Sends the next record with one reading of the metric `alarm`, measured now.
    fn alarm(&mut self, value: f64, measured_at_us: i64) {
        self.seq += 1;
        let reading = Reading { metric: "alarm".into(), value: Value::Number(value), offset_us: None };
        let body = Telemetry { readings: vec![reading] }.encode();
        let (queue_id, seq) = (QueueId(queue_id(self.queue)), u64::from(self.seq));
        self.send(
            &Envelope { class: UpClass::Telemetry, queue_id, seq, measured_at_us, body: &body }.encode(),
        );
    }

    fn expected(&self, tenant: usize) -> ExpectedDevice {
        let accepted = if self.seq > 0 { vec![1..=self.seq] } else { vec![] };
        ExpectedDevice { number: self.number, tenant, name: self.name.clone(), accepted, maybe: vec![] }
    }
}

fn alarm_rule(server: &ManagedServer, access: &Access, device: &str) -> WrittenRule {
    let devices = [device.to_owned()];
    provision::alarm_rule(server.handle(), access, "alarm", "alarm", &devices)
        .expect("the rule can be written")
}

/// A run before: it leaves an alert open whose excursion has the number of the next run's first.
fn earlier_run(server: &ManagedServer, access: &Access, device: &mut Device) -> WrittenRule {
    let rule = alarm_rule(server, access, &device.name);
    let alerts = AlertProbe::start(server.handle(), access, &rule).expect("the live stream opens");
    alerts.watch(AlertWatch { device: device.name.clone(), excursion: 1, intended: Instant::now() });
    device.alarm(alarm_value(1), SystemClock.now_us());
    wait_for("the earlier run's alert", || {
        if alerts.take().is_empty() { Err("it is not seen".to_owned()) } else { Ok(()) }
    });
    rule
}

/// Makes devices with tokens; their numbers go on over tenants.
fn devices(server: &ManagedServer, access: &Access, first: u32, count: u32) -> Vec<Device> {
    let names: Vec<String> = (first..first + count).map(|number| format!("d{number}")).collect();
    let tokens = provision::devices(server.handle(), access, &names, Login::Token, &|_| {});
    let tokens = tokens.expect("devices can be made").into_iter().flatten();
    let plain = server.addresses().mqtt_plain.expect("it listens without TLS");
    let device = |((number, name), token)| Device {
        tenant: access.tenant.clone(),
        name,
        number,
        token,
        server: plain,
        stream: None,
        queue: u64::from(number),
        seq: 0,
    };
    (first..).zip(names).zip(tokens).map(device).collect()
}

fn tenants(server: &ManagedServer) -> Vec<Access> {
    let names = ["acme", "birch"].map(str::to_owned);
    provision::tenants(server.handle(), server.owner(), &names).expect("tenants can be made")
}

fn judge(server: &ManagedServer, tenants: &[Access], expected: &Expected) -> Verdict {
    oracle::judge(server.handle(), tenants, expected, DEADLINE, &|_| {}).expect("the ledger can be read")
}

fn broken(verdict: &Verdict) -> Vec<(&str, &str)> {
    let broken = verdict.invariants.iter().filter(|invariant| !invariant.held);
    broken.map(|invariant| (invariant.name.as_str(), invariant.detail.as_str())).collect()
}

fn marks(server: &ManagedServer) -> LogMarks {
    LogMarks::of(&mut Client::new(server.handle(), "")).expect("the server tells its metrics")
}

#[test]
fn a_server_that_is_killed_is_judged_to_the_last_serial() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let mut server = start(dir.path());
    let access = tenants(&server);
    // Once more: the password is changed already, the tenants and a device are there.
    assert_eq!(tenants(&server).len(), 2);
    devices(&server, &access[0], 0, 1);
    let mut fleet = devices(&server, &access[0], 0, 3);
    fleet.extend(devices(&server, &access[1], 3, 2));
    let alarm = "d2".to_owned();
    let earlier = earlier_run(&server, &access[0], &mut fleet[2]);
    let rule = alarm_rule(&server, &access[0], &alarm);
    assert_eq!((&rule.id, rule.version), (&earlier.id, earlier.version + 1));
    let alerts = AlertProbe::start(server.handle(), &access[0], &rule).expect("the live stream opens");
    let addresses = server.addresses();
    let mut excursions = 0;
    for round in 0..4 {
        if round > 0 {
            server.kill();
            assert_eq!((server.pid(), server.handle().facts().pid), (None, None));
            server.start_again().expect("it starts again");
            assert_eq!((server.addresses(), server.handle().facts().pid), (addresses, server.pid()));
        }
        for number in [0, 1, 3, 4] {
            // Many at one time, in 1970, far ahead, and as clocks go.
            for time in [NOW_US, NOW_US, 7, 7, 4 * NOW_US, NOW_US + i64::from(round)] {
                fleet[number].serial(time);
            }
        }
        for _ in 0..3 {
            excursions += 1;
            let watch = AlertWatch { device: alarm.clone(), excursion: excursions, intended: Instant::now() };
            alerts.watch(watch);
            // Data of today: older would open historical alerts.
            let now = SystemClock.now_us();
            for value in [alarm_value(excursions), alarm_value(excursions), 0.0] {
                fleet[2].alarm(value, now);
            }
        }
    }
    let mut seen = 0;
    wait_for("the probe to see every alert", || {
        seen += alerts.take().len();
        if seen == 12 { Ok(()) } else { Err(format!("{seen} of 12")) }
    });
    assert_eq!(alerts.finish().histogram.len(), 12);

    let mut expected = Expected::default();
    expected.devices = [0, 1, 3, 4].map(|at| fleet[at].expected(at / 3)).to_vec();
    let (opened, device) = (vec![1..=excursions], alarm);
    expected.alarms = vec![ExpectedAlarms { tenant: 0, device, rule, opened, maybe: vec![] }];
    let verdict = judge(&server, &access, &expected);
    assert_eq!(broken(&verdict), []);
    let (counts, ledger) = (&verdict.counts, &verdict.ledger);
    assert_eq!((counts.accepted, counts.found), (96, 96));
    assert_eq!((ledger.accepted, ledger.stored, ledger.lost), (133, 133, 0));
    assert_faults_are_found(&server, &access, &mut fleet, expected);
    server.stop().expect("it stops in order");
}

/// Each thing that is not as it was acknowledged is told; the server is right, so what is expected is bent.
fn assert_faults_are_found(
    server: &ManagedServer,
    access: &[Access],
    fleet: &mut [Device],
    mut expected: Expected,
) {
    // The same serials in another queue are copies that the server cannot know.
    fleet[3].queue += 1_000;
    fleet[3].seq = 4;
    fleet[3].serial(NOW_US);
    // A device that sends another tenant's serial.
    let id = RecordId { queue_id: queue_id(5_000), device: 0, seq: 1 };
    fleet[4].send(Payload::new().record(id, NOW_US));
    expected.devices[0].accepted = vec![1..=26];
    expected.devices[1].accepted = vec![2..=24];
    expected.alarms[0].opened = vec![1..=11, 13..=13];
    let verdict = judge(server, access, &expected);
    let counts = &verdict.counts;
    assert_eq!(
        (counts.missing.count, &counts.missing.examples[..]),
        (2, &["d0/25".into(), "d0/26".into()][..])
    );
    assert_eq!((counts.unexpected.count, &counts.unexpected.examples[..]), (1, &["d1/1".into()][..]));
    assert_eq!((counts.duplicated.count, &counts.duplicated.examples[..]), (1, &["d3/5".into()][..]));
    assert_eq!((counts.foreign.count, &counts.foreign.examples[..]), (1, &["d4 has d0/1".into()][..]));
    let names: Vec<_> = broken(&verdict).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["stored_exactly_once", "nothing_unexpected", "tenants_apart", "alerts_once"]);
    let detail = &verdict.invariants[5].detail;
    assert!(
        detail.contains("1 without (d2/13)") && detail.contains("1 without an excursion (d2/12)"),
        "{detail}"
    );
    assert!(
        verdict.invariants[4]
            .detail
            .starts_with("24 requests with another tenant's token, 0 not answered by 404;")
    );
}

#[test]
fn a_store_that_cannot_commit_holds_nobody_up_and_catches_up() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let server = start(dir.path());
    let access = [server.access().clone()];
    let mut fleet = devices(&server, &access[0], 0, 1);
    let probe = StoredProbe::start(server.handle(), &access[0]).expect("the probe starts");
    let watch = |seq: u32, measured_at_us| StoredWatch {
        device: "d0".into(),
        metric: "serial".into(),
        value: serial_value(0, seq) as f64,
        measured_at_us,
        intended: Instant::now(),
    };
    probe.watch(watch(1, NOW_US));
    fleet[0].serial(NOW_US);
    let mut seen = Vec::new();
    wait_for("the first to be stored", || {
        seen.extend(probe.take());
        if seen.len() == 1 { Ok(()) } else { Err("not yet".to_owned()) }
    });
    wait_for("the log to be short", || match marks(&server).depth() {
        Some(0..=60) => Ok(()),
        depth => Err(format!("{depth:?}")),
    });

    let outage = StoreOutage::begin(&server.data_dir()).expect("the lock can be had");
    let before = marks(&server);
    probe.watch(watch(2, NOW_US + 1));
    // Every one of them is acknowledged.
    for number in 1..=200 {
        fleet[0].serial(NOW_US + number);
    }
    let failures = || {
        let text = Client::new(server.handle(), "")
            .call("GET", "/metrics", None)
            .map_err(|error| error.to_string())?;
        metric(&text.body, "store_failures").ok_or(text.body)
    };
    wait_for("the store to fail", || match failures()? {
        count if count >= 1.0 => Ok(()),
        count => Err(format!("{count} failures")),
    });
    let during = marks(&server);
    assert_eq!(during.stored, before.stored, "nothing is stored while the lock is held");
    assert!(during.durable >= before.durable.map(|durable| durable + 200), "{before:?} {during:?}");
    assert_eq!(probe.take(), []);
    outage.end().expect("the lock is let go");

    wait_for("the second to be stored", || {
        seen.extend(probe.take());
        if seen.len() == 2 { Ok(()) } else { Err("not yet".to_owned()) }
    });
    let result = probe.finish();
    assert_eq!((result.histogram.len(), result.given_up, result.not_watched, result.waiting), (2, 0, 0, 0));
    let expected = Expected { devices: vec![fleet[0].expected(0)], alarms: vec![] };
    let verdict = judge(&server, &access, &expected);
    assert_eq!((broken(&verdict), verdict.counts.found), (vec![], 201));
}

#[test]
fn a_frozen_and_a_killed_server_have_no_numbers_and_both_come_back() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let mut server = start(dir.path());
    let access = server.access().clone();
    let mut fleet = devices(&server, &access, 0, 1);
    let sampler = Sampler::start(server.handle(), vec![]).expect("this machine tells its load");
    let next = |what: &str, is_it: &dyn Fn(&Second) -> bool| {
        wait_for(what, || {
            let seconds = sampler.take();
            let found = seconds.iter().find(|second| is_it(second)).cloned();
            found.ok_or_else(|| format!("{:?}", seconds.last()))
        })
    };
    fleet[0].serial(NOW_US);
    let second = next("a full sample", &|second| second.log.durable.is_some());
    assert!(second.server_rss_bytes > Some(1 << 20) && second.server_files > Some(10), "{second:?}");

    server.freeze().expect("it can be frozen");
    let second = next("a sample without an answer", &|second| second.log.durable.is_none());
    assert!(second.server_rss_bytes.is_some(), "it is there, and silent: {second:?}");
    server.thaw().expect("it can be thawed");
    fleet[0].serial(NOW_US + 1);
    next("an answer", &|second| second.log.durable.is_some());

    server.kill();
    let second = next("a sample without a server", &|second| second.server_rss_bytes.is_none());
    assert_eq!((second.server_cpu_cores, second.log), (None, LogMarks::default()));
    server.start_again().expect("it starts again");
    let second = next("a sample of the new process", &|second| second.log.durable.is_some());
    assert!(second.server_cpu_cores.is_some_and(|cores| cores >= 0.0), "{second:?}");
    let cost = sampler.cost().expect("this machine tells its load");
    assert!(cost.server_cpu_cores > Some(0.0) && cost.stored_bytes > Some(0), "{cost:?}");
    fleet[0].serial(NOW_US + 2);
    // A server that is frozen can be stopped, too.
    server.freeze().expect("it can be frozen");
    server.stop().expect("it stops in order");
    assert_eq!(server.pid(), None);
}
