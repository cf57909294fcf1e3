-- telemetry.db, version 3. Blocks of rows on their way to ClickHouse (clickhouse/outbox.rs); empty where readings are here.
-- kind: 0 readings, 1 events. events_to: the last row of `event` in the block.
CREATE TABLE outbox (
    batch INTEGER PRIMARY KEY,
    kind INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    token TEXT NOT NULL,
    events_to INTEGER NOT NULL,
    block BLOB NOT NULL
) STRICT;
-- One row: the newest batch that was made, the newest that ClickHouse confirmed, the newest event that was packed.
CREATE TABLE outbox_state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    made INTEGER NOT NULL,
    confirmed INTEGER NOT NULL,
    events_packed INTEGER NOT NULL
) STRICT;
INSERT INTO outbox_state VALUES (1, 0, 0, 0);
-- The days that a tenant's rows in ClickHouse were last told to be kept.
CREATE TABLE remote_retention (
    tenant_id INTEGER PRIMARY KEY,
    days INTEGER NOT NULL
) STRICT;
