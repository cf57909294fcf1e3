//! Scores sound.

use std::time::Instant;

use super::{Inference, PipelineError, elapsed_us, interpret, wrong_input};
use crate::audio::{Frames, LogMel, audio_tensor};
use crate::engine::Session;
use crate::model::Model;
use crate::postprocess::AnomalyState;
use crate::preprocess::Window;

/// Scores windows of log-mel features.
#[derive(Debug)]
pub struct AudioPipeline {
    model: Model,
    session: Session,
    frames: Frames,
    features: LogMel,
    window: Window,
    anomaly: AnomalyState,
}

impl AudioPipeline {
    /// A pipeline that has heard nothing.
    ///
    /// # Errors
    /// When the model takes something else.
    pub fn new(model: Model) -> Result<Self, PipelineError> {
        let Some(audio) = model.manifest().audio() else {
            return Err(wrong_input(model.manifest(), "sound"));
        };
        let frames = Frames::new(audio.window_samples, audio.hop_samples);
        let (features, window) = (LogMel::new(audio), Window::new(audio.frames, audio.stride_frames));
        let session = model.session()?;
        Ok(Self { model, session, frames, features, window, anomaly: AnomalyState::default() })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Whether sound of this rate is what the model was trained on; other sound is not resampled.
    ///
    /// # Errors
    /// When it is not.
    pub fn check_rate(&self, rate_hz: u32) -> Result<(), PipelineError> {
        let manifest = self.model.manifest();
        match manifest.audio().map(|audio| audio.sample_rate_hz) {
            Some(expected) if expected != rate_hz => {
                Err(PipelineError::Rate { model: manifest.name.clone(), expected, found: rate_hz })
            }
            _ => Ok(()),
        }
    }

    /// Takes samples off the front of `samples`, f32 -1 to 1, one channel, until an answer is there; None once all are
    /// taken. Answers once per stride after the first full window; `latency_us` leaves out the frames before the last.
    ///
    /// # Errors
    /// When a sample is not finite (nothing is taken) or the model fails (the samples up to there are taken).
    pub fn push(&mut self, samples: &mut &[f32]) -> Result<Option<Inference>, PipelineError> {
        finite(samples)?;
        let manifest = self.model.manifest();
        let Some(audio) = manifest.audio() else { return Ok(None) };
        while let Some(frame) = self.frames.next(samples) {
            let started = Instant::now();
            if !self.window.push(self.features.features(frame)) {
                continue;
            }
            let input = audio_tensor(self.window.rows(), audio);
            let output = self.session.run(&input)?;
            let mut inference = interpret(manifest, &input, &output, &mut self.anomaly);
            inference.latency_us = elapsed_us(started);
            return Ok(Some(inference));
        }
        Ok(None)
    }

    /// Takes all samples as [`Self::push`] does, but leaves the inferences out; how many were due. The window has no gap.
    ///
    /// # Errors
    /// When a sample is not finite; nothing is taken.
    pub fn skip(&mut self, samples: &mut &[f32]) -> Result<u64, PipelineError> {
        finite(samples)?;
        let mut due = 0;
        while let Some(frame) = self.frames.next(samples) {
            due += u64::from(self.window.push(self.features.features(frame)));
        }
        Ok(due)
    }

    /// Forgets the sound and the anomaly state, after a gap in the stream.
    pub fn reset(&mut self) {
        self.frames.clear();
        self.window.clear();
        self.anomaly = AnomalyState::default();
    }
}

fn finite(samples: &[f32]) -> Result<(), PipelineError> {
    match samples.iter().position(|sample| !sample.is_finite()) {
        Some(index) => Err(PipelineError::SampleNotFinite { index, value: samples[index] }),
        None => Ok(()),
    }
}
