-- Roles of a tenant's own: permissions with spaces between. Where a role stands, its id does.
CREATE TABLE custom_roles (
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    role_id TEXT NOT NULL,
    name TEXT NOT NULL,
    permissions TEXT NOT NULL,
    created_at_us INTEGER NOT NULL,
    PRIMARY KEY (tenant, role_id),
    UNIQUE (tenant, name)
) STRICT, WITHOUT ROWID;

-- How far it reaches: places (site:<id>, group:<id>) with spaces between; empty is the whole tenant.
ALTER TABLE memberships ADD COLUMN reach TEXT NOT NULL DEFAULT '';
ALTER TABLE api_tokens ADD COLUMN reach TEXT NOT NULL DEFAULT '';
ALTER TABLE invitations ADD COLUMN reach TEXT NOT NULL DEFAULT '';

CREATE TABLE sites (
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    site TEXT NOT NULL,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    time_zone TEXT NOT NULL,
    created_at_us INTEGER NOT NULL,
    PRIMARY KEY (tenant, site)
) STRICT, WITHOUT ROWID;

-- A device is at one site at most.
CREATE TABLE device_sites (
    tenant TEXT NOT NULL,
    device TEXT NOT NULL,
    site TEXT NOT NULL,
    PRIMARY KEY (tenant, device),
    FOREIGN KEY (tenant, device) REFERENCES devices (tenant, device) ON DELETE CASCADE,
    FOREIGN KEY (tenant, site) REFERENCES sites (tenant, site)
) STRICT, WITHOUT ROWID;
CREATE INDEX device_sites_by_site ON device_sites (tenant, site, device);

-- condition: CEL over a device's facts; NULL where people name the members.
CREATE TABLE device_groups (
    tenant TEXT NOT NULL REFERENCES tenants (tenant),
    group_id TEXT NOT NULL,
    name TEXT NOT NULL,
    condition TEXT,
    created_at_us INTEGER NOT NULL,
    PRIMARY KEY (tenant, group_id)
) STRICT, WITHOUT ROWID;

-- Of a group with a condition: what it answered when the device or the group was last written.
CREATE TABLE group_members (
    tenant TEXT NOT NULL,
    group_id TEXT NOT NULL,
    device TEXT NOT NULL,
    PRIMARY KEY (tenant, group_id, device),
    FOREIGN KEY (tenant, group_id) REFERENCES device_groups (tenant, group_id) ON DELETE CASCADE,
    FOREIGN KEY (tenant, device) REFERENCES devices (tenant, device) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX group_members_by_device ON group_members (tenant, device);

-- Ids of deleted devices of which something may still be stored: who reaches a part of the tenant may not take them.
CREATE TABLE deleted_devices (
    tenant TEXT NOT NULL,
    device TEXT NOT NULL,
    deleted_at_us INTEGER NOT NULL,
    PRIMARY KEY (tenant, device)
) STRICT, WITHOUT ROWID;
