//! A node whose rows are computed once a batch, however many read them.
//!
//! Put by [`super::Lowering`] above stateful operators, and by `cache`.
//! Invariant: when one partition is read in a batch, the inputs of all run
//! exactly once and to their end, also when a reader stops early (a query's
//! `LIMIT`) or another part of the batch fails; the batch waits for them. So
//! state never misses records, and never moves on after it was restored. The
//! rows are kept until the next batch.

use super::{
    BatchRun, Kernel, Rows,
    node::{Inputs, rows_from},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::common::{DataFusionError, Result as DfResult, internal_datafusion_err};
use futures::{
    FutureExt, StreamExt, TryStreamExt,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

type Collected = Shared<BoxFuture<'static, Result<Arc<Vec<RecordBatch>>, Arc<DataFusionError>>>>;

/// Runs its input once a batch and partition.
#[derive(Debug)]
pub(crate) struct SharedKernel {
    schema: SchemaRef,
    cells: Mutex<Vec<(Weak<BatchRun>, Vec<Collected>)>>,
}

impl SharedKernel {
    pub(crate) fn new(schema: SchemaRef) -> Self {
        Self { schema, cells: Mutex::default() }
    }
}

/// Runs all partitions of the input, each as a task of its own.
fn start(inputs: &Inputs<'_>, run: &BatchRun) -> DfResult<Vec<Collected>> {
    // All are open before one runs: a half-opened exchange would never end.
    let parts = (0..inputs.partitions(0)).map(|p| inputs.open(0, p)).collect::<DfResult<Vec<_>>>()?;
    let collected: Vec<Collected> = parts
        .into_iter()
        .map(|rows| {
            let task = tokio::spawn(rows.try_collect::<Vec<_>>());
            async move {
                match task.await {
                    Ok(rows) => rows.map(Arc::new).map_err(Arc::new),
                    Err(e) => Err(Arc::new(internal_datafusion_err!("a shared step failed: {e}"))),
                }
            }
            .boxed()
            .shared()
        })
        .collect();
    for part in &collected {
        run.finish_first(part.clone().map(|done| done.map(drop).map_err(DataFusionError::Shared)).boxed());
    }
    Ok(collected)
}

impl Kernel for SharedKernel {
    fn run(&self, partition: usize, inputs: &Inputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let mut cells = self.cells.lock();
        cells.retain(|(owner, _)| owner.strong_count() > 0);
        let at = match cells.iter().position(|(owner, _)| std::ptr::eq(owner.as_ptr(), Arc::as_ptr(&run))) {
            Some(at) => at,
            None => {
                cells.push((Arc::downgrade(&run), start(inputs, &run)?));
                cells.len() - 1
            }
        };
        let collected = cells[at].1[partition].clone();
        let rows = async move {
            match collected.await {
                Ok(rows) => futures::stream::iter(rows.iter().cloned().map(Ok).collect::<Vec<_>>()),
                Err(error) => futures::stream::iter(vec![Err(DataFusionError::Shared(error))]),
            }
        }
        .into_stream()
        .flatten();
        Ok(rows_from(Arc::clone(&self.schema), rows))
    }
}
