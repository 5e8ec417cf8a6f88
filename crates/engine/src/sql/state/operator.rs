//! An aggregate as the batch loop knows it: its rows come back, are changed, and are kept.
//!
//! Rows of an aggregate add up. A delta is the rows that a batch brought, and a snapshot all
//! rows as they were: set aside at once where they lie in panes, in columns that nobody changes,
//! or given in turn where they are held ready for the batches to come. A start takes in what it reads
//! piece by piece, and of groups beyond their share of memory, some go to disk before the next
//! piece comes.
//!
//! Invariant: what [`StateOperator::restore`] makes of a snapshot and the deltas after it is the
//! state that gave them. Called by the batch loop between batches, and by who looks at old versions.

use super::{AggregateState, Ahead, feed_aside};
use crate::{
    batch::of_plan,
    state::{Feed, StateOperator, Swept, Version, hand_out},
};
use arrow_array::RecordBatch;
use arrow_schema::{FieldRef, Schema, SchemaRef};
use std::sync::Arc;
use tidemill_core::{BatchId, Error, Result};
use tidemill_store::state::{Piece, StateKind};

impl StateOperator for AggregateState {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "aggregate"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.layout.kept)
    }

    fn restore(&self, versions: &[Version]) -> Result<()> {
        self.restore_from(&mut |each| hand_out(versions, each))
    }

    fn restore_from(&self, feed: &mut Feed<'_>) -> Result<()> {
        let mut inner = self.inner.lock();
        inner.clear();
        // Rows that wait in the pane may take this much, where what is held of them can go to disk.
        let bound =
            inner.share.as_ref().map_or(usize::MAX, |share| usize::try_from(share.own() / 4).unwrap_or(usize::MAX));
        feed(&mut |piece| match piece {
            Piece::Version(_, StateKind::Snapshot) | Piece::Reset => {
                inner.clear();
                Ok(())
            }
            Piece::Version(_, StateKind::Delta) => Ok(()),
            // They would count twice; this state marks none.
            Piece::Again(_) => {
                Err(Error::internal(format!("the state of `{}` has rows that are kept again", self.name)))
            }
            Piece::Rows(rows) => {
                let rows = RecordBatch::try_new(self.schema(), rows.columns().to_vec())
                    .map_err(|e| Error::user(format!("the state of `{}` has other columns", self.name)).because(e))?;
                self.append(&mut inner, &rows)?;
                if inner.panes.values().map(|pane| pane.bytes).sum::<usize>() > bound {
                    if self.layout.window.is_none() {
                        self.ready(&mut inner).map_err(of_plan)?;
                    }
                    self.settle(&mut inner).map_err(of_plan)?;
                }
                Ok(())
            }
        })
    }

    fn delta(&self, batch: BatchId) -> Result<Vec<RecordBatch>> {
        let mut inner = self.inner.lock();
        let delta = inner.delta.take_if(|(of, _)| *of == batch).map(|(_, rows)| rows).unwrap_or_default();
        if !delta.is_empty() {
            self.settle(&mut inner).map_err(of_plan)?;
        }
        Ok(delta)
    }

    fn sets_aside(&self) -> bool {
        let inner = self.inner.lock();
        inner.ahead.is_all() || inner.rest.rows() > 0
    }

    fn sweep(&self, rows: usize, begin: bool) -> Result<Swept> {
        let inner = &mut *self.inner.lock();
        match &mut inner.ahead {
            Ahead::Held(held) => held.sweep(rows, begin).map_err(of_plan),
            Ahead::Tops(tops) => tops.sweep(rows, begin).map_err(of_plan),
            _ => inner.sweep(rows, begin),
        }
    }

    fn snapshot(&self) -> Result<Vec<RecordBatch>> {
        let inner = self.inner.lock();
        let mut rows = match &inner.ahead {
            Ahead::Tops(tops) => tops.kept().map_err(of_plan)?,
            Ahead::Held(held) if held.is_all() => held.kept().map_err(of_plan)?,
            _ => Vec::new(),
        };
        rows.extend(inner.panes.values().flat_map(|pane| pane.rows.iter().cloned()));
        rows.extend(inner.stored_rows()?);
        Ok(rows)
    }

    fn rows(&self) -> usize {
        self.rows_of(&self.inner.lock())
    }

    fn keys(&self) -> usize {
        self.layout.keys
    }

    fn neutral(&self) -> Result<Option<RecordBatch>> {
        let rows = feed_aside(&self.layout.neutral, Vec::new())?;
        Ok(rows.into_iter().find(|rows| rows.num_rows() == 1))
    }

    fn fresh(&self) -> Option<Arc<dyn StateOperator>> {
        Some(Arc::new(Self::new(self.name.clone(), self.layout.clone(), None)))
    }

    fn shown(&self) -> Result<Vec<RecordBatch>> {
        // As people write them: the planner counts a constant.
        let plain = |f: &FieldRef| f.as_ref().clone().with_name(f.name().replace("count(Int64(1))", "count(*)"));
        let schema = self.layout.show.schema();
        let schema = Arc::new(Schema::new(schema.fields().iter().map(plain).collect::<Vec<_>>()));
        let rows = self.snapshot()?;
        if rows.is_empty() {
            return Ok(vec![RecordBatch::new_empty(schema)]);
        }
        let named = |rows: RecordBatch| {
            RecordBatch::try_new(Arc::clone(&schema), rows.columns().to_vec())
                .map_err(|e| Error::internal("rows of an aggregate").because(e))
        };
        feed_aside(&self.layout.show, rows)?.into_iter().map(named).collect()
    }
}
