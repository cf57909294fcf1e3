//! Takes the caller out of a request: an API token in `Authorization`, or a session cookie with an Origin check.

use super::model::{Object, Permission, Principal, authorise};
use super::reach::Reach;
use super::service::{Tenants, TenantsError, enforce};
use crate::platform::config::Live;
use crate::platform::http_kit::ApiError;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use muster_wire::{ErrorCode, TenantId};

/// The session cookie's name.
pub const COOKIE: &str = "muster_session";

/// What the extractor needs; `http.rs` puts it into every request.
#[derive(Clone)]
pub struct AuthState {
    /// Sessions and tokens.
    pub tenants: Tenants,
    /// The allowed origins.
    pub config: Live,
}

/// An authenticated caller. Every handler but the login takes it, and asks [`Caller::require`] first.
#[derive(Debug)]
pub struct Caller {
    /// Who it is.
    pub principal: Principal,
    /// The session's secret, for a person.
    pub session: Option<String>,
}

impl Caller {
    /// Lets the caller through to something of the whole tenant, or refuses; another tenant's object looks absent.
    ///
    /// What is cut to the caller's reach takes [`Self::require_part`], one device `Devices::admit`.
    ///
    /// # Errors
    /// 404 for another tenant's, 403 for a weak role or scope, or a reach that is bounded.
    pub fn require(&self, permission: Permission, tenant: &TenantId) -> Result<&Principal, ApiError> {
        enforce(authorise(&self.principal, permission, Object::Tenant(tenant)), permission)?;
        Ok(&self.principal)
    }

    /// As [`Self::require`], for what the handler cuts to the caller's reach, which this gives.
    ///
    /// # Errors
    /// 404 for another tenant's, 403 for a weak role or scope.
    pub fn require_part(&self, permission: Permission, tenant: &TenantId) -> Result<Reach, ApiError> {
        enforce(authorise(&self.principal, permission, Object::Part(tenant)), permission)?;
        Ok(self.principal.reach_in(tenant))
    }

    /// Keeps callers from taking away what they call with: nobody could tell them how it ended.
    ///
    /// # Errors
    /// 409 where `id` is the caller's own account or API token.
    pub fn require_other(&self, id: &str) -> Result<(), ApiError> {
        if self.principal.id() != id {
            return Ok(());
        }
        Err(ApiError::new(ErrorCode::Conflict, "you cannot remove yourself: somebody else must"))
    }

    /// As [`Self::require`], for what concerns the whole server.
    ///
    /// # Errors
    /// 403.
    pub fn require_platform(&self) -> Result<&Principal, ApiError> {
        let permission = Permission::PlatformAdmin;
        enforce(authorise(&self.principal, permission, Object::Server), permission)?;
        Ok(&self.principal)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let missing = || ApiError::internal("the router has no AuthState");
        let auth = parts.extensions.get::<AuthState>().cloned().ok_or_else(missing)?;
        if let Some(value) = parts.headers.get(header::AUTHORIZATION) {
            let secret = value.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
            let secret = secret.ok_or(TenantsError::Unauthenticated)?;
            return Ok(Self { principal: auth.tenants.by_token(secret.trim())?, session: None });
        }
        let secret = session_secret(&parts.headers).ok_or(TenantsError::Unauthenticated)?;
        let principal = auth.tenants.by_session(&secret).await?;
        if changes(&parts.method) && !origin_allowed(&parts.headers, &auth.config.get().http.origins) {
            return Err(ApiError::new(
                ErrorCode::PermissionDenied,
                "the request's Origin is not this server's",
            ));
        }
        Ok(Self { principal, session: Some(secret) })
    }
}

fn changes(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// What a request authenticates with: its API token, or else its session's secret; true or not.
#[must_use]
pub fn credential(headers: &HeaderMap) -> Option<String> {
    match headers.get(header::AUTHORIZATION) {
        Some(value) => value.to_str().ok()?.strip_prefix("Bearer ").map(|secret| secret.trim().to_owned()),
        None => session_secret(headers),
    }
}

/// The session's secret from the cookies.
#[must_use]
pub fn session_secret(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value.to_owned())
}

/// Whether a browser on this origin may change things: the server's own host, or one of the configured origins.
/// Browsers send `Origin` with every such request, so a request without it is refused.
#[must_use]
pub fn origin_allowed(headers: &HeaderMap, origins: &[String]) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(origin) = text(header::ORIGIN) else { return false };
    let own = origin.split_once("://").map(|(_, host)| host);
    own.is_some() && own == text(header::HOST) || origins.iter().any(|allowed| allowed == origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(origin: Option<&str>, expect: bool) {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "fleet.local:8080".parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        assert_eq!(origin_allowed(&headers, &["https://fleet.example".into()]), expect, "{origin:?}");
    }

    #[test]
    fn only_own_and_configured_origins_may_change_things() {
        check(None, false);
        check(Some("null"), false);
        check(Some("http://fleet.local:8080"), true);
        check(Some("http://fleet.local"), false);
        check(Some("https://fleet.example"), true);
        check(Some("https://fleet.example.evil"), false);
        check(Some("http://evil"), false);
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, "a=b; muster_session=mss_1; c=d".parse().unwrap());
        assert_eq!(session_secret(&headers).as_deref(), Some("mss_1"));
    }
}
