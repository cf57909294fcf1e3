//! What went wrong with a blob, told apart by what a person does about it.

use super::Key;
use object_store::client::HttpError;

/// Why the blob store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The path is none of a blob.
    #[error("{path:?} is no path of a blob: {why}")]
    Key {
        /// Its first characters.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
    /// There is no such blob.
    #[error("there is no blob {key}")]
    Missing {
        /// Its key.
        key: Key,
    },
    /// There is no such bucket.
    #[error("the bucket does not exist: {0}")]
    NoBucket(String),
    /// The store answered that we may not: a wrong key, or one without the right.
    #[error("the blob store refuses the access key: {0}")]
    Refused(String),
    /// The store does not answer, or answers that it cannot now; tried again in vain.
    #[error("the blob store cannot be reached: {0}")]
    Unreachable(String),
    /// It is over a bound.
    #[error("blob {key} has {bytes} bytes, at most {max} are taken")]
    TooLarge {
        /// Its key.
        key: Key,
        /// Its size so far.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// More keys than one list looks through.
    #[error("more than {max} blobs are below the prefix")]
    TooMany {
        /// The bound.
        max: usize,
    },
    /// The range holds nothing of the blob.
    #[error("the range lies outside of blob {key}, which has {size} bytes")]
    Range {
        /// Its key.
        key: Key,
        /// Its size.
        size: u64,
    },
    /// The content is not what was put.
    #[error("the content of blob {key} does not have the SHA-256 that it was put with")]
    Corrupt {
        /// Its key.
        key: Key,
    },
    /// The configuration cannot be used.
    #[error("{key}: {why}")]
    Config {
        /// The configuration's key.
        key: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Anything else: a full disk, an answer that makes no sense.
    #[error("the blob store failed: {0}")]
    Failed(String),
}

impl BlobError {
    /// Whether the same call may succeed later without anybody's doing.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Failed(_))
    }
}

/// `object_store`'s error as ours.
pub(super) fn told(key: Option<&Key>, error: object_store::Error) -> BlobError {
    use object_store::Error;
    let text = causes(&error);
    // Only an error about one object has a kind; that of a list has its status in its text.
    let is_status = |status: &str| text.contains(&format!("status code: {status}"));
    match &error {
        _ if text.contains("NoSuchBucket") => BlobError::NoBucket(brief(&text)),
        Error::NotFound { .. } => match key {
            Some(key) => BlobError::Missing { key: key.clone() },
            None => BlobError::Failed(brief(&text)),
        },
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => BlobError::Refused(brief(&text)),
        _ if is_status("401") || is_status("403") => BlobError::Refused(brief(&text)),
        _ if is_unanswered(&error) || is_status("5") => BlobError::Unreachable(brief(&text)),
        _ => BlobError::Failed(brief(&text)),
    }
}

/// Whether no answer came: the connection was refused, broke or was silent.
fn is_unanswered(error: &object_store::Error) -> bool {
    let mut at = std::error::Error::source(error);
    while let Some(source) = at {
        if source.is::<HttpError>() {
            return true;
        }
        at = source.source();
    }
    false
}

/// An error with its sources; most of them repeat what is below them.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let said = source.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = source.source();
    }
    text
}

/// The longest text of a server's that an error carries.
const TEXT_CHARS_MAX: usize = 400;

/// Without what `object_store` says of the request and its tries, which differ each time.
fn brief(text: &str) -> String {
    let why = text.split_once(" - ").map_or(text, |(_, why)| why);
    let line: String =
        why.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT_CHARS_MAX).collect();
    line.trim().to_owned()
}
