//! Cursor paging: `?limit=&cursor=` in, `{items, next_cursor}` out.

use super::ApiError;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Items in a page, unless asked otherwise.
pub const LIMIT_DEFAULT: u32 = 100;
/// The largest page.
pub const LIMIT_MAX: u32 = 500;
/// The longest cursor, in bytes.
const CURSOR_BYTES_MAX: usize = 512;

/// The two parameters of every list.
#[derive(Debug, Default, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Items in the page: 1 to 500.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[param(max_length = 512, pattern = "^[A-Za-z0-9_-]*$")]
    cursor: Option<String>,
}

/// A checked page request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Items in the page.
    pub limit: u32,
    /// The key of the last item of the page before.
    pub after: Option<String>,
}

/// A page of a list.
#[derive(Debug, serde::Serialize, utoipa::ToSchema)]
pub struct Items<T: utoipa::ToSchema> {
    /// The page's items, in the list's order.
    pub items: Vec<T>,
    /// Set when there is more: pass it as `cursor`.
    pub next_cursor: Option<String>,
}

impl PageQuery {
    /// Checks the parameters.
    ///
    /// # Errors
    /// Names the parameter that is out of range or malformed.
    pub fn page(self) -> Result<Page, ApiError> {
        let limit = self.limit.unwrap_or(LIMIT_DEFAULT);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err(ApiError::invalid("limit", format!("must be 1 to {LIMIT_MAX}")));
        }
        let after = self.cursor.map(|cursor| decode(&cursor)).transpose()?;
        Ok(Page { limit, after })
    }
}

fn decode(cursor: &str) -> Result<String, ApiError> {
    let bad = || ApiError::invalid("cursor", "is not a cursor that this list gave");
    if cursor.len() > CURSOR_BYTES_MAX {
        return Err(bad());
    }
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| bad())?;
    String::from_utf8(bytes).map_err(|_| bad())
}

impl Page {
    /// How many rows to ask the store for: one more than the page, to know whether there is another.
    #[must_use]
    pub fn fetch(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// The page, cut to what a store gives at once.
    #[must_use]
    pub fn at_most(self, items: usize) -> Self {
        Self { limit: self.limit.min(u32::try_from(items).unwrap_or(u32::MAX)), ..self }
    }

    /// The key to start after; the empty text comes before every key.
    #[must_use]
    pub fn after_text(&self) -> &str {
        self.after.as_deref().unwrap_or("")
    }

    /// The page of a list that was read up to `next` and then left, or to its end.
    pub fn part<R, T: utoipa::ToSchema>(
        &self,
        rows: Vec<R>,
        next: Option<String>,
        key: impl Fn(&R) -> String,
        view: impl FnMut(R) -> T,
    ) -> Items<T> {
        let mut items = self.items(rows, key, view);
        if items.next_cursor.is_none() {
            items.next_cursor = next.map(|key| URL_SAFE_NO_PAD.encode(key));
        }
        items
    }

    /// Cuts the fetched rows to the page. `key` gives the text that the next page starts after.
    pub fn items<R, T: utoipa::ToSchema>(
        &self,
        mut rows: Vec<R>,
        key: impl Fn(&R) -> String,
        view: impl FnMut(R) -> T,
    ) -> Items<T> {
        let limit = self.limit as usize;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let last = rows.last().filter(|_| more).map(key);
        let next_cursor = last.map(|key| URL_SAFE_NO_PAD.encode(key));
        Items { items: rows.into_iter().map(view).collect(), next_cursor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_bounds_and_a_cursor_comes_back() {
        let query = |limit, cursor: Option<&str>| PageQuery { limit, cursor: cursor.map(str::to_owned) };
        assert_eq!(query(Some(LIMIT_MAX), None).page().unwrap().fetch(), 501);
        let refused = query(Some(LIMIT_MAX + 1), None).page().unwrap_err();
        assert_eq!((refused.field.as_deref(), &*refused.message), (Some("limit"), "must be 1 to 500"));
        assert_eq!(query(Some(0), None).page().unwrap_err().field.as_deref(), Some("limit"));
        assert_eq!(query(None, Some("%%")).page().unwrap_err().field.as_deref(), Some("cursor"));
        // 513 characters are no base64.
        let cursor = |characters: usize| query(None, Some(&"A".repeat(characters))).page();
        assert!(cursor(CURSOR_BYTES_MAX).is_ok());
        assert_eq!(cursor(CURSOR_BYTES_MAX + 2).unwrap_err().field.as_deref(), Some("cursor"));
        let page = query(Some(2), None).page().unwrap();
        let items = page.items(vec!["a", "b", "c"], |row| (*row).to_owned(), |row| row.to_owned());
        assert_eq!(items.items, ["a", "b"]);
        let next = query(Some(2), items.next_cursor.as_deref()).page().unwrap();
        assert_eq!(next.after_text(), "b");
        assert!(next.items(vec!["c"], |row| (*row).to_owned(), |row| row.to_owned()).next_cursor.is_none());
    }
}
