//! Faults as marks on the time axis.

use super::axis;
use crate::report::model::FaultMark;
use crate::report::units::{moment, plain};

/// Faults that are drawn and listed at most; the report's JSON has them all.
pub(crate) const MARKS_MAX: usize = 200;
/// Rows of numbers above a plot at most; a mark whose number finds no room keeps its line.
const LANES_MAX: u32 = 3;
/// What a number takes of the width of a plot on a phone.
const LABEL_SHARE: f64 = 0.07;

/// One mark.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mark {
    /// What stands above the plot, and in the list of faults.
    pub(crate) label: String,
    pub(crate) from_s: f64,
    /// The same as the beginning for a fault that takes no time.
    pub(crate) until_s: f64,
    /// Kind, time and what it hit.
    pub(crate) title: String,
}

/// The first [`MARKS_MAX`] faults, numbered from 1 behind `prefix`.
pub(crate) fn of_faults(faults: &[FaultMark], prefix: &str) -> Vec<Mark> {
    let numbered = faults.iter().take(MARKS_MAX).zip(1..);
    numbered
        .map(|(fault, number)| Mark {
            label: format!("{prefix}{number}"),
            from_s: fault.from_s,
            until_s: fault.until_s,
            title: format!(
                "{prefix}{number} {} {}: {}",
                plain(&fault.kind),
                when(fault),
                plain(&fault.detail)
            ),
        })
        .collect()
}

fn when(fault: &FaultMark) -> String {
    match fault.until_s > fault.from_s {
        true => format!("{} to {}", moment(fault.from_s), moment(fault.until_s)),
        false => format!("at {}", moment(fault.from_s)),
    }
}

/// The row of each mark's number, counted from the plot upwards, so that no two overlap; none without room.
pub(super) fn lanes(marks: &[Mark], span: (f64, f64)) -> Vec<Option<u32>> {
    let mut taken: Vec<Vec<f64>> = vec![Vec::new(); LANES_MAX as usize];
    marks
        .iter()
        .map(|mark| {
            let at = axis::share(span, mark.from_s).clamp(0.0, 1.0);
            let free = |lane: &Vec<f64>| lane.iter().all(|other| (at - other).abs() >= LABEL_SHARE);
            let lane = taken.iter().position(free)?;
            taken[lane].push(at);
            u32::try_from(lane).ok()
        })
        .collect()
}

/// Rows that are in use.
pub(super) fn height(lanes: &[Option<u32>]) -> u32 {
    lanes.iter().flatten().max().map_or(0, |highest| highest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: &[f64]) -> Vec<Mark> {
        let fault = |at_s: &f64| FaultMark {
            kind: "poison".to_owned(),
            from_s: *at_s,
            until_s: *at_s,
            detail: String::new(),
        };
        of_faults(&seconds.iter().map(fault).collect::<Vec<_>>(), "")
    }

    #[test]
    fn numbers_that_would_overlap_stand_above_each_other_until_there_is_no_room() {
        let lanes = lanes(&at(&[0.0, 50.0, 51.0, 52.0, 53.0, 58.0, 100.0]), (0.0, 100.0));
        assert_eq!(lanes, [Some(0), Some(0), Some(1), Some(2), None, Some(0), Some(0)]);
        assert_eq!((height(&lanes), height(&[None]), height(&[])), (3, 0, 0));
    }

    #[test]
    fn faults_that_overlap_in_time_may_begin_in_any_order() {
        assert_eq!(lanes(&at(&[50.0, 20.0, 21.0]), (0.0, 100.0)), [Some(0), Some(0), Some(1)]);
    }

    #[test]
    fn more_faults_than_can_be_told_apart_are_not_drawn() {
        assert_eq!(at(&vec![1.0; MARKS_MAX + 1]).len(), MARKS_MAX);
    }

    #[test]
    fn a_mark_names_kind_time_and_detail() {
        let fault = FaultMark {
            kind: "server-kill".to_owned(),
            from_s: 60.0,
            until_s: 66.5,
            detail: "kill -9".to_owned(),
        };
        let marks = of_faults(&[fault.clone(), FaultMark { until_s: 60.0, ..fault }], "a");
        assert_eq!(marks[0].title, "a1 server-kill 1:00 to 1:07: kill -9");
        assert_eq!(marks[1].title, "a2 server-kill at 1:00: kill -9");
    }
}
