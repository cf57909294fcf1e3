-- Jobs that export and erase a device (or, where `device` is empty, the whole tenant). A job's row is what is left to
-- show of it, so it stays. state: shutting_out, draining, exporting, erasing, sweeping, done. place: JSON of the step.
-- requester: the id of the account or API token. tries: in vain, in a row. next_try_at_us: not before.
CREATE TABLE erasures (
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    id TEXT NOT NULL,
    device TEXT NOT NULL,
    state TEXT NOT NULL,
    with_export INTEGER NOT NULL CHECK (with_export IN (0, 1)),
    requested_by TEXT NOT NULL,
    requester TEXT NOT NULL,
    requested_at_us INTEGER NOT NULL,
    members TEXT NOT NULL,
    log_epoch TEXT,
    log_position INTEGER,
    since_us INTEGER NOT NULL,
    place TEXT NOT NULL,
    rows_exported INTEGER NOT NULL,
    rows_erased INTEGER NOT NULL,
    waiting_for TEXT,
    tries INTEGER NOT NULL,
    next_try_at_us INTEGER NOT NULL,
    done_at_us INTEGER,
    export_until_us INTEGER,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX erasures_open ON erasures (tenant, device) WHERE done_at_us IS NULL;
CREATE INDEX erasures_by_turn ON erasures (tenant, id) WHERE done_at_us IS NULL;
CREATE INDEX erasures_by_expiry ON erasures (export_until_us) WHERE export_until_us IS NOT NULL;

CREATE TABLE erasure_files (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    row_count INTEGER NOT NULL,
    PRIMARY KEY (tenant, id, name)
) STRICT, WITHOUT ROWID;
