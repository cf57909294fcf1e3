//! The certificate of the TLS listeners (MQTT and enrolment): loaded at the start, replaced while they listen.
//!
//! `reload` calls [`Certificates::apply`] on SIGHUP and [`Certificates::poll`] every few seconds; it calls the PKI and
//! hands what is good to the listeners. Promise: new handshakes see the new certificate, connections that are up live
//! on, and a file that devices would not accept is refused aloud while the old certificate stays. One with a third of
//! its life left is renewed by the server that has the authority, so a server that runs for years does not end up with
//! an expired one; a gateway on that server's files sees the new ones within seconds.

use super::AppError;
use crate::devices::pki::{Pki, PkiError, ServerFiles, ServerPem};
use crate::gateway::{KnownCertificates, ServerCertificate};
use crate::platform::clock::SharedClock;
use crate::platform::http_kit::chain;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// After a failed renewal: there are months to try.
const RENEWAL_RETRY_US: i64 = 3_600_000_000;

/// Where the certificate comes from.
pub(super) enum Origin {
    /// The server's own authority.
    Authority(Arc<Pki>),
    /// Another server's files.
    Files(ServerFiles),
}

impl Origin {
    fn files(&self) -> &ServerFiles {
        match self {
            Self::Authority(pki) => pki.files(),
            Self::Files(files) => files,
        }
    }

    fn changed_at(&self) -> [Option<SystemTime>; 3] {
        self.files().paths().map(|path| std::fs::metadata(path).and_then(|file| file.modified()).ok())
    }
}

struct Shown {
    pem: ServerPem,
    changed_at: [Option<SystemTime>; 3],
    renew_at_us: i64,
}

/// The listeners' certificate with where it comes from.
pub(super) struct Certificates {
    origin: Origin,
    clock: SharedClock,
    listeners: Arc<ServerCertificate>,
    devices: Arc<KnownCertificates>,
    shown: Mutex<Shown>,
}

impl Certificates {
    /// Loads the certificate to start with.
    ///
    /// # Errors
    /// The files cannot be used.
    pub(super) fn load(origin: Origin, clock: SharedClock) -> Result<Self, AppError> {
        let changed_at = origin.changed_at();
        let pem = origin.files().load(clock.now_us())?;
        let listeners = ServerCertificate::from_pem(&pem.chain_pem, &pem.key_pem)?;
        let devices = KnownCertificates::from_pem(&pem.devices_pem)?;
        let shown = Mutex::new(Shown { renew_at_us: pem.due_us, pem, changed_at });
        Ok(Self { origin, clock, listeners, devices, shown })
    }

    /// Whose device certificates the listeners let in.
    pub(super) fn devices(&self) -> Arc<KnownCertificates> {
        self.devices.clone()
    }

    /// What the listeners show.
    pub(super) fn listeners(&self) -> Arc<ServerCertificate> {
        self.listeners.clone()
    }

    /// Loads again; says whether another certificate is shown now.
    ///
    /// # Errors
    /// What is in the files is refused, and the old one stays.
    pub(super) fn reload(&self) -> Result<bool, AppError> {
        let mut shown = self.lock();
        shown.changed_at = self.origin.changed_at();
        let now_us = self.clock.now_us();
        let next = match self.next(&shown, now_us) {
            Ok(next) => next,
            Err(error) => {
                shown.renew_at_us = shown.renew_at_us.max(now_us.saturating_add(RENEWAL_RETRY_US));
                return Err(error.into());
            }
        };
        if next == shown.pem {
            return Ok(false);
        }
        // Connections that are up stay: only handshakes ask.
        if next.devices_pem != shown.pem.devices_pem {
            self.devices.replace_pem(&next.devices_pem)?;
        }
        self.listeners.replace(&next.chain_pem, &next.key_pem)?;
        let changed_at = match &self.origin {
            // A renewal has written the files.
            Origin::Authority(_) => self.origin.changed_at(),
            // The owner may have gone on writing since they were read: then the next poll reads again.
            Origin::Files(_) => shown.changed_at,
        };
        *shown = Shown { renew_at_us: next.due_us, pem: next, changed_at };
        Ok(true)
    }

    /// What to show now. Another server's certificate is never renewed here: once it is due, its files are read at each
    /// poll until their owner has renewed it.
    fn next(&self, shown: &Shown, now_us: i64) -> Result<ServerPem, PkiError> {
        let Origin::Authority(pki) = &self.origin else { return self.origin.files().load(now_us) };
        pki.refresh()?;
        if now_us >= shown.renew_at_us {
            return pki.renew_server(now_us);
        }
        let found = pki.server(now_us)?;
        if now_us >= found.due_us { pki.renew_server(now_us) } else { Ok(found) }
    }

    /// Loads again and says so in the log.
    pub(super) fn apply(&self) {
        match self.reload() {
            Ok(true) => tracing::info!("server certificate, or the authorities that are trusted, replaced"),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(error = %chain(&error), "server certificate is refused, the old one stays");
            }
        }
    }

    /// Loads again where a file changed or the certificate is due.
    pub(super) fn poll(&self) {
        let shown = self.lock();
        let is_same = shown.changed_at == self.origin.changed_at() && self.clock.now_us() < shown.renew_at_us;
        drop(shown);
        if !is_same {
            self.apply();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
