use super::*;
use crate::observe::testing::Fake;
use std::cell::Cell;
use std::sync::{Arc, Mutex};

#[test]
fn an_excursion_is_known_by_its_value() {
    for excursion in [0, 1, 7, u32::MAX] {
        assert_eq!(excursion_of(alarm_value(excursion)), Some(excursion));
    }
    for value in [0.0, -1.0, 999_999.0, 1_000_000.5, f64::NAN, f64::INFINITY, 1e300] {
        assert_eq!(excursion_of(value), None, "{value}");
    }
}

/// A server with devices: one is there already, one is refused.
fn fake() -> Fake {
    Fake::start(|request| {
        let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
        let path = request.path.strip_prefix("/api/v1/tenants/acme/devices").unwrap();
        Ok(match (request.method.as_str(), path, body["id"].as_str()) {
            ("POST", "", Some("d7")) => (409, "taken".into()),
            ("POST", "", Some("bad")) => (422, "no".into()),
            ("POST", "", Some(_)) => (201, "{}".into()),
            ("POST", path, None) if path.ends_with("/token") => {
                (201, json!({ "token": path.replace("/token", "-secret") }).to_string())
            }
            _ => (500, "what?".into()),
        })
    })
}

#[test]
fn devices_are_made_once_and_tokens_come_in_order() {
    let fake = fake();
    let access = fake.access("acme");
    let names: Vec<String> = (0..100).map(|number| format!("d{number}")).collect();
    let most = AtomicU32::new(0);
    let progress = |done| {
        most.fetch_max(done, Ordering::Relaxed);
    };
    let tokens = devices(&fake.handle, &access, &names, Login::Token, &progress).unwrap();
    let expect: Vec<_> = names.iter().map(|name| Some(format!("/{name}-secret"))).collect();
    assert_eq!((tokens, most.load(Ordering::Relaxed)), (expect, 100));
    assert_eq!(fake.requests.lock().unwrap().len(), 200);
    let none = devices(&fake.handle, &access, &names, Login::Certificate, &progress).unwrap();
    assert_eq!(none, vec![None; 100]);
    assert_eq!(fake.requests.lock().unwrap().len(), 300);
}

#[test]
fn one_refusal_ends_the_making() {
    let fake = fake();
    let names: Vec<String> = ["d1", "bad", "d2"].map(str::to_owned).to_vec();
    let error = devices(&fake.handle, &fake.access("acme"), &names, Login::Token, &|_| {}).unwrap_err();
    let told = format!("{error:#}");
    assert!(told.starts_with("cannot make the device bad: POST ") && told.ends_with("422: no"), "{told}");
}

#[test]
fn a_request_is_made_again_while_it_may_help() {
    let tries = |error: fn() -> HttpError, fails: u32| {
        let made = Cell::new(0);
        let outcome = patiently(|| {
            made.set(made.get() + 1);
            if made.get() > fails { Ok(()) } else { Err(error()) }
        });
        (made.get(), outcome.is_ok())
    };
    let away = || HttpError::Down("gone".into());
    let refused = || HttpError::Refused { method: "GET", path: "/".into(), status: 404, body: "".into() };
    assert_eq!(tries(away, 2), (3, true));
    assert_eq!(tries(refused, 2), (1, false));
    assert_eq!(tries(away, TRIES_MAX), (TRIES_MAX, false));
}

/// A server with rules of some names, which keeps them a name a page.
fn rules_of(names: &[&str]) -> (Fake, Arc<Mutex<Vec<String>>>) {
    let left = Arc::new(Mutex::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()));
    let kept = left.clone();
    let fake = Fake::start(move |request| {
        let mut kept = kept.lock().unwrap();
        let path = request.path.strip_prefix("/api/v1/tenants/acme/rules").unwrap();
        let body: Value = serde_json::from_str(&request.body).unwrap_or_default();
        let rule = |name: &str, version: i64| json!({ "id": format!("id-{name}"), "name": name, "version": version });
        Ok(match (request.method.as_str(), path) {
            ("GET", "") => {
                let from: usize = request.query.get("cursor").map_or(0, |cursor| cursor.parse().unwrap());
                let next = (from + 1 < kept.len()).then(|| (from + 1).to_string());
                let items: Vec<Value> = kept.iter().skip(from).take(1).map(|name| rule(name, 1)).collect();
                (200, json!({ "items": items, "next_cursor": next }).to_string())
            }
            ("POST", "") if kept.contains(&body["name"].as_str().unwrap().to_owned()) => {
                (409, "taken".into())
            }
            ("POST", "") => (201, rule(body["name"].as_str().unwrap(), 1).to_string()),
            ("PUT", path) => (200, rule(path.strip_prefix("/id-").unwrap(), 7).to_string()),
            ("DELETE", "/id-locked") => (403, "no".into()),
            ("DELETE", path) => {
                let name = path.strip_prefix("/id-").unwrap();
                kept.retain(|other| other != name);
                (204, String::new())
            }
            other => (500, format!("what? {other:?}")),
        })
    });
    (fake, left)
}

#[test]
fn a_rule_that_is_there_is_written_anew_and_told_by_its_version() {
    let (fake, _) = rules_of(&["a", "b"]);
    let written = |name: &str| rule(&fake.handle, &fake.access("acme"), &json!({ "name": name })).unwrap();
    assert_eq!(written("b"), WrittenRule { id: "id-b".into(), version: 7 });
    assert_eq!(written("c"), WrittenRule { id: "id-c".into(), version: 1 });
}

#[test]
fn rules_of_an_earlier_run_are_deleted_and_no_others() {
    let (fake, left) = rules_of(&["left-1", "kept", "left-2", "left-3"]);
    let access = fake.access("acme");
    let delete = |prefix: &str| delete_rules(&fake.handle, &access, |name| name.starts_with(prefix));
    assert_eq!((delete("left").unwrap(), delete("left").unwrap()), (3, 0));
    assert_eq!(*left.lock().unwrap(), ["kept"]);
    let (fake, _) = rules_of(&["locked"]);
    let error = delete_rules(&fake.handle, &access, |_| true).unwrap_err().to_string();
    assert_eq!(error, "cannot delete the rule id-locked: 403 no");
}
