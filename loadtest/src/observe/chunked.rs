//! `Transfer-Encoding: chunked`, taken apart as bytes come: for answers that end and for streams that do not.
//!
//! Called by `http` and `sse`. Bound: [`SIZE_LINE_BYTES_MAX`] for a chunk's size line; what a chunk holds is handed on at once.

/// The longest line that tells a chunk's size, or of a trailer.
pub(super) const SIZE_LINE_BYTES_MAX: usize = 256;

/// Where in the encoding the next byte stands.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    part: Part,
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Size,
    Inside(usize),
    /// The line break behind a chunk.
    Behind,
    /// Trailers behind the last chunk, up to an empty line.
    Trailer,
    Done,
}

impl Chunks {
    /// Whether the last chunk and its trailers were read.
    pub(super) fn is_done(&self) -> bool {
        self.part == Part::Done
    }

    /// Takes bytes, appends what the chunks hold, and tells how many it took: all, unless the body ended.
    ///
    /// # Errors
    /// No chunk.
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, &'static str> {
        let mut at = 0;
        while at < bytes.len() && self.part != Part::Done {
            if let Part::Inside(left) = self.part {
                let take = left.min(bytes.len() - at);
                out.extend_from_slice(&bytes[at..at + take]);
                at += take;
                self.part = if take == left { Part::Behind } else { Part::Inside(left - take) };
                continue;
            }
            let byte = bytes[at];
            at += 1;
            if byte != b'\n' {
                if self.line.len() >= SIZE_LINE_BYTES_MAX {
                    return Err("a chunk's line too long");
                }
                self.line.push(byte);
                continue;
            }
            self.part = self.after_line()?;
            self.line.clear();
        }
        Ok(at)
    }

    fn after_line(&self) -> Result<Part, &'static str> {
        let text = std::str::from_utf8(&self.line).map_err(|_| "a chunk's line that is no text")?.trim();
        match self.part {
            Part::Size => {
                let size = text.split(';').next().unwrap_or_default().trim();
                // `from_str_radix` would take a sign.
                let digits = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_hexdigit());
                let size = usize::from_str_radix(size, 16)
                    .ok()
                    .filter(|_| digits)
                    .ok_or("a chunk without a size")?;
                Ok(if size == 0 { Part::Trailer } else { Part::Inside(size) })
            }
            Part::Behind if text.is_empty() => Ok(Part::Size),
            Part::Behind => Err("a chunk longer than its size"),
            Part::Trailer if text.is_empty() => Ok(Part::Done),
            other => Ok(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes the text in pieces of each size; tells what came out and what was left over.
    #[track_caller]
    fn check(text: &str, expect: Result<(&str, usize), &'static str>) {
        for piece in 1..=text.len() {
            let (mut chunks, mut out, mut taken) = (Chunks::default(), Vec::new(), 0);
            let mut failed = None;
            for bytes in text.as_bytes().chunks(piece) {
                match chunks.push(bytes, &mut out) {
                    Ok(count) => taken += count,
                    Err(why) => failed = Some(why),
                }
                if failed.is_some() || chunks.is_done() {
                    break;
                }
            }
            let told = match failed {
                Some(why) => Err(why),
                None if !chunks.is_done() => Err("not done"),
                None => Ok((std::str::from_utf8(&out).unwrap(), text.len() - taken)),
            };
            assert_eq!(told, expect, "in pieces of {piece}: {text}");
        }
    }

    #[test]
    fn chunks_are_joined_however_they_are_cut() {
        check("2\r\n{}\r\n0\r\n\r\n", Ok(("{}", 0)));
        check("2\r\nab\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: 1\r\n\r\nrest", Ok(("ab0123456789", 4)));
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        check("\r\n", Err("a chunk without a size"));
        check("+2\r\nab\r\n", Err("a chunk without a size"));
        check("-1\r\n", Err("a chunk without a size"));
        check("fffffffffffffffff\r\n", Err("a chunk without a size"));
        check("2\r\nabc\r\n", Err("a chunk longer than its size"));
        check("2\r\nab", Err("not done"));
        check(&"1".repeat(SIZE_LINE_BYTES_MAX), Err("not done"));
        check(&"1".repeat(SIZE_LINE_BYTES_MAX + 1), Err("a chunk's line too long"));
    }
}
