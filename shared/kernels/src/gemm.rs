//! The matrix product: rows of int8 (pixels) by packed filters, requantized.
//!
//! Filters are packed in blocks of [`BLOCK`] output channels: for each four elements of the row, the four weights of each
//! of the block's channels. A kernel broadcasts four elements of a row and multiplies them with a block's weights at once.
//! AVX2 has no exact sum of byte products: for it rows and filters are widened to int16, and taken by pairs.

use crate::{Isa, Requantize, Shape, Weights};
use std::ops::Range;

/// Output channels of a block.
pub(crate) const BLOCK: usize = 16;
/// Elements of a row that are multiplied in one step.
pub(crate) const STEP: usize = 4;

/// Elements of a pair.
pub(crate) const PAIR: usize = 2;

/// Packed filters of one group.
#[derive(Clone, Debug)]
pub(crate) struct Gemm {
    /// Output channels.
    channels: usize,
    /// Steps of a row.
    steps: usize,
    /// `[block][step][channel of the block][element of the step]`.
    filters: Vec<[i8; BLOCK * STEP]>,
    /// For AVX2, in the other's place: `[block][pair][channel of the block][element of the pair]`.
    wide: Vec<[i16; BLOCK * PAIR]>,
    /// What each sum begins with: bias, and what the zero points add; by block.
    begin: Vec<[i32; BLOCK]>,
    pub(crate) multipliers: Vec<[f32; BLOCK]>,
    pub(crate) requantize: Requantize,
}

/// One block of channels at work.
pub(crate) struct Block<'a> {
    pub(crate) filters: &'a [[i8; BLOCK * STEP]],
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "AVX2's"))]
    pub(crate) wide: &'a [[i16; BLOCK * PAIR]],
    pub(crate) begin: &'a [i32; BLOCK],
    pub(crate) multipliers: &'a [f32; BLOCK],
    pub(crate) requantize: &'a Requantize,
}

impl Gemm {
    /// Packs the filters of some output channels, all of one group.
    pub(crate) fn pack(
        isa: Isa,
        shape: &Shape,
        weights: &Weights<'_>,
        requantize: &Requantize,
        of: Range<usize>,
    ) -> Self {
        let (each, taps) = (shape.channels_in / shape.groups, shape.kernel[0] * shape.kernel[1]);
        let (window, channels) = (each * taps, of.len());
        let (steps, blocks) = (window.div_ceil(STEP), channels.div_ceil(BLOCK));
        let mut filters = vec![[0; BLOCK * STEP]; blocks * steps];
        let mut begin = vec![[0; BLOCK]; blocks];
        let mut multipliers = vec![[0.0; BLOCK]; blocks];
        // Kernels for unsigned rows see each element 128 higher.
        let zero = i32::from(weights.input_zero) + isa.row_offset();
        for (at, channel) in of.enumerate() {
            let (block, lane) = (at / BLOCK, at % BLOCK);
            let mut sum = 0;
            for tap in 0..taps {
                for c in 0..each {
                    let weight = weights.values[(channel * each + c) * taps + tap];
                    let element = tap * each + c;
                    filters[block * steps + element / STEP][lane * STEP + element % STEP] = weight;
                    sum += i32::from(weight);
                }
            }
            let bias = weights.bias.map_or(0, |bias| bias[channel]);
            begin[block][lane] = bias.wrapping_sub(zero.wrapping_mul(sum));
            multipliers[block][lane] = requantize.multipliers[channel];
        }
        let wide = if isa.is_wide() { widened(&filters) } else { Vec::new() };
        Self { channels, steps, filters, wide, begin, multipliers, requantize: requantize.clone() }
    }

    /// Output channels.
    pub(crate) fn channels(&self) -> usize {
        self.channels
    }

    /// Bytes of a row; what is beyond the window does not matter.
    pub(crate) fn row_bytes(&self) -> usize {
        self.steps * STEP
    }

    /// Whether rows of so many elements may be taken as they lie.
    pub(crate) fn takes(&self, elements: usize) -> bool {
        elements == self.row_bytes()
    }

    /// Multiplies rows that lie side by side. Each output row has `stride` channels, ours from `first` on.
    pub(crate) fn run(
        &self,
        isa: Isa,
        rows: &[i8],
        output: &mut [i8],
        (stride, first): (usize, usize),
        wide: &mut Vec<i16>,
    ) {
        if isa.is_wide() {
            wide.clear();
            wide.extend(rows.iter().map(|element| i16::from(*element)));
        }
        let (rows, rest) = rows.as_chunks::<STEP>();
        debug_assert!(rest.is_empty() && rows.len().is_multiple_of(self.steps));
        let pairs = self.steps * (STEP / PAIR);
        let blocks = self.filters.chunks_exact(self.steps).zip(&self.begin).zip(&self.multipliers);
        for (block, ((filters, begin), multipliers)) in blocks.enumerate() {
            let lanes = (self.channels - block * BLOCK).min(BLOCK);
            let of = Block {
                filters,
                wide: self.wide.get(block * pairs..(block + 1) * pairs).unwrap_or_default(),
                begin,
                multipliers,
                requantize: &self.requantize,
            };
            let to = Target { stride, first: first + block * BLOCK, lanes };
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Vnni => crate::vnni::product(rows, &of, output, &to),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => crate::avx2::product(wide.as_chunks().0, &of, output, &to),
                #[cfg(target_arch = "aarch64")]
                Isa::Dotprod => crate::neon::product(rows, &of, output, &to),
                Isa::Portable => portable(rows, &of, output, &to),
            }
        }
    }
}

/// `[step][lane][element]` as `[pair][lane][element]`, in int16.
pub(crate) fn widened(filters: &[[i8; BLOCK * STEP]]) -> Vec<[i16; BLOCK * PAIR]> {
    let pairs = filters.iter().flat_map(|step| (0..STEP / PAIR).map(move |pair| (step, pair)));
    pairs
        .map(|(step, pair)| {
            std::array::from_fn(|at| i16::from(step[at / PAIR * STEP + pair * PAIR + at % PAIR]))
        })
        .collect()
}

/// Where a block's outputs go.
pub(crate) struct Target {
    pub(crate) stride: usize,
    pub(crate) first: usize,
    pub(crate) lanes: usize,
}

#[inline(always)]
fn portable(rows: &[[i8; STEP]], block: &Block<'_>, output: &mut [i8], to: &Target) {
    let steps = block.filters.len();
    for (row, output) in rows.chunks_exact(steps).zip(output.chunks_exact_mut(to.stride)) {
        let mut sums = *block.begin;
        for (elements, filters) in row.iter().zip(block.filters) {
            for (sum, weights) in sums.iter_mut().zip(filters.as_chunks::<STEP>().0) {
                // Two products fit an int16 but for -128 x -128 twice: each is widened alone.
                for (element, weight) in elements.iter().zip(weights) {
                    *sum = sum.wrapping_add(i32::from(i16::from(*element) * i16::from(*weight)));
                }
            }
        }
        let output = &mut output[to.first..to.first + to.lanes];
        for ((output, sum), multiplier) in output.iter_mut().zip(sums).zip(block.multipliers) {
            *output = block.requantize.one(sum, *multiplier);
        }
    }
}
