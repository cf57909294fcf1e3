//! `cargo run --release --example codec_sizes`: bytes a reading takes in ClickHouse by codec and by sort order, on five million
//! readings of a thousand devices: a temperature with two decimals, a noisy f32, a pressure in steps of ten, a load in whole
//! percent that changes every ten seconds, a counter; once a second with 20 ms of jitter, received 15 to 24 s later. Then how long
//! ClickHouse takes to find the newest value of each five seconds of a series, kept in two ways.

use anyhow::Result;
use muster_services::ClickHouse;
use std::time::Instant;

const ROWS: f64 = 5e6;
const SOURCE: &str = "INSERT INTO source SELECT 'acme', concat('pump-', leftPad(toString(d), 5, '0')),
    arrayElement(['temperature', 'vibration', 'pressure', 'load', 'counter'], m + 1),
    1763800000000000 + p * 1000000 + cityHash64(d, p) % 20000 AS at, at + 15000000 + cityHash64(d, p, 1) % 9000000,
    1763800000000000 + intDiv(p + d % 64, 30) * 30000000, cityHash64(d), p, m,
    multiIf(m = 0, round(20 + 5 * sin(p / 300 + d) + (cityHash64(d, p, m) % 100) / 200, 2),
        m = 1, toFloat64(toFloat32((cityHash64(d, p, m) % 1000000) / 1e6)),
        m = 2, 101325 + round((cityHash64(d, p, m) % 100) / 10), m = 3, cityHash64(d, intDiv(p, 10), m) % 101, p)
    FROM (SELECT number % 1000 AS d, intDiv(number, 1000) % 5 AS m, intDiv(number, 5000) AS p FROM numbers(5000000))";
/// Column, type, the codecs that are tried; `=` marks the one that the schema has.
const COLUMNS: [(&str, &str, &[&str]); 8] = [
    ("device", "String", &["=LZ4", "ZSTD(1)"]),
    ("ts", "Int64", &["=Delta, ZSTD(1)", "DoubleDelta, ZSTD(1)", "T64, ZSTD(1)", "ZSTD(1)", "Delta, LZ4"]),
    ("received_at", "Int64", &["=Delta, ZSTD(1)", "DoubleDelta, ZSTD(1)", "T64, ZSTD(1)", "ZSTD(1)"]),
    (
        "number",
        "Float64",
        &["=Delta, ZSTD(1)", "Gorilla, ZSTD(1)", "FPC(12), ZSTD(1)", "ZSTD(1)", "ZSTD(3)", "Gorilla, LZ4"],
    ),
    ("queue_id", "UInt64", &["=ZSTD(1)", "Delta, ZSTD(1)"]),
    ("seq", "UInt64", &["=DoubleDelta, ZSTD(1)", "Delta, ZSTD(1)"]),
    ("idx", "UInt16", &["=ZSTD(1)", "Delta, ZSTD(1)"]),
    ("batch", "UInt64", &["=Delta, ZSTD(1)", "ZSTD(1)"]),
];
/// How a rollup may keep the newest value; `=` marks the schema's.
const NEWEST: [(&str, &str); 2] = [
    ("argMax of a tuple", "argMaxState((toUInt8(0), number, ''), ts)"),
    (
        "=max of bytes that sort by time",
        "max(concat(reverse(reinterpretAsFixedString(ts)), char(0), reinterpretAsFixedString(number)))",
    ),
];
/// Times that each is asked, in turns; the median counts.
const ASKED: usize = 5;
/// `=` marks the schema's.
const ORDERS: [&str; 4] = [
    "=tenant, device, metric, ts",
    "tenant, metric, device, ts",
    "tenant, device, ts, metric",
    "tenant, ts, device, metric",
];

fn main() -> Result<()> {
    let server = ClickHouse::start()?;
    let sql = |text: &str| server.sql("default", text);
    sql(
        "CREATE TABLE source (tenant LowCardinality(String), device String, metric LowCardinality(String), ts Int64,
         received_at Int64, batch UInt64, queue_id UInt64, seq UInt64, idx UInt16, number Float64)
         ENGINE = MergeTree ORDER BY (tenant, device, metric, ts)",
    )?;
    sql(SOURCE)?;
    let tried = || {
        COLUMNS.iter().flat_map(|(name, kind, codecs)| codecs.iter().map(move |codec| (*name, *kind, *codec)))
    };
    let columns: Vec<String> = tried()
        .enumerate()
        .map(|(at, (_, kind, codec))| format!("c{at} {kind} CODEC({})", codec.trim_start_matches('=')))
        .collect();
    sql(&format!(
        "CREATE TABLE codecs (tenant LowCardinality(String), metric LowCardinality(String), device String, ts Int64, {})
         ENGINE = MergeTree ORDER BY (tenant, device, metric, ts) SETTINGS min_bytes_for_wide_part = 0",
        columns.join(", ")
    ))?;
    let names: Vec<&str> = tried().map(|(name, ..)| name).collect();
    sql(&format!("INSERT INTO codecs SELECT tenant, metric, device, ts, {} FROM source", names.join(", ")))?;
    sql("OPTIMIZE TABLE codecs FINAL")?;
    println!("bytes a reading, by column and codec (= the schema's)");
    for (at, (name, _, codec)) in tried().enumerate() {
        let bytes: f64 = sql(&format!(
            "SELECT data_compressed_bytes FROM system.columns WHERE database = 'default' AND table = 'codecs' AND name = 'c{at}'"
        ))?
        .parse()?;
        println!("{name:<12} {codec:<22} {:>7.3}", bytes / ROWS);
    }
    println!(
        "\nby sort order: bytes a reading of the whole row, rows read for one metric of one device over 100 s"
    );
    for (at, order) in ORDERS.iter().enumerate() {
        sql(&format!(
            "CREATE TABLE o{at} (tenant LowCardinality(String), device String CODEC(LZ4), metric LowCardinality(String),
             ts Int64 CODEC(Delta, ZSTD(1)), received_at Int64 CODEC(Delta, ZSTD(1)), batch UInt64 CODEC(Delta, ZSTD(1)),
             queue_id UInt64 CODEC(ZSTD(1)), seq UInt64 CODEC(DoubleDelta, ZSTD(1)), idx UInt16 CODEC(ZSTD(1)),
             number Float64 CODEC(Delta, ZSTD(1))) ENGINE = MergeTree ORDER BY ({})",
            order.trim_start_matches('=')
        ))?;
        sql(&format!("INSERT INTO o{at} SELECT * FROM source"))?;
        sql(&format!("OPTIMIZE TABLE o{at} FINAL"))?;
        let bytes: f64 = sql(&format!(
            "SELECT sum(data_compressed_bytes) FROM system.parts WHERE active AND database = 'default' AND table = 'o{at}'"
        ))?
        .parse()?;
        // EXPLAIN ESTIMATE: database, table, parts, rows, marks.
        let estimate = sql(&format!(
            "EXPLAIN ESTIMATE SELECT ts, number FROM o{at} WHERE tenant = 'acme' AND device = 'pump-00500'
             AND metric = 'pressure' AND ts >= 1763800100000000 AND ts < 1763800200000000"
        ))?;
        let rows = estimate.split('\t').nth(3).unwrap_or("?").to_owned();
        println!("{order:<30} {:>7.3} {rows:>9}", bytes / ROWS);
    }
    newest(&server)
}

fn newest(server: &ClickHouse) -> Result<()> {
    println!("\nmilliseconds to find the newest value of a million groups");
    let mut took = [const { Vec::new() }; 2];
    for _ in 0..ASKED {
        for (took, (_, newest)) in took.iter_mut().zip(NEWEST) {
            let began = Instant::now();
            server.sql(
                "default",
                &format!(
                    "SELECT tenant, device, metric, intDiv(ts, 5000000) AS step, {newest} FROM source
                 GROUP BY tenant, device, metric, step FORMAT Null"
                ),
            )?;
            took.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    for (mut took, (name, _)) in took.into_iter().zip(NEWEST) {
        took.sort_by(f64::total_cmp);
        println!("{name:<34} {:>7.0}", took[ASKED / 2]);
    }
    Ok(())
}
