//! Plots over time as inline SVG.
//!
//! Called by `html` and `compare`. A plot stretches to the width that the page has while its texts keep their size,
//! so that it reads on a phone: the lines lie in an inner picture that is stretched, everything else is placed in
//! percent. Colours and dashes come from the page's style sheet. Limits: [`POINTS_MAX`] points a line,
//! [`MARKS_MAX`] faults.

mod axis;
mod marks;
mod series;

pub(super) use axis::Axis;
pub(super) use marks::{MARKS_MAX, Mark, of_faults};
pub use series::POINTS_MAX;
pub(super) use series::Point;

use super::html::escape;
use super::stats;
use super::units::Unit;
use series::{Area, Shape};
use std::fmt::Write;

/// Height of the plotted area in CSS pixels.
const HEIGHT: f64 = 190.0;
/// Width of the inner picture, in units of its own.
const WIDTH: f64 = 1000.0;
/// Different looks of lines in the style sheet.
const LOOKS: usize = 6;
/// Height of a row of fault numbers in CSS pixels.
const LANE: f64 = 16.0;

/// How values are spread over the height.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spread {
    Linear,
    Logarithmic,
}

/// One plot.
pub(super) struct Plot<'a> {
    /// Tells its parts from other plots' on the page.
    pub(super) id: &'a str,
    pub(super) title: &'a str,
    pub(super) unit: Unit,
    pub(super) spread: Spread,
    /// First and last second.
    pub(super) span: (f64, f64),
    pub(super) lines: Vec<Line>,
    pub(super) marks: &'a [Mark],
}

/// One line of a plot.
pub(super) struct Line {
    pub(super) name: String,
    /// Which colour and dashes; lines of a plot have different ones.
    pub(super) look: usize,
    /// Values that come now and then are points of their own.
    pub(super) dots: bool,
    pub(super) points: Vec<Point>,
}

impl Plot<'_> {
    /// Whether there is anything to draw.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.iter().all(Line::is_empty)
    }

    /// The plot with its heading and the key to its lines.
    pub(super) fn figure(&self) -> String {
        let axis = self.axis();
        let lanes = marks::lanes(self.marks, self.span);
        let top = f64::from(marks::height(&lanes)) * LANE + 6.0;
        let mut out = format!(
            "<figure class=\"plot\"><figcaption><b>{}</b> <span class=\"unit\">{}</span></figcaption>{}",
            escape(self.title),
            escape(&axis.unit_text()),
            self.key(),
        );
        let id = escape(self.id);
        let _ = write!(
            out,
            "<div class=\"frame\" style=\"margin-top:{top}px\"><svg class=\"area\" role=\"img\" width=\"100%\" \
             height=\"{HEIGHT}\" aria-labelledby=\"t-{id} d-{id}\"><title id=\"t-{id}\">{}</title>\
             <desc id=\"d-{id}\">{}</desc>",
            escape(self.title),
            escape(&self.summary()),
        );
        self.draw_marks(&mut out, &lanes);
        self.draw_axes(&mut out, &axis);
        self.draw_lines(&mut out, &axis);
        out.push_str("</svg></div></figure>\n");
        out
    }

    fn axis(&self) -> Axis {
        let values = self.lines.iter().flat_map(|line| line.points.iter().filter_map(|(_, value)| *value));
        match self.spread {
            Spread::Linear => Axis::linear(self.unit, values),
            Spread::Logarithmic => Axis::logarithmic(self.unit, values),
        }
    }

    fn key(&self) -> String {
        let mut out = "<ul class=\"key\">".to_owned();
        for line in &self.lines {
            let mark = match line.dots {
                true => "<path class=\"dots\" d=\"M4 5h0M14 5h0M24 5h0\"/>",
                false => "<path d=\"M1 5h26\"/>",
            };
            let missing = if line.is_empty() { " <i>(not measured)</i>" } else { "" };
            let _ = write!(
                out,
                "<li><svg class=\"swatch l{}\" width=\"28\" height=\"10\" aria-hidden=\"true\">{mark}</svg>{}{missing}</li>",
                line.look % LOOKS,
                escape(&line.name),
            );
        }
        out + "</ul>"
    }

    /// What the plot shows, for those who cannot see it.
    fn summary(&self) -> String {
        let lines: Vec<String> = self.lines.iter().filter_map(|line| line.summary(self.unit)).collect();
        match lines.is_empty() {
            true => "No values.".to_owned(),
            false => lines.join("; "),
        }
    }

    fn draw_marks(&self, out: &mut String, lanes: &[Option<u32>]) {
        for (mark, lane) in self.marks.iter().zip(lanes) {
            let (from, until) = (percent(self.span, mark.from_s), percent(self.span, mark.until_s));
            let title = escape(&mark.title);
            let _ = match mark.until_s > mark.from_s {
                true => write!(
                    out,
                    "<rect class=\"band\" x=\"{from}%\" width=\"{:.2}%\" height=\"{HEIGHT}\"><title>{title}</title></rect>",
                    (until - from).max(0.15),
                ),
                false => write!(
                    out,
                    "<line class=\"instant\" x1=\"{from}%\" x2=\"{from}%\" y2=\"{HEIGHT}\"><title>{title}</title></line>",
                ),
            };
            let Some(lane) = lane else { continue };
            let y = -7.0 - f64::from(*lane) * LANE;
            let _ =
                write!(out, "<text class=\"mark\" x=\"{from}%\" y=\"{y}\">{}</text>", escape(&mark.label));
        }
    }

    fn draw_axes(&self, out: &mut String, axis: &Axis) {
        for tick in axis.ticks() {
            let y = (1.0 - tick.at) * HEIGHT;
            let _ = write!(
                out,
                "<line class=\"grid\" x2=\"100%\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"y\" x=\"-8\" y=\"{y:.1}\" dy=\".32em\">{}</text>",
                tick.label
            );
        }
        for tick in axis::time_ticks(self.span) {
            let x = tick.at * 100.0;
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{x:.2}%\" x2=\"{x:.2}%\" y1=\"{HEIGHT}\" y2=\"{}\"/>\
                 <text class=\"x\" x=\"{x:.2}%\" y=\"{}\">{}</text>",
                HEIGHT + 4.0,
                HEIGHT + 17.0,
                tick.label
            );
        }
        if self.is_empty() {
            let y = HEIGHT / 2.0;
            let _ = write!(out, "<text class=\"none\" x=\"50%\" y=\"{y}\">no values</text>");
        }
    }

    fn draw_lines(&self, out: &mut String, axis: &Axis) {
        let _ = write!(
            out,
            "<svg class=\"lines\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" width=\"100%\" \
             height=\"{HEIGHT}\">"
        );
        let area = Area { span: self.span, width: WIDTH, height: HEIGHT };
        for line in self.lines.iter().filter(|line| !line.is_empty()) {
            let shape = if line.dots { Shape::Dots } else { Shape::Line };
            let path = series::path(&series::downsample(&line.points), axis, area, shape);
            let dots = if line.dots { " dots" } else { "" };
            let _ = write!(out, "<path class=\"l{}{dots}\" d=\"{path}\"/>", line.look % LOOKS);
        }
        out.push_str("</svg>");
    }
}

impl Line {
    fn is_empty(&self) -> bool {
        self.points.iter().all(|(_, value)| value.is_none())
    }

    fn summary(&self, unit: Unit) -> Option<String> {
        let values: Vec<f64> = self.points.iter().filter_map(|(_, value)| *value).collect();
        let middle = stats::median(&values)?;
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let show = |value| unit.show(value);
        Some(format!("{}: {} to {}, median {}", self.name, show(low), show(high), show(middle)))
    }
}

/// A second's place in percent of the width, with two decimals; what lies outside is moved to the edge.
fn percent(span: (f64, f64), at_s: f64) -> f64 {
    (axis::share(span, at_s).clamp(0.0, 1.0) * 10_000.0).round() / 100.0
}

#[cfg(test)]
mod tests;
