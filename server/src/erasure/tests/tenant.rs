//! A whole tenant, but for its audit chain and its id.

use super::rig::{ROWS_OF_ONE_OF_EACH, Rig, tenant};
use super::*;
use crate::erasure::service::asked_for;
use crate::tenants::audit;
use crate::tenants::service::{TenantsError, TokenRequest};
use crate::tenants::{Permission, Principal, Role};
use crate::testing::{As, owner};
use std::path::{Path, PathBuf};

async fn count(rig: &Rig, table: &'static str) -> i64 {
    let read = move |tx: &mut Tx<'_>| {
        let sql = format!("SELECT count(*) FROM {table} WHERE tenant = 'acme'");
        tx.query_one(&Scope::Tenant(tenant("acme")), &sql, &[], |row| row.get::<i64>(0))
    };
    rig.app.parts.slices.erasures.db.read::<_, DbError>(read).await.unwrap()
}

/// Rows of a table of accounts, which are of no tenant.
async fn accounts(rig: &Rig, sql: &'static str) -> i64 {
    let read = move |tx: &mut Tx<'_>| tx.query_one(&Scope::System("test"), sql, &[], |row| row.get::<i64>(0));
    rig.app.parts.slices.erasures.db.read::<_, DbError>(read).await.unwrap()
}

/// Whoever was let through before may still be on its way.
async fn no_token_is_made(rig: &Rig) {
    let request = TokenRequest {
        name: "late".into(),
        scopes: vec![Permission::DataExport],
        days: 1,
        ..Default::default()
    };
    let acme = tenant("acme");
    let made = rig.app.parts.slices.tenants.create_token(&owner(&acme), &acme, request).await;
    assert!(matches!(made, Err(TenantsError::Conflict(_))), "{made:?}");
}

async fn the_chain_and_the_id_stay(rig: &Rig) {
    let tenants = &rig.app.parts.slices.tenants;
    let again = tenants
        .create_tenant(&owner(&tenant("other")), tenant("acme"), "New".into(), Some("owner@localhost".into()))
        .await;
    assert!(again.is_err(), "the id is never given away again");
    let verified = tenants.verify_audit(&tenant("acme"), None).await.unwrap();
    assert_eq!((verified.is_complete, verified.fault), (true, None));
    let read = |tx: &mut Tx<'_>| audit::list(tx, &Scope::Tenant(tenant("acme")), 0, 1_000);
    let chain = rig.app.parts.slices.erasures.db.read(read).await.unwrap();
    assert_eq!(chain.iter().filter(|row| row.action == "device.erase").count(), 2);
}

#[tokio::test]
async fn a_tenant_goes_but_for_its_audit_chain_and_its_id() {
    let mut rig = Rig::start().await;
    let other = rig.app.tenant("other").await;
    let other_token = rig.app.token(&other, Permission::ALL).await;
    let viewer = rig.app.member(&tenant("acme"), "viewer@acme", Role::Viewer).await;
    let boss = rig.app.member(&tenant("acme"), "boss@acme", Role::Owner).await;
    for device in ["pump", "valve"] {
        rig.create("acme", device).await;
        rig.one_of_each("acme", device);
    }
    let theirs = rig.app.call(
        As::Token(&other_token),
        "POST",
        "/api/v1/tenants/other/devices",
        Some(json!({ "id": "theirs" })),
    );
    theirs.await.expect(201);
    rig.one_of_each("other", "theirs");
    let rule =
        json!({ "name": "hot", "on": { "telemetry": {} }, "condition": "value > 30", "severity": "info" });
    rig.call("POST", "/api/v1/tenants/acme/rules", Some(rule)).await.expect(201);
    rig.call("POST", "/api/v1/tenants/acme/claims", Some(json!({}))).await.expect(201);
    rig.read_log();

    let erase = "/api/v1/tenants/acme/erase";
    let ask = |caller, confirm| rig.app.call(caller, "POST", erase, Some(json!({ "confirm": confirm })));
    ask(As::Session(&viewer), "acme").await.refused("permission_denied", None);
    ask(As::Session(&boss), "other").await.refused("invalid_argument", Some("confirm"));
    let begun = ask(As::Session(&boss), "acme").await.expect(202);
    let id = begun["id"].as_str().unwrap().to_owned();
    // Shut out at once, but for who asked, who sees the erasure and nothing else.
    let path = format!("/api/v1/tenants/acme/erasures/{id}");
    rig.app.call(As::Session(&viewer), "GET", &path, None).await.refused("not_found", None);
    rig.app.call(As::Session(&boss), "GET", &path, None).await.expect(200);
    rig.app
        .call(As::Session(&boss), "GET", "/api/v1/tenants/acme/devices", None)
        .await
        .refused("not_found", None);
    rig.call("GET", "/api/v1/tenants/acme", None).await.refused("unauthenticated", None);
    no_token_is_made(&rig).await;

    let job = rig.finish("acme", &id).await;
    assert!(job.members.is_empty(), "{job:?}");
    let boss = As::Session(&boss);
    assert_eq!(rig.lines(boss.clone(), "acme", &id, "readings").await.len(), 6);
    assert_eq!(rig.lines(boss.clone(), "acme", &id, "devices").await.len(), 2);
    assert_eq!(rig.lines(boss.clone(), "acme", &id, "rules").await.len(), 1);
    let members = rig.lines(boss, "acme", &id, "members").await;
    assert!(members.iter().any(|member| member["email"] == "viewer@acme"), "{members:?}");

    for table in tables::OF_TENANT {
        assert_eq!(count(&rig, table).await, 0, "{table}");
    }
    rig.begin_reading();
    rig.read_log();
    assert_eq!((rig.stored_rows("pump"), rig.stored_rows("valve"), rig.orphans()), (0, 0, 0));
    assert_eq!(rig.stored_rows("theirs"), ROWS_OF_ONE_OF_EACH);
    let theirs = rig.app.call(As::Token(&other_token), "GET", "/api/v1/tenants/other/devices/theirs", None);
    theirs.await.expect(200);
    // The account that belonged nowhere else is gone, its session with it.
    rig.app.call(As::Session(&viewer), "GET", "/api/v1/auth/me", None).await.refused("unauthenticated", None);

    the_chain_and_the_id_stay(&rig).await;
}

#[tokio::test]
async fn a_system_administrator_erases_a_tenant_without_being_a_member() {
    let mut rig = Rig::start().await;
    let other = rig.app.tenant("other").await;
    let platform = rig.app.token(&other, &[Permission::PlatformAdmin]).await;
    let erase = async |of: &str| {
        let body = json!({ "tenant": of, "confirm": of, "export": false });
        rig.app.call(As::Token(&platform), "POST", "/api/v1/erasures", Some(body)).await
    };
    erase("none").await.refused("not_found", None);
    let begun = erase("acme").await.expect(202);
    erase("acme").await.refused("conflict", None);
    let id = begun["id"].as_str().unwrap().to_owned();
    rig.finish("acme", &id).await;
    assert!(rig.files("acme", &id).await.is_empty());
    let path = format!("/api/v1/tenants/acme/erasures/{id}");
    let shown = rig.app.call(As::Token(&platform), "GET", &path, None).await.expect(200);
    assert_eq!((&shown["state"], &shown["export_until_us"]), (&json!("done"), &json!(null)));
}

#[tokio::test]
async fn an_open_invitation_a_reset_and_who_comes_late_go_with_their_tenant() {
    let mut rig = Rig::start().await;
    let acme = tenant("acme");
    rig.app.member(&acme, "viewer@acme", Role::Viewer).await;
    let users = rig.call("GET", "/api/v1/tenants/acme/users", None).await.expect(200);
    let viewer = users["items"].as_array().unwrap().iter().find(|user| user["email"] == "viewer@acme");
    let viewer = viewer.unwrap()["id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/tenants/acme/users/{viewer}/password-reset");
    let reset = rig.call("POST", &path, None).await.expect(201);
    let invite = json!({ "email": "new@acme", "role": "admin" });
    let invited = rig.call("POST", "/api/v1/tenants/acme/invitations", Some(invite)).await.expect(201);
    let begun = rig
        .call("POST", "/api/v1/tenants/acme/erase", Some(json!({ "confirm": "acme", "export": false })))
        .await;
    let id = begun.expect(202)["id"].as_str().unwrap().to_owned();
    // Void at once.
    let join = json!({ "token": invited["token"], "password": "a long new password" });
    let joined = rig.app.call(As::Nobody, "POST", "/api/v1/auth/invitation", Some(join)).await;
    joined.refused("unauthenticated", None);
    let set = json!({ "token": reset["token"], "new_password": "a long new password" });
    let set = rig.app.call(As::Nobody, "POST", "/api/v1/auth/reset", Some(set)).await;
    set.refused("unauthenticated", None);
    // Requests that were let in before.
    let (tenants, who) = (&rig.app.parts.slices.tenants, owner(&acme));
    let late = rig.app.member(&acme, "late@acme", Role::Admin).await;
    tenants.invite(&who, &acme, "later@acme", Role::Viewer.into(), 7).await.unwrap();
    rig.until("acme", &id, State::Draining).await;
    assert_eq!((count(&rig, "memberships").await, count(&rig, "invitations").await), (0, 0));
    // A leave that somebody got meanwhile does not hold the account.
    let put = move |tx: &mut Tx<'_>| {
        let sql =
            "INSERT INTO password_resets (user_id, token_sha256, created_by, created_at_us, expires_at_us)
                   VALUES ($1, $2, 'server', 1, 2)";
        tx.execute(&Scope::System("test"), sql, &[&viewer, &[7_u8; 32]])
    };
    rig.app.parts.slices.erasures.db.write::<_, DbError>(put).await.unwrap();
    rig.finish("acme", &id).await;
    assert_eq!(accounts(&rig, "SELECT count(*) FROM users WHERE email LIKE '%@acme'").await, 0);
    assert_eq!(accounts(&rig, "SELECT count(*) FROM password_resets").await, 0);
    rig.app.call(As::Session(&late), "GET", "/api/v1/auth/me", None).await.refused("unauthenticated", None);
}

#[tokio::test]
async fn a_token_of_the_tenant_cannot_ask_for_an_export_that_nobody_could_fetch() {
    let mut rig = Rig::start().await;
    let erase = "/api/v1/tenants/acme/erase";
    let refused = rig.call("POST", erase, Some(json!({ "confirm": "acme" }))).await;
    refused.refused("conflict", None);
    assert!(refused.text.contains("ask as a person"), "{}", refused.text);
    rig.call("GET", "/api/v1/tenants/acme", None).await.expect(200);
    let begun =
        rig.call("POST", erase, Some(json!({ "confirm": "acme", "export": false }))).await.expect(202);
    rig.call("GET", "/api/v1/tenants/acme", None).await.refused("unauthenticated", None);
    rig.finish("acme", begun["id"].as_str().unwrap()).await;
}

#[tokio::test]
async fn who_asked_is_known_by_its_account_and_not_by_its_address() {
    let rig = Rig::start().await;
    let boss = rig.app.member(&tenant("acme"), "boss@acme", Role::Owner).await;
    let ask = json!({ "confirm": "acme" });
    let begun = rig.app.call(As::Session(&boss), "POST", "/api/v1/tenants/acme/erase", Some(ask)).await;
    let job = rig.job("acme", begun.expect(202)["id"].as_str().unwrap()).await;
    let user = |user_id: &str| Principal::User {
        user_id: user_id.to_owned(),
        email: "boss@acme".to_owned(),
        memberships: Vec::new(),
        system_admin: false,
        password_pending: false,
    };
    assert!(asked_for(&user(&job.requester), &job));
    assert!(!asked_for(&user("u-another"), &job), "somebody else was given the address");
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn a_tenants_erasure_takes_earlier_exports_and_other_jobs_with_it() {
    let mut rig = Rig::start().await;
    for device in ["pump", "valve"] {
        rig.create("acme", device).await;
        rig.one_of_each("acme", device);
    }
    rig.read_log();
    let first = rig.erase_device("acme", "pump").await;
    rig.finish("acme", &first).await;
    let blobs = rig.app.parts.slices.config.get().data_dir.join("blobs");
    // Uploads that a crash cut off, which no list shows.
    for path in [format!("acme/exports/{first}/readings#1"), "acme/exports/x#1".into(), "acme/x#1".into()] {
        std::fs::write(blobs.join(path), b"half").unwrap();
    }
    let open = rig.erase_device("acme", "valve").await;
    let other = rig.app.tenant("other").await;
    let platform = rig.app.token(&other, &[Permission::PlatformAdmin]).await;
    let body = json!({ "tenant": "acme", "confirm": "acme", "export": false });
    let begun = rig.app.call(As::Token(&platform), "POST", "/api/v1/erasures", Some(body)).await.expect(202);
    rig.finish("acme", begun["id"].as_str().unwrap()).await;
    assert_eq!(files_below(&blobs.join("acme")), Vec::<PathBuf>::new());
    for id in [&first, &open] {
        let job = rig.job("acme", id).await;
        assert_eq!((job.state, job.export_until_us), (State::Done, None), "{job:?}");
        assert!(rig.files("acme", id).await.is_empty());
    }
    assert_eq!((rig.stored_rows("pump"), rig.stored_rows("valve"), rig.orphans()), (0, 0, 0));
}

#[tokio::test]
async fn a_tenants_stuck_erasures_hold_up_nobody_else() {
    let mut rig = Rig::start().await;
    let blobs = rig.app.parts.slices.config.get().data_dir.join("blobs");
    std::fs::write(blobs.join("acme"), "").unwrap();
    let mut stuck = Vec::new();
    for at in 0..=JOBS_AT_ONCE {
        let device = format!("d{at}");
        rig.create("acme", &device).await;
        stuck.push(rig.erase_device("acme", &device).await);
    }
    let home = rig.app.tenant("home").await;
    let platform = rig.app.token(&home, &[Permission::PlatformAdmin]).await;
    let mut others = Vec::new();
    for at in 0..=JOBS_AT_ONCE {
        let id = format!("other{at}");
        rig.app.tenant(&id).await;
        let body = json!({ "tenant": id, "confirm": id, "export": false });
        let begun =
            rig.app.call(As::Token(&platform), "POST", "/api/v1/erasures", Some(body)).await.expect(202);
        others.push((id, begun["id"].as_str().unwrap().to_owned()));
    }
    for _ in 0..2 {
        rig.step().await;
    }
    for (of, id) in &others {
        assert_ne!(rig.job(of, id).await.state, State::ShuttingOut, "{of} had no turn in two rounds");
    }
    for (of, id) in &others {
        rig.finish(of, id).await;
    }
    for _ in 0..60 {
        rig.step().await;
    }
    let mut waiting = 0;
    for id in &stuck {
        let job = rig.job("acme", id).await;
        assert_ne!(job.state, State::Done);
        waiting += i64::from(job.next_try_at_us > 0);
    }
    assert!(waiting > 1, "the first stuck job keeps its tenant's turn");
}
