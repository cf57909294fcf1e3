-- Requests with an Idempotency-Key: what was asked, and the sealed answer once there is one. tenant: '-' for requests
-- that belong to none.
CREATE TABLE idempotency_keys (
    tenant TEXT NOT NULL,
    caller TEXT NOT NULL,
    key_sha256 BLOB NOT NULL,
    fingerprint BLOB NOT NULL,
    answer BLOB,
    expires_at_us INTEGER NOT NULL,
    PRIMARY KEY (tenant, caller, key_sha256)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_expiry ON idempotency_keys (tenant, expires_at_us);
