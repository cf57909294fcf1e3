//! The forms in which a bundle holds its model, and the candidates that a build can run.
//!
//! `parse` reads them, `bundle` their bytes, `model` loads one candidate. Which candidate is the best is for the caller to
//! measure: the agent does, and keeps its choice.

use serde::Deserialize;

use crate::engine::EngineKind;
use crate::manifest::Manifest;

/// The model file of every bundle.
pub const MODEL_FILE: &str = "model.onnx";
/// Most forms beside it.
pub const ALTERNATIVES_MAX: usize = 8;

/// How weights and arithmetic of a model file are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuantizationForm {
    /// Float weights.
    None,
    /// int8 weights with a scale per output channel, float arithmetic.
    WeightInt8PerChannel,
    /// int8 weights and activations (QLinearConv and the like).
    QoperatorInt8,
    /// Float operators between QuantizeLinear and DequantizeLinear, with int8 weights.
    QdqInt8,
}

impl QuantizationForm {
    /// Every form.
    pub const ALL: [Self; 4] = [Self::None, Self::WeightInt8PerChannel, Self::QoperatorInt8, Self::QdqInt8];

    /// The name as `model.toml`, figures and reports write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::WeightInt8PerChannel => "weight-int8-per-channel",
            Self::QoperatorInt8 => "qoperator-int8",
            Self::QdqInt8 => "qdq-int8",
        }
    }
}

/// The quantization, and what it cost in accuracy where the recipe measured it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantization {
    /// How weights are stored.
    pub form: QuantizationForm,
    /// Accuracy or AUC of the float model on the held-back split, in 0..=1.
    pub float_accuracy: Option<f64>,
    /// The same of this model.
    pub accuracy: Option<f64>,
}

/// One of the files that hold the model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Form {
    /// The file, relative to the bundle.
    pub file: String,
    /// How it is quantized.
    #[serde(rename = "form")]
    pub quantization: QuantizationForm,
    /// Accuracy or AUC on the held-back split, in 0..=1, where the recipe measured it.
    pub accuracy: Option<f64>,
    /// Instead of the golden samples' own tolerances.
    pub tolerance: Option<f32>,
}

/// One way to run a bundle's model on this build.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The engine.
    pub engine: EngineKind,
    /// The file that it is given.
    pub form: Form,
}

impl Manifest {
    /// Every form, that of `model.onnx` first.
    #[must_use]
    pub fn forms(&self) -> Vec<Form> {
        [self.first_form()].into_iter().chain(self.alternatives.iter().cloned()).collect()
    }

    pub(crate) fn first_form(&self) -> Form {
        let Quantization { form: quantization, accuracy, .. } = self.quantization;
        Form { file: MODEL_FILE.into(), quantization, accuracy, tolerance: None }
    }

    /// Every form on every engine of this build; the default engine with `model.onnx` first.
    #[must_use]
    pub fn candidates(&self) -> Vec<Candidate> {
        let forms = self.forms();
        let on =
            |&engine: &EngineKind| forms.iter().map(move |form| Candidate { engine, form: form.clone() });
        EngineKind::ALL.iter().flat_map(on).collect()
    }
}
