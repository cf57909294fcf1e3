//! A reading's value: f64, bool or short text.

use minicbor::data::Type;
use minicbor::{Decoder, Encoder, decode, encode};

/// The longest text value, in bytes.
pub const TEXT_BYTES_MAX: usize = 256;

/// A value that a reading may carry. Finite numbers only.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// True or false.
    Bool(bool),
    /// A finite number.
    Number(f64),
    /// Text of at most [`TEXT_BYTES_MAX`] bytes.
    Text(String),
}

/// Why a value is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone, Copy)]
pub enum ValueError {
    /// NaN, or an infinity.
    #[error("value is not a finite number")]
    NotFinite,
    /// Longer than [`TEXT_BYTES_MAX`].
    #[error("text value is longer than {TEXT_BYTES_MAX} bytes")]
    TextTooLong,
}

impl Value {
    /// Checks the value's own rules.
    ///
    /// # Errors
    /// A number that is not finite; a text that is too long.
    pub fn check(&self) -> Result<(), ValueError> {
        match self {
            Self::Number(number) if !number.is_finite() => Err(ValueError::NotFinite),
            Self::Text(text) if text.len() > TEXT_BYTES_MAX => Err(ValueError::TextTooLong),
            _ => Ok(()),
        }
    }

    /// The number, where it is one.
    #[must_use]
    pub fn as_number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }
}

impl<C> minicbor::Encode<C> for Value {
    /// Numbers take the shorter of f32 and f64 that loses nothing.
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        match self {
            Self::Bool(flag) => e.bool(*flag)?,
            #[allow(clippy::cast_possible_truncation, clippy::float_cmp)]
            Self::Number(number) if f64::from(*number as f32) == *number => e.f32(*number as f32)?,
            Self::Number(number) => e.f64(*number)?,
            Self::Text(text) => e.str(text)?,
        };
        Ok(())
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Value {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let value = match d.datatype()? {
            Type::Bool => Self::Bool(d.bool()?),
            Type::F32 => Self::Number(f64::from(d.f32()?)),
            Type::F64 => Self::Number(d.f64()?),
            Type::String => Self::Text(d.str()?.to_owned()),
            Type::U8
            | Type::U16
            | Type::U32
            | Type::U64
            | Type::I8
            | Type::I16
            | Type::I32
            | Type::I64
            | Type::Int =>
            {
                #[allow(clippy::cast_precision_loss)]
                Self::Number(i128::from(d.int()?) as f64)
            }
            _ => return Err(decode::Error::message("value: expected a number, a bool or a text")),
        };
        value
            .check()
            .map_err(|_| decode::Error::message("value: must be finite, or text of at most 256 bytes"))?;
        Ok(value)
    }
}
