//! What an aggregate holds ready, so that a batch costs what it changes.
//!
//! | Aggregate | Held ready |
//! |---|---|
//! | of hopping windows | sums that panes are added to and taken from ([`Running`]), or panes merged ahead ([`Slide`]) |
//! | without a window | the states and results of groups ([`Held`]) |
//! | first rows of keys | the rows in order ([`Tops`]) |
//!
//! Invariant: all of it follows from the rows of the state, and is made of them when it is
//! not there. What is kept here and nowhere else is said by [`Ahead::is_all`]. What all of it
//! takes counts among what states may take; of [`Held`] and [`Tops`], groups and keys go to disk beyond that. What is ahead of
//! windows is given up when their panes go to disk ([`super::rest`]). Called by [`super`].

use super::{AggregateState, Inner, Layout, feed};
use crate::{
    plan::{BatchRun, external},
    sql::{held::Held, running::Running, slide::Slide, times::Emit, tops::Tops},
};
use arrow_array::{BooleanArray, RecordBatch};
use datafusion::{common::Result as DfResult, execution::TaskContext, physical_plan::ExecutionPlan};
use std::{collections::BTreeSet, sync::Arc};
use tidemill_core::{Error, Interval};

/// What is held ready for the batches to come.
#[derive(Debug, Default)]
pub(super) enum Ahead {
    /// It is yet to be seen what can be.
    #[default]
    Unknown,
    /// Sums that panes are added to and taken from.
    Running(Running),
    /// Panes merged ahead.
    Merged(Slide),
    /// Groups without a window, with their results.
    Held(Box<Held>),
    /// First rows of keys. They are all that is kept: the pane is empty.
    Tops(Box<Tops>),
    Nothing,
}

impl Ahead {
    /// Whether it has all rows of the state: the panes have none.
    pub(super) fn is_all(&self) -> bool {
        match self {
            Self::Tops(_) => true,
            Self::Held(held) => held.is_all(),
            Self::Unknown | Self::Running(_) | Self::Merged(_) | Self::Nothing => false,
        }
    }

    /// Bytes that it takes beside the rows of the panes.
    fn bytes(&self) -> usize {
        match self {
            Self::Tops(tops) => tops.bytes(),
            Self::Held(held) => held.bytes(),
            Self::Running(running) => running.bytes(),
            Self::Merged(slide) => slide.bytes(),
            Self::Unknown | Self::Nothing => 0,
        }
    }
}

impl Layout {
    /// The state as a plan shows it.
    pub(in crate::sql) fn told(&self) -> DfResult<String> {
        let mut told = "state".to_string();
        if self.timing.emit == Emit::Append && Running::of(self)?.is_some() {
            told.push_str(", a pane added and one taken away a slide");
            if let Some(first) = self.first {
                told.push_str(&format!(", the first {} groups", first.limit));
            }
        }
        Ok(told)
    }
}

impl AggregateState {
    /// As [`Self::window_rows`], from what is held ready where that is worth it.
    pub(super) fn slid(&self, window: Interval) -> DfResult<Vec<RecordBatch>> {
        let layout = &self.layout;
        // Each window once, in order: what went by is not needed again.
        if layout.timing.emit != Emit::Append {
            return self.window_rows(window);
        }
        let in_order = layout.timing.lateness.is_zero();
        let mut inner = self.inner.lock();
        let Inner { ahead, panes, .. } = &mut *inner;
        let rows = || panes.iter().map(|(at, pane)| (*at, pane.rows.as_slice()));
        let alive = || panes.values().map(|pane| pane.count).max().unwrap_or_default();
        if matches!(ahead, Ahead::Unknown) {
            *ahead = Running::of(layout)?.map_or(Ahead::Nothing, Ahead::Running);
            if let (Ahead::Nothing, true) = (&*ahead, in_order) {
                *ahead = merged(layout)?;
            }
        }
        if let Ahead::Running(running) = ahead
            && running.reaches(window)
        {
            if let Some(rows) = running.window(layout, window, rows())? {
                return Ok(rows);
            }
            *ahead = if in_order { merged(layout)? } else { Ahead::Nothing };
        }
        if let Ahead::Merged(slide) = ahead {
            if slide.is_stale(alive())
                && let Some(anew) = Slide::of(layout, &layout.aggregates)?
            {
                *slide = anew;
            }
            return slide.window(layout, window, rows());
        }
        drop(inner);
        self.window_rows(window)
    }

    /// Tells what is held ready of rows that came for a pane in it.
    pub(super) fn amend(&self, inner: &mut Inner, came: &[RecordBatch], touched: &BTreeSet<i64>) -> DfResult<()> {
        let has = |pane: &i64| match &inner.ahead {
            Ahead::Running(running) => running.has(*pane),
            Ahead::Merged(slide) => slide.has(*pane),
            Ahead::Unknown | Ahead::Nothing | Ahead::Held(_) | Ahead::Tops(_) => false,
        };
        for pane in touched.iter().copied().filter(has).collect::<Vec<_>>() {
            let mut rows = Vec::new();
            for block in came {
                let panes = self.pane_of_rows(block).map_err(crate::plan::external)?;
                let of_pane: BooleanArray = panes.values().iter().map(|at| Some(*at == pane)).collect();
                rows.push(arrow_select::filter::filter_record_batch(block, &of_pane)?);
            }
            match &mut inner.ahead {
                Ahead::Running(running) => {
                    if !running.add(pane, &rows)? {
                        // Made anew of the panes, which have these rows.
                        inner.ahead =
                            if self.layout.timing.lateness.is_zero() { merged(&self.layout)? } else { Ahead::Nothing };
                        return Ok(());
                    }
                }
                Ahead::Merged(slide) => slide.amend(pane, &rows)?,
                Ahead::Unknown | Ahead::Nothing | Ahead::Held(_) | Ahead::Tops(_) => {}
            }
        }
        Ok(())
    }

    /// Notes what the state takes of the program's memory, and has groups that are at rest go to disk when it
    /// must shrink. Called between batches.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn settle(&self, inner: &mut Inner) -> DfResult<()> {
        let Inner { panes, ahead, rest, share: Some(share), .. } = inner else { return Ok(()) };
        match ahead {
            Ahead::Held(held) if held.can_rest() => {
                if let Some(target) = share.note(held.bytes() as u64, held.at_rest() as u64) {
                    held.shrink(target, || share.memory.overflow())?;
                    share.note(held.bytes() as u64, held.at_rest() as u64);
                }
                return Ok(());
            }
            Ahead::Tops(tops) if tops.can_rest() => {
                if let Some(target) = share.note(tops.bytes() as u64, tops.at_rest() as u64) {
                    tops.shrink(target, || share.memory.overflow())?;
                    share.note(tops.bytes() as u64, tops.at_rest() as u64);
                }
                return Ok(());
            }
            _ => {}
        }
        let rows: usize = panes.values().map(|pane| pane.bytes).sum();
        let taken = (rows + ahead.bytes()) as u64;
        if self.layout.window.is_none() {
            if let (Ahead::Held(held), Some(target)) = (&mut *ahead, share.note(taken, 0))
                && let Some(mut lists) = Held::without_pairs(&self.layout)?.filter(Held::can_rest)
            {
                let rows: Vec<RecordBatch> = std::mem::take(panes).into_values().flat_map(|pane| pane.rows).collect();
                for rows in rows {
                    lists.add(&[rows])?;
                }
                lists.shrink(target, || share.memory.overflow())?;
                share.note(lists.bytes() as u64, lists.at_rest() as u64);
                **held = lists;
                return Ok(());
            }
            share.note_fixed(taken);
            return Ok(());
        }
        let on_disk = rest.rows() as u64;
        let Some(target) = share.note(taken, on_disk) else { return Ok(()) };
        let disk = rest.disk(&self.layout.kept, || share.memory.overflow()).map_err(external)?;
        *ahead = Ahead::Nothing;
        self.to_disk(inner, &disk, target)
    }

    /// As [`Self::settle`], before a batch adds to it.
    ///
    /// # Errors
    /// Also when what can't go to disk takes more than all states may: better now than when the system ends the program.
    pub(super) fn make_room(&self, inner: &mut Inner) -> DfResult<()> {
        self.settle(inner)?;
        let Some(share) = inner.share.as_ref().filter(|share| share.fixed_is_over()) else { return Ok(()) };
        let (limit, own) = (share.memory.limit(), share.bytes());
        let rows = self.rows_of(inner);
        if rows == 0 {
            return Ok(());
        }
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        Err(external(Error::user(format!(
            "the state of `{}` has {rows} rows in {} MiB, which can't go to disk, and what can't has more than the {} MiB \
             that states may take together: what is committed is kept; start again with a higher `--state-memory` \
             (`state_memory` in Rust), or have the program keep fewer keys, smaller windows or less lateness",
            self.name,
            mib(own),
            mib(limit),
        ))))
    }

    /// Number of rows now.
    pub(super) fn rows_of(&self, inner: &Inner) -> usize {
        match &inner.ahead {
            Ahead::Tops(tops) => tops.len(),
            Ahead::Held(held) if held.is_all() => held.len(),
            _ => inner.panes.values().map(|pane| pane.count).sum::<usize>() + inner.rest.rows(),
        }
    }

    /// Makes ready what is held of groups without a window, or of first rows.
    pub(super) fn ready(&self, inner: &mut Inner) -> DfResult<()> {
        if !matches!(inner.ahead, Ahead::Unknown) {
            return self.take_in(inner);
        }
        let rows: Vec<RecordBatch> = inner.panes.values().flat_map(|pane| pane.rows.iter().cloned()).collect();
        inner.ahead = match (&self.layout.ranking, Held::of(&self.layout)?) {
            (Some(ranking), _) => {
                let mut tops = Tops::new(&self.layout, ranking)?;
                tops.add(&rows)?;
                inner.panes.clear();
                Ahead::Tops(Box::new(tops))
            }
            (None, Some(mut held)) => {
                held.add(&rows)?;
                if held.is_all() {
                    inner.panes.clear();
                }
                Ahead::Held(Box::new(held))
            }
            (None, None) => Ahead::Nothing,
        };
        Ok(())
    }

    /// Rows that a start read after the others, where the panes have none.
    fn take_in(&self, inner: &mut Inner) -> DfResult<()> {
        if inner.panes.is_empty() || !inner.ahead.is_all() {
            return Ok(());
        }
        let rows: Vec<RecordBatch> =
            std::mem::take(&mut inner.panes).into_values().flat_map(|pane| pane.rows).collect();
        match &mut inner.ahead {
            Ahead::Held(held) => held.add(&rows).map(|_| ()),
            Ahead::Tops(tops) => tops.add(&rows).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// What a batch gives without a window: the whole result, or that of the groups that it changed.
    pub(super) async fn without_window(
        &self,
        nothing: bool,
        changed: &[u32],
        run: &BatchRun,
        above: &Arc<dyn ExecutionPlan>,
        task: &Arc<TaskContext>,
        repeats: bool,
    ) -> DfResult<Vec<RecordBatch>> {
        let updates = self.layout.timing.emit == Emit::Update;
        if updates && nothing {
            return Ok(Vec::new());
        }
        let (plan, rows) = {
            let inner = self.inner.lock();
            if let (true, Some(shown)) = (nothing, &inner.shown) {
                run.stays(&self.name);
                return Ok(if repeats { shown.clone() } else { Vec::new() });
            }
            match (&inner.ahead, &self.layout.beyond) {
                (Ahead::Held(held), Some(beyond)) if updates => (beyond, vec![held.results(changed)?]),
                (Ahead::Held(held), Some(beyond)) => (beyond, held.all()?),
                (Ahead::Tops(tops), Some(beyond)) if updates => (beyond, tops.of(changed)?),
                (Ahead::Tops(tops), Some(beyond)) => (beyond, tops.all()?),
                _ => (above, inner.panes.get(&0).map(|pane| pane.rows.clone()).unwrap_or_default()),
            }
        };
        let given = feed(plan, task, rows).await?;
        let mut inner = self.inner.lock();
        if updates && matches!(inner.ahead, Ahead::Held(_) | Ahead::Tops(_)) {
            return Ok(given);
        }
        // Without groups a batch of no rows has a row all the same.
        let is_same = updates && inner.shown.as_ref() == Some(&given);
        inner.shown = Some(given.clone());
        Ok(if is_same { Vec::new() } else { given })
    }
}

/// Panes merged ahead, when it is worth it.
fn merged(layout: &Layout) -> DfResult<Ahead> {
    Ok(Slide::of(layout, &layout.aggregates)?.map_or(Ahead::Nothing, Ahead::Merged))
}
