//! Where a value or a second lies, and the round numbers beside it.

use crate::report::units::{Unit, count};

/// Ticks of a linear axis, about.
const TICKS: f64 = 5.0;
/// Ticks of the time axis at most: their labels must fit on a phone.
const TIME_TICKS_MAX: f64 = 6.0;
/// Powers of ten of a logarithmic axis at most; what lies below is drawn at the bottom.
const DECADES_MAX: f64 = 7.0;
/// Distances of time ticks in seconds; longer ones are whole days.
const TIME_STEPS: [f64; 19] = [
    0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1_800.0, 3_600.0, 7_200.0,
    10_800.0, 21_600.0, 43_200.0, 86_400.0,
];

/// A round number and its place, 0 to 1 from the bottom or from the left.
pub(super) struct Tick {
    pub(super) at: f64,
    pub(super) label: String,
}

/// The axis of values.
pub(crate) struct Axis {
    unit: Unit,
    form: Form,
}

enum Form {
    Linear {
        top: f64,
        step: f64,
    },
    /// Powers of ten.
    Logarithmic {
        bottom: f64,
        top: f64,
    },
}

impl Axis {
    /// From 0 to a round number above every value.
    pub(super) fn linear(unit: Unit, values: impl Iterator<Item = f64>) -> Self {
        let highest = values.fold(0.0, f64::max);
        let highest = if highest > 0.0 && highest.is_finite() { highest } else { 1.0 };
        let mut step = round_step(highest / TICKS);
        if matches!(unit, Unit::Count | Unit::Bytes) {
            step = step.max(1.0);
        }
        Self { unit, form: Form::Linear { top: (highest / step - 1e-9).ceil() * step, step } }
    }

    /// Whole powers of ten around every value above 0.
    pub(super) fn logarithmic(unit: Unit, values: impl Iterator<Item = f64>) -> Self {
        let positive = values.filter(|value| *value > 0.0 && value.is_finite());
        let (low, high) =
            positive.fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if high > 0.0 { (low, high) } else { (0.1, 1.0) };
        let top = (high.log10() - 1e-9).ceil();
        let bottom = (low.log10() + 1e-9).floor().min(top - 1.0).max(top - DECADES_MAX);
        Self { unit, form: Form::Logarithmic { bottom, top } }
    }

    /// A value's place, 0 at the bottom and 1 at the top; what lies outside is moved to the edge.
    pub(super) fn place(&self, value: f64) -> f64 {
        let share = match self.form {
            Form::Linear { top, .. } => value / top,
            Form::Logarithmic { .. } if value <= 0.0 => 0.0,
            Form::Logarithmic { bottom, top } => (value.log10() - bottom) / (top - bottom),
        };
        share.clamp(0.0, 1.0)
    }

    pub(super) fn ticks(&self) -> Vec<Tick> {
        match self.form {
            Form::Linear { top, step } => (0..=(top / step).round() as u32)
                .map(|tick| f64::from(tick) * step)
                .map(|value| Tick { at: value / top, label: self.linear_label(value, step, top) })
                .collect(),
            Form::Logarithmic { bottom, top } => {
                let between: &[f64] = if top - bottom <= 2.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let decades = (bottom as i32..=top as i32).map(|power| 10_f64.powi(power));
                let values = decades.flat_map(|decade| between.iter().map(move |factor| factor * decade));
                let within = values.filter(|value| value.log10() < top + 1e-9);
                within.map(|value| Tick { at: self.place(value), label: self.power_label(value) }).collect()
            }
        }
    }

    /// What stands beside the title.
    pub(super) fn unit_text(&self) -> String {
        let unit = match self.unit {
            Unit::Milliseconds => "ms",
            Unit::Cores => "cores",
            Unit::Bytes => "bytes",
            Unit::Share => "%",
            Unit::Count => "count",
            Unit::PerSecond => "a second",
            Unit::MicrosecondsEach => "µs",
            Unit::BytesEach => "B",
        };
        match self.form {
            Form::Linear { .. } => unit.to_owned(),
            Form::Logarithmic { .. } => format!("{unit}, logarithmic"),
        }
    }

    fn linear_label(&self, value: f64, step: f64, top: f64) -> String {
        let (scale, suffix) = match self.unit {
            Unit::Bytes if top >= 1e9 => (1e9, " GB"),
            Unit::Bytes if top >= 1e6 => (1e6, " MB"),
            Unit::Bytes if top >= 1e3 => (1e3, " kB"),
            _ if top >= 1e7 => (1e6, "M"),
            _ if top >= 1e5 => (1e3, "k"),
            _ => (1.0, ""),
        };
        if value == 0.0 {
            return "0".to_owned();
        }
        let decimals = (-(step / scale).log10() - 1e-9).ceil().clamp(0.0, 6.0) as usize;
        match decimals {
            0 => format!("{}{suffix}", count((value / scale).round() as u64)),
            _ => format!("{:.decimals$}{suffix}", value / scale),
        }
    }

    fn power_label(&self, value: f64) -> String {
        let (value, suffix) = match self.unit {
            Unit::Milliseconds if value >= 999.0 => (value / 1_000.0, " s"),
            Unit::Milliseconds => (value, " ms"),
            _ => (value, ""),
        };
        let decimals = (-value.log10() - 1e-9).ceil().clamp(0.0, 6.0) as usize;
        format!("{value:.decimals$}{suffix}")
    }
}

/// Where a second lies in a span, 0 to 1; outside of it where it lies outside.
pub(super) fn share((from, until): (f64, f64), at_s: f64) -> f64 {
    if until > from { (at_s - from) / (until - from) } else { 0.0 }
}

/// Round times of a span.
pub(super) fn time_ticks(span: (f64, f64)) -> Vec<Tick> {
    let length = span.1 - span.0;
    if length <= 0.0 || !length.is_finite() {
        return Vec::new();
    }
    let fits = |step: &f64| length / step <= TIME_TICKS_MAX;
    let days = (length / TIME_TICKS_MAX / 86_400.0).ceil() * 86_400.0;
    let step = TIME_STEPS.into_iter().find(fits).unwrap_or(days);
    let (first, last) = ((span.0 / step).ceil() as i64, (span.1 / step + 1e-9).floor() as i64);
    (first..=last)
        .map(|tick| tick as f64 * step)
        .map(|at_s| Tick { at: share(span, at_s), label: time_label(at_s, step, span.1) })
        .collect()
}

fn time_label(at_s: f64, step: f64, until: f64) -> String {
    let sign = if at_s < 0.0 { "-" } else { "" };
    let whole = at_s.abs().round() as u64;
    match step {
        _ if until < 120.0 && step < 1.0 => format!("{at_s:.1} s"),
        _ if until < 120.0 => format!("{sign}{whole} s"),
        _ if until < 7_200.0 => format!("{sign}{}:{:02}", whole / 60, whole % 60),
        _ if step < 86_400.0 => format!("{sign}{}:{:02} h", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{sign}{} d", whole / 86_400),
    }
}

/// The least of 1, 2, 5 times a power of ten that is not below `least`.
fn round_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= least * 0.999_999)
        .unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks().into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn linear_ticks_are_round_and_reach_above_the_highest_value() {
        let of = |unit, value: f64| labels(&Axis::linear(unit, [value].into_iter()));
        assert_eq!(of(Unit::Count, 9_999.0), ["0", "2,000", "4,000", "6,000", "8,000", "10,000"]);
        assert_eq!(of(Unit::Cores, 0.43), ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]);
        assert_eq!(of(Unit::Cores, 1.0), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(of(Unit::Bytes, 212e6), ["0", "50 MB", "100 MB", "150 MB", "200 MB", "250 MB"]);
        assert_eq!(of(Unit::Bytes, 1.1e9), ["0", "0.5 GB", "1.0 GB", "1.5 GB"]);
        assert_eq!(of(Unit::Count, 600_000.0), ["0", "200k", "400k", "600k"]);
        assert_eq!(of(Unit::Count, 2.0), ["0", "1", "2"]);
    }

    #[test]
    fn an_axis_of_nothing_or_of_zeros_still_has_ticks() {
        assert_eq!(labels(&Axis::linear(Unit::Count, std::iter::empty())), ["0", "1"]);
        assert_eq!(labels(&Axis::linear(Unit::Cores, [0.0, 0.0].into_iter())).len(), 6);
        let none = Axis::logarithmic(Unit::Milliseconds, [0.0, -1.0].into_iter());
        assert_eq!(labels(&none), ["0.1 ms", "0.2 ms", "0.5 ms", "1 ms"]);
    }

    #[test]
    fn a_logarithmic_axis_has_powers_of_ten_and_zeros_lie_at_its_bottom() {
        let axis = Axis::logarithmic(Unit::Milliseconds, [0.0, 0.4, 12_000.0].into_iter());
        assert_eq!(labels(&axis), ["0.1 ms", "1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"]);
        assert_eq!([axis.place(0.0), axis.place(-3.0), axis.place(0.01)], [0.0; 3]);
        assert_eq!([axis.place(100_000.0), axis.place(1e9)], [1.0; 2]);
        assert!((axis.place(10.0) - 2.0 / 6.0).abs() < 1e-9);
        // One value that is a power of ten itself still spans a decade.
        assert_eq!(labels(&Axis::logarithmic(Unit::Milliseconds, [1.0].into_iter())).len(), 4);
    }

    #[test]
    fn a_wild_outlier_does_not_press_the_rest_together() {
        let axis = Axis::logarithmic(Unit::Milliseconds, [1e-12, 1_000.0].into_iter());
        assert_eq!(axis.ticks().len() as f64, DECADES_MAX + 1.0);
    }

    #[test]
    fn time_ticks_are_round_and_few() {
        let of = |span| time_ticks(span).into_iter().map(|tick| tick.label).collect::<Vec<_>>();
        assert_eq!(of((0.0, 60.0)), ["0 s", "10 s", "20 s", "30 s", "40 s", "50 s", "60 s"]);
        assert_eq!(of((0.0, 300.0)), ["0:00", "1:00", "2:00", "3:00", "4:00", "5:00"]);
        assert_eq!(of((-3.0, 5.0)), ["-2 s", "0 s", "2 s", "4 s"]);
        assert_eq!(of((0.0, 86_400.0)), ["0:00 h", "6:00 h", "12:00 h", "18:00 h", "24:00 h"]);
        assert_eq!(of((0.0, 864_000.0)), ["0 d", "2 d", "4 d", "6 d", "8 d", "10 d"]);
        assert!(of((5.0, 5.0)).is_empty());
    }
}
