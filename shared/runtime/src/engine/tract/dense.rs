//! Fully connected layers of one row by our own kernels, in tract's place.
//!
//! [`join`] looks for products of one row with constant weights in the tidied graph, takes the bias and the bounds of the
//! activation behind them in where nobody else reads what is between, and puts a [`Layer`] there.

use std::sync::Arc;

use muster_kernels::{Dense, Isa};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::einsum::EinSum;

use super::place::{self, Does};

/// Weights are padded to sixteen outputs: with fewer outputs than this, more inputs than that are left to tract.
const OUTPUTS_MIN: usize = 4;
const INPUTS_PADDED_MAX: usize = 4_096;

/// One layer in a plan.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    dense: Arc<Dense>,
    /// Of the output: one row, whatever its rank.
    shape: TVec<usize>,
}

impl PartialEq for Layer {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.dense, &other.dense) && self.shape == other.shape
    }
}

impl Eq for Layer {}

impl Op for Layer {
    fn name(&self) -> StaticName {
        "Dense".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Layer {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let plain = input.try_as_plain_ram()?;
        let mut output = Tensor::zero::<f32>(&self.shape)?;
        self.dense.run(plain.as_slice::<f32>()?, output.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?);
        Ok(tvec!(output.into_tvalue()))
    }
}

impl TypedOp for Layer {
    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(&self.shape)))
    }

    as_op!();
}

/// Puts our layers into a tidied graph.
pub(super) fn join(model: &mut TypedModel) -> TractResult<()> {
    for node in 0..model.nodes.len() {
        let Some((product, mut dense)) = Product::of(model, node)? else { continue };
        let mut last = node;
        while let Some(reader) = place::reader(model, last)? {
            dense = match reader.does {
                Does::Add(bias) if bias.len() == dense.size().1 && !dense.has_bias_or_bounds() => {
                    dense.with_bias(bias)
                }
                Does::Bound(bounds) if let Some(both) = dense.bounds().and(bounds) => dense.with_bounds(both),
                Does::Add(_) | Does::Bound(_) => break,
            };
            last = reader.node;
        }
        place::put(model, product.input, last, Layer { dense: Arc::new(dense), shape: product.shape })?;
    }
    Ok(())
}

/// What of a product is not in its kernel.
struct Product {
    input: OutletId,
    shape: TVec<usize>,
}

impl Product {
    /// The product that a node is; none where it is not of one row, in f32, with constant weights.
    fn of(model: &TypedModel, node: usize) -> TractResult<Option<(Self, Dense)>> {
        let node = &model.nodes[node];
        let Some(einsum) = node.op_as::<EinSum>() else { return Ok(None) };
        let [a, b] = node.inputs[..] else { return Ok(None) };
        if einsum.q_params.is_some() || einsum.operating_dt != f32::datum_type() {
            return Ok(None);
        }
        for (slot, input, constant) in [(0, a, b), (1, b, a)] {
            if let Some(dense) = dense(model, einsum, slot, input, constant)?
                && let Some(shape) = place::concrete(model, node.id.into())?
                && shape.iter().product::<usize>() == dense.size().1
            {
                return Ok(Some((Self { input, shape }, dense)));
            }
        }
        Ok(None)
    }
}

/// The kernel of a product whose row comes in at `slot`; none where more than one axis is summed, or kept of the weights, or
/// where another has more than one place.
fn dense(
    model: &TypedModel,
    einsum: &EinSum,
    slot: usize,
    input: OutletId,
    weights: OutletId,
) -> TractResult<Option<Dense>> {
    let (Some(row), Some(weights)) = (place::concrete(model, input)?, place::constant(model, weights)?)
    else {
        return Ok(None);
    };
    let (mut summed, mut kept) = (None, None);
    for axis in einsum.axes.iter_all_axes() {
        let (of_row, of_weights) = (&axis.inputs[slot][..], &axis.inputs[1 - slot][..]);
        let found = match (of_row, of_weights, axis.outputs[0].len()) {
            ([_], [at], 0) => summed.replace(*at),
            ([], [at], 1) => kept.replace(*at),
            ([at], [], _) if row[*at] == 1 => None,
            ([at], [in_weights], _) if row[*at] == 1 && weights.shape()[*in_weights] == 1 => None,
            _ => return Ok(None),
        };
        if found.is_some() {
            return Ok(None);
        }
    }
    let (Some(summed), Some(kept)) = (summed, kept) else { return Ok(None) };
    let (shape, strides) = (weights.shape(), weights.strides());
    let (inputs, outputs) = (shape[summed], shape[kept]);
    let is_mostly_padding = outputs < OUTPUTS_MIN && inputs > INPUTS_PADDED_MAX;
    let is_full = weights.len() == inputs * outputs && row.iter().product::<usize>() == inputs;
    if inputs == 0 || outputs == 0 || !is_full || is_mostly_padding {
        return Ok(None);
    }
    let step = |axis: usize| usize::try_from(strides[axis]).unwrap_or(0);
    let (to_input, to_output) = (step(summed), step(kept));
    let plain = weights.try_as_plain_ram()?;
    let values = plain.as_slice::<f32>()?;
    let weight = |output, input| values[output * to_output + input * to_input];
    Ok(Some(Dense::new(Isa::detect(), outputs, inputs, weight)))
}
