//! What of a pipeline's model runs on a device, as a birth tells it.

use crate::WireError;
use crate::message::name_ok;
use minicbor::{Decode, Encode};

/// The model of one pipeline, and what the agent chose to run it with.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Default)]
#[cbor(map)]
pub struct RunningModel {
    /// The pipeline's name in the agent's configuration.
    #[n(0)]
    pub pipeline: String,
    /// The bundle's name.
    #[n(1)]
    pub model: String,
    /// The bundle's version.
    #[n(2)]
    pub version: String,
    /// The inference engine.
    #[n(3)]
    pub engine: String,
    /// How the model's file is quantized.
    #[n(4)]
    pub form: String,
    /// Median latency of the model alone, microseconds, where the agent measured it to choose.
    #[n(5)]
    pub median_us: Option<u32>,
}

impl RunningModel {
    pub(crate) fn check(&self, what: &'static str, field: &str) -> Result<(), WireError> {
        for (part, text) in [
            ("pipeline", &self.pipeline),
            ("model", &self.model),
            ("version", &self.version),
            ("engine", &self.engine),
            ("form", &self.form),
        ] {
            name_ok(what, &format!("{field}.{part}"), text)?;
        }
        Ok(())
    }
}
