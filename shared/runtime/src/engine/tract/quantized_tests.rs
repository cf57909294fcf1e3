//! Chains of quantized layers in a plan give what their definition gives, whoever else reads what is between them.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use muster_kernels::{Requantize, Shape, Weights, channels_first, reference};

use super::testing::{encoded, node, number, sizes, tensor};
use crate::engine::{Engine, EngineKind};
use crate::manifest::{ElementType, InputSpec, OutputSpec};
use crate::onnx::{DataType, GraphProto};

const INPUT: [usize; 4] = [1, 3, 6, 5];
const SCALE: f32 = 0.05;
const ZERO: i8 = -7;

/// A layer of the chain: channels out, kernel, stride, groups.
const LAYERS: [(usize, usize, usize, usize); 3] = [(4, 3, 1, 1), (4, 3, 2, 4), (20, 1, 1, 1)];

/// `[height, width, channels]`, and channels, height, width.
type Answer = (Vec<i8>, [usize; 3]);

fn bytes(count: usize, salt: usize) -> Vec<i8> {
    (0..count).map(|at| ((at + salt) * 89 % 251) as u8 as i8).collect()
}

/// The graph, and what each layer gives by the definition.
fn chain(input: &[i8]) -> (GraphProto, Vec<Answer>) {
    let one = |name: &str, value: f32| tensor(name, DataType::Float, &[], value.to_le_bytes().to_vec());
    let zero = |name: &str, value: i8| tensor(name, DataType::Int8, &[], vec![value as u8]);
    let mut graph = GraphProto {
        node: vec![node("QuantizeLinear", &["x", "s", "z"], "v0", vec![])],
        initializer: vec![one("s", SCALE), zero("z", ZERO), zero("wz", 0)],
        ..GraphProto::default()
    };
    let (mut values, mut size, mut channels_in) = (input.to_vec(), [INPUT[2], INPUT[3]], INPUT[1]);
    let mut answers = Vec::new();
    for (at, (channels_out, kernel, stride, groups)) in LAYERS.into_iter().enumerate() {
        let each = channels_in / groups;
        let filters = bytes(channels_out * each * kernel * kernel, at);
        let bias: Vec<i32> = (0..channels_out).map(|channel| channel as i32 * 100 - 50).collect();
        let scales: Vec<f32> = (0..channels_out).map(|channel| 0.001 + channel as f32 * 0.0002).collect();
        let flat = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        graph.initializer.extend([
            tensor(
                &format!("w{at}"),
                DataType::Int8,
                &[channels_out, each, kernel, kernel],
                filters.iter().map(|value| *value as u8).collect(),
            ),
            tensor(&format!("ws{at}"), DataType::Float, &[channels_out], flat(&scales)),
            tensor(
                &format!("b{at}"),
                DataType::Int32,
                &[channels_out],
                bias.iter().flat_map(|value| value.to_le_bytes()).collect(),
            ),
        ]);
        let pad = kernel / 2;
        let [from, to, w, ws, b] =
            [format!("v{at}"), format!("v{}", at + 1), format!("w{at}"), format!("ws{at}"), format!("b{at}")];
        let attributes = vec![
            sizes("kernel_shape", &[kernel, kernel]),
            sizes("strides", &[stride, stride]),
            sizes("pads", &[pad; 4]),
            number("group", groups),
        ];
        graph.node.push(node(
            "QLinearConv",
            &[&from, "s", "z", &w, &ws, "wz", "s", "z", &b],
            &to,
            attributes,
        ));
        let shape = Shape {
            input: size,
            channels_in,
            channels_out,
            kernel: [kernel; 2],
            stride: [stride; 2],
            dilation: [1; 2],
            pad_begin: [pad; 2],
            pad_end: [pad; 2],
            groups,
        };
        let weights = Weights { values: &filters, bias: Some(&bias), input_zero: ZERO };
        let multipliers = scales.iter().map(|scale| SCALE * scale / SCALE).collect();
        let requantize = Requantize { multipliers, zero: ZERO, min: i8::MIN, max: i8::MAX };
        values = reference(&shape, &weights, &requantize, &values);
        (size, channels_in) = (shape.output(), channels_out);
        answers.push((values.clone(), [channels_in, size[0], size[1]]));
    }
    (graph, answers)
}

/// Runs the chain and reads out the layers named, each dequantised.
fn check(read: &[usize]) {
    let last = bytes(INPUT.iter().product(), 9);
    let mut first = vec![0; last.len()];
    channels_first(&last, INPUT[1], &mut first);
    let (mut graph, answers) = chain(&last);
    let mut expected: Vec<f32> = Vec::new();
    let mut flat = Vec::new();
    graph.initializer.push(tensor(
        "row",
        DataType::Int64,
        &[2],
        [1_i64, -1].iter().flat_map(|size| size.to_le_bytes()).collect(),
    ));
    for layer in read {
        let (answer, [channels, ..]) = &answers[*layer];
        let mut ordered = vec![0; answer.len()];
        channels_first(answer, *channels, &mut ordered);
        expected.extend(ordered.iter().map(|value| f32::from(i16::from(*value) - i16::from(ZERO)) * SCALE));
        let [value, float, row] = ["v", "f", "r"].map(|name| format!("{name}{}", layer + 1));
        graph.node.push(node("DequantizeLinear", &[&value, "s", "z"], &float, vec![]));
        graph.node.push(node("Reshape", &[&float, "row"], &row, vec![]));
        flat.push(row);
    }
    let names: Vec<&str> = flat.iter().map(String::as_str).collect();
    graph.node.push(node("Concat", &names, "y", vec![number("axis", 1)]));
    let onnx = encoded(graph, &INPUT, &[1, expected.len()]);
    let input = InputSpec { name: "x".into(), shape: INPUT.to_vec(), element: ElementType::F32 };
    let output = OutputSpec { name: "y".into(), shape: vec![1, expected.len()] };
    let engine = Engine::load(EngineKind::Tract, &onnx, &input, &output).unwrap();
    let floats: Vec<f32> =
        first.iter().map(|value| f32::from(i16::from(*value) - i16::from(ZERO)) * SCALE).collect();
    let found = engine.session().unwrap().run(&floats).unwrap();
    assert_eq!(found, expected, "{read:?}");
}

#[test]
fn a_chain_gives_what_its_layers_give() {
    check(&[2]);
    check(&[0]);
}

#[test]
fn what_others_read_in_the_middle_is_in_their_order() {
    check(&[0, 2]);
    check(&[0, 1, 2]);
    check(&[1, 2]);
}
