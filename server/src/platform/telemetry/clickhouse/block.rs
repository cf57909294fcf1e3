//! Rows as one block of ClickHouse's Native format, in an LZ4 frame: what the outbox keeps and what is sent, byte for
//! byte.
//!
//! The format (ClickHouse documentation, "Native"): number of columns and of rows as LEB128; then column by column its
//! name and type as length-prefixed text, and its values: numbers little-endian, texts length-prefixed, and before
//! nullable values one byte each that says whether it is absent.

use std::io::Write as _;

/// A block that is being made: columns of the same number of rows.
pub(super) struct Block {
    columns: Vec<u8>,
    count: u64,
    rows: usize,
}

impl Block {
    pub(super) fn of(rows: usize) -> Self {
        Self { columns: Vec::with_capacity(rows * 64), count: 0, rows }
    }

    fn head(&mut self, name: &str, kind: &str) {
        self.count += 1;
        text(&mut self.columns, name.as_bytes());
        text(&mut self.columns, kind.as_bytes());
    }

    /// Adds a column of numbers.
    pub(super) fn numbers<const BYTES: usize>(
        mut self,
        name: &str,
        kind: &str,
        values: impl Iterator<Item = [u8; BYTES]>,
    ) -> Self {
        self.head(name, kind);
        let begin = self.columns.len();
        values.for_each(|value| self.columns.extend_from_slice(&value));
        assert_eq!(self.columns.len() - begin, self.rows * BYTES, "column {name}");
        self
    }

    /// Adds a column of texts.
    pub(super) fn texts<'t>(mut self, name: &str, values: impl Iterator<Item = &'t str>) -> Self {
        self.head(name, "String");
        let mut rows = 0;
        for value in values {
            text(&mut self.columns, value.as_bytes());
            rows += 1;
        }
        assert_eq!(rows, self.rows, "column {name}");
        self
    }

    /// Adds a column of texts that may be absent.
    pub(super) fn nullable_texts<'t>(
        mut self,
        name: &str,
        values: impl Iterator<Item = Option<&'t str>> + Clone,
    ) -> Self {
        self.head(name, "Nullable(String)");
        let absent = values.clone().map(|value| u8::from(value.is_none()));
        let begin = self.columns.len();
        self.columns.extend(absent);
        assert_eq!(self.columns.len() - begin, self.rows, "column {name}");
        values.for_each(|value| text(&mut self.columns, value.unwrap_or_default().as_bytes()));
        self
    }

    /// The block in its frame.
    pub(super) fn frame(self) -> std::io::Result<Vec<u8>> {
        let mut head = Vec::with_capacity(20);
        leb128(&mut head, self.count);
        leb128(&mut head, self.rows as u64);
        let info = lz4_flex::frame::FrameInfo::new().content_checksum(true);
        let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
        encoder.write_all(&head)?;
        encoder.write_all(&self.columns)?;
        encoder.finish().map_err(std::io::Error::other)
    }
}

fn text(bytes: &mut Vec<u8>, text: &[u8]) {
    leb128(bytes, text.len() as u64);
    bytes.extend_from_slice(text);
}

fn leb128(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn a_block_is_columns_of_length_prefixed_values() {
        let block = Block::of(2)
            .numbers("n", "UInt16", [1_u16, 0x203].into_iter().map(u16::to_le_bytes))
            .texts("t", ["ab", &"x".repeat(130)].into_iter())
            .nullable_texts("s", [None, Some("y")].into_iter());
        let mut plain = Vec::new();
        lz4_flex::frame::FrameDecoder::new(&block.frame().unwrap()[..]).read_to_end(&mut plain).unwrap();
        let mut expect = b"\x03\x02\x01n\x06UInt16\x01\x00\x03\x02\x01t\x06String\x02ab\x82\x01".to_vec();
        expect.extend([b'x'; 130]);
        expect.extend(b"\x01s\x10Nullable(String)\x01\x00\x00\x01y");
        assert_eq!(plain, expect);
    }

    #[test]
    #[should_panic(expected = "column t")]
    fn a_column_with_a_value_too_few_is_a_fault_of_ours() {
        let _ = Block::of(2).texts("t", ["a"].into_iter());
    }
}
