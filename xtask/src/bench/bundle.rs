//! A model bundle of 270 KB, made here: what an agent's memory is measured with.
//!
//! One dense layer and a mean, weights from a formula, so that its golden sample can be computed beside it and
//! nothing has to be committed or fetched.

use anyhow::{Context, Result};
use std::fmt::Write;
use std::path::Path;

const COLUMNS: usize = 8;
const ROWS: usize = 32;
const INPUTS: usize = COLUMNS * ROWS;
/// 256 x 264 floats are 270,336 bytes.
const HIDDEN: usize = 264;
/// Rows of the series that feeds it.
const SERIES_ROWS: usize = 400;

fn weight(input: usize, hidden: usize) -> f32 {
    ((input * 7 + hidden * 13) % 17) as f32 / 64.0 - 0.125
}

fn value(row: usize, column: usize) -> f32 {
    ((row * 5 + column * 3) % 11) as f32 / 4.0 - 1.25
}

fn column(number: usize) -> String {
    format!("channel_{number}")
}

/// Writes `model.toml`, `model.onnx` and `series.csv`.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn write(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let put = |name: &str, bytes: &[u8]| {
        std::fs::write(dir.join(name), bytes).with_context(|| format!("cannot write {name}"))
    };
    put("model.onnx", &model())?;
    put("model.toml", manifest()?.as_bytes())?;
    put("series.csv", series().as_bytes())
}

fn series() -> String {
    let line = |values: Vec<String>| values.join(",") + "\n";
    let header = line((0..COLUMNS).map(column).collect());
    let row = |row: usize| line((0..COLUMNS).map(|column| value(row, column).to_string()).collect());
    header + &(0..SERIES_ROWS).map(row).collect::<String>()
}

/// The mean over the layer's outputs for the first window.
fn expected() -> f64 {
    let input = |at: usize| f64::from(value(at / COLUMNS, at % COLUMNS));
    let output = |hidden: usize| (0..INPUTS).map(|at| input(at) * f64::from(weight(at, hidden))).sum::<f64>();
    (0..HIDDEN).map(output).sum::<f64>() / HIDDEN as f64
}

fn manifest() -> Result<String> {
    let list = |text: &str| [text; COLUMNS].join(", ");
    let columns: Vec<String> = (0..COLUMNS).map(|number| format!("{:?}", column(number))).collect();
    let mut text = format!(
        "format = 1\nname = \"bench-dense\"\nversion = \"1.0.0\"\nlicence = \"Apache-2.0 OR MIT\"\ntask = \"anomaly\"\n\n\
         [input]\nname = \"x\"\nshape = [1, {INPUTS}]\ntype = \"f32\"\n\n[output]\nname = \"score\"\nshape = [1]\n\n\
         [quantization]\nform = \"none\"\n\n\
         [series]\ncolumns = [{}]\nunits = [{}]\nrate_hz = 10.0\nwindow_rows = {ROWS}\nstride_rows = 5\n\
         layout = \"rows\"\nmean = [{}]\nstd = [{}]\n\n\
         [anomaly]\nscore = \"output\"\nraise_at = 1000.0\nclear_below = 500.0\nraise_after = 2\nclear_after = 2\n\n\
         [[golden]]\nname = \"first window\"\nrows = [\n",
        columns.join(", "),
        list("\"1\""),
        list("0.0"),
        list("1.0"),
    );
    for row in 0..ROWS {
        let values: Vec<String> = (0..COLUMNS).map(|column| format!("{:?}", value(row, column))).collect();
        writeln!(text, "  [{}],", values.join(", "))?;
    }
    write!(text, "]\nexpected = [{:?}]\ntolerance = 0.001\n", expected())?;
    Ok(text)
}

/// The graph `score = mean(x * weights)` as an ONNX model.
fn model() -> Vec<u8> {
    let weights: Vec<u8> =
        (0..INPUTS * HIDDEN).flat_map(|at| weight(at / HIDDEN, at % HIDDEN).to_le_bytes()).collect();
    let mut initializer = Message::default();
    initializer.number(1, INPUTS as u64).number(1, HIDDEN as u64).number(2, FLOAT);
    initializer.bytes(8, b"weights").bytes(9, &weights);
    let mut product = Message::default();
    product.bytes(1, b"x").bytes(1, b"weights").bytes(2, b"hidden").bytes(3, b"product").bytes(4, b"MatMul");
    let mut mean = Message::default();
    mean.bytes(1, b"hidden").bytes(2, b"score").bytes(3, b"mean").bytes(4, b"ReduceMean");
    mean.message(5, Message::default().bytes(1, b"axes").number(8, 1).number(20, INTS));
    mean.message(5, Message::default().bytes(1, b"keepdims").number(3, 0).number(20, INT));
    let mut graph = Message::default();
    graph.message(1, &product).message(1, &mean).bytes(2, b"bench-dense").message(5, &initializer);
    graph.message(11, &tensor(b"x", &[1, INPUTS as u64])).message(12, &tensor(b"score", &[1]));
    let mut model = Message::default();
    model
        .number(1, IR_VERSION)
        .message(7, &graph)
        .message(8, Message::default().bytes(1, b"").number(2, OPSET));
    model.0
}

/// ONNX numbers: element type, attribute types, format and operator set versions.
const FLOAT: u64 = 1;
const INT: u64 = 2;
const INTS: u64 = 7;
const IR_VERSION: u64 = 7;
const OPSET: u64 = 13;

fn tensor(name: &[u8], dims: &[u64]) -> Message {
    let mut shape = Message::default();
    for dim in dims {
        shape.message(1, Message::default().number(1, *dim));
    }
    let mut tensor_type = Message::default();
    tensor_type.number(1, FLOAT).message(2, &shape);
    let mut info = Message::default();
    info.bytes(1, name).message(2, Message::default().message(1, &tensor_type));
    info
}

/// A protobuf message as it is written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) -> &mut Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) -> &mut Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn message(&mut self, field: u64, message: &Self) -> &mut Self {
        self.bytes(field, &message.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_has_its_size_and_a_valid_manifest() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let bytes = std::fs::metadata(dir.path().join("model.onnx")).unwrap().len();
        assert!((270_000..275_000).contains(&bytes), "{bytes}");
        let text = std::fs::read_to_string(dir.path().join("model.toml")).unwrap();
        let manifest: toml::Table = text.parse().unwrap();
        assert_eq!(manifest["golden"][0]["rows"].as_array().unwrap().len(), ROWS);
        assert!(expected().abs() < 100.0);
    }

    #[test]
    fn protobuf_fields_have_the_bytes_of_the_standard() {
        let mut message = Message::default();
        message.number(1, 150).bytes(2, b"testing");
        assert_eq!(message.0, b"\x08\x96\x01\x12\x07testing");
    }
}
