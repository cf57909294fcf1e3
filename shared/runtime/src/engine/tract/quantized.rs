//! QLinearConv by our own kernels, in tract's place.
//!
//! [`teach`] replaces tract's reading of the operator: where scales, zero points and filters are constants, int8, and filters
//! have no zero point, a [`Quantized`] stands in the plan, else what tract makes of it. [`join`] then lets the layers that feed
//! each other keep the kernels' order of channels between them.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use muster_kernels::{Convolution, Requantize, Scratch, Shape, Weights, channels_first, channels_last};
use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::{NodeProto, TensorProto, tensor_proto::DataType};
use tract_onnx::tract_hir::internal::*;

const OPERATOR: &str = "QLinearConv";
/// Names of its inputs, by their place.
const INPUTS: usize = 8;

/// How tract reads an operator.
type Reader = fn(&ParsingContext, &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

static TRACTS_OWN: OnceLock<Option<Reader>> = OnceLock::new();

/// Has QLinearConv read by us.
pub(super) fn teach(register: &mut OnnxOpRegister) {
    TRACTS_OWN.get_or_init(|| register.0.get(OPERATOR).copied());
    register.insert(OPERATOR, read);
}

fn read(context: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    if let Some(layer) = Layer::of(context, node) {
        return Ok((expand(layer), vec![]));
    }
    match TRACTS_OWN.get() {
        Some(Some(own)) => own(context, node),
        _ => bail!("{OPERATOR} is not known"),
    }
}

/// The operator as the file has it.
#[derive(Clone, Debug)]
struct Layer {
    inputs: usize,
    /// `[channels_out, channels_in / groups, height, width]`.
    filters: Arc<[i8]>,
    bias: Option<Arc<[i32]>>,
    channels_out: usize,
    channels_in: usize,
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    pad_begin: [usize; 2],
    pad_end: [usize; 2],
    groups: usize,
    input_zero: i8,
    requantize: Requantize,
}

impl Layer {
    /// None where something is not as our kernels take it.
    fn of(context: &ParsingContext, node: &NodeProto) -> Option<Self> {
        let constants = &context.model.graph.as_ref()?.initializer;
        let constant = |at: usize| constants.iter().find(|tensor| tensor.name == node.input[at]);
        if !(INPUTS..=INPUTS + 1).contains(&node.input.len()) {
            return None;
        }
        let attribute = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name);
        if attribute("auto_pad").is_some_and(|auto| !auto.s.is_empty() && auto.s != b"NOTSET") {
            return None;
        }
        let sizes = |name: &str, default: usize| -> Option<Vec<usize>> {
            match attribute(name) {
                None => Some(vec![default; 4]),
                Some(found) => found.ints.iter().map(|size| usize::try_from(*size).ok()).collect(),
            }
        };
        let pair = |sizes: Vec<usize>| -> Option<[usize; 2]> { sizes.get(..2)?.try_into().ok() };
        let filters = constant(3)?;
        let dims: Vec<usize> =
            filters.dims.iter().map(|dim| usize::try_from(*dim).ok()).collect::<Option<_>>()?;
        let [channels_out, each, height, width] = dims.try_into().ok()?;
        let groups = attribute("group").map_or(Some(1), |group| usize::try_from(group.i).ok())?;
        let pads = sizes("pads", 0)?;
        let one = |at: usize| bytes(constant(at)?)?.first().copied();
        if bytes(constant(5)?)?.iter().any(|zero| *zero != 0) {
            return None;
        }
        let (input, output) = (*floats(constant(1)?)?.first()?, *floats(constant(6)?)?.first()?);
        let scales = floats(constant(4)?)?;
        let scale_of = |channel: usize| scales.get(if scales.len() == 1 { 0 } else { channel }).copied();
        // In this order: as ONNX Runtime does it.
        let multipliers: Option<Vec<f32>> =
            (0..channels_out).map(|channel| Some(input * scale_of(channel)? / output)).collect();
        let bias = match node.input.get(INPUTS).filter(|name| !name.is_empty()) {
            Some(_) => Some(integers(constant(INPUTS)?)?.into()),
            None => None,
        };
        Some(Self {
            inputs: node.input.len(),
            filters: bytes(filters)?.into(),
            bias,
            channels_out,
            channels_in: each.checked_mul(groups)?,
            kernel: [height, width],
            stride: pair(sizes("strides", 1)?)?,
            dilation: pair(sizes("dilations", 1)?)?,
            pad_begin: pair(pads.clone())?,
            pad_end: pair(pads.get(2..)?.to_vec())?,
            groups,
            input_zero: one(2)?,
            requantize: Requantize { multipliers: multipliers?, zero: one(7)?, min: i8::MIN, max: i8::MAX },
        })
    }

    fn shape(&self, input: [usize; 2]) -> Shape {
        Shape {
            input,
            channels_in: self.channels_in,
            channels_out: self.channels_out,
            kernel: self.kernel,
            stride: self.stride,
            dilation: self.dilation,
            pad_begin: self.pad_begin,
            pad_end: self.pad_end,
            groups: self.groups,
        }
    }

    fn convolution(&self, input: [usize; 2]) -> TractResult<Convolution> {
        let weights =
            Weights { values: &self.filters, bias: self.bias.as_deref(), input_zero: self.input_zero };
        Ok(Convolution::new(self.shape(input), &weights, self.requantize.clone())?)
    }
}

/// Values of an int8 tensor.
fn bytes(tensor: &TensorProto) -> Option<Vec<i8>> {
    if tensor.data_type != DataType::Int8 as i32 {
        return None;
    }
    let raw = || tensor.raw_data.iter().map(|byte| byte.cast_signed()).collect();
    Some(if tensor.raw_data.is_empty() {
        tensor.int32_data.iter().map(|value| i8::try_from(*value).ok()).collect::<Option<_>>()?
    } else {
        raw()
    })
}

fn integers(tensor: &TensorProto) -> Option<Vec<i32>> {
    if tensor.data_type != DataType::Int32 as i32 {
        return None;
    }
    if tensor.raw_data.is_empty() {
        return Some(tensor.int32_data.clone());
    }
    let (words, rest) = tensor.raw_data.as_chunks::<4>();
    rest.is_empty().then(|| words.iter().map(|word| i32::from_le_bytes(*word)).collect())
}

fn floats(tensor: &TensorProto) -> Option<Vec<f32>> {
    if tensor.data_type != DataType::Float as i32 {
        return None;
    }
    if tensor.raw_data.is_empty() {
        return Some(tensor.float_data.clone());
    }
    let (words, rest) = tensor.raw_data.as_chunks::<4>();
    rest.is_empty().then(|| words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}

/// Batch, channels, height, width of a concrete shape; none where it is not our case.
fn image(shape: &[usize]) -> TractResult<[usize; 4]> {
    match shape {
        [1, c, h, w] => Ok([1, *c, *h, *w]),
        _ => bail!("expected a shape [1, channels, height, width], found {shape:?}"),
    }
}

impl Expansion for Layer {
    fn name(&self) -> StaticName {
        "QuantizedConvolution".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, self.inputs)?;
        check_output_arity(outputs, 1)?;
        solver.equals(&inputs[0].datum_type, i8::datum_type())?;
        solver.equals(&outputs[0].datum_type, i8::datum_type())?;
        solver.given(&inputs[0].shape, |solver, shape| {
            let concrete: TVec<usize> =
                shape.iter().map(|dim| Ok(dim.to_usize()?)).collect::<TractResult<_>>()?;
            let [_, _, height, width] = image(&concrete)?;
            let shape = self.shape([height, width]);
            shape.check()?;
            let [height, width] = shape.output();
            let output = [1, self.channels_out, height, width].map(TDim::from);
            solver.equals(&outputs[0].shape, TVec::from(output.to_vec()))
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let shape = model.outlet_fact(inputs[0])?.shape.as_concrete().map(<[usize]>::to_vec);
        let [_, channels, height, width] = image(&shape.context("a shape that is not known")?)?;
        ensure!(channels == self.channels_in, "{channels} channels, expected {}", self.channels_in);
        let convolution = Arc::new(self.convolution([height, width])?);
        let layer = Quantized { convolution, is_last_in: false, is_last_out: false };
        model.wire_node(prefix, layer, &inputs[..1])
    }
}

/// One convolution in a plan.
#[derive(Clone, Debug)]
struct Quantized {
    convolution: Arc<Convolution>,
    /// The input has its channels last.
    is_last_in: bool,
    /// So has the output.
    is_last_out: bool,
}

impl PartialEq for Quantized {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.convolution, &other.convolution)
            && (self.is_last_in, self.is_last_out) == (other.is_last_in, other.is_last_out)
    }
}

impl Eq for Quantized {}

/// One thread's memory between layers.
#[derive(Default)]
struct Buffers {
    scratch: Scratch,
    input: Vec<i8>,
    output: Vec<i8>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

impl Op for Quantized {
    fn name(&self) -> StaticName {
        "QuantizedConvolution".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Quantized {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let plain = input.try_as_plain_ram()?;
        let input = plain.as_slice::<i8>()?;
        let shape = self.convolution.shape();
        let mut output = Tensor::zero::<i8>(&self.output())?;
        let mut result = output.try_as_plain_ram_mut()?;
        let result = result.as_slice_mut::<i8>()?;
        BUFFERS.with_borrow_mut(|buffers| {
            let Buffers { scratch, input: last_in, output: last_out } = buffers;
            let from = if self.is_last_in {
                input
            } else {
                last_in.resize(input.len(), 0);
                channels_last(input, shape.channels_in, last_in);
                last_in
            };
            if self.is_last_out {
                return self.convolution.run(from, result, scratch);
            }
            last_out.resize(result.len(), 0);
            self.convolution.run(from, last_out, scratch);
            channels_first(last_out, shape.channels_out, result);
        });
        Ok(tvec!(output.into_tvalue()))
    }
}

impl Quantized {
    fn output(&self) -> [usize; 4] {
        let shape = self.convolution.shape();
        let ([height, width], channels) = (shape.output(), shape.channels_out);
        if self.is_last_out { [1, height, width, channels] } else { [1, channels, height, width] }
    }
}

impl TypedOp for Quantized {
    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(i8::fact(self.output())))
    }

    as_op!();
}

/// Layers that feed layers only keep the channels last between them.
pub(super) fn join(model: &mut TypedModel) -> TractResult<()> {
    let is_ours = |model: &TypedModel, node: usize| model.nodes[node].op_is::<Quantized>();
    for node in 0..model.nodes.len() {
        let is_output = model.outputs.iter().any(|output| output.node == node);
        if !is_ours(model, node) || is_output {
            continue;
        }
        let readers: Vec<usize> =
            model.nodes[node].outputs[0].successors.iter().map(|inlet| inlet.node).collect();
        if readers.is_empty() || !readers.iter().all(|reader| is_ours(model, *reader)) {
            continue;
        }
        for (at, is_reader) in std::iter::once((node, false)).chain(readers.into_iter().map(|at| (at, true)))
        {
            let Some(layer) = model.nodes[at].op_as_mut::<Quantized>() else { continue };
            if is_reader {
                layer.is_last_in = true;
            } else {
                layer.is_last_out = true;
                let output = layer.output();
                model.nodes[at].outputs[0].fact = i8::fact(output);
            }
        }
    }
    Ok(())
}
