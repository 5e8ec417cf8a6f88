//! Rows as Avro, and the schema that they have.
//!
//! Each column is a field of a record; one that may be null is a union of null and
//! its type, with the default null, so that a later schema may leave it out.
//!
//! Invariant: the bytes of a row are those that [`Writer::schema`] says, whatever
//! the row holds; columns that Avro has no type for are refused before a row is
//! written. Called by the sinks.

use super::wire::{put_bytes, put_long};
use crate::format::typed::simple;
use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Decimal128Array, Float32Array, Float64Array, Int32Array, Int64Array,
    RecordBatch, StringArray, cast::AsArray,
};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use serde_json::{Value, json};
use tidemill_core::{Error, Result};

/// Writes rows of some columns.
#[derive(Debug)]
pub(crate) struct Writer {
    schema: String,
}

impl Writer {
    /// Of these columns, as records of a name.
    ///
    /// # Errors
    /// When a column's name or type has no equal in Avro.
    pub(crate) fn new(name: &str, columns: &Schema) -> Result<Self, String> {
        if name.split('.').any(|part| !is_name(part)) {
            return Err(format!("`{name}` is no name of a record in Avro: take letters, digits and `_`"));
        }
        let path = name.rsplit('.').next().unwrap_or(name);
        let fields = columns.fields().iter().map(|field| member(path, field)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { schema: json!({"type": "record", "name": name, "fields": fields}).to_string() })
    }

    /// The schema, as JSON.
    pub(crate) fn schema(&self) -> &str {
        &self.schema
    }

    /// Rows that are ready to be written.
    ///
    /// # Errors
    /// When a value is larger than its type in Avro.
    pub(crate) fn rows(rows: &RecordBatch) -> Result<Rows> {
        let schema = rows.schema();
        let columns = schema.fields().iter().zip(rows.columns()).map(|(field, column)| Node::of(field, column));
        let columns = columns.collect::<Result<_, _>>();
        Ok(Rows(columns.map_err(|e| Error::user("avro: these columns can't be written").because(e))?))
    }
}

/// Rows that are ready to be written.
#[derive(Debug)]
pub(crate) struct Rows(Vec<Node>);

impl Rows {
    /// Appends a row.
    pub(crate) fn put(&self, row: usize, bytes: &mut Vec<u8>) {
        self.0.iter().for_each(|column| column.put(row, bytes));
    }
}

/// Whether a name is one in Avro.
fn is_name(name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    plain && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

/// A name as near to a text as Avro has one.
#[cfg(any(feature = "kafka", test))]
pub(crate) fn name_of(text: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = text.chars().map(plain).collect();
    if is_name(&name) { name } else { format!("_{name}") }
}

fn member(path: &str, field: &Field) -> Result<Value, String> {
    let name = field.name();
    if !is_name(name) {
        return Err(format!("column `{name}`: Avro has no such name: give it another, as in SELECT … AS total"));
    }
    let ty = type_of(&format!("{path}_{name}"), field.data_type()).map_err(|why| format!("column `{name}`: {why}"))?;
    Ok(if field.is_nullable() && ty != json!("null") {
        json!({"name": name, "type": ["null", ty], "default": null})
    } else {
        json!({"name": name, "type": ty})
    })
}

/// What items and values are.
fn part(path: &str, field: &Field) -> Result<Value, String> {
    let ty = type_of(path, field.data_type())?;
    Ok(if field.is_nullable() && ty != json!("null") { json!(["null", ty]) } else { ty })
}

fn type_of(path: &str, ty: &DataType) -> Result<Value, String> {
    let logical = |ty: &str, logical: &str| json!({"type": ty, "logicalType": logical});
    Ok(match ty {
        DataType::Null => json!("null"),
        DataType::Boolean => json!("boolean"),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => json!("int"),
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 | DataType::Duration(_) => json!("long"),
        DataType::Float16 | DataType::Float32 => json!("float"),
        DataType::Float64 => json!("double"),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => json!("string"),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            json!("bytes")
        }
        DataType::Date32 | DataType::Date64 => logical("int", "date"),
        DataType::Time32(_) => logical("int", "time-millis"),
        DataType::Time64(_) => logical("long", "time-micros"),
        DataType::Timestamp(unit, zone) => {
            let unit = match unit {
                TimeUnit::Second | TimeUnit::Millisecond => "millis",
                TimeUnit::Microsecond => "micros",
                TimeUnit::Nanosecond => "nanos",
            };
            logical("long", &format!("{}timestamp-{unit}", if zone.is_some() { "" } else { "local-" }))
        }
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
            if *scale >= 0 =>
        {
            json!({"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale})
        }
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            json!({"type": "array", "items": part(path, item)?})
        }
        DataType::Struct(fields) if !fields.is_empty() => {
            let fields = fields.iter().map(|field| member(path, field)).collect::<Result<Vec<_>, _>>()?;
            json!({"type": "record", "name": path, "fields": fields})
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(parts) if parts.len() == 2 && parts[0].data_type().is_string() => {
                json!({"type": "map", "values": part(path, &parts[1])?})
            }
            _ => return Err(format!("{ty} has keys that are no text, and Avro's maps have no other")),
        },
        DataType::Dictionary(_, of) => type_of(path, of)?,
        other => return Err(format!("Avro has no type for {other}")),
    })
}

/// A column, of one of the types that Avro writes.
#[derive(Debug)]
struct Node {
    /// Whether a branch of null stands before the value.
    nullable: bool,
    nulls: Option<NullBuffer>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Null,
    Bool(BooleanArray),
    Int(Int32Array),
    Long(Int64Array),
    Float(Float32Array),
    Double(Float64Array),
    Text(StringArray),
    Bytes(BinaryArray),
    Decimal(Decimal128Array),
    List(OffsetBuffer<i32>, Box<Node>),
    Map(OffsetBuffer<i32>, StringArray, Box<Node>),
    Record(Vec<Node>),
}

impl Node {
    fn of(field: &Field, column: &ArrayRef) -> Result<Self, arrow_schema::ArrowError> {
        let column = &simple(column)?;
        let options = CastOptions { safe: false, ..CastOptions::default() };
        let to = |ty: &DataType| cast_with_options(column, ty, &options);
        let values = match column.data_type() {
            DataType::Null => Values::Null,
            DataType::Boolean => Values::Bool(column.as_boolean().clone()),
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => {
                Values::Int(to(&DataType::Int32)?.as_primitive().clone())
            }
            DataType::Date32 | DataType::Date64 => {
                let days = cast_with_options(&to(&DataType::Date32)?, &DataType::Int32, &options)?;
                Values::Int(days.as_primitive().clone())
            }
            DataType::Time32(_) => {
                let millis = to(&DataType::Time32(TimeUnit::Millisecond))?;
                Values::Int(cast_with_options(&millis, &DataType::Int32, &options)?.as_primitive().clone())
            }
            DataType::Time64(_) => {
                let micros = to(&DataType::Time64(TimeUnit::Microsecond))?;
                Values::Long(cast_with_options(&micros, &DataType::Int64, &options)?.as_primitive().clone())
            }
            DataType::Timestamp(TimeUnit::Second, zone) => {
                let millis = to(&DataType::Timestamp(TimeUnit::Millisecond, zone.clone()))?;
                Values::Long(cast_with_options(&millis, &DataType::Int64, &options)?.as_primitive().clone())
            }
            DataType::Int64 | DataType::UInt32 | DataType::UInt64 | DataType::Duration(_) | DataType::Timestamp(..) => {
                Values::Long(to(&DataType::Int64)?.as_primitive().clone())
            }
            DataType::Float16 | DataType::Float32 => Values::Float(to(&DataType::Float32)?.as_primitive().clone()),
            DataType::Float64 => Values::Double(column.as_primitive().clone()),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                Values::Text(to(&DataType::Utf8)?.as_string().clone())
            }
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                Values::Bytes(to(&DataType::Binary)?.as_binary().clone())
            }
            DataType::Decimal32(precision, scale)
            | DataType::Decimal64(precision, scale)
            | DataType::Decimal128(precision, scale) => {
                Values::Decimal(to(&DataType::Decimal128(*precision, *scale))?.as_primitive().clone())
            }
            DataType::List(item) => {
                let list = column.as_list::<i32>();
                Values::List(list.offsets().clone(), Box::new(Self::of(item, list.values())?))
            }
            DataType::Map(..) => {
                let map = column.as_map();
                let keys = cast_with_options(map.keys(), &DataType::Utf8, &options)?.as_string().clone();
                let value = &map.entries().fields()[1];
                Values::Map(map.offsets().clone(), keys, Box::new(Self::of(value, map.values())?))
            }
            DataType::Struct(fields) => {
                let record = column.as_struct();
                let parts = fields.iter().zip(record.columns()).map(|(field, part)| Self::of(field, part));
                Values::Record(parts.collect::<Result<_, _>>()?)
            }
            other => {
                return Err(arrow_schema::ArrowError::InvalidArgumentError(format!("Avro has no type for {other}")));
            }
        };
        Ok(Self { nullable: field.is_nullable(), nulls: column.logical_nulls(), values })
    }

    fn put(&self, row: usize, bytes: &mut Vec<u8>) {
        if matches!(self.values, Values::Null) {
            return;
        }
        if self.nullable {
            if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                return put_long(0, bytes);
            }
            put_long(1, bytes);
        }
        match &self.values {
            Values::Null => {}
            Values::Bool(values) => bytes.push(u8::from(values.value(row))),
            Values::Int(values) => put_long(values.value(row).into(), bytes),
            Values::Long(values) => put_long(values.value(row), bytes),
            Values::Float(values) => bytes.extend_from_slice(&values.value(row).to_le_bytes()),
            Values::Double(values) => bytes.extend_from_slice(&values.value(row).to_le_bytes()),
            Values::Text(values) => put_bytes(values.value(row).as_bytes(), bytes),
            Values::Bytes(values) => put_bytes(values.value(row), bytes),
            Values::Decimal(values) => put_bytes(shortest(&values.value(row).to_be_bytes()), bytes),
            Values::List(offsets, item) => put_items(offsets, row, bytes, |at, bytes| item.put(at, bytes)),
            Values::Map(offsets, keys, value) => put_items(offsets, row, bytes, |at, bytes| {
                put_bytes(keys.value(at).as_bytes(), bytes);
                value.put(at, bytes);
            }),
            Values::Record(parts) => parts.iter().for_each(|part| part.put(row, bytes)),
        }
    }
}

fn put_items(offsets: &OffsetBuffer<i32>, row: usize, bytes: &mut Vec<u8>, put: impl Fn(usize, &mut Vec<u8>)) {
    let (from, to) = (offsets[row], offsets[row + 1]);
    if to > from {
        put_long((to - from).into(), bytes);
        (from..to).filter_map(|at| usize::try_from(at).ok()).for_each(|at| put(at, bytes));
    }
    put_long(0, bytes);
}

/// The number without the bytes at its beginning that only repeat its sign.
fn shortest(number: &[u8]) -> &[u8] {
    let mut rest = number;
    while let [first, next @ ..] = rest {
        let spare = match (first, next.first()) {
            (0, Some(second)) => second & 0x80 == 0,
            (0xff, Some(second)) => second & 0x80 != 0,
            _ => false,
        };
        if !spare {
            break;
        }
        rest = next;
    }
    rest
}
