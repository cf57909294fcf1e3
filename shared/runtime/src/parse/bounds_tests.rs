//! Every bound of `model.toml`: what is at the bound is taken, one more is refused by its field.

use super::checks::check_shape;
use super::tests::SERIES;
use super::{ParseError, parse_manifest};
use crate::manifest::{
    ELEMENTS_MAX, GOLDENS_MAX, LABELS_MAX, NAME_BYTES_MAX, TEXT_BYTES_MAX, WINDOW_ROWS_MAX,
};

/// Makes a manifest of `max`, which is taken, and one of `max + 1`, whose refusal names `field` and `expected`.
#[track_caller]
fn check(max: usize, field: &str, expected: &str, text: impl Fn(usize) -> String) {
    if let Err(error) = parse_manifest(&text(max)) {
        panic!("{max}: {error}");
    }
    let error = parse_manifest(&text(max + 1)).expect_err("one more was taken");
    assert!(matches!(error, ParseError::Field { .. }), "{error}");
    let error = error.to_string();
    assert!(error.starts_with(&format!("field `{field}`: expected {expected}")), "{error}");
}

/// A good text in which `from` became `to`.
fn with(from: &str, to: &str) -> String {
    assert!(SERIES.contains(from), "{from}");
    SERIES.replacen(from, to, 1)
}

fn text(bytes: usize) -> String {
    "x".repeat(bytes)
}

/// A manifest with other sections and shapes than the series of [`SERIES`].
fn manifest(task: &str, input: &str, output: &str, sections: &str) -> String {
    format!(
        "format = 1\nname = \"demo\"\nversion = \"1\"\nlicence = \"MIT\"\ntask = {task:?}\n\
         [input]\nname = \"x\"\nshape = {input}\ntype = \"f32\"\n[output]\nname = \"y\"\nshape = {output}\n\
         [quantization]\nform = \"none\"\n{sections}\n\
         [[golden]]\nname = \"g\"\ntensor = \"x.f32\"\nexpected_file = \"y.f32\"\ntolerance = 0.1\n"
    )
}

const ANOMALY: &str =
    "[anomaly]\nscore = \"output\"\nraise_at = 5\nclear_below = 3\nraise_after = 2\nclear_after = 3";

fn series(columns: usize, window_rows: usize) -> String {
    let list = |item: &str| format!("[{}]", vec![item; columns].join(", "));
    let sections = format!(
        "[series]\ncolumns = {}\nunits = {}\nrate_hz = 1\nwindow_rows = {window_rows}\nstride_rows = 1\n\
         layout = \"rows\"\nmean = {}\nstd = {}\n{ANOMALY}",
        list("\"c\""),
        list("\"m\""),
        list("0"),
        list("1"),
    );
    manifest("anomaly", &format!("[1, {}]", columns * window_rows), "[1]", &sections)
}

fn image(width: usize, height: usize) -> String {
    let sections = format!(
        "[image]\nwidth = {width}\nheight = {height}\nchannels = \"gray\"\nlayout = \"nchw\"\nresize = \"exact\"\n\
         scale = 1\nmean = [0]\nstd = [1]\n{ANOMALY}"
    );
    manifest("anomaly", &format!("[1, {}]", width * height), "[1]", &sections)
}

fn classification(labels: &[String]) -> String {
    let image = "[image]\nwidth = 1\nheight = 1\nchannels = \"gray\"\nlayout = \"nchw\"\nresize = \"exact\"\n\
                 scale = 1\nmean = [0]\nstd = [1]";
    let sections = format!("{image}\n[classification]\nlabels = {labels:?}\nscores = \"raw\"\ntop = 1");
    manifest("classification", "[1, 1]", &format!("[{}]", labels.len()), &sections)
}

#[test]
fn texts_are_bounded() {
    check(64, "name", "1 to 64 of a-z", |bytes| with("demo-1", &text(bytes)));
    check(NAME_BYTES_MAX, "version", "at most 128 bytes", |bytes| with("1.0.0", &text(bytes)));
    let long = "at most 4096 bytes";
    for (field, from) in [
        ("licence", "\"Apache-2.0\""),
        ("input.name", "\"x\""),
        ("output.name", "\"score\""),
        ("series.columns[0]", "\"a\""),
        ("series.units[1]", "\"s\""),
        ("golden[0].name", "\"rest\""),
    ] {
        check(TEXT_BYTES_MAX, field, long, |bytes| with(from, &format!("{:?}", text(bytes))));
    }
    for field in ["description", "source"] {
        check(TEXT_BYTES_MAX, field, long, |bytes| {
            with("[input]", &format!("{field} = {:?}\n[input]", text(bytes)))
        });
    }
    for (from, key) in [("rows = [[0, 0], [0, 0]]", "tensor"), ("expected = [0.5]", "expected_file")] {
        let expected = "a relative path of at most 256 bytes";
        check(256, &format!("golden[0].{key}"), expected, |bytes| {
            with(from, &format!("{key} = {:?}", text(bytes)))
        });
    }
}

#[test]
fn shapes_are_bounded() {
    check(6, "input.shape", "1 to 6 dimensions", |dimensions| {
        with("shape = [1, 4]", &format!("shape = [{}4]", "1, ".repeat(dimensions - 1)))
    });
    check(6, "output.shape", "1 to 6 dimensions", |dimensions| {
        with("shape = [1]", &format!("shape = [1{}]", ", 1".repeat(dimensions - 1)))
    });
    assert!(check_shape("input.shape", &[1, ELEMENTS_MAX]).is_ok());
    assert!(check_shape("input.shape", &[1, 2, ELEMENTS_MAX / 2]).is_ok());
    for shape in [[1, 1, ELEMENTS_MAX + 1], [1, 2, ELEMENTS_MAX / 2 + 1]] {
        let error = check_shape("input.shape", &shape).unwrap_err().to_string();
        assert!(error.contains("`input.shape`: expected at most 16777216 elements"), "{error}");
    }
}

#[test]
fn a_series_is_bounded() {
    check(1_000, "series.columns", "1 to 1000 names", |columns| series(columns, 1));
    check(WINDOW_ROWS_MAX, "series.window_rows", "1 to 100000", |rows| series(1, rows));
    check(WINDOW_ROWS_MAX, "series.stride_rows", "1 to 100000", |rows| {
        with("stride_rows = 1", &format!("stride_rows = {rows}"))
    });
    for (field, from) in [("raise_after", "raise_after = 2"), ("clear_after", "clear_after = 3")] {
        check(100_000, &format!("anomaly.{field}"), "1 to 100000", |count| {
            with(from, &format!("{field} = {count}"))
        });
    }
}

#[test]
fn a_pictures_tensor_is_bounded() {
    check(4_096, "image.width", "1 to 4096", |side| image(side, 1));
    check(4_096, "image.height", "1 to 4096", |side| image(1, side));
}

#[test]
fn labels_and_boxes_are_bounded() {
    check(LABELS_MAX, "classification.labels", "1 to 10000 labels", |count| {
        classification(&vec!["l".to_owned(); count])
    });
    check(NAME_BYTES_MAX, "classification.labels", "labels of 1 to 128 bytes", |bytes| {
        classification(&["l".to_owned(), text(bytes)])
    });
    check(1_000, "detection.boxes_max", "1 to 1000", |boxes| {
        let sections = format!(
            "[image]\nwidth = 1\nheight = 1\nchannels = \"gray\"\nlayout = \"nchw\"\nresize = \"exact\"\n\
             scale = 1\nmean = [0]\nstd = [1]\n[detection]\ndecode = \"grid\"\nlabels = [\"l\"]\nscore_min = 0.5\n\
             iou_max = 0.5\nboxes_max = {boxes}"
        );
        manifest("detection", "[1, 1]", "[1, 6, 1, 1]", &sections)
    });
}

#[test]
fn golden_samples_are_bounded() {
    let (head, golden) = SERIES.split_at(SERIES.find("[[golden]]").unwrap());
    check(GOLDENS_MAX, "golden", "1 to 64 samples", |count| format!("{head}{}", golden.repeat(count)));
}
