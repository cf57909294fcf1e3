//! The power spectrum of a frame under a Hann window.

use std::f64::consts::PI;

/// Tables and working memory for frames of one length.
#[derive(Clone, Debug)]
pub(super) struct PowerSpectrum {
    /// Periodic Hann window: `0.5 - 0.5 cos(2 pi n / length)`.
    window: Vec<f64>,
    /// `exp(-2 pi i k / length)` for the first half of `k`.
    turns: Vec<Complex>,
    /// Even samples as real, odd ones as imaginary parts: a transform of half the length serves.
    half: Vec<Complex>,
    power: Vec<f64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Complex {
    re: f64,
    im: f64,
}

impl Complex {
    fn plus(self, other: Self) -> Self {
        Self { re: self.re + other.re, im: self.im + other.im }
    }

    fn minus(self, other: Self) -> Self {
        Self { re: self.re - other.re, im: self.im - other.im }
    }

    fn times(self, other: Self) -> Self {
        Self { re: self.re * other.re - self.im * other.im, im: self.re * other.im + self.im * other.re }
    }

    fn conjugate(self) -> Self {
        Self { re: self.re, im: -self.im }
    }
}

impl PowerSpectrum {
    /// `length` is a power of two of at least 4.
    pub(super) fn new(length: usize) -> Self {
        debug_assert!(length.is_power_of_two() && length >= 4, "a frame of {length} samples");
        let angle = |at: usize| 2.0 * PI * at as f64 / length as f64;
        let turn = |at| Complex { re: angle(at).cos(), im: -angle(at).sin() };
        Self {
            window: (0..length).map(|at| 0.5 - 0.5 * angle(at).cos()).collect(),
            turns: (0..length / 2).map(turn).collect(),
            half: vec![Complex::default(); length / 2],
            power: vec![0.0; length / 2 + 1],
        }
    }

    /// frame: f32 `[length]`. Returns f64 `[length / 2 + 1]`, the squared magnitudes from 0 Hz to half the rate.
    pub(super) fn of(&mut self, frame: &[f32]) -> &[f64] {
        let weighted = |at: usize| f64::from(frame[at]) * self.window[at];
        for (at, pair) in self.half.iter_mut().enumerate() {
            *pair = Complex { re: weighted(2 * at), im: weighted(2 * at + 1) };
        }
        transform(&mut self.half, &self.turns);
        let count = self.half.len();
        for (at, power) in self.power.iter_mut().enumerate() {
            // The transforms of the even and of the odd samples stand mixed in one; symmetry parts them.
            let (here, mirrored) = (self.half[at % count], self.half[(count - at) % count].conjugate());
            let (even, odd) = (here.plus(mirrored), here.minus(mirrored));
            let odd = Complex { re: odd.im, im: -odd.re };
            let turn = self.turns.get(at).copied().unwrap_or(Complex { re: -1.0, im: 0.0 });
            let sum = even.plus(turn.times(odd));
            *power = (sum.re * sum.re + sum.im * sum.im) / 4.0;
        }
        &self.power
    }
}

/// Cooley and Tukey's transform in place. `turns` are those of twice the length.
fn transform(values: &mut [Complex], turns: &[Complex]) {
    let count = values.len();
    let bits = count.trailing_zeros();
    for at in 0..count {
        let reversed = at.reverse_bits() >> (usize::BITS - bits);
        if at < reversed {
            values.swap(at, reversed);
        }
    }
    let mut size = 2;
    while size <= count {
        let step = 2 * count / size;
        for block in values.chunks_exact_mut(size) {
            let (low, high) = block.split_at_mut(size / 2);
            for (at, (a, b)) in low.iter_mut().zip(high).enumerate() {
                let turned = b.times(turns[at * step]);
                (*a, *b) = (a.plus(turned), a.minus(turned));
            }
        }
        size *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spectrum_is_the_definitions() {
        for length in [4usize, 8, 64, 256] {
            let frame: Vec<f32> =
                (0..length).map(|at| ((at * at * 7 + at * 3) % 23) as f32 / 23.0 - 0.4).collect();
            let found = PowerSpectrum::new(length).of(&frame).to_vec();
            for (bin, found) in found.iter().enumerate() {
                let (mut re, mut im) = (0.0, 0.0);
                for (at, sample) in frame.iter().enumerate() {
                    let weight = 0.5 - 0.5 * (2.0 * PI * at as f64 / length as f64).cos();
                    let angle = 2.0 * PI * (at * bin % length) as f64 / length as f64;
                    re += f64::from(*sample) * weight * angle.cos();
                    im -= f64::from(*sample) * weight * angle.sin();
                }
                let expected = re * re + im * im;
                assert!((found - expected).abs() < 1e-9, "{length}: bin {bin} is {found}, not {expected}");
            }
        }
    }
}
