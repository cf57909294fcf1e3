//! Client certificates that were verified before, so that a fleet that comes back is verified at half the price.
//!
//! Called by `tls`; `app` makes it, and puts other authorities in force ([`KnownCertificates::replace`]): what is known is
//! forgotten then. Of a full handshake's arithmetic a third is the authority's signature under the client's
//! certificate; for a certificate of the same bytes its answer cannot change while the authority stays. Everything
//! else is asked each time: the client still proves that it holds the key, the certificate must be in time, and the
//! registry decides on CONNECT whether its serial number still counts.
//!
//! Bounds: [`KNOWN_MAX`] certificates, those not seen for longest go first, half of them at a time. Nothing is kept over
//! a restart: then each is verified once more.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::mem;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Certificates that are remembered: 100 bytes each, and more than the devices of one server.
const KNOWN_MAX: usize = 1 << 17;

type Fingerprint = [u8; 32];
/// Seconds since 1970, both ends included.
type Validity = RangeInclusive<u64>;

/// Asks another verifier about a certificate once, and remembers a yes.
#[derive(Debug)]
pub struct KnownCertificates {
    verifier: RwLock<Arc<dyn ClientCertVerifier>>,
    known: Mutex<Known>,
}

/// Two generations: what is found in the older one moves to the younger, and the older one is dropped as a whole.
#[derive(Debug, Default)]
struct Known {
    /// How often the verifier was replaced.
    verifiers: u64,
    young: HashMap<Fingerprint, Validity>,
    old: HashMap<Fingerprint, Validity>,
}

impl Known {
    fn contains(&mut self, fingerprint: &Fingerprint, now: u64) -> bool {
        if let Some(validity) = self.young.get(fingerprint) {
            return validity.contains(&now);
        }
        let Some(validity) = self.old.remove(fingerprint) else { return false };
        let valid = validity.contains(&now);
        if valid {
            self.insert(*fingerprint, validity);
        }
        valid
    }

    fn insert(&mut self, fingerprint: Fingerprint, validity: Validity) {
        if self.young.len() >= KNOWN_MAX / 2 {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(fingerprint, validity);
    }
}

impl KnownCertificates {
    pub(super) fn new(verifier: Arc<dyn ClientCertVerifier>) -> Self {
        Self { verifier: RwLock::new(verifier), known: Mutex::default() }
    }

    /// Asks another verifier from now on; connections that are up are not asked again.
    pub(super) fn replace(&self, verifier: Arc<dyn ClientCertVerifier>) {
        *self.verifier.write().unwrap_or_else(PoisonError::into_inner) = verifier;
        let mut known = self.known();
        *known = Known { verifiers: known.verifiers + 1, ..Known::default() };
    }

    fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        self.verifier.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientCertVerifier for KnownCertificates {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let fingerprint = Sha256::digest(end_entity).into();
        let verifiers = {
            let mut known = self.known();
            if known.contains(&fingerprint, now.as_secs()) {
                return Ok(ClientCertVerified::assertion());
            }
            known.verifiers
        };
        let verified = self.verifier().verify_client_cert(end_entity, intermediates, now)?;
        // Behind an intermediate its own end counts too, so those are asked about every time.
        if intermediates.is_empty()
            && let Some(validity) = validity(end_entity)
        {
            // A verifier that was replaced meanwhile said yes: it is asked again.
            let mut known = self.known();
            if known.verifiers == verifiers {
                known.insert(fingerprint, validity);
            }
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier().verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier().verify_tls13_signature(message, certificate, signed)
    }

    /// None: clients show the one certificate that they have, and authorities may change.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier().supported_verify_schemes()
    }

    fn offer_client_auth(&self) -> bool {
        self.verifier().offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier().client_auth_mandatory()
    }
}

fn validity(certificate: &CertificateDer<'_>) -> Option<Validity> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let times = parsed.validity();
    let seconds = |time: i64| u64::try_from(time).ok();
    Some(seconds(times.not_before.timestamp())?..=seconds(times.not_after.timestamp())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
    use rustls::RootCertStore;
    use rustls::server::WebPkiClientVerifier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    /// Counts what is asked of the verifier behind.
    #[derive(Debug)]
    struct Counting(Arc<dyn ClientCertVerifier>, AtomicUsize);

    impl ClientCertVerifier for Counting {
        fn verify_client_cert(
            &self,
            end_entity: &CertificateDer<'_>,
            intermediates: &[CertificateDer<'_>],
            now: UnixTime,
        ) -> Result<ClientCertVerified, Error> {
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.verify_client_cert(end_entity, intermediates, now)
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            unreachable!("no handshake in these tests")
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            unreachable!("no handshake in these tests")
        }

        fn root_hint_subjects(&self) -> &[DistinguishedName] {
            self.0.root_hint_subjects()
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.supported_verify_schemes()
        }
    }

    /// An authority, and what stands before its verifier.
    struct Room {
        authority: CertifiedIssuer<'static, KeyPair>,
        counting: Arc<Counting>,
        known: KnownCertificates,
    }

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// A certificate for the year 2026.
    fn certificate(authority: &CertifiedIssuer<'static, KeyPair>) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(2027, 1, 1));
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(&KeyPair::generate().unwrap(), authority).unwrap().der().clone()
    }

    fn room() -> Room {
        let authority = authority();
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let provider = super::super::provider();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let counting = Arc::new(Counting(verifier, AtomicUsize::new(0)));
        Room { authority, known: KnownCertificates::new(counting.clone()), counting }
    }

    fn at(year: i32, month: u8) -> UnixTime {
        let seconds = date_time_ymd(year, month, 1).unix_timestamp();
        UnixTime::since_unix_epoch(Duration::from_secs(seconds.unsigned_abs()))
    }

    impl Room {
        fn accepts(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> bool {
            self.known.verify_client_cert(certificate, &[], now).is_ok()
        }

        fn asked(&self) -> usize {
            self.counting.1.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn a_certificate_is_verified_once_and_another_one_for_itself() {
        let room = room();
        let (one, two) = (certificate(&room.authority), certificate(&room.authority));
        for month in 2..6 {
            assert!(room.accepts(&one, at(2026, month)));
        }
        assert_eq!(room.asked(), 1);
        assert!(room.accepts(&two, at(2026, 2)));
        assert_eq!(room.asked(), 2);
    }

    #[test]
    fn a_known_certificate_is_refused_before_and_after_its_time() {
        let room = room();
        let certificate = certificate(&room.authority);
        assert!(room.accepts(&certificate, at(2026, 6)));
        assert!(!room.accepts(&certificate, at(2025, 12)));
        assert!(!room.accepts(&certificate, at(2027, 2)));
        assert_eq!(room.asked(), 3, "the verifier behind says why");
    }

    #[test]
    fn a_refused_certificate_is_not_remembered_and_its_bytes_count() {
        let room = room();
        let stranger = certificate(&authority());
        assert!(!room.accepts(&stranger, at(2026, 6)));
        assert!(!room.accepts(&stranger, at(2026, 6)));
        assert_eq!(room.asked(), 2);

        let known = certificate(&room.authority);
        assert!(room.accepts(&known, at(2026, 6)));
        let mut forged = known.to_vec();
        *forged.last_mut().unwrap() ^= 1;
        assert!(!room.accepts(&forged.into(), at(2026, 6)));
    }

    #[test]
    fn another_authority_makes_what_is_known_count_no_longer() {
        let (room, next) = (room(), room());
        let (old, new) = (certificate(&room.authority), certificate(&next.authority));
        assert!(room.accepts(&old, at(2026, 6)) && !room.accepts(&new, at(2026, 6)));
        room.known.replace(next.counting.clone());
        assert!(room.accepts(&new, at(2026, 6)) && !room.accepts(&old, at(2026, 6)));
    }

    #[test]
    fn behind_an_intermediate_is_asked_every_time() {
        let room = room();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let middle =
            CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &room.authority).unwrap();
        let certificate = certificate(&middle);
        for asked in 1..4 {
            let chain = [middle.der().clone()];
            assert!(room.known.verify_client_cert(&certificate, &chain, at(2026, 6)).is_ok());
            assert_eq!(room.asked(), asked);
        }
        assert!(!room.accepts(&certificate, at(2026, 6)), "without its chain it is a stranger's");
    }

    #[test]
    fn no_more_than_the_bound_are_remembered_and_those_in_use_stay() {
        let mut known = Known::default();
        let fingerprint = |number: usize| {
            let mut fingerprint = [0; 32];
            fingerprint[..8].copy_from_slice(&number.to_le_bytes());
            fingerprint
        };
        for number in 0..KNOWN_MAX * 3 {
            known.insert(fingerprint(number), 0..=10);
            assert!(known.contains(&fingerprint(0), 5), "in use, after {number}");
            assert!(known.young.len() + known.old.len() <= KNOWN_MAX);
        }
        assert!(!known.contains(&fingerprint(1), 5));
    }
}
