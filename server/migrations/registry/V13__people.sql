-- Where a session was opened from, so that its owner knows it again.
ALTER TABLE sessions ADD COLUMN peer TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN agent TEXT NOT NULL DEFAULT '';

-- A one-time leave to set a new password; a newer one takes the older one's place.
CREATE TABLE password_resets (
    user_id TEXT PRIMARY KEY REFERENCES users (user_id),
    token_sha256 BLOB NOT NULL UNIQUE,
    created_by TEXT NOT NULL,
    created_at_us INTEGER NOT NULL,
    expires_at_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- A one-time leave for whoever has an address to become a member.
CREATE TABLE invitations (
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    invitation_id TEXT NOT NULL,
    email TEXT NOT NULL,
    role TEXT NOT NULL,
    token_sha256 BLOB NOT NULL UNIQUE,
    created_by TEXT NOT NULL,
    created_at_us INTEGER NOT NULL,
    expires_at_us INTEGER NOT NULL,
    PRIMARY KEY (tenant, invitation_id),
    UNIQUE (tenant, email)
) STRICT, WITHOUT ROWID;
