//! Days and months (UTC), counted from 1970, and their texts. Pure.

/// Microseconds of a day.
pub const DAY_US: i64 = 86_400_000_000;

/// The day (UTC) of a time, counted from 1970.
#[must_use]
pub fn day_of(at_us: i64) -> i64 {
    at_us.div_euclid(DAY_US)
}

/// A day's text, `2026-11-22`.
#[must_use]
pub fn day_text(day: i64) -> String {
    let (year, month, day) = civil(day);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The day of a text `2026-11-22`, from 1970 to 9999.
#[must_use]
pub fn parse_day(text: &str) -> Option<i64> {
    let (month, day) = text.rsplit_once('-')?;
    let first = parse_month(month)?;
    let day = two_digits(day)?;
    let at = first + i64::from(day) - 1;
    (day >= 1 && at < month_after(first)).then_some(at)
}

/// The first day of a month's text `2026-11`.
#[must_use]
pub fn parse_month(text: &str) -> Option<i64> {
    let (year, month) = text.split_once('-')?;
    let is_year = year.len() == 4 && year.bytes().all(|byte| byte.is_ascii_digit());
    let year = year.parse::<i64>().ok().filter(|year| is_year && *year >= 1970)?;
    let month = two_digits(month).filter(|month| (1..=12).contains(month))?;
    Some(days_from_civil(year, month, 1))
}

/// The month's text of a day.
#[must_use]
pub fn month_text(day: i64) -> String {
    let (year, month, _) = civil(day);
    format!("{year:04}-{month:02}")
}

/// The first day of the month that a day lies in.
#[must_use]
pub fn month_start(day: i64) -> i64 {
    let (year, month, _) = civil(day);
    days_from_civil(year, month, 1)
}

/// The first day of the month after the one that a day lies in.
#[must_use]
pub fn month_after(day: i64) -> i64 {
    match civil(day) {
        (year, 12, _) => days_from_civil(year + 1, 1, 1),
        (year, month, _) => days_from_civil(year, month + 1, 1),
    }
}

fn two_digits(text: &str) -> Option<u8> {
    let is_number = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// Years begin in March, so that the leap day is the last; 400 years have 146,097 days.
fn days_from_civil(year: i64, month: u8, day: u8) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((i64::from(month) + 9) % 12) + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn civil(day: i64) -> (i64, u8, u8) {
    let shifted = day + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 12 and 1 to 31")]
    (year, month as u8, day as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_texts_are_each_other_over_leap_years() {
        for (text, day) in [
            ("1970-01-01", 0),
            ("1972-02-29", 789),
            ("2000-03-01", 11_017),
            ("2026-11-22", 20_779),
            ("2100-02-28", 47_540),
            ("2100-03-01", 47_541),
        ] {
            assert_eq!((day_text(day), parse_day(text)), (text.to_owned(), Some(day)), "{text}");
        }
        for day in 0..60_000 {
            assert_eq!(parse_day(&day_text(day)), Some(day));
            let first = month_start(day);
            assert!(first <= day && day < month_after(day) && parse_month(&month_text(day)) == Some(first));
        }
        for bad in [
            "",
            "2026",
            "2026-13-01",
            "2026-02-29",
            "2026-2-01",
            "2026-02-00",
            "1969-12-31",
            "+026-01-01",
            "2026-01-1x",
        ] {
            assert_eq!(parse_day(bad), None, "{bad}");
        }
        assert_eq!((day_of(-1), day_of(0), day_of(DAY_US)), (-1, 0, 1));
    }
}
