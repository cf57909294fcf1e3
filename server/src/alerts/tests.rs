use super::model::*;
use super::service::{self, AlertError, AlertService, PRUNE_ROWS_MAX};
use crate::platform::clock::ManualClock;
use crate::platform::db::{Db, DbError, Scope};
use crate::platform::live::{Filter, LiveBus, LiveKind};
use crate::testing::registry;
use muster_wire::{TenantId, Value};

fn tenant(text: &str) -> TenantId {
    TenantId::parse(text).unwrap()
}

fn alert(tenant_id: &str, n: i64, severity: Severity) -> NewAlert {
    NewAlert {
        tenant: tenant(tenant_id),
        id: format!("{n:032x}"),
        device: format!("d{}", n % 2),
        rule_id: "r1".into(),
        rule_version: 3,
        rule_name: "too hot".into(),
        subject: "metric:temp_c".into(),
        severity,
        historical: n % 3 == 0,
        value: Value::Number(31.5),
        message: "d0 is at 31.5".into(),
        opened_at_us: n * 1_000,
    }
}

async fn open_all(db: &Db, alerts: Vec<NewAlert>) -> usize {
    let opened = db.write(move |tx| {
        let opened = alerts.iter().map(|alert| service::open(tx, alert)).collect::<Result<Vec<_>, _>>()?;
        Ok::<_, DbError>(opened.into_iter().flatten().count())
    });
    opened.await.unwrap()
}

fn note(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn every_step_from_every_state() {
    use AlertState::{Acked, Cleared, Open, Resolved};
    for (state, ack, resolve, clear) in [
        (Open, Some(Acked), Some(Resolved), Some(Cleared)),
        (Acked, None, Some(Resolved), Some(Cleared)),
        (Resolved, None, None, Some(Resolved)),
        (Cleared, None, Some(Resolved), None),
    ] {
        for (step, expect) in [(Step::Ack, ack), (Step::Resolve, resolve), (Step::Clear, clear)] {
            assert_eq!(state.after(step), expect.ok_or(Illegal { state }), "{state:?} {step:?}");
        }
    }
}

#[tokio::test]
async fn the_same_alert_opens_once_and_clears_once() {
    let dir = tempfile::tempdir().unwrap();
    let db = registry(dir.path());
    assert_eq!(
        open_all(&db, vec![alert("acme", 1, Severity::Info), alert("acme", 1, Severity::Info)]).await,
        1
    );
    assert_eq!(
        open_all(&db, vec![alert("acme", 1, Severity::Info), alert("other", 1, Severity::Info)]).await,
        1
    );
    let clear = |who: &'static str| {
        let db = db.clone();
        async move {
            let id = format!("{:032x}", 1);
            db.write(move |tx| service::clear(tx, &tenant(who), &id, 5_000, "condition")).await.unwrap()
        }
    };
    assert_eq!(clear("acme").await.unwrap().state, AlertState::Cleared);
    assert_eq!(clear("acme").await, None);
    assert_eq!(clear("nobody").await, None);
    assert_eq!(clear("other").await.unwrap().cleared_at_us, Some(5_000), "another tenant's row is its own");
}

#[tokio::test]
async fn lists_page_and_filter_within_the_tenant() {
    let dir = tempfile::tempdir().unwrap();
    let db = registry(dir.path());
    let service = AlertService::new(db.clone(), ManualClock::at(9), LiveBus::new());
    let severity = |n: i64| Severity::ALL[usize::try_from(n % 3).unwrap()];
    open_all(&db, (1..=9).map(|n| alert("acme", n, severity(n))).collect()).await;
    open_all(&db, vec![alert("other", 99, Severity::Critical)]).await;
    let acme = tenant("acme");
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let page = service.list(&acme, AlertFilter::default(), after.clone(), 4).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some((last.opened_at_us, last.id.clone()));
        seen.extend(page.into_iter().map(|alert| alert.opened_at_us / 1_000));
    }
    assert_eq!(seen, [9, 8, 7, 6, 5, 4, 3, 2, 1]);
    let count = async |filter| service.list(&acme, filter, None, 100).await.unwrap().len();
    assert_eq!(count(AlertFilter { device: Some("d1".into()), ..AlertFilter::default() }).await, 5);
    assert_eq!(
        count(AlertFilter { severity_min: Some(Severity::Warning), ..AlertFilter::default() }).await,
        6
    );
    assert_eq!(
        count(AlertFilter { severity_min: Some(Severity::Critical), ..AlertFilter::default() }).await,
        3
    );
    assert_eq!(count(AlertFilter { historical: Some(true), ..AlertFilter::default() }).await, 3);
    assert_eq!(count(AlertFilter { state: Some(AlertState::Acked), ..AlertFilter::default() }).await, 0);
    assert_eq!(count(AlertFilter { rule_id: Some("r2".into()), ..AlertFilter::default() }).await, 0);
    assert_eq!(service.counts(&acme, crate::tenants::Reach::Everything).await.unwrap()["open"], 9);
}

#[tokio::test]
async fn people_answer_once_and_watchers_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let db = registry(dir.path());
    let live = LiveBus::new();
    let service = AlertService::new(db.clone(), ManualClock::at(77), live.clone());
    open_all(&db, vec![alert("acme", 1, Severity::Critical)]).await;
    let (acme, id) = (tenant("acme"), format!("{:032x}", 1));
    let me = crate::testing::owner(&acme);
    let mut watcher = live.subscribe("acme", Filter::default(), None).unwrap();
    let acked = service.ack(&me, &acme, &id, note("on my way")).await.unwrap();
    assert_eq!(
        (acked.state, acked.acked_at_us, acked.note.as_deref()),
        (AlertState::Acked, Some(77), Some("on my way"))
    );
    assert!(watcher.next().await.unwrap().json.contains("\"state\":\"acked\""));
    assert!(matches!(service.ack(&me, &acme, &id, None).await, Err(AlertError::Illegal(_))));
    assert!(matches!(service.ack(&me, &tenant("other"), &id, None).await, Err(AlertError::NotFound)));
    let resolved = service.resolve(&me, &acme, &id, None).await.unwrap();
    assert_eq!((resolved.state, resolved.note.as_deref()), (AlertState::Resolved, Some("on my way")));
    let cleared = {
        let id = id.clone();
        db.write(move |tx| service::clear(tx, &tenant("acme"), &id, 99, "condition")).await.unwrap().unwrap()
    };
    assert_eq!((cleared.state, cleared.cleared_at_us), (AlertState::Resolved, Some(1_000)));
}

#[tokio::test]
async fn pruning_keeps_what_is_open_or_young() {
    let dir = tempfile::tempdir().unwrap();
    let db = registry(dir.path());
    let service = AlertService::new(db.clone(), ManualClock::at(3_000), LiveBus::new());
    open_all(&db, (0..=4).map(|n| alert("acme", n, Severity::Info)).collect()).await;
    for n in [1, 2, 4] {
        let id = format!("{n:032x}");
        db.write(move |tx| service::clear(tx, &tenant("acme"), &id, n * 1_000, "condition")).await.unwrap();
    }
    let acme = tenant("acme");
    // A person closed it; its condition never cleared.
    service.resolve(&crate::testing::owner(&acme), &acme, &format!("{:032x}", 0), None).await.unwrap();
    assert_eq!(service.prune(&acme, 3_000).await.unwrap(), 2);
    assert_eq!(service.prune(&acme, 3_500).await.unwrap(), 1);
    assert_eq!(service.prune(&acme, 3_500).await.unwrap(), 0);
    assert_eq!(service.list(&acme, AlertFilter::default(), None, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_persons_note_is_bounded_in_characters() {
    let dir = tempfile::tempdir().unwrap();
    let db = registry(dir.path());
    let service = AlertService::new(db.clone(), ManualClock::at(7), LiveBus::new());
    open_all(&db, vec![alert("acme", 1, Severity::Info)]).await;
    let (acme, id) = (tenant("acme"), format!("{:032x}", 1));
    let me = crate::testing::owner(&acme);
    let text = |chars: usize| note(&"é".repeat(chars));
    let refused = service.ack(&me, &acme, &id, text(NOTE_CHARS_MAX + 1)).await.unwrap_err();
    assert!(matches!(refused, AlertError::NoteTooLong));
    assert_eq!(refused.to_string(), "note must be at most 1000 characters");
    let acked = service.ack(&me, &acme, &id, text(NOTE_CHARS_MAX)).await.unwrap();
    assert_eq!(acked.note, text(NOTE_CHARS_MAX));
}

#[tokio::test]
async fn more_than_one_transactions_rows_are_pruned_too() {
    let dir = tempfile::tempdir().unwrap();
    let db = registry(dir.path());
    let service = AlertService::new(db.clone(), ManualClock::at(3_000), LiveBus::new());
    let count = PRUNE_ROWS_MAX + 1;
    open_all(
        &db,
        (0..count).map(|n| NewAlert { opened_at_us: 1, ..alert("acme", n, Severity::Info) }).collect(),
    )
    .await;
    let cleared = db.write(|tx| {
        tx.execute(&Scope::System("test"), "UPDATE alerts SET state = 'cleared', cleared_at_us = 2", &[])
    });
    assert_eq!(cleared.await.unwrap() as i64, count);
    assert_eq!(service.prune(&tenant("acme"), 3_000).await.unwrap() as i64, count);
}

#[tokio::test]
async fn the_platform_has_one_alert_a_reader_waiting_however_many_readers_and_ranges() {
    const READERS: [&str; 18] =
        ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r"];
    let dir = tempfile::tempdir().unwrap();
    let service = AlertService::new(registry(dir.path()), ManualClock::at(7), LiveBus::new());
    let acme = tenant("acme");
    let tell = async |first: u64| {
        let mut opened = 0;
        for reader in READERS {
            let range = SkippedRange { reader, log_epoch: 1, first, next: first + 1, why: "are gone".into() };
            opened += usize::from(service.tell_skipped(&acme, &range).await.unwrap());
        }
        opened
    };
    assert_eq!(tell(1).await, READERS.len());
    let all = service.list(&acme, AlertFilter::default(), None, 100).await.unwrap();
    let me = crate::testing::owner(&acme);
    service.ack(&me, &acme, &all[0].id, None).await.unwrap();
    assert_eq!(tell(2).await, 0, "open or acknowledged");
    service.resolve(&me, &acme, &all[0].id, None).await.unwrap();
    assert_eq!((tell(3).await, tell(4).await), (1, 0), "a person closed one");
}

#[tokio::test]
async fn what_was_answered_elsewhere_is_told_and_what_was_answered_here_is_not_told_again() {
    let dir = tempfile::tempdir().unwrap();
    let db = registry(dir.path());
    let live = LiveBus::new();
    let here = AlertService::new(db.clone(), ManualClock::at(77), live.clone());
    let elsewhere = AlertService::new(db.clone(), ManualClock::at(78), LiveBus::new());
    open_all(&db, (1..=2).map(|n| alert("acme", n, Severity::Critical)).collect()).await;
    let (acme, ids) = (tenant("acme"), [1, 2].map(|n| format!("{n:032x}")));
    let me = crate::testing::owner(&acme);
    let mut watcher = live.subscribe("acme", Filter::default(), None).unwrap();
    here.ack(&me, &acme, &ids[0], None).await.unwrap();
    here.tell_answered(&acme, &ids[0]).await.unwrap();
    elsewhere.ack(&me, &acme, &ids[1], None).await.unwrap();
    here.tell_answered(&acme, &ids[1]).await.unwrap();
    elsewhere.resolve(&me, &acme, &ids[0], None).await.unwrap();
    here.tell_answered(&acme, &ids[0]).await.unwrap();
    here.tell_answered(&acme, "gone").await.unwrap();
    for (id, state) in [(&ids[0], "acked"), (&ids[1], "acked"), (&ids[0], "resolved")] {
        let told = watcher.next().await.unwrap().json.clone();
        assert!(told.contains(id.as_str()) && told.contains(&format!("\"state\":\"{state}\"")), "{told}");
    }
    // As many answers are remembered as the bound says: one that was pushed out is told once more.
    (0..super::service::ANSWERS_MAX as i64).for_each(|n| here.remember((acme.clone(), "x".into(), n)));
    here.resolve(&me, &acme, &ids[1], None).await.unwrap();
    assert!(watcher.next().await.unwrap().json.contains("resolved"));
    here.tell_answered(&acme, &ids[1]).await.unwrap();
    (0..super::service::ANSWERS_MAX as i64).for_each(|n| here.remember((acme.clone(), "x".into(), n)));
    here.tell_answered(&acme, &ids[1]).await.unwrap();
    live.publish("acme", LiveKind::Ledger, None, "end");
    let told = [watcher.next().await.unwrap(), watcher.next().await.unwrap()].map(|event| event.kind);
    assert_eq!(told, [LiveKind::Alert, LiveKind::Ledger]);
}
