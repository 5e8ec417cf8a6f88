//! Hopping windows of many panes: a slide costs a pane, not a window.
//!
//! ```text
//! panes      0  1  2  3  4  5  6  7  8 | 9 10 11
//! front         [-----------------]    |             merged once, from here to the bar:
//!                        [--------]    |             one such run for every few panes
//! back                                 [-------]     grows by one pane a slide
//! window 1..12 =   the panes before a run + that run + back
//! ```
//!
//! The groups of all panes are numbered once, so a pane is numbers and partial
//! states, and merging two is a walk along arrays without hashing. When the front
//! is used up, the back becomes the new front. This is the two-stacks aggregation
//! of sliding windows (Tangwongsan, Hirzel, Schneider, "Optimal and general
//! out-of-order sliding-window aggregation", VLDB 2019, tells its history), with
//! only each *k*-th run of the front kept, for memory's sake. It needs no inverse,
//! so it serves every aggregate that can merge groups.
//!
//! Invariant: what it gives for a window is what merging the window's panes gives.
//! It is a cache of the panes: made anew whenever it is not there, and never
//! stored. Called by [`super::state`].

use super::state::{Layout, Role};
use arrow_array::{Array, ArrayRef, RecordBatch, TimestampMicrosecondArray, UInt64Array};
use arrow_schema::{DataType, Schema};
use datafusion::{
    common::{Result as DfResult, internal_datafusion_err},
    logical_expr::{EmitTo, GroupsAccumulator},
    physical_expr::aggregate::AggregateFunctionExpr,
    physical_plan::aggregates::{
        group_values::{GroupValues, new_group_values},
        order::GroupOrdering,
    },
};
use std::{collections::BTreeMap, fmt, sync::Arc};
use tidemill_core::{Interval, Timestamp, WindowKind};

/// Panes of a window from which on it is worth it.
const MANY: i64 = 4;
/// Groups that are gone may be so many, and as many as are there, before all are numbered anew.
pub(super) const GONE: usize = 16 * 1024;

/// Whether a layout's windows hop, and have many panes.
pub(super) fn is_many(layout: &Layout) -> bool {
    matches!(layout.window, Some(WindowKind::Time(spec)) if spec.size() / spec.pane() >= MANY)
}

/// Some groups with their partial states.
#[derive(Clone)]
struct Chunk {
    groups: Vec<usize>,
    states: Vec<ArrayRef>,
}

/// Merged panes of a hopping window.
pub(super) struct Slide {
    aggregates: Vec<Arc<AggregateFunctionExpr>>,
    /// Places of the groups in the rows of the state, the pane left out.
    keys: Vec<usize>,
    /// Where the states begin, and how many each aggregate has.
    first_state: usize,
    widths: Vec<usize>,
    numbers: Box<dyn GroupValues>,
    /// Values of the groups, by number.
    values: Vec<ArrayRef>,
    panes: BTreeMap<i64, Chunk>,
    /// Runs that end where the back begins, by their first pane.
    front: BTreeMap<i64, Chunk>,
    back: Option<Chunk>,
    back_from: i64,
    /// Panes before this are in front and back.
    until: i64,
}

impl fmt::Debug for Slide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} merged panes", self.panes.len())
    }
}

impl Slide {
    /// For rows of this layout, when it is worth it and the aggregates can.
    pub(super) fn of(layout: &Layout, aggregates: &[Arc<AggregateFunctionExpr>]) -> DfResult<Option<Self>> {
        if !is_many(layout) || aggregates.is_empty() || !aggregates.iter().all(|a| a.groups_accumulator_supported()) {
            return Ok(None);
        }
        let widths = aggregates.iter().map(|a| Ok(a.state_fields()?.len())).collect::<DfResult<Vec<_>>>()?;
        let first_state = layout.kept.fields().len() - widths.iter().sum::<usize>();
        let keys: Vec<usize> = (0..first_state).filter(|place| *place != layout.pane).collect();
        if keys.is_empty() {
            // One group: a window is as many rows as it has panes.
            return Ok(None);
        }
        let schema = Arc::new(Schema::new(keys.iter().map(|at| layout.kept.field(*at).clone()).collect::<Vec<_>>()));
        let values = schema.fields().iter().map(|f| arrow_array::new_empty_array(f.data_type())).collect();
        Ok(Some(Self {
            aggregates: aggregates.to_vec(),
            keys,
            first_state,
            widths,
            numbers: new_group_values(schema, &GroupOrdering::None)?,
            values,
            panes: BTreeMap::new(),
            front: BTreeMap::new(),
            back: None,
            back_from: i64::MIN,
            until: i64::MIN,
        }))
    }

    /// Bytes that it takes beside the panes.
    pub(super) fn bytes(&self) -> usize {
        let of = |chunk: &Chunk| {
            let states: usize = chunk.states.iter().map(|states| states.get_array_memory_size()).sum();
            states + chunk.groups.capacity() * size_of::<usize>()
        };
        let chunks = self.panes.values().chain(self.front.values()).chain(&self.back).map(of);
        let values = self.values.iter().map(|values| values.get_array_memory_size());
        self.numbers.size() + chunks.sum::<usize>() + values.sum::<usize>()
    }

    /// Whether a pane is part of what is merged, so that rows of it must be told.
    pub(super) fn has(&self, pane: i64) -> bool {
        pane < self.until
    }

    /// Whether so many groups are gone that it should be made anew.
    pub(super) fn is_stale(&self, alive: usize) -> bool {
        self.numbers.len() > alive * 2 + GONE
    }

    /// Rows of a pane that was merged before came late.
    pub(super) fn amend(&mut self, pane: i64, rows: &[RecordBatch]) -> DfResult<()> {
        let news = self.chunk(rows)?;
        let whole = match self.panes.remove(&pane) {
            Some(before) => self.merged(&[&before, &news])?,
            None => news.clone(),
        };
        self.panes.insert(pane, whole);
        if pane >= self.back_from {
            let back = self.back.take();
            let parts: Vec<&Chunk> = back.iter().chain([&news]).collect();
            self.back = Some(self.merged(&parts)?);
            return Ok(());
        }
        for start in self.front.range(..=pane).map(|(start, _)| *start).collect::<Vec<_>>() {
            if let Some(run) = self.front.remove(&start) {
                let run = self.merged(&[&run, &news])?;
                self.front.insert(start, run);
            }
        }
        Ok(())
    }

    /// The rows of a window as `Final` reads them, each group once. `panes` are all that are held.
    pub(super) fn window<'a>(
        &mut self,
        layout: &Layout,
        window: Interval,
        panes: impl Iterator<Item = (i64, &'a [RecordBatch])>,
    ) -> DfResult<Vec<RecordBatch>> {
        for (pane, rows) in panes.filter(|(pane, _)| *pane < window.end.0) {
            if !self.has(pane) {
                let chunk = self.chunk(rows)?;
                let back = self.back.take();
                let parts: Vec<&Chunk> = back.iter().chain([&chunk]).collect();
                self.back = Some(self.merged(&parts)?);
                self.panes.insert(pane, chunk);
            }
        }
        self.until = self.until.max(window.end.0);
        // Earlier windows have been given.
        self.panes = self.panes.split_off(&window.start.0);
        self.front = self.front.split_off(&window.start.0);
        if self.back_from < window.start.0 || self.front.is_empty() {
            self.turn_over()?;
        }
        let run = self.front.first_key_value();
        let run_from = run.map_or(self.back_from, |(start, _)| *start);
        let before = self.panes.range(window.start.0..run_from).map(|(_, pane)| pane);
        let parts: Vec<&Chunk> = before.chain(run.map(|(_, run)| run)).chain(self.back.as_ref()).collect();
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let merged = self.merged(&parts)?;
        self.rows(layout, window, &merged).map(|rows| vec![rows])
    }

    /// The back becomes the front: runs from every few panes on to the last one.
    fn turn_over(&mut self) -> DfResult<()> {
        self.front.clear();
        self.back = None;
        self.back_from = self.until;
        let starts: Vec<i64> = self.panes.keys().copied().collect();
        let each = starts.len().isqrt().max(1);
        let mut run: Option<Chunk> = None;
        for (at, start) in starts.iter().enumerate().rev() {
            let Some(pane) = self.panes.get(start) else { continue };
            let parts: Vec<&Chunk> = run.iter().chain([pane]).collect();
            let merged = self.merged(&parts)?;
            if at % each == 0 {
                self.front.insert(*start, merged.clone());
            }
            run = Some(merged);
        }
        Ok(())
    }

    /// Rows of the state as numbers and states, each group once.
    fn chunk(&mut self, rows: &[RecordBatch]) -> DfResult<Chunk> {
        let mut parts = Vec::with_capacity(rows.len());
        for rows in rows {
            let keys: Vec<ArrayRef> = self.keys.iter().map(|place| Arc::clone(rows.column(*place))).collect();
            let before = self.numbers.len();
            let mut groups = Vec::with_capacity(rows.num_rows());
            self.numbers.intern(&keys, &mut groups)?;
            if self.numbers.len() > before {
                // The first row of each new group, in the order of their numbers.
                let mut next = before;
                let news = groups.iter().enumerate().filter(|(_, group)| {
                    let is_new = **group == next;
                    next += usize::from(is_new);
                    is_new
                });
                let news = UInt64Array::from_iter_values(news.map(|(row, _)| row as u64));
                for (values, keys) in self.values.iter_mut().zip(&keys) {
                    let news = arrow_select::take::take(keys, &news, None)?;
                    *values = arrow_select::concat::concat(&[values.as_ref(), news.as_ref()])?;
                }
            }
            parts.push(Chunk { groups, states: rows.columns()[self.first_state..].to_vec() });
        }
        match parts.as_slice() {
            // Partial rows of one batch and one partition have each group once.
            [one] => Ok(one.clone()),
            many => self.merged(&many.iter().collect::<Vec<_>>()),
        }
    }

    /// The states of all chunks together.
    fn merged(&self, chunks: &[&Chunk]) -> DfResult<Chunk> {
        if let [one] = chunks {
            return Ok((*one).clone());
        }
        // Groups count from their first chunk on: an accumulator takes every group below the total for seen.
        let mut places = vec![usize::MAX; self.numbers.len()];
        let mut groups = Vec::with_capacity(chunks.iter().map(|chunk| chunk.groups.len()).max().unwrap_or_default());
        let numbered: Vec<(Vec<usize>, usize)> = chunks
            .iter()
            .map(|chunk| {
                let place = |group: &usize| {
                    if places[*group] == usize::MAX {
                        places[*group] = groups.len();
                        groups.push(*group);
                    }
                    places[*group]
                };
                let of_chunk = chunk.groups.iter().map(place).collect();
                (of_chunk, groups.len())
            })
            .collect();
        let mut states = Vec::with_capacity(self.widths.iter().sum());
        let mut first = 0;
        for (aggregate, width) in self.aggregates.iter().zip(&self.widths) {
            let mut sums: Box<dyn GroupsAccumulator> = aggregate.create_groups_accumulator()?;
            for (chunk, (of_chunk, total)) in chunks.iter().zip(&numbered) {
                sums.merge_batch(&chunk.states[first..first + width], of_chunk, *total)?;
            }
            first += width;
            states.extend(sums.state(EmitTo::All)?);
        }
        Ok(Chunk { groups, states })
    }

    fn rows(&self, layout: &Layout, window: Interval, chunk: &Chunk) -> DfResult<RecordBatch> {
        let places = UInt64Array::from_iter_values(chunk.groups.iter().map(|group| *group as u64));
        let values = self.values.iter().map(|values| Ok(arrow_select::take::take(values, &places, None)?));
        full_rows(layout, window, &self.keys, &values.collect::<DfResult<Vec<_>>>()?, &chunk.states)
    }
}

/// Rows as `Final` reads them, of the columns of the groups, which have the places `keys`, and the states behind them.
pub(super) fn full_rows(
    layout: &Layout,
    window: Interval,
    keys: &[usize],
    values: &[ArrayRef],
    states: &[ArrayRef],
) -> DfResult<RecordBatch> {
    let first_state = layout.kept.fields().len() - states.len();
    let count = states.first().map_or(0, |states| states.len());
    let constant = |at: Timestamp, kind: &DataType| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from_value(at.0, count).with_data_type(kind.clone()))
    };
    let columns = layout.roles.iter().zip(layout.full.fields()).map(|(role, field)| {
        Ok(match role {
            Role::Start => constant(window.start, field.data_type()),
            Role::End => constant(window.end, field.data_type()),
            Role::Kept(at) if *at >= first_state => Arc::clone(&states[at - first_state]),
            Role::Kept(at) => {
                let place = keys.iter().position(|key| key == at);
                Arc::clone(&values[place.ok_or_else(|| internal_datafusion_err!("column {at} is no group"))?])
            }
        })
    });
    Ok(RecordBatch::try_new(Arc::clone(&layout.full), columns.collect::<DfResult<_>>()?)?)
}
