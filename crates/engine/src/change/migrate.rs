//! Rows of a state under other columns.
//!
//! A column may be added, widened, or dropped; the key may only be widened.
//! Within a struct the same holds for its fields. What a new column holds in
//! old rows is said by the operator ([`crate::state::StateOperator::neutral`]),
//! else it is null, or zero where null is not allowed.
//!
//! Invariant: no value is changed by a migration, only its type, to one that
//! has a place for every value of the old one.

use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, StructArray, UInt32Array, new_null_array};
use arrow_schema::{DataType, Field, FieldRef, SchemaRef};
use std::sync::Arc;
use tidemill_core::{Error, Result};

/// What is done to the columns, a line each; why it can't be done otherwise.
pub(crate) fn steps(from: &SchemaRef, from_keys: usize, to: &SchemaRef, to_keys: usize) -> Result<Vec<String>, String> {
    let key = |schema: &SchemaRef, keys: usize| -> Vec<String> {
        schema.fields().iter().take(keys).map(|f| f.name().clone()).collect()
    };
    let (mut old, mut new) = (key(from, from_keys), key(to, to_keys));
    old.sort();
    new.sort();
    if old != new {
        return Err(format!("its key was ({}) and is ({})", old.join(", "), new.join(", ")));
    }
    let mut steps = Vec::new();
    fields(from.fields(), to.fields(), "", &mut steps)?;
    Ok(steps)
}

/// Compares columns, or the fields of a struct, by name.
fn fields(from: &[FieldRef], to: &[FieldRef], of: &str, steps: &mut Vec<String>) -> Result<(), String> {
    let mut added = Vec::new();
    for new in to {
        let name = format!("{of}{}", new.name());
        match from.iter().find(|old| old.name() == new.name()) {
            None => added.push(name),
            Some(old) => field(old, new, &name, steps)?,
        }
    }
    let dropped: Vec<String> = from
        .iter()
        .filter(|old| to.iter().all(|new| new.name() != old.name()))
        .map(|old| format!("{of}{}", old.name()))
        .collect();
    // A column under another name and one that is new can't be told apart.
    if !added.is_empty() && !dropped.is_empty() {
        return Err(format!("it had {} and has {} instead", list(&dropped), list(&added)));
    }
    if !added.is_empty() {
        steps.push(format!("{} new: empty for what has come so far", is(&added)));
    }
    if !dropped.is_empty() {
        steps.push(format!("{} dropped", is(&dropped)));
    }
    Ok(())
}

fn field(old: &Field, new: &Field, name: &str, steps: &mut Vec<String>) -> Result<(), String> {
    if let (DataType::Struct(from), DataType::Struct(to)) = (old.data_type(), new.data_type()) {
        fields(from, to, &format!("{name}."), steps)?;
    } else if old.data_type() != new.data_type() {
        if !widens(old.data_type(), new.data_type()) {
            return Err(format!("`{name}` was {} and is {}", old.data_type(), new.data_type()));
        }
        steps.push(format!("`{name}` widened from {} to {}", old.data_type(), new.data_type()));
    }
    if old.is_nullable() && !new.is_nullable() {
        return Err(format!("`{name}` could be null and can't be now"));
    }
    Ok(())
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn is(names: &[String]) -> String {
    format!("{} {}", list(names), if names.len() == 1 { "is" } else { "are" })
}

/// Whether every value of `from` has its place in `to`.
fn widens(from: &DataType, to: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, Date32, Date64, Decimal128, Decimal256, Float16, Float32, Float64, Int8, Int16, Int32,
        Int64, LargeBinary, LargeUtf8, List, UInt8, UInt16, UInt32, UInt64, Utf8, Utf8View,
    };
    match (from, to) {
        (Int8, Int16 | Int32 | Int64 | Float32 | Float64)
        | (Int16, Int32 | Int64 | Float32 | Float64)
        | (Int32, Int64 | Float64)
        | (UInt8, UInt16 | UInt32 | UInt64 | Int16 | Int32 | Int64 | Float32 | Float64)
        | (UInt16, UInt32 | UInt64 | Int32 | Int64 | Float32 | Float64)
        | (UInt32, UInt64 | Int64 | Float64)
        | (Float16, Float32 | Float64)
        | (Float32, Float64)
        | (Utf8, LargeUtf8 | Utf8View)
        | (Utf8View, Utf8 | LargeUtf8)
        | (Binary, LargeBinary | BinaryView)
        | (BinaryView, Binary | LargeBinary)
        | (Date32, Date64) => true,
        (Decimal128(p, s), Decimal128(q, t) | Decimal256(q, t)) | (Decimal256(p, s), Decimal256(q, t)) => {
            // As many places behind the point, and before it.
            t >= s && i16::from(*q) - i16::from(*t) >= i16::from(*p) - i16::from(*s)
        }
        (List(from), List(to)) => {
            from.data_type() == to.data_type() && (to.is_nullable() || !from.is_nullable())
                || widens(from.data_type(), to.data_type())
        }
        _ => false,
    }
}

/// The rows under the columns `to`; new columns hold what `neutral` has, or nothing.
///
/// # Errors
/// When a value has no place, which [`steps`] excludes.
pub(crate) fn rows(rows: &RecordBatch, to: &SchemaRef, neutral: Option<&RecordBatch>) -> Result<RecordBatch> {
    let from = rows.schema();
    let columns = to
        .fields()
        .iter()
        .map(|field| match from.index_of(field.name()) {
            Ok(at) => convert(rows.column(at), field),
            Err(_) => {
                let known = neutral.and_then(|neutral| neutral.column_by_name(field.name()));
                match known.filter(|known| known.data_type() == field.data_type()) {
                    Some(known) => {
                        let places = UInt32Array::from_value(0, rows.num_rows());
                        arrow_select::take::take(known, &places, None).map_err(|e| broken(field, e))
                    }
                    None => nothing(field, rows.num_rows()),
                }
            }
        })
        .collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(to), columns, &options)
        .map_err(|e| Error::internal("migrated rows of a state").because(e))
}

fn broken(field: &Field, error: arrow_schema::ArrowError) -> Error {
    Error::internal(format!("column `{}` of a state can't be migrated", field.name())).because(error)
}

fn convert(column: &ArrayRef, to: &Field) -> Result<ArrayRef> {
    if column.data_type() == to.data_type() {
        return Ok(Arc::clone(column));
    }
    if let (Some(old), DataType::Struct(fields)) = (column.as_any().downcast_ref::<StructArray>(), to.data_type()) {
        let columns = fields
            .iter()
            .map(|field| match old.column_by_name(field.name()) {
                Some(column) => convert(column, field),
                None => nothing(field, old.len()),
            })
            .collect::<Result<Vec<_>>>()?;
        let made = StructArray::try_new_with_length(fields.clone(), columns, old.nulls().cloned(), old.len());
        return Ok(Arc::new(made.map_err(|e| broken(to, e))?));
    }
    let options = arrow_cast::CastOptions { safe: false, ..arrow_cast::CastOptions::default() };
    arrow_cast::cast_with_options(column, to.data_type(), &options).map_err(|e| broken(to, e))
}

/// A column of nulls, or of zeros and empty values where null is not allowed.
fn nothing(field: &Field, rows: usize) -> Result<ArrayRef> {
    if field.is_nullable() {
        return Ok(new_null_array(field.data_type(), rows));
    }
    if let DataType::Struct(fields) = field.data_type() {
        let columns = fields.iter().map(|field| nothing(field, rows)).collect::<Result<Vec<_>>>()?;
        let made = StructArray::try_new_with_length(fields.clone(), columns, None, rows);
        return Ok(Arc::new(made.map_err(|e| broken(field, e))?));
    }
    // Without its nulls, an array of nulls is one of zeros and of empty values.
    let zeros = new_null_array(field.data_type(), rows).to_data().into_builder().nulls(None).null_count(0).build();
    Ok(arrow_array::make_array(zeros.map_err(|e| broken(field, e))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Int32Array, Int64Array, StringArray, cast::AsArray, types::Int64Type};
    use arrow_schema::Schema;

    fn schema(fields: &[(&str, DataType, bool)]) -> SchemaRef {
        Arc::new(Schema::new(
            fields.iter().map(|(name, kind, nullable)| Field::new(*name, kind.clone(), *nullable)).collect::<Vec<_>>(),
        ))
    }

    #[test]
    fn columns_are_added_widened_and_dropped_and_nothing_else() {
        use DataType::{Int32, Int64, Utf8};
        let old = schema(&[("k", Utf8, false), ("n", Int32, false)]);
        let to = |fields: &[(&str, DataType, bool)]| steps(&old, 1, &schema(fields), 1);
        assert_eq!(to(&[("k", Utf8, false), ("n", Int64, true)]).unwrap(), ["`n` widened from Int32 to Int64"]);
        let added = to(&[("k", Utf8, false), ("n", Int32, false), ("m", Int64, false)]).unwrap();
        assert_eq!(added, ["`m` is new: empty for what has come so far"]);
        assert_eq!(to(&[("k", Utf8, false)]).unwrap(), ["`n` is dropped"]);
        for (fields, why) in [
            (vec![("k", Utf8, false), ("n", Utf8, false)], "`n` was Int32 and is Utf8"),
            (vec![("k", Utf8, false), ("m", Int32, false)], "it had `n` and has `m` instead"),
            (vec![("j", Utf8, false), ("n", Int32, false)], "its key was (k) and is (j)"),
        ] {
            assert_eq!(to(&fields).unwrap_err(), why);
        }
        let nullable = schema(&[("k", Utf8, false), ("n", Int32, true)]);
        assert!(steps(&nullable, 1, &old, 1).unwrap_err().contains("could be null"));
        // Every value of the old type has its place: 2^53 + 1 has none in a double.
        assert!(!widens(&DataType::Int64, &DataType::Float64) && !widens(&DataType::UInt64, &DataType::Int64));
        assert!(widens(&DataType::Decimal128(10, 2), &DataType::Decimal128(12, 4)));
        assert!(!widens(&DataType::Decimal128(10, 2), &DataType::Decimal128(10, 4)));
    }

    #[test]
    fn values_stay_and_new_columns_hold_what_is_neutral() {
        let inner = |fields: Vec<Field>| DataType::Struct(fields.into());
        let old = inner(vec![Field::new("a", DataType::Int32, false)]);
        let new = inner(vec![Field::new("b", DataType::Utf8, false), Field::new("a", DataType::Int64, false)]);
        let a: ArrayRef = Arc::new(Int32Array::from(vec![-5, i32::MAX]));
        let old_column = StructArray::try_new(
            match &old {
                DataType::Struct(fields) => fields.clone(),
                _ => unreachable!(),
            },
            vec![a],
            None,
        );
        let from = schema(&[("k", DataType::Utf8, false), ("s", old, false)]);
        let keys: ArrayRef = Arc::new(StringArray::from(vec!["x", "y"]));
        let before = RecordBatch::try_new(Arc::clone(&from), vec![keys, Arc::new(old_column.unwrap())]).unwrap();
        let to = schema(&[
            ("k", DataType::Utf8, false),
            ("s", new, false),
            ("count", DataType::Int64, false),
            ("zero", DataType::Int64, false),
            ("none", DataType::Int64, true),
        ]);
        let said = steps(&from, 1, &to, 1).unwrap();
        assert_eq!(
            said,
            [
                "`s.a` widened from Int32 to Int64",
                "`s.b` is new: empty for what has come so far",
                "`count`, `zero`, `none` are new: empty for what has come so far"
            ]
        );
        let neutral = RecordBatch::try_from_iter([("count", Arc::new(Int64Array::from(vec![7])) as ArrayRef)]).unwrap();
        let after = rows(&before, &to, Some(&neutral)).unwrap();
        let inner = after.column(1).as_struct();
        assert_eq!(inner.column_by_name("a").unwrap().as_primitive::<Int64Type>().values(), &[-5, i64::from(i32::MAX)]);
        assert_eq!(
            inner.column_by_name("b").unwrap().as_string::<i32>().iter().flatten().collect::<Vec<_>>(),
            ["", ""]
        );
        let ints = |at: usize| after.column(at).as_primitive::<Int64Type>().iter().collect::<Vec<_>>();
        assert_eq!((ints(2), ints(3), ints(4)), (vec![Some(7); 2], vec![Some(0); 2], vec![None; 2]));
    }
}
