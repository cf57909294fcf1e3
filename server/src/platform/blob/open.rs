//! From the configuration to a store.

use super::http::Connector;
use super::{BlobError, TRIES};
use object_store::aws::{AmazonS3Builder, AwsCredential};
use object_store::client::CredentialProvider;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(1);
/// No further try after it.
const RETRY_TIME_MAX: Duration = Duration::from_secs(20);
/// The largest secret file.
const SECRET_BYTES_MAX: u64 = 4096;

/// `file:/a/folder` or `s3://bucket/prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobUrl {
    /// A folder; a relative path counts from the working directory.
    Folder(PathBuf),
    /// A bucket of an S3 server.
    S3 {
        /// Its name.
        bucket: String,
        /// What comes before each key; may be empty.
        prefix: String,
    },
}

impl FromStr for BlobUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "expected file:/a/folder or s3://bucket/prefix";
        if let Some(path) = text.strip_prefix("file://").or_else(|| text.strip_prefix("file:")) {
            if path.is_empty() {
                return Err(format!("{expected}: the folder is missing"));
            }
            return Ok(Self::Folder(path.into()));
        }
        let Some(rest) = text.strip_prefix("s3://") else { return Err(expected.to_owned()) };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(is_name) {
            return Err(format!("{expected}: a bucket's name has 3 to 63 of a-z, 0-9, dot and hyphen"));
        }
        let prefix = prefix.trim_end_matches('/');
        let is_segment = |segment: &str| {
            !segment.is_empty()
                && !segment.starts_with('.')
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if !prefix.is_empty() && (prefix.len() > 128 || !prefix.split('/').all(is_segment)) {
            return Err(format!("{expected}: the prefix has at most 128 of A-Z, a-z, 0-9, dot, _, - and /"));
        }
        Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for BlobUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "file:{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

impl serde::Serialize for BlobUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for BlobUrl {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where blobs are and how to get there.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder or the bucket.
    pub url: BlobUrl,
    /// The S3 server; absent: Amazon's of the region.
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: String,
    /// Who asks.
    pub access_key_id: Option<String>,
    /// Holds the secret; read for each request, so that a new one needs no restart.
    pub secret_key_file: Option<PathBuf>,
    /// The authorities of the server's certificate, as PEM; absent: the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether `endpoint` may be without TLS.
    pub allow_http: bool,
}

impl Options {
    /// A folder.
    #[must_use]
    pub fn folder(path: &Path) -> Self {
        Self {
            url: BlobUrl::Folder(path.to_owned()),
            endpoint: None,
            region: "us-east-1".to_owned(),
            access_key_id: None,
            secret_key_file: None,
            ca_file: None,
            allow_http: false,
        }
    }
}

pub(super) struct Opened {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) folder: Option<Arc<Path>>,
    pub(super) shown: String,
}

pub(super) fn open(options: &Options) -> Result<Opened, BlobError> {
    match &options.url {
        BlobUrl::Folder(path) => open_folder(path),
        BlobUrl::S3 { bucket, prefix } => open_s3(options, bucket, prefix),
    }
}

fn open_folder(path: &Path) -> Result<Opened, BlobError> {
    let fail = |why: String| BlobError::Config { key: "blob.url", why: format!("{}: {why}", path.display()) };
    std::fs::create_dir_all(path).map_err(|error| fail(error.to_string()))?;
    let path = path.canonicalize().map_err(|error| fail(error.to_string()))?;
    let store = LocalFileSystem::new_with_prefix(&path).map_err(|error| fail(error.to_string()))?;
    let shown = format!("file:{}", path.display());
    Ok(Opened { store: Arc::new(store.with_fsync(true)), folder: Some(path.into()), shown })
}

/// Whether a folder is there and may be written to.
pub(super) fn check_folder(path: &Path) -> Result<(), BlobError> {
    use rustix::fs::Access;
    let access = rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK);
    access.map_err(|error| match error {
        rustix::io::Errno::ACCESS | rustix::io::Errno::ROFS => {
            BlobError::Refused(format!("{}: {error}", path.display()))
        }
        error => BlobError::Unreachable(format!("{}: {error}", path.display())),
    })
}

fn open_s3(options: &Options, bucket: &str, prefix: &str) -> Result<Opened, BlobError> {
    let secret = Secret {
        key_id: options.access_key_id.clone().ok_or_else(|| missing("blob.access_key_id"))?,
        path: options.secret_key_file.clone().ok_or_else(|| missing("blob.secret_key_file"))?,
    };
    secret.read().map_err(|why| BlobError::Config { key: "blob.secret_key_file", why })?;
    let tls = crate::platform::authorities::client_tls(options.ca_file.as_deref())
        .map_err(|why| BlobError::Config { key: "blob.ca_file", why })?;
    let backoff = BackoffConfig { init_backoff: RETRY_DELAY_MIN, max_backoff: RETRY_DELAY_MAX, base: 2.0 };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(&options.region)
        .with_credentials(Arc::new(secret))
        .with_allow_http(options.allow_http)
        .with_retry(RetryConfig { backoff, max_retries: TRIES - 1, retry_timeout: RETRY_TIME_MAX })
        .with_http_connector(Connector::new(tls));
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    let unusable = |error: object_store::Error| BlobError::Config { key: "blob.url", why: error.to_string() };
    let store = builder.build().map_err(unusable)?;
    let store: Arc<dyn ObjectStore> = match prefix {
        "" => Arc::new(store),
        prefix => Arc::new(PrefixStore::new(store, ObjectPath::from(prefix))),
    };
    let at = options.endpoint.as_deref().map_or(String::new(), |endpoint| format!(" at {endpoint}"));
    Ok(Opened { store, folder: None, shown: format!("{}{at}", options.url) })
}

fn missing(key: &'static str) -> BlobError {
    BlobError::Config { key, why: "is absent, must be set for a bucket".to_owned() }
}

/// The access key, its secret in a file.
struct Secret {
    key_id: String,
    path: PathBuf,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({}, {})", self.key_id, self.path.display())
    }
}

impl Secret {
    fn read(&self) -> Result<AwsCredential, String> {
        let told = |why: &dyn fmt::Display| format!("{}: {why}", self.path.display());
        let size = std::fs::metadata(&self.path).map_err(|error| told(&error))?.len();
        if size > SECRET_BYTES_MAX {
            return Err(told(&"it is too large to be a secret"));
        }
        let text = std::fs::read_to_string(&self.path).map_err(|error| told(&error))?;
        let secret_key = text.trim().to_owned();
        if secret_key.is_empty() {
            return Err(told(&"it is empty"));
        }
        Ok(AwsCredential { key_id: self.key_id.clone(), secret_key, token: None })
    }
}

#[async_trait::async_trait]
impl CredentialProvider for Secret {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        // A small local file: no worse than the signing that follows.
        self.read().map(Arc::new).map_err(|why| object_store::Error::Unauthenticated {
            path: self.path.display().to_string(),
            source: format!("blob.secret_key_file {why}").into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown() {
        for (text, shown) in [
            ("file:/var/blobs", "file:/var/blobs"),
            ("file:///var/blobs", "file:/var/blobs"),
            ("file:blobs", "file:blobs"),
            ("s3://muster", "s3://muster"),
            ("s3://muster/", "s3://muster"),
            ("s3://mus.ter-1/a/b_c/", "s3://mus.ter-1/a/b_c"),
        ] {
            assert_eq!(text.parse::<BlobUrl>().unwrap().to_string(), shown);
        }
        for wrong in [
            "",
            "/var",
            "file:",
            "file://",
            "s3://",
            "s3://AB",
            "s3://a",
            "s3:///x",
            "gs://bucket",
            "s3://abc/../x",
            "s3://abc//x",
        ] {
            assert!(wrong.parse::<BlobUrl>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_secret_is_read_anew_and_a_bad_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let secret = Secret { key_id: "muster".into(), path: path.clone() };
        assert!(secret.read().unwrap_err().contains("No such file"));
        for (text, read) in [("first\n", Some("first")), ("second", Some("second")), (" \n", None)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(secret.read().ok().map(|read| read.secret_key).as_deref(), read);
        }
        std::fs::write(&path, vec![b'x'; 4097]).unwrap();
        assert!(secret.read().unwrap_err().contains("too large"));
        assert!(!format!("{secret:?}").contains("second"));
    }
}
