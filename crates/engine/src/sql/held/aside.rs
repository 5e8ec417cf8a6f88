//! The groups as they were when a snapshot began, given in turn while batches change them.
//!
//! Groups in memory are given as [`Turns`] say: one that changes before its turn, or goes to disk, is
//! set aside as it was. What was on disk lies there still as it was then, for who looks at it through a
//! view. Invariant: what was given, together with what waits, is each group of the begin once, as it
//! was. Called by [`super`] when groups change, and between batches by [`crate::sql::state`].

use super::Held;
use crate::{
    sql::turns::Turns,
    state::{
        Swept,
        disk_rows::{DiskRows, PAGE, SeenRows},
    },
};
use arrow_array::{RecordBatch, UInt32Array};
use datafusion::common::{Result as DfResult, internal_datafusion_err};

/// A snapshot that is given in turn.
pub(super) struct Aside {
    /// Of the groups that were in memory.
    pub(super) turns: Turns,
    /// What was on disk.
    disk: Option<SeenRows>,
}

impl Held {
    /// Sets those of the groups aside that wait for their turn; `states` are theirs as they were.
    pub(super) fn set_aside(&mut self, groups: &[u32], states: &RecordBatch) -> DfResult<()> {
        let Some(Aside { turns, .. }) = &mut self.aside else { return Ok(()) };
        let waiting = (0_u32..).zip(groups).filter(|(_, group)| turns.waits(**group));
        let (places, waiting): (Vec<u32>, Vec<u32>) = waiting.unzip();
        if waiting.is_empty() {
            return Ok(());
        }
        waiting.iter().for_each(|group| turns.pass(*group));
        let states = arrow_select::take::take_record_batch(states, &UInt32Array::from(places))?;
        let rows = self.rows(&waiting, &states)?;
        if let Some(Aside { turns, .. }) = &mut self.aside {
            turns.set_aside(rows);
        }
        Ok(())
    }

    /// About `limit` rows of the state as they were when this was called with `begin`.
    pub(in crate::sql) fn sweep(&mut self, limit: usize, begin: bool) -> DfResult<Swept> {
        if begin {
            let disk = self.rest.disk.as_ref().map(DiskRows::seen);
            self.aside = Some(Aside { turns: Turns::new(self.groups.len()), disk });
        }
        let Some(mut aside) = self.aside.take() else {
            return Err(internal_datafusion_err!("a snapshot goes on that was not begun"));
        };
        let turn = aside.turns.next(limit, |_| 1);
        let (mut rows, mut found) = (turn.aside, turn.rows);
        if !turn.next.is_empty() {
            rows.push(self.rows(&turn.next, &self.states.of(&turn.next)?)?);
        }
        while found < limit
            && let (Some(seen), Some(disk)) = (&mut aside.disk, &self.rest.disk)
        {
            let count = PAGE.min(limit - found);
            let page = seen.next(count).map_err(crate::plan::external)?;
            found += page.len();
            if !page.is_empty() {
                rows.push(self.stored_rows(disk, &page)?);
            }
            if page.len() < count {
                aside.disk = None;
            }
        }
        let whole = aside.turns.are_over() && aside.disk.is_none();
        if !whole {
            self.aside = Some(aside);
        }
        Ok(Swept { rows, whole })
    }
}
