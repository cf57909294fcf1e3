//! The little statistics that telling a change from noise takes.
//!
//! Called by `figures`, `compare`, `check`. Medians throughout: one disturbed second, or one disturbed run, moves
//! nothing.

/// What makes the median absolute deviation of a normal distribution its standard deviation.
const NORMAL: f64 = 1.4826;
/// The same deviation is too small on average for few values; by how much, for 2 to 9 of them (Croux and
/// Rousseeuw, 1992).
const FEW: [f64; 8] = [1.196, 1.495, 1.363, 1.206, 1.200, 1.140, 1.129, 1.107];

/// The middle value, or the mean of the two in the middle; none of none.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[middle - 1], upper) } else { upper })
}

/// The median distance from the median.
pub(super) fn deviation(values: &[f64]) -> Option<f64> {
    let middle = median(values)?;
    median(&values.iter().map(|value| (value - middle).abs()).collect::<Vec<_>>())
}

/// The standard deviation that a median absolute deviation of `count` values stands for.
pub(super) fn scaled(deviation: f64, count: usize) -> f64 {
    let few = match count {
        0 | 1 => 1.0,
        2..=9 => FEW[count - 2],
        _ => count as f64 / (count as f64 - 0.8),
    };
    deviation * NORMAL * few
}

/// How much a series wanders during one run: the scaled deviation of the medians of its `parts` parts, after `form`.
/// None where a part holds no value, since the run then says too little.
pub(super) fn wander(series: &[Option<f64>], parts: usize, form: fn(f64) -> f64) -> Option<f64> {
    let length = series.len();
    if length < parts {
        return None;
    }
    let medians: Option<Vec<f64>> = (0..parts)
        .map(|part| {
            let part = &series[part * length / parts..(part + 1) * length / parts];
            median(&part.iter().flatten().copied().collect::<Vec<_>>()).map(form)
        })
        .collect();
    Some(scaled(deviation(&medians?)?, parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wild_value_moves_neither_median_nor_deviation() {
        assert_eq!(median(&[3.0, 1.0, 1000.0, 2.0, 4.0]), Some(3.0));
        assert_eq!(deviation(&[3.0, 1.0, 1000.0, 2.0, 4.0]), Some(1.0));
        assert_eq!(median(&[1.0, 2.0]), Some(1.5));
        assert_eq!((median(&[]), deviation(&[])), (None, None));
    }

    #[test]
    fn the_deviation_of_few_values_is_raised_more() {
        assert!(scaled(1.0, 3) > scaled(1.0, 9) && scaled(1.0, 9) > scaled(1.0, 100));
        assert!((scaled(1.0, 1_000_000) - NORMAL).abs() < 1e-5);
    }

    #[test]
    fn a_steady_series_does_not_wander_and_a_short_or_broken_one_says_nothing() {
        let steady: Vec<_> = (0..100).map(|at| Some(f64::from(at % 2))).collect();
        let same = |value| value;
        assert_eq!(wander(&steady, 10, same), Some(0.0));
        let rising: Vec<_> = (0..100).map(|at| Some(f64::from(at))).collect();
        assert!(wander(&rising, 10, same).unwrap() > 20.0);
        assert_eq!(wander(&rising[..9], 10, same), None);
        let hole: Vec<_> = (0..100).map(|at| (at < 90).then_some(1.0)).collect();
        assert_eq!(wander(&hole, 10, same), None);
    }
}
