//! `Idempotency-Key` around the operations that create: takes the key, runs the request once, gives its answer again.
//!
//! From taking the key on, the request runs in a task of its own: a client that goes away does not end it, so its
//! answer is kept for the client's next try.

use crate::platform::clock::SharedClock;
use crate::platform::config::Live;
use crate::platform::db::{Db, Scope};
use crate::platform::http_kit::idempotency::{self, Answer, Ended, Found, HEADER, Once, parse_key};
use crate::platform::http_kit::{ApiError, Gate, chain};
use crate::tenants::extract::credential;
use crate::tenants::{Caller, Principal};
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequestParts as _, MatchedPath, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use muster_wire::{ErrorCode, TenantId};

/// Says that an answer was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// Headers that are kept with an answer.
const KEPT: [HeaderName; 3] = [header::CONTENT_TYPE, header::LOCATION, header::ETAG];

/// What the layer stands on.
#[derive(Clone)]
pub(super) struct Repeat {
    pub(super) db: Db,
    pub(super) clock: SharedClock,
    pub(super) config: Live,
    pub(super) gate: Gate,
}

/// The layer.
pub(super) async fn repeat(State(repeat): State<Repeat>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    let creates = route.is_some_and(|route| repeat.gate.creates(request.method(), route.as_str()));
    if !creates || !request.headers().contains_key(HEADER) {
        return next.run(request).await;
    }
    match repeat.run(request, next).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

impl Repeat {
    async fn run(&self, request: Request, next: Next) -> Result<Response, ApiError> {
        let (mut parts, body) = request.into_parts();
        let key = key(&parts)?;
        let caller = Caller::from_request_parts(&mut parts, &()).await?;
        let tenant = tenant(&mut parts).await?;
        if tenant.as_ref().is_some_and(|tenant| caller.principal.membership_in(tenant).is_none()) {
            // Not a member: the handler says what a stranger is told, and no key of the tenant is used up.
            return Ok(next.run(Request::from_parts(parts, body)).await);
        }
        let bytes = to_bytes(body, self.config.get().http.body_bytes_max).await;
        let bytes = bytes.map_err(|_| ApiError::too_large())?;
        let once = once(&parts, &caller, tenant, &key, &bytes);
        let request = Request::from_parts(parts, Body::from(bytes));
        let running = tokio::spawn(self.clone().once(once, request, next));
        running.await.map_err(|error| ApiError::internal(format!("a request with a key: {error}")))?
    }

    async fn once(self, once: Once, request: Request, next: Next) -> Result<Response, ApiError> {
        match idempotency::begin(&self.db, &once, self.clock.now_us()).await? {
            Found::Nothing => Ok(kept(&self.db, once, next.run(request).await).await),
            Found::Answer(answer) => Ok(again(answer)),
            found => Err(refusal(&found)),
        }
    }
}

fn key(parts: &Parts) -> Result<String, ApiError> {
    let bad = || ApiError::invalid(HEADER, "must be one text of 1 to 64 visible characters, best in quotes");
    let mut lines = parts.headers.get_all(HEADER).iter();
    let (line, None) = (lines.next().ok_or_else(bad)?, lines.next()) else { return Err(bad()) };
    line.to_str().ok().and_then(parse_key).map(str::to_owned).ok_or_else(bad)
}

/// The path's tenant, where it has one.
async fn tenant(parts: &mut Parts) -> Result<Option<TenantId>, ApiError> {
    let params = RawPathParams::from_request_parts(parts, &()).await;
    let params = params.map_err(|_| ApiError::not_found("object"))?;
    let text = params.iter().find(|(name, _)| *name == "tenant").map(|(_, text)| text);
    text.map(TenantId::parse).transpose().map_err(|_| ApiError::not_found("object"))
}

fn once(parts: &Parts, caller: &Caller, tenant: Option<TenantId>, key: &str, body: &Bytes) -> Once {
    let scope = tenant.map_or(Scope::System("idempotency"), Scope::Tenant);
    let who = match &caller.principal {
        Principal::User { user_id, .. } => format!("user:{user_id}"),
        Principal::Token { token_id, .. } => format!("token:{token_id}"),
    };
    let credential = credential(&parts.headers).unwrap_or_default();
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    Once::new(
        scope,
        who,
        credential.as_bytes(),
        key,
        &[parts.method.as_str().as_bytes(), target.as_bytes(), body],
    )
}

fn refusal(found: &Found) -> ApiError {
    let conflict = |why: &'static str| ApiError::new(ErrorCode::Conflict, why).at(HEADER);
    match found {
        Found::Other => {
            let why = "the key was used with another request";
            ApiError::new(ErrorCode::IdempotencyMismatch, why).at(HEADER)
        }
        Found::Full => {
            ApiError::new(ErrorCode::RateLimited, "the tenant used too many keys today").at(HEADER)
        }
        Found::Sealed => conflict("the request was done in another session: look at the list"),
        Found::Running | Found::Nothing | Found::Answer(_) => conflict(
            "a request with this key is running, or ended without an answer that is kept: look at the list",
        ),
    }
}

fn again(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let mut response = (status, answer.body).into_response();
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    for (name, value) in answer.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    }
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

/// Keeps a good answer and passes it on. One that cannot be kept, and a fault of the server's, leave the key taken: better
/// refused than done twice.
async fn kept(db: &Db, once: Once, response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, usize::MAX).await else {
        return ApiError::internal("an answer's body ended early").into_response();
    };
    let text = |name: &HeaderName| {
        let value = parts.headers.get(name)?.to_str().ok()?;
        Some((name.to_string(), value.to_owned()))
    };
    let answer = || Answer {
        status: parts.status.as_u16(),
        headers: KEPT.iter().filter_map(text).collect(),
        body: String::from_utf8_lossy(&bytes).into_owned(),
    };
    let good = parts.status.is_success().then(answer);
    let is_before_work = parts.extensions.get::<ApiError>().is_some_and(ApiError::is_before_work);
    let ended = match &good {
        Some(answer) => Ended::Good(answer),
        None if parts.status.is_client_error() || is_before_work => Ended::Refused,
        // The commit may have come before the fault.
        None => Ended::Unknown,
    };
    if let Err(error) = idempotency::end(db, once, ended).await {
        tracing::warn!(error = %chain(&error), "an answer was not kept for its idempotency key");
    }
    Response::from_parts(parts, Body::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::http_kit::NotHere;
    use crate::testing::registry;

    #[tokio::test]
    async fn a_fault_leaves_the_key_taken_unless_nothing_was_done_for_certain() {
        let dir = tempfile::tempdir().unwrap();
        let db = registry(dir.path());
        let busy = ApiError::new(ErrorCode::Unavailable, "the database is busy");
        for (at, (response, is_free)) in [
            (ApiError::internal("after the commit").into_response(), false),
            (busy.clone().into_response(), false),
            (StatusCode::BAD_GATEWAY.into_response(), false),
            (busy.before_work().into_response(), true),
            (ApiError::from(NotHere).into_response(), true),
            (ApiError::invalid("id", "is taken").into_response(), true),
        ]
        .into_iter()
        .enumerate()
        {
            let scope = Scope::System("idempotency");
            let once = Once::new(scope, "user:u".into(), b"secret", &format!("k{at}"), &[b"POST"]);
            assert_eq!(idempotency::begin(&db, &once, 0).await.unwrap(), Found::Nothing);
            let status = response.status();
            assert_eq!(kept(&db, once.clone(), response).await.status(), status);
            let expect = if is_free { Found::Nothing } else { Found::Running };
            assert_eq!(idempotency::begin(&db, &once, 0).await.unwrap(), expect, "{at}: {status}");
        }
    }
}
