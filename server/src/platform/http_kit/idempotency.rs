//! Answers of requests with an `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header), so that a client that
//! lost an answer may ask again.
//!
//! `http::repeat` calls it around every operation that creates. Promise: of one key, the request runs at most once
//! while the row lives ([`LIFE_US`]); a good answer is given again as it was, a refused request leaves the key free. Where
//! nobody knows whether it was done (a fault of the server's), or the answer cannot be kept, the key stays taken.
//! An answer may hold a secret that is shown once, so it is sealed under a key made from the caller's own credential
//! and the idempotency key: the registry alone does not open it. Bound: [`KEYS_MAX`] keys a tenant,
//! [`ANSWER_BYTES_MAX`] an answer.

use crate::platform::db::{Db, DbError, Scope, Tx};
use crate::platform::secret::random_bytes;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use muster_wire::TenantId;
use sha2::{Digest as _, Sha256};

/// The header.
pub const HEADER: &str = "Idempotency-Key";
/// What a key looks like: 1 to 64 visible characters, in quotes or without them.
pub const KEY_PATTERN: &str = "^(\"[!#-~]{1,64}\"|[!#-~]{1,64})$";
/// The longest key, in characters.
const KEY_CHARS_MAX: usize = 64;
/// How long a key is kept.
pub const LIFE_US: i64 = 24 * 3_600_000_000;
/// Keys of one tenant.
pub const KEYS_MAX: i64 = 10_000;
/// Keys that one call of [`prune`] forgets.
pub const PRUNED_MAX: i64 = 1_000;
/// The largest answer that is kept, in bytes.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Reads the header's text: a string of RFC 8941, or the same without its quotes.
#[must_use]
pub fn parse_key(text: &str) -> Option<&str> {
    let key = match text.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"')?,
        None => text,
    };
    let plain = key.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"');
    (plain && (1..=KEY_CHARS_MAX).contains(&key.len())).then_some(key)
}

/// A request that wants to run once.
#[derive(Clone)]
pub struct Once {
    /// Whose rows: the path's tenant, or the server's.
    pub scope: Scope,
    /// Who asks.
    pub caller: String,
    /// What they ask: method, path and body.
    pub fingerprint: [u8; 32],
    key_sha256: [u8; 32],
    seal: [u8; 32],
}

/// What is known of a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing: it is taken now, run the request.
    Nothing,
    /// It was used with another request.
    Other,
    /// Its request still runs, or ended without an answer that is kept.
    Running,
    /// Its answer.
    Answer(Answer),
    /// Its answer, which this credential does not open.
    Sealed,
    /// The tenant has too many keys.
    Full,
}

/// An answer as it was given.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// The headers that belong to it.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: String,
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

impl Once {
    /// Of a caller, their credential (a token's or a session's 256 random bits), the key and the request.
    #[must_use]
    pub fn new(scope: Scope, caller: String, credential: &[u8], key: &str, request: &[&[u8]]) -> Self {
        Self {
            scope,
            caller,
            fingerprint: hash(request),
            key_sha256: hash(&[b"muster idempotency key", key.as_bytes()]),
            seal: hash(&[b"muster idempotency seal", credential, key.as_bytes()]),
        }
    }

    fn tenant(&self) -> &str {
        of(&self.scope)
    }

    fn cipher(&self) -> LessSafeKey {
        let key = UnboundKey::new(&AES_256_GCM, &self.seal).expect("the key has the cipher's length");
        LessSafeKey::new(key)
    }

    /// Nonce, then the sealed answer.
    fn sealed(&self, answer: &Answer) -> Option<Vec<u8>> {
        let mut text = serde_json::to_vec(answer).ok()?;
        let nonce = random_bytes::<NONCE_LEN>();
        let aad = Aad::from(self.fingerprint);
        self.cipher().seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut text).ok()?;
        Some([nonce.as_slice(), &text].concat())
    }

    fn opened(&self, sealed: &[u8]) -> Option<Answer> {
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN)?;
        let (nonce, mut text) = (Nonce::try_assume_unique_for_key(nonce).ok()?, text.to_vec());
        let text = self.cipher().open_in_place(nonce, Aad::from(self.fingerprint), &mut text).ok()?;
        serde_json::from_slice(text).ok()
    }
}

/// Takes the key, or tells what is known of it.
///
/// # Errors
/// The database's.
pub async fn begin(db: &Db, once: &Once, now_us: i64) -> Result<Found, DbError> {
    let once = once.clone();
    db.write(move |tx| {
        tx.lock(&once.scope, once.tenant())?;
        expire(tx, &once, now_us)?;
        match get(tx, &once)? {
            Some((fingerprint, _)) if fingerprint != once.fingerprint => Ok(Found::Other),
            Some((_, None)) => Ok(Found::Running),
            Some((_, Some(sealed))) => Ok(once.opened(&sealed).map_or(Found::Sealed, Found::Answer)),
            None if count(tx, &once)? >= KEYS_MAX => Ok(Found::Full),
            None => insert(tx, &once, now_us).map(|()| Found::Nothing),
        }
    })
    .await
}

/// How a request with a key ended.
#[derive(Debug)]
pub enum Ended<'a> {
    /// With a good answer, to be given again.
    Good(&'a Answer),
    /// Refused before anything was done: the key is free again.
    Refused,
    /// Nobody knows whether it was done: the key stays taken, without an answer.
    Unknown,
}

/// Keeps what is known of a request's end. A good answer over [`ANSWER_BYTES_MAX`] leaves the key taken, without one.
///
/// # Errors
/// The database's.
pub async fn end(db: &Db, once: Once, ended: Ended<'_>) -> Result<(), DbError> {
    let sealed = match ended {
        Ended::Refused => return db.write(move |tx| forget(tx, &once)).await,
        Ended::Good(answer) => once.sealed(answer).filter(|text| text.len() <= ANSWER_BYTES_MAX),
        Ended::Unknown => None,
    };
    let Some(sealed) = sealed else { return Ok(()) };
    db.write(move |tx| keep(tx, &once, &sealed)).await
}

/// Forgets at most [`PRUNED_MAX`] keys of a tenant, or of the server, that are past their life; says how many. Idempotent;
/// `app` calls it hourly.
///
/// # Errors
/// The database's.
pub async fn prune(db: &Db, tenant: Option<&TenantId>, now_us: i64) -> Result<usize, DbError> {
    let scope = tenant.map_or(Scope::System("idempotency"), |tenant| Scope::Tenant(tenant.clone()));
    let sql = "DELETE FROM idempotency_keys WHERE tenant = $1 AND (caller, key_sha256) IN
                 (SELECT caller, key_sha256 FROM idempotency_keys WHERE tenant = $1 AND expires_at_us <= $2 LIMIT $3)";
    db.write(move |tx| tx.execute(&scope, sql, &[&of(&scope), &now_us, &PRUNED_MAX])).await
}

/// The tenant's text in a row.
fn of(scope: &Scope) -> &str {
    match scope {
        Scope::Tenant(tenant) => tenant.as_str(),
        Scope::System(_) => "-",
    }
}

fn expire(tx: &mut Tx<'_>, once: &Once, now_us: i64) -> Result<(), DbError> {
    let sql = "DELETE FROM idempotency_keys WHERE tenant = $1 AND expires_at_us <= $2";
    tx.execute(&once.scope, sql, &[&once.tenant(), &now_us]).map(drop)
}

/// The request's fingerprint, and the sealed answer once there is one.
type Held = ([u8; 32], Option<Vec<u8>>);

fn get(tx: &mut Tx<'_>, once: &Once) -> Result<Option<Held>, DbError> {
    let sql = "SELECT fingerprint, answer FROM idempotency_keys
               WHERE tenant = $1 AND caller = $2 AND key_sha256 = $3";
    tx.query_opt(&once.scope, sql, &[&once.tenant(), &once.caller, &once.key_sha256], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })
}

fn count(tx: &mut Tx<'_>, once: &Once) -> Result<i64, DbError> {
    let sql = "SELECT count(*) FROM idempotency_keys WHERE tenant = $1";
    tx.query_one(&once.scope, sql, &[&once.tenant()], |row| row.get(0))
}

fn insert(tx: &mut Tx<'_>, once: &Once, now_us: i64) -> Result<(), DbError> {
    let sql = "INSERT INTO idempotency_keys (tenant, caller, key_sha256, fingerprint, expires_at_us)
               VALUES ($1, $2, $3, $4, $5)";
    let expires_at_us = now_us.saturating_add(LIFE_US);
    let args: [&dyn crate::platform::db::ToSql; 5] =
        [&once.tenant(), &once.caller, &once.key_sha256, &once.fingerprint, &expires_at_us];
    tx.execute(&once.scope, sql, &args).map(drop)
}

fn keep(tx: &mut Tx<'_>, once: &Once, sealed: &[u8]) -> Result<(), DbError> {
    let sql = "UPDATE idempotency_keys SET answer = $4 WHERE tenant = $1 AND caller = $2 AND key_sha256 = $3";
    tx.execute(&once.scope, sql, &[&once.tenant(), &once.caller, &once.key_sha256, &sealed]).map(drop)
}

fn forget(tx: &mut Tx<'_>, once: &Once) -> Result<(), DbError> {
    let sql = "DELETE FROM idempotency_keys
               WHERE tenant = $1 AND caller = $2 AND key_sha256 = $3 AND answer IS NULL";
    tx.execute(&once.scope, sql, &[&once.tenant(), &once.caller, &once.key_sha256]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::registry;

    fn once(caller: &str, credential: &str, key: &str, body: &str) -> Once {
        let scope = Scope::Tenant(TenantId::parse("acme").unwrap());
        Once::new(scope, caller.into(), credential.as_bytes(), key, &[b"POST", body.as_bytes()])
    }

    fn answer() -> Answer {
        Answer { status: 201, headers: vec![], body: r#"{"secret":"mst_shown_once"}"#.into() }
    }

    #[test]
    fn keys_have_a_shape() {
        for (text, key) in
            [("a", Some("a")), ("\"a-1\"", Some("a-1")), ("\"a", None), ("", None), ("\"\"", None)]
        {
            assert_eq!(parse_key(text), key, "{text}");
        }
        assert!(parse_key(&"k".repeat(KEY_CHARS_MAX)).is_some());
        assert!(parse_key(&"k".repeat(KEY_CHARS_MAX + 1)).is_none());
        assert!(parse_key("a b").is_none() && parse_key("é").is_none());
    }

    #[tokio::test]
    async fn a_key_is_of_one_caller_and_one_request_for_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let db = registry(dir.path());
        let first = once("token:t", "secret", "k", "body");
        assert_eq!(begin(&db, &first, 0).await.unwrap(), Found::Nothing);
        assert_eq!(begin(&db, &first, 1).await.unwrap(), Found::Running);
        assert_eq!(begin(&db, &once("token:t", "secret", "k", "other"), 1).await.unwrap(), Found::Other);
        assert_eq!(begin(&db, &once("token:u", "secret", "k", "body"), 1).await.unwrap(), Found::Nothing);
        end(&db, first.clone(), Ended::Good(&answer())).await.unwrap();
        assert_eq!(begin(&db, &first, LIFE_US - 1).await.unwrap(), Found::Answer(answer()));
        let relogged = once("token:t", "another secret", "k", "body");
        assert_eq!(begin(&db, &relogged, 2).await.unwrap(), Found::Sealed);
        assert_eq!(begin(&db, &first, LIFE_US).await.unwrap(), Found::Nothing, "a day later it is free");
        end(&db, first.clone(), Ended::Refused).await.unwrap();
        assert_eq!(begin(&db, &first, LIFE_US).await.unwrap(), Found::Nothing, "refused, so free");
        end(&db, first.clone(), Ended::Unknown).await.unwrap();
        assert_eq!(begin(&db, &first, LIFE_US).await.unwrap(), Found::Running, "perhaps done, so taken");
    }

    #[tokio::test]
    async fn what_is_stored_shows_no_secret_and_a_large_answer_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let db = registry(dir.path());
        let (small, large) = (once("c", "s", "small", ""), once("c", "s", "large", ""));
        for key in [&small, &large] {
            assert_eq!(begin(&db, key, 0).await.unwrap(), Found::Nothing);
        }
        end(&db, small.clone(), Ended::Good(&answer())).await.unwrap();
        let huge = Answer { body: "x".repeat(ANSWER_BYTES_MAX), ..answer() };
        end(&db, large.clone(), Ended::Good(&huge)).await.unwrap();
        assert_eq!(begin(&db, &large, 0).await.unwrap(), Found::Running, "it was done");
        let read = move |tx: &mut Tx<'_>| get(tx, &small);
        let stored = db.read(read).await.unwrap().unwrap().1.unwrap();
        assert!(!String::from_utf8_lossy(&stored).contains("mst_"), "{stored:?}");
    }

    #[tokio::test]
    async fn a_tenant_has_a_bound_of_keys() {
        let dir = tempfile::tempdir().unwrap();
        let db = registry(dir.path());
        db.write(|tx| (0..KEYS_MAX).try_for_each(|at| insert(tx, &once("c", "s", &format!("k{at}"), ""), 0)))
            .await
            .unwrap();
        let new = once("c", "s", "new", "");
        assert_eq!(begin(&db, &new, 0).await.unwrap(), Found::Full);
        assert_eq!(begin(&db, &new, LIFE_US).await.unwrap(), Found::Nothing, "old ones are forgotten");
        let acme = TenantId::parse("acme").unwrap();
        assert_eq!(prune(&db, Some(&acme), LIFE_US).await.unwrap(), 0);
        assert_eq!(prune(&db, None, 2 * LIFE_US).await.unwrap(), 0, "another's");
        assert_eq!(prune(&db, Some(&acme), 2 * LIFE_US).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn one_turn_of_pruning_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let db = registry(dir.path());
        db.write(|tx| {
            (0..=PRUNED_MAX).try_for_each(|at| insert(tx, &once("c", "s", &format!("k{at}"), ""), 0))
        })
        .await
        .unwrap();
        let acme = TenantId::parse("acme").unwrap();
        for left in [PRUNED_MAX, 1, 0] {
            let pruned = prune(&db, Some(&acme), LIFE_US).await.unwrap();
            assert_eq!(i64::try_from(pruned).unwrap(), left);
        }
    }
}
