//! `/api/v1/tenants/{tenant}/live`: the live stream as server-sent events; `/presence` beside it.
//!
//! Events carry ids; a client that comes back with `Last-Event-ID` gets what it missed, or `reset` where that is gone.
//! A `ping` goes out each [`HEARTBEAT`]. A stream ends after [`STREAM_LIFE_MAX`], so that a session that ended or a
//! role that was taken away is noticed: browsers reconnect by themselves. A process that does not read the event log sees
//! nothing happen, and says so.

use super::feed::Feed;
use super::service::{DevicePresence, PresenceService};
use crate::devices::Devices;
use crate::devices::service::FOLLOWED_MAX;
use crate::platform::http_kit::{ApiError, ApiPath, ApiQuery, Items, NotHere, PageQuery};
use crate::platform::live::{Cut, EventId, Filter, LiveBus, LiveEvent, LiveKind, Resume, Subscription};
use crate::tenants::{Caller, Permission};
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, Sse};
use futures_util::stream::{self, Stream};
use muster_wire::{ErrorCode, TenantId};
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::Instant;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Between two pings.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
/// The longest stream.
pub const STREAM_LIFE_MAX: Duration = Duration::from_secs(600);
/// When a browser tries again.
const RETRY: Duration = Duration::from_secs(2);
/// Kinds that a query may list.
const KINDS_MAX: usize = LiveKind::ALL.len();

/// The slice's routes; their state is none where another process reads the event log.
pub fn routes() -> OpenApiRouter<Option<PageState>> {
    OpenApiRouter::new().routes(routes!(live_stream)).routes(routes!(list_presence))
}

/// What the routes stand on.
#[derive(Clone)]
pub struct PageState {
    /// The bus.
    pub bus: LiveBus,
    /// What fills it.
    pub feed: Feed,
    /// Who is there.
    pub presence: PresenceService,
    /// Who reaches which device.
    pub devices: Devices,
}

/// Whether a device is there, and when it was last heard of.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct PresenceView {
    device: String,
    connected: bool,
    /// When it came or went; absent where it did neither since the server started. Microseconds since 1970 (UTC).
    since_us: Option<i64>,
    /// Why its last connection ended, where it is not connected and was since the server started: `goodbye` (it left),
    /// `lost`, `keep_alive` (silent for one and a half keep-alives), `taken_over`, `disabled` (or deleted, or its credential
    /// revoked), `expired`, `refused_for_now`, or the protocol fault.
    reason: Option<String>,
    /// When it was last heard of; microseconds since 1970 (UTC).
    last_seen_us: i64,
}

/// Every device that was ever heard of: whether it is connected, and when it was last heard of.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/presence", tag = "live",
    params(("tenant" = String, Path), PageQuery),
    responses((status = 200, description = "A page of devices", body = Items<PresenceView>)))]
pub async fn list_presence(
    State(state): State<Option<PageState>>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<PageQuery>,
) -> Result<Json<Items<PresenceView>>, ApiError> {
    let reach = caller.require_part(Permission::DevicesRead, &tenant)?;
    let state = state.ok_or(NotHere)?;
    let page = query.page()?;
    let view = |row: DevicePresence| PresenceView {
        device: row.device,
        connected: row.presence.is_some_and(|presence| presence.connected),
        since_us: row.presence.map(|presence| presence.since_us),
        reason: row.reason.map(str::to_owned),
        last_seen_us: row.last_seen_us,
    };
    if reach.is_everything() {
        let rows = state.presence.list(&tenant, &page).await?;
        return Ok(Json(page.items(rows, |row| row.device.clone(), view)));
    }
    let (rows, next) = state.presence.list_within(&state.devices, &tenant, &reach, &page).await?;
    Ok(Json(page.part(rows, next, |row| row.device.clone(), view)))
}

/// What to stream; absent means all.
#[derive(Debug, Default, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LiveQuery {
    /// Kinds, with commas between: `reading`, `event`, `alert`, `presence`, `ledger`.
    kinds: Option<String>,
    /// Only of this device.
    device: Option<String>,
    /// For clients that cannot set the header `Last-Event-ID`.
    last_event_id: Option<String>,
}

impl LiveQuery {
    fn filter(&self) -> Result<Filter, ApiError> {
        let bad = || {
            let why = format!("must be at most {KINDS_MAX} of: reading, event, alert, presence, ledger");
            ApiError::invalid("kinds", why)
        };
        let texts = self.kinds.iter().flat_map(|kinds| kinds.split(','));
        let kinds = texts.map(|text| LiveKind::parse(text).ok_or_else(bad)).collect::<Result<Vec<_>, _>>()?;
        if kinds.len() > KINDS_MAX {
            return Err(bad());
        }
        let filter = Filter::default().kinds(&kinds);
        Ok(match &self.device {
            Some(device) => filter.device(device),
            None => filter,
        })
    }
}

/// Streams what happens, as `text/event-stream`: named events with JSON.
///
/// `reading` {device, received_at_us, values: {metric: {value, at_us}}}, `event` {device, received_at_us, results:
/// {pipeline: {kind, label, score, at_us}}}, `alert` (as in the alerts list), `presence` {device, connected, at_us},
/// `ledger` {device, at_us} (its totals changed), `ping`, and `reset`: events were missed, load the state again.
#[utoipa::path(get, path = "/api/v1/tenants/{tenant}/live", tag = "live",
    params(("tenant" = String, Path), LiveQuery),
    responses((status = 200, description = "The stream", content_type = "text/event-stream", body = String)))]
pub async fn live_stream(
    State(state): State<Option<PageState>>,
    caller: Caller,
    ApiPath(tenant): ApiPath<TenantId>,
    ApiQuery(query): ApiQuery<LiveQuery>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    caller.require_part(Permission::TelemetryRead, &tenant)?;
    let reach = caller.require_part(Permission::AlertsRead, &tenant)?;
    let state = state.ok_or(NotHere)?;
    let (bus, mut filter) = (&state.bus, query.filter()?);
    if !reach.is_everything() {
        // As of now: the stream ends in time, and its next one begins with who is where then.
        let followed = state.devices.followed(&tenant, &reach).await?;
        let too_many = || {
            let why =
                format!("your scope has more than {FOLLOWED_MAX} devices, which is the most of one stream");
            ApiError::new(ErrorCode::RateLimited, why)
        };
        filter = filter.devices(followed.ok_or_else(too_many)?);
    }
    let header = headers.get("last-event-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let last = header.or(query.last_event_id).filter(|text| !text.is_empty());
    // An id that is none of ours was given by another run of the server: what it missed is gone.
    let unknown = EventId { epoch: !bus.newest().epoch, seq: 0 };
    let last = last.map(|text| EventId::parse(&text).unwrap_or(unknown));
    // Taken before joining: what comes between the two is sent and seen, never skipped by a later resume.
    let newest = bus.newest();
    let subscription = bus.subscribe(tenant.as_str(), filter, last);
    let subscription =
        subscription.map_err(|full| ApiError::new(ErrorCode::RateLimited, full.to_string()))?;
    Ok(Sse::new(events(subscription, newest)))
}

/// Where a stream stands.
struct Streaming {
    subscription: Subscription,
    hello: Option<EventId>,
    ping_at: Instant,
    until: Instant,
    over: bool,
}

fn events(subscription: Subscription, newest: EventId) -> impl Stream<Item = Result<Event, Infallible>> {
    let now = Instant::now();
    let start = Streaming {
        subscription,
        hello: Some(newest),
        ping_at: now + HEARTBEAT,
        until: now + STREAM_LIFE_MAX,
        over: false,
    };
    stream::unfold(start, |mut streaming| async move {
        let event = streaming.next().await?;
        Some((Ok(event), streaming))
    })
}

impl Streaming {
    async fn next(&mut self) -> Option<Event> {
        if self.over {
            return None;
        }
        if let Some(newest) = self.hello.take() {
            return Some(hello(self.subscription.resume(), newest));
        }
        tokio::select! {
            next = self.subscription.next() => match next {
                Ok(event) => Some(sent(&event)),
                Err(cut) => {
                    self.over = true;
                    let why = match cut {
                        Cut::Slow => "slow",
                        Cut::Closed => "stopping",
                    };
                    Some(Event::default().event("end").data(why))
                }
            },
            () = tokio::time::sleep_until(self.ping_at.min(self.until)) => {
                if Instant::now() >= self.until {
                    return None;
                }
                self.ping_at = Instant::now() + HEARTBEAT;
                Some(Event::default().event("ping").data(""))
            }
        }
    }
}

/// The first event: sets the id, so that a stream without events resumes too.
fn hello(resume: Resume, newest: EventId) -> Event {
    match resume {
        // Replayed events carry ids of their own; the last one given stays until they come.
        Resume::Replayed(count) => {
            Event::default().retry(RETRY).event("hello").data(format!("replays {count}"))
        }
        Resume::Fresh => Event::default().retry(RETRY).event("hello").id(newest.to_string()).data("fresh"),
        Resume::Gap => {
            Event::default().retry(RETRY).event("reset").id(newest.to_string()).data("events were missed")
        }
    }
}

fn sent(event: &LiveEvent) -> Event {
    // JSON has no raw line breaks, so this cannot break the frame.
    Event::default().event(event.kind.as_str()).id(event.id.to_string()).data(event.json.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_lists_as_many_kinds_as_there_are() {
        let filter =
            |kinds: &str| LiveQuery { kinds: Some(kinds.to_owned()), ..LiveQuery::default() }.filter();
        let all = LiveKind::ALL.map(LiveKind::as_str).join(",");
        assert!(filter(&all).is_ok());
        for kinds in [format!("{all},alert"), "nope".to_owned()] {
            let refused = filter(&kinds).unwrap_err();
            let why = "must be at most 5 of: reading, event, alert, presence, ledger";
            assert_eq!((refused.field.as_deref(), &*refused.message), (Some("kinds"), why));
        }
    }
}
