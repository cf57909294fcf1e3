//! A model bundle behind a pipeline: loaded and self-tested once, on the engine and in the form that `choice` finds for this
//! device, then fed rows, pictures or sound.

use crate::choice::{Choice, ChoiceError, Choices, PassedOver, choose};
use crate::config;
use crate::metrics::Refusal;
use crate::source::Content;
use muster_runtime::{
    AudioPipeline, Bundle, BundleError, ImagePipeline, Inference, LABEL_NORMAL, PipelineError,
    SelfTestReport, SeriesPipeline, TaskKind,
};
use muster_wire::{
    BOXES_MAX, BoundingBox, Event, EventKind, NAME_BYTES_MAX, RunningModel, SUBJECT_BYTES_MAX, Value,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What the wire calls a raised anomaly.
const LABEL_ANOMALY: &str = "anomaly";

const _: () = assert!(muster_runtime::NAME_BYTES_MAX <= NAME_BYTES_MAX, "labels and versions fit an event");

/// Why a pipeline's model is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The bundle is broken.
    #[error("pipeline {pipeline:?}: model bundle {}", bundle.display())]
    Bundle {
        /// The pipeline.
        pipeline: String,
        /// The bundle's folder.
        bundle: PathBuf,
        /// Why.
        #[source]
        source: Box<BundleError>,
    },
    /// The model does not load, or its answers differ from its golden samples.
    #[error("pipeline {pipeline:?}: model bundle {}", bundle.display())]
    Load {
        /// The pipeline.
        pipeline: String,
        /// The bundle's folder.
        bundle: PathBuf,
        /// Why.
        #[source]
        source: Box<ChoiceError>,
    },
    /// The model does not fit the pipeline.
    #[error("pipeline {pipeline:?}: model bundle {}", bundle.display())]
    Pipeline {
        /// The pipeline.
        pipeline: String,
        /// The bundle's folder.
        bundle: PathBuf,
        /// Why.
        #[source]
        source: Box<PipelineError>,
    },
    /// `inputs` names another number of columns than the model takes.
    #[error("pipeline {pipeline:?}.inputs: expected {expected} columns for {columns:?}, found {found}")]
    Inputs {
        /// The pipeline.
        pipeline: String,
        /// The model's columns.
        columns: Vec<String>,
        /// How many it takes.
        expected: usize,
        /// How many are configured.
        found: usize,
    },
}

/// Which samples a pipeline's source gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// Rows of named values.
    Rows,
    /// Pictures.
    Pictures,
    /// Sound.
    Sound {
        /// Samples a second, where they are known before the source starts.
        rate_hz: Option<u32>,
    },
}

/// A model at work in one pipeline.
pub struct Scorer {
    running: RunningModel,
    self_test: SelfTestReport,
    passed_over: Vec<PassedOver>,
    kind: Kind,
}

enum Kind {
    Series { pipeline: Box<SeriesPipeline>, columns: Vec<String>, row: Vec<f64> },
    Image(Box<ImagePipeline>),
    Audio(Box<AudioPipeline>),
}

/// A label, score and boxes in the wire's words; the pipeline's name is still empty.
pub(super) type Answer = Result<Option<Event>, Refused>;
/// The reason to count, and the words for the log.
pub(super) type Refused = (Refusal, String);

/// Loads and self-tests the pipeline's model, if it has one, on the engine and in the form for this device.
///
/// # Errors
/// Names the pipeline, the bundle, and what is wrong with it.
pub fn load(
    config: &config::Pipeline,
    feed: Feed,
    choices: &mut Choices,
) -> Result<Option<Scorer>, ModelError> {
    let Some(dir) = &config.model else { return Ok(None) };
    let (pipeline, bundle) = (config.name.clone(), dir.clone());
    let opened = match Bundle::open(dir) {
        Ok(opened) => opened,
        Err(source) => return Err(ModelError::Bundle { pipeline, bundle, source: Box::new(source) }),
    };
    let Choice { model, median, passed_over } = match choose(&opened, choices) {
        Ok(choice) => choice,
        Err(source) => return Err(ModelError::Load { pipeline, bundle, source: Box::new(source) }),
    };
    let running = RunningModel {
        pipeline: config.name.clone(),
        model: model.manifest().name.clone(),
        version: model.manifest().version.clone(),
        engine: model.engine_name().into(),
        form: model.form().quantization.as_str().into(),
        median_us: median.map(microseconds),
    };
    let self_test = model.self_test();
    let columns = model.manifest().series().map(|series| series.columns.clone()).unwrap_or_default();
    let made = match feed {
        Feed::Rows => SeriesPipeline::new(model).map(|made| {
            let inputs = if config.inputs.is_empty() { columns.clone() } else { config.inputs.clone() };
            Kind::Series { pipeline: Box::new(made), row: Vec::with_capacity(inputs.len()), columns: inputs }
        }),
        Feed::Pictures => ImagePipeline::new(model).map(|made| Kind::Image(Box::new(made))),
        Feed::Sound { rate_hz } => AudioPipeline::new(model).and_then(|made| {
            rate_hz.map_or(Ok(()), |rate_hz| made.check_rate(rate_hz))?;
            Ok(Kind::Audio(Box::new(made)))
        }),
    };
    let unfit =
        |source| ModelError::Pipeline { pipeline: pipeline.clone(), bundle, source: Box::new(source) };
    let kind = made.map_err(unfit)?;
    if let Kind::Series { columns: inputs, .. } = &kind
        && inputs.len() != columns.len()
    {
        let (expected, found) = (columns.len(), inputs.len());
        return Err(ModelError::Inputs { pipeline, columns, expected, found });
    }
    Ok(Some(Scorer { running, self_test, passed_over, kind }))
}

/// Rounded; what is measured is never nothing.
fn microseconds(time: Duration) -> u32 {
    let rounded = (time.as_nanos() + 500) / 1_000;
    u32::try_from(rounded).unwrap_or(u32::MAX).max(1)
}

impl Scorer {
    /// The model, and what it runs with.
    #[must_use]
    pub fn running(&self) -> &RunningModel {
        &self.running
    }

    /// Engines and forms that were tried and do not load or pass.
    #[must_use]
    pub fn passed_over(&self) -> &[PassedOver] {
        &self.passed_over
    }

    /// What the self-test saw.
    #[must_use]
    pub fn self_test(&self) -> SelfTestReport {
        self.self_test
    }

    /// Feeds one row or picture; None while a window fills.
    ///
    /// # Errors
    /// The reason to count, and the words for the log.
    pub(super) fn score(&mut self, content: &Content) -> Answer {
        let (inference, subject) = match (&mut self.kind, content) {
            (Kind::Series { pipeline, columns, row }, Content::Row { values, number }) => {
                fill_row(row, columns, values)?;
                let Some(inference) = pipeline.push(row).map_err(|error| refusal(&error))? else {
                    return Ok(None);
                };
                (inference, number.to_string())
            }
            (Kind::Image(pipeline), Content::Image { path }) => {
                (pipeline.score_file(path).map_err(|error| refusal(&error))?, subject(path))
            }
            _ => return Err(another_kind()),
        };
        self.answer(inference, subject)
    }

    /// Feeds sound, off the front of `samples`, until there is an answer; None once all of it is taken.
    ///
    /// # Errors
    /// The reason to count, and the words for the log; the rest of the sound is left out then.
    pub(super) fn hear(&mut self, samples: &mut &[f32], rate_hz: u32, number: u64) -> Answer {
        let Kind::Audio(pipeline) = &mut self.kind else {
            *samples = &[];
            return Err(another_kind());
        };
        match pipeline.check_rate(rate_hz).and_then(|()| pipeline.push(samples)) {
            Ok(None) => Ok(None),
            Ok(Some(inference)) => self.answer(inference, number.to_string()),
            Err(error) => {
                *samples = &[];
                pipeline.reset();
                Err(refusal(&error))
            }
        }
    }

    /// Takes sound without an inference: its features still enter the window. Answers how many inferences were due.
    ///
    /// # Errors
    /// As [`Self::hear`].
    pub(super) fn skip_sound(&mut self, samples: &mut &[f32], rate_hz: u32) -> Result<u64, Refused> {
        let Kind::Audio(pipeline) = &mut self.kind else { return Err(another_kind()) };
        pipeline.check_rate(rate_hz).and_then(|()| pipeline.skip(samples)).map_err(|error| {
            pipeline.reset();
            refusal(&error)
        })
    }

    fn answer(&self, inference: Inference, subject: String) -> Answer {
        if !inference.score.is_finite() {
            return Err((Refusal::ModelFailed, "the score is not finite".into()));
        }
        Ok(Some(self.event(inference, subject)))
    }

    /// Takes one sample without an inference, cheaply: a row still enters the window, so that the next window has no gap;
    /// a picture is not even read. Answers how many inferences were due.
    ///
    /// # Errors
    /// As [`Self::score`].
    pub(super) fn skip(&mut self, content: &Content) -> Result<u64, Refused> {
        match (&mut self.kind, content) {
            (Kind::Series { pipeline, columns, row }, Content::Row { values, .. }) => {
                fill_row(row, columns, values)?;
                pipeline.skip(row).map(u64::from).map_err(|error| refusal(&error))
            }
            (Kind::Image(_), Content::Image { .. }) => Ok(1),
            _ => Err(another_kind()),
        }
    }

    fn event(&self, inference: Inference, subject: String) -> Event {
        let kind = match inference.kind {
            TaskKind::Classification => EventKind::Classification,
            TaskKind::Anomaly => EventKind::Anomaly,
            TaskKind::Detection => EventKind::Detection,
        };
        let anomalous = kind == EventKind::Anomaly && inference.label != LABEL_NORMAL;
        Event {
            pipeline: String::new(),
            model: self.running.model.clone(),
            model_version: self.running.version.clone(),
            kind,
            label: if anomalous { LABEL_ANOMALY.to_owned() } else { inference.label },
            score: f64::from(inference.score),
            subject: Some(subject),
            latency_us: u32::try_from(inference.latency_us).unwrap_or(u32::MAX),
            boxes: boxes(inference.boxes),
        }
    }
}

/// The values of `columns`, in their order.
fn fill_row(row: &mut Vec<f64>, columns: &[String], values: &[(Arc<str>, Value)]) -> Result<(), Refused> {
    row.clear();
    for column in columns {
        let value =
            values.iter().find(|(name, _)| **name == **column).and_then(|(_, value)| value.as_number());
        row.push(value.ok_or_else(|| (Refusal::BadInput, format!("column {column:?} has no number")))?);
    }
    Ok(())
}

/// The best boxes, as many as an event carries.
fn boxes(found: Vec<muster_runtime::BoundingBox>) -> Vec<BoundingBox> {
    let boxes = found.into_iter().take(BOXES_MAX).map(|found| BoundingBox {
        label: found.label,
        score: found.score,
        x: found.x0,
        y: found.y0,
        width: found.x1 - found.x0,
        height: found.y1 - found.y0,
    });
    boxes.collect()
}

fn another_kind() -> Refused {
    (Refusal::BadInput, "the source gives another kind of sample".into())
}

fn refusal(error: &PipelineError) -> Refused {
    let reason = match error {
        PipelineError::NotFinite { .. } | PipelineError::SampleNotFinite { .. } => Refusal::NotFinite,
        PipelineError::RowSize { .. } | PipelineError::WrongInput { .. } | PipelineError::Rate { .. } => {
            Refusal::BadInput
        }
        PipelineError::File { .. } | PipelineError::Image(_) => Refusal::Undecodable,
        PipelineError::Run(_) => Refusal::ModelFailed,
    };
    (reason, crate::supervisor::chain(error))
}

fn subject(path: &Path) -> String {
    let mut name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    while name.len() > SUBJECT_BYTES_MAX {
        name.pop();
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn an_event_carries_the_best_boxes() {
        let found = |count: u8| {
            let (x0, y0, x1, y1) = (0.0, 0.0, 1.0, 1.0);
            let found = |at: u8| muster_runtime::BoundingBox {
                x0,
                y0,
                x1,
                y1,
                label: "l".into(),
                score: 1.0 / f32::from(at + 1),
            };
            boxes((0..count).map(found).collect())
        };
        assert_eq!(found(100).len(), BOXES_MAX);
        assert_eq!(found(101), found(100), "the last and weakest one is left out");
    }

    #[test]
    fn a_subject_is_cut_to_what_the_wire_takes() {
        // A file's name of 255 bytes that are no text takes three times as many.
        let name = subject(Path::new(OsStr::from_bytes(&[0xff; 255])));
        assert_eq!(name, "\u{fffd}".repeat(SUBJECT_BYTES_MAX / 3));
        let longest = "x".repeat(SUBJECT_BYTES_MAX);
        assert_eq!(subject(Path::new(&longest)), longest);
        assert_eq!(subject(Path::new(&format!("{longest}x"))), longest);
    }
}
