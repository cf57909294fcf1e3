//! Timestamps as data sets write them.

/// Microseconds since 1970 of a number (seconds, milliseconds or microseconds, told apart by size) or of
/// `YYYY-MM-DD HH:MM:SS[.fraction]` in UTC, with `T` and `Z` allowed.
pub(super) fn parse_us(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Ok(number) = text.parse::<f64>() {
        // Seconds stay below 1e11 until the year 5138, milliseconds below 1e14 likewise.
        let scale = match number.abs() {
            size if size < 1e11 => 1e6,
            size if size < 1e14 => 1e3,
            _ => 1.0,
        };
        let us = number * scale;
        #[allow(clippy::cast_possible_truncation)]
        return (us.is_finite() && us.abs() < 9e18).then_some(us.round() as i64);
    }
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00:00"));
    let mut parts = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let mut parts = time.splitn(3, ':');
    let hour: i64 = parts.next()?.parse().ok()?;
    let minute: i64 = parts.next()?.parse().ok()?;
    let second: f64 = parts.next().map_or(Some(0.0), |part| part.parse().ok())?;
    let ok = (1..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0.0..61.0).contains(&second);
    #[allow(clippy::cast_possible_truncation)]
    let second_us = (second * 1e6).round() as i64;
    ok.then(|| ((days_since_1970(year, month, day) * 24 + hour) * 60 + minute) * 60_000_000 + second_us)
}

/// Days from 1970-01-01 in the Gregorian calendar; years begin in March, so that leap days come last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::parse_us;

    #[test]
    fn reads_numbers_and_dates() {
        for (text, expect) in [
            ("0", Some(0)),
            ("1.5", Some(1_500_000)),
            ("1700000000", Some(1_700_000_000_000_000)),
            ("1700000000123", Some(1_700_000_000_123_000)),
            ("1700000000123456", Some(1_700_000_000_123_456)),
            ("1970-01-01", Some(0)),
            ("1970-01-02 00:00:01", Some(86_401_000_000)),
            ("2000-02-29T12:00:00Z", Some(951_825_600_000_000)),
            ("2013-12-02 21:15:00.250", Some(1_386_018_900_250_000)),
            ("1969-12-31 23:59:59", Some(-1_000_000)),
            ("2013-13-02", None),
            ("yesterday", None),
            ("nan", None),
            ("", None),
        ] {
            assert_eq!(parse_us(text), expect, "{text:?}");
        }
    }
}
