//! What the formats with types of their own share: Avro and Protobuf.
//!
//! How the records of a block become rows one by one, the columns and values that
//! both have, and what both refuse in the same words. [`super::plans`] keeps what
//! they know of schemas.
//!
//! Invariant: a record that is refused leaves nothing in the columns, and a whole
//! number, a decimal or a time that its column can't hold refuses its record. Called
//! by both formats, and by that of JSON in a registry's frame.

use super::column::{Column, Values};
use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{ArrowError, DataType, Field, SchemaRef, TimeUnit};
use std::{fmt::Write, sync::Arc};
use tidemill_core::{Block, Error, Options, Refusal, Result, nearest};

/// Why a connector of lines brings no records of bytes.
pub(super) fn refuse_lines(options: &Options, what: &str) -> Result<()> {
    match options.get("connector") {
        Some(connector @ ("files" | "tail" | "stdin" | "tcp" | "tcp-listen")) => Err(Error::user(format!(
            "{}: connector `{connector}` brings lines, and a record of {what} may hold a line end anywhere: use a connector that brings messages (kafka, mqtt, http, websocket, topic)",
            options.owner()
        ))),
        _ => Ok(()),
    }
}

/// That a schema has no field for a column, and which may be meant.
pub(super) fn no_field(schema: &str, column: &str, fields: &[&str]) -> String {
    let hint = nearest(column, fields)
        .map_or_else(|| format!("it has {}", fields.join(", ")), |near| format!("did you mean `{near}`?"));
    format!("{schema} has no field `{column}`; {hint}")
}

/// Entries of a map.
pub(super) fn map_of(key: DataType, value: DataType, nullable: bool) -> DataType {
    let parts = vec![Field::new("key", key, false), Field::new("value", value, nullable)];
    DataType::Map(Arc::new(Field::new("entries", DataType::Struct(parts.into()), false)), false)
}

/// A time with its zone, as TIMESTAMP columns have it.
pub(super) fn utc() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// Whether a column of this unit has room for a time.
pub(super) fn fits(micros: i64, unit: TimeUnit) -> bool {
    unit != TimeUnit::Nanosecond || micros.checked_mul(1000).is_some()
}

/// A whole number into a column of numbers.
pub(super) fn number(values: &mut Values, value: i64) -> Result<(), String> {
    match values {
        Values::Int { values, min, max } if (*min..=*max).contains(&value) => values.push(value),
        Values::Int { min, max, .. } => {
            return Err(format!("expected an integer between {min} and {max}, found {value}"));
        }
        Values::Unsigned { values, max } => match u64::try_from(value) {
            Ok(unsigned) if unsigned <= *max => values.push(unsigned),
            _ => return Err(format!("expected an integer between 0 and {max}, found {value}")),
        },
        #[expect(clippy::cast_precision_loss, reason = "the column is that coarse")]
        Values::Float(values) => values.push(value as f64),
        Values::Date(values) => {
            values.push(i32::try_from(value).map_err(|_| format!("day {value} is out of range"))?);
        }
        Values::Decimal { .. } => return decimal(values, value.into(), 0),
        _ => return Err("the column takes no numbers".to_string()),
    }
    Ok(())
}

/// A decimal of a scale into a column of decimals or floats.
pub(super) fn decimal(values: &mut Values, unscaled: i128, scale: usize) -> Result<(), String> {
    let of = |scale: usize| u32::try_from(scale).ok().and_then(|scale| 10_i128.checked_pow(scale));
    match values {
        Values::Decimal { values, precision, scale: to } => {
            let to = usize::try_from(*to).unwrap_or(0);
            let fitted = if to >= scale {
                of(to - scale).and_then(|by| unscaled.checked_mul(by))
            } else {
                of(scale - to).filter(|by| unscaled % by == 0).map(|by| unscaled / by)
            };
            let most = of((*precision).into()).unwrap_or(i128::MAX);
            let fitted = fitted.filter(|fitted| fitted.unsigned_abs() < most.unsigned_abs());
            values.push(fitted.ok_or_else(|| {
                let mut shown = String::new();
                digits(unscaled, scale, &mut shown);
                format!("{shown} does not fit DECIMAL({precision}, {to})")
            })?);
        }
        #[expect(clippy::cast_precision_loss, reason = "the column is that coarse")]
        Values::Float(values) => values.push(unscaled as f64 / 10_f64.powi(i32::try_from(scale).unwrap_or(0))),
        _ => return Err("the column takes no decimals".to_string()),
    }
    Ok(())
}

/// A decimal's digits.
pub(super) fn digits(unscaled: i128, scale: usize, out: &mut String) {
    if unscaled < 0 {
        out.push('-');
    }
    let digits = unscaled.unsigned_abs().to_string();
    if scale == 0 {
        out.push_str(&digits);
        return;
    }
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, part) = digits.split_at(digits.len() - scale);
    // Writing to a string does not fail.
    let _written = write!(out, "{whole}.{part}");
}

/// A type without what only says how its values lie: a dictionary's is that of its values, all lists are one.
pub(super) fn simple_type(ty: &DataType) -> DataType {
    match ty {
        DataType::Dictionary(_, of) => simple_type(of),
        DataType::LargeList(item) | DataType::FixedSizeList(item, _) => DataType::List(Arc::clone(item)),
        ty => ty.clone(),
    }
}

/// A column as [`simple_type`] has it.
///
/// # Errors
/// When its lists hold more than 2^31 items.
pub(super) fn simple(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let ty = simple_type(column.data_type());
    if ty == *column.data_type() {
        return Ok(Arc::clone(column));
    }
    cast_with_options(column, &ty, &CastOptions { safe: false, ..CastOptions::default() })
}

/// Decodes the records of a block one by one, and takes back what a refused one has left.
pub(super) fn rows<D>(
    block: &Block,
    refused: &mut Vec<Refusal>,
    schema: &SchemaRef,
    decoder: &mut D,
    mut record: impl FnMut(&mut D, &[u8]) -> Result<Result<(), String>>,
    columns: impl Fn(&mut D) -> &mut Vec<Column>,
) -> Result<RecordBatch> {
    let mut rows = 0;
    for (row, bytes) in block.records().enumerate() {
        match record(decoder, bytes) {
            Ok(Ok(())) => rows += 1,
            Ok(Err(reason)) => {
                columns(decoder).iter_mut().for_each(|column| column.truncate(rows));
                refused.push(Refusal { row, reason });
            }
            Err(error) => {
                // The block is read again.
                columns(decoder).iter_mut().for_each(|column| column.truncate(0));
                return Err(error);
            }
        }
    }
    let columns = columns(decoder).iter_mut().map(Column::finish).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .map_err(|e| Error::internal("decoded columns don't fit their schema").because(e))
}
