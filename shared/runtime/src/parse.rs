//! Text of `model.toml` to a checked [`Manifest`]. Pure; `bundle` calls it and adds the file's name to errors.

use std::fmt::Display;

use serde::Deserialize;

use crate::manifest::{
    AnomalyScore, AnomalySpec, ClassificationSpec, DetectionSpec, ELEMENTS_MAX, FORMAT, GOLDENS_MAX, Golden,
    GoldenExpected, GoldenInput, ImageLayout, ImageSpec, InputSpec, LABELS_MAX, Manifest, OutputSpec,
    Postprocess, Preprocess, Quantization, SeriesSpec, TEXT_BYTES_MAX, TaskKind, WINDOW_ROWS_MAX,
};

/// Most boxes that a detector may keep.
const BOXES_MAX: usize = 1_000;
/// Most consecutive windows of a hysteresis.
const CONSECUTIVE_MAX: u32 = 100_000;

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

type Checked = Result<(), ParseError>;

fn ensure(holds: bool, field: impl Display, expected: impl Display, found: impl Display) -> Checked {
    if holds {
        return Ok(());
    }
    Err(ParseError::Field {
        field: field.to_string(),
        expected: expected.to_string(),
        found: found.to_string(),
    })
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
    series: Option<SeriesSpec>,
    image: Option<ImageSpec>,
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
    let preprocess = take_preprocess(raw.series, raw.image, &raw.input)?;
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
    for (field, text) in [
        ("version", &raw.version),
        ("licence", &raw.licence),
        ("input.name", &raw.input.name),
        ("output.name", &raw.output.name),
    ] {
        ensure(!text.trim().is_empty(), field, "a text", "nothing")?;
        ensure(text.len() <= TEXT_BYTES_MAX, field, format!("at most {TEXT_BYTES_MAX} bytes"), text.len())?;
    }
    Ok(())
}

fn check_shape(field: &str, shape: &[usize]) -> Checked {
    ensure((1..=6).contains(&shape.len()), field, "1 to 6 dimensions", shape.len())?;
    let elements =
        shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)).unwrap_or(usize::MAX);
    ensure(elements >= 1, field, "dimensions of at least 1", format!("{shape:?}"))?;
    ensure(elements <= ELEMENTS_MAX, field, format!("at most {ELEMENTS_MAX} elements"), format!("{shape:?}"))
}

fn check_quantization(quantization: &Quantization) -> Checked {
    for (field, value) in
        [("float_accuracy", quantization.float_accuracy), ("accuracy", quantization.accuracy)]
    {
        let value = value.unwrap_or(0.0);
        ensure((0.0..=1.0).contains(&value), format!("quantization.{field}"), "0 to 1", value)?;
    }
    Ok(())
}

fn take_preprocess(
    series: Option<SeriesSpec>,
    image: Option<ImageSpec>,
    input: &InputSpec,
) -> Result<Preprocess, ParseError> {
    match (series, image) {
        (Some(series), None) => {
            check_series(&series, input)?;
            Ok(Preprocess::Series(series))
        }
        (None, Some(image)) => {
            check_image(&image, input)?;
            Ok(Preprocess::Image(image))
        }
        (both, _) => {
            let found = if both.is_some() { "both" } else { "neither" };
            Err(ParseError::Field {
                field: "series, image".into(),
                expected: "exactly one of the two sections".into(),
                found: found.into(),
            })
        }
    }
}

fn check_series(series: &SeriesSpec, input: &InputSpec) -> Checked {
    let columns = series.columns.len();
    ensure((1..=1_000).contains(&columns), "series.columns", "1 to 1000 names", columns)?;
    for (field, len) in
        [("units", series.units.len()), ("mean", series.mean.len()), ("std", series.std.len())]
    {
        ensure(
            len == columns,
            format!("series.{field}"),
            format!("{columns} entries, as many as columns"),
            len,
        )?;
    }
    ensure(
        series.mean.iter().all(|m| m.is_finite()),
        "series.mean",
        "finite numbers",
        format!("{:?}", series.mean),
    )?;
    let std_ok = series.std.iter().all(|s| s.is_finite() && *s > 0.0);
    ensure(std_ok, "series.std", "numbers above 0", format!("{:?}", series.std))?;
    ensure(
        series.rate_hz.is_finite() && series.rate_hz > 0.0,
        "series.rate_hz",
        "a number above 0",
        series.rate_hz,
    )?;
    let rows = 1..=WINDOW_ROWS_MAX;
    ensure(
        rows.contains(&series.window_rows),
        "series.window_rows",
        format!("1 to {WINDOW_ROWS_MAX}"),
        series.window_rows,
    )?;
    ensure(
        rows.contains(&series.stride_rows),
        "series.stride_rows",
        format!("1 to {WINDOW_ROWS_MAX}"),
        series.stride_rows,
    )?;
    let elements = series.window_rows * columns;
    ensure(
        elements == input.elements(),
        "input.shape",
        format!("{elements} elements (window_rows x columns)"),
        input.elements(),
    )
}

fn check_image(image: &ImageSpec, input: &InputSpec) -> Checked {
    let channels = image.channels.count();
    for (field, value) in [("width", image.width), ("height", image.height)] {
        ensure((1..=4_096).contains(&value), format!("image.{field}"), "1 to 4096", value)?;
    }
    for (field, values) in [("mean", &image.mean), ("std", &image.std)] {
        ensure(
            values.len() == channels,
            format!("image.{field}"),
            format!("{channels} entries, as many as channels"),
            values.len(),
        )?;
        ensure(
            values.iter().all(|v| v.is_finite()),
            format!("image.{field}"),
            "finite numbers",
            format!("{values:?}"),
        )?;
    }
    ensure(image.std.iter().all(|s| *s > 0.0), "image.std", "numbers above 0", format!("{:?}", image.std))?;
    ensure(image.scale.is_finite() && image.scale > 0.0, "image.scale", "a number above 0", image.scale)?;
    let expected = match image.layout {
        ImageLayout::Nhwc => vec![1, image.height, image.width, channels],
        ImageLayout::Nchw => vec![1, channels, image.height, image.width],
    };
    let flat = vec![1, image.height * image.width * channels];
    let fits = input.shape == expected || input.shape == flat;
    ensure(fits, "input.shape", format!("{expected:?} or {flat:?}"), format!("{:?}", input.shape))
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
            let present: Vec<&str> =
                [("classification", c.is_some()), ("anomaly", a.is_some()), ("detection", d.is_some())]
                    .into_iter()
                    .filter_map(|(name, here)| here.then_some(name))
                    .collect();
            Err(ParseError::Field {
                field: task.as_str().into(),
                expected: format!("the section [{}] and no other task's", task.as_str()),
                found: format!("{present:?}"),
            })
        }
    }
}

fn check_postprocess(postprocess: &Postprocess, input: &InputSpec, output: &OutputSpec) -> Checked {
    match postprocess {
        Postprocess::Classification(spec) => {
            check_labels("classification.labels", &spec.labels)?;
            let labels = spec.labels.len();
            ensure(
                labels == output.elements(),
                "classification.labels",
                format!("{} labels, as many as the output's elements", output.elements()),
                labels,
            )?;
            ensure((1..=labels).contains(&spec.top), "classification.top", format!("1 to {labels}"), spec.top)
        }
        Postprocess::Anomaly(spec) => check_anomaly(spec, input, output),
        Postprocess::Detection(spec) => {
            check_labels("detection.labels", &spec.labels)?;
            let fits =
                output.shape.len() == 4 && output.shape[0] == 1 && output.shape[1] == 5 + spec.labels.len();
            ensure(
                fits,
                "output.shape",
                format!("[1, {}, rows, columns] (5 + labels)", 5 + spec.labels.len()),
                format!("{:?}", output.shape),
            )?;
            ensure((0.0..=1.0).contains(&spec.score_min), "detection.score_min", "0 to 1", spec.score_min)?;
            ensure((0.0..=1.0).contains(&spec.iou_max), "detection.iou_max", "0 to 1", spec.iou_max)?;
            ensure(
                (1..=BOXES_MAX).contains(&spec.boxes_max),
                "detection.boxes_max",
                format!("1 to {BOXES_MAX}"),
                spec.boxes_max,
            )
        }
    }
}

fn check_labels(field: &str, labels: &[String]) -> Checked {
    ensure(
        (1..=LABELS_MAX).contains(&labels.len()),
        field,
        format!("1 to {LABELS_MAX} labels"),
        labels.len(),
    )?;
    for label in labels {
        ensure(
            !label.is_empty() && label.len() <= 128,
            field,
            "labels of 1 to 128 bytes",
            format!("{label:?}"),
        )?;
    }
    Ok(())
}

fn check_anomaly(spec: &AnomalySpec, input: &InputSpec, output: &OutputSpec) -> Checked {
    let elements = match spec.score {
        AnomalyScore::Output => 1,
        AnomalyScore::Reconstruction => input.elements(),
    };
    ensure(
        output.elements() == elements,
        "output.shape",
        format!("{elements} elements for this anomaly.score"),
        output.elements(),
    )?;
    ensure(spec.raise_at.is_finite(), "anomaly.raise_at", "a finite number", spec.raise_at)?;
    ensure(
        spec.clear_below <= spec.raise_at,
        "anomaly.clear_below",
        format!("at most raise_at ({})", spec.raise_at),
        spec.clear_below,
    )?;
    for (field, count) in [("raise_after", spec.raise_after), ("clear_after", spec.clear_after)] {
        ensure(
            (1..=CONSECUTIVE_MAX).contains(&count),
            format!("anomaly.{field}"),
            format!("1 to {CONSECUTIVE_MAX}"),
            count,
        )?;
    }
    Ok(())
}

fn take_golden(
    index: usize,
    raw: RawGolden,
    preprocess: &Preprocess,
    output: &OutputSpec,
) -> Result<Golden, ParseError> {
    let at = |field: &str| format!("golden[{index}].{field}");
    ensure(!raw.name.is_empty(), at("name"), "a name", "nothing")?;
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
            let expected = "exactly one of rows (series), image (image) or tensor".into();
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
    let inside = !path.is_empty()
        && path.len() <= 256
        && std::path::Path::new(&path)
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
    ensure(inside, field, "a relative path inside the bundle", format!("{path:?}"))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERIES: &str = r#"
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
        check("[anomaly]", image, &["series, image", "exactly one", "both"]);
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
