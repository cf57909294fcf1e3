//! A report as one page that needs nothing else: no script, no network, no font of its own.
//!
//! Called by `store` on each save and by the command `render`; `compare` builds its page on the same [`shell`]. It
//! shows light or dark as the reader's system does, and reads on a phone. Every text of the report is escaped, and
//! the page's own policy forbids to load or run anything.

pub(super) mod courses;
mod parts;

use super::figures::{self, Figure};
use super::model::Report;
use super::svg::{self, Plot};
use super::units::plain;
use std::collections::BTreeMap;

const STYLE: &str = include_str!("page.css");
/// Invariants, latencies or reasons that a table shows at most; the JSON has them all.
const ROWS_MAX: usize = 200;

/// The page of one report.
#[must_use]
pub fn page(report: &Report) -> String {
    let figures: BTreeMap<String, Figure> =
        figures::of(report).into_iter().map(|figure| (figure.name.clone(), figure)).collect();
    let marks = svg::of_faults(&report.faults, "");
    let body = [
        parts::header(report),
        parts::verdict(report),
        parts::tiles(report, &figures),
        parts::latencies(report),
        parts::faults(report, &marks),
        plots(report, &marks),
        parts::totals(report),
        parts::costs(report),
        parts::repeat(report),
    ];
    shell(&format!("Load run: {}", plain(&report.setup.profile)), &body.concat())
}

/// A whole document around a body.
pub(super) fn shell(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(title)
    )
}

/// A text that is only a text in HTML and in its attributes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter if letter.is_control() && letter != '\n' => escaped.push('\u{fffd}'),
            letter => escaped.push(letter),
        }
    }
    escaped
}

fn plots(report: &Report, marks: &[svg::Mark]) -> String {
    let span = courses::span(report);
    let mut drawn = String::new();
    let mut missing = Vec::new();
    for course in &courses::COURSES {
        let lines = course.lines.iter().enumerate();
        let plot = Plot {
            id: course.id,
            title: course.title,
            unit: course.unit,
            spread: course.spread,
            span,
            lines: lines.map(|(look, line)| line.drawn(report, line.name.to_owned(), look)).collect(),
            marks,
        };
        match plot.is_empty() {
            true => missing.push(course.title),
            false => drawn.push_str(&plot.figure()),
        }
    }
    if !missing.is_empty() {
        drawn
            .push_str(&format!("<p class=\"quiet\">Not measured in this run: {}.</p>\n", missing.join(", ")));
    }
    format!("<section class=\"plots\">\n<h2>Over time</h2>\n{drawn}</section>\n")
}

#[cfg(test)]
mod tests;
