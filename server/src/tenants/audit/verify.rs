//! Whether a chain is what was appended: says where it is not, and how.
//!
//! The command `muster-server audit verify` and the API call it, page by page: a row is read, hashed and forgotten. A row
//! that was changed, removed, swapped or put in between shows at its place. Rows removed from the end do not: what is
//! left is a whole chain. So a caller notes the newest row (its [`Mark`]) and gives it to the next verification, which
//! must find it there.

use super::AuditRow;
use crate::platform::db::Scope;
use std::str::FromStr;

/// Rows that are read at once.
pub const PAGE_ROWS: i64 = 1_000;

/// A row's place and hash: what a chain must hold, or where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The row's seq; 0 stands before the first.
    pub seq: i64,
    /// Its hash.
    pub hash: [u8; 32],
}

impl Mark {
    /// Before the first row.
    pub const BEGIN: Self = Self { seq: 0, hash: [0; 32] };
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.seq, hex::encode(self.hash))
    }
}

/// A text that is no mark.
#[derive(Debug, thiserror::Error)]
#[error("must be <seq>:<hash as 64 hex digits>")]
pub struct NoMark;

impl FromStr for Mark {
    type Err = NoMark;

    fn from_str(text: &str) -> Result<Self, NoMark> {
        let (seq, hash) = text.split_once(':').ok_or(NoMark)?;
        let digits = |text: &str, more: &[u8]| {
            text.bytes().all(|byte| byte.is_ascii_digit() || more.contains(&byte)).then_some(()).ok_or(NoMark)
        };
        digits(seq, b"")?;
        digits(hash, b"abcdef")?;
        let hash = hex::decode(hash).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(NoMark)?;
        let seq = seq.parse().map_err(|_| NoMark)?;
        Ok(Self { seq, hash })
    }
}

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A row is not there.
    #[error("row {seq} is missing")]
    Missing {
        /// Its place.
        seq: i64,
    },
    /// A row's hash does not follow from its content and the row before it.
    #[error("row {seq} is not what was written, or its place in the chain is another's")]
    Changed {
        /// Its place.
        seq: i64,
    },
    /// The row that was noted before has another hash now: the chain was written anew.
    #[error("row {seq} is not the one that was noted")]
    Replaced {
        /// Its place.
        seq: i64,
    },
}

impl Fault {
    /// The row at fault.
    #[must_use]
    pub fn seq(self) -> i64 {
        match self {
            Self::Missing { seq } | Self::Changed { seq } | Self::Replaced { seq } => seq,
        }
    }
}

/// A walk along a chain, from a mark on.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    at: Mark,
    noted: Option<Mark>,
    rows: u64,
}

impl Walk {
    /// From the first row on; `noted` must be met.
    #[must_use]
    pub fn whole(noted: Option<Mark>) -> Self {
        Self { at: Mark::BEGIN, noted: noted.filter(|mark| mark.seq > 0), rows: 0 }
    }

    /// From the noted row on: it must be there, what is before it is not looked at.
    #[must_use]
    pub fn from(noted: Mark) -> Self {
        let at = if noted.seq == 0 { Mark::BEGIN } else { Mark { seq: noted.seq - 1, ..Mark::BEGIN } };
        Self { at, noted: Some(noted).filter(|mark| mark.seq > 0), rows: 0 }
    }

    /// Where it stands: the last good row.
    #[must_use]
    pub fn at(&self) -> Mark {
        self.at
    }

    /// How many rows were good.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes the chain's next rows, oldest first.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn take(&mut self, rows: &[AuditRow]) -> Result<(), Fault> {
        for row in rows {
            let seq = self.at.seq + 1;
            if row.seq != seq {
                return Err(Fault::Missing { seq });
            }
            let noted = self.noted.filter(|noted| noted.seq == seq);
            // A walk from a noted row knows nothing of the row before it.
            let is_start = self.rows == 0 && noted.is_some() && self.at.hash == Mark::BEGIN.hash && seq > 1;
            if !is_start && row.hash != row.hash_after(&self.at.hash) {
                return Err(Fault::Changed { seq });
            }
            if noted.is_some_and(|noted| noted.hash != row.hash) {
                return Err(Fault::Replaced { seq });
            }
            if noted.is_some() {
                self.noted = None;
            }
            self.at = Mark { seq, hash: row.hash };
            self.rows += 1;
        }
        Ok(())
    }

    /// Ends the walk where the chain of a scope does.
    ///
    /// # Errors
    /// The noted row was not met: rows are gone from the end; or a tenant's chain has no row at all.
    pub fn end(&self, scope: &Scope) -> Result<Mark, Fault> {
        let is_gone = matches!(scope, Scope::Tenant(_)) && self.at.seq == 0;
        match self.noted {
            None if !is_gone => Ok(self.at),
            _ => Err(Fault::Missing { seq: self.at.seq + 1 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(length: i64) -> Vec<AuditRow> {
        let mut before = [0; 32];
        let mut rows = Vec::new();
        for seq in 1..=length {
            let text = |text: &str| text.to_owned();
            let (actor, action, object, detail) = (text("server"), text("test"), text("o"), text("{}"));
            let mut row = AuditRow { seq, at_us: seq * 10, actor, action, object, detail, hash: [0; 32] };
            row.hash = row.hash_after(&before);
            before = row.hash;
            rows.push(row);
        }
        rows
    }

    fn walk(rows: &[AuditRow], mut walk: Walk) -> Result<Mark, Fault> {
        for page in rows.chunks(2) {
            walk.take(page)?;
        }
        walk.end(&Scope::Tenant(muster_wire::TenantId::parse("acme").unwrap()))
    }

    #[test]
    fn what_was_changed_removed_or_swapped_is_found_at_its_place() {
        let good = chain(5);
        let newest = Mark { seq: 5, hash: good[4].hash };
        let check = |rows: &[AuditRow], noted| walk(rows, Walk::whole(noted));
        assert_eq!(check(&good, None), Ok(newest));
        assert_eq!(check(&good, Some(newest)), Ok(newest));
        assert_eq!(check(&[], None), Err(Fault::Missing { seq: 1 }), "a tenant's chain has a first row");
        assert_eq!(
            Walk::whole(None).end(&Scope::System("test")),
            Ok(Mark::BEGIN),
            "the server's may have none"
        );
        let broken = |change: &dyn Fn(&mut Vec<AuditRow>)| {
            let mut rows = good.clone();
            change(&mut rows);
            check(&rows, None)
        };
        assert_eq!(broken(&|rows| rows[2].actor = "x".into()), Err(Fault::Changed { seq: 3 }));
        assert_eq!(broken(&|rows| rows[2].hash[0] ^= 1), Err(Fault::Changed { seq: 3 }));
        assert_eq!(broken(&|rows| drop(rows.remove(0))), Err(Fault::Missing { seq: 1 }));
        assert_eq!(broken(&|rows| drop(rows.remove(2))), Err(Fault::Missing { seq: 3 }));
        let swap = |rows: &mut Vec<AuditRow>| {
            rows.swap(1, 2);
            (rows[1].seq, rows[2].seq) = (2, 3);
        };
        assert_eq!(broken(&swap), Err(Fault::Changed { seq: 2 }));
    }

    #[test]
    fn rows_gone_from_the_end_or_a_chain_written_anew_are_found_by_what_was_noted() {
        let good = chain(5);
        let newest = Mark { seq: 5, hash: good[4].hash };
        assert_eq!(walk(&good[..4], Walk::whole(None)), Ok(Mark { seq: 4, hash: good[3].hash }));
        assert_eq!(walk(&good[..4], Walk::whole(Some(newest))), Err(Fault::Missing { seq: 5 }));
        let other = Mark { hash: [7; 32], ..newest };
        assert_eq!(walk(&good, Walk::whole(Some(other))), Err(Fault::Replaced { seq: 5 }));
    }

    #[test]
    fn a_walk_goes_on_from_a_noted_row() {
        let good = chain(5);
        let noted = Mark { seq: 3, hash: good[2].hash };
        let newest = Mark { seq: 5, hash: good[4].hash };
        assert_eq!(walk(&good[2..], Walk::from(noted)), Ok(newest));
        assert_eq!(walk(&good, Walk::from(Mark::BEGIN)), Ok(newest));
        assert_eq!(walk(&good[3..], Walk::from(noted)), Err(Fault::Missing { seq: 3 }));
        let other = Mark { seq: 3, hash: [7; 32] };
        assert_eq!(walk(&good[2..], Walk::from(other)), Err(Fault::Replaced { seq: 3 }));
        assert_eq!(walk(&[], Walk::from(noted)), Err(Fault::Missing { seq: 3 }));
        let mut rows = good.clone();
        rows[3].object = "x".into();
        assert_eq!(walk(&rows[2..], Walk::from(noted)), Err(Fault::Changed { seq: 4 }));
    }

    #[test]
    fn a_mark_reads_back() {
        let mark = Mark { seq: 7, hash: [9; 32] };
        assert_eq!(mark.to_string().parse::<Mark>().unwrap(), mark);
        for wrong in ["", "7", "7:", "-1:00", "7:zz", &format!("-7:{}", "00".repeat(32))] {
            assert!(wrong.parse::<Mark>().is_err(), "{wrong}");
        }
    }
}
