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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{AnomalyScore, DetectionDecode};

    fn labels(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("class-{index}")).collect()
    }

    #[test]
    fn softmax_sums_to_one_without_overflow() {
        let probabilities = softmax(&[1000.0, 1000.0, -1000.0]);
        assert_eq!(probabilities, [0.5, 0.5, 0.0]);
    }

    #[test]
    fn classification_gives_the_best_labels_first_and_ties_by_position() {
        let spec = ClassificationSpec { labels: labels(4), scores: ScoreForm::Raw, top: 3 };
        let top = classify(&[0.1, 0.4, 0.1, 0.4], &spec);
        let expected = [("class-1", 0.4), ("class-3", 0.4), ("class-0", 0.1)];
        assert_eq!(top, expected.map(|(label, score)| (label.to_owned(), score)));
        let spec = ClassificationSpec { scores: ScoreForm::Logits, ..spec };
        let best = &classify(&[0.0, 3.0f32.ln(), f32::MIN, f32::MIN], &spec)[0];
        assert!((best.1 - 0.75).abs() < 1e-6, "{best:?}");
    }

    #[test]
    fn reconstruction_error_is_the_mean_square() {
        assert_eq!(reconstruction_error(&[1.0, 2.0], &[2.0, 4.0]), 2.5);
    }

    fn anomaly() -> AnomalySpec {
        let score = AnomalyScore::Output;
        AnomalySpec { score, raise_at: 5.0, clear_below: 3.0, raise_after: 2, clear_after: 3 }
    }

    fn transitions(scores: &[f32]) -> Vec<(usize, Transition)> {
        let mut state = AnomalyState::default();
        let mut seen = Vec::new();
        for (index, score) in scores.iter().enumerate() {
            let (next, transition) = state.next(*score, &anomaly());
            state = next;
            seen.extend(transition.map(|transition| (index, transition)));
        }
        seen
    }

    #[test]
    fn anomaly_is_raised_and_cleared_after_enough_in_a_row() {
        let seen = transitions(&[1.0, 5.0, 5.0, 9.0, 2.0, 2.0, 2.9, 1.0]);
        assert_eq!(seen, [(2, Transition::Raised), (6, Transition::Cleared)]);
    }

    #[test]
    fn one_spike_does_not_raise_and_one_dip_does_not_clear() {
        assert_eq!(transitions(&[9.0, 1.0, 9.0, 1.0]), []);
        assert_eq!(transitions(&[9.0, 9.0, 1.0, 1.0, 9.0, 1.0, 1.0]), [(1, Transition::Raised)]);
    }

    #[test]
    fn between_the_thresholds_nothing_changes() {
        assert_eq!(transitions(&[9.0, 9.0, 4.0, 4.0, 4.0, 4.0]), [(1, Transition::Raised)]);
        assert_eq!(transitions(&[4.0, 4.0, 4.0, 4.0]), []);
        // A score on the clear threshold is not below it.
        assert_eq!(transitions(&[9.0, 9.0, 3.0, 3.0, 3.0]), [(1, Transition::Raised)]);
    }

    fn detection(classes: usize) -> DetectionSpec {
        let decode = DetectionDecode::Grid;
        DetectionSpec { decode, labels: labels(classes), score_min: 0.3, iou_max: 0.45, boxes_max: 10 }
    }

    /// A grid of 2 x 2 cells and two classes: (cell, objectness, logit of the sides, class).
    fn grid(cells: &[(usize, f32, f32, usize)]) -> Vec<f32> {
        let mut output = vec![0.0; 7 * 4];
        for &(cell, objectness, side, class) in cells {
            output[cell] = objectness;
            output[3 * 4 + cell] = side;
            output[4 * 4 + cell] = side;
            output[(5 + class) * 4 + cell] = 1.0;
        }
        output
    }

    #[test]
    fn detection_reads_position_and_size_of_a_cell() {
        let boxes = detect(&grid(&[(3, 0.9, 0.0, 1)]), 2, 2, &detection(2));
        let score = 0.9f32.powf(0.6);
        assert_eq!(boxes.len(), 1);
        let BoundingBox { x0, y0, x1, y1, ref label, score: found } = boxes[0];
        assert_eq!((x0, y0, x1, y1, label.as_str()), (0.25, 0.25, 0.75, 0.75, "class-1"));
        assert!((found - score).abs() < 1e-6);
    }

    #[test]
    fn overlapping_boxes_of_one_class_are_one_and_of_two_classes_two() {
        let large = 6.0;
        let same = detect(&grid(&[(0, 0.8, large, 0), (3, 0.9, large, 0)]), 2, 2, &detection(2));
        assert_eq!(same.len(), 2, "half a picture apart: {same:?}");
        let near = DetectionSpec { iou_max: 0.1, ..detection(2) };
        let one = detect(&grid(&[(0, 0.8, large, 0), (3, 0.9, large, 0)]), 2, 2, &near);
        assert_eq!(one.len(), 1);
        assert!((one[0].score - 0.9f32.powf(0.6)).abs() < 1e-6, "the better one stays");
        let two = detect(&grid(&[(0, 0.8, large, 0), (3, 0.9, large, 1)]), 2, 2, &near);
        assert_eq!(two.len(), 2);
    }

    #[test]
    fn detection_drops_weak_boxes_and_keeps_at_most_boxes_max() {
        assert_eq!(detect(&grid(&[(0, 0.05, 0.0, 0)]), 2, 2, &detection(2)), []);
        let spec = DetectionSpec { boxes_max: 1, ..detection(2) };
        assert_eq!(detect(&grid(&[(0, 0.8, -6.0, 0), (3, 0.9, -6.0, 0)]), 2, 2, &spec).len(), 1);
    }

    #[test]
    fn boxes_without_area_do_not_overlap() {
        let point = Corners { x0: 0.5, y0: 0.5, x1: 0.5, y1: 0.5 };
        assert_eq!(overlap(point, point), 0.0);
    }
}
