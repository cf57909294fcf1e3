//! Sound to tensor: frames, power spectra and mel bands. No IO.
//!
//! Callers: the sound pipeline of `inference`. The features are those of librosa's `melspectrogram` with a periodic Hann
//! window, `power=2.0` and `center=False`: a stream has no end to mirror samples at, so frame `t` begins at sample
//! `t * hop_samples`. Samples are -1 to 1. With the keys of `docs/guide/models.md` they are the MLPerf Tiny anomaly
//! detection reference's. State is one frame of samples.

mod fft;
mod mel;
mod spec;

pub use spec::{AudioLayout, AudioSpec, MelLog, MelNorm, MelScale};

use fft::PowerSpectrum;
use mel::MelBand;

/// Cuts a stream of samples into frames that overlap by all but a hop.
#[derive(Clone, Debug)]
pub struct Frames {
    held: Vec<f32>,
    window: usize,
    hop: usize,
    /// Samples between two frames that belong to neither, where a hop is longer than a window.
    skip: usize,
}

impl Frames {
    /// No samples yet; both numbers are at least 1.
    #[must_use]
    pub fn new(window: usize, hop: usize) -> Self {
        Self { held: Vec::with_capacity(window), window, hop, skip: 0 }
    }

    /// Takes samples off the front of `samples` until a frame is full; None once all are taken.
    pub fn next(&mut self, samples: &mut &[f32]) -> Option<&[f32]> {
        if self.held.len() == self.window {
            self.held.drain(..self.hop.min(self.window));
            self.skip = self.hop.saturating_sub(self.window);
        }
        let skipped = self.skip.min(samples.len());
        self.skip -= skipped;
        *samples = &samples[skipped..];
        let (taken, rest) = samples.split_at((self.window - self.held.len()).min(samples.len()));
        self.held.extend_from_slice(taken);
        *samples = rest;
        (self.held.len() == self.window).then_some(self.held.as_slice())
    }

    /// Forgets all samples, after a gap in the stream.
    pub fn clear(&mut self) {
        self.held.clear();
        self.skip = 0;
    }
}

/// Makes log-mel features of one frame at a time.
#[derive(Clone, Debug)]
pub struct LogMel {
    spectrum: PowerSpectrum,
    bands: Vec<MelBand>,
    log: MelLog,
    floor: f64,
    features: Vec<f64>,
}

impl LogMel {
    /// Tables for a checked spec.
    #[must_use]
    pub fn new(spec: &AudioSpec) -> Self {
        let spectrum = PowerSpectrum::new(spec.window_samples);
        let features = vec![0.0; spec.mels];
        Self { spectrum, bands: mel::bands(spec), log: spec.log, floor: spec.floor, features }
    }

    /// frame: f32 `[window_samples]`, -1 to 1. Returns f64 `[mels]`.
    pub fn features(&mut self, frame: &[f32]) -> &[f64] {
        let power = self.spectrum.of(frame);
        for (feature, band) in self.features.iter_mut().zip(&self.bands) {
            let energy = band.energy(power) + self.floor;
            *feature = match self.log {
                MelLog::Db => 10.0 * energy.log10(),
                MelLog::Ln => energy.ln(),
            };
        }
        &self.features
    }
}

/// Scales frames of features: `z = (feature - mean) / std` per mel band.
/// Returns f32 `[frames, mels]` or `[mels, frames]` by the layout. Frames have as many values as the spec has bands.
pub fn audio_tensor<'a>(frames: impl ExactSizeIterator<Item = &'a [f64]>, spec: &AudioSpec) -> Vec<f32> {
    let (mels, count) = (spec.mels, frames.len());
    let of = |list: &Option<Vec<f64>>, mel: usize| list.as_ref().and_then(|list| list.get(mel)).copied();
    let mut tensor = vec![0.0f32; count * mels];
    for (at, frame) in frames.enumerate() {
        for (mel, feature) in frame.iter().take(mels).enumerate() {
            let z = (feature - of(&spec.mean, mel).unwrap_or(0.0)) / of(&spec.std, mel).unwrap_or(1.0);
            let index = match spec.layout {
                AudioLayout::Frames => at * mels + mel,
                AudioLayout::Mels => mel * count + at,
            };
            tensor[index] = z as f32;
        }
    }
    tensor
}

#[cfg(test)]
mod tests;
