//! One filter a channel: each output channel is a sum over its own channel's window.
//!
//! Filters are packed in blocks of 16 channels and groups of four taps (elements of the window). A row of output pixels is
//! done at once: the taps' places are found once for all pixels whose window lies within the input's width, and one by one
//! for those at the edges.

use crate::gemm::{BLOCK, PAIR, widened};
use crate::{Isa, Requantize, Scratch, Shape, Weights};

/// Taps of a group.
pub(crate) const TAPS: usize = 4;
/// The place of a tap in the padding.
pub(crate) const PADDING: usize = usize::MAX;

/// Packed filters.
#[derive(Clone, Debug)]
pub(crate) struct Depthwise {
    pub(crate) channels: usize,
    /// Groups of taps.
    pub(crate) groups: usize,
    /// `[block][group]`; within: `[tap][lane]` for the portable code, else `[lane][tap]`.
    pub(crate) filters: Vec<[i8; BLOCK * TAPS]>,
    /// For AVX2: `[block][pair of taps][lane][tap of the pair]`.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "AVX2's"))]
    pub(crate) wide: Vec<[i16; BLOCK * PAIR]>,
    pub(crate) begin: Vec<[i32; BLOCK]>,
    pub(crate) multipliers: Vec<[f32; BLOCK]>,
    pub(crate) requantize: Requantize,
    pub(crate) input_zero: i8,
}

/// Pixels side by side whose taps lie at the same places from pixel to pixel.
pub(crate) struct Run<'a> {
    /// Where each tap of the first pixel begins in the input, or [`PADDING`]; a multiple of [`TAPS`].
    pub(crate) places: &'a [usize],
    /// From a pixel's taps to the next one's.
    pub(crate) step: usize,
}

impl Depthwise {
    pub(crate) fn pack(isa: Isa, shape: &Shape, weights: &Weights<'_>, requantize: Requantize) -> Self {
        let (channels, taps) = (shape.channels_out, shape.kernel[0] * shape.kernel[1]);
        let (blocks, groups) = (channels.div_ceil(BLOCK), taps.div_ceil(TAPS));
        let mut filters = vec![[0; BLOCK * TAPS]; blocks * groups];
        let mut begin = vec![[0; BLOCK]; blocks];
        let mut multipliers = vec![[0.0; BLOCK]; blocks];
        let zero = i32::from(weights.input_zero) + isa.row_offset();
        for channel in 0..channels {
            let (block, lane) = (channel / BLOCK, channel % BLOCK);
            let window = &weights.values[channel * taps..][..taps];
            for (tap, weight) in window.iter().enumerate() {
                let at = match isa {
                    Isa::Portable => tap % TAPS * BLOCK + lane,
                    #[cfg(target_arch = "x86_64")]
                    Isa::Vnni | Isa::Avx2 => lane * TAPS + tap % TAPS,
                    #[cfg(target_arch = "aarch64")]
                    Isa::Dotprod => lane * TAPS + tap % TAPS,
                };
                filters[block * groups + tap / TAPS][at] = *weight;
            }
            let sum: i32 = window.iter().map(|weight| i32::from(*weight)).sum();
            let bias = weights.bias.map_or(0, |bias| bias[channel]);
            begin[block][lane] = bias.wrapping_sub(zero.wrapping_mul(sum));
            multipliers[block][lane] = requantize.multipliers[channel];
        }
        let wide = if isa.is_wide() { widened(&filters) } else { Vec::new() };
        let input_zero = weights.input_zero;
        Self { channels, groups, filters, wide, begin, multipliers, requantize, input_zero }
    }

    pub(crate) fn run(
        &self,
        isa: Isa,
        shape: &Shape,
        input: &[i8],
        output: &mut [i8],
        scratch: &mut Scratch,
    ) {
        let [height, width] = shape.output();
        let row_bytes = width * self.channels;
        // Windows of output columns from `first` to `end` lie within the input's width.
        let first = shape.pad_begin[1].div_ceil(shape.stride[1]).min(width);
        let reach = shape.dilation[1] * (shape.kernel[1] - 1) + 1;
        let last =
            (shape.input[1] + shape.pad_begin[1]).checked_sub(reach).map(|most| most / shape.stride[1]);
        let end = last.map_or(first, |last| (last + 1).clamp(first, width));
        for y in 0..height {
            let output = &mut output[y * row_bytes..][..row_bytes];
            for x in (0..first).chain(end..width) {
                self.places(shape, [y, x], &mut scratch.places);
                let run = Run { places: &scratch.places, step: 0 };
                self.pixels(isa, input, &run, &mut output[x * self.channels..][..self.channels]);
            }
            if first < end {
                self.places(shape, [y, first], &mut scratch.places);
                let run = Run { places: &scratch.places, step: shape.stride[1] * self.channels };
                self.pixels(isa, input, &run, &mut output[first * self.channels..end * self.channels]);
            }
        }
    }

    fn places(&self, shape: &Shape, at: [usize; 2], places: &mut Vec<usize>) {
        places.clear();
        let elements = (0..shape.kernel[0]).flat_map(|ky| (0..shape.kernel[1]).map(move |kx| [ky, kx]));
        let place = |element| shape.pixel(at, element).map_or(PADDING, |pixel| pixel * self.channels);
        places.extend(elements.map(place));
        places.resize(self.groups * TAPS, PADDING);
    }

    fn pixels(&self, isa: Isa, input: &[i8], run: &Run<'_>, output: &mut [i8]) {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Vnni => crate::vnni::depthwise(self, input, run, output),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => crate::avx2::depthwise(self, input, run, output),
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod => crate::neon::depthwise(self, input, run, output),
            Isa::Portable => portable(self, input, run, output),
        }
    }
}

#[inline(always)]
fn portable(filters: &Depthwise, input: &[i8], run: &Run<'_>, output: &mut [i8]) {
    let padding = [filters.input_zero; BLOCK];
    for (pixel, output) in output.chunks_exact_mut(filters.channels).enumerate() {
        let blocks = filters.filters.chunks_exact(filters.groups);
        for (block, (weights, output)) in blocks.zip(output.chunks_mut(BLOCK)).enumerate() {
            let mut sums = filters.begin[block];
            let taps = weights.iter().flat_map(|group| group.as_chunks::<BLOCK>().0);
            for (place, weights) in run.places.iter().zip(taps) {
                let values = match *place {
                    PADDING => &padding[..output.len()],
                    place => &input[place + pixel * run.step + block * BLOCK..][..output.len()],
                };
                for ((sum, value), weight) in sums.iter_mut().zip(values).zip(weights) {
                    *sum = sum.wrapping_add(i32::from(i16::from(*value) * i16::from(*weight)));
                }
            }
            for ((output, sum), multiplier) in output.iter_mut().zip(sums).zip(filters.multipliers[block]) {
                *output = filters.requantize.one(sum, multiplier);
            }
        }
    }
}
