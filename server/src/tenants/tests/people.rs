//! Sessions, locks, resets and invitations over HTTP.

use crate::platform::db::{DbError, Scope, Tx};
use crate::tenants::service::{CHAINS_MAX, Ending, INVITATIONS_MAX, MemberChange, RESET_LIFE_US};
use crate::tenants::{Membership, Permission, Principal, Role};
use crate::testing::{Answer, As, TestApp};
use axum::http::header;
use serde_json::{Value, json};

const LOGIN: &str = "/api/v1/auth/login";
const PASSWORD: &str = "a long new password";
const USERS: &str = "/api/v1/tenants/acme/users";
const INVITATIONS: &str = "/api/v1/tenants/acme/invitations";

impl TestApp {
    async fn log_in(&self, email: &str, password: &str) -> Answer {
        let body = json!({ "email": email, "password": password });
        self.call(As::Nobody, "POST", LOGIN, Some(body)).await
    }

    async fn session_of(&self, email: &str) -> String {
        let answer = self.log_in(email, PASSWORD).await;
        let cookie = answer.headers[header::SET_COOKIE].to_str().unwrap().to_owned();
        cookie.split(['=', ';']).nth(1).unwrap().to_owned()
    }

    async fn user_id(&self, session: &str, email: &str) -> String {
        let list = self.call(As::Session(session), "GET", USERS, None).await.expect(200);
        let users = list["items"].as_array().unwrap();
        let found = users.iter().find(|user| user["email"] == email).unwrap();
        found["id"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn people_see_their_sessions_and_end_them() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let first = app.member(&acme, "a@acme", Role::Viewer).await;
    let (second, third) = (app.session_of("a@acme").await, app.session_of("a@acme").await);
    let sessions = "/api/v1/auth/sessions";
    let list = async |session: &str| app.call(As::Session(session), "GET", sessions, None).await;
    let all = list(&second).await.expect(200);
    let items = all["items"].as_array().unwrap();
    let current: Vec<_> = items.iter().filter(|row| row["current"] == true).collect();
    assert_eq!((items.len(), current.len()), (3, 1));
    let other = items.iter().find(|row| row["current"] == false && row["peer"] == "unknown").unwrap();
    let path = format!("{sessions}/{}", other["id"].as_str().unwrap());
    app.call(As::Session(&second), "DELETE", &path, None).await.expect(204);
    app.call(As::Session(&second), "DELETE", &path, None).await.refused("not_found", None);
    list(&third).await.refused("unauthenticated", None);
    let ended = app.call(As::Session(&second), "DELETE", sessions, None).await.expect(200);
    assert_eq!(ended["ended"], 1);
    list(&first).await.refused("unauthenticated", None);
    assert_eq!(list(&second).await.expect(200)["items"].as_array().unwrap().len(), 1);
    // Another account's session is none of one's own.
    app.member(&acme, "b@acme", Role::Viewer).await;
    let theirs = app.session_of("b@acme").await;
    let theirs = list(&theirs).await.expect(200)["items"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("{sessions}/{theirs}");
    app.call(As::Session(&second), "DELETE", &path, None).await.refused("not_found", None);
    let token = app.token(&acme, &[Permission::TenantRead]).await;
    app.call(As::Token(&token), "GET", sessions, None).await.refused("permission_denied", None);
}

#[tokio::test]
async fn an_admin_ends_a_members_sessions_and_takes_a_lock_off() {
    let app = TestApp::start_with(|config| config.auth.login_failures_max = 2).await;
    let acme = app.tenant("acme").await;
    let admin = app.member(&acme, "admin@acme", Role::Admin).await;
    let session = app.member(&acme, "a@acme", Role::Operator).await;
    let user = app.user_id(&admin, "a@acme").await;
    let path = |what: &str| format!("{USERS}/{user}/{what}");
    let listed = app.call(As::Session(&admin), "GET", &path("sessions"), None).await.expect(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    let ended = app.call(As::Session(&admin), "DELETE", &path("sessions"), None).await.expect(200);
    assert_eq!(ended["ended"], 1);
    app.call(As::Session(&session), "GET", "/api/v1/auth/me", None).await.refused("unauthenticated", None);
    for _ in 0..2 {
        app.log_in("a@acme", "wrong").await.refused("unauthenticated", None);
    }
    app.log_in("a@acme", PASSWORD).await.refused("rate_limited", None);
    let list = app.call(As::Session(&admin), "GET", USERS, None).await.expect(200);
    let locked: Vec<_> =
        list["items"].as_array().unwrap().iter().filter(|row| row["locked_until_us"].is_i64()).collect();
    assert_eq!((locked.len(), &locked[0]["email"]), (1, &json!("a@acme")));
    let unlock = async || app.call(As::Session(&admin), "POST", &path("unlock"), None).await.expect(200);
    assert_eq!(unlock().await["was_locked"], true);
    assert_eq!(unlock().await["was_locked"], false);
    app.log_in("a@acme", PASSWORD).await.expect(200);
}

#[tokio::test]
async fn a_reset_sets_a_password_once_within_its_life_and_ends_every_session() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let admin = app.member(&acme, "admin@acme", Role::Admin).await;
    let session = app.member(&acme, "a@acme", Role::Viewer).await;
    let user = app.user_id(&admin, "a@acme").await;
    let make = async |user: &str| {
        app.call(As::Session(&admin), "POST", &format!("{USERS}/{user}/password-reset"), None).await
    };
    let spend = async |token: &Value, password: &str| {
        let body = json!({ "token": token, "new_password": password });
        app.call(As::Nobody, "POST", "/api/v1/auth/reset", Some(body)).await
    };
    let first = make(&user).await.expect(201)["token"].clone();
    let second = make(&user).await.expect(201)["token"].clone();
    let new = "another long password";
    spend(&first, new).await.refused("unauthenticated", None);
    spend(&second, "short").await.refused("invalid_argument", Some("new_password"));
    app.call(As::Session(&session), "GET", "/api/v1/auth/me", None).await.expect(200);
    spend(&second, new).await.expect(204);
    spend(&second, new).await.refused("unauthenticated", None);
    app.call(As::Session(&session), "GET", "/api/v1/auth/me", None).await.refused("unauthenticated", None);
    app.log_in("a@acme", PASSWORD).await.refused("unauthenticated", None);
    let me = app.log_in("a@acme", new).await.expect(200);
    assert_eq!(me["password_pending"], false);
    let late = make(&user).await.expect(201)["token"].clone();
    app.clock.advance_us(RESET_LIFE_US);
    spend(&late, new).await.refused("unauthenticated", None);
    let admin = app.session_of("admin@acme").await;
    let own = app.user_id(&admin, "admin@acme").await;
    let path = format!("{USERS}/{own}/password-reset");
    app.call(As::Session(&admin), "POST", &path, None).await.refused("permission_denied", None);
}

#[tokio::test]
async fn an_account_is_acted_on_only_by_who_may_in_each_of_its_tenants() {
    let app = TestApp::start().await;
    let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
    let admin = app.member(&acme, "admin@acme", Role::Admin).await;
    app.member(&other, "owner@other", Role::Owner).await;
    // Nobody is made a member without their doing.
    let add = Some(json!({ "email": "owner@other", "role": "viewer" }));
    let refused = app.call(As::Session(&admin), "POST", USERS, add).await;
    refused.refused("conflict", None);
    assert!(refused.text.contains("invite it"), "{}", refused.text);
    // Another tenant's owner is a member, and the admin wants the account.
    let invited = invite(&app, &admin, "owner@other", "viewer").await.expect(201);
    accept(&app, &invited["token"], PASSWORD).await.expect(200);
    let victim = app.user_id(&admin, "owner@other").await;
    for (method, what) in
        [("POST", "password-reset"), ("GET", "sessions"), ("DELETE", "sessions"), ("POST", "unlock")]
    {
        let path = format!("{USERS}/{victim}/{what}");
        app.call(As::Session(&admin), method, &path, None).await.refused("conflict", None);
        let path = format!("{USERS}/u-nobody/{what}");
        app.call(As::Session(&admin), method, &path, None).await.refused("not_found", None);
    }
    // Nor the owner of their own tenant, who is above them.
    let owner = app.user_id(&admin, "owner@localhost").await;
    let path = format!("{USERS}/{owner}/password-reset");
    app.call(As::Session(&admin), "POST", &path, None).await.refused("permission_denied", None);
    // The server's administrator may.
    let root = app.token(&acme, Permission::ALL).await;
    let path = format!("{USERS}/{victim}/password-reset");
    app.call(As::Token(&root), "POST", &path, None).await.expect(201);
}

#[tokio::test]
async fn a_reset_is_void_once_the_account_is_more_or_less_than_it_was() {
    let app = TestApp::start().await;
    let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
    let admin = app.member(&acme, "admin@acme", Role::Owner).await;
    let theirs = app.member(&other, "admin@other", Role::Owner).await;
    app.member(&acme, "a@acme", Role::Viewer).await;
    let user = format!("{USERS}/{}", app.user_id(&admin, "a@acme").await);
    let reset = async || {
        let made = app.call(As::Session(&admin), "POST", &format!("{user}/password-reset"), None).await;
        made.expect(201)["token"].clone()
    };
    let is_void = async |token: Value| {
        let body = json!({ "token": token, "new_password": "another long password" });
        let spent = app.call(As::Nobody, "POST", "/api/v1/auth/reset", Some(body)).await;
        spent.refused("unauthenticated", None);
    };
    let token = reset().await;
    app.call(As::Session(&admin), "PATCH", &user, Some(json!({ "role": "admin" }))).await.expect(200);
    is_void(token).await;
    let token = reset().await;
    let body = Some(json!({ "email": "a@acme", "role": "owner" }));
    let invited = app.call(As::Session(&theirs), "POST", "/api/v1/tenants/other/invitations", body).await;
    accept(&app, &invited.expect(201)["token"], PASSWORD).await.expect(200);
    is_void(token).await;
    let of = app.call(As::Session(&theirs), "GET", "/api/v1/tenants/other/users", None).await.expect(200);
    let of = of["items"].as_array().unwrap().iter().find(|user| user["email"] == "a@acme").unwrap().clone();
    let of = format!("/api/v1/tenants/other/users/{}", of["id"].as_str().unwrap());
    app.call(As::Session(&theirs), "DELETE", &of, None).await.expect(204);
    let token = reset().await;
    app.call(As::Session(&admin), "DELETE", &user, None).await.expect(204);
    is_void(token).await;
}

async fn invite(app: &TestApp, admin: &str, email: &str, role: &str) -> Answer {
    let body = Some(json!({ "email": email, "role": role }));
    app.call(As::Session(admin), "POST", INVITATIONS, body).await
}

async fn accept(app: &TestApp, token: &Value, password: &str) -> Answer {
    let body = Some(json!({ "token": token, "password": password }));
    app.call(As::Nobody, "POST", "/api/v1/auth/invitation", body).await
}

#[tokio::test]
async fn an_invitation_makes_an_account_or_lets_one_join_once() {
    let app = TestApp::start().await;
    let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
    let admin = app.member(&acme, "admin@acme", Role::Admin).await;
    invite(&app, &admin, "x@acme", "owner").await.refused("permission_denied", None);
    let new = invite(&app, &admin, "New@acme", "operator").await.expect(201);
    assert_eq!(new["invitation"]["email"], "new@acme");
    invite(&app, &admin, "new@acme", "viewer").await.refused("conflict", None);
    accept(&app, &json!("min_wrong"), PASSWORD).await.refused("unauthenticated", None);
    accept(&app, &new["token"], "short").await.refused("invalid_argument", Some("password"));
    let joined = accept(&app, &new["token"], PASSWORD).await.expect(200);
    assert_eq!(joined, json!({ "tenant": "acme", "email": "new@acme", "new_account": true }));
    accept(&app, &new["token"], PASSWORD).await.refused("unauthenticated", None);
    let me = app.log_in("new@acme", PASSWORD).await.expect(200);
    assert_eq!((&me["memberships"][0]["role"], &me["password_pending"]), (&json!("operator"), &json!(false)));
    invite(&app, &admin, "new@acme", "viewer").await.refused("conflict", None);
    // An account that is there proves itself by its password.
    app.member(&other, "b@other", Role::Owner).await;
    let known = invite(&app, &admin, "b@other", "viewer").await.expect(201);
    accept(&app, &known["token"], "a wrong password").await.refused("unauthenticated", None);
    let joined = accept(&app, &known["token"], PASSWORD).await.expect(200);
    assert_eq!(joined["new_account"], false);
    let me = app.log_in("b@other", PASSWORD).await.expect(200);
    assert_eq!(me["memberships"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn an_invitation_is_revoked_ends_in_time_and_a_tenant_has_so_many() {
    let app = TestApp::start_with(|config| config.quota.users_max = 2).await;
    let acme = app.tenant("acme").await;
    let admin = app.member(&acme, "admin@acme", Role::Admin).await;
    let made = invite(&app, &admin, "a@acme", "viewer").await.expect(201);
    let path = format!("{INVITATIONS}/{}", made["invitation"]["id"].as_str().unwrap());
    app.call(As::Session(&admin), "DELETE", &path, None).await.expect(204);
    app.call(As::Session(&admin), "DELETE", &path, None).await.refused("not_found", None);
    accept(&app, &made["token"], PASSWORD).await.refused("unauthenticated", None);
    let full = invite(&app, &admin, "a@acme", "viewer").await.expect(201);
    accept(&app, &full["token"], PASSWORD).await.refused("rate_limited", None);
    for at in 1..INVITATIONS_MAX {
        invite(&app, &admin, &format!("a{at}@acme"), "viewer").await.expect(201);
    }
    let refused = invite(&app, &admin, "more@acme", "viewer").await;
    refused.refused("rate_limited", None);
    assert!(refused.text.contains("quota of 100 open invitations"), "{}", refused.text);
    let days = Some(json!({ "email": "d@acme", "role": "viewer", "days": 31 }));
    let refused = app.call(As::Session(&admin), "POST", INVITATIONS, days).await;
    refused.refused("invalid_argument", Some("days"));
    app.clock.advance_us(7 * 86_400_000_000);
    let admin = app.session_of("admin@acme").await;
    let list = app.call(As::Session(&admin), "GET", INVITATIONS, None).await.expect(200);
    assert_eq!(list["items"], json!([]));
    accept(&app, &full["token"], PASSWORD).await.refused("unauthenticated", None);
    invite(&app, &admin, "more@acme", "viewer").await.expect(201);
}

#[tokio::test]
async fn an_account_of_many_tenants_is_told_of_in_a_bounded_number_of_chains() {
    let app = TestApp::start().await;
    for at in 0..=CHAINS_MAX {
        app.tenant(&format!("t{at:03}")).await;
    }
    let tenants = &app.parts.slices.tenants;
    tenants.reset_password("owner@localhost").await.unwrap();
    let told = |tx: &mut Tx<'_>| {
        let sql = "SELECT tenant FROM audit WHERE action = 'user.password' ORDER BY tenant";
        tx.query(&Scope::System("test"), sql, &[], |row| row.get::<String>(0))
    };
    let told = app.parts.rules.db.read::<_, DbError>(told).await.unwrap();
    // `default` is the first of its tenants.
    let chains: Vec<_> = (0..CHAINS_MAX - 1).map(|at| format!("t{at:03}")).collect();
    assert_eq!(told, [vec!["-".to_owned(), "default".to_owned()], chains].concat());
}

/// What two tenants' admins and an account's owner do at once, each in the order of its own; on SQLite one after another.
#[tokio::test(flavor = "multi_thread")]
async fn writes_of_one_account_from_many_sides_wait_for_each_other_and_never_in_a_circle() {
    const ROUNDS: usize = 15;
    let app = TestApp::start().await;
    let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
    let admin = app.member(&other, "admin@other", Role::Owner).await;
    app.member(&acme, "a@acme", Role::Viewer).await;
    let body = Some(json!({ "email": "a@acme", "role": "viewer" }));
    let invited = app.call(As::Session(&admin), "POST", "/api/v1/tenants/other/invitations", body).await;
    accept(&app, &invited.expect(201)["token"], PASSWORD).await.expect(200);
    let root = app.member(&acme, "root@acme", Role::Owner).await;
    let user = app.user_id(&root, "a@acme").await;
    let both = Principal::User {
        user_id: "u-test".into(),
        email: "owner@localhost".into(),
        memberships: vec![
            Membership::whole(acme, Role::Owner),
            Membership::whole(other.clone(), Role::Owner),
        ],
        system_admin: true,
        password_pending: false,
    };
    let tenants = &app.parts.slices.tenants;
    let own = async || {
        for _ in 0..ROUNDS {
            tenants.end_sessions(&user, "mss_none", Ending::Others).await.unwrap();
        }
    };
    let resets = async || {
        for _ in 0..ROUNDS {
            tenants.create_reset(&both, &other, &user).await.unwrap();
        }
    };
    let ends = async || {
        for _ in 0..ROUNDS {
            tenants.end_member_sessions(&both, &other, &user).await.unwrap();
        }
    };
    let changes = async || {
        for at in 0..ROUNDS {
            let role = Some(if at % 2 == 0 { "operator" } else { "viewer" }.to_owned());
            let change = MemberChange::Grant { role, places: None };
            tenants.change_member(&both, &other, user.clone(), change).await.unwrap();
        }
    };
    tokio::join!(own(), resets(), ends(), changes(), own(), resets());
}
