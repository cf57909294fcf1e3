-- A certificate is renewed once, for one key: the same key may ask again after a lost reply.
CREATE TABLE renewals (
    tenant TEXT COLLATE "C" NOT NULL,
    serial TEXT COLLATE "C" NOT NULL,
    device TEXT COLLATE "C" NOT NULL,
    spki_sha256 BYTEA NOT NULL,
    next_serial TEXT COLLATE "C" NOT NULL,
    certificate_pem TEXT NOT NULL,
    renewed_at_us BIGINT NOT NULL,
    PRIMARY KEY (tenant, serial)
);
CREATE INDEX renewals_by_device ON renewals (tenant, device);

-- Which authority signed it: SHA-256 of its key, as hex; empty: the first one of this server.
ALTER TABLE certificates ADD COLUMN authority TEXT COLLATE "C" NOT NULL DEFAULT '';

ALTER TABLE renewals ENABLE ROW LEVEL SECURITY;
ALTER TABLE renewals FORCE ROW LEVEL SECURITY;
CREATE POLICY worker ON renewals TO muster_worker USING (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON renewals TO muster_worker;
CREATE POLICY tenant ON renewals TO muster_app USING (tenant = current_setting('muster.tenant', true));
GRANT SELECT, INSERT, UPDATE, DELETE ON renewals TO muster_app;
