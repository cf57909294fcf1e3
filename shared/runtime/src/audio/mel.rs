//! Triangular filters that are evenly spaced in mels.

use super::spec::{AudioSpec, MelNorm, MelScale};

/// One filter: weights of the bins from `first`, zero elsewhere.
#[derive(Clone, Debug)]
pub(super) struct MelBand {
    first: usize,
    weights: Vec<f64>,
}

impl MelBand {
    pub(super) fn energy(&self, power: &[f64]) -> f64 {
        power[self.first..].iter().zip(&self.weights).map(|(power, weight)| power * weight).sum()
    }
}

/// The filters of a spec, lowest first. One that lies between two bins is empty.
pub(super) fn bands(spec: &AudioSpec) -> Vec<MelBand> {
    let (low, high) =
        (mel(spec.frequency_min_hz, spec.mel_scale), mel(spec.frequency_max_hz, spec.mel_scale));
    let step = (high - low) / (spec.mels + 1) as f64;
    let edge = |at: usize| hertz(low + step * at as f64, spec.mel_scale);
    (0..spec.mels).map(|at| band(edge(at), edge(at + 1), edge(at + 2), spec)).collect()
}

fn band(left: f64, peak: f64, right: f64, spec: &AudioSpec) -> MelBand {
    let height = match spec.norm {
        MelNorm::Slaney => 2.0 / (right - left),
        MelNorm::None => 1.0,
    };
    let bin_hz = f64::from(spec.sample_rate_hz) / spec.window_samples as f64;
    let weight = |bin: usize| {
        let hz = bin as f64 * bin_hz;
        let triangle = ((hz - left) / (peak - left)).min((right - hz) / (right - peak));
        triangle.max(0.0) * height
    };
    let bins = 0..=spec.window_samples / 2;
    let first = bins.clone().find(|bin| weight(*bin) > 0.0).unwrap_or(0);
    let weights = (first..=*bins.end()).map(weight).take_while(|weight| *weight > 0.0).collect();
    MelBand { first, weights }
}

/// Slaney's scale: 200/3 Hz a mel up to 1,000 Hz (15 mels), then a factor of 6.4 in 27 mels.
const LINEAR_HZ: f64 = 200.0 / 3.0;
const LINEAR_HZ_MAX: f64 = 1_000.0;
const LINEAR_MELS: f64 = LINEAR_HZ_MAX / LINEAR_HZ;

fn log_step() -> f64 {
    6.4f64.ln() / 27.0
}

fn mel(hertz: f64, scale: MelScale) -> f64 {
    match scale {
        MelScale::Htk => 2595.0 * (1.0 + hertz / 700.0).log10(),
        MelScale::Slaney if hertz < LINEAR_HZ_MAX => hertz / LINEAR_HZ,
        MelScale::Slaney => LINEAR_MELS + (hertz / LINEAR_HZ_MAX).ln() / log_step(),
    }
}

fn hertz(mel: f64, scale: MelScale) -> f64 {
    match scale {
        MelScale::Htk => 700.0 * (10f64.powf(mel / 2595.0) - 1.0),
        MelScale::Slaney if mel < LINEAR_MELS => mel * LINEAR_HZ,
        MelScale::Slaney => LINEAR_HZ_MAX * ((mel - LINEAR_MELS) * log_step()).exp(),
    }
}
