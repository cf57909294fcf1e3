//! Checks of one section of `model.toml` each, against each other where they must agree.

use std::fmt::Display;

use super::ParseError;
use crate::forms::Quantization;
use crate::manifest::{
    AnomalyScore, AnomalySpec, ELEMENTS_MAX, ImageLayout, ImageSpec, InputSpec, LABELS_MAX, NAME_BYTES_MAX,
    OutputSpec, Postprocess, SeriesSpec, TEXT_BYTES_MAX, WINDOW_ROWS_MAX,
};

/// Most columns of a series.
const COLUMNS_MAX: usize = 1_000;
/// Most boxes that a detector may keep.
const BOXES_MAX: usize = 1_000;
/// Most consecutive windows of a hysteresis.
const CONSECUTIVE_MAX: u32 = 100_000;
/// Widest and highest tensor of a picture, in pixels.
const TENSOR_SIDE_MAX: usize = 4_096;
/// Most dimensions of a tensor.
const DIMENSIONS_MAX: usize = 6;

pub(super) type Checked = Result<(), ParseError>;

pub(super) fn ensure(
    holds: bool,
    field: impl Display,
    expected: impl Display,
    found: impl Display,
) -> Checked {
    if holds {
        return Ok(());
    }
    Err(ParseError::Field {
        field: field.to_string(),
        expected: expected.to_string(),
        found: found.to_string(),
    })
}

/// A text may be empty but not endless.
pub(super) fn check_text(field: impl Display, text: &str, bytes_max: usize) -> Checked {
    ensure(text.len() <= bytes_max, field, format!("at most {bytes_max} bytes"), text.len())
}

pub(super) fn check_shape(field: &str, shape: &[usize]) -> Checked {
    let dimensions = 1..=DIMENSIONS_MAX;
    ensure(
        dimensions.contains(&shape.len()),
        field,
        format!("1 to {DIMENSIONS_MAX} dimensions"),
        shape.len(),
    )?;
    let elements =
        shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)).unwrap_or(usize::MAX);
    ensure(elements >= 1, field, "dimensions of at least 1", format!("{shape:?}"))?;
    ensure(elements <= ELEMENTS_MAX, field, format!("at most {ELEMENTS_MAX} elements"), format!("{shape:?}"))
}

pub(super) fn check_quantization(quantization: &Quantization) -> Checked {
    for (field, value) in
        [("float_accuracy", quantization.float_accuracy), ("accuracy", quantization.accuracy)]
    {
        let value = value.unwrap_or(0.0);
        ensure((0.0..=1.0).contains(&value), format!("quantization.{field}"), "0 to 1", value)?;
    }
    Ok(())
}

pub(super) fn check_series(series: &SeriesSpec, input: &InputSpec) -> Checked {
    let columns = series.columns.len();
    ensure(
        (1..=COLUMNS_MAX).contains(&columns),
        "series.columns",
        format!("1 to {COLUMNS_MAX} names"),
        columns,
    )?;
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
    for (at, name) in series.columns.iter().enumerate() {
        check_text(format!("series.columns[{at}]"), name, TEXT_BYTES_MAX)?;
        check_text(format!("series.units[{at}]"), &series.units[at], TEXT_BYTES_MAX)?;
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

pub(super) fn check_image(image: &ImageSpec, input: &InputSpec) -> Checked {
    let channels = image.channels.count();
    for (field, value) in [("width", image.width), ("height", image.height)] {
        let expected = format!("1 to {TENSOR_SIDE_MAX}");
        ensure((1..=TENSOR_SIDE_MAX).contains(&value), format!("image.{field}"), expected, value)?;
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

pub(super) fn check_postprocess(
    postprocess: &Postprocess,
    input: &InputSpec,
    output: &OutputSpec,
) -> Checked {
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
            !label.is_empty() && label.len() <= NAME_BYTES_MAX,
            field,
            format!("labels of 1 to {NAME_BYTES_MAX} bytes"),
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
