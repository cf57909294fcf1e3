//! The sandbox tenant of `xtask api`: some objects of each kind, through the API and MQTT as people and devices would.

use crate::http::Client;
use crate::process::wait_for;
use crate::server::Server;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Its id.
pub(super) const TENANT: &str = "sandbox";
/// The owner's new password.
const PASSWORD: &str = "correct horse battery";
/// Objects of a kind: requests that delete take half of them.
const OBJECTS: u32 = 120;
/// Members: each is a password hash.
const MEMBERS: u32 = 24;
/// Devices that send something, and open an alert.
const SENDERS: u32 = 12;
/// The longest wait for the first alerts.
const ALERT_TIMEOUT: Duration = Duration::from_secs(60);

/// Makes and fills the tenant; answers an API token with every scope.
///
/// # Errors
/// The API refuses something.
pub(super) fn sandbox(server: &Server) -> Result<String> {
    let mut owner = owner(server)?;
    let tenant = json!({ "id": TENANT, "name": "Sandbox" });
    owner.post("/api/v1/tenants", &tenant)?;
    let document = owner.get("/api/v1/openapi.json")?;
    let scopes = &document["components"]["schemas"]["Permission"]["enum"];
    let token = json!({ "name": "schemathesis", "scopes": scopes, "days": 1 });
    let made = owner.post(&path("api-tokens"), &token)?;
    let token = text(&made, "secret")?;
    let mut api = Client::new(server.http, &token);
    fill(&mut api)?;
    alerts(server, &mut api)?;
    Ok(token)
}

fn path(rest: &str) -> String {
    format!("/api/v1/tenants/{TENANT}/{rest}")
}

fn text(answer: &Value, name: &str) -> Result<String> {
    answer[name].as_str().map(str::to_owned).with_context(|| format!("no {name} in {answer}"))
}

/// The first owner, logged in with a password of their own.
fn owner(server: &Server) -> Result<Client> {
    let login = json!({ "email": server.email, "password": server.password });
    let mut nobody = Client::new(server.http, "");
    let answer = nobody.call("POST", "/api/v1/auth/login", Some(&login))?;
    let session = answer.session.with_context(|| format!("no session: {}", answer.body))?;
    let mut owner = Client::with_session(server.http, &session);
    let change = json!({ "old_password": server.password, "new_password": PASSWORD });
    owner.post("/api/v1/auth/password", &change)?;
    Ok(owner)
}

fn fill(api: &mut Client) -> Result<()> {
    for at in 0..OBJECTS {
        let site = if at % 2 == 0 { "north" } else { "south" };
        api.post(&path("devices"), &json!({ "id": format!("pump-{at:03}"), "labels": { "site": site } }))?;
    }
    for at in 0..OBJECTS / 2 {
        api.post(&path("claims"), &json!({ "uses_max": 3, "labels": { "site": "north" } }))?;
        let rule = json!({
            "name": format!("hot {at}"), "on": { "telemetry": { "metrics": ["temperature_celsius"] } },
            "condition": format!("value > {}", 30 + at), "severity": "warning",
        });
        api.post(&path("rules"), &rule)?;
        let token = json!({ "name": format!("reader {at}"), "scopes": ["devices:read"], "days": 1 });
        api.post(&path("api-tokens"), &token)?;
    }
    for at in 0..MEMBERS {
        let user = json!({ "email": format!("user{at}@sandbox.test"), "role": "viewer" });
        api.post(&path("users"), &user)?;
    }
    Ok(())
}

/// Readings of a few devices, and the alerts that they open; without mosquitto there are none.
fn alerts(server: &Server, api: &mut Client) -> Result<()> {
    let mqtt = server.address("mqtt_plain")?;
    let mut sent = false;
    for at in 0..SENDERS {
        let device = format!("pump-{at:03}");
        let made = api.post_nothing(&path(&format!("devices/{device}/token")))?;
        let mut publish = Command::new("mosquitto_pub");
        publish.args(["-h", "127.0.0.1", "-p", &mqtt.port().to_string(), "-q", "1"]);
        // The topic's levels, as any foreign device has them in its configuration.
        let topic = ["muster", TENANT, &device, "up", "senml"].join("/");
        publish.args(["-u", &text(&made, "username")?, "-P", &text(&made, "token")?, "-t", &topic]);
        publish.args(["-m", r#"[{"n":"temperature_celsius","u":"Cel","v":95}]"#]);
        sent = publish.stdout(Stdio::null()).status().is_ok_and(|status| status.success());
        if !sent {
            eprintln!("mosquitto_pub is missing or failed: the sandbox has no readings and no alerts");
            break;
        }
    }
    if !sent {
        return Ok(());
    }
    wait_for("an alert in the sandbox", ALERT_TIMEOUT, || {
        let page = api.get(&path("alerts"))?;
        Ok(page["items"].as_array().filter(|items| !items.is_empty()).map(drop))
    })
}
