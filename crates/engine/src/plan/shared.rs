//! A node whose rows are computed once a batch, however many read them.
//!
//! Put by [`super::Lowering`] above stateful operators that feed several
//! outputs, and by `cache`. Invariant: the input of a partition is run exactly
//! once a batch; the rows are dropped with the last reader of the batch.

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
    cells: Mutex<Vec<(Weak<BatchRun>, Vec<Option<Collected>>)>>,
}

impl SharedKernel {
    pub(crate) fn new(schema: SchemaRef) -> Self {
        Self { schema, cells: Mutex::default() }
    }
}

impl Kernel for SharedKernel {
    fn run(&self, partition: usize, inputs: &Inputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let mut cells = self.cells.lock();
        cells.retain(|(owner, _)| owner.strong_count() > 0);
        let at = match cells.iter().position(|(owner, _)| std::ptr::eq(owner.as_ptr(), Arc::as_ptr(&run))) {
            Some(at) => at,
            None => {
                cells.push((Arc::downgrade(&run), vec![None; inputs.partitions(0)]));
                cells.len() - 1
            }
        };
        let cell = &mut cells[at].1[partition];
        let collected = match cell {
            Some(collected) => collected.clone(),
            None => {
                let rows = inputs.open(0, partition)?;
                // A task of its own, so that a reader that stops early does not stop the others.
                let task = tokio::spawn(rows.try_collect::<Vec<_>>());
                let collected: Collected = async move {
                    match task.await {
                        Ok(rows) => rows.map(Arc::new).map_err(Arc::new),
                        Err(e) => Err(Arc::new(internal_datafusion_err!("a shared step failed: {e}"))),
                    }
                }
                .boxed()
                .shared();
                *cell = Some(collected.clone());
                collected
            }
        };
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
