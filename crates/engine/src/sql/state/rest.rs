//! Panes at rest: what the panes of windows hold beyond memory lies on disk until a window needs it.
//!
//! ```text
//! panes, over the bound ─► their rows, by a hash of the group: buckets of blocks on disk
//! a bucket that has doubled ── merge ──► fewer rows, on disk
//! a window ─► bucket by bucket: its panes' blocks and rows in memory ── merge ──► as `Final` reads them
//! ```
//!
//! A bucket is merged without the others, so that no more than a part of a pane is in memory for it; a window that
//! is given has its groups in memory once. What is held ready of windows ([`super::ahead`]) is given up when panes
//! go to disk, and made again when none is there.
//!
//! Invariant: a partial row is in memory or on disk, never both. Which bucket a row is in decides nothing but what is
//! merged early: `Final` adds up all that a window has. Called by [`super`] in a batch and by [`super::operator`]
//! between two.

use super::{
    AggregateState, Ahead, Inner, feed,
    pane::{Bucket, MERGE_ROWS, Pane, weight},
};
use crate::{plan::external, state::Swept};
use arrow_array::{ArrayRef, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use arrow_schema::SchemaRef;
use datafusion::{
    common::{
        Result as DfResult,
        hash_utils::{RandomState, create_hashes},
    },
    execution::TaskContext,
    physical_plan::ExecutionPlan,
};
use std::{collections::VecDeque, sync::Arc};
use tidemill_core::{Error, Interval, Result};
use tidemill_store::{OverflowBlock, OverflowBlocks, OverflowPart, OverflowView};

/// Parts of a pane that are merged each by itself.
const BUCKETS: usize = 16;

/// What is known of panes at rest.
#[derive(Debug, Default)]
pub(super) struct Rest {
    disk: Option<Arc<OverflowBlocks>>,
    /// Rows on disk.
    rows: usize,
    given: Option<Given>,
}

/// A snapshot that is given in turn: all rows as they were when it began.
#[derive(Debug)]
struct Given {
    waiting: VecDeque<Waiting>,
    view: OverflowView,
}

#[derive(Debug)]
enum Waiting {
    Memory(RecordBatch),
    Disk(OverflowBlock),
}

impl Rest {
    /// How many rows are on disk.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Where rows of these columns go.
    pub(super) fn disk(
        &mut self,
        kept: &SchemaRef,
        place: impl FnOnce() -> Result<OverflowPart>,
    ) -> Result<Arc<OverflowBlocks>> {
        if let Some(disk) = &self.disk {
            return Ok(Arc::clone(disk));
        }
        Ok(Arc::clone(self.disk.insert(Arc::new(OverflowBlocks::new(place()?, Arc::clone(kept))?))))
    }
}

impl Inner {
    /// What panes that are closed had on disk is removed.
    pub(super) fn forget(&mut self, closed: &[Pane]) -> DfResult<()> {
        let blocks: Vec<OverflowBlock> = closed.iter().flat_map(Pane::blocks).collect();
        let Some(disk) = self.rest.disk.as_ref().filter(|_| !blocks.is_empty()) else { return Ok(()) };
        disk.remove(&blocks).map_err(external)?;
        self.rest.rows -= blocks.iter().map(|block| block.rows()).sum::<usize>();
        if self.rest.rows == 0 {
            // There is room again.
            self.ahead = Ahead::Unknown;
        }
        Ok(())
    }

    /// All rows that are on disk.
    pub(super) fn stored_rows(&self) -> Result<Vec<RecordBatch>> {
        let Some(disk) = &self.rest.disk else { return Ok(Vec::new()) };
        self.panes.values().flat_map(Pane::blocks).map(|block| disk.get(block)).collect()
    }

    /// About `limit` rows of the state as it was when this was called with `begin`.
    pub(super) fn sweep(&mut self, limit: usize, begin: bool) -> Result<Swept> {
        let Self { panes, rest, .. } = self;
        let Some(disk) = &rest.disk else {
            return Err(Error::internal("rows that lie in memory are set aside at once"));
        };
        if begin {
            let waiting = panes.values().flat_map(|pane| {
                let in_memory = pane.rows.iter().cloned().map(Waiting::Memory);
                in_memory.chain(pane.blocks().map(Waiting::Disk))
            });
            rest.given = Some(Given { waiting: waiting.collect(), view: disk.view() });
        }
        let given = rest.given.as_mut().ok_or_else(|| Error::internal("a snapshot goes on that was not begun"))?;
        let (mut rows, mut count) = (Vec::new(), 0);
        while count < limit
            && let Some(next) = given.waiting.pop_front()
        {
            let block = match next {
                Waiting::Memory(rows) => rows,
                Waiting::Disk(block) => disk.seen(&given.view, block)?,
            };
            count += block.num_rows();
            rows.push(block);
        }
        let whole = given.waiting.is_empty();
        if whole {
            rest.given = None;
        }
        Ok(Swept { rows, whole })
    }
}

impl AggregateState {
    /// Has rows of panes go to disk, those that close last before the others, until about half of `target` bytes
    /// are left, so that it is not soon asked again.
    pub(super) fn to_disk(&self, inner: &mut Inner, disk: &OverflowBlocks, target: u64) -> DfResult<()> {
        let Inner { panes, rest, share, .. } = inner;
        let target = usize::try_from(target / 2).unwrap_or(usize::MAX);
        let mut left: usize = panes.values().map(|pane| pane.bytes).sum();
        for pane in panes.values_mut().rev().filter(|pane| pane.count > 0) {
            if left <= target {
                break;
            }
            // All of it is there before any of it is let go.
            let mut stored = Vec::with_capacity(BUCKETS);
            for parts in self.bucketed(&pane.rows)? {
                let rows = arrow_select::concat::concat_batches(&self.layout.kept, &parts)?;
                stored.push(disk.put(&rows).map_err(external)?);
            }
            left -= pane.bytes;
            rest.rows += pane.count;
            pane.stored.resize_with(BUCKETS, Bucket::default);
            pane.stored.iter_mut().zip(stored).for_each(|(bucket, blocks)| bucket.push(blocks));
            pane.replace(Vec::new());
        }
        if let Some(share) = share {
            share.note(left as u64, rest.rows as u64);
        }
        Ok(())
    }

    /// Rows by bucket.
    fn bucketed(&self, rows: &[RecordBatch]) -> DfResult<Vec<Vec<RecordBatch>>> {
        let mut buckets = vec![Vec::new(); BUCKETS];
        for rows in rows {
            let groups = (0..self.layout.keys).filter(|at| *at != self.layout.pane);
            let groups: Vec<ArrayRef> = groups.map(|at| Arc::clone(rows.column(at))).collect();
            let mut hashes = vec![0; rows.num_rows()];
            if !groups.is_empty() {
                create_hashes(&groups, &RandomState::with_seed(0), &mut hashes)?;
            }
            let mut places = vec![Vec::new(); BUCKETS];
            for (row, hash) in (0_u32..).zip(&hashes) {
                places[usize::try_from(hash % BUCKETS as u64).unwrap_or_default()].push(row);
            }
            for (bucket, places) in buckets.iter_mut().zip(places).filter(|(_, places)| !places.is_empty()) {
                bucket.push(arrow_select::take::take_record_batch(rows, &UInt32Array::from(places))?);
            }
        }
        Ok(buckets)
    }

    /// Merges what has doubled on disk since it was merged last.
    pub(super) async fn merge_at_rest(&self, merge: &Arc<dyn ExecutionPlan>, task: &Arc<TaskContext>) -> DfResult<()> {
        let (disk, wanting) = {
            let inner = self.inner.lock();
            let Some(disk) = inner.rest.disk.clone().filter(|_| inner.rest.rows > 0) else { return Ok(()) };
            let buckets = inner.panes.iter().flat_map(|(at, pane)| pane.stored.iter().enumerate().map(|b| (*at, b)));
            let wanting = buckets.filter(|(_, (_, bucket))| bucket.wants_merge());
            let wanting: Vec<(i64, usize)> = wanting.map(|(at, (bucket, _))| (at, bucket)).collect();
            (disk, wanting)
        };
        for (at, place) in wanting {
            let find = |inner: &Inner| Some(inner.panes.get(&at)?.stored.get(place)?.blocks.clone());
            let Some(before) = find(&self.inner.lock()) else { continue };
            let rows = before.iter().map(|block| disk.get(*block)).collect::<Result<Vec<_>>>().map_err(external)?;
            let rows = feed(merge, task, rows).await?;
            let mut merged = Bucket::default();
            for rows in rows {
                merged.push(disk.put(&self.kept(&rows)?).map_err(external)?);
            }
            (merged.merged, merged.appended) = (merged.rows, 0);
            let inner = &mut *self.inner.lock();
            let Some(bucket) = inner.panes.get_mut(&at).and_then(|pane| pane.stored.get_mut(place)) else { continue };
            inner.rest.rows = inner.rest.rows - bucket.rows + merged.rows;
            *bucket = merged;
            disk.remove(&before).map_err(external)?;
        }
        Ok(())
    }

    /// The rows of a window as `Final` reads them, each group about once, where some of the panes are on disk; `None`
    /// where none is.
    pub(super) async fn at_rest(
        &self,
        window: Interval,
        merge: &Arc<dyn ExecutionPlan>,
        task: &Arc<TaskContext>,
    ) -> DfResult<Option<Vec<RecordBatch>>> {
        let (disk, in_memory, blocks) = {
            let inner = self.inner.lock();
            let Some(disk) = inner.rest.disk.clone().filter(|_| inner.rest.rows > 0) else { return Ok(None) };
            let (mut in_memory, mut blocks) = (Vec::new(), vec![Vec::new(); BUCKETS]);
            for pane in inner.panes.range(window.start.0..window.end.0).map(|(_, pane)| pane) {
                in_memory.extend(pane.rows.iter().cloned());
                pane.stored.iter().zip(&mut blocks).for_each(|(bucket, of)| of.extend(bucket.blocks.iter().copied()));
            }
            (disk, in_memory, blocks)
        };
        let mut all = Vec::new();
        for (in_memory, blocks) in self.bucketed(&in_memory)?.into_iter().zip(blocks) {
            let mut rows = in_memory.iter().map(|rows| self.of_window(rows, window)).collect::<DfResult<Vec<_>>>()?;
            let (mut found, mut merged) = (rows.iter().map(weight).sum::<usize>(), 0);
            for block in blocks {
                let block = self.of_window(&disk.get(block).map_err(external)?, window)?;
                found += weight(&block);
                rows.push(block);
                if found > merged * 2 + MERGE_ROWS {
                    rows = feed(merge, task, rows).await?;
                    merged = rows.iter().map(weight).sum();
                    found = merged;
                }
            }
            for rows in &rows {
                all.push(self.full(rows, window)?);
            }
        }
        Ok(Some(all))
    }

    /// Rows of panes as rows of one, so that those of a group merge.
    fn of_window(&self, rows: &RecordBatch, window: Interval) -> DfResult<RecordBatch> {
        let at = self.layout.pane;
        let start = TimestampMicrosecondArray::from_value(window.start.0, rows.num_rows());
        let mut columns = rows.columns().to_vec();
        columns[at] = Arc::new(start.with_data_type(self.layout.kept.field(at).data_type().clone()));
        Ok(RecordBatch::try_new(Arc::clone(&self.layout.kept), columns)?)
    }

    /// Rows of a nested plan, whose schema may differ in metadata, as the state has them.
    fn kept(&self, rows: &RecordBatch) -> DfResult<RecordBatch> {
        Ok(RecordBatch::try_new(Arc::clone(&self.layout.kept), rows.columns().to_vec())?)
    }
}
