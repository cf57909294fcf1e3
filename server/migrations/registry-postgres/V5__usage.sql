-- As version 15 of the SQLite schema: quotas of tenants, what they used by the day, the reader's cursor, the price list.
CREATE TABLE tenant_quotas (
    tenant TEXT COLLATE "C" PRIMARY KEY REFERENCES tenants (tenant),
    spec TEXT NOT NULL,
    changed_by TEXT NOT NULL,
    changed_at_us BIGINT NOT NULL
);

-- No foreign key: what a tenant used is kept when the tenant is gone.
CREATE TABLE usage_days (
    tenant TEXT COLLATE "C" NOT NULL,
    day BIGINT NOT NULL,
    messages BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    readings BIGINT NOT NULL,
    events BIGINT NOT NULL,
    event_bytes BIGINT NOT NULL,
    inference_us BIGINT NOT NULL,
    peak_per_s BIGINT NOT NULL,
    devices BIGINT NOT NULL,
    storage_bytes BIGINT NOT NULL,
    PRIMARY KEY (tenant, day)
);
CREATE INDEX usage_days_by_day ON usage_days (day, tenant);

CREATE TABLE usage_refusals (
    tenant TEXT COLLATE "C" NOT NULL,
    day BIGINT NOT NULL,
    reason TEXT COLLATE "C" NOT NULL,
    messages BIGINT NOT NULL,
    PRIMARY KEY (tenant, day, reason)
);

-- A quota whose soft or hard limit a tenant came to on a day; told: its alert is open.
CREATE TABLE usage_notices (
    tenant TEXT COLLATE "C" NOT NULL,
    day BIGINT NOT NULL,
    quota TEXT COLLATE "C" NOT NULL,
    level TEXT COLLATE "C" NOT NULL CHECK (level IN ('soft', 'hard')),
    used BIGINT NOT NULL,
    allowed BIGINT NOT NULL,
    at_us BIGINT NOT NULL,
    told SMALLINT NOT NULL CHECK (told IN (0, 1)),
    PRIMARY KEY (tenant, day, quota, level)
);
CREATE INDEX usage_notices_untold ON usage_notices (day, tenant) WHERE told = 0;

-- Where the reader stands in each log that it ever counted; commits together with what was counted. commits (one row of
-- numbers for all logs: the largest wrote last) and writer (random, of one reader's life) tell a commit whose answer was lost
-- from one that failed, and from another process's. counted_us: what was received before is counted.
CREATE TABLE usage_cursor (
    log_epoch TEXT COLLATE "C" PRIMARY KEY,
    position BIGINT NOT NULL,
    commits BIGINT NOT NULL,
    writer TEXT COLLATE "C" NOT NULL,
    counted_us BIGINT NOT NULL,
    saved_at_us BIGINT NOT NULL
);

-- Log positions that were never counted: first..=last, received after since_us. last is NULL where another log took over: what
-- this one held beyond is unknown. Such a row goes when the reader returns to its log.
CREATE TABLE usage_gaps (
    log_epoch TEXT COLLATE "C" NOT NULL,
    first BIGINT NOT NULL,
    last BIGINT,
    since_us BIGINT NOT NULL,
    at_us BIGINT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (log_epoch, first)
);

-- The server's one price list, as JSON.
CREATE TABLE price_list (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    spec TEXT NOT NULL,
    changed_by TEXT NOT NULL,
    changed_at_us BIGINT NOT NULL
);

DO $$
DECLARE
    name TEXT;
BEGIN
    FOREACH name IN ARRAY ARRAY['tenant_quotas', 'usage_days', 'usage_refusals', 'usage_notices', 'usage_cursor',
        'usage_gaps', 'price_list'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY worker ON %I TO muster_worker USING (true)', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO muster_worker', name);
        -- The rest belongs to no tenant.
        IF name IN ('tenant_quotas', 'usage_days', 'usage_refusals', 'usage_notices') THEN
            EXECUTE format('CREATE POLICY tenant ON %I TO muster_app
                            USING (tenant = current_setting(''muster.tenant'', true))', name);
            EXECUTE format('GRANT SELECT ON %I TO muster_app', name);
        END IF;
    END LOOP;
END $$;
GRANT INSERT, UPDATE, DELETE ON tenant_quotas TO muster_app;
