//! AVX2: `vpmaddwd` sums two products of int16 into each of eight int32, exactly. With FMA: products and sums of eight f32.

use crate::Requantize;
use crate::dense::{Group, LANES};
use crate::depthwise::{Depthwise, PADDING, Run};
use crate::gemm::{BLOCK, Block, PAIR, Target};
use crate::planes::{COLUMNS, Plane, put, tiles};
use std::arch::x86_64::*;

/// Rows that are multiplied at once: as many sums as stay in registers while one block's weights pass.
const ROWS: usize = 4;

/// Sixteen sums.
type Sums = [__m256i; 2];

/// How sums become bytes.
struct Rounding {
    zero: __m256i,
    low: __m256,
    high: __m256,
}

/// A row by a block of f32.
pub(crate) fn dense<const COUNT: usize>(input: &[f32], weights: &[Group<COUNT>]) -> Group<COUNT> {
    #[allow(unsafe_code, reason = "instructions that `Isa::available` found on this processor")]
    unsafe {
        dense_inner(input, weights)
    }
}

#[target_feature(enable = "avx2,fma")]
fn dense_inner<const COUNT: usize>(input: &[f32], weights: &[Group<COUNT>]) -> Group<COUNT> {
    let mut sums = [[_mm256_setzero_ps(); 2]; COUNT];
    for (element, weights) in input.iter().zip(weights) {
        let element = _mm256_set1_ps(*element);
        for ([low, high], weights) in sums.iter_mut().zip(weights) {
            let [a, b] = load_floats(weights);
            (*low, *high) = (_mm256_fmadd_ps(element, a, *low), _mm256_fmadd_ps(element, b, *high));
        }
    }
    sums.map(|[low, high]| {
        let mut group = [0.0; LANES];
        #[allow(unsafe_code, reason = "writes the two halves of an array of sixteen f32")]
        unsafe {
            _mm256_storeu_ps(group.as_mut_ptr(), low);
            _mm256_storeu_ps(group.as_mut_ptr().add(LANES / 2), high);
        }
        group
    })
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_floats(group: &[f32; LANES]) -> [__m256; 2] {
    #[allow(unsafe_code, reason = "reads the two halves of an array of sixteen f32")]
    unsafe {
        [_mm256_loadu_ps(group.as_ptr()), _mm256_loadu_ps(group.as_ptr().add(LANES / 2))]
    }
}

/// One channel's plane by its filter, in f32.
pub(crate) fn plane(plane: &Plane, padded: &[f32], weights: &[f32], bias: f32, output: &mut [f32]) {
    #[allow(unsafe_code, reason = "instructions that `Isa::available` found on this processor")]
    unsafe {
        plane_inner(plane, padded, weights, bias, output);
    }
}

#[target_feature(enable = "avx2,fma")]
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
#[target_feature(enable = "avx2,fma")]
fn tile<const COUNT: usize>(
    plane: &Plane,
    inputs: &[f32],
    weights: &[f32],
    bias: f32,
) -> [[f32; COLUMNS]; COUNT] {
    let mut sums = [_mm256_set1_ps(bias); COUNT];
    for (tap, weight) in plane.taps.iter().zip(weights) {
        let (weight, inputs) = (_mm256_set1_ps(*weight), &inputs[*tap..]);
        for (row, sum) in sums.iter_mut().enumerate() {
            let inputs = &inputs[row * plane.step..][..COLUMNS];
            #[allow(unsafe_code, reason = "reads a slice of eight f32")]
            let inputs = unsafe { _mm256_loadu_ps(inputs.as_ptr()) };
            *sum = _mm256_fmadd_ps(weight, inputs, *sum);
        }
    }
    sums.map(|sum| {
        let mut row = [0.0; COLUMNS];
        #[allow(unsafe_code, reason = "writes an array of eight f32")]
        unsafe {
            _mm256_storeu_ps(row.as_mut_ptr(), sum);
        }
        row
    })
}

/// Rows by one block's filters.
pub(crate) fn product(rows: &[[i16; PAIR]], block: &Block<'_>, output: &mut [i8], to: &Target) {
    #[allow(unsafe_code, reason = "an instruction set that `Convolution::on` found on this processor")]
    unsafe {
        product_inner(rows, block, output, to);
    }
}

#[target_feature(enable = "avx2")]
fn product_inner(rows: &[[i16; PAIR]], block: &Block<'_>, output: &mut [i8], to: &Target) {
    let pairs = block.wide.len();
    let rounding = Rounding::of(block.requantize);
    let count = rows.len() / pairs;
    let mut row = 0;
    while row + ROWS <= count {
        let of: [&[[i16; PAIR]]; ROWS] = std::array::from_fn(|at| &rows[(row + at) * pairs..][..pairs]);
        for (at, sums) in sums_of(of, block).into_iter().enumerate() {
            let output = &mut output[(row + at) * to.stride + to.first..][..to.lanes];
            rounding.store(sums, block.multipliers, output);
        }
        row += ROWS;
    }
    for row in row..count {
        let [sums] = sums_of([&rows[row * pairs..][..pairs]], block);
        rounding.store(sums, block.multipliers, &mut output[row * to.stride + to.first..][..to.lanes]);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn sums_of<const COUNT: usize>(rows: [&[[i16; PAIR]]; COUNT], block: &Block<'_>) -> [Sums; COUNT] {
    let mut sums = [load_sums(block.begin); COUNT];
    for (pair, filters) in block.wide.iter().enumerate() {
        let [low, high] = load(filters);
        for (sums, row) in sums.iter_mut().zip(&rows) {
            let [a, b] = row[pair].map(i16::cast_unsigned);
            let elements = _mm256_set1_epi32((u32::from(a) | u32::from(b) << 16).cast_signed());
            sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(elements, low));
            sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(elements, high));
        }
    }
    sums
}

impl Rounding {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn of(requantize: &Requantize) -> Self {
        let zero = i32::from(requantize.zero);
        let bound = |bound: i8| (i32::from(bound) - zero) as f32;
        Self {
            zero: _mm256_set1_epi32(zero),
            low: _mm256_set1_ps(bound(requantize.min)),
            high: _mm256_set1_ps(bound(requantize.max)),
        }
    }

    /// Scales, bounds, rounds to nearest with ties to even (the processor's own rounding), and writes the lanes that there are.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(&self, sums: Sums, multipliers: &[f32; BLOCK], output: &mut [i8]) {
        #[allow(unsafe_code, reason = "reads the two halves of an array of sixteen f32")]
        let multipliers =
            unsafe { [_mm256_loadu_ps(multipliers.as_ptr()), _mm256_loadu_ps(multipliers.as_ptr().add(8))] };
        let round = |sums, multipliers| {
            let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), multipliers);
            let bounded = _mm256_min_ps(_mm256_max_ps(scaled, self.low), self.high);
            _mm256_add_epi32(_mm256_cvtps_epi32(bounded), self.zero)
        };
        let (low, high) = (round(sums[0], multipliers[0]), round(sums[1], multipliers[1]));
        // Packing works on halves of 128 bits: the quarters are put in order between.
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
        let packed = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
        let mut bytes = [0_i8; BLOCK];
        #[allow(unsafe_code, reason = "writes the sixteen bytes of an array")]
        unsafe {
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), packed);
        }
        match output.first_chunk_mut::<BLOCK>() {
            Some(output) => *output = bytes,
            None => output.copy_from_slice(&bytes[..output.len()]),
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(filters: &[i16; BLOCK * PAIR]) -> [__m256i; 2] {
    #[allow(unsafe_code, reason = "reads the two halves of an array of thirty-two int16")]
    unsafe {
        [_mm256_loadu_si256(filters.as_ptr().cast()), _mm256_loadu_si256(filters.as_ptr().add(BLOCK).cast())]
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_sums(sums: &[i32; BLOCK]) -> Sums {
    #[allow(unsafe_code, reason = "reads the two halves of an array of sixteen int32")]
    unsafe {
        [_mm256_loadu_si256(sums.as_ptr().cast()), _mm256_loadu_si256(sums.as_ptr().add(BLOCK / 2).cast())]
    }
}

/// Pixels by one filter a channel.
pub(crate) fn depthwise(filters: &Depthwise, input: &[i8], run: &Run<'_>, output: &mut [i8]) {
    #[allow(unsafe_code, reason = "an instruction set that `Convolution::on` found on this processor")]
    unsafe {
        depthwise_inner(filters, input, run, output);
    }
}

#[target_feature(enable = "avx2")]
fn depthwise_inner(filters: &Depthwise, input: &[i8], run: &Run<'_>, output: &mut [i8]) {
    let rounding = Rounding::of(&filters.requantize);
    let padding = _mm_set1_epi8(filters.input_zero);
    let places = run.places.as_chunks::<PAIR>().0;
    for (block, weights) in filters.wide.chunks_exact(places.len()).enumerate() {
        let begin = load_sums(&filters.begin[block]);
        let first = block * BLOCK;
        for (pixel, output) in output.chunks_exact_mut(filters.channels).enumerate() {
            let output = &mut output[first..];
            let count = output.len().min(BLOCK);
            let mut sums = begin;
            for (places, weights) in places.iter().zip(weights) {
                // Not by `map`: a closure is not inlined into a function that is compiled for less.
                let tap = |place| match place {
                    PADDING => padding,
                    place => load_bytes(&input[place + pixel * run.step + first..], count),
                };
                let (a, b) = (tap(places[0]), tap(places[1]));
                let [low, high] = load(weights);
                let products =
                    |taps: __m128i, weights| _mm256_madd_epi16(_mm256_cvtepi8_epi16(taps), weights);
                sums[0] = _mm256_add_epi32(sums[0], products(_mm_unpacklo_epi8(a, b), low));
                sums[1] = _mm256_add_epi32(sums[1], products(_mm_unpackhi_epi8(a, b), high));
            }
            rounding.store(sums, &filters.multipliers[block], &mut output[..count]);
        }
    }
}

/// Sixteen bytes where they are there; else so many.
#[inline]
#[target_feature(enable = "avx2")]
fn load_bytes(from: &[i8], count: usize) -> __m128i {
    let mut rest = [0_i8; BLOCK];
    let bytes = from.first_chunk::<BLOCK>().unwrap_or_else(|| {
        rest[..count].copy_from_slice(&from[..count]);
        &rest
    });
    #[allow(unsafe_code, reason = "reads the sixteen bytes of an array")]
    unsafe {
        _mm_loadu_si128(bytes.as_ptr().cast())
    }
}
