//! Custom roles, and grants of roles and scopes to members, invitations and tokens.

use crate::tenants::service::{GrantRequest, ROLES_MAX};
use crate::tenants::{Permission, Role};
use crate::testing::{Answer, As, TestApp};
use serde_json::{Value, json};

const ROLES: &str = "/api/v1/tenants/acme/roles";
const USERS: &str = "/api/v1/tenants/acme/users";
const TOKENS: &str = "/api/v1/tenants/acme/api-tokens";
const DEVICES: &str = "/api/v1/tenants/acme/devices";

struct Site {
    app: TestApp,
    root: String,
}

impl Site {
    /// A tenant with the site `north` and a device there.
    async fn start() -> Self {
        let app = TestApp::start().await;
        let acme = app.tenant("acme").await;
        let root = app.member(&acme, "root@acme", Role::Owner).await;
        let site = Self { app, root };
        site.call("POST", "/api/v1/tenants/acme/sites", json!({ "id": "north" })).await.expect(201);
        site.call("POST", DEVICES, json!({ "id": "pump", "site": "north" })).await.expect(201);
        site.call("POST", DEVICES, json!({ "id": "valve" })).await.expect(201);
        site
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> Answer {
        self.as_session(&self.root, method, path, body).await
    }

    async fn as_session(&self, session: &str, method: &str, path: &str, body: Value) -> Answer {
        self.app.call(As::Session(session), method, path, (!body.is_null()).then_some(body)).await
    }

    async fn role(&self, name: &str, permissions: &[&str]) -> String {
        let made = self.call("POST", ROLES, json!({ "name": name, "permissions": permissions })).await;
        made.expect(201)["id"].as_str().unwrap().to_owned()
    }

    async fn member(&self, email: &str, role: &str, places: Option<&[&str]>) -> String {
        let acme = muster_wire::TenantId::parse("acme").unwrap();
        let places = places.map(|places| places.iter().map(|place| (*place).to_owned()).collect());
        self.app.member(&acme, email, GrantRequest { role: role.into(), places }).await
    }
}

#[tokio::test]
async fn a_custom_role_allows_what_it_names_and_follows_its_changes() {
    let site = Site::start().await;
    let role = site.role("reader", &["devices:read", "devices:read"]).await;
    let session = site.member("a@acme", &role, None).await;
    let me = site.as_session(&session, "GET", "/api/v1/auth/me", Value::Null).await.expect(200);
    assert_eq!(me["memberships"][0]["role"], json!(role));
    assert_eq!(me["memberships"][0]["permissions"], json!(["devices:read"]));
    let list = async || site.as_session(&session, "GET", DEVICES, Value::Null).await;
    let make = async || site.as_session(&session, "POST", DEVICES, json!({ "id": "new" })).await;
    list().await.expect(200);
    make().await.refused("permission_denied", None);
    let path = format!("{ROLES}/{role}");
    let change = json!({ "name": "writer", "permissions": ["devices:write"] });
    site.call("PUT", &path, change).await.expect(200);
    list().await.refused("permission_denied", None);
    make().await.expect(201);
    site.call("DELETE", &path, Value::Null).await.refused("conflict", None);
    let user = site.call("GET", USERS, Value::Null).await.expect(200);
    let user =
        user["items"].as_array().unwrap().iter().find(|user| user["email"] == "a@acme").unwrap().clone();
    let user = format!("{USERS}/{}", user["id"].as_str().unwrap());
    site.call("PATCH", &user, json!({ "role": "viewer" })).await.expect(200);
    site.call("DELETE", &path, Value::Null).await.expect(204);
    site.call("PATCH", &user, json!({ "role": role })).await.refused("invalid_argument", Some("role"));
    list().await.expect(200);
}

#[tokio::test]
async fn a_role_is_bounded_by_its_writer_its_name_and_the_tenant() {
    let site = Site::start().await;
    let manager = site.role("manager", &["users:read", "users:write", "devices:read"]).await;
    let session = site.member("m@acme", &manager, None).await;
    let make = async |name: &str, permissions: &[&str]| {
        let body = json!({ "name": name, "permissions": permissions });
        site.as_session(&session, "POST", ROLES, body).await
    };
    make("more", &["devices:write"]).await.refused("invalid_argument", Some("permissions"));
    make("all", &["platform:admin"]).await.refused("invalid_argument", Some("permissions"));
    make("none", &[]).await.refused("invalid_argument", Some("permissions"));
    make("manager", &["devices:read"]).await.refused("conflict", None);
    let less = make("less", &["devices:read"]).await.expect(201);
    let less = less["id"].as_str().unwrap();
    let strong = site.role("strong", &["rules:write"]).await;
    let weaken = json!({ "name": "strong", "permissions": ["devices:read"] });
    let refused = site.as_session(&session, "PUT", &format!("{ROLES}/{strong}"), weaken).await;
    refused.refused("permission_denied", None);
    let add = async |email: &str, role: &str| {
        site.as_session(&session, "POST", USERS, json!({ "email": email, "role": role })).await
    };
    add("x@acme", &strong).await.refused("permission_denied", None);
    add("x@acme", "viewer").await.refused("permission_denied", None);
    add("x@acme", "nonsense").await.refused("invalid_argument", Some("role"));
    add("x@acme", less).await.expect(201);
    for at in 3..ROLES_MAX {
        site.role(&format!("r{at}"), &["devices:read"]).await;
    }
    let refused =
        site.call("POST", ROLES, json!({ "name": "one more", "permissions": ["devices:read"] })).await;
    refused.refused("rate_limited", None);
    assert!(refused.text.contains("quota of 50 roles"), "{}", refused.text);
}

#[tokio::test]
async fn a_grants_scope_names_places_that_are_there_and_stays_unless_it_is_changed() {
    let site = Site::start().await;
    let add = async |scope: Value| {
        let body = json!({ "email": "b@acme", "role": "viewer", "scope": scope });
        site.call("POST", USERS, body).await
    };
    add(json!(["site:none"])).await.refused("invalid_argument", Some("scope"));
    add(json!(["camera:c1"])).await.refused("invalid_argument", Some("scope"));
    add(json!([])).await.refused("invalid_argument", Some("scope"));
    let owner = json!({ "email": "o@acme", "role": "owner", "scope": ["site:north"] });
    site.call("POST", USERS, owner).await.refused("invalid_argument", Some("scope"));
    let session = site.member("a@acme", "viewer", Some(&["site:north"])).await;
    let seen = async || {
        let list = site.as_session(&session, "GET", DEVICES, Value::Null).await.expect(200);
        list["items"].as_array().unwrap().len()
    };
    assert_eq!(seen().await, 1);
    let users = site.call("GET", USERS, Value::Null).await.expect(200);
    let user =
        users["items"].as_array().unwrap().iter().find(|user| user["email"] == "a@acme").unwrap().clone();
    assert_eq!(user["scope"], json!(["site:north"]));
    let user = format!("{USERS}/{}", user["id"].as_str().unwrap());
    let changed = site.call("PATCH", &user, json!({ "role": "operator" })).await.expect(200);
    assert_eq!(changed["scope"], json!(["site:north"]), "another role is no other scope");
    assert_eq!(seen().await, 1);
    site.call("DELETE", "/api/v1/tenants/acme/sites/north", Value::Null).await.refused("conflict", None);
    site.call("PATCH", &user, json!({ "scope": null })).await.expect(200);
    assert_eq!(seen().await, 2);
    // Who has a scope gives nobody anything.
    site.call("PATCH", &user, json!({ "role": "admin", "scope": ["site:north"] })).await.expect(200);
    let add = json!({ "email": "c@acme", "role": "viewer", "scope": ["site:north"] });
    site.as_session(&session, "POST", USERS, add).await.refused("permission_denied", None);
}

#[tokio::test]
async fn an_invitation_and_a_token_carry_role_and_scope() {
    let site = Site::start().await;
    let role = site.role("reader", &["devices:read"]).await;
    let body = json!({ "email": "i@acme", "role": role, "scope": ["site:north"] });
    let made = site.call("POST", "/api/v1/tenants/acme/invitations", body).await.expect(201);
    assert_eq!(made["invitation"]["scope"], json!(["site:north"]));
    site.call("DELETE", &format!("{ROLES}/{role}"), Value::Null).await.refused("conflict", None);
    let accept = json!({ "token": made["token"], "password": "a long new password" });
    site.app.call(As::Nobody, "POST", "/api/v1/auth/invitation", Some(accept)).await.expect(200);
    let login = json!({ "email": "i@acme", "password": "a long new password" });
    let me = site.app.call(As::Nobody, "POST", "/api/v1/auth/login", Some(login)).await.expect(200);
    let membership = &me["memberships"][0];
    assert_eq!((&membership["role"], &membership["scope"]), (&json!(role), &json!(["site:north"])));
    // Tokens.
    let token = async |body: Value| site.call("POST", TOKENS, body).await;
    let of_role = json!({ "name": "t", "role": role, "scope": ["site:north"] });
    let made = token(of_role).await.expect(201);
    assert_eq!(made["api_token"]["scopes"], json!(["devices:read"]));
    let secret = made["secret"].as_str().unwrap();
    let list = site.app.call(As::Token(secret), "GET", DEVICES, None).await.expect(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    let valve = format!("{DEVICES}/valve");
    site.app.call(As::Token(secret), "GET", &valve, None).await.refused("not_found", None);
    for (body, field) in [
        (json!({ "name": "t", "role": role, "scopes": ["rules:read"] }), "role"),
        (json!({ "name": "t", "role": "r-none" }), "role"),
        (json!({ "name": "t", "role": "admin", "scope": ["site:north"] }), "scope"),
        (json!({ "name": "t", "role": "owner", "scope": ["site:north"] }), "scope"),
        (json!({ "name": "t", "scopes": ["mqtt:subscribe"], "scope": ["site:north"] }), "scope"),
        (json!({ "name": "t", "scopes": ["devices:read"], "scope": ["site:none"] }), "scope"),
    ] {
        token(body).await.refused("invalid_argument", Some(field));
    }
    // A member with a custom role makes tokens within it, and one of those gives nothing more.
    let maker = site.role("maker", &["tokens:write", "users:write", "devices:read"]).await;
    let session = site.member("maker@acme", &maker, None).await;
    let more = json!({ "name": "t", "scopes": ["devices:write"] });
    site.as_session(&session, "POST", TOKENS, more).await.refused("invalid_argument", Some("scopes"));
    let own = json!({ "name": "t", "scopes": ["users:write"] });
    let own = site.as_session(&session, "POST", TOKENS, own).await.expect(201);
    let secret = own["secret"].as_str().unwrap();
    let add = Some(json!({ "email": "x@acme", "role": role }));
    site.app.call(As::Token(secret), "POST", USERS, add).await.refused("permission_denied", None);
    // As a start reads them again.
    let loaded = crate::tenants::Tenants::open(
        site.app.parts.rules.db.clone(),
        site.app.clock.clone(),
        site.app.parts.slices.config.clone(),
    );
    let loaded = loaded.await.unwrap();
    let now = loaded.by_token(secret).unwrap();
    assert_eq!(
        now.reach_in(&muster_wire::TenantId::parse("acme").unwrap()),
        crate::tenants::Reach::Everything
    );
    assert!(!now.may_grant_scope(Permission::DevicesRead, &muster_wire::TenantId::parse("acme").unwrap()));
}

#[tokio::test]
async fn an_owners_narrow_token_gives_and_takes_no_more_than_its_scopes() {
    let site = Site::start().await;
    site.member("v@acme", "viewer", None).await;
    let strong = site.role("strong", &["devices:write"]).await;
    let body = json!({ "name": "t", "scopes": ["users:read", "users:write"] });
    let made = site.call("POST", TOKENS, body).await.expect(201);
    let secret = made["secret"].as_str().unwrap();
    let ask = async |method: &str, path: &str, body: Value| {
        site.app.call(As::Token(secret), method, path, (!body.is_null()).then_some(body)).await
    };
    for role in ["owner", "admin", "viewer", strong.as_str()] {
        let body = json!({ "email": "x@acme", "role": role });
        ask("POST", USERS, body.clone()).await.refused("permission_denied", None);
        let invitations = "/api/v1/tenants/acme/invitations";
        ask("POST", invitations, body).await.refused("permission_denied", None);
    }
    let role = |permission: &str| json!({ "name": "new", "permissions": [permission] });
    ask("POST", ROLES, role("devices:write")).await.refused("invalid_argument", Some("permissions"));
    let strong = format!("{ROLES}/{strong}");
    ask("PUT", &strong, role("users:read")).await.refused("permission_denied", None);
    let users = ask("GET", USERS, Value::Null).await.expect(200);
    for email in ["v@acme", "root@acme"] {
        let found = users["items"].as_array().unwrap().iter().find(|user| user["email"] == email);
        let user = format!("{USERS}/{}", found.unwrap()["id"].as_str().unwrap());
        for (method, what) in
            [("DELETE", ""), ("POST", "/password-reset"), ("GET", "/sessions"), ("DELETE", "/sessions")]
        {
            let path = format!("{user}{what}");
            ask(method, &path, Value::Null).await.refused("permission_denied", None);
        }
    }
    // What it may itself it may give.
    let made = ask("POST", ROLES, role("users:read")).await.expect(201);
    ask("POST", USERS, json!({ "email": "x@acme", "role": made["id"] })).await.expect(201);
}

#[tokio::test]
async fn a_place_is_held_by_what_is_in_force_and_not_by_what_is_past_its_life() {
    let site = Site::start().await;
    let make = async |id: &str| {
        site.call("POST", "/api/v1/tenants/acme/sites", json!({ "id": id })).await.expect(201);
    };
    let delete =
        async |id: &str| site.call("DELETE", &format!("/api/v1/tenants/acme/sites/{id}"), Value::Null).await;
    make("east").await;
    make("west").await;
    let token = json!({ "name": "t", "scopes": ["devices:read"], "scope": ["site:east"], "days": 1 });
    site.call("POST", TOKENS, token).await.expect(201);
    let invite = json!({ "email": "i@acme", "role": "viewer", "scope": ["site:west"], "days": 1 });
    site.call("POST", "/api/v1/tenants/acme/invitations", invite).await.expect(201);
    delete("east").await.refused("conflict", None);
    delete("west").await.refused("conflict", None);
    site.app.clock.advance_us(86_400_000_000);
    let login = json!({ "email": "root@acme", "password": "a long new password" });
    let answer = site.app.call(As::Nobody, "POST", "/api/v1/auth/login", Some(login)).await;
    let cookie = answer.headers["set-cookie"].to_str().unwrap().to_owned();
    let root = cookie.split(['=', ';']).nth(1).unwrap();
    for id in ["east", "west"] {
        let path = format!("/api/v1/tenants/acme/sites/{id}");
        site.as_session(root, "DELETE", &path, Value::Null).await.expect(204);
    }
}
