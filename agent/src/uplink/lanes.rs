//! Reads records for the core's wants: one reader per class and lane, each with a small buffer.
//!
//! Promise: reads only below the fsynced mark (the journal's readers see nothing else). Reads are short (32 KiB,
//! most often from the page cache) and done in place. Limit: 32 KiB and the rest of one record, buffered per lane.

use super::core::{Lane, Want};
use crate::queue::{Body, Queue, QueueClass, QueueError, Seq};
use muster_journal::{Fs, JournalError, Reader};
use muster_wire::QueueId;
use std::collections::VecDeque;

/// Bytes read at once.
const FETCH_BYTES_MAX: usize = 32 * 1024;

/// A record on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fetched {
    pub(super) seq: Seq,
    pub(super) queue_id: QueueId,
    /// Time and body; None where another build wrote the record.
    pub(super) body: Option<(i64, Vec<u8>)>,
}

/// The answer to a want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fetch {
    /// The record, or the next one after it that exists.
    Record(Fetched),
    /// Nothing exists from the want up to here.
    Gone { upto: Seq },
    /// Nothing to read yet.
    Nothing,
}

struct LaneReader<F: Fs> {
    reader: Reader<F>,
    /// The buffer and the gaps in it cover `from..upto`.
    from: Seq,
    upto: Seq,
    buffer: VecDeque<Fetched>,
}

impl<F: Fs> LaneReader<F> {
    fn fetch(&mut self, seq: Seq) -> Result<Fetch, JournalError> {
        if seq < self.from || seq >= self.upto {
            self.fill(seq)?;
        }
        self.from = seq;
        while self.buffer.front().is_some_and(|record| record.seq < seq) {
            self.buffer.pop_front();
        }
        match self.buffer.pop_front() {
            Some(record) => {
                self.from = record.seq + 1;
                Ok(Fetch::Record(record))
            }
            None if self.upto > seq => Ok(Fetch::Gone { upto: self.upto }),
            None => Ok(Fetch::Nothing),
        }
    }

    fn fill(&mut self, seq: Seq) -> Result<(), JournalError> {
        self.buffer.clear();
        if seq != self.upto {
            self.reader.seek(seq);
        }
        let buffer = &mut self.buffer;
        let batch = self.reader.next_batch(FETCH_BYTES_MAX, |record| {
            let body = Body::read(record.payload).map(|body| (body.measured_at_us, body.bytes.to_vec()));
            buffer.push_back(Fetched { seq: record.seq, queue_id: QueueId(record.epoch), body });
        })?;
        self.upto = batch.next.max(seq);
        Ok(())
    }
}

pub(super) struct Lanes<F: Fs> {
    readers: [[LaneReader<F>; 2]; 2],
}

impl<F: Fs> Lanes<F> {
    /// Readers that begin at the release marks.
    pub(super) fn open(queue: &Queue<F>) -> Result<Self, QueueError> {
        let released = queue.released();
        let lane =
            |reader: Reader<F>, at: Seq| LaneReader { reader, from: at, upto: at, buffer: VecDeque::new() };
        let open = |class: QueueClass| -> Result<[LaneReader<F>; 2], QueueError> {
            let at = released[class.index()];
            Ok([lane(queue.live_reader(class, at)?, at), lane(queue.reader(class, at)?, at)])
        };
        Ok(Self { readers: [open(QueueClass::Telemetry)?, open(QueueClass::Event)?] })
    }

    pub(super) fn fetch(&mut self, want: Want) -> Result<Fetch, QueueError> {
        let lane = match want.lane {
            Lane::Live => 0,
            Lane::Backlog => 1,
        };
        self.readers[want.class.index()][lane]
            .fetch(want.seq)
            .map_err(|source| QueueError::Journal { class: want.class.up().as_str(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::queue::{Bounds, RECORD_BYTES_MAX};
    use std::sync::Arc;

    #[test]
    fn a_lane_buffers_what_one_read_gives_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let bounds = Bounds::from_config(&crate::config::Queue::default());
        let queue = Queue::open_dir(dir.path(), bounds, Arc::new(ManualClock::at(1))).unwrap();
        let class = QueueClass::Telemetry;
        let put = |count: usize, bytes: usize| {
            let seqs: Vec<_> = (0..count).map(|_| queue.append(class, 7, &vec![0; bytes]).unwrap()).collect();
            queue.wait_accepted(class, *seqs.last().unwrap()).unwrap();
        };
        let mut lanes = Lanes::open(&queue).unwrap();
        let mut fetch = |seq: Seq| {
            let fetched = lanes.fetch(Want { class, lane: Lane::Backlog, seq }).unwrap();
            assert!(matches!(fetched, Fetch::Record(record) if record.seq == seq));
            lanes.readers[class.index()][1].buffer.len()
        };
        put(2_000, 0);
        // Each takes 41 bytes with its two heads: 800 are the first that reach 32 KiB.
        assert_eq!(fetch(1), 799);
        assert_eq!(fetch(500), 300);
        put(3, RECORD_BYTES_MAX - 9);
        assert_eq!(fetch(2_001), 0, "the largest record is read alone");
        assert_eq!(fetch(2_002), 0);
    }
}
