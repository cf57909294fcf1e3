//! SenML (RFC 8428) packs of foreign devices, as JSON or CBOR, resolved into readings.
//!
//! Base name, time, unit, value and sum are applied; a sum (`s`) becomes the metric `<name>:sum`.
//! Refused: data values (`vd`; a reading is a number, a bool or a short text), a `bver` above 10, and
//! unknown fields that end in `_`, which RFC 8428 (4.4) says must be understood.
//!
//! Limits: [`SENML_BYTES_MAX`] a pack, [`READINGS_MAX`] records, the metric name's and value's own.

use crate::message::{READINGS_MAX, check_metric_name};
use crate::{Value, WireError};
use minicbor::Decoder;
use minicbor::data::Type;

/// The largest pack, in bytes.
pub const SENML_BYTES_MAX: usize = 64 * 1024;
/// The longest unit, in bytes.
pub const UNIT_BYTES_MAX: usize = 16;

/// RFC 8428 (4.5.3): times below 2^28 seconds are relative to the time of reception.
const ABSOLUTE_FROM_S: f64 = 268_435_456.0;
/// Seconds that microseconds in 64 bits can hold (the year 294,000).
const SECONDS_MAX: f64 = 9.2e12;
const VERSION_MAX: f64 = 10.0;
const WHAT: &str = "senml";

/// When a value was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Microseconds since 1970 (UTC).
    Absolute(i64),
    /// Microseconds to add to the time of reception; 0 where the pack tells no time.
    Relative(i64),
}

/// One resolved value.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// Base name and name.
    pub metric: String,
    /// Base value added where it is a number.
    pub value: Value,
    /// The unit, in SenML's registry or not.
    pub unit: Option<String>,
    /// Base time and time.
    pub moment: Moment,
}

/// One record of a pack as it stands.
#[derive(Default)]
struct Entry {
    version: Option<f64>,
    base_name: Option<String>,
    base_time: Option<f64>,
    base_unit: Option<String>,
    base_value: Option<f64>,
    base_sum: Option<f64>,
    name: Option<String>,
    unit: Option<String>,
    number: Option<f64>,
    text: Option<String>,
    flag: Option<bool>,
    sum: Option<f64>,
    time: Option<f64>,
    has_data: bool,
}

/// Decodes a pack; JSON where the first byte says so, else CBOR.
///
/// # Errors
/// Too large, malformed, or against a rule of SenML or of readings.
pub fn decode(bytes: &[u8]) -> Result<Vec<Resolved>, WireError> {
    if bytes.len() > SENML_BYTES_MAX {
        return Err(WireError::TooLarge { what: WHAT, bytes: bytes.len(), max: SENML_BYTES_MAX });
    }
    let json = matches!(bytes.first(), Some(b'[' | b' ' | b'\t' | b'\r' | b'\n'));
    let entries = if json { from_json(bytes)? } else { from_cbor(bytes)? };
    resolve(entries)
}

fn malformed(why: impl ToString) -> WireError {
    WireError::Malformed { what: WHAT, why: why.to_string() }
}

fn rule(at: usize, field: &str, rule: &'static str) -> WireError {
    WireError::Rule { what: WHAT, field: format!("[{at}].{field}"), rule }
}

fn from_json(bytes: &[u8]) -> Result<Vec<Entry>, WireError> {
    type Object = serde_json::Map<String, serde_json::Value>;
    let objects: Vec<Object> = serde_json::from_slice(bytes).map_err(malformed)?;
    objects.into_iter().enumerate().map(|(at, object)| json_entry(at, object)).collect()
}

fn json_entry(at: usize, object: serde_json::Map<String, serde_json::Value>) -> Result<Entry, WireError> {
    use serde_json::Value as Json;
    let number = |field: &str, json: &Json| json.as_f64().ok_or_else(|| rule(at, field, "must be a number"));
    let text = |field: &str, json: Json| match json {
        Json::String(text) => Ok(text),
        _ => Err(rule(at, field, "must be a text")),
    };
    let mut entry = Entry::default();
    for (field, json) in object {
        match field.as_str() {
            "bver" => entry.version = Some(number(&field, &json)?),
            "bn" => entry.base_name = Some(text(&field, json)?),
            "bt" => entry.base_time = Some(number(&field, &json)?),
            "bu" => entry.base_unit = Some(text(&field, json)?),
            "bv" => entry.base_value = Some(number(&field, &json)?),
            "bs" => entry.base_sum = Some(number(&field, &json)?),
            "n" => entry.name = Some(text(&field, json)?),
            "u" => entry.unit = Some(text(&field, json)?),
            "v" => entry.number = Some(number(&field, &json)?),
            "vs" => entry.text = Some(text(&field, json)?),
            "vb" => entry.flag = Some(json.as_bool().ok_or_else(|| rule(at, &field, "must be a bool"))?),
            "s" => entry.sum = Some(number(&field, &json)?),
            "t" => entry.time = Some(number(&field, &json)?),
            "vd" => entry.has_data = true,
            unknown if unknown.ends_with('_') => {
                return Err(rule(at, "unknown_", "must be understood and is not"));
            }
            _ => {}
        }
    }
    Ok(entry)
}

fn from_cbor(bytes: &[u8]) -> Result<Vec<Entry>, WireError> {
    let mut d = Decoder::new(bytes);
    let mut entries = Vec::new();
    let mut left = d.array().map_err(malformed)?;
    while more(&mut d, &mut left)? {
        if entries.len() == READINGS_MAX {
            return Err(rule(READINGS_MAX, "", "must hold 1 to 1000 records"));
        }
        entries.push(cbor_entry(&mut d, entries.len())?);
    }
    if d.position() != bytes.len() {
        return Err(malformed("bytes after the pack"));
    }
    Ok(entries)
}

/// Whether an array or map has another item; counts a definite one down, eats an indefinite one's break.
fn more(d: &mut Decoder<'_>, left: &mut Option<u64>) -> Result<bool, WireError> {
    match left {
        Some(0) => Ok(false),
        Some(count) => {
            *count -= 1;
            Ok(true)
        }
        None if d.datatype().map_err(malformed)? == Type::Break => {
            d.skip().map_err(malformed).map(|()| false)
        }
        None => Ok(true),
    }
}

fn cbor_entry(d: &mut Decoder<'_>, at: usize) -> Result<Entry, WireError> {
    let mut entry = Entry::default();
    let mut left = d.map().map_err(malformed)?;
    while more(d, &mut left)? {
        if matches!(d.datatype().map_err(malformed)?, Type::String) {
            if d.str().map_err(malformed)?.ends_with('_') {
                return Err(rule(at, "unknown_", "must be understood and is not"));
            }
            d.skip().map_err(malformed)?;
            continue;
        }
        match d.i64().map_err(malformed)? {
            -1 => entry.version = Some(cbor_number(d)?),
            -2 => entry.base_name = Some(cbor_text(d)?),
            -3 => entry.base_time = Some(cbor_number(d)?),
            -4 => entry.base_unit = Some(cbor_text(d)?),
            -5 => entry.base_value = Some(cbor_number(d)?),
            -6 => entry.base_sum = Some(cbor_number(d)?),
            0 => entry.name = Some(cbor_text(d)?),
            1 => entry.unit = Some(cbor_text(d)?),
            2 => entry.number = Some(cbor_number(d)?),
            3 => entry.text = Some(cbor_text(d)?),
            4 => entry.flag = Some(d.bool().map_err(malformed)?),
            5 => entry.sum = Some(cbor_number(d)?),
            6 => entry.time = Some(cbor_number(d)?),
            8 => {
                entry.has_data = true;
                d.skip().map_err(malformed)?;
            }
            _ => d.skip().map_err(malformed)?,
        }
    }
    Ok(entry)
}

fn cbor_text(d: &mut Decoder<'_>) -> Result<String, WireError> {
    d.str().map(str::to_owned).map_err(malformed)
}

fn cbor_number(d: &mut Decoder<'_>) -> Result<f64, WireError> {
    match d.datatype().map_err(malformed)? {
        Type::F16 => return half(d),
        Type::F32 => d.f32().map(f64::from),
        Type::F64 => d.f64(),
        #[allow(clippy::cast_precision_loss, reason = "SenML numbers are as exact as f64")]
        _ => d.int().map(|int| i128::from(int) as f64),
    }
    .map_err(malformed)
}

/// A 16-bit float, as RFC 8949 (appendix D) decodes it.
fn half(d: &mut Decoder<'_>) -> Result<f64, WireError> {
    let at = d.position() + 1;
    let bytes = d.input().get(at..at + 2).ok_or_else(|| malformed("a number is cut short"))?;
    let bits = u16::from_be_bytes([bytes[0], bytes[1]]);
    d.skip().map_err(malformed)?;
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    let size = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (fraction + 1024.0) * 2f64.powi(exponent - 25),
    };
    Ok(if bits & 0x8000 == 0 { size } else { -size })
}

#[derive(Default)]
struct Base {
    name: String,
    time: f64,
    unit: Option<String>,
    value: f64,
    sum: f64,
}

fn resolve(entries: Vec<Entry>) -> Result<Vec<Resolved>, WireError> {
    if !(1..=READINGS_MAX).contains(&entries.len()) {
        return Err(rule(entries.len(), "", "must hold 1 to 1000 records"));
    }
    let mut base = Base::default();
    let mut all = Vec::with_capacity(entries.len());
    for (at, mut entry) in entries.into_iter().enumerate() {
        rebase(&mut base, &mut entry, at)?;
        let name = format!("{}{}", base.name, entry.name.as_deref().unwrap_or(""));
        let moment =
            moment(base.time + entry.time.unwrap_or(0.0)).ok_or_else(|| rule(at, "t", "is out of range"))?;
        let unit = entry.unit.take().or_else(|| base.unit.clone());
        if unit.as_ref().is_some_and(|unit| unit.len() > UNIT_BYTES_MAX) {
            return Err(rule(at, "u", "must be at most 16 bytes"));
        }
        let sum = entry.sum.map(|sum| Value::Number(base.sum + sum));
        let value = value(&base, entry, at)?;
        let named = [(value, name.clone()), (sum, format!("{name}:sum"))];
        for (value, metric) in named.into_iter().filter_map(|(value, metric)| Some((value?, metric))) {
            check_metric_name(&metric).map_err(|why| rule(at, "n", why))?;
            value.check().map_err(|_| rule(at, "v", "must be finite, or text of at most 256 bytes"))?;
            all.push(Resolved { metric, value, unit: unit.clone(), moment });
        }
    }
    if !(1..=READINGS_MAX).contains(&all.len()) {
        return Err(rule(all.len(), "", "must hold 1 to 1000 values"));
    }
    Ok(all)
}

fn rebase(base: &mut Base, entry: &mut Entry, at: usize) -> Result<(), WireError> {
    if entry.version.is_some_and(|version| version > VERSION_MAX) {
        return Err(rule(at, "bver", "must be at most 10"));
    }
    if entry.has_data {
        return Err(rule(at, "vd", "is not stored: send a number, a bool or a text"));
    }
    if let Some(name) = entry.base_name.take() {
        base.name = name;
    }
    if let Some(unit) = entry.base_unit.take() {
        base.unit = Some(unit);
    }
    base.time = entry.base_time.unwrap_or(base.time);
    base.value = entry.base_value.unwrap_or(base.value);
    base.sum = entry.base_sum.unwrap_or(base.sum);
    Ok(())
}

fn value(base: &Base, entry: Entry, at: usize) -> Result<Option<Value>, WireError> {
    match (entry.number, entry.text, entry.flag) {
        (None, None, None) => Ok(None),
        (Some(number), None, None) => Ok(Some(Value::Number(base.value + number))),
        (None, Some(text), None) => Ok(Some(Value::Text(text))),
        (None, None, Some(flag)) => Ok(Some(Value::Bool(flag))),
        _ => Err(rule(at, "v", "must be the only value of its record")),
    }
}

fn moment(seconds: f64) -> Option<Moment> {
    if !seconds.is_finite() || seconds.abs() > SECONDS_MAX {
        return None;
    }
    #[allow(clippy::cast_possible_truncation, reason = "bounded above")]
    let us = (seconds * 1e6).round() as i64;
    Some(if seconds >= ABSOLUTE_FROM_S { Moment::Absolute(us) } else { Moment::Relative(us) })
}
