use super::*;
use proptest::prelude::*;

/// Largest difference from the reference, in dB or in natural logarithms: its digits end at 0.0001.
const TOLERANCE: f64 = 1e-4;

/// The MLPerf Tiny anomaly detection reference's features.
fn mlperf() -> AudioSpec {
    AudioSpec {
        sample_rate_hz: 16_000,
        window_samples: 1_024,
        hop_samples: 512,
        mels: 128,
        frequency_min_hz: 0.0,
        frequency_max_hz: 8_000.0,
        mel_scale: MelScale::Slaney,
        norm: MelNorm::Slaney,
        log: MelLog::Db,
        floor: f64::EPSILON,
        frames: 5,
        stride_frames: 1,
        layout: AudioLayout::Frames,
        mean: None,
        std: None,
    }
}

/// What can be chosen otherwise is.
fn other() -> AudioSpec {
    AudioSpec {
        sample_rate_hz: 8_000,
        window_samples: 256,
        hop_samples: 80,
        mels: 20,
        frequency_min_hz: 20.0,
        frequency_max_hz: 3_800.0,
        mel_scale: MelScale::Htk,
        norm: MelNorm::None,
        log: MelLog::Ln,
        floor: 1e-6,
        layout: AudioLayout::Mels,
        ..mlperf()
    }
}

/// Noise of a linear congruential generator and two triangle waves, all in integers: -1 to 1 in steps of 2^-15.
fn signal(count: usize) -> Vec<f32> {
    let triangle = |at: usize, period: usize, height: usize| {
        let place = at % period;
        let rise = if 2 * place < period { 2 * place } else { 2 * (period - place) };
        (height * rise / period) as i32 - (height / 2) as i32
    };
    let mut state = 1u32;
    let sample = |at: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = ((state >> 16) & 0x7fff) as i32 - 16_384;
        let sum = noise.div_euclid(16) + triangle(at, 37, 8_000) + triangle(at, 200, 12_000);
        sum as f32 / 32_768.0
    };
    (0..count).map(sample).collect()
}

fn features(spec: &AudioSpec, samples: &[f32]) -> Vec<Vec<f64>> {
    let (mut frames, mut features) = (Frames::new(spec.window_samples, spec.hop_samples), LogMel::new(spec));
    let (mut rest, mut found) = (samples, Vec::new());
    while let Some(frame) = frames.next(&mut rest) {
        found.push(features.features(frame).to_vec());
    }
    found
}

#[track_caller]
fn near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= TOLERANCE, "[{at}] is {found}, expected {expected}");
    }
}

// The expected numbers below are librosa 0.11.0's, of the same signal in f64: `feature.melspectrogram(..., power=2.0,
// center=False)`, then `10 * log10(S + eps)` or `log(S + 1e-6)`; NumPy 2.4.6's rfft and Slaney's formulas agree within
// 0.000001 dB.

#[test]
fn features_are_those_of_the_mlperf_tiny_reference() {
    let found = features(&mlperf(), &signal(4_096));
    assert_eq!(found.len(), 7);
    near(&found[0], &FIRST_FRAME);
    let every_16th: Vec<f64> = found[6].iter().step_by(16).copied().collect();
    near(&every_16th, &[-27.1478, -7.2206, -24.1575, -22.7814, -18.4615, -19.1501, -22.0159, -21.7082]);
}

#[test]
fn htk_mels_plain_triangles_and_natural_logarithms() {
    let found = features(&other(), &signal(4_096));
    assert_eq!(found.len(), 49);
    near(&found[3], &FOURTH_FRAME_OF_HTK);
    let every_5th: Vec<f64> = found[48].iter().step_by(5).copied().collect();
    near(&every_5th, &[3.8550, -2.4159, -1.8357, -1.3390]);
}

#[test]
fn silence_is_the_floor() {
    let found = features(&mlperf(), &[0.0; 1_024]);
    near(&found[0], &[10.0 * f64::EPSILON.log10(); 128]);
}

#[test]
fn the_tensor_is_scaled_per_band_and_laid_out() {
    let (mean, std) = (Some(vec![1.0, 10.0]), Some(vec![2.0, 5.0]));
    let mut spec = AudioSpec { mels: 2, mean, std, ..mlperf() };
    let frames: [&[f64]; 2] = [&[1.0, 20.0], &[3.0, 15.0]];
    assert_eq!(audio_tensor(frames.into_iter(), &spec), [0.0, 2.0, 1.0, 1.0]);
    spec.layout = AudioLayout::Mels;
    assert_eq!(audio_tensor(frames.into_iter(), &spec), [0.0, 1.0, 2.0, 1.0]);
    (spec.mean, spec.std) = (None, None);
    assert_eq!(audio_tensor(frames.into_iter(), &spec), [1.0, 3.0, 20.0, 15.0]);
}

#[test]
fn forgotten_samples_are_in_no_frame() {
    let mut frames = Frames::new(4, 6);
    assert_eq!(frames.next(&mut [1.0; 5].as_slice()), Some([1.0; 4].as_slice()));
    let mut rest = [2.0; 3].as_slice();
    assert_eq!((frames.next(&mut rest), rest.len()), (None, 0));
    frames.clear();
    assert_eq!(frames.next(&mut [3.0; 4].as_slice()), Some([3.0; 4].as_slice()));
}

proptest! {
    #[test]
    fn frames_are_the_same_however_the_stream_is_cut(
        window in 1usize..9,
        hop in 1usize..12,
        blocks in proptest::collection::vec(0usize..9, 0..12),
    ) {
        let count = blocks.iter().sum::<usize>();
        let samples: Vec<f32> = (0..count).map(|at| at as f32).collect();
        let mut frames = Frames::new(window, hop);
        let (mut rest, mut found) = (samples.as_slice(), Vec::new());
        for block in blocks {
            let mut part = rest.split_off(..block).unwrap();
            while let Some(frame) = frames.next(&mut part) {
                found.push(frame.to_vec());
            }
            prop_assert!(part.is_empty());
        }
        let starts = (0..).map(|at| at * hop).take_while(|start| start + window <= count);
        let expected: Vec<_> = starts.map(|start| samples[start..start + window].to_vec()).collect();
        prop_assert_eq!(found, expected);
    }
}

#[rustfmt::skip]
const FIRST_FRAME: [f64; 128] = [
    -26.4292, 5.5474, 16.8091, 16.2364, -6.7217, -20.3435, -23.8312, -30.5800, -13.2799, -0.1764,
    -4.2814, -19.4036, -24.9112, -22.0828, -27.1573, -26.0830, -5.0451, 13.4233, 12.7539, -1.1416,
    -25.1707, -26.7368, -16.9401, -10.3805, -13.9830, -19.2586, -30.4460, -22.6181, -21.9333,
    -26.0847, -20.6882, -21.4333, -21.0013, -17.4195, -22.8169, -26.5154, -24.0317, -17.7219,
    -20.6601, -23.3465, -21.2932, -17.7609, -24.0266, -18.4236, -18.5171, -19.3607, -22.2634,
    -22.4486, -16.3403, -15.3640, -22.1888, -19.1964, -7.8157, -7.9689, -21.3709, -22.9518,
    -20.4188, -21.5276, -20.5826, -23.9845, -21.0683, -23.0658, -17.9463, -23.2441, -19.7854,
    -17.0942, -28.2694, -18.8175, -17.7498, -19.4454, -18.6151, -21.1750, -22.9553, -18.5842,
    -15.5499, -22.4516, -19.7041, -18.9451, -17.7342, -17.9098, -18.3769, -17.4903, -26.8223,
    -24.0433, -20.6760, -20.2192, -22.1848, -19.7162, -20.2324, -22.2028, -22.9571, -20.8801,
    -22.2196, -21.5730, -20.7001, -22.0459, -22.3202, -21.1044, -20.1331, -20.0581, -20.0931,
    -22.3720, -22.1536, -18.9231, -18.2614, -21.1564, -20.4810, -20.8902, -21.0230, -23.7336,
    -22.4911, -21.2749, -20.3781, -21.9660, -20.4693, -22.1779, -23.3739, -20.4789, -19.6961,
    -22.5921, -24.3906, -21.9459, -22.0616, -21.1730, -22.0537, -21.7445, -22.0828, -20.8465,
];
#[rustfmt::skip]
const FOURTH_FRAME_OF_HTK: [f64; 20] = [
    3.8084, 2.8177, 3.7383, 0.3966, -2.1146, -2.0499, -1.1619, -1.9824, -2.3929, -1.2652, -0.9998,
    -1.4545, -1.7077, -1.6074, -1.4190, -0.3369, -1.1320, -1.5928, -1.4621, -1.2925,
];
