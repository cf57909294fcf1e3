//! Who this device is: enrolment by a claim and renewal from then on, or a token from the configuration.
//!
//! Called by [`crate::app`] before the uplink starts and beside it, and by `muster-agent enroll`. Calls the server's
//! enrolment listener over HTTPS, pinned to the CA key that the claim names, later checked against the CAs that the
//! server told last. Promise: keys are made here and never leave; the same key asks again after a lost answer, so that
//! the server can repeat it; files have mode 0600 and replace each other by rename. Limits: answer 64 KiB, 30 s.

mod claim;
mod enroll;
mod exchange;
mod keys;
mod pin;
mod renew;
mod store;

pub use claim::{Claim, ClaimError};
pub use enroll::{EnrollError, enroll};
pub use exchange::Listener;
pub use keys::{KeyError, spki_sha256};
pub use renew::{Keeper, Shared, renew};
pub use store::{Identity, StoreError, load, load_key};
