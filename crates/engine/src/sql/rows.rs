//! Steps on the rows that a query gives: the first ones shown, those that have not
//! changed left out, other names of columns. Put around plans by [`super::lower`].

use crate::plan::{BatchRun, Kernel, NodeExec, NodeInputs, Rows};
use arrow_schema::SchemaRef;
use datafusion::{
    common::Result as DfResult,
    physical_plan::{ExecutionPlan, ExecutionPlanProperties},
};
use futures::StreamExt;
use std::sync::Arc;

/// Rows of a view without state that are shown of each partition of a batch: it
/// may have as many as the batch has records.
pub(super) const SHOWN: usize = 10_000;

/// The first rows of each partition; the rest is run all the same, so that all
/// records are read and counted.
#[derive(Debug)]
pub(super) struct Head(pub(super) SchemaRef);

impl Kernel for Head {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let mut left = SHOWN;
        let rows = inputs.open(0, partition)?.map(move |rows| {
            let rows = rows?;
            let rows = rows.slice(0, rows.num_rows().min(left));
            left -= rows.num_rows();
            Ok(rows)
        });
        Ok(crate::plan::rows_from(Arc::clone(&self.0), rows))
    }
}

/// Says when none of the results that its rows are made of has changed; then gives none, or the same again.
#[derive(Debug)]
pub(super) struct Changed {
    pub(super) name: String,
    pub(super) repeats: bool,
    pub(super) whole: Vec<String>,
    pub(super) schema: SchemaRef,
}

impl Kernel for Changed {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let (name, whole, repeats) = (self.name.clone(), self.whole.clone(), self.repeats);
        // A row can only come after its input has said whether it changed, and so can the end.
        let end = futures::stream::iter([Ok(arrow_array::RecordBatch::new_empty(self.schema()))]);
        let rows = inputs.open(0, partition)?.chain(end).map(move |rows| {
            let rows = rows?;
            if !whole.iter().all(|name| run.has_stayed(name)) {
                return Ok(rows);
            }
            run.stays(&name);
            Ok(if repeats { rows } else { rows.slice(0, 0) })
        });
        Ok(crate::plan::rows_from(self.schema(), rows))
    }
}

impl Changed {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

/// The same rows, whose columns have other names or metadata.
pub(super) fn labelled(plan: Arc<dyn ExecutionPlan>, schema: &SchemaRef) -> Arc<dyn ExecutionPlan> {
    let partitions = plan.output_partitioning().partition_count();
    NodeExec::plan("columns", Relabel(Arc::clone(schema)), vec![plan], Arc::clone(schema), partitions)
}

/// The same rows under a schema that differs in names or metadata.
#[derive(Debug)]
pub(super) struct Relabel(pub(super) SchemaRef);

impl Kernel for Relabel {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let schema = Arc::clone(&self.0);
        let rows = inputs.open(0, partition)?.map(move |rows| {
            let rows = rows?;
            let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
            Ok(arrow_array::RecordBatch::try_new_with_options(Arc::clone(&schema), rows.columns().to_vec(), &options)?)
        });
        Ok(crate::plan::rows_from(Arc::clone(&self.0), rows))
    }
}
