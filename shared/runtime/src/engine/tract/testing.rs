//! Small graphs for the engine's tests.

use prost::Message as _;

use crate::onnx::{
    AttributeProto, DataType, Dimension, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, Size,
    TensorProto, TensorShapeProto, TensorType, TypeProto, ValueInfoProto,
};

pub(super) fn tensor(name: &str, kind: DataType, dims: &[usize], raw_data: Vec<u8>) -> TensorProto {
    let dims = dims.iter().map(|dim| *dim as i64).collect();
    TensorProto { name: name.into(), data_type: kind as i32, dims, raw_data, ..TensorProto::default() }
}

pub(super) fn node(
    operator: &str,
    inputs: &[&str],
    output: &str,
    attribute: Vec<AttributeProto>,
) -> NodeProto {
    let input = inputs.iter().map(|name| (*name).to_owned()).collect();
    NodeProto {
        op_type: operator.into(),
        input,
        output: vec![output.into()],
        attribute,
        ..NodeProto::default()
    }
}

pub(super) fn sizes(name: &str, ints: &[usize]) -> AttributeProto {
    let ints = ints.iter().map(|size| *size as i64).collect();
    AttributeProto { name: name.into(), r#type: 7, ints, ..AttributeProto::default() }
}

pub(super) fn number(name: &str, i: usize) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: 2, i: i as i64, ..AttributeProto::default() }
}

/// The file of a graph from `x` to `y`, both f32.
pub(super) fn encoded(mut graph: GraphProto, input: &[usize], output: &[usize]) -> Vec<u8> {
    let value = |name: &str, shape: &[usize]| {
        let dim = shape.iter().map(|size| Dimension { size: Some(Size::Value(*size as i64)) }).collect();
        let tensor_type =
            TensorType { elem_type: DataType::Float as i32, shape: Some(TensorShapeProto { dim }) };
        ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
    };
    graph.input = vec![value("x", input)];
    graph.output = vec![value("y", output)];
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 13 }];
    ModelProto { ir_version: 8, opset_import, graph: Some(graph), functions: Vec::new() }.encode_to_vec()
}
