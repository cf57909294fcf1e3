//! What only PostgreSQL has: roles, migrations that race, connections that break, locks, TLS.

use super::session::STATEMENTS_MAX;
use super::*;
use crate::platform::db::contract::options;
use crate::platform::db::{Db, Scope};
use crate::platform::schema;
use muster_services::{Database, Postgres};
use muster_wire::TenantId;
use std::sync::Barrier;
use std::time::Duration;

const ALL: Scope = Scope::System("test");
const COUNT: &str = "SELECT count(*) FROM tenants";

fn tenant(name: &str) -> Scope {
    Scope::Tenant(TenantId::parse(name).unwrap())
}

fn site() -> (Postgres, Database) {
    let server = Postgres::start().unwrap();
    let database = server.database("registry").unwrap();
    (server, database)
}

fn connect(url: &str) -> Result<Db, DbError> {
    Db::connect(&options(url), schema::registry_postgres())
}

fn refusal(error: DbError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

#[track_caller]
fn refused(url: &str, why: &str) {
    let error = refusal(connect(url).err().expect("it is refused"));
    assert!(error.contains(why) && !error.contains("secret"), "{error}");
}

fn count(db: &Db) -> Result<i64, DbError> {
    db.read_blocking(|tx| tx.query_one(&ALL, COUNT, &[], |row| row.get(0)))
}

fn add(db: &Db, name: &str) -> Result<usize, DbError> {
    let name = name.to_owned();
    let sql = "INSERT INTO tenants (tenant, name, created_at_us) VALUES ($1, 'n', 1)";
    db.write_blocking(move |tx| tx.execute(&ALL, sql, &[&name]))
}

#[test]
fn servers_that_start_at_once_migrate_once() {
    let (server, database) = site();
    let start = Arc::new(Barrier::new(4));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (start, url) = (start.clone(), database.url.clone());
            std::thread::spawn(move || {
                start.wait();
                connect(&url).map(|db| count(&db).unwrap())
            })
        })
        .collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap().unwrap(), 0);
    }
    let applied = "SELECT count(*), count(DISTINCT version) FROM muster.refinery_schema_history";
    let newest = schema::registry_postgres().get_migrations().len();
    assert_eq!(server.sql("registry", applied).unwrap(), format!("{newest}|{newest}"));
    let owner = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'muster'";
    assert_eq!(server.sql("registry", owner).unwrap(), "muster_owner");
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    assert_eq!(server.sql("registry", locks).unwrap(), "0");
}

#[test]
fn a_newer_build_migrates_nothing_under_a_server_that_runs() {
    let (server, database) = site();
    let db = connect(&database.url).unwrap();
    let lease = db.lease(NAME).unwrap().unwrap();
    let more = refinery::Migration::unapplied("V1000__more", "CREATE TABLE more (a BIGINT)").unwrap();
    let mut all: Vec<_> = schema::registry_postgres().get_migrations().clone();
    all.push(more);
    let newer = || Db::connect(&options(&database.url), refinery::Runner::new(&all));
    let applied =
        || server.sql("registry", "SELECT max(version) FROM muster.refinery_schema_history").unwrap();
    let error = refusal(newer().err().unwrap());
    assert!(error.contains("another process holds the roles gateway and worker"), "{error}");
    let newest = all.iter().rev().nth(1).unwrap().version().to_string();
    assert_eq!(applied(), newest);
    drop(connect(&database.url).unwrap());
    drop(lease);
    let newer = newer().unwrap();
    assert_eq!(applied(), "1000");
    drop(newer.lease(NAME).unwrap().unwrap());
}

#[test]
fn a_newer_schema_is_refused() {
    let (_server, database) = site();
    drop(connect(&database.url).unwrap());
    let older = Db::connect(&options(&database.url), refinery::Runner::new(&[]));
    let error = refusal(older.err().unwrap());
    assert!(error.contains("this build knows 0: use a newer build"), "{error}");
}

#[test]
fn a_command_that_looks_migrates_nothing() {
    let (server, database) = site();
    let look = || Db::connect_as_it_is(&options(&database.url), schema::registry_postgres());
    let error = refusal(look().err().unwrap());
    assert!(error.contains("its schema is version 0"), "{error}");
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'muster'";
    assert_eq!(server.sql("registry", tables).unwrap(), "0");
    drop(connect(&database.url).unwrap());
    drop(look().unwrap());
    let older = Db::connect_as_it_is(&options(&database.url), refinery::Runner::new(&[]));
    assert!(refusal(older.err().unwrap()).contains("this build reads 0"));
}

#[test]
fn a_login_that_row_level_security_would_not_hold_is_refused() {
    let (server, database) = site();
    refused(&database.superuser_url, "postgres is a superuser or has BYPASSRLS");
    server.sql("postgres", "CREATE ROLE plain LOGIN PASSWORD 'secret'").unwrap();
    let plain = database.url.replace("muster:not-a-secret", "plain:secret");
    refused(&plain, "plain is no member of the role muster_owner: run deploy/postgres/roles.sql");
    server.sql("postgres", "ALTER ROLE muster BYPASSRLS").unwrap();
    refused(&database.url, "has BYPASSRLS");
    let nowhere = database.url.replace("/registry", "/nowhere");
    refused(&nowhere, "\"nowhere\" does not exist");
    drop(server);
    refused(&database.url, "cannot be reached: postgres://127.0.0.1:");
}

#[test]
fn an_address_that_is_none_is_named_and_a_password_is_never_shown() {
    let parse = |text: &str| text.parse::<PostgresUrl>();
    for wrong in
        ["", "sqlite:x", "postgres://", "postgres://host/db", "postgres://u@h", "postgres://u:p@h:x/d"]
    {
        assert!(parse(wrong).unwrap_err().starts_with("expected postgres://user:password@host"), "{wrong}");
    }
    let url = parse("postgres://u:hidden@h1:1,h2:2/d?sslmode=require").unwrap();
    assert_eq!(
        (url.to_string(), format!("{url:?}")),
        ("postgres://h1:1,h2:2/d".into(), "postgres://h1:1,h2:2/d".into())
    );
}

#[test]
fn the_network_is_crossed_with_tls_alone_unless_told_otherwise() {
    use tokio_postgres::config::SslMode;
    let mode = |text: &str| text.parse::<PostgresUrl>().unwrap().ssl_mode();
    for near in ["postgres://u@localhost/d", "postgres://u@127.0.0.1/d", "postgres://u@%2Frun%2Fpg/d"] {
        assert_eq!(mode(near), SslMode::Disable, "{near}");
    }
    for far in ["postgres://u@db.example/d", "postgres://u@localhost,10.0.0.1/d"] {
        assert_eq!(mode(far), SslMode::Require, "{far}");
        assert_eq!(mode(&format!("{far}?sslmode=disable")), SslMode::Disable);
    }
}

#[test]
fn the_login_itself_may_do_nothing() {
    let (server, database) = site();
    let db = connect(&database.url).unwrap();
    add(&db, "acme").unwrap();
    let as_login = |sql: &str| server.sql_as(&database.url, sql).map_err(|error| format!("{error:#}"));
    assert!(as_login("SELECT * FROM muster.tenants").unwrap_err().contains("permission denied"));
    let unset = "SET ROLE muster_app; SELECT count(*) FROM muster.tenants";
    assert_eq!(as_login(unset).unwrap().lines().last(), Some("0"), "no tenant is named, none is seen");
    let audit = "SET ROLE muster_worker; DELETE FROM muster.audit";
    assert!(as_login(audit).unwrap_err().contains("permission denied"));
    let owner = "SET ROLE muster_owner; DELETE FROM muster.audit";
    assert!(as_login(owner).unwrap_err().contains("append-only"));
}

#[test]
fn a_server_that_goes_away_is_said_and_found_again() {
    let (mut server, database) = site();
    let db = connect(&database.url).unwrap();
    add(&db, "a").unwrap();
    assert_eq!(count(&db).unwrap(), 1);
    // All connections break; the next transaction begins on a new one.
    server.stop().unwrap();
    server.start_again().unwrap();
    add(&db, "b").unwrap();
    assert_eq!(count(&db).unwrap(), 2);
    server.kill().unwrap();
    for _ in 0..3 {
        let down = (add(&db, "c").unwrap_err(), count(&db).unwrap_err());
        assert!(down.0.is_passing() && down.1.is_passing(), "{down:?}");
    }
    server.start_again().unwrap();
    add(&db, "c").unwrap();
    assert_eq!(count(&db).unwrap(), 3);
}

#[test]
fn a_commit_waits_for_the_disk_whatever_the_servers_default_and_no_less_than_it_says() {
    let (server, database) = site();
    for (default, expect) in [("off", "on"), ("remote_apply", "remote_apply")] {
        server
            .sql("registry", &format!("ALTER DATABASE registry SET synchronous_commit = {default}"))
            .unwrap();
        let db = connect(&database.url).unwrap();
        let asked = "SELECT current_setting('synchronous_commit')";
        let set =
            db.write_blocking(move |tx| tx.query_one::<String, DbError>(&ALL, asked, &[], |row| row.get(0)));
        assert_eq!(set.unwrap(), expect);
    }
}

#[test]
fn a_connection_that_breaks_inside_a_transaction_undoes_it() {
    let (server, database) = site();
    let db = connect(&database.url).unwrap();
    let server = Arc::new(std::sync::Mutex::new(server));
    let (first, other) =
        ("INSERT INTO tenants (tenant, name, created_at_us) VALUES ('a', 'n', 1)", server.clone());
    let broken = db.write_blocking(move |tx| {
        tx.execute(&ALL, first, &[])?;
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE state = 'idle in transaction'";
        assert_eq!(other.lock().unwrap().sql("registry", end).unwrap(), "1");
        // The next statement must not run on a new connection, outside of any transaction.
        tx.execute(&ALL, &first.replace("'a'", "'b'"), &[])
    });
    assert!(matches!(broken, Err(DbError::Unreachable(_))), "{broken:?}");
    assert_eq!(count(&db).unwrap(), 0);
    add(&db, "c").unwrap();
    assert_eq!(count(&db).unwrap(), 1);
}

#[test]
fn a_write_waits_for_its_own_tenants_writes_and_for_no_others() {
    let (server, database) = site();
    let db = connect(&database.url).unwrap();
    add(&db, "acme").unwrap();
    let (begun, has_begun) = std::sync::mpsc::channel();
    let (go_on, told) = std::sync::mpsc::channel::<()>();
    let holder = {
        let db = db.clone();
        std::thread::spawn(move || {
            db.write_blocking(move |tx| {
                tx.query::<i64, DbError>(&tenant("acme"), COUNT, &[], |row| row.get(0))?;
                begun.send(()).unwrap();
                told.recv().map_err(|_| DbError::Closed)
            })
        })
    };
    has_begun.recv().unwrap();
    let touch = |name: &'static str| {
        let db = db.clone();
        move || {
            db.write_blocking(move |tx| {
                tx.query_one::<i64, DbError>(&tenant(name), COUNT, &[], |row| row.get(0))
            })
        }
    };
    assert_eq!(touch("other")().unwrap(), 0, "another tenant's goes on");
    assert_eq!(count(&db).unwrap(), 1, "so does a read");
    let waiting = std::thread::spawn(touch("acme"));
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    let deadline = std::time::Instant::now() + Duration::from_secs(15);
    while server.sql("registry", waits).unwrap() != "1" {
        assert!(std::time::Instant::now() < deadline, "it does not wait");
    }
    go_on.send(()).unwrap();
    holder.join().unwrap().unwrap();
    assert_eq!(waiting.join().unwrap().unwrap(), 1);
}

#[test]
fn a_read_ends_at_its_time() {
    let (_server, database) = site();
    let options = Options { read_time_max: Some(Duration::from_millis(50)), ..options(&database.url) };
    let db = Db::connect(&options, schema::registry_postgres()).unwrap();
    let slow = db.read_blocking(|tx| {
        tx.query_one::<i64, DbError>(&ALL, "SELECT 1 FROM pg_sleep(600)", &[], |row| row.get(0))
    });
    assert!(slow.unwrap_err().is_overdue());
    assert_eq!(count(&db).unwrap(), 0);
}

#[tokio::test]
async fn a_read_that_nobody_waits_for_never_begins() {
    let (_server, database) = site();
    let options = Options { readers: 1, ..options(&database.url) };
    let db = Db::connect(&options, schema::registry_postgres()).unwrap();
    let (begun, has_begun) = oneshot::channel();
    let (go_on, told) = std::sync::mpsc::channel::<()>();
    let holder = tokio::spawn({
        let db = db.clone();
        async move {
            db.read(move |_| {
                let _ = begun.send(());
                told.recv().map_err(|_| DbError::Closed)
            })
            .await
        }
    });
    has_begun.await.unwrap();
    let (late, mut was_late) = oneshot::channel();
    let mut given_up = Box::pin(db.read(move |_| {
        let _ = late.send(());
        Ok::<_, DbError>(())
    }));
    let waited = tokio::time::timeout(Duration::from_millis(1), &mut given_up).await;
    assert!(waited.is_err(), "the only reader is held");
    drop(given_up);
    go_on.send(()).unwrap();
    holder.await.unwrap().unwrap();
    db.check().await.unwrap();
    assert!(was_late.try_recv().is_err());
}

#[test]
fn a_server_with_a_certificate_is_checked_against_its_authority() {
    let certified = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let made = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        (made.pem(), key.serialize_pem())
    };
    let (certificate, key) = certified("127.0.0.1");
    let mut server = Postgres::start().unwrap();
    let database = server.database("registry").unwrap();
    refused(&format!("{}?sslmode=require", database.url), "TLS");
    server.use_tls(&certificate, &key).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let with = |ca: &str| {
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, ca).unwrap();
        let options =
            Options { ca_file: Some(path), ..options(&format!("{}?sslmode=require", database.url)) };
        Db::connect(&options, schema::registry_postgres())
    };
    let db = with(&certificate).unwrap();
    assert_eq!(count(&db).unwrap(), 0);
    let tls =
        "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'muster' AND ssl";
    assert_eq!(server.sql("registry", tls).unwrap(), "1");
    let other = refusal(with(&certified("127.0.0.1").0).err().unwrap());
    assert!(other.contains("certificate"), "{other}");
    assert!(refusal(with("").err().unwrap()).contains("it holds no certificate"));
}

const NAME: &str = GATEWAY_AND_WORKER;

fn fenced(db: &Db, fence: &Fence, name: &str) -> Result<(), DbError> {
    let (fence, name) = (fence.clone(), name.to_owned());
    let sql = "INSERT INTO tenants (tenant, name, created_at_us) VALUES ($1, 'n', 1)";
    db.write_blocking(move |tx| {
        fence.check(tx)?;
        tx.execute(&ALL, sql, &[&name]).map(drop)
    })
}

#[test]
fn one_process_holds_a_lease_and_another_takes_it_after_its_end() {
    let (_server, database) = site();
    let (one, other) = (connect(&database.url).unwrap(), connect(&database.url).unwrap());
    let lease = one.lease(NAME).unwrap().unwrap();
    let fence = lease.fence();
    fenced(&one, &fence, "a").unwrap();
    let error = refusal(other.lease(NAME).unwrap_err());
    assert!(
        error.contains("another process holds the roles gateway and worker of the registry postgres://127"),
        "{error}"
    );
    fenced(&one, &fence, "b").unwrap();
    drop(lease);
    let next = other.lease(NAME).unwrap().unwrap();
    fenced(&other, &next.fence(), "c").unwrap();
    let late = fenced(&one, &fence, "late");
    assert!(matches!(late, Err(DbError::Fenced(NAME))), "{late:?}");
    assert_eq!(count(&one).unwrap(), 3);
}

/// Ends the connections that hold leases.
fn cut_leases(server: &Postgres) -> String {
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND granted";
    server.sql("registry", sql).unwrap()
}

#[test]
fn a_holder_whose_connection_broke_goes_on_where_nobody_came_between() {
    let (server, database) = site();
    let db = connect(&database.url).unwrap();
    let lease = db.lease(NAME).unwrap().unwrap();
    assert_eq!(cut_leases(&server), "1");
    fenced(&db, &lease.fence(), "a").unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted";
    while server.sql("registry", locks).unwrap() != "1" {
        assert!(std::time::Instant::now() < deadline, "it is not held again");
        std::thread::sleep(Duration::from_millis(20));
    }
    fenced(&db, &lease.fence(), "b").unwrap();
    assert!(db.lease(NAME).is_err(), "it is held");
}

#[test]
fn a_holder_that_another_came_after_is_told_and_commits_nothing() {
    let (server, database) = site();
    let (one, other) = (connect(&database.url).unwrap(), connect(&database.url).unwrap());
    let lease = one.lease(NAME).unwrap().unwrap();
    let fence = lease.fence();
    assert_eq!(cut_leases(&server), "1");
    // The holder looks every two seconds: the other, which never stops asking, is there first.
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    let next = loop {
        match other.lease(NAME) {
            Ok(lease) => break lease.unwrap(),
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error:?}"),
        }
    };
    assert!(matches!(fenced(&one, &fence, "late"), Err(DbError::Fenced(NAME))));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let told = async { tokio::time::timeout(Duration::from_secs(30), lease.lost()).await };
    assert_eq!(runtime.block_on(told).unwrap(), "another process took it");
    fenced(&other, &next.fence(), "a").unwrap();
    assert!(matches!(fenced(&one, &fence, "late"), Err(DbError::Fenced(NAME))));
    assert_eq!(count(&one).unwrap(), 1);
}

#[test]
fn a_holder_waits_while_the_server_holds_the_lock_for_a_connection_that_ended() {
    let (server, database) = site();
    let db = connect(&database.url).unwrap();
    let lease = db.lease(NAME).unwrap().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let ghost = runtime.block_on(async {
        let connected = tokio_postgres::connect(&database.superuser_url, tokio_postgres::NoTls).await;
        let (client, connection) = connected.unwrap();
        tokio::spawn(connection);
        // In the queue for the lock: it is the next that has it.
        let waits =
            client.batch_execute("SELECT pg_advisory_lock(1818583411, hashtext('gateway and worker'))");
        let cut = async {
            let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
            while server.sql("registry", waiting).unwrap() != "1" {
                tokio::task::yield_now().await;
            }
            assert_eq!(cut_leases(&server), "1");
        };
        let (waited, ()) = tokio::join!(waits, cut);
        waited.unwrap();
        client
    });
    // Three looks.
    let told = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(6), lease.lost()).await });
    assert!(told.is_err(), "{told:?}");
    fenced(&db, &lease.fence(), "a").unwrap();
    drop(ghost);
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    let held = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                WHERE locktype = 'advisory' AND granted AND usename = 'muster'";
    while server.sql("registry", held).unwrap() != "1" {
        assert!(std::time::Instant::now() < deadline, "it is not held again");
    }
    fenced(&db, &lease.fence(), "b").unwrap();
}

#[test]
fn a_connection_keeps_no_more_statements_than_its_bound() {
    let (_server, database) = site();
    let db = connect(&database.url).unwrap();
    let kept = db.read_blocking(|tx| {
        for n in 0..STATEMENTS_MAX + 50 {
            tx.query_one::<i64, DbError>(&ALL, &format!("SELECT {n}"), &[], |row| row.get(0))?;
        }
        tx.query_one::<i64, DbError>(&ALL, "SELECT count(*) FROM pg_prepared_statements", &[], |row| {
            row.get(0)
        })
    });
    let kept = kept.unwrap() as usize;
    assert!((50..=STATEMENTS_MAX).contains(&kept), "{kept}");
}
