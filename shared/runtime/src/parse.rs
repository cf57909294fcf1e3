//! Text of `model.toml` to a checked [`Manifest`]. Pure; `bundle` calls it and adds the file's name to errors.

mod alternatives;
mod audio;
#[cfg(test)]
mod bounds_tests;
mod checks;

use serde::Deserialize;

use alternatives::check_alternatives;
use checks::{
    Checked, check_image, check_postprocess, check_quantization, check_series, check_shape, check_text,
    ensure,
};

use crate::audio::AudioSpec;
use crate::forms::{Form, Quantization};
use crate::manifest::{
    AnomalySpec, ClassificationSpec, DetectionSpec, FORMAT, GOLDENS_MAX, Golden, GoldenExpected, GoldenInput,
    ImageSpec, InputSpec, Manifest, NAME_BYTES_MAX, OutputSpec, Postprocess, Preprocess, SeriesSpec,
    TEXT_BYTES_MAX, TaskKind,
};

/// Longest path of a file that `model.toml` names, in bytes.
const PATH_BYTES_MAX: usize = 256;

/// Why `model.toml` is refused.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Not TOML, an unknown key, a missing key or a wrong type; the text names line and key.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// A value that cannot be.
    #[error("field `{field}`: expected {expected}, found {found}")]
    Field {
        /// The field's path.
        field: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    format: u32,
    name: String,
    version: String,
    licence: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    source: String,
    task: TaskKind,
    input: InputSpec,
    output: OutputSpec,
    quantization: Quantization,
    #[serde(default, rename = "alternative")]
    alternatives: Vec<Form>,
    series: Option<SeriesSpec>,
    image: Option<ImageSpec>,
    audio: Option<AudioSpec>,
    classification: Option<ClassificationSpec>,
    anomaly: Option<AnomalySpec>,
    detection: Option<DetectionSpec>,
    golden: Vec<RawGolden>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGolden {
    name: String,
    rows: Option<Vec<Vec<f64>>>,
    image: Option<String>,
    tensor: Option<String>,
    expected: Option<Vec<f32>>,
    expected_file: Option<String>,
    tolerance: f32,
}

/// Parses and checks the text of a `model.toml`.
///
/// # Errors
/// The first thing that is wrong, with its field and what was expected.
pub fn parse_manifest(text: &str) -> Result<Manifest, ParseError> {
    let raw: RawManifest = toml::from_str(text)?;
    ensure(raw.format == FORMAT, "format", FORMAT, raw.format)?;
    check_texts(&raw)?;
    check_shape("input.shape", &raw.input.shape)?;
    ensure(
        raw.input.shape[0] == 1,
        "input.shape[0]",
        "1 (the batch; one plan per shape)",
        raw.input.shape[0],
    )?;
    check_shape("output.shape", &raw.output.shape)?;
    check_quantization(&raw.quantization)?;
    check_alternatives(&raw.alternatives)?;
    let preprocess = take_preprocess(raw.series, raw.image, raw.audio, &raw.input)?;
    let postprocess = take_postprocess(raw.task, raw.classification, raw.anomaly, raw.detection)?;
    check_postprocess(&postprocess, &raw.input, &raw.output)?;
    let count = raw.golden.len();
    ensure((1..=GOLDENS_MAX).contains(&count), "golden", format!("1 to {GOLDENS_MAX} samples"), count)?;
    let mut golden = Vec::with_capacity(count);
    for (index, sample) in raw.golden.into_iter().enumerate() {
        golden.push(take_golden(index, sample, &preprocess, &raw.output)?);
    }
    Ok(Manifest {
        name: raw.name,
        version: raw.version,
        licence: raw.licence,
        description: raw.description,
        source: raw.source,
        task: raw.task,
        input: raw.input,
        output: raw.output,
        quantization: raw.quantization,
        alternatives: raw.alternatives,
        preprocess,
        postprocess,
        golden,
    })
}

fn check_texts(raw: &RawManifest) -> Checked {
    let name_ok = !raw.name.is_empty()
        && raw.name.len() <= 64
        && raw.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    ensure(name_ok, "name", "1 to 64 of a-z, 0-9 and -", format!("{:?}", raw.name))?;
    for (field, text, bytes_max) in [
        ("version", &raw.version, NAME_BYTES_MAX),
        ("licence", &raw.licence, TEXT_BYTES_MAX),
        ("input.name", &raw.input.name, TEXT_BYTES_MAX),
        ("output.name", &raw.output.name, TEXT_BYTES_MAX),
    ] {
        ensure(!text.trim().is_empty(), field, "a text", "nothing")?;
        check_text(field, text, bytes_max)?;
    }
    check_text("description", &raw.description, TEXT_BYTES_MAX)?;
    check_text("source", &raw.source, TEXT_BYTES_MAX)
}

fn take_preprocess(
    series: Option<SeriesSpec>,
    image: Option<ImageSpec>,
    audio: Option<AudioSpec>,
    input: &InputSpec,
) -> Result<Preprocess, ParseError> {
    match (series, image, audio) {
        (Some(series), None, None) => {
            check_series(&series, input)?;
            Ok(Preprocess::Series(series))
        }
        (None, Some(image), None) => {
            check_image(&image, input)?;
            Ok(Preprocess::Image(image))
        }
        (None, None, Some(audio)) => {
            audio::check_audio(&audio, input)?;
            Ok(Preprocess::Audio(audio))
        }
        (series, image, audio) => {
            let present = present([
                ("series", series.is_some()),
                ("image", image.is_some()),
                ("audio", audio.is_some()),
            ]);
            Err(ParseError::Field {
                field: "series, image, audio".into(),
                expected: "exactly one of the three sections".into(),
                found: format!("{present:?}"),
            })
        }
    }
}

fn present(sections: [(&'static str, bool); 3]) -> Vec<&'static str> {
    sections.into_iter().filter_map(|(name, here)| here.then_some(name)).collect()
}

fn take_postprocess(
    task: TaskKind,
    classification: Option<ClassificationSpec>,
    anomaly: Option<AnomalySpec>,
    detection: Option<DetectionSpec>,
) -> Result<Postprocess, ParseError> {
    match (task, classification, anomaly, detection) {
        (TaskKind::Classification, Some(spec), None, None) => Ok(Postprocess::Classification(spec)),
        (TaskKind::Anomaly, None, Some(spec), None) => Ok(Postprocess::Anomaly(spec)),
        (TaskKind::Detection, None, None, Some(spec)) => Ok(Postprocess::Detection(spec)),
        (task, c, a, d) => {
            let present = present([
                ("classification", c.is_some()),
                ("anomaly", a.is_some()),
                ("detection", d.is_some()),
            ]);
            Err(ParseError::Field {
                field: task.as_str().into(),
                expected: format!("the section [{}] and no other task's", task.as_str()),
                found: format!("{present:?}"),
            })
        }
    }
}

fn take_golden(
    index: usize,
    raw: RawGolden,
    preprocess: &Preprocess,
    output: &OutputSpec,
) -> Result<Golden, ParseError> {
    let at = |field: &str| format!("golden[{index}].{field}");
    ensure(!raw.name.is_empty(), at("name"), "a name", "nothing")?;
    check_text(at("name"), &raw.name, TEXT_BYTES_MAX)?;
    ensure(
        raw.tolerance.is_finite() && raw.tolerance >= 0.0,
        at("tolerance"),
        "a number of at least 0",
        raw.tolerance,
    )?;
    let input = match (raw.rows, raw.image, raw.tensor, preprocess) {
        (Some(rows), None, None, Preprocess::Series(series)) => {
            ensure(
                rows.len() == series.window_rows,
                at("rows"),
                format!("{} rows, one window", series.window_rows),
                rows.len(),
            )?;
            let columns = series.columns.len();
            let fits = rows.iter().all(|row| row.len() == columns && row.iter().all(|v| v.is_finite()));
            ensure(fits, at("rows"), format!("{columns} finite numbers in each row"), "another row")?;
            GoldenInput::Rows(rows)
        }
        (None, Some(file), None, Preprocess::Image(_)) => GoldenInput::Image(inner_path(&at("image"), file)?),
        (None, None, Some(file), _) => GoldenInput::Tensor(inner_path(&at("tensor"), file)?),
        _ => {
            let expected = "exactly one of rows (series), image (image) or tensor (any)".into();
            return Err(ParseError::Field {
                field: at("rows, image, tensor"),
                expected,
                found: "another choice".into(),
            });
        }
    };
    let expected = match (raw.expected, raw.expected_file) {
        (Some(values), None) => {
            ensure(
                values.len() == output.elements(),
                at("expected"),
                format!("{} values", output.elements()),
                values.len(),
            )?;
            GoldenExpected::Inline(values)
        }
        (None, Some(file)) => GoldenExpected::File(inner_path(&at("expected_file"), file)?),
        _ => {
            let field = at("expected, expected_file");
            return Err(ParseError::Field {
                field,
                expected: "exactly one of the two".into(),
                found: "both or neither".into(),
            });
        }
    };
    Ok(Golden { name: raw.name, input, expected, tolerance: raw.tolerance })
}

/// A path that stays inside the bundle.
fn inner_path(field: &str, path: String) -> Result<String, ParseError> {
    check_inner_path(field, &path)?;
    Ok(path)
}

fn check_inner_path(field: &str, path: &str) -> Checked {
    let inside = !path.is_empty()
        && path.len() <= PATH_BYTES_MAX
        && std::path::Path::new(path)
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
    let expected = format!("a relative path of at most {PATH_BYTES_MAX} bytes inside the bundle");
    ensure(inside, field, expected, format!("{path:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const SERIES: &str = r#"
format = 1
name = "demo-1"
version = "1.0.0"
licence = "Apache-2.0"
task = "anomaly"
[input]
name = "x"
shape = [1, 4]
type = "f32"
[output]
name = "score"
shape = [1]
[quantization]
form = "none"
[series]
columns = ["a", "b"]
units = ["m", "s"]
rate_hz = 10
window_rows = 2
stride_rows = 1
layout = "rows"
mean = [0, 0]
std = [1, 1]
[anomaly]
score = "output"
raise_at = 5
clear_below = 3
raise_after = 2
clear_after = 3
[[golden]]
name = "rest"
rows = [[0, 0], [0, 0]]
expected = [0.5]
tolerance = 0.001
"#;

    #[test]
    fn complete_text_is_taken() {
        let manifest = parse_manifest(SERIES).unwrap();
        assert_eq!((manifest.task, manifest.golden.len()), (TaskKind::Anomaly, 1));
        assert_eq!(manifest.series().unwrap().columns, ["a", "b"]);
    }

    /// Replaces `from` by `to` in a good text; the error must hold all of `parts`.
    #[track_caller]
    fn check(from: &str, to: &str, parts: &[&str]) {
        assert!(SERIES.contains(from), "{from}");
        let error = parse_manifest(&SERIES.replacen(from, to, 1)).expect_err(to).to_string();
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    }

    #[test]
    fn unknown_and_missing_keys_name_the_key() {
        check("licence = ", "license = ", &["unknown field `license`", "licence"]);
        check("rate_hz = 10", "rate_hz = 10\nrate = 10", &["unknown field `rate`", "rate_hz"]);
        check("rate_hz = 10\n", "", &["missing field `rate_hz`"]);
        check("tolerance = 0.001", "tolerence = 0.001", &["unknown field `tolerence`", "tolerance"]);
        check("type = \"f32\"", "type = \"f64\"", &["unknown variant `f64`", "f32"]);
        check("window_rows = 2", "window_rows = \"two\"", &["window_rows", "expected usize"]);
        check("task = \"anomaly\"", "task = \"poetry\"", &["unknown variant `poetry`", "classification"]);
    }

    #[test]
    fn values_out_of_range_name_field_and_expectation() {
        check("format = 1", "format = 2", &["`format`", "expected 1", "found 2"]);
        check("demo-1", "Demo 1", &["`name`", "a-z"]);
        check("shape = [1, 4]", "shape = [2, 4]", &["`input.shape[0]`", "expected 1", "found 2"]);
        check("shape = [1, 4]", "shape = [1, 5]", &["`input.shape`", "4 elements", "found 5"]);
        check("shape = [1, 4]", "shape = []", &["`input.shape`", "1 to 6 dimensions"]);
        check("shape = [1, 4]", "shape = [1, 0]", &["`input.shape`", "at least 1"]);
        check("shape = [1, 4]", "shape = [1, 99999999999, 99999999999]", &["`input.shape`", "at most"]);
        check("units = [\"m\", \"s\"]", "units = [\"m\"]", &["`series.units`", "2 entries", "found 1"]);
        check("std = [1, 1]", "std = [1, 0]", &["`series.std`", "above 0"]);
        check("std = [1, 1]", "std = [1, nan]", &["`series.std`", "above 0"]);
        check("mean = [0, 0]", "mean = [0, inf]", &["`series.mean`", "finite"]);
        check("stride_rows = 1", "stride_rows = 0", &["`series.stride_rows`", "1 to"]);
        check(
            "clear_below = 3",
            "clear_below = 7",
            &["`anomaly.clear_below`", "at most raise_at (5)", "found 7"],
        );
        check("raise_after = 2", "raise_after = 0", &["`anomaly.raise_after`", "1 to"]);
        check("form = \"none\"", "form = \"none\"\naccuracy = 97", &["`quantization.accuracy`", "0 to 1"]);
    }

    #[test]
    fn sections_must_fit_the_task() {
        check("[anomaly]", "[detection]", &["unknown field `clear_after`", "score_min"]);
        check("task = \"anomaly\"", "task = \"classification\"", &["`classification`", "[\"anomaly\"]"]);
        let image = "[image]\nwidth = 1\nheight = 1\nchannels = \"gray\"\nlayout = \"nchw\"\nresize = \"exact\"\nscale = 1\nmean = [0]\nstd = [1]\n[anomaly]";
        check("[anomaly]", image, &["series, image", "exactly one", "[\"series\", \"image\"]"]);
    }

    #[test]
    fn golden_samples_must_fit() {
        check("rows = [[0, 0], [0, 0]]", "rows = [[0, 0]]", &["`golden[0].rows`", "2 rows", "found 1"]);
        check("rows = [[0, 0], [0, 0]]", "rows = [[0, 0], [0]]", &["`golden[0].rows`", "2 finite numbers"]);
        check(
            "rows = [[0, 0], [0, 0]]",
            "image = \"a.png\"",
            &["`golden[0].rows, image, tensor`", "exactly one"],
        );
        check("expected = [0.5]", "expected = [0.5, 1]", &["`golden[0].expected`", "1 values", "found 2"]);
        check("tolerance = 0.001", "tolerance = -1", &["`golden[0].tolerance`", "at least 0"]);
        check(
            "expected = [0.5]",
            "expected_file = \"../y.f32\"",
            &["`golden[0].expected_file`", "inside the bundle"],
        );
        check(
            "rows = [[0, 0], [0, 0]]",
            "tensor = \"/etc/passwd\"",
            &["`golden[0].tensor`", "inside the bundle"],
        );
        let golden = SERIES.find("[[golden]]").unwrap();
        let error = parse_manifest(&format!("golden = []\n{}", &SERIES[..golden])).unwrap_err().to_string();
        assert!(error.contains("`golden`") && error.contains("1 to 64 samples"), "{error}");
    }
}
