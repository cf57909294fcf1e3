//! The figures for people: units in the head, a line a candidate.

use super::Row;

/// Widths of the columns behind engine and form.
const WIDTHS: [usize; 8] = [8, 13, 6, 9, 9, 9, 8, 10];
const NAMES: [&str; 8] = ["load", "first answer", "runs", "min", "median", "P95", "RSS", "largest"];
const UNITS: [&str; 8] = ["ms", "CPU ms", "", "us", "us", "us", "MiB", "difference"];

pub(super) fn head(model: &str, version: &str) -> String {
    let (names, units) = (columns(NAMES.map(str::to_owned)), columns(UNITS.map(str::to_owned)));
    format!(
        "{model} {version}: the model alone, one thread, each engine and form in a process of its own\n\
         {}{names}  file\n{}{units}",
        first("engine", "form"),
        first("", "")
    )
}

pub(super) fn line(row: &Row) -> String {
    let number = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    let figures = columns([
        number(row.load_ms, 1),
        number(row.first_inference_cpu_ms, 1),
        row.runs.map_or_else(|| "-".to_owned(), |runs| runs.to_string()),
        number(row.min_us, 1),
        number(row.median_us, 1),
        number(row.p95_us, 1),
        number(row.rss_mib, 1),
        row.difference_max.map_or_else(|| "-".to_owned(), |value| format!("{value:.1e}")),
    ]);
    let line = format!("{}{figures}  {}", first(&row.engine, &row.form), row.file);
    match &row.error {
        None => line,
        Some(error) => format!("{line}\n        {error}"),
    }
}

fn first(engine: &str, form: &str) -> String {
    format!("{engine:<7} {form:<23}")
}

fn columns(texts: [String; WIDTHS.len()]) -> String {
    texts.iter().zip(WIDTHS).map(|(text, width)| format!(" {text:>width$}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_stand_below_their_units() {
        let row = Row {
            engine: "tract".into(),
            form: "weight-int8-per-channel".into(),
            file: "model.onnx".into(),
            load_ms: Some(12.34),
            first_inference_cpu_ms: Some(21.06),
            runs: Some(2_000),
            min_us: Some(880.0),
            median_us: Some(896.25),
            p95_us: Some(1_234.5),
            rss_mib: Some(17.5),
            difference_max: Some(0.000_03),
            error: None,
        };
        let head = head("person", "1.0");
        let lines: Vec<&str> = head.lines().collect();
        assert_eq!(
            lines[1..],
            [
                "engine  form                        load  first answer   runs       min    median       P95      RSS    largest  file",
                "                                      ms        CPU ms               us        us        us      MiB difference",
            ]
        );
        assert_eq!(
            line(&row),
            "tract   weight-int8-per-channel     12.3          21.1   2000     880.0     896.2    1234.5     17.5     3.0e-5  model.onnx"
        );
        let failed = Row { engine: "rten".into(), error: Some("no".into()), ..Row::default() };
        let text = line(&failed);
        let (figures, error) = text.split_once('\n').unwrap();
        assert_eq!((figures.matches(" -").count(), error.trim()), (8, "no"));
    }
}
