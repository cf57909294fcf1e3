//! Why a call of the slice fails; `api` gives each its code.

use crate::devices::model::FieldError;
use crate::devices::model::batch::LineError;
use crate::devices::pki::{CsrError, PkiError};
use crate::platform::db::DbError;
use crate::platform::http_kit::NotHere;
use crate::platform::http_kit::condition::Changed;
use crate::tenants::service::TenantsError;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// No such object.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// Already there, or not in the state that the request needs.
    #[error("{0}")]
    Conflict(&'static str),
    /// A field is out of range.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The certificate request is refused.
    #[error("csr_pem {0}")]
    Csr(#[from] CsrError),
    /// A quota is used up.
    #[error("the tenant's quota of {max} {noun} is used up")]
    Quota {
        /// Of what.
        noun: &'static str,
        /// The quota.
        max: u32,
    },
    /// The claim's secret is unknown or was deleted.
    #[error("the claim is not known")]
    ClaimUnknown,
    /// The claim is used up or past its time.
    #[error("the claim is used up or past its time")]
    ClaimSpent,
    /// The certificate that a device shows to renew it.
    #[error("the certificate {0}; enrol with a claim")]
    CertificateRefused(&'static str),
    /// The certificate was issued a moment ago.
    #[error("the certificate is too young to be renewed; try again in {retry_after_s} s")]
    TooYoung {
        /// When to try again.
        retry_after_s: u64,
    },
    /// The claim needs approval, and nobody has decided yet.
    #[error("the enrolment waits for approval")]
    Waits,
    /// The claim needs approval, and a person turned the device away.
    #[error("the enrolment was rejected: {note}")]
    Rejected {
        /// What the person says to it.
        note: String,
    },
    /// Lines of a batch are off; nothing was written.
    #[error("{} lines of the batch are off", .0.len())]
    Batch(Vec<LineError>),
    /// An authority that shall be retired is needed still.
    #[error(
        "{devices} devices have no certificate of the new authority yet, and {claims} open claims name the old one"
    )]
    AuthorityInUse {
        /// Devices whose newest certificate it signed.
        devices: i64,
        /// Claims that can still be used.
        claims: i64,
    },
    /// The device is disabled.
    #[error("the device is disabled")]
    Disabled,
    /// Too many wrong claims from one address.
    #[error("too many wrong claims; try again in {retry_after_s} s")]
    TooMany {
        /// When to try again.
        retry_after_s: u64,
    },
    /// The device is another one than the caller expects.
    #[error(transparent)]
    Changed(#[from] Changed),
    /// The listeners are not up yet.
    #[error("the server is starting")]
    Starting,
    /// This process has no gateway, and none has told where devices find it.
    #[error("no process with the role gateway has run on this registry yet")]
    NoGateway,
    /// Only the process with the gateway can do it.
    #[error(transparent)]
    NotHere(#[from] NotHere),
    /// The authority failed.
    #[error("certificate authority failed")]
    Pki(#[from] PkiError),
    /// They may not.
    #[error(transparent)]
    Access(#[from] TenantsError),
    /// The database failed.
    #[error("database failed")]
    Db(#[from] DbError),
}
