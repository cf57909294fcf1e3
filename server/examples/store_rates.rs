//! `cargo run --release --example store_rates -- 5 1000000 100000000 10000000`: the telemetry store on its two engines, beside
//! each engine without our code, in so many interleaved rounds of so many messages of five readings; then queries on so many readings in ClickHouse
//! and in the embedded store. The last line is JSON.
//!
//! Raw means: the same rows, prepared in memory, by the engine's own library on one connection (SQLite: one prepared
//! INSERT into a table with the same key, sorted, a transaction for each 65,536 rows; ClickHouse: the official client's
//! blocks of 125,000 rows in the Native format, into the same tables with their views).

use anyhow::{Context as _, Result};
use clickhouse::native::builder::BlockBuilder;
use muster_server::ingest::bench::{Blast, fill, store_all};
use muster_server::platform::clock::{Clock as _, ManualClock, SharedClock, SystemClock};
use muster_server::platform::db::Scope;
use muster_server::platform::telemetry::{
    Aggregate, Options, Policy, ReadingsQuery, TelemetryStore, clickhouse as remote, last_values,
};
use muster_services::ClickHouse;
use muster_wire::TenantId;
use rusqlite::Connection;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const DEVICES: u64 = 1_000;
const METRICS: [&str; 5] = ["cpu_pct", "memory_pct", "disk_pct", "temperature_c", "load"];
/// Rows of a raw transaction in SQLite, and of a raw block for ClickHouse.
const RAW_SQLITE_ROWS: usize = 65_536;
const RAW_CLICKHOUSE_ROWS: usize = 125_000;
const DAY_US: i64 = 86_400_000_000;
const HOUR_US: i64 = 3_600_000_000;
const DAYS: i64 = 30;
/// Times that each query is asked; the median counts.
const ASKED: usize = 9;
const DATABASE: &str = "fleet";
/// Queries are asked of a table at rest.
const MERGE_TIME_MAX: Duration = Duration::from_secs(120);

/// One row as both engines take it.
struct Raw {
    device: u64,
    metric: usize,
    ts: i64,
    seq: u64,
    value: f64,
}

fn raw_rows(messages: u64, now_us: i64) -> Vec<Raw> {
    let of = |at: u64| {
        (0..METRICS.len()).map(move |metric| {
            let seq = at / DEVICES + 1;
            let value = (seq as f64 * 0.37 + metric as f64 * 11.0) % 100.0;
            Raw { device: at % DEVICES, metric, ts: now_us + at as i64, seq, value }
        })
    };
    (0..messages).flat_map(of).collect()
}

fn sqlite_raw(dir: &Path, rows: &[Raw]) -> Result<f64> {
    let mut db = Connection::open(dir.join("raw.db"))?;
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 8192;
         CREATE TABLE reading (series_id INTEGER NOT NULL, ts INTEGER NOT NULL, queue_ref INTEGER NOT NULL,
         seq INTEGER NOT NULL, idx INTEGER NOT NULL, received_at INTEGER NOT NULL, value ANY NOT NULL,
         PRIMARY KEY (series_id, ts, queue_ref, seq, idx)) STRICT, WITHOUT ROWID",
    )?;
    let began = Instant::now();
    for rows in rows.chunks(RAW_SQLITE_ROWS) {
        let series = |row: &Raw| (row.device * 5 + row.metric as u64).cast_signed();
        let mut sorted: Vec<&Raw> = rows.iter().collect();
        sorted.sort_unstable_by_key(|row| (series(row), row.ts));
        let tx = db.transaction()?;
        let mut insert = tx.prepare("INSERT INTO reading VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
        for row in sorted {
            let key = (series(row), row.ts, row.device.cast_signed(), row.seq.cast_signed());
            insert.execute((key.0, key.1, key.2, key.3, row.metric as i64, row.ts, row.value))?;
        }
        drop(insert);
        tx.commit()?;
    }
    Ok(rows.len() as f64 / began.elapsed().as_secs_f64())
}

fn clickhouse_raw(
    runtime: &tokio::runtime::Runtime,
    server: &ClickHouse,
    rows: &[Raw],
    now_us: i64,
) -> Result<f64> {
    let client = clickhouse::Client::default()
        .with_url(format!("http://127.0.0.1:{}", server.port()))
        .with_database(DATABASE);
    let block = |rows: &[Raw]| -> Result<clickhouse::native::Block> {
        let mut block = BlockBuilder::new();
        block.upsert_column("tenant")?.add_all(rows.iter().map(|_| "raw")).map_err(failed)?;
        let devices: Vec<String> = rows.iter().map(|row| format!("dev-{:05}", row.device)).collect();
        block.upsert_column("device")?.add_all(devices.iter().map(String::as_str)).map_err(failed)?;
        block.upsert_column("metric")?.add_all(rows.iter().map(|row| METRICS[row.metric])).map_err(failed)?;
        block.upsert_column("ts")?.add_all(rows.iter().map(|row| row.ts)).map_err(failed)?;
        block.upsert_column("received_at")?.add_all(rows.iter().map(|_| now_us)).map_err(failed)?;
        block.upsert_column("kind")?.add_all(rows.iter().map(|_| 0_u8)).map_err(failed)?;
        block.upsert_column("number")?.add_all(rows.iter().map(|row| row.value)).map_err(failed)?;
        block.upsert_column("text")?.add_all(rows.iter().map(|_| "")).map_err(failed)?;
        block.upsert_column("queue_id")?.add_all(rows.iter().map(|row| row.device)).map_err(failed)?;
        block.upsert_column("class")?.add_all(rows.iter().map(|_| 1_u8)).map_err(failed)?;
        block.upsert_column("seq")?.add_all(rows.iter().map(|row| row.seq)).map_err(failed)?;
        block.upsert_column("idx")?.add_all(rows.iter().map(|row| row.metric as u32)).map_err(failed)?;
        block.upsert_column("batch")?.add_all(rows.iter().map(|_| 0_u64)).map_err(failed)?;
        block.upsert_column("retention_days")?.add_all(rows.iter().map(|_| 30_000_u16)).map_err(failed)?;
        Ok(block.build()?)
    };
    let blocks: Vec<_> = rows.chunks(RAW_CLICKHOUSE_ROWS).map(block).collect::<Result<_>>()?;
    let count = || -> Result<u64> {
        Ok(server.sql(DATABASE, "SELECT count() FROM readings WHERE tenant = 'raw'")?.parse()?)
    };
    let before = count()?;
    let began = Instant::now();
    runtime.block_on(async {
        for (at, block) in blocks.iter().enumerate() {
            let mut insert = client.insert_native("readings").with_setting("async_insert", "0");
            // As the store inserts. Without a token the blocks of the round before would be known, and thrown away.
            insert = insert.with_setting("insert_deduplication_token", format!("raw-{before}-{at}"));
            insert = insert.with_setting("deduplicate_blocks_in_dependent_materialized_views", "1");
            insert.write(block).await?;
            insert.end().await?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let took = began.elapsed().as_secs_f64();
    anyhow::ensure!(count()? == before + rows.len() as u64, "not all rows were taken");
    Ok(rows.len() as f64 / took)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}

fn on_clickhouse(server: &ClickHouse) -> Result<Options> {
    let url = server.url(DATABASE).parse().map_err(anyhow::Error::msg)?;
    let policy = Policy { default_days: 30_000, ..Policy::default() };
    Ok(Options { clickhouse: Some(remote::Options::at(url)), policy, ..Options::default() })
}

fn blast(messages: u64, options: Options) -> Result<Blast> {
    let dir = tempfile::tempdir()?;
    let clock: SharedClock = Arc::new(SystemClock);
    let log = fill(dir.path(), messages, DEVICES, &clock)?;
    let store = TelemetryStore::open(&dir.path().join("telemetry.db"), options)?;
    Ok(store_all(log, &store, clock)?)
}

fn scope() -> Scope {
    Scope::Tenant(TenantId::parse("bench").expect("it is a name"))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Medians in milliseconds: last values of every device, a day of one device raw, a month of it by the hour.
fn queries(runtime: &tokio::runtime::Runtime, store: &TelemetryStore, end_us: i64) -> Result<[f64; 3]> {
    let timed = |ask: &dyn Fn() -> Result<usize>, least: usize| -> Result<f64> {
        let mut took = Vec::new();
        for _ in 0..ASKED {
            let began = Instant::now();
            let found = ask()?;
            took.push(began.elapsed().as_secs_f64() * 1e3);
            anyhow::ensure!(found >= least, "{found} found, at least {least} expected");
        }
        Ok(median(took))
    };
    let last = || {
        let mut found = 0;
        for device in 0..DEVICES {
            let name = format!("dev-{device:05}");
            found += store.read_blocking(move |view| last_values(view, &scope(), &name))?.len();
        }
        Ok(found)
    };
    let range = |from_us, step, limit| ReadingsQuery {
        device: "dev-00500".into(),
        metric: "temperature_c".into(),
        from_us,
        to_us: end_us,
        step,
        limit,
    };
    let ask = |query: ReadingsQuery| -> Result<usize> {
        Ok(runtime.block_on(store.readings(&scope(), &query))?.points.len())
    };
    let day = || ask(range(end_us - DAY_US, None, 10_000));
    let month = || ask(range(end_us - DAYS * DAY_US, Some((HOUR_US, Aggregate::Avg)), 1_000));
    Ok([timed(&last, DEVICES as usize * 5)?, timed(&day, 1)?, timed(&month, DAYS as usize)?])
}

/// So many readings over a month, made by ClickHouse itself; what the store keeps here comes from one message a device.
fn clickhouse_queries(
    runtime: &tokio::runtime::Runtime,
    server: &ClickHouse,
    readings: u64,
) -> Result<[f64; 3]> {
    let clock: SharedClock = Arc::new(SystemClock);
    let dir = tempfile::tempdir()?;
    let log = fill(dir.path(), DEVICES, DEVICES, &clock)?;
    let store = TelemetryStore::open(&dir.path().join("telemetry.db"), on_clickhouse(server)?)?;
    store_all(log, &store, clock.clone())?;
    server.sql(DATABASE, "TRUNCATE TABLE readings")?;
    server.sql(DATABASE, "TRUNCATE TABLE readings_1m")?;
    server.sql(DATABASE, "TRUNCATE TABLE readings_1h")?;
    let (end_us, points) = (clock.now_us(), readings / (DEVICES * 5));
    let pace = DAYS * DAY_US / points as i64;
    let began = Instant::now();
    // Device by device, in the order of the key: as parts stand after their merges, without the merges' time.
    const SLICES: u64 = 20;
    let mut metrics = METRICS;
    metrics.sort_unstable();
    for slice in 0..SLICES {
        let (first, rows) = (slice * DEVICES / SLICES, DEVICES / SLICES * 5 * points);
        server.sql(
            DATABASE,
            &format!(
                "INSERT INTO readings (tenant, device, metric, ts, received_at, kind, number, text, queue_id, class, seq,
                 idx, batch, retention_days)
                 WITH {first} + intDiv(number, {points} * 5) AS of_device, intDiv(number, {points}) % 5 AS of_metric,
                 number % {points} AS point
                 SELECT 'bench', concat('dev-', leftPad(toString(of_device), 5, '0')),
                 arrayElement({metrics:?}, of_metric + 1), {end_us} - ({points} - point) * {pace} AS at, at + 100000, 0,
                 round(20 + 5 * sin(at / 1e10 + of_device % 7) + (cityHash64(number) % 100) / 200, 2), '', of_device, 1,
                 point + 1, of_metric, 0, 30000
                 FROM numbers({rows}) SETTINGS parallel_view_processing = 1, max_insert_threads = 2"
            )
            .replace('"', "'"),
        )?;
        if (slice + 1) % 4 == 0 {
            let filled = (slice + 1) * rows;
            println!(
                "ClickHouse: {filled} of {readings} readings after {:.0} s",
                began.elapsed().as_secs_f64()
            );
        }
    }
    merge(server)?;
    println!(
        "ClickHouse holds {} readings after {:.0} s",
        server.sql(DATABASE, "SELECT count() FROM readings")?,
        began.elapsed().as_secs_f64()
    );
    let bytes = server.sql(
        DATABASE,
        "SELECT table, sum(bytes_on_disk), sum(rows), count() FROM system.parts WHERE active AND database = 'fleet' GROUP BY table ORDER BY table",
    )?;
    println!("table, bytes on disk, rows, parts:\n{bytes}");
    let columns = server.sql(
        DATABASE,
        "SELECT name, compression_codec, round(data_compressed_bytes / (SELECT count() FROM readings), 3)
         FROM system.columns WHERE database = 'fleet' AND table = 'readings' AND data_compressed_bytes > 0",
    )?;
    println!("column of readings, codec, bytes a reading:\n{columns}");
    queries(runtime, &store, end_us)
}

/// Waits until ClickHouse has merged what it wants to merge.
fn merge(server: &ClickHouse) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < MERGE_TIME_MAX
        && server.sql(DATABASE, "SELECT count() FROM system.merges")? != "0"
    {
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// So many readings over a month, through the store: time goes with the log.
fn sqlite_queries(runtime: &tokio::runtime::Runtime, readings: u64) -> Result<[f64; 3]> {
    let dir = tempfile::tempdir()?;
    let policy = Policy { default_days: 30_000, ..Policy::default() };
    let store =
        TelemetryStore::open(&dir.path().join("telemetry.db"), Options { policy, ..Options::default() })?;
    let end_us = SystemClock.now_us();
    let clock = ManualClock::at(end_us - DAYS * DAY_US);
    let began = Instant::now();
    muster_server::ingest::bench::store_over_time(
        dir.path(),
        &store,
        &clock,
        (readings / 5, DEVICES),
        end_us,
    )?;
    println!("the embedded store holds {readings} readings after {:.0} s", began.elapsed().as_secs_f64());
    queries(runtime, &store, end_us)
}

/// Rates of one engine, round by round.
#[derive(Default)]
struct Rates {
    ours: Vec<f64>,
    raw: Vec<f64>,
    per_core: Vec<f64>,
}

impl Rates {
    fn json(&self) -> serde_json::Value {
        json!({ "rows_per_s": self.ours, "raw_rows_per_s": self.raw, "rows_per_core": self.per_core })
    }
}

fn main() -> Result<()> {
    let mut given = std::env::args().skip(1);
    let mut number = |default: u64, what: &'static str| -> Result<u64> {
        given.next().map_or(Ok(default), |text| text.parse().with_context(|| format!("{what}: {text}")))
    };
    let (rounds, messages) = (number(5, "rounds")?, number(1_000_000, "messages")?);
    let (remote_readings, embedded_readings) = (
        number(100_000_000, "readings in ClickHouse")?,
        number(10_000_000, "readings in the embedded store")?,
    );
    let server = ClickHouse::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let now_us = SystemClock.now_us();
    let rows = raw_rows(messages, now_us);
    let (mut sqlite, mut clickhouse) = (Rates::default(), Rates::default());
    // Makes the tables, and has every page and plan there before the first round.
    blast(messages / 10, on_clickhouse(&server)?)?;
    for round in 1..=rounds {
        let dir = tempfile::tempdir()?;
        sqlite.raw.push(sqlite_raw(dir.path(), &rows)?);
        let embedded = blast(messages, Options::default())?;
        sqlite.ours.push(embedded.readings as f64 / embedded.seconds);
        sqlite.per_core.push(embedded.readings as f64 / embedded.cpu_seconds);
        clickhouse.raw.push(clickhouse_raw(&runtime, &server, &rows, now_us)?);
        let remote = blast(messages, on_clickhouse(&server)?)?;
        clickhouse.ours.push(remote.readings as f64 / remote.seconds);
        clickhouse.per_core.push(remote.readings as f64 / remote.cpu_seconds);
        let at = sqlite.raw.len() - 1;
        println!(
            "round {round}: SQLite {:.0} rows/s, raw {:.0}, {:.0} per core; ClickHouse {:.0} rows/s, raw {:.0}",
            sqlite.ours[at], sqlite.raw[at], sqlite.per_core[at], clickhouse.ours[at], clickhouse.raw[at]
        );
    }
    let names = ["last_1000_devices", "day_of_a_device", "month_by_hour"];
    let of = |found: [f64; 3]| names.into_iter().zip(found).collect::<std::collections::BTreeMap<_, _>>();
    let queries = json!({
        "clickhouse": of(clickhouse_queries(&runtime, &server, remote_readings)?),
        "sqlite": of(sqlite_queries(&runtime, embedded_readings)?),
    });
    println!(
        "{}",
        json!({ "sqlite": sqlite.json(), "clickhouse": clickhouse.json(), "queries_ms": queries })
    );
    Ok(())
}
