//! Rows as the bytes of messages.
//!
//! Columns are brought to the types of their fields all at once; then each row is
//! written along them. A message within is written first, and its length put in
//! front of it.
//!
//! Invariant: the bytes of a row are those of a message of its schema, or the row is
//! an error that names the column and the value; nothing that is not NULL is left out
//! but defaults that can't be told from an unset field. Called by the sinks.

use super::write::{Member, Message, Number, Presence, Shape, To, Wire, Writer};
use crate::format::typed::simple;
use arrow_array::{
    Array, ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, UInt64Array, cast::AsArray, types,
};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_cast::{cast, display::array_value_to_string};
use arrow_schema::{ArrowError, DataType, TimeUnit};
use prost_reflect::{DynamicMessage, MessageDescriptor, prost::Message as _};
use std::{collections::HashMap, fmt, ops::Range, sync::Arc};
use tidemill_core::{Error, Result};

/// Rows that are ready to be written.
pub(crate) struct Rows<'a>(Ready<'a>);

impl Writer {
    /// Rows that are ready to be written.
    ///
    /// # Errors
    /// When they are not of the columns that the writer was made for.
    pub(crate) fn rows<'a>(&'a self, rows: &RecordBatch) -> Result<Rows<'a>> {
        let ready = Ready::new(&self.0, rows.columns());
        ready.map(Rows).map_err(|e| Error::user("protobuf: these columns can't be written").because(e))
    }
}

impl Rows<'_> {
    /// Appends a row.
    ///
    /// # Errors
    /// When a value does not fit its field.
    pub(crate) fn put(&self, row: usize, bytes: &mut Vec<u8>) -> Result<()> {
        self.0.put(row, bytes).map_err(|why| {
            Error::user(format!(
                "protobuf: {why}: change it in the SELECT (CAST, coalesce, CASE), or leave the row out with WHERE"
            ))
        })
    }

    /// Whether all of so many rows fit their fields.
    ///
    /// # Errors
    /// As [`Rows::put`], of the first that does not.
    #[cfg(any(feature = "kafka", feature = "objects"))]
    pub(crate) fn prove(&self, rows: usize) -> Result<()> {
        let mut bytes = Vec::new();
        (0..rows).try_for_each(|row| {
            bytes.clear();
            self.put(row, &mut bytes)
        })
    }

    /// Appends a row behind its length.
    ///
    /// # Errors
    /// As [`Rows::put`].
    pub(crate) fn put_delimited(&self, row: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let from = bytes.len();
        self.put(row, bytes)?;
        put_length(from, bytes);
        Ok(())
    }
}

/// A message, and its columns.
struct Ready<'a> {
    plan: &'a Message,
    nodes: Vec<Node<'a>>,
}

/// A field, and its column.
struct Node<'a> {
    member: &'a Member,
    nulls: Option<NullBuffer>,
    values: Shaped<'a>,
}

enum Shaped<'a> {
    One(Values<'a>),
    List(OffsetBuffer<i32>, Values<'a>, bool),
    Map(OffsetBuffer<i32>, Values<'a>, Values<'a>),
}

/// Values of a column, or of the items of its lists.
struct Values<'a> {
    source: ArrayRef,
    nulls: Option<NullBuffer>,
    kind: Kind<'a>,
}

enum Kind<'a> {
    /// As they lie on the wire; null where the field has no room for the value.
    Number(UInt64Array, Wire),
    Bytes(BinaryArray),
    Enum(StringArray, &'a HashMap<String, i32>),
    Json(StringArray, &'a MessageDescriptor),
    /// So many in a second; whether seconds are rounded down.
    Span(Int64Array, i64, bool),
    Message(Ready<'a>),
    Wrapper(Box<Values<'a>>),
}

impl<'a> Ready<'a> {
    fn new(plan: &'a Message, columns: &[ArrayRef]) -> Result<Self, ArrowError> {
        let nodes = plan.members.iter().map(|member| {
            let column = columns.get(member.column);
            let column = column.ok_or_else(|| ArrowError::SchemaError(format!("no column `{}`", member.name)))?;
            let column = simple(column)?;
            let values = match &member.shape {
                Shape::One(to) => Shaped::One(Values::new(to, &column)?),
                Shape::List { of, packed } => {
                    let list = column.as_list_opt::<i32>().ok_or_else(|| other(&column))?;
                    Shaped::List(list.offsets().clone(), Values::new(of, list.values())?, *packed)
                }
                Shape::Map { key, value } => {
                    let map = column.as_map_opt().ok_or_else(|| other(&column))?;
                    let (key, value) = (Values::new(key, map.keys())?, Values::new(value, map.values())?);
                    Shaped::Map(map.offsets().clone(), key, value)
                }
            };
            Ok(Node { member, nulls: column.logical_nulls(), values })
        });
        Ok(Self { plan, nodes: nodes.collect::<Result<_, ArrowError>>()? })
    }

    fn put(&self, row: usize, bytes: &mut Vec<u8>) -> Result<(), String> {
        for (way, members) in &self.plan.ways {
            let mut there = members.iter().filter(|at| !self.nodes[**at].is_null(row));
            if let (Some(one), Some(two)) = (there.next(), there.next()) {
                let name = |at: &usize| &self.nodes[*at].member.name;
                return Err(format!(
                    "columns `{}` and `{}`: of `oneof {way}` only one may be there",
                    name(one),
                    name(two)
                ));
            }
        }
        self.nodes.iter().try_for_each(|node| node.put(row, bytes))
    }
}

fn other(column: &ArrayRef) -> ArrowError {
    ArrowError::SchemaError(format!("a column is {} and was another type", column.data_type()))
}

fn is_null(nulls: Option<&NullBuffer>, row: usize) -> bool {
    nulls.is_some_and(|nulls| nulls.is_null(row))
}

impl Node<'_> {
    fn is_null(&self, row: usize) -> bool {
        is_null(self.nulls.as_ref(), row)
    }

    fn put(&self, row: usize, bytes: &mut Vec<u8>) -> Result<(), String> {
        let Member { name, number, presence, .. } = self.member;
        let named = |why: String| format!("column `{name}`: {why}");
        if self.is_null(row) {
            return match presence {
                Presence::Required => Err(named("NULL, and its field must be there".to_string())),
                Presence::Explicit | Presence::Implicit => Ok(()),
            };
        }
        let some = |what: &str, values: &Values<'_>, at: usize| {
            if is_null(values.nulls.as_ref(), at) { Err(named(format!("NULL in a {what}"))) } else { Ok(()) }
        };
        match &self.values {
            Shaped::One(values) => {
                if *presence == Presence::Implicit && values.is_default(row) {
                    return Ok(());
                }
                put_key(*number, values.wire(), bytes);
                values.put(row, bytes).map_err(named)
            }
            Shaped::List(offsets, values, packed) => {
                let (from, items) = (bytes.len(), range(offsets, row));
                if *packed && !items.is_empty() {
                    put_key(*number, 2, bytes);
                }
                let begun = bytes.len();
                for at in items {
                    some("list", values, at)?;
                    if !packed {
                        put_key(*number, values.wire(), bytes);
                    }
                    values.put(at, bytes).map_err(named)?;
                }
                if *packed && begun > from {
                    put_length(begun, bytes);
                }
                Ok(())
            }
            Shaped::Map(offsets, keys, values) => {
                for at in range(offsets, row) {
                    some("map", values, at)?;
                    put_key(*number, 2, bytes);
                    let from = bytes.len();
                    put_key(1, keys.wire(), bytes);
                    keys.put(at, bytes).map_err(named)?;
                    put_key(2, values.wire(), bytes);
                    values.put(at, bytes).map_err(named)?;
                    put_length(from, bytes);
                }
                Ok(())
            }
        }
    }
}

impl<'a> Values<'a> {
    fn new(to: &'a To, column: &ArrayRef) -> Result<Self, ArrowError> {
        let source = simple(column)?;
        let texts = || Ok::<_, ArrowError>(cast(&source, &DataType::Utf8)?.as_string::<i32>().clone());
        let kind = match to {
            To::Number(number) => Kind::Number(bits(&source, number)?, number.wire),
            To::Text => Kind::Bytes(cast(&cast(&source, &DataType::Utf8)?, &DataType::Binary)?.as_binary().clone()),
            To::Bytes => Kind::Bytes(cast(&source, &DataType::Binary)?.as_binary().clone()),
            To::Enum(names) => Kind::Enum(texts()?, names),
            To::Json(of) => Kind::Json(texts()?, of),
            To::Timestamp | To::Duration => {
                let unit = match source.data_type() {
                    DataType::Timestamp(unit, _) | DataType::Duration(unit) => *unit,
                    // As durations are read.
                    _ => TimeUnit::Microsecond,
                };
                Kind::Span(ticks(&source)?, per_second(unit), matches!(to, To::Timestamp))
            }
            To::Message(plan) => {
                let parts = source.as_struct_opt().ok_or_else(|| other(&source))?;
                Kind::Message(Ready::new(plan, parts.columns())?)
            }
            To::Wrapper(inner) => Kind::Wrapper(Box::new(Self::new(inner, &source)?)),
        };
        let nulls = source.logical_nulls();
        Ok(Self { source, nulls, kind })
    }

    /// How the value lies on the wire, as a field's key says it.
    fn wire(&self) -> u8 {
        match &self.kind {
            Kind::Number(_, Wire::Varint | Wire::Zigzag) | Kind::Enum(..) => 0,
            Kind::Number(_, Wire::Fixed64) => 1,
            Kind::Number(_, Wire::Fixed32) => 5,
            _ => 2,
        }
    }

    /// Whether it is what an unset field is read as.
    fn is_default(&self, row: usize) -> bool {
        match &self.kind {
            Kind::Number(values, _) => values.is_valid(row) && values.value(row) == 0,
            Kind::Bytes(values) => values.value(row).is_empty(),
            Kind::Enum(values, names) => symbol(names, values.value(row)) == Some(0),
            _ => false,
        }
    }

    /// Appends a value, behind its length if it is to have one.
    fn put(&self, row: usize, bytes: &mut Vec<u8>) -> Result<(), String> {
        let from = bytes.len();
        let shown = || {
            let text = array_value_to_string(&self.source, row).unwrap_or_default();
            text.chars().take(40).collect::<String>()
        };
        match &self.kind {
            Kind::Number(values, _) if values.is_null(row) => {
                return Err(format!("{} does not fit its field", shown()));
            }
            Kind::Number(values, wire) => {
                let value = values.value(row);
                match wire {
                    Wire::Varint | Wire::Zigzag => put_varint(value, bytes),
                    Wire::Fixed64 => bytes.extend_from_slice(&value.to_le_bytes()),
                    Wire::Fixed32 => bytes.extend_from_slice(&value.to_le_bytes()[..4]),
                }
                return Ok(());
            }
            Kind::Enum(values, names) => {
                let number = symbol(names, values.value(row));
                let number = number.ok_or_else(|| format!("its enum has no `{}`", shown()))?;
                put_varint(i64::from(number).cast_unsigned(), bytes);
                return Ok(());
            }
            Kind::Bytes(values) => bytes.extend_from_slice(values.value(row)),
            Kind::Json(values, of) => {
                let wrong = |e: &dyn fmt::Display| format!("`{}` is no {} as JSON: {e}", shown(), of.full_name());
                let mut json = serde_json::Deserializer::from_str(values.value(row));
                let message =
                    DynamicMessage::deserialize(MessageDescriptor::clone(of), &mut json).map_err(|e| wrong(&e))?;
                json.end().map_err(|e| wrong(&e))?;
                bytes.extend(message.encode_to_vec());
            }
            Kind::Span(values, per_second, down) => {
                let (value, per) = (values.value(row), *per_second);
                let (seconds, rest) =
                    if *down { (value.div_euclid(per), value.rem_euclid(per)) } else { (value / per, value % per) };
                // Of an int64 and an int32, both with their sign as 64 bits.
                for (number, part) in [(1, seconds), (2, rest * (1_000_000_000 / per))] {
                    if part != 0 {
                        put_key(number, 0, bytes);
                        put_varint(part.cast_unsigned(), bytes);
                    }
                }
            }
            Kind::Message(parts) => parts.put(row, bytes)?,
            Kind::Wrapper(inner) => {
                if !inner.is_default(row) {
                    put_key(1, inner.wire(), bytes);
                    inner.put(row, bytes)?;
                }
            }
        }
        put_length(from, bytes);
        Ok(())
    }
}

/// An enum's number by its name, or as it is.
fn symbol(names: &HashMap<String, i32>, text: &str) -> Option<i32> {
    names.get(text).copied().or_else(|| text.parse().ok())
}

fn range(offsets: &OffsetBuffer<i32>, row: usize) -> Range<usize> {
    let at = |row: usize| usize::try_from(offsets[row]).unwrap_or(0);
    at(row)..at(row + 1)
}

fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

/// What times and durations count.
fn ticks(column: &ArrayRef) -> Result<Int64Array, ArrowError> {
    Ok(cast(column, &DataType::Int64)?.as_primitive::<types::Int64Type>().clone())
}

/// Numbers as they lie on the wire; null for what its type has no room for.
fn bits(column: &ArrayRef, number: &Number) -> Result<UInt64Array, ArrowError> {
    let counted = match (column.data_type(), number.count) {
        (DataType::Timestamp(unit, _), Some(to)) => {
            let (from, to) = (per_second(*unit), per_second(to));
            let scaled = ticks(column)?.unary_opt::<_, types::Int64Type>(|at| {
                if to >= from { at.checked_mul(to / from) } else { Some(at.div_euclid(from / to)) }
            });
            Arc::new(scaled) as ArrayRef
        }
        _ => Arc::clone(column),
    };
    let cast = cast(&counted, &number.ty)?;
    let signed = |value: i64| value.cast_unsigned();
    let zigzag = number.wire == Wire::Zigzag;
    let folded = |value: i64| if zigzag { signed((value << 1) ^ (value >> 63)) } else { signed(value) };
    Ok(match &number.ty {
        DataType::Boolean => cast.as_boolean().iter().map(|value| value.map(u64::from)).collect(),
        DataType::Int32 => cast.as_primitive::<types::Int32Type>().unary(|value| folded(value.into())),
        DataType::Int64 => cast.as_primitive::<types::Int64Type>().unary(folded),
        DataType::UInt32 => cast.as_primitive::<types::UInt32Type>().unary(u64::from),
        DataType::UInt64 => cast.as_primitive::<types::UInt64Type>().clone(),
        DataType::Float32 => cast.as_primitive::<types::Float32Type>().unary(|value| value.to_bits().into()),
        _ => cast.as_primitive_opt::<types::Float64Type>().ok_or_else(|| other(&cast))?.unary(f64::to_bits),
    })
}

/// Appends a field's number and how its value lies.
fn put_key(number: u32, wire: u8, bytes: &mut Vec<u8>) {
    put_varint(u64::from(number) << 3 | u64::from(wire), bytes);
}

/// Appends a number of variable length.
pub(super) fn put_varint(value: u64, bytes: &mut Vec<u8>) {
    let mut rest = value;
    while rest >= 0x80 {
        bytes.push(u8::try_from(rest & 0x7f).unwrap_or(0) | 0x80);
        rest >>= 7;
    }
    bytes.push(u8::try_from(rest).unwrap_or(0));
}

/// Puts the length of what was appended since `from` in front of it.
fn put_length(from: usize, bytes: &mut Vec<u8>) {
    let length = bytes.len() - from;
    put_varint(length as u64, bytes);
    let grown = bytes.len() - from - length;
    bytes[from..].rotate_right(grown);
}
