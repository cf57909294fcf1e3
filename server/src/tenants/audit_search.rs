//! Rows of a tenant's audit chain by who, what and when. `service` calls it.

use super::audit::{AuditRow, COLUMNS, audit_row};
use crate::platform::db::{DbError, Scope, ToSql, Tx};

/// The longest text of a filter, in characters.
pub const FILTER_CHARS_MAX: usize = 300;

/// Which rows a list shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// Only of this actor, as it stands in the rows.
    pub actor: Option<String>,
    /// Only this action, or with a dot at its end all that begin so: `device.`.
    pub action: Option<String>,
    /// Only on this object.
    pub object: Option<String>,
    /// Only from this time on.
    pub from_us: Option<i64>,
    /// Only before this time.
    pub to_us: Option<i64>,
    /// In which order.
    pub sort: AuditSort,
}

/// The order of a list of the chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, utoipa::ToSchema)]
pub enum AuditSort {
    /// As it grew.
    #[default]
    #[serde(rename = "seq")]
    Seq,
    /// The newest first.
    #[serde(rename = "-seq")]
    SeqDown,
}

/// A page of rows, from after the position on.
///
/// # Errors
/// The database's.
pub fn audit_search(
    tx: &mut Tx<'_>,
    scope: &Scope,
    filter: &AuditFilter,
    after: Option<i64>,
    limit: i64,
) -> Result<Vec<AuditRow>, DbError> {
    let mut sql = format!("SELECT {COLUMNS} FROM audit WHERE tenant = $1");
    let mut args: Vec<Box<dyn ToSql>> = vec![Box::new(scope.tenant()?.to_owned())];
    let mut and = |condition: &str, arg: Box<dyn ToSql>| {
        args.push(arg);
        sql.push_str(&condition.replace('?', &format!("${}", args.len())));
    };
    if let Some(actor) = &filter.actor {
        and(" AND actor = ?", Box::new(actor.clone()));
    }
    match &filter.action {
        Some(action) if action.ends_with('.') => {
            let characters = i64::try_from(action.chars().count()).unwrap_or(i64::MAX);
            and(" AND substr(action, 1, CAST(? AS INTEGER)) =", Box::new(characters));
            and(" ?", Box::new(action.clone()));
        }
        Some(action) => and(" AND action = ?", Box::new(action.clone())),
        None => {}
    }
    if let Some(object) = &filter.object {
        and(" AND object = ?", Box::new(object.clone()));
    }
    if let Some(from_us) = filter.from_us {
        and(" AND at_us >= ?", Box::new(from_us));
    }
    if let Some(to_us) = filter.to_us {
        and(" AND at_us < ?", Box::new(to_us));
    }
    let (compare, direction) = match filter.sort {
        AuditSort::Seq => (">", "ASC"),
        AuditSort::SeqDown => ("<", "DESC"),
    };
    if let Some(after) = after {
        and(&format!(" AND seq {compare} ?"), Box::new(after));
    }
    and(&format!(" ORDER BY seq {direction} LIMIT ?"), Box::new(limit));
    let args: Vec<&dyn ToSql> = args.iter().map(AsRef::as_ref).collect();
    tx.query(scope, &sql, &args, audit_row)
}
