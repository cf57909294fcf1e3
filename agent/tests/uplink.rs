//! The uplink against a server of a few packets: order, answers, repeats, reports, a clean end.

#![allow(clippy::unwrap_used, reason = "helpers of tests stand outside test functions")]

mod support;

use muster_agent::clock::AgentClock;
use muster_agent::config;
use muster_agent::metrics::Metrics;
use muster_agent::queue::{Bounds, Queue, QueueClass};
use muster_agent::supervisor::{StopSender, stop_pair};
use muster_agent::uplink::{Security, Settings, Uplink};
use muster_wire::{Birth, Credit, CreditRequest, DeviceId, DropReason, State, TenantId, UpClass};
use std::sync::Arc;
use std::time::Duration;
use support::{Answer, Broker, Seen};
use tokio::task::JoinHandle;

struct Bench {
    _dir: tempfile::TempDir,
    queue: Queue,
    metrics: Metrics,
    broker: Broker,
    stop: StopSender,
    task: Option<JoinHandle<()>>,
}

fn settings(port: u16) -> Settings {
    Settings {
        host: "127.0.0.1".into(),
        port,
        security: Security::fixed(None),
        tenant: TenantId::parse("acme").unwrap(),
        device: DeviceId::parse("press-7").unwrap(),
        token: None,
        keep_alive_s: 60,
        reconnect_delay: (Duration::from_millis(10), Duration::from_millis(50)),
        state_interval: Duration::from_secs(60),
        about: Birth { agent_version: "test".into(), ..Birth::default() },
    }
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bounds = Bounds::from_config(&config::Queue::default());
        let queue = Queue::open_dir(dir.path(), bounds, Arc::new(AgentClock::default())).unwrap();
        let (stop, _) = stop_pair();
        Self { _dir: dir, queue, metrics: Metrics::new(), broker: Broker::start().await, stop, task: None }
    }

    fn start(&mut self) {
        let (sender, stop) = stop_pair();
        let settings = Arc::new(settings(self.broker.port));
        let (clock, metrics) = (Arc::new(AgentClock::default()), self.metrics.clone());
        let uplink = Uplink::new(self.queue.clone(), clock, metrics, stop, settings);
        self.stop = sender;
        self.task = Some(tokio::spawn(async move { uplink.run().await.unwrap() }));
    }

    async fn put(&self, class: QueueClass, count: usize) -> u64 {
        let queue = self.queue.clone();
        let put = move || {
            let mut last = 0;
            for n in 0..count {
                last = queue.append(class, 7, &[u8::try_from(n % 256).unwrap()]).unwrap();
            }
            queue.wait_accepted(class, last).unwrap();
            last
        };
        tokio::task::spawn_blocking(put).await.unwrap()
    }

    async fn released(&self, marks: [u64; 2]) {
        let wait = async {
            while self.queue.released() != marks {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the marks do not move");
    }
}

#[tokio::test]
async fn birth_comes_first_then_records_and_the_end_is_clean() {
    let mut bench = Bench::new().await;
    bench.put(QueueClass::Telemetry, 3).await;
    bench.start();
    let broker = &mut bench.broker;
    assert_eq!(broker.next().await, Seen::Connect { will: true });
    let mut classes = Vec::new();
    while classes.len() < 4 {
        match broker.next().await {
            Seen::Publish { topic, class, seq, body, .. } => {
                assert_eq!(topic, format!("muster/acme/press-7/up/{}", class.as_str()));
                if class == UpClass::Birth {
                    let birth = Birth::decode(&body).unwrap();
                    assert_eq!((birth.agent_version.as_str(), birth.queues.len()), ("test", 2));
                    assert_eq!((birth.queues[0].released, birth.queues[0].next), (1, 4));
                }
                classes.push((class, seq));
            }
            Seen::Subscribe { filter } => assert_eq!(filter, "muster/acme/press-7/dn/+"),
            other => panic!("{other:?}"),
        }
    }
    let telemetry = |seq| (UpClass::Telemetry, seq);
    assert_eq!(classes, [(UpClass::Birth, 0), telemetry(1), telemetry(2), telemetry(3)]);
    bench.released([4, 1]).await;
    bench.stop.stop();
    // The last marks are said before leaving.
    let (_, body) = bench.broker.next_of(UpClass::State).await;
    assert_eq!(State::decode(&body).unwrap().queues[0].released, 4);
    assert_eq!(bench.broker.next().await, Seen::Disconnect);
    bench.task.take().unwrap().await.unwrap();
}

#[tokio::test]
async fn what_is_unanswered_is_sent_again_under_the_same_number() {
    let mut bench = Bench::new().await;
    bench.broker.plan(&[Answer::Hang, Answer::Reason(0), Answer::Close]);
    bench.put(QueueClass::Event, 3).await;
    bench.start();
    let mut seqs = Vec::new();
    for _ in 0..3 {
        seqs.push(bench.broker.next_of(UpClass::Event).await.0);
    }
    assert_eq!(seqs, [1, 2, 3]);
    let (again, _) = bench.broker.next_of(UpClass::Event).await;
    assert_eq!(again, 1);
    bench.released([1, 4]).await;
}

#[tokio::test]
async fn a_refusal_for_now_is_repeated_and_one_for_good_is_dropped_and_reported() {
    let mut bench = Bench::new().await;
    bench.broker.plan(&[Answer::Reason(0x97), Answer::Reason(0x99)]);
    bench.put(QueueClass::Telemetry, 2).await;
    bench.start();
    let mut seqs = Vec::new();
    for _ in 0..3 {
        seqs.push(bench.broker.next_of(UpClass::Telemetry).await.0);
    }
    assert_eq!(seqs, [1, 2, 1], "1 is kept, 2 is not");
    bench.released([3, 1]).await;
    let (_, body) = bench.broker.next_of(UpClass::State).await;
    let drops = State::decode(&body).unwrap().drops;
    assert_eq!(drops.len(), 1);
    assert_eq!((drops[0].first, drops[0].last, drops[0].reason), (2, 2, DropReason::RefusedPayload));
    let confirmed = async {
        while bench.queue.has_drops() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), confirmed).await.expect("the drop is not confirmed");
}

#[tokio::test]
async fn live_records_pass_the_backlog() {
    let mut bench = Bench::new().await;
    let backlog = bench.put(QueueClass::Telemetry, 1000).await;
    bench.broker.close_gate();
    bench.start();
    for _ in 0..30 {
        bench.broker.next_of(UpClass::Telemetry).await;
    }
    // The window is full of backlog; a live record waits for the next free place only.
    let live = bench.put(QueueClass::Telemetry, 1).await;
    assert_eq!(live, backlog + 1);
    bench.broker.open_gate();
    let mut before = 0;
    while bench.broker.next_of(UpClass::Telemetry).await.0 != live {
        before += 1;
    }
    assert!(before <= 2, "{before} backlog records went before the live one");
    bench.released([live + 1, 1]).await;
}

#[tokio::test]
async fn the_window_holds_with_a_silent_server() {
    let mut bench = Bench::new().await;
    bench.broker.plan(&vec![Answer::Hang; 200]);
    bench.put(QueueClass::Telemetry, 200).await;
    bench.start();
    for _ in 0..30 {
        bench.broker.next_of(UpClass::Telemetry).await;
    }
    let more =
        tokio::time::timeout(Duration::from_millis(300), bench.broker.next_of(UpClass::Telemetry)).await;
    assert!(more.is_err(), "a thirty-first record came");
    assert_eq!(bench.queue.released(), [1, 1]);
}

/// The packet that tells a device about credit.
fn credit(epoch: u64, records: u32) -> Vec<u8> {
    let topic = b"muster/acme/press-7/dn/credit";
    let payload = Credit { epoch, records, reconnect_spread_ms: 0 }.encode();
    let rest = [&[0, u8::try_from(topic.len()).unwrap()], &topic[..], &[0], &payload].concat();
    [&[0x30, u8::try_from(rest.len()).unwrap()], &rest[..]].concat()
}

impl Bench {
    /// The next request for credit, and the telemetry that came before it.
    async fn asked(&mut self) -> (u64, Vec<u64>) {
        let mut before = Vec::new();
        loop {
            match self.broker.next().await {
                Seen::Publish { topic, class: UpClass::Credit, seq, body, .. } => {
                    assert_eq!((topic.as_str(), seq), ("muster/acme/press-7/up/credit", 0));
                    return (CreditRequest::decode(&body).unwrap().backlog, before);
                }
                Seen::Publish { class: UpClass::Telemetry, seq, .. } => before.push(seq),
                _ => {}
            }
        }
    }

    /// Telemetry as it comes, up to a number.
    async fn telemetry_upto(&mut self, last: u64) -> Vec<u64> {
        let mut seqs = Vec::new();
        while seqs.last() != Some(&last) {
            seqs.push(self.broker.next_of(UpClass::Telemetry).await.0);
        }
        seqs
    }
}

#[tokio::test]
async fn under_control_live_records_go_at_once_and_the_backlog_as_credit_comes() {
    let mut bench = Bench::new().await;
    bench.broker.after_suback.lock().unwrap().push_back(credit(7, 0));
    bench.put(QueueClass::Telemetry, 100).await;
    bench.start();
    assert_eq!(bench.asked().await, (100, vec![]), "nothing is sent before");
    assert_eq!(bench.put(QueueClass::Telemetry, 1).await, 101);
    assert_eq!(bench.telemetry_upto(101).await, [101], "live before all of the backlog");
    bench.broker.send(credit(7, 40));
    let (backlog, sent) = bench.asked().await;
    assert!((20..=30).contains(&sent.len()), "asks when half is spent: {sent:?}");
    assert_eq!(backlog, 60, "beyond what there is credit for");
    let rest = bench.telemetry_upto(40).await;
    assert_eq!([sent, rest].concat(), (1..=40).collect::<Vec<_>>());
    bench.put(QueueClass::Telemetry, 1).await;
    assert_eq!(bench.telemetry_upto(102).await, [102], "no credit is left");
    bench.broker.send(credit(7, 60));
    assert_eq!(bench.telemetry_upto(100).await, (41..=100).collect::<Vec<_>>());
    bench.released([103, 1]).await;
    assert!(bench.metrics.received.get() >= 3);
}

#[tokio::test]
async fn credit_is_not_carried_over_to_another_connection() {
    let mut bench = Bench::new().await;
    bench.broker.after_suback.lock().unwrap().extend([credit(7, 50), credit(8, 0)]);
    bench.broker.plan(&[Answer::Hang, Answer::Close]);
    bench.put(QueueClass::Telemetry, 10).await;
    bench.start();
    while bench.broker.next().await != Seen::Lost {}
    assert_eq!(bench.asked().await, (10, vec![]));
    bench.broker.send(credit(8, 10));
    assert_eq!(bench.telemetry_upto(10).await, (1..=10).collect::<Vec<_>>());
    bench.released([11, 1]).await;
}

#[tokio::test]
async fn a_request_that_nobody_answers_is_repeated() {
    let mut bench = Bench::new().await;
    bench.broker.after_suback.lock().unwrap().push_back(credit(7, 0));
    bench.put(QueueClass::Telemetry, 3).await;
    bench.start();
    for _ in 0..2 {
        assert_eq!(bench.asked().await, (3, vec![]));
    }
    bench.broker.send(credit(7, 3));
    bench.released([4, 1]).await;
}

/// A message of QoS 0 that takes so many bytes as a packet.
fn message(bytes: usize) -> Vec<u8> {
    let rest = bytes - 4;
    let length = |at: usize| u8::try_from((rest >> (7 * at)) & 0x7f).unwrap();
    let mut packet = vec![0x30, length(0) | 0x80, length(1) | 0x80, length(2), 0, 1, b't', 0];
    packet.resize(bytes, b'x');
    packet
}

#[tokio::test]
async fn a_message_of_the_largest_size_is_taken_and_a_larger_one_ends_the_connection() {
    const INCOMING_BYTES_MAX: usize = 256 * 1024;
    let mut bench = Bench::new().await;
    let after = [message(INCOMING_BYTES_MAX + 1), message(INCOMING_BYTES_MAX)];
    bench.broker.after_suback.lock().unwrap().extend(after);
    bench.start();
    // The client says that the packet is too large, and ends the connection.
    while bench.broker.next().await != Seen::Disconnect {}
    assert_eq!(bench.metrics.received.get(), 0);
    while !matches!(bench.broker.next().await, Seen::Subscribe { .. }) {}
    let seq = bench.put(QueueClass::Telemetry, 1).await;
    bench.released([seq + 1, 1]).await;
    let received = async {
        while bench.metrics.received.get() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), received).await.expect("the message is not taken");
    assert_eq!((bench.metrics.disconnects.get(), bench.metrics.received.get()), (1, 1));
}
