//! Numbers as people read them.
//!
//! Called by everything that prints or draws. Two to three significant digits, thousands apart, the unit behind.

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Milliseconds,
    Cores,
    Bytes,
    /// A share of 1, as a percentage that never rounds up to the whole.
    Share,
    Count,
    PerSecond,
    MicrosecondsEach,
    BytesEach,
}

impl Unit {
    /// The number with its unit.
    pub(super) fn show(self, value: f64) -> String {
        match self {
            Self::Milliseconds => format!("{} ms", number(value)),
            Self::Cores => format!("{} cores", number(value)),
            Self::Bytes => bytes(value),
            Self::Share => percent(value),
            Self::Count => number(value),
            Self::PerSecond => format!("{}/s", number(value)),
            Self::MicrosecondsEach => format!("{} µs", number(value)),
            Self::BytesEach => format!("{} B", number(value)),
        }
    }
}

/// Two to three significant digits, and all digits before the point.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    let decimals = match size {
        _ if value.fract() == 0.0 || size >= 99.95 => 0,
        _ if size >= 9.995 => 1,
        _ if size >= 0.0995 => 2,
        _ if size >= 0.00995 => 3,
        _ if size >= 0.000_995 => 4,
        _ => 6,
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{}{point}{fraction}", apart(digits))
}

/// A count with its thousands apart.
pub(super) fn count(value: u64) -> String {
    apart(&value.to_string())
}

/// A count with its noun: `1 tenant`, `4 tenants`.
pub(super) fn counted(value: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(value), if value == 1 { "" } else { "s" })
}

fn apart(digits: &str) -> String {
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in B, kB, MB, GB or TB (powers of 1,000).
pub(super) fn bytes(value: f64) -> String {
    let steps = ["B", "kB", "MB", "GB", "TB"];
    let mut scaled = value;
    let mut step = 0;
    while scaled.abs() >= 999.5 && step + 1 < steps.len() {
        scaled /= 1_000.0;
        step += 1;
    }
    format!("{} {}", number(scaled), steps[step])
}

/// A share as a percentage of three decimals, cut and not rounded: 100 % is said of the whole only.
pub(super) fn percent(share: f64) -> String {
    let thousandths = (share * 100_000.0 + 1e-7).floor() / 1_000.0;
    format!("{thousandths:.3} %")
}

/// A length of time: `42 s`, `10 min`, `2 h 5 min`.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 3600, whole % 3600 / 60, whole % 60) {
        _ if seconds < 120.0 => format!("{} s", number(seconds)),
        (0, minutes, 0) => format!("{minutes} min"),
        (0, minutes, rest) => format!("{minutes} min {rest} s"),
        (hours, 0, _) => format!("{hours} h"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// A time of the run: `7.5 s`, `3:07`, `1:02:09`.
pub(super) fn moment(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{} s", (seconds * 10.0).round() / 10.0);
    }
    let whole = seconds.round() as u64;
    match whole / 3600 {
        0 => format!("{}:{:02}", whole / 60, whole % 60),
        hours => format!("{hours}:{:02}:{:02}", whole % 3600 / 60, whole % 60),
    }
}

/// A day and time of UTC from microseconds since 1970.
pub(super) fn utc(microseconds: i64) -> String {
    let seconds = microseconds.div_euclid(1_000_000);
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01, in eras of 400 years: the leap day then ends a year.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        of_day / 3600,
        of_day % 3600 / 60,
        of_day % 60
    )
}

/// A text of a file as a terminal may show it: without control characters.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits_and_all_before_the_point() {
        let shown: Vec<_> = [0.0, 1.0, 0.421, 1.2345, 14.82, 99.96, 1234.6, -12345.0, 1e7, 0.0123, 0.00021]
            .map(number)
            .to_vec();
        let expected =
            ["0", "1", "0.42", "1.23", "14.8", "100", "1,235", "-12,345", "10,000,000", "0.012", "0.000210"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_share_below_one_is_never_shown_as_the_whole() {
        assert_eq!([percent(1.0), percent(0.999_999_9), percent(0.5)], ["100.000 %", "99.999 %", "50.000 %"]);
        assert_eq!(percent(0.99999), "99.999 %");
    }

    #[test]
    fn one_of_a_noun_is_no_plural() {
        let told: Vec<_> = [0, 1, 2, 10_000].map(|value| counted(value, "tenant")).to_vec();
        assert_eq!(told, ["0 tenants", "1 tenant", "2 tenants", "10,000 tenants"]);
    }

    #[test]
    fn units_stand_behind() {
        assert_eq!(Unit::Bytes.show(110_400_000.0), "110 MB");
        assert_eq!([Unit::Bytes.show(999.4), Unit::Bytes.show(999.9)], ["999 B", "1.00 kB"]);
        assert_eq!(Unit::Milliseconds.show(68.69), "68.7 ms");
        assert_eq!(Unit::PerSecond.show(10_000.0), "10,000/s");
        assert_eq!([duration(600.0), duration(59.5), duration(7500.0)], ["10 min", "59.5 s", "2 h 5 min"]);
        assert_eq!([moment(7.52), moment(187.0), moment(3729.0)], ["7.5 s", "3:07", "1:02:09"]);
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_400_000_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(1_795_305_611_000_000), "2026-11-22 00:00:11 UTC");
        assert_eq!(utc(-1), "1969-12-31 23:59:59 UTC");
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(plain("a\u{1b}[31mb\n"), "a?[31mb?");
    }
}
