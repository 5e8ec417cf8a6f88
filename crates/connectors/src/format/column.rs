//! Growing columns that can take a row back.
//!
//! A decoder appends a row column by column; when one of its values is refused,
//! the columns that had theirs already are cut back to the rows before
//! ([`Column::truncate`]). Used by the decoders of JSON and CSV, and by those of
//! Avro and Protobuf, whose records have more types ([`Column::typed`]).
//!
//! Invariant: all columns of a decoder have the same length between two rows.

use super::{json::Paths, time::Unit};
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int8Array,
    Int16Array, Int32Array, Int64Array, LargeBinaryArray, ListArray, MapArray, PrimitiveArray, StructArray,
    Time64MicrosecondArray, TimestampMicrosecondArray, TimestampMillisecondArray, TimestampNanosecondArray,
    TimestampSecondArray, UInt8Array, UInt16Array, UInt32Array, UInt64Array,
    builder::{LargeStringBuilder, StringBuilder, StringViewBuilder},
};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use std::sync::Arc;
use tidemill_core::{Error, Result};

/// Key of a field's metadata: with value `any`, a text column also takes
/// numbers and booleans. Set where a sampled column held several types.
pub(crate) const TAKES: &str = "tidemill.takes";

/// A growing column.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) field: FieldRef,
    valid: Vec<bool>,
    pub(crate) values: Values,
}

/// The values of a column; a null has a place-holder.
#[derive(Debug)]
pub(crate) enum Values {
    Text {
        text: String,
        ends: Vec<usize>,
        any: bool,
    },
    Int {
        values: Vec<i64>,
        min: i64,
        max: i64,
    },
    Float(Vec<f64>),
    Bool(Vec<bool>),
    Time {
        micros: Vec<i64>,
        unit: TimeUnit,
        number: Unit,
    },
    List {
        ends: Vec<usize>,
        item: Box<Column>,
    },
    Struct {
        children: Vec<Column>,
        paths: Paths,
    },
    // From here on only in columns that `typed` makes.
    Unsigned {
        values: Vec<u64>,
        max: u64,
    },
    Bytes {
        bytes: Vec<u8>,
        ends: Vec<usize>,
    },
    /// Days since 1970-01-01.
    Date(Vec<i32>),
    /// Microseconds since midnight.
    Clock(Vec<i64>),
    Decimal {
        values: Vec<i128>,
        precision: u8,
        scale: i8,
    },
    Map {
        ends: Vec<usize>,
        keys: Box<Column>,
        values: Box<Column>,
    },
}

/// The schema of the columns at `projection`, and these columns, empty. A
/// format has tried each when it was made.
pub(super) fn projected(schema: &Schema, projection: &[usize], number: Unit) -> (SchemaRef, Vec<Column>) {
    let fields: Vec<FieldRef> = projection.iter().map(|i| Arc::clone(&schema.fields()[*i])).collect();
    let columns = fields
        .iter()
        // A format that takes fewer types has refused the others when it was made.
        .map(|f| Column::typed(f, number).expect("the constructor checked that each column can be decoded to"))
        .collect();
    (Arc::new(Schema::new(fields)), columns)
}

impl Column {
    /// An empty column of a field.
    ///
    /// # Errors
    /// When no decoder can fill this type.
    pub(crate) fn new(field: &FieldRef, number: Unit) -> Result<Self> {
        Self::of(field, number, false)
    }

    /// An empty column of a field, which may also be bytes, a date, a time of day, a decimal, a map or unsigned.
    ///
    /// # Errors
    /// When no decoder can fill this type.
    pub(crate) fn typed(field: &FieldRef, number: Unit) -> Result<Self> {
        Self::of(field, number, true)
    }

    fn of(field: &FieldRef, number: Unit, typed: bool) -> Result<Self> {
        let int = |min: i64, max: i64| Values::Int { values: Vec::new(), min, max };
        let values = match field.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Values::Text {
                text: String::new(),
                ends: Vec::new(),
                any: field.metadata().get(TAKES).is_some_and(|takes| takes == "any"),
            },
            DataType::Int8 => int(i8::MIN.into(), i8::MAX.into()),
            DataType::Int16 => int(i16::MIN.into(), i16::MAX.into()),
            DataType::Int32 => int(i32::MIN.into(), i32::MAX.into()),
            DataType::Int64 => int(i64::MIN, i64::MAX),
            DataType::Float32 | DataType::Float64 => Values::Float(Vec::new()),
            DataType::Boolean => Values::Bool(Vec::new()),
            DataType::Timestamp(unit, _) => Values::Time { micros: Vec::new(), unit: *unit, number },
            DataType::List(item) => Values::List { ends: Vec::new(), item: Box::new(Self::of(item, number, typed)?) },
            DataType::Struct(fields) => {
                let children = fields.iter().map(|f| Self::of(f, number, typed)).collect::<Result<_>>()?;
                Values::Struct { children, paths: Paths::keys(fields.iter().map(|f| f.name())) }
            }
            other if typed => Self::more(field, number)?.ok_or_else(|| refused(field, other))?,
            other => return Err(refused(field, other)),
        };
        Ok(Self { field: Arc::clone(field), valid: Vec::new(), values })
    }

    /// The types that only `typed` takes.
    fn more(field: &FieldRef, number: Unit) -> Result<Option<Values>> {
        let unsigned = |max| Values::Unsigned { values: Vec::new(), max };
        Ok(Some(match field.data_type() {
            DataType::UInt8 => unsigned(u8::MAX.into()),
            DataType::UInt16 => unsigned(u16::MAX.into()),
            DataType::UInt32 => unsigned(u32::MAX.into()),
            DataType::UInt64 => unsigned(u64::MAX),
            DataType::Binary | DataType::LargeBinary => Values::Bytes { bytes: Vec::new(), ends: Vec::new() },
            DataType::Date32 => Values::Date(Vec::new()),
            DataType::Time64(TimeUnit::Microsecond) => Values::Clock(Vec::new()),
            DataType::Decimal128(precision, scale) => {
                Values::Decimal { values: Vec::new(), precision: *precision, scale: *scale }
            }
            DataType::Map(entries, _) => {
                let DataType::Struct(parts) = entries.data_type() else { return Ok(None) };
                let [key, value] = parts.as_ref() else { return Ok(None) };
                Values::Map {
                    ends: Vec::new(),
                    keys: Box::new(Self::of(key, number, true)?),
                    values: Box::new(Self::of(value, number, true)?),
                }
            }
            _ => return Ok(None),
        }))
    }

    /// Values so far.
    pub(crate) fn len(&self) -> usize {
        self.valid.len()
    }

    /// Marks the value that was just appended to `values` as there.
    pub(crate) fn valid(&mut self) {
        self.valid.push(true);
    }

    /// Appends a null.
    ///
    /// # Errors
    /// When the column is declared NOT NULL.
    pub(crate) fn null(&mut self) -> Result<(), String> {
        if !self.field.is_nullable() {
            return Err(format!("field \"{}\": missing, and declared NOT NULL", self.field.name()));
        }
        self.place_holder();
        Ok(())
    }

    fn place_holder(&mut self) {
        self.valid.push(false);
        match &mut self.values {
            Values::Text { text, ends, .. } => ends.push(text.len()),
            Values::Int { values, .. } => values.push(0),
            Values::Float(values) => values.push(0.0),
            Values::Bool(values) => values.push(false),
            Values::Time { micros, .. } => micros.push(0),
            Values::List { ends, item } => ends.push(item.len()),
            Values::Struct { children, .. } => children.iter_mut().for_each(Column::place_holder),
            Values::Unsigned { values, .. } => values.push(0),
            Values::Bytes { bytes, ends } => ends.push(bytes.len()),
            Values::Date(values) => values.push(0),
            Values::Clock(values) => values.push(0),
            Values::Decimal { values, .. } => values.push(0),
            Values::Map { ends, keys, .. } => ends.push(keys.len()),
        }
    }

    /// Cuts back to `len` values; also from within a value.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.valid.truncate(len);
        let last = |ends: &[usize]| len.checked_sub(1).map_or(0, |i| ends[i]);
        match &mut self.values {
            Values::Text { text, ends, .. } => {
                ends.truncate(len);
                text.truncate(last(ends));
            }
            Values::Int { values, .. } | Values::Time { micros: values, .. } => values.truncate(len),
            Values::Float(values) => values.truncate(len),
            Values::Bool(values) => values.truncate(len),
            Values::List { ends, item } => {
                ends.truncate(len);
                item.truncate(last(ends));
            }
            Values::Struct { children, .. } => children.iter_mut().for_each(|child| child.truncate(len)),
            Values::Unsigned { values, .. } => values.truncate(len),
            Values::Bytes { bytes, ends } => {
                ends.truncate(len);
                bytes.truncate(last(ends));
            }
            Values::Date(values) => values.truncate(len),
            Values::Clock(values) => values.truncate(len),
            Values::Decimal { values, .. } => values.truncate(len),
            Values::Map { ends, keys, values } => {
                ends.truncate(len);
                keys.truncate(last(ends));
                values.truncate(last(ends));
            }
        }
    }

    /// The column as an array; empty again afterwards, with its room kept where that is cheap.
    ///
    /// # Errors
    /// When it holds more than Arrow's type can.
    pub(crate) fn finish(&mut self) -> Result<ArrayRef> {
        let valid = std::mem::take(&mut self.valid);
        let rows = valid.len();
        let nulls = if valid.iter().all(|v| *v) { None } else { Some(NullBuffer::from(valid)) };
        let ty = self.field.data_type().clone();
        Ok(match &mut self.values {
            Values::Text { text, ends, .. } => {
                let array = texts(&ty, text, ends, nulls.as_ref());
                text.clear();
                ends.clear();
                array
            }
            Values::Int { values, .. } => ints(&ty, std::mem::take(values), nulls),
            Values::Float(values) if ty == DataType::Float32 => {
                #[expect(clippy::cast_possible_truncation, reason = "the declared type is that coarse")]
                let values: Vec<f32> = values.drain(..).map(|v| v as f32).collect();
                Arc::new(Float32Array::new(values.into(), nulls))
            }
            Values::Float(values) => Arc::new(Float64Array::new(std::mem::take(values).into(), nulls)),
            Values::Bool(values) => Arc::new(BooleanArray::new(std::mem::take(values).into(), nulls)),
            Values::Time { micros, unit, .. } => {
                let DataType::Timestamp(_, zone) = ty else { return Err(Error::internal("a time column is a time")) };
                let micros = std::mem::take(micros);
                let scaled = |f: fn(i64) -> i64| micros.iter().map(|v| f(*v)).collect::<Vec<i64>>().into();
                match unit {
                    TimeUnit::Microsecond => {
                        Arc::new(TimestampMicrosecondArray::new(micros.into(), nulls).with_timezone_opt(zone))
                    }
                    TimeUnit::Second => Arc::new(
                        TimestampSecondArray::new(scaled(|v| v.div_euclid(1_000_000)), nulls).with_timezone_opt(zone),
                    ),
                    TimeUnit::Millisecond => Arc::new(
                        TimestampMillisecondArray::new(scaled(|v| v.div_euclid(1000)), nulls).with_timezone_opt(zone),
                    ),
                    TimeUnit::Nanosecond => Arc::new(
                        TimestampNanosecondArray::new(scaled(|v| v.saturating_mul(1000)), nulls)
                            .with_timezone_opt(zone),
                    ),
                }
            }
            Values::List { ends, item } => {
                let offsets = offsets(&std::mem::take(ends))?;
                let inner = Arc::clone(&item.field);
                let items = item.finish()?;
                Arc::new(ListArray::try_new(inner, offsets, items, nulls).map_err(broken)?)
            }
            Values::Struct { children, .. } => {
                let arrays = children.iter_mut().map(Column::finish).collect::<Result<Vec<_>>>()?;
                let fields: Vec<FieldRef> = children.iter().map(|c| Arc::clone(&c.field)).collect();
                Arc::new(StructArray::try_new_with_length(fields.into(), arrays, nulls, rows).map_err(broken)?)
            }
            Values::Unsigned { values, .. } => unsigned(&ty, std::mem::take(values), nulls),
            Values::Bytes { bytes, ends } => {
                let (bytes, ends) = (std::mem::take(bytes), std::mem::take(ends));
                if ty == DataType::LargeBinary {
                    let lengths = ends.iter().scan(0, |from, end| Some(end - std::mem::replace(from, *end)));
                    let offsets = OffsetBuffer::<i64>::from_lengths(lengths);
                    Arc::new(LargeBinaryArray::try_new(offsets, bytes.into(), nulls).map_err(broken)?)
                } else {
                    Arc::new(BinaryArray::try_new(offsets(&ends)?, bytes.into(), nulls).map_err(broken)?)
                }
            }
            Values::Date(values) => Arc::new(Date32Array::new(std::mem::take(values).into(), nulls)),
            Values::Clock(values) => Arc::new(Time64MicrosecondArray::new(std::mem::take(values).into(), nulls)),
            Values::Decimal { values, precision, scale } => {
                let array = Decimal128Array::new(std::mem::take(values).into(), nulls);
                Arc::new(array.with_precision_and_scale(*precision, *scale).map_err(broken)?)
            }
            Values::Map { ends, keys, values } => {
                let DataType::Map(entries, sorted) = &ty else { return Err(Error::internal("a map column is a map")) };
                let offsets = offsets(&std::mem::take(ends))?;
                let fields: Vec<FieldRef> = vec![Arc::clone(&keys.field), Arc::clone(&values.field)];
                let parts = vec![keys.finish()?, values.finish()?];
                let parts = StructArray::try_new(fields.into(), parts, None).map_err(broken)?;
                Arc::new(MapArray::try_new(Arc::clone(entries), offsets, parts, nulls, *sorted).map_err(broken)?)
            }
        })
    }
}

fn refused(field: &FieldRef, ty: &DataType) -> Error {
    Error::user(format!(
        "column \"{}\": records can't be decoded to {ty}; use TEXT, BIGINT, DOUBLE, BOOLEAN, TIMESTAMP, a list or a struct",
        field.name()
    ))
}

/// Ends as Arrow's offsets.
fn offsets(ends: &[usize]) -> Result<OffsetBuffer<i32>> {
    if i32::try_from(ends.last().copied().unwrap_or(0)).is_err() {
        return Err(Error::internal("a block holds more than 2^31 items or bytes of one column"));
    }
    Ok(OffsetBuffer::from_lengths(ends.iter().scan(0, |from, end| Some(end - std::mem::replace(from, *end)))))
}

fn broken(error: arrow_schema::ArrowError) -> Error {
    Error::internal("decoded columns don't fit together").because(error)
}

/// Copies once more, which costs less than letting Arrow check the text again.
fn texts(ty: &DataType, text: &str, ends: &[usize], nulls: Option<&NullBuffer>) -> ArrayRef {
    let mut from = 0;
    let values = ends.iter().enumerate().map(|(row, end)| {
        let value = &text[std::mem::replace(&mut from, *end)..*end];
        nulls.is_none_or(|n| n.is_valid(row)).then_some(value)
    });
    match ty {
        DataType::LargeUtf8 => {
            let mut builder = LargeStringBuilder::with_capacity(ends.len(), text.len());
            values.for_each(|v| builder.append_option(v));
            Arc::new(builder.finish())
        }
        DataType::Utf8View => {
            let mut builder = StringViewBuilder::with_capacity(ends.len());
            values.for_each(|v| builder.append_option(v));
            Arc::new(builder.finish())
        }
        _ => {
            let mut builder = StringBuilder::with_capacity(ends.len(), text.len());
            values.for_each(|v| builder.append_option(v));
            Arc::new(builder.finish())
        }
    }
}

fn ints(ty: &DataType, values: Vec<i64>, nulls: Option<NullBuffer>) -> ArrayRef {
    fn narrow<P: arrow_array::types::ArrowPrimitiveType>(values: &[i64], nulls: Option<NullBuffer>) -> PrimitiveArray<P>
    where
        P::Native: TryFrom<i64> + Default,
    {
        // The range was checked when the value came in.
        let values: Vec<P::Native> = values.iter().map(|v| P::Native::try_from(*v).unwrap_or_default()).collect();
        PrimitiveArray::new(values.into(), nulls)
    }
    match ty {
        DataType::Int8 => Arc::new(narrow(&values, nulls)) as Arc<Int8Array>,
        DataType::Int16 => Arc::new(narrow(&values, nulls)) as Arc<Int16Array>,
        DataType::Int32 => Arc::new(narrow(&values, nulls)) as Arc<Int32Array>,
        _ => Arc::new(Int64Array::new(values.into(), nulls)),
    }
}

fn unsigned(ty: &DataType, values: Vec<u64>, nulls: Option<NullBuffer>) -> ArrayRef {
    fn narrow<P: arrow_array::types::ArrowPrimitiveType>(values: &[u64], nulls: Option<NullBuffer>) -> PrimitiveArray<P>
    where
        P::Native: TryFrom<u64> + Default,
    {
        // The range was checked when the value came in.
        let values: Vec<P::Native> = values.iter().map(|v| P::Native::try_from(*v).unwrap_or_default()).collect();
        PrimitiveArray::new(values.into(), nulls)
    }
    match ty {
        DataType::UInt8 => Arc::new(narrow(&values, nulls)) as Arc<UInt8Array>,
        DataType::UInt16 => Arc::new(narrow(&values, nulls)) as Arc<UInt16Array>,
        DataType::UInt32 => Arc::new(narrow(&values, nulls)) as Arc<UInt32Array>,
        _ => Arc::new(UInt64Array::new(values.into(), nulls)),
    }
}

/// A nullable field, as sampled columns are.
pub(crate) fn nullable(name: &str, ty: DataType) -> Field {
    Field::new(name, ty, true)
}
