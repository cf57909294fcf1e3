//! A line's points: fewer where there are many, and their path.

use super::axis::{self, Axis};
use std::fmt::Write;

/// Points that a drawn line has at most. A line of more keeps the least and the greatest of each stretch, and where
/// values are missing.
pub const POINTS_MAX: usize = 1_000;
/// Stretches of a line that has too many points: each leaves two.
const STRETCHES: usize = POINTS_MAX / 2;

/// Second and value; none where nothing was measured, which breaks the line.
pub(crate) type Point = (f64, Option<f64>);

/// How points are drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Joined where they follow on each other; one without neighbours is a dot.
    Line,
    Dots,
}

/// The rectangle that lines are drawn in.
#[derive(Clone, Copy)]
pub(super) struct Area {
    pub(super) span: (f64, f64),
    pub(super) width: f64,
    pub(super) height: f64,
}

/// The same line with at most [`POINTS_MAX`] values.
pub(super) fn downsample(points: &[Point]) -> Vec<Point> {
    if points.len() <= POINTS_MAX {
        return points.to_vec();
    }
    let length = points.len();
    let stretches = (0..STRETCHES).map(|at| &points[at * length / STRETCHES..(at + 1) * length / STRETCHES]);
    stretches.flat_map(extremes).collect()
}

/// Least and greatest of a stretch and its first hole, in the order in which they stand.
fn extremes(stretch: &[Point]) -> impl Iterator<Item = Point> + '_ {
    let values = || stretch.iter().enumerate().filter_map(|(at, (_, value))| Some((at, (*value)?)));
    let least = values().min_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(at, _)| at);
    let greatest = values().max_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(at, _)| at);
    let hole = stretch.iter().position(|(_, value)| value.is_none());
    let mut kept: Vec<usize> = [least, greatest, hole].into_iter().flatten().collect();
    kept.sort_unstable();
    kept.dedup();
    kept.into_iter().map(|at| stretch[at])
}

/// The points as an SVG path.
pub(super) fn path(points: &[Point], axis: &Axis, area: Area, shape: Shape) -> String {
    let mut path = String::new();
    let mut alone = false;
    let mut joined = false;
    for (at_s, value) in points {
        let Some(value) = value.filter(|value| !value.is_nan()) else {
            end_of_piece(&mut path, alone);
            (alone, joined) = (false, false);
            continue;
        };
        let x = axis::share(area.span, *at_s).clamp(0.0, 1.0) * area.width;
        let y = (1.0 - axis.place(value)) * area.height;
        let command = if joined { 'L' } else { 'M' };
        let _ = write!(path, "{command}{} {}", short(x), short(y));
        if shape == Shape::Dots {
            path.push_str("h0");
        } else {
            alone = !joined;
            joined = true;
        }
    }
    end_of_piece(&mut path, alone);
    path
}

/// A piece of one point has no length; this makes its round ends visible.
fn end_of_piece(path: &mut String, alone: bool) {
    if alone {
        path.push_str("h0");
    }
}

/// One decimal, and none where it is 0.
fn short(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::units::Unit;

    const AREA: Area = Area { span: (0.0, 10.0), width: 100.0, height: 50.0 };

    #[track_caller]
    fn drawn(points: &[Point], shape: Shape, expected: &str) {
        let axis = Axis::linear(Unit::Count, [10.0].into_iter());
        assert_eq!(path(points, &axis, AREA, shape), expected);
    }

    #[test]
    fn a_hole_breaks_the_line_and_a_point_alone_is_a_dot() {
        let points = [
            (0.0, Some(0.0)),
            (1.0, Some(10.0)),
            (2.0, None),
            (3.0, None),
            (4.0, Some(5.0)),
            (5.0, None),
            (6.0, Some(5.0)),
            (7.5, Some(2.51)),
        ];
        drawn(&points, Shape::Line, "M0 50L10 0M40 25h0M60 25L75 37.5");
        drawn(&points[..5], Shape::Dots, "M0 50h0M10 0h0M40 25h0");
    }

    #[test]
    fn nothing_one_point_and_holes_only_are_drawn_as_such() {
        drawn(&[], Shape::Line, "");
        drawn(&[(1.0, None), (2.0, None)], Shape::Line, "");
        drawn(&[(5.0, Some(10.0))], Shape::Line, "M50 0h0");
        drawn(&[(5.0, Some(f64::NAN))], Shape::Line, "");
    }

    #[test]
    fn what_lies_outside_is_drawn_at_the_edge() {
        drawn(&[(-5.0, Some(-3.0)), (99.0, Some(1e300))], Shape::Line, "M0 50L100 0");
    }

    #[test]
    fn fewer_points_keep_every_peak_and_every_trough() {
        let mut points: Vec<Point> = (0..86_400).map(|at| (f64::from(at), Some(5.0))).collect();
        for at in [0, 1_234, 50_000, 86_399] {
            points[at].1 = Some(900.0);
            points[at ^ 1].1 = Some(0.1);
        }
        let fewer = downsample(&points);
        assert!(fewer.len() <= POINTS_MAX, "{}", fewer.len());
        for at in [0, 1_234, 50_000, 86_399] {
            assert!(fewer.contains(&points[at]) && fewer.contains(&points[at ^ 1]), "{at}");
        }
        assert!(fewer.is_sorted_by(|one, other| one.0 <= other.0));
    }

    #[test]
    fn fewer_points_keep_holes_and_few_points_are_left_alone() {
        let mut points: Vec<Point> = (0..5_000).map(|at| (f64::from(at), Some(f64::from(at)))).collect();
        points[2_501].1 = None;
        for hole in &mut points[3_000..4_000] {
            hole.1 = None;
        }
        let fewer = downsample(&points);
        assert!(fewer.iter().filter(|(_, value)| value.is_some()).count() <= POINTS_MAX);
        assert!(fewer.contains(&(2_501.0, None)));
        assert!(!fewer.iter().any(|(at, value)| (3_000.0..4_000.0).contains(at) && value.is_some()));
        assert_eq!(downsample(&points[..POINTS_MAX]), points[..POINTS_MAX]);
    }
}
