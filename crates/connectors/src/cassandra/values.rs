//! Rows as values of CQL.
//!
//! Columns are brought to the types that `table.rs` found to fit; what can't be read as its column's type (a text
//! that is no `uuid`, a null within a list) is an error with column and reason, and never left out.
//!
//! Invariant: equal rows are equal values, and a null is one in the table too, or nothing at all where the sink was
//! told so. Called by the sink.

use super::table::{Column, Table, cql};
use arrow_array::{
    Array, ArrayRef, RecordBatch,
    cast::AsArray,
    types::{
        Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
        Time64NanosecondType, TimestampMicrosecondType, UInt64Type,
    },
};
use arrow_cast::CastOptions;
use scylla::{
    cluster::metadata::{CollectionType, ColumnType, NativeType},
    value::{CqlDate, CqlDecimal, CqlTime, CqlTimestamp, CqlTimeuuid, CqlValue, CqlVarint, MaybeUnset},
};
use std::fmt::Write;
use tidemill_core::{Error, Result};

/// Bytes of a row at most: what a request holds (16 MiB), less what stands around it.
const ROW: usize = 15 << 20;
/// Bytes of a column of the primary key at most.
const KEY: usize = 65_535;

/// A value to bind.
pub(super) type Bound = MaybeUnset<Option<CqlValue>>;

/// Rows with their columns in types that the table's columns take.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    table: &'a Table,
    columns: Vec<(&'a Column, ArrayRef)>,
    count: usize,
}

impl<'a> Rows<'a> {
    /// Of a batch.
    ///
    /// # Errors
    /// With the column that has a value out of bounds.
    pub(super) fn of(table: &'a Table, columns: &'a [Column], rows: &RecordBatch) -> Result<Self> {
        // A value that can't be taken over is an error, and no null.
        let strict = CastOptions { safe: false, ..CastOptions::default() };
        let column = |(column, values): (&'a Column, &ArrayRef)| {
            let cast = arrow_cast::cast_with_options(values, &column.arrow, &strict);
            let cast = cast.map_err(|e| {
                table.wrong(&format!("column `{}` can't be written as {}", column.name, cql(&column.ty))).because(e)
            })?;
            Ok((column, cast))
        };
        let columns = columns.iter().zip(rows.columns()).map(column).collect::<Result<_>>()?;
        Ok(Self { table, columns, count: rows.num_rows() })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// The key of each row: equal ones are equal texts.
    ///
    /// # Errors
    /// With the column that has no value.
    pub(super) fn keys(&self) -> Result<Vec<String>> {
        (0..self.len()).map(|row| self.key(row)).collect()
    }

    fn key(&self, row: usize) -> Result<String> {
        let mut out = String::new();
        for (column, values) in self.columns.iter().filter(|(column, _)| column.in_key) {
            let value = self.value(column, values, row)?;
            // Writing to a text does not fail.
            let _written = write!(out, "{value:?}|");
        }
        Ok(out)
    }

    /// The values of a row; nulls are left out where they are to `leave` what is there.
    ///
    /// # Errors
    /// With the column whose value can't be written.
    pub(super) fn row(&self, row: usize, leave: bool) -> Result<Vec<Bound>> {
        let mut bytes = 0;
        let mut bound = Vec::with_capacity(self.columns.len());
        for (column, values) in &self.columns {
            let value = self.value(column, values, row)?;
            bytes += value.as_ref().map_or(0, size);
            bound.push(if value.is_none() && leave { MaybeUnset::Unset } else { MaybeUnset::Set(value) });
        }
        if bytes > ROW {
            return Err(self
                .table
                .wrong(&format!("a row of {bytes} bytes, and {ROW} is the most: leave out or cut what is large")));
        }
        Ok(bound)
    }

    fn value(&self, column: &Column, values: &ArrayRef, row: usize) -> Result<Option<CqlValue>> {
        let wrong = |why: &str| self.refused(column, why);
        let value = value(values, row, &column.ty).map_err(|why| wrong(&why))?;
        if column.in_key {
            match &value {
                None => return Err(wrong("is of the primary key, and null in a row: leave such rows out")),
                Some(CqlValue::Text(text) | CqlValue::Ascii(text)) if text.is_empty() && column.is_partition => {
                    return Err(wrong("is the partition key, and empty in a row: leave such rows out"));
                }
                Some(value) if size(value) > KEY => {
                    return Err(wrong(&format!("is of the primary key, which holds {KEY} bytes, and longer in a row")));
                }
                Some(_) => {}
            }
        }
        Ok(value)
    }

    fn refused(&self, column: &Column, why: &str) -> Error {
        self.table.wrong(&format!("column `{}` {why}", column.name))
    }
}

/// About how many bytes a value takes.
fn size(value: &CqlValue) -> usize {
    match value {
        CqlValue::Text(text) | CqlValue::Ascii(text) => text.len(),
        CqlValue::Blob(bytes) => bytes.len(),
        CqlValue::List(items) | CqlValue::Set(items) | CqlValue::Vector(items) => {
            items.iter().map(|item| 4 + size(item)).sum()
        }
        CqlValue::Map(pairs) => pairs.iter().map(|(key, value)| 8 + size(key) + size(value)).sum(),
        CqlValue::UserDefinedType { fields, .. } => {
            fields.iter().map(|(_, value)| 4 + value.as_ref().map_or(0, size)).sum()
        }
        _ => 16,
    }
}

/// The value of a row of a column that was brought to the type for `ty`; the error follows the column's name.
fn value(values: &ArrayRef, row: usize, ty: &ColumnType<'_>) -> Result<Option<CqlValue>, String> {
    // A column of nulls alone has no bitmap of them.
    if values.is_null(row) || values.data_type().is_null() {
        return Ok(None);
    }
    Ok(Some(match ty {
        ColumnType::Native(native) => self::native(values, row, native)?,
        ColumnType::Collection { typ: CollectionType::List(item), .. } => CqlValue::List(items(values, row, item)?),
        ColumnType::Collection { typ: CollectionType::Set(item), .. } => CqlValue::Set(items(values, row, item)?),
        ColumnType::Vector { typ, dimensions } => {
            let items = items(values, row, typ)?;
            if items.len() != usize::from(*dimensions) {
                return Err(format!("has {} elements in a row, and a vector of {dimensions} takes them", items.len()));
            }
            CqlValue::Vector(items)
        }
        ColumnType::Collection { typ: CollectionType::Map(key, of), .. } => {
            let entries = values.as_map().value(row);
            let (keys, values) = (entries.column(0), entries.column(1));
            let pair = |at| {
                let null = || "has a null within a map, which holds none".to_string();
                Ok((value(keys, at, key)?.ok_or_else(null)?, value(values, at, of)?.ok_or_else(null)?))
            };
            CqlValue::Map((0..entries.len()).map(pair).collect::<Result<_, String>>()?)
        }
        ColumnType::UserDefinedType { definition, .. } => {
            let members = values.as_struct();
            let member = |(name, ty): &(std::borrow::Cow<'_, str>, ColumnType<'_>)| {
                // What the rows have not is null.
                let found = members.column_by_name(name).map(|column| value(column, row, ty)).transpose()?;
                Ok((name.to_string(), found.flatten()))
            };
            CqlValue::UserDefinedType {
                keyspace: definition.keyspace.to_string(),
                name: definition.name.to_string(),
                fields: definition.field_types.iter().map(member).collect::<Result<_, String>>()?,
            }
        }
        other => return Err(format!("is of type {}, which is not written", cql(other))),
    }))
}

fn items(values: &ArrayRef, row: usize, ty: &ColumnType<'_>) -> Result<Vec<CqlValue>, String> {
    let list = values.as_list::<i32>().value(row);
    let item = |at| {
        value(&list, at, ty)?.ok_or_else(|| "has a null within a list, which a collection does not hold".to_string())
    };
    (0..list.len()).map(item).collect()
}

fn native(values: &ArrayRef, row: usize, ty: &NativeType) -> Result<CqlValue, String> {
    let text = || values.as_string::<i32>().value(row);
    Ok(match ty {
        NativeType::TinyInt => CqlValue::TinyInt(values.as_primitive::<Int8Type>().value(row)),
        NativeType::SmallInt => CqlValue::SmallInt(values.as_primitive::<Int16Type>().value(row)),
        NativeType::Int => CqlValue::Int(values.as_primitive::<Int32Type>().value(row)),
        NativeType::BigInt => CqlValue::BigInt(values.as_primitive::<Int64Type>().value(row)),
        NativeType::Varint => {
            let number = match values.as_primitive_opt::<UInt64Type>() {
                Some(values) => i128::from(values.value(row)),
                None => i128::from(values.as_primitive::<Int64Type>().value(row)),
            };
            CqlValue::Varint(CqlVarint::from_signed_bytes_be(shortest(number)))
        }
        NativeType::Decimal => {
            let values = values.as_primitive::<Decimal128Type>();
            let scale = i32::from(values.scale());
            CqlValue::Decimal(CqlDecimal::from_signed_be_bytes_and_exponent(shortest(values.value(row)), scale))
        }
        NativeType::Float => CqlValue::Float(values.as_primitive::<Float32Type>().value(row)),
        NativeType::Double => CqlValue::Double(values.as_primitive::<Float64Type>().value(row)),
        NativeType::Text => CqlValue::Text(text().to_string()),
        NativeType::Ascii if text().is_ascii() => CqlValue::Ascii(text().to_string()),
        NativeType::Ascii => {
            return Err("has a text in a row that is not ASCII, which the table's column is".to_string());
        }
        NativeType::Uuid | NativeType::Timeuuid => {
            let id: CqlTimeuuid = text().parse().map_err(|e| format!("has a text in a row that is no UUID: {e}"))?;
            if *ty == NativeType::Uuid {
                CqlValue::Uuid(*id.as_ref())
            } else if id.as_ref().get_version_num() == 1 {
                CqlValue::Timeuuid(id)
            } else {
                return Err("has a UUID in a row that is not of version 1, which a timeuuid is".to_string());
            }
        }
        NativeType::Inet => {
            CqlValue::Inet(text().parse().map_err(|_| "has a text in a row that is no address of IP".to_string())?)
        }
        NativeType::Blob => CqlValue::Blob(values.as_binary::<i32>().value(row).to_vec()),
        NativeType::Boolean => CqlValue::Boolean(values.as_boolean().value(row)),
        NativeType::Timestamp => {
            let micros = values.as_primitive::<TimestampMicrosecondType>().value(row);
            CqlValue::Timestamp(CqlTimestamp(micros.div_euclid(1000)))
        }
        NativeType::Date => {
            // Counted from the middle of what 32 bits hold.
            let days = i64::from(values.as_primitive::<Date32Type>().value(row)) + (1 << 31);
            CqlValue::Date(CqlDate(u32::try_from(days).map_err(|_| "has a date out of bounds".to_string())?))
        }
        NativeType::Time => CqlValue::Time(CqlTime(values.as_primitive::<Time64NanosecondType>().value(row))),
        other => return Err(format!("is of type {other:?}, which is not written")),
    })
}

/// A whole number in as few bytes as it takes, the highest first.
fn shortest(number: i128) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    let sign = if number < 0 { 0xff } else { 0 };
    let is_extra = |at: usize| bytes[at] == sign && (bytes[at + 1] ^ sign) & 0x80 == 0;
    let from = (0..bytes.len() - 1).find(|at| !is_extra(*at)).unwrap_or(bytes.len() - 1);
    bytes[from..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_as_few_bytes_as_they_need() {
        for (number, bytes) in [
            (0, &[0][..]),
            (127, &[127]),
            (128, &[0, 128]),
            (-1, &[255]),
            (-128, &[128]),
            (-129, &[255, 127]),
            (i128::from(u64::MAX), &[0, 255, 255, 255, 255, 255, 255, 255, 255]),
        ] {
            assert_eq!(shortest(number), bytes, "{number}");
        }
    }
}
