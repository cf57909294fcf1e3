//! Quotas over a day: restored after a restart, warned of once, and what only the meter knows.

use super::Rig;
use crate::platform::clock::Clock as _;
use crate::platform::config::{LimitSection, QuotaRateSection};
use crate::platform::db::{DbError, Scope, Tx};
use crate::usage::consumer::Worker;
use crate::usage::model::{DAY_US, Level, Quota, QuotaSpec, RETENTION_DAYS, day_of};
use crate::usage::{Refused, store};
use muster_wire::{TenantId, UpClass};
use std::sync::Arc;

fn limit(soft: u64, hard: u64) -> Option<LimitSection> {
    Some(LimitSection { soft: Some(soft), hard: Some(hard) })
}

fn noticed(rig: &Rig) -> Vec<(Quota, Level, u64)> {
    let scope = Scope::Tenant(TenantId::parse("acme").unwrap());
    let all =
        rig.db.read_blocking(move |tx| store::notices_of(tx, &scope, &(0..=i64::from(u32::MAX)))).unwrap();
    all.into_iter().map(|notice| (notice.quota, notice.level, notice.used)).collect()
}

fn count(rig: &Rig, worker: &mut Worker) {
    rig.read(worker, u64::MAX / 2);
    worker.commit().unwrap();
}

#[test]
fn what_was_admitted_before_a_restart_counts_committed_or_not() {
    let mut rig = Rig::new();
    (0..5).for_each(|_| rig.telemetry("acme", 1));
    let mut worker = rig.open();
    count(&rig, &mut worker);
    (0..3).for_each(|_| rig.telemetry("acme", 1));
    drop(worker);
    let mut again = rig.open();
    let acme = rig.parts.board.of("acme");
    assert_eq!(acme.used().0, 5, "from the registry");
    rig.read(&mut again, 100);
    assert_eq!(acme.used().0, 8, "and from the log");
    // What comes now the gateway has counted itself.
    rig.telemetry("acme", 1);
    rig.read(&mut again, 100);
    assert_eq!(acme.used().0, 8);
    rig.clock.advance_us(DAY_US);
    drop(again);
    let _next_day = rig.open();
    assert_eq!(rig.parts.board.of("acme").used().0, 0);
}

#[test]
fn each_limit_is_noticed_once_a_day_and_again_the_next() {
    let mut rig = Rig::new();
    let mut worker = rig.open();
    let rate = QuotaRateSection { soft: Some(4), hard: Some(50), burst: None };
    let spec = QuotaSpec {
        messages_per_s: Some(rate),
        messages_per_day: limit(3, 5),
        devices: limit(3, 9),
        ..QuotaSpec::default()
    };
    rig.parts.board.set_own("acme", Some(spec));
    (0..3).for_each(|_| rig.telemetry("acme", 1));
    count(&rig, &mut worker);
    let soft = [(Quota::Devices, Level::Soft, 3), (Quota::MessagesPerDay, Level::Soft, 3)];
    assert_eq!(noticed(&rig), soft);
    rig.clock.advance_us(1_000_000);
    (0..4).for_each(|_| rig.telemetry("acme", 1));
    count(&rig, &mut worker);
    count(&rig, &mut worker);
    let more = [(Quota::MessagesPerDay, Level::Hard, 7), (Quota::MessagesPerS, Level::Soft, 4)];
    assert_eq!(noticed(&rig), [soft, more].concat());
    // A restart forgets nothing.
    drop(worker);
    let mut worker = rig.open();
    rig.parts.board.set_own("acme", Some(spec));
    rig.parts.board.of("acme").refuse(Refused::MessagesPerS);
    count(&rig, &mut worker);
    assert_eq!(noticed(&rig).len(), 5, "the refusal is the one thing new: {:?}", noticed(&rig));
    rig.clock.advance_us(DAY_US);
    (0..3).for_each(|_| rig.telemetry("acme", 1));
    count(&rig, &mut worker);
    assert_eq!(noticed(&rig).len(), 7, "devices and messages of the next day: {:?}", noticed(&rig));
}

#[test]
fn inference_and_storage_are_refused_once_the_meter_has_seen_them() {
    let mut rig = Rig::new();
    let mut worker = rig.open();
    let board = rig.parts.board.clone();
    let spec = QuotaSpec { inference_ms_per_day: limit(5, 10), ..QuotaSpec::default() };
    board.set_own("acme", Some(spec));
    rig.event("acme", 9_999);
    count(&rig, &mut worker);
    assert_eq!(board.of("acme").admit(UpClass::Event, 1, 0), Ok(()));
    rig.event("acme", 1);
    count(&rig, &mut worker);
    assert_eq!(board.of("acme").admit(UpClass::Event, 1, 0), Err(Refused::InferenceMsPerDay));
    board.set_own("acme", Some(QuotaSpec { storage_bytes: limit(1, 200), ..QuotaSpec::default() }));
    count(&rig, &mut worker);
    assert_eq!(
        board.of("acme").admit(UpClass::Telemetry, 1, 0),
        Err(Refused::StorageBytes),
        "two events are 240 bytes"
    );
    // What is past its retention frees the quota; another process looks it up anew.
    rig.clock.advance_us(30 * DAY_US);
    let mut worker = rig.open();
    rig.parts.board.set_own("acme", Some(QuotaSpec { storage_bytes: limit(1, 200), ..QuotaSpec::default() }));
    count(&rig, &mut worker);
    assert_eq!(rig.parts.board.of("acme").admit(UpClass::Telemetry, 1, 0), Ok(()));
}

#[test]
fn meters_are_kept_so_many_days() {
    let mut rig = Rig::new();
    rig.telemetry("acme", 1);
    let mut worker = rig.open();
    count(&rig, &mut worker);
    rig.clock.advance_us((RETENTION_DAYS - 1) * DAY_US);
    rig.telemetry("acme", 1);
    count(&rig, &mut worker);
    assert_eq!(rig.stored().len(), 2);
    rig.clock.advance_us(DAY_US);
    rig.telemetry("acme", 1);
    count(&rig, &mut worker);
    assert_eq!(rig.stored().len(), 2, "the oldest of the three is gone");
}

#[test]
fn a_clock_that_is_wrong_for_a_moment_deletes_days_not_years_and_its_day_is_not_kept() {
    const AHEAD_US: i64 = 12 * 365 * DAY_US;
    let mut rig = Rig::new();
    let mut worker = rig.open();
    for _ in 0..6 {
        rig.telemetry("acme", 1);
        count(&rig, &mut worker);
        rig.clock.advance_us(DAY_US);
    }
    let board = rig.parts.board.clone();
    let day = |messages| {
        let hard = Some(messages);
        let limit = Some(LimitSection { soft: None, hard });
        QuotaSpec { messages_per_day: limit, inference_ms_per_day: limit, ..QuotaSpec::default() }
    };
    board.set_own("acme", Some(day(5)));
    rig.telemetry("acme", 1);
    rig.telemetry("acme", 1);
    count(&rig, &mut worker);
    rig.clock.advance_us(AHEAD_US);
    worker.commit().unwrap();
    assert_eq!(rig.stored().len(), 7, "nothing was received on that day");
    rig.event("acme", 9_999);
    count(&rig, &mut worker);
    assert_eq!(rig.stored().len(), 7 + 1 - 3, "three days are gone, no more");
    assert_eq!(board.of("acme").admit(UpClass::Event, 1, 0), Err(Refused::InferenceMsPerDay));
    rig.clock.advance_us(-AHEAD_US);
    // The log's stamps stay where they were.
    rig.telemetry("acme", 1);
    count(&rig, &mut worker);
    let acme = board.of("acme");
    assert_eq!(acme.used().0, 2, "what the day's row has; the gateway counts what it admits");
    assert_eq!(acme.admit(UpClass::Event, 1, 0), Ok(()), "the inference was of the other day");
    let today = rig.stored()[&("acme".to_owned(), day_of(rig.clock.now_us()))];
    assert_eq!(today.messages, 3, "and it goes on");
    rig.clock.advance_us(DAY_US);
    board.at(rig.clock.now_us());
    rig.telemetry("acme", 1);
    count(&rig, &mut worker);
    assert_eq!((acme.used().0, rig.stored().len()), (0, 7 + 1 - 3 + 1));
}

#[test]
fn an_erased_tenant_stores_nothing_and_comes_to_no_limit() {
    let mut rig = Rig::new();
    let mut worker = rig.open();
    let spec = QuotaSpec { storage_bytes: limit(1, 100), ..QuotaSpec::default() };
    rig.parts.board.set_own("acme", Some(spec));
    rig.event("acme", 1);
    count(&rig, &mut worker);
    assert_eq!(noticed(&rig).len(), 2);
    let erase = |tx: &mut Tx<'_>| {
        let scope = Scope::System("usage: the meter counts every tenant's records");
        let tenant = "INSERT INTO tenants (tenant, name, created_at_us) VALUES ('acme', 'acme', 0)";
        tx.execute(&scope, tenant, &[])?;
        let job = "INSERT INTO erasures (tenant, id, device, state, with_export, requested_by, requested_at_us, members,
                                         since_us, place, rows_exported, rows_erased, requester, tries,
                                         next_try_at_us, done_at_us)
                   VALUES ('acme', '1', '', 'done', 0, 'me', 0, '[]', 0, '{}', 0, 0, 'u-1', 0, 0, 1)";
        tx.execute(&scope, job, &[])?;
        Ok::<_, DbError>(())
    };
    rig.db.write_blocking(erase).unwrap();
    let untold = |rig: &Rig| {
        let scope = Scope::System("usage: the meter counts every tenant's records");
        rig.db.read_blocking(move |tx| store::notices_untold(tx, &scope, 10)).unwrap().len()
    };
    assert_eq!(untold(&rig), 0, "nobody is left to be told");
    rig.clock.advance_us(DAY_US);
    let mut worker = rig.open();
    rig.parts.board.set_own("acme", Some(spec));
    count(&rig, &mut worker);
    assert_eq!(noticed(&rig).len(), 2, "no more notices");
    let scope = Scope::Tenant(TenantId::parse("acme").unwrap());
    let day = day_of(rig.clock.now_us());
    let days = rig.db.read_blocking(move |tx| store::days_of(tx, &scope, &(day..=day))).unwrap();
    assert!(days.iter().all(|day| day.storage_bytes == 0), "{days:?}");
}

#[test]
fn each_tenants_own_retention_says_what_it_stores() {
    let mut rig = Rig::new();
    let mut worker = rig.open();
    for tenant in ["acme", "short", "brief", "none"] {
        rig.event(tenant, 1);
    }
    count(&rig, &mut worker);
    rig.clock.advance_us(5 * DAY_US);
    let own = [("short", 5), ("brief", 5), ("long", 90), ("none", 6)];
    rig.parts.kept = Arc::new(move || (30, own.map(|(tenant, days)| (tenant.to_owned(), days)).to_vec()));
    let mut worker = rig.open();
    count(&rig, &mut worker);
    let day = day_of(rig.clock.now_us());
    let scope = Scope::System("usage: the meter counts every tenant's records");
    let rows = rig.db.read_blocking(move |tx| store::days_on(tx, &scope, day)).unwrap();
    let stores = rows.iter().filter(|row| row.storage_bytes > 0);
    let mut stored: Vec<_> = stores.map(|row| row.tenant.as_str()).collect();
    stored.sort_unstable();
    assert_eq!(stored, ["acme", "none"], "of {rows:?}");
}
