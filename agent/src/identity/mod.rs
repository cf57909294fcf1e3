//! Who this device is: enrolment by a claim, or a token from the configuration.
//!
//! Called by [`crate::app`] before the uplink starts, and by `muster-agent enroll`. Calls the server's
//! enrolment listener over HTTPS, pinned to the CA key that the claim names. Promise: the key is made here and
//! never leaves; the same key asks again after a lost answer, so that the server can repeat it; files have mode
//! 0600 and replace each other by rename. Limits: answer 64 KiB, 30 s.

mod claim;
mod enroll;
mod keys;
mod pin;
mod store;

pub use claim::{Claim, ClaimError};
pub use enroll::{EnrollError, enroll};
pub use keys::{KeyError, spki_sha256};
pub use store::{Identity, StoreError, load, load_or_create_key};
