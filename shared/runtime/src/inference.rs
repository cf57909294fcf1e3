//! Pipelines: rows, pictures or sound in, [`Inference`]s out.
//!
//! The agent's pipeline tasks own one each. A pipeline holds its own engine state, so pipelines of one model run on
//! several threads at a time; calls block for the model's latency and belong on a blocking thread. Nothing is queued here.

mod audio;

pub use audio::AudioPipeline;

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::bundle::{BundleError, read_bounded};
use crate::engine::{RunError, Session};
use crate::manifest::{AnomalyScore, Manifest, Postprocess, Preprocess, TaskKind};
use crate::model::Model;
use crate::postprocess::{AnomalyState, BoundingBox, Transition, classify, detect, reconstruction_error};
use crate::preprocess::{ImageError, Picture, Window, decode_picture, picture_tensor, series_tensor};

/// Largest picture file, in bytes.
pub const PICTURE_BYTES_MAX: u64 = 32 << 20;
/// Label of an anomaly model while nothing is raised.
pub const LABEL_NORMAL: &str = "normal";
/// Label of an anomaly model while raised.
pub const LABEL_ANOMALOUS: &str = "anomalous";
/// Label of a detection without boxes.
pub const LABEL_NOTHING: &str = "nothing";

/// Why a pipeline was not made or gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The model takes the other kind of input.
    #[error("model `{model}` takes {takes}, expected {expected}")]
    WrongInput {
        /// The model.
        model: String,
        /// What it takes.
        takes: &'static str,
        /// What the pipeline feeds.
        expected: &'static str,
    },
    /// A row has another number of columns.
    #[error("the row has {found} values, expected {expected}")]
    RowSize {
        /// The model's columns.
        expected: usize,
        /// The row's.
        found: usize,
    },
    /// A value is NaN or infinite; the row is not taken.
    #[error("column `{column}` is {value}, expected a finite number")]
    NotFinite {
        /// The column.
        column: String,
        /// Its value.
        value: f64,
    },
    /// The sound has another rate than the model was trained on.
    #[error("model `{model}` takes {expected} samples a second, the source gives {found}")]
    Rate {
        /// The model.
        model: String,
        /// `audio.sample_rate_hz`.
        expected: u32,
        /// The source's.
        found: u32,
    },
    /// A sample is NaN or infinite; the block is not taken.
    #[error("sample {index} is {value}, expected a finite number")]
    SampleNotFinite {
        /// Its place in the block, from 0.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// The picture's file cannot be read.
    #[error("cannot read picture {file}")]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: BundleError,
    },
    /// The picture is refused.
    #[error("picture refused: {0}")]
    Image(#[from] ImageError),
    /// The model failed.
    #[error("inference failed: {0}")]
    Run(#[from] RunError),
}

/// One answer of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Inference {
    /// What kind of answer.
    pub kind: TaskKind,
    /// Best label; `normal` or `anomalous` by the hysteresis; best box's label or `nothing`.
    pub label: String,
    /// Score of the label; the anomaly score; best box's score or 0.
    pub score: f32,
    /// Classification: the best labels with scores, best first. Empty otherwise.
    pub top: Vec<(String, f32)>,
    /// Detection: the boxes, best first. Empty otherwise.
    pub boxes: Vec<BoundingBox>,
    /// Anomaly: whether this answer raised or cleared it.
    pub transition: Option<Transition>,
    /// Preprocessing, model and postprocessing, in microseconds.
    pub latency_us: u64,
}

/// Scores windows of sensor rows.
#[derive(Debug)]
pub struct SeriesPipeline {
    model: Model,
    session: Session,
    window: Window,
    anomaly: AnomalyState,
}

impl SeriesPipeline {
    /// A pipeline with an empty window.
    ///
    /// # Errors
    /// When the model takes something else.
    pub fn new(model: Model) -> Result<Self, PipelineError> {
        let Some(series) = model.manifest().series() else {
            return Err(wrong_input(model.manifest(), "sensor rows"));
        };
        let window = Window::new(series.window_rows, series.stride_rows);
        let session = model.session()?;
        Ok(Self { model, session, window, anomaly: AnomalyState::default() })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Takes one row: f64 `[columns]` in the units of `model.toml`. Answers once per stride after the first full window.
    ///
    /// # Errors
    /// When the row does not fit (it is not taken) or the model fails.
    pub fn push(&mut self, row: &[f64]) -> Result<Option<Inference>, PipelineError> {
        let started = Instant::now();
        if !self.skip(row)? {
            return Ok(None);
        }
        let manifest = self.model.manifest();
        let Some(series) = manifest.series() else { return Ok(None) };
        let input = series_tensor(self.window.rows(), series);
        let output = self.session.run(&input)?;
        let mut inference = interpret(manifest, &input, &output, &mut self.anomaly);
        inference.latency_us = elapsed_us(started);
        Ok(Some(inference))
    }

    /// Takes one row as [`Self::push`] does, but leaves the inference out; true where one was due. The window has no
    /// gap: the next answer is that of an uninterrupted run, only an anomaly's hysteresis has seen one score less.
    ///
    /// # Errors
    /// When the row does not fit; it is not taken.
    pub fn skip(&mut self, row: &[f64]) -> Result<bool, PipelineError> {
        let Some(series) = self.model.manifest().series() else { return Ok(false) };
        if row.len() != series.columns.len() {
            return Err(PipelineError::RowSize { expected: series.columns.len(), found: row.len() });
        }
        if let Some(index) = row.iter().position(|value| !value.is_finite()) {
            return Err(PipelineError::NotFinite {
                column: series.columns[index].clone(),
                value: row[index],
            });
        }
        Ok(self.window.push(row))
    }

    /// Forgets the rows and the anomaly state, after a gap in the series.
    pub fn reset(&mut self) {
        self.window.clear();
        self.anomaly = AnomalyState::default();
    }
}

/// Scores pictures.
#[derive(Debug)]
pub struct ImagePipeline {
    model: Model,
    session: Session,
    anomaly: AnomalyState,
}

impl ImagePipeline {
    /// A pipeline for pictures.
    ///
    /// # Errors
    /// When the model takes something else.
    pub fn new(model: Model) -> Result<Self, PipelineError> {
        if model.manifest().image().is_none() {
            return Err(wrong_input(model.manifest(), "pictures"));
        }
        let session = model.session()?;
        Ok(Self { model, session, anomaly: AnomalyState::default() })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Scores a JPEG, PNG or BMP file of at most [`PICTURE_BYTES_MAX`].
    ///
    /// # Errors
    /// When the file cannot be read or decoded, or the model fails.
    pub fn score_file(&mut self, path: &Path) -> Result<Inference, PipelineError> {
        let bytes = read_bounded(path, PICTURE_BYTES_MAX)
            .map_err(|source| PipelineError::File { file: path.to_path_buf(), source })?;
        self.score_encoded(&bytes)
    }

    /// Scores the bytes of a JPEG, PNG or BMP file.
    ///
    /// # Errors
    /// When they cannot be decoded or the model fails.
    pub fn score_encoded(&mut self, bytes: &[u8]) -> Result<Inference, PipelineError> {
        let started = Instant::now();
        let picture = decode_picture(bytes)?;
        self.score(&picture, started)
    }

    /// Scores raw pixels: u8 `[height, width, 3]`, RGB.
    ///
    /// # Errors
    /// When the length does not fit or the model fails.
    pub fn score_rgb(&mut self, width: usize, height: usize, rgb: &[u8]) -> Result<Inference, PipelineError> {
        let started = Instant::now();
        let picture = Picture::from_rgb(width, height, rgb.to_vec())?;
        self.score(&picture, started)
    }

    fn score(&mut self, picture: &Picture, started: Instant) -> Result<Inference, PipelineError> {
        let manifest = self.model.manifest();
        let Some(spec) = manifest.image() else {
            return Err(wrong_input(manifest, "pictures"));
        };
        let input = picture_tensor(picture, spec)?;
        let output = self.session.run(&input)?;
        let mut inference = interpret(manifest, &input, &output, &mut self.anomaly);
        inference.latency_us = elapsed_us(started);
        Ok(inference)
    }
}

fn wrong_input(manifest: &Manifest, expected: &'static str) -> PipelineError {
    let takes = match manifest.preprocess {
        Preprocess::Series(_) => "sensor rows",
        Preprocess::Image(_) => "pictures",
        Preprocess::Audio(_) => "sound",
    };
    PipelineError::WrongInput { model: manifest.name.clone(), takes, expected }
}

fn elapsed_us(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn interpret(manifest: &Manifest, input: &[f32], output: &[f32], anomaly: &mut AnomalyState) -> Inference {
    let mut inference = Inference {
        kind: manifest.task,
        label: LABEL_NOTHING.to_owned(),
        score: 0.0,
        top: Vec::new(),
        boxes: Vec::new(),
        transition: None,
        latency_us: 0,
    };
    match &manifest.postprocess {
        Postprocess::Classification(spec) => {
            inference.top = classify(output, spec);
            if let Some((label, score)) = inference.top.first() {
                (inference.label, inference.score) = (label.clone(), *score);
            }
        }
        Postprocess::Anomaly(spec) => {
            inference.score = match spec.score {
                AnomalyScore::Output => output.first().copied().unwrap_or(0.0),
                AnomalyScore::Reconstruction => reconstruction_error(input, output),
            };
            let (next, transition) = anomaly.next(inference.score, spec);
            *anomaly = next;
            inference.transition = transition;
            inference.label = if next.is_anomalous() { LABEL_ANOMALOUS } else { LABEL_NORMAL }.to_owned();
        }
        Postprocess::Detection(spec) => {
            let (rows, columns) = (manifest.output.shape[2], manifest.output.shape[3]);
            inference.boxes = detect(output, rows, columns, spec);
            if let Some(best) = inference.boxes.first() {
                (inference.label, inference.score) = (best.label.clone(), best.score);
            }
        }
    }
    inference
}
