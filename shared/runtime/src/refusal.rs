//! Why a graph is refused before an engine sees it; `graph` looks for it.

/// Deepest nesting of subgraphs (If, Loop, Scan).
pub(crate) const DEPTH_MAX: usize = 8;

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
    /// A function of the model's own.
    #[error(
        "function `{function}` of the model's own; expected operators only (inline functions when exporting)"
    )]
    Function {
        /// The function.
        function: String,
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
    #[error("tensor `{tensor}`: weights in an external file; expected all weights inside the model's own")]
    ExternalWeights {
        /// The tensor.
        tensor: String,
    },
    /// Subgraphs nested too deep.
    #[error("subgraphs are nested deeper than {DEPTH_MAX}")]
    TooDeep,
}
