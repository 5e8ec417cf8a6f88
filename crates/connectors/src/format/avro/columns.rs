//! The columns that records of a schema have.
//!
//! | Avro | Column |
//! |---|---|
//! | `boolean`, `int`, `long`, `float`, `double` | BOOLEAN, INT, BIGINT, REAL, DOUBLE |
//! | `string`, `enum`, `uuid` | TEXT |
//! | `bytes`, `fixed` | BYTEA |
//! | `decimal` of up to 38 digits | DECIMAL |
//! | `date`, `time-*` | DATE, TIME |
//! | `timestamp-*` | TIMESTAMP with the zone UTC; `local-timestamp-*` without one |
//! | `array`, `map`, `record` | a list, a map, a struct |
//! | a union of null and one type | that type, nullable |
//! | another union, a record within itself | TEXT: a string as it is, all else as JSON |
//!
//! Invariant: [`super::resolve`] has a way from each type to its column. Called
//! when a stream is declared without columns.

use super::schema::{Id, Logical, RecordField, Schema, Type};
use crate::format::typed::{map_of, utc};
use arrow_schema::{DataType, Field, FieldRef, Schema as Columns, SchemaRef, TimeUnit};
use std::sync::Arc;

/// The column of a schema that is no record.
pub(super) const VALUE: &str = "value";

/// The columns of a schema's records.
pub(super) fn columns(schema: &Schema) -> SchemaRef {
    let root = record_of(schema, schema.root());
    let fields = match &schema.get(root).ty {
        Type::Record { fields, .. } if !fields.is_empty() => {
            fields.iter().map(|field| column(schema, field, &mut vec![root])).collect()
        }
        _ => {
            let (ty, nullable) = of(schema, schema.root(), &mut Vec::new());
            vec![Arc::new(Field::new(VALUE, ty, nullable))]
        }
    };
    Arc::new(Columns::new(fields))
}

/// The record that a nullable record is, or the type itself.
pub(super) fn record_of(schema: &Schema, id: Id) -> Id {
    let inner = schema.nullable(id).filter(|inner| matches!(schema.get(*inner).ty, Type::Record { .. }));
    inner.unwrap_or(id)
}

fn column(schema: &Schema, field: &RecordField, within: &mut Vec<Id>) -> FieldRef {
    let (ty, nullable) = of(schema, field.ty, within);
    Arc::new(Field::new(&field.name, ty, nullable))
}

/// The type of a column, and whether it may be null; `within` are the records around it.
fn of(schema: &Schema, id: Id, within: &mut Vec<Id>) -> (DataType, bool) {
    let typed = schema.get(id);
    let ty = match (&typed.ty, typed.logical) {
        (Type::Null, _) => return (DataType::Utf8, true),
        (Type::Union(branches), _) => match (schema.nullable(id), &branches[..]) {
            (Some(inner), _) => return (of(schema, inner, within).0, true),
            (None, [one]) => return of(schema, *one, within),
            (None, _) => {
                let null = branches.iter().any(|branch| matches!(schema.get(*branch).ty, Type::Null));
                return (DataType::Utf8, null);
            }
        },
        (_, Some(Logical::Date)) => DataType::Date32,
        (_, Some(Logical::TimeMillis | Logical::TimeMicros)) => DataType::Time64(TimeUnit::Microsecond),
        (_, Some(Logical::Timestamp { local, .. })) if local => DataType::Timestamp(TimeUnit::Microsecond, None),
        (_, Some(Logical::Timestamp { .. })) => utc(),
        (_, Some(Logical::Decimal { precision, scale })) => {
            // The schema was read with at most 38 digits.
            DataType::Decimal128(u8::try_from(precision).unwrap_or(38), i8::try_from(scale).unwrap_or(0))
        }
        (_, Some(Logical::Uuid)) => DataType::Utf8,
        (Type::Boolean, _) => DataType::Boolean,
        (Type::Int, _) => DataType::Int32,
        (Type::Long, _) => DataType::Int64,
        (Type::Float, _) => DataType::Float32,
        (Type::Double, _) => DataType::Float64,
        (Type::Bytes | Type::Fixed(_), _) => DataType::Binary,
        (Type::String | Type::Enum { .. }, _) => DataType::Utf8,
        (Type::Array(item), _) => {
            let (item, nullable) = of(schema, *item, within);
            DataType::List(Arc::new(Field::new("item", item, nullable)))
        }
        (Type::Map(value), _) => {
            let (value, nullable) = of(schema, *value, within);
            map_of(DataType::Utf8, value, nullable)
        }
        (Type::Record { fields, .. }, _) if fields.is_empty() || within.contains(&id) => DataType::Utf8,
        (Type::Record { fields, .. }, _) => {
            within.push(id);
            let fields: Vec<FieldRef> = fields.iter().map(|field| column(schema, field, within)).collect();
            within.pop();
            DataType::Struct(fields.into())
        }
    };
    (ty, false)
}
