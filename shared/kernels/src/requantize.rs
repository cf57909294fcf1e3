//! From an int32 sum to an int8 output.

/// How sums become outputs, per output channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Requantize {
    /// Scale of the input times scale of the channel's weights by scale of the output; one for each output channel.
    pub multipliers: Vec<f32>,
    /// The output's zero point.
    pub zero: i8,
    /// The smallest output: -128, or the zero point where a ReLU is fused.
    pub min: i8,
    /// The largest output.
    pub max: i8,
}

impl Requantize {
    /// One sum: scaled in f32, kept within the outputs, rounded to nearest, ties to even.
    #[inline(always)]
    pub(crate) fn one(&self, sum: i32, multiplier: f32) -> i8 {
        let zero = i32::from(self.zero);
        let (low, high) = (i32::from(self.min) - zero, i32::from(self.max) - zero);
        let scaled = (sum as f32 * multiplier).clamp(low as f32, high as f32);
        (scaled.round_ties_even() as i32 + zero) as i8
    }
}
