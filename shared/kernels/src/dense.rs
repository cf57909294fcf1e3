//! The product of one row with a matrix in f32, with bias and bounds: a fully connected layer at batch 1.
//!
//! Each weight is read once, so memory sets the pace: weights are packed in the order in which they are read, and every sum
//! of a block stays in a register until the row is through. An output is summed in the order of the inputs.

use crate::{Bounds, Isa};

/// Outputs whose weights lie side by side.
pub(crate) const LANES: usize = 16;
/// Groups of [`LANES`] outputs in a block: as many sums as AVX2 keeps in half of its registers, so that additions need not
/// wait for each other.
const WIDE: usize = 4;

/// An input's weights of a block, or a block's sums.
pub(crate) type Group<const COUNT: usize> = [[f32; LANES]; COUNT];

/// `output = clamp(weights x input + bias)`, with packed weights. Immutable: threads share it.
#[derive(Clone, Debug)]
pub struct Dense {
    isa: Isa,
    inputs: usize,
    outputs: usize,
    /// `[block][input][output of the block]`: blocks of [`WIDE`] groups, then of one, zero beyond the last output.
    weights: Vec<f32>,
    /// By output, or empty.
    bias: Vec<f32>,
    bounds: Bounds,
}

impl Dense {
    /// Packs weights f32 of `[outputs, inputs]`, which `weight` gives by output and input. There is at least one of each.
    #[must_use]
    pub fn new(isa: Isa, outputs: usize, inputs: usize, weight: impl Fn(usize, usize) -> f32) -> Self {
        let (wide, padded) = (of_wide_blocks(outputs), outputs.next_multiple_of(LANES));
        let mut weights = Vec::with_capacity(padded * inputs);
        let blocks = (0..wide).step_by(WIDE * LANES).map(|first| (first, WIDE * LANES));
        for (first, lanes) in blocks.chain((wide..padded).step_by(LANES).map(|first| (first, LANES))) {
            for input in 0..inputs {
                let of = |output| if output < outputs { weight(output, input) } else { 0.0 };
                weights.extend((first..first + lanes).map(of));
            }
        }
        Self { isa, inputs, outputs, weights, bias: Vec::new(), bounds: Bounds::NONE }
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
        !self.bias.is_empty() || self.bounds != Bounds::NONE
    }

    /// What its outputs are kept within.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Keeps each output within these.
    #[must_use]
    pub fn with_bounds(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        self
    }

    /// input: f32 `[inputs]`, output: f32 `[outputs]`.
    ///
    /// # Panics
    /// When they have other lengths.
    pub fn run(&self, input: &[f32], output: &mut [f32]) {
        assert_eq!((input.len(), output.len()), self.size(), "inputs and outputs of the layer");
        let (wide, narrow) = output.split_at_mut(of_wide_blocks(self.outputs));
        let (wide_weights, narrow_weights) = self.weights.split_at(wide.len() * self.inputs);
        blocks::<WIDE>(self.isa, input, wide_weights, wide);
        blocks::<1>(self.isa, input, narrow_weights, narrow);
        for (sum, bias) in output.iter_mut().zip(&self.bias) {
            *sum += bias;
        }
        self.bounds.keep(output);
    }
}

fn of_wide_blocks(outputs: usize) -> usize {
    outputs - outputs % (WIDE * LANES)
}

/// Blocks of `COUNT` groups of outputs.
fn blocks<const COUNT: usize>(isa: Isa, input: &[f32], weights: &[f32], output: &mut [f32]) {
    let groups = weights.as_chunks::<LANES>().0.as_chunks::<COUNT>().0;
    for (output, weights) in output.chunks_mut(COUNT * LANES).zip(groups.chunks_exact(input.len())) {
        let sums = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Vnni | Isa::Avx2 => crate::avx2::dense(input, weights),
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod | Isa::Portable => crate::neon::dense(input, weights),
            #[cfg(not(target_arch = "aarch64"))]
            Isa::Portable => portable(input, weights),
        };
        output.copy_from_slice(&sums.as_flattened()[..output.len()]);
    }
}

#[cfg(not(target_arch = "aarch64"))]
fn portable<const COUNT: usize>(input: &[f32], weights: &[Group<COUNT>]) -> Group<COUNT> {
    let mut sums = [[0.0; LANES]; COUNT];
    for (element, weights) in input.iter().zip(weights) {
        for (sum, weight) in sums.as_flattened_mut().iter_mut().zip(weights.as_flattened()) {
            *sum += element * weight;
        }
    }
    sums
}
