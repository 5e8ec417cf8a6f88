//! Columns from sample records.
//!
//! Invariant: every sampled record that is an object decodes under the schema
//! found. Called by [`super::JsonFormat::infer`].

use super::super::{
    column::{TAKES, nullable},
    time,
};
use super::scan::MARK;
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use serde_json::{Map, Value};
use std::{collections::HashMap, sync::Arc};
use tidemill_core::{Error, Result};

/// What was seen at one place so far.
#[derive(Debug, Clone, PartialEq)]
enum Seen {
    Nothing,
    Bool,
    Int,
    Float,
    Time,
    Text,
    List(Box<Seen>),
    /// Members in the order of their first appearance.
    Object(Vec<(String, Seen)>),
    Mixed,
}

pub(super) fn schema(sample: &[&[u8]]) -> Result<SchemaRef> {
    let unmarked = |record: &&'_ [u8]| -> Option<Map<String, Value>> {
        let text = std::str::from_utf8(record).ok()?;
        serde_json::from_str(text.strip_prefix(MARK).unwrap_or(text)).ok()
    };
    let objects = sample.iter().filter_map(unmarked);
    let Seen::Object(members) = objects.map(|o| object(&o)).fold(Seen::Object(Vec::new()), merge) else {
        return Err(Error::internal("objects merge to an object"));
    };
    if members.is_empty() {
        return Err(Error::user(format!(
            "format `json`: none of {} sampled records is an object with members; declare the columns",
            sample.len()
        )));
    }
    Ok(Arc::new(Schema::new(members.iter().map(|(name, seen)| field(name, seen)).collect::<Vec<_>>())))
}

fn object(members: &Map<String, Value>) -> Seen {
    Seen::Object(members.iter().map(|(name, value)| (name.clone(), look(value))).collect())
}

fn look(value: &Value) -> Seen {
    match value {
        Value::Null => Seen::Nothing,
        Value::Bool(_) => Seen::Bool,
        Value::Number(n) if n.is_i64() => Seen::Int,
        Value::Number(_) => Seen::Float,
        Value::String(text) if text.len() > 10 && time::instant(text).is_some() => Seen::Time,
        Value::String(_) => Seen::Text,
        Value::Array(items) => Seen::List(Box::new(items.iter().map(look).fold(Seen::Nothing, merge))),
        Value::Object(members) => object(members),
    }
}

fn merge(a: Seen, b: Seen) -> Seen {
    match (a, b) {
        (Seen::Nothing, seen) | (seen, Seen::Nothing) => seen,
        (Seen::Int, Seen::Float) | (Seen::Float, Seen::Int) => Seen::Float,
        (Seen::Time, Seen::Text) | (Seen::Text, Seen::Time) => Seen::Text,
        (Seen::List(a), Seen::List(b)) => Seen::List(Box::new(merge(*a, *b))),
        (Seen::Object(mut members), Seen::Object(more)) => {
            for (name, seen) in more {
                match members.iter_mut().find(|(n, _)| *n == name) {
                    Some((_, known)) => *known = merge(std::mem::replace(known, Seen::Nothing), seen),
                    None => members.push((name, seen)),
                }
            }
            Seen::Object(members)
        }
        (a, b) if a == b => a,
        _ => Seen::Mixed,
    }
}

fn field(name: &str, seen: &Seen) -> Field {
    let ty = match seen {
        Seen::Bool => DataType::Boolean,
        Seen::Int => DataType::Int64,
        Seen::Float => DataType::Float64,
        Seen::Time => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Seen::List(item) => DataType::List(Arc::new(field("item", item))),
        Seen::Object(members) if !members.is_empty() => {
            DataType::Struct(members.iter().map(|(name, seen)| field(name, seen)).collect())
        }
        Seen::Nothing | Seen::Text | Seen::Mixed | Seen::Object(_) => DataType::Utf8,
    };
    // Null so far, or of several types: whatever comes is welcome.
    let any = matches!(seen, Seen::Mixed | Seen::Nothing);
    let metadata = any.then(|| (TAKES.to_string(), "any".to_string()));
    nullable(name, ty).with_metadata(HashMap::from_iter(metadata))
}
