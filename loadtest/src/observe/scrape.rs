//! The few numbers of `GET /metrics` that a run looks at.
//!
//! Called by `sample` and `oracle`. What is missing or no number is none: a metric may be of another version of the server.

use super::http::{Client, HttpError};

/// Positions in the server's event log, and its size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogMarks {
    /// All below is on the server's disk, and acknowledged.
    pub durable: Option<u64>,
    /// All below is in the store.
    pub stored: Option<u64>,
    /// All below was judged by the rules.
    pub judged: Option<u64>,
    /// Bytes on disk.
    pub bytes: Option<u64>,
}

impl LogMarks {
    /// Asks the server.
    ///
    /// # Errors
    /// It does not answer.
    pub fn of(client: &mut Client) -> Result<Self, HttpError> {
        let answer = client.call("GET", "/metrics", None)?;
        Ok(if answer.status == 200 { Self::read(&answer.body) } else { Self::default() })
    }

    fn read(text: &str) -> Self {
        let number = |name| metric(text, name).and_then(whole);
        Self {
            durable: number("event_log_durable_position").or_else(|| number("event_log_next_position")),
            stored: number("event_log_stored_position").filter(|position| *position > 0),
            judged: number("rules_position"),
            bytes: number("event_log_bytes"),
        }
    }

    /// Records that the store has not stored.
    #[must_use]
    pub fn depth(&self) -> Option<u64> {
        Some(self.durable?.saturating_sub(self.stored?))
    }

    /// Records that the rules have not judged.
    #[must_use]
    pub fn rules_lag(&self) -> Option<u64> {
        Some(self.durable?.saturating_sub(self.judged?))
    }
}

/// The value of a metric without labels, in Prometheus' text format: `name value [time]`.
#[must_use]
pub fn metric(text: &str, name: &str) -> Option<f64> {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        rest.starts_with([' ', '\t']).then(|| rest.split_whitespace().next()?.parse().ok())?
    };
    text.lines().find_map(value)
}

/// What counts: neither negative nor beyond what a f64 tells apart.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
fn whole(value: f64) -> Option<u64> {
    (0.0..9_007_199_254_740_992.0).contains(&value).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_from_a_scrape() {
        let text = "# HELP event_log_bytes Bytes on disk\n# TYPE event_log_bytes gauge\nevent_log_bytes 4096\n\
                    event_log_durable_position 120\nevent_log_stored_position 100 1700000000\n\
                    rules_position_more 7\nrules_position{a=\"b\"} 8\nrules_position\t130\n";
        let marks = LogMarks::read(text);
        let expect = LogMarks { durable: Some(120), stored: Some(100), judged: Some(130), bytes: Some(4096) };
        assert_eq!(marks, expect);
        assert_eq!((marks.depth(), marks.rules_lag()), (Some(20), Some(0)));
        assert_eq!(LogMarks::read("event_log_next_position 3").durable, Some(3));
    }

    #[test]
    fn what_is_no_count_is_none() {
        for value in ["", "x", "NaN", "+Inf", "-1", "1e300", "9007199254740992"] {
            assert_eq!(LogMarks::read(&format!("event_log_bytes {value}")).bytes, None, "{value}");
        }
        assert_eq!(LogMarks::read("").depth(), None);
    }
}
