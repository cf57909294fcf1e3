-- Readings, partitioned by the month of reception, sorted as they are asked for. `batch` is the outbox's block that
-- brought the row: what is not confirmed yet is answered from memory. A Date ends with day 65,535, in 2149. kind: 0 a number, 1 a flag (number is 0 or 1), 2 a text.
CREATE TABLE IF NOT EXISTS readings (
    tenant LowCardinality(String),
    device String CODEC(LZ4),
    metric LowCardinality(String),
    ts Int64 CODEC(Delta, ZSTD(1)),
    received_at Int64 CODEC(Delta, ZSTD(1)),
    kind UInt8 CODEC(ZSTD(1)),
    number Float64 CODEC(Delta, ZSTD(1)),
    text String CODEC(ZSTD(1)),
    queue_id UInt64 CODEC(ZSTD(1)),
    class UInt8 CODEC(ZSTD(1)),
    seq UInt64 CODEC(DoubleDelta, ZSTD(1)),
    idx UInt32 CODEC(ZSTD(1)),
    batch UInt64 CODEC(Delta, ZSTD(1)),
    retention_days UInt16 CODEC(ZSTD(1)),
    measured_time DateTime64(6, 'UTC') ALIAS fromUnixTimestamp64Micro(ts, 'UTC'),
    received_time DateTime64(6, 'UTC') ALIAS fromUnixTimestamp64Micro(received_at, 'UTC')
) ENGINE = MergeTree
PARTITION BY toYYYYMM(fromUnixTimestamp64Micro(received_at, 'UTC'))
ORDER BY (tenant, device, metric, ts)
TTL toDate(least(intDiv(received_at, 86400000000) + retention_days, 65535))
SETTINGS non_replicated_deduplication_window = 1000;

-- One row a minute of ts (an hour in readings_1h), of what came in one month. least and greatest are inf and -inf where
-- nothing was a number. last is the newest reading as bytes that sort by time: ts big-endian with its sign bit turned,
-- kind, number, text. Finding their greatest is cheaper than argMax over a tuple (examples/codec_sizes.rs).
CREATE TABLE IF NOT EXISTS readings_1m (
    tenant LowCardinality(String),
    device String CODEC(LZ4),
    metric LowCardinality(String),
    ts Int64 CODEC(Delta, ZSTD(1)),
    month UInt32 CODEC(ZSTD(1)),
    readings SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1)),
    suspects SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1)),
    numbers SimpleAggregateFunction(sum, UInt64) CODEC(T64, ZSTD(1)),
    total SimpleAggregateFunction(sum, Float64) CODEC(ZSTD(1)),
    least SimpleAggregateFunction(min, Float64) CODEC(ZSTD(1)),
    greatest SimpleAggregateFunction(max, Float64) CODEC(ZSTD(1)),
    last SimpleAggregateFunction(max, String) CODEC(ZSTD(1)),
    received_at SimpleAggregateFunction(max, Int64) CODEC(Delta, ZSTD(1)),
    retention_days SimpleAggregateFunction(max, UInt16) CODEC(ZSTD(1))
) ENGINE = AggregatingMergeTree
PARTITION BY month
ORDER BY (tenant, device, metric, ts)
TTL toDate(least(intDiv(received_at, 86400000000) + retention_days, 65535))
SETTINGS non_replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS readings_1h AS readings_1m
ENGINE = AggregatingMergeTree
PARTITION BY month
ORDER BY (tenant, device, metric, ts)
TTL toDate(least(intDiv(received_at, 86400000000) + retention_days, 65535))
SETTINGS non_replicated_deduplication_window = 1000;

CREATE MATERIALIZED VIEW IF NOT EXISTS readings_to_1m TO readings_1m AS
SELECT tenant, device, metric, bucket AS ts, month, count() AS readings,
    countIf(abs(measured - came) > 86400000000) AS suspects, countIf(kind < 2) AS numbers,
    sumIf(number, kind < 2) AS total, min(if(kind < 2, number, inf)) AS least,
    max(if(kind < 2, number, -inf)) AS greatest, max(newest) AS last,
    max(came) AS received_at, max(days) AS retention_days
FROM (
    SELECT tenant, device, metric, ts AS measured, received_at AS came, kind, number, retention_days AS days,
        concat(reverse(reinterpretAsFixedString(bitXor(ts, 9223372036854775808))), char(kind),
            reinterpretAsFixedString(number), text) AS newest,
        ts - positiveModulo(ts, 60000000) AS bucket,
        toYYYYMM(fromUnixTimestamp64Micro(received_at, 'UTC')) AS month
    FROM readings
)
GROUP BY tenant, device, metric, bucket, month;

CREATE MATERIALIZED VIEW IF NOT EXISTS readings_to_1h TO readings_1h AS
SELECT tenant, device, metric, bucket AS ts, month, count() AS readings,
    countIf(abs(measured - came) > 86400000000) AS suspects, countIf(kind < 2) AS numbers,
    sumIf(number, kind < 2) AS total, min(if(kind < 2, number, inf)) AS least,
    max(if(kind < 2, number, -inf)) AS greatest, max(newest) AS last,
    max(came) AS received_at, max(days) AS retention_days
FROM (
    SELECT tenant, device, metric, ts AS measured, received_at AS came, kind, number, retention_days AS days,
        concat(reverse(reinterpretAsFixedString(bitXor(ts, 9223372036854775808))), char(kind),
            reinterpretAsFixedString(number), text) AS newest,
        ts - positiveModulo(ts, 3600000000) AS bucket,
        toYYYYMM(fromUnixTimestamp64Micro(received_at, 'UTC')) AS month
    FROM readings
)
GROUP BY tenant, device, metric, bucket, month;

CREATE TABLE IF NOT EXISTS events (
    tenant LowCardinality(String),
    device String CODEC(ZSTD(1)),
    received_at Int64 CODEC(Delta, ZSTD(1)),
    id Int64 CODEC(Delta, ZSTD(1)),
    measured_at Int64 CODEC(Delta, ZSTD(1)),
    kind LowCardinality(String),
    pipeline LowCardinality(String),
    model LowCardinality(String),
    model_version LowCardinality(String),
    label LowCardinality(String),
    score Float64 CODEC(ZSTD(1)),
    subject Nullable(String) CODEC(ZSTD(1)),
    latency_us UInt32 CODEC(ZSTD(1)),
    boxes String CODEC(ZSTD(1)),
    queue_id UInt64 CODEC(ZSTD(1)),
    class UInt8 CODEC(ZSTD(1)),
    seq UInt64 CODEC(DoubleDelta, ZSTD(1)),
    batch UInt64 CODEC(Delta, ZSTD(1)),
    retention_days UInt16 CODEC(ZSTD(1)),
    received_time DateTime64(6, 'UTC') ALIAS fromUnixTimestamp64Micro(received_at, 'UTC'),
    INDEX device_filter device TYPE bloom_filter(0.01) GRANULARITY 4
) ENGINE = MergeTree
PARTITION BY toYYYYMM(fromUnixTimestamp64Micro(received_at, 'UTC'))
ORDER BY (tenant, received_at, id)
TTL toDate(least(intDiv(received_at, 86400000000) + retention_days, 65535))
SETTINGS non_replicated_deduplication_window = 1000;
