//! What the expansion of `#[derive(Record)]` calls; not for people.

pub use super::{Key, Record};
pub use arrow_array::ArrayRef;
pub use arrow_schema::DataType;
pub use tidemill_core::Result;

use super::refuse_nulls;
use arrow_array::{Array, StructArray, cast::AsArray};
use arrow_schema::{Field, Fields};
use std::sync::Arc;
use tidemill_core::Error;

/// The type of a struct of columns: names, types, whether they may hold nulls.
pub fn struct_type<const N: usize>(columns: [(&str, DataType, bool); N]) -> DataType {
    DataType::Struct(Fields::from_iter(columns.map(|(name, kind, nullable)| Field::new(name, kind, nullable))))
}

/// Columns that were just grown, as an array.
pub fn struct_array<const N: usize>(kind: &DataType, columns: [ArrayRef; N]) -> ArrayRef {
    let DataType::Struct(fields) = kind else { unreachable!("a struct's type is a struct") };
    Arc::new(StructArray::new(fields.clone(), Vec::from(columns), None))
}

/// The columns of a struct in the order of `names`: by name when all are
/// there, by place when none is.
///
/// # Errors
/// When the array is no struct, has nulls, or has other columns.
pub fn columns_of<const N: usize>(array: &ArrayRef, record: &str, names: [&str; N]) -> Result<[ArrayRef; N]> {
    let DataType::Struct(fields) = array.data_type() else {
        return Err(Error::user(format!("{record}: expected a struct of columns, found {}", array.data_type())));
    };
    refuse_nulls(array)?;
    let rows = array.as_struct();
    let places = names.map(|name| fields.find(name).map(|(place, _)| place));
    let known = places.iter().flatten().count();
    if known == 0 && fields.len() == N {
        return Ok(std::array::from_fn(|place| Arc::clone(rows.column(place))));
    }
    if known < N {
        let list = |names: Vec<&str>| names.join(", ");
        let missing = names.iter().zip(&places).filter(|(_, place)| place.is_none()).map(|(name, _)| *name).collect();
        return Err(Error::user(format!(
            "{record}: there is no column {}; the columns are {}",
            list(missing),
            list(fields.iter().map(|f| f.name().as_str()).collect())
        )));
    }
    Ok(places.map(|place| Arc::clone(rows.column(place.unwrap_or_default()))))
}

/// A column of a struct.
///
/// # Errors
/// When it has another type, naming the column.
pub fn column_named<T: Record>(array: &ArrayRef, name: &str) -> Result<T::Column> {
    T::column(array).map_err(|e| Error::user(format!("column `{name}`: {e}")))
}
