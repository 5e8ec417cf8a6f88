//! From columns to the fields of a message: what a row becomes.
//!
//! The way back of [`super::plan`]: each column is the field of its name, and goes
//! into what that file's table has for it.
//!
//! | Column | Also goes into |
//! |---|---|
//! | any whole number | any field of whole numbers, if each value fits; an enum, by its numbers |
//! | REAL, DOUBLE | `float`, `double` |
//! | TEXT | `bytes`; an enum, by its names; a message, as JSON |
//! | TIMESTAMP | `string`; a number, as option `timestamp` says |
//! | DATE, TIME, DECIMAL | `string` |
//!
//! Invariant: a column without a field, or whose type its field does not take, is told
//! before a row is written. Called by the sinks, whose rows [`super::put`] writes.

use super::plan::{is_wrapper, kind_name};
use crate::format::{
    time::Unit,
    typed::{no_field, simple_type},
};
use arrow_schema::{DataType, Field, Fields, Schema, TimeUnit};
use prost_reflect::{Cardinality, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use std::collections::HashMap;

/// How rows of some columns become messages.
#[derive(Debug)]
pub(crate) struct Writer(pub(super) Message);

/// How columns become a message.
#[derive(Debug)]
pub(super) struct Message {
    /// By the field's number, ascending: as other implementations write them.
    pub(super) members: Vec<Member>,
    /// Members of a `oneof`, where it has several, and its name.
    pub(super) ways: Vec<(String, Vec<usize>)>,
}

/// How a column becomes a field.
#[derive(Debug)]
pub(super) struct Member {
    /// Which column.
    pub(super) column: usize,
    pub(super) name: String,
    pub(super) number: u32,
    pub(super) presence: Presence,
    pub(super) shape: Shape,
}

/// Whether a default can be told from an unset field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// It can, so it is written.
    Explicit,
    /// It can't, and is left out.
    Implicit,
    /// It can, and must not be unset.
    Required,
}

/// How often a field is there.
#[derive(Debug)]
pub(super) enum Shape {
    One(To),
    List { of: To, packed: bool },
    Map { key: To, value: To },
}

/// What a value becomes.
#[derive(Debug)]
pub(super) enum To {
    Number(Number),
    /// Text, and what is written as text.
    Text,
    Bytes,
    /// By name, or a number as text.
    Enum(HashMap<String, i32>),
    Timestamp,
    Duration,
    Json(MessageDescriptor),
    Message(Message),
    /// A message with this one field.
    Wrapper(Box<To>),
}

/// A number or boolean.
#[derive(Debug)]
pub(super) struct Number {
    /// What the column is cast to first.
    pub(super) ty: DataType,
    pub(super) wire: Wire,
    /// Of times: what is counted.
    pub(super) count: Option<TimeUnit>,
}

/// How a number lies on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Varint,
    Zigzag,
    Fixed32,
    Fixed64,
}

impl Writer {
    /// Of these columns, as messages of a kind.
    ///
    /// # Errors
    /// When a column has no field, or one of another type, or a field that must be there has no column.
    pub(crate) fn new(message: &MessageDescriptor, columns: &Schema, number: Unit) -> Result<Self, String> {
        Message::new(message, columns.fields(), number, "").map(Self)
    }
}

impl Message {
    fn new(message: &MessageDescriptor, columns: &Fields, unit: Unit, within: &str) -> Result<Self, String> {
        let mut members = Vec::with_capacity(columns.len());
        let mut found = Vec::with_capacity(columns.len());
        for (column, field) in columns.iter().enumerate() {
            let of = message.fields().find(|of| of.name() == field.name() || of.json_name() == field.name());
            let of = of.ok_or_else(|| {
                let fields: Vec<_> = message.fields().collect();
                let names: Vec<&str> = fields.iter().map(|field| field.name()).collect();
                let owner = format!("the message {}", message.full_name());
                format!(
                    "{}: give the column its field's name, as in SELECT … AS total",
                    no_field(&owner, field.name(), &names)
                )
            })?;
            let path = format!("{within}{}", field.name());
            if found.iter().any(|other: &FieldDescriptor| other.number() == of.number()) {
                return Err(format!("column `{path}`: the field `{}` has another column already", of.name()));
            }
            members.push(member(column, &of, field, unit, &path)?);
            found.push(of);
        }
        let there = |field: &FieldDescriptor| found.iter().position(|of| of.number() == field.number());
        if let Some(missing) = message.fields().find(|of| of.is_required() && there(of).is_none()) {
            return Err(format!("the message {} needs its field `{}`", message.full_name(), missing.name()));
        }
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.sort_by_key(|at| members[*at].number);
        let ways = message.oneofs().map(|oneof| {
            let members: Vec<usize> = oneof.fields().filter_map(|field| there(&field)).collect();
            let places = members.iter().filter_map(|at| order.iter().position(|place| place == at));
            (oneof.name().to_string(), places.collect::<Vec<_>>())
        });
        let ways = ways.filter(|(_, members)| members.len() > 1).collect();
        members.sort_by_key(|member| member.number);
        Ok(Self { members, ways })
    }
}

fn member(column: usize, of: &FieldDescriptor, field: &Field, unit: Unit, path: &str) -> Result<Member, String> {
    let ty = simple_type(field.data_type());
    let mismatch = || {
        let hint = if matches!(ty, DataType::Timestamp(..)) && !matches!(of.kind(), Kind::Message(_)) {
            "set option `timestamp` to s, ms or us, or CAST it"
        } else {
            "CAST it in the SELECT"
        };
        format!("column `{path}`: {ty} can't become the schema's {}: {hint}", kind_name(of))
    };
    let shape = match (&ty, of.kind()) {
        (_, _) if of.is_group() => return Err(format!("column `{path}`: groups are not written")),
        (DataType::Map(entries, _), Kind::Message(entry)) if of.is_map() => {
            let DataType::Struct(parts) = entries.data_type() else { return Err(mismatch()) };
            let [key, value] = parts.as_ref() else { return Err(mismatch()) };
            Shape::Map {
                key: key_to(&entry.map_entry_key_field().kind(), &simple_type(key.data_type())).ok_or_else(mismatch)?,
                value: to(&entry.map_entry_value_field().kind(), value, unit, path).ok_or_else(mismatch)??,
            }
        }
        (DataType::List(item), kind) if of.is_list() && !of.is_map() => {
            Shape::List { of: to(&kind, item, unit, path).ok_or_else(mismatch)??, packed: of.is_packed() }
        }
        (_, kind) if !of.is_list() && !of.is_map() => Shape::One(to(&kind, field, unit, path).ok_or_else(mismatch)??),
        _ => return Err(mismatch()),
    };
    let presence = match of.cardinality() {
        Cardinality::Required => Presence::Required,
        _ if of.supports_presence() => Presence::Explicit,
        _ => Presence::Implicit,
    };
    Ok(Member { column, name: field.name().clone(), number: of.number(), presence, shape })
}

/// The number that a kind is; none of what is no number.
fn number(kind: &Kind) -> Option<(DataType, Wire)> {
    Some(match kind {
        Kind::Bool => (DataType::Boolean, Wire::Varint),
        Kind::Float => (DataType::Float32, Wire::Fixed32),
        Kind::Double => (DataType::Float64, Wire::Fixed64),
        Kind::Int32 | Kind::Enum(_) => (DataType::Int32, Wire::Varint),
        Kind::Sint32 => (DataType::Int32, Wire::Zigzag),
        Kind::Sfixed32 => (DataType::Int32, Wire::Fixed32),
        Kind::Int64 => (DataType::Int64, Wire::Varint),
        Kind::Sint64 => (DataType::Int64, Wire::Zigzag),
        Kind::Sfixed64 => (DataType::Int64, Wire::Fixed64),
        Kind::Uint32 => (DataType::UInt32, Wire::Varint),
        Kind::Fixed32 => (DataType::UInt32, Wire::Fixed32),
        Kind::Uint64 => (DataType::UInt64, Wire::Varint),
        Kind::Fixed64 => (DataType::UInt64, Wire::Fixed64),
        Kind::String | Kind::Bytes | Kind::Message(_) => return None,
    })
}

fn is_text(ty: &DataType) -> bool {
    matches!(ty, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_bytes(ty: &DataType) -> bool {
    matches!(ty, DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_))
}

/// A key: of text, also one that is written as a number or boolean.
fn key_to(kind: &Kind, ty: &DataType) -> Option<To> {
    match number(kind) {
        None => is_text(ty).then_some(To::Text),
        Some((to, wire)) => {
            let fits = is_text(ty) || *ty == to || to.is_integer() && ty.is_integer();
            fits.then_some(To::Number(Number { ty: to, wire, count: None }))
        }
    }
}

/// How a value of a column becomes one of a kind; `None` when it can't.
fn to(kind: &Kind, field: &Field, unit: Unit, path: &str) -> Option<Result<To, String>> {
    let ty = simple_type(field.data_type());
    let message = match kind {
        Kind::Enum(of) if is_text(&ty) => return Some(Ok(To::Enum(names(of)))),
        Kind::String => {
            let shown = is_text(&ty)
                || ty.is_decimal()
                || matches!(
                    ty,
                    DataType::Date32
                        | DataType::Date64
                        | DataType::Time32(_)
                        | DataType::Time64(_)
                        | DataType::Timestamp(..)
                );
            return shown.then_some(Ok(To::Text));
        }
        Kind::Bytes => return (is_text(&ty) || is_bytes(&ty)).then_some(Ok(To::Bytes)),
        Kind::Message(message) => message,
        kind => {
            let (to, wire) = number(kind)?;
            let count = match (&ty, unit) {
                (DataType::Timestamp(..), Unit::Seconds) => Some(TimeUnit::Second),
                (DataType::Timestamp(..), Unit::Millis) => Some(TimeUnit::Millisecond),
                (DataType::Timestamp(..), Unit::Micros) => Some(TimeUnit::Microsecond),
                _ => None,
            };
            let fits = to.is_integer() && (ty.is_integer() || count.is_some() && !matches!(kind, Kind::Enum(_)))
                || to.is_floating() && ty.is_floating()
                || ty == to;
            return fits.then_some(Ok(To::Number(Number { ty: to, wire, count })));
        }
    };
    match (message.full_name(), &ty) {
        ("google.protobuf.Timestamp", DataType::Timestamp(..)) => Some(Ok(To::Timestamp)),
        ("google.protobuf.Duration", DataType::Duration(_) | DataType::Int64) => Some(Ok(To::Duration)),
        (name, ty) if is_wrapper(name) && !matches!(ty, DataType::Struct(_)) => {
            let inner = to(&message.get_field(1)?.kind(), field, unit, path)?;
            Some(inner.map(|inner| To::Wrapper(Box::new(inner))))
        }
        (_, DataType::Struct(parts)) => Some(Message::new(message, parts, unit, &format!("{path}.")).map(To::Message)),
        (_, ty) => is_text(ty).then(|| Ok(To::Json(message.clone()))),
    }
}

fn names(of: &EnumDescriptor) -> HashMap<String, i32> {
    of.values().map(|value| (value.name().to_string(), value.number())).collect()
}
