//! Price lists and invoice drafts: whole numbers only, in millionths of the currency's unit. Pure.

use super::gap::GapView;
use super::model::DayRow;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeSet;

/// Prices of a list: one for each unit.
pub const PRICES_MAX: usize = 7;
/// The largest price, and the largest number of units or free units: what JSON can carry in every client.
const NUMBER_MAX: u64 = 1 << 53;

/// What is priced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Messages.
    Messages,
    /// Bytes of messages' bodies.
    Bytes,
    /// Readings.
    Readings,
    /// Events.
    Events,
    /// Milliseconds that models ran.
    InferenceMs,
    /// Devices, by the day: a device of a whole month of 30 days is 30 of them.
    DeviceDays,
    /// Bytes in the store, by the day.
    StorageByteDays,
}

/// An amount of money: millionths of the currency's unit; in JSON a decimal text such as `"0.25"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Money(pub u128);

impl std::fmt::Display for Money {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, micros) = (self.0 / 1_000_000, self.0 % 1_000_000);
        let fraction = format!("{micros:06}");
        let digits = fraction.trim_end_matches('0').len().max(2);
        write!(f, "{whole}.{}", &fraction[..digits])
    }
}

impl Money {
    /// Reads a decimal text: digits, and at most six behind a point.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let is_number = |part: &str, most: usize| {
            (1..=most).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !is_number(whole, 10) || !is_number(fraction, 6) {
            return None;
        }
        let micros: u128 = format!("{fraction:0<6}").parse().ok()?;
        Some(Self(whole.parse::<u128>().ok()? * 1_000_000 + micros))
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bad =
            || serde::de::Error::custom("must be a decimal text such as \"0.25\", with at most six decimals");
        Self::parse(&text).ok_or_else(bad)
    }
}

/// One price.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Of what.
    pub unit: Unit,
    /// A decimal text with at most six decimals, in the list's currency: `"0.25"`.
    #[schema(value_type = String, example = "0.25")]
    pub price: Money,
    /// For how many units that is; 1 unless given.
    #[serde(default = "one")]
    #[schema(minimum = 1)]
    pub per: u64,
    /// Units of each month that cost nothing; 0 unless given.
    #[serde(default)]
    pub free: u64,
}

fn one() -> u64 {
    1
}

/// What units cost, for every tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PriceList {
    /// Three capital letters (ISO 4217).
    #[schema(example = "EUR", pattern = "^[A-Z]{3}$")]
    pub currency: String,
    /// At most one a unit; what has none costs nothing.
    #[schema(max_items = 7)]
    pub prices: Vec<Price>,
}

/// Why a price list cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {why}")]
pub struct PriceError {
    /// The field at fault.
    pub field: &'static str,
    /// What was expected.
    pub why: &'static str,
}

impl PriceList {
    /// Checks a list.
    ///
    /// # Errors
    /// Names the field.
    pub fn check(&self) -> Result<(), PriceError> {
        if self.currency.len() != 3 || !self.currency.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Err(PriceError { field: "currency", why: "must be three capital letters" });
        }
        let units: BTreeSet<_> = self.prices.iter().map(|price| price.unit).collect();
        if self.prices.len() > PRICES_MAX || units.len() != self.prices.len() {
            return Err(PriceError { field: "prices", why: "must have at most one price a unit" });
        }
        let fits = |price: &Price| (1..=NUMBER_MAX).contains(&price.per) && price.free <= NUMBER_MAX;
        if !self.prices.iter().all(fits) {
            return Err(PriceError {
                field: "prices",
                why: "must have `per` from 1 to 2^53 and `free` of at most 2^53",
            });
        }
        Ok(())
    }
}

/// One line of an invoice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Line {
    /// What.
    unit: Unit,
    /// How much was used.
    quantity: u64,
    /// How much of it costs nothing.
    free: u64,
    /// The rest.
    billable: u64,
    /// The price of `per` units.
    #[schema(value_type = String)]
    price: Money,
    /// For how many units that is.
    per: u64,
    /// What the line comes to, rounded to a millionth, halves up.
    #[schema(value_type = String)]
    amount: Money,
}

/// What a tenant's month comes to. A draft: nobody was sent it, and nothing is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Invoice {
    /// Whose.
    tenant: String,
    /// `2026-11` (UTC).
    month: String,
    /// Always true.
    draft: bool,
    /// Whether the month is over and all that the event log took of it is counted, but for the gaps.
    complete: bool,
    /// Days with usage.
    days: usize,
    /// Three capital letters.
    currency: String,
    /// A line for each price, in the price list's order.
    lines: Vec<Line>,
    /// Their sum.
    #[schema(value_type = String)]
    total: Money,
    /// Records of the server that were never counted and may be of this month and tenant; the newest, at most 100.
    gaps: Vec<GapView>,
}

impl Invoice {
    /// Prices a month's days.
    #[must_use]
    pub fn draft(tenant: &str, month: &str, complete: bool, prices: &PriceList, days: &[DayRow]) -> Self {
        let lines: Vec<_> = prices.prices.iter().map(|price| line(price, days)).collect();
        let total = Money(lines.iter().map(|line| line.amount.0).sum());
        let currency = prices.currency.clone();
        let (tenant, month) = (tenant.to_owned(), month.to_owned());
        let (days, gaps) = (days.len(), Vec::new());
        Self { tenant, month, draft: true, complete, days, currency, lines, total, gaps }
    }

    /// Shows what was not counted.
    #[must_use]
    pub fn with_gaps(self, gaps: Vec<GapView>) -> Self {
        Self { gaps, ..self }
    }
}

fn line(price: &Price, days: &[DayRow]) -> Line {
    let quantity = match price.unit {
        // Rounded down once for the month, not once a day.
        Unit::InferenceMs => days.iter().map(|day| day.counts.inference_us).sum::<u64>() / 1_000,
        unit => days.iter().map(|day| used(unit, day)).sum(),
    };
    let free = price.free.min(quantity);
    let billable = quantity - free;
    let (units, per) = (u128::from(billable), u128::from(price.per));
    let amount = Money((units * price.price.0 + per / 2) / per);
    Line { unit: price.unit, quantity, free, billable, price: price.price, per: price.per, amount }
}

fn used(unit: Unit, day: &DayRow) -> u64 {
    let counts = &day.counts;
    match unit {
        Unit::Messages => counts.messages,
        Unit::Bytes => counts.bytes,
        Unit::Readings => counts.readings,
        Unit::Events => counts.events,
        Unit::InferenceMs => counts.inference_us / 1_000,
        Unit::DeviceDays => day.devices,
        Unit::StorageByteDays => day.storage_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::model::Counts;

    #[test]
    fn money_is_a_decimal_text_and_no_float() {
        for (text, micros, shown) in [
            ("0", 0, "0.00"),
            ("12", 12_000_000, "12.00"),
            ("0.25", 250_000, "0.25"),
            ("1.000001", 1_000_001, "1.000001"),
        ] {
            let money = Money::parse(text).unwrap();
            assert_eq!((money.0, money.to_string()), (micros, shown.to_owned()), "{text}");
        }
        for bad in ["", ".5", "1.", "-1", "1,5", "1e3", "0.0000001", "12345678901", "1.2.3", " 1"] {
            assert_eq!(Money::parse(bad), None, "{bad}");
        }
        assert!(serde_json::from_str::<Money>("0.25").is_err(), "a JSON number is refused");
    }

    #[test]
    fn a_list_has_bounds() {
        let price = |unit| Price { unit, price: Money(1), per: 1, free: 0 };
        let list = |currency: &str, prices| PriceList { currency: currency.into(), prices };
        assert_eq!(list("EUR", vec![price(Unit::Bytes)]).check(), Ok(()));
        assert_eq!(list("eur", Vec::new()).check().unwrap_err().field, "currency");
        assert_eq!(
            list("EUR", vec![price(Unit::Bytes), price(Unit::Bytes)]).check().unwrap_err().field,
            "prices"
        );
        let most = Price { per: NUMBER_MAX, free: NUMBER_MAX, ..price(Unit::Bytes) };
        assert_eq!(list("EUR", vec![most.clone()]).check(), Ok(()));
        for bad in [
            Price { per: 0, ..most.clone() },
            Price { per: NUMBER_MAX + 1, ..most.clone() },
            Price { free: NUMBER_MAX + 1, ..most },
        ] {
            assert_eq!(list("EUR", vec![bad]).check().unwrap_err().field, "prices");
        }
    }

    #[test]
    fn a_draft_takes_the_free_units_off_a_month_and_rounds_each_line_once() {
        let day = |messages, inference_us, devices| DayRow {
            counts: Counts { messages, inference_us, ..Counts::default() },
            devices,
            ..DayRow::default()
        };
        let price = |unit, price, per, free| Price { unit, price: Money::parse(price).unwrap(), per, free };
        let prices = vec![
            price(Unit::Messages, "0.50", 1_000, 1_500),
            price(Unit::InferenceMs, "0.000001", 2, 0),
            price(Unit::DeviceDays, "0.10", 1, 100),
        ];
        let list = PriceList { currency: "EUR".into(), prices };
        let days = [day(1_000, 1_500, 3), day(2_001, 1_500, 4)];
        let draft = serde_json::json!(Invoice::draft("acme", "2026-11", false, &list, &days));
        let lines = draft["lines"].as_array().unwrap();
        assert_eq!(
            (&lines[0]["quantity"], &lines[0]["billable"], &lines[0]["amount"]),
            (&3_001.into(), &1_501.into(), &"0.7505".into())
        );
        assert_eq!(
            (&lines[1]["quantity"], &lines[1]["amount"]),
            (&3.into(), &"0.000002".into()),
            "1.5 millionths"
        );
        assert_eq!((&lines[2]["free"], &lines[2]["amount"]), (&7.into(), &"0.00".into()));
        assert_eq!(
            (&draft["total"], &draft["draft"], &draft["days"]),
            (&"0.750502".into(), &true.into(), &2.into())
        );
    }
}
