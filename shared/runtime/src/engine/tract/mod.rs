//! tract: optimised plans, weights packed at load, and our own kernels where they are faster: quantized and depthwise convolutions,
//! fully connected layers.

mod dense;
#[cfg(test)]
mod dense_tests;
mod depthwise;
#[cfg(test)]
mod depthwise_tests;
mod place;
mod quantized;
#[cfg(test)]
mod quantized_tests;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use muster_kernels::Isa;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::plan::SimpleState;

use super::{EngineError, Plan, Run, RunError};
use crate::manifest::{InputSpec, OutputSpec};
use crate::prepare::mismatch_unless;

#[derive(Debug)]
struct Tract {
    plan: Arc<TypedSimplePlan>,
    shape: Vec<usize>,
}

#[derive(Debug)]
struct State {
    state: TypedSimpleState,
    shape: Vec<usize>,
}

pub(super) fn load(
    onnx: &[u8],
    input: &InputSpec,
    output: &OutputSpec,
) -> Result<Box<dyn Plan>, EngineError> {
    let mut model = tidied(onnx, &input.shape)?;
    place::check_sums(&model).map_err(step_failed("tidies the graph"))?;
    quantized::join(&mut model).map_err(step_failed("joins quantized layers"))?;
    if Isa::detect().has_f32() {
        dense::join(&mut model).map_err(step_failed("joins fully connected layers"))?;
        depthwise::join(&mut model).map_err(step_failed("joins depthwise convolutions"))?;
    }
    let plan = model
        .into_optimized()
        .map_err(step_failed("optimises the graph"))?
        .into_runnable()
        .map_err(step_failed("plans the graph"))?;
    let fact = plan.model().output_fact(0).map_err(step_failed("reads the output"))?;
    let fits = fact.shape.as_concrete().is_some_and(|shape| shape == output.shape);
    mismatch_unless(fits, "output.shape", || (format!("{:?}", fact.shape), format!("{:?}", output.shape)))?;
    Ok(Box::new(Tract { plan, shape: input.shape.clone() }))
}

/// The graph with the input's shape pinned, before ours is put into it.
fn tidied(onnx: &[u8], shape: &[usize]) -> Result<TypedModel, EngineError> {
    let mut framework = tract_onnx::onnx().with_ignore_output_shapes(true).with_ignore_value_info(true);
    quantized::teach(&mut framework.op_register);
    framework
        .model_for_read(&mut &*onnx)
        .map_err(step_failed("reads the graph"))?
        .with_input_fact(0, f32::fact(shape).into())
        .map_err(step_failed("pins the input's shape"))?
        .into_typed()
        .map_err(step_failed("infers shapes and types"))?
        .into_decluttered()
        .map_err(step_failed("tidies the graph"))
}

/// What of building the plan failed.
fn step_failed(step: &'static str) -> impl Fn(TractError) -> EngineError {
    move |error| EngineError::Build { step, detail: format!("{error:#}") }
}

impl Plan for Tract {
    fn session(&self) -> Result<Box<dyn Run>, RunError> {
        let state = SimpleState::new(&self.plan).map_err(failed)?;
        Ok(Box::new(State { state, shape: self.shape.clone() }))
    }
}

impl Run for State {
    fn run(&mut self, input: &[f32]) -> Result<Vec<f32>, RunError> {
        let tensor = Tensor::from_shape(&self.shape, input).map_err(failed)?;
        let outputs = self.state.run(tvec!(tensor.into_tvalue())).map_err(failed)?;
        let output = outputs.first().ok_or_else(|| RunError::Engine { detail: "no output".into() })?;
        let output = output.cast_to::<f32>().map_err(failed)?;
        output.try_as_plain_ram().and_then(|view| view.as_slice::<f32>().map(<[f32]>::to_vec)).map_err(failed)
    }
}

fn failed(error: TractError) -> RunError {
    RunError::Engine { detail: format!("{error:#}") }
}
