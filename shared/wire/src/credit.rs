//! Flow control of backlogs: what a device asks on `up/credit` and what the server tells on `dn/credit`.
//!
//! [`CreditRequest`] is a body within the ordinary envelope (`queue_id` and `seq` 0). [`Credit`] is a message of its
//! own, a versioned CBOR array: `[version, epoch, records, reconnect_spread_ms]`. A later version of the server may
//! add fields at its end, which this one passes over.

use crate::envelope::malformed;
use crate::{UpClass, WIRE_VERSION, WireError};
use minicbor::{Decode, Decoder, Encode, Encoder};

/// The largest body of a [`CreditRequest`], in bytes.
pub const CREDIT_REQUEST_BYTES_MAX: usize = 64;
/// The largest [`Credit`], in bytes: today's fields take 25, the rest is room for later ones.
pub const CREDIT_BYTES_MAX: usize = 256;
/// The longest time that a server spreads its devices' next connects over, in milliseconds. A device takes a
/// larger value for this one.
pub const RECONNECT_SPREAD_MS_MAX: u32 = 60_000;

/// A device has a backlog and asks for credit to send it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct CreditRequest {
    /// Records that wait and have no credit yet, 1 at least. Less may be granted, and the rest later.
    #[n(0)]
    pub backlog: u64,
}

impl CreditRequest {
    /// The class of the topic and envelope that carry it.
    pub const CLASS: UpClass = UpClass::Credit;

    /// Encodes the body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("writing to a Vec cannot fail")
    }

    /// Decodes and checks an untrusted body.
    ///
    /// # Errors
    /// Too large, malformed, or a backlog of 0.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        const WHAT: &str = "credit request";
        if bytes.len() > CREDIT_REQUEST_BYTES_MAX {
            return Err(WireError::TooLarge {
                what: WHAT,
                bytes: bytes.len(),
                max: CREDIT_REQUEST_BYTES_MAX,
            });
        }
        let mut d = Decoder::new(bytes);
        let request: Self = d.decode().map_err(|error| malformed(WHAT, &error))?;
        if d.position() != bytes.len() {
            return Err(WireError::Malformed { what: WHAT, why: "bytes after the body".into() });
        }
        if request.backlog == 0 {
            return Err(WireError::Rule { what: WHAT, field: "backlog".into(), rule: "must be 1 at least" });
        }
        Ok(request)
    }
}

/// What the server tells a device about its backlog and its next connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// One start of the server: another one tells that nothing granted before holds.
    pub epoch: u64,
    /// Backlog records that the device may send besides what it was granted before on this connection; 0 only
    /// announces that the connection is under flow control.
    pub records: u32,
    /// When this connection breaks, the next connect comes at a random time within these milliseconds.
    pub reconnect_spread_ms: u32,
}

impl Credit {
    /// Encodes the message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new(Vec::with_capacity(32));
        let written = e
            .array(4)
            .and_then(|e| e.u8(WIRE_VERSION))
            .and_then(|e| e.u64(self.epoch))
            .and_then(|e| e.u32(self.records))
            .and_then(|e| e.u32(self.reconnect_spread_ms));
        written.expect("writing to a Vec cannot fail");
        e.into_writer()
    }

    /// Decodes a message; fields behind the known ones are passed over.
    ///
    /// # Errors
    /// Too large, an unknown version, or malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        const WHAT: &str = "credit";
        if bytes.len() > CREDIT_BYTES_MAX {
            return Err(WireError::TooLarge { what: WHAT, bytes: bytes.len(), max: CREDIT_BYTES_MAX });
        }
        let bad = |error: minicbor::decode::Error| malformed(WHAT, &error);
        let shape = |why: &str| WireError::Malformed { what: WHAT, why: why.to_owned() };
        let mut d = Decoder::new(bytes);
        let fields = d.array().map_err(bad)?;
        let version = d.u8().map_err(bad)?;
        if version != WIRE_VERSION {
            return Err(WireError::Version(version));
        }
        let Some(later) = fields.and_then(|fields| fields.checked_sub(4)) else {
            return Err(shape("expected an array of 4 or more"));
        };
        let credit = Self {
            epoch: d.u64().map_err(bad)?,
            records: d.u32().map_err(bad)?,
            reconnect_spread_ms: d.u32().map_err(bad)?,
        };
        for _ in 0..later {
            d.skip().map_err(bad)?;
        }
        if d.position() != bytes.len() {
            return Err(shape("bytes after the message"));
        }
        Ok(credit)
    }
}
