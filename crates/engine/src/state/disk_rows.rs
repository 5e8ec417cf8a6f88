//! Rows of a state on disk: a key in Arrow's row form, which sorts, and under it the other columns.
//!
//! ```text
//! head │ key columns      ─►   head │ the other columns
//! ```
//!
//! What stands at the head of either is the caller's affair; a key has one, so that none is empty. Invariant: a
//! row is as it was written last. Nothing here is remembered of what is in memory. Called by [`super::cold`] for
//! keyed states, and by SQL's groups and first rows.

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

    /// The rows that `rows` holds, or none yet in a place that is made for them, with these columns, the first
    /// `keys` of which are the key. They are taken out, for whoever writes to them to put them back.
    pub(crate) fn taken(
        rows: &mut Option<Self>,
        (columns, keys): (&[DataType], usize),
        place: impl FnOnce() -> Result<OverflowPart>,
    ) -> Result<Self> {
        rows.take().map_or_else(|| Self::new(place()?, columns, keys), Ok)
    }

    /// What lies under those of the keys that are there, each with its place among them, in the order of the disk.
    pub(crate) fn found(&self, keys: Vec<Vec<u8>>) -> Result<Vec<(Stored, usize)>> {
        let mut wanted: Vec<(Vec<u8>, usize)> = keys.into_iter().zip(0..).collect();
        wanted.sort_unstable();
        let mut found = Vec::new();
        for (key, at) in wanted {
            found.extend(self.get(&key)?.map(|row| ((key, row), at)));
        }
        Ok(found)
    }

    /// All rows, a page at a time.
    pub(crate) fn pages(&self) -> impl Iterator<Item = Result<Vec<Stored>>> + '_ {
        pages(|from| self.page(from, &[], PAGE))
    }

    /// The rows as they are now, whatever happens to them afterwards.
    pub(crate) fn seen(&self) -> SeenRows {
        SeenRows { view: self.rows.view(), after: None }
    }
}

/// Pages until there is an empty one, or an error.
fn pages(mut page: impl FnMut(Bound<&[u8]>) -> Result<Vec<Stored>>) -> impl Iterator<Item = Result<Vec<Stored>>> {
    let mut after: Option<Vec<u8>> = None;
    let mut failed = false;
    std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let found = page(after.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
        failed = found.is_err();
        if let Ok(found) = &found {
            after = Some(found.last()?.0.clone());
        }
        Some(found)
    })
}

/// Rows as they were at one moment, given once, in order.
pub(crate) struct SeenRows {
    view: OverflowView,
    /// The last key that was given.
    after: Option<Vec<u8>>,
}

impl SeenRows {
    /// The next rows, so many at most; none at the end.
    pub(crate) fn next(&mut self, limit: usize) -> Result<Vec<Stored>> {
        let from = self.after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let found = page(&[], limit.min(PAGE), |each| self.view.scan(from, each))?;
        if let Some((last, _)) = found.last() {
            self.after = Some(last.clone());
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::Float64Array;
    use arrow_schema::Field;
    use tidemill_store::Overflow;

    #[test]
    fn pages_have_each_row_once_and_those_that_were_seen_stay_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let part = Overflow::create(&dir.path().join("spill.tmp")).unwrap().part().unwrap();
        let mut slot = None;
        let kinds = [DataType::UInt32, DataType::UInt32];
        let rows = DiskRows::taken(&mut slot, (&kinds, 1), || Ok(part)).unwrap();
        let count = 2 * PAGE + 1;
        let stored: Vec<Stored> = (0..count).map(|at| (at.to_be_bytes().to_vec(), vec![1])).collect();
        rows.write(&stored).unwrap();
        let lengths: Vec<usize> = rows.pages().map(|page| page.unwrap().len()).collect();
        assert_eq!(lengths, [PAGE, PAGE, 1]);
        let all: Vec<Stored> = rows.pages().flat_map(Result::unwrap).collect();
        assert_eq!(all, stored);
        let mut seen = rows.seen();
        rows.remove(stored[..10].iter().map(|(key, _)| &key[..])).unwrap();
        let mut then = Vec::new();
        while let found @ 1.. = seen.next(PAGE - 1).unwrap().len() {
            then.push(found);
        }
        assert_eq!(then, [PAGE - 1, PAGE - 1, 3]);
        let keys = [count + 1, 20, 3, 11].map(|at| at.to_be_bytes().to_vec()).to_vec();
        let found: Vec<(Vec<u8>, usize)> =
            rows.found(keys).unwrap().into_iter().map(|((key, _), at)| (key, at)).collect();
        assert_eq!(found, [(11_usize.to_be_bytes().to_vec(), 3), (20_usize.to_be_bytes().to_vec(), 1)]);
        slot = Some(rows);
        let again = DiskRows::taken(&mut slot, (&kinds, 1), || Err(Error::internal("there is one"))).unwrap();
        assert_eq!(again.pages().flat_map(Result::unwrap).count(), count - 10);
    }

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
