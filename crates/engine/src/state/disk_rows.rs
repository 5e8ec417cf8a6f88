//! Rows of a state on disk: a key in Arrow's row form, which sorts, and under it the other columns.
//!
//! ```text
//! head │ key columns      ─►   head │ the other columns
//! ```
//!
//! What stands at the head of either is the caller's affair; a key has one, so that none is empty. Invariant: a
//! row is as it was written last. Nothing here is remembered of what is in memory. Called by [`super::cold`] for
//! keyed states, and by SQL's groups.

use arrow_array::{ArrayRef, cast::AsArray, new_empty_array, types};
use arrow_schema::DataType;
use datafusion::arrow::row::{RowConverter, SortField};
use std::{ops::Bound, sync::Arc};
use tidemill_core::{Error, Result};
use tidemill_store::{OverflowPart, OverflowView};

/// Rows that are read from disk, or written, at once.
pub(crate) const PAGE: usize = 8 * 1024;

/// A row on disk: its key there and what lies under it.
pub(crate) type Stored = (Vec<u8>, Vec<u8>);

/// The rows.
pub(crate) struct DiskRows {
    rows: OverflowPart,
    keys: RowConverter,
    rest: RowConverter,
}

pub(super) fn broken(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::internal("rows of a state on disk").because(error)
}

fn converter(kinds: &[DataType]) -> Result<RowConverter> {
    RowConverter::new(kinds.iter().cloned().map(SortField::new).collect()).map_err(broken)
}

/// Equal keys are equal bytes: a group of zeros is one, whatever their sign.
fn plain(column: &ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Float64 => {
            Arc::new(column.as_primitive::<types::Float64Type>().unary::<_, types::Float64Type>(|x| x + 0.0))
        }
        DataType::Float32 => {
            Arc::new(column.as_primitive::<types::Float32Type>().unary::<_, types::Float32Type>(|x| x + 0.0))
        }
        _ => Arc::clone(column),
    }
}

/// Up to `limit` rows of a scan, of those that begin with `within`.
fn page(
    within: &[u8],
    limit: usize,
    scan: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]) -> Result<bool>) -> Result<()>,
) -> Result<Vec<Stored>> {
    let mut found = Vec::new();
    scan(&mut |key, row| {
        if key.starts_with(within) && found.len() < limit {
            found.push((key.to_vec(), row.to_vec()));
            return Ok(found.len() < limit);
        }
        Ok(false)
    })?;
    Ok(found)
}

impl DiskRows {
    /// None yet, of rows of these columns, the first `keys` of which are the key.
    pub(crate) fn new(rows: OverflowPart, columns: &[DataType], keys: usize) -> Result<Self> {
        let (keys, rest) = columns.split_at(keys.min(columns.len()));
        Ok(Self { rows, keys: converter(keys)?, rest: converter(rest)? })
    }

    /// Whether rows of these columns come back as they went.
    pub(crate) fn can_keep(columns: &[DataType]) -> bool {
        let fields: Vec<SortField> = columns.iter().cloned().map(SortField::new).collect();
        if !RowConverter::supports_fields(&fields) {
            return false;
        }
        let none: Vec<ArrayRef> = columns.iter().map(new_empty_array).collect();
        let there_and_back = |converter: RowConverter| converter.convert_rows(&converter.convert_columns(&none)?);
        let back = RowConverter::new(fields).and_then(there_and_back);
        back.is_ok_and(|back| back.iter().zip(columns).all(|(column, kind)| column.data_type() == kind))
    }

    /// Keys as they are on disk, each behind its head.
    pub(crate) fn keys<H: AsRef<[u8]>>(
        &self,
        columns: &[ArrayRef],
        heads: impl Iterator<Item = H>,
    ) -> Result<Vec<Vec<u8>>> {
        let columns: Vec<ArrayRef> = columns.iter().map(plain).collect();
        let rows = self.keys.convert_columns(&columns).map_err(broken)?;
        Ok(heads.zip(rows.iter()).map(|(head, key)| [head.as_ref(), key.as_ref()].concat()).collect())
    }

    /// The other columns as they are on disk, each row behind its head.
    pub(crate) fn rest<H: AsRef<[u8]>>(
        &self,
        columns: &[ArrayRef],
        heads: impl Iterator<Item = H>,
    ) -> Result<Vec<Vec<u8>>> {
        let rows = self.rest.convert_columns(columns).map_err(broken)?;
        Ok(heads.zip(rows.iter()).map(|(head, row)| [head.as_ref(), row.as_ref()].concat()).collect())
    }

    /// The key columns of rows from disk, whose keys have a head of so many bytes.
    pub(crate) fn keys_of(&self, found: &[Stored], head: usize) -> Result<Vec<ArrayRef>> {
        let keys = self.keys.parser();
        self.keys.convert_rows(found.iter().map(|(key, _)| keys.parse(&key[head..]))).map_err(broken)
    }

    /// The other columns of rows from disk, each of which has a head of so many bytes.
    pub(crate) fn rest_of(&self, found: &[Stored], head: usize) -> Result<Vec<ArrayRef>> {
        let rest = self.rest.parser();
        self.rest.convert_rows(found.iter().map(|(_, row)| rest.parse(&row[head..]))).map_err(broken)
    }

    /// Writes rows; sorted ones are faster.
    pub(crate) fn write(&self, rows: &[Stored]) -> Result<()> {
        self.rows.write(rows.iter().map(|(key, row)| (&key[..], &row[..])), std::iter::empty())
    }

    /// Removes the rows of these keys.
    pub(crate) fn remove<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Result<()> {
        self.rows.write(std::iter::empty(), keys)
    }

    /// What lies under a key.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.rows.get(key)?.map(|row| row.as_ref().to_vec()))
    }

    /// Up to `limit` rows from a key on, of those that begin with `within`.
    pub(crate) fn page(&self, from: Bound<&[u8]>, within: &[u8], limit: usize) -> Result<Vec<Stored>> {
        page(within, limit, |each| self.rows.scan(from, each))
    }

    /// The rows as they are now, whatever happens to them afterwards.
    pub(crate) fn view(&self) -> OverflowView {
        self.rows.view()
    }

    /// As [`Self::page`], of the rows as they were.
    pub(crate) fn page_of(view: &OverflowView, from: Bound<&[u8]>, limit: usize) -> Result<Vec<Stored>> {
        page(&[], limit, |each| view.scan(from, each))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::Float64Array;
    use arrow_schema::Field;
    use tidemill_store::Overflow;

    #[test]
    fn zeros_are_one_key_and_what_would_come_back_otherwise_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let part = Overflow::create(&dir.path().join("spill.tmp")).unwrap().part().unwrap();
        let rows = DiskRows::new(part, &[DataType::Float64, DataType::Int64], 1).unwrap();
        let keys: ArrayRef = Arc::new(Float64Array::from(vec![Some(0.0), Some(-0.0), Some(-1.5), None]));
        let keys = rows.keys(&[keys], std::iter::repeat([7])).unwrap();
        assert_eq!(keys[0], keys[1]);
        let back = rows.keys_of(&keys.into_iter().map(|key| (key, Vec::new())).collect::<Vec<_>>(), 1).unwrap();
        let back: Vec<Option<f64>> = back[0].as_primitive::<types::Float64Type>().iter().collect();
        assert_eq!(back, [Some(0.0), Some(0.0), Some(-1.5), None]);
        let list = DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true)));
        assert!(DiskRows::can_keep(&[DataType::Utf8, list]));
        let words = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        assert!(!DiskRows::can_keep(&[words]), "it would come back without its dictionary");
    }
}
