-- How many devices a tenant has, so that its quota is checked without counting them. Triggers keep it, in the
-- transaction of whatever adds or deletes rows of devices; a device's keys never change.
CREATE TABLE device_counts (
    tenant TEXT PRIMARY KEY REFERENCES tenants (tenant),
    devices INTEGER NOT NULL CHECK (devices >= 0)
) STRICT, WITHOUT ROWID;
INSERT INTO device_counts (tenant, devices) SELECT tenant, count(*) FROM devices GROUP BY tenant;

CREATE TRIGGER devices_count_insert AFTER INSERT ON devices BEGIN
    INSERT INTO device_counts (tenant, devices) VALUES (NEW.tenant, 1)
    ON CONFLICT (tenant) DO UPDATE SET devices = devices + 1;
END;
CREATE TRIGGER devices_count_delete AFTER DELETE ON devices BEGIN
    UPDATE device_counts SET devices = devices - 1 WHERE tenant = OLD.tenant;
END;
CREATE TRIGGER devices_keep_tenant BEFORE UPDATE OF tenant, device ON devices BEGIN
    SELECT RAISE(ABORT, 'a device keeps its tenant and its id');
END;
