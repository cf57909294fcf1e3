//! What an activation keeps each output within.

/// The least and the greatest output. NaN stays NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    low: f32,
    high: f32,
}

impl Bounds {
    /// Every number is within.
    pub const NONE: Self = Self { low: f32::NEG_INFINITY, high: f32::INFINITY };

    /// 0 and infinity for ReLU, 0 and 6 for ReLU6; none where no number is within.
    #[must_use]
    pub fn new(low: f32, high: f32) -> Option<Self> {
        (low <= high).then_some(Self { low, high })
    }

    /// Within both; none where no number is.
    #[must_use]
    pub fn and(self, other: Self) -> Option<Self> {
        Self::new(self.low.max(other.low), self.high.min(other.high))
    }

    pub(crate) fn keep(self, values: &mut [f32]) {
        if self != Self::NONE {
            values.iter_mut().for_each(|value| *value = value.clamp(self.low, self.high));
        }
    }
}
