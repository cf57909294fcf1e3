//! Ten thousand devices with tokens, made through the admin API as an integrator would.

use crate::http::Client;
use crate::server::Server;
use anyhow::{Context, Result, anyhow};
use serde_json::json;
use std::path::Path;

/// Requests at once: commits of the registry are shared between them.
const THREADS: u32 = 32;

/// Makes devices `d00000..` and writes their tokens as lines of `device,token`.
///
/// # Errors
/// The API refuses, or the file cannot be written.
pub(crate) fn devices(server: &Server, count: u32, file: &Path) -> Result<()> {
    devices_of(&server.tenant, || server.api(), count, file)
}

/// As [`devices`], in a tenant with an API of its own.
///
/// # Errors
/// As [`devices`].
pub(crate) fn devices_of(tenant: &str, api: impl Fn() -> Client, count: u32, file: &Path) -> Result<()> {
    let share = count.div_ceil(THREADS);
    let lines = std::thread::scope(|scope| {
        let part = |thread: u32| {
            let numbers = thread * share..((thread + 1) * share).min(count);
            let mut api = api();
            scope.spawn(move || {
                numbers.map(|number| device(tenant, &mut api, number)).collect::<Result<String>>()
            })
        };
        let parts: Vec<_> = (0..THREADS).map(part).collect();
        let joined = parts.into_iter().map(|part| part.join().map_err(|_| anyhow!("a thread panicked"))?);
        joined.collect::<Result<Vec<String>>>()
    })?;
    std::fs::write(file, lines.concat()).with_context(|| format!("cannot write {}", file.display()))
}

fn device(tenant: &str, api: &mut Client, number: u32) -> Result<String> {
    let name = format!("d{number:05}");
    let devices = format!("/api/v1/tenants/{tenant}/devices");
    api.post(&devices, &json!({ "id": name }))?;
    let answer = api.post_nothing(&format!("{devices}/{name}/token"))?;
    let token = answer["token"].as_str().context("the server gave no token")?;
    Ok(format!("{name},{token}\n"))
}
