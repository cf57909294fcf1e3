//! Reads the registry's rows for an export, page by page in the order of their keys: what is deleted between two pages
//! moves nothing.

use super::tables::{As, Table};
use crate::platform::db::{DbError, Row, Scope, ToSql, Tx};
use serde_json::{Map, Value as Json};

/// Reads rows of a table behind a row's place, at most `limit`; each with its place.
pub(super) fn read(
    tx: &mut Tx<'_>,
    scope: &Scope,
    table: &Table,
    device: Option<&str>,
    (after, limit): (Option<&str>, i64),
) -> Result<Vec<(String, Json)>, DbError> {
    let condition = match (device, table.of_device) {
        (None, _) => "$2 = ''",
        (Some(_), Some(condition)) => condition,
        (Some(_), None) => return Ok(Vec::new()),
    };
    let names: Vec<&str> = table.columns.iter().map(|(name, _)| *name).collect();
    let (names, key) = (names.join(", "), table.key.join(", "));
    let mut args: Vec<Box<dyn ToSql>> = vec![
        Box::new(scope.tenant()?.to_owned()),
        Box::new(device.unwrap_or("").to_owned()),
        Box::new(limit),
    ];
    let mut behind = String::new();
    if let Some(after) = after {
        args.extend(key_of(table, after)?);
        let numbers: Vec<String> = (4..=args.len()).map(|at| format!("${at}")).collect();
        behind = format!(" AND ({key}) > ({})", numbers.join(", "));
    }
    let sql = format!(
        "SELECT {names} FROM {} WHERE tenant = $1 AND {condition}{behind} ORDER BY {key} LIMIT $3",
        table.name
    );
    let args: Vec<&dyn ToSql> = args.iter().map(AsRef::as_ref).collect();
    tx.query(scope, &sql, &args, |row| {
        let object = object(row, table)?;
        let key: Vec<&Json> = table.key.iter().filter_map(|name| object.get(*name)).collect();
        let place = serde_json::to_string(&key).map_err(|_| bad())?;
        Ok((place, Json::Object(object)))
    })
}

fn bad() -> DbError {
    DbError::Column { column: "place".into() }
}

/// The key of a place as arguments.
fn key_of(table: &Table, place: &str) -> Result<Vec<Box<dyn ToSql>>, DbError> {
    let key: Vec<Json> = serde_json::from_str(place).map_err(|_| bad())?;
    if key.len() != table.key.len() {
        return Err(bad());
    }
    let column = |name: &str| table.columns.iter().find(|(column, _)| *column == name);
    let pairs = table.key.iter().zip(key);
    let arg = |(name, value): (&&str, Json)| -> Option<Box<dyn ToSql>> {
        Some(match (column(name)?.1, value) {
            (As::Text, Json::String(text)) => Box::new(text),
            (As::Number, Json::Number(number)) => Box::new(number.as_i64()?),
            (As::Hex, Json::String(text)) => Box::new(hex::decode(text).ok()?),
            _ => return None,
        })
    };
    pairs.map(|pair| arg(pair).ok_or_else(bad)).collect()
}

fn object(row: &Row<'_>, table: &Table) -> Result<Map<String, Json>, DbError> {
    let mut object = Map::new();
    for (at, (name, kind)) in table.columns.iter().enumerate() {
        let value = match kind {
            As::Text => row.get::<Option<String>>(at)?.map(Json::from),
            As::Number => row.get::<Option<i64>>(at)?.map(Json::from),
            As::Json => {
                let text = row.get::<Option<String>>(at)?;
                text.map(|text| serde_json::from_str(&text).unwrap_or(Json::String(text)))
            }
            As::Hex => Some(hex::encode(row.get::<Vec<u8>>(at)?).into()),
        };
        object.insert((*name).to_owned(), value.unwrap_or(Json::Null));
    }
    Ok(object)
}
