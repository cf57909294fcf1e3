//! How far somebody reaches within a tenant: everything, or the devices of some sites and groups.
//!
//! A membership and an API token have a [`Reach`]. [`super::model::authorise`] compares it with a device's
//! [`Whereabouts`] as values; a list is cut to it by [`within`], a condition that stands in the list's own SELECT, so that
//! pages are full. Which device is where is written by the devices slice, into `device_sites` and `group_members`; every
//! slice that lists what belongs to devices reads those tables through here.
//!
//! Another kind of place (a camera) is another [`Place`] with its own prefix and table.

use super::model::TextError;
use crate::platform::db::{DbError, Scope, ToSql, Tx};

/// Places that one reach may name.
pub const PLACES_MAX: usize = 32;
/// The longest id of a site or group, in bytes.
pub const PLACE_ID_BYTES_MAX: usize = 64;

/// The id of a site or a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct PlaceId(Box<str>);

impl PlaceId {
    /// Parses an id.
    ///
    /// # Errors
    /// Not 1 to 64 of a-z, 0-9 and '-', starting with a letter or digit.
    pub fn parse(text: &str) -> Result<Self, TextError> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        // No wildcard of LIKE and no space may stand in it.
        let rest = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if first && rest && text.len() <= PLACE_ID_BYTES_MAX {
            return Ok(Self(text.into()));
        }
        let why = "must have 1 to 64 of a-z, 0-9 and '-', starting with a letter or digit";
        Err(TextError { field: "id", why })
    }

    /// The id's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> serde::Deserialize<'de> for PlaceId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(|error| serde::de::Error::custom(error.why))
    }
}

/// Where a device can be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A site: a device is at one at most.
    Site(PlaceId),
    /// A group: a device may be in many.
    Group(PlaceId),
}

impl Place {
    fn parse(text: &str) -> Result<Self, TextError> {
        let why = "each must be site:<id> or group:<id>";
        let wrong = |_| TextError { field: "scope", why };
        match text.split_once(':') {
            Some(("site", id)) => PlaceId::parse(id).map(Self::Site).map_err(wrong),
            Some(("group", id)) => PlaceId::parse(id).map(Self::Group).map_err(wrong),
            _ => Err(TextError { field: "scope", why }),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Site(id) => write!(f, "site:{}", id.as_str()),
            Self::Group(id) => write!(f, "group:{}", id.as_str()),
        }
    }
}

/// How far somebody reaches within a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// All of it.
    #[default]
    Everything,
    /// The devices of these places, and what belongs to them. Sorted; what is stored is never empty.
    Only(Vec<Place>),
}

impl Reach {
    /// No device at all.
    #[must_use]
    pub fn nowhere() -> Self {
        Self::Only(Vec::new())
    }

    /// Parses what somebody wrote; none: everything.
    ///
    /// # Errors
    /// A place of no known kind; none at all, or more than [`PLACES_MAX`].
    pub fn parse(places: Option<&[String]>) -> Result<Self, TextError> {
        let Some(places) = places else { return Ok(Self::Everything) };
        if !(1..=PLACES_MAX).contains(&places.len()) {
            let why = "must name 1 to 32 places, or be absent: then it is the whole tenant";
            return Err(TextError { field: "scope", why });
        }
        let mut places = places.iter().map(|text| Place::parse(text)).collect::<Result<Vec<_>, _>>()?;
        places.sort_unstable();
        places.dedup();
        Ok(Self::Only(places))
    }

    /// The reach of a stored text; one that this build does not know reaches nothing.
    pub(super) fn of_text(text: &str) -> Result<Self, DbError> {
        if text.is_empty() {
            return Ok(Self::Everything);
        }
        let places: Vec<String> = text.split(' ').map(str::to_owned).collect();
        Self::parse(Some(&places)).map_err(|_| DbError::Column { column: "reach".into() })
    }

    /// The stored text: places with spaces between, empty for everything.
    pub(super) fn text(&self) -> String {
        match self.places() {
            None => String::new(),
            // Nobody is given it, and no build takes it for something else.
            Some(places) if places.is_empty() => "nowhere".to_owned(),
            Some(places) => places.join(" "),
        }
    }

    /// Whether it is the whole tenant.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        *self == Self::Everything
    }

    /// The places in words; none for everything.
    #[must_use]
    pub fn places(&self) -> Option<Vec<String>> {
        match self {
            Self::Everything => None,
            Self::Only(places) => Some(places.iter().map(ToString::to_string).collect()),
        }
    }

    /// Whether a device that is there is within it.
    #[must_use]
    pub fn covers(&self, device: &Whereabouts) -> bool {
        let is_at = |place: &Place| match place {
            Place::Site(site) => device.site.as_ref() == Some(site),
            Place::Group(group) => device.groups.contains(group),
        };
        match self {
            Self::Everything => true,
            Self::Only(places) => places.iter().any(is_at),
        }
    }

    /// The ids of its sites, and of its groups; none for everything.
    #[must_use]
    pub fn ids(&self) -> Option<(Vec<&str>, Vec<&str>)> {
        let Self::Only(places) = self else { return None };
        let mut ids = (Vec::new(), Vec::new());
        for place in places {
            match place {
                Place::Site(id) => ids.0.push(id.as_str()),
                Place::Group(id) => ids.1.push(id.as_str()),
            }
        }
        Some(ids)
    }
}

/// Where a device is: the facts that its reach is decided by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// Its site.
    pub site: Option<PlaceId>,
    /// Its groups.
    pub groups: Vec<PlaceId>,
}

/// Arguments of a statement that is put together.
pub type Args = Vec<Box<dyn ToSql>>;

/// Adds texts to the arguments; gives `$n, $m`.
pub fn listed(ids: &[&str], args: &mut Args) -> String {
    let add = |id: &&str| {
        args.push(Box::new((*id).to_owned()));
        format!("${}", args.len())
    };
    ids.iter().map(add).collect::<Vec<_>>().join(", ")
}

/// The condition of a SELECT whose rows belong to the device that `column` names: ` AND (...)`, or nothing where the reach
/// is everything. The statement's `$1` is the tenant, and `args` are all that it has so far.
#[must_use]
pub fn within(reach: &Reach, column: &str, args: &mut Args) -> String {
    let Some((sites, groups)) = reach.ids() else { return String::new() };
    let mut either = Vec::new();
    for (table, id, ids) in [("device_sites", "site", sites), ("group_members", "group_id", groups)] {
        if !ids.is_empty() {
            let ids = listed(&ids, args);
            either.push(format!(
                "EXISTS (SELECT 1 FROM {table} w WHERE w.tenant = $1 AND w.device = {column} AND w.{id} IN ({ids}))"
            ));
        }
    }
    match either.is_empty() {
        true => " AND 1 = 0".to_owned(),
        false => format!(" AND ({})", either.join(" OR ")),
    }
}

/// Whether a device is there and within a reach.
///
/// # Errors
/// The database's.
pub fn reaches(tx: &mut Tx<'_>, scope: &Scope, reach: &Reach, device: &str) -> Result<bool, DbError> {
    let mut args: Args = vec![Box::new(scope.tenant()?.to_owned()), Box::new(device.to_owned())];
    let condition = within(reach, "d.device", &mut args);
    let sql = format!("SELECT 1 FROM devices d WHERE d.tenant = $1 AND d.device = $2{condition}");
    let args: Vec<&dyn ToSql> = args.iter().map(AsRef::as_ref).collect();
    Ok(tx.query_opt(scope, &sql, &args, |row| row.get::<i64>(0))?.is_some())
}

/// The first place of a reach that the tenant does not have.
///
/// # Errors
/// The database's.
pub fn missing_place(tx: &mut Tx<'_>, scope: &Scope, reach: &Reach) -> Result<Option<Place>, DbError> {
    let Reach::Only(places) = reach else { return Ok(None) };
    for place in places {
        let (sql, id) = match place {
            Place::Site(id) => ("SELECT 1 FROM sites WHERE tenant = $1 AND site = $2", id),
            Place::Group(id) => ("SELECT 1 FROM device_groups WHERE tenant = $1 AND group_id = $2", id),
        };
        if tx.query_opt(scope, sql, &[&scope.tenant()?, &id.as_str()], |row| row.get::<i64>(0))?.is_none() {
            return Ok(Some(place.clone()));
        }
    }
    Ok(None)
}

/// Whether a membership, or a token or invitation that is not past its life, names a place: it may not go then, since
/// another of the same id would give what was never meant.
///
/// # Errors
/// The database's.
pub fn is_named(tx: &mut Tx<'_>, scope: &Scope, place: &Place, now_us: i64) -> Result<bool, DbError> {
    let names = "tenant = $1 AND ' ' || reach || ' ' LIKE $2";
    let sql = format!(
        "SELECT 1 FROM memberships WHERE {names}
         UNION ALL SELECT 1 FROM api_tokens WHERE {names} AND expires_at_us > $3
         UNION ALL SELECT 1 FROM invitations WHERE {names} AND expires_at_us > $3 LIMIT 1"
    );
    let args: [&dyn ToSql; 3] = [&scope.tenant()?, &format!("% {place} %"), &now_us];
    Ok(tx.query_opt(scope, &sql, &args, |row| row.get::<i64>(0))?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn reach(places: &[&str]) -> Reach {
        Reach::parse(Some(&texts(places))).unwrap()
    }

    #[test]
    fn a_reach_names_known_kinds_of_places_within_a_bound() {
        assert_eq!(Reach::parse(None), Ok(Reach::Everything));
        let two = reach(&["site:north", "group:pumps", "site:north"]);
        assert_eq!(two.places().unwrap(), ["site:north", "group:pumps"]);
        assert_eq!(Reach::of_text(&two.text()).unwrap(), two);
        assert_eq!(Reach::of_text("").unwrap(), Reach::Everything);
        for wrong in ["north", "camera:c1", "site:", "site:North", "site:a b", "site:-a", "group:a_b"] {
            let refused = Reach::parse(Some(&texts(&[wrong]))).unwrap_err();
            assert_eq!(refused.field, "scope", "{wrong}");
            assert!(Reach::of_text(wrong).is_err(), "nothing is taken for everything: {wrong}");
        }
        let many = |count: usize| (0..count).map(|at| format!("site:s{at}")).collect::<Vec<_>>();
        assert!(Reach::parse(Some(&many(PLACES_MAX))).is_ok());
        assert!(Reach::parse(Some(&many(PLACES_MAX + 1))).is_err());
        assert!(Reach::parse(Some(&[])).is_err());
        assert!(PlaceId::parse(&"a".repeat(PLACE_ID_BYTES_MAX)).is_ok());
        assert!(PlaceId::parse(&"a".repeat(PLACE_ID_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn a_reach_covers_devices_by_where_they_are() {
        let id = |text: &str| PlaceId::parse(text).unwrap();
        let pump = Whereabouts { site: Some(id("north")), groups: vec![id("pumps"), id("old")] };
        let nowhere = Whereabouts::default();
        let check = |reach: &Reach, at_pump, at_nowhere| {
            assert_eq!((reach.covers(&pump), reach.covers(&nowhere)), (at_pump, at_nowhere), "{reach:?}");
        };
        check(&Reach::Everything, true, true);
        check(&reach(&["site:north"]), true, false);
        check(&reach(&["site:south"]), false, false);
        check(&reach(&["site:south", "group:old"]), true, false);
        check(&reach(&["group:north"]), false, false);
    }

    #[test]
    fn a_condition_counts_its_arguments_on() {
        let mut args: Args = vec![Box::new(1_i64), Box::new(2_i64)];
        assert_eq!(within(&Reach::Everything, "device", &mut args), "");
        let sql = within(&reach(&["site:n", "site:s", "group:g"]), "a.device", &mut args);
        assert!(
            sql.contains("device_sites w WHERE w.tenant = $1 AND w.device = a.device AND w.site IN ($3, $4)")
        );
        assert!(sql.contains("w.group_id IN ($5)"), "{sql}");
        assert_eq!(args.len(), 5);
        assert_eq!(within(&Reach::nowhere(), "device", &mut args), " AND 1 = 0");
        assert!(!Reach::nowhere().is_everything() && Reach::of_text(&Reach::nowhere().text()).is_err());
    }
}
