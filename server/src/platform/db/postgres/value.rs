//! Values in PostgreSQL's binary format.

use super::super::value::{Column, Param};
use super::DbError;
use bytes::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

type Failure = Box<dyn std::error::Error + Sync + Send>;

impl ToSql for Param<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Failure> {
        match (self, ty) {
            (Self::Null, _) => Ok(IsNull::Yes),
            (Self::Int(value), &Type::INT8) => value.to_sql(ty, out),
            (Self::Int(value), &Type::INT4) => i32::try_from(*value)?.to_sql(ty, out),
            (Self::Int(value), &Type::INT2) => i16::try_from(*value)?.to_sql(ty, out),
            // The one character that a text cannot hold there; a device or a person may have sent it.
            (Self::Text(text), &(Type::TEXT | Type::VARCHAR | Type::NAME | Type::UNKNOWN))
                if text.contains('\0') =>
            {
                text.replace('\0', "\u{fffd}").to_sql(ty, out)
            }
            (Self::Text(text), &(Type::TEXT | Type::VARCHAR | Type::NAME | Type::UNKNOWN)) => {
                text.to_sql(ty, out)
            }
            (Self::Blob(bytes), &Type::BYTEA) => bytes.to_sql(ty, out),
            _ => Err(format!("the statement takes {ty} there, not {self:?}").into()),
        }
    }

    fn accepts(_: &Type) -> bool {
        // Which values a type takes depends on the value.
        true
    }

    to_sql_checked!();
}

struct Raw<'a>(Column<'a>);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(ty: &Type, bytes: &'a [u8]) -> Result<Self, Failure> {
        Ok(Self(match *ty {
            Type::INT8 => Column::Int(i64::from_sql(ty, bytes)?),
            Type::INT4 => Column::Int(i32::from_sql(ty, bytes)?.into()),
            Type::INT2 => Column::Int(i16::from_sql(ty, bytes)?.into()),
            Type::BOOL => Column::Int(bool::from_sql(ty, bytes)?.into()),
            Type::BYTEA => Column::Blob(bytes),
            _ => Column::Text(<&str>::from_sql(ty, bytes)?),
        }))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Failure> {
        Ok(Self(Column::Null))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(
            *ty,
            Type::INT8
                | Type::INT4
                | Type::INT2
                | Type::BOOL
                | Type::BYTEA
                | Type::TEXT
                | Type::VARCHAR
                | Type::NAME
        )
    }
}

/// A row's value, of the types that both engines have.
pub(in crate::platform::db) fn column(row: &tokio_postgres::Row, at: usize) -> Result<Column<'_>, DbError> {
    row.try_get::<_, Raw<'_>>(at).map(|raw| raw.0).map_err(|_| DbError::Column { column: at.to_string() })
}
