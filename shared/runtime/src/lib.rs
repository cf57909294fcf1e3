//! Model bundles: open, check, load, self-test, and score sensor rows, pictures and sound.
//!
//! Cast: the agent's pipelines and `muster-agent check` call this crate; the server's inference will, so that both score
//! identically. It calls an inference engine (tract or rten) and the picture decoders, reads files below the bundle's directory
//! and the pictures that it is given, and nothing else: no clock but the monotonic one for latencies, no network, no threads.
//!
//! The path of a model:
//! 1. [`Bundle::open`] reads `model.toml` and `model.onnx`, strictly and within bounds; the model's other forms are read when
//!    one of its [`Candidate`]s needs them;
//! 2. [`Model::load`] decodes the graph (`onnx`), refuses what an engine computes wrongly (`graph`), turns int8 weights into
//!    floats before an engine sees them (`weights`), pins the shape (`prepare`), has one plan made (`engine`), and runs the
//!    golden samples;
//! 3. [`SeriesPipeline`], [`ImagePipeline`] or [`AudioPipeline`] turn input into [`Inference`]s. Plans are shared by threads; a pipeline owns its state.
//!
//! Promise: a loaded model gave the bundle's expected answers on this machine. A model that does not is refused, with the difference.
//!
//! Architecture invariant: only `engine::tract` and `engine::rten` name an engine's types (ADR 0025).

pub mod audio;
mod bundle;
#[cfg(any(feature = "tract", feature = "rten"))]
mod decode;
mod engine;
mod forms;
#[cfg(any(feature = "tract", feature = "rten"))]
mod graph;
mod inference;
mod manifest;
mod model;
#[cfg(any(feature = "tract", feature = "rten"))]
mod onnx;
mod parse;
pub mod postprocess;
#[cfg(any(feature = "tract", feature = "rten"))]
mod prepare;
pub mod preprocess;
mod refusal;
#[cfg(any(feature = "tract", feature = "rten"))]
mod weights;

pub use audio::{AudioLayout, AudioSpec, MelLog, MelNorm, MelScale};
pub use bundle::{Bundle, BundleError, MANIFEST_BYTES_MAX, MODEL_BYTES_MAX};
pub use engine::{EngineError, EngineKind, RunError, Session};
pub use forms::{ALTERNATIVES_MAX, Candidate, Form, MODEL_FILE, Quantization, QuantizationForm};
pub use inference::{
    AudioPipeline, ImagePipeline, Inference, LABEL_ANOMALOUS, LABEL_NORMAL, LABEL_NOTHING, PICTURE_BYTES_MAX,
    PipelineError, SeriesPipeline,
};
pub use manifest::{
    AnomalyScore, AnomalySpec, ChannelOrder, ClassificationSpec, DetectionDecode, DetectionSpec, ElementType,
    Golden, GoldenExpected, GoldenInput, ImageLayout, ImageSpec, InputSpec, Manifest, NAME_BYTES_MAX,
    OutputSpec, Postprocess, Preprocess, Resize, ScoreForm, SeriesLayout, SeriesSpec, TaskKind,
};
pub use model::{LoadError, Model, SelfTestReport, sample_input};
pub use postprocess::{AnomalyState, BoundingBox, Transition};
pub use preprocess::ImageError;
pub use refusal::Refusal;
