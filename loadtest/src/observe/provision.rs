//! Tenants, devices, tokens and rules through the admin API, as an integrator would make them.
//!
//! `run` calls it before it sends. What is there already is taken as it is, but a device gets a new token: tokens are
//! shown once. Bounds: [`THREADS`] requests at once, [`TRIES_MAX`] tries of each while the server is busy or away.

use super::handle::{Access, ServerHandle};
use super::http::{Client, Credential, HttpError};
use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Requests at once: commits of the registry are shared between them.
pub const THREADS: usize = 32;
/// How often a request is made before it counts as failed.
pub const TRIES_MAX: u32 = 8;
/// Before the second try; twice as long before each further one.
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// A token's life: longer than any run.
const TOKEN_DAYS: u32 = 7;
/// How long a rule may take from being written to being run.
pub const RULE_RUNS_TIME_MAX: Duration = Duration::from_secs(60);
/// Pages of rules that are looked through; a tenant has at most 1,000 rules.
const RULE_PAGES_MAX: usize = 10;
/// What a run does with a tenant.
const SCOPES: [&str; 9] = [
    "tenant:read",
    "devices:read",
    "devices:write",
    "telemetry:read",
    "rules:read",
    "rules:write",
    "alerts:read",
    "alerts:write",
    "mqtt:subscribe",
];
/// An alarm device's values from here on open alerts: excursion n is this and n, exact in a f64.
const ALARM_BASE: u32 = 1_000_000;

/// An account that may make tenants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its address.
    pub email: String,
    /// Its password, or the one-time password of the server's first start.
    pub password: String,
}

/// How a device says who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// By a certificate that the run signs: the registry only has to know it.
    Certificate,
    /// By a token.
    Token,
}

/// Makes sure that the tenants are there, and makes an API token for each; in the order of the names.
///
/// A token is bound to one tenant, so this logs in as the owner. A one-time password is changed, for good, into
/// itself with a suffix: the next run finds it.
///
/// # Errors
/// The login or a request is refused.
pub fn tenants(server: &ServerHandle, owner: &Owner, names: &[String]) -> Result<Vec<Access>> {
    let mut session = log_in(server, owner)?;
    let mut made = Vec::with_capacity(names.len());
    for name in names {
        let tenant = json!({ "id": name, "name": name });
        unless_there(patiently(|| session.post("/api/v1/tenants", &tenant)))
            .with_context(|| format!("cannot make the tenant {name}"))?;
        let path = format!("/api/v1/tenants/{name}/api-tokens");
        let token = json!({ "name": "loadtest", "scopes": SCOPES, "days": TOKEN_DAYS });
        let answer = patiently(|| session.post(&path, &token)).context("cannot make an API token")?;
        let token = answer["secret"].as_str().context("the server gave no API token")?.to_owned();
        made.push(Access { tenant: name.clone(), token });
    }
    Ok(made)
}

/// A client with the owner's session, whose password is no one-time password any more.
fn log_in(server: &ServerHandle, owner: &Owner) -> Result<Client> {
    const PATH: &str = "/api/v1/auth/login";
    let changed = format!("{}-changed", owner.password);
    let mut outside = Client::with(server, Credential::None);
    let mut why = String::new();
    for password in [&changed, &owner.password] {
        let login = json!({ "email": owner.email, "password": password });
        let answer = patiently(|| outside.call("POST", PATH, Some(&login)))?;
        if answer.status != 200 {
            why = answer.body;
            continue;
        }
        let me: Value = serde_json::from_str(&answer.body).context("the login answered no JSON")?;
        let cookie = answer.cookie.context("the login set no cookie")?;
        let mut session = Client::with(server, Credential::Session(cookie));
        if me["password_pending"] == json!(true) {
            let change = json!({ "old_password": password, "new_password": changed });
            session.post("/api/v1/auth/password", &change).context("cannot change the one-time password")?;
        }
        return Ok(session);
    }
    bail!("{} cannot log in: {}", owner.email, why.trim())
}

/// Makes sure that the devices are there, and answers their new tokens in the order of the names.
///
/// `progress` is told how many are done, from several threads.
///
/// # Errors
/// A request is refused, or the server is away for longer than the tries last.
pub fn devices(
    server: &ServerHandle,
    access: &Access,
    names: &[String],
    login: Login,
    progress: &(dyn Fn(u32) + Sync),
) -> Result<Vec<Option<String>>> {
    let (done, failed) = (AtomicU32::new(0), AtomicBool::new(false));
    let share = names.len().div_ceil(THREADS).max(1);
    let part = |names: &[String]| -> Result<Vec<Option<String>>> {
        let mut client = Client::of(server, access);
        let mut tokens = Vec::with_capacity(names.len());
        for name in names {
            // One failure ends them all.
            if failed.load(Ordering::Relaxed) {
                break;
            }
            let token = device(&mut client, access, name, login);
            failed.fetch_or(token.is_err(), Ordering::Relaxed);
            tokens.push(token.with_context(|| format!("cannot make the device {name}"))?);
            progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        }
        Ok(tokens)
    };
    let parts: Vec<Result<Vec<Option<String>>>> = std::thread::scope(|scope| {
        let started: Vec<_> = names.chunks(share).map(|names| scope.spawn(move || part(names))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
        };
        started.into_iter().map(join).collect()
    });
    Ok(parts.into_iter().collect::<Result<Vec<_>>>()?.concat())
}

fn device(client: &mut Client, access: &Access, name: &str, login: Login) -> Result<Option<String>> {
    let body = json!({ "id": name });
    unless_there(patiently(|| client.post(&access.path("devices"), &body)))?;
    if login == Login::Certificate {
        return Ok(None);
    }
    let path = access.path(&format!("devices/{name}/token"));
    let answer = patiently(|| client.post_nothing(&path))?;
    Ok(Some(answer["token"].as_str().context("the server gave no token")?.to_owned()))
}

/// What an alarm device sends to open its n-th alert (and to keep it open); 0 ends the excursion.
#[must_use]
pub fn alarm_value(excursion: u32) -> f64 {
    f64::from(ALARM_BASE) + f64::from(excursion)
}

/// Which excursion a value opened; none for a value that no alarm device sends.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
pub fn excursion_of(value: f64) -> Option<u32> {
    let number = value - f64::from(ALARM_BASE);
    let is_whole = number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number);
    is_whole.then_some(number as u32)
}

/// A version of a rule: every write makes another one, so a run's alerts are those of the version that it wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenRule {
    /// Its id, which stays with its name.
    pub id: String,
    /// Its version.
    pub version: i64,
}

/// Makes sure that there is a rule that opens an alert where one of the devices sends [`alarm_value`], and clears it
/// where it sends less; at most 1,000 devices, none for all. Waits until it runs.
///
/// # Errors
/// The server refuses it, or does not run it.
pub fn alarm_rule(
    server: &ServerHandle,
    access: &Access,
    name: &str,
    metric: &str,
    devices: &[String],
) -> Result<WrittenRule> {
    let draft = json!({
        "name": name,
        "selector": { "devices": devices },
        "on": { "telemetry": { "metrics": [metric] } },
        "condition": format!("value >= {ALARM_BASE}.0"),
        "severity": "warning",
    });
    let written = rule(server, access, &draft)?;
    wait_for_rule(server, access, &written)?;
    Ok(written)
}

/// Waits until a rule that was written runs: the server looks for new ones each second.
///
/// # Errors
/// It does not within [`RULE_RUNS_TIME_MAX`].
pub fn wait_for_rule(server: &ServerHandle, access: &Access, written: &WrittenRule) -> Result<()> {
    let (mut client, began) = (Client::of(server, access), Instant::now());
    let WrittenRule { id, version } = written;
    while began.elapsed() < RULE_RUNS_TIME_MAX {
        let rule = patiently(|| client.get(&access.path(&format!("rules/{id}"))))?;
        // The version before runs until the new one does.
        if rule["health"]["version"].as_i64().is_some_and(|runs| runs >= *version) {
            return Ok(());
        }
        std::thread::sleep(RETRY_DELAY);
    }
    bail!("the rule {id} does not run after {RULE_RUNS_TIME_MAX:?}")
}

/// Makes sure that there is a rule of the draft's name: writes it, or its next version.
///
/// # Errors
/// The server refuses it.
pub fn rule(server: &ServerHandle, access: &Access, draft: &Value) -> Result<WrittenRule> {
    let mut client = Client::of(server, access);
    let answer = match patiently(|| client.post(&access.path("rules"), draft)) {
        Err(error) if error.status() == Some(409) => {
            let id = rule_named(&mut client, access, &draft["name"])?.context("the rule vanished")?;
            patiently(|| client.put(&access.path(&format!("rules/{id}")), draft))
        }
        other => other,
    };
    let answer = answer.with_context(|| format!("cannot write the rule {}", draft["name"]))?;
    let id = answer["id"].as_str().context("the server gave the rule no id")?.to_owned();
    let version = answer["version"].as_i64().context("the server gave the rule no version")?;
    Ok(WrittenRule { id, version })
}

/// Deletes the rules whose names say so: what an earlier run left.
///
/// # Errors
/// The server refuses it.
pub fn delete_rules(server: &ServerHandle, access: &Access, is_left: impl Fn(&str) -> bool) -> Result<usize> {
    let mut client = Client::of(server, access);
    let left = rules_where(&mut client, access, |rule| rule["name"].as_str().is_some_and(&is_left))?;
    for id in &left {
        let path = access.path(&format!("rules/{id}"));
        let answer = patiently(|| client.call("DELETE", &path, None))?;
        // A try whose answer was lost may have done it.
        if !matches!(answer.status, 204 | 404) {
            bail!("cannot delete the rule {id}: {} {}", answer.status, answer.body.trim());
        }
    }
    Ok(left.len())
}

fn rule_named(client: &mut Client, access: &Access, name: &Value) -> Result<Option<String>> {
    Ok(rules_where(client, access, |rule| rule["name"] == *name)?.pop())
}

/// The ids of some of a tenant's rules.
fn rules_where(client: &mut Client, access: &Access, is_one: impl Fn(&Value) -> bool) -> Result<Vec<String>> {
    let (mut path, mut found) = (access.path("rules?limit=500"), Vec::new());
    for _ in 0..RULE_PAGES_MAX {
        let page = patiently(|| client.get(&path))?;
        let rules = page["items"].as_array().into_iter().flatten();
        let ids = rules.filter(|rule| is_one(rule)).filter_map(|rule| rule["id"].as_str());
        found.extend(ids.map(str::to_owned));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = access.path(&format!("rules?limit=500&cursor={cursor}"));
    }
    Ok(found)
}

/// What is there already is as good as made.
fn unless_there(made: Result<Value, HttpError>) -> Result<(), HttpError> {
    match made {
        Err(error) if error.status() != Some(409) => Err(error),
        _ => Ok(()),
    }
}

/// Makes a request again while the server is busy or away.
pub(super) fn patiently<T>(mut request: impl FnMut() -> Result<T, HttpError>) -> Result<T, HttpError> {
    let mut delay = RETRY_DELAY;
    for _ in 1..TRIES_MAX {
        match request() {
            Err(error) if error.is_passing() => std::thread::sleep(delay),
            other => return other,
        }
        delay *= 2;
    }
    request()
}

#[cfg(test)]
mod tests;
