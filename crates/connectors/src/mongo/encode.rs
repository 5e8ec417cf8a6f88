//! Rows as BSON documents.
//!
//! | Column | In the document |
//! |---|---|
//! | whole numbers of up to 32 bits; of up to 64 | int32; int64 |
//! | other numbers | double |
//! | text, bytes, booleans | string, binary, bool |
//! | times and dates | date: milliseconds since 1970, rounded down; a time without a zone is taken as UTC |
//! | lists | array |
//! | structs, and maps with keys of text | document |
//! | nulls | left out; in an array null |
//!
//! Documents are written as the bytes that go over the wire
//! (<https://bsonspec.org>), with no value in between.
//!
//! Invariant: a row is one whole document, and equal rows are equal bytes. Called by the sink.

use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Float64Array, Int32Array, Int64Array, ListArray, MapArray, RecordBatch,
    StringArray, StructArray, TimestampMicrosecondArray, cast::AsArray,
};
use arrow_schema::{DataType, Field, TimeUnit};
use std::sync::Arc;
use tidemill_core::{Error, Result};

/// Begins a document or array; gives its place for [`end`].
pub(super) fn begin(out: &mut Vec<u8>) -> usize {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    at
}

/// Ends the document or array that began at a place.
pub(super) fn end(out: &mut Vec<u8>, at: usize) {
    out.push(0);
    let length = i32::try_from(out.len() - at).unwrap_or(i32::MAX);
    out[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

fn key(out: &mut Vec<u8>, kind: u8, name: &str) {
    out.push(kind);
    out.extend_from_slice(name.as_bytes());
    out.push(0);
}

/// A member that is a document (3) or an array (4), to be ended with [`end`].
pub(super) fn begin_member(out: &mut Vec<u8>, name: &str, is_array: bool) -> usize {
    key(out, if is_array { 4 } else { 3 }, name);
    begin(out)
}

/// A member that is a document of these bytes.
pub(super) fn put_document(out: &mut Vec<u8>, name: &str, document: &[u8]) {
    key(out, 3, name);
    out.extend_from_slice(document);
}

/// A member that is text.
pub(super) fn put_text(out: &mut Vec<u8>, name: &str, text: &str) {
    key(out, 2, name);
    let length = i32::try_from(text.len() + 1).unwrap_or(i32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

/// A member that is a whole number.
pub(super) fn put_integer(out: &mut Vec<u8>, name: &str, value: i64) {
    key(out, 18, name);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A member that is true or false.
pub(super) fn put_bool(out: &mut Vec<u8>, name: &str, value: bool) {
    key(out, 8, name);
    out.push(u8::from(value));
}

/// The values of a column, in the form that BSON has for them.
#[derive(Debug)]
pub(super) enum Values {
    Null,
    Int32(Int32Array),
    Int64(Int64Array),
    Double(Float64Array),
    Text(StringArray),
    Bytes(BinaryArray),
    Bool(BooleanArray),
    Instant(TimestampMicrosecondArray),
    List(ListArray, Box<Values>),
    Struct(StructArray, Vec<(String, Values)>),
    Map(MapArray, StringArray, Box<Values>),
}

/// Whether a type of column has a form in BSON.
pub(super) fn is_known(ty: &DataType) -> bool {
    match ty {
        DataType::Null | DataType::Boolean | DataType::Date32 | DataType::Date64 | DataType::Timestamp(..) => true,
        DataType::UInt64 => false,
        ty if ty.is_integer() || ty.is_floating() => true,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => true,
        DataType::Dictionary(_, values) => is_known(values),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            is_known(item.data_type())
        }
        DataType::Struct(fields) => fields.iter().all(|field| is_known(field.data_type()) && is_name(field.name())),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(pair) if pair.len() == 2 => {
                matches!(pair[0].data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
                    && is_known(pair[1].data_type())
            }
            _ => false,
        },
        _ => false,
    }
}

/// Whether a member may be called so, in all that reads documents: no `$` first, no `.` and no end of a text.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('$') && !name.contains(['.', '\0'])
}

fn cast(column: &ArrayRef, ty: &DataType) -> Result<ArrayRef> {
    arrow_cast::cast(column, ty).map_err(|e| Error::user("mongodb: a column can't be written").because(e))
}

impl Values {
    /// Of a column of a known type.
    ///
    /// # Errors
    /// When it is of another.
    pub(super) fn of(column: &ArrayRef) -> Result<Self> {
        let instant = |zone: Option<Arc<str>>| DataType::Timestamp(TimeUnit::Microsecond, zone);
        Ok(match column.data_type() {
            DataType::Null => Self::Null,
            DataType::Boolean => Self::Bool(column.as_boolean().clone()),
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => {
                Self::Int32(cast(column, &DataType::Int32)?.as_primitive().clone())
            }
            DataType::Int64 | DataType::UInt32 => Self::Int64(cast(column, &DataType::Int64)?.as_primitive().clone()),
            ty if ty.is_floating() => Self::Double(cast(column, &DataType::Float64)?.as_primitive().clone()),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                Self::Text(cast(column, &DataType::Utf8)?.as_string().clone())
            }
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
                Self::Bytes(cast(column, &DataType::Binary)?.as_binary().clone())
            }
            // What has a zone is an instant already; what has none is left as it is.
            DataType::Timestamp(_, zone) => {
                let zone = zone.as_ref().map(|_| Arc::from("+00:00"));
                Self::Instant(cast(column, &instant(zone))?.as_primitive().clone())
            }
            DataType::Date32 | DataType::Date64 => Self::Instant(cast(column, &instant(None))?.as_primitive().clone()),
            DataType::Dictionary(_, values) => Self::of(&cast(column, values)?)?,
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                let list = cast(column, &DataType::List(Arc::clone(item)))?.as_list::<i32>().clone();
                let values = Self::of(list.values())?;
                Self::List(list, Box::new(values))
            }
            DataType::Struct(fields) => {
                let rows = column.as_struct().clone();
                let member = |(field, column): (&Arc<Field>, &ArrayRef)| Ok((field.name().clone(), Self::of(column)?));
                let members = fields.iter().zip(rows.columns()).map(member).collect::<Result<_>>()?;
                Self::Struct(rows, members)
            }
            DataType::Map(..) => {
                let map = column.as_map().clone();
                let keys = cast(map.keys(), &DataType::Utf8)?.as_string().clone();
                let values = Self::of(map.values())?;
                Self::Map(map, keys, Box::new(values))
            }
            other => return Err(Error::internal(format!("mongodb: a column of {other} was not refused"))),
        })
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Null => true,
            Self::Int32(values) => values.is_null(row),
            Self::Int64(values) => values.is_null(row),
            Self::Double(values) => values.is_null(row),
            Self::Text(values) => values.is_null(row),
            Self::Bytes(values) => values.is_null(row),
            Self::Bool(values) => values.is_null(row),
            Self::Instant(values) => values.is_null(row),
            Self::List(values, _) => values.is_null(row),
            Self::Struct(values, _) => values.is_null(row),
            Self::Map(values, ..) => values.is_null(row),
        }
    }

    /// Writes the value of a row as the member `name`; whether there is one.
    pub(super) fn put(&self, name: &str, row: usize, out: &mut Vec<u8>) -> bool {
        if self.is_null(row) {
            return false;
        }
        match self {
            Self::Null => {}
            Self::Int32(values) => {
                key(out, 16, name);
                out.extend_from_slice(&values.value(row).to_le_bytes());
            }
            Self::Int64(values) => put_integer(out, name, values.value(row)),
            Self::Double(values) => {
                key(out, 1, name);
                out.extend_from_slice(&values.value(row).to_le_bytes());
            }
            Self::Text(values) => put_text(out, name, values.value(row)),
            Self::Bytes(values) => {
                key(out, 5, name);
                let bytes = values.value(row);
                out.extend_from_slice(&i32::try_from(bytes.len()).unwrap_or(i32::MAX).to_le_bytes());
                out.push(0);
                out.extend_from_slice(bytes);
            }
            Self::Bool(values) => put_bool(out, name, values.value(row)),
            Self::Instant(values) => {
                key(out, 9, name);
                out.extend_from_slice(&values.value(row).div_euclid(1000).to_le_bytes());
            }
            Self::List(list, values) => {
                let at = begin_member(out, name, true);
                let offsets = list.value_offsets();
                for (n, item) in (offsets[row]..offsets[row + 1]).enumerate() {
                    let name = n.to_string();
                    // An array has a place for each of its items, also for those that are not there.
                    if !values.put(&name, usize::try_from(item).unwrap_or_default(), out) {
                        key(out, 10, &name);
                    }
                }
                end(out, at);
            }
            Self::Struct(_, members) => {
                let at = begin_member(out, name, false);
                for (name, values) in members {
                    values.put(name, row, out);
                }
                end(out, at);
            }
            Self::Map(map, keys, values) => {
                let at = begin_member(out, name, false);
                let offsets = map.value_offsets();
                for entry in offsets[row]..offsets[row + 1] {
                    let entry = usize::try_from(entry).unwrap_or_default();
                    // A key is data: what can't stand in a name would break the document.
                    let name = keys.value(entry).replace('\0', "\u{fffd}");
                    values.put(&name, entry, out);
                }
                end(out, at);
            }
        }
        true
    }
}

/// Rows with their columns in the form of BSON.
#[derive(Debug)]
pub(super) struct Rows {
    columns: Vec<(String, Values)>,
    /// Places of the columns of the key, in its order.
    key: Vec<usize>,
    count: usize,
}

impl Rows {
    /// Of a batch, with a key by its columns' names.
    pub(super) fn of(rows: &RecordBatch, key: &[String]) -> Result<Self> {
        let schema = rows.schema_ref();
        let member = |(field, column): (&Arc<Field>, &ArrayRef)| Ok((field.name().clone(), Values::of(column)?));
        let columns = schema.fields().iter().zip(rows.columns()).map(member).collect::<Result<_>>()?;
        let place = |name: &String| {
            schema.index_of(name).map_err(|e| Error::internal("mongodb: a column of the key").because(e))
        };
        Ok(Self { columns, key: key.iter().map(place).collect::<Result<_>>()?, count: rows.num_rows() })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Writes the member `_id` of a row from its key: the value of one column, a document of several.
    ///
    /// # Errors
    /// With the column that has no value.
    pub(super) fn put_id(&self, row: usize, out: &mut Vec<u8>) -> Result<()> {
        let none = |name: &str| {
            Error::user(format!("mongodb: column `{name}` of option `key` is null in a row: leave such rows out"))
        };
        if let [column] = self.key[..] {
            let (name, values) = &self.columns[column];
            return if values.put("_id", row, out) { Ok(()) } else { Err(none(name)) };
        }
        let at = begin_member(out, "_id", false);
        for column in &self.key {
            let (name, values) = &self.columns[*column];
            if !values.put(name, row, out) {
                return Err(none(name));
            }
        }
        end(out, at);
        Ok(())
    }

    /// Writes all members of a row but `_id`.
    pub(super) fn put_members(&self, row: usize, out: &mut Vec<u8>) {
        for (name, values) in self.columns.iter().filter(|(name, _)| name != "_id") {
            values.put(name, row, out);
        }
    }
}
