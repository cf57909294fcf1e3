//! The product of one row with a matrix in f32, with bias and bounds: a fully connected layer at batch 1.
//!
//! Each weight is read once, so memory sets the pace: weights are packed in the order in which they are read, and every sum
//! of a block stays in a register until the row is through. An output is summed in the order of the inputs.

use crate::Isa;

/// Outputs of a block: as many sums as AVX2 keeps in registers.
const WIDE: usize = 64;
/// Outputs of a block of the rest.
const NARROW: usize = 16;

/// `output = clamp(weights x input + bias)`, with packed weights. Immutable: threads share it.
#[derive(Clone, Debug)]
pub struct Dense {
    isa: Isa,
    inputs: usize,
    outputs: usize,
    /// `[block][input][output of the block]`: blocks of [`WIDE`], then of [`NARROW`] outputs, zero beyond the last.
    weights: Vec<f32>,
    /// By output, or empty.
    bias: Vec<f32>,
    bounds: [f32; 2],
}

impl Dense {
    /// Packs weights f32 of `[outputs, inputs]`, which `weight` gives by output and input. There is at least one of each.
    #[must_use]
    pub fn new(isa: Isa, outputs: usize, inputs: usize, weight: impl Fn(usize, usize) -> f32) -> Self {
        let wide = outputs - outputs % WIDE;
        let padded = wide + (outputs - wide).next_multiple_of(NARROW);
        let mut weights = Vec::with_capacity(padded * inputs);
        let blocks = (0..wide).step_by(WIDE).map(|first| (first, WIDE));
        for (first, lanes) in blocks.chain((wide..padded).step_by(NARROW).map(|first| (first, NARROW))) {
            for input in 0..inputs {
                let of = |output| if output < outputs { weight(output, input) } else { 0.0 };
                weights.extend((first..first + lanes).map(of));
            }
        }
        let bounds = [f32::NEG_INFINITY, f32::INFINITY];
        Self { isa, inputs, outputs, weights, bias: Vec::new(), bounds }
    }

    /// Inputs and outputs.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.inputs, self.outputs)
    }

    /// Adds f32 `[outputs]`.
    #[must_use]
    pub fn with_bias(mut self, bias: Vec<f32>) -> Self {
        debug_assert_eq!(bias.len(), self.outputs);
        self.bias = bias;
        self
    }

    /// Whether something is done to the product already: a bias is added before bounds hold, and once.
    #[must_use]
    pub fn has_bias_or_bounds(&self) -> bool {
        !self.bias.is_empty() || self.bounds != [f32::NEG_INFINITY, f32::INFINITY]
    }

    /// Keeps each output within bounds, which are those of an activation: 0 and infinity for ReLU, 0 and 6 for ReLU6.
    #[must_use]
    pub fn with_bounds(mut self, low: f32, high: f32) -> Self {
        self.bounds = [self.bounds[0].max(low), self.bounds[1].min(high)];
        self
    }

    /// input: f32 `[inputs]`, output: f32 `[outputs]`.
    pub fn run(&self, input: &[f32], output: &mut [f32]) {
        debug_assert_eq!((input.len(), output.len()), self.size());
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Vnni | Isa::Avx2 => crate::avx2::dense(self, input, output),
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod => self.run_by::<true>(input, output),
            Isa::Portable => self.run_by::<{ cfg!(target_arch = "aarch64") }>(input, output),
        }
    }

    /// Compiled for each instruction set by being inlined there. `FUSED`: products and sums are rounded once.
    #[inline(always)]
    pub(crate) fn run_by<const FUSED: bool>(&self, input: &[f32], output: &mut [f32]) {
        let (wide, narrow) = output.split_at_mut(self.outputs - self.outputs % WIDE);
        let (wide_weights, narrow_weights) = self.weights.split_at(wide.len() * self.inputs);
        blocks::<WIDE, FUSED>(input, wide_weights, wide);
        blocks::<NARROW, FUSED>(input, narrow_weights, narrow);
        for (sum, bias) in output.iter_mut().zip(&self.bias) {
            *sum += bias;
        }
        let [low, high] = self.bounds;
        if low > f32::NEG_INFINITY || high < f32::INFINITY {
            output.iter_mut().for_each(|sum| *sum = sum.clamp(low, high));
        }
    }
}

#[inline(always)]
fn blocks<const LANES: usize, const FUSED: bool>(input: &[f32], weights: &[f32], output: &mut [f32]) {
    let blocks = weights.chunks_exact(LANES * input.len());
    for (output, weights) in output.chunks_mut(LANES).zip(blocks) {
        let mut sums = [0.0f32; LANES];
        for (element, weights) in input.iter().zip(weights.as_chunks::<LANES>().0) {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum = if FUSED { element.mul_add(*weight, *sum) } else { element * weight + *sum };
            }
        }
        output.copy_from_slice(&sums[..output.len()]);
    }
}
