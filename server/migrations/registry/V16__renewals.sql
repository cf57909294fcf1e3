-- A certificate is renewed once, for one key: the same key may ask again after a lost reply.
CREATE TABLE renewals (
    tenant TEXT NOT NULL,
    serial TEXT NOT NULL,
    device TEXT NOT NULL,
    spki_sha256 BLOB NOT NULL,
    next_serial TEXT NOT NULL,
    certificate_pem TEXT NOT NULL,
    renewed_at_us INTEGER NOT NULL,
    PRIMARY KEY (tenant, serial)
) STRICT, WITHOUT ROWID;
CREATE INDEX renewals_by_device ON renewals (tenant, device);

-- Which authority signed it: SHA-256 of its key, as hex; empty: the first one of this server.
ALTER TABLE certificates ADD COLUMN authority TEXT NOT NULL DEFAULT '';
