//! Replayable input, read by offset.
//!
//! Invariant: reading the same range again gives the same records in the same
//! order, or an error; never fewer. A source keeps no position of its own: the
//! engine hands in where it stands, and the ledger remembers.

use crate::{Batch, Block, Error, Format, Offset, OffsetRange, PartitionId, Position, Result, Timestamp};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// What a source hands out.
#[derive(Debug, Clone)]
pub enum Shape {
    /// Raw records that a format must decode.
    Raw,
    /// Columns of this schema.
    Columns(SchemaRef),
}

/// A piece of a range; small enough to stay in the processor's cache.
#[derive(Debug, Clone)]
pub enum Chunk {
    /// Raw records.
    Raw(Block),
    /// Columns, with the offset of the first row; row *i* has `base + i`.
    Columns {
        /// The rows.
        rows: RecordBatch,
        /// Offset of row 0.
        base: Offset,
        /// Arrival times as (number of rows, time) runs; empty where the source has none.
        times: Vec<(u32, Timestamp)>,
    },
    /// A record that can't be handed out at all, such as a line over the
    /// bound: a dead letter, counted as read and refused.
    Refused {
        /// Where it begins.
        offset: Offset,
        /// Why.
        reason: String,
        /// Its beginning.
        raw: Vec<u8>,
    },
}

/// The pieces of a range in order.
pub type ChunkStream = BoxStream<'static, Result<Chunk>>;

/// How much the next batch may read, over all partitions of a stream.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Records at most. Sources that count bytes may estimate.
    pub records: u64,
    /// Bytes at most, where the source knows them.
    pub bytes: u64,
    /// Ranges that can be read at the same time; a source with fewer
    /// partitions may split one into ranges that touch.
    pub parallelism: usize,
}

/// Replayable input.
#[async_trait]
pub trait Source: Send + Sync + fmt::Debug {
    /// For people: `files /var/log/app/*.json`.
    fn describe(&self) -> String;

    /// Told the declared columns, if any, before it is asked for its shape: a source of columns that can give those
    /// takes them, and looks at its data when there are none. The default passes over them.
    ///
    /// # Errors
    /// When it can't give them, or none are declared and there is nothing yet to take them from.
    fn declare(&self, columns: Option<&SchemaRef>) -> Result<()> {
        let _ = columns;
        Ok(())
    }

    /// Raw records or columns.
    fn shape(&self) -> Shape;

    /// The format of its raw records, with the declared columns, if any; `make` makes the one that the options name.
    /// A source that has columns of its own beside a record's puts them in here.
    ///
    /// # Errors
    /// When `make` fails, or the columns don't go together.
    fn format(
        &self,
        columns: Option<SchemaRef>,
        make: &dyn Fn(Option<SchemaRef>) -> Result<Arc<dyn Format>>,
    ) -> Result<Arc<dyn Format>> {
        make(columns)
    }

    /// The ranges of the next batch: what has come since `position`, within
    /// `budget`. A partition that `position` does not name is read from where
    /// the source's options say (its beginning by default). Empty when nothing
    /// is new.
    ///
    /// # Errors
    /// When a part that `position` needs is gone, naming the exact gap.
    async fn plan(&self, position: &Position, budget: Budget) -> Result<Vec<OffsetRange>>;

    /// Whether its partitions go on side by side, as those of a topic do: each
    /// then has event time of its own, and the slowest holds the stream's
    /// watermark. A source that makes a partition of each file says no: its event
    /// time is that of all files together.
    fn partitions_are_parallel(&self) -> bool {
        true
    }

    /// Reads a range that `plan` gave, now or in an earlier life of the program.
    fn read(&self, range: &OffsetRange) -> ChunkStream;

    /// As `read`, for a source of columns: only those at `projection`, in that
    /// order. For sources that save work by it; by default the others are read
    /// and left out.
    fn read_columns(&self, range: &OffsetRange, projection: &[usize]) -> ChunkStream {
        let projection = projection.to_vec();
        let project = move |chunk| match chunk {
            Chunk::Columns { rows, base, times } => {
                let rows = rows
                    .project(&projection)
                    .map_err(|e| Error::internal("a source's rows lack a column of its schema").because(e))?;
                Ok(Chunk::Columns { rows, base, times })
            }
            other => Ok(other),
        };
        self.read(range).map(move |chunk| chunk.and_then(&project)).boxed()
    }

    /// Whether no record will ever come after `position`: lets `Drain` and
    /// bounded programs end.
    async fn is_exhausted(&self, position: &Position) -> Result<bool> {
        let _ = position;
        Ok(false)
    }

    /// Whether it has something new whenever it is asked. A stop reads what other
    /// sources have first; of this one it leaves the rest to the next start.
    fn is_endless(&self) -> bool {
        false
    }

    /// Records (or the source's own unit) between `position` and the newest; for the lag metric.
    async fn lag(&self, position: &Position) -> Result<u64> {
        let _ = position;
        Ok(0)
    }

    /// The same by partition, where that is known; empty where it is not.
    async fn partition_lags(&self, position: &Position) -> Result<BTreeMap<PartitionId, u64>> {
        let _ = position;
        Ok(BTreeMap::new())
    }

    /// Told after a batch was committed; a hint that nothing before its ranges
    /// will be read by this program again, unless it is rewound.
    fn committed(&self, batch: &Batch) {
        let _ = batch;
    }

    /// Completes when `plan` may have something new; the engine calls it with
    /// the `Asap` trigger. The default completes at once, and the engine then
    /// polls at its idle interval.
    async fn wait(&self, position: &Position) {
        let _ = position;
    }

    /// Whether `wait` really waits.
    fn can_wait(&self) -> bool {
        false
    }
}
