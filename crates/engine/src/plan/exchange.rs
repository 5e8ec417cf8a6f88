//! Rows to the partition that owns their key.
//!
//! A keyed operator has two halves. The first runs beside the input, hashes
//! each key once and emits batches that each belong to one partition, named by
//! a first column [`PARTITION`]. The exchange routes whole batches by it, drops
//! the column, and never looks at rows:
//!
//! ```text
//! input 0 ─ scatter ─┬─► partition 0 ─ merge
//! input 1 ─ scatter ─┴─► partition 1 ─ merge
//! ```
//!
//! Invariant: channels are bounded; since all output partitions of a plan are
//! polled together, a full one only waits for its reader. A reader that stops
//! early lets the writers drop its batches.

use super::{
    BatchRun, NodeExec, Rows,
    node::{Inputs, Kernel, rows_from},
};
use arrow_array::{Array, RecordBatch, UInt32Array, cast::AsArray, types::UInt32Type};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::{
    common::{DataFusionError, Result as DfResult, internal_datafusion_err},
    physical_plan::ExecutionPlan,
};
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use std::{
    any::Any,
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Weak},
};
use tidemill_core::BatchId;
use tokio::{sync::mpsc, task::JoinSet};

/// Name of the first column of scattered batches.
pub(crate) const PARTITION: &str = "_partition";

/// Batches in flight to one partition; when full, the writer waits for the reader.
const DEPTH: usize = 16;

/// Columns of scattered rows: the partition, then the rows' own.
pub(crate) fn scattered(schema: &SchemaRef) -> SchemaRef {
    let mut fields = vec![Arc::new(Field::new(PARTITION, DataType::UInt32, false))];
    fields.extend(schema.fields().iter().cloned());
    Arc::new(Schema::new(fields))
}

/// Marks all rows of a batch as belonging to `partition`.
pub(crate) fn mark(rows: &RecordBatch, partition: usize, scattered: &SchemaRef) -> DfResult<RecordBatch> {
    let number = u32::try_from(partition).map_err(|_| internal_datafusion_err!("partition {partition}"))?;
    let mut columns: Vec<Arc<dyn Array>> = vec![Arc::new(UInt32Array::from_value(number, rows.num_rows()))];
    columns.extend(rows.columns().iter().cloned());
    Ok(RecordBatch::try_new(Arc::clone(scattered), columns)?)
}

/// Routes scattered batches of `input` to `partitions` partitions.
pub(crate) fn exchange(input: Arc<dyn ExecutionPlan>, partitions: usize) -> Arc<dyn ExecutionPlan> {
    let schema = Arc::new(Schema::new(input.schema().fields().iter().skip(1).cloned().collect::<Vec<_>>()));
    let kernel = Exchange { schema: Arc::clone(&schema), partitions, open: Mutex::default() };
    NodeExec::plan("exchange", kernel, vec![input], schema, partitions)
}

type Receiver = mpsc::Receiver<DfResult<RecordBatch>>;

/// The readers' ends of one batch, taken one by one, and the tasks that write.
#[derive(Debug)]
struct Flow {
    readers: Vec<Option<Receiver>>,
    writers: Arc<JoinSet<()>>,
}

#[derive(Debug)]
struct Exchange {
    schema: SchemaRef,
    partitions: usize,
    /// Flows by batch: a run's address keeps two runs of one batch apart.
    open: Mutex<HashMap<BatchId, (Weak<BatchRun>, Flow)>>,
}

impl Exchange {
    fn start(&self, inputs: &Inputs<'_>) -> DfResult<Flow> {
        let (senders, readers): (Vec<_>, Vec<_>) = (0..self.partitions).map(|_| mpsc::channel(DEPTH)).unzip();
        let mut writers = JoinSet::new();
        for partition in 0..inputs.partitions(0) {
            let rows = inputs.open(0, partition)?;
            writers.spawn(write(rows, senders.clone(), Arc::clone(&self.schema)));
        }
        Ok(Flow { readers: readers.into_iter().map(Some).collect(), writers: Arc::new(writers) })
    }
}

/// Sends each batch of `rows` to its partition. What a reader then sees is the end of its channel and nothing else of
/// the writers: a reader that woke another, and then began its work, would keep that one from being run elsewhere.
async fn write(rows: Rows, senders: Vec<mpsc::Sender<DfResult<RecordBatch>>>, schema: SchemaRef) {
    let routing = AssertUnwindSafe(route(rows, &senders, schema)).catch_unwind();
    // A panic must not look like the end of the rows.
    let routed =
        routing.await.unwrap_or_else(|panic| Err(internal_datafusion_err!("a step panicked: {}", told(&*panic))));
    if let Err(error) = routed {
        let error = Arc::new(error);
        for sender in &senders {
            drop(sender.send(Err(DataFusionError::Shared(Arc::clone(&error)))).await);
        }
    }
}

async fn route(mut rows: Rows, senders: &[mpsc::Sender<DfResult<RecordBatch>>], schema: SchemaRef) -> DfResult<()> {
    while let Some(batch) = rows.next().await {
        let batch = batch?;
        if batch.num_rows() == 0 {
            continue;
        }
        let partition = batch.column(0).as_primitive::<UInt32Type>().value(0) as usize;
        let own = RecordBatch::try_new(Arc::clone(&schema), batch.columns()[1..].to_vec())?;
        // A closed channel: the reader stopped early, which is its right.
        drop(senders[partition].send(Ok(own)).await);
    }
    Ok(())
}

/// What a panic said.
fn told(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}

impl Kernel for Exchange {
    fn run(&self, partition: usize, inputs: &Inputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let mut open = self.open.lock();
        let id = run.batch.id;
        // A flow of an earlier, abandoned run of the same batch is replaced.
        if open.get(&id).is_none_or(|(owner, _)| !std::ptr::eq(owner.as_ptr(), Arc::as_ptr(&run))) {
            open.insert(id, (Arc::downgrade(&run), self.start(inputs)?));
        }
        let (_, flow) = open.get_mut(&id).ok_or_else(|| internal_datafusion_err!("no flow"))?;
        let reader = flow.readers[partition].take().ok_or_else(|| {
            internal_datafusion_err!("partition {partition} of an exchange was read twice in batch {id}")
        })?;
        let writers = Arc::clone(&flow.writers);
        if flow.readers.iter().all(Option::is_none) {
            open.remove(&id);
        }
        // Writers live as long as one reader does; dropping the set aborts them.
        let rows = futures::stream::unfold((reader, writers), |(mut reader, writers)| async move {
            reader.recv().await.map(|batch| (batch, (reader, writers)))
        });
        Ok(rows_from(Arc::clone(&self.schema), rows))
    }
}
