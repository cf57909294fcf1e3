//! How many requests a caller may make: a token bucket a principal (an API token or a session) and one an address.
//!
//! `http.rs` puts [`limit`] around the routes, outside of everything that reads a body or asks the database. Over it:
//! 429 with `Retry-After`. Every answer to somebody with credentials tells what is left (`RateLimit`,
//! draft-ietf-httpapi-ratelimit-headers). A proxy on this machine stands for everybody, so loopback has no bucket of its
//! address. Bound: [`BUCKETS_MAX`] buckets of each kind; once they are all in use, who is new shares one.

use super::ApiError;
use crate::platform::clock::SharedClock;
use crate::platform::config::Live;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

/// Buckets of one kind.
pub const BUCKETS_MAX: usize = 50_000;
/// Who comes when every bucket is in use.
const SHARED: u64 = 0;

/// Requests a second, and at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Requests a second; 0 lifts the limit.
    pub per_s: u32,
    /// Requests at once.
    pub burst: u32,
}

/// What a bucket says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Left {
    /// Requests that may follow at once.
    requests: u32,
    /// Seconds until one more may come; 0 where this one passes.
    retry_after_s: u64,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    filled_at_us: i64,
}

/// Buckets by a hash of whose they are.
#[derive(Debug, Default)]
struct Buckets {
    buckets: HashMap<u64, Bucket>,
}

impl Buckets {
    fn take(&mut self, key: u64, limit: Limit, now_us: i64) -> Left {
        let (rate, burst) = (f64::from(limit.per_s), f64::from(limit.burst));
        let key = self.place(key, rate, burst, now_us);
        let bucket = self.buckets.entry(key).or_insert(Bucket { tokens: burst, filled_at_us: now_us });
        bucket.fill(rate, burst, now_us);
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "0 to a u32's burst"
            )]
            return Left { requests: bucket.tokens as u32, retry_after_s: 0 };
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at most a second over the rate"
        )]
        let retry_after_s = ((1.0 - bucket.tokens) / rate).ceil().max(1.0) as u64;
        Left { requests: 0, retry_after_s }
    }

    /// The key to use: its own while there is room. Full buckets say nothing and make room.
    fn place(&mut self, key: u64, rate: f64, burst: f64, now_us: i64) -> u64 {
        if self.buckets.len() < BUCKETS_MAX || self.buckets.contains_key(&key) {
            return key;
        }
        self.buckets.retain(|_, bucket| {
            bucket.fill(rate, burst, now_us);
            bucket.tokens < burst
        });
        if self.buckets.len() < BUCKETS_MAX { key } else { SHARED }
    }
}

impl Bucket {
    /// A clock that was set back fills nothing.
    fn fill(&mut self, rate: f64, burst: f64, now_us: i64) {
        #[allow(clippy::cast_precision_loss, reason = "a pause in microseconds")]
        let passed_s = now_us.saturating_sub(self.filled_at_us).max(0) as f64 / 1e6;
        self.tokens = (self.tokens + passed_s * rate).min(burst);
        self.filled_at_us = now_us;
    }
}

/// Takes out of a request what it authenticates with, and nothing that a caller may vary beside it.
pub type Credential = fn(&HeaderMap) -> Option<String>;

/// The buckets of a listener's callers; clones share them.
#[derive(Clone)]
pub struct RateLimiter {
    inner: Arc<Inner>,
}

struct Inner {
    clock: SharedClock,
    config: Live,
    credential: Credential,
    hasher: RandomState,
    principals: Mutex<Buckets>,
    addresses: Mutex<Buckets>,
}

impl RateLimiter {
    /// No bucket is in use yet.
    #[must_use]
    pub fn new(clock: SharedClock, config: Live, credential: Credential) -> Self {
        let (principals, addresses) = (Mutex::default(), Mutex::default());
        let hasher = RandomState::new();
        Self { inner: Arc::new(Inner { clock, config, credential, hasher, principals, addresses }) }
    }

    fn take(&self, buckets: &Mutex<Buckets>, key: u64, limit: Limit) -> Option<Left> {
        if limit.per_s == 0 {
            return None;
        }
        let now_us = self.inner.clock.now_us();
        Some(buckets.lock().unwrap_or_else(PoisonError::into_inner).take(key, limit, now_us))
    }

    fn address(&self, address: Option<IpAddr>, limit: Limit) -> Option<Left> {
        let network = address.filter(|address| !address.is_loopback()).map(network)?;
        self.take(&self.inner.addresses, self.inner.hasher.hash_one(network), limit)
    }

    fn principal(&self, headers: &HeaderMap, limit: Limit) -> Option<Left> {
        let credential = (self.inner.credential)(headers)?;
        self.take(&self.inner.principals, self.inner.hasher.hash_one(credential), limit)
    }
}

/// One place on the network: an IPv6 customer has a /64.
fn network(address: IpAddr) -> [u8; 8] {
    let mut key = [0; 8];
    match address.to_canonical() {
        IpAddr::V4(address) => key[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => key.copy_from_slice(&address.octets()[..8]),
    }
    key
}

/// The layer.
pub async fn limit(State(limiter): State<RateLimiter>, request: Request, next: Next) -> Response {
    let rate = limiter.inner.config.get().http.rate.clone();
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    let address = Limit { per_s: rate.address_per_s, burst: rate.address_burst };
    let principal = Limit { per_s: rate.principal_per_s, burst: rate.principal_burst };
    let left = limiter
        .address(peer, address)
        .filter(|left| left.retry_after_s > 0)
        .map(|left| ("address", address, left));
    let left =
        left.or_else(|| Some(("principal", principal, limiter.principal(request.headers(), principal)?)));
    let Some((policy, limit, left)) = left else { return next.run(request).await };
    let mut response = if left.retry_after_s > 0 {
        let why =
            format!("more than {} requests a second; try again in {} s", limit.per_s, left.retry_after_s);
        ApiError::locked(why, left.retry_after_s).into_response()
    } else {
        next.run(request).await
    };
    tell(&mut response, policy, limit, left);
    response
}

fn tell(response: &mut Response, policy: &str, limit: Limit, left: Left) {
    let window_s = limit.burst.div_ceil(limit.per_s.max(1)).max(1);
    let texts = [
        ("ratelimit-policy", format!("\"{policy}\";q={};w={window_s}", limit.burst)),
        ("ratelimit", format!("\"{policy}\";r={};t={}", left.requests, left.retry_after_s)),
    ];
    for (name, text) in texts {
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { per_s: 2, burst: 3 };

    fn passed(buckets: &mut Buckets, key: u64, now_us: i64) -> usize {
        (0..100).take_while(|_| buckets.take(key, LIMIT, now_us).retry_after_s == 0).count()
    }

    #[test]
    fn a_burst_passes_then_the_rate_and_a_clock_set_back_gives_nothing() {
        let mut buckets = Buckets::default();
        assert_eq!(buckets.take(7, LIMIT, 0), Left { requests: 2, retry_after_s: 0 });
        assert_eq!(passed(&mut buckets, 7, 0), 2);
        assert_eq!(buckets.take(7, LIMIT, 0), Left { requests: 0, retry_after_s: 1 });
        assert_eq!(passed(&mut buckets, 7, -60_000_000), 0);
        assert_eq!(passed(&mut buckets, 7, -59_000_000), 2);
        assert_eq!(passed(&mut buckets, 7, 3_600_000_000), 3, "a pause earns no more than a burst");
        assert_eq!(passed(&mut buckets, 8, 0), 3, "another's bucket is another");
    }

    #[test]
    fn buckets_are_bounded_and_who_is_new_shares_one() {
        let mut buckets = Buckets::default();
        let keys = 1..=BUCKETS_MAX as u64;
        for key in keys.clone() {
            buckets.take(key, LIMIT, 0);
        }
        assert_eq!(buckets.buckets.len(), BUCKETS_MAX);
        let new = BUCKETS_MAX as u64 + 1;
        assert_eq!(passed(&mut buckets, new, 0), 3);
        assert_eq!(passed(&mut buckets, new + 1, 0), 0, "it has no bucket of its own");
        assert_eq!(buckets.buckets.len(), BUCKETS_MAX + 1);
        // A second later every bucket is full again, which is as good as none.
        assert_eq!(passed(&mut buckets, new + 1, 1_000_000), 3);
        assert!(buckets.buckets.len() < 3, "{}", buckets.buckets.len());
    }

    #[test]
    fn an_address_is_its_network() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
