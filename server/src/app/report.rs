//! What the server tells whoever started it: addresses, and the owner's one-time password.

use super::AppError;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Life of the bootstrap file's API token.
pub const BOOTSTRAP_TOKEN_DAYS: u32 = 30;

/// The bound addresses; real ports where the configuration says 0.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Addresses {
    /// Admin API and page; of a gateway alone: health and metrics.
    pub http: SocketAddr,
    /// Enrolment, HTTPS; none where this process enrols nobody.
    pub enroll: Option<SocketAddr>,
    /// MQTT over TLS.
    pub mqtt_tls: Option<SocketAddr>,
    /// MQTT without TLS.
    pub mqtt_plain: Option<SocketAddr>,
}

impl Addresses {
    /// The port that devices connect to.
    #[must_use]
    pub fn mqtt_port(&self) -> Option<u16> {
        self.mqtt_tls.or(self.mqtt_plain).map(|address| address.port())
    }

    /// Writes the ready file: whoever sees it may connect.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), AppError> {
        let mut json = serde_json::json!(self);
        json["pid"] = std::process::id().into();
        replace(path, &json.to_string(), 0o644)
    }
}

impl std::fmt::Display for Addresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http={}", self.http)?;
        let others = [("enroll", self.enroll), ("mqtt_tls", self.mqtt_tls), ("mqtt_plain", self.mqtt_plain)];
        for (name, address) in others {
            if let Some(address) = address {
                write!(f, " {name}={address}")?;
            }
        }
        Ok(())
    }
}

/// The first owner's credentials. Not `Debug`: they stand in no log.
#[derive(serde::Serialize)]
pub struct Bootstrap {
    /// The first tenant.
    pub tenant: String,
    /// The owner's address.
    pub email: String,
    /// The one-time password.
    pub password: String,
    /// An API token with every scope, when a bootstrap file was asked for.
    pub api_token: Option<String>,
}

impl Bootstrap {
    /// Prints the login to standard output, once in the server's life.
    pub fn print(&self) {
        let mut out = std::io::stdout().lock();
        let text = format!(
            "\nFirst start: sign in as {} with the one-time password {}\nand change it; it is not shown again.\n",
            self.email, self.password
        );
        // Whoever closed our output cannot read it; `muster-server admin reset-password` gives another.
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    /// Writes the bootstrap file, readable by its owner only.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), AppError> {
        replace(path, &serde_json::json!(self).to_string(), 0o600)
    }
}

/// Writes beside and renames: a reader sees all of it or nothing.
fn replace(path: &Path, text: &str, mode: u32) -> Result<(), AppError> {
    let fail = |source| AppError::Report { path: path.to_owned(), source };
    let beside = path.with_extension("partial");
    let _ = std::fs::remove_file(&beside);
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside).map_err(fail)?;
    file.write_all(text.as_bytes()).map_err(fail)?;
    std::fs::rename(&beside, path).map_err(fail)
}
