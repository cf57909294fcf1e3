//! `model.toml`: what a bundle says about its model, parsed strictly into types that need no re-check.
//!
//! Every unknown key, missing section and value out of range is an error that names the field and what was expected.

use crate::audio::AudioSpec;
use serde::Deserialize;

use crate::forms::{Form, Quantization};

/// The format version that this build reads.
pub const FORMAT: u32 = 1;
/// Most elements of an input or output tensor.
pub const ELEMENTS_MAX: usize = 16 << 20;
/// Most labels of a classifier or detector.
pub const LABELS_MAX: usize = 10_000;
/// Most golden samples; at least one is needed.
pub const GOLDENS_MAX: usize = 64;
/// Most rows of a series window and most columns.
pub const WINDOW_ROWS_MAX: usize = 100_000;
/// Longest text field, in bytes.
pub const TEXT_BYTES_MAX: usize = 4_096;
/// Longest version and longest label, in bytes: every event carries them, and the wire takes no longer ones.
pub const NAME_BYTES_MAX: usize = 128;

/// What a model answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskKind {
    /// One label of several.
    Classification,
    /// A score that grows with strangeness.
    Anomaly,
    /// Boxes with labels.
    Detection,
}

impl TaskKind {
    /// The name as `model.toml` writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Classification => "classification",
            Self::Anomaly => "anomaly",
            Self::Detection => "detection",
        }
    }
}

/// Element type of the input tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    /// 32-bit float.
    F32,
}

/// The tensor that `model.onnx` takes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputSpec {
    /// Name of the graph's input.
    pub name: String,
    /// Concrete shape; the first dimension is the batch and must be 1.
    pub shape: Vec<usize>,
    /// Element type.
    #[serde(rename = "type")]
    pub element: ElementType,
}

impl InputSpec {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The output that postprocessing reads.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// Name of the graph's output.
    pub name: String,
    /// Its concrete shape.
    pub shape: Vec<usize>,
}

impl OutputSpec {
    /// Number of elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Order of a series tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeriesLayout {
    /// `[row][column]`: one row after the other.
    Rows,
    /// `[column][row]`: one column after the other.
    Columns,
}

/// Preprocessing of sensor rows: `z = (x - mean) / std` per column, then windows.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeriesSpec {
    /// Column names in the order of a pushed row.
    pub columns: Vec<String>,
    /// A unit per column, for people.
    pub units: Vec<String>,
    /// Rows per second that the model was trained on.
    pub rate_hz: f64,
    /// Rows in a window.
    pub window_rows: usize,
    /// Rows between the starts of two windows.
    pub stride_rows: usize,
    /// Order of the tensor.
    pub layout: SeriesLayout,
    /// Subtracted per column.
    pub mean: Vec<f64>,
    /// Divided by per column; above zero.
    pub std: Vec<f64>,
}

/// Channels of a picture tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelOrder {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// One channel of luma (0.299 R + 0.587 G + 0.114 B).
    Gray,
}

impl ChannelOrder {
    /// Number of channels.
    #[must_use]
    pub fn count(self) -> usize {
        match self {
            Self::Rgb | Self::Bgr => 3,
            Self::Gray => 1,
        }
    }
}

/// Order of a picture tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageLayout {
    /// `[1, height, width, channels]`.
    Nhwc,
    /// `[1, channels, height, width]`.
    Nchw,
}

/// What to do with a picture of another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resize {
    /// Stretch to the tensor's size with bilinear interpolation (half-pixel centres).
    Bilinear,
    /// Refuse it.
    Exact,
}

/// Preprocessing of pictures: resize, then `z = (pixel * scale - mean) / std` per channel, pixels in 0..=255.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// Width of the tensor in pixels.
    pub width: usize,
    /// Height of the tensor in pixels.
    pub height: usize,
    /// Channel order of the tensor; `mean` and `std` follow it.
    pub channels: ChannelOrder,
    /// Order of the tensor.
    pub layout: ImageLayout,
    /// What to do with a picture of another size.
    pub resize: Resize,
    /// Factor on pixel values.
    pub scale: f32,
    /// Subtracted per channel.
    pub mean: Vec<f32>,
    /// Divided by per channel; above zero.
    pub std: Vec<f32>,
}

/// What the classifier's output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScoreForm {
    /// Softmax is still to be applied.
    Logits,
    /// Already probabilities, or scores to be taken as they are.
    Raw,
}

/// Postprocessing of a classifier.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassificationSpec {
    /// A label per output element.
    pub labels: Vec<String>,
    /// What the output is.
    pub scores: ScoreForm,
    /// How many of the best labels an inference carries.
    pub top: usize,
}

/// Where the anomaly score comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnomalyScore {
    /// The output has one element, the score.
    Output,
    /// The output is the reconstructed input; the score is the mean squared difference.
    Reconstruction,
}

/// Postprocessing of an anomaly model: threshold with hysteresis, in units of the score.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnomalySpec {
    /// Where the score comes from.
    pub score: AnomalyScore,
    /// A window at or above this counts towards raising.
    pub raise_at: f32,
    /// A window below this counts towards clearing; at most `raise_at`.
    pub clear_below: f32,
    /// Consecutive windows before it is raised.
    pub raise_after: u32,
    /// Consecutive windows before it is cleared.
    pub clear_after: u32,
}

/// How a detector's output is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DetectionDecode {
    /// `[1, 5 + labels, rows, columns]`: objectness, four box terms, class probabilities (FastestDet).
    Grid,
}

/// Postprocessing of a detector.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectionSpec {
    /// How the output is read.
    pub decode: DetectionDecode,
    /// A label per class.
    pub labels: Vec<String>,
    /// Lowest score of a kept box, in 0..=1.
    pub score_min: f32,
    /// Two boxes of one class that overlap more than this are one, in 0..=1.
    pub iou_max: f32,
    /// Most boxes of one picture.
    pub boxes_max: usize,
}

/// What a golden sample feeds.
#[derive(Clone, Debug)]
pub enum GoldenInput {
    /// One window of rows, in the units of the series.
    Rows(Vec<Vec<f64>>),
    /// A picture file, relative to the bundle.
    Image(String),
    /// A file of little-endian f32, the input tensor itself, relative to the bundle.
    Tensor(String),
}

/// An input and the output that the model must give.
#[derive(Clone, Debug)]
pub struct Golden {
    /// Its name in messages.
    pub name: String,
    /// What is fed.
    pub input: GoldenInput,
    /// The expected output tensor.
    pub expected: GoldenExpected,
    /// Largest absolute difference of an element.
    pub tolerance: f32,
}

/// The expected output, inline or in a file of little-endian f32.
#[derive(Clone, Debug)]
pub enum GoldenExpected {
    /// The values.
    Inline(Vec<f32>),
    /// A file, relative to the bundle.
    File(String),
}

/// How input becomes a tensor.
#[derive(Clone, Debug)]
pub enum Preprocess {
    /// Sensor rows.
    Series(SeriesSpec),
    /// Pictures.
    Image(ImageSpec),
    /// Sound.
    Audio(AudioSpec),
}

/// How the output becomes an answer.
#[derive(Clone, Debug)]
pub enum Postprocess {
    /// A label.
    Classification(ClassificationSpec),
    /// A score with a state.
    Anomaly(AnomalySpec),
    /// Boxes.
    Detection(DetectionSpec),
}

/// A checked `model.toml`.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The model's name: lowercase letters, digits and `-`.
    pub name: String,
    /// The model's version.
    pub version: String,
    /// Licence of the model.
    pub licence: String,
    /// What it does, for people.
    pub description: String,
    /// Where its training data comes from, with that licence.
    pub source: String,
    /// What it answers.
    pub task: TaskKind,
    /// The input tensor.
    pub input: InputSpec,
    /// The output tensor.
    pub output: OutputSpec,
    /// The quantization.
    pub quantization: Quantization,
    /// The same model in other forms.
    pub alternatives: Vec<Form>,
    /// How input becomes a tensor.
    pub preprocess: Preprocess,
    /// How the output becomes an answer.
    pub postprocess: Postprocess,
    /// The golden samples.
    pub golden: Vec<Golden>,
}

impl Manifest {
    /// The series section, when the model takes sensor rows.
    #[must_use]
    pub fn series(&self) -> Option<&SeriesSpec> {
        match &self.preprocess {
            Preprocess::Series(series) => Some(series),
            Preprocess::Image(_) | Preprocess::Audio(_) => None,
        }
    }

    /// The image section, when the model takes pictures.
    #[must_use]
    pub fn image(&self) -> Option<&ImageSpec> {
        match &self.preprocess {
            Preprocess::Image(image) => Some(image),
            Preprocess::Series(_) | Preprocess::Audio(_) => None,
        }
    }

    /// The audio section, when the model takes sound.
    #[must_use]
    pub fn audio(&self) -> Option<&AudioSpec> {
        match &self.preprocess {
            Preprocess::Audio(audio) => Some(audio),
            Preprocess::Series(_) | Preprocess::Image(_) => None,
        }
    }
}
