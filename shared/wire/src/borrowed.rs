//! Telemetry decoded without copying its names: for the server, which looks at many.

use crate::envelope::malformed;
use crate::message::{TELEMETRY_BYTES_MAX, check_readings};
use crate::{Value, WireError};
use minicbor::Decode;

/// A [`crate::Telemetry`] whose names stay in the bytes, for a receiver of many; the same checks.
#[derive(Clone, Debug, PartialEq, Decode)]
#[cbor(map)]
pub struct TelemetryRef<'a> {
    /// As in [`crate::Telemetry`].
    #[b(0)]
    pub readings: Vec<ReadingRef<'a>>,
}

/// A [`crate::Reading`] whose name stays in the bytes.
#[derive(Clone, Debug, PartialEq, Decode)]
#[cbor(array)]
pub struct ReadingRef<'a> {
    /// As in [`crate::Reading`].
    #[b(0)]
    pub metric: &'a str,
    /// As in [`crate::Reading`].
    #[n(1)]
    pub value: Value,
    /// As in [`crate::Reading`].
    #[n(2)]
    pub offset_us: Option<i64>,
}

impl<'a> TelemetryRef<'a> {
    /// Decodes and checks an untrusted body, as [`crate::Telemetry::decode`] does.
    ///
    /// # Errors
    /// As [`crate::Telemetry::decode`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, WireError> {
        const WHAT: &str = "telemetry";
        if bytes.len() > TELEMETRY_BYTES_MAX {
            return Err(WireError::TooLarge { what: WHAT, bytes: bytes.len(), max: TELEMETRY_BYTES_MAX });
        }
        let mut d = minicbor::Decoder::new(bytes);
        let body: Self = d.decode().map_err(|error| malformed(WHAT, &error))?;
        if d.position() != bytes.len() {
            return Err(WireError::Malformed { what: WHAT, why: "bytes after the body".into() });
        }
        check_readings(body.readings.iter().map(|reading| (reading.metric, &reading.value)))?;
        Ok(body)
    }
}
