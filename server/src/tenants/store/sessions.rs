//! SQL of sessions.

use super::{USER_COLUMNS, UserRow, user_row};
use crate::platform::db::{DbError, Scope, Tx};

/// An open session, as its owner may see it.
#[derive(Clone, Debug)]
pub struct SessionRow {
    pub sha256: [u8; 32],
    pub peer: String,
    pub agent: String,
    pub created_at_us: i64,
    pub expires_at_us: i64,
}

/// A session to be opened.
#[derive(Clone, Copy, Debug)]
pub struct NewSession<'a> {
    pub sha256: &'a [u8; 32],
    pub user_id: &'a str,
    pub peer: &'a str,
    pub agent: &'a str,
    pub created_at_us: i64,
    pub expires_at_us: i64,
}

/// Adds a session and drops the account's expired and oldest ones beyond `keep`; the new one stays, though the clock
/// was set back since the others were opened.
pub fn insert(tx: &mut Tx<'_>, scope: &Scope, new: &NewSession<'_>, keep: i64) -> Result<(), DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let NewSession { sha256, user_id, peer, agent, created_at_us, expires_at_us } = new;
    tx.execute(
        scope,
        "INSERT INTO sessions (session_sha256, user_id, peer, agent, created_at_us, expires_at_us)
         VALUES ($1, $2, $3, $4, $5, $6)",
        &[sha256, user_id, peer, agent, created_at_us, expires_at_us],
    )?;
    tx.execute(
        scope,
        "DELETE FROM sessions WHERE user_id = $1 AND (expires_at_us <= $2 OR session_sha256 NOT IN
           (SELECT session_sha256 FROM sessions WHERE user_id = $1
            ORDER BY session_sha256 = $4 DESC, created_at_us DESC LIMIT $3))",
        &[user_id, created_at_us, &keep, sha256],
    )?;
    Ok(())
}

/// Whose session it is, unless it is past its life.
pub fn user_of(
    tx: &mut Tx<'_>,
    scope: &Scope,
    session: &[u8; 32],
    now_us: i64,
) -> Result<Option<UserRow>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = format!(
        "SELECT {USER_COLUMNS} FROM sessions s JOIN users u ON u.user_id = s.user_id
         WHERE s.session_sha256 = $1 AND s.expires_at_us > $2"
    );
    tx.query_opt(scope, &sql, &[session, &now_us], user_row)
}

/// An account's open sessions, the newest first. An account has few: the insert bounds them.
pub fn list(tx: &mut Tx<'_>, scope: &Scope, user_id: &str, now_us: i64) -> Result<Vec<SessionRow>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = "SELECT session_sha256, peer, agent, created_at_us, expires_at_us FROM sessions
               WHERE user_id = $1 AND expires_at_us > $2 ORDER BY created_at_us DESC, session_sha256";
    tx.query(scope, sql, &[&user_id, &now_us], |row| {
        Ok(SessionRow {
            sha256: row.get(0)?,
            peer: row.get(1)?,
            agent: row.get(2)?,
            created_at_us: row.get(3)?,
            expires_at_us: row.get(4)?,
        })
    })
}

/// Whose session it is, past its life or not.
pub fn account_of(tx: &mut Tx<'_>, scope: &Scope, session: &[u8; 32]) -> Result<Option<String>, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    let sql = "SELECT user_id FROM sessions WHERE session_sha256 = $1";
    tx.query_opt(scope, sql, &[session], |row| row.get(0))
}

/// Ends a session; says whether it was there.
pub fn delete(tx: &mut Tx<'_>, scope: &Scope, session: &[u8; 32]) -> Result<bool, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    Ok(tx.execute(scope, "DELETE FROM sessions WHERE session_sha256 = $1", &[session])? == 1)
}

/// Ends every session of an account but one; an empty `but` keeps none. Gives how many ended.
pub fn delete_others(tx: &mut Tx<'_>, scope: &Scope, user_id: &str, but: &[u8]) -> Result<usize, DbError> {
    debug_assert!(matches!(scope, Scope::System(_)));
    tx.execute(scope, "DELETE FROM sessions WHERE user_id = $1 AND session_sha256 <> $2", &[&user_id, &but])
}
