//! AVX-512 with VNNI: `vpdpbusd` sums four products of unsigned by signed bytes into each of sixteen int32.
//!
//! Rows are signed, so their sign bit is turned (128 more), and the sums begin that much lower (`Isa::row_offset`).

use crate::Requantize;
use crate::depthwise::{Depthwise, PADDING, Run, TAPS};
use crate::gemm::{BLOCK, Block, STEP, Target};
use std::arch::x86_64::*;

/// Rows that are multiplied at once: as many sums as stay in registers while one block's weights pass.
const ROWS: usize = 8;

/// How sixteen sums become bytes.
struct Rounding {
    zero: __m512i,
    low: __m512,
    high: __m512,
}

/// Rows by one block's filters.
pub(crate) fn product(rows: &[[i8; STEP]], block: &Block<'_>, output: &mut [i8], to: &Target) {
    #[allow(unsafe_code, reason = "an instruction set that `Convolution::on` found on this processor")]
    unsafe {
        product_inner(rows, block, output, to);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn product_inner(rows: &[[i8; STEP]], block: &Block<'_>, output: &mut [i8], to: &Target) {
    let steps = block.filters.len();
    let rounding = Rounding::of(block.requantize);
    let mut row = 0;
    let count = rows.len() / steps;
    while row + ROWS <= count {
        let of: [&[[i8; STEP]]; ROWS] = std::array::from_fn(|at| &rows[(row + at) * steps..][..steps]);
        let sums = sums_of(of, block);
        for (at, sums) in sums.into_iter().enumerate() {
            rounding.store(
                sums,
                block.multipliers,
                &mut output[(row + at) * to.stride + to.first..][..to.lanes],
            );
        }
        row += ROWS;
    }
    for row in row..count {
        let [sums] = sums_of([&rows[row * steps..][..steps]], block);
        rounding.store(sums, block.multipliers, &mut output[row * to.stride + to.first..][..to.lanes]);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn sums_of<const COUNT: usize>(rows: [&[[i8; STEP]]; COUNT], block: &Block<'_>) -> [__m512i; COUNT] {
    let mut sums = [load_sums(block.begin); COUNT];
    for (step, filters) in block.filters.iter().enumerate() {
        let weights = load(filters);
        for (sums, row) in sums.iter_mut().zip(&rows) {
            let elements =
                i32::from_le_bytes(row[step].map(i8::cast_unsigned)) ^ i32::from_ne_bytes([0x80; 4]);
            *sums = _mm512_dpbusd_epi32(*sums, _mm512_set1_epi32(elements), weights);
        }
    }
    sums
}

impl Rounding {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn of(requantize: &Requantize) -> Self {
        let zero = i32::from(requantize.zero);
        let bound = |bound: i8| (i32::from(bound) - zero) as f32;
        Self {
            zero: _mm512_set1_epi32(zero),
            low: _mm512_set1_ps(bound(requantize.min)),
            high: _mm512_set1_ps(bound(requantize.max)),
        }
    }

    /// Scales, bounds, rounds to nearest with ties to even (the processor's own rounding), and writes the lanes that there are.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn store(&self, sums: __m512i, multipliers: &[f32; BLOCK], output: &mut [i8]) {
        #[allow(unsafe_code, reason = "reads the sixteen f32 of an array")]
        let multipliers = unsafe { _mm512_loadu_ps(multipliers.as_ptr()) };
        let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), multipliers);
        let bounded = _mm512_min_ps(_mm512_max_ps(scaled, self.low), self.high);
        let rounded = _mm512_add_epi32(_mm512_cvtps_epi32(bounded), self.zero);
        let bytes = _mm512_cvtsepi32_epi8(rounded);
        let lanes = lanes(output.len());
        #[allow(unsafe_code, reason = "writes the slice's bytes only: the mask has as many bits as it has")]
        unsafe {
            _mm_mask_storeu_epi8(output.as_mut_ptr(), lanes, bytes);
        }
    }
}

/// A mask of the first so many of sixteen lanes; none of none.
#[inline]
fn lanes(count: usize) -> __mmask16 {
    u16::MAX.checked_shr((BLOCK - count.min(BLOCK)) as u32).unwrap_or(0)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[i8; BLOCK * STEP]) -> __m512i {
    #[allow(unsafe_code, reason = "reads the sixty-four bytes of an array")]
    unsafe {
        _mm512_loadu_si512(bytes.as_ptr().cast())
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_sums(sums: &[i32; BLOCK]) -> __m512i {
    #[allow(unsafe_code, reason = "reads the sixteen int32 of an array")]
    unsafe {
        _mm512_loadu_si512(sums.as_ptr().cast())
    }
}

/// Pixels by one filter a channel.
pub(crate) fn depthwise(filters: &Depthwise, input: &[i8], run: &Run<'_>, output: &mut [i8]) {
    #[allow(unsafe_code, reason = "an instruction set that `Convolution::on` found on this processor")]
    unsafe {
        depthwise_inner(filters, input, run, output);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn depthwise_inner(filters: &Depthwise, input: &[i8], run: &Run<'_>, output: &mut [i8]) {
    let pixels = output.len() / filters.channels;
    // What the loads below rely on: every tap of every pixel lies within the input, all its channels.
    let last = run.places.iter().filter(|place| **place != PADDING).max();
    let end = last.map_or(0, |last| last + (pixels - 1) * run.step + filters.channels);
    assert!(pixels > 0 && end <= input.len(), "the taps lie within the input");
    let rounding = Rounding::of(&filters.requantize);
    let turn = _mm512_set1_epi8(i8::MIN);
    let padding = _mm_set1_epi8(filters.input_zero);
    // Byte 4 * lane + tap comes from byte 16 * tap + lane.
    let order: [i8; BLOCK * TAPS] = std::array::from_fn(|at| ((at % TAPS) * BLOCK + at / TAPS) as i8);
    let order = load(&order);
    for (block, weights) in filters.filters.chunks_exact(filters.groups).enumerate() {
        let begin = load_sums(&filters.begin[block]);
        let first = block * BLOCK;
        let count = (filters.channels - first).min(BLOCK);
        let mask = lanes(count);
        for pixel in 0..pixels {
            let mut sums = begin;
            for (places, weights) in run.places.as_chunks::<TAPS>().0.iter().zip(weights) {
                // Not by `map`: a closure is not inlined into a function that is compiled for less.
                let tap = |place: usize| {
                    if place == PADDING {
                        return padding;
                    }
                    #[allow(
                        unsafe_code,
                        reason = "reads `count` bytes, within the input as asserted above; the mask leaves out the others"
                    )]
                    unsafe {
                        _mm_maskz_loadu_epi8(mask, input.as_ptr().add(place + pixel * run.step + first))
                    }
                };
                let (a, b, c, d) = (tap(places[0]), tap(places[1]), tap(places[2]), tap(places[3]));
                let low = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(a), b);
                let high = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(c), d);
                let taps = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
                let taps = _mm512_xor_si512(_mm512_permutexvar_epi8(order, taps), turn);
                sums = _mm512_dpbusd_epi32(sums, taps, load(weights));
            }
            let output = &mut output[pixel * filters.channels + first..][..count];
            rounding.store(sums, &filters.multipliers[block], output);
        }
    }
}
