-- An alert is opened and cleared by a rule, acknowledged and resolved by people.
-- id = hash(log epoch, rule and version, device, subject, stream, opening position): a replay opens nothing twice.
CREATE TABLE alerts (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    device TEXT NOT NULL,
    rule_id TEXT NOT NULL,
    rule_version INTEGER NOT NULL,
    rule_name TEXT NOT NULL,
    subject TEXT NOT NULL,
    severity TEXT NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
    state TEXT NOT NULL CHECK (state IN ('open', 'acked', 'resolved', 'cleared')),
    historical INTEGER NOT NULL CHECK (historical IN (0, 1)),
    value TEXT NOT NULL,
    message TEXT NOT NULL,
    opened_at_us INTEGER NOT NULL,
    cleared_at_us INTEGER,
    cleared_why TEXT,
    acked_at_us INTEGER,
    acked_by TEXT,
    resolved_at_us INTEGER,
    resolved_by TEXT,
    note TEXT,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX alerts_by_time ON alerts (tenant, opened_at_us, id);
CREATE INDEX alerts_by_state ON alerts (tenant, state, opened_at_us, id);
CREATE INDEX alerts_by_device ON alerts (tenant, device, opened_at_us, id);
