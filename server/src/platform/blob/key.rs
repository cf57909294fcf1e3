//! Keys of blobs: `tenant/segment/.../name`.

use super::BlobError;
use muster_wire::TenantId;
use object_store::path::Path as ObjectPath;
use std::fmt;

/// Where a blob is: its tenant and a path below. Ordered by its bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<str>);

/// Everything of a tenant, or everything of it below a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(Box<str>);

impl Key {
    /// The longest path below the tenant.
    pub const PATH_BYTES_MAX: usize = 512;
    /// The most segments below the tenant.
    pub const SEGMENTS_MAX: usize = 12;
    /// The longest segment: a folder's upload gets a suffix, and names have 255 bytes.
    pub const SEGMENT_BYTES_MAX: usize = 200;

    /// The key of a tenant's blob.
    ///
    /// # Errors
    /// The path has an empty segment, one that begins with a dot (`..` included), a character besides
    /// `A-Z a-z 0-9 . _ -`, or is too long.
    pub fn new(tenant: &TenantId, path: &str) -> Result<Self, BlobError> {
        match checked(path) {
            Ok(()) => Ok(Self(format!("{tenant}/{path}").into())),
            Err(why) => Err(BlobError::Key { path: path.chars().take(80).collect(), why }),
        }
    }

    /// A key as a store lists it; none where it is not one of ours.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (tenant, path) = text.split_once('/')?;
        Self::new(&TenantId::parse(tenant).ok()?, path).ok()
    }

    /// `tenant/segment/.../name`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn object(&self) -> ObjectPath {
        ObjectPath::from(&*self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Prefix {
    /// All of a tenant.
    #[must_use]
    pub fn of(tenant: &TenantId) -> Self {
        Self(tenant.as_str().into())
    }

    /// What a tenant has below a path of whole segments.
    ///
    /// # Errors
    /// As [`Key::new`].
    pub fn below(tenant: &TenantId, path: &str) -> Result<Self, BlobError> {
        Key::new(tenant, path).map(|key| Self(key.0))
    }

    /// Without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn object(&self) -> ObjectPath {
        ObjectPath::from(&*self.0)
    }

    /// As a store lists it.
    pub(super) fn listed(path: &ObjectPath) -> Self {
        Self(path.as_ref().into())
    }

    /// The first prefix below this one on the way to another; none where that is not below.
    pub(super) fn towards(&self, other: &Self) -> Option<Self> {
        let rest = other.0.strip_prefix(&*self.0)?.strip_prefix('/')?;
        let end = rest.find('/').unwrap_or(rest.len());
        Some(Self(other.0[..self.0.len() + 1 + end].into()))
    }
}

fn checked(path: &str) -> Result<(), &'static str> {
    if path.len() > Key::PATH_BYTES_MAX || path.split('/').count() > Key::SEGMENTS_MAX {
        return Err("it is too long");
    }
    for segment in path.split('/') {
        match segment.as_bytes() {
            [] => return Err("a segment is empty"),
            [b'.', ..] => return Err("a segment begins with a dot"),
            bytes if bytes.len() > Key::SEGMENT_BYTES_MAX => return Err("a segment is too long"),
            bytes if !bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b)) => {
                return Err("a segment may hold A-Z, a-z, 0-9, dot, underscore and hyphen only");
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_cannot_leave_its_tenant_and_has_bounds() {
        let tenant = TenantId::parse("acme").unwrap();
        let key = Key::new(&tenant, "exports/j-1/readings-00001.ndjson.gz").unwrap();
        assert_eq!(key.as_str(), "acme/exports/j-1/readings-00001.ndjson.gz");
        assert_eq!(Key::parse(key.as_str()), Some(key));
        let segment = |bytes: usize| "a".repeat(bytes);
        let longest = [segment(200), segment(200), segment(110)].join("/");
        assert_eq!(longest.len(), Key::PATH_BYTES_MAX);
        for good in ["a", "a.b_c-D", &longest, &["a"; Key::SEGMENTS_MAX].join("/")] {
            assert!(Key::new(&tenant, good).is_ok(), "{good}");
        }
        let wrong = [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            "..",
            "../other/x",
            "a/../../other/x",
            ".",
            "a/.",
            ".hidden",
            "a/..b",
            "a\\..\\b",
            "a b",
            "a#1",
            "a%2e",
            "ä",
            "a\0",
            &segment(201),
            &format!("{longest}a"),
            &["a"; Key::SEGMENTS_MAX + 1].join("/"),
        ];
        for wrong in wrong {
            let error = Key::new(&tenant, wrong);
            assert!(matches!(error, Err(BlobError::Key { .. })), "{wrong:?}: {error:?}");
            assert!(Prefix::below(&tenant, wrong).is_err(), "{wrong:?}");
        }
        for foreign in ["acme", "Acme/x", "../x", "/acme/x", "acme/../x"] {
            assert_eq!(Key::parse(foreign), None, "{foreign}");
        }
    }
}
