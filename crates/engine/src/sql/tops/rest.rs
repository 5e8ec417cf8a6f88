//! Keys at rest: the first rows of those that have had no better row for longest lie on disk.
//!
//! ```text
//! batch ─► keys that are new here ─ sorted, looked up ─► their rows put again, in order
//! after it, over the bound ─► all but the keys that changed last ─► disk, and the rest is numbered anew
//!
//! key   ─►   length │ number │ columns    length │ number │ columns  …      a key's rows, in order
//! ```
//!
//! Invariants: a key is in memory or on disk, never both, with all of its rows. Rows that are put
//! again in order make what they were ([`super`]). Called by [`super`], and between batches by
//! [`crate::sql::state`].

use super::Tops;
use crate::{
    plan::external,
    sql::touched::Touched,
    state::{
        Swept,
        disk_rows::{DiskRows, PAGE, SeenRows, Stored},
    },
};
use arrow_array::{RecordBatch, UInt64Array};
use arrow_schema::DataType;
use datafusion::common::{Result as DfResult, internal_datafusion_err};
use std::sync::Arc;
use tidemill_core::{Error, Result as CoreResult};
use tidemill_store::OverflowPart;

/// A key of no bytes would be none.
const HEAD: [u8; 1] = [0];
/// Bytes of a row's length, and of its number.
const LENGTH: usize = 4;
const NUMBER: usize = 8;

/// What is known of keys at rest.
#[derive(Default)]
pub(super) struct Rest {
    /// Columns of the keys and of the rows, when they can lie on disk; and how many are the keys'.
    kinds: Option<(Vec<DataType>, usize)>,
    disk: Option<DiskRows>,
    /// Keys on disk, and rows of theirs.
    alone: usize,
    pub(super) rows: usize,
    pub(super) touched: Touched,
}

impl Rest {
    /// For keys and rows of these columns.
    pub(super) fn new(keys: Vec<DataType>, rows: impl Iterator<Item = DataType>) -> Self {
        let count = keys.len();
        let kinds: Vec<DataType> = keys.into_iter().chain(rows).collect();
        // All rows of one key are needed with each batch.
        let can = count > 0 && DiskRows::can_keep(&kinds);
        Self { kinds: can.then_some((kinds, count)), ..Self::default() }
    }

    /// The rows on disk as they are now.
    pub(super) fn seen(&self) -> Option<SeenRows> {
        self.disk.as_ref().map(DiskRows::seen)
    }
}

/// The rows under a key.
///
/// # Errors
/// When it is not all rows, each with its number.
fn parts(value: &[u8]) -> DfResult<Vec<Stored>> {
    let (mut rows, mut left) = (Vec::new(), value);
    while !left.is_empty() {
        let at = value.len() - left.len();
        let strange = || {
            let text = format!("the rows of a key on disk can't be read from byte {at} of {} on", value.len());
            external(
                Error::external(format!("{text}: start the program again, which makes what lies there anew")).fatal(),
            )
        };
        let (length, rest) = left.split_first_chunk::<LENGTH>().ok_or_else(strange)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (row, rest) = rest.split_at_checked(length).filter(|_| length >= NUMBER).ok_or_else(strange)?;
        left = rest;
        rows.push((Vec::new(), row.to_vec()));
    }
    Ok(rows)
}

/// The rows under all keys of a page.
fn rows_under(page: &[Stored]) -> DfResult<Vec<Stored>> {
    let mut rows = Vec::new();
    for (_, value) in page {
        rows.extend(parts(value)?);
    }
    Ok(rows)
}

impl Tops {
    /// Whether keys can lie on disk.
    pub(in crate::sql) fn can_rest(&self) -> bool {
        self.rest.kinds.is_some()
    }

    /// How many do.
    pub(in crate::sql) fn at_rest(&self) -> usize {
        self.rest.alone
    }

    /// Takes the keys from `known` on back that are on disk.
    pub(super) fn fetch(&mut self, known: usize) -> DfResult<()> {
        let Some(disk) = self.rest.disk.as_ref().filter(|_| self.rest.alone > 0) else { return Ok(()) };
        let news: Vec<u32> = (0_u32..).take(self.keys.len()).skip(known).collect();
        if news.is_empty() {
            return Ok(());
        }
        let keys = disk.keys(&self.keys.of(&news)?, std::iter::repeat(HEAD)).map_err(external)?;
        let found = disk.found(keys).map_err(external)?;
        if found.is_empty() {
            return Ok(());
        }
        let mut rows = Vec::new();
        for ((_, value), _) in &found {
            rows.extend(parts(value)?);
        }
        let (batch, _) = self.stored_rows(disk, &rows)?;
        disk.remove(found.iter().map(|((key, _), _)| &key[..])).map_err(external)?;
        self.rest.alone -= found.len();
        self.rest.rows -= rows.len();
        let keys = self.numbers(&batch)?;
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        self.insert(&batch, &keys, &mut changed, &mut gone)?;
        for key in changed {
            self.changed[key as usize] = false;
            self.number(key as usize);
        }
        self.free.extend(gone);
        Ok(())
    }

    /// Shrinks to about half of `target` bytes, so that it is not soon asked again; `place` is where rows may go.
    pub(in crate::sql) fn shrink(
        &mut self,
        target: u64,
        place: impl FnOnce() -> CoreResult<OverflowPart>,
    ) -> DfResult<()> {
        let (Some((kinds, count)), false) = (&self.rest.kinds, self.first.is_empty()) else { return Ok(()) };
        let disk = DiskRows::taken(&mut self.rest.disk, (kinds, *count), place).map_err(external)?;
        let each = (self.bytes() / self.first.len()).max(1);
        let stay = usize::try_from(target / 2).unwrap_or(usize::MAX) / each;
        let (mut stay, go) = self.rest.touched.parted(stay);
        let (mut gone, mut gone_rows) = (0, 0);
        for page in go.chunks(PAGE) {
            let keys = disk.keys(&self.keys.of(page)?, std::iter::repeat(HEAD)).map_err(external)?;
            let rows = self.rows_of(page);
            let numbers = rows.iter().map(|row| self.places[*row as usize].to_le_bytes());
            let mut rest = disk.rest(self.rows.of(&rows)?.columns(), numbers).map_err(external)?.into_iter();
            let (mut stored, mut going): (Vec<Stored>, Vec<u32>) = (Vec::new(), Vec::new());
            for (key, group) in keys.into_iter().zip(page) {
                let mut value = Vec::new();
                let own = rest.by_ref().take(self.first[*group as usize].len());
                for row in own {
                    let length = u32::try_from(row.len())
                        .map_err(|_| internal_datafusion_err!("a row of over four billion bytes"))?;
                    value.extend(length.to_le_bytes());
                    value.extend(row);
                }
                // A key that is too long for the disk stays here.
                if key.len() > OverflowPart::KEY_BYTES {
                    stay.push(*group);
                    continue;
                }
                gone_rows += self.first[*group as usize].len();
                going.push(*group);
                stored.push((key, value));
            }
            stored.sort_unstable();
            disk.write(&stored).map_err(external)?;
            gone += stored.len();
            self.pass(&going)?;
        }
        stay.sort_unstable();
        self.rest.disk = Some(disk);
        (self.rest.alone, self.rest.rows) = (self.rest.alone + gone, self.rest.rows + gone_rows);
        self.only(&stay)
    }

    /// Sets the rows of those of the keys aside that wait for their turn.
    fn pass(&mut self, keys: &[u32]) -> DfResult<()> {
        let Some((turns, _)) = &mut self.turns else { return Ok(()) };
        let waiting: Vec<u32> = keys.iter().filter(|key| turns.waits(**key)).copied().collect();
        waiting.iter().for_each(|key| turns.pass(*key));
        let rows = self.rows.of(&self.rows_of(&waiting))?;
        if let (Some((turns, _)), true) = (&mut self.turns, rows.num_rows() > 0) {
            turns.set_aside(rows);
        }
        Ok(())
    }

    /// Numbers of the rows of these keys, in order.
    pub(super) fn rows_of(&self, keys: &[u32]) -> Vec<u32> {
        keys.iter().flat_map(|key| &self.first[*key as usize]).map(|entry| entry.row).collect()
    }

    /// Only these keys are left, numbered in this order.
    fn only(&mut self, stay: &[u32]) -> DfResult<()> {
        let rows = self.rows_of(stay);
        self.rows = self.rows.only(&rows)?;
        self.places = rows.iter().map(|row| self.places[*row as usize]).collect();
        self.free = Vec::new();
        let mut first = std::mem::take(&mut self.first);
        self.first = stay.iter().map(|key| std::mem::take(&mut first[*key as usize])).collect();
        for (row, entry) in (0_u32..).zip(self.first.iter_mut().flatten()) {
            entry.row = row;
        }
        self.orders = self.first.iter().flatten().map(|entry| entry.order.len()).sum();
        self.changed = vec![false; stay.len()];
        self.keys = self.keys.only(stay)?;
        self.rest.touched.only(stay);
        if let Some((turns, _)) = &mut self.turns {
            turns.renumber(stay);
        }
        Ok(())
    }

    /// Rows from disk, and their numbers.
    fn stored_rows(&self, disk: &DiskRows, rows: &[Stored]) -> DfResult<(RecordBatch, UInt64Array)> {
        let columns = disk.rest_of(rows, NUMBER).map_err(external)?;
        let number = |(_, row): &Stored| row.get(..NUMBER).and_then(|bytes| bytes.try_into().ok());
        let numbers = rows.iter().map(|row| number(row).map_or(0, u64::from_le_bytes));
        let schema = Arc::clone(self.rows.schema());
        Ok((RecordBatch::try_new(schema, columns)?, UInt64Array::from_iter_values(numbers)))
    }

    /// Hands out the rows on disk, with their numbers.
    pub(super) fn each_at_rest(&self, each: &mut dyn FnMut(RecordBatch, UInt64Array) -> DfResult<()>) -> DfResult<()> {
        let Some(disk) = self.rest.disk.as_ref().filter(|_| self.rest.alone > 0) else { return Ok(()) };
        for found in disk.pages() {
            let (rows, numbers) = self.stored_rows(disk, &rows_under(&found.map_err(external)?)?)?;
            each(rows, numbers)?;
        }
        Ok(())
    }

    /// Next rows of those that were on disk when a snapshot began; `None` at the end.
    fn next_at_rest(&self, seen: &mut SeenRows, limit: usize) -> DfResult<Option<RecordBatch>> {
        let Some(disk) = &self.rest.disk else { return Ok(None) };
        let found = seen.next(limit).map_err(external)?;
        if found.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.stored_rows(disk, &rows_under(&found)?)?.0))
    }

    /// About `limit` rows as they were when this was called with `begin`.
    pub(in crate::sql) fn sweep(&mut self, limit: usize, begin: bool) -> DfResult<Swept> {
        if begin {
            self.turns = Some((crate::sql::turns::Turns::new(self.first.len()), self.rest.seen()));
        }
        let Some((mut turns, mut seen)) = self.turns.take() else {
            return Err(internal_datafusion_err!("a snapshot goes on that was not begun"));
        };
        let turn = turns.next(limit, |key| self.first[key as usize].len());
        let (mut rows, mut found) = (turn.aside, turn.rows);
        rows.push(self.rows.of(&self.rows_of(&turn.next))?);
        while found < limit
            && let Some(then) = &mut seen
        {
            match self.next_at_rest(then, limit - found)? {
                Some(page) => {
                    found += page.num_rows().max(1);
                    rows.push(page);
                }
                None => seen = None,
            }
        }
        rows.retain(|rows| rows.num_rows() > 0);
        let whole = turns.are_over() && seen.is_none();
        if !whole {
            self.turns = Some((turns, seen));
        }
        Ok(Swept { rows, whole })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_key_that_can_t_be_read_are_an_error() {
        let row = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat();
        let whole = [row(b"number 1 and more"), row(b"number 2")].concat();
        let rows: Vec<Vec<u8>> = parts(&whole).unwrap().into_iter().map(|(_, row)| row).collect();
        assert_eq!(rows, [b"number 1 and more".to_vec(), b"number 2".to_vec()]);
        assert!(parts(b"").unwrap().is_empty());
        for cut in (1..whole.len()).filter(|cut| *cut != LENGTH + 17) {
            let error = parts(&whole[..cut]).unwrap_err().to_string();
            let at = if cut < LENGTH + 17 { 0 } else { LENGTH + 17 };
            assert!(error.contains(&format!("can't be read from byte {at} of {cut} on")), "{error}");
        }
        assert!(parts(&row(b"short")).is_err(), "a row without its number");
    }
}
