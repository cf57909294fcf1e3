-- Jobs that export and erase a device (or, where `device` is empty, the whole tenant). A job's row is what is left to
-- show of it, so it stays. state: shutting_out, draining, exporting, erasing, sweeping, done. place: JSON of the step.
-- requester: the id of the account or API token. tries: in vain, in a row. next_try_at_us: not before.
CREATE TABLE erasures (
    tenant TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant),
    id TEXT COLLATE "C" NOT NULL,
    device TEXT COLLATE "C" NOT NULL,
    state TEXT NOT NULL,
    with_export SMALLINT NOT NULL CHECK (with_export IN (0, 1)),
    requested_by TEXT NOT NULL,
    requester TEXT NOT NULL,
    requested_at_us BIGINT NOT NULL,
    members TEXT NOT NULL,
    log_epoch TEXT,
    log_position BIGINT,
    since_us BIGINT NOT NULL,
    place TEXT NOT NULL,
    rows_exported BIGINT NOT NULL,
    rows_erased BIGINT NOT NULL,
    waiting_for TEXT,
    tries BIGINT NOT NULL,
    next_try_at_us BIGINT NOT NULL,
    done_at_us BIGINT,
    export_until_us BIGINT,
    PRIMARY KEY (tenant, id)
);
CREATE UNIQUE INDEX erasures_open ON erasures (tenant, device) WHERE done_at_us IS NULL;
CREATE INDEX erasures_by_turn ON erasures (tenant, id) WHERE done_at_us IS NULL;
CREATE INDEX erasures_by_expiry ON erasures (export_until_us) WHERE export_until_us IS NOT NULL;

CREATE TABLE erasure_files (
    tenant TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    bytes BIGINT NOT NULL,
    sha256 BYTEA NOT NULL,
    row_count BIGINT NOT NULL,
    PRIMARY KEY (tenant, id, name)
);

DO $$
DECLARE
    name TEXT;
BEGIN
    FOREACH name IN ARRAY ARRAY['erasures', 'erasure_files'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY worker ON %I TO muster_worker USING (true)', name);
        EXECUTE format('CREATE POLICY tenant ON %I TO muster_app
                        USING (tenant = current_setting(''muster.tenant'', true))', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO muster_worker, muster_app', name);
    END LOOP;
END $$;
