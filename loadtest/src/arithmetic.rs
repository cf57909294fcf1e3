//! How many TLS 1.3 handshakes a second of a core could answer if it did nothing but their arithmetic.
//!
//! Called by `modes`. A server that checks a client certificate computes, with P-256 and X25519: two verifications
//! (the authority's signature and the client's), one signature of its own, one key exchange. What a server reaches
//! can be held against this figure of the same minute on the same machine, whatever the host leaves of its cores.

use crate::meter::thread_cpu_s;
use anyhow::{Context, Result};
use rcgen::KeyPair;
use rustls::SignatureScheme;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group, sign};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;
/// As long as the server's transcript hash with its padding.
const MESSAGE: [u8; 130] = [0x20; 130];
/// How long each core computes.
const TIME: Duration = Duration::from_millis(300);

/// Measures all cores at once, as they are busy during a burst of connects; answers one core's mean.
///
/// # Errors
/// The cryptography refuses its own key.
pub(crate) fn handshakes_per_cpu_s() -> Result<f64> {
    let cores = thread::available_parallelism()?.get();
    let threads: Vec<_> = (0..cores).map(|_| thread::spawn(one_core)).collect();
    let mut sum = 0.0;
    for thread in threads {
        sum += thread.join().ok().context("a thread of the arithmetic panicked")??;
    }
    Ok(sum / cores as f64)
}

fn one_core() -> Result<f64> {
    let provider = aws_lc_rs::default_provider();
    let pair = KeyPair::generate()?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    let signer = sign::any_ecdsa_type(&der)?.choose_scheme(&[SCHEME]).context("no P-256 signer")?;
    let peer = kx_group::X25519.start()?;
    let cpu_s = || thread_cpu_s(Path::new("/proc/thread-self")).context("no schedstat of this thread");
    let (began, cpu_began, mut handshakes) = (Instant::now(), cpu_s()?, 0_u32);
    while began.elapsed() < TIME {
        let signature = signer.sign(&MESSAGE)?;
        verify(&provider, pair.public_key_raw(), &signature)?;
        verify(&provider, pair.public_key_raw(), &signature)?;
        kx_group::X25519.start_and_complete(peer.pub_key())?;
        handshakes += 1;
    }
    Ok(f64::from(handshakes) / (cpu_s()? - cpu_began))
}

fn verify(provider: &CryptoProvider, key: &[u8], signature: &[u8]) -> Result<()> {
    let all = provider.signature_verification_algorithms.mapping;
    let (_, algorithms) = all.iter().find(|(scheme, _)| *scheme == SCHEME).context("no P-256 verifier")?;
    let algorithm = algorithms.first().context("no P-256 verifier")?;
    algorithm
        .verify_signature(key, &MESSAGE, signature)
        .ok()
        .context("a signature of this key is not accepted")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_handshake_can_be_computed() {
        assert!(super::handshakes_per_cpu_s().unwrap() > 0.0);
    }
}
