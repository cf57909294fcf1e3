//! What [`Db`] promises, held on each engine: SQLite, PostgreSQL, and PostgreSQL with an ICU locale.

use super::*;
use crate::platform::schema;
use muster_services::Postgres;
use muster_wire::TenantId;
use std::sync::Arc;

const ALL: Scope = Scope::System("test");

/// A database of one engine, with what keeps it alive.
pub(super) struct Site {
    pub(super) db: Db,
    pub(super) engine: &'static str,
    _dir: Option<tempfile::TempDir>,
    server: Option<Arc<Postgres>>,
}

pub(super) fn options(url: &str) -> PostgresOptions {
    PostgresOptions::at(url.parse().unwrap())
}

/// Each engine with an empty registry.
pub(super) fn sites() -> Vec<Site> {
    let dir = tempfile::tempdir().unwrap();
    let sqlite = Db::open(&dir.path().join("registry.db"), schema::registry(), 2).unwrap();
    let mut all = vec![Site { db: sqlite, engine: "sqlite", _dir: Some(dir), server: None }];
    let server = Arc::new(Postgres::start().unwrap());
    let icu = "LOCALE_PROVIDER icu ICU_LOCALE 'de-DE' LOCALE 'C'";
    for (engine, name, how) in [("postgres", "plain", "LOCALE 'C'"), ("postgres-icu", "icu", icu)] {
        let database = server.database_with(name, how).unwrap();
        let db = Db::connect(&options(&database.url), schema::registry_postgres()).unwrap();
        all.push(Site { db, engine, _dir: None, server: Some(server.clone()) });
    }
    all
}

fn tenant(name: &str) -> Scope {
    Scope::Tenant(TenantId::parse(name).unwrap())
}

impl Site {
    fn add_tenants(&self, names: &[&str]) {
        for name in names {
            let (scope, name) = (tenant(name), (*name).to_owned());
            let insert = move |tx: &mut Tx<'_>| add_tenant(tx, &scope, &name);
            self.db.write_blocking(insert).unwrap();
        }
    }

    fn ids(&self, scope: &Scope) -> Vec<String> {
        let scope = scope.clone();
        self.db
            .read_blocking(move |tx| {
                tx.query::<String, DbError>(
                    &scope,
                    "SELECT tenant FROM tenants ORDER BY tenant",
                    &[],
                    |row| row.get(0),
                )
            })
            .unwrap()
    }
}

fn add_tenant(tx: &mut Tx<'_>, scope: &Scope, name: &str) -> Result<(), DbError> {
    let sql = "INSERT INTO tenants (tenant, name, created_at_us) VALUES ($1, $2, $3)";
    tx.execute(scope, sql, &[&name, &"n", &5]).map(drop)
}

#[test]
fn a_statement_takes_and_gives_each_type_by_its_number() {
    for site in sites() {
        site.add_tenants(&["acme"]);
        let written = site.db.write_blocking(|tx| {
            let scope = tenant("acme");
            let sql = "INSERT INTO devices (device, tenant, name, enabled, labels, token_sha256, created_at_us)
                       VALUES ($2, $1, $3, $4, '$1', $5, $6)";
            let name: Option<String> = Some("it's $1 é".into());
            tx.execute(&scope, sql, &[&"acme", &"d", &name, &true, &[7_u8; 32], &i64::MAX])?;
            let sql = "SELECT device, name, enabled, labels, token_sha256, created_at_us, enrolled_at_us, length(name)
                       FROM devices WHERE tenant = $1";
            tx.query_one(&scope, sql, &[&"acme"], |row| {
                let texts: (String, String, String) = (row.get(0)?, row.get(1)?, row.get(3)?);
                let none: Option<i64> = row.get(6)?;
                assert_eq!((row.get::<bool>(2)?, row.get::<[u8; 32]>(4)?, none), (true, [7; 32], None));
                assert!(row.get::<i64>(0).is_err(), "a text is no integer");
                Ok::<_, DbError>((texts, row.get::<i64>(5)?, row.get::<i32>(7)?))
            })
        });
        let texts = ("d".to_owned(), "it's $1 é".to_owned(), "$1".to_owned());
        assert_eq!(written.unwrap(), (texts, i64::MAX, 9), "{}", site.engine);
    }
}

#[test]
fn a_failed_or_panicking_closure_leaves_no_trace_and_says_what_failed() {
    for site in sites() {
        site.add_tenants(&["acme"]);
        let twice = site.db.write_blocking(|tx| {
            add_tenant(tx, &ALL, "b")?;
            add_tenant(tx, &ALL, "acme")
        });
        assert!(twice.unwrap_err().is_unique_violation(), "{}", site.engine);
        let own = site.db.write_blocking(|tx| {
            add_tenant(tx, &ALL, "c")?;
            Err::<(), _>(DbError::Busy)
        });
        assert!(matches!(own, Err(DbError::Busy)));
        let panics = site.db.write_blocking(|tx| -> Result<(), DbError> {
            add_tenant(tx, &ALL, "d")?;
            panic!("on purpose")
        });
        assert!(matches!(panics, Err(DbError::Closed)));
        let goes_on = site.db.write_blocking(|tx| {
            add_tenant(tx, &ALL, "e")?;
            assert!(add_tenant(tx, &ALL, "acme").is_err());
            Ok::<_, DbError>(())
        });
        assert!(matches!(goes_on, Err(DbError::Failed)), "{}: {goes_on:?}", site.engine);
        assert!(site.db.read_blocking(|tx| add_tenant(tx, &ALL, "f")).is_err(), "a read writes nothing");
        assert_eq!(site.ids(&ALL), ["acme"], "{}", site.engine);
    }
}

#[test]
fn keys_sort_by_bytes_whatever_the_locale() {
    for site in sites() {
        site.add_tenants(&["b-1", "b1", "b", "a", "b-a"]);
        assert_eq!(site.ids(&ALL), ["a", "b", "b-1", "b-a", "b1"], "{}", site.engine);
    }
}

#[test]
fn a_read_is_one_snapshot() {
    for site in sites() {
        site.add_tenants(&["acme"]);
        let db = site.db.clone();
        let count = |tx: &mut Tx<'_>| {
            tx.query_one::<i64, DbError>(&ALL, "SELECT count(*) FROM tenants", &[], |row| row.get(0))
        };
        let counts = site.db.read_blocking(move |tx| {
            let before = count(tx)?;
            db.write_blocking(|tx| add_tenant(tx, &ALL, "b"))?;
            Ok::<_, DbError>((before, count(tx)?))
        });
        assert_eq!(counts.unwrap(), (1, 1), "{}", site.engine);
        assert_eq!(site.ids(&ALL), ["acme", "b"]);
    }
}

#[test]
fn writes_of_a_tenant_are_serial() {
    for site in sites() {
        site.add_tenants(&["acme"]);
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let db = site.db.clone();
                std::thread::spawn(move || {
                    for _ in 0..10 {
                        db.write_blocking(|tx| {
                            let scope = tenant("acme");
                            let sql = "SELECT created_at_us FROM tenants WHERE tenant = $1";
                            let now: i64 =
                                tx.query_one::<_, DbError>(&scope, sql, &[&"acme"], |row| row.get(0))?;
                            let sql = "UPDATE tenants SET created_at_us = $2 WHERE tenant = $1";
                            tx.execute(&scope, sql, &[&"acme", &(now + 1)])
                        })
                        .unwrap();
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let sum = site.db.read_blocking(|tx| {
            tx.query_one::<i64, DbError>(&ALL, "SELECT created_at_us FROM tenants", &[], |row| row.get(0))
        });
        assert_eq!(sum.unwrap(), 5 + 80, "{}: none was lost", site.engine);
    }
}

#[test]
fn both_schemas_have_the_same_columns_and_keys() {
    let sites = sites();
    let columns = |site: &Site, sql: &'static str| {
        let rows = site.db.read_blocking(move |tx| {
            tx.query::<_, DbError>(&ALL, sql, &[], |row| {
                Ok((row.get::<String>(0)?, row.get::<String>(1)?, row.get::<String>(2)?, row.get::<bool>(3)?))
            })
        });
        rows.unwrap()
    };
    let sqlite = columns(
        &sites[0],
        "SELECT m.name, c.name,
                CASE c.type WHEN 'INTEGER' THEN 'int' WHEN 'TEXT' THEN 'text' WHEN 'BLOB' THEN 'bytea' ELSE c.type END,
                c.\"notnull\" <> 0 OR c.pk > 0
         FROM sqlite_schema m JOIN pragma_table_info(m.name) c
         WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%' AND m.name <> 'refinery_schema_history'
         ORDER BY 1, 2",
    );
    let postgres = columns(
        &sites[1],
        "SELECT c.relname::text COLLATE \"C\", a.attname::text COLLATE \"C\",
                CASE t.typname WHEN 'int8' THEN 'int' WHEN 'int2' THEN 'int' ELSE t.typname::text END, a.attnotnull
         FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 JOIN pg_type t ON t.oid = a.atttypid
         WHERE c.relkind = 'r' AND c.relnamespace = 'muster'::regnamespace AND c.relname NOT IN ('refinery_schema_history', 'leases')
         ORDER BY 1, 2",
    );
    assert!(sqlite.len() > 100);
    assert_eq!(sqlite, postgres);
}

#[test]
fn every_table_is_held_by_row_level_security() {
    let sites = sites();
    let server = sites[1].server.as_ref().unwrap();
    let open = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'muster'::regnamespace
                AND NOT (relrowsecurity AND relforcerowsecurity) AND relname <> 'refinery_schema_history'";
    assert_eq!(server.sql("plain", open).unwrap(), "");
    // A table without a policy shows a tenant nothing, and the worker neither: whoever adds one has to say.
    let unsaid = "SELECT c.relname FROM pg_class c
                  WHERE c.relkind = 'r' AND c.relnamespace = 'muster'::regnamespace
                    AND c.relname <> 'refinery_schema_history' AND NOT EXISTS (SELECT FROM pg_policies p
                      WHERE p.schemaname = 'muster' AND p.tablename = c.relname AND p.roles = '{muster_worker}')";
    assert_eq!(server.sql("plain", unsaid).unwrap(), "");
}

#[test]
fn a_query_that_forgets_the_tenant_still_sees_no_others() {
    let sites = sites();
    for site in &sites[1..] {
        site.add_tenants(&["acme", "other"]);
        assert_eq!(site.ids(&tenant("acme")), ["acme"], "{}", site.engine);
        assert_eq!(site.ids(&tenant("nobody")), Vec::<String>::new());
        assert_eq!(site.ids(&ALL), ["acme", "other"]);
        let changed =
            site.db.write_blocking(|tx| tx.execute(&tenant("acme"), "UPDATE tenants SET name = 'x'", &[]));
        assert_eq!(changed.unwrap(), 1, "one's own");
        let foreign = site.db.write_blocking(|tx| add_tenant(tx, &tenant("acme"), "third"));
        let why = format!("{:#}", anyhow::Error::from(foreign.unwrap_err()));
        assert!(why.contains("row-level security"), "{why}");
        let who = site.db.write_blocking(|tx| {
            let sql = "SELECT current_user::text, session_user::text FROM pg_roles
                       WHERE rolname = session_user AND NOT rolsuper AND NOT rolbypassrls";
            let map = |row: &Row<'_>| Ok::<(String, String), DbError>((row.get(0)?, row.get(1)?));
            Ok::<_, DbError>((
                tx.query_one(&tenant("acme"), sql, &[], map)?,
                tx.query_one(&ALL, sql, &[], map)?,
            ))
        });
        let as_login = |role: &str| (role.to_owned(), "muster".to_owned());
        assert_eq!(who.unwrap(), (as_login("muster_app"), as_login("muster_worker")));
    }
}

#[test]
fn a_text_with_a_nul_is_stored_and_stops_nobody() {
    for site in sites() {
        let stored = site.db.write_blocking(|tx| {
            add_tenant(tx, &tenant("acme"), "acme")?;
            let sql = "UPDATE tenants SET name = $1 WHERE tenant = 'acme' RETURNING name";
            tx.query_one::<String, DbError>(&tenant("acme"), sql, &[&"a\0b"], |row| row.get(0))
        });
        let expect = if site.engine == "sqlite" { "a\0b" } else { "a\u{fffd}b" };
        assert_eq!(stored.unwrap(), expect, "{}", site.engine);
    }
}
