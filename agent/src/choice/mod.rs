//! Which engine and form a bundle runs with on this device: the fastest that passes the golden samples.
//!
//! `pipeline` calls [`choose`] when it loads a model; `muster-agent bench-model` picks by the same rule. With one candidate
//! nothing is measured. Otherwise each is loaded (that is its self-test) and timed on the first golden sample, at most 200
//! runs or 100 ms, one after the other on the calling thread. What was chosen is kept ([`Choices`]); the next start loads
//! just that one, and measures again where it no longer passes. At most two models are in memory at a time.

mod fingerprint;
mod kept;
mod timing;

pub use kept::Choices;
pub use timing::{Latency, RunBounds, time_runs};

use crate::supervisor::chain;
use kept::KeptChoice;
use muster_runtime::{Bundle, Candidate, LoadError, Model, sample_input};
use std::fmt;
use std::time::{Duration, Instant};

/// How long a candidate is timed.
const TIMING: RunBounds = RunBounds { runs_max: 200, time_max: Duration::from_millis(100) };

/// A model, and how it came to be the one.
#[derive(Debug)]
pub struct Choice {
    /// Loaded and self-tested.
    pub model: Model,
    /// Median latency of the model alone, where there was something to choose from.
    pub median: Option<Duration>,
    /// Candidates that do not load or pass, where they were tried.
    pub passed_over: Vec<PassedOver>,
}

/// A candidate that is of no use, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct PassedOver {
    /// The engine, the form and its file, in words.
    pub candidate: String,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.candidate, self.reason)
    }
}

/// Why nothing was chosen.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// The only candidate does not load or pass, or this build has no engine.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// None of several does.
    #[error("no engine and form passes: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NonePasses(Vec<PassedOver>),
}

/// The model of a bundle with the engine and form for this device. What is new in `choices` is for the caller to save.
///
/// # Errors
/// No candidate loads and passes its self-test.
pub fn choose(bundle: &Bundle, choices: &mut Choices) -> Result<Choice, ChoiceError> {
    choose_with(bundle, choices, |model, input| {
        let mut session = model.session().map_err(|error| chain(&error))?;
        let started = Instant::now();
        let run = || session.run(input).map(|_| ());
        let latency = time_runs(TIMING, || started.elapsed(), run).map_err(|error| chain(&error))?;
        Ok(latency.median())
    })
}

/// As [`choose`], with times from `time`: a model and an input to its median.
fn choose_with(
    bundle: &Bundle,
    choices: &mut Choices,
    mut time: impl FnMut(&Model, &[f32]) -> Result<Duration, String>,
) -> Result<Choice, ChoiceError> {
    let candidates = bundle.manifest().candidates();
    if candidates.len() <= 1 {
        return Ok(Choice { model: Model::load(bundle)?, median: None, passed_over: Vec::new() });
    }
    let content = fingerprint::bundle(bundle);
    if let Some(choice) = load_kept(bundle, &candidates, choices, &content) {
        return Ok(choice);
    }
    let input = sample_input(bundle)?;
    let fastest = fastest(&candidates, |candidate| {
        let model = Model::load_candidate(bundle, candidate).map_err(|error| chain(&error))?;
        let median = time(&model, &input)?;
        Ok((model, median))
    });
    match fastest {
        Fastest { found: Some((at, model, median)), passed_over } => {
            choices.keep(KeptChoice::new(content, &candidates[at], median));
            Ok(Choice { model, median: Some(median), passed_over })
        }
        Fastest { found: None, passed_over } => Err(ChoiceError::NonePasses(passed_over)),
    }
}

/// What was chosen for this content before, if it still passes.
fn load_kept(bundle: &Bundle, candidates: &[Candidate], choices: &Choices, content: &str) -> Option<Choice> {
    let kept = choices.find(content)?;
    let candidate = candidates.iter().find(|candidate| kept.is(candidate))?;
    match Model::load_candidate(bundle, candidate) {
        Ok(model) => Some(Choice { model, median: Some(kept.median()), passed_over: Vec::new() }),
        Err(error) => {
            let (engine, file) = (candidate.engine.as_str(), &candidate.form.file);
            tracing::warn!(engine, file, error = chain(&error), "what was chosen before no longer passes");
            None
        }
    }
}

/// What trying every candidate came to.
#[derive(Debug, PartialEq)]
pub struct Fastest<M> {
    /// The candidate's place, what `try_one` gave for it, and its median.
    pub found: Option<(usize, M, Duration)>,
    /// The others that gave an error.
    pub passed_over: Vec<PassedOver>,
}

/// Tries the candidates in their order; of several that are equally fast the first one counts.
pub fn fastest<M>(
    candidates: &[Candidate],
    mut try_one: impl FnMut(&Candidate) -> Result<(M, Duration), String>,
) -> Fastest<M> {
    let mut fastest = Fastest { found: None, passed_over: Vec::new() };
    for (at, candidate) in candidates.iter().enumerate() {
        match try_one(candidate) {
            Ok((model, median)) => {
                if fastest.found.as_ref().is_none_or(|(.., best)| median < *best) {
                    fastest.found = Some((at, model, median));
                }
            }
            Err(reason) => {
                fastest.passed_over.push(PassedOver { candidate: in_words(candidate), reason });
            }
        }
    }
    fastest
}

/// As logs and `bench-model` name it.
pub fn in_words(Candidate { engine, form }: &Candidate) -> String {
    format!("{} with {} ({})", engine.as_str(), form.quantization.as_str(), form.file)
}

#[cfg(test)]
mod tests;
