-- What devices of a kind have in common. spec: labels, life of certificates, defaults of claims, as JSON.
CREATE TABLE profiles (
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    profile TEXT NOT NULL,
    spec TEXT NOT NULL,
    created_at_us INTEGER NOT NULL,
    updated_at_us INTEGER NOT NULL,
    PRIMARY KEY (tenant, profile)
) STRICT, WITHOUT ROWID;

ALTER TABLE devices ADD COLUMN profile TEXT;
CREATE INDEX devices_by_profile ON devices (tenant, profile);

-- id_pattern: which ids a device may ask for, with '*' for any letters. approval: a person decides on each device.
ALTER TABLE claims ADD COLUMN profile TEXT;
ALTER TABLE claims ADD COLUMN id_pattern TEXT;
ALTER TABLE claims ADD COLUMN approval INTEGER NOT NULL DEFAULT 0;

-- Devices that wait for a person's decision, and what was decided. One a claim and key; gone once enrolled.
CREATE TABLE enrollments (
    tenant TEXT NOT NULL,
    enrollment_id TEXT NOT NULL,
    claim_id TEXT NOT NULL,
    spki_sha256 BLOB NOT NULL,
    device TEXT NOT NULL,
    peer TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'approved', 'rejected')),
    requested_at_us INTEGER NOT NULL,
    expires_at_us INTEGER NOT NULL,
    decided_by TEXT,
    decided_at_us INTEGER,
    note TEXT,
    PRIMARY KEY (tenant, enrollment_id),
    UNIQUE (tenant, claim_id, spki_sha256),
    FOREIGN KEY (tenant, claim_id) REFERENCES claims (tenant, claim_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
