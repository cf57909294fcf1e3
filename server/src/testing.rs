//! The app in process for tests: real stores in a temporary directory, a manual clock, no sockets.

use crate::app::{self, Parts};
use crate::devices::Endpoints;
use crate::http;
use crate::platform::clock::{ManualClock, SharedClock};
use crate::platform::config::{Config, Live};
use crate::tenants::service::TokenRequest;
use crate::tenants::{Permission, Principal, Role};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use muster_wire::TenantId;
use serde_json::Value;
use std::sync::Arc;
use tower::ServiceExt as _;

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
        change(&mut config);
        let clock = ManualClock::at(START_US);
        let shared: SharedClock = clock.clone();
        let parts = app::build(&Live::new(config), &shared).await.unwrap();
        let endpoints = Endpoints { host: "localhost".into(), enroll_port: 8443, mqtt_port: 8883 };
        parts.slices.devices.set_endpoints(endpoints);
        let (admin, enroll) = (http::admin_router(&parts.slices), http::enroll_router(&parts.slices));
        Self { parts, clock, admin, enroll, _dir: dir }
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
        let request = TokenRequest { name: "test".into(), scopes: scopes.to_vec(), days: 30 };
        self.parts.slices.tenants.create_token(&owner(tenant), tenant, request).await.unwrap().secret
    }

    /// A member with a changed password; gives the session's secret.
    pub async fn member(&self, tenant: &TenantId, email: &str, role: Role) -> String {
        let tenants = &self.parts.slices.tenants;
        let one_time =
            tenants.add_member(&owner(tenant), tenant, email, role).await.unwrap().password.unwrap();
        let (session, _) = tenants.login(email, &one_time, "test").await.unwrap();
        let new = "a long new password".to_owned();
        tenants.change_password(email, &session, &one_time, new, "test").await.unwrap();
        session
    }

    pub async fn call(&self, caller: As<'_>, method: &str, path: &str, body: Option<Value>) -> Answer {
        send(&self.admin, caller, method, path, body).await
    }
}

pub fn owner(tenant: &TenantId) -> Principal {
    Principal::User {
        user_id: "u-test".into(),
        email: "owner@localhost".into(),
        memberships: vec![(tenant.clone(), Role::Owner)],
        system_admin: true,
        password_pending: false,
    }
}

pub async fn send(router: &Router, caller: As<'_>, method: &str, path: &str, body: Option<Value>) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "muster.test");
    request = match caller {
        As::Nobody => request,
        As::Token(token) => request.header(header::AUTHORIZATION, format!("Bearer {token}")),
        As::Session(secret) => {
            request.header(header::COOKIE, format!("muster_session={secret}")).header(header::ORIGIN, ORIGIN)
        }
    };
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    raw(router, request.header(header::CONTENT_TYPE, "application/json").body(body).unwrap()).await
}

pub async fn raw(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let json = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Answer { status: head.status, headers: head.headers, json, text }
}
