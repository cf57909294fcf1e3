//! Which tables of the registry hold something of a device or a tenant, what of it is exported, and what is kept.
//!
//! A test holds these lists against the schema: a new table with a tenant has to be in one of them.

use crate::platform::db::{DbError, Row, Scope, Tx};
use serde_json::{Map, Value as Json};

/// How a column becomes JSON.
#[derive(Clone, Copy, Debug)]
enum As {
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
    name: &'static str,
    columns: &'static [(&'static str, As)],
    order: &'static str,
    /// What binds a row to a device ($2); none: a device's export has nothing of it.
    of_device: Option<&'static str>,
}

use As::{Hex, Number, Text};

/// In the order of the export. Secrets and their hashes are left out.
pub(super) const EXPORTED: [Table; 10] = [
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
        ],
        order: "device",
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
        ],
        order: "serial",
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
        ],
        order: "claim_id",
        of_device: Some("device = $2"),
    },
    Table {
        file: "alerts",
        name: "alerts",
        columns: &[
            ("id", Text),
            ("device", Text),
            ("rule_id", Text),
            ("rule_name", Text),
            ("subject", Text),
            ("severity", Text),
            ("state", Text),
            ("value", As::Json),
            ("message", Text),
            ("opened_at_us", Number),
            ("cleared_at_us", Number),
            ("acked_at_us", Number),
            ("acked_by", Text),
            ("resolved_at_us", Number),
            ("resolved_by", Text),
            ("note", Text),
        ],
        order: "id",
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
        order: "id",
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
        order: "site",
        of_device: None,
    },
    Table {
        file: "groups",
        name: "device_groups",
        columns: &[("group_id", Text), ("name", Text), ("condition", Text), ("created_at_us", Number)],
        order: "group_id",
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
        order: "profile",
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
        order: "day",
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
        order: "seq",
        // Objects of other actions may be called as a device is: an account, a site, the tenant.
        of_device: Some("object = $2 AND (action LIKE 'device.%' OR action = 'erasure.device')"),
    },
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

/// Reads rows of a table, `limit` from the `skip`th on.
pub(super) fn read(
    tx: &mut Tx<'_>,
    scope: &Scope,
    table: &Table,
    device: Option<&str>,
    (skip, limit): (i64, i64),
) -> Result<Vec<Json>, DbError> {
    let names: Vec<&str> = table.columns.iter().map(|(name, _)| *name).collect();
    let condition = match (device, table.of_device) {
        (None, _) => "$2 = ''",
        (Some(_), Some(condition)) => condition,
        (Some(_), None) => return Ok(Vec::new()),
    };
    let sql = format!(
        "SELECT {} FROM {} WHERE tenant = $1 AND {condition} ORDER BY {} LIMIT $3 OFFSET $4",
        names.join(", "),
        table.name,
        table.order
    );
    let device = device.unwrap_or("");
    tx.query(scope, &sql, &[&scope.tenant()?, &device, &limit, &skip], |row| object(row, table))
}

fn object(row: &Row<'_>, table: &Table) -> Result<Json, DbError> {
    let mut object = Map::new();
    for (at, (name, kind)) in table.columns.iter().enumerate() {
        let value = match kind {
            Text => row.get::<Option<String>>(at)?.map(Json::from),
            Number => row.get::<Option<i64>>(at)?.map(Json::from),
            As::Json => {
                let text = row.get::<Option<String>>(at)?;
                text.map(|text| serde_json::from_str(&text).unwrap_or(Json::String(text)))
            }
            Hex => Some(hex::encode(row.get::<Vec<u8>>(at)?).into()),
        };
        object.insert((*name).to_owned(), value.unwrap_or(Json::Null));
    }
    Ok(Json::Object(object))
}

/// Deletes what tables hold of a device.
pub(super) fn erase_device(tx: &mut Tx<'_>, scope: &Scope, device: &str) -> Result<u64, DbError> {
    let mut rows = 0;
    for table in OF_DEVICE {
        let sql = format!("DELETE FROM {table} WHERE tenant = $1 AND device = $2");
        rows += tx.execute(scope, &sql, &[&scope.tenant()?, &device])?;
    }
    Ok(rows as u64)
}

/// Deletes what tables hold of a tenant; its row keeps the id alone.
pub(super) fn erase_tenant(tx: &mut Tx<'_>, scope: &Scope) -> Result<u64, DbError> {
    let mut rows = 0;
    for table in OF_TENANT {
        let sql = format!("DELETE FROM {table} WHERE tenant = $1");
        rows += tx.execute(scope, &sql, &[&scope.tenant()?])?;
    }
    tx.execute(scope, "UPDATE tenants SET name = tenant WHERE tenant = $1", &[&scope.tenant()?])?;
    Ok(rows as u64)
}
