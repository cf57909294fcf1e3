//! Lists of a store that knows no places, cut to a caller's reach: they are read on, piece by piece, until a page is full.
//!
//! Presence and events call it. A page takes at most [`SCANS_MAX`] reads, so it may be short, or empty, and still not be
//! the last.

use std::future::Future;

/// Reads for one page of such a list.
pub const SCANS_MAX: usize = 20;

/// A piece: what of it is within the reach, and where the next begins; none where nothing was left to read.
pub type Piece<R, P> = (Vec<R>, Option<P>);

/// Takes pieces from a place on until as many rows as wanted are there; gives them with the place to go on from, where they
/// are not the last.
///
/// # Errors
/// A piece's.
pub async fn scan<R, P, E, F: Future<Output = Result<Piece<R, P>, E>>>(
    mut from: P,
    wanted: usize,
    mut piece: impl FnMut(P) -> F,
) -> Result<Piece<R, P>, E> {
    let mut found = Vec::new();
    for scans in 1.. {
        let (rows, Some(next)) = piece(from).await? else { break };
        found.extend(rows);
        if found.len() >= wanted || scans >= SCANS_MAX {
            return Ok((found, Some(next)));
        }
        from = next;
    }
    Ok((found, None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Pieces of ten numbers, of which every tenth, from `first` on, is within the reach; gives what was found, the place to
    /// go on from and the number of reads.
    async fn over(count: usize, first: usize, wanted: usize) -> (Vec<usize>, Option<usize>, usize) {
        let reads = Cell::new(0);
        let piece = |from: usize| {
            reads.set(reads.get() + 1);
            let rows: Vec<_> = (from..count.min(from + 10)).collect();
            let next = rows.last().map(|last| last + 1);
            let within = rows.into_iter().filter(|row| *row >= first && row % 10 == 5).collect();
            std::future::ready(Ok::<_, ()>((within, next)))
        };
        let (found, next) = scan(0, wanted, piece).await.unwrap();
        (found, next, reads.get())
    }

    #[tokio::test]
    async fn a_page_is_read_on_until_it_is_full_within_a_bound_of_reads() {
        assert_eq!(over(1_000, 0, 3).await, (vec![5, 15, 25], Some(30), 3));
        assert_eq!(over(30, 0, 9).await, (vec![5, 15, 25], None, 4), "the end");
        assert_eq!(over(0, 0, 9).await, (vec![], None, 1));
        let last = 10 * (SCANS_MAX - 1);
        assert_eq!(over(1_000, last, 1).await, (vec![last + 5], Some(last + 10), SCANS_MAX), "the last read");
        assert_eq!(
            over(1_000, last + 10, 1).await,
            (vec![], Some(last + 10), SCANS_MAX),
            "short, and more to come"
        );
    }
}
