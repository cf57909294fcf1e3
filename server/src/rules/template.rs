//! Message templates: text with `{name}` holes. `{{` stands for a brace.

use crate::alerts::model::MESSAGE_CHARS_MAX;
use crate::platform::expr::Position;
use muster_wire::Value;

/// What may stand in the holes of a telemetry rule.
pub const TELEMETRY_HOLES: &[&str] = &["value", "metric", "device", "rule", "severity"];
/// What may stand in the holes of an event rule.
pub const EVENT_HOLES: &[&str] =
    &["label", "score", "kind", "pipeline", "model", "subject", "device", "rule", "severity"];
/// Hole that reads a label of the device.
const LABELS: &str = "labels.";

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Hole(String),
}

impl Template {
    /// Parses a text whose holes may hold these names, or `labels.<name>`.
    ///
    /// # Errors
    /// Where a hole is open or unknown.
    pub fn parse(text: &str, holes: &[&str]) -> Result<Self, (Position, String)> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut chars = text.chars().enumerate().peekable();
        while let Some((at, c)) = chars.next() {
            let position = Position { line: 1, column: at + 1 };
            match c {
                '{' | '}' if chars.next_if(|(_, next)| *next == c).is_some() => plain.push(c),
                '}' => return Err((position, "a lone } must be written }}".into())),
                '{' => {
                    let name: String =
                        std::iter::from_fn(|| chars.next_if(|(_, c)| *c != '}').map(|(_, c)| c)).collect();
                    if chars.next().is_none() {
                        return Err((position, "{ is not closed; a plain { must be written {{".into()));
                    }
                    if !holes.contains(&name.as_str()) && !name.starts_with(LABELS) {
                        let known = holes.join("}, {");
                        return Err((
                            position,
                            format!("{{{name}}} is not known; there are: {{{known}}}, {{labels.<name>}}"),
                        ));
                    }
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                    parts.push(Part::Hole(name));
                }
                c => plain.push(c),
            }
        }
        parts.push(Part::Text(plain));
        Ok(Self(parts))
    }

    /// Fills the holes; what `value_of` does not know becomes `?`.
    #[must_use]
    pub fn fill(&self, value_of: impl Fn(&str) -> Option<String>) -> String {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Hole(name) => text.push_str(&value_of(name).unwrap_or_else(|| "?".into())),
            }
        }
        if text.chars().count() > MESSAGE_CHARS_MAX {
            text = text.chars().take(MESSAGE_CHARS_MAX - 1).chain(['…']).collect();
        }
        text
    }
}

/// The label that a hole names.
#[must_use]
pub fn label_of(hole: &str) -> Option<&str> {
    hole.strip_prefix(LABELS)
}

/// A value as people read it.
#[must_use]
pub fn shown(value: &Value) -> String {
    match value {
        Value::Bool(flag) => flag.to_string(),
        Value::Text(text) => text.clone(),
        Value::Number(number) if *number != 0.0 && !(1e-4..1e15).contains(&number.abs()) => {
            format!("{number:e}")
        }
        Value::Number(number) => {
            let text = format!("{number:.4}");
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_filled() {
        let template =
            Template::parse("{device}: {value} °C {{ok}} {labels.site}{labels.x}", TELEMETRY_HOLES).unwrap();
        let filled = template.fill(|hole| match hole {
            "device" => Some("d1".into()),
            "value" => Some(shown(&Value::Number(31.50))),
            "labels.site" => label_of(hole).map(str::to_owned),
            _ => None,
        });
        assert_eq!(filled, "d1: 31.5 °C {ok} site?");
    }

    #[test]
    fn faults_name_their_place() {
        for (text, column) in [("a {nope}", 3), ("{", 1), ("x }", 3), ("{score}", 1), ("{{{", 3)] {
            assert_eq!(Template::parse(text, TELEMETRY_HOLES).unwrap_err().0.column, column, "{text}");
        }
        assert!(Template::parse("{score}", EVENT_HOLES).is_ok());
    }

    #[test]
    fn numbers_are_short_and_messages_bounded() {
        for (number, text) in [
            (0.0, "0"),
            (30.0, "30"),
            (-1.25, "-1.25"),
            (0.123_456, "0.1235"),
            (1e20, "1e20"),
            (1e-9, "1e-9"),
        ] {
            assert_eq!(shown(&Value::Number(number)), text);
        }
        let long = Template::parse("{value}", TELEMETRY_HOLES).unwrap().fill(|_| Some("é".repeat(9_999)));
        assert_eq!(long.chars().count(), MESSAGE_CHARS_MAX);
    }
}
