//! NEON with the dot product (`sdot`): four products of int8 summed into each of four int32, exactly.
//!
//! The instruction is written as assembler: its intrinsic (`vdotq_s32`) is not stable. Processors without it take the
//! portable code for int8, which the compiler makes NEON of; the f32 kernels here are every processor's.

use crate::Requantize;
use crate::dense::{Group, LANES};
use crate::depthwise::{Depthwise, PADDING, Run, TAPS};
use crate::gemm::{BLOCK, Block, STEP, Target};
use crate::planes::{COLUMNS, Plane, put, tiles};
use std::arch::aarch64::*;
use std::arch::asm;

/// Rows that are multiplied at once: as many sums as stay in registers while one block's weights pass.
const ROWS: usize = 4;
/// Registers of a block: int32 sums, or a step's weights, by four channels each.
const QUARTERS: usize = 4;
/// Steps of a row in one register.
const STEPS: usize = 4;

/// Sixteen sums.
type Sums = [int32x4_t; QUARTERS];

/// How sums become bytes.
struct Rounding {
    zero: int32x4_t,
    low: float32x4_t,
    high: float32x4_t,
}

/// A row by a block of f32.
pub(crate) fn dense<const COUNT: usize>(input: &[f32], weights: &[Group<COUNT>]) -> Group<COUNT> {
    #[allow(unsafe_code, reason = "every processor of this target has these instructions")]
    unsafe {
        dense_inner(input, weights)
    }
}

#[target_feature(enable = "neon")]
fn dense_inner<const COUNT: usize>(input: &[f32], weights: &[Group<COUNT>]) -> Group<COUNT> {
    let mut sums = [[vdupq_n_f32(0.0); QUARTERS]; COUNT];
    for (element, weights) in input.iter().zip(weights) {
        for (sums, weights) in sums.iter_mut().zip(weights) {
            for (sum, quarter) in sums.iter_mut().zip(weights.as_chunks::<{ LANES / QUARTERS }>().0) {
                #[allow(unsafe_code, reason = "reads an array of four f32")]
                let quarter = unsafe { vld1q_f32(quarter.as_ptr()) };
                *sum = vfmaq_n_f32(*sum, quarter, *element);
            }
        }
    }
    sums.map(|sums| {
        let mut group = [0.0; LANES];
        for (quarter, sum) in group.as_chunks_mut::<{ LANES / QUARTERS }>().0.iter_mut().zip(sums) {
            #[allow(unsafe_code, reason = "writes an array of four f32")]
            unsafe {
                vst1q_f32(quarter.as_mut_ptr(), sum);
            }
        }
        group
    })
}

/// One channel's plane by its filter, in f32.
pub(crate) fn plane(plane: &Plane, padded: &[f32], weights: &[f32], bias: f32, output: &mut [f32]) {
    #[allow(unsafe_code, reason = "every processor of this target has these instructions")]
    unsafe {
        plane_inner(plane, padded, weights, bias, output);
    }
}

#[target_feature(enable = "neon")]
fn plane_inner(plane: &Plane, padded: &[f32], weights: &[f32], bias: f32, output: &mut [f32]) {
    for (rows, first, column) in tiles(plane.output) {
        let (inputs, to) = (&padded[first * plane.step + column..], (first, column));
        match rows {
            4 => put(&tile::<4>(plane, inputs, weights, bias), to, plane.output[1], output),
            3 => put(&tile::<3>(plane, inputs, weights, bias), to, plane.output[1], output),
            2 => put(&tile::<2>(plane, inputs, weights, bias), to, plane.output[1], output),
            _ => put(&tile::<1>(plane, inputs, weights, bias), to, plane.output[1], output),
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn tile<const COUNT: usize>(
    plane: &Plane,
    inputs: &[f32],
    weights: &[f32],
    bias: f32,
) -> [[f32; COLUMNS]; COUNT] {
    let mut sums = [[vdupq_n_f32(bias); 2]; COUNT];
    for (tap, weight) in plane.taps.iter().zip(weights) {
        let inputs = &inputs[*tap..];
        for (row, [low, high]) in sums.iter_mut().enumerate() {
            let inputs = &inputs[row * plane.step..][..COLUMNS];
            #[allow(unsafe_code, reason = "reads a slice of eight f32")]
            let [a, b] = unsafe { [vld1q_f32(inputs.as_ptr()), vld1q_f32(inputs.as_ptr().add(COLUMNS / 2))] };
            (*low, *high) = (vfmaq_n_f32(*low, a, *weight), vfmaq_n_f32(*high, b, *weight));
        }
    }
    sums.map(|[low, high]| {
        let mut row = [0.0; COLUMNS];
        #[allow(unsafe_code, reason = "writes an array of eight f32")]
        unsafe {
            vst1q_f32(row.as_mut_ptr(), low);
            vst1q_f32(row.as_mut_ptr().add(COLUMNS / 2), high);
        }
        row
    })
}

/// Rows by one block's filters.
pub(crate) fn product(rows: &[[i8; STEP]], block: &Block<'_>, output: &mut [i8], to: &Target) {
    #[allow(unsafe_code, reason = "an instruction set that `Convolution::on` found on this processor")]
    unsafe {
        product_inner(rows, block, output, to);
    }
}

#[target_feature(enable = "neon,dotprod")]
fn product_inner(rows: &[[i8; STEP]], block: &Block<'_>, output: &mut [i8], to: &Target) {
    let steps = block.filters.len();
    let rounding = Rounding::of(block.requantize);
    let count = rows.len() / steps;
    let mut row = 0;
    while row + ROWS <= count {
        let of: [&[[i8; STEP]]; ROWS] = std::array::from_fn(|at| &rows[(row + at) * steps..][..steps]);
        for (at, sums) in sums_of(of, block).into_iter().enumerate() {
            let output = &mut output[(row + at) * to.stride + to.first..][..to.lanes];
            rounding.store(sums, block.multipliers, output);
        }
        row += ROWS;
    }
    for row in row..count {
        let [sums] = sums_of([&rows[row * steps..][..steps]], block);
        rounding.store(sums, block.multipliers, &mut output[row * to.stride + to.first..][..to.lanes]);
    }
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sums_of<const COUNT: usize>(rows: [&[[i8; STEP]]; COUNT], block: &Block<'_>) -> [Sums; COUNT] {
    let mut sums = [load_sums(block.begin); COUNT];
    let (whole, rest) = block.filters.as_chunks::<STEPS>();
    for (at, filters) in whole.iter().enumerate() {
        let mut elements = [vdupq_n_s8(0); COUNT];
        for (elements, row) in elements.iter_mut().zip(&rows) {
            *elements = load_bytes(row[at * STEPS..][..STEPS].as_flattened(), BLOCK);
        }
        step::<0, COUNT>(&mut sums, &filters[0], &elements);
        step::<1, COUNT>(&mut sums, &filters[1], &elements);
        step::<2, COUNT>(&mut sums, &filters[2], &elements);
        step::<3, COUNT>(&mut sums, &filters[3], &elements);
    }
    if rest.is_empty() {
        return sums;
    }
    let mut elements = [vdupq_n_s8(0); COUNT];
    for (elements, row) in elements.iter_mut().zip(&rows) {
        let row = row[whole.len() * STEPS..].as_flattened();
        *elements = load_bytes(row, row.len());
    }
    for (at, filters) in rest.iter().enumerate() {
        match at {
            0 => step::<0, COUNT>(&mut sums, filters, &elements),
            1 => step::<1, COUNT>(&mut sums, filters, &elements),
            _ => step::<2, COUNT>(&mut sums, filters, &elements),
        }
    }
    sums
}

/// One step of each row: the four elements of lane `LANE` by the weights of sixteen channels.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn step<const LANE: usize, const COUNT: usize>(
    sums: &mut [Sums; COUNT],
    filters: &[i8; BLOCK * STEP],
    elements: &[int8x16_t; COUNT],
) {
    let weights = load(filters);
    for (sums, elements) in sums.iter_mut().zip(elements) {
        for (sum, weights) in sums.iter_mut().zip(weights) {
            *sum = dot_lane::<LANE>(*sum, weights, *elements);
        }
    }
}

/// `sum[i] + weights[4 * i ..] * elements[4 * LANE ..]`, four products each.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot_lane<const LANE: usize>(mut sum: int32x4_t, weights: int8x16_t, elements: int8x16_t) -> int32x4_t {
    #[allow(
        unsafe_code,
        reason = "one instruction that this function's feature has; it touches its operands only"
    )]
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {weights:v}.16b, {elements:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            weights = in(vreg) weights,
            elements = in(vreg) elements,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// `sum[i] + taps[4 * i ..] * weights[4 * i ..]`, four products each.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot(mut sum: int32x4_t, taps: int8x16_t, weights: int8x16_t) -> int32x4_t {
    #[allow(
        unsafe_code,
        reason = "one instruction that this function's feature has; it touches its operands only"
    )]
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {taps:v}.16b, {weights:v}.16b",
            sum = inout(vreg) sum,
            taps = in(vreg) taps,
            weights = in(vreg) weights,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

impl Rounding {
    #[inline]
    #[target_feature(enable = "neon")]
    fn of(requantize: &Requantize) -> Self {
        let zero = i32::from(requantize.zero);
        let bound = |bound: i8| (i32::from(bound) - zero) as f32;
        Self {
            zero: vdupq_n_s32(zero),
            low: vdupq_n_f32(bound(requantize.min)),
            high: vdupq_n_f32(bound(requantize.max)),
        }
    }

    /// Scales, bounds, rounds to nearest with ties to even, and writes the lanes that there are.
    #[inline]
    #[target_feature(enable = "neon")]
    fn store(&self, sums: Sums, multipliers: &[f32; BLOCK], output: &mut [i8]) {
        #[allow(unsafe_code, reason = "reads the four quarters of an array of sixteen f32")]
        let multipliers = unsafe { vld1q_f32_x4(multipliers.as_ptr()) };
        let a = self.round(sums[0], multipliers.0);
        let b = self.round(sums[1], multipliers.1);
        let c = self.round(sums[2], multipliers.2);
        let d = self.round(sums[3], multipliers.3);
        let (low, high) = (vqmovn_s16(vcombine_s16(a, b)), vqmovn_s16(vcombine_s16(c, d)));
        let mut bytes = [0_i8; BLOCK];
        #[allow(unsafe_code, reason = "writes the sixteen bytes of an array")]
        unsafe {
            vst1q_s8(bytes.as_mut_ptr(), vcombine_s8(low, high));
        }
        match output.first_chunk_mut::<BLOCK>() {
            Some(output) => *output = bytes,
            None => output.copy_from_slice(&bytes[..output.len()]),
        }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn round(&self, sums: int32x4_t, multipliers: float32x4_t) -> int16x4_t {
        let scaled = vmulq_f32(vcvtq_f32_s32(sums), multipliers);
        let bounded = vminq_f32(vmaxq_f32(scaled, self.low), self.high);
        vqmovn_s32(vaddq_s32(vcvtnq_s32_f32(bounded), self.zero))
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load(bytes: &[i8; BLOCK * STEP]) -> [int8x16_t; QUARTERS] {
    #[allow(unsafe_code, reason = "reads the four quarters of an array of sixty-four bytes")]
    let read = unsafe { vld1q_s8_x4(bytes.as_ptr()) };
    [read.0, read.1, read.2, read.3]
}

#[inline]
#[target_feature(enable = "neon")]
fn load_sums(sums: &[i32; BLOCK]) -> Sums {
    #[allow(unsafe_code, reason = "reads the four quarters of an array of sixteen int32")]
    let read = unsafe { vld1q_s32_x4(sums.as_ptr()) };
    [read.0, read.1, read.2, read.3]
}

/// Sixteen bytes where they are there; else so many.
#[inline]
#[target_feature(enable = "neon")]
fn load_bytes(from: &[i8], count: usize) -> int8x16_t {
    let mut rest = [0_i8; BLOCK];
    let bytes = from.first_chunk::<BLOCK>().unwrap_or_else(|| {
        rest[..count].copy_from_slice(&from[..count]);
        &rest
    });
    #[allow(unsafe_code, reason = "reads the sixteen bytes of an array")]
    unsafe {
        vld1q_s8(bytes.as_ptr())
    }
}

/// Pixels by one filter a channel.
pub(crate) fn depthwise(filters: &Depthwise, input: &[i8], run: &Run<'_>, output: &mut [i8]) {
    #[allow(unsafe_code, reason = "an instruction set that `Convolution::on` found on this processor")]
    unsafe {
        depthwise_inner(filters, input, run, output);
    }
}

#[target_feature(enable = "neon,dotprod")]
fn depthwise_inner(filters: &Depthwise, input: &[i8], run: &Run<'_>, output: &mut [i8]) {
    let rounding = Rounding::of(&filters.requantize);
    let padding = vdupq_n_s8(filters.input_zero);
    let places = run.places.as_chunks::<TAPS>().0;
    for (block, weights) in filters.filters.chunks_exact(filters.groups).enumerate() {
        let begin = load_sums(&filters.begin[block]);
        let first = block * BLOCK;
        for (pixel, output) in output.chunks_exact_mut(filters.channels).enumerate() {
            let output = &mut output[first..];
            let count = output.len().min(BLOCK);
            let mut sums = begin;
            for (places, weights) in places.iter().zip(weights) {
                let mut taps = [padding; TAPS];
                for (tap, place) in taps.iter_mut().zip(places) {
                    if *place != PADDING {
                        *tap = load_bytes(&input[*place + pixel * run.step + first..], count);
                    }
                }
                for ((sum, taps), weights) in sums.iter_mut().zip(by_lane(taps)).zip(load(weights)) {
                    *sum = dot(*sum, taps, weights);
                }
            }
            rounding.store(sums, &filters.multipliers[block], &mut output[..count]);
        }
    }
}

/// `[tap][lane]` as `[lane][tap]`.
#[inline]
#[target_feature(enable = "neon")]
fn by_lane(taps: [int8x16_t; TAPS]) -> [int8x16_t; QUARTERS] {
    let [a, b, c, d] = taps;
    let (even_low, even_high) = (vzip1q_s8(a, c), vzip2q_s8(a, c));
    let (odd_low, odd_high) = (vzip1q_s8(b, d), vzip2q_s8(b, d));
    [
        vzip1q_s8(even_low, odd_low),
        vzip2q_s8(even_low, odd_low),
        vzip1q_s8(even_high, odd_high),
        vzip2q_s8(even_high, odd_high),
    ]
}
