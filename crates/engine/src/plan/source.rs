//! The leaf of every plan: the current batch of an input stream.
//!
//! Reads the ranges that the batch names, decodes only the columns that the
//! plan asks for, and sets refused rows aside with their bytes, offset and
//! reason. Invariant: rows decoded plus rows refused equal rows read.

use super::{
    BatchRun, Kernel, NodeExec, Rows,
    node::{Inputs, external, rows_from},
};
use crate::ingest::{DeadShare, REPLAYED, Replays};
use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions, StringArray, TimestampMicrosecondArray, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::{common::Result as DfResult, physical_plan::ExecutionPlan};
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};
use tidemill_core::{
    Block, Chunk, DeadLetter, Decoder, Error, Format, Offset, OffsetRange, Refusal, Result, Shape, Source, Timestamp,
};

/// Columns that every stream has beside its own.
pub(crate) const META: [&str; 3] = ["_offset", "_partition", "_timestamp"];

/// An input stream of a program.
#[derive(Debug)]
pub(crate) struct StreamInput {
    pub(crate) name: String,
    pub(crate) source: Arc<dyn Source>,
    format: Option<Arc<dyn Format>>,
    /// The stream's own columns, then [`META`].
    pub(crate) schema: SchemaRef,
    own: usize,
    /// Columns that any leaf reads. All leaves decode all of them, so that a record
    /// is refused by every output or by none, and one that is run again is new to each.
    read: Mutex<BTreeSet<usize>>,
    /// The share of records that may be refused, where the stream says so itself.
    pub(crate) dead_share: OnceLock<DeadShare>,
    /// Dead letters that are run again; set when the program starts.
    replays: OnceLock<Arc<Replays>>,
}

impl StreamInput {
    /// A stream over a source; `format` decodes a source of raw records.
    ///
    /// # Errors
    /// When a source of raw records has no format.
    pub(crate) fn new(
        name: impl Into<String>,
        source: Arc<dyn Source>,
        format: Option<Arc<dyn Format>>,
    ) -> Result<Self> {
        let name = name.into();
        let own = match (source.shape(), &format) {
            (Shape::Columns(schema), _) => schema,
            (Shape::Raw, Some(format)) => format.schema(),
            (Shape::Raw, None) => {
                return Err(Error::user(format!("stream `{name}` has raw records and needs a format")));
            }
        };
        let mut fields: Vec<_> = own.fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new(META[0], DataType::UInt64, false)));
        fields.push(Arc::new(Field::new(META[1], DataType::Utf8, false)));
        fields.push(Arc::new(Field::new(
            META[2],
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            true,
        )));
        let count = own.fields().len();
        let schema = Arc::new(Schema::new(fields));
        let read = Mutex::default();
        let (dead_share, replays) = (OnceLock::new(), OnceLock::new());
        Ok(Self { name, source, format, schema, own: count, read, dead_share, replays })
    }

    /// What a leaf that reads the columns `wanted` decodes: those, then those of other leaves.
    fn decoded(&self, wanted: &[usize]) -> Vec<usize> {
        let read = self.read.lock();
        wanted.iter().copied().chain(read.iter().copied().filter(|column| !wanted.contains(column))).collect()
    }

    /// Where its dead letters come from that are run again. Without a format nothing is refused that could be.
    pub(crate) fn replay_from(&self, replays: &Arc<Replays>) {
        if self.format.is_some() {
            // Set once, by the pipeline.
            let _set = self.replays.set(Arc::clone(replays));
        }
    }

    /// Dead letters to be run again that it has not read yet; it has read those up to `at`.
    pub(crate) fn replays(&self, at: Option<Offset>) -> Option<OffsetRange> {
        self.replays.get().and_then(|replays| replays.next(at))
    }

    /// The chunks of a range, each with the range that it is of: letters that are run again keep their own.
    fn read(&self, range: OffsetRange, columns: &[usize]) -> BoxStream<'static, Result<(OffsetRange, Chunk)>> {
        if &*range.partition.0 == REPLAYED {
            return match self.replays.get() {
                Some(replays) => replays.read(&self.name, &range),
                None => {
                    stream::once(async { Err(Error::internal("dead letters of a stream without a format")) }).boxed()
                }
            };
        }
        let chunks = match self.source.shape() {
            Shape::Columns(_) => self.source.read_columns(&range, columns),
            Shape::Raw => self.source.read(&range),
        };
        chunks.map_ok(move |chunk| (range.clone(), chunk)).boxed()
    }

    /// Places of the stream's own columns.
    pub(crate) fn own_columns(&self) -> Vec<usize> {
        (0..self.own).collect()
    }
}

/// Makes leaves.
#[derive(Debug)]
pub(crate) struct SourceExec {
    input: Arc<StreamInput>,
    projection: Vec<usize>,
    schema: SchemaRef,
    partitions: usize,
}

impl SourceExec {
    /// The stream that it reads.
    pub(crate) fn stream(&self) -> &str {
        &self.input.name
    }

    /// The leaf that reads the columns at `projection` of the stream's schema.
    pub(crate) fn plan(
        input: Arc<StreamInput>,
        projection: Vec<usize>,
        partitions: usize,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = Arc::new(
            input.schema.project(&projection).map_err(|e| Error::internal("projection of a stream").because(e))?,
        );
        let name = format!(
            "source {}: {:?}",
            input.name,
            schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>()
        );
        input.read.lock().extend(projection.iter().copied().filter(|column| *column < input.own));
        let kernel = Self { input, projection, schema: Arc::clone(&schema), partitions };
        Ok(NodeExec::plan(name, kernel, vec![], schema, partitions))
    }
}

impl Kernel for SourceExec {
    fn run(&self, partition: usize, _inputs: &Inputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        // Ranges are dealt out by place: the same batch is always cut the same way.
        let ranges: Vec<OffsetRange> = run
            .batch
            .ranges
            .get(&self.input.name)
            .into_iter()
            .flatten()
            .filter(|range| !range.is_empty())
            .enumerate()
            .filter(|(i, _)| i % self.partitions == partition)
            .map(|(_, range)| range.clone())
            .collect();
        if ranges.is_empty() {
            return Ok(rows_from(Arc::clone(&self.schema), stream::empty()));
        }
        let wanted: Vec<usize> = self.projection.iter().copied().filter(|c| *c < self.input.own).collect();
        let columns = wanted.clone();
        let mut reader = Reader {
            decoder: self.input.format.as_ref().map(|f| f.decoder(&self.input.decoded(&wanted))),
            input: Arc::clone(&self.input),
            projection: self.projection.clone(),
            wanted,
            schema: Arc::clone(&self.schema),
            run,
            refused: Vec::new(),
            part: partition,
            total: 0,
        };
        let input = Arc::clone(&self.input);
        let rows = stream::iter(ranges)
            .flat_map(move |range| input.read(range, &columns))
            .map(move |item| item.and_then(|(range, chunk)| reader.rows(&range, &chunk)).map_err(external));
        Ok(rows_from(Arc::clone(&self.schema), rows))
    }
}

struct Reader {
    input: Arc<StreamInput>,
    decoder: Option<Box<dyn Decoder>>,
    projection: Vec<usize>,
    /// The projection's part that a decoder gives.
    wanted: Vec<usize>,
    schema: SchemaRef,
    run: Arc<BatchRun>,
    refused: Vec<Refusal>,
    /// Which part of the batch it reads, and how many records so far.
    part: usize,
    total: u64,
}

impl Reader {
    fn count(&mut self, records: usize) {
        self.total += records as u64;
        self.run.count_in(&self.input.name, self.part, self.total);
    }

    fn rows(&mut self, range: &OffsetRange, chunk: &Chunk) -> Result<RecordBatch> {
        match chunk {
            Chunk::Columns { rows, base, times } => {
                self.count(rows.num_rows());
                let count = rows.num_rows();
                let meta = |column| {
                    let time = || times_of(times, 0..count);
                    self.meta(column, range, count, |row| base.0 + row as u64, time)
                };
                let mut own = rows.columns().iter();
                let columns = self
                    .projection
                    .iter()
                    .map(|c| if *c < self.input.own { next_column(&mut own) } else { meta(*c) })
                    .collect::<Result<Vec<_>>>()?;
                self.batch(columns, rows.num_rows())
            }
            Chunk::Raw(block) => self.decode(range, block),
            Chunk::Refused { offset, reason, raw } => {
                self.count(1);
                self.run.refuse(DeadLetter {
                    stream: self.input.name.clone(),
                    partition: range.partition.clone(),
                    offset: *offset,
                    batch: Some(self.run.batch.id),
                    reason: reason.clone(),
                    raw: raw.clone(),
                });
                Ok(RecordBatch::new_empty(Arc::clone(&self.schema)))
            }
        }
    }

    fn decode(&mut self, range: &OffsetRange, block: &Block) -> Result<RecordBatch> {
        self.count(block.len());
        let decoder = self.decoder.as_mut().ok_or_else(|| Error::internal("raw records without a decoder"))?;
        self.refused.clear();
        let rows = decoder.decode(block, &mut self.refused)?;
        for refusal in &self.refused {
            self.run.refuse(DeadLetter {
                stream: self.input.name.clone(),
                partition: range.partition.clone(),
                offset: block.offset(refusal.row),
                batch: Some(self.run.batch.id),
                reason: refusal.reason.clone(),
                raw: block.record(refusal.row).to_vec(),
            });
        }
        if self.wanted.len() == self.projection.len() {
            return self.batch(rows.columns()[..self.wanted.len()].to_vec(), rows.num_rows());
        }
        // Rows of the block that were kept, by row of the result.
        let mut refused = self.refused.iter().map(|r| r.row).peekable();
        let kept: Vec<usize> = (0..block.len()).filter(|row| refused.next_if_eq(row).is_none()).collect();
        let mut decoded = rows.columns().iter();
        let columns = self
            .projection
            .iter()
            .map(|c| {
                if *c < self.input.own {
                    next_column(&mut decoded)
                } else {
                    let time = || times_of(&block.times, kept.iter().copied());
                    self.meta(*c, range, kept.len(), |row| block.offset(kept[row]).0, time)
                }
            })
            .collect::<Result<Vec<_>>>()?;
        self.batch(columns, kept.len())
    }

    fn meta(
        &self,
        column: usize,
        range: &OffsetRange,
        rows: usize,
        offset: impl Fn(usize) -> u64,
        times: impl FnOnce() -> Vec<Option<i64>>,
    ) -> Result<ArrayRef> {
        Ok(match column - self.input.own {
            0 => Arc::new(UInt64Array::from_iter_values((0..rows).map(offset))),
            1 => Arc::new(StringArray::from_iter_values((0..rows).map(|_| &*range.partition.0))),
            2 => Arc::new(TimestampMicrosecondArray::from(times()).with_timezone("UTC")),
            other => return Err(Error::internal(format!("no meta column {other}"))),
        })
    }

    fn batch(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options).map_err(|e| {
            Error::internal(format!("rows of stream `{}` do not fit its columns", self.input.name)).because(e)
        })
    }
}

/// The next of the columns that a source or decoder was asked for.
fn next_column<'a>(columns: &mut impl Iterator<Item = &'a ArrayRef>) -> Result<ArrayRef> {
    columns.next().cloned().ok_or_else(|| Error::internal("a source or decoder gave too few columns"))
}

/// Arrival times of the kept rows; null where the source has none.
fn times_of(times: &[(u32, Timestamp)], kept: impl Iterator<Item = usize>) -> Vec<Option<i64>> {
    let mut runs = times.iter();
    let mut end = 0_usize;
    let mut at = None;
    kept.map(|row| {
        while row >= end {
            match runs.next() {
                Some((rows, time)) => {
                    end += *rows as usize;
                    at = Some(time.0);
                }
                None => return None,
            }
        }
        at
    })
    .collect()
}
