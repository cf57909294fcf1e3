-- Where a session was opened from, so that its owner knows it again.
ALTER TABLE sessions ADD COLUMN peer TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN agent TEXT NOT NULL DEFAULT '';

-- A one-time leave to set a new password; a newer one takes the older one's place.
CREATE TABLE password_resets (
    user_id TEXT COLLATE "C" PRIMARY KEY REFERENCES users (user_id),
    token_sha256 BYTEA NOT NULL UNIQUE,
    created_by TEXT NOT NULL,
    created_at_us BIGINT NOT NULL,
    expires_at_us BIGINT NOT NULL
);

-- A one-time leave for whoever has an address to become a member.
CREATE TABLE invitations (
    tenant TEXT COLLATE "C" NOT NULL REFERENCES tenants (tenant),
    invitation_id TEXT COLLATE "C" NOT NULL,
    email TEXT COLLATE "C" NOT NULL,
    role TEXT COLLATE "C" NOT NULL,
    token_sha256 BYTEA NOT NULL UNIQUE,
    created_by TEXT NOT NULL,
    created_at_us BIGINT NOT NULL,
    expires_at_us BIGINT NOT NULL,
    PRIMARY KEY (tenant, invitation_id),
    UNIQUE (tenant, email)
);

DO $$
DECLARE
    name TEXT;
BEGIN
    FOREACH name IN ARRAY ARRAY['password_resets', 'invitations'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY worker ON %I TO muster_worker USING (true)', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO muster_worker', name);
    END LOOP;
END $$;
CREATE POLICY tenant ON invitations TO muster_app USING (tenant = current_setting('muster.tenant', true));
GRANT SELECT, INSERT, UPDATE, DELETE ON invitations TO muster_app;
