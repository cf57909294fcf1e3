//! A small scanner of Rust source: code without comments and strings, string literals, functions, test regions.
//!
//! It is no parser. It knows line and nested block comments, plain, byte, C and raw strings, characters and
//! lifetimes, which is enough to count and to search without tripping over text.

use std::ops::Range;

/// One scanned file.
pub(crate) struct Source {
    /// The text with comments, and the insides of strings and characters, blanked; same bytes, same lines.
    pub(crate) code: String,
    /// The text with code and strings blanked: comments only.
    pub(crate) comments: String,
    /// Every string literal: its byte offset and its text as written.
    pub(crate) strings: Vec<(usize, String)>,
    /// Byte ranges under `#[cfg(test)]`, or all of it.
    tests: Vec<Range<usize>>,
    line_starts: Vec<usize>,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    /// Its name.
    pub(crate) name: String,
    /// The line of its `fn`, from 1.
    pub(crate) line: usize,
    /// Lines from its `fn` to its closing brace.
    pub(crate) lines: usize,
}

impl Source {
    /// Scans a file; `all_test` marks every line as test code.
    pub(crate) fn scan(text: &str, all_test: bool) -> Self {
        let (code, comments, strings) = split(text);
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1));
        let tests = if all_test { std::iter::once(0..text.len()).collect() } else { test_regions(&code) };
        Self { tests, line_starts: starts.collect(), code, comments, strings }
    }

    /// The line of a byte offset, from 1.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= at)
    }

    /// Whether a byte offset is test code.
    pub(crate) fn is_test(&self, at: usize) -> bool {
        self.tests.iter().any(|range| range.contains(&at))
    }

    /// Offsets of a word in the code: not part of a longer identifier.
    pub(crate) fn words<'s>(&'s self, word: &'s str) -> impl Iterator<Item = usize> + 's {
        word_offsets(&self.code, word)
    }

    /// Modules declared as `#[cfg(test)] mod name;`, whose files are test code.
    pub(crate) fn test_modules(&self) -> Vec<String> {
        let declared = |range: &Range<usize>| {
            let text = self.code[range.clone()].trim_end().strip_suffix(';')?;
            text.split_whitespace().last().map(str::to_owned)
        };
        self.tests.iter().filter_map(declared).collect()
    }

    /// Every function with a body.
    pub(crate) fn functions(&self) -> Vec<Function> {
        let mut found = Vec::new();
        for at in self.words("fn") {
            let rest = &self.code[at + 2..];
            let name: String =
                rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if name.is_empty() {
                continue; // a function pointer type
            }
            let Some(open) = body_start(&self.code, at) else { continue };
            let close = matching_brace(&self.code, open);
            let line = self.line(at);
            found.push(Function { name, line, lines: self.line(close) - line + 1 });
        }
        found
    }
}

/// Offsets of a word that is not part of a longer identifier.
pub(crate) fn word_offsets<'t>(text: &'t str, word: &'t str) -> impl Iterator<Item = usize> + 't {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = at.checked_sub(1).map(|at| text.as_bytes()[at]);
        let after = text.as_bytes().get(at + word.len()).copied();
        let starts_open = !is_name(word.as_bytes()[0]);
        let ends_open = !is_name(word.as_bytes()[word.len() - 1]);
        (starts_open || !before.is_some_and(is_name)) && (ends_open || !after.is_some_and(is_name))
    })
}

/// The offset of the brace that opens a function's body; none where a `;` comes first.
fn body_start(code: &str, from: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (at, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(at),
            b';' if depth == 0 => return None,
            _ => {}
        }
        if depth < 0 {
            return None; // a function type inside parentheses
        }
    }
    None
}

/// The offset of the brace that closes the one at `open`, or the end of the text.
fn matching_brace(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return at;
                }
            }
            _ => {}
        }
    }
    code.len().saturating_sub(1)
}

/// Byte ranges of items under `#[cfg(test)]` or `#[cfg(any(test, ..))]`, and of `#[test]` functions.
fn test_regions(code: &str) -> Vec<Range<usize>> {
    let mut regions = Vec::new();
    for (at, _) in code.match_indices("#[") {
        let Some(end) = code[at..].find(']').map(|end| at + end) else { break };
        let attribute = &code[at + 2..end];
        let of_tests = attribute == "test"
            || attribute == "tokio::test"
            || (attribute.starts_with("cfg(")
                && !attribute.contains("not(")
                && word_offsets(attribute, "test").next().is_some());
        if of_tests {
            regions.push(at..item_end(code, end));
        }
    }
    regions
}

/// The end of the item that follows an attribute: its closing brace, or its `;`.
fn item_end(code: &str, from: usize) -> usize {
    for (at, byte) in code.bytes().enumerate().skip(from) {
        match byte {
            b'{' => return matching_brace(code, at) + 1,
            b';' => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// Splits a text into code, comments and string literals.
fn split(text: &str) -> (String, String, Vec<(usize, String)>) {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut comments = blank(bytes);
    let mut strings = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let Some((kind, end)) = token(text, at) else {
            at += 1;
            continue;
        };
        let inside = match kind {
            Token::Comment => {
                comments[at..end].copy_from_slice(&bytes[at..end]);
                at..end
            }
            Token::Text => {
                strings.push((at, text[at..end].to_owned()));
                at + 1..(end - 1).max(at + 1)
            }
        };
        let blanked = blank(&bytes[inside.clone()]);
        code[inside].copy_from_slice(&blanked);
        at = end;
    }
    let utf8 = |bytes| String::from_utf8(bytes).expect("whole tokens were replaced by ASCII");
    (utf8(code), utf8(comments), strings)
}

fn blank(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' }).collect()
}

enum Token {
    Comment,
    Text,
}

/// The comment, string or character that starts at an offset, with its end.
fn token(text: &str, at: usize) -> Option<(Token, usize)> {
    let rest = &text.as_bytes()[at..];
    let before = at.checked_sub(1).map(|at| text.as_bytes()[at]);
    let in_name = before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match rest[0] {
        b'/' if rest.starts_with(b"//") => {
            Some((Token::Comment, text[at..].find('\n').map_or(text.len(), |end| at + end)))
        }
        b'/' if rest.starts_with(b"/*") => Some((Token::Comment, at + block_comment(rest))),
        b'"' => Some((Token::Text, at + quoted(rest, b'"'))),
        b'r' | b'b' | b'c' if !in_name => raw_string(rest).map(|length| (Token::Text, at + length)),
        b'\'' => character(&text[at..]).map(|length| (Token::Text, at + length)),
        _ => None,
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// The length of a quoted text with its quotes.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// The length of `r"..."`, `r#"..."#`, `br".."`, `cr".."`; none where it is no raw string.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let prefix = rest.iter().take_while(|byte| matches!(byte, b'r' | b'b' | b'c')).count();
    if !matches!(&rest[..prefix], b"r" | b"br" | b"cr") {
        return None;
    }
    let hashes = rest[prefix..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(prefix + hashes) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    let body = prefix + hashes + 1;
    let end = rest[body..].windows(close.len()).position(|window| window == close);
    Some(end.map_or(rest.len(), |end| body + end + close.len()))
}

/// The length of a character literal; none for a lifetime.
fn character(rest: &str) -> Option<usize> {
    let mut chars = rest.char_indices().skip(1);
    let (_, first) = chars.next()?;
    if first == '\\' {
        return Some(quoted(rest.as_bytes(), b'\''));
    }
    let (at, second) = chars.next()?;
    (second == '\'').then_some(at + 1)
}
