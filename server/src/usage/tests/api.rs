//! Quotas, usage and invoices over HTTP.

use crate::app::tell_notices_once;
use crate::platform::config::LimitSection;
use crate::platform::db::{DbError, Scope, Tx};
use crate::tenants::Permission as P;
use crate::testing::{As, START_US, TestApp, owner, raw};
use crate::usage::consumer::Worker;
use crate::usage::gap::Gap;
use crate::usage::model::{DAY_US, Level, Notice, Quota, QuotaSpec};
use crate::usage::service::UNTOLD_MAX;
use crate::usage::store;
use axum::body::Body;
use axum::http::Request;
use muster_wire::{Reading, Telemetry, UpClass, Value};
use serde_json::json;
use std::task::Poll;
use std::time::{Duration, Instant};

const DAY: &str = "2026-01-01";

/// Appends messages of a tenant with two readings each and has them counted.
fn send(app: &TestApp, tenant: &str, messages: usize) {
    use crate::platform::event_log::{Kind, NewRecord, Origin, Pin};
    let reading = || Reading { metric: "t".into(), value: Value::Number(1.0), offset_us: None };
    let body = Telemetry { readings: vec![reading(), reading()] }.encode();
    let record = NewRecord {
        kind: Kind::Message,
        tenant,
        device: "pump",
        class: UpClass::Telemetry.number(),
        qos: 1,
        origin: Origin::Direct,
        measured_at_us: 0,
        body: &body,
    };
    let log = &app.parts.log;
    let mut worker =
        Worker::open(app.parts.meter.clone(), log.epoch(), log.first()..log.durable_next()).unwrap();
    for _ in 0..messages {
        log.append(&record).unwrap();
    }
    log.commit().unwrap();
    let mut reader = log.reader("test", worker.position(), Pin::Follows).unwrap();
    reader.next_batch(1 << 20, |record| worker.observe(&record)).unwrap();
    worker.commit().unwrap();
}

async fn counted(app: &TestApp, tenant: &'static str, messages: usize) {
    // The reader has a thread of its own: it may block.
    std::thread::scope(|scope| scope.spawn(|| send(app, tenant, messages)).join().unwrap());
}

#[tokio::test]
async fn quotas_are_given_by_the_platform_and_seen_by_the_tenant() {
    let app = TestApp::start_with(|config| config.quota.messages_per_day.hard = Some(1_000)).await;
    let acme = app.tenant("acme").await;
    let platform = app.token(&acme, P::ALL).await;
    let token = app.token(&acme, &[P::UsageRead]).await;
    let path = "/api/v1/tenants/acme/quota";
    let get = async || app.call(As::Token(&token), "GET", path, None).await.expect(200);
    let put = async |body| app.call(As::Token(&platform), "PUT", path, Some(body)).await;
    let before = get().await;
    assert_eq!((&before["quotas"][1]["hard"], &before["quotas"][1]["own"]), (&json!(1_000), &json!(false)));
    let given = put(json!({ "messages_per_s": { "hard": 5, "burst": 7 }, "devices": { "hard": 1 } }))
        .await
        .expect(200);
    assert_eq!((&given["quotas"][0]["hard"], &given["quotas"][0]["burst"]), (&json!(5), &json!(7)));
    assert_eq!(given["quotas"][1]["hard"], 1_000, "what the body leaves out is the configuration's");
    let quotas = app.parts.slices.usage.board().of("acme");
    assert_eq!(
        (0..100).take_while(|_| quotas.admit(UpClass::Telemetry, 1, 0).is_ok()).count(),
        7,
        "in force"
    );
    let devices = async |id: &str| {
        app.call(As::Token(&platform), "POST", "/api/v1/tenants/acme/devices", Some(json!({ "id": id })))
            .await
    };
    devices("a").await.expect(201);
    let refused = devices("b").await;
    assert!(refused.text.contains("quota of 1 devices"), "{}", refused.text);
    put(json!({ "devices": { "soft": 2, "hard": 1 } })).await.refused("invalid_argument", Some("devices"));
    put(json!({ "device": {} })).await.refused("invalid_argument", Some("device"));
    let gone = app.call(As::Token(&platform), "PUT", "/api/v1/tenants/nobody/quota", Some(json!({}))).await;
    gone.refused("not_found", None);
    put(json!({})).await.expect(200);
    let after = get().await;
    assert_eq!((&after["quotas"][0]["hard"], &after["own"]), (&json!(null), &json!({})));
    devices("b").await.expect(201);
    let auditor = app.token(&acme, &[P::AuditRead]).await;
    let audit =
        app.call(As::Token(&auditor), "GET", "/api/v1/tenants/acme/audit?limit=500", None).await.expect(200);
    let rows = audit["items"].as_array().unwrap();
    assert_eq!(rows.iter().filter(|row| row["action"] == "quota.change").count(), 2);
}

#[tokio::test]
async fn usage_is_told_by_the_day_as_json_and_csv() {
    let app = TestApp::start().await;
    let (acme, other) = (app.tenant("acme").await, app.tenant("other").await);
    let (token, platform) = (app.token(&acme, &[P::UsageRead]).await, app.token(&other, P::ALL).await);
    counted(&app, "acme", 3).await;
    app.clock.advance_us(86_400_000_000);
    counted(&app, "acme", 2).await;
    counted(&app, "other", 1).await;
    let get = async |query: &str| {
        app.call(As::Token(&token), "GET", &format!("/api/v1/tenants/acme/usage{query}"), None).await
    };
    let all = get("?from=2026-01-01").await.expect(200);
    let messages = |at: usize| all["items"][at]["messages"].clone();
    assert_eq!((messages(0), messages(1), &all["items"][0]["day"]), (json!(3), json!(2), &json!(DAY)));
    assert_eq!((&all["total"]["messages"], &all["total"]["readings"]), (&json!(5), &json!(10)));
    let one = get("?from=2026-01-02&to=2026-01-02").await.expect(200);
    assert_eq!((one["items"].as_array().unwrap().len(), &one["total"]["messages"]), (1, &json!(2)));
    for (query, field) in [
        ("?from=x", "from"),
        ("?to=2026-02-30", "to"),
        ("?from=2026-01-03", "from"),
        ("?from=2024-11-27&to=2026-01-01", "from"),
    ] {
        get(query).await.refused("invalid_argument", Some(field));
    }
    get("?from=2024-11-28&to=2026-01-01").await.expect(200);
    let csv = get("?format=csv").await;
    assert_eq!(csv.headers["content-type"], "text/csv; charset=utf-8");
    let lines: Vec<_> = csv.text.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(
        lines[0].starts_with("day,tenant,messages,") && lines[1].starts_with("2026-01-01,acme,3,"),
        "{lines:?}"
    );
    let request =
        Request::get("/api/v1/tenants/acme/usage").header("accept", "application/json;q=0.5, text/csv");
    let request = request.header("authorization", format!("Bearer {token}")).body(Body::empty()).unwrap();
    assert_eq!(raw(&app.admin, request).await.text, csv.text, "as Accept says");
    let list = async |query: &str| {
        app.call(As::Token(&platform), "GET", &format!("/api/v1/usage?{query}"), None).await
    };
    let first = list("limit=2").await.expect(200);
    let row = |item: &serde_json::Value| {
        format!("{} {}", item["day"].as_str().unwrap(), item["tenant"].as_str().unwrap())
    };
    let rows: Vec<_> = first["items"].as_array().unwrap().iter().map(row).collect();
    assert_eq!(rows, ["2026-01-01 acme", "2026-01-02 acme"]);
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = list(&format!("limit=2&cursor={cursor}")).await.expect(200);
    assert_eq!((row(&second["items"][0]), &second["next_cursor"]), ("2026-01-02 other".into(), &json!(null)));
    let csv = list("limit=2&format=csv").await;
    assert_eq!((csv.text.lines().count(), csv.headers["x-next-cursor"].to_str().unwrap()), (3, cursor));
}

#[tokio::test]
async fn a_limit_that_is_reached_is_an_alert_once_a_day() {
    let app = TestApp::start_with(|config| {
        config.quota.messages_per_day.soft = Some(2);
        config.quota.messages_per_day.hard = Some(10);
    })
    .await;
    let acme = app.tenant("acme").await;
    let token = app.token(&acme, &[P::UsageRead, P::AlertsRead]).await;
    counted(&app, "acme", 2).await;
    counted(&app, "acme", 1).await;
    for _ in 0..2 {
        tell_notices_once(&app.parts.slices).await;
    }
    let alerts = app.call(As::Token(&token), "GET", "/api/v1/tenants/acme/alerts", None).await.expect(200);
    let alerts = alerts["items"].as_array().unwrap();
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    let alert = &alerts[0];
    let about = (&alert["device"], &alert["subject"], &alert["severity"]);
    assert_eq!(about, (&json!("-"), &json!("quota:messages_per_day"), &json!("warning")));
    let quota = app.call(As::Token(&token), "GET", "/api/v1/tenants/acme/quota", None).await.expect(200);
    assert_eq!(
        (&quota["quotas"][1]["reached"], &quota["quotas"][2]["reached"]),
        (&json!("soft"), &json!(null))
    );
    counted(&app, "acme", 7).await;
    tell_notices_once(&app.parts.slices).await;
    let usage = app.call(As::Token(&token), "GET", "/api/v1/tenants/acme/usage", None).await.expect(200);
    assert_eq!(usage["notices"].as_array().unwrap().len(), 2);
    let counts =
        app.call(As::Token(&token), "GET", "/api/v1/tenants/acme/alerts/counts", None).await.expect(200);
    assert_eq!(counts["open"], 2);
}

#[tokio::test]
async fn so_many_notices_are_told_in_one_pass_and_the_rest_in_the_next() {
    let app = TestApp::start().await;
    let notice = |at: i64| Notice {
        tenant: format!("t{at:03}"),
        day: 5,
        quota: Quota::BytesPerDay,
        level: Level::Soft,
        used: 2,
        allowed: 1,
        at_us: 7,
    };
    let put = move |tx: &mut Tx<'_>| {
        let scope = Scope::System("usage: the meter counts every tenant's records");
        (0..=UNTOLD_MAX).try_for_each(|at| store::notice_put(tx, &scope, &notice(at)))
    };
    app.parts.meter.db.write(put).await.unwrap();
    let untold = async || app.parts.slices.usage.untold().await.unwrap().len();
    assert_eq!(untold().await, usize::try_from(UNTOLD_MAX).unwrap());
    tell_notices_once(&app.parts.slices).await;
    assert_eq!(untold().await, 1);
    tell_notices_once(&app.parts.slices).await;
    assert_eq!(untold().await, 0);
}

#[tokio::test]
async fn an_invoice_is_a_draft_by_the_price_list() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let platform = app.token(&acme, P::ALL).await;
    let call =
        async |method: &str, path: &str, body| app.call(As::Token(&platform), method, path, body).await;
    let invoice = "/api/v1/tenants/acme/usage/invoice";
    call("GET", "/api/v1/price-list", None).await.refused("not_found", None);
    call("GET", invoice, None).await.refused("not_found", None);
    let list = json!({ "currency": "EUR", "prices": [
        { "unit": "messages", "price": "0.10", "per": 1, "free": 2 },
        { "unit": "readings", "price": "1", "per": 1000, "free": 0 },
    ] });
    let set = call("PUT", "/api/v1/price-list", Some(list.clone())).await.expect(200);
    assert_eq!((&set["prices"][0]["price"], &set["prices"][1]["price"]), (&json!("0.10"), &json!("1.00")));
    assert_eq!(call("GET", "/api/v1/price-list", None).await.expect(200), set);
    let bad = |change: fn(&mut serde_json::Value)| {
        let mut list = list.clone();
        change(&mut list);
        call("PUT", "/api/v1/price-list", Some(list))
    };
    bad(|list| list["currency"] = json!("eur")).await.refused("invalid_argument", Some("currency"));
    bad(|list| list["prices"][0]["price"] = json!(0.1))
        .await
        .refused("invalid_argument", Some("prices[0].price"));
    bad(|list| list["prices"][0]["per"] = json!(0)).await.refused("invalid_argument", Some("prices"));
    counted(&app, "acme", 5).await;
    let draft = call("GET", &format!("{invoice}?month=2026-01"), None).await.expect(200);
    assert_eq!((&draft["lines"][0]["billable"], &draft["lines"][0]["amount"]), (&json!(3), &json!("0.30")));
    assert_eq!(
        (&draft["total"], &draft["draft"], &draft["complete"]),
        (&json!("0.31"), &json!(true), &json!(false))
    );
    call("GET", &format!("{invoice}?month=2026-13"), None).await.refused("invalid_argument", Some("month"));
    app.clock.advance_us(31 * 86_400_000_000);
    let token = app.token(&acme, P::ALL).await;
    let january = format!("{invoice}?month=2026-01");
    let later = app.call(As::Token(&token), "GET", &january, None).await.expect(200);
    assert_eq!(
        (&later["complete"], &later["total"]),
        (&json!(false), &json!("0.31")),
        "the log may hold more of it"
    );
    counted(&app, "acme", 1).await;
    let later = app.call(As::Token(&token), "GET", &january, None).await.expect(200);
    assert_eq!((&later["complete"], &later["total"]), (&json!(true), &json!("0.31")));
}

#[tokio::test]
async fn what_was_not_counted_is_shown_beside_usage_and_invoice() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let token = app.token(&acme, P::ALL).await;
    let list = Some(json!({ "currency": "EUR", "prices": [] }));
    app.call(As::Token(&token), "PUT", "/api/v1/price-list", list).await.expect(200);
    let gap = Gap {
        log_epoch: 7,
        first: 5,
        last: Some(9),
        since_us: START_US,
        at_us: START_US + 1,
        why: "damage".into(),
    };
    let rest = Gap {
        first: 50,
        last: None,
        since_us: START_US + 40 * DAY_US,
        at_us: START_US + 41 * DAY_US,
        ..gap.clone()
    };
    let put = move |tx: &mut Tx<'_>| {
        let scope = Scope::System("usage: the meter counts every tenant's records");
        [gap, rest].iter().try_for_each(|gap| store::gap_put(tx, &scope, gap))
    };
    app.parts.meter.db.write(put).await.unwrap();
    let january = "/api/v1/tenants/acme/usage/invoice?month=2026-01";
    let later = app.call(As::Token(&token), "GET", january, None).await.expect(200);
    let shown = json!([{ "since_us": START_US, "until_us": START_US + 1, "records": 5, "reason": "damage" }]);
    assert_eq!(later["gaps"], shown);
    let usage = |days: &str| format!("/api/v1/tenants/acme/usage?{days}");
    let january =
        app.call(As::Token(&token), "GET", &usage("from=2026-01-01&to=2026-01-31"), None).await.expect(200);
    assert_eq!(january["gaps"], shown);
    let february =
        app.call(As::Token(&token), "GET", &usage("from=2026-02-01&to=2026-02-28"), None).await.expect(200);
    assert_eq!((&february["gaps"][0]["records"], &february["gaps"][1]), (&json!(null), &json!(null)));
}

#[tokio::test]
async fn quotas_that_are_committed_are_in_force_also_where_the_caller_went_away() {
    let app = TestApp::start().await;
    let acme = app.tenant("acme").await;
    let (usage, me) = (&app.parts.slices.usage, owner(&acme));
    for polls in 1..8_u64 {
        let limit = Some(LimitSection { soft: None, hard: Some(polls) });
        let own = QuotaSpec { messages_per_day: limit, ..QuotaSpec::default() };
        let mut changing = Box::pin(usage.set_quotas(&me, &acme, own));
        for _ in 0..polls {
            let is_over = std::future::poll_fn(|cx| Poll::Ready(changing.as_mut().poll(cx).is_ready())).await;
            if is_over {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(changing);
        // Writes are in order: what was begun is committed before this.
        app.parts.meter.db.write(|_| Ok::<_, DbError>(())).await.unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let scope = Scope::Tenant(acme.clone());
            let stored = app.parts.meter.db.read(move |tx| store::quotas_get(tx, &scope)).await.unwrap();
            if usage.board().own("acme") == stored {
                break;
            }
            assert!(Instant::now() < deadline, "after {polls} polls {stored:?} is stored and not in force");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
