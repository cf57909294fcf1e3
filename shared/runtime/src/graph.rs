//! Refuses graphs that the engine computes wrongly or cannot load, with a text that says what to change.
//!
//! `engine` calls [`check_model`] on the decoded ONNX before anything else sees it. What stands here was measured against
//! ONNX Runtime: each rule names a pattern that gave wrong numbers in silence, or a load error that nobody could read.
//! Golden samples catch what no rule knows.

use std::collections::HashMap;

use crate::onnx::{AttributeProto, DataType, GraphProto, ModelProto, NodeProto, TensorProto};
use crate::refusal::{DEPTH_MAX, Refusal};

/// Longest chain of operators between a DequantizeLinear and a QuantizeLinear that is looked through.
const CHAIN_MAX: usize = 64;
/// `TensorProto.DataLocation.EXTERNAL`.
const EXTERNAL: i32 = 1;

/// Operators that mix elements and that the engine turns into a per-element table between dequantise and quantise.
/// Pooling, reductions, normalisations and CumSum were measured there too and are right.
const MIXING: &[&str] = &["Softmax", "LogSoftmax"];
/// Recurrent operators.
const RECURRENT: &[&str] = &["LSTM", "GRU", "RNN"];

/// Checks a whole model.
///
/// # Errors
/// The first pattern that the engine does not compute rightly.
pub(crate) fn check_model(model: &ModelProto) -> Result<(), Refusal> {
    if let Some(function) = model.functions.first() {
        return Err(Refusal::Function { function: function.name.clone() });
    }
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
    if tensor.data_location == EXTERNAL || !tensor.external_data.is_empty() {
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
            if let Some(tensor) = input.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()) {
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
            None => Some(DataType::Uint8 as i32),
        }
    }
}

fn eight_bit_name(data_type: i32) -> Option<&'static str> {
    match data_type {
        t if t == DataType::Uint8 as i32 => Some("uint8"),
        t if t == DataType::Int8 as i32 => Some("int8"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{FunctionProto, TensorType, TypeProto, ValueInfoProto};

    const U8: i32 = DataType::Uint8 as i32;
    const I8: i32 = DataType::Int8 as i32;

    fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
        NodeProto {
            op_type: operator.into(),
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.into()],
            ..NodeProto::default()
        }
    }

    fn constant(name: &str, data_type: i32) -> TensorProto {
        TensorProto { name: name.into(), data_type, ..TensorProto::default() }
    }

    fn input(name: &str, elem_type: i32) -> ValueInfoProto {
        let tensor_type = Some(TensorType { elem_type, shape: None });
        ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
    }

    fn refusal(nodes: Vec<NodeProto>) -> Option<String> {
        let graph = GraphProto {
            node: nodes,
            input: vec![input("x", U8)],
            initializer: vec![
                constant("s", 1),
                constant("u8", U8),
                constant("i8", I8),
                constant("weight", I8),
            ],
            ..GraphProto::default()
        };
        let model = ModelProto { graph: Some(graph), ..ModelProto::default() };
        check_model(&model).err().map(|refusal| refusal.to_string())
    }

    #[track_caller]
    fn check(nodes: Vec<NodeProto>, expected: Option<&str>) {
        let found = refusal(nodes);
        match (expected, &found) {
            (None, None) => {}
            (Some(part), Some(text)) if text.contains(part) => {}
            _ => panic!("expected {expected:?}, found {found:?}"),
        }
    }

    /// x -> DequantizeLinear -> the middle -> QuantizeLinear, with the zero points' types.
    fn chain(from: &str, middle: &[&str], to: &str) -> Vec<NodeProto> {
        let mut nodes = vec![node("DequantizeLinear", &["x", "s", from], "v")];
        let mut value = "v".to_owned();
        for (index, operator) in middle.iter().enumerate() {
            let next = format!("v{index}");
            nodes.push(node(operator, &[&value], &next));
            value = next;
        }
        nodes.push(node("QuantizeLinear", &[&value, "s", to], "y"));
        nodes
    }

    #[test]
    fn softmax_between_dequantize_and_quantize_is_refused() {
        let text = "Softmax between DequantizeLinear and QuantizeLinear is computed wrongly by the engine; keep Softmax in float";
        check(chain("i8", &["Softmax"], "i8"), Some(text));
        check(chain("i8", &["Relu", "Softmax", "Reshape"], "i8"), Some("`v1`: Softmax between"));
        check(chain("i8", &["LogSoftmax"], "i8"), Some("LogSoftmax between"));
        let mut float_end = chain("i8", &["Softmax"], "i8");
        float_end.pop();
        check(float_end, None);
        check(vec![node("Softmax", &["x"], "a"), node("QuantizeLinear", &["a", "s", "i8"], "y")], None);
    }

    #[test]
    fn requantization_between_two_types_is_refused() {
        check(chain("u8", &[], "i8"), Some("`y`: requantization from uint8 to int8"));
        check(chain("i8", &["Relu"], "u8"), Some("requantization from int8 to uint8"));
        check(chain("", &[], "i8"), Some("requantization from uint8 to int8"));
        check(chain("i8", &[], ""), Some("requantization from int8 to uint8"));
        check(chain("i8", &["Relu"], "i8"), None);
        // Two computed inputs end the chain that the engine folds.
        let mut added = chain("u8", &[], "i8");
        added[1] = node("QuantizeLinear", &["sum", "s", "i8"], "y");
        added.insert(1, node("Add", &["v", "x"], "sum"));
        check(added, None);
    }

    #[test]
    fn quantized_weights_are_no_chain() {
        let nodes = vec![
            node("DequantizeLinear", &["weight", "s", "i8"], "w"),
            node("QuantizeLinear", &["w", "s", "u8"], "y"),
        ];
        check(nodes, None);
    }

    #[test]
    fn foreign_operators_are_refused() {
        let foreign = NodeProto { domain: "com.microsoft".into(), ..node("QGemm", &["x"], "y") };
        check(
            vec![foreign.clone()],
            Some("operator QGemm is of domain com.microsoft; expected standard ONNX operators only"),
        );
        check(vec![NodeProto { domain: "ai.onnx".into(), ..foreign.clone() }], None);
        let mut branch = node("If", &["x"], "z");
        let inner = GraphProto { node: vec![foreign], ..GraphProto::default() };
        branch.attribute =
            vec![AttributeProto { name: "then_branch".into(), g: Some(inner), ..AttributeProto::default() }];
        check(vec![branch], Some("QGemm"));
    }

    #[test]
    fn recurrent_operators_must_run_forward() {
        let with_direction = |operator: &str, direction: &str| {
            let attribute = AttributeProto {
                name: "direction".into(),
                s: direction.as_bytes().to_vec(),
                ..AttributeProto::default()
            };
            vec![NodeProto { attribute: vec![attribute], ..node(operator, &["x"], "y") }]
        };
        for operator in RECURRENT {
            check(with_direction(operator, "forward"), None);
            check(vec![node(operator, &["x"], "y")], None);
            for direction in ["reverse", "bidirectional"] {
                check(
                    with_direction(operator, direction),
                    Some(&format!("{operator} with direction {direction}")),
                );
            }
        }
    }

    #[test]
    fn subgraphs_nested_deeper_than_the_bound_are_refused() {
        let nested = |depth: usize| {
            let mut graph = GraphProto::default();
            for _ in 0..depth {
                let attribute =
                    AttributeProto { name: "body".into(), g: Some(graph), ..AttributeProto::default() };
                let outer = NodeProto { attribute: vec![attribute], ..node("Loop", &["x"], "y") };
                graph = GraphProto { node: vec![outer], ..GraphProto::default() };
            }
            check_model(&ModelProto { graph: Some(graph), ..ModelProto::default() })
        };
        assert_eq!(nested(DEPTH_MAX), Ok(()));
        let refused = nested(DEPTH_MAX + 1).unwrap_err();
        assert_eq!(refused, Refusal::TooDeep);
        assert_eq!(refused.to_string(), "subgraphs are nested deeper than 8");
    }

    #[test]
    fn a_chain_is_looked_through_up_to_a_bound_and_a_circle_ends() {
        // The chain's DequantizeLinear is the last node that is looked at.
        let softmax = |others: usize| {
            let middle: Vec<_> = std::iter::once("Softmax").chain(vec!["Relu"; others]).collect();
            refusal(chain("i8", &middle, "i8"))
        };
        assert!(softmax(CHAIN_MAX - 2).is_some_and(|text| text.contains("`v0`: Softmax between")));
        assert_eq!(softmax(CHAIN_MAX - 1), None, "the golden samples are what catches such a graph");
        let circle = vec![
            node("Relu", &["b"], "a"),
            node("Relu", &["a"], "b"),
            node("QuantizeLinear", &["b", "s", "i8"], "y"),
        ];
        check(circle, None);
    }

    #[test]
    fn external_weights_functions_and_missing_graphs_are_refused() {
        let tensor = TensorProto { data_location: EXTERNAL, ..constant("w", I8) };
        let graph = GraphProto { initializer: vec![tensor], ..GraphProto::default() };
        let refused = check_model(&ModelProto { graph: Some(graph), ..ModelProto::default() });
        assert_eq!(refused, Err(Refusal::ExternalWeights { tensor: "w".into() }));
        assert_eq!(check_model(&ModelProto::default()), Err(Refusal::NoGraph));
        let functions = vec![FunctionProto { name: "gelu".into() }];
        let refused = check_model(&ModelProto { functions, ..ModelProto::default() });
        assert_eq!(refused, Err(Refusal::Function { function: "gelu".into() }));
    }
}
