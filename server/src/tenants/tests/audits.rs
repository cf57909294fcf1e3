//! Audit chains on a real registry: what breaks them is found, also what the server's own roles may not do.

use crate::platform::db::{DbError, Scope};
use crate::tenants::audit::verify::{Fault, Mark, Walk};
use crate::tenants::audit::{self, AuditEntry};
use crate::tenants::service::VERIFY_ROWS_MAX;
use crate::tenants::{Permission, Role};
use crate::testing::{As, TestApp, on_postgres, registry, registry_by_owner};
use muster_wire::TenantId;
use serde_json::{Value, json};
use std::path::Path;

fn acme() -> Scope {
    Scope::Tenant(TenantId::parse("acme").unwrap())
}

fn append(dir: &Path, rows: i64) {
    let write = move |tx: &mut crate::platform::db::Tx<'_>| {
        for at_us in 0..rows {
            let (detail, object) = (serde_json::json!({ "at": at_us }), "o");
            audit::append(
                tx,
                &acme(),
                &AuditEntry { at_us, actor: "server", action: "test", object, detail },
            )?;
        }
        Ok::<_, DbError>(())
    };
    registry(dir).write_blocking(write).unwrap();
}

fn verify(dir: &Path, noted: Option<Mark>) -> Result<Mark, Fault> {
    let rows = registry(dir).read_blocking(|tx| audit::list(tx, &acme(), 0, 100)).unwrap();
    let mut walk = Walk::whole(noted);
    walk.take(&rows)?;
    walk.end(&acme())
}

/// What a superuser of PostgreSQL, or whoever has the file, can do.
fn tamper(dir: &Path, sql: &str) {
    let is_postgres = on_postgres();
    if is_postgres {
        registry_by_owner(dir, &format!("SET session_replication_role = replica; {sql}"));
        return;
    }
    for sql in ["DROP TRIGGER IF EXISTS audit_no_update", "DROP TRIGGER IF EXISTS audit_no_delete", sql] {
        registry_by_owner(dir, sql);
    }
}

#[test]
fn a_row_changed_removed_or_swapped_behind_the_servers_back_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (db, dir) = (registry(dir.path()), dir.path());
    append(dir, 6);
    let newest = verify(dir, None).unwrap();
    assert_eq!(newest.seq, 6);
    // The server itself may not.
    for sql in ["UPDATE audit SET actor = 'x'", "DELETE FROM audit"] {
        let refused = db.write_blocking(move |tx| tx.execute(&Scope::System("test"), sql, &[]));
        assert!(refused.is_err(), "{sql}");
    }
    assert_eq!(verify(dir, Some(newest)), Ok(newest));
    tamper(dir, "UPDATE audit SET actor = 'user:mallory@b' WHERE seq = 5");
    assert_eq!(verify(dir, None), Err(Fault::Changed { seq: 5 }));
    tamper(dir, "UPDATE audit SET actor = 'server' WHERE seq = 5");
    assert_eq!(verify(dir, None), Ok(newest), "put back");
    for (from, to) in [(3, 30), (4, 3), (30, 4)] {
        tamper(dir, &format!("UPDATE audit SET seq = {to} WHERE seq = {from}"));
    }
    assert_eq!(verify(dir, None), Err(Fault::Changed { seq: 3 }), "swapped");
    for (from, to) in [(3, 30), (4, 3), (30, 4)] {
        tamper(dir, &format!("UPDATE audit SET seq = {to} WHERE seq = {from}"));
    }
    tamper(dir, "DELETE FROM audit WHERE seq = 6");
    assert_eq!(verify(dir, None).unwrap().seq, 5, "the rest is a whole chain");
    assert_eq!(verify(dir, Some(newest)), Err(Fault::Missing { seq: 6 }), "but it was noted");
    tamper(dir, "DELETE FROM audit WHERE seq = 2");
    assert_eq!(verify(dir, None), Err(Fault::Missing { seq: 2 }));
}

#[test]
fn a_chain_of_which_nothing_is_left_is_no_good_chain() {
    const TEST: Scope = Scope::System("test");
    let dir = tempfile::tempdir().unwrap();
    let (db, dir) = (registry(dir.path()), dir.path());
    let made = "INSERT INTO tenants (tenant, name, created_at_us) VALUES ('acme', 'n', 1)";
    db.write_blocking(move |tx| tx.execute(&TEST, made, &[])).unwrap();
    append(dir, 2);
    let chains = || db.read_blocking(|tx| audit::chains(tx, &TEST)).unwrap();
    let is_chain = |tenant: &str| {
        let scope = Scope::Tenant(TenantId::parse(tenant).unwrap());
        db.read_blocking(move |tx| audit::is_chain(tx, &scope)).unwrap()
    };
    assert_eq!((chains(), is_chain("acme")), (vec!["-".to_owned(), "acme".to_owned()], true));
    assert!(!is_chain("nobody"));
    tamper(dir, "DELETE FROM audit");
    assert_eq!((chains(), is_chain("acme")), (vec!["-".to_owned(), "acme".to_owned()], true));
    assert_eq!(verify(dir, None), Err(Fault::Missing { seq: 1 }));
}

#[tokio::test]
async fn one_request_verifies_so_many_rows_and_the_next_goes_on() {
    let app = TestApp::start().await;
    let tenant = app.tenant("acme").await;
    let reader = app.token(&tenant, &[Permission::AuditRead]).await;
    let more = i64::try_from(VERIFY_ROWS_MAX).unwrap();
    let scope = Scope::Tenant(tenant.clone());
    let write = move |tx: &mut crate::platform::db::Tx<'_>| {
        for at_us in 0..more {
            let (detail, object) = (json!({}), "o");
            audit::append(
                tx,
                &scope,
                &AuditEntry { at_us, actor: "server", action: "test", object, detail },
            )?;
        }
        Ok::<_, DbError>(())
    };
    app.parts.rules.db.write(write).await.unwrap();
    let path = "/api/v1/tenants/acme/audit/verify";
    let ask = async |query: &str| {
        app.call(As::Token(&reader), "GET", &format!("{path}{query}"), None).await.expect(200)
    };
    let first = ask("").await;
    assert_eq!((&first["rows"], &first["complete"]), (&json!(VERIFY_ROWS_MAX), &json!(false)));
    let rest = ask(&format!("?from={}", first["at"].as_str().unwrap())).await;
    assert_eq!((&rest["ok"], &rest["complete"], &rest["rows"]), (&json!(true), &json!(true), &json!(3)));
    let noted = rest["at"].as_str().unwrap();
    let gone = noted.replacen("10002", "10003", 1);
    let fault = ask(&format!("?from={gone}")).await;
    assert_eq!((&fault["ok"], &fault["fault"]["seq"]), (&json!(false), &json!(10_003)));
    let wrong = app.call(As::Token(&reader), "GET", &format!("{path}?from=x"), None).await;
    wrong.refused("invalid_argument", Some("from"));
}

#[tokio::test]
async fn an_export_is_every_row_of_its_span_in_both_forms() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let reader = app.token(&acme, &[Permission::AuditRead]).await;
    let scope = Scope::Tenant(acme.clone());
    let rows = 2 * audit::export::PAGE_ROWS + 1;
    let write = move |tx: &mut crate::platform::db::Tx<'_>| {
        for at_us in 0..rows {
            let (detail, object) = (json!({ "text": "a,\"b\"" }), "o");
            audit::append(
                tx,
                &scope,
                &AuditEntry { at_us, actor: "server", action: "test", object, detail },
            )?;
        }
        Ok::<_, DbError>(())
    };
    app.parts.rules.db.write(write).await.unwrap();
    let export = async |query: &str| {
        let path = format!("/api/v1/tenants/acme/audit/export{query}");
        app.call(As::Token(&reader), "GET", &path, None).await
    };
    let all = export("").await;
    let lines: Vec<Value> = all.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seqs: Vec<_> = lines.iter().map(|row| row["seq"].as_i64().unwrap()).collect();
    assert_eq!(seqs, (1..=rows + 2).collect::<Vec<_>>(), "the tenant's and the token's row come first");
    assert_eq!(lines[2]["detail"]["text"], "a,\"b\"");
    assert_eq!(all.headers["content-type"], "application/x-ndjson");
    let csv = export("?format=csv&from=5&to=7").await;
    assert_eq!(csv.headers["content-type"], "text/csv; charset=utf-8");
    let lines: Vec<_> = csv.text.lines().collect();
    assert_eq!(lines[0], "seq,at_us,actor,action,object,detail,hash");
    assert!(lines[1].starts_with("8,5,\"server\",\"test\",\"o\",\"{\"\"text\"\":"), "{}", lines[1]);
    assert_eq!(lines.len(), 3);
    export("?format=xml").await.refused("invalid_argument", Some("format"));
}

#[tokio::test]
async fn logins_refusals_and_logouts_stand_in_the_tenants_chain_and_in_the_servers_with_their_address() {
    let app = TestApp::start_with(|config| config.auth.login_failures_max = 2).await;
    let acme = app.tenant("acme").await;
    app.member(&acme, "a@acme", Role::Viewer).await;
    let reader = app.token(&acme, &[Permission::AuditRead]).await;
    let login = async |email: &str, password: &str| {
        let body = json!({ "email": email, "password": password });
        app.call(As::Nobody, "POST", "/api/v1/auth/login", Some(body)).await
    };
    let opened = login("a@acme", "a long new password").await;
    let cookie = opened.headers["set-cookie"].to_str().unwrap().to_owned();
    let session = cookie.split(['=', ';']).nth(1).unwrap();
    app.call(As::Session(session), "POST", "/api/v1/auth/logout", None).await.expect(204);
    for _ in 0..2 {
        login("a@acme", "wrong").await.refused("unauthenticated", None);
    }
    login("a@acme", "wrong").await.refused("rate_limited", None);
    login("nobody@acme", "wrong").await.refused("unauthenticated", None);
    let page = app.call(As::Token(&reader), "GET", "/api/v1/tenants/acme/audit", None).await.expect(200);
    let actions = |rows: &[Value]| -> Vec<String> {
        let of = |row: &Value| {
            format!(
                "{} {}",
                row["action"].as_str().unwrap(),
                row["detail"]["locks"].as_bool().unwrap_or(false)
            )
        };
        rows.iter().map(of).filter(|text| text.starts_with("session.")).collect()
    };
    let rows = page["items"].as_array().unwrap();
    let expect = [
        "session.open false", // with the one-time password
        "session.open false",
        "session.close false",
        "session.refuse false",
        "session.refuse true",
    ];
    assert_eq!(actions(rows), expect);
    assert!(rows.iter().all(|row| row["detail"]["peer"].is_null()), "tenants are not told from where");
    let own = app.parts.rules.db.read(|tx| audit::list(tx, &Scope::System("test"), 0, 100)).await.unwrap();
    let details: Vec<Value> = own.iter().map(|row| serde_json::from_str(&row.detail).unwrap()).collect();
    let refused: Vec<_> =
        own.iter().zip(&details).filter(|(row, _)| row.action == "session.refuse").collect();
    let whys: Vec<_> = refused.iter().map(|(_, detail)| detail["why"].as_str().unwrap()).collect();
    assert_eq!(whys, ["password", "password", "locked", "unknown"]);
    assert!(refused.iter().all(|(_, detail)| detail["peer"] == "unknown"), "{refused:?}");
}
