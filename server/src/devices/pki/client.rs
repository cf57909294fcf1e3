//! What a device shows on the enrolment listener: a certificate of ours, in time or past it.
//!
//! `app` gives [`ExpiredToo`] to that listener and to no other, so an expired certificate reaches two operations: enrolment,
//! which does not look at it, and renewal, which asks the registry whether it still counts. Everything but the end of its
//! time is checked as on the MQTT listener: signature, authority, use, the proof that the client holds the key.

use muster_wire::{DeviceId, TenantId};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use std::sync::Arc;
use std::time::Duration;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Asks another verifier, about an expired certificate as of its last second.
#[derive(Debug)]
pub struct ExpiredToo {
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ExpiredToo {
    /// Accepts what `verifier` accepts or would have accepted in its time.
    #[must_use]
    pub fn new(verifier: Arc<dyn ClientCertVerifier>) -> Self {
        Self { verifier }
    }
}

fn is_expiry(error: &Error) -> bool {
    let Error::InvalidCertificate(why) = error else { return false };
    matches!(why, CertificateError::Expired | CertificateError::ExpiredContext { .. })
}

/// The end of a certificate's time; none where it does not parse.
fn last_second(certificate: &CertificateDer<'_>) -> Option<UnixTime> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

impl ClientCertVerifier for ExpiredToo {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.verifier.verify_client_cert(end_entity, intermediates, now) {
            Err(error) if is_expiry(&error) => match last_second(end_entity).filter(|end| *end < now) {
                Some(end) => self.verifier.verify_client_cert(end_entity, intermediates, end),
                None => Err(error),
            },
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }

    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }
}

/// Whose certificate it is, by what stands in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceName {
    /// The tenant.
    pub tenant: TenantId,
    /// The device.
    pub device: DeviceId,
    /// Hex of the serial number's bytes.
    pub serial: String,
}

impl DeviceName {
    /// Reads a verified certificate; none where it is no device's.
    #[must_use]
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok()??;
        let uri = names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix("muster://"),
            _ => None,
        })?;
        let (tenant, device) = uri.split_once('/')?;
        let (tenant, device) = (TenantId::parse(tenant).ok()?, DeviceId::parse(device).ok()?);
        Some(Self { tenant, device, serial: hex::encode(certificate.raw_serial()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
        SanType, date_time_ymd,
    };
    use rustls::RootCertStore;
    use rustls::server::WebPkiClientVerifier;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn authority() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// A certificate for the year 2026.
    fn certificate(authority: &Authority, usage: ExtendedKeyUsagePurpose) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(2027, 1, 1));
        params.extended_key_usages = vec![usage];
        params.subject_alt_names = vec![SanType::URI("muster://acme/pump".try_into().unwrap())];
        params.signed_by(&KeyPair::generate().unwrap(), authority).unwrap().der().clone()
    }

    fn at(year: i32) -> UnixTime {
        let seconds = date_time_ymd(year, 6, 1).unix_timestamp();
        UnixTime::since_unix_epoch(Duration::from_secs(seconds.unsigned_abs()))
    }

    #[test]
    fn expiry_is_accepted_and_nothing_else() {
        let authority = authority();
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let strict = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let lenient = ExpiredToo::new(strict.clone());
        let own = certificate(&authority, ExtendedKeyUsagePurpose::ClientAuth);
        assert!(strict.verify_client_cert(&own, &[], at(2028)).is_err());
        for (year, good) in [(2025, false), (2026, true), (2028, true), (2035, true)] {
            assert_eq!(lenient.verify_client_cert(&own, &[], at(year)).is_ok(), good, "{year}");
        }
        let server = certificate(&authority, ExtendedKeyUsagePurpose::ServerAuth);
        let stranger = certificate(&super::tests::authority(), ExtendedKeyUsagePurpose::ClientAuth);
        let mut forged = own.to_vec();
        *forged.last_mut().unwrap() ^= 1;
        for (what, bad) in [("a server's", server), ("a stranger's", stranger), ("forged", forged.into())] {
            for year in [2026, 2028] {
                assert!(lenient.verify_client_cert(&bad, &[], at(year)).is_err(), "{what} in {year}");
            }
        }
    }

    #[test]
    fn a_device_is_read_from_its_name() {
        let authority = authority();
        let read = DeviceName::read(&certificate(&authority, ExtendedKeyUsagePurpose::ClientAuth)).unwrap();
        assert_eq!((read.tenant.as_str(), read.device.as_str()), ("acme", "pump"));
        assert!(!read.serial.is_empty());
        assert_eq!(DeviceName::read(authority.der()), None, "no name");
        assert_eq!(DeviceName::read(b"nonsense"), None);
    }
}
