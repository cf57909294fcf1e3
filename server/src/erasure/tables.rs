//! Which tables of the registry hold something of a device or a tenant, what of it is exported, and what is kept.
//!
//! A test holds these lists against the schema: a new table with a tenant has to be in one of them.

use crate::platform::db::{DbError, Scope, Tx};

/// How a column becomes JSON.
#[derive(Clone, Copy, Debug)]
pub(super) enum As {
    Text,
    Number,
    Json,
    Hex,
}

/// A table that is exported.
#[derive(Debug)]
pub(super) struct Table {
    /// As it stands in a file's name.
    pub(super) file: &'static str,
    pub(super) name: &'static str,
    pub(super) columns: &'static [(&'static str, As)],
    /// Its key beside the tenant, of columns above: pages go by it.
    pub(super) key: &'static [&'static str],
    /// What binds a row to a device ($2); none: a device's export has nothing of it.
    pub(super) of_device: Option<&'static str>,
}

use As::{Hex, Number, Text};

/// In the order of the export. Secrets and their hashes are left out.
pub(super) const EXPORTED: [Table; 25] = [
    Table {
        file: "devices",
        name: "devices",
        columns: &[
            ("device", Text),
            ("name", Text),
            ("enabled", Number),
            ("labels", As::Json),
            ("created_at_us", Number),
            ("enrolled_at_us", Number),
            ("profile", Text),
        ],
        key: &["device"],
        of_device: Some("device = $2"),
    },
    Table {
        file: "certificates",
        name: "certificates",
        columns: &[
            ("serial", Text),
            ("device", Text),
            ("issued_at_us", Number),
            ("expires_at_us", Number),
            ("revoked_at_us", Number),
            ("spki_sha256", Hex),
            ("authority", Text),
        ],
        key: &["serial"],
        of_device: Some("device = $2"),
    },
    Table {
        file: "claims",
        name: "claims",
        columns: &[
            ("claim_id", Text),
            ("device", Text),
            ("labels", As::Json),
            ("uses", Number),
            ("uses_max", Number),
            ("created_by", Text),
            ("created_at_us", Number),
            ("expires_at_us", Number),
            ("profile", Text),
            ("id_pattern", Text),
            ("approval", Number),
        ],
        key: &["claim_id"],
        of_device: Some("device = $2"),
    },
    Table {
        file: "alerts",
        name: "alerts",
        columns: &[
            ("id", Text),
            ("device", Text),
            ("rule_id", Text),
            ("rule_version", Number),
            ("rule_name", Text),
            ("historical", Number),
            ("subject", Text),
            ("severity", Text),
            ("state", Text),
            ("value", As::Json),
            ("message", Text),
            ("opened_at_us", Number),
            ("cleared_at_us", Number),
            ("cleared_why", Text),
            ("acked_at_us", Number),
            ("acked_by", Text),
            ("resolved_at_us", Number),
            ("resolved_by", Text),
            ("note", Text),
        ],
        key: &["id"],
        of_device: Some("device = $2"),
    },
    Table {
        file: "rules",
        name: "rules",
        columns: &[
            ("id", Text),
            ("name", Text),
            ("enabled", Number),
            ("version", Number),
            ("spec", As::Json),
            ("created_at_us", Number),
            ("updated_at_us", Number),
        ],
        key: &["id"],
        of_device: None,
    },
    Table {
        file: "sites",
        name: "sites",
        columns: &[
            ("site", Text),
            ("name", Text),
            ("address", Text),
            ("time_zone", Text),
            ("created_at_us", Number),
        ],
        key: &["site"],
        of_device: None,
    },
    Table {
        file: "groups",
        name: "device_groups",
        columns: &[("group_id", Text), ("name", Text), ("condition", Text), ("created_at_us", Number)],
        key: &["group_id"],
        of_device: None,
    },
    Table {
        file: "profiles",
        name: "profiles",
        columns: &[
            ("profile", Text),
            ("spec", As::Json),
            ("created_at_us", Number),
            ("updated_at_us", Number),
        ],
        key: &["profile"],
        of_device: None,
    },
    Table {
        file: "usage",
        name: "usage_days",
        columns: &[
            ("day", Number),
            ("messages", Number),
            ("bytes", Number),
            ("readings", Number),
            ("events", Number),
            ("event_bytes", Number),
            ("inference_us", Number),
            ("peak_per_s", Number),
            ("devices", Number),
            ("storage_bytes", Number),
        ],
        key: &["day"],
        of_device: None,
    },
    Table {
        file: "device-sites",
        name: "device_sites",
        columns: &[("device", Text), ("site", Text)],
        key: &["device"],
        of_device: Some("device = $2"),
    },
    Table {
        file: "group-members",
        name: "group_members",
        columns: &[("group_id", Text), ("device", Text)],
        key: &["group_id", "device"],
        of_device: Some("device = $2"),
    },
    Table {
        file: "renewals",
        name: "renewals",
        columns: &[
            ("serial", Text),
            ("device", Text),
            ("spki_sha256", Hex),
            ("next_serial", Text),
            ("certificate_pem", Text),
            ("renewed_at_us", Number),
        ],
        key: &["serial"],
        of_device: Some("device = $2"),
    },
    Table {
        file: "enrollments",
        name: "enrollments",
        columns: &[
            ("enrollment_id", Text),
            ("claim_id", Text),
            ("spki_sha256", Hex),
            ("device", Text),
            ("peer", Text),
            ("state", Text),
            ("requested_at_us", Number),
            ("expires_at_us", Number),
            ("decided_by", Text),
            ("decided_at_us", Number),
            ("note", Text),
        ],
        key: &["enrollment_id"],
        of_device: Some("device = $2"),
    },
    Table {
        file: "claim-uses",
        name: "claim_uses",
        columns: &[
            ("claim_id", Text),
            ("spki_sha256", Hex),
            ("device", Text),
            ("serial", Text),
            ("certificate_pem", Text),
            ("used_at_us", Number),
        ],
        key: &["claim_id", "spki_sha256"],
        of_device: Some("device = $2"),
    },
    Table {
        file: "rule-state",
        name: "rule_state",
        columns: &[
            ("rule_id", Text),
            ("device", Text),
            ("subject", Text),
            ("stream", Number),
            ("version", Number),
            ("state", As::Json),
        ],
        key: &["rule_id", "device", "subject", "stream"],
        of_device: Some("device = $2"),
    },
    Table {
        file: "rule-last",
        name: "rule_last",
        columns: &[("device", Text), ("metric", Text), ("value", As::Json)],
        key: &["device", "metric"],
        of_device: Some("device = $2"),
    },
    Table {
        file: "rule-quarantine",
        name: "rule_quarantine",
        columns: &[("rule_id", Text), ("version", Number), ("at_us", Number), ("reason", Text)],
        key: &["rule_id"],
        of_device: None,
    },
    Table {
        file: "tenant",
        name: "tenants",
        columns: &[("tenant", Text), ("name", Text), ("created_at_us", Number)],
        key: &["tenant"],
        of_device: None,
    },
    Table {
        file: "invitations",
        name: "invitations",
        columns: &[
            ("invitation_id", Text),
            ("email", Text),
            ("role", Text),
            ("reach", Text),
            ("created_by", Text),
            ("created_at_us", Number),
            ("expires_at_us", Number),
        ],
        key: &["invitation_id"],
        of_device: None,
    },
    Table {
        file: "roles",
        name: "custom_roles",
        columns: &[("role_id", Text), ("name", Text), ("permissions", Text), ("created_at_us", Number)],
        key: &["role_id"],
        of_device: None,
    },
    Table {
        file: "tokens",
        name: "api_tokens",
        columns: &[
            ("token_id", Text),
            ("name", Text),
            ("role", Text),
            ("reach", Text),
            ("scopes", Text),
            ("created_by", Text),
            ("created_at_us", Number),
            ("expires_at_us", Number),
        ],
        key: &["token_id"],
        of_device: None,
    },
    Table {
        file: "quotas",
        name: "tenant_quotas",
        columns: &[("spec", As::Json), ("changed_by", Text), ("changed_at_us", Number)],
        key: &["changed_at_us"],
        of_device: None,
    },
    Table {
        file: "refusals",
        name: "usage_refusals",
        columns: &[("day", Number), ("reason", Text), ("messages", Number)],
        key: &["day", "reason"],
        of_device: None,
    },
    Table {
        file: "notices",
        name: "usage_notices",
        columns: &[
            ("day", Number),
            ("quota", Text),
            ("level", Text),
            ("used", Number),
            ("allowed", Number),
            ("at_us", Number),
            ("told", Number),
        ],
        key: &["day", "quota", "level"],
        of_device: None,
    },
    Table {
        file: "audit",
        name: "audit",
        columns: &[
            ("seq", Number),
            ("at_us", Number),
            ("actor", Text),
            ("action", Text),
            ("object", Text),
            ("detail", As::Json),
            ("hash", Hex),
        ],
        key: &["seq"],
        // Objects of other actions may be called as a device is: an account, a site, the tenant.
        of_device: Some("object = $2 AND (action LIKE 'device.%' OR action = 'erasure.device')"),
    },
];

/// Tables that are not exported, with why; and columns, as `table.column`. Beside them everything is.
#[cfg(test)]
pub(super) const NOT_EXPORTED: [(&str, &str); 10] = [
    ("memberships", "exported as `members`, as they were when the erasure was asked for"),
    ("device_counts", "counts the rows of devices"),
    ("deleted_devices", "names that were taken once; the audit rows say when and by whom"),
    ("idempotency_keys", "sealed answers, kept for a day"),
    ("erasures", "the jobs stay and are shown"),
    ("erasure_files", "the manifest names them"),
    ("devices.token_sha256", "a secret's hash"),
    ("claims.token_sha256", "a secret's hash"),
    ("invitations.token_sha256", "a secret's hash"),
    ("api_tokens.token_sha256", "a secret's hash"),
];

/// Erased with their device.
pub(super) const OF_DEVICE: [&str; 10] = [
    "alerts",
    "rule_state",
    "rule_last",
    "device_sites",
    "group_members",
    "renewals",
    "enrollments",
    "claim_uses",
    "claims",
    "deleted_devices",
];

/// Have a device and are not in [`OF_DEVICE`]: its own row goes last, by its slice; certificates stay, revoked, or an old
/// key could come back under the name; and jobs.
#[cfg(test)]
pub(super) const KEPT_OF_DEVICE: [&str; 3] = ["devices", "certificates", "erasures"];

/// Erased with their tenant, those that refer to others first.
pub(super) const OF_TENANT: [&str; 24] = [
    "alerts",
    "rule_state",
    "rule_last",
    "rule_quarantine",
    "rules",
    "device_sites",
    "group_members",
    "device_groups",
    "sites",
    "renewals",
    "enrollments",
    "claim_uses",
    "claims",
    "certificates",
    "devices",
    "device_counts",
    "deleted_devices",
    "profiles",
    "api_tokens",
    "memberships",
    "invitations",
    "custom_roles",
    "tenant_quotas",
    "idempotency_keys",
];

/// Kept when a tenant is erased: its id without its name, the proof of what was done, the jobs, and what it used by the
/// day, which an invoice stands on: counts alone, that go after their 400 days.
#[cfg(test)]
pub(super) const KEPT: [&str; 7] =
    ["tenants", "audit", "erasures", "erasure_files", "usage_days", "usage_refusals", "usage_notices"];

/// What tells the rows of a table apart, beside the tenant: an exported table's key, or the primary key of another.
pub(super) fn key_of(table: &str) -> Option<String> {
    if let Some(exported) = EXPORTED.iter().find(|exported| exported.name == table) {
        return Some(exported.key.join(", "));
    }
    match table {
        "memberships" => Some("user_id".to_owned()),
        "device_counts" => Some("tenant".to_owned()),
        "deleted_devices" => Some("device".to_owned()),
        "idempotency_keys" => Some("caller, key_sha256".to_owned()),
        _ => None,
    }
}

/// Deletes at most `limit` rows; gives how many.
fn delete_some(
    tx: &mut Tx<'_>,
    scope: &Scope,
    table: &str,
    device: Option<&str>,
    limit: i64,
) -> Result<i64, DbError> {
    let of_device = device.map_or("$2 = ''", |_| "device = $2");
    let key = key_of(table).ok_or_else(|| DbError::Column { column: table.to_owned() })?;
    let sql = format!(
        "DELETE FROM {table} WHERE tenant = $1 AND ({key}) IN
             (SELECT {key} FROM {table} WHERE tenant = $1 AND {of_device} LIMIT $3)"
    );
    Ok(tx.execute(scope, &sql, &[&scope.tenant()?, &device.unwrap_or(""), &limit])? as i64)
}

fn delete_from(
    tx: &mut Tx<'_>,
    scope: &Scope,
    tables: &[&str],
    device: Option<&str>,
    limit: i64,
) -> Result<(i64, bool), DbError> {
    let mut rows = 0;
    for table in tables {
        rows += delete_some(tx, scope, table, device, limit - rows)?;
        if rows >= limit {
            return Ok((rows, false));
        }
    }
    Ok((rows, true))
}

/// Deletes at most `limit` rows of what tables hold of a device; says how many, and whether that was all.
pub(super) fn erase_device(
    tx: &mut Tx<'_>,
    scope: &Scope,
    device: &str,
    limit: i64,
) -> Result<(i64, bool), DbError> {
    delete_from(tx, scope, &OF_DEVICE, Some(device), limit)
}

/// Deletes at most `limit` rows of what tables hold of a tenant; its row keeps the id alone. As [`erase_device`].
pub(super) fn erase_tenant(tx: &mut Tx<'_>, scope: &Scope, limit: i64) -> Result<(i64, bool), DbError> {
    let (rows, is_all) = delete_from(tx, scope, &OF_TENANT, None, limit)?;
    if is_all {
        tx.execute(scope, "UPDATE tenants SET name = tenant WHERE tenant = $1", &[&scope.tenant()?])?;
    }
    Ok((rows, is_all))
}
