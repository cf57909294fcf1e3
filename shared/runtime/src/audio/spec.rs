//! `[audio]` of `model.toml`.

use serde::Deserialize;

/// Which formula makes mels of a frequency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MelScale {
    /// Linear below 1,000 Hz, logarithmic above: Slaney's Auditory Toolbox (1998), the default of librosa.
    Slaney,
    /// `2595 log10(1 + f / 700)`: the HTK Book.
    Htk,
}

/// How high the triangles of the filters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MelNorm {
    /// Each has the same area: 2 over its width in Hz.
    Slaney,
    /// Each has the height 1.
    None,
}

/// Which logarithm is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MelLog {
    /// `10 log10(power + floor)`.
    Db,
    /// `ln(power + floor)`.
    Ln,
}

/// Order of a sound's tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AudioLayout {
    /// `[frame][mel]`: one frame after the other.
    Frames,
    /// `[mel][frame]`: one mel band after the other.
    Mels,
}

/// Preprocessing of sound: log-mel features of a power spectrum, `z = (feature - mean) / std` per mel band.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AudioSpec {
    /// Samples a second that the model was trained on; another rate is refused.
    pub sample_rate_hz: u32,
    /// Samples of a frame, a power of two: the length of the Hann window and of the Fourier transform.
    pub window_samples: usize,
    /// Samples between the starts of two frames.
    pub hop_samples: usize,
    /// Mel bands.
    pub mels: usize,
    /// Where the lowest band begins.
    pub frequency_min_hz: f64,
    /// Where the highest band ends; at most half the rate.
    pub frequency_max_hz: f64,
    /// Which formula makes mels.
    pub mel_scale: MelScale,
    /// How high the filters are.
    pub norm: MelNorm,
    /// Which logarithm is taken.
    pub log: MelLog,
    /// Added to the power before the logarithm; above zero.
    pub floor: f64,
    /// Frames of one input.
    pub frames: usize,
    /// Frames between the starts of two inputs.
    pub stride_frames: usize,
    /// Order of the tensor.
    pub layout: AudioLayout,
    /// Subtracted per mel band; absent: 0.
    pub mean: Option<Vec<f64>>,
    /// Divided by per mel band, above zero; absent: 1.
    pub std: Option<Vec<f64>>,
}
