//! A loaded model: manifest and plan behind one `Arc`, proven on its golden samples.
//!
//! `agent` loads models at start and shares them between pipelines by cloning. Loading is the only slow step (tens of
//! milliseconds); it runs every golden sample through preprocessing and the plan and refuses the model when an answer differs.

use std::sync::Arc;

use crate::bundle::{Bundle, BundleError};
use crate::engine::{Engine, EngineError, EngineKind, RunError, Session};
use crate::forms::{Candidate, Form, MODEL_FILE};
use crate::manifest::{Golden, GoldenExpected, GoldenInput, Manifest, Preprocess};
use crate::preprocess::{ImageError, decode_picture, picture_tensor, series_tensor};

/// Why a model is not used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A golden sample's file cannot be read.
    #[error("model `{model}`, golden sample `{sample}`")]
    GoldenFile {
        /// The model.
        model: String,
        /// The sample.
        sample: String,
        /// Why.
        #[source]
        source: BundleError,
    },
    /// A golden sample's picture or tensor does not fit.
    #[error("model `{model}`, golden sample `{sample}`: expected {expected}, found {found}")]
    GoldenShape {
        /// The model.
        model: String,
        /// The sample.
        sample: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The file of an alternative cannot be read.
    #[error("model `{model}`")]
    File {
        /// The model.
        model: String,
        /// Why.
        #[source]
        source: BundleError,
    },
    /// The graph did not become a plan.
    #[error("model `{model}`, {file}: {source}")]
    Engine {
        /// The model.
        model: String,
        /// The file of the graph.
        file: String,
        /// Why.
        source: Box<EngineError>,
    },
    /// The model failed on a golden sample.
    #[error("model `{model}` failed on golden sample `{sample}`: {source}")]
    Run {
        /// The model.
        model: String,
        /// The sample.
        sample: String,
        /// Why.
        source: RunError,
    },
    /// The model answers differently from what the bundle promises.
    #[error(
        "model `{model}` failed its self-test: golden sample `{sample}`, output[{index}] is {found}, expected {expected} \
         (difference {difference}, tolerance {tolerance}, {wrong} of {total} elements differ)"
    )]
    SelfTest {
        /// The model.
        model: String,
        /// The sample.
        sample: String,
        /// The element with the largest difference.
        index: usize,
        /// What the model gave.
        found: f32,
        /// What the bundle promises.
        expected: f32,
        /// The absolute difference.
        difference: f32,
        /// What is allowed.
        tolerance: f32,
        /// Elements over the tolerance.
        wrong: usize,
        /// All elements.
        total: usize,
    },
}

/// What the self-test saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SelfTestReport {
    /// Golden samples run; all passed.
    pub samples: usize,
    /// Largest absolute difference of any output element.
    pub difference_max: f32,
}

#[derive(Debug)]
struct Inner {
    manifest: Manifest,
    form: Form,
    engine: Engine,
    self_test: SelfTestReport,
}

/// A model that passed its self-test. Cloning shares the plan.
#[derive(Clone, Debug)]
pub struct Model(Arc<Inner>);

impl Model {
    /// Loads and self-tests `model.onnx` of a bundle on this build's default engine.
    ///
    /// # Errors
    /// As [`Self::load_candidate`], and where this build has no engine.
    pub fn load(bundle: &Bundle) -> Result<Self, LoadError> {
        match bundle.manifest().candidates().first() {
            Some(candidate) => Self::load_candidate(bundle, candidate),
            None => {
                let (model, file) = (bundle.manifest().name.clone(), MODEL_FILE.to_owned());
                Err(LoadError::Engine { model, file, source: Box::new(EngineError::NoEngine) })
            }
        }
    }

    /// Loads and self-tests `model.onnx` of a bundle on one engine.
    ///
    /// # Errors
    /// As [`Self::load_candidate`].
    pub fn load_on(bundle: &Bundle, engine: EngineKind) -> Result<Self, LoadError> {
        let form = bundle.manifest().first_form();
        Self::load_candidate(bundle, &Candidate { engine, form })
    }

    /// Loads and self-tests one of a bundle's forms on one engine.
    ///
    /// # Errors
    /// When the file is not there, the graph is refused or does not fit `model.toml`, or a golden sample's answer differs.
    pub fn load_candidate(bundle: &Bundle, candidate: &Candidate) -> Result<Self, LoadError> {
        let (manifest, form) = (bundle.manifest().clone(), candidate.form.clone());
        let model = || manifest.name.clone();
        let onnx = bundle.form_bytes(&form).map_err(|source| LoadError::File { model: model(), source })?;
        let engine = Engine::load(candidate.engine, &onnx, &manifest.input, &manifest.output);
        drop(onnx);
        let engine = engine.map_err(|source| LoadError::Engine {
            model: model(),
            file: form.file.clone(),
            source: Box::new(source),
        })?;
        let self_test = self_test(bundle, &engine, form.tolerance)?;
        Ok(Self(Arc::new(Inner { manifest, form, engine, self_test })))
    }

    /// The checked `model.toml`.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.0.manifest
    }

    /// The engine that runs it.
    #[must_use]
    pub fn engine(&self) -> EngineKind {
        self.0.engine.kind()
    }

    /// Its name; in a build without engines nothing has the type of the other.
    #[must_use]
    pub fn engine_name(&self) -> &'static str {
        self.0.engine.name()
    }

    /// The form that was loaded.
    #[must_use]
    pub fn form(&self) -> &Form {
        &self.0.form
    }

    /// What the self-test saw at load.
    #[must_use]
    pub fn self_test(&self) -> SelfTestReport {
        self.0.self_test
    }

    /// A state of one's own on the shared plan, for raw tensors; pipelines make theirs.
    ///
    /// # Errors
    /// When the engine cannot make one.
    pub fn session(&self) -> Result<Session, RunError> {
        self.0.engine.session()
    }
}

/// The input tensor of a bundle's first golden sample, for timing a model on what it is meant for.
///
/// # Errors
/// When the sample's file cannot be read or does not fit.
pub fn sample_input(bundle: &Bundle) -> Result<Vec<f32>, LoadError> {
    golden_tensor(
        bundle,
        bundle.manifest().golden.first().expect("parse refuses a bundle without golden samples"),
    )
}

fn self_test(bundle: &Bundle, engine: &Engine, tolerance: Option<f32>) -> Result<SelfTestReport, LoadError> {
    let manifest = bundle.manifest();
    let model = || manifest.name.clone();
    let mut difference_max = 0.0f32;
    for golden in &manifest.golden {
        let input = golden_tensor(bundle, golden)?;
        let expected = golden_expected(bundle, golden)?;
        let run_error = |source| LoadError::Run { model: model(), sample: golden.name.clone(), source };
        let found = engine.session().map_err(run_error)?.run(&input).map_err(run_error)?;
        let tolerance = tolerance.unwrap_or(golden.tolerance);
        let worst = compare(&found, &expected, tolerance);
        if worst.wrong > 0 {
            return Err(LoadError::SelfTest {
                model: model(),
                sample: golden.name.clone(),
                index: worst.index,
                found: found[worst.index],
                expected: expected[worst.index],
                difference: worst.difference,
                tolerance,
                wrong: worst.wrong,
                total: found.len(),
            });
        }
        difference_max = difference_max.max(worst.difference);
    }
    Ok(SelfTestReport { samples: manifest.golden.len(), difference_max })
}

struct Worst {
    index: usize,
    difference: f32,
    wrong: usize,
}

/// Compares two outputs of the same length; a NaN on either side is wrong.
fn compare(found: &[f32], expected: &[f32], tolerance: f32) -> Worst {
    let mut worst = Worst { index: 0, difference: 0.0, wrong: 0 };
    for (index, (a, b)) in found.iter().zip(expected).enumerate() {
        let difference = (a - b).abs();
        let difference = if difference.is_nan() { f32::INFINITY } else { difference };
        if difference > tolerance {
            worst.wrong += 1;
        }
        if difference > worst.difference {
            (worst.index, worst.difference) = (index, difference);
        }
    }
    worst
}

fn golden_tensor(bundle: &Bundle, golden: &Golden) -> Result<Vec<f32>, LoadError> {
    let manifest = bundle.manifest();
    match (&golden.input, &manifest.preprocess) {
        (GoldenInput::Rows(rows), Preprocess::Series(series)) => {
            Ok(series_tensor(rows.iter().map(Vec::as_slice), series))
        }
        (GoldenInput::Image(file), Preprocess::Image(image)) => {
            let bytes = golden_file(bundle, golden, file)?;
            let wrong = |error: ImageError| {
                golden_shape(bundle, golden, "a picture that fits [image]", error.to_string())
            };
            let picture = decode_picture(&bytes).map_err(wrong)?;
            picture_tensor(&picture, image).map_err(wrong)
        }
        (GoldenInput::Tensor(file), _) => golden_floats(bundle, golden, file, manifest.input.elements()),
        (GoldenInput::Rows(_) | GoldenInput::Image(_), _) => {
            Err(golden_shape(bundle, golden, "an input of the model's kind", "another kind".into()))
        }
    }
}

fn golden_expected(bundle: &Bundle, golden: &Golden) -> Result<Vec<f32>, LoadError> {
    match &golden.expected {
        GoldenExpected::Inline(values) => Ok(values.clone()),
        GoldenExpected::File(file) => {
            golden_floats(bundle, golden, file, bundle.manifest().output.elements())
        }
    }
}

fn golden_shape(bundle: &Bundle, golden: &Golden, expected: impl Into<String>, found: String) -> LoadError {
    let (model, sample) = (bundle.manifest().name.clone(), golden.name.clone());
    LoadError::GoldenShape { model, sample, expected: expected.into(), found }
}

fn golden_file(bundle: &Bundle, golden: &Golden, file: &str) -> Result<Vec<u8>, LoadError> {
    let (model, sample) = (bundle.manifest().name.clone(), golden.name.clone());
    bundle.read_golden(file).map_err(|source| LoadError::GoldenFile { model, sample, source })
}

fn golden_floats(bundle: &Bundle, golden: &Golden, file: &str, count: usize) -> Result<Vec<f32>, LoadError> {
    let bytes = golden_file(bundle, golden, file)?;
    let (words, rest) = bytes.as_chunks::<4>();
    if words.len() != count || !rest.is_empty() {
        let expected = format!("{} bytes in {file} ({count} little-endian f32)", count * 4);
        return Err(golden_shape(bundle, golden, expected, format!("{} bytes", bytes.len())));
    }
    Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
}
