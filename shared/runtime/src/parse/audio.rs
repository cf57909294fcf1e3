//! Checks of `[audio]`.

use super::checks::{Checked, ensure};
use crate::audio::AudioSpec;
use crate::manifest::InputSpec;

/// Highest rate, in samples a second.
const RATE_HZ_MAX: u32 = 192_000;
/// Shortest and longest frame, in samples.
const WINDOW_SAMPLES: std::ops::RangeInclusive<usize> = 16..=16_384;
/// Longest hop, in samples.
const HOP_SAMPLES_MAX: usize = 65_536;
/// Most mel bands.
const MELS_MAX: usize = 512;
/// Most frames of an input and between two inputs.
const FRAMES_MAX: usize = 10_000;

pub(super) fn check_audio(audio: &AudioSpec, input: &InputSpec) -> Checked {
    let rate = audio.sample_rate_hz;
    let rates = 1_000..=RATE_HZ_MAX;
    ensure(rates.contains(&rate), "audio.sample_rate_hz", format!("1000 to {RATE_HZ_MAX}"), rate)?;
    let window = audio.window_samples;
    let fits = WINDOW_SAMPLES.contains(&window) && window.is_power_of_two();
    let (shortest, longest) = (WINDOW_SAMPLES.start(), WINDOW_SAMPLES.end());
    ensure(fits, "audio.window_samples", format!("a power of two, {shortest} to {longest}"), window)?;
    for (field, value, most) in [
        ("hop_samples", audio.hop_samples, HOP_SAMPLES_MAX),
        ("mels", audio.mels, MELS_MAX),
        ("frames", audio.frames, FRAMES_MAX),
        ("stride_frames", audio.stride_frames, FRAMES_MAX),
    ] {
        ensure((1..=most).contains(&value), format!("audio.{field}"), format!("1 to {most}"), value)?;
    }
    let (low, high, half) = (audio.frequency_min_hz, audio.frequency_max_hz, f64::from(rate) / 2.0);
    ensure((0.0..half).contains(&low), "audio.frequency_min_hz", format!("0 to below {half}"), low)?;
    let expected = format!("above frequency_min_hz and up to {half}, half the rate");
    ensure(high > low && high <= half, "audio.frequency_max_hz", expected, high)?;
    let floor = audio.floor;
    ensure(floor.is_finite() && floor > 0.0, "audio.floor", "a number above 0", floor)?;
    for (field, list) in [("mean", &audio.mean), ("std", &audio.std)] {
        let Some(list) = list else { continue };
        let (field, mels) = (format!("audio.{field}"), audio.mels);
        ensure(list.len() == mels, &field, format!("{mels} entries, as many as mels"), list.len())?;
        ensure(list.iter().all(|v| v.is_finite()), &field, "finite numbers", format!("{list:?}"))?;
    }
    let above = audio.std.iter().flatten().all(|std| *std > 0.0);
    ensure(above, "audio.std", "numbers above 0", format!("{:?}", audio.std))?;
    let elements = audio.frames * audio.mels;
    ensure(
        elements == input.elements(),
        "input.shape",
        format!("{elements} elements (frames x mels)"),
        input.elements(),
    )
}

#[cfg(test)]
mod tests {
    use super::super::parse_manifest;

    const SOUND: &str = r#"
format = 1
name = "hum"
version = "1"
licence = "MIT"
task = "anomaly"
[input]
name = "x"
shape = [1, 640]
type = "f32"
[output]
name = "y"
shape = [1, 640]
[quantization]
form = "none"
[audio]
sample_rate_hz = 16000
window_samples = 1024
hop_samples = 512
mels = 128
frequency_min_hz = 0
frequency_max_hz = 8000
mel_scale = "slaney"
norm = "slaney"
log = "db"
floor = 2.220446049250313e-16
frames = 5
stride_frames = 31
layout = "frames"
[anomaly]
score = "reconstruction"
raise_at = 5
clear_below = 3
raise_after = 2
clear_after = 3
[[golden]]
name = "hum"
tensor = "x.f32"
expected_file = "y.f32"
tolerance = 0.1
"#;

    fn with(from: &str, to: &str) -> String {
        assert!(SOUND.contains(from), "{from}");
        SOUND.replacen(from, to, 1)
    }

    #[track_caller]
    fn refused(text: &str, parts: &[&str]) {
        let error = parse_manifest(text).expect_err(text).to_string();
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    }

    #[test]
    fn a_complete_section_is_taken() {
        let manifest = parse_manifest(SOUND).unwrap();
        let audio = manifest.audio().unwrap();
        assert_eq!((audio.window_samples, audio.mels, audio.mean.is_none()), (1024, 128, true));
        assert!(manifest.series().is_none() && manifest.image().is_none());
    }

    #[test]
    fn values_out_of_range_name_field_and_expectation() {
        for (from, to, parts) in [
            ("window_samples = 1024", "window_samples = 1000", ["`audio.window_samples`", "a power of two"]),
            ("hop_samples = 512", "hop_samples = 0", ["`audio.hop_samples`", "1 to 65536"]),
            ("mels = 128", "mels = 127", ["`input.shape`", "635 elements (frames x mels)"]),
            (
                "frequency_min_hz = 0",
                "frequency_min_hz = -1",
                ["`audio.frequency_min_hz`", "0 to below 8000"],
            ),
            (
                "frequency_min_hz = 0",
                "frequency_min_hz = nan",
                ["`audio.frequency_min_hz`", "0 to below 8000"],
            ),
            ("_max_hz = 8000", "_max_hz = 8001", ["`audio.frequency_max_hz`", "up to 8000, half the rate"]),
            ("_max_hz = 8000", "_max_hz = 0", ["`audio.frequency_max_hz`", "above frequency_min_hz"]),
            ("floor = 2", "floor = -2", ["`audio.floor`", "above 0"]),
            ("log = \"db\"", "log = \"lg\"", ["unknown variant `lg`", "`db`"]),
            ("mels = 128", "mels = 128\nmean = [0]", ["`audio.mean`", "128 entries, as many as mels"]),
            ("layout = \"frames\"", "centre = true", ["unknown field `centre`", "layout"]),
            ("tensor = \"x.f32\"", "rows = [[0]]", ["`golden[0].rows, image, tensor`", "or tensor"]),
            ("tensor = \"x.f32\"", "image = \"x.png\"", ["`golden[0].rows, image, tensor`", "or tensor"]),
        ] {
            refused(&with(from, to), &parts);
        }
        let list = |item: &str| vec![item; 128].join(", ");
        refused(
            &with("mels = 128", &format!("mels = 128\nstd = [{}]", list("0"))),
            &["`audio.std`", "above 0"],
        );
        let image = "[image]\nwidth = 1\nheight = 1\nchannels = \"gray\"\nlayout = \"nchw\"\nresize = \"exact\"\n\
                     scale = 1\nmean = [0]\nstd = [1]\n[anomaly]";
        refused(&with("[anomaly]", image), &["exactly one of", "[\"image\", \"audio\"]"]);
    }

    #[test]
    fn a_section_is_bounded() {
        for (field, from, min, max) in [
            ("audio.sample_rate_hz", "sample_rate_hz = 16000", 1_000, 192_000),
            ("audio.hop_samples", "hop_samples = 512", 1, 65_536),
            ("audio.stride_frames", "stride_frames = 31", 1, 10_000),
        ] {
            let with_value = |value: u32| {
                let key = from.split_once(' ').unwrap().0;
                let text = with(from, &format!("{key} = {value}"));
                text.replacen("frequency_max_hz = 8000", "frequency_max_hz = 500", 1)
            };
            for value in [min, max] {
                parse_manifest(&with_value(value)).unwrap();
            }
            for value in [min - 1, max + 1] {
                refused(&with_value(value), &[field, &format!("{min} to {max}")]);
            }
        }
        let sized = |frames: usize, mels: usize| {
            let text = with("shape = [1, 640]", &format!("shape = [1, {}]", frames * mels));
            let text = text.replacen("shape = [1, 640]", &format!("shape = [1, {}]", frames * mels), 1);
            text.replacen("mels = 128", &format!("mels = {mels}"), 1).replacen(
                "frames = 5",
                &format!("frames = {frames}"),
                1,
            )
        };
        for (frames, mels) in [(10_000, 1), (1, 512)] {
            parse_manifest(&sized(frames, mels)).unwrap();
        }
        refused(&sized(10_001, 1), &["`audio.frames`", "1 to 10000"]);
        refused(&sized(1, 513), &["`audio.mels`", "1 to 512"]);
        for window in [16, 16_384] {
            parse_manifest(&with("window_samples = 1024", &format!("window_samples = {window}"))).unwrap();
        }
        for window in [8, 32_768] {
            let text = with("window_samples = 1024", &format!("window_samples = {window}"));
            refused(&text, &["`audio.window_samples`", "16 to 16384"]);
        }
    }
}
