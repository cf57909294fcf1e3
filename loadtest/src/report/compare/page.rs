//! The comparison as a page: the table, and every line of both runs in one plot.

use super::{Comparison, RULE, Row, Verdict};
use crate::report::html::courses::{self, COURSES};
use crate::report::html::{escape, shell};
use crate::report::model::Report;
use crate::report::svg::{self, Mark, Plot};
use crate::report::units::utc;
use std::fmt::Write;

/// The page of two reports that were compared; `names` are what the reader calls them.
#[must_use]
pub fn page(comparison: &Comparison, names: [&str; 2], a: &Report, b: &Report) -> String {
    let marks = marks(a, b);
    let body =
        [header(names, a, b), notes(comparison), table(comparison), faults(&marks), plots(&marks, a, b)];
    shell("Two load runs", &body.concat())
}

fn header(names: [&str; 2], a: &Report, b: &Report) -> String {
    let mut runs = String::new();
    for (letter, name, report) in [("a", names[0], a), ("b", names[1], b)] {
        let _ = writeln!(
            runs,
            "<div><dt>{letter}</dt><dd><code>{}</code>, {}, {}</dd></div>",
            escape(name),
            utc(report.setup.began_at_us),
            escape(&report.setup.profile),
        );
    }
    format!("<header>\n<h1>Two load runs</h1>\n<dl class=\"facts\">{runs}</dl>\n</header>\n")
}

fn notes(comparison: &Comparison) -> String {
    let list = |class: &str, title: &str, lines: &[String]| {
        if lines.is_empty() {
            return String::new();
        }
        let lines: Vec<String> =
            lines.iter().map(|line| format!("<li class=\"note\">{}</li>\n", escape(line))).collect();
        format!(
            "<section class=\"notes verdict {class}\">\n<h2>{title}</h2>\n<ul>\n{}</ul>\n</section>\n",
            lines.concat()
        )
    };
    list("broke", "Invariants broke", &comparison.broken)
        + &list("none", "Before you compare", &comparison.notes)
}

fn table(comparison: &Comparison) -> String {
    let mut rows = String::new();
    for row in &comparison.figures {
        let Row { name, verdict, .. } = row;
        let class = match verdict {
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::Unclear | Verdict::Missing => "unclear",
            Verdict::Same | Verdict::Unjudged => "same",
        };
        let _ = writeln!(
            rows,
            "<tr><th scope=\"row\"><code>{}</code></th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
             <td class=\"{class}\">{}</td></tr>",
            escape(name),
            row.show(row.a),
            row.show(row.b),
            row.difference_text(),
            row.ratio_text(),
            row.noise.map_or_else(String::new, |noise| row.unit.show(noise)),
            verdict.word(),
        );
    }
    let rules: Vec<String> = RULE.iter().map(|rule| format!("<li>{}</li>\n", escape(rule))).collect();
    format!(
        "<section>\n<h2>Figures</h2>\n<div class=\"wide\"><table class=\"figures\">\n<thead><tr><th scope=\"col\">figure</th>\
         <th scope=\"col\">a</th><th scope=\"col\">b</th><th scope=\"col\">b - a</th><th scope=\"col\">b / a</th>\
         <th scope=\"col\">noise</th><th scope=\"col\">b is</th></tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n\
         <ul class=\"rules\">\n{}</ul>\n</section>\n",
        rules.concat()
    )
}

/// One set of marks where both runs had the same schedule, else each run's with its letter.
fn marks(a: &Report, b: &Report) -> Vec<Mark> {
    let times = |report: &Report| -> Vec<(String, u64)> {
        report.faults.iter().map(|fault| (fault.kind.clone(), fault.from_s.round() as u64)).collect()
    };
    if times(a) == times(b) {
        return svg::of_faults(&a.faults, "");
    }
    let mut marks = svg::of_faults(&a.faults, "a");
    marks.extend(svg::of_faults(&b.faults, "b"));
    marks.truncate(svg::MARKS_MAX);
    marks
}

fn faults(marks: &[Mark]) -> String {
    if marks.is_empty() {
        return String::new();
    }
    let lines: Vec<String> = marks.iter().map(|mark| format!("<li>{}</li>\n", escape(&mark.title))).collect();
    format!("<section>\n<h2>Faults</h2>\n<ul class=\"rules\">\n{}</ul>\n</section>\n", lines.concat())
}

fn plots(marks: &[Mark], a: &Report, b: &Report) -> String {
    let (span_a, span_b) = (courses::span(a), courses::span(b));
    let span = (span_a.0.min(span_b.0), span_a.1.max(span_b.1));
    let mut drawn = String::new();
    for course in &COURSES {
        for (at, value) in course.lines.iter().enumerate().filter(|(_, value)| value.compared) {
            let plot = Plot {
                id: &format!("{}-{at}", course.id),
                title: &format!("{}: {}", course.title, value.name),
                unit: course.unit,
                spread: course.spread,
                span,
                lines: vec![value.drawn(a, "a".to_owned(), 0), value.drawn(b, "b".to_owned(), 1)],
                marks,
            };
            if !plot.is_empty() {
                drawn.push_str(&plot.figure());
            }
        }
    }
    format!("<section class=\"plots\">\n<h2>Over time</h2>\n{drawn}</section>\n")
}
