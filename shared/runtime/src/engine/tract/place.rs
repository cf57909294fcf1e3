//! What our layers need to find their place in tract's graph: constants, what reads a node, and the exchange itself.

use std::sync::Arc;

use muster_kernels::Bounds;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::einsum::EinSum;

/// Refuses a product that sums over an axis of which its inputs have different sizes: tract takes a broadcast before it out, and
/// then sums over what is not there.
pub(super) fn check_sums(model: &TypedModel) -> TractResult<()> {
    for node in &model.nodes {
        let Some(einsum) = node.op_as::<EinSum>() else { continue };
        for axis in einsum.axes.iter_all_axes().filter(|axis| axis.outputs[0].is_empty()) {
            let mut sizes = TVec::new();
            for (input, places) in node.inputs.iter().zip(&axis.inputs) {
                let fact = model.outlet_fact(*input)?;
                sizes.extend(places.iter().filter_map(|place| fact.shape.get(*place).cloned()));
            }
            ensure!(
                sizes.windows(2).all(|pair| pair[0] == pair[1]),
                "node {}: a sum over {sizes:?} elements at once; expected inputs of one size, without a broadcast before the product",
                node.name
            );
        }
    }
    Ok(())
}

/// A known f32 shape.
pub(super) fn concrete(model: &TypedModel, outlet: OutletId) -> TractResult<Option<TVec<usize>>> {
    let fact = model.outlet_fact(outlet)?;
    let is_float = fact.datum_type == f32::datum_type();
    Ok(fact.shape.as_concrete().filter(|_| is_float).map(Into::into))
}

/// The tensor of a constant f32 outlet.
pub(super) fn constant(model: &TypedModel, outlet: OutletId) -> TractResult<Option<Arc<Tensor>>> {
    let fact = model.outlet_fact(outlet)?;
    let is_float = fact.datum_type == f32::datum_type();
    Ok(fact.konst.clone().filter(|tensor| is_float && tensor.try_as_plain_ram().is_ok()))
}

/// Values of such a tensor.
pub(super) fn values(tensor: &Tensor) -> TractResult<Vec<f32>> {
    Ok(tensor.try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
}

/// What the only reader of a node does to it.
pub(super) struct Reader {
    pub(super) node: usize,
    pub(super) does: Does,
}

pub(super) enum Does {
    /// Adds these to the elements, or to the channels.
    Add(Vec<f32>),
    /// Keeps each element within these.
    Bound(Bounds),
}

/// None where others read the node too, or the reader does something else, or gives another shape.
pub(super) fn reader(model: &TypedModel, node: usize) -> TractResult<Option<Reader>> {
    if model.outputs.iter().any(|output| output.node == node) {
        return Ok(None);
    }
    let Some(reader) = model.single_succ(node)? else { return Ok(None) };
    let (Some(TypedBinOp(operation, None)), [a, b]) = (reader.op_as::<TypedBinOp>(), &reader.inputs[..])
    else {
        return Ok(None);
    };
    let other = if a.node == node { *b } else { *a };
    let Some(tensor) = constant(model, other)? else { return Ok(None) };
    if concrete(model, reader.id.into())? != concrete(model, node.into())? {
        return Ok(None);
    }
    let does = match (operation.name(), values(&tensor)?) {
        ("Add", values) => Some(Does::Add(values)),
        ("Max", values) if values.len() == 1 => Bounds::new(values[0], f32::INFINITY).map(Does::Bound),
        ("Min", values) if values.len() == 1 => Bounds::new(f32::NEG_INFINITY, values[0]).map(Does::Bound),
        _ => None,
    };
    Ok(does.map(|does| Reader { node: reader.id, does }))
}

/// Puts a layer that reads `input` in the place of all up to the node `last`.
pub(super) fn put(
    model: &mut TypedModel,
    input: OutletId,
    last: usize,
    layer: impl Into<Box<dyn TypedOp>>,
) -> TractResult<()> {
    let mut patch = TypedModelPatch::new("a layer of our own");
    let from = patch.tap_model(model, input)?;
    let name = model.nodes[last].name.clone();
    let output = patch.wire_node(name, layer, &[from])?[0];
    patch.shunt_outside(model, last.into(), output)?;
    patch.apply(model)
}

/// How many nodes of a graph, of those that count for its output, are such an operator.
#[cfg(test)]
pub(super) fn count<O: Op>(model: &TypedModel) -> usize {
    let order = model.eval_order().expect("an order");
    order.into_iter().filter(|node| model.nodes[*node].op_is::<O>()).count()
}
