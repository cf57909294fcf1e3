//! Whether tenants are kept apart: what one tenant's token is told of another's, and serials under another's device.

use super::{Expected, Faults};
use crate::observe::handle::{Access, ServerHandle};
use crate::observe::http::{Client, HttpError};
use crate::observe::provision::patiently;
use crate::report::model::Invariant;
use std::collections::BTreeSet;

/// What is asked for, below a tenant; `{device}` is one of its devices.
const PATHS: [&str; 12] = [
    "devices",
    "devices/{device}",
    "devices/{device}/readings?metric=serial",
    "devices/{device}/last",
    "devices/{device}/ledger",
    "ledger",
    "events",
    "dead-letters",
    "alerts",
    "rules",
    "presence",
    "live?kinds=alert",
];
/// Another tenant's object looks absent.
const ABSENT: u16 = 404;

/// Each tenant asks for the next one's, and the one's before.
pub(super) fn invariant(
    server: &ServerHandle,
    tenants: &[Access],
    expected: &Expected,
    foreign: &Faults,
) -> Invariant {
    let (mut asked, mut told) = (0_u64, Faults::default());
    for (at, other) in tenants.iter().enumerate() {
        let device = expected.devices.iter().find(|device| device.tenant == at);
        let device = device.map_or("none", |device| device.name.as_str());
        let neighbours = BTreeSet::from([(at + 1) % tenants.len(), (at + tenants.len() - 1) % tenants.len()]);
        for path in PATHS {
            let path = other.path(&path.replace("{device}", device));
            // What the tenant itself is refused would prove nothing.
            if status(server, other, &path) != Ok(200) {
                if device != "none" {
                    told.add(at, 1, [format!("{path} is not to be had with its own token")]);
                }
                continue;
            }
            for neighbour in neighbours.iter().copied().filter(|neighbour| *neighbour != at) {
                asked += 1;
                let caller = &tenants[neighbour];
                let answer = status(server, caller, &path);
                if answer != Ok(ABSENT) {
                    let answer = answer.map_or_else(|error| error, |status| status.to_string());
                    told.add(at, 1, [format!("{} asks for {path}: {answer}", caller.tenant)]);
                }
            }
        }
    }
    let detail = format!(
        "{asked} requests with another tenant's token, {} not answered by {ABSENT}{}; {} serials of other tenants{}",
        told.count,
        told.shown(),
        foreign.count,
        foreign.shown()
    );
    Invariant { name: "tenants_apart".into(), held: told.count == 0 && foreign.count == 0, detail }
}

fn status(server: &ServerHandle, access: &Access, path: &str) -> Result<u16, String> {
    let mut client = Client::of(server, access);
    let ask = || match client.status(path)? {
        // Busy: asked again.
        status @ (429 | 500..) => {
            Err(HttpError::Refused { method: "GET", path: path.to_owned(), status, body: String::new() })
        }
        status => Ok(status),
    };
    patiently(ask).map_err(|error| error.to_string())
}
