//! The inference engines behind one small type: ONNX bytes and a pinned shape in, a plan out.
//!
//! `model` calls it. A plan is immutable and shared by threads; a [`Session`] is one thread's scratch state. Which engines
//! there are is a matter of the build: the features `tract` (the default) and `rten`. Each has a file here that nothing
//! else names, and both are held against the same stored outputs (`tests/conformance.rs`).
//!
//! The batch is always 1 and every dimension concrete (see `prepare`).

#[cfg(feature = "rten")]
mod rten;
#[cfg(feature = "tract")]
mod tract;

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::manifest::{InputSpec, OutputSpec};
#[cfg(any(feature = "tract", feature = "rten"))]
use crate::prepare::prepare;
use crate::refusal::Refusal;

/// An inference engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// Sonos' tract: pure Rust, the default.
    #[cfg(feature = "tract")]
    Tract,
    /// rten: pure Rust, smaller.
    #[cfg(feature = "rten")]
    Rten,
}

impl EngineKind {
    /// The engines of this build, the default first. None in a build that runs no models.
    pub const ALL: &[Self] = &[
        #[cfg(feature = "tract")]
        Self::Tract,
        #[cfg(feature = "rten")]
        Self::Rten,
    ];

    /// Its name in configurations, figures and events.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            #[cfg(feature = "tract")]
            Self::Tract => "tract",
            #[cfg(feature = "rten")]
            Self::Rten => "rten",
        }
    }
}

/// Why a graph did not become a plan.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// This build has no engine.
    #[error("this build has no inference engine; expected one with the feature `tract` or `rten`")]
    NoEngine,
    /// The bytes are not ONNX.
    #[error("the file cannot be decoded as ONNX: {detail}")]
    Decode {
        /// The decoder's text.
        detail: String,
    },
    /// A pattern that an engine computes wrongly.
    #[error("the graph is refused: {0}")]
    Refused(#[from] Refusal),
    /// The graph's inputs and outputs do not fit `model.toml`.
    #[error("model.toml field `{field}`: expected {expected} as in the graph, found {found}")]
    Mismatch {
        /// The field of `model.toml`.
        field: &'static str,
        /// What the graph has.
        expected: String,
        /// What model.toml says.
        found: String,
    },
    /// The engine could not build or optimise the graph.
    #[error("the engine cannot load the graph while it {step}: {detail}")]
    Build {
        /// What it did.
        step: &'static str,
        /// The engine's text.
        detail: String,
    },
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The input has another number of elements.
    #[error("the input tensor has {found} elements, expected {expected}")]
    InputSize {
        /// What the model takes.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// The output has another number of elements.
    #[error("the output tensor has {found} elements, expected {expected}")]
    OutputSize {
        /// What model.toml says.
        expected: usize,
        /// What the engine gave.
        found: usize,
    },
    /// The output holds NaN or an infinity.
    #[error("output element {index} is {value}, expected a finite number")]
    NotFinite {
        /// Which.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// The engine failed.
    #[error("the engine failed: {detail}")]
    Engine {
        /// The engine's text.
        detail: String,
    },
}

/// An engine's plan for one graph and one shape.
trait Plan: Debug + Send + Sync {
    /// A new state on the shared plan.
    fn session(&self) -> Result<Box<dyn Run>, RunError>;
}

/// One thread's state for running a plan.
trait Run: Debug + Send {
    /// f32 in the input's shape, row-major; as many as it holds. The output likewise.
    fn run(&mut self, input: &[f32]) -> Result<Vec<f32>, RunError>;
}

/// A plan for one shape.
#[derive(Debug)]
pub(crate) struct Engine {
    kind: EngineKind,
    plan: Box<dyn Plan>,
    input_elements: usize,
    output_elements: usize,
}

/// One thread's state for running a plan.
#[derive(Debug)]
pub struct Session {
    state: Box<dyn Run>,
    input_elements: usize,
    output_elements: usize,
}

impl Engine {
    /// Checks, dequantises, pins and optimises. A panic of the engine on a broken graph becomes an error.
    #[cfg_attr(
        not(any(feature = "tract", feature = "rten")),
        allow(unused_variables, reason = "no engine reads it")
    )]
    pub(crate) fn load(
        kind: EngineKind,
        onnx: &[u8],
        input: &InputSpec,
        output: &OutputSpec,
    ) -> Result<Self, EngineError> {
        let load = || -> Result<Box<dyn Plan>, EngineError> {
            match kind {
                #[cfg(feature = "tract")]
                EngineKind::Tract => tract::load(&prepare(onnx, input, output)?, input, output),
                #[cfg(feature = "rten")]
                EngineKind::Rten => rten::load(prepare(onnx, input, output)?, input, output),
            }
        };
        let plan = catch_unwind(AssertUnwindSafe(load)).unwrap_or_else(|_| {
            Err(EngineError::Build { step: "builds the graph", detail: "the engine panicked".into() })
        })?;
        Ok(Self { kind, plan, input_elements: input.elements(), output_elements: output.elements() })
    }

    pub(crate) fn kind(&self) -> EngineKind {
        self.kind
    }

    pub(crate) fn name(&self) -> &'static str {
        self.kind.as_str()
    }

    /// A new state on the shared plan.
    pub(crate) fn session(&self) -> Result<Session, RunError> {
        let (input_elements, output_elements) = (self.input_elements, self.output_elements);
        Ok(Session { state: self.plan.session()?, input_elements, output_elements })
    }
}

impl Session {
    /// Runs the model once.
    ///
    /// input: f32 in the shape of `model.toml`, row-major. Returns the output, f32 in its shape, row-major, all finite.
    ///
    /// # Errors
    /// When the input has another size, the engine fails, or the output is not finite.
    pub fn run(&mut self, input: &[f32]) -> Result<Vec<f32>, RunError> {
        if input.len() != self.input_elements {
            return Err(RunError::InputSize { expected: self.input_elements, found: input.len() });
        }
        let values = self.state.run(input)?;
        if values.len() != self.output_elements {
            return Err(RunError::OutputSize { expected: self.output_elements, found: values.len() });
        }
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(RunError::NotFinite { index, value: values[index] }),
            None => Ok(values),
        }
    }
}
