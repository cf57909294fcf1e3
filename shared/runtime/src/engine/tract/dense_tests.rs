//! Layers of one row that are taken out of tract's hands answer as the graph says, whatever stands around them.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::einsum::EinSum;

use super::dense::{Layer, join};
use super::place::{check_sums, count};
use super::testing::{encoded, node, number, tensor};
use crate::onnx::{AttributeProto, DataType, GraphProto, NodeProto};

const INPUTS: usize = 5;
const OUTPUTS: usize = 3;

fn row() -> Vec<f32> {
    (0..INPUTS).map(|at| at as f32 - 1.5).collect()
}

/// f32 `[OUTPUTS, INPUTS]`.
fn weight(output: usize, input: usize) -> f32 {
    ((output * 7 + input * 3) % 11) as f32 * 0.25 - 1.0
}

fn bias(output: usize) -> f32 {
    output as f32 * 6.0 - 3.0
}

fn product(input: &[f32], output: usize) -> f32 {
    input.iter().enumerate().map(|(at, value)| value * weight(output, at)).sum()
}

fn floats(name: &str, dims: &[usize], values: &[f32]) -> crate::onnx::TensorProto {
    let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    tensor(name, DataType::Float, dims, raw)
}

/// Weights as `[OUTPUTS, INPUTS]` and the other way, and the bias.
fn graph(nodes: Vec<NodeProto>) -> GraphProto {
    let by_output: Vec<f32> = (0..OUTPUTS * INPUTS).map(|at| weight(at / INPUTS, at % INPUTS)).collect();
    let by_input: Vec<f32> = (0..OUTPUTS * INPUTS).map(|at| weight(at % OUTPUTS, at / OUTPUTS)).collect();
    let biases: Vec<f32> = (0..OUTPUTS).map(bias).collect();
    GraphProto {
        node: nodes,
        initializer: vec![
            floats("by_output", &[OUTPUTS, INPUTS], &by_output),
            floats("by_input", &[INPUTS, OUTPUTS], &by_input),
            floats("bias", &[OUTPUTS], &biases),
            floats("zero", &[], &[0.0]),
            floats("six", &[], &[6.0]),
        ],
        ..GraphProto::default()
    }
}

/// Runs the graph, whose one product is ours or tract's.
#[track_caller]
fn check(nodes: Vec<NodeProto>, input: &[usize], is_ours: bool, expected: &[f32]) {
    let output: Vec<usize> = input[..input.len() - 1].iter().copied().chain([OUTPUTS]).collect();
    let onnx = encoded(graph(nodes), input, &output);
    let mut model = super::tidied(&onnx, input).unwrap();
    join(&mut model).unwrap();
    assert_eq!(
        [count::<Layer>(&model), count::<EinSum>(&model)],
        [usize::from(is_ours), usize::from(!is_ours)]
    );
    let plan = model.into_optimized().unwrap().into_runnable().unwrap();
    let rows = input.iter().product::<usize>() / INPUTS;
    let given = Tensor::from_shape(input, &row().repeat(rows)).unwrap();
    let found = plan.run(tvec!(given.into())).unwrap();
    let found = found[0].try_as_plain_ram().unwrap().as_slice::<f32>().unwrap().to_vec();
    assert_eq!(found, expected.repeat(rows));
}

fn each(of: impl Fn(usize) -> f32) -> Vec<f32> {
    (0..OUTPUTS).map(of).collect()
}

fn transposed() -> Vec<AttributeProto> {
    vec![number("transB", 1)]
}

#[test]
fn weights_lie_either_way() {
    let expected = each(|output| product(&row(), output));
    check(vec![node("Gemm", &["x", "by_output"], "y", transposed())], &[1, INPUTS], true, &expected);
    check(vec![node("MatMul", &["x", "by_input"], "y", vec![])], &[1, INPUTS], true, &expected);
    check(vec![node("MatMul", &["x", "by_input"], "y", vec![])], &[1, 1, INPUTS], true, &expected);
}

#[test]
fn bias_and_activation_belong_to_the_layer() {
    let sum = |output| product(&row(), output) + bias(output);
    let gemm = |to: &str| node("Gemm", &["x", "by_output", "bias"], to, transposed());
    check(vec![gemm("y")], &[1, INPUTS], true, &each(sum));
    let relu = node("Relu", &["a"], "y", vec![]);
    let bounded = each(|output| sum(output).max(0.0));
    assert!(bounded.contains(&0.0) && bounded.iter().any(|value| *value > 6.0), "{bounded:?}");
    check(vec![gemm("a"), relu.clone()], &[1, INPUTS], true, &bounded);
    let matmul = || node("MatMul", &["x", "by_input"], "p", vec![]);
    let add = node("Add", &["bias", "p"], "a", vec![]);
    check(vec![matmul(), add, relu], &[1, 1, INPUTS], true, &bounded);
    let clip = node("Clip", &["a", "zero", "six"], "y", vec![]);
    check(vec![gemm("a"), clip], &[1, INPUTS], true, &each(|output| sum(output).clamp(0.0, 6.0)));
    let late = vec![matmul(), node("Relu", &["p"], "a", vec![]), node("Add", &["a", "bias"], "y", vec![])];
    check(late, &[1, INPUTS], true, &each(|output| product(&row(), output).max(0.0) + bias(output)));
}

#[test]
fn what_another_reads_stays_readable() {
    let sum = |output| product(&row(), output) + bias(output);
    let nodes = vec![
        node("Gemm", &["x", "by_output", "bias"], "a", transposed()),
        node("Relu", &["a"], "b", vec![]),
        node("Sub", &["b", "a"], "y", vec![]),
    ];
    check(nodes, &[1, INPUTS], true, &each(|output| sum(output).max(0.0) - sum(output)));
    let nodes = vec![node("MatMul", &["x", "by_input"], "a", vec![]), node("Add", &["a", "a"], "y", vec![])];
    check(nodes, &[1, INPUTS], true, &each(|output| 2.0 * product(&row(), output)));
}

#[test]
fn several_rows_are_tracts() {
    let expected = each(|output| product(&row(), output) + bias(output));
    let gemm = node("Gemm", &["x", "by_output", "bias"], "y", transposed());
    check(vec![gemm], &[2, INPUTS], false, &expected);
}

#[test]
fn few_outputs_of_many_inputs_are_tracts() {
    for (inputs, outputs, is_ours) in [(4_096, 3, true), (4_097, 3, false), (4_097, 4, true)] {
        let weights = vec![0.5; inputs * outputs];
        let graph = GraphProto {
            node: vec![node("MatMul", &["x", "w"], "y", vec![])],
            initializer: vec![floats("w", &[inputs, outputs], &weights)],
            ..GraphProto::default()
        };
        let mut model = super::tidied(&encoded(graph, &[1, inputs], &[1, outputs]), &[1, inputs]).unwrap();
        join(&mut model).unwrap();
        assert_eq!(count::<Layer>(&model), usize::from(is_ours), "{inputs} x {outputs}");
    }
}

#[test]
fn a_row_that_is_one_element_repeated_is_refused() {
    let repeat: Vec<u8> = [1_i64, INPUTS as i64].iter().flat_map(|size| size.to_le_bytes()).collect();
    let mut graph = graph(vec![
        node("Expand", &["x", "repeat"], "row", vec![]),
        node("MatMul", &["row", "by_input"], "y", vec![]),
    ]);
    graph.initializer.push(tensor("repeat", DataType::Int64, &[2], repeat));
    let onnx = encoded(graph, &[1, 1], &[1, OUTPUTS]);
    let mut model = super::tidied(&onnx, &[1, 1]).unwrap();
    join(&mut model).unwrap();
    assert_eq!(count::<Layer>(&model), 0);
    let error = check_sums(&model).unwrap_err().to_string();
    assert!(error.contains("without a broadcast before the product"), "{error}");
}
