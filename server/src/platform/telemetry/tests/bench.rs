//! A store of a test's own, on either engine.

use super::*;

/// `clickhouse` in this variable: readings and events go there.
const ENGINE: &str = "MUSTER_TEST_TELEMETRY";
/// The database that Muster makes on a test's server.
pub(in super::super) const DATABASE: &str = "fleet";

pub(in super::super) struct Bench {
    pub(in super::super) dir: tempfile::TempDir,
    pub(in super::super) store: TelemetryStore,
    /// Sends to a server that is the test's own.
    pub(in super::super) remote: Option<(muster_services::ClickHouse, Mutex<clickhouse::Sender>)>,
    /// Connections live on it.
    runtime: tokio::runtime::Runtime,
    pub(in super::super) next: u64,
    pub(in super::super) now: i64,
}

impl Bench {
    pub(in super::super) fn new() -> Self {
        match std::env::var(ENGINE).as_deref() {
            Ok("clickhouse") => Self::on_clickhouse(Faults::none()),
            Ok("sqlite") | Err(_) => Self::embedded(),
            Ok(other) => panic!("{ENGINE} is {other:?}, must be sqlite or clickhouse"),
        }
    }

    /// For tests of the embedded engine's own tables.
    pub(in super::super) fn embedded() -> Self {
        Self::open(Options::default(), None)
    }

    pub(in super::super) fn on_clickhouse(faults: Faults) -> Self {
        let server = muster_services::ClickHouse::start().unwrap();
        let url = server.url(DATABASE).parse().unwrap();
        // The tests' time is long ago: ClickHouse would delete what is past its time by its own clock.
        let policy = Policy { default_days: 30_000, ..Policy::default() };
        let clickhouse = Some(clickhouse::Options::at(url));
        Self::open(Options { clickhouse, policy, faults, ..Options::default() }, Some(server))
    }

    fn open(options: Options, server: Option<muster_services::ClickHouse>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { sync: sqlite::Sync::OffForTrials, ..options };
        let store = TelemetryStore::open(&dir.path().join("telemetry.db"), options).unwrap();
        store.begin(LogSpan { epoch: EPOCH, first: 1, next: 1 }, NOON).unwrap();
        store.sync().unwrap();
        let remote = server.map(|server| (server, Mutex::new(store.sender().unwrap().unwrap())));
        if let Some((_, sender)) = &remote {
            // Makes the tables.
            assert!(!sender.lock().unwrap().send_next().unwrap());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { dir, store, remote, runtime, next: 1, now: NOON }
    }

    pub(in super::super) fn sender(&self) -> MutexGuard<'_, clickhouse::Sender> {
        self.remote.as_ref().unwrap().1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in super::super) fn wait<T>(&self, answer: impl Future<Output = T>) -> T {
        self.runtime.block_on(answer)
    }

    /// Sends all that is flushed, where there is somebody to send it to.
    pub(in super::super) fn send(&self) {
        self.store.sync().unwrap();
        if self.remote.is_some() {
            while self.sender().send_next().unwrap() {}
            assert_eq!(self.store.outbox().unwrap(), clickhouse::Outbox::default());
        }
    }

    pub(in super::super) fn batch(&self, messages: &[Message]) -> RawBatch {
        self.batch_of("acme", messages)
    }

    pub(super) fn batch_of(&self, tenant: &str, messages: &[Message]) -> RawBatch {
        let mut batch = RawBatch::new(EPOCH, self.next);
        for message in messages {
            batch.push(&LogRecord {
                position: batch.next,
                received_at_us: self.now,
                kind: Kind::Message,
                tenant,
                device: message.device,
                class: message.class.number(),
                qos: 1,
                origin: message.origin,
                measured_at_us: message.measured_at,
                body: &message.body,
            });
            batch.next += 1;
        }
        batch
    }

    pub(in super::super) fn write(&mut self, messages: &[Message]) -> StoredBatch {
        self.write_of("acme", messages)
    }

    pub(super) fn write_of(&mut self, tenant: &str, messages: &[Message]) -> StoredBatch {
        let batch = self.batch_of(tenant, messages);
        self.next = batch.next;
        self.store.apply(batch, true).unwrap()
    }

    /// Asks before and after the memtable is flushed: nobody is to see the difference.
    pub(super) fn read<T: Send + PartialEq + std::fmt::Debug + 'static>(
        &self,
        query: impl Fn(&mut View<'_, '_>, &Scope) -> Result<T, DbError> + Clone + Send + 'static,
    ) -> T {
        self.always(|| {
            let query = query.clone();
            self.store.read_blocking(move |view| query(view, &acme())).unwrap()
        })
    }

    /// Asks before and after the flush, and once all is sent.
    fn always<T: PartialEq + std::fmt::Debug>(&self, ask: impl Fn() -> T) -> T {
        let before = ask();
        self.store.flush_all().unwrap();
        assert_eq!(before, ask(), "before the flush, and after");
        self.send();
        assert_eq!(before, ask(), "before it was sent, and after");
        before
    }

    pub(in super::super) fn readings(&self, query: &ReadingsQuery) -> Points {
        self.always(|| self.wait(self.store.readings(&acme(), query)).unwrap())
    }

    pub(super) fn events(&self, query: &EventQuery) -> Vec<EventRow> {
        self.always(|| self.wait(self.store.events(&acme(), query)).unwrap())
    }

    pub(super) fn totals(&self) -> Totals {
        self.read(totals)
    }

    pub(in super::super) fn values(&self, device: &str, metric: &str) -> Vec<Option<Value>> {
        self.readings(&query_of(device, metric)).points.into_iter().map(|point| point.value).collect()
    }

    pub(super) fn count(&self, table: &'static str) -> i64 {
        self.store.flush_all().unwrap();
        let sql = format!("SELECT count(*) FROM {table}");
        self.store.db().read_blocking(move |tx| tx.query_one(&sql, &[], |row| row.get::<i64>(0))).unwrap()
    }
}
