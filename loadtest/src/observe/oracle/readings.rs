//! Every reading of one metric of a device, through the API and exactly.
//!
//! The API gives the oldest readings of a range and says whether there are more. The next page begins at the last
//! one's time, which other readings may share: those of that time are left to the next page. Only where a whole page has one time
//! is there no way on: [`PAGE_POINTS`] readings of one device at one microsecond.
//! A reading at the last microsecond that a time can tell (`i64::MAX`) is not found: a range does not include its end.

use crate::observe::handle::Access;
use crate::observe::http::{Client, HttpError};
use crate::observe::provision::patiently;
use crate::payload::SERIAL_METRIC;
use serde::Deserialize;
use serde_json::Value;

/// Readings that are asked for at once: the most that the API gives.
pub(super) const PAGE_POINTS: usize = 10_000;

/// Why a device's readings are not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The API does not answer, or refuses.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// More readings than a page holds, all at one time.
    #[error("more than {PAGE_POINTS} readings at {at_us} us")]
    OneTime { at_us: i64 },
    /// A page that says that there is more, and holds nothing.
    #[error("an empty page that is not the last")]
    Empty,
}

#[derive(Deserialize)]
struct Page {
    points: Vec<Point>,
    truncated: bool,
}

#[derive(Deserialize)]
struct Point {
    ts_us: i64,
    value: Value,
}

/// Hands every value of the metric `serial` to `take`.
pub(super) fn serials(
    client: &mut Client,
    access: &Access,
    device: &str,
    mut take: impl FnMut(&Value),
) -> Result<(), ReadError> {
    let mut from = i64::MIN;
    loop {
        let path = format!(
            "devices/{device}/readings?metric={SERIAL_METRIC}&from={from}&to={}&limit={PAGE_POINTS}",
            i64::MAX
        );
        let path = access.path(&path);
        let page: Page = patiently(|| client.get_as(&path))?;
        if !page.truncated {
            page.points.iter().for_each(|point| take(&point.value));
            return Ok(());
        }
        let last = page.points.iter().map(|point| point.ts_us).max().ok_or(ReadError::Empty)?;
        if last <= from || page.points.iter().all(|point| point.ts_us == last) {
            return Err(ReadError::OneTime { at_us: last });
        }
        page.points.iter().filter(|point| point.ts_us < last).for_each(|point| take(&point.value));
        from = last;
    }
}
