//! Output tensor to answer: best labels, anomaly score with hysteresis, boxes without duplicates. Pure functions.
//!
//! Callers: the pipelines of `inference`. Ties are broken by position, so that answers do not depend on sorting.

use crate::manifest::{AnomalySpec, ClassificationSpec, DetectionSpec, ScoreForm};

/// A found object. Corners are fractions of the picture's width and height, 0..=1.
#[derive(Clone, Debug, PartialEq)]
pub struct BoundingBox {
    /// Left edge.
    pub x0: f32,
    /// Upper edge.
    pub y0: f32,
    /// Right edge.
    pub x1: f32,
    /// Lower edge.
    pub y1: f32,
    /// What it is.
    pub label: String,
    /// How sure, 0..=1.
    pub score: f32,
}

/// Softmax: f32 `[n]` logits to f32 `[n]` that sum to 1; no overflow.
#[must_use]
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponents: Vec<f32> = logits.iter().map(|logit| (logit - highest).exp()).collect();
    let sum: f32 = exponents.iter().sum();
    exponents.iter().map(|exponent| exponent / sum).collect()
}

/// The best labels with their scores, best first: at most `spec.top`.
/// output: f32 `[labels]`.
#[must_use]
pub fn classify(output: &[f32], spec: &ClassificationSpec) -> Vec<(String, f32)> {
    let scores = match spec.scores {
        ScoreForm::Logits => softmax(output),
        ScoreForm::Raw => output.to_vec(),
    };
    let mut order: Vec<usize> = (0..scores.len().min(spec.labels.len())).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.into_iter().take(spec.top).map(|index| (spec.labels[index].clone(), scores[index])).collect()
}

/// Mean squared difference of a reconstruction: f32 `[n]` each, n above 0.
#[must_use]
pub fn reconstruction_error(input: &[f32], output: &[f32]) -> f32 {
    let sum: f64 = input.iter().zip(output).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (sum / input.len().max(1) as f64) as f32
}

/// A change of an [`AnomalyState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Normal before, anomalous now.
    Raised,
    /// Anomalous before, normal now.
    Cleared,
}

/// Where the hysteresis of an anomaly stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnomalyState {
    anomalous: bool,
    /// Consecutive scores that speak for the other state.
    consecutive: u32,
}

impl AnomalyState {
    /// True while raised.
    #[must_use]
    pub fn is_anomalous(self) -> bool {
        self.anomalous
    }

    /// The state after one more score. `raise_after` scores in a row at or above `raise_at` raise it, `clear_after` in a
    /// row below `clear_below` clear it; a score between the two thresholds restarts the count and changes nothing.
    #[must_use]
    pub fn next(self, score: f32, spec: &AnomalySpec) -> (Self, Option<Transition>) {
        let (speaks_against, needed) = if self.anomalous {
            (score < spec.clear_below, spec.clear_after)
        } else {
            (score >= spec.raise_at, spec.raise_after)
        };
        if !speaks_against {
            return (Self { consecutive: 0, ..self }, None);
        }
        let consecutive = self.consecutive + 1;
        if consecutive < needed {
            return (Self { consecutive, ..self }, None);
        }
        let transition = if self.anomalous { Transition::Cleared } else { Transition::Raised };
        (Self { anomalous: !self.anomalous, consecutive: 0 }, Some(transition))
    }
}

/// Boxes of a grid detector, best first, duplicates removed.
/// output: f32 `[5 + labels, rows, columns]`: objectness 0..=1, x and y offset (before tanh), width and height (before
/// the logistic function), then class probabilities. Score = objectness^0.6 x probability^0.4, as FastestDet defines it.
#[must_use]
pub fn detect(output: &[f32], rows: usize, columns: usize, spec: &DetectionSpec) -> Vec<BoundingBox> {
    let cells = rows * columns;
    let at = |channel: usize, cell: usize| output[channel * cells + cell];
    let mut found = Vec::new();
    for cell in 0..cells {
        let (mut class, mut probability) = (0, f32::NEG_INFINITY);
        for candidate in 0..spec.labels.len() {
            let value = at(5 + candidate, cell);
            if value > probability {
                (class, probability) = (candidate, value);
            }
        }
        let score = at(0, cell).max(0.0).powf(0.6) * probability.max(0.0).powf(0.4);
        if score < spec.score_min {
            continue;
        }
        let centre_x = ((cell % columns) as f32 + at(1, cell).tanh()) / columns as f32;
        let centre_y = ((cell / columns) as f32 + at(2, cell).tanh()) / rows as f32;
        let (half_width, half_height) = (logistic(at(3, cell)) / 2.0, logistic(at(4, cell)) / 2.0);
        let corners = Corners {
            x0: (centre_x - half_width).clamp(0.0, 1.0),
            y0: (centre_y - half_height).clamp(0.0, 1.0),
            x1: (centre_x + half_width).clamp(0.0, 1.0),
            y1: (centre_y + half_height).clamp(0.0, 1.0),
        };
        found.push(Candidate { class, score, corners });
    }
    let kept = suppress(found, spec.iou_max, spec.boxes_max);
    kept.into_iter().map(|candidate| candidate.named(&spec.labels)).collect()
}

fn logistic(value: f32) -> f32 {
    1.0 / (1.0 + (-value).exp())
}

#[derive(Clone, Copy, Debug)]
struct Corners {
    x0: f32,
    y0: f32,
    x1: f32,
    y1: f32,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    class: usize,
    score: f32,
    corners: Corners,
}

impl Candidate {
    fn named(self, labels: &[String]) -> BoundingBox {
        let Corners { x0, y0, x1, y1 } = self.corners;
        BoundingBox { x0, y0, x1, y1, label: labels[self.class].clone(), score: self.score }
    }
}

/// Greedy non-maximum suppression per class; best first, at most `boxes_max`.
fn suppress(mut candidates: Vec<Candidate>, iou_max: f32, boxes_max: usize) -> Vec<Candidate> {
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut kept: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        if kept.len() == boxes_max {
            break;
        }
        let duplicate = kept
            .iter()
            .any(|k| k.class == candidate.class && overlap(k.corners, candidate.corners) > iou_max);
        if !duplicate {
            kept.push(candidate);
        }
    }
    kept
}

/// Intersection over union, 0..=1; 0 for boxes without area.
fn overlap(a: Corners, b: Corners) -> f32 {
    let area = |c: Corners| (c.x1 - c.x0).max(0.0) * (c.y1 - c.y0).max(0.0);
    let common = Corners { x0: a.x0.max(b.x0), y0: a.y0.max(b.y0), x1: a.x1.min(b.x1), y1: a.y1.min(b.y1) };
    let (intersection, union) = (area(common), area(a) + area(b) - area(common));
    if union > 0.0 { intersection / union } else { 0.0 }
}
