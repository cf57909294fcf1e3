//! Refuses graphs that the engine computes wrongly or cannot load, with a text that says what to change.
//!
//! `engine` calls [`check_model`] on the decoded ONNX before anything else sees it. What stands here was measured against
//! ONNX Runtime: each rule names a pattern that gave wrong numbers in silence, or a load error that nobody could read.
//! Golden samples catch what no rule knows.

use std::collections::HashMap;

use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, tensor_proto, type_proto,
};

/// Deepest nesting of subgraphs (If, Loop, Scan).
const DEPTH_MAX: usize = 8;
/// Longest chain of operators between a DequantizeLinear and a QuantizeLinear that is looked through.
const CHAIN_MAX: usize = 64;
/// `TensorProto.DataLocation.EXTERNAL`.
const EXTERNAL: i32 = 1;

/// Operators that mix elements: between dequantise and quantise the engine turns them into a per-element table.
const MIXING: &[&str] =
    &["Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum", "LayerNormalization"];
/// Recurrent operators.
const RECURRENT: &[&str] = &["LSTM", "GRU", "RNN"];

/// Why a graph is refused before the engine sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no graph in the file.
    #[error("the file holds no graph; expected an ONNX model")]
    NoGraph,
    /// An operator of another domain.
    #[error(
        "node `{node}`: operator {operator} is of domain {domain}; expected standard ONNX operators only (export without vendor fusions)"
    )]
    ForeignOperator {
        /// The node.
        node: String,
        /// Its operator.
        operator: String,
        /// The operator's domain.
        domain: String,
    },
    /// Softmax and the like between dequantise and quantise.
    #[error(
        "node `{node}`: {operator} between DequantizeLinear and QuantizeLinear is computed wrongly by the engine; keep {operator} in float"
    )]
    QuantizedMixing {
        /// The node.
        node: String,
        /// Its operator.
        operator: String,
    },
    /// Dequantise of one 8-bit type straight into quantise of another.
    #[error(
        "node `{node}`: requantization from {from} to {to} is not supported by the engine; use one 8-bit type for both"
    )]
    MixedRequantization {
        /// The quantising node.
        node: String,
        /// Type before.
        from: &'static str,
        /// Type after.
        to: &'static str,
    },
    /// A recurrent operator that runs backwards.
    #[error(
        "node `{node}`: {operator} with direction {direction} is computed wrongly by the engine; expected forward"
    )]
    ReverseRecurrent {
        /// The node.
        node: String,
        /// Its operator.
        operator: String,
        /// Its direction.
        direction: String,
    },
    /// Weights in another file.
    #[error("tensor `{tensor}`: weights in an external file; expected all weights inside model.onnx")]
    ExternalWeights {
        /// The tensor.
        tensor: String,
    },
    /// Subgraphs nested too deep.
    #[error("subgraphs are nested deeper than {DEPTH_MAX}")]
    TooDeep,
}

/// Checks a whole model.
///
/// # Errors
/// The first pattern that the engine does not compute rightly.
pub(crate) fn check_model(model: &ModelProto) -> Result<(), Refusal> {
    check_graph(model.graph.as_ref().ok_or(Refusal::NoGraph)?, 0)
}

fn check_graph(graph: &GraphProto, depth: usize) -> Result<(), Refusal> {
    if depth > DEPTH_MAX {
        return Err(Refusal::TooDeep);
    }
    for tensor in &graph.initializer {
        check_tensor(tensor)?;
    }
    for node in &graph.node {
        check_node(node)?;
        for attribute in &node.attribute {
            if let Some(tensor) = &attribute.t {
                check_tensor(tensor)?;
            }
            for inner in attribute.g.iter().chain(&attribute.graphs) {
                check_graph(inner, depth + 1)?;
            }
        }
    }
    let wiring = Wiring::new(graph);
    graph
        .node
        .iter()
        .filter(|node| node.op_type == "QuantizeLinear")
        .try_for_each(|node| wiring.check_quantize(node))
}

fn check_tensor(tensor: &TensorProto) -> Result<(), Refusal> {
    if tensor.data_location == Some(EXTERNAL) || !tensor.external_data.is_empty() {
        return Err(Refusal::ExternalWeights { tensor: tensor.name.clone() });
    }
    Ok(())
}

fn check_node(node: &NodeProto) -> Result<(), Refusal> {
    if !node.domain.is_empty() && node.domain != "ai.onnx" {
        let (operator, domain) = (node.op_type.clone(), node.domain.clone());
        return Err(Refusal::ForeignOperator { node: node_name(node), operator, domain });
    }
    if RECURRENT.contains(&node.op_type.as_str())
        && let Some(direction) = attribute(node, "direction")
        && !direction.s.is_empty()
        && direction.s != b"forward"
    {
        let direction = String::from_utf8_lossy(&direction.s).into_owned();
        return Err(Refusal::ReverseRecurrent {
            node: node_name(node),
            operator: node.op_type.clone(),
            direction,
        });
    }
    Ok(())
}

/// A node's attribute by name.
pub(crate) fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}

fn node_name(node: &NodeProto) -> String {
    if node.name.is_empty() { node.output.first().cloned().unwrap_or_default() } else { node.name.clone() }
}

/// Who makes which value.
struct Wiring<'a> {
    producers: HashMap<&'a str, &'a NodeProto>,
    constants: HashMap<&'a str, i32>,
    inputs: HashMap<&'a str, i32>,
}

impl<'a> Wiring<'a> {
    fn new(graph: &'a GraphProto) -> Self {
        let mut producers = HashMap::new();
        for node in &graph.node {
            for output in node.output.iter().filter(|name| !name.is_empty()) {
                producers.insert(output.as_str(), node);
            }
        }
        let constants =
            graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor.data_type)).collect();
        let mut inputs = HashMap::new();
        for input in &graph.input {
            if let Some(type_proto::Value::TensorType(tensor)) =
                input.r#type.as_ref().and_then(|t| t.value.as_ref())
            {
                inputs.insert(input.name.as_str(), tensor.elem_type);
            }
        }
        Self { producers, constants, inputs }
    }

    /// Walks up from a QuantizeLinear while there is one computed input, to a DequantizeLinear of a computed value.
    fn check_quantize(&self, quantize: &'a NodeProto) -> Result<(), Refusal> {
        let mut mixing: Option<&NodeProto> = None;
        let mut straight = true;
        let mut value = quantize.input.first().map(String::as_str).unwrap_or_default();
        for _ in 0..CHAIN_MAX {
            let Some(node) = self.producers.get(value) else { return Ok(()) };
            if node.op_type == "DequantizeLinear" {
                let source = node.input.first().map(String::as_str).unwrap_or_default();
                if self.constants.contains_key(source) {
                    return Ok(());
                }
                return self.check_pair(node, mixing, straight, quantize);
            }
            if MIXING.contains(&node.op_type.as_str()) {
                mixing = Some(node);
            }
            let mut computed = node
                .input
                .iter()
                .filter(|name| !name.is_empty() && !self.constants.contains_key(name.as_str()));
            let (Some(only), None) = (computed.next(), computed.next()) else { return Ok(()) };
            straight &= node.input.len() == 1;
            value = only;
        }
        Ok(())
    }

    fn check_pair(
        &self,
        dequantize: &NodeProto,
        mixing: Option<&NodeProto>,
        straight: bool,
        quantize: &NodeProto,
    ) -> Result<(), Refusal> {
        if let Some(node) = mixing {
            return Err(Refusal::QuantizedMixing { node: node_name(node), operator: node.op_type.clone() });
        }
        let (from, to) = (self.input_type(dequantize), self.output_type(quantize));
        match (from.and_then(eight_bit_name), to.and_then(eight_bit_name)) {
            (Some(from), Some(to)) if from != to && straight => {
                Err(Refusal::MixedRequantization { node: node_name(quantize), from, to })
            }
            _ => Ok(()),
        }
    }

    fn input_type(&self, dequantize: &NodeProto) -> Option<i32> {
        let zero_point = dequantize.input.get(2).and_then(|name| self.constants.get(name.as_str()));
        let source = dequantize.input.first()?.as_str();
        zero_point.or_else(|| self.inputs.get(source)).copied()
    }

    fn output_type(&self, quantize: &NodeProto) -> Option<i32> {
        match quantize.input.get(2).filter(|name| !name.is_empty()) {
            Some(zero_point) => self.constants.get(zero_point.as_str()).copied(),
            None => Some(tensor_proto::DataType::Uint8 as i32),
        }
    }
}

fn eight_bit_name(data_type: i32) -> Option<&'static str> {
    match data_type {
        t if t == tensor_proto::DataType::Uint8 as i32 => Some("uint8"),
        t if t == tensor_proto::DataType::Int8 as i32 => Some("int8"),
        _ => None,
    }
}
