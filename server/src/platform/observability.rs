//! Logging and the metrics registry.
//!
//! `app.rs` makes both once; every part registers its own metrics in the one registry and
//! `/metrics` prints them. Labels come from closed sets: never a device, a tenant or a path.

use prometheus::{Encoder as _, Registry, TextEncoder};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Why logging cannot start or change.
#[derive(Debug, thiserror::Error)]
pub enum ObservabilityError {
    /// The filter does not parse.
    #[error("log filter {filter:?} is not valid")]
    Filter {
        /// The text.
        filter: String,
        /// The parser's reason.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Another logger is set already, or gone.
    #[error("cannot set the logger: {0}")]
    Logger(String),
}

/// Changes the log filter while the server runs.
#[derive(Clone)]
pub struct LogControl {
    handle: reload::Handle<EnvFilter, tracing_subscriber::Registry>,
}

/// Starts logging to standard error. Call once a process.
///
/// # Errors
/// A bad filter; a logger that is set already.
pub fn start_logging(filter: &str) -> Result<LogControl, ObservabilityError> {
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    let started = tracing_subscriber::registry().with(layer).with(lines).try_init();
    started.map_err(|error| ObservabilityError::Logger(error.to_string()))?;
    Ok(LogControl { handle })
}

impl LogControl {
    /// Takes another filter.
    ///
    /// # Errors
    /// A bad filter; the old one stays.
    pub fn set(&self, filter: &str) -> Result<(), ObservabilityError> {
        let filter = parse(filter)?;
        self.handle.reload(filter).map_err(|error| ObservabilityError::Logger(error.to_string()))
    }
}

fn parse(filter: &str) -> Result<EnvFilter, ObservabilityError> {
    filter.parse().map_err(|source| ObservabilityError::Filter { filter: filter.to_owned(), source })
}

/// Prints a registry as Prometheus reads it.
///
/// # Errors
/// A metric that cannot be printed.
pub fn metrics_text(registry: &Registry) -> Result<String, prometheus::Error> {
    let mut bytes = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
