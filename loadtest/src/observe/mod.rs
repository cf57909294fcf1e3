//! The observing half of a run: everything that watches and judges the server from outside, over HTTP and `/proc`.
//!
//! `run` calls it while its engine sends. It knows the server by its documented API only, and survives what a run does
//! to the server: a call to one that is down fails or is tried again, no thread of it ends for that.
//!
//! ```text
//! handle     ServerHandle: where the server is now; clones share it, every use looks again.
//!            new(ServerFacts) -> Self; facts() -> ServerFacts; change(FnOnce(&mut ServerFacts))
//!            ServerFacts { http: Option<String /* host:port */>, pid: Option<u32>, data_dir: Option<PathBuf> }
//!            Access { tenant: String, token: String }: one tenant's API token; .path("devices") -> "/api/v1/tenants/.."
//! http       Client::new(&ServerHandle, token) ; .get(path) .post(path, &json) .post_nothing(path) -> Result<Value,
//!            HttpError> ; .get_as::<T>(path) ; .call(method, path, body) -> Result<Answer {status, body}, HttpError>
//! sse        LiveStream::open(&ServerHandle, &Access, kinds: &str) -> Result<Self>
//!            .next(timeout) -> Option<LiveEvent { at: Instant, kind, data }> ; .opened() -> u64
//! sample     Sampler::start(&ServerHandle, generator_pids: Vec<u32>) -> Result<Self>   (one look a second)
//!            .take() -> Vec<Second { at: Instant, .. }> since the last take ; Second::fill(&self, &mut model::Sample)
//!            .begin_cost() where the measured interval begins ; .cost() -> model::Cost since then
//! server     ManagedServer::start(ServerOptions { binary, dir, set: Vec<(String, String)>, plain: bool }) -> Result<Self>
//!            .handle() .access() .owner() .addresses() .data_dir() .ca() .ca_key() .pid()
//!            .kill() .start_again() .stop() .freeze() .thaw()      the same ports after every start
//! provision  tenants(&ServerHandle, &Owner, names: &[String]) -> Result<Vec<Access>>
//!            devices(&ServerHandle, &Access, names: &[String], Login::{Certificate, Token}, progress: &(dyn Fn(u32) + Sync))
//!                -> Result<Vec<Option<String>>>                    tokens in the order of names
//!            alarm_rule(&ServerHandle, &Access, name, metric, devices: &[String]) -> Result<String /* rule id */>
//!                waits until it runs
//!            rule(&ServerHandle, &Access, draft: &Value) -> Result<String /* rule id */> ; wait_for_rule(.., id)
//!            alarm_value(excursion: u32) -> f64: what an alarm device sends to open its n-th alert; 0.0 ends it
//! probe      StoredProbe::start(&ServerHandle, &Access) ; .watch(StoredWatch { device, metric, value, measured_at_us,
//!                intended: Instant })
//!            AlertProbe::start(&ServerHandle, &Access, rule_id) ; .watch(AlertWatch { device, excursion, intended })
//!            both: .take() -> Vec<Observed { at: Instant, ms: f64 }> ; .finish() -> ProbeResult { histogram (us), given_up,
//!                not_watched, waiting } ; ProbeResult::latency() -> model::Latency
//! oracle     judge(&ServerHandle, &[Access], &Expected, drain_time_max: Duration, progress: &(dyn Fn(u32) + Sync))
//!                -> Result<Verdict { invariants, ledger, counts }> ; Verdict::held()
//!            Expected { devices: Vec<ExpectedDevice { number, tenant: usize, name, accepted: Vec<RangeInclusive<u32>>,
//!                maybe: Vec<RangeInclusive<u32>> }>, alarms: Vec<ExpectedAlarms { tenant: usize, device, rule_id,
//!                opened: Vec<RangeInclusive<u32>>, maybe: Vec<RangeInclusive<u32>> }> }
//! outage     StoreOutage::begin(data_dir) -> Result<Self> ; .end()              (dropping it ends it, too)
//! ```

mod chunked;
pub mod handle;
pub mod http;
pub mod oracle;
pub mod outage;
pub mod probe;
pub mod provision;
pub mod sample;
pub mod scrape;
pub mod server;
pub mod sse;
#[cfg(test)]
mod testing;

pub use handle::{Access, ServerFacts, ServerHandle};
