//! `json_get`, `json_get_int`, `json_get_float`, `json_get_bool`: a value out of a JSON text.
//!
//! ```sql
//! json_get(raw, 'user.name'), json_get_int(raw, 'entities.urls[0].count')
//! ```
//!
//! A path has keys divided by dots, and places in arrays as `[0]` (or a key that
//! is a number). What is not there, is null, is of another type, or stands in a
//! text that is no JSON gives null. Only what is on the path is decoded.

use arrow_array::{
    Array, ArrayRef, StringArray,
    builder::{BooleanBuilder, Float64Builder, Int64Builder, StringBuilder},
    cast::AsArray,
};
use arrow_schema::DataType;
use datafusion::{
    common::{Result as DfResult, exec_datafusion_err},
    logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility},
    scalar::ScalarValue,
};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::{fmt, sync::Arc};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum As {
    Text,
    Int,
    Float,
    Bool,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct JsonGet {
    kind: As,
    signature: Signature,
}

pub(super) fn all() -> impl Iterator<Item = ScalarUDF> {
    [As::Text, As::Int, As::Float, As::Bool].into_iter().map(|kind| {
        let signature = Signature::exact(vec![DataType::Utf8, DataType::Utf8], Volatility::Immutable);
        ScalarUDF::from(JsonGet { kind, signature })
    })
}

impl ScalarUDFImpl for JsonGet {
    fn name(&self) -> &str {
        match self.kind {
            As::Text => "json_get",
            As::Int => "json_get_int",
            As::Float => "json_get_float",
            As::Bool => "json_get_bool",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> DfResult<DataType> {
        Ok(match self.kind {
            As::Text => DataType::Utf8,
            As::Int => DataType::Int64,
            As::Float => DataType::Float64,
            As::Bool => DataType::Boolean,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        // A path that is the same for all rows is taken apart once.
        let fixed = match &args.args[1] {
            ColumnarValue::Scalar(ScalarValue::Utf8(Some(path))) => Some(steps(path)),
            _ => None,
        };
        let columns = ColumnarValue::values_to_arrays(&args.args)?;
        let text = |at: usize| -> DfResult<&StringArray> {
            columns[at].as_string_opt::<i32>().ok_or_else(|| exec_datafusion_err!("{} takes texts", self.name()))
        };
        let (texts, paths) = (text(0)?, text(1)?);
        let found = (0..texts.len()).map(|row| {
            if texts.is_null(row) || paths.is_null(row) {
                return None;
            }
            match &fixed {
                Some(steps) => get(texts.value(row), steps),
                None => get(texts.value(row), &steps(paths.value(row))),
            }
        });
        let column: ArrayRef = match self.kind {
            As::Text => {
                let mut out = StringBuilder::new();
                for value in found {
                    match value {
                        Some(Value::String(text)) => out.append_value(text),
                        Some(other) => out.append_value(other.to_string()),
                        None => out.append_null(),
                    }
                }
                Arc::new(out.finish())
            }
            As::Int => {
                let mut out = Int64Builder::with_capacity(texts.len());
                found.for_each(|value| out.append_option(value.and_then(|v| v.as_i64())));
                Arc::new(out.finish())
            }
            As::Float => {
                let mut out = Float64Builder::with_capacity(texts.len());
                found.for_each(|value| out.append_option(value.and_then(|v| v.as_f64())));
                Arc::new(out.finish())
            }
            As::Bool => {
                let mut out = BooleanBuilder::with_capacity(texts.len());
                found.for_each(|value| out.append_option(value.and_then(|v| v.as_bool())));
                Arc::new(out.finish())
            }
        };
        Ok(ColumnarValue::Array(column))
    }
}

/// `a.b[0]` as its keys and places.
fn steps(path: &str) -> Vec<&str> {
    path.trim_start_matches("$.").split(['.', '[', ']']).filter(|step| !step.is_empty()).collect()
}

/// The value at a path; `None` when there is none, or it is null.
fn get(text: &str, steps: &[&str]) -> Option<Value> {
    let mut json = serde_json::Deserializer::from_str(text);
    let found = Follow(steps).deserialize(&mut json).ok()?;
    json.end().ok()?;
    found.filter(|value| !value.is_null())
}

/// Decodes what is at the path and skips the rest.
struct Follow<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Follow<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        if self.0.is_empty() {
            return serde::Deserialize::deserialize(json).map(Some);
        }
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Follow<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_it) = map.next_key_seed(Is(self.0[0]))? {
            if is_it {
                found = map.next_value_seed(Follow(&self.0[1..]))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let (mut found, mut place) = (None, 0_usize);
        let wanted = self.0[0].parse::<usize>().ok();
        loop {
            if wanted == Some(place) {
                match seq.next_element_seed(Follow(&self.0[1..]))? {
                    Some(value) => found = value,
                    None => return Ok(found),
                }
            } else if seq.next_element::<IgnoredAny>()?.is_none() {
                return Ok(found);
            }
            place += 1;
        }
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// Whether a key is the one that is looked for, without keeping it.
struct Is<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<bool, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}
