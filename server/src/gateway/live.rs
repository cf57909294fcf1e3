//! The connections that are up, by name: takeover, keep-alive, cut-off, presence records.
//!
//! `connect` admits, a connection's drop removes, `sweep` ends the silent ones and, each [`EXPIRY_CHECK_US`],
//! those whose certificate or token is past its time; `follow_directory` cuts off who may no longer be
//! connected. Who enters is checked under the map's lock: a change of the directory either is seen by that
//! check or finds the connection in the map. Presence records are appended under this map's lock (append never
//! waits for the disk), so that a name's `Connected` and `Disconnected` alternate in the log.
//!
//! A server that stops or crashes writes no `Disconnected`: whoever shows presence starts with nobody up.
//! Limits: `connections_max`, a tenant's quota of connections, and one takeover of a name in [`TAKEOVER_TICKS`].

use super::identity::{self, Identity};
use super::link::{Link, lock};
use super::reason::{CloseReason, ConnectRefusal};
use super::{Core, TICKS_PER_S};
use crate::devices::directory::Change;
use crate::platform::ends::End;
use crate::platform::event_log::{Kind, NewRecord, Origin};
use crate::usage::Refused;
use muster_wire::UpClass;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use tokio::sync::broadcast::error::RecvError;

/// A name may be taken over once in this time; more often means two devices with one identity.
pub(crate) const TAKEOVER_TICKS: u32 = 10 * TICKS_PER_S;
/// Keep-alives are looked at this often.
const SWEEP_TICKS: u32 = TICKS_PER_S / 2;
/// Credentials' ends are looked at when this much time has passed on the wall clock, or it was set.
const EXPIRY_CHECK_US: u64 = 60_000_000;

struct Entry {
    link: Arc<Link>,
    taken_over_at_tick: Option<u32>,
}

/// The connections that are up.
#[derive(Default)]
pub(crate) struct Live {
    by_name: Mutex<HashMap<Arc<str>, Entry>>,
}

fn presence<'a>(link: &'a Link, kind: Kind) -> Option<NewRecord<'a>> {
    let device = link.device()?;
    Some(NewRecord {
        kind,
        tenant: link.tenant(),
        device,
        class: 0,
        qos: 0,
        origin: Origin::Direct,
        measured_at_us: 0,
        body: &[],
    })
}

/// Writes the will, where it stands, and the `Disconnected` record; once a connection.
fn record_end(core: &Core, link: &Link, reason: CloseReason) {
    if !link.claim_end() {
        return;
    }
    core.metrics.connections.dec();
    core.metrics.closed(reason);
    let allowance = core.quotas.of(link.tenant());
    allowance.disconnected();
    if let Some(device) = link.device() {
        let end = End { reason: reason.label(), at_us: core.clock.now_us() };
        core.ends.note(link.tenant(), device, end);
    }
    let will = link.take_will().filter(|_| !reason.withdraws_will());
    if let (Some(will), Some(device)) = (will, link.device()) {
        // The server's own word about an end is refused to nobody, but it counts.
        allowance.charge(1, will.body.len() as u64);
        core.stalls.append_presence(
            core,
            &NewRecord {
                kind: Kind::Message,
                tenant: link.tenant(),
                device,
                class: UpClass::Death.number(),
                qos: 1,
                origin: Origin::Direct,
                measured_at_us: will.measured_at_us,
                body: &will.body,
            },
        );
    }
    if let Some(record) = presence(link, Kind::Disconnected { reason: reason.record_code() }) {
        core.stalls.append_presence(core, &record);
    }
}

impl Live {
    /// Makes a connection the one of its name; an older one is told to go, its end recorded first.
    pub(crate) fn admit(&self, core: &Core, link: &Arc<Link>) -> Result<(), ConnectRefusal> {
        let tick = core.tick();
        let mut by_name = lock(&self.by_name);
        // The device may have been disabled since it was identified, and the word of it passed before this lock.
        identity::check(&core.directory, core.clock.now_us(), &link.identity)?;
        let old = by_name.get(&link.name);
        if old.is_none() && by_name.len() >= core.config.connections_max {
            return Err(ConnectRefusal::TooMany);
        }
        let allowance = core.quotas.of(link.tenant());
        if old.is_none() && !allowance.has_place() {
            allowance.refuse(Refused::Connections);
            return Err(ConnectRefusal::Quota);
        }
        if core.stalls.is_full(tick) {
            return Err(ConnectRefusal::LogFull);
        }
        let last = old.and_then(|old| old.taken_over_at_tick);
        if last.is_some_and(|last| tick.wrapping_sub(last) < TAKEOVER_TICKS) {
            return Err(ConnectRefusal::TakeoverRate);
        }
        let taken_over_at_tick = old.map(|old| {
            record_end(core, &old.link, CloseReason::TakenOver);
            old.link.close(CloseReason::TakenOver);
            tick
        });
        if let Some(record) = presence(link, Kind::Connected) {
            core.stalls.append_connected(core, &record)?;
        }
        by_name.insert(link.name.clone(), Entry { link: link.clone(), taken_over_at_tick });
        allowance.connected();
        core.metrics.connections.inc();
        core.metrics.connects.inc();
        Ok(())
    }

    /// Forgets a connection and records its end, unless a takeover did.
    pub(crate) fn remove(&self, core: &Core, link: &Arc<Link>, reason: CloseReason) {
        let mut by_name = lock(&self.by_name);
        if by_name.get(&link.name).is_some_and(|entry| Arc::ptr_eq(&entry.link, link)) {
            by_name.remove(&link.name);
        }
        record_end(core, link, reason);
    }

    /// Finds a device's connection.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Link>> {
        lock(&self.by_name).get(name).map(|entry| entry.link.clone())
    }

    /// How many are up.
    pub(crate) fn len(&self) -> usize {
        lock(&self.by_name).len()
    }

    /// Tells every connection to go.
    pub(crate) fn close_all(&self, reason: CloseReason) {
        lock(&self.by_name).values().for_each(|entry| entry.link.close(reason));
    }

    fn close_silent(&self, tick: u32) {
        for Entry { link, .. } in lock(&self.by_name).values() {
            if link.unread.load(Ordering::Relaxed) {
                link.heard_at_tick.store(tick, Ordering::Relaxed);
                continue;
            }
            let silence = tick.wrapping_sub(link.heard_at_tick.load(Ordering::Relaxed));
            if link.silence_ticks_max != 0 && silence > link.silence_ticks_max {
                link.close(CloseReason::KeepAlive);
            }
        }
    }

    fn close_expired(&self, core: &Core, now_us: i64) {
        for Entry { link, .. } in lock(&self.by_name).values() {
            if identity::is_expired(&core.directory, now_us, &link.identity) {
                link.close(CloseReason::Expired);
            }
        }
    }

    fn close_unwelcome(&self, core: &Core, name: Option<&str>) {
        let now_us = core.clock.now_us();
        let by_name = lock(&self.by_name);
        let check = |link: &Link| {
            if identity::check(&core.directory, now_us, &link.identity).is_err() {
                link.close(CloseReason::Disabled);
            }
        };
        match name {
            Some(name) => by_name.get(name).into_iter().for_each(|entry| check(&entry.link)),
            None => by_name.values().for_each(|entry| check(&entry.link)),
        }
    }
}

/// Moves the coarse clock and ends silent and expired connections; runs for the gateway's life.
pub(crate) async fn sweep(core: Arc<Core>) {
    let start = tokio::time::Instant::now();
    let mut interval =
        tokio::time::interval(std::time::Duration::from_millis(1_000 / u64::from(TICKS_PER_S)));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut swept_at = 0;
    let mut checked_at_us = core.clock.now_us();
    loop {
        interval.tick().await;
        #[allow(clippy::cast_possible_truncation, reason = "wraps after 13 years; differences stay right")]
        let tick = (start.elapsed().as_millis() / (1_000 / u128::from(TICKS_PER_S))) as u32;
        core.tick.store(tick, Ordering::Relaxed);
        core.quotas.at(core.clock.now_us());
        core.parked.wake(core.quotas.changes(), tick);
        if tick.wrapping_sub(swept_at) >= SWEEP_TICKS {
            swept_at = tick;
            core.live.close_silent(tick);
            let now_us = core.clock.now_us();
            if now_us.abs_diff(checked_at_us) >= EXPIRY_CHECK_US {
                checked_at_us = now_us;
                core.live.close_expired(&core, now_us);
            }
        }
    }
}

/// Cuts off who the directory no longer welcomes; runs for the gateway's life.
pub(crate) async fn follow_directory(core: Arc<Core>) {
    let mut changes = core.directory.subscribe_changes();
    // A change between the check at CONNECT and this subscription must not be missed.
    core.live.close_unwelcome(&core, None);
    loop {
        match changes.recv().await {
            Ok(Change::Device { tenant, device }) => {
                core.live.close_unwelcome(&core, Some(&device_name(tenant.as_str(), device.as_str())));
            }
            Ok(Change::Everything) | Err(RecvError::Lagged(_)) => core.live.close_unwelcome(&core, None),
            Err(RecvError::Closed) => return,
        }
    }
}

/// A device connection's name.
pub(crate) fn device_name(tenant: &str, device: &str) -> String {
    format!("{tenant}/{device}")
}

/// A connection's name: a device has one, an integration token one for each client id.
pub(crate) fn connection_name(identity: &Identity, client_id: &str) -> Arc<str> {
    match identity {
        Identity::Device { tenant, device, .. } => device_name(tenant.as_str(), device.as_str()).into(),
        Identity::Integration { tenant, token_id, .. } => {
            format!("api:{tenant}/{token_id}/{client_id}").into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::directory::CHANGES_MAX;
    use crate::gateway::tests::{core, link, set_device};

    #[test]
    fn who_is_disabled_while_connecting_does_not_enter() {
        let (core, _dir) = core();
        set_device(&core, "pump", true);
        let link = link("pump");
        // `connect` identified it; the follower of the directory hears of this before the link is in the map.
        set_device(&core, "pump", false);
        core.live.close_unwelcome(&core, None);
        assert_eq!(core.live.admit(&core, &link), Err(ConnectRefusal::Disabled));
        assert_eq!((core.live.len(), core.log.stats().next_seq), (0, 1), "no presence record either");
        set_device(&core, "pump", true);
        assert_eq!(core.live.admit(&core, &link), Ok(()));
        set_device(&core, "pump", false);
        core.live.close_unwelcome(&core, None);
        assert_eq!(link.close_asked(), Some(CloseReason::Disabled));
    }

    #[tokio::test]
    async fn who_was_disabled_among_more_changes_than_are_kept_is_cut_off() {
        let (core, _dir) = core();
        set_device(&core, "pump", true);
        set_device(&core, "fan", true);
        let (pump, fan) = (link("pump"), link("fan"));
        core.live.admit(&core, &pump).expect("welcome");
        core.live.admit(&core, &fan).expect("welcome");
        tokio::spawn(follow_directory(core.clone()));
        tokio::task::yield_now().await;
        // The follower does not run meanwhile: the word about pump is the first to be forgotten.
        set_device(&core, "pump", false);
        for at in 0..CHANGES_MAX {
            set_device(&core, "other", at % 2 == 0);
        }
        assert_eq!(pump.close_asked(), None);
        tokio::task::yield_now().await;
        assert_eq!((pump.close_asked(), fan.close_asked()), (Some(CloseReason::Disabled), None));
    }
}
