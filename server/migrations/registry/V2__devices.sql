CREATE TABLE devices (
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    device TEXT NOT NULL,
    name TEXT NOT NULL,
    enabled INTEGER NOT NULL,
    labels TEXT NOT NULL,
    token_sha256 BLOB,
    created_at_us INTEGER NOT NULL,
    enrolled_at_us INTEGER,
    PRIMARY KEY (tenant, device)
) STRICT, WITHOUT ROWID;

CREATE TABLE certificates (
    serial TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    device TEXT NOT NULL,
    spki_sha256 BLOB NOT NULL,
    issued_at_us INTEGER NOT NULL,
    expires_at_us INTEGER NOT NULL,
    revoked_at_us INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX certificates_by_device ON certificates (tenant, device, issued_at_us);

CREATE TABLE claims (
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    claim_id TEXT NOT NULL,
    token_sha256 BLOB NOT NULL UNIQUE,
    device TEXT,
    labels TEXT NOT NULL,
    uses INTEGER NOT NULL,
    uses_max INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    created_at_us INTEGER NOT NULL,
    expires_at_us INTEGER NOT NULL,
    PRIMARY KEY (tenant, claim_id)
) STRICT, WITHOUT ROWID;

-- A use is bound to the key of the request: the same key may ask again after a lost reply.
CREATE TABLE claim_uses (
    tenant TEXT NOT NULL,
    claim_id TEXT NOT NULL,
    spki_sha256 BLOB NOT NULL,
    device TEXT NOT NULL,
    serial TEXT NOT NULL,
    certificate_pem TEXT NOT NULL,
    used_at_us INTEGER NOT NULL,
    PRIMARY KEY (tenant, claim_id, spki_sha256),
    FOREIGN KEY (tenant, claim_id) REFERENCES claims (tenant, claim_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
