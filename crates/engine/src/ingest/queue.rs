//! Batches queued in memory: for tests and examples.
//!
//! Offsets count entries: each batch takes one entry. Replayable within the
//! process only, which `describe` says.

use crate::record::{Record, batch_of, schema_of};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use futures::{StreamExt, stream};
use tidemill_core::{
    Budget, Chunk, ChunkStream, Error, Offset, OffsetRange, PartitionId, Position, Result, Shape, Source,
};

/// A source of queued batches.
#[derive(Debug)]
pub struct QueueSource {
    schema: SchemaRef,
    entries: Vec<RecordBatch>,
}

impl QueueSource {
    /// Queues one entry a batch.
    ///
    /// # Errors
    /// When records can't be laid out in columns.
    pub fn of<T: Record>(batches: impl IntoIterator<Item = Vec<T>>) -> Result<Self> {
        Ok(Self { schema: schema_of::<T>(), entries: batches.into_iter().map(batch_of).collect::<Result<_>>()? })
    }
}

#[async_trait]
impl Source for QueueSource {
    fn describe(&self) -> String {
        format!("queue of {} batches in memory (lost with the process)", self.entries.len())
    }

    fn shape(&self) -> Shape {
        Shape::Columns(std::sync::Arc::clone(&self.schema))
    }

    async fn plan(&self, position: &Position, _budget: Budget) -> Result<Vec<OffsetRange>> {
        let partition = PartitionId::from(0);
        let start = position.get(&partition).copied().unwrap_or_default();
        Ok(if start.0 < self.entries.len() as u64 {
            vec![OffsetRange { partition, start, end: Offset(start.0 + 1) }]
        } else {
            vec![]
        })
    }

    fn read(&self, range: &OffsetRange) -> ChunkStream {
        let chunks: Vec<_> = (range.start.0..range.end.0)
            .map(|at| {
                let entry = usize::try_from(at).ok().and_then(|at| self.entries.get(at));
                let chunk =
                    |rows: &RecordBatch| Chunk::Columns { rows: rows.clone(), base: Offset(at), times: Vec::new() };
                entry.map(chunk).ok_or_else(|| {
                    Error::user(format!(
                        "the queue has no entry {at}: what is queued in memory does not survive a restart"
                    ))
                })
            })
            .collect();
        stream::iter(chunks).boxed()
    }

    async fn is_exhausted(&self, position: &Position) -> Result<bool> {
        let at = position.get(&PartitionId::from(0)).copied().unwrap_or_default();
        Ok(at.0 >= self.entries.len() as u64)
    }
}
