//! Rows dealt out to directories by the values of columns, as Hive names them.
//!
//! ```text
//! partition_by = 'day,lang'      day=2026-01-31/lang=en/…     the columns are in the path and not in the file
//! ```
//!
//! A value is written as text; what a path can't hold is a `%` and two
//! hexadecimal digits, and nothing at all is `__HIVE_DEFAULT_PARTITION__`.
//!
//! Invariant: a row is in exactly one directory, and a directory lies below the
//! sink's. Called by [`super::FilesSink`] and the sink `s3`.

use arrow_array::{Array, RecordBatch, UInt32Array, cast::AsArray};
use arrow_schema::{DataType, Schema};
use arrow_select::take::take_record_batch;
use std::collections::BTreeMap;
use tidemill_core::{Error, Result, nearest};

/// The directory of rows without a value.
pub(super) const NOTHING: &str = "__HIVE_DEFAULT_PARTITION__";

/// Columns by which rows are dealt out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartitionBy(Vec<String>);

impl PartitionBy {
    /// From `day,lang`; `None` when it names nothing.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let names: Vec<String> =
            text.split(',').map(|name| name.trim().to_string()).filter(|n| !n.is_empty()).collect();
        (!names.is_empty()).then_some(Self(names))
    }

    /// Whether rows of these columns can be dealt out.
    pub(crate) fn check(&self, schema: &Schema) -> Result<()> {
        for (place, name) in self.0.iter().enumerate() {
            let Ok(field) = schema.field_with_name(name) else {
                let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
                let hint = nearest(name, &names).map_or_else(
                    || format!("there are {}", names.join(", ")),
                    |near| format!("did you mean `{near}`?"),
                );
                return Err(Error::user(format!("option `partition_by`: there is no column `{name}`; {hint}")));
            };
            if self.0[..place].contains(name) {
                return Err(Error::user(format!("option `partition_by` names `{name}` twice")));
            }
            if field.data_type().is_nested() || !arrow_cast::can_cast_types(field.data_type(), &DataType::Utf8) {
                return Err(Error::user(format!(
                    "option `partition_by`: column `{name}` is {}, which names no directory: take text, numbers or times",
                    field.data_type()
                )));
            }
        }
        if schema.fields().len() == self.0.len() {
            return Err(Error::user("option `partition_by` takes all columns, and nothing is left to write"));
        }
        Ok(())
    }

    /// The columns that are left for the files.
    pub(crate) fn rest(&self, schema: &Schema) -> Vec<usize> {
        (0..schema.fields().len()).filter(|column| !self.0.contains(schema.field(*column).name())).collect()
    }

    /// The rows of each directory, in their order, without the columns that name it.
    pub(crate) fn split(&self, rows: &RecordBatch) -> Result<BTreeMap<String, RecordBatch>> {
        let broken = |e| Error::internal("files: rows can't be dealt out").because(e);
        let mut texts = Vec::with_capacity(self.0.len());
        for name in &self.0 {
            let column = rows.column_by_name(name).ok_or_else(|| Error::internal("files: a column is gone"))?;
            texts.push(arrow_cast::cast(column, &DataType::Utf8).map_err(broken)?);
        }
        let mut places: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        let mut dir = String::new();
        for row in 0..rows.num_rows() {
            dir.clear();
            for (name, text) in self.0.iter().zip(&texts) {
                if !dir.is_empty() {
                    dir.push('/');
                }
                escape(name, &mut dir);
                dir.push('=');
                match text.is_valid(row).then(|| text.as_string::<i32>().value(row)) {
                    Some("") | None => dir.push_str(NOTHING),
                    Some(value) => escape(value, &mut dir),
                }
            }
            let row = u32::try_from(row).map_err(|_| Error::internal("files: too many rows in a batch"))?;
            match places.get_mut(&dir) {
                Some(rows) => rows.push(row),
                None => drop(places.insert(dir.clone(), vec![row])),
            }
        }
        let rest = rows.project(&self.rest(&rows.schema())).map_err(broken)?;
        let taken = |(dir, places)| Ok((dir, take_record_batch(&rest, &UInt32Array::from(places)).map_err(broken)?));
        places.into_iter().map(taken).collect()
    }
}

fn escape(text: &str, into: &mut String) {
    for c in text.chars() {
        if c.is_ascii_control()
            || matches!(c, '/' | '\\' | '%' | '=' | ':' | '*' | '?' | '"' | '<' | '>' | '|' | '\'' | '#')
        {
            into.push_str(&format!("%{:02X}", u32::from(c)));
        } else {
            into.push(c);
        }
    }
}

/// Whether a directory is one that [`PartitionBy::split`] could have named.
pub(super) fn is_dir(dir: &str) -> bool {
    dir.split('/').all(|part| part.contains('=') && !part.starts_with('='))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, Int64Array, StringArray};
    use std::sync::Arc;

    fn rows() -> RecordBatch {
        let days: ArrayRef =
            Arc::new(StringArray::from(vec![Some("a/../b"), None, Some("a/../b"), Some("潮 %=1"), Some("")]));
        let n: ArrayRef = Arc::new(Int64Array::from_iter_values(0..5));
        let year: ArrayRef = Arc::new(Int64Array::from(vec![7; 5]));
        RecordBatch::try_from_iter([("day", days), ("n", n), ("year", year)]).unwrap()
    }

    #[test]
    fn each_row_is_in_one_directory_below() {
        let by = PartitionBy::parse("year, day").unwrap();
        by.check(&rows().schema()).unwrap();
        let split = by.split(&rows()).unwrap();
        let dirs: Vec<&str> = split.keys().map(String::as_str).collect();
        assert_eq!(dirs, ["year=7/day=__HIVE_DEFAULT_PARTITION__", "year=7/day=a%2F..%2Fb", "year=7/day=潮 %25%3D1"]);
        assert!(dirs.iter().all(|dir| is_dir(dir)) && !is_dir("../x") && !is_dir("year=7/..") && !is_dir(""));
        let numbers: Vec<i64> = split
            .values()
            .flat_map(|rows| rows.column(0).as_primitive::<arrow_array::types::Int64Type>().values().to_vec())
            .collect();
        assert_eq!(numbers, [1, 4, 0, 2, 3], "in their order, and only what is left of the columns");
    }

    #[test]
    fn columns_that_name_nothing_are_told() {
        let schema = rows().schema();
        let error = |text: &str| PartitionBy::parse(text).unwrap().check(&schema).unwrap_err().to_string();
        assert!(error("dya").contains("did you mean `day`?"));
        assert!(error("day,day").contains("twice"));
        assert!(error("day,n,year").contains("nothing is left"));
        assert_eq!(PartitionBy::parse(" , "), None);
    }
}
