//! Partial aggregates kept from batch to batch.
//!
//! ```text
//! partial rows of the batch ─► panes ──(window closes)──► above: Final, projection, top n
//!                                │                          run once a window, the oldest first
//!                                └─ delta of the batch = the same partial rows
//! ```
//!
//! The state of a group is one row or several: rows are appended as they come,
//! and merged by the plan `merge` when a pane holds twice what it held after its last
//! merge; `Final` adds up what is left. So a batch costs what the batch brings.
//! Without a window there is one pane. What a batch needs of all this is held
//! ready where it can be ([`ahead`]); where it can't, `above` runs over the whole
//! pane in each batch that brought something. A batch that brought nothing gives the
//! rows of the batch before again.
//!
//! Invariant: the watermark is read only when all input partitions have ended,
//! so a window closes by what the whole batch has seen, once. Panes that no open
//! window needs are dropped by the watermark alone, which the ledger keeps: a
//! restored state drops them again, so deltas name no removed rows.
//! In the batch that ends an exhausted input all windows close, and the watermark
//! moves to the end of the last one: what a later start reads is late only for
//! windows that were given. Rows of groups and of first rows add up as well, so that
//! a snapshot of them, given in turn, has what they were when it began.
//!
//! With allowed lateness panes are kept that much longer, and a window that
//! closed before is given again when a late row corrected it. Sessions and count
//! windows, which each key has of its own, are kept in [`super::keyed`]. Panes that have no place in memory
//! lie on disk ([`rest`]).

mod ahead;
mod operator;
mod pane;
mod rest;

use self::{ahead::Ahead, pane::Pane, rest::Rest};
use super::{
    first::First,
    keyed::KeyedWindows,
    times::{Emit, Timing},
    tops::{Numbering, Ranking},
};
use crate::{
    batch::of_plan,
    plan::{BatchRun, Kernel, NodeInputs, Rows, rows_from, rows_once},
    state::{
        StateOperator,
        memory::{Share, StateMemory},
    },
};
use arrow_array::{
    ArrayRef, RecordBatch, TimestampMicrosecondArray, UInt32Array, cast::AsArray, types::TimestampMicrosecondType,
};
use arrow_schema::{DataType, SchemaRef};
use datafusion::{
    common::{Result as DfResult, internal_datafusion_err},
    execution::TaskContext,
    physical_expr::aggregate::AggregateFunctionExpr,
    physical_plan::{ExecutionPlan, collect, execution_plan::reset_plan_states},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};
use tidemill_core::{BatchId, Error, Interval, Result, Timestamp, WindowKind, WindowSpec};

/// What a column of the rows above is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A column of the state.
    Kept(usize),
    /// The window's start.
    Start,
    /// The window's end.
    End,
}

/// How partial rows become a result.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// Columns of the state.
    pub(super) kept: SchemaRef,
    /// Columns that `Final` reads.
    pub(super) full: SchemaRef,
    pub(super) roles: Vec<Role>,
    pub(super) window: Option<WindowKind>,
    /// Place of the pane column in the state.
    pub(super) pane: usize,
    /// Columns of the state, the first ones, that are grouped by.
    pub(super) keys: usize,
    /// From partial rows to final values, a row a group of the state; reads a [`FedLeaf`].
    pub(super) show: Arc<dyn ExecutionPlan>,
    /// The partial row of no rows at all, without the groups; reads a [`FedLeaf`].
    pub(super) neutral: Arc<dyn ExecutionPlan>,
    /// Places of the columns that a key's own windows are kept by.
    pub(super) key: Vec<usize>,
    /// Places of the least and greatest time or number of a row, where windows are a key's own.
    pub(super) low: usize,
    pub(super) high: usize,
    pub(super) timing: Timing,
    /// The aggregates, for windows that are merged pane by pane.
    pub(super) aggregates: Vec<Arc<AggregateFunctionExpr>>,
    /// What the plan above wants of the groups, when it wants only the first few.
    pub(super) first: Option<First>,
    /// The plan above without its `Final`, where that is all that is cut away; reads a [`FedLeaf`].
    pub(super) beyond: Option<Arc<dyn ExecutionPlan>>,
    /// How first rows of keys are numbered, and how far.
    pub(super) numbering: Option<(Numbering, u64)>,
    /// The same as the plan above has it, where `beyond` reads them numbered.
    pub(super) ranking: Option<Ranking>,
}

/// The rows that a nested plan reads, as an extension of its task.
#[derive(Debug)]
pub(super) struct Fed(Vec<RecordBatch>);

/// Leaf of the nested plans.
#[derive(Debug)]
pub(super) struct FedLeaf(pub(super) SchemaRef);

impl Kernel for FedLeaf {
    fn run(&self, _partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let fed = inputs
            .task()
            .session_config()
            .get_extension::<Fed>()
            .ok_or_else(|| internal_datafusion_err!("a nested plan was run without rows"))?;
        let rows = fed.0.clone().into_iter().map(Ok);
        Ok(rows_from(Arc::clone(&self.0), futures::stream::iter(rows)))
    }
}

/// Runs a nested plan over `rows`.
pub(super) async fn feed(
    plan: &Arc<dyn ExecutionPlan>,
    task: &Arc<TaskContext>,
    rows: Vec<RecordBatch>,
) -> DfResult<Vec<RecordBatch>> {
    let session = task.session_config().clone().with_extension(Arc::new(Fed(rows)));
    let task = TaskContext::new(
        task.task_id(),
        task.session_id(),
        session,
        HashMap::new(),
        HashMap::new(),
        HashMap::new(),
        HashMap::new(),
        task.runtime_env(),
    );
    // Also drops the metrics of the run before.
    let plan = reset_plan_states(Arc::clone(plan))?;
    collect(plan, Arc::new(task)).await
}

/// Runs a nested plan outside of a batch.
fn feed_aside(plan: &Arc<dyn ExecutionPlan>, rows: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
    let run = BatchRun::new(tidemill_core::Batch::default(), BTreeMap::new());
    let session = datafusion::prelude::SessionConfig::new().with_extension(Arc::new(run));
    let task = Arc::new(TaskContext::default().with_session_config(session));
    futures::executor::block_on(feed(plan, &task, rows)).map_err(of_plan)
}

#[derive(Debug, Default)]
struct Inner {
    panes: BTreeMap<i64, Pane>,
    delta: Option<(BatchId, Vec<RecordBatch>)>,
    /// What the last batch gave, when there is no window.
    shown: Option<Vec<RecordBatch>>,
    /// What is held ready of groups, or of a hopping window with many panes.
    ahead: Ahead,
    /// What panes have on disk.
    rest: Rest,
    /// What it takes of the program's memory; one that is only looked at has no bound.
    share: Option<Share>,
}

impl Inner {
    /// As before the first batch.
    fn clear(&mut self) {
        *self = Self { share: self.share.take(), ..Self::default() };
    }
}

/// What an aggregate keeps, by the kind of its windows.
#[derive(Debug, Clone)]
pub(super) enum WindowState {
    /// Panes that all keys share, or none.
    Panes(Arc<AggregateState>),
    /// Windows of each key.
    Keyed(Arc<KeyedWindows>),
}

impl WindowState {
    /// For rows of a layout, whose state takes of `memory`.
    pub(super) fn new(name: String, layout: Layout, memory: Option<&Arc<StateMemory>>) -> DfResult<Self> {
        Ok(match layout.window {
            Some(window @ (WindowKind::Session(_) | WindowKind::Count(_))) => {
                Self::Keyed(Arc::new(KeyedWindows::new(name, layout, window)?))
            }
            Some(WindowKind::Time(_)) | None => Self::Panes(Arc::new(AggregateState::new(name, layout, memory))),
        })
    }

    /// As the batch loop knows it.
    pub(super) fn operator(&self) -> Arc<dyn StateOperator> {
        match self {
            Self::Panes(state) => Arc::clone(state) as _,
            Self::Keyed(state) => Arc::clone(state) as _,
        }
    }
}

/// The state of one aggregate whose windows are the same for all keys.
#[derive(Debug)]
pub(super) struct AggregateState {
    name: String,
    layout: Layout,
    inner: Mutex<Inner>,
}

impl AggregateState {
    fn new(name: String, layout: Layout, memory: Option<&Arc<StateMemory>>) -> Self {
        let inner = Inner { share: memory.map(Share::of), ..Inner::default() };
        Self { name, layout, inner: Mutex::new(inner) }
    }

    fn spec(&self) -> Option<WindowSpec> {
        match self.layout.window {
            Some(WindowKind::Time(spec) | WindowKind::Count(spec)) => Some(spec),
            Some(WindowKind::Session(_)) | None => None,
        }
    }

    fn pane_of_rows<'a>(&self, rows: &'a RecordBatch) -> Result<&'a TimestampMicrosecondArray> {
        rows.column(self.layout.pane)
            .as_primitive_opt::<TimestampMicrosecondType>()
            .ok_or_else(|| Error::internal("a pane column of another type"))
    }

    /// Adds partial rows to their panes.
    fn append(&self, inner: &mut Inner, rows: &RecordBatch) -> Result<()> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        if self.layout.window.is_none() {
            inner.panes.entry(0).or_default().push(rows.clone());
            return Ok(());
        }
        let panes = self.pane_of_rows(rows)?.values();
        let first = panes[0];
        if panes.iter().all(|pane| *pane == first) {
            inner.panes.entry(first).or_default().push(rows.clone());
            return Ok(());
        }
        let mut by_pane: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
        for (row, pane) in (0_u32..).zip(panes.iter()) {
            by_pane.entry(*pane).or_default().push(row);
        }
        for (pane, places) in by_pane {
            let rows = arrow_select::take::take_record_batch(rows, &UInt32Array::from(places))
                .map_err(|e| Error::internal("rows of a pane").because(e))?;
            inner.panes.entry(pane).or_default().push(rows);
        }
        Ok(())
    }

    /// The windows that a batch gives, the oldest first: `touched` are the panes of which it
    /// brought rows, and the watermark moved from `before` to `now`.
    fn given(&self, spec: WindowSpec, touched: &BTreeSet<i64>, before: Timestamp, now: Timestamp) -> Vec<Interval> {
        let timing = &self.layout.timing;
        let horizon = timing.horizon(before);
        let mut windows = BTreeSet::new();
        let mut take = |pane: i64, after: Timestamp, until: Timestamp| {
            // Windows that hold the pane end in (pane, pane + size].
            let (from, to) = (after.0.max(pane), until.0.min(pane.saturating_add(spec.size())));
            if from < to {
                windows.extend(spec.closing(Timestamp(from), Timestamp(to)).map(|w| (w.end, w.start)));
            }
        };
        let inner = self.inner.lock();
        match timing.emit {
            Emit::Append => {
                inner.panes.keys().for_each(|pane| take(*pane, before, now));
                // Closed before, and a late row came.
                touched.iter().for_each(|pane| take(*pane, horizon, before));
            }
            Emit::Update => touched.iter().for_each(|pane| take(*pane, horizon, Timestamp(i64::MAX))),
            Emit::Complete => inner.panes.keys().for_each(|pane| take(*pane, horizon, Timestamp(i64::MAX))),
        }
        windows.into_iter().map(|(end, start)| Interval { start, end }).collect()
    }

    /// The end of the last window that holds rows; `None` when none does.
    fn last_end(&self, spec: WindowSpec) -> Option<Timestamp> {
        let last = *self.inner.lock().panes.last_key_value()?.0;
        Some(spec.last_end(Timestamp(last)))
    }

    /// Drops the panes all of whose windows ended by `at`.
    fn drop_closed(&self, spec: WindowSpec, at: Timestamp) -> DfResult<()> {
        let mut inner = self.inner.lock();
        let closed = inner.panes.extract_if(.., |pane, _| spec.last_end(Timestamp(*pane)) <= at);
        let closed: Vec<Pane> = closed.map(|(_, pane)| pane).collect();
        inner.forget(&closed)
    }

    /// The rows of the panes in `[start, end)` as `Final` reads them.
    fn window_rows(&self, window: Interval) -> DfResult<Vec<RecordBatch>> {
        let inner = self.inner.lock();
        inner
            .panes
            .range(window.start.0..window.end.0)
            .flat_map(|(_, pane)| &pane.rows)
            .map(|rows| self.full(rows, window))
            .collect()
    }

    fn full(&self, rows: &RecordBatch, window: Interval) -> DfResult<RecordBatch> {
        let constant = |at: Timestamp, kind: &DataType| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from_value(at.0, rows.num_rows()).with_data_type(kind.clone()))
        };
        let columns = self
            .layout
            .roles
            .iter()
            .zip(self.layout.full.fields())
            .map(|(role, field)| match role {
                Role::Kept(at) => Arc::clone(rows.column(*at)),
                Role::Start => constant(window.start, field.data_type()),
                Role::End => constant(window.end, field.data_type()),
            })
            .collect();
        Ok(RecordBatch::try_new(Arc::clone(&self.layout.full), columns)?)
    }
}

/// Runs the aggregate's plans: its only input gives partial rows.
#[derive(Debug)]
pub(super) struct AggregateKernel {
    pub(super) state: WindowState,
    /// Merges partial rows to partial rows; reads a [`FedLeaf`].
    pub(super) merge: Arc<dyn ExecutionPlan>,
    /// Streams that the input reads, when it reads nothing else: without new records in them it is not run.
    pub(super) streams: Option<Vec<String>>,
    /// Whether a batch that brings nothing gives the rows of the batch before again.
    pub(super) repeats: bool,
    pub(super) schema: SchemaRef,
}

/// Place of the plan above among the node's inputs, behind the one that gives partial rows.
const ABOVE: usize = 1;

impl Kernel for AggregateKernel {
    fn run(&self, _partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let idle = self.streams.as_ref().is_some_and(|streams| {
            streams.iter().all(|s| run.batch.ranges.get(s).is_none_or(|ranges| ranges.iter().all(|r| r.is_empty())))
        });
        let rows = if idle { None } else { Some(inputs.collect(0)?) };
        let (above, task) = (Arc::clone(inputs.plan(ABOVE)), Arc::clone(inputs.task()));
        let (state, merge, repeats, schema) =
            (self.state.clone(), Arc::clone(&self.merge), self.repeats, Arc::clone(&self.schema));
        let rows = async move {
            let came = match rows {
                Some(rows) => rows.await?,
                None => Vec::new(),
            };
            let rows = match &state {
                WindowState::Panes(state) => state.step(came, &run, &above, &merge, &task, repeats).await?,
                WindowState::Keyed(state) => state.step(came, &run, &above, &merge, &task).await?,
            };
            // The nested plan's own schema may differ in metadata.
            rows.into_iter()
                .map(|rows| Ok(RecordBatch::try_new(Arc::clone(&schema), rows.columns().to_vec())?))
                .collect::<DfResult<Vec<_>>>()
        };
        Ok(rows_once(Arc::clone(&self.schema), rows))
    }
}

impl AggregateState {
    /// One batch: takes partial rows, gives results.
    async fn step(
        &self,
        came: Vec<RecordBatch>,
        run: &BatchRun,
        above: &Arc<dyn ExecutionPlan>,
        merge: &Arc<dyn ExecutionPlan>,
        task: &Arc<TaskContext>,
        repeats: bool,
    ) -> DfResult<Vec<RecordBatch>> {
        let nothing = came.is_empty();
        let mut touched = BTreeSet::new();
        if self.layout.window.is_some() {
            for rows in &came {
                touched.extend(self.pane_of_rows(rows).map_err(crate::plan::external)?.values().iter().copied());
            }
        }
        let mut changed = Vec::new();
        let wanting = {
            let mut inner = self.inner.lock();
            if self.layout.window.is_none() {
                self.ready(&mut inner)?;
            }
            if !nothing {
                self.make_room(&mut inner)?;
            }
            let came = match &mut inner.ahead {
                Ahead::Held(held) => {
                    changed = held.add(&came)?;
                    if held.is_all() {
                        inner.delta = Some((run.batch.id, came));
                        Vec::new()
                    } else {
                        came
                    }
                }
                Ahead::Tops(tops) => {
                    let (keys, kept) = tops.add(&came)?;
                    changed = keys;
                    inner.delta = Some((run.batch.id, kept));
                    Vec::new()
                }
                _ => came,
            };
            for rows in &came {
                self.append(&mut inner, rows).map_err(crate::plan::external)?;
            }
            self.amend(&mut inner, &came, &touched)?;
            if !inner.ahead.is_all() {
                inner.delta = Some((run.batch.id, came));
            }
            let wanting: Vec<(i64, Vec<RecordBatch>)> = inner
                .panes
                .iter()
                .filter(|(_, pane)| pane.wants_merge())
                .map(|(at, pane)| (*at, pane.rows.clone()))
                .collect();
            wanting
        };
        for (at, rows) in wanting {
            let rows: Vec<RecordBatch> = feed(merge, task, rows).await?;
            self.inner.lock().panes.entry(at).or_default().replace(rows);
        }
        self.merge_at_rest(merge, task).await?;
        let Some(spec) = self.spec() else {
            let is_held = matches!(self.inner.lock().ahead, Ahead::Held(_) | Ahead::Tops(_));
            let nothing = nothing || (is_held && changed.is_empty());
            return self.without_window(nothing, &changed, run, above, task, repeats).await;
        };
        let timing = &self.layout.timing;
        let (before, mut now) = timing.watermarks(&self.name, run);
        if let (true, Some(last)) = (run.batch.is_end(), self.last_end(spec)) {
            run.move_watermark(&self.name, last);
            now = now.max(last);
        }
        // Panes that came back with a restored state and were closed before it was kept.
        self.drop_closed(spec, timing.horizon(before))?;
        let mut results = Vec::new();
        for window in self.given(spec, &touched, before, now) {
            let rows = match self.at_rest(window, merge, task).await? {
                Some(rows) => rows,
                None => self.slid(window)?,
            };
            results.extend(feed(above, task, rows).await?.into_iter().filter(|rows| rows.num_rows() > 0));
        }
        self.drop_closed(spec, timing.horizon(now))?;
        if !results.is_empty() {
            self.settle(&mut self.inner.lock())?;
        }
        Ok(results)
    }
}
