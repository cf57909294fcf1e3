//! The layout of the JSON files: the outer levels on lines of their own, everything deeper on one line.
//!
//! Called by `store` and `check`. A report then has a line a sample, and a baseline a line a figure, so that a diff
//! of two versions reads well. Also finds the field that an error's position stands in.

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};
use std::io::{self, Write};

/// Containers deeper than this stand on one line.
const DEPTH_LINES: usize = 2;
/// Significant digits of a number behind its first: what is measured has fewer, and so many are read back exactly.
const DIGITS: usize = 8;

/// `value` in this layout, with a newline at its end.
///
/// # Errors
/// A map has keys that are no texts.
pub(super) fn lines(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut bytes, Lines::default()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[derive(Default)]
struct Lines {
    depth: usize,
    has_value: bool,
}

impl Lines {
    fn open<W: Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.has_value = false;
        writer.write_all(bracket)
    }

    fn close<W: Write + ?Sized>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.has_value && self.depth < DEPTH_LINES {
            self.line(writer)?;
        }
        writer.write_all(bracket)
    }

    fn next<W: Write + ?Sized>(&self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(b",")?;
        }
        match self.depth <= DEPTH_LINES {
            true => self.line(writer),
            false if first => Ok(()),
            false => writer.write_all(b" "),
        }
    }

    fn line<W: Write + ?Sized>(&self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(b"  "))
    }
}

impl Formatter for Lines {
    fn write_f64<W: Write + ?Sized>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        let rounded = format!("{value:.DIGITS$e}").parse().unwrap_or(value);
        CompactFormatter.write_f64(writer, rounded)
    }

    fn begin_array<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn end_array_value<W: Write + ?Sized>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }

    fn begin_object<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn end_object_value<W: Write + ?Sized>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }
}

/// The field that an error of this JSON text points at, such as `samples[3].live`; empty at the outermost level.
pub(super) fn field_of(text: &str, error: &serde_json::Error) -> String {
    let before: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    field_at(text, before + error.column())
}

enum Level<'a> {
    Object { key: &'a str },
    Array { index: usize },
}

fn field_at(text: &str, offset: usize) -> String {
    let bytes = text.as_bytes();
    let end = offset.min(bytes.len());
    let mut levels: Vec<Level<'_>> = Vec::new();
    let mut at = 0;
    while at < end {
        match bytes[at] {
            b'{' => levels.push(Level::Object { key: "" }),
            b'[' => levels.push(Level::Array { index: 0 }),
            b'}' | b']' => drop(levels.pop()),
            b',' => match levels.last_mut() {
                Some(Level::Object { key }) => *key = "",
                Some(Level::Array { index }) => *index += 1,
                None => {}
            },
            b'"' => {
                let from = at + 1;
                at = closing_quote(bytes, from);
                if let Some(Level::Object { key }) = levels.last_mut()
                    && key.is_empty()
                {
                    *key = text.get(from..at).unwrap_or("");
                }
            }
            _ => {}
        }
        at += 1;
    }
    let mut field = String::new();
    for level in levels {
        match level {
            Level::Object { key: "" } => {}
            Level::Object { key } if field.is_empty() => field.push_str(key),
            Level::Object { key } => field.extend([".", key]),
            Level::Array { index } => field.push_str(&format!("[{index}]")),
        }
    }
    field
}

fn closing_quote(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn outer_levels_have_lines_of_their_own_and_inner_ones_share_one() {
        let value =
            json!({"a": 1, "list": [{"x": [1, 2], "y": {}}, {"x": []}], "none": [], "z": {"k": {"v": 1.5}}});
        let text = String::from_utf8(lines(&value).unwrap()).unwrap();
        let expected = "{\n  \"a\": 1,\n  \"list\": [\n    {\"x\": [1, 2], \"y\": {}},\n    {\"x\": []}\n  ],\n  \
                        \"none\": [],\n  \"z\": {\n    \"k\": {\"v\": 1.5}\n  }\n}\n";
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn numbers_have_nine_digits_and_are_read_back_exactly() {
        let text =
            String::from_utf8(lines(&[0.1 + 0.2, 18.847_461_057_080_537, 1e300, -5.0]).unwrap()).unwrap();
        assert_eq!(text, "[\n  0.3,\n  18.8474611,\n  1e+300,\n  -5.0\n]\n");
        assert_eq!(serde_json::from_str::<Vec<f64>>(&text).unwrap(), [0.3, 18.847_461_1, 1e300, -5.0]);
    }

    #[test]
    fn a_position_is_told_as_its_field() {
        let text = r#"{"a": {"b,]": "c\"d{"}, "list": [1, {"x": [7, 8]}], "last": 3}"#;
        let field = |part: &str| field_at(text, text.find(part).unwrap() + part.len());
        assert_eq!(field(r#""c"#), "a.b,]");
        assert_eq!(field("[1"), "list[0]");
        assert_eq!(field("7, 8"), "list[1].x[1]");
        assert_eq!(field("8]}"), "list[1]");
        assert_eq!(field(": 3"), "last");
        assert_eq!(field_at(text, text.len() + 9), "");
    }
}
