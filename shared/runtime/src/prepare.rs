//! Makes a graph ready for any engine: decoded, checked, int8 weights turned into floats, shape pinned, and only the output
//! that `model.toml` names.
//!
//! `engine` calls [`prepare`] once a load, whatever engine follows. A batch of 1 and concrete dimensions stand in the graph
//! itself afterwards: a symbolic batch makes convolutions several times slower.

use prost::Message as _;

use crate::engine::EngineError;
use crate::graph::check_model;
use crate::manifest::{InputSpec, OutputSpec};
use crate::onnx::{DataType, Dimension, GraphProto, ModelProto, Size, TensorShapeProto};
use crate::weights::dequantize_weights;

/// The graph as ONNX bytes, fit for every engine.
pub(crate) fn prepare(onnx: &[u8], input: &InputSpec, output: &OutputSpec) -> Result<Vec<u8>, EngineError> {
    let mut model =
        ModelProto::decode(onnx).map_err(|error| EngineError::Decode { detail: error.to_string() })?;
    check_model(&model)?;
    if let Some(graph) = model.graph.as_mut() {
        dequantize_weights(graph);
        pin_input(graph, input)?;
        keep_output(graph, output)?;
    }
    Ok(model.encode_to_vec())
}

pub(crate) fn mismatch_unless(
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

fn keep_output(graph: &mut GraphProto, output: &OutputSpec) -> Result<(), EngineError> {
    let known = graph.output.iter().any(|value| value.name == output.name);
    let names: Vec<&str> = graph.output.iter().map(|value| value.name.as_str()).collect();
    mismatch_unless(known, "output.name", || (format!("one of {names:?}"), format!("{:?}", output.name)))?;
    graph.output.retain(|value| value.name == output.name);
    // What is said of the output's shape may hold the batch that was pinned; the engine finds it.
    for tensor in graph.output.iter_mut().filter_map(|value| value.r#type.as_mut()?.tensor_type.as_mut()) {
        tensor.shape = None;
    }
    Ok(())
}

/// Compares the graph's only real input with `model.toml`; symbolic dimensions take the value given there.
fn pin_input(graph: &mut GraphProto, input: &InputSpec) -> Result<(), EngineError> {
    let is_constant = |name: &str| graph.initializer.iter().any(|tensor| tensor.name == name);
    let inputs: Vec<usize> =
        (0..graph.input.len()).filter(|&index| !is_constant(&graph.input[index].name)).collect();
    let names: Vec<&str> = inputs.iter().map(|&index| graph.input[index].name.as_str()).collect();
    let only = names.len() == 1 && names[0] == input.name;
    mismatch_unless(only, "input.name", || {
        (format!("the only input, one of {names:?}"), format!("{:?}", input.name))
    })?;
    let kind = graph.input[inputs[0]].r#type.as_mut().and_then(|kind| kind.tensor_type.as_mut());
    let tensor = kind.ok_or_else(|| EngineError::Build {
        step: "reads the graph",
        detail: "the input has no tensor type".into(),
    })?;
    mismatch_unless(tensor.elem_type == DataType::Float as i32, "input.type", || {
        (format!("ONNX element type {}", tensor.elem_type), "f32 (1)".into())
    })?;
    if let Some(shape) = &tensor.shape {
        let fits = shape.dim.len() == input.shape.len()
            && shape.dim.iter().zip(&input.shape).all(|(dim, &pinned)| match dim.size {
                Some(Size::Value(value)) => usize::try_from(value).is_ok_and(|value| value == pinned),
                Some(Size::Param(_)) | None => true,
            });
        mismatch_unless(fits, "input.shape", || (shape_text(shape), format!("{:?}", input.shape)))?;
    }
    let dimension =
        |&size: &usize| Dimension { size: Some(Size::Value(i64::try_from(size).unwrap_or(i64::MAX))) };
    tensor.shape = Some(TensorShapeProto { dim: input.shape.iter().map(dimension).collect() });
    Ok(())
}

fn shape_text(shape: &TensorShapeProto) -> String {
    let dims: Vec<String> = shape
        .dim
        .iter()
        .map(|dim| match &dim.size {
            Some(Size::Value(value)) => value.to_string(),
            Some(Size::Param(name)) => name.clone(),
            None => "?".into(),
        })
        .collect();
    format!("[{}]", dims.join(", "))
}
