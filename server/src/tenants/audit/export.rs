//! A chain as text: one row a line, with everything that its hash covers, so that whoever holds the lines can check them.
//!
//! The command `muster-server audit export` and the API call it, page by page of [`PAGE_ROWS`] rows.

use super::{AuditRow, COLUMNS, audit_row, chain_of};
use crate::platform::db::{DbError, Scope, Tx};
use std::fmt::Write as _;

/// Rows that are read at once.
pub const PAGE_ROWS: i64 = 1_000;

/// How a row is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A JSON object a line.
    Ndjson,
    /// Comma-separated values (RFC 4180), the names in the first line.
    Csv,
}

impl std::str::FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "ndjson" => Ok(Self::Ndjson),
            "csv" => Ok(Self::Csv),
            _ => Err("must be ndjson or csv"),
        }
    }
}

/// Which rows: by their time.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// From this time on, microseconds since 1970.
    pub from_us: i64,
    /// Up to, not including.
    pub to_us: i64,
}

/// Rows of the scope's chain within a span after a position, oldest first, at most [`PAGE_ROWS`].
///
/// # Errors
/// The database's.
pub fn page(tx: &mut Tx<'_>, scope: &Scope, span: Span, after: i64) -> Result<Vec<AuditRow>, DbError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM audit
         WHERE tenant = $1 AND seq > $2 AND at_us >= $3 AND at_us < $4 ORDER BY seq LIMIT $5"
    );
    let Span { from_us, to_us } = span;
    tx.query(scope, &sql, &[&chain_of(scope), &after, &from_us, &to_us, &PAGE_ROWS], audit_row)
}

impl Format {
    /// The MIME type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
        }
    }

    /// What comes before the first row.
    #[must_use]
    pub fn head(self) -> &'static str {
        match self {
            Self::Ndjson => "",
            Self::Csv => "seq,at_us,actor,action,object,detail,hash\r\n",
        }
    }

    /// Writes rows.
    #[must_use]
    pub fn rows(self, rows: &[AuditRow]) -> String {
        let mut text = String::with_capacity(rows.len() * 256);
        for row in rows {
            match self {
                Self::Ndjson => ndjson(&mut text, row),
                Self::Csv => csv(&mut text, row),
            }
        }
        text
    }
}

fn ndjson(text: &mut String, row: &AuditRow) {
    let AuditRow { seq, at_us, actor, action, object, detail, hash } = row;
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    // As it was hashed, byte by byte; one that is no JSON on one line was not written by this server.
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(detail).is_ok() && !detail.contains('\n');
    let detail = if is_json { detail.clone() } else { quoted(detail) };
    let (actor, action, object, hash) = (quoted(actor), quoted(action), quoted(object), hex::encode(hash));
    // Writing into a String does not fail.
    let _ = writeln!(
        text,
        "{{\"seq\":{seq},\"at_us\":{at_us},\"actor\":{actor},\"action\":{action},\"object\":{object},\
         \"detail\":{detail},\"hash\":\"{hash}\"}}"
    );
}

fn csv(text: &mut String, row: &AuditRow) {
    let AuditRow { seq, at_us, actor, action, object, detail, hash } = row;
    let cell = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let (actor, action, object, detail) = (cell(actor), cell(action), cell(object), cell(detail));
    // Writing into a String does not fail.
    let _ = write!(text, "{seq},{at_us},{actor},{action},{object},{detail},{}\r\n", hex::encode(hash));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_one_line_whatever_is_in_it() {
        let row = AuditRow {
            seq: 1,
            at_us: 2,
            actor: "user:\"a\"@b".into(),
            action: "x".into(),
            object: "o\n,".into(),
            detail: "{\"k\":1}".into(),
            hash: [0; 32],
        };
        let json = Format::Ndjson.rows(std::slice::from_ref(&row));
        let zeros = "0".repeat(64);
        let expect = format!(
            "{{\"seq\":1,\"at_us\":2,\"actor\":\"user:\\\"a\\\"@b\",\"action\":\"x\",\"object\":\"o\\n,\",\
             \"detail\":{{\"k\":1}},\"hash\":\"{zeros}\"}}\n"
        );
        assert_eq!(json, expect);
        let broken = AuditRow { detail: "not json".into(), ..row.clone() };
        assert!(Format::Ndjson.rows(&[broken]).contains("\"detail\":\"not json\""));
        let expect = format!("1,2,\"user:\"\"a\"\"@b\",\"x\",\"o\n,\",\"{{\"\"k\"\":1}}\",{zeros}\r\n");
        assert_eq!(Format::Csv.rows(&[row]), expect);
    }
}
