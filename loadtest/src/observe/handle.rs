//! Where the server is now, and with which token a tenant is asked.
//!
//! Whoever starts and kills the server writes it; everybody else looks again at each use, since address and process
//! change while they work.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What is known of the server at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// `host:port` of its HTTP listener; none where it has none.
    pub http: Option<String>,
    /// Its process, where it is of this machine and runs.
    pub pid: Option<u32>,
    /// Its data directory, where it is of this machine.
    pub data_dir: Option<PathBuf>,
}

/// Shared knowledge of where the server is.
#[derive(Clone, Debug, Default)]
pub struct ServerHandle(Arc<Mutex<ServerFacts>>);

impl ServerHandle {
    /// A handle that tells these facts until they are changed.
    #[must_use]
    pub fn new(facts: ServerFacts) -> Self {
        Self(Arc::new(Mutex::new(facts)))
    }

    /// What is known now.
    #[must_use]
    pub fn facts(&self) -> ServerFacts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what every clone tells.
    pub fn change(&self, change: impl FnOnce(&mut ServerFacts)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// One tenant and an API token of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Access {
    /// The tenant.
    pub tenant: String,
    /// The token's secret.
    pub token: String,
}

impl Access {
    /// The API's path of something below the tenant.
    #[must_use]
    pub fn path(&self, rest: &str) -> String {
        format!("/api/v1/tenants/{}/{rest}", self.tenant)
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Access({})", self.tenant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_by_every_clone_and_no_token_is_shown() {
        let handle = ServerHandle::default();
        let other = handle.clone();
        handle.change(|facts| facts.pid = Some(7));
        assert_eq!(other.facts(), ServerFacts { pid: Some(7), ..ServerFacts::default() });
        let access = Access { tenant: "acme".into(), token: "mst_secret".into() };
        assert_eq!(access.path("devices"), "/api/v1/tenants/acme/devices");
        assert_eq!(format!("{access:?}"), "Access(acme)");
    }
}
