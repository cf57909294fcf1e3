//! The inference engine behind one small type: ONNX bytes and a pinned shape in, one optimised plan out.
//!
//! `model` calls it. A plan is immutable and shared by threads; a [`Session`] is one thread's scratch state.
//! The batch is always 1 and every dimension concrete: a symbolic batch makes convolutions several times slower.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tract_onnx::pb::{GraphProto, ModelProto, tensor_shape_proto::dimension, type_proto};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::plan::SimpleState;

use crate::graph::{Refusal, check_model};
use crate::manifest::{InputSpec, OutputSpec};
use crate::weights::dequantize_weights;

/// Why a graph did not become a plan.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The bytes are not ONNX.
    #[error("model.onnx cannot be decoded: {detail}")]
    Decode {
        /// The decoder's text.
        detail: String,
    },
    /// A pattern that the engine computes wrongly.
    #[error("model.onnx is refused: {0}")]
    Refused(#[from] Refusal),
    /// The graph's inputs and outputs do not fit `model.toml`.
    #[error("model.toml field `{field}`: expected {expected} as in model.onnx, found {found}")]
    Mismatch {
        /// The field of `model.toml`.
        field: &'static str,
        /// What model.onnx has.
        expected: String,
        /// What model.toml says.
        found: String,
    },
    /// The engine could not build or optimise the graph.
    #[error("the engine cannot load model.onnx while it {step}: {detail}")]
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

/// One optimised plan for one shape.
#[derive(Debug)]
pub(crate) struct Engine {
    plan: Arc<TypedSimplePlan>,
    shape: Vec<usize>,
    output_elements: usize,
}

/// One thread's state for running a plan.
#[derive(Debug)]
pub struct Session {
    state: TypedSimpleState,
    shape: Vec<usize>,
    output_elements: usize,
}

impl Engine {
    /// Checks, dequantises, pins and optimises. A panic of the engine on a broken graph becomes an error.
    pub(crate) fn load(onnx: &[u8], input: &InputSpec, output: &OutputSpec) -> Result<Self, EngineError> {
        catch_unwind(AssertUnwindSafe(|| build(onnx, input, output))).unwrap_or_else(|_| {
            Err(EngineError::Build { step: "builds the graph", detail: "the engine panicked".into() })
        })
    }

    /// A new state on the shared plan.
    pub(crate) fn session(&self) -> Result<Session, RunError> {
        let state = SimpleState::new(&self.plan)
            .map_err(|error| RunError::Engine { detail: format!("{error:#}") })?;
        Ok(Session { state, shape: self.shape.clone(), output_elements: self.output_elements })
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
        let expected = self.shape.iter().product();
        if input.len() != expected {
            return Err(RunError::InputSize { expected, found: input.len() });
        }
        let engine_error = |error: TractError| RunError::Engine { detail: format!("{error:#}") };
        let tensor = Tensor::from_shape(&self.shape, input).map_err(engine_error)?;
        let outputs = self.state.run(tvec!(tensor.into_tvalue())).map_err(engine_error)?;
        let output = outputs.first().ok_or_else(|| RunError::Engine { detail: "no output".into() })?;
        let output = output.cast_to::<f32>().map_err(engine_error)?;
        let values = output
            .try_as_plain_ram()
            .and_then(|view| view.as_slice::<f32>().map(<[f32]>::to_vec))
            .map_err(engine_error)?;
        if values.len() != self.output_elements {
            return Err(RunError::Engine {
                detail: format!("{} output elements, expected {}", values.len(), self.output_elements),
            });
        }
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(RunError::NotFinite { index, value: values[index] }),
            None => Ok(values),
        }
    }
}

fn build(onnx: &[u8], input: &InputSpec, output: &OutputSpec) -> Result<Engine, EngineError> {
    let framework = tract_onnx::onnx().with_ignore_output_shapes(true).with_ignore_value_info(true);
    let mut proto = framework
        .proto_model_for_read(&mut &*onnx)
        .map_err(|error| EngineError::Decode { detail: format!("{error:#}") })?;
    check_model(&proto)?;
    if let Some(graph) = proto.graph.as_mut() {
        dequantize_weights(graph);
        pin_input(graph, input)?;
        let known = graph.output.iter().any(|value| value.name == output.name);
        let names: Vec<&str> = graph.output.iter().map(|value| value.name.as_str()).collect();
        mismatch_unless(known, "output.name", || {
            (format!("one of {names:?}"), format!("{:?}", output.name))
        })?;
        graph.output.retain(|value| value.name == output.name);
    }
    let plan = optimize(&framework, &proto, input)?;
    check_output(plan.model(), output)?;
    Ok(Engine { plan, shape: input.shape.clone(), output_elements: output.elements() })
}

fn optimize(
    framework: &tract_onnx::Onnx,
    proto: &ModelProto,
    input: &InputSpec,
) -> Result<Arc<TypedSimplePlan>, EngineError> {
    let failed = |step: &'static str| {
        move |error: TractError| EngineError::Build { step, detail: format!("{error:#}") }
    };
    framework
        .model_for_proto_model(proto)
        .map_err(failed("reads the graph"))?
        .with_input_fact(0, f32::fact(&input.shape).into())
        .map_err(failed("pins the input's shape"))?
        .into_typed()
        .map_err(failed("infers shapes and types"))?
        .into_optimized()
        .map_err(failed("optimises the graph"))?
        .into_runnable()
        .map_err(failed("plans the graph"))
}

fn mismatch_unless(
    holds: bool,
    field: &'static str,
    texts: impl FnOnce() -> (String, String),
) -> Result<(), EngineError> {
    if holds {
        return Ok(());
    }
    let (expected, found) = texts();
    Err(EngineError::Mismatch { field, expected, found })
}

/// Compares the graph's only real input with `model.toml`; symbolic dimensions take the value given there.
fn pin_input(graph: &GraphProto, input: &InputSpec) -> Result<(), EngineError> {
    let is_constant = |name: &str| graph.initializer.iter().any(|tensor| tensor.name == name);
    let inputs: Vec<_> = graph.input.iter().filter(|value| !is_constant(&value.name)).collect();
    let names: Vec<&str> = inputs.iter().map(|value| value.name.as_str()).collect();
    let only = names.len() == 1 && names[0] == input.name;
    mismatch_unless(only, "input.name", || {
        (format!("the only input, one of {names:?}"), format!("{:?}", input.name))
    })?;
    let Some(type_proto::Value::TensorType(tensor)) =
        inputs[0].r#type.as_ref().and_then(|t| t.value.as_ref())
    else {
        return Err(EngineError::Build {
            step: "reads the graph",
            detail: "the input has no tensor type".into(),
        });
    };
    mismatch_unless(tensor.elem_type == 1, "input.type", || {
        (format!("ONNX element type {}", tensor.elem_type), "f32 (1)".into())
    })?;
    let Some(shape) = &tensor.shape else { return Ok(()) };
    let fits = shape.dim.len() == input.shape.len()
        && shape.dim.iter().zip(&input.shape).all(|(dim, &pinned)| match &dim.value {
            Some(dimension::Value::DimValue(value)) => {
                usize::try_from(*value).is_ok_and(|value| value == pinned)
            }
            Some(dimension::Value::DimParam(_)) | None => true,
        });
    mismatch_unless(fits, "input.shape", || (shape_text(shape), format!("{:?}", input.shape)))
}

fn shape_text(shape: &tract_onnx::pb::TensorShapeProto) -> String {
    let dims: Vec<String> = shape
        .dim
        .iter()
        .map(|dim| match &dim.value {
            Some(dimension::Value::DimValue(value)) => value.to_string(),
            Some(dimension::Value::DimParam(name)) => name.clone(),
            None => "?".into(),
        })
        .collect();
    format!("[{}]", dims.join(", "))
}

fn check_output(model: &TypedModel, output: &OutputSpec) -> Result<(), EngineError> {
    let fact = model
        .output_fact(0)
        .map_err(|error| EngineError::Build { step: "reads the output", detail: format!("{error:#}") })?;
    let fits = fact.shape.as_concrete().is_some_and(|shape| shape == output.shape);
    mismatch_unless(fits, "output.shape", || (format!("{:?}", fact.shape), format!("{:?}", output.shape)))?;
    Ok(())
}
