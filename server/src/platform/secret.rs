//! Secrets: random tokens and their stored form.

use sha2::{Digest, Sha256};

/// Fills an array from the operating system's generator.
///
/// # Panics
/// When the operating system has no random bytes, since no secret may be made then.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// A new bearer secret: `prefix` and 256 random bits as lowercase hex.
#[must_use]
pub fn new_token(prefix: &str) -> String {
    format!("{prefix}{}", hex::encode(random_bytes::<32>()))
}

/// The stored form of a random token. People's passwords take argon2 instead.
#[must_use]
pub fn token_sha256(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Compares without a data-dependent early exit.
#[must_use]
pub fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}
