//! Who a client is: from its certificate, or from user name and password.
//!
//! Called by `connect` once per CONNECT, and by `live` when a connection enters its map, when the directory
//! changed and as time passes. It asks the directory each time, so a resumed TLS session or an old certificate
//! is no way around a disabled device.
//! A client with a certificate is what the certificate says; its login is not looked at.

use super::reason::ConnectRefusal;
use super::tls::PeerCertificate;
use crate::devices::directory::{Directory, TokenHash, token_hash};
use muster_wire::{DeviceId, TenantId};

/// The user name of an integration client; its password is an API token.
pub(crate) const INTEGRATION_USER: &str = "api";

/// What a client proved its identity with; enough to check it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credential {
    /// A client certificate, by serial.
    Certificate { serial: Box<[u8]>, expires_at_us: i64 },
    /// A device token.
    DeviceToken(Box<TokenHash>),
    /// An API token.
    ApiToken(Box<TokenHash>),
}

/// A client's name and proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A device: publishes below its own `up/`.
    Device { tenant: TenantId, device: DeviceId, credential: Credential },
    /// A tenant's own software: subscribes to the tenant's `up/` topics.
    Integration { tenant: TenantId, token_id: Box<str>, credential: Credential },
}

fn equal_in_constant_time(left: &TokenHash, right: &TokenHash) -> bool {
    left.iter().zip(right).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

fn parse_name(name: &str) -> Option<(TenantId, DeviceId)> {
    let (tenant, device) = name.split_once('/')?;
    Some((TenantId::parse(tenant).ok()?, DeviceId::parse(device).ok()?))
}

/// Decides who a client is.
///
/// # Errors
/// Why it is nobody that may connect.
pub(crate) fn identify(
    directory: &Directory,
    now_us: i64,
    certificate: Option<PeerCertificate>,
    login: Option<&(String, String)>,
) -> Result<Identity, ConnectRefusal> {
    let identity = match (certificate, login) {
        (Some(certificate), _) => by_certificate(certificate)?,
        (None, Some((user, password))) if user == INTEGRATION_USER => {
            let hash = token_hash(password);
            let token = directory.integration(&hash).ok_or(ConnectRefusal::BadLogin)?;
            let credential = Credential::ApiToken(Box::new(hash));
            Identity::Integration { tenant: token.tenant, token_id: token.token_id, credential }
        }
        (None, Some((user, password))) => {
            let (tenant, device) = parse_name(user).ok_or(ConnectRefusal::BadLogin)?;
            let credential = Credential::DeviceToken(Box::new(token_hash(password)));
            Identity::Device { tenant, device, credential }
        }
        (None, None) => return Err(ConnectRefusal::NoCredentials),
    };
    check(directory, now_us, &identity)?;
    Ok(identity)
}

fn by_certificate(certificate: PeerCertificate) -> Result<Identity, ConnectRefusal> {
    let name = certificate.name.as_deref().and_then(parse_name);
    let (tenant, device) = name.ok_or(ConnectRefusal::BadCertificate)?;
    let PeerCertificate { serial, expires_at_us, .. } = certificate;
    Ok(Identity::Device { tenant, device, credential: Credential::Certificate { serial, expires_at_us } })
}

/// Checks that an identity may be connected now.
///
/// # Errors
/// Why not.
pub(crate) fn check(directory: &Directory, now_us: i64, identity: &Identity) -> Result<(), ConnectRefusal> {
    if is_expired(directory, now_us, identity) {
        return Err(match identity {
            Identity::Device { .. } => ConnectRefusal::BadCertificate,
            Identity::Integration { .. } => ConnectRefusal::BadLogin,
        });
    }
    match identity {
        Identity::Device { tenant, device, credential } => {
            let known = directory.lookup(tenant.as_str(), device.as_str());
            match credential {
                Credential::Certificate { serial, .. } => {
                    if directory.is_cert_revoked(serial) {
                        return Err(ConnectRefusal::BadCertificate);
                    }
                }
                Credential::DeviceToken(hash) => {
                    let token = known.and_then(|device| device.token_sha256);
                    if !token.is_some_and(|token| equal_in_constant_time(&token, hash)) {
                        return Err(ConnectRefusal::BadLogin);
                    }
                }
                Credential::ApiToken(_) => return Err(ConnectRefusal::BadLogin),
            }
            if known.is_some_and(|device| device.enabled) { Ok(()) } else { Err(ConnectRefusal::Disabled) }
        }
        Identity::Integration { tenant, credential, .. } => {
            let Credential::ApiToken(hash) = credential else { return Err(ConnectRefusal::BadLogin) };
            let token = directory.integration(hash).filter(|token| token.tenant == *tenant);
            token.map(|_| ()).ok_or(ConnectRefusal::BadLogin)
        }
    }
}

/// Whether the proof's time is over. Cheap for devices: it is asked for every connection once a minute.
pub(crate) fn is_expired(directory: &Directory, now_us: i64, identity: &Identity) -> bool {
    let until_us = match identity {
        Identity::Device { credential: Credential::Certificate { expires_at_us, .. }, .. } => {
            Some(*expires_at_us)
        }
        Identity::Integration { credential: Credential::ApiToken(hash), .. } => {
            directory.integration(hash).and_then(|token| token.expires_at_us)
        }
        Identity::Device { .. } | Identity::Integration { .. } => None,
    };
    until_us.is_some_and(|until_us| until_us <= now_us)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::directory::{DeviceAuth, IntegrationToken};

    const NOW: i64 = 1_000_000;

    fn directory() -> Directory {
        let directory = Directory::new();
        let tenant = TenantId::parse("acme").unwrap();
        let device = |id: &str| DeviceId::parse(id).unwrap();
        let auth = DeviceAuth { enabled: true, token_sha256: Some(token_hash("secret")) };
        directory.set_device(&tenant, &device("on"), auth);
        directory.set_device(&tenant, &device("off"), DeviceAuth { enabled: false, ..auth });
        directory.set_device(&tenant, &device("no-token"), DeviceAuth { enabled: true, token_sha256: None });
        let token =
            |expires_at_us| IntegrationToken { tenant: tenant.clone(), token_id: "t1".into(), expires_at_us };
        directory.set_integration(token_hash("api-good"), token(Some(NOW + 1)));
        directory.set_integration(token_hash("api-old"), token(Some(NOW)));
        directory.revoke_cert(&[66]);
        directory
    }

    fn by_login(user: &str, password: &str) -> Result<Identity, ConnectRefusal> {
        identify(&directory(), NOW, None, Some(&(user.to_owned(), password.to_owned())))
    }

    fn by_cert(name: Option<&str>, serial: u8, expires_at_us: i64) -> Result<Identity, ConnectRefusal> {
        let certificate =
            PeerCertificate { name: name.map(Into::into), serial: [serial].into(), expires_at_us };
        // The login beside it would be accepted, and must not matter.
        identify(&directory(), NOW, Some(certificate), Some(&("acme/on".to_owned(), "secret".to_owned())))
    }

    #[test]
    fn a_login_is_a_device_with_its_token_or_an_api_token() {
        assert!(matches!(by_login("acme/on", "secret"), Ok(Identity::Device { .. })));
        assert!(matches!(by_login("api", "api-good"), Ok(Identity::Integration { .. })));
        for (user, password, expect) in [
            ("acme/on", "wrong", ConnectRefusal::BadLogin),
            ("acme/on", "", ConnectRefusal::BadLogin),
            ("acme/no-token", "", ConnectRefusal::BadLogin),
            ("acme/unknown", "secret", ConnectRefusal::BadLogin),
            ("other/on", "secret", ConnectRefusal::BadLogin),
            ("acme/off", "secret", ConnectRefusal::Disabled),
            ("acme/off", "wrong", ConnectRefusal::BadLogin),
            ("acme", "secret", ConnectRefusal::BadLogin),
            ("acme/on/x", "secret", ConnectRefusal::BadLogin),
            ("api", "secret", ConnectRefusal::BadLogin),
            ("api", "api-old", ConnectRefusal::BadLogin),
        ] {
            assert_eq!(by_login(user, password), Err(expect), "{user} {password}");
        }
        assert_eq!(identify(&directory(), NOW, None, None), Err(ConnectRefusal::NoCredentials));
    }

    #[test]
    fn a_certificate_is_what_it_names_while_it_is_good() {
        assert!(matches!(by_cert(Some("acme/on"), 1, NOW + 1), Ok(Identity::Device { .. })));
        for (name, serial, expires_at_us, expect) in [
            (None, 1, NOW + 1, ConnectRefusal::BadCertificate),
            (Some("acme"), 1, NOW + 1, ConnectRefusal::BadCertificate),
            (Some("acme/on"), 66, NOW + 1, ConnectRefusal::BadCertificate),
            (Some("acme/on"), 1, NOW, ConnectRefusal::BadCertificate),
            (Some("acme/off"), 1, NOW + 1, ConnectRefusal::Disabled),
            (Some("acme/unknown"), 1, NOW + 1, ConnectRefusal::Disabled),
        ] {
            assert_eq!(
                by_cert(name, serial, expires_at_us),
                Err(expect),
                "{name:?} {serial} {expires_at_us}"
            );
        }
    }
}
