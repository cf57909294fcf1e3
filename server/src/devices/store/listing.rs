//! Lists of devices: filters, orders and where a page goes on.

use super::places::{PlacedDevice, SITE_OF, placed};
use super::{DEVICE_COLUMNS, DeviceRow};
use crate::devices::model::FieldError;
use crate::platform::db::{DbError, Scope, ToSql, Tx};
use crate::tenants::reach::{self, Args, Place, PlaceId, Reach};

/// Which devices a list shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceFilter {
    /// Only those that carry this label.
    pub label: Option<(String, String)>,
    /// Only those that may connect, or only the others.
    pub enabled: Option<bool>,
    /// Only those whose id begins so.
    pub id_prefix: Option<String>,
    /// Only those whose name begins so.
    pub name_prefix: Option<String>,
    /// Only those at this site.
    pub site: Option<PlaceId>,
    /// Only members of this group.
    pub group: Option<PlaceId>,
    /// Only those within it.
    pub reach: Reach,
    /// In which order.
    pub sort: DeviceSort,
}

/// The order of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, utoipa::ToSchema)]
pub enum DeviceSort {
    /// By id.
    #[default]
    #[serde(rename = "id")]
    Id,
    /// By id, the last first.
    #[serde(rename = "-id")]
    IdDown,
    /// The oldest first.
    #[serde(rename = "created_at")]
    Created,
    /// The newest first.
    #[serde(rename = "-created_at")]
    CreatedDown,
}

/// Where a page goes on: after this time (where the list is sorted by it) and id.
pub type After = (i64, String);

impl DeviceSort {
    /// The cursor's text of a row.
    #[must_use]
    pub fn key(self, row: &DeviceRow) -> String {
        match self {
            Self::Id | Self::IdDown => row.device.to_string(),
            Self::Created | Self::CreatedDown => format!("{}:{}", row.created_at_us, row.device),
        }
    }

    /// Reads a cursor's text; an error where another list gave it.
    #[allow(clippy::result_unit_err, reason = "there is one fault, and the caller words it")]
    pub fn after(self, text: &str) -> Result<After, ()> {
        match self {
            Self::Id | Self::IdDown => Ok((0, text.to_owned())),
            Self::Created | Self::CreatedDown => {
                let (created_at_us, device) = text.split_once(':').ok_or(())?;
                Ok((created_at_us.parse().map_err(|_| ())?, device.to_owned()))
            }
        }
    }

    fn down(self) -> bool {
        matches!(self, Self::IdDown | Self::CreatedDown)
    }
}

impl DeviceFilter {
    /// Checks its texts.
    ///
    /// # Errors
    /// Names the one that no device can match.
    pub fn check(&self) -> Result<(), FieldError> {
        let texts = [("id_prefix", &self.id_prefix, 64), ("name_prefix", &self.name_prefix, 128)];
        for (field, text, max) in texts {
            if text.as_ref().is_some_and(|text| text.chars().count() > max) {
                let why = format!("must have at most {max} characters");
                return Err(FieldError { field: field.into(), why });
            }
        }
        Ok(())
    }
}

/// A page of devices.
pub fn device_list(
    tx: &mut Tx<'_>,
    scope: &Scope,
    filter: &DeviceFilter,
    after: Option<&After>,
    limit: i64,
) -> Result<Vec<PlacedDevice>, DbError> {
    let mut sql = format!("SELECT {SITE_OF}, {DEVICE_COLUMNS} FROM devices WHERE tenant = $1");
    let mut args: Args = vec![Box::new(scope.tenant()?.to_owned())];
    let places = [filter.site.clone().map(Place::Site), filter.group.clone().map(Place::Group)];
    let named = places.into_iter().flatten().map(|place| Reach::Only(vec![place]));
    for reach in named.chain([filter.reach.clone()]) {
        sql.push_str(&reach::within(&reach, "devices.device", &mut args));
    }
    let mut and = |condition: &str, arg: Box<dyn ToSql>| {
        args.push(arg);
        sql.push_str(&condition.replace('?', &format!("${}", args.len())));
    };
    if let Some((key, value)) = &filter.label {
        // As it stands in the row's JSON: a quote within a text is escaped there, so nothing else looks like it.
        let text = |text: &str| serde_json::to_string(text).unwrap_or_default();
        let pair = format!("{}:{}", text(key), text(value));
        and(" AND replace(labels, ?, '') <> labels", Box::new(pair));
    }
    if let Some(enabled) = filter.enabled {
        and(" AND enabled = ?", Box::new(enabled));
    }
    if let Some(prefix) = &filter.id_prefix {
        and(" AND device >= ?", Box::new(prefix.clone()));
        // Above every character of an id.
        and(" AND device < ?", Box::new(format!("{prefix}\u{7f}")));
    }
    if let Some(prefix) = &filter.name_prefix {
        let characters = i64::try_from(prefix.chars().count()).unwrap_or(i64::MAX);
        and(" AND substr(name, 1, CAST(? AS INTEGER)) =", Box::new(characters));
        and(" ?", Box::new(prefix.clone()));
    }
    let (compare, direction) = if filter.sort.down() { ("<", "DESC") } else { (">", "ASC") };
    let by_time = matches!(filter.sort, DeviceSort::Created | DeviceSort::CreatedDown);
    match after {
        Some((created_at_us, device)) if by_time => {
            and(&format!(" AND (created_at_us, device) {compare} (?, "), Box::new(*created_at_us));
            and("?)", Box::new(device.clone()));
        }
        Some((_, device)) => and(&format!(" AND device {compare} ?"), Box::new(device.clone())),
        None => {}
    }
    let first = if by_time { format!("created_at_us {direction}, ") } else { String::new() };
    and(&format!(" ORDER BY {first}device {direction} LIMIT ?"), Box::new(limit));
    let args: Vec<&dyn ToSql> = args.iter().map(AsRef::as_ref).collect();
    tx.query(scope, &sql, &args, placed)
}
