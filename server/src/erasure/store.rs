//! SQL of the jobs and their files. Only the service and the worker call it.

use super::model::{File, Job, Member, Place, State};
use crate::platform::db::{DbError, Row, Scope, Tx};
use crate::tenants::hold_account;
use muster_wire::{DeviceId, TenantId};

const COLUMNS: &str = "tenant, id, device, state, with_export, requested_by, requested_at_us, members, log_epoch, \
     log_position, since_us, place, rows_exported, rows_erased, waiting_for, done_at_us, export_until_us, \
     requester, tries, next_try_at_us";

fn bad(column: &str) -> DbError {
    DbError::Column { column: column.into() }
}

fn job(row: &Row<'_>) -> Result<Job, DbError> {
    let device = row.get::<String>(2)?;
    let device = (!device.is_empty()).then(|| DeviceId::parse(&device)).transpose();
    let epoch = row.get::<Option<String>>(8)?.map(|text| u64::from_str_radix(&text, 16)).transpose();
    let position = row.get::<Option<i64>>(9)?.map(i64::cast_unsigned);
    Ok(Job {
        tenant: TenantId::parse(&row.get::<String>(0)?).map_err(|_| bad("tenant"))?,
        id: row.get(1)?,
        device: device.map_err(|_| bad("device"))?,
        state: State::parse(&row.get::<String>(3)?).ok_or_else(|| bad("state"))?,
        with_export: row.get(4)?,
        requested_by: row.get(5)?,
        requested_at_us: row.get(6)?,
        members: serde_json::from_str(&row.get::<String>(7)?).map_err(|_| bad("members"))?,
        log: epoch.map_err(|_| bad("log_epoch"))?.zip(position),
        since_us: row.get(10)?,
        place: serde_json::from_str::<Place>(&row.get::<String>(11)?).map_err(|_| bad("place"))?,
        rows_exported: row.get(12)?,
        rows_erased: row.get(13)?,
        waiting_for: row.get(14)?,
        done_at_us: row.get(15)?,
        export_until_us: row.get(16)?,
        requester: row.get(17)?,
        tries: row.get(18)?,
        next_try_at_us: row.get(19)?,
    })
}

fn json(value: &impl serde::Serialize, column: &str) -> Result<String, DbError> {
    serde_json::to_string(value).map_err(|_| bad(column))
}

pub(super) fn insert(tx: &mut Tx<'_>, scope: &Scope, job: &Job) -> Result<(), DbError> {
    tx.execute(
        scope,
        "INSERT INTO erasures (tenant, id, device, state, with_export, requested_by, requested_at_us, members,
             since_us, place, rows_exported, rows_erased, requester, tries, next_try_at_us)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 0, 0, $11, 0, 0)",
        &[
            &scope.tenant()?,
            &job.id,
            &job.device.as_ref().map_or("", DeviceId::as_str),
            &job.state.as_str(),
            &job.with_export,
            &job.requested_by,
            &job.requested_at_us,
            &json(&job.members, "members")?,
            &job.since_us,
            &json(&job.place, "place")?,
            &job.requester,
        ],
    )
    .map(drop)
}

/// Writes what steps change.
pub(super) fn update(tx: &mut Tx<'_>, scope: &Scope, job: &Job) -> Result<bool, DbError> {
    let rows = tx.execute(
        scope,
        "UPDATE erasures SET state = $3, members = $4, log_epoch = $5, log_position = $6, since_us = $7, place = $8,
             rows_exported = $9, rows_erased = $10, waiting_for = $11, done_at_us = $12, export_until_us = $13,
             tries = $14, next_try_at_us = $15
         WHERE tenant = $1 AND id = $2",
        &[
            &scope.tenant()?,
            &job.id,
            &job.state.as_str(),
            &json(&job.members, "members")?,
            &job.log.map(|(epoch, _)| format!("{epoch:x}")),
            &job.log.map(|(_, position)| position.cast_signed()),
            &job.since_us,
            &json(&job.place, "place")?,
            &job.rows_exported,
            &job.rows_erased,
            &job.waiting_for,
            &job.done_at_us,
            &job.export_until_us,
            &job.tries,
            &job.next_try_at_us,
        ],
    )?;
    Ok(rows == 1)
}

pub(super) fn get(tx: &mut Tx<'_>, scope: &Scope, id: &str) -> Result<Option<Job>, DbError> {
    let sql = format!("SELECT {COLUMNS} FROM erasures WHERE tenant = $1 AND id = $2");
    tx.query_opt(scope, &sql, &[&scope.tenant()?, &id], job)
}

/// Jobs of a tenant by id, which grows with time.
pub(super) fn list(tx: &mut Tx<'_>, scope: &Scope, after: &str, limit: i64) -> Result<Vec<Job>, DbError> {
    let sql = format!("SELECT {COLUMNS} FROM erasures WHERE tenant = $1 AND id > $2 ORDER BY id LIMIT $3");
    tx.query(scope, &sql, &[&scope.tenant()?, &after, &limit], job)
}

pub(super) fn tenant_exists(tx: &mut Tx<'_>, scope: &Scope) -> Result<bool, DbError> {
    let sql = "SELECT count(*) FROM tenants WHERE tenant = $1";
    Ok(tx.query_one(scope, sql, &[&scope.tenant()?], |row| row.get::<i64>(0))? > 0)
}

pub(super) fn open_count(tx: &mut Tx<'_>, scope: &Scope) -> Result<i64, DbError> {
    let sql = "SELECT count(*) FROM erasures WHERE tenant = $1 AND done_at_us IS NULL";
    tx.query_one(scope, sql, &[&scope.tenant()?], |row| row.get::<i64>(0))
}

/// Whether a whole tenant is being or was erased.
pub(super) fn is_tenant_erased(tx: &mut Tx<'_>, scope: &Scope) -> Result<bool, DbError> {
    let sql = "SELECT count(*) FROM erasures WHERE tenant = $1 AND device = ''";
    Ok(tx.query_one(scope, sql, &[&scope.tenant()?], |row| row.get::<i64>(0))? > 0)
}

/// Of each tenant behind `after` the oldest job that may be tried now; a tenant's many jobs hold up nobody else's.
pub(super) fn due(
    tx: &mut Tx<'_>,
    scope: &Scope,
    now_us: i64,
    after: &str,
    limit: i64,
) -> Result<Vec<Job>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = format!(
        "SELECT {COLUMNS} FROM erasures WHERE done_at_us IS NULL AND next_try_at_us <= $1 AND tenant > $2
             AND NOT EXISTS (SELECT 1 FROM erasures o WHERE o.tenant = erasures.tenant AND o.done_at_us IS NULL
                             AND o.next_try_at_us <= $1 AND o.id < erasures.id)
         ORDER BY tenant LIMIT $3"
    );
    tx.query(scope, &sql, &[&now_us, &after, &limit], job)
}

/// A job whose export is past its time and may be tried now, of any tenant.
pub(super) fn expired(tx: &mut Tx<'_>, scope: &Scope, now_us: i64) -> Result<Option<Job>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = format!(
        "SELECT {COLUMNS} FROM erasures WHERE export_until_us <= $1 AND next_try_at_us <= $1
         ORDER BY export_until_us, tenant, id LIMIT 1"
    );
    tx.query_opt(scope, &sql, &[&now_us], job)
}

/// Ends the tenant's other jobs: theirs is done with the tenant's, and their exports go as well.
pub(super) fn end_others(tx: &mut Tx<'_>, scope: &Scope, id: &str, now_us: i64) -> Result<(), DbError> {
    let (tenant, done) = (scope.tenant()?, State::Done.as_str());
    let exports = "UPDATE erasures SET export_until_us = NULL WHERE tenant = $1 AND id <> $2";
    tx.execute(scope, exports, &[&tenant, &id])?;
    let open = "UPDATE erasures SET state = $3, done_at_us = $4, waiting_for = NULL
                WHERE tenant = $1 AND id <> $2 AND done_at_us IS NULL";
    tx.execute(scope, open, &[&tenant, &id, &done, &now_us]).map(drop)
}

/// A file is written again where a crash came before its job knew of it.
pub(super) fn file_put(tx: &mut Tx<'_>, scope: &Scope, id: &str, file: &File) -> Result<(), DbError> {
    tx.execute(
        scope,
        "INSERT INTO erasure_files (tenant, id, name, bytes, sha256, row_count) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (tenant, id, name) DO UPDATE SET bytes = excluded.bytes, sha256 = excluded.sha256,
             row_count = excluded.row_count",
        &[&scope.tenant()?, &id, &file.name, &file.bytes, &file.sha256, &file.rows],
    )
    .map(drop)
}

fn file(row: &Row<'_>) -> Result<File, DbError> {
    Ok(File { name: row.get(0)?, bytes: row.get(1)?, sha256: row.get(2)?, rows: row.get(3)? })
}

pub(super) fn file_get(
    tx: &mut Tx<'_>,
    scope: &Scope,
    id: &str,
    name: &str,
) -> Result<Option<File>, DbError> {
    let sql = "SELECT name, bytes, sha256, row_count FROM erasure_files
               WHERE tenant = $1 AND id = $2 AND name = $3";
    tx.query_opt(scope, sql, &[&scope.tenant()?, &id, &name], file)
}

pub(super) fn file_list(
    tx: &mut Tx<'_>,
    scope: &Scope,
    id: &str,
    after: &str,
    limit: i64,
) -> Result<Vec<File>, DbError> {
    let sql = "SELECT name, bytes, sha256, row_count FROM erasure_files
               WHERE tenant = $1 AND id = $2 AND name > $3 ORDER BY name LIMIT $4";
    tx.query(scope, sql, &[&scope.tenant()?, &id, &after, &limit], file)
}

/// Files that hold rows, by name; or, with `pages`, the manifest's pages.
pub(super) fn files_named(
    tx: &mut Tx<'_>,
    scope: &Scope,
    id: &str,
    (pages, after): (bool, &str),
    limit: i64,
) -> Result<Vec<File>, DbError> {
    let named = if pages { "name LIKE 'manifest-%'" } else { "name NOT LIKE 'manifest%'" };
    let sql = format!(
        "SELECT name, bytes, sha256, row_count FROM erasure_files
         WHERE tenant = $1 AND id = $2 AND name > $3 AND {named} ORDER BY name LIMIT $4"
    );
    tx.query(scope, &sql, &[&scope.tenant()?, &id, &after, &limit], file)
}

/// Forgets files of a job, or with `others` of the tenant's other jobs, at most `limit`; gives how many.
pub(super) fn files_forget(
    tx: &mut Tx<'_>,
    scope: &Scope,
    id: &str,
    others: bool,
    limit: i64,
) -> Result<usize, DbError> {
    let of = if others { "<>" } else { "=" };
    let sql = format!(
        "DELETE FROM erasure_files WHERE tenant = $1 AND (id, name) IN
             (SELECT id, name FROM erasure_files WHERE tenant = $1 AND id {of} $2 LIMIT $3)"
    );
    tx.execute(scope, &sql, &[&scope.tenant()?, &id, &limit])
}

/// Who belongs to the tenant. `accounts` sees the addresses.
pub(super) fn members(tx: &mut Tx<'_>, accounts: &Scope, tenant: &TenantId) -> Result<Vec<Member>, DbError> {
    debug_assert!(matches!(accounts, Scope::System(_)));
    let sql =
        "SELECT u.user_id, u.email, m.role, m.reach FROM memberships m JOIN users u ON u.user_id = m.user_id
               WHERE m.tenant = $1 ORDER BY u.email";
    tx.query(accounts, sql, &[&tenant.as_str()], |row| {
        Ok(Member { user_id: row.get(0)?, email: row.get(1)?, role: row.get(2)?, reach: row.get(3)? })
    })
}

/// From now on nobody is a member or can become one, and no claim enrols a device; the job remembers who was. Leaves to set
/// a member's password end too: who gave them is out.
pub(super) fn shut_people_out(tx: &mut Tx<'_>, accounts: &Scope, job: &mut Job) -> Result<(), DbError> {
    let scope = Scope::Tenant(job.tenant.clone());
    // The tenant's own statements come first: what another write of it began is there.
    for table in ["invitations", "claims"] {
        tx.execute(&scope, &format!("DELETE FROM {table} WHERE tenant = $1"), &[&scope.tenant()?])?;
    }
    for member in members(tx, accounts, &job.tenant)? {
        if job.members.iter().all(|known| known.user_id != member.user_id) {
            job.members.push(member);
        }
    }
    let resets = "DELETE FROM password_resets
        WHERE user_id IN (SELECT m.user_id FROM memberships m WHERE m.tenant = $1)";
    tx.execute(accounts, resets, &[&job.tenant.as_str()])?;
    tx.execute(&scope, "DELETE FROM memberships WHERE tenant = $1", &[&scope.tenant()?])?;
    Ok(())
}

/// Deletes an account that belongs to no tenant any more and administers nothing, with what refers to it.
pub(super) fn account_forget(tx: &mut Tx<'_>, accounts: &Scope, user_id: &str) -> Result<u64, DbError> {
    const LONELY: &str = "user_id = $1 AND NOT EXISTS (SELECT 1 FROM memberships m WHERE m.user_id = $1)
        AND EXISTS (SELECT 1 FROM users u WHERE u.user_id = $1 AND u.system_admin = 0)";
    hold_account(tx, accounts, user_id)?;
    let mut rows = 0;
    // Those that refer to `users` first.
    for table in ["password_resets", "sessions"] {
        rows += tx.execute(accounts, &format!("DELETE FROM {table} WHERE {LONELY}"), &[&user_id])?;
    }
    let users = "DELETE FROM users WHERE user_id = $1 AND system_admin = 0
        AND NOT EXISTS (SELECT 1 FROM memberships m WHERE m.user_id = $1)";
    Ok((rows + tx.execute(accounts, users, &[&user_id])?) as u64)
}
