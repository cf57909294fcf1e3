-- The registry as of version 12 of the SQLite schema (migrations/registry): same tables, columns and keys, so that one SQL
-- text runs on both. Key texts compare by bytes whatever the database's locale. Run as muster_owner.

CREATE TABLE tenants (
    tenant TEXT COLLATE "C" PRIMARY KEY,
    name TEXT NOT NULL,
    created_at_us BIGINT NOT NULL
);

-- Accounts of people; one account may be a member of several tenants.
CREATE TABLE users (
    user_id TEXT COLLATE "C" PRIMARY KEY,
    email TEXT COLLATE "C" NOT NULL UNIQUE,
    password_hash TEXT NOT NULL,
    password_pending SMALLINT NOT NULL,
    system_admin SMALLINT NOT NULL,
    created_at_us BIGINT NOT NULL
);

CREATE TABLE memberships (
    tenant TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant),
    user_id TEXT COLLATE "C" NOT NULL REFERENCES users (user_id),
    role TEXT COLLATE "C" NOT NULL,
    created_at_us BIGINT NOT NULL,
    PRIMARY KEY (tenant, user_id)
);
CREATE INDEX memberships_by_user ON memberships (user_id);

CREATE TABLE sessions (
    session_sha256 BYTEA PRIMARY KEY,
    user_id TEXT COLLATE "C" NOT NULL REFERENCES users (user_id),
    created_at_us BIGINT NOT NULL,
    expires_at_us BIGINT NOT NULL
);
CREATE INDEX sessions_by_user ON sessions (user_id, created_at_us);

CREATE TABLE api_tokens (
    tenant TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant),
    token_id TEXT COLLATE "C" NOT NULL,
    name TEXT NOT NULL,
    token_sha256 BYTEA NOT NULL UNIQUE,
    role TEXT COLLATE "C" NOT NULL,
    scopes TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at_us BIGINT NOT NULL,
    expires_at_us BIGINT NOT NULL,
    PRIMARY KEY (tenant, token_id)
);

-- Append-only; each row's hash covers the row before it. Nobody is granted UPDATE or DELETE, and the owner meets triggers.
CREATE TABLE audit (
    tenant TEXT COLLATE "C" NOT NULL,
    seq BIGINT NOT NULL,
    at_us BIGINT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    detail TEXT NOT NULL,
    hash BYTEA NOT NULL,
    PRIMARY KEY (tenant, seq)
);
CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit is append-only';
END $$;
CREATE TRIGGER audit_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    EXECUTE FUNCTION audit_is_append_only();

CREATE TABLE devices (
    tenant TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant),
    device TEXT COLLATE "C" NOT NULL,
    name TEXT NOT NULL,
    enabled SMALLINT NOT NULL,
    labels TEXT NOT NULL,
    token_sha256 BYTEA,
    created_at_us BIGINT NOT NULL,
    enrolled_at_us BIGINT,
    PRIMARY KEY (tenant, device)
);

-- How many devices a tenant has. Triggers keep it, in the transaction of whatever adds or deletes rows of devices; a
-- device's keys never change.
CREATE TABLE device_counts (
    tenant TEXT COLLATE "C" PRIMARY KEY REFERENCES tenants (tenant),
    devices BIGINT NOT NULL CHECK (devices >= 0)
);
CREATE FUNCTION devices_count() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO device_counts AS c (tenant, devices) VALUES (NEW.tenant, 1)
        ON CONFLICT (tenant) DO UPDATE SET devices = c.devices + 1;
        RETURN NEW;
    END IF;
    UPDATE device_counts SET devices = devices - 1 WHERE tenant = OLD.tenant;
    RETURN OLD;
END $$;
CREATE TRIGGER devices_count_rows AFTER INSERT OR DELETE ON devices FOR EACH ROW EXECUTE FUNCTION devices_count();
CREATE FUNCTION devices_keep_keys() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a device keeps its tenant and its id';
END $$;
CREATE TRIGGER devices_keep_tenant BEFORE UPDATE OF tenant, device ON devices
    FOR EACH ROW EXECUTE FUNCTION devices_keep_keys();

CREATE TABLE certificates (
    serial TEXT COLLATE "C" PRIMARY KEY,
    tenant TEXT COLLATE "C" NOT NULL,
    device TEXT COLLATE "C" NOT NULL,
    spki_sha256 BYTEA NOT NULL,
    issued_at_us BIGINT NOT NULL,
    expires_at_us BIGINT NOT NULL,
    revoked_at_us BIGINT
);
CREATE INDEX certificates_by_device ON certificates (tenant, device, issued_at_us);

CREATE TABLE claims (
    tenant TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant),
    claim_id TEXT COLLATE "C" NOT NULL,
    token_sha256 BYTEA NOT NULL UNIQUE,
    device TEXT COLLATE "C",
    labels TEXT NOT NULL,
    uses BIGINT NOT NULL,
    uses_max BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    created_at_us BIGINT NOT NULL,
    expires_at_us BIGINT NOT NULL,
    PRIMARY KEY (tenant, claim_id)
);

-- A use is bound to the key of the request: the same key may ask again after a lost reply.
CREATE TABLE claim_uses (
    tenant TEXT COLLATE "C" NOT NULL,
    claim_id TEXT COLLATE "C" NOT NULL,
    spki_sha256 BYTEA NOT NULL,
    device TEXT COLLATE "C" NOT NULL,
    serial TEXT COLLATE "C" NOT NULL,
    certificate_pem TEXT NOT NULL,
    used_at_us BIGINT NOT NULL,
    PRIMARY KEY (tenant, claim_id, spki_sha256),
    FOREIGN KEY (tenant, claim_id) REFERENCES claims (tenant, claim_id) ON DELETE CASCADE
);

-- An alert is opened and cleared by a rule, acknowledged and resolved by people.
CREATE TABLE alerts (
    tenant TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    device TEXT COLLATE "C" NOT NULL,
    rule_id TEXT COLLATE "C" NOT NULL,
    rule_version BIGINT NOT NULL,
    rule_name TEXT NOT NULL,
    subject TEXT NOT NULL,
    severity TEXT COLLATE "C" NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
    state TEXT COLLATE "C" NOT NULL CHECK (state IN ('open', 'acked', 'resolved', 'cleared')),
    historical SMALLINT NOT NULL CHECK (historical IN (0, 1)),
    value TEXT NOT NULL,
    message TEXT NOT NULL,
    opened_at_us BIGINT NOT NULL,
    cleared_at_us BIGINT,
    cleared_why TEXT,
    acked_at_us BIGINT,
    acked_by TEXT,
    resolved_at_us BIGINT,
    resolved_by TEXT,
    note TEXT,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX alerts_by_time ON alerts (tenant, opened_at_us, id);
CREATE INDEX alerts_by_state ON alerts (tenant, state, opened_at_us, id);
CREATE INDEX alerts_by_device ON alerts (tenant, device, opened_at_us, id);

-- spec: the rule as JSON (selector, trigger, condition, clear, for, severity, message).
CREATE TABLE rules (
    tenant TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    enabled SMALLINT NOT NULL CHECK (enabled IN (0, 1)),
    version BIGINT NOT NULL,
    spec TEXT NOT NULL,
    created_at_us BIGINT NOT NULL,
    updated_at_us BIGINT NOT NULL,
    PRIMARY KEY (tenant, id),
    UNIQUE (tenant, name)
);

-- A rule version that errs always or is too slow; a new version is tried again.
CREATE TABLE rule_quarantine (
    tenant TEXT COLLATE "C" NOT NULL,
    rule_id TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    at_us BIGINT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (tenant, rule_id)
);

-- The engine's snapshot: only what is pending or firing. stream: 0 live, 1 historical.
CREATE TABLE rule_state (
    tenant TEXT COLLATE "C" NOT NULL,
    rule_id TEXT COLLATE "C" NOT NULL,
    device TEXT COLLATE "C" NOT NULL,
    subject TEXT COLLATE "C" NOT NULL,
    stream BIGINT NOT NULL,
    version BIGINT NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (tenant, rule_id, device, subject, stream)
);

-- Last values that some rule reads as last["metric"].
CREATE TABLE rule_last (
    tenant TEXT COLLATE "C" NOT NULL,
    device TEXT COLLATE "C" NOT NULL,
    metric TEXT COLLATE "C" NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (tenant, device, metric)
);

-- Commits together with the snapshot and the alerts. log_us and idle_us: the engine's time, see rules::engine.
CREATE TABLE rule_cursor (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    log_epoch TEXT COLLATE "C" NOT NULL,
    position BIGINT NOT NULL,
    log_us BIGINT NOT NULL,
    idle_us BIGINT NOT NULL,
    saved_at_us BIGINT NOT NULL
);

-- Log positions that the rules never saw: first..=last.
CREATE TABLE rule_gaps (
    log_epoch TEXT COLLATE "C" NOT NULL,
    first BIGINT NOT NULL,
    last BIGINT NOT NULL,
    at_us BIGINT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (log_epoch, first)
);

-- Who does what only one process may do: a random name of its own. PostgreSQL alone has it.
CREATE TABLE leases (
    name TEXT COLLATE "C" PRIMARY KEY,
    owner TEXT COLLATE "C" NOT NULL
);

-- Row-level security: the second barrier behind the WHERE of each statement. Without muster.tenant nothing is seen.
-- FORCE: the owner is held to it, too, so a later migration that changes rows first takes muster_worker.
DO $$
DECLARE
    name TEXT;
BEGIN
    FOREACH name IN ARRAY ARRAY['tenants', 'users', 'memberships', 'sessions', 'api_tokens', 'audit', 'devices',
        'device_counts', 'certificates', 'claims', 'claim_uses', 'alerts', 'rules', 'rule_quarantine', 'rule_state',
        'rule_last', 'rule_cursor', 'rule_gaps', 'leases'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY worker ON %I TO muster_worker USING (true)', name);
        EXECUTE format('GRANT SELECT, INSERT ON %I TO muster_worker', name);
        IF name <> 'audit' THEN
            EXECUTE format('GRANT UPDATE, DELETE ON %I TO muster_worker', name);
        END IF;
        -- The rest belongs to no tenant: people's accounts, and the rules' own place in the log.
        IF name NOT IN ('users', 'sessions', 'rule_cursor', 'rule_gaps', 'leases') THEN
            EXECUTE format('CREATE POLICY tenant ON %I TO muster_app
                            USING (tenant = current_setting(''muster.tenant'', true))', name);
            EXECUTE format('GRANT SELECT, INSERT ON %I TO muster_app', name);
            IF name <> 'audit' THEN
                EXECUTE format('GRANT UPDATE, DELETE ON %I TO muster_app', name);
            END IF;
        END IF;
    END LOOP;
END $$;

-- A tenant sees the accounts of its members.
CREATE POLICY member ON users FOR SELECT TO muster_app USING (EXISTS (
    SELECT FROM memberships m
    WHERE m.user_id = users.user_id AND m.tenant = current_setting('muster.tenant', true)));
GRANT SELECT (user_id, email, password_pending) ON users TO muster_app;
