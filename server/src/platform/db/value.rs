//! Values on their way into a statement and out of a row: what both engines can hold.
//!
//! Integers are 64 bits, booleans the integers 0 and 1, texts UTF-8 (PostgreSQL holds U+FFFD for a NUL), and times microseconds as integers.

use super::DbError;

/// A statement's argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Param<'a> {
    /// NULL.
    Null,
    /// BIGINT, or any smaller integer that it fits.
    Int(i64),
    /// TEXT.
    Text(&'a str),
    /// BYTEA.
    Blob(&'a [u8]),
}

/// What can be a statement's argument.
pub trait ToSql {
    /// As an argument.
    fn param(&self) -> Param<'_>;
}

macro_rules! ints {
    ($($int:ty),*) => {$(
        impl ToSql for $int {
            fn param(&self) -> Param<'_> {
                Param::Int(i64::from(*self))
            }
        }
    )*};
}
ints!(bool, i32, i64, u8, u32);

impl ToSql for str {
    fn param(&self) -> Param<'_> {
        Param::Text(self)
    }
}

impl ToSql for String {
    fn param(&self) -> Param<'_> {
        Param::Text(self)
    }
}

impl ToSql for [u8] {
    fn param(&self) -> Param<'_> {
        Param::Blob(self)
    }
}

impl ToSql for Vec<u8> {
    fn param(&self) -> Param<'_> {
        Param::Blob(self)
    }
}

impl<const N: usize> ToSql for [u8; N] {
    fn param(&self) -> Param<'_> {
        Param::Blob(self)
    }
}

impl<T: ToSql> ToSql for Option<T> {
    fn param(&self) -> Param<'_> {
        self.as_ref().map_or(Param::Null, ToSql::param)
    }
}

impl<T: ToSql + ?Sized> ToSql for &T {
    fn param(&self) -> Param<'_> {
        (*self).param()
    }
}

/// A row's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Column<'a> {
    /// NULL.
    Null,
    /// Any integer.
    Int(i64),
    /// TEXT.
    Text(&'a str),
    /// BYTEA.
    Blob(&'a [u8]),
}

/// What a row's value can become.
pub trait FromSql: Sized {
    /// None where the value is of another type, or out of range.
    fn from_column(column: Column<'_>) -> Option<Self>;
}

macro_rules! from_ints {
    ($($int:ty),*) => {$(
        impl FromSql for $int {
            fn from_column(column: Column<'_>) -> Option<Self> {
                match column {
                    Column::Int(value) => Self::try_from(value).ok(),
                    _ => None,
                }
            }
        }
    )*};
}
from_ints!(i32, i64, u8, u32);

impl FromSql for bool {
    fn from_column(column: Column<'_>) -> Option<Self> {
        match column {
            Column::Int(value) => Some(value != 0),
            _ => None,
        }
    }
}

impl FromSql for String {
    fn from_column(column: Column<'_>) -> Option<Self> {
        match column {
            Column::Text(text) => Some(text.to_owned()),
            _ => None,
        }
    }
}

impl FromSql for Vec<u8> {
    fn from_column(column: Column<'_>) -> Option<Self> {
        match column {
            Column::Blob(bytes) => Some(bytes.to_vec()),
            _ => None,
        }
    }
}

impl<const N: usize> FromSql for [u8; N] {
    fn from_column(column: Column<'_>) -> Option<Self> {
        match column {
            Column::Blob(bytes) => bytes.try_into().ok(),
            _ => None,
        }
    }
}

impl<T: FromSql> FromSql for Option<T> {
    fn from_column(column: Column<'_>) -> Option<Self> {
        match column {
            Column::Null => Some(None),
            column => T::from_column(column).map(Some),
        }
    }
}

pub(super) fn read<T: FromSql>(column: Column<'_>, at: usize) -> Result<T, DbError> {
    T::from_column(column).ok_or_else(|| DbError::Column { column: format!("{at}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_another_type_or_out_of_range_is_refused() {
        assert_eq!(read::<i64>(Column::Int(-5), 0).unwrap(), -5);
        assert_eq!(read::<Option<String>>(Column::Null, 0).unwrap(), None);
        assert!(read::<u32>(Column::Int(-5), 3).unwrap_err().to_string().contains("column 3"));
        assert!(read::<String>(Column::Null, 0).is_err());
        assert!(read::<[u8; 2]>(Column::Blob(&[1]), 0).is_err());
        assert!(read::<i64>(Column::Text("1"), 0).is_err(), "nothing is converted in silence");
    }
}
