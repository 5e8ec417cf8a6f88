//! Columns of whole numbers in as few bytes as their values take.
//!
//! ```text
//! Int64: 7, 300, 12   ─ narrow ─►   2 bytes a value: Int16   ─ widen ─►   Int64: 7, 300, 12
//! ```
//!
//! Keys are often small numbers and counts nearly always: what a batch changed is
//! written to the disk in a third of the bytes, which costs less than to copy them.
//!
//! Invariant: [`widen`] gives back what [`narrow`] was given, value for value.
//! Called by [`super::file`] for each frame of rows.

use arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType, PrimitiveArray, RecordBatch, RecordBatchOptions,
    cast::AsArray,
    types::{Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type},
};
use arrow_schema::{DataType, Schema, SchemaRef};
use std::sync::Arc;
use tidemill_core::{Error, Result};

/// Fewer rows are written as they are.
const FEW: usize = 256;

/// The rows with narrower columns, and of each column the bytes of a value, 0 where it is as it was. `None` where
/// there is nothing to gain.
pub(super) fn narrow(rows: &RecordBatch) -> Option<(Vec<u8>, RecordBatch)> {
    if rows.num_rows() < FEW {
        return None;
    }
    let widths: Vec<u8> = rows.columns().iter().map(|column| width_of(column)).collect();
    if widths.iter().all(|width| *width == 0) {
        return None;
    }
    let schema = columns(rows.schema_ref(), &widths)?;
    let narrower =
        rows.columns().iter().zip(schema.fields()).map(|(column, field)| cast(column, field.data_type())).collect();
    Some((widths, with_columns(schema, narrower, rows.num_rows()).ok()?))
}

/// Of the columns of a state, those of a frame that has values of `widths` bytes. `None` when there are no such.
pub(super) fn columns(schema: &SchemaRef, widths: &[u8]) -> Option<SchemaRef> {
    if widths.is_empty() {
        return Some(Arc::clone(schema));
    }
    if widths.len() != schema.fields().len() {
        return None;
    }
    let narrower = |(field, width): (&arrow_schema::FieldRef, &u8)| {
        let narrower = |kind: DataType| Arc::new(field.as_ref().clone().with_data_type(kind));
        Some(match (field.data_type(), width) {
            (_, 0) => Arc::clone(field),
            (DataType::Int64 | DataType::Int32, 1) => narrower(DataType::Int8),
            (DataType::Int64 | DataType::Int32, 2) => narrower(DataType::Int16),
            (DataType::Int64, 4) => narrower(DataType::Int32),
            (DataType::UInt64 | DataType::UInt32, 1) => narrower(DataType::UInt8),
            (DataType::UInt64 | DataType::UInt32, 2) => narrower(DataType::UInt16),
            (DataType::UInt64, 4) => narrower(DataType::UInt32),
            _ => return None,
        })
    };
    let fields = schema.fields().iter().zip(widths).map(narrower).collect::<Option<Vec<_>>>()?;
    Some(Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone())))
}

/// The rows with the columns of `schema`, from which they were narrowed.
///
/// # Errors
/// When they are others.
pub(super) fn widen(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let wider = rows.columns().iter().zip(schema.fields()).map(|(column, field)| {
        if column.data_type() == field.data_type() { Arc::clone(column) } else { cast(column, field.data_type()) }
    });
    with_columns(Arc::clone(schema), wider.collect(), rows.num_rows())
}

fn with_columns(schema: SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema, columns, &options)
        .map_err(|e| Error::internal(format!("rows of a state have other columns: {e}")))
}

/// The bytes that a value of the column takes at most; 0 where that is no less than it has.
fn width_of(column: &ArrayRef) -> u8 {
    // What lies under a null counts as well: it is kept as it is.
    fn signed<T: ArrowPrimitiveType<Native: Into<i64>>>(column: &ArrayRef) -> u8 {
        let values = column.as_primitive::<T>().values().iter();
        // Of a negative number the bits that differ from its sign.
        let bits = values.fold(0, |bits, value| {
            let value: i64 = (*value).into();
            bits | (value ^ (value >> 63))
        });
        width(64 - bits.leading_zeros() + 1)
    }
    fn unsigned<T: ArrowPrimitiveType<Native: Into<u64>>>(column: &ArrayRef) -> u8 {
        let values = column.as_primitive::<T>().values().iter();
        width(64 - values.fold(0, |bits, value| bits | (*value).into()).leading_zeros())
    }
    fn width(bits: u32) -> u8 {
        match bits {
            0..=8 => 1,
            9..=16 => 2,
            17..=32 => 4,
            _ => 0,
        }
    }
    match column.data_type() {
        DataType::Int64 => signed::<Int64Type>(column),
        DataType::Int32 => signed::<Int32Type>(column) % 4,
        DataType::UInt64 => unsigned::<UInt64Type>(column),
        DataType::UInt32 => unsigned::<UInt32Type>(column) % 4,
        _ => 0,
    }
}

/// A column in another type of the same sign; values fit, as [`width_of`] or their first type says.
fn cast(column: &ArrayRef, to: &DataType) -> ArrayRef {
    fn each<A: ArrowPrimitiveType, B: ArrowPrimitiveType>(
        column: &ArrayRef,
        convert: impl Fn(A::Native) -> B::Native,
    ) -> ArrayRef {
        let column = column.as_primitive::<A>();
        let values = column.values().iter().map(|value| convert(*value)).collect();
        Arc::new(PrimitiveArray::<B>::new(values, column.nulls().cloned()))
    }
    macro_rules! casts {
        ($(($from:pat, $to:pat) => $a:ty, $b:ty;)*) => {
            match (column.data_type(), to) {
                $(($from, $to) => {
                    #[allow(clippy::cast_possible_truncation, reason = "the values fit; widening truncates nothing")]
                    each::<$a, $b>(column, |value| value as <$b as ArrowPrimitiveType>::Native)
                })*
                _ => Arc::clone(column),
            }
        };
    }
    casts! {
        (DataType::Int64, DataType::Int8) => Int64Type, Int8Type;
        (DataType::Int64, DataType::Int16) => Int64Type, Int16Type;
        (DataType::Int64, DataType::Int32) => Int64Type, Int32Type;
        (DataType::Int32, DataType::Int8) => Int32Type, Int8Type;
        (DataType::Int32, DataType::Int16) => Int32Type, Int16Type;
        (DataType::UInt64, DataType::UInt8) => UInt64Type, UInt8Type;
        (DataType::UInt64, DataType::UInt16) => UInt64Type, UInt16Type;
        (DataType::UInt64, DataType::UInt32) => UInt64Type, UInt32Type;
        (DataType::UInt32, DataType::UInt8) => UInt32Type, UInt8Type;
        (DataType::UInt32, DataType::UInt16) => UInt32Type, UInt16Type;
        (DataType::Int8, DataType::Int64) => Int8Type, Int64Type;
        (DataType::Int16, DataType::Int64) => Int16Type, Int64Type;
        (DataType::Int32, DataType::Int64) => Int32Type, Int64Type;
        (DataType::Int8, DataType::Int32) => Int8Type, Int32Type;
        (DataType::Int16, DataType::Int32) => Int16Type, Int32Type;
        (DataType::UInt8, DataType::UInt64) => UInt8Type, UInt64Type;
        (DataType::UInt16, DataType::UInt64) => UInt16Type, UInt64Type;
        (DataType::UInt32, DataType::UInt64) => UInt32Type, UInt64Type;
        (DataType::UInt8, DataType::UInt32) => UInt8Type, UInt32Type;
        (DataType::UInt16, DataType::UInt32) => UInt16Type, UInt32Type;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Int32Array, Int64Array, StringArray, UInt32Array, UInt64Array};
    use arrow_schema::Field;
    use proptest::prelude::*;

    fn one(column: ArrayRef) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable([("n", column, true)]).unwrap()
    }

    /// The width that is found, after the values have come back.
    fn there_and_back(column: ArrayRef) -> u8 {
        let rows = one(column);
        let Some((widths, narrower)) = narrow(&rows) else { return 0 };
        assert_eq!(columns(&rows.schema(), &widths).unwrap(), narrower.schema());
        assert!(narrower.get_array_memory_size() < rows.get_array_memory_size());
        assert_eq!(widen(&narrower, &rows.schema()).unwrap(), rows);
        widths[0]
    }

    #[test]
    fn values_at_the_edges_take_the_bytes_that_they_need() {
        let signed = |edge: i64| there_and_back(Arc::new(Int64Array::from([vec![0; FEW], vec![edge]].concat())));
        for (edge, width) in [
            (0, 1),
            (127, 1),
            (-128, 1),
            (128, 2),
            (-129, 2),
            (32_767, 2),
            (-32_768, 2),
            (32_768, 4),
            (-32_769, 4),
            (i64::from(i32::MAX), 4),
            (i64::from(i32::MIN), 4),
            (i64::from(i32::MAX) + 1, 0),
            (i64::from(i32::MIN) - 1, 0),
            (i64::MAX, 0),
            (i64::MIN, 0),
        ] {
            assert_eq!(signed(edge), width, "{edge}");
        }
        let unsigned = |edge: u64| there_and_back(Arc::new(UInt64Array::from([vec![0; FEW], vec![edge]].concat())));
        for (edge, width) in
            [(255, 1), (256, 2), (65_535, 2), (65_536, 4), (u64::from(u32::MAX), 4), (1 << 32, 0), (u64::MAX, 0)]
        {
            assert_eq!(unsigned(edge), width, "{edge}");
        }
        assert_eq!(there_and_back(Arc::new(Int32Array::from([vec![0; FEW], vec![-32_769]].concat()))), 0);
        assert_eq!(there_and_back(Arc::new(UInt32Array::from([vec![0; FEW], vec![65_536]].concat()))), 0);
        assert_eq!(there_and_back(Arc::new(StringArray::from(vec!["7"; FEW]))), 0);
        assert_eq!(there_and_back(Arc::new(Int64Array::from(vec![7; FEW - 1]))), 0, "few rows");
    }

    #[test]
    fn widths_that_no_column_has_are_refused() {
        let schema = one(Arc::new(Int64Array::from(vec![1]))).schema();
        for widths in [&[3][..], &[8], &[1, 1], &[4, 0]] {
            assert_eq!(columns(&schema, widths), None, "{widths:?}");
        }
        let text = Arc::new(Schema::new(vec![Field::new("n", DataType::Utf8, true)]));
        assert_eq!(columns(&text, &[1]), None);
        assert_eq!(columns(&text, &[0]), Some(Arc::clone(&text)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn all_values_come_back(
            values in prop::collection::vec(prop::option::weighted(0.9, any::<i64>()), FEW..2 * FEW),
            shift in 0_u32..64,
        ) {
            let values = values.into_iter().map(|value| value.map(|value| value >> shift));
            let signed: Int64Array = values.clone().collect();
            let half: Int32Array = values.clone().map(|value| value.map(|value| (value >> 32) as i32)).collect();
            let unsigned: UInt64Array = values.map(|value| value.map(i64::cast_unsigned)).collect();
            there_and_back(Arc::new(signed));
            there_and_back(Arc::new(half));
            there_and_back(Arc::new(unsigned));
        }
    }
}
