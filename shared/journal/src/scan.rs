//! Walks a segment file's records with one reusable buffer; used by recovery and by readers.

use crate::codec::{self, RECORD_HEADER_BYTES, RecordHeader};
use crate::fs::FsFile;
use std::io;

/// Bytes read at a time while recovering.
pub(crate) const RECOVERY_CHUNK_BYTES: usize = 1024 * 1024;

/// A window on a file between offset 0 and `end`.
pub(crate) struct Window {
    bytes: Vec<u8>,
    start: u64,
    chunk_bytes: usize,
}

impl Window {
    pub(crate) fn new(chunk_bytes: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, chunk_bytes }
    }

    /// Forgets what was read: another file follows, or the file grew.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.start = 0;
    }

    pub(crate) fn bytes_held(&self) -> usize {
        self.bytes.capacity()
    }

    /// Gives back a large buffer's memory.
    pub(crate) fn shrink(&mut self) {
        self.clear();
        self.bytes.shrink_to(self.chunk_bytes);
    }

    /// The bytes from `offset`: at least `want` of them unless the file or `end` comes first.
    pub(crate) fn at<File: FsFile>(
        &mut self,
        file: &File,
        offset: u64,
        want: usize,
        end: u64,
    ) -> io::Result<&[u8]> {
        let left = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
        let want = want.min(left);
        let held_until = self.start + self.bytes.len() as u64;
        if offset < self.start || offset > held_until || held_until - offset < want as u64 {
            self.fill(file, offset, want.max(self.chunk_bytes.min(left)))?;
        }
        let skip = usize::try_from(offset - self.start).unwrap_or(usize::MAX).min(self.bytes.len());
        let held = &self.bytes[skip..];
        Ok(&held[..held.len().min(left)])
    }

    fn fill<File: FsFile>(&mut self, file: &File, offset: u64, bytes: usize) -> io::Result<()> {
        self.start = offset;
        // Grows only; a shorter read uses the buffer's front.
        self.bytes.resize(bytes, 0);
        let mut done = 0;
        while done < bytes {
            let read = match file.read_at(&mut self.bytes[done..], offset + done as u64) {
                Ok(read) => read,
                Err(error) => {
                    self.clear();
                    return Err(error);
                }
            };
            if read == 0 {
                break;
            }
            done += read;
        }
        self.bytes.truncate(done);
        Ok(())
    }
}

/// The record region of one segment file, as it is scanned.
pub(crate) struct Region<'a, File> {
    pub(crate) file: &'a File,
    /// Nothing at or after this offset is looked at.
    pub(crate) end: u64,
    pub(crate) salt: u32,
    /// Larger lengths are damage.
    pub(crate) record_bytes_max: usize,
}

impl<File: FsFile> Region<'_, File> {
    /// The whole record with this seq at this offset, or None where anything else stands there.
    pub(crate) fn record_at(
        &self,
        window: &mut Window,
        offset: u64,
        seq: u64,
    ) -> io::Result<Option<RecordHeader>> {
        let bytes = window.at(self.file, offset, RECORD_HEADER_BYTES, self.end)?;
        let Some(header) = RecordHeader::get(bytes) else { return Ok(None) };
        if header.seq != seq || header.len as usize > self.record_bytes_max {
            return Ok(None);
        }
        let bytes = window.at(self.file, offset, header.record_bytes(), self.end)?;
        let whole = bytes.len() >= header.record_bytes()
            && codec::is_whole(&bytes[..header.record_bytes()], self.salt);
        Ok(whole.then_some(header))
    }

    /// Searches byte by byte from `offset` for the next whole record whose seq lies in `seq_min..seq_max`.
    pub(crate) fn find_record(
        &self,
        window: &mut Window,
        offset: u64,
        seq_min: u64,
        seq_max: u64,
    ) -> io::Result<Option<(u64, RecordHeader)>> {
        let mut offset = offset;
        while offset + RECORD_HEADER_BYTES as u64 <= self.end {
            let bytes = window.at(self.file, offset, RECORD_HEADER_BYTES, self.end)?;
            if bytes.len() < RECORD_HEADER_BYTES {
                return Ok(None);
            }
            let Some(found) = codec::find_magic(bytes, 0) else {
                offset += (bytes.len() - RECORD_HEADER_BYTES + 1) as u64;
                continue;
            };
            let candidate = RecordHeader::get(&bytes[found..]);
            offset += found as u64;
            if let Some(header) = candidate
                && (seq_min..seq_max).contains(&header.seq)
                && self.record_at(window, offset, header.seq)?.is_some()
            {
                return Ok(Some((offset, header)));
            }
            offset += 1;
        }
        Ok(None)
    }
}
