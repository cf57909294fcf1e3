//! Turns stored int8 weights into floats before the engine sees the graph.
//!
//! `engine` calls [`dequantize_weights`]. A DequantizeLinear of an initialiser becomes a float initialiser of the same
//! name, so that load time and memory do not grow with folding inside the engine. Other DequantizeLinear nodes stay.

use std::collections::{HashMap, HashSet};

use crate::graph::attribute;
use crate::onnx::{DataType, GraphProto, NodeProto, TensorProto};

/// Replaces every DequantizeLinear of an initialiser and drops initialisers that nobody uses any more.
/// Returns how many were replaced.
pub(crate) fn dequantize_weights(graph: &mut GraphProto) -> usize {
    let mut floats = Vec::new();
    let mut replaced = vec![false; graph.node.len()];
    let constants: HashMap<&str, &TensorProto> =
        graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
    for (index, node) in graph.node.iter().enumerate() {
        if node.op_type == "DequantizeLinear"
            && let Some(tensor) = dequantized(node, &constants)
        {
            floats.push(tensor);
            replaced[index] = true;
        }
    }
    let count = floats.len();
    if count > 0 {
        let mut keep = replaced.iter().map(|done| !done);
        graph.node.retain(|_| keep.next().unwrap_or(true));
        graph.initializer.append(&mut floats);
        drop_unused_initializers(graph);
    }
    count
}

fn drop_unused_initializers(graph: &mut GraphProto) {
    let has_subgraphs =
        graph.node.iter().flat_map(|node| &node.attribute).any(|a| a.g.is_some() || !a.graphs.is_empty());
    if has_subgraphs {
        return;
    }
    let used: HashSet<&str> = graph
        .node
        .iter()
        .flat_map(|node| &node.input)
        .chain(graph.output.iter().map(|o| &o.name))
        .map(String::as_str)
        .collect();
    let unused: HashSet<String> = graph
        .initializer
        .iter()
        .filter(|t| !used.contains(t.name.as_str()))
        .map(|t| t.name.clone())
        .collect();
    graph.initializer.retain(|tensor| !unused.contains(&tensor.name));
    // Old files list initialisers among the inputs too.
    graph.input.retain(|input| !unused.contains(&input.name));
}

/// The float tensor that a DequantizeLinear of constants makes, or None where it is not one of the simple forms.
fn dequantized(node: &NodeProto, constants: &HashMap<&str, &TensorProto>) -> Option<TensorProto> {
    if attribute(node, "block_size").is_some_and(|a| a.i != 0)
        || attribute(node, "output_dtype").is_some_and(|a| a.i != 0)
    {
        return None;
    }
    let constant = |index: usize| node.input.get(index).and_then(|name| constants.get(name.as_str()));
    let stored = constant(0)?;
    let values = integers(stored)?;
    let scales = floats(constant(1)?)?;
    let zero_points = match node.input.get(2).filter(|name| !name.is_empty()) {
        Some(_) => integers(constant(2)?)?,
        None => vec![0; scales.len()],
    };
    let dims: Vec<usize> = stored.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<_>>()?;
    if dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))? != values.len()
        || zero_points.len() != scales.len()
    {
        return None;
    }
    let inner = match scales.len() {
        1 => values.len().max(1),
        channels => {
            let axis = channel_axis(node, dims.len())?;
            (dims[axis] == channels).then_some(())?;
            dims[axis + 1..].iter().product()
        }
    };
    let mut raw_data = Vec::with_capacity(values.len() * 4);
    for (index, value) in values.iter().enumerate() {
        let channel = (index / inner) % scales.len();
        let difference = value.checked_sub(zero_points[channel])?;
        raw_data.extend_from_slice(&(difference as f32 * scales[channel]).to_le_bytes());
    }
    let name = node.output.first()?.clone();
    Some(TensorProto {
        dims: stored.dims.clone(),
        data_type: DataType::Float as i32,
        name,
        raw_data,
        ..TensorProto::default()
    })
}

fn channel_axis(node: &NodeProto, rank: usize) -> Option<usize> {
    let axis = attribute(node, "axis").map_or(1, |a| a.i);
    let rank = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis + rank } else { axis };
    (0..rank).contains(&axis).then(|| usize::try_from(axis).ok())?
}

fn integers(tensor: &TensorProto) -> Option<Vec<i32>> {
    let raw = &tensor.raw_data;
    let kind = DataType::try_from(tensor.data_type).ok()?;
    if raw.is_empty() && matches!(kind, DataType::Int8 | DataType::Uint8 | DataType::Int32) {
        return Some(tensor.int32_data.clone());
    }
    match kind {
        DataType::Int8 => Some(raw.iter().map(|&byte| i32::from(byte.cast_signed())).collect()),
        DataType::Uint8 => Some(raw.iter().map(|&byte| i32::from(byte)).collect()),
        DataType::Int32 => words(raw).map(|words| words.map(i32::from_le_bytes).collect()),
        _ => None,
    }
}

fn floats(tensor: &TensorProto) -> Option<Vec<f32>> {
    if DataType::try_from(tensor.data_type).ok()? != DataType::Float {
        return None;
    }
    if tensor.raw_data.is_empty() {
        return (!tensor.float_data.is_empty()).then(|| tensor.float_data.clone());
    }
    words(&tensor.raw_data).map(|words| words.map(f32::from_le_bytes).collect())
}

fn words(raw: &[u8]) -> Option<impl Iterator<Item = [u8; 4]> + '_> {
    let (words, rest) = raw.as_chunks::<4>();
    rest.is_empty().then(|| words.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{AttributeProto, ValueInfoProto};

    fn tensor(name: &str, kind: DataType, dims: &[i64], raw_data: Vec<u8>) -> TensorProto {
        TensorProto {
            name: name.into(),
            data_type: kind as i32,
            dims: dims.to_vec(),
            raw_data,
            ..TensorProto::default()
        }
    }

    fn float_bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn dequantize(inputs: &[&str], axis: Option<i64>) -> NodeProto {
        NodeProto {
            op_type: "DequantizeLinear".into(),
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec!["w".into()],
            attribute: axis
                .map(|i| AttributeProto { name: "axis".into(), i, ..AttributeProto::default() })
                .into_iter()
                .collect(),
            ..NodeProto::default()
        }
    }

    /// A graph with a 2 x 3 int8 weight, used by one Gemm.
    fn graph(scales: &[f32], zeros: &[u8], axis: Option<i64>) -> GraphProto {
        let count = scales.len() as i64;
        let user =
            NodeProto { op_type: "Gemm".into(), input: vec!["x".into(), "w".into()], ..NodeProto::default() };
        GraphProto {
            node: vec![dequantize(&["q", "s", "z"], axis), user],
            initializer: vec![
                tensor("q", DataType::Int8, &[2, 3], vec![1, 2, 3, 255, 254, 129]),
                tensor("s", DataType::Float, &[count], float_bytes(scales)),
                tensor("z", DataType::Int8, &[count], zeros.to_vec()),
            ],
            input: vec![ValueInfoProto { name: "q".into(), ..ValueInfoProto::default() }],
            ..GraphProto::default()
        }
    }

    #[track_caller]
    fn check(mut graph: GraphProto, expected: &[f32]) {
        assert_eq!(dequantize_weights(&mut graph), 1);
        assert_eq!(graph.node.len(), 1, "the DequantizeLinear is gone");
        let names: Vec<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["w"], "only the float weight is left");
        assert!(graph.input.is_empty());
        assert_eq!(floats(&graph.initializer[0]).unwrap(), expected);
        assert_eq!(graph.initializer[0].dims, [2, 3]);
    }

    #[test]
    fn weights_become_floats_per_channel_and_per_tensor() {
        check(graph(&[1.0, 10.0], &[0, 0], Some(0)), &[1.0, 2.0, 3.0, -10.0, -20.0, -1270.0]);
        check(graph(&[1.0, 10.0, 0.5], &[0, 0, 0], Some(-1)), &[1.0, 20.0, 1.5, -1.0, -20.0, -63.5]);
        check(graph(&[1.0, 10.0, 0.5], &[1, 0, 0], None), &[0.0, 20.0, 1.5, -2.0, -20.0, -63.5]);
        check(graph(&[2.0], &[1], Some(0)), &[0.0, 2.0, 4.0, -4.0, -6.0, -256.0]);
    }

    #[test]
    fn forms_that_do_not_fit_stay_as_they_are() {
        let untouched = |mut graph: GraphProto| {
            let before = graph.clone();
            assert_eq!(dequantize_weights(&mut graph), 0);
            assert_eq!(graph, before);
        };
        untouched(graph(&[1.0, 10.0], &[0, 0], Some(1)));
        untouched(graph(&[1.0, 10.0], &[0, 0], Some(7)));
        untouched(graph(&[1.0, 10.0], &[0], Some(0)));
        let mut computed = graph(&[1.0], &[0], None);
        computed.node[0].input[0] = "activation".into();
        untouched(computed);
        let mut short = graph(&[1.0], &[0], None);
        short.initializer[0].raw_data.pop();
        untouched(short);
    }
}
