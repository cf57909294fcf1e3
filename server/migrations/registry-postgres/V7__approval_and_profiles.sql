-- What devices of a kind have in common. spec: labels, life of certificates, defaults of claims, as JSON.
CREATE TABLE profiles (
    tenant TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant),
    profile TEXT COLLATE "C" NOT NULL,
    spec TEXT NOT NULL,
    created_at_us BIGINT NOT NULL,
    updated_at_us BIGINT NOT NULL,
    PRIMARY KEY (tenant, profile)
);

ALTER TABLE devices ADD COLUMN profile TEXT COLLATE "C";
CREATE INDEX devices_by_profile ON devices (tenant, profile);

-- id_pattern: which ids a device may ask for, with '*' for any letters. approval: a person decides on each device.
ALTER TABLE claims ADD COLUMN profile TEXT COLLATE "C";
ALTER TABLE claims ADD COLUMN id_pattern TEXT;
ALTER TABLE claims ADD COLUMN approval SMALLINT NOT NULL DEFAULT 0;

-- Devices that wait for a person's decision, and what was decided. One a claim and key; gone once enrolled.
CREATE TABLE enrollments (
    tenant TEXT COLLATE "C" NOT NULL,
    enrollment_id TEXT COLLATE "C" NOT NULL,
    claim_id TEXT COLLATE "C" NOT NULL,
    spki_sha256 BYTEA NOT NULL,
    device TEXT COLLATE "C" NOT NULL,
    peer TEXT NOT NULL,
    state TEXT COLLATE "C" NOT NULL CHECK (state IN ('pending', 'approved', 'rejected')),
    requested_at_us BIGINT NOT NULL,
    expires_at_us BIGINT NOT NULL,
    decided_by TEXT,
    decided_at_us BIGINT,
    note TEXT,
    PRIMARY KEY (tenant, enrollment_id),
    UNIQUE (tenant, claim_id, spki_sha256),
    FOREIGN KEY (tenant, claim_id) REFERENCES claims (tenant, claim_id) ON DELETE CASCADE
);

DO $$
DECLARE
    name TEXT;
BEGIN
    FOREACH name IN ARRAY ARRAY['profiles', 'enrollments'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY worker ON %I TO muster_worker USING (true)', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO muster_worker', name);
        EXECUTE format('CREATE POLICY tenant ON %I TO muster_app
                        USING (tenant = current_setting(''muster.tenant'', true))', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO muster_app', name);
    END LOOP;
END $$;
