//! TLS of the enrolment listener. `app` serves enrolment and renewal behind it.

use super::AppError;
use super::certificate::Certificates;
use crate::devices::pki::ExpiredToo;
use crate::gateway;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// TLS of the enrolment listener: the server's certificate, and for renewal a device's, which may be past its time.
pub(super) fn enroll_tls(certificates: &Certificates) -> Result<TlsAcceptor, AppError> {
    let mut config = rustls::ServerConfig::builder_with_provider(gateway::provider())
        .with_safe_default_protocol_versions()
        .map_err(AppError::Tls)?
        .with_client_cert_verifier(Arc::new(ExpiredToo::new(certificates.devices())))
        .with_cert_resolver(certificates.listeners());
    // Each connection proves anew who it is.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
