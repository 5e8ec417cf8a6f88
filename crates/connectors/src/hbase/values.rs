//! Rows as row keys and cells.
//!
//! | | `values = 'text'` | `values = 'bytes'` |
//! |---|---|---|
//! | text, bytes | as they are | the same |
//! | whole numbers | decimal | big-endian, of the type's 1, 2, 4 or 8 bytes; unsigned ones as the next wider |
//! | other numbers | decimal | IEEE 754, big-endian, 4 or 8 bytes |
//! | decimals | decimal | the scale in 4 bytes, and the digits as a big-endian number |
//! | booleans | `true`, `false` | `ff`, `00` |
//! | times | `2026-01-02T03:04:05.678901`, with `Z` where they are instants | milliseconds since 1970 in 8 bytes |
//! | dates, times of day | `2026-01-02`, `03:04:05` | the same |
//! | lists, maps, structs | JSON | the same |
//!
//! A key of one column is its value as text; of several, they stand behind one another with a separator between, so
//! that rows sort by them, and a `\` before each separator or `\` within.
//!
//! Invariant: equal rows are equal bytes, and keys that differ in a column differ; a row that HBase would refuse is
//! refused before its batch is committed. Called by the sink.

use super::table::{Form, Table, others};
use arrow_array::{
    Array, ArrayRef, LargeBinaryArray, RecordBatch,
    builder::LargeBinaryBuilder,
    cast::AsArray,
    types::{
        ArrowPrimitiveType, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
        TimestampMicrosecondType,
    },
};
use arrow_cast::{CastOptions, display::FormatOptions};
use arrow_json::{EncoderOptions, writer::make_encoder};
use arrow_schema::{ArrowError, DataType, FieldRef, TimeUnit};
use std::sync::Arc;
use tidemill_core::{Error, Result};

/// Bytes of a row key at most: HBase takes 32767, and finds the region of a key by one that has the table's name and
/// sixteen more.
const KEY: usize = 32_000;
/// Bytes of a value at most: with its key and column less than the ten megabytes that HBase's client takes.
const VALUE: usize = (10 << 20) - (64 << 10);

/// How values of a type become bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// They are.
    Raw,
    /// As text of this type.
    Shown(DataType),
    /// As HBase writes numbers of this type.
    Number(DataType),
    Json,
}

/// The way of a type; `None` when it has none.
pub(super) fn way(ty: &DataType, form: Form) -> Option<Way> {
    use DataType::{
        Binary, BinaryView, Boolean, Date32, Date64, Decimal32, Decimal64, Decimal128, Decimal256, Dictionary,
        FixedSizeBinary, FixedSizeList, Float16, Float32, Float64, Int8, Int16, Int32, Int64, LargeBinary, LargeList,
        LargeUtf8, List, Map, Null, Struct, Time32, Time64, Timestamp, UInt8, UInt16, UInt32, UInt64, Utf8, Utf8View,
    };
    let number = form == Form::Bytes;
    Some(match ty {
        Dictionary(_, values) => return way(values, form),
        Null | Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView | FixedSizeBinary(_) => Way::Raw,
        Boolean | Int8 | Int16 | Int32 | Int64 | Float32 | Float64 if number => Way::Number(ty.clone()),
        UInt8 if number => Way::Number(Int16),
        UInt16 if number => Way::Number(Int32),
        UInt32 if number => Way::Number(Int64),
        Float16 if number => Way::Number(Float32),
        Decimal32(p, s) | Decimal64(p, s) | Decimal128(p, s) if number => Way::Number(Decimal128(*p, *s)),
        // A number of 64 bits without a sign has no width of its own there.
        UInt64 | Decimal256(..) if number => return None,
        Timestamp(_, zone) => {
            // What has a zone is an instant already; what has none is left as it is.
            let zone = zone.as_ref().map(|_| Arc::from("+00:00"));
            let ty = Timestamp(TimeUnit::Microsecond, zone);
            if number { Way::Number(ty) } else { Way::Shown(ty) }
        }
        Boolean | Decimal32(..) | Decimal64(..) | Decimal128(..) | Decimal256(..) => Way::Shown(ty.clone()),
        Date32 | Date64 => Way::Shown(Date32),
        Time32(_) | Time64(_) => Way::Shown(ty.clone()),
        ty if ty.is_integer() || ty.is_floating() => Way::Shown(ty.clone()),
        List(_) | LargeList(_) | FixedSizeList(..) | Struct(_) | Map(..) => Way::Json,
        _ => return None,
    })
}

/// Rows, of which each column is bytes.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    table: &'a Table,
    key: Vec<LargeBinaryArray>,
    /// With their names as HBase has them: `family:name`.
    others: Vec<(Vec<u8>, LargeBinaryArray)>,
    count: usize,
}

impl<'a> Rows<'a> {
    /// Of a batch.
    ///
    /// # Errors
    /// With the column that can't be written.
    pub(super) fn of(table: &'a Table, rows: &RecordBatch) -> Result<Self> {
        let schema = rows.schema();
        let bytes = |at: usize, form| {
            let field = &schema.fields()[at];
            encoded(field, rows.column(at), form)
                .map_err(|e| table.wrong(&format!("column `{}` can't be written", field.name())).because(e))
        };
        let key = table.key.iter().map(|name| {
            let at = schema.index_of(name).map_err(|e| Error::internal("a column of the key is gone").because(e))?;
            // As text whatever the cells are, so that columns can stand behind one another.
            bytes(at, Form::Text)
        });
        let key = key.collect::<Result<_>>()?;
        let named = |at: usize| format!("{}:{}", table.family, schema.field(at).name()).into_bytes();
        let others = others(table, &schema).map(|at| Ok((named(at), bytes(at, table.form)?)));
        Ok(Self { table, key, others: others.collect::<Result<_>>()?, count: rows.num_rows() })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Whether HBase will take all of them.
    ///
    /// # Errors
    /// With the column whose value it won't.
    pub(super) fn check(&self) -> Result<()> {
        let mut key = Vec::new();
        for row in 0..self.count {
            key.clear();
            self.put_key(row, &mut key)?;
        }
        for (column, values) in &self.others {
            let length = |row| usize::try_from(values.value_length(row)).unwrap_or(usize::MAX);
            if let Some(long) = (0..values.len()).map(length).find(|length| *length > VALUE) {
                return Err(self.wrong(column, &format!("has a value of {long} bytes, and {VALUE} is the most")));
            }
        }
        Ok(())
    }

    /// The key of each row.
    ///
    /// # Errors
    /// When one has none.
    pub(super) fn keys(&self) -> Result<Vec<Vec<u8>>> {
        let key = |row| {
            let mut key = Vec::new();
            self.put_key(row, &mut key).map(|()| key)
        };
        (0..self.len()).map(key).collect()
    }

    /// Writes the key of a row.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn put_key(&self, row: usize, out: &mut Vec<u8>) -> Result<()> {
        for (at, values) in self.key.iter().enumerate() {
            if values.is_null(row) {
                return Err(
                    self.wrong(self.table.key[at].as_bytes(), "is of the key, and null in a row: leave such rows out")
                );
            }
            if self.key.len() == 1 {
                out.extend_from_slice(values.value(row));
                continue;
            }
            if at > 0 {
                out.push(self.table.separator);
            }
            for byte in values.value(row) {
                if *byte == self.table.separator || *byte == b'\\' {
                    out.push(b'\\');
                }
                out.push(*byte);
            }
        }
        match out.len() {
            0 => Err(self.table.wrong("the key of a row is empty, which HBase has not: leave such rows out")),
            length if length > KEY => {
                Err(self.table.wrong(&format!("the key of a row has {length} bytes, and {KEY} is the most")))
            }
            _ => Ok(()),
        }
    }

    /// The cells of a row: those with a value, and the columns without one.
    pub(super) fn cells(&self, row: usize) -> (Vec<(&[u8], &[u8])>, Vec<&[u8]>) {
        let (mut with, mut without) = (Vec::with_capacity(self.others.len()), Vec::new());
        for (column, values) in &self.others {
            if values.is_null(row) {
                without.push(column.as_slice());
            } else {
                with.push((column.as_slice(), values.value(row)));
            }
        }
        (with, without)
    }

    fn wrong(&self, column: &[u8], why: &str) -> Error {
        self.table.wrong(&format!("column `{}` {why}", String::from_utf8_lossy(column)))
    }
}

/// A column's values as bytes.
fn encoded(field: &FieldRef, values: &ArrayRef, form: Form) -> Result<LargeBinaryArray, ArrowError> {
    let format = FormatOptions::new()
        // Times of one width, so that they sort as text.
        .with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%S%.6fZ"))
        .with_timestamp_format(Some("%Y-%m-%dT%H:%M:%S%.6f"));
    // A value that can't be taken over is an error, and no null.
    let strict = CastOptions { safe: false, format_options: format };
    let cast = |values: &dyn Array, ty: &DataType| arrow_cast::cast_with_options(values, ty, &strict);
    let way = way(values.data_type(), form);
    let bytes = match way.ok_or_else(|| ArrowError::CastError(format!("of type {}", values.data_type())))? {
        Way::Raw if values.data_type().is_null() => return Ok(LargeBinaryArray::new_null(values.len())),
        Way::Raw => cast(values, &DataType::LargeBinary)?,
        Way::Shown(ty) => cast(&cast(&cast(values, &ty)?, &DataType::LargeUtf8)?, &DataType::LargeBinary)?,
        Way::Number(ty) => return Ok(numbers(&cast(values, &ty)?)),
        Way::Json => return json(field, values),
    };
    Ok(bytes.as_binary::<i64>().clone())
}

/// Numbers as HBase's `Bytes` writes them.
fn numbers(values: &ArrayRef) -> LargeBinaryArray {
    fn each<T: ArrowPrimitiveType, const N: usize>(
        values: &ArrayRef,
        bytes: impl Fn(T::Native) -> [u8; N],
    ) -> LargeBinaryArray {
        values.as_primitive::<T>().iter().map(|value| value.map(&bytes)).collect()
    }
    match values.data_type() {
        DataType::Boolean => {
            values.as_boolean().iter().map(|value| value.map(|is| if is { [0xff_u8] } else { [0] })).collect()
        }
        DataType::Int8 => each::<Int8Type, 1>(values, i8::to_be_bytes),
        DataType::Int16 => each::<Int16Type, 2>(values, i16::to_be_bytes),
        DataType::Int32 => each::<Int32Type, 4>(values, i32::to_be_bytes),
        DataType::Int64 => each::<Int64Type, 8>(values, i64::to_be_bytes),
        DataType::Float32 => each::<Float32Type, 4>(values, f32::to_be_bytes),
        DataType::Float64 => each::<Float64Type, 8>(values, f64::to_be_bytes),
        DataType::Timestamp(..) => {
            each::<TimestampMicrosecondType, 8>(values, |micros| micros.div_euclid(1000).to_be_bytes())
        }
        // The last that `way` gives.
        _ => {
            let values = values.as_primitive::<Decimal128Type>();
            let scale = i32::from(values.scale()).to_be_bytes();
            let bytes = |digits| [&scale[..], &shortest(digits)].concat();
            values.iter().map(|value| value.map(bytes)).collect()
        }
    }
}

/// A whole number in as few bytes as it takes, the highest first.
fn shortest(number: i128) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    let sign = if number < 0 { 0xff } else { 0 };
    let is_extra = |at: usize| bytes[at] == sign && (bytes[at + 1] ^ sign) & 0x80 == 0;
    let from = (0..bytes.len() - 1).find(|at| !is_extra(*at)).unwrap_or(bytes.len() - 1);
    bytes[from..].to_vec()
}

fn json(field: &FieldRef, values: &ArrayRef) -> Result<LargeBinaryArray, ArrowError> {
    let options = EncoderOptions::default();
    let mut encoder = make_encoder(field, values, &options)?;
    let (mut out, mut text) = (LargeBinaryBuilder::new(), Vec::new());
    for row in 0..values.len() {
        if values.is_null(row) {
            out.append_null();
            continue;
        }
        text.clear();
        encoder.encode(row, &mut text);
        out.append_value(&text);
    }
    Ok(out.finish())
}
