//! People's passwords: argon2id off the async threads, a few at a time.
//!
//! Each hash takes 19 MiB and tens of milliseconds of one core, so [`AT_ONCE`] bounds both; further callers wait.

use crate::platform::secret::random_bytes;
use argon2::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Hashes that run at once.
pub const AT_ONCE: usize = 2;

/// Why a hash cannot be made or checked.
#[derive(Debug, thiserror::Error)]
#[error("cannot hash a password: {0}")]
pub struct PasswordError(String);

/// Makes and checks hashes; clones share the bound.
#[derive(Clone)]
pub struct Passwords {
    places: Arc<Semaphore>,
    /// What an unknown account is checked against, so that it takes as long as a known one.
    decoy: Arc<str>,
}

fn argon() -> Result<Argon2<'static>, PasswordError> {
    // OWASP's minimum for argon2id: 19 MiB, two passes, one lane.
    let params = Params::new(19 * 1024, 2, 1, None).map_err(|error| PasswordError(error.to_string()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash_now(password: &str) -> Result<String, PasswordError> {
    let fail = |error: argon2::password_hash::Error| PasswordError(error.to_string());
    let salt = SaltString::encode_b64(&random_bytes::<16>()).map_err(fail)?;
    Ok(argon()?.hash_password(password.as_bytes(), &salt).map_err(fail)?.to_string())
}

impl Passwords {
    /// Makes the decoy.
    ///
    /// # Errors
    /// The hash fails.
    pub fn new() -> Result<Self, PasswordError> {
        let decoy = hash_now(&hex::encode(random_bytes::<16>()))?;
        Ok(Self { places: Arc::new(Semaphore::new(AT_ONCE)), decoy: decoy.into() })
    }

    /// Hashes a new password.
    ///
    /// # Errors
    /// The hash fails.
    pub async fn hash(&self, password: String) -> Result<String, PasswordError> {
        self.run(move || hash_now(&password)).await
    }

    /// Whether the password fits; without a stored hash it takes as long and says no.
    ///
    /// # Errors
    /// The stored text is not a hash.
    pub async fn verify(&self, password: String, stored: Option<String>) -> Result<bool, PasswordError> {
        let known = stored.is_some();
        let stored = stored.unwrap_or_else(|| self.decoy.to_string());
        let fits = self.run(move || {
            let parsed = PasswordHash::new(&stored).map_err(|error| PasswordError(error.to_string()))?;
            Ok(argon()?.verify_password(password.as_bytes(), &parsed).is_ok())
        });
        Ok(fits.await? && known)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, PasswordError> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let closed = |_| PasswordError("stopping".into());
        let _place = self.places.acquire().await.map_err(closed)?;
        tokio::task::spawn_blocking(work).await.map_err(|error| PasswordError(error.to_string()))?
    }
}
