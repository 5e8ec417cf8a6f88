//! Groups at rest: those that have had no news for longest lie on disk.
//!
//! ```text
//! batch ─► groups that are new here ─ sorted, looked up ─► taken back, and no longer there
//! after it, over the bound ─► all but the groups that were touched last ─► disk, and the rest is numbered anew
//! ```
//!
//! Invariants: a group is in memory or on disk, never both; what is on disk is its row of the
//! state, its result is made of that when somebody wants it. While nothing is on disk, a batch pays
//! for nothing but a note of the groups that it touched ([`Touched`]). Called by [`super`], and by
//! [`crate::sql::state`] between batches.

use super::{Held, NOWHERE, Results};
use crate::{
    plan::external,
    sql::touched::Touched,
    state::disk_rows::{DiskRows, PAGE, Stored},
};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, SchemaRef};
use datafusion::common::Result as DfResult;
use std::sync::Arc;
use tidemill_core::Result as CoreResult;
use tidemill_store::OverflowPart;

/// A key of no bytes would be none.
pub(super) const HEAD: [u8; 1] = [0];

/// What is known of groups at rest.
#[derive(Default)]
pub(super) struct Rest {
    /// Columns of the state, when its rows can lie on disk.
    kinds: Option<Vec<DataType>>,
    pub(super) disk: Option<DiskRows>,
    /// Groups on disk.
    alone: usize,
    pub(super) touched: Touched,
}

impl Rest {
    /// For rows of these columns, if they are all that is kept of a group.
    pub(super) fn new(kept: Option<&SchemaRef>) -> Self {
        let kinds = kept.map(|kept| kept.fields().iter().map(|field| field.data_type().clone()).collect::<Vec<_>>());
        Self { kinds: kinds.filter(|kinds| DiskRows::can_keep(kinds)), ..Self::default() }
    }
}

impl Held {
    /// Whether groups can lie on disk.
    pub(in crate::sql) fn can_rest(&self) -> bool {
        self.rest.kinds.is_some()
    }

    /// How many do.
    pub(in crate::sql) fn at_rest(&self) -> usize {
        self.rest.alone
    }

    /// Takes the groups from `known` on back that are on disk.
    pub(super) fn fetch(&mut self, known: usize) -> DfResult<()> {
        let Some(disk) = self.rest.disk.as_ref().filter(|_| self.rest.alone > 0) else { return Ok(()) };
        let news: Vec<u32> = (0_u32..).take(self.groups.len()).skip(known).collect();
        if news.is_empty() {
            return Ok(());
        }
        let keys = disk.keys(&self.groups.of(&news)?, std::iter::repeat(HEAD)).map_err(external)?;
        let found = disk.found(keys).map_err(external)?;
        let (found, owners): (Vec<Stored>, Vec<u32>) = found.into_iter().map(|(row, at)| (row, news[at])).unzip();
        if found.is_empty() {
            return Ok(());
        }
        let states = disk.rest_of(&found, 0).map_err(external)?;
        self.states.put(owners, RecordBatch::try_new(Arc::clone(self.states.schema()), states)?)?;
        disk.remove(found.iter().map(|(key, _)| &key[..])).map_err(external)?;
        self.rest.alone -= found.len();
        Ok(())
    }

    /// Shrinks to about half of `target` bytes, so that it is not soon asked again; `place` is where rows may go.
    pub(in crate::sql) fn shrink(
        &mut self,
        target: u64,
        place: impl FnOnce() -> CoreResult<OverflowPart>,
    ) -> DfResult<()> {
        let (Some(kinds), true) = (&self.rest.kinds, self.groups.len() > 0) else { return Ok(()) };
        let disk = DiskRows::taken(&mut self.rest.disk, (kinds, self.keys), place).map_err(external)?;
        let each = (self.bytes() / self.groups.len()).max(1);
        let stay = usize::try_from(target / 2).unwrap_or(usize::MAX) / each;
        let (mut stay, go) = self.rest.touched.parted(stay);
        let mut gone = 0;
        for page in go.chunks(PAGE) {
            let states = self.states.of(page)?;
            let rows = self.rows(page, &states)?;
            let (keys, rest) = rows.columns().split_at(self.keys);
            let keys = disk.keys(keys, std::iter::repeat(HEAD)).map_err(external)?;
            let rest = disk.rest(rest, std::iter::repeat([0_u8; 0])).map_err(external)?;
            // A key that is too long for the disk stays here.
            let long = |(key, group): (&Vec<u8>, &u32)| (key.len() > OverflowPart::KEY_BYTES).then_some(*group);
            let long: Vec<u32> = keys.iter().zip(page).filter_map(long).collect();
            let going: Vec<u32> = page.iter().filter(|group| !long.contains(group)).copied().collect();
            let fits = |(key, _): &Stored| key.len() <= OverflowPart::KEY_BYTES;
            let mut stored: Vec<Stored> = keys.into_iter().zip(rest).filter(fits).collect();
            stored.sort_unstable();
            disk.write(&stored).map_err(external)?;
            gone += stored.len();
            stay.extend(long);
            // What is to be given of them as they were is given from here.
            if self.aside.is_some() {
                self.set_aside(&going, &self.states.of(&going)?)?;
            }
        }
        stay.sort_unstable();
        self.rest.disk = Some(disk);
        self.rest.alone += gone;
        // One after the other, so that no more than one of them is there twice.
        if let Results::All(results) = &mut self.results {
            *results = results.only(&stay)?;
        }
        self.states = self.states.only(&stay)?;
        self.groups = self.groups.only(&stay)?;
        self.places = vec![NOWHERE; stay.len()];
        self.rest.touched.only(&stay);
        if let Some(aside) = &mut self.aside {
            aside.turns.renumber(&stay);
        }
        Ok(())
    }

    /// Hands out the rows on disk as the state has them.
    pub(super) fn each_at_rest(&self, each: &mut dyn FnMut(RecordBatch) -> DfResult<()>) -> DfResult<()> {
        let Some(disk) = self.rest.disk.as_ref().filter(|_| self.rest.alone > 0) else { return Ok(()) };
        disk.pages().try_for_each(|found| each(self.stored_rows(disk, &found.map_err(external)?)?))
    }

    /// Rows from disk as the state has them.
    pub(super) fn stored_rows(&self, disk: &DiskRows, found: &[Stored]) -> DfResult<RecordBatch> {
        let mut columns: Vec<ArrayRef> = disk.keys_of(found, HEAD.len()).map_err(external)?;
        columns.extend(disk.rest_of(found, 0).map_err(external)?);
        Ok(RecordBatch::try_new(Arc::clone(&self.kept), columns)?)
    }
}
