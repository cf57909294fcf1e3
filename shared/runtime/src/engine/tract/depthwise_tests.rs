//! Depthwise convolutions that are taken out of tract's hands answer as tract does, whatever stands around them.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::cnn::Conv;

use super::depthwise::{Layer, join};
use super::place::count;
use super::testing::{encoded, node, number, sizes, tensor};
use crate::onnx::{AttributeProto, DataType, GraphProto, NodeProto, TensorProto};

const CHANNELS: usize = 3;
const SIDES: [usize; 2] = [9, 7];

fn floats(name: &str, dims: &[usize]) -> TensorProto {
    let count: usize = dims.iter().product();
    let raw = (0..count).flat_map(|at| (((at * 37 + 11) % 17) as f32 * 0.125 - 1.0).to_le_bytes()).collect();
    tensor(name, DataType::Float, dims, raw)
}

fn attributes(stride: usize, pads: [usize; 4], groups: usize) -> Vec<AttributeProto> {
    vec![
        sizes("kernel_shape", &[3, 3]),
        sizes("strides", &[stride, stride]),
        sizes("pads", &pads),
        number("group", groups),
    ]
}

fn permuted(from: &str, to: &str, order: [usize; 4]) -> NodeProto {
    node("Transpose", &[from], to, vec![sizes("perm", &order)])
}

/// Runs the graph with our layers and without.
#[track_caller]
fn check(nodes: Vec<NodeProto>, input: &[usize], output: &[usize], [ours, tracts]: [usize; 2]) {
    let graph = GraphProto {
        node: nodes,
        initializer: vec![
            floats("w", &[CHANNELS, 1, 3, 3]),
            floats("w1", &[2, CHANNELS, 3, 3]),
            floats("w2", &[2 * CHANNELS, 1, 3, 3]),
            floats("b", &[CHANNELS]),
            tensor("zero", DataType::Float, &[], 0.0_f32.to_le_bytes().to_vec()),
            tensor("six", DataType::Float, &[], 6.0_f32.to_le_bytes().to_vec()),
        ],
        ..GraphProto::default()
    };
    let onnx = encoded(graph, input, output);
    let run = |model: TypedModel| {
        let plan = model.into_optimized().unwrap().into_runnable().unwrap();
        let values: Vec<f32> =
            (0..input.iter().product()).map(|at| ((at * 29) % 31) as f32 * 0.25 - 3.0).collect();
        let found = plan.run(tvec!(Tensor::from_shape(input, &values).unwrap().into())).unwrap();
        assert_eq!(found[0].shape(), output);
        found[0].try_as_plain_ram().unwrap().as_slice::<f32>().unwrap().to_vec()
    };
    let expected = run(super::tidied(&onnx, input).unwrap());
    let mut model = super::tidied(&onnx, input).unwrap();
    join(&mut model).unwrap();
    assert_eq!([count::<Layer>(&model), count::<Conv>(&model)], [ours, tracts]);
    assert_eq!(run(model), expected);
}

#[test]
fn strides_and_pads_are_the_graphs() {
    let conv = |stride, pads| node("Conv", &["x", "w", "b"], "y", attributes(stride, pads, CHANNELS));
    let input = [1, CHANNELS, SIDES[0], SIDES[1]];
    check(vec![conv(1, [1; 4])], &input, &[1, CHANNELS, 9, 7], [1, 0]);
    check(vec![conv(2, [1; 4])], &input, &[1, CHANNELS, 5, 4], [1, 0]);
    check(vec![conv(2, [0, 0, 1, 1])], &input, &[1, CHANNELS, 4, 3], [1, 0]);
    let bare = node("Conv", &["x", "w"], "y", attributes(1, [0; 4], CHANNELS));
    check(vec![bare], &input, &[1, CHANNELS, 7, 5], [1, 0]);
}

#[test]
fn dilations_and_pads_of_its_own_are_the_graphs() {
    let input = [1, CHANNELS, SIDES[0], SIDES[1]];
    let conv = |more: Vec<AttributeProto>| {
        let attributes = [sizes("kernel_shape", &[3, 3]), number("group", CHANNELS)].into_iter().chain(more);
        vec![node("Conv", &["x", "w", "b"], "y", attributes.collect())]
    };
    let same = |name: &str| AttributeProto {
        name: "auto_pad".into(),
        r#type: 3,
        s: name.as_bytes().to_vec(),
        ..AttributeProto::default()
    };
    check(conv(vec![sizes("dilations", &[2, 2])]), &input, &[1, CHANNELS, 5, 3], [1, 0]);
    check(conv(vec![sizes("pads", &[2, 1, 0, 0])]), &input, &[1, CHANNELS, 9, 6], [1, 0]);
    let two = || sizes("strides", &[2, 2]);
    check(conv(vec![two(), same("SAME_UPPER")]), &input, &[1, CHANNELS, 5, 4], [1, 0]);
    check(conv(vec![two(), same("SAME_LOWER")]), &input, &[1, CHANNELS, 5, 4], [1, 0]);
}

#[test]
fn an_activation_belongs_to_the_layer_and_others_read_what_they_read() {
    let conv = || node("Conv", &["x", "w", "b"], "a", attributes(1, [1; 4], CHANNELS));
    let input = [1, CHANNELS, SIDES[0], SIDES[1]];
    check(vec![conv(), node("Relu", &["a"], "y", vec![])], &input, &input, [1, 0]);
    check(vec![conv(), node("Clip", &["a", "zero", "six"], "y", vec![])], &input, &input, [1, 0]);
    // Where no number is within, the last bound holds.
    check(vec![conv(), node("Clip", &["a", "six", "zero"], "y", vec![])], &input, &input, [1, 0]);
    let both = vec![conv(), node("Relu", &["a"], "r", vec![]), node("Sub", &["r", "a"], "y", vec![])];
    check(both, &input, &input, [1, 0]);
}

#[test]
fn channels_may_be_last() {
    let nodes = vec![
        permuted("x", "f", [0, 3, 1, 2]),
        node("Conv", &["f", "w", "b"], "c", attributes(2, [1; 4], CHANNELS)),
        node("Relu", &["c"], "r", vec![]),
        permuted("r", "y", [0, 2, 3, 1]),
    ];
    check(nodes, &[1, SIDES[0], SIDES[1], CHANNELS], &[1, 5, 4, CHANNELS], [1, 0]);
}

#[test]
fn batches_and_filters_over_several_channels_are_tracts() {
    let input = [2, CHANNELS, SIDES[0], SIDES[1]];
    let conv = node("Conv", &["x", "w", "b"], "y", attributes(1, [1; 4], CHANNELS));
    check(vec![conv], &input, &input, [0, 1]);
    let conv = node("Conv", &["x", "w1"], "y", attributes(1, [1; 4], 1));
    check(vec![conv], &[1, CHANNELS, SIDES[0], SIDES[1]], &[1, 2, SIDES[0], SIDES[1]], [0, 1]);
    let conv = node("Conv", &["x", "w2"], "y", attributes(1, [1; 4], CHANNELS));
    let output = [1, 2 * CHANNELS, SIDES[0], SIDES[1]];
    check(vec![conv], &[1, CHANNELS, SIDES[0], SIDES[1]], &output, [0, 1]);
}
