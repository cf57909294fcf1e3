//! Depthwise convolutions in f32 by our own kernel, in tract's place.
//!
//! [`join`] takes the bounds of the activation behind one in where nobody else reads what is between, and puts a [`Layer`]
//! there.

use std::cell::RefCell;
use std::sync::Arc;

use muster_kernels::{Depthwise, Isa, Order, Shape};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat};

use super::place::{self, Does};

/// One layer in a plan.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    depthwise: Arc<Depthwise>,
    /// Of the output, with whatever batch of one it has.
    shape: TVec<usize>,
}

impl PartialEq for Layer {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.depthwise, &other.depthwise) && self.shape == other.shape
    }
}

impl Eq for Layer {}

impl Op for Layer {
    fn name(&self) -> StaticName {
        "Depthwise".into()
    }

    op_as_typed_op!();
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = RefCell::default();
}

impl EvalOp for Layer {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let plain = input.try_as_plain_ram()?;
        let input = plain.as_slice::<f32>()?;
        let mut output = Tensor::zero::<f32>(&self.shape)?;
        let mut result = output.try_as_plain_ram_mut()?;
        let result = result.as_slice_mut::<f32>()?;
        SCRATCH.with_borrow_mut(|scratch| self.depthwise.run(input, result, scratch));
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
        let Some((mut depthwise, shape)) = depthwise(model, node)? else { continue };
        let (input, mut last) = (model.nodes[node].inputs[0], node);
        while let Some(place::Reader { node, does: Does::Bound(bounds) }) = place::reader(model, last)?
            && let Some(both) = depthwise.bounds().and(bounds)
        {
            (last, depthwise) = (node, depthwise.with_bounds(both));
        }
        place::put(model, input, last, Layer { depthwise: Arc::new(depthwise), shape })?;
    }
    Ok(())
}

/// The kernel of a convolution, and its output's shape; none where it is not of one image, in f32, of two axes, with one
/// filter a channel.
fn depthwise(model: &TypedModel, node: usize) -> TractResult<Option<(Depthwise, TVec<usize>)>> {
    let node = &model.nodes[node];
    let (Some(conv), [input, weights, bias]) = (node.op_as::<Conv>(), &node.inputs[..]) else {
        return Ok(None);
    };
    let (Some(from), Some(to)) = (place::concrete(model, *input)?, place::concrete(model, node.id.into())?)
    else {
        return Ok(None);
    };
    let (Some(weights), Some(bias)) = (place::constant(model, *weights)?, place::constant(model, *bias)?)
    else {
        return Ok(None);
    };
    let pool = &conv.pool_spec;
    let is_plain = conv.q_params.is_none() && conv.kernel_fmt == KernelFormat::OIHW && pool.rank() == 2;
    let is_batch = pool.data_format.has_n() && from[0] != 1;
    let channels = pool.input_channels;
    if !is_plain || is_batch || channels < 2 || [conv.group, pool.output_channels] != [channels; 2] {
        return Ok(None);
    }
    let axis = pool.data_format.h_axis();
    let pair = |of: &[usize]| [of[0], of[1]];
    let sizes = [from[axis], from[axis + 1]];
    let pads = pool.computed_padding(&sizes);
    let shape = Shape {
        input: sizes,
        channels_in: channels,
        channels_out: channels,
        kernel: pair(&pool.kernel_shape),
        stride: pair(&pool.strides()),
        dilation: pair(&pool.dilations()),
        pad_begin: [pads[0].pad_before, pads[1].pad_before],
        pad_end: [pads[0].pad_after, pads[1].pad_after],
        groups: channels,
    };
    let order = if pool.data_format.c_is_last() { Order::ChannelsLast } else { Order::ChannelsFirst };
    let bias = match place::values(&bias)? {
        one if one.len() == 1 => vec![one[0]; channels],
        all => all,
    };
    // What our kernel does not take, and what it sees otherwise than tract, is tract's.
    let made = Depthwise::new(Isa::detect(), shape, order, place::values(&weights)?, bias).ok();
    Ok(made.filter(|made| made.shape().output() == [to[axis], to[axis + 1]]).map(|made| (made, to)))
}
