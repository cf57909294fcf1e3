//! Identities in a file: a line of JSON for each device, made by `enrol`, or in bulk by whoever issues certificates.
//!
//! ```text
//! {"tenant": "acme", "device": "pump-1", "certificate_pem": "-----BEGIN ..", "key_pem": "-----BEGIN .."}
//! {"tenant": "acme", "device": "pump-2", "token": "mdt_.."}
//! ```
//!
//! `certificate_pem` is the device's certificate and, where there are any, those between it and the authority.
//! `run` reads the names, its sending parts read the keys. What is written is for its owner's eyes only (mode 0600)
//! and has its name once it is complete. Bounds: [`LINE_BYTES_MAX`], [`LINES_MAX`]; an error names line and field.

use crate::identity::{Member, OwnKey};
use crate::observe::provision::Login;
use anyhow::{Context, Result, anyhow, bail};
use muster_wire::{DeviceId, TenantId};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, Permissions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// The longest line, in bytes: a chain of several certificates and a key of 4,096 bits.
pub(crate) const LINE_BYTES_MAX: u64 = 32 * 1024;
/// The most lines: more devices than serials tell apart.
pub(crate) const LINES_MAX: u32 = 1 << 18;

/// One device's identity.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// File and line, for errors.
    place: String,
    pub(crate) tenant: String,
    pub(crate) device: String,
    pub(crate) certificate_pem: Option<String>,
    pub(crate) key_pem: Option<String>,
    pub(crate) token: Option<String>,
}

impl Entry {
    /// The entry of a device that was given a certificate.
    pub(crate) fn certified(tenant: &str, device: &str, certificate_pem: String, key_pem: String) -> Self {
        let (tenant, device) = (tenant.to_owned(), device.to_owned());
        let (certificate_pem, key_pem) = (Some(certificate_pem), Some(key_pem));
        Self { tenant, device, certificate_pem, key_pem, ..Self::default() }
    }

    fn parse(text: &str, place: String) -> Result<Self> {
        let fields: Map<String, Value> = serde_json::from_str(text).map_err(|error| {
            // Each line is a document of its own.
            let why = error.to_string().replace(" at line 1 column", ", at column");
            anyhow!("{place}: no JSON object: {why}")
        })?;
        let mut entry = Self { place, ..Self::default() };
        for (name, value) in fields {
            let Value::String(value) = value else { bail!("{}: {name}: expected a text", entry.place) };
            match name.as_str() {
                "tenant" => entry.tenant = value,
                "device" => entry.device = value,
                "certificate_pem" => entry.certificate_pem = Some(value),
                "key_pem" => entry.key_pem = Some(value),
                "token" => entry.token = Some(value),
                _ => bail!("{}: {name}: no field of an identity", entry.place),
            }
        }
        TenantId::parse(&entry.tenant).with_context(|| format!("{}: tenant", entry.place))?;
        DeviceId::parse(&entry.device).with_context(|| format!("{}: device", entry.place))?;
        Ok(entry)
    }

    fn field<'a>(&self, name: &str, value: &'a Option<String>) -> Result<&'a str> {
        value.as_deref().with_context(|| format!("{}: {name}: it is missing", self.place))
    }

    /// The device's chain and key.
    ///
    /// # Errors
    /// One is missing, or no PEM of its kind.
    pub(crate) fn own_key(&self) -> Result<OwnKey> {
        let pem = self.field("certificate_pem", &self.certificate_pem)?;
        // A copy takes no more memory than it has bytes.
        let exact = |found: CertificateDer<'static>| CertificateDer::from(found.as_ref().to_vec());
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(pem.as_bytes()).map(|found| found.map(exact)).collect();
        let chain = chain.map_err(|error| anyhow!("{}: certificate_pem: {error}", self.place))?;
        if chain.is_empty() {
            bail!("{}: certificate_pem: it holds no certificate", self.place);
        }
        let pem = self.field("key_pem", &self.key_pem)?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| anyhow!("{}: key_pem: {error}", self.place))?;
        Ok(OwnKey { chain, key })
    }

    /// Whether the device can prove itself so; its token, where that is the way.
    fn login(&mut self, login: Login) -> Result<Option<String>> {
        match login {
            Login::Token => {
                self.field("token", &self.token)?;
                Ok(self.token.take())
            }
            Login::Certificate => {
                let ready = self.own_key()?.ready();
                let ready = ready.map_err(|error| anyhow!("{}: key_pem: {error}", self.place))?;
                ready.keys_match().map_err(|error| {
                    anyhow!("{}: key_pem: it is not the key of certificate_pem: {error}", self.place)
                })?;
                Ok(None)
            }
        }
    }
}

/// The entries of a file, one after the other.
pub(crate) struct Entries {
    path: PathBuf,
    lines: BufReader<File>,
    number: u32,
}

impl Entries {
    /// Opens a file.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { path: path.to_owned(), lines: BufReader::new(file), number: 0 })
    }

    /// The next entry; lines without text are passed over.
    fn read(&mut self) -> Result<Option<Entry>> {
        let mut line = Vec::new();
        loop {
            self.number += 1;
            let place = || format!("{}, line {}", self.path.display(), self.number);
            read_line(&mut self.lines, &mut line).with_context(|| format!("cannot read {}", place()))?;
            if line.is_empty() {
                return Ok(None);
            }
            if line.len() as u64 > LINE_BYTES_MAX {
                bail!("{}: longer than {LINE_BYTES_MAX} bytes", place());
            }
            if self.number > LINES_MAX {
                bail!("{}: more than {LINES_MAX} lines", place());
            }
            let text = std::str::from_utf8(&line).with_context(|| format!("{}: no text", place()))?.trim();
            if !text.is_empty() {
                return Entry::parse(text, place()).map(Some);
            }
        }
    }
}

impl Iterator for Entries {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// Reads a line, or one byte more of it than a line may have.
fn read_line(from: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<usize> {
    line.clear();
    from.take(LINE_BYTES_MAX + 1).read_until(b'\n', line)
}

/// The devices of a file.
#[derive(Debug)]
pub(crate) struct Fleet {
    /// In the order of their first devices.
    pub(crate) tenants: Vec<String>,
    pub(crate) members: Vec<Member>,
}

/// The first `count` devices of a file, all able to prove themselves in one way. Keys stay in the file.
///
/// # Errors
/// The file cannot be read, holds fewer, names one twice, or an entry lacks something.
pub(crate) fn fleet(path: &Path, count: u32, login: Login) -> Result<Fleet> {
    let (mut tenants, mut places) = (Vec::new(), HashMap::new());
    let (mut members, mut seen) = (Vec::new(), HashSet::new());
    for entry in Entries::open(path)?.take(count as usize) {
        let mut entry = entry?;
        let token = entry.login(login)?;
        let Entry { place, tenant, device: name, .. } = entry;
        let known = places.get(&tenant).copied();
        let tenant = match known {
            Some(at) => at,
            None => {
                let at = u16::try_from(tenants.len()).map_err(|_| anyhow!("{place}: too many tenants"))?;
                places.insert(tenant.clone(), at);
                tenants.push(tenant);
                at
            }
        };
        if !seen.insert((tenant, name.clone())) {
            bail!("{place}: device: {name} was named before");
        }
        members.push(Member { tenant, name, token });
    }
    if members.len() < count as usize {
        let (path, found) = (path.display(), members.len());
        bail!("{path} names {found} devices, {count} are needed: give --devices {found}");
    }
    Ok(Fleet { tenants, members })
}

/// Writes entries in the order of their numbers, whichever is made first.
pub(crate) struct Writer {
    path: PathBuf,
    out: BufWriter<NamedTempFile>,
    next: usize,
    waiting: BTreeMap<usize, String>,
}

impl Writer {
    /// Begins a file, beside what `path` names now.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn begin(path: &Path) -> Result<Self> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::Builder::new().permissions(Permissions::from_mode(0o600)).tempfile_in(dir);
        let file = file.with_context(|| format!("cannot write into {}", dir.display()))?;
        let out = BufWriter::new(file);
        Ok(Self { path: path.to_owned(), out, next: 0, waiting: BTreeMap::new() })
    }

    /// Takes the entry with a number; each number from 0 comes once.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn put(&mut self, number: usize, entry: &Entry) -> Result<()> {
        let Entry { tenant, device, certificate_pem, key_pem, token, .. } = entry;
        let fields = [("certificate_pem", certificate_pem), ("key_pem", key_pem), ("token", token)];
        let mut line = Map::new();
        line.insert("tenant".to_owned(), Value::from(tenant.as_str()));
        line.insert("device".to_owned(), Value::from(device.as_str()));
        for (name, value) in fields {
            line.extend(value.as_deref().map(|value| (name.to_owned(), Value::from(value))));
        }
        self.waiting.insert(number, Value::Object(line).to_string());
        while let Some(line) = self.waiting.remove(&self.next) {
            writeln!(self.out, "{line}").with_context(|| self.cannot_write())?;
            self.next += 1;
        }
        Ok(())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn finish(self) -> Result<()> {
        let Self { path, out, .. } = self;
        let cannot_write = || format!("cannot write {}", path.display());
        let file = out.into_inner().map_err(|error| error.into_error()).with_context(cannot_write)?;
        file.as_file().sync_all().with_context(cannot_write)?;
        file.persist(&path).with_context(cannot_write)?;
        Ok(())
    }

    fn cannot_write(&self) -> String {
        format!("cannot write {}", self.path.display())
    }
}

#[cfg(test)]
mod tests;
