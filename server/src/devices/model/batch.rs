//! A batch of devices as CSV (RFC 4180): a header with `id`, perhaps `name` and `profile`, and a label a further column.
//! Pure: reads the text into rows, or says what is off, line by line.
//!
//! Bounds: [`ROWS_MAX`] rows, [`ERRORS_MAX`] errors told; the body's size is the HTTP listener's.

use super::profile::check_profile_name;
use super::{FieldError, LABELS_MAX, Labels, check_device_name, check_labels};
use muster_wire::DeviceId;
use std::collections::HashMap;

/// Devices of one batch.
pub const ROWS_MAX: usize = 2_000;
/// Errors that one answer tells.
pub const ERRORS_MAX: usize = 100;

/// A device to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchRow {
    /// The line that it begins on; the header is line 1.
    pub line: u64,
    /// Its id.
    pub device: DeviceId,
    /// The name that people read.
    pub name: String,
    /// Its profile.
    pub profile: Option<String>,
    /// Its labels.
    pub labels: Labels,
}

/// What is off in one line.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct LineError {
    /// The line; the header is line 1.
    pub line: u64,
    /// The column, or `labels.<key>`.
    pub field: String,
    /// What was expected.
    pub why: String,
}

impl LineError {
    /// An error of a line.
    #[must_use]
    pub fn new(line: u64, field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { line, field: field.into(), why: why.into() }
    }
}

/// Where the columns are.
struct Columns {
    id: usize,
    name: Option<usize>,
    profile: Option<usize>,
    labels: Vec<(usize, String)>,
}

fn columns(header: &csv::StringRecord) -> Result<Columns, LineError> {
    let off = |field: &str, why: &str| LineError::new(1, field, why);
    let (mut id, mut name, mut profile, mut labels) = (None, None, None, Vec::new());
    let mut seen = HashMap::new();
    for (at, column) in header.iter().enumerate() {
        let column = column.trim();
        if seen.insert(column.to_owned(), at).is_some() {
            return Err(off(column, "stands twice in the header"));
        }
        match column {
            "id" => id = Some(at),
            "name" => name = Some(at),
            "profile" => profile = Some(at),
            key => {
                let one = Labels::from([(key.to_owned(), String::new())]);
                check_labels(&one).map_err(|error| LineError::new(1, error.field, error.why))?;
                labels.push((at, key.to_owned()));
            }
        }
    }
    if labels.len() > LABELS_MAX {
        return Err(off("labels", "must be at most 32 columns"));
    }
    let id = id.ok_or_else(|| off("id", "the header must name the column id"))?;
    Ok(Columns { id, name, profile, labels })
}

fn row(columns: &Columns, record: &csv::StringRecord, line: u64) -> Result<BatchRow, FieldError> {
    let cell = |at: usize| record.get(at).unwrap_or_default().trim();
    let field = |field: &str| {
        let field = field.to_owned();
        move |error: muster_wire::IdError| FieldError { field, why: error.to_string() }
    };
    let device = DeviceId::parse(cell(columns.id)).map_err(field("id"))?;
    let name = columns.name.map(cell).unwrap_or_default().to_owned();
    check_device_name(&name)?;
    let profile = columns.profile.map(cell).filter(|profile| !profile.is_empty());
    profile.map_or(Ok(()), check_profile_name)?;
    let labels = columns.labels.iter().map(|(at, key)| (key.clone(), cell(*at).to_owned()));
    let labels: Labels = labels.filter(|(_, value)| !value.is_empty()).collect();
    check_labels(&labels)?;
    Ok(BatchRow { line, device, name, profile: profile.map(str::to_owned), labels })
}

/// Reads a batch.
///
/// # Errors
/// What is off, at most [`ERRORS_MAX`] of it, in the order of the lines.
pub fn read(text: &str) -> Result<Vec<BatchRow>, Vec<LineError>> {
    // A byte order mark, as spreadsheets write it, is no letter of the first column.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = csv::ReaderBuilder::new().has_headers(true).from_reader(text.as_bytes());
    let malformed = |error: &csv::Error, line: u64| {
        vec![LineError::new(line, "row", format!("is not CSV of as many columns as the header: {error}"))]
    };
    let header = reader.headers().cloned().map_err(|error| malformed(&error, 1))?;
    let columns = columns(&header).map_err(|error| vec![error])?;
    let (mut rows, mut errors, mut lines) = (Vec::new(), Vec::new(), HashMap::new());
    // The reader's own count does not know where a line of CR and LF ends.
    let (mut counted, mut line) = (0, 1);
    let mut lines_to = |position: Option<&csv::Position>| {
        let at = position.map_or(counted, |position| usize::try_from(position.byte()).unwrap_or(counted));
        // A record begins behind the CR of the line before.
        let at = at + usize::from(text.as_bytes().get(at) == Some(&b'\n'));
        let between = text.as_bytes().get(counted..at).unwrap_or_default();
        line += between.iter().filter(|byte| **byte == b'\n').count() as u64;
        counted = at.max(counted);
        line
    };
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                errors.extend(malformed(&error, lines_to(error.position())));
                break;
            }
        };
        let line = lines_to(record.position());
        if rows.len() == ROWS_MAX {
            errors.push(LineError::new(line, "row", format!("a batch has at most {ROWS_MAX} rows")));
            break;
        }
        match row(&columns, &record, line) {
            Ok(row) => {
                if let Some(first) = lines.insert(row.device.clone(), line) {
                    errors.push(LineError::new(line, "id", format!("stands on line {first} already")));
                }
                rows.push(row);
            }
            Err(FieldError { field, why }) => errors.push(LineError { line, field, why }),
        }
        if errors.len() >= ERRORS_MAX {
            break;
        }
    }
    if rows.is_empty() && errors.is_empty() {
        errors.push(LineError::new(1, "row", "a batch has at least one row"));
    }
    if errors.is_empty() { Ok(rows) } else { Err(errors) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str, expect: &[(u64, &str, &str)]) {
        let errors = read(text).unwrap_err();
        assert_eq!(errors.len(), expect.len(), "{errors:?}");
        for (error, (line, field, why)) in errors.iter().zip(expect) {
            assert_eq!((error.line, error.field.as_str()), (*line, *field), "{error:?}");
            assert!(error.why.contains(why), "{error:?}");
        }
    }

    #[test]
    fn quotes_line_ends_and_empty_cells_are_read_as_rfc_4180_has_them() {
        let text = "\u{feff}id,name,site,profile\r\np1,\"Pump, \"\"old\"\"\",berlin,pump\r\np2,,,\r\n";
        let rows = read(text).unwrap();
        assert_eq!((rows[0].line, rows[1].line), (2, 3));
        assert_eq!(rows[0].name, "Pump, \"old\"");
        // A quoted line end counts, though no field takes one.
        refused(
            "id,name\np1,\"a\nb\"\na/b,\n",
            &[(2, "name", "no control characters"), (4, "id", "1 to 64")],
        );
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].device.as_str(), rows[0].profile.as_deref()), ("p1", Some("pump")));
        assert_eq!(rows[0].labels["site"], "berlin");
        assert_eq!((rows[1].name.as_str(), rows[1].profile.as_deref(), rows[1].labels.len()), ("", None, 0));
    }

    #[test]
    fn what_is_off_is_told_by_line_and_column() {
        refused("name\npump\n", &[(1, "id", "must name the column id")]);
        refused("id,Site\np,x\n", &[(1, "labels.Site", "1 to 63 of a-z")]);
        refused("id,id\np,x\n", &[(1, "id", "twice")]);
        refused("id\n", &[(1, "row", "at least one")]);
        refused("", &[(1, "id", "must name the column id")]);
        refused("id,name\np\n", &[(2, "row", "as many columns")]);
        refused("id,name\r\no,\r\np\r\n", &[(3, "row", "as many columns")]);
        let long = "x".repeat(257);
        let text =
            format!("id,name,site,profile\na/b,,,\nok,,{long},\nok2,\"a\tb\",,\nok3,,,a/b\nok4,,,\nok4,,,\n");
        refused(
            &text,
            &[
                (2, "id", "1 to 64"),
                (3, "labels.site", "at most 256 bytes"),
                (4, "name", "no control characters"),
                (5, "profile", "1 to 64"),
                (7, "id", "stands on line 6"),
            ],
        );
    }

    #[test]
    fn a_batch_has_a_largest_and_so_have_its_errors() {
        let batch = |rows: usize| (0..rows).fold("id\n".to_owned(), |text, row| format!("{text}p{row}\n"));
        assert_eq!(read(&batch(ROWS_MAX)).unwrap().len(), ROWS_MAX);
        let line = ROWS_MAX as u64 + 2;
        refused(&batch(ROWS_MAX + 1), &[(line, "row", "at most 2000 rows")]);
        let wrong = format!("id\n{}", "a/b\n".repeat(ERRORS_MAX + 50));
        assert_eq!(read(&wrong).unwrap_err().len(), ERRORS_MAX);
    }
}
