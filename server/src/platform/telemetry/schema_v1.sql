-- telemetry.db, version 1. Times: microseconds since 1970 (UTC). 64-bit ids are stored as their signed twins.
-- Readings stand in one table a day of received_at (reading_<days since 1970>), made by partition.rs.

CREATE TABLE tenant (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;

CREATE TABLE device (
    id INTEGER PRIMARY KEY,
    tenant_id INTEGER NOT NULL REFERENCES tenant (id),
    name TEXT NOT NULL,
    connected INTEGER NOT NULL DEFAULT 0,
    presence_at INTEGER NOT NULL DEFAULT 0,
    UNIQUE (tenant_id, name)
) STRICT;

-- One metric of one device.
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    device_id INTEGER NOT NULL REFERENCES device (id),
    name TEXT NOT NULL,
    unit TEXT,
    UNIQUE (device_id, name)
) STRICT;

CREATE TABLE reading_day (day INTEGER PRIMARY KEY) STRICT;

-- Which days hold readings of a device, and the hours (of ts) that they span.
CREATE TABLE device_day (
    device_id INTEGER NOT NULL,
    day INTEGER NOT NULL,
    ts_low INTEGER NOT NULL,
    ts_high INTEGER NOT NULL,
    PRIMARY KEY (device_id, day)
) STRICT, WITHOUT ROWID;
CREATE INDEX device_day_by_day ON device_day (day);

CREATE TABLE last_value (
    series_id INTEGER PRIMARY KEY,
    device_id INTEGER NOT NULL,
    ts INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    value ANY NOT NULL
) STRICT;
CREATE INDEX last_value_by_device ON last_value (device_id);

CREATE TABLE event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id INTEGER NOT NULL,
    device_id INTEGER NOT NULL,
    queue_ref INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    measured_at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    pipeline TEXT NOT NULL,
    model TEXT NOT NULL,
    model_version TEXT NOT NULL,
    label TEXT NOT NULL,
    score REAL NOT NULL,
    subject TEXT,
    latency_us INTEGER NOT NULL,
    boxes TEXT
) STRICT;
CREATE INDEX event_by_tenant ON event (tenant_id, received_at, id);
CREATE INDEX event_by_device ON event (device_id, received_at, id);

-- One opening of one class of an agent's queue; foreign = 1: no queue, keyed by log epoch and position.
CREATE TABLE queue (
    ref INTEGER PRIMARY KEY AUTOINCREMENT,
    device_id INTEGER NOT NULL,
    queue_id INTEGER NOT NULL,
    class INTEGER NOT NULL,
    is_foreign INTEGER NOT NULL DEFAULT 0,
    reported INTEGER NOT NULL DEFAULT 0,
    closed INTEGER NOT NULL DEFAULT 0,
    merged INTEGER NOT NULL DEFAULT 0,
    first INTEGER NOT NULL DEFAULT 0,
    released INTEGER NOT NULL DEFAULT 0,
    next INTEGER NOT NULL DEFAULT 0,
    stored INTEGER NOT NULL DEFAULT 0,
    dropped INTEGER NOT NULL DEFAULT 0,
    duplicates INTEGER NOT NULL DEFAULT 0,
    pending INTEGER NOT NULL DEFAULT 0,
    lost INTEGER NOT NULL DEFAULT 0,
    updated_at INTEGER NOT NULL DEFAULT 0,
    UNIQUE (device_id, queue_id, class)
) STRICT;

-- Seqs first..=last; reason 0 = stored, else the number of wire::DropReason.
CREATE TABLE queue_range (
    ref INTEGER NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    reason INTEGER NOT NULL,
    PRIMARY KEY (ref, first)
) STRICT, WITHOUT ROWID;

-- Sums of queues whose rows are gone. what: see ledger::Merged.
CREATE TABLE queue_merged (
    device_id INTEGER NOT NULL,
    class INTEGER NOT NULL,
    what INTEGER NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (device_id, class, what)
) STRICT, WITHOUT ROWID;

CREATE TABLE counter (
    tenant_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE dead_letter (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id INTEGER NOT NULL,
    device_id INTEGER NOT NULL,
    log_epoch INTEGER NOT NULL,
    position INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    class INTEGER NOT NULL,
    queue_id INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX dead_letter_by_tenant ON dead_letter (tenant_id, id);

-- Messages that the gateway refused for good, counted by the minute.
CREATE TABLE rejected (
    tenant_id INTEGER NOT NULL,
    device_id INTEGER NOT NULL,
    class INTEGER NOT NULL,
    reason INTEGER NOT NULL,
    minute INTEGER NOT NULL,
    count INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    last_position INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, device_id, minute, class, reason)
) STRICT, WITHOUT ROWID;

CREATE TABLE cursor (
    reader TEXT PRIMARY KEY,
    log_epoch INTEGER NOT NULL,
    position INTEGER NOT NULL,
    received_at INTEGER NOT NULL
) STRICT;

-- Log positions first..next that were never read: deleted, damaged, or of a log that was replaced.
CREATE TABLE lost_range (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    log_epoch INTEGER NOT NULL,
    first INTEGER NOT NULL,
    next INTEGER NOT NULL,
    why TEXT NOT NULL,
    found_at INTEGER NOT NULL
) STRICT;
