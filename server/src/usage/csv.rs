//! Days as CSV (RFC 4180): one line a tenant and day, the same columns always. Pure.
//!
//! Ids hold letters, digits and `-` only and begin with a letter or digit, so nothing needs quotes and no spreadsheet takes
//! a cell for a formula.

use super::model::{DayRow, Refused, day_text};
use std::fmt::Write as _;

/// The columns before the refusals.
const HEAD: &str =
    "day,tenant,messages,bytes,readings,events,inference_ms,peak_messages_per_s,devices,storage_bytes";

/// The whole text.
pub(super) fn text(rows: &[DayRow]) -> String {
    let mut out = HEAD.to_owned();
    for reason in Refused::ALL {
        let _never = write!(out, ",refused_{}", reason.as_str());
    }
    out.push_str("\r\n");
    for row in rows {
        line(&mut out, row);
    }
    out
}

fn line(out: &mut String, row: &DayRow) {
    let counts = &row.counts;
    let _never = write!(
        out,
        "{},{},{},{},{},{},{},{},{},{}",
        day_text(row.day),
        row.tenant,
        counts.messages,
        counts.bytes,
        counts.readings,
        counts.events,
        counts.inference_us / 1_000,
        counts.peak_per_s,
        row.devices,
        row.storage_bytes,
    );
    for refused in counts.refused {
        let _never = write!(out, ",{refused}");
    }
    out.push_str("\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::model::Counts;

    #[test]
    fn a_line_has_as_many_cells_as_the_head() {
        let counts = Counts { messages: 5, inference_us: 2_999, ..Counts::default() };
        let rows = [DayRow { tenant: "acme".into(), day: 20_779, counts, devices: 2, storage_bytes: 9 }];
        let text = text(&rows);
        let lines: Vec<_> = text.split("\r\n").collect();
        assert_eq!(lines[1], "2026-11-22,acme,5,0,0,0,2,0,2,9,0,0,0,0,0,0,0,0,0,0,0,0,0");
        assert_eq!(lines[0].split(',').count(), lines[1].split(',').count());
        assert_eq!((lines.len(), lines[2]), (3, ""));
    }
}
