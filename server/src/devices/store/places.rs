//! SQL of sites and groups, and of which device is where. Only the service and the store's own writes call it.

use super::{DEVICE_COLUMNS, DeviceRow, device_id, device_row_at};
use crate::devices::facts::{self, DeviceFacts};
use crate::platform::db::{DbError, Row, Scope, ToSql, Tx};
use crate::platform::expr::Expression;
use crate::tenants::reach::{self, Args, PlaceId, Reach, Whereabouts};
use muster_wire::DeviceId;

/// Devices that are read at once while a group is filled.
const FILL_ROWS: i64 = 1_000;

/// A site's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteRow {
    pub site: PlaceId,
    pub name: String,
    pub address: String,
    pub time_zone: String,
    pub created_at_us: i64,
}

/// A group's row; one without a condition has the members that people name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRow {
    pub group: PlaceId,
    pub name: String,
    pub condition: Option<String>,
    pub created_at_us: i64,
}

/// A device with its site.
#[derive(Clone, Debug)]
pub struct PlacedDevice {
    pub row: DeviceRow,
    pub site: Option<String>,
}

fn place_id(text: &str) -> Result<PlaceId, DbError> {
    PlaceId::parse(text).map_err(|_| DbError::Column { column: "place".into() })
}

fn borrowed(args: &Args) -> Vec<&dyn ToSql> {
    args.iter().map(AsRef::as_ref).collect()
}

fn count(tx: &mut Tx<'_>, scope: &Scope, sql: &str) -> Result<i64, DbError> {
    tx.query_one(scope, sql, &[&scope.tenant()?], |row| row.get(0))
}

fn site_row(row: &Row<'_>) -> Result<SiteRow, DbError> {
    Ok(SiteRow {
        site: place_id(&row.get::<String>(0)?)?,
        name: row.get(1)?,
        address: row.get(2)?,
        time_zone: row.get(3)?,
        created_at_us: row.get(4)?,
    })
}

const SITE_COLUMNS: &str = "site, name, address, time_zone, created_at_us";

pub fn site_insert(tx: &mut Tx<'_>, scope: &Scope, row: &SiteRow) -> Result<(), DbError> {
    let sql = "INSERT INTO sites (tenant, site, name, address, time_zone, created_at_us)
               VALUES ($1, $2, $3, $4, $5, $6)";
    let SiteRow { site, name, address, time_zone, created_at_us } = row;
    tx.execute(scope, sql, &[&scope.tenant()?, &site.as_str(), name, address, time_zone, created_at_us])
        .map(drop)
}

pub fn site_update(tx: &mut Tx<'_>, scope: &Scope, row: &SiteRow) -> Result<bool, DbError> {
    let sql = "UPDATE sites SET name = $3, address = $4, time_zone = $5 WHERE tenant = $1 AND site = $2";
    let SiteRow { site, name, address, time_zone, .. } = row;
    Ok(tx.execute(scope, sql, &[&scope.tenant()?, &site.as_str(), name, address, time_zone])? == 1)
}

pub fn site_get(tx: &mut Tx<'_>, scope: &Scope, site: &PlaceId) -> Result<Option<SiteRow>, DbError> {
    let sql = format!("SELECT {SITE_COLUMNS} FROM sites WHERE tenant = $1 AND site = $2");
    tx.query_opt(scope, &sql, &[&scope.tenant()?, &site.as_str()], site_row)
}

/// Sites by id; with a list of ids those alone.
pub fn site_list(
    tx: &mut Tx<'_>,
    scope: &Scope,
    only: Option<&[&str]>,
    after: &str,
    limit: i64,
) -> Result<Vec<SiteRow>, DbError> {
    let (condition, args) = page_args(scope, "site", only, after, limit)?;
    let sql = format!(
        "SELECT {SITE_COLUMNS} FROM sites WHERE tenant = $1 AND site > $2{condition} ORDER BY site LIMIT $3"
    );
    tx.query(scope, &sql, &borrowed(&args), site_row)
}

/// The condition and arguments of a page of places.
fn page_args(
    scope: &Scope,
    column: &str,
    only: Option<&[&str]>,
    after: &str,
    limit: i64,
) -> Result<(String, Args), DbError> {
    let mut args: Args =
        vec![Box::new(scope.tenant()?.to_owned()), Box::new(after.to_owned()), Box::new(limit)];
    let condition = match only {
        None => String::new(),
        Some([]) => " AND 1 = 0".to_owned(),
        Some(ids) => format!(" AND {column} IN ({})", reach::listed(ids, &mut args)),
    };
    Ok((condition, args))
}

pub fn site_count(tx: &mut Tx<'_>, scope: &Scope) -> Result<i64, DbError> {
    count(tx, scope, "SELECT count(*) FROM sites WHERE tenant = $1")
}

pub fn site_delete(tx: &mut Tx<'_>, scope: &Scope, site: &PlaceId) -> Result<bool, DbError> {
    let sql = "DELETE FROM sites WHERE tenant = $1 AND site = $2";
    Ok(tx.execute(scope, sql, &[&scope.tenant()?, &site.as_str()])? == 1)
}

/// Whether a device is at a site.
pub fn site_is_used(tx: &mut Tx<'_>, scope: &Scope, site: &PlaceId) -> Result<bool, DbError> {
    let sql = "SELECT 1 FROM device_sites WHERE tenant = $1 AND site = $2 LIMIT 1";
    Ok(tx.query_opt(scope, sql, &[&scope.tenant()?, &site.as_str()], |row| row.get::<i64>(0))?.is_some())
}

pub fn device_site(tx: &mut Tx<'_>, scope: &Scope, device: &DeviceId) -> Result<Option<String>, DbError> {
    let sql = "SELECT site FROM device_sites WHERE tenant = $1 AND device = $2";
    tx.query_opt(scope, sql, &[&scope.tenant()?, &device.as_str()], |row| row.get(0))
}

/// Moves a device to a site, or away from any.
pub fn device_move(
    tx: &mut Tx<'_>,
    scope: &Scope,
    row: &DeviceRow,
    site: Option<&PlaceId>,
) -> Result<(), DbError> {
    let (tenant, device) = (scope.tenant()?, row.device.as_str());
    tx.execute(scope, "DELETE FROM device_sites WHERE tenant = $1 AND device = $2", &[&tenant, &device])?;
    if let Some(site) = site {
        let sql = "INSERT INTO device_sites (tenant, device, site) VALUES ($1, $2, $3)";
        tx.execute(scope, sql, &[&tenant, &device, &site.as_str()])?;
    }
    refresh(tx, scope, row)
}

/// A row of [`SITE_OF`] and the device's columns.
pub(super) fn placed(row: &Row<'_>) -> Result<PlacedDevice, DbError> {
    Ok(PlacedDevice { site: row.get(0)?, row: device_row_at(row, 1)? })
}

/// The site of a row of `devices`.
pub(super) const SITE_OF: &str =
    "(SELECT p.site FROM device_sites p WHERE p.tenant = devices.tenant AND p.device = devices.device)";

pub fn device_get(
    tx: &mut Tx<'_>,
    scope: &Scope,
    device: &DeviceId,
) -> Result<Option<PlacedDevice>, DbError> {
    let sql = format!("SELECT {SITE_OF}, {DEVICE_COLUMNS} FROM devices WHERE tenant = $1 AND device = $2");
    tx.query_opt(scope, &sql, &[&scope.tenant()?, &device.as_str()], placed)
}

/// Where a device is; nowhere, where there is no such device.
pub fn whereabouts(tx: &mut Tx<'_>, scope: &Scope, device: &DeviceId) -> Result<Whereabouts, DbError> {
    let site = device_site(tx, scope, device)?.as_deref().map(place_id).transpose()?;
    let sql = "SELECT group_id FROM group_members WHERE tenant = $1 AND device = $2 ORDER BY group_id";
    let groups =
        tx.query(scope, sql, &[&scope.tenant()?, &device.as_str()], |row| place_id(&row.get::<String>(0)?))?;
    Ok(Whereabouts { site, groups })
}

/// Those of some devices that a reach has. The caller bounds how many it asks for.
pub fn reachable(
    tx: &mut Tx<'_>,
    scope: &Scope,
    reach: &Reach,
    devices: &[&str],
) -> Result<Vec<String>, DbError> {
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    let mut args: Args = vec![Box::new(scope.tenant()?.to_owned())];
    let listed = reach::listed(devices, &mut args);
    let condition = reach::within(reach, "d.device", &mut args);
    let sql =
        format!("SELECT d.device FROM devices d WHERE d.tenant = $1 AND d.device IN ({listed}){condition}");
    tx.query(scope, &sql, &borrowed(&args), |row| row.get(0))
}

/// Every device that a reach has, at most so many.
pub fn reachable_all(
    tx: &mut Tx<'_>,
    scope: &Scope,
    reach: &Reach,
    limit: i64,
) -> Result<Vec<String>, DbError> {
    let mut args: Args = vec![Box::new(scope.tenant()?.to_owned()), Box::new(limit)];
    let condition = reach::within(reach, "d.device", &mut args);
    let sql = format!("SELECT d.device FROM devices d WHERE d.tenant = $1{condition} LIMIT $2");
    tx.query(scope, &sql, &borrowed(&args), |row| row.get(0))
}

fn group_row(row: &Row<'_>) -> Result<GroupRow, DbError> {
    Ok(GroupRow {
        group: place_id(&row.get::<String>(0)?)?,
        name: row.get(1)?,
        condition: row.get(2)?,
        created_at_us: row.get(3)?,
    })
}

const GROUP_COLUMNS: &str = "group_id, name, condition, created_at_us";

pub fn group_insert(tx: &mut Tx<'_>, scope: &Scope, row: &GroupRow) -> Result<(), DbError> {
    let sql = "INSERT INTO device_groups (tenant, group_id, name, condition, created_at_us)
               VALUES ($1, $2, $3, $4, $5)";
    let GroupRow { group, name, condition, created_at_us } = row;
    tx.execute(scope, sql, &[&scope.tenant()?, &group.as_str(), name, condition, created_at_us]).map(drop)
}

pub fn group_update(tx: &mut Tx<'_>, scope: &Scope, row: &GroupRow) -> Result<bool, DbError> {
    let sql = "UPDATE device_groups SET name = $3, condition = $4 WHERE tenant = $1 AND group_id = $2";
    let GroupRow { group, name, condition, .. } = row;
    Ok(tx.execute(scope, sql, &[&scope.tenant()?, &group.as_str(), name, condition])? == 1)
}

pub fn group_get(tx: &mut Tx<'_>, scope: &Scope, group: &PlaceId) -> Result<Option<GroupRow>, DbError> {
    let sql = format!("SELECT {GROUP_COLUMNS} FROM device_groups WHERE tenant = $1 AND group_id = $2");
    tx.query_opt(scope, &sql, &[&scope.tenant()?, &group.as_str()], group_row)
}

/// Groups by id; with a list of ids those alone.
pub fn group_list(
    tx: &mut Tx<'_>,
    scope: &Scope,
    only: Option<&[&str]>,
    after: &str,
    limit: i64,
) -> Result<Vec<GroupRow>, DbError> {
    let (condition, args) = page_args(scope, "group_id", only, after, limit)?;
    let sql = format!(
        "SELECT {GROUP_COLUMNS} FROM device_groups
         WHERE tenant = $1 AND group_id > $2{condition} ORDER BY group_id LIMIT $3"
    );
    tx.query(scope, &sql, &borrowed(&args), group_row)
}

/// How many groups there are, and how many of them have a condition.
pub fn group_counts(tx: &mut Tx<'_>, scope: &Scope) -> Result<(i64, i64), DbError> {
    let sql = "SELECT count(*), count(condition) FROM device_groups WHERE tenant = $1";
    tx.query_one(scope, sql, &[&scope.tenant()?], |row| Ok((row.get(0)?, row.get(1)?)))
}

pub fn group_delete(tx: &mut Tx<'_>, scope: &Scope, group: &PlaceId) -> Result<bool, DbError> {
    let sql = "DELETE FROM device_groups WHERE tenant = $1 AND group_id = $2";
    Ok(tx.execute(scope, sql, &[&scope.tenant()?, &group.as_str()])? == 1)
}

/// Adds a member; says whether it is new.
pub fn member_put(tx: &mut Tx<'_>, scope: &Scope, group: &str, device: &str) -> Result<bool, DbError> {
    let sql =
        "INSERT INTO group_members (tenant, group_id, device) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    Ok(tx.execute(scope, sql, &[&scope.tenant()?, &group, &device])? == 1)
}

/// Adds members of a group that has none of them, in one statement.
fn members_insert(tx: &mut Tx<'_>, scope: &Scope, group: &str, devices: &[&str]) -> Result<(), DbError> {
    if devices.is_empty() {
        return Ok(());
    }
    let tenant = scope.tenant()?;
    let rows: Vec<String> = (3..devices.len() + 3).map(|at| format!("($1, $2, ${at})")).collect();
    let sql = format!("INSERT INTO group_members (tenant, group_id, device) VALUES {}", rows.join(", "));
    let mut args: Vec<&dyn ToSql> = vec![&tenant, &group];
    args.extend(devices.iter().map(|device| device as &dyn ToSql));
    tx.execute(scope, &sql, &args).map(drop)
}

/// Takes a member out; says whether it was one.
pub fn member_delete(tx: &mut Tx<'_>, scope: &Scope, group: &str, device: &str) -> Result<bool, DbError> {
    let sql = "DELETE FROM group_members WHERE tenant = $1 AND group_id = $2 AND device = $3";
    Ok(tx.execute(scope, sql, &[&scope.tenant()?, &group, &device])? == 1)
}

pub fn member_list(
    tx: &mut Tx<'_>,
    scope: &Scope,
    group: &PlaceId,
    after: &str,
    limit: i64,
) -> Result<Vec<DeviceId>, DbError> {
    let sql = "SELECT device FROM group_members WHERE tenant = $1 AND group_id = $2 AND device > $3
               ORDER BY device LIMIT $4";
    tx.query(scope, sql, &[&scope.tenant()?, &group.as_str(), &after, &limit], |row| {
        device_id(&row.get::<String>(0)?)
    })
}

/// Brings a device's membership in the groups with a condition up to date. Whatever writes a device or moves it calls it.
pub fn refresh(tx: &mut Tx<'_>, scope: &Scope, row: &DeviceRow) -> Result<(), DbError> {
    let sql = "SELECT group_id, condition FROM device_groups WHERE tenant = $1 AND condition IS NOT NULL";
    let groups = tx.query(scope, sql, &[&scope.tenant()?], |row| {
        Ok::<_, DbError>((row.get::<String>(0)?, row.get::<String>(1)?))
    })?;
    if groups.is_empty() {
        return Ok(());
    }
    let site = device_site(tx, scope, &row.device)?;
    let facts = facts_of(row, site.as_deref());
    let was = whereabouts(tx, scope, &row.device)?.groups;
    for (group, condition) in groups {
        // Compiled when it was written; a build with other limits may refuse it, and then nobody is a member.
        let is_member = facts::compile(&condition).is_ok_and(|condition| facts::matches(&condition, &facts));
        let was_member = was.iter().any(|id| id.as_str() == group);
        match (was_member, is_member) {
            (false, true) => drop(member_put(tx, scope, &group, row.device.as_str())?),
            (true, false) => drop(member_delete(tx, scope, &group, row.device.as_str())?),
            _ => {}
        }
    }
    Ok(())
}

fn facts_of<'a>(row: &'a DeviceRow, site: Option<&'a str>) -> DeviceFacts<'a> {
    DeviceFacts::new(row.device.as_str(), &row.name, &row.labels, site, row.enabled)
}

/// Asks a group's condition of every device of the tenant.
pub fn refill(
    tx: &mut Tx<'_>,
    scope: &Scope,
    group: &PlaceId,
    condition: &Expression,
) -> Result<usize, DbError> {
    let sql = "DELETE FROM group_members WHERE tenant = $1 AND group_id = $2";
    tx.execute(scope, sql, &[&scope.tenant()?, &group.as_str()])?;
    let sql = format!(
        "SELECT {SITE_OF}, {DEVICE_COLUMNS} FROM devices WHERE tenant = $1 AND device > $2 ORDER BY device LIMIT $3"
    );
    let (mut after, mut members) = (String::new(), 0);
    loop {
        let devices = tx.query(scope, &sql, &[&scope.tenant()?, &after, &FILL_ROWS], placed)?;
        let Some(last) = devices.last() else { return Ok(members) };
        last.row.device.as_str().clone_into(&mut after);
        let fits =
            |found: &&PlacedDevice| facts::matches(condition, &facts_of(&found.row, found.site.as_deref()));
        let fitting: Vec<&str> = devices.iter().filter(fits).map(|found| found.row.device.as_str()).collect();
        members_insert(tx, scope, group.as_str(), &fitting)?;
        members += fitting.len();
    }
}
