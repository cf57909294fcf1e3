use super::model::{
    Decision, GivenRole, Membership, Object, Permission, Principal, Role, authorise, governs,
    may_change_role, may_give,
};
use super::reach::{Reach, Whereabouts};
use super::service::{AGENT_CHARS_MAX, Client, SESSIONS_MAX};
use super::store::sessions::{self, NewSession};
use super::store::{self, UserRow};
use crate::platform::db::{DbError, Scope};
use muster_wire::TenantId;

fn tenant(text: &str) -> TenantId {
    TenantId::parse(text).unwrap()
}

fn user(role: Role, system_admin: bool, password_pending: bool) -> Principal {
    let memberships = vec![Membership::whole(tenant("acme"), role)];
    Principal::User {
        user_id: "u-1".into(),
        email: "a@b".into(),
        memberships,
        system_admin,
        password_pending,
    }
}

fn token(role: Role, scopes: &[Permission]) -> Principal {
    let membership = Membership::whole(tenant("acme"), role);
    Principal::Token { token_id: "t-1".into(), membership, scopes: scopes.to_vec() }
}

#[test]
fn every_role_may_what_it_may_and_no_more() {
    for &permission in Permission::ALL.iter().filter(|permission| **permission != Permission::PlatformAdmin) {
        for role in Role::ALL {
            let expect = if role >= permission.least_role() { Decision::Allow } else { Decision::Denied };
            let who = user(role, false, false);
            assert_eq!(
                authorise(&who, permission, Object::Tenant(&tenant("acme"))),
                expect,
                "{role:?} {permission:?}"
            );
            assert_eq!(authorise(&who, permission, Object::Tenant(&tenant("other"))), Decision::NotFound);
            let with = authorise(&token(role, &[permission]), permission, Object::Tenant(&tenant("acme")));
            assert_eq!(with, expect, "token of {role:?} with {permission:?}");
            let without = authorise(&token(role, &[]), permission, Object::Tenant(&tenant("acme")));
            assert_eq!(without, Decision::Denied, "token of {role:?} without {permission:?}");
            let foreign =
                authorise(&token(role, Permission::ALL), permission, Object::Tenant(&tenant("other")));
            assert_eq!(foreign, Decision::NotFound);
        }
    }
}

#[test]
fn the_whole_server_is_for_system_administrators() {
    let ask = |who: &Principal| authorise(who, Permission::PlatformAdmin, Object::Server);
    assert_eq!(ask(&user(Role::Owner, false, false)), Decision::Denied);
    assert_eq!(ask(&user(Role::Viewer, true, false)), Decision::Allow);
    assert_eq!(ask(&token(Role::Owner, &[Permission::PlatformAdmin])), Decision::Allow);
    assert_eq!(ask(&token(Role::Owner, &[Permission::TenantRead])), Decision::Denied);
    // An administrator of the server is no member of every tenant.
    let read =
        authorise(&user(Role::Owner, true, false), Permission::TenantRead, Object::Tenant(&tenant("other")));
    assert_eq!(read, Decision::NotFound);
    assert_eq!(user(Role::Owner, true, false).reach_in(&tenant("other")), Reach::nowhere());
    // No role has it, whoever makes the role.
    assert!(!may_give(&user(Role::Owner, true, false), &tenant("acme"), Permission::PlatformAdmin));
}

#[test]
fn a_one_time_password_opens_nothing_but_its_own_change() {
    for &permission in Permission::ALL {
        let ask = authorise(&user(Role::Owner, true, true), permission, Object::Tenant(&tenant("acme")));
        assert_eq!(ask, Decision::PasswordPending, "{permission:?}");
    }
}

#[test]
fn nobody_reaches_above_their_own_role() {
    use Role::{Admin, Operator, Owner, Viewer};
    let table = [
        (Owner, Some(Owner), None, true),
        (Admin, Some(Owner), None, false),
        (Admin, Some(Admin), Some(Owner), false),
        (Admin, Some(Viewer), Some(Admin), true),
        (Operator, None, Some(Viewer), false),
    ];
    for (actor, from, to, expect) in table {
        let (actor, from, to) =
            (user(actor, false, false), from.map(GivenRole::from), to.map(GivenRole::from));
        let may = may_change_role(&actor, &tenant("acme"), from.as_ref(), to.as_ref());
        assert_eq!(may, expect, "{actor:?} {from:?} {to:?}");
        assert!(!may_change_role(&actor, &tenant("other"), from.as_ref(), to.as_ref()));
    }
}

#[test]
fn a_token_gives_and_takes_no_more_than_its_scopes() {
    use Permission::{DevicesRead, UsersWrite};
    let may = |scopes: &[Permission], role: &GivenRole| {
        let who = token(Role::Owner, scopes);
        let (acme, role) = (tenant("acme"), Some(role));
        let (given, taken) =
            (may_change_role(&who, &acme, None, role), may_change_role(&who, &acme, role, None));
        assert_eq!(given, taken);
        given
    };
    let within: Vec<_> =
        Permission::ALL.iter().copied().filter(|scope| *scope != Permission::PlatformAdmin).collect();
    let reader = GivenRole::Custom { role_id: "r-1".into(), permissions: vec![DevicesRead] };
    for role in [&Role::Owner.into(), &Role::Admin.into(), &Role::Viewer.into(), &reader] {
        assert!(may(&within, role), "{role:?}");
        assert!(!may(&[UsersWrite], role), "{role:?}");
    }
    assert!(may(&[UsersWrite, DevicesRead], &reader));
    assert!(!may(&[DevicesRead], &reader), "it may not write users at all");
    let of = [Membership::whole(tenant("acme"), Role::Viewer)];
    assert!(!governs(&token(Role::Owner, &[UsersWrite]), &of, false));
    assert!(governs(&token(Role::Owner, &within), &of, false));
}

#[test]
fn nobody_gives_a_custom_role_more_than_they_have() {
    use Permission::{DevicesRead, DevicesWrite, UsersWrite};
    let custom = |permissions: &[Permission]| GivenRole::Custom {
        role_id: "r-1".into(),
        permissions: permissions.to_vec(),
    };
    let may = |role: GivenRole, to: &GivenRole| {
        let who = Principal::User {
            user_id: "u-1".into(),
            email: "a@b".into(),
            memberships: vec![Membership::whole(tenant("acme"), role)],
            system_admin: false,
            password_pending: false,
        };
        may_change_role(&who, &tenant("acme"), None, Some(to))
    };
    let reader = custom(&[DevicesRead]);
    assert!(may(Role::Admin.into(), &reader));
    assert!(may(custom(&[UsersWrite, DevicesRead]), &reader));
    assert!(!may(custom(&[UsersWrite]), &reader));
    assert!(!may(custom(&[UsersWrite, DevicesRead]), &custom(&[DevicesRead, DevicesWrite])));
    assert!(!may(custom(&[UsersWrite, DevicesRead]), &Role::Viewer.into()));
    assert!(!may(custom(Permission::ALL), &Role::Owner.into()), "only owners make owners");
    assert!(may(custom(Permission::ALL), &Role::Admin.into()));
    assert!(!may(custom(&[DevicesRead]), &reader), "it may not write users at all");
}

#[test]
fn a_bounded_reach_ends_at_the_devices_of_its_places() {
    let acme = tenant("acme");
    let north = super::reach::PlaceId::parse("north").unwrap();
    let reach = Reach::parse(Some(&["site:north".to_owned()])).unwrap();
    let membership = Membership { reach, ..Membership::whole(acme.clone(), Role::Owner) };
    let token = Principal::Token {
        token_id: "t".into(),
        membership: membership.clone(),
        scopes: Permission::ALL.to_vec(),
    };
    let person = Principal::User {
        user_id: "u".into(),
        email: "a@b".into(),
        memberships: vec![membership],
        system_admin: false,
        password_pending: false,
    };
    let (near, far) = (Whereabouts { site: Some(north), groups: Vec::new() }, Whereabouts::default());
    for &permission in Permission::ALL.iter().filter(|permission| **permission != Permission::PlatformAdmin) {
        for who in [&token, &person] {
            let ask = |object: Object<'_>| authorise(who, permission, object);
            assert_eq!(ask(Object::Tenant(&acme)), Decision::OutOfReach, "{permission:?}");
            assert_eq!(ask(Object::Part(&acme)), Decision::Allow);
            assert_eq!(ask(Object::Device(&acme, &near)), Decision::Allow);
            assert_eq!(ask(Object::Device(&acme, &far)), Decision::NotFound);
            assert_eq!(ask(Object::Device(&tenant("other"), &near)), Decision::NotFound);
        }
    }
}

#[tokio::test]
async fn an_accounts_sessions_are_bounded_and_the_newest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let db = crate::testing::registry(dir.path());
    let user = UserRow {
        user_id: "u-1".into(),
        email: "a@b".into(),
        password_hash: String::new(),
        password_pending: false,
        system_admin: false,
        created_at_us: 0,
    };
    const SCOPE: Scope = Scope::System("session");
    db.write(move |tx| store::user_insert(tx, &SCOPE, &user)).await.unwrap();
    // Opens a session at a time; gives the numbers of those that are there then.
    let open = async |number: u8, at_us: i64| {
        db.write(move |tx| {
            let new = NewSession {
                sha256: &[number; 32],
                user_id: "u-1",
                peer: "",
                agent: "",
                created_at_us: at_us,
                expires_at_us: 1_000_000,
            };
            sessions::insert(tx, &SCOPE, &new, SESSIONS_MAX)?;
            let mut found = Vec::new();
            for number in 0..=u8::MAX {
                if sessions::user_of(tx, &SCOPE, &[number; 32], at_us)?.is_some() {
                    found.push(number);
                }
            }
            Ok::<_, DbError>(found)
        })
        .await
        .unwrap()
    };
    let max = u8::try_from(SESSIONS_MAX).unwrap();
    for number in 0..max {
        assert_eq!(open(number, 100 + i64::from(number)).await, (0..=number).collect::<Vec<_>>());
    }
    assert_eq!(open(max, 200).await, (1..=max).collect::<Vec<_>>(), "the oldest ended");
    assert_eq!(open(255, 50).await, (2..=max).chain([255]).collect::<Vec<_>>(), "the clock was set back");
}

#[test]
fn a_clients_own_words_are_cut_to_a_bound() {
    let agent = |text: &str| Client::new("peer", text).agent;
    let longest = "\u{e9}".repeat(AGENT_CHARS_MAX);
    assert_eq!(agent(&longest), longest);
    assert_eq!(agent(&format!("{longest}x")), longest);
    assert_eq!(agent("a\r\n\u{0}b"), "ab");
}

mod audits;
mod people;
mod roles;

mod http {
    use crate::tenants::{Permission, Role};
    use crate::testing::{As, ORIGIN, TestApp, owner, raw};
    use axum::body::Body;
    use axum::http::{Request, header};
    use serde_json::json;

    const LOGIN: &str = "/api/v1/auth/login";
    const NEW: &str = "a long new password";

    #[tokio::test]
    async fn the_first_owner_changes_the_one_time_password_before_anything_else() {
        let app = TestApp::start().await;
        let first = app.parts.slices.tenants.first_start().await.unwrap().unwrap();
        assert!(app.parts.slices.tenants.first_start().await.unwrap().is_none(), "only once");
        let body = json!({ "email": first.email, "password": first.password });
        let answer = app.call(As::Nobody, "POST", LOGIN, Some(body.clone())).await;
        let cookie = answer.headers[header::SET_COOKIE].to_str().unwrap().to_owned();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
        assert_eq!(answer.expect(200)["password_pending"], true);
        let session = cookie.split(['=', ';']).nth(1).unwrap();
        let tenant = "/api/v1/tenants/default";
        app.call(As::Session(session), "GET", tenant, None).await.refused("permission_denied", None);
        let change = |old: &str, new: &str| {
            let body = json!({ "old_password": old, "new_password": new });
            app.call(As::Session(session), "POST", "/api/v1/auth/password", Some(body))
        };
        change(&first.password, "short").await.refused("invalid_argument", Some("new_password"));
        change("wrong", NEW).await.refused("unauthenticated", None);
        change(&first.password, NEW).await.expect(204);
        app.call(As::Session(session), "GET", tenant, None).await.expect(200);
        app.call(As::Nobody, "POST", LOGIN, Some(body)).await.refused("unauthenticated", None);
        app.call(As::Session(session), "POST", "/api/v1/auth/logout", None).await.expect(204);
        app.call(As::Session(session), "GET", tenant, None).await.refused("unauthenticated", None);
    }

    #[tokio::test]
    async fn a_session_needs_its_own_origin_and_ends_in_time() {
        let app = TestApp::start().await;
        let acme = app.tenant("acme").await;
        let session = app.member(&acme, "a@acme", Role::Admin).await;
        let ask = async |origin: Option<&str>| {
            let mut request = Request::patch("/api/v1/tenants/acme")
                .header(header::HOST, "muster.test")
                .header(header::COOKIE, format!("muster_session={session}"))
                .header(header::CONTENT_TYPE, "application/json");
            if let Some(origin) = origin {
                request = request.header(header::ORIGIN, origin);
            }
            raw(&app.admin, request.body(Body::from(r#"{"name":"Acme"}"#)).unwrap()).await
        };
        ask(None).await.refused("permission_denied", None);
        ask(Some("http://evil.test")).await.refused("permission_denied", None);
        ask(Some(ORIGIN)).await.expect(200);
        app.clock.advance_us(12 * 3_600_000_000);
        ask(Some(ORIGIN)).await.refused("unauthenticated", None);
    }

    #[tokio::test]
    async fn failed_logins_lock_the_account_for_a_while() {
        let app = TestApp::start_with(|config| config.auth.login_failures_max = 2).await;
        let acme = app.tenant("acme").await;
        app.member(&acme, "a@acme", Role::Viewer).await;
        let login = |password: &str| {
            app.call(As::Nobody, "POST", LOGIN, Some(json!({ "email": "A@acme", "password": password })))
        };
        login("wrong").await.refused("unauthenticated", None);
        login("wrong").await.refused("unauthenticated", None);
        let locked = login(NEW).await;
        locked.refused("rate_limited", None);
        assert_eq!(locked.headers[header::RETRY_AFTER], "901");
        app.clock.advance_us(901_000_000);
        login(NEW).await.expect(200);
    }

    #[tokio::test]
    async fn a_token_has_an_end_and_no_more_than_its_maker() {
        let app = TestApp::start().await;
        let acme = app.tenant("acme").await;
        let maker = app.token(&acme, &[Permission::TokensWrite, Permission::DevicesRead]).await;
        let tokens = "/api/v1/tenants/acme/api-tokens";
        let make = |body| app.call(As::Token(&maker), "POST", tokens, Some(body));
        make(json!({ "name": "x", "scopes": ["rules:write"] }))
            .await
            .refused("invalid_argument", Some("scopes"));
        make(json!({ "name": "x", "scopes": ["nope"] })).await.refused("invalid_argument", Some("scopes[0]"));
        make(json!({ "name": "x", "scopes": [], "days": 4000 }))
            .await
            .refused("invalid_argument", Some("days"));
        make(json!({ "name": "\u{7}", "scopes": [] })).await.refused("invalid_argument", Some("name"));
        let made = make(json!({ "name": "x", "scopes": ["devices:read"], "days": 1 })).await.expect(201);
        let (secret, id) = (made["secret"].as_str().unwrap(), made["api_token"]["id"].as_str().unwrap());
        let devices = "/api/v1/tenants/acme/devices";
        app.call(As::Token(secret), "GET", devices, None).await.expect(200);
        app.clock.advance_us(86_400_000_000);
        app.call(As::Token(secret), "GET", devices, None).await.refused("unauthenticated", None);
        let other = make(json!({ "name": "y", "scopes": ["devices:read"] })).await.expect(201);
        let (secret, other) = (other["secret"].as_str().unwrap(), other["api_token"]["id"].as_str().unwrap());
        assert_ne!(id, other);
        app.call(As::Token(&maker), "DELETE", &format!("{tokens}/{other}"), None).await.expect(204);
        app.call(As::Token(secret), "GET", devices, None).await.refused("unauthenticated", None);
    }

    #[tokio::test]
    async fn a_tenants_members_and_tokens_are_bounded() {
        let app = TestApp::start_with(|config| {
            config.quota.users_max = 2;
            config.quota.api_tokens_max = 2;
        })
        .await;
        let acme = app.tenant("acme").await;
        let maker = app.token(&acme, Permission::ALL).await;
        let make = |path: &'static str, body| {
            let path = format!("/api/v1/tenants/acme/{path}");
            let (app, maker) = (&app, &maker);
            async move { app.call(As::Token(maker), "POST", &path, Some(body)).await }
        };
        let token = json!({ "name": "x", "scopes": [], "days": 1 });
        make("api-tokens", token.clone()).await.expect(201);
        let refused = make("api-tokens", token.clone()).await;
        refused.refused("rate_limited", None);
        assert!(refused.text.contains("quota of 2 API tokens"), "{}", refused.text);
        app.clock.advance_us(86_400_000_000);
        make("api-tokens", token).await.expect(201);
        let user = |email| json!({ "email": email, "role": "viewer" });
        make("users", user("a@acme")).await.expect(201);
        let refused = make("users", user("b@acme")).await;
        refused.refused("rate_limited", None);
        assert!(refused.text.contains("quota of 2 members"), "{}", refused.text);
    }

    #[tokio::test]
    async fn a_new_tenants_owner_is_refused_by_its_own_field() {
        let app = TestApp::start().await;
        let acme = app.tenant("acme").await;
        let admin = app.token(&acme, &[Permission::PlatformAdmin]).await;
        let body = json!({ "id": "new", "name": "New", "owner_email": format!("{}@b", "a".repeat(254)) });
        let refused = app.call(As::Token(&admin), "POST", "/api/v1/tenants", Some(body)).await;
        refused.refused("invalid_argument", Some("owner_email"));
        assert!(refused.text.contains("at most 254 bytes"), "{}", refused.text);
    }

    #[tokio::test]
    async fn the_last_owner_stays_and_nobody_rises_above_themselves() {
        let app = TestApp::start().await;
        let acme = app.tenant("acme").await;
        let admin = app.member(&acme, "admin@acme", Role::Admin).await;
        let users = "/api/v1/tenants/acme/users";
        let list = app.call(As::Session(&admin), "GET", users, None).await.expect(200);
        let owner_row =
            list["items"].as_array().unwrap().iter().find(|user| user["role"] == "owner").unwrap().clone();
        let owner_path = format!("{users}/{}", owner_row["id"].as_str().unwrap());
        let demote = Some(json!({ "role": "viewer" }));
        app.call(As::Session(&admin), "PATCH", &owner_path, demote.clone())
            .await
            .refused("permission_denied", None);
        let rise = Some(json!({ "email": "x@acme", "role": "owner" }));
        app.call(As::Session(&admin), "POST", users, rise).await.refused("permission_denied", None);
        let again = Some(json!({ "email": "admin@acme", "role": "viewer" }));
        app.call(As::Session(&admin), "POST", users, again).await.refused("conflict", None);
        let token = app.token(&acme, Permission::ALL).await;
        app.call(As::Token(&token), "PATCH", &owner_path, demote).await.refused("conflict", None);
        app.call(As::Token(&token), "DELETE", &owner_path, None).await.refused("conflict", None);
    }

    #[tokio::test]
    async fn every_change_stands_in_a_chain_that_holds() {
        let app = TestApp::start().await;
        let acme = app.tenant("acme").await;
        app.token(&acme, &[]).await;
        app.parts
            .slices
            .tenants
            .rename_tenant(&owner(&acme), &acme, "Acme".into(), Default::default())
            .await
            .unwrap();
        let reader = app.token(&acme, &[Permission::AuditRead]).await;
        let audit = "/api/v1/tenants/acme/audit";
        let page = app.call(As::Token(&reader), "GET", audit, None).await.expect(200);
        let actions: Vec<_> =
            page["items"].as_array().unwrap().iter().map(|row| row["action"].clone()).collect();
        assert_eq!(actions, ["tenant.create", "token.create", "tenant.rename", "token.create"]);
        let found = app.call(As::Token(&reader), "GET", &format!("{audit}/verify"), None).await.expect(200);
        assert_eq!(
            (&found["ok"], &found["rows"], &found["complete"]),
            (&json!(true), &json!(4), &json!(true))
        );
    }
}
