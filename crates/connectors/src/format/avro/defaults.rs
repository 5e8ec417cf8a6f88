//! A default of a schema as the bytes that its type would have.
//!
//! So a missing field is read like one that is there. Invariant: what is written
//! is whole for its type, or an error says what does not fit. Called by
//! [`super::resolve`].

use super::{
    schema::{Id, Schema, Type},
    wire::{DEPTH, put_bytes, put_long},
};
use serde_json::Value;

/// Appends a default's bytes.
pub(super) fn encode(schema: &Schema, id: Id, value: &Value, bytes: &mut Vec<u8>) -> Result<(), String> {
    put(schema, id, value, bytes, DEPTH)
}

fn put(schema: &Schema, id: Id, value: &Value, bytes: &mut Vec<u8>, depth: usize) -> Result<(), String> {
    let below = depth.checked_sub(1).ok_or("it lies too deep")?;
    let wrong = || format!("it is no {}", schema.name(id));
    match &schema.get(id).ty {
        Type::Null => value.as_null().ok_or_else(wrong),
        Type::Boolean => value.as_bool().map(|value| bytes.push(u8::from(value))).ok_or_else(wrong),
        Type::Int => {
            let int = value.as_i64().and_then(|value| i32::try_from(value).ok());
            int.map(|value| put_long(value.into(), bytes)).ok_or_else(wrong)
        }
        Type::Long => value.as_i64().map(|value| put_long(value, bytes)).ok_or_else(wrong),
        #[expect(clippy::cast_possible_truncation, reason = "the schema's type is that coarse")]
        Type::Float => number(value).map(|v| bytes.extend((v as f32).to_le_bytes())).ok_or_else(wrong),
        Type::Double => number(value).map(|v| bytes.extend(v.to_le_bytes())).ok_or_else(wrong),
        Type::Bytes => latin(value).map(|value| put_bytes(&value, bytes)).ok_or_else(wrong),
        Type::String => value.as_str().map(|text| put_bytes(text.as_bytes(), bytes)).ok_or_else(wrong),
        Type::Fixed(size) => {
            let fixed = latin(value).filter(|fixed| fixed.len() == *size);
            fixed.map(|fixed| bytes.extend(fixed)).ok_or_else(wrong)
        }
        Type::Enum { symbols, .. } => {
            let place = value.as_str().and_then(|text| symbols.iter().position(|symbol| symbol == text));
            place.and_then(|at| i64::try_from(at).ok()).map(|at| put_long(at, bytes)).ok_or_else(wrong)
        }
        Type::Array(item) => {
            let items = value.as_array().ok_or_else(wrong)?;
            if !items.is_empty() {
                put_long(i64::try_from(items.len()).unwrap_or(i64::MAX), bytes);
            }
            items.iter().try_for_each(|value| put(schema, *item, value, bytes, below))?;
            put_long(0, bytes);
            Ok(())
        }
        Type::Map(of) => {
            let entries = value.as_object().ok_or_else(wrong)?;
            if !entries.is_empty() {
                put_long(i64::try_from(entries.len()).unwrap_or(i64::MAX), bytes);
            }
            for (key, value) in entries {
                put_bytes(key.as_bytes(), bytes);
                put(schema, *of, value, bytes, below)?;
            }
            put_long(0, bytes);
            Ok(())
        }
        // The specification wants the first branch; later versions take any that fits.
        Type::Union(branches) => {
            for (at, branch) in branches.iter().enumerate() {
                let before = bytes.len();
                put_long(i64::try_from(at).unwrap_or(i64::MAX), bytes);
                if put(schema, *branch, value, bytes, below).is_ok() {
                    return Ok(());
                }
                bytes.truncate(before);
            }
            Err(wrong())
        }
        Type::Record { fields, .. } => {
            let given = value.as_object().ok_or_else(wrong)?;
            fields.iter().try_for_each(|field| {
                let value = given.get(&field.name).or(field.default.as_ref());
                let value = value.ok_or_else(|| format!("field \"{}\" has no default", field.name))?;
                put(schema, field.ty, value, bytes, below)
            })
        }
    }
}

/// A number, or one of the texts that stand for those that JSON has not.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| match value.as_str()? {
        "NaN" => Some(f64::NAN),
        "Infinity" | "INF" => Some(f64::INFINITY),
        "-Infinity" | "-INF" => Some(f64::NEG_INFINITY),
        _ => None,
    })
}

/// Bytes of a text whose characters are one each.
fn latin(value: &Value) -> Option<Vec<u8>> {
    value.as_str()?.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}
