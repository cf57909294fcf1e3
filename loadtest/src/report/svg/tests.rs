//! Whole plots.

use super::super::model::FaultMark;
use super::*;

fn plot<'a>(lines: Vec<Line>, marks: &'a [Mark]) -> Plot<'a> {
    Plot {
        id: "latency",
        title: "Latency <live>",
        unit: Unit::Milliseconds,
        spread: Spread::Logarithmic,
        span: (0.0, 100.0),
        lines,
        marks,
    }
}

fn line(name: &str, points: Vec<Point>) -> Line {
    Line { name: name.to_owned(), look: 0, dots: false, points }
}

/// Every element of the text ends, in the right order.
fn balanced(text: &str) {
    let mut open = Vec::new();
    for tag in text.split('<').skip(1).map(|rest| &rest[..rest.find('>').unwrap()]) {
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "{text}"),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split(' ').next().unwrap()),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn texts_are_escaped() {
    let fault = FaultMark { kind: "<script>".to_owned(), detail: "\"&'".to_owned(), ..FaultMark::default() };
    let marks = of_faults(&[fault], "<");
    let text = plot(vec![line("<b>\"P50\"</b>", vec![(1.0, Some(1.0))])], &marks).figure();
    assert!(!text.contains("<script") && !text.contains("<b>\"P50") && !text.contains("<live>"), "{text}");
    assert!(
        text.contains("&lt;b&gt;&quot;P50&quot;&lt;/b&gt;") && text.contains("&quot;&amp;&#39;"),
        "{text}"
    );
    balanced(&text);
}

#[test]
fn a_plot_without_values_says_so() {
    for lines in [vec![], vec![line("P50", vec![])], vec![line("P50", vec![(1.0, None)])]] {
        let named = !lines.is_empty();
        let plot = plot(lines, &[]);
        assert!(plot.is_empty());
        let text = plot.figure();
        assert!(text.contains(">no values<") && text.contains("No values."), "{text}");
        assert_eq!(text.contains("(not measured)"), named);
        balanced(&text);
    }
}

#[test]
fn one_sample_is_a_dot_even_in_a_run_of_no_length() {
    let mut plot = plot(vec![line("P50", vec![(0.0, Some(10.0))])], &[]);
    plot.span = (0.0, 0.0);
    let text = plot.figure();
    assert!(text.contains("d=\"M0 0h0\""), "{text}");
    balanced(&text);
}

#[test]
fn an_instant_is_a_line_an_interval_a_band_and_both_have_their_number() {
    let fault =
        |from_s, until_s| FaultMark { kind: "poison".to_owned(), from_s, until_s, ..FaultMark::default() };
    let marks = of_faults(&[fault(10.0, 10.0), fault(40.0, 60.0), fault(90.0, 150.0)], "");
    let text = plot(vec![line("P50", vec![(1.0, Some(1.0))])], &marks).figure();
    assert!(text.contains("<line class=\"instant\" x1=\"10%\" x2=\"10%\""), "{text}");
    assert!(text.contains("<rect class=\"band\" x=\"40%\" width=\"20.00%\""), "{text}");
    // What goes on beyond the end is cut there.
    assert!(text.contains("<rect class=\"band\" x=\"90%\" width=\"10.00%\""), "{text}");
    for number in ["x=\"10%\" y=\"-7\">1<", "x=\"40%\" y=\"-7\">2<", "x=\"90%\" y=\"-7\">3<"] {
        assert!(text.contains(number), "{number} in {text}");
    }
    balanced(&text);
}

#[test]
fn the_description_tells_what_the_lines_do() {
    let points = vec![(1.0, Some(2.0)), (2.0, None), (3.0, Some(68.69)), (4.0, Some(4.0))];
    let text = plot(vec![line("P95", points)], &[]).figure();
    assert!(text.contains(">P95: 2 ms to 68.7 ms, median 4 ms</desc>"), "{text}");
}

#[test]
fn a_days_line_stays_small() {
    let points = (0..86_400).map(|at| (f64::from(at), Some(f64::from(at % 977)))).collect();
    let mut plot = plot(vec![line("P50", points)], &[]);
    plot.span = (0.0, 86_400.0);
    let text = plot.figure();
    assert!(text.len() < 20_000, "{}", text.len());
}
