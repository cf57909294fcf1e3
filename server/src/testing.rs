//! The app in process for tests: real stores in a temporary directory, a manual clock, no sockets.

use crate::app::{self, Parts};
use crate::devices::Endpoints;
use crate::http;
use crate::platform::clock::{ManualClock, SharedClock};
use crate::platform::config::{Config, Live};
use crate::platform::db::{Db, PostgresOptions, PostgresUrl, Scope};
use crate::platform::schema;
use crate::tenants::service::{Client, GrantRequest, TokenRequest};
use crate::tenants::{Membership, Permission, Principal, Role};
use axum::Router;
use axum::body::Body;
use axum::http::request::Builder;
use axum::http::{HeaderMap, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use muster_services::Postgres;
use muster_wire::TenantId;
use serde_json::Value;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tower::ServiceExt as _;

/// `postgres` in this variable: tests have their registry there, not in a file. `cargo xtask test` runs them on both.
pub const ENGINE: &str = "MUSTER_TEST_REGISTRY";

/// Whether tests have their registry on PostgreSQL.
pub fn on_postgres() -> bool {
    std::env::var(ENGINE).is_ok_and(|engine| engine == "postgres")
}

/// A server with an empty registry, where the tests run on PostgreSQL.
pub fn postgres() -> Option<(Postgres, PostgresUrl)> {
    match std::env::var(ENGINE).as_deref() {
        Err(_) | Ok("sqlite") => None,
        Ok("postgres") => {
            let server = Postgres::start().unwrap();
            let url = server.database("registry").unwrap().url.parse().unwrap();
            Some((server, url))
        }
        Ok(other) => panic!("{ENGINE} is {other:?}, must be sqlite or postgres"),
    }
}

thread_local! {
    /// Servers of this test's registries, by their directory: they end with the test.
    static SERVERS: RefCell<HashMap<PathBuf, (Postgres, PostgresUrl)>> = RefCell::default();
}

/// The registry of a directory, made where there is none: for tests of one slice.
pub fn registry(dir: &Path) -> Db {
    SERVERS.with_borrow_mut(|servers| {
        if !servers.contains_key(dir) {
            servers.extend(postgres().map(|server| (dir.to_owned(), server)));
        }
        match servers.get(dir) {
            Some((_, url)) => {
                Db::connect(&PostgresOptions::at(url.clone()), schema::registry_postgres()).unwrap()
            }
            None => Db::open(&dir.join("registry.db"), schema::registry(), 2).unwrap(),
        }
    })
}

/// Runs a statement that the server's own roles may not.
pub fn registry_by_owner(dir: &Path, sql: &str) {
    let is_done = SERVERS.with_borrow(|servers| {
        servers
            .get(dir)
            .map(|(server, _)| server.sql("registry", &format!("SET search_path = muster; {sql}")).unwrap())
    });
    if is_done.is_none() {
        let sql = sql.to_owned();
        registry(dir).write_blocking(move |tx| tx.execute(&Scope::System("test"), &sql, &[])).unwrap();
    }
}

/// 2026-01-01.
pub const START_US: i64 = 1_767_225_600_000_000;
/// The origin that test browsers send.
pub const ORIGIN: &str = "http://muster.test";

pub struct TestApp {
    pub parts: Parts,
    pub clock: Arc<ManualClock>,
    pub admin: Router,
    pub enroll: Router,
    _dir: tempfile::TempDir,
    _postgres: Option<Postgres>,
}

/// An answer, its body read.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub json: Value,
    pub text: String,
}

impl Answer {
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self.json
    }

    /// Checks a refusal: its status, code and field.
    #[track_caller]
    pub fn refused(&self, code: &str, field: Option<&str>) {
        assert_eq!(self.json["code"], code, "{}", self.text);
        assert_eq!(self.json["field"].as_str(), field, "{}", self.text);
        assert_eq!(self.json["status"], self.status.as_u16());
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(self.json["request_id"].as_str(), self.headers["x-request-id"].to_str().ok());
    }
}

/// How a test authenticates.
#[derive(Clone, Debug)]
pub enum As<'a> {
    Nobody,
    Token(&'a str),
    Session(&'a str),
}

impl TestApp {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
        config.event_log.segment_bytes = 1 << 20;
        config.event_log.bytes_max = 16 << 20;
        let (postgres, url) = postgres().unzip();
        config.registry.url = url;
        change(&mut config);
        let clock = ManualClock::at(START_US);
        let shared: SharedClock = clock.clone();
        let parts = app::build(&Live::new(config), &shared).await.unwrap();
        let endpoints = Endpoints { host: "localhost".into(), enroll_port: 8443, mqtt_port: 8883 };
        parts.slices.devices.set_endpoints(endpoints);
        let (admin, enroll) = (http::admin_router(&parts.slices), http::enroll_router(&parts.slices));
        Self { parts, clock, admin, enroll, _dir: dir, _postgres: postgres }
    }

    /// A tenant besides the first, owned by the first owner.
    pub async fn tenant(&self, id: &str) -> TenantId {
        let tenant = TenantId::parse(id).unwrap();
        let tenants = &self.parts.slices.tenants;
        tenants.first_start().await.unwrap();
        let owner = owner(&tenant);
        tenants
            .create_tenant(&owner, tenant.clone(), id.into(), Some("owner@localhost".into()))
            .await
            .unwrap();
        tenant
    }

    pub async fn token(&self, tenant: &TenantId, scopes: &[Permission]) -> String {
        let request =
            TokenRequest { name: "test".into(), scopes: scopes.to_vec(), days: 30, ..Default::default() };
        self.parts.slices.tenants.create_token(&owner(tenant), tenant, request).await.unwrap().secret
    }

    /// A member with a changed password; gives the session's secret.
    pub async fn member(&self, tenant: &TenantId, email: &str, grant: impl Into<GrantRequest>) -> String {
        let tenants = &self.parts.slices.tenants;
        let one_time = tenants.add_member(&owner(tenant), tenant, email, grant).await.unwrap().password;
        let (session, _) = tenants.login(email, &one_time, &Client::new("test", "")).await.unwrap();
        let new = "a long new password".to_owned();
        tenants.change_password(email, &session, &one_time, new, "test").await.unwrap();
        session
    }

    /// The bytes of an answer that is a file.
    pub async fn download(&self, caller: As<'_>, path: &str) -> Vec<u8> {
        let request = authenticated(Request::get(path), caller).body(Body::empty()).unwrap();
        let response = self.admin.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.into_body().collect().await.unwrap().to_bytes().to_vec()
    }

    pub async fn call(&self, caller: As<'_>, method: &str, path: &str, body: Option<Value>) -> Answer {
        send(&self.admin, caller, method, path, body).await
    }
}

pub fn owner(tenant: &TenantId) -> Principal {
    Principal::User {
        user_id: "u-test".into(),
        email: "owner@localhost".into(),
        memberships: vec![Membership::whole(tenant.clone(), Role::Owner)],
        system_admin: true,
        password_pending: false,
    }
}

pub async fn send(router: &Router, caller: As<'_>, method: &str, path: &str, body: Option<Value>) -> Answer {
    let request = authenticated(Request::builder().method(method).uri(path), caller);
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    raw(router, request.header(header::CONTENT_TYPE, "application/json").body(body).unwrap()).await
}

fn authenticated(request: Builder, caller: As<'_>) -> Builder {
    let request = request.header(header::HOST, "muster.test");
    match caller {
        As::Nobody => request,
        As::Token(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
        As::Session(secret) => {
            request.header(header::COOKIE, format!("muster_session={secret}")).header(header::ORIGIN, ORIGIN)
        }
    }
}

pub async fn raw(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let json = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Answer { status: head.status, headers: head.headers, json, text }
}
