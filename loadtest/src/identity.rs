//! Who the devices are: names, tokens, client certificates.
//!
//! Called by `engine`. Tokens come from a file of `device,token` lines or from a prefix. Certificates are signed here
//! with the device CA's key, one key pair for all devices, so that ten thousand of them cost little; or each device
//! has a certificate and a key of its own, from a file of identities (`enrol::file`).
//! Promise: a connection holds no copy of certificate or key; a handshake gets them for its own time.

use crate::enrol::file::Entries;
use anyhow::{Context, Result, bail};
use muster_wire::{DeviceId, DownClass, TenantId, Topic, UpClass};
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustls::SignatureScheme;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{ClientConfig, RootCertStore};
use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

/// One device's identity.
pub(crate) struct Identity {
    pub(crate) client_id: String,
    /// User name and token; none where the certificate says who it is.
    pub(crate) login: Option<(String, String)>,
    /// Its place in the list of tenants.
    pub(crate) tenant: u16,
    pub(crate) device: DeviceId,
}

/// A device that is registered at the server.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Member {
    /// Place in the list of tenants.
    pub(crate) tenant: u16,
    pub(crate) name: String,
    pub(crate) token: Option<String>,
}

/// All devices' identities.
pub(crate) struct Identities {
    tenants: Vec<TenantId>,
    devices: Vec<Identity>,
    tls: Option<Tls>,
}

/// How devices speak TLS.
struct Tls {
    base: ClientConfig,
    server: ServerName<'static>,
    /// None where tokens say who it is.
    keys: Option<Arc<Keys>>,
}

/// What devices prove themselves with, in their order.
#[derive(Debug)]
enum Keys {
    /// Certificates that were signed here, all for one key.
    Shared { certificates: Vec<CertificateDer<'static>>, key: Arc<dyn SigningKey> },
    /// A chain and a key each.
    Own(Vec<OwnKey>),
}

/// A device's own chain and key, as bytes: only a handshake needs the key ready to sign.
#[derive(Debug)]
pub(crate) struct OwnKey {
    /// The device's certificate, and those between it and the authority.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl OwnKey {
    /// Makes the key ready to sign.
    ///
    /// # Errors
    /// It is of no kind that is known.
    pub(crate) fn ready(&self) -> Result<CertifiedKey, rustls::Error> {
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&self.key)?;
        Ok(CertifiedKey::new(self.chain.clone(), key))
    }
}

/// Gives a handshake its device's certificate and key.
#[derive(Debug)]
struct Resolver {
    keys: Arc<Keys>,
    number: u32,
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let number = self.number as usize;
        let found = match &*self.keys {
            Keys::Shared { certificates, key } => {
                CertifiedKey::new(vec![certificates.get(number)?.clone()], key.clone())
            }
            // A key was tried when it was read.
            Keys::Own(all) => all.get(number)?.ready().ok()?,
        };
        Some(Arc::new(found))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Where devices' tokens come from.
#[derive(Clone, Debug)]
pub(crate) enum Tokens<'a> {
    /// Nobody asks for one.
    None,
    /// The prefix and the device's name.
    Prefix(&'a str),
    /// Lines of `device,token`.
    File(&'a Path),
}

/// Names one device of a generated fleet.
pub(crate) fn generated_name(number: u32) -> String {
    format!("d{number:05}")
}

impl Identities {
    /// Makes `count` identities.
    ///
    /// # Errors
    /// A name is not valid, or the token file holds too few lines.
    pub(crate) fn new(tenant: &str, count: u32, tokens: &Tokens<'_>) -> Result<Self> {
        let names: Vec<(String, Option<String>)> = match tokens {
            Tokens::None => (0..count).map(|number| (generated_name(number), None)).collect(),
            Tokens::Prefix(prefix) => (0..count)
                .map(|number| {
                    let name = generated_name(number);
                    let token = format!("{prefix}{name}");
                    (name, Some(token))
                })
                .collect(),
            Tokens::File(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                let lines =
                    text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("device,"));
                let pair = |line: &str| -> Result<(String, Option<String>)> {
                    let (name, token) = line.trim().split_once(',').context("expected `device,token`")?;
                    Ok((name.to_owned(), Some(token.to_owned())))
                };
                lines.take(count as usize).map(pair).collect::<Result<_>>()?
            }
        };
        if names.len() < count as usize {
            bail!("the token file names {} devices, {count} are needed", names.len());
        }
        let member = |(name, token)| Member { tenant: 0, name, token };
        Self::fleet(&[tenant.to_owned()], names.into_iter().map(member).collect())
    }

    /// The identities of registered devices of several tenants.
    ///
    /// # Errors
    /// A name is not valid.
    pub(crate) fn fleet(tenants: &[String], members: Vec<Member>) -> Result<Self> {
        let tenants = tenants.iter().map(|tenant| TenantId::parse(tenant)).collect::<Result<Vec<_>, _>>()?;
        let identity = |member: Member| -> Result<Identity> {
            let Member { tenant, name, token } = member;
            let owner = tenants.get(usize::from(tenant)).context("a device of no tenant")?;
            let device = DeviceId::parse(&name)?;
            let login = token.map(|token| (format!("{owner}/{name}"), token));
            Ok(Identity { client_id: name, login, tenant, device })
        };
        let devices = members.into_iter().map(identity).collect::<Result<_>>()?;
        Ok(Self { tenants, devices, tls: None })
    }

    /// Lets the devices speak TLS; with the device CA's key each gets a certificate of its own.
    ///
    /// # Errors
    /// A file cannot be read, or holds no certificate or key.
    pub(crate) fn with_tls(mut self, server: &str, ca: &Path, ca_key: Option<&Path>) -> Result<Self> {
        let base = client_config(ca)?;
        let server = ServerName::try_from(server.to_owned())?;
        let keys = match ca_key {
            None => None,
            Some(ca_key) => {
                let keys = self.sign(ca, ca_key)?;
                self.devices.iter_mut().for_each(|device| device.login = None);
                Some(Arc::new(keys))
            }
        };
        self.tls = Some(Tls { base, server, keys });
        Ok(self)
    }

    /// Gives each device its own certificate and key of a file of identities; it speaks TLS already.
    ///
    /// # Errors
    /// The file cannot be read, does not name a device, or holds no certificate or key for it.
    pub(crate) fn with_own_keys(mut self, file: &Path) -> Result<Self> {
        let name = |device: &Identity| {
            (self.tenants[usize::from(device.tenant)].as_str().to_owned(), device.device.as_str().to_owned())
        };
        let mut missing: HashMap<(String, String), usize> =
            self.devices.iter().enumerate().map(|(at, device)| (name(device), at)).collect();
        let mut found: Vec<Option<OwnKey>> = self.devices.iter().map(|_| None).collect();
        for entry in Entries::open(file)? {
            let entry = entry?;
            if let Some(at) = missing.remove(&(entry.tenant.clone(), entry.device.clone())) {
                found[at] = Some(entry.own_key()?);
            }
            if missing.is_empty() {
                break;
            }
        }
        if let Some((tenant, device)) = missing.into_keys().next() {
            bail!("{} does not name {tenant}/{device}", file.display());
        }
        self.devices.iter_mut().for_each(|device| device.login = None);
        let tls = self.tls.as_mut().context("certificates are of no use without TLS")?;
        tls.keys = Some(Arc::new(Keys::Own(found.into_iter().flatten().collect())));
        Ok(self)
    }

    /// Signs a certificate with the SAN `muster://tenant/device` for each device.
    fn sign(&self, ca: &Path, ca_key: &Path) -> Result<Keys> {
        let ca_pem = std::fs::read_to_string(ca).with_context(|| cannot_read(ca))?;
        let key_pem = std::fs::read_to_string(ca_key).with_context(|| cannot_read(ca_key))?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, KeyPair::from_pem(&key_pem)?)?;
        let pair = KeyPair::generate()?;
        let mut certificates = Vec::with_capacity(self.devices.len());
        for device in &self.devices {
            let mut params = CertificateParams::default();
            let tenant = &self.tenants[usize::from(device.tenant)];
            let name = format!("muster://{tenant}/{}", device.device);
            params.subject_alt_names = vec![SanType::URI(name.try_into()?)];
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            params.distinguished_name.push(rcgen::DnType::CommonName, device.device.as_str());
            certificates.push(params.signed_by(&pair, &issuer)?.der().clone());
        }
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)?;
        Ok(Keys::Shared { certificates, key })
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.devices.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn device(&self, number: u32) -> &Identity {
        &self.devices[number as usize]
    }

    /// Writes the device's topic of a class.
    pub(crate) fn topic(&self, number: u32, class: UpClass, out: &mut String) {
        out.clear();
        let device = &self.devices[number as usize];
        let topic = Topic::up(&self.tenants[usize::from(device.tenant)], &device.device, class);
        write!(out, "{topic}").expect("writing to a String cannot fail");
    }

    /// Writes the filter of the device's flow control.
    pub(crate) fn down_filter(&self, number: u32, out: &mut String) {
        out.clear();
        let device = &self.devices[number as usize];
        let topic = Topic::down(&self.tenants[usize::from(device.tenant)], &device.device, DownClass::Credit);
        write!(out, "{topic}").expect("writing to a String cannot fail");
    }

    /// Whether a topic is the device's flow control.
    pub(crate) fn is_credit_of(&self, number: u32, topic: &str) -> bool {
        let mut own = String::new();
        self.down_filter(number, &mut own);
        own == topic
    }

    /// The TLS settings of one device; none for plain TCP.
    pub(crate) fn tls(&self, number: u32) -> Result<Option<(Arc<ClientConfig>, ServerName<'static>)>> {
        let Some(tls) = &self.tls else { return Ok(None) };
        let mut config = tls.base.clone();
        if let Some(keys) = &tls.keys {
            config.client_auth_cert_resolver = Arc::new(Resolver { keys: keys.clone(), number });
        }
        Ok(Some((Arc::new(config), tls.server.clone())))
    }
}

/// TLS that trusts a CA, without a client certificate.
///
/// # Errors
/// The file cannot be read, or holds no certificate.
pub(crate) fn client_config(ca: &Path) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).with_context(|| cannot_read(ca))? {
        roots.add(certificate.with_context(|| cannot_read(ca))?)?;
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Every handshake is a full one: that is what is measured.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The cryptography of every connection. The hybrid default costs 2.5 times the bytes of a handshake.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    Arc::new(CryptoProvider { kx_groups, ..rustls::crypto::aws_lc_rs::default_provider() })
}

fn cannot_read(path: &Path) -> String {
    format!("cannot read {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_tokens_come_from_a_prefix_or_a_file() {
        let identities = Identities::new("bench", 2, &Tokens::Prefix("t-")).unwrap();
        let login = identities.device(1).login.as_ref().unwrap();
        assert_eq!((login.0.as_str(), login.1.as_str()), ("bench/d00001", "t-d00001"));
        let mut topic = String::new();
        identities.topic(1, UpClass::Telemetry, &mut topic);
        assert_eq!(topic, "muster/bench/d00001/up/telemetry");
        assert!(identities.is_credit_of(1, "muster/bench/d00001/dn/credit"));
        assert!(!identities.is_credit_of(0, "muster/bench/d00001/dn/credit"));

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "device,token\nd00000,a\nd00001,b,c\n").unwrap();
        let identities = Identities::new("bench", 2, &Tokens::File(file.path())).unwrap();
        assert_eq!(identities.device(1).login.as_ref().unwrap().1, "b,c");
        assert!(Identities::new("bench", 3, &Tokens::File(file.path())).is_err());
        assert!(Identities::new("Bench", 1, &Tokens::None).is_err());
    }

    /// What a device shows in a handshake.
    fn shown(identities: &Identities, number: u32) -> Arc<CertifiedKey> {
        let (config, _) = identities.tls(number).unwrap().unwrap();
        config.client_auth_cert_resolver.resolve(&[], &[]).unwrap()
    }

    #[test]
    fn each_device_shows_its_own_certificate_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, ca_key, file) = (dir.path().join("ca"), dir.path().join("ca.key"), dir.path().join("ids"));
        let pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        std::fs::write(&ca, params.self_signed(&pair).unwrap().pem()).unwrap();
        std::fs::write(&ca_key, pair.serialize_pem()).unwrap();
        let identities = || Identities::new("bench", 2, &Tokens::Prefix("t-")).unwrap();

        // Signed here: certificates of their own, for one key.
        let signed = identities().with_tls("localhost", &ca, Some(&ca_key)).unwrap();
        let (one, other) = (shown(&signed, 0), shown(&signed, 1));
        assert!(one.cert != other.cert && one.key.public_key() == other.key.public_key());
        assert!(one.keys_match().is_ok() && signed.device(0).login.is_none());

        // From a file, in another order and among others.
        let mut writer = crate::enrol::file::Writer::begin(&file).unwrap();
        let mut keys = std::collections::BTreeMap::new();
        for (at, name) in ["d00001", "d00007", "d00000"].into_iter().enumerate() {
            let key = KeyPair::generate().unwrap();
            let pem = CertificateParams::default().self_signed(&key).unwrap().pem();
            let entry = crate::enrol::file::Entry::certified("bench", name, pem, key.serialize_pem());
            writer.put(at, &entry).unwrap();
            keys.insert(name, rcgen::PublicKeyData::subject_public_key_info(&key));
        }
        writer.finish().unwrap();
        let own = identities().with_tls("localhost", &ca, None).unwrap().with_own_keys(&file).unwrap();
        for (number, name) in [(0, "d00000"), (1, "d00001")] {
            let shown = shown(&own, number);
            assert!(shown.keys_match().is_ok() && own.device(number).login.is_none());
            assert_eq!(shown.key.public_key().unwrap().as_ref(), &keys[name][..]);
        }
        let more = Identities::new("bench", 3, &Tokens::None).unwrap();
        let more = more.with_tls("localhost", &ca, None).unwrap().with_own_keys(&file);
        let error = more.map(|_| ()).unwrap_err().to_string();
        assert!(error.ends_with(" does not name bench/d00002"), "{error}");
    }
}
