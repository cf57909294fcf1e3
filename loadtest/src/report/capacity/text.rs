//! The answer for a terminal.

use super::{Basis, Capacity, Fleet, Line, Needs, Verified, word};
use crate::report::units::{bytes, number};
use std::fmt::Write;

impl Capacity {
    /// The answer for a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.model_text(&mut out);
        if let (Some(fleet), Some(needs)) = (&self.fleet, &self.needs) {
            needs_text(&mut out, fleet, needs);
        }
        if !self.verified.is_empty() {
            let _ = writeln!(out, "\n{:<16} {:>14} {:>14} {:>9}", "verify", "predicted", "measured", "ratio");
            for row in &self.verified {
                verified_text(&mut out, row);
            }
        }
        if !self.warnings.is_empty() {
            out.push('\n');
        }
        for warning in &self.warnings {
            let _ = writeln!(out, "note: {warning}");
        }
        out
    }

    fn model_text(&self, out: &mut String) {
        let _ = writeln!(out, "model of {} run(s), {}", self.runs, word(self.model.transport));
        let line = |line: Option<Line>, text: &dyn Fn(Line) -> String| {
            line.map_or_else(|| "unknown".to_owned(), |line| format!("{}   ({})", text(line), basis(line)))
        };
        let cores = line(self.model.cores, &|line| {
            format!("{:.3} + {} µs a message", line.fixed, number(line.each * 1e6))
        });
        let memory = line(self.model.memory_bytes, &|line| {
            format!("{} + {} a connection", bytes(line.fixed), bytes(line.each))
        });
        let storage = line(self.model.storage_bytes, &|line| {
            format!("{} + {} a reading", bytes(line.fixed), bytes(line.each))
        });
        let _ = writeln!(out, "  cores    {cores}\n  memory   {memory}\n  storage  {storage}");
    }
}

fn basis(line: Line) -> &'static str {
    match line.basis {
        Basis::OneSize => "one size: nothing fixed",
        Basis::KnownConnection => "one size: a connection as in the gateway's bench",
        Basis::Fitted => "least squares",
    }
}

fn needs_text(out: &mut String, fleet: &Fleet, needs: &Needs) {
    let _ = writeln!(
        out,
        "\nfleet of {} devices, {}, {} messages/s, {} readings/s, kept {} days",
        number(fleet.devices.into()),
        word(fleet.transport),
        number(needs.messages_per_s),
        number(needs.readings_per_s),
        number(fleet.retention_days),
    );
    let or_unknown = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
    let cores = needs.cores.zip(needs.cores_to_provide).map(|(busy, provide)| {
        format!("{} busy; provide {} (60 % busy on average)", number(busy), number(provide))
    });
    let disk = needs.disk_bytes.map(|all| {
        format!(
            "{} for {} days and an event log of {}",
            bytes(all),
            number(fleet.retention_days),
            bytes(fleet.event_log_bytes as f64)
        )
    });
    let _ = writeln!(out, "  cores    {}", or_unknown(cores));
    let _ = writeln!(out, "  memory   {}", or_unknown(needs.memory_bytes.map(bytes)));
    let _ = writeln!(out, "  a day    {}", or_unknown(needs.storage_bytes_per_day.map(bytes)));
    let _ = writeln!(out, "  disk     {}", or_unknown(disk));
}

fn verified_text(out: &mut String, row: &Verified) {
    let show = |value: Option<f64>| match (value, row.figure) {
        (None, _) => "unknown".to_owned(),
        (Some(value), "cores") => number(value),
        (Some(value), _) => bytes(value),
    };
    let ratio = row.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
    let (predicted, measured) = (show(row.predicted), show(row.measured));
    let _ = writeln!(out, "{:<16} {predicted:>14} {measured:>14} {ratio:>9}", row.figure);
}
