-- spec: the rule as JSON (selector, trigger, condition, clear, for, severity, message).
CREATE TABLE rules (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    enabled INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    version INTEGER NOT NULL,
    spec TEXT NOT NULL,
    created_at_us INTEGER NOT NULL,
    updated_at_us INTEGER NOT NULL,
    PRIMARY KEY (tenant, id),
    UNIQUE (tenant, name)
) STRICT, WITHOUT ROWID;

-- A rule version that errs always or is too slow; a new version is tried again.
CREATE TABLE rule_quarantine (
    tenant TEXT NOT NULL,
    rule_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    at_us INTEGER NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (tenant, rule_id)
) STRICT, WITHOUT ROWID;

-- The engine's snapshot: only what is pending or firing. stream: 0 live, 1 historical.
CREATE TABLE rule_state (
    tenant TEXT NOT NULL,
    rule_id TEXT NOT NULL,
    device TEXT NOT NULL,
    subject TEXT NOT NULL,
    stream INTEGER NOT NULL,
    version INTEGER NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (tenant, rule_id, device, subject, stream)
) STRICT, WITHOUT ROWID;

-- Last values that some rule reads as last["metric"].
CREATE TABLE rule_last (
    tenant TEXT NOT NULL,
    device TEXT NOT NULL,
    metric TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (tenant, device, metric)
) STRICT, WITHOUT ROWID;

-- Commits together with the snapshot and the alerts. log_us and idle_us: the engine's time, see rules::engine.
CREATE TABLE rule_cursor (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    log_epoch TEXT NOT NULL,
    position INTEGER NOT NULL,
    log_us INTEGER NOT NULL,
    idle_us INTEGER NOT NULL,
    saved_at_us INTEGER NOT NULL
) STRICT;

-- Log positions that the rules never saw: first..=last.
CREATE TABLE rule_gaps (
    log_epoch TEXT NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    at_us INTEGER NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (log_epoch, first)
) STRICT, WITHOUT ROWID;
