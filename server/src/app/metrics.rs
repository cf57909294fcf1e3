//! Metrics of parts that keep counters of their own: read when somebody scrapes.

use super::{follow, registry};
use crate::devices::directory::Directory;
use crate::ingest;
use crate::ingest::skipped::Skipped;
use crate::platform::db::{WakeCounts, Wakes};
use crate::platform::event_log::EventLog;
use crate::platform::live::LiveBus;
use crate::platform::telemetry::TelemetryStore;
use crate::rules::consumer::Progress;
use prometheus::{PullingGauge, Registry};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

type Read = Box<dyn Fn() -> f64 + Send + Sync>;

#[allow(clippy::cast_precision_loss, reason = "Prometheus counts in f64")]
fn number(value: u64) -> f64 {
    value as f64
}

fn register(registry: &Registry, name: &str, help: &str, read: Read) -> Result<(), prometheus::Error> {
    registry.register(Box::new(PullingGauge::new(name, help, read)?))
}

/// The event log: how full, how far, what failed.
pub(super) fn of_log(registry: &Registry, log: &EventLog) -> Result<(), prometheus::Error> {
    let stat = |read: fn(&muster_journal::Stats) -> u64| -> Read {
        let log = log.clone();
        Box::new(move || number(read(&log.stats())))
    };
    let stored = log.clone();
    let stored: Read = Box::new(move || number(stored.stored_next().unwrap_or(0)));
    let all: [(&str, &str, Read); 7] = [
        ("event_log_stored_position", "All below is in the store; 0: nothing reads this log", stored),
        ("event_log_bytes", "Bytes on disk", stat(|stats| stats.bytes)),
        ("event_log_next_position", "The next record's position", stat(|stats| stats.next_seq)),
        ("event_log_durable_position", "All below is on disk", stat(|stats| stats.durable_next)),
        ("event_log_released_position", "All below may be deleted", stat(|stats| stats.released)),
        ("event_log_refused_appends", "Appends refused since the log was full", stat(|stats| stats.refused)),
        ("event_log_sync_failures", "Syncs that failed", stat(|stats| stats.sync_failures)),
    ];
    all.into_iter().try_for_each(|(name, help, read)| register(registry, name, help, read))
}

/// The store's consumer.
pub(super) fn of_store(
    registry: &Registry,
    progress: &Arc<ingest::Progress>,
    telemetry: &TelemetryStore,
    skipped: &Skipped,
) -> Result<(), prometheus::Error> {
    let store = |read: fn(&ingest::Progress) -> u64| -> Read {
        let progress = progress.clone();
        Box::new(move || number(read(&progress)))
    };
    let (skipped, telemetry, outbox) = (skipped.clone(), telemetry.clone(), telemetry.clone());
    let all: [(&str, &str, Read); 10] = [
        (
            "store_outbox_bytes",
            "Bytes of readings and events that wait for ClickHouse",
            Box::new(move || outbox.outbox().map_or(f64::NAN, |held| number(held.bytes))),
        ),
        ("store_messages", "Messages stored since the start", store(|progress| progress.now().messages)),
        ("store_readings", "Readings stored since the start", store(|progress| progress.now().readings)),
        ("store_events", "Inference results stored since the start", store(|progress| progress.now().events)),
        (
            "store_duplicates",
            "Copies of records not stored again",
            store(|progress| progress.now().duplicates),
        ),
        (
            "store_dead_letters",
            "Bodies that could not be decoded",
            store(|progress| progress.now().dead_letters),
        ),
        (
            "store_skipped_positions",
            "Log positions that the store never read",
            Box::new(move || number(skipped.positions())),
        ),
        ("store_batches", "Batches of the log stored", store(|progress| progress.now().batches)),
        (
            "store_memtable_entries",
            "Records and readings that wait in memory to be flushed into the tables",
            Box::new(move || number(telemetry.entries() as u64)),
        ),
        (
            "store_failures",
            "Steps that failed and were tried again",
            store(|progress| progress.now().failures),
        ),
    ];
    all.into_iter().try_for_each(|(name, help, read)| register(registry, name, help, read))
}

/// The rules' consumer and the live stream.
pub(super) fn of_rules(
    registry: &Registry,
    progress: &Arc<Progress>,
    live: &LiveBus,
) -> Result<(), prometheus::Error> {
    let rule = |read: fn(&Progress) -> u64| -> Read {
        let progress = progress.clone();
        Box::new(move || number(read(&progress)))
    };
    let bus = |read: fn(&LiveBus) -> u64| -> Read {
        let live = live.clone();
        Box::new(move || number(read(&live)))
    };
    let all: [(&str, &str, Read); 11] = [
        ("rules_position", "The next log position that rules read", rule(|progress| progress.now().position)),
        ("rules_evaluations", "Conditions evaluated", rule(|progress| progress.now().evaluations)),
        ("rules_errors", "Evaluations that failed", rule(|progress| progress.now().errors)),
        ("rules_duplicates", "Copies of records passed over", rule(|progress| progress.now().duplicates)),
        ("rules_quarantined", "Rules that no longer run", rule(|progress| progress.now().quarantined)),
        (
            "rules_skipped_positions",
            "Log positions that the rules never saw",
            rule(|progress| progress.now().skipped),
        ),
        (
            "rules_instances_refused",
            "Subjects not tracked since the bound was reached",
            rule(|progress| progress.now().instances_refused),
        ),
        (
            "rules_commit_failures",
            "Commits that failed and were tried again",
            rule(|progress| progress.now().failures),
        ),
        ("live_subscribers", "Open live streams", bus(|live| live.stats().subscribers)),
        ("live_cut_slow", "Live streams cut since they read too slowly", bus(|live| live.stats().cut_slow)),
        (
            "live_left_out",
            "Events of tenants beyond the live stream's bound",
            bus(|live| live.stats().left_out),
        ),
    ];
    all.into_iter().try_for_each(|(name, help, read)| register(registry, name, help, read))
}

/// The registry of another server that a gateway follows.
pub(super) fn of_registry(
    registry: &Registry,
    progress: &Arc<registry::Progress>,
    directory: &Arc<Directory>,
) -> Result<(), prometheus::Error> {
    let count = |read: fn(&registry::Progress) -> &AtomicU64| -> Read {
        let progress = progress.clone();
        Box::new(move || number(read(&progress).load(Ordering::Relaxed)))
    };
    let directory = directory.clone();
    let devices = move || number(directory.device_count() as u64);
    let all: [(&str, &str, Read); 5] = [
        ("registry_devices", "Devices known", Box::new(devices)),
        ("registry_changes", "Changes that its audit chains named", count(|progress| &progress.named)),
        ("registry_compares", "Comparisons of everything", count(|progress| &progress.compares)),
        (
            "registry_unnamed_changes",
            "Changes that a comparison found and no audit chain named",
            count(|progress| &progress.unnamed),
        ),
        ("registry_failures", "Looks that failed", count(|progress| &progress.failures)),
    ];
    all.into_iter().try_for_each(|(name, help, read)| register(registry, name, help, read))
}

/// What other processes changed in a registry that is shared.
pub(super) fn of_changes(
    registry: &Registry,
    wakes: &Wakes,
    progress: &Arc<follow::Progress>,
) -> Result<(), prometheus::Error> {
    let wake = |read: fn(&WakeCounts) -> &AtomicU64| -> Read {
        let counter = wakes.counter(read);
        Box::new(move || number(counter()))
    };
    let count = |read: fn(&follow::Progress) -> &AtomicU64| -> Read {
        let progress = progress.clone();
        Box::new(move || number(read(&progress).load(Ordering::Relaxed)))
    };
    let all: [(&str, &str, Read); 6] = [
        (
            "wake_notifications",
            "Notifications of changes in the registry",
            wake(|counts| &counts.notifications),
        ),
        ("wake_connects", "Times that the listening connection was made", wake(|counts| &counts.connects)),
        ("wake_rescans", "Looks at every audit chain", wake(|counts| &counts.rescans)),
        ("registry_changes", "Changes that its audit chains named", count(|progress| &progress.named)),
        ("registry_compares", "Comparisons of everything", count(|progress| &progress.compares)),
        ("registry_failures", "Looks that failed", count(|progress| &progress.failures)),
    ];
    all.into_iter().try_for_each(|(name, help, read)| register(registry, name, help, read))
}

/// The meter.
pub(super) fn of_usage(
    registry: &Registry,
    progress: &Arc<crate::usage::consumer::Progress>,
) -> Result<(), prometheus::Error> {
    let count = |read: fn(&crate::usage::consumer::Progress) -> &AtomicU64| -> Read {
        let progress = progress.clone();
        Box::new(move || number(read(&progress).load(Ordering::Relaxed)))
    };
    let all: [(&str, &str, Read); 8] = [
        ("usage_position", "All below is counted", count(|progress| &progress.position)),
        ("usage_records", "Records counted since the start", count(|progress| &progress.records)),
        ("usage_commits", "Commits of counts since the start", count(|progress| &progress.commits)),
        ("usage_failures", "Steps that failed and were tried again", count(|progress| &progress.failures)),
        (
            "usage_skipped_positions",
            "Log positions that were never counted",
            count(|progress| &progress.skipped),
        ),
        (
            "usage_gaps",
            "Gaps since the start: ranges of positions, and rests of other logs, never counted",
            count(|progress| &progress.gaps),
        ),
        (
            "usage_soft_limits_reached",
            "Soft limits reached, each once a tenant and day",
            count(|progress| &progress.noticed[0]),
        ),
        (
            "usage_hard_limits_reached",
            "Hard limits reached, each once a tenant and day",
            count(|progress| &progress.noticed[1]),
        ),
    ];
    all.into_iter().try_for_each(|(name, help, read)| register(registry, name, help, read))
}
