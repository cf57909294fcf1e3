-- Quotas that a tenant was given in place of the configuration's, as JSON.
CREATE TABLE tenant_quotas (
    tenant TEXT PRIMARY KEY REFERENCES tenants (tenant),
    spec TEXT NOT NULL,
    changed_by TEXT NOT NULL,
    changed_at_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What a tenant used in a day (days since 1970, UTC), counted from the event log by its reader `usage`. No foreign key:
-- what a tenant used is kept when the tenant is gone. devices and storage_bytes are the day's largest.
CREATE TABLE usage_days (
    tenant TEXT NOT NULL,
    day INTEGER NOT NULL,
    messages INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    readings INTEGER NOT NULL,
    events INTEGER NOT NULL,
    event_bytes INTEGER NOT NULL,
    inference_us INTEGER NOT NULL,
    peak_per_s INTEGER NOT NULL,
    devices INTEGER NOT NULL,
    storage_bytes INTEGER NOT NULL,
    PRIMARY KEY (tenant, day)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_days_by_day ON usage_days (day, tenant);

CREATE TABLE usage_refusals (
    tenant TEXT NOT NULL,
    day INTEGER NOT NULL,
    reason TEXT NOT NULL,
    messages INTEGER NOT NULL,
    PRIMARY KEY (tenant, day, reason)
) STRICT, WITHOUT ROWID;

-- A quota whose soft or hard limit a tenant came to on a day; told: its alert is open.
CREATE TABLE usage_notices (
    tenant TEXT NOT NULL,
    day INTEGER NOT NULL,
    quota TEXT NOT NULL,
    level TEXT NOT NULL CHECK (level IN ('soft', 'hard')),
    used INTEGER NOT NULL,
    allowed INTEGER NOT NULL,
    at_us INTEGER NOT NULL,
    told INTEGER NOT NULL CHECK (told IN (0, 1)),
    PRIMARY KEY (tenant, day, quota, level)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_notices_untold ON usage_notices (day, tenant) WHERE told = 0;

-- Where the reader stands in each log that it ever counted; commits together with what was counted. commits (one row of
-- numbers for all logs: the largest wrote last) and writer (random, of one reader's life) tell a commit whose answer was lost
-- from one that failed, and from another process's. counted_us: what was received before is counted.
CREATE TABLE usage_cursor (
    log_epoch TEXT PRIMARY KEY,
    position INTEGER NOT NULL,
    commits INTEGER NOT NULL,
    writer TEXT NOT NULL,
    counted_us INTEGER NOT NULL,
    saved_at_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Log positions that were never counted: first..=last, received after since_us. last is NULL where another log took over: what
-- this one held beyond is unknown. Such a row goes when the reader returns to its log.
CREATE TABLE usage_gaps (
    log_epoch TEXT NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER,
    since_us INTEGER NOT NULL,
    at_us INTEGER NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (log_epoch, first)
) STRICT, WITHOUT ROWID;

-- The server's one price list, as JSON.
CREATE TABLE price_list (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    spec TEXT NOT NULL,
    changed_by TEXT NOT NULL,
    changed_at_us INTEGER NOT NULL
) STRICT;
