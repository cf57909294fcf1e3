-- Requests with an Idempotency-Key: what was asked, and the sealed answer once there is one. tenant: '-' for requests
-- that belong to none.
CREATE TABLE idempotency_keys (
    tenant TEXT COLLATE "C" NOT NULL,
    caller TEXT COLLATE "C" NOT NULL,
    key_sha256 BYTEA NOT NULL,
    fingerprint BYTEA NOT NULL,
    answer BYTEA,
    expires_at_us BIGINT NOT NULL,
    PRIMARY KEY (tenant, caller, key_sha256)
);
CREATE INDEX idempotency_keys_by_expiry ON idempotency_keys (tenant, expires_at_us);
ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE idempotency_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY worker ON idempotency_keys TO muster_worker USING (true);
CREATE POLICY tenant ON idempotency_keys TO muster_app USING (tenant = current_setting('muster.tenant', true));
GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency_keys TO muster_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency_keys TO muster_app;
