//! The leaf of every plan: the current batch of an input stream.
//!
//! Reads the ranges that the batch names, decodes only the columns that the
//! plan asks for, and sets refused rows aside with their bytes, offset and
//! reason. Invariant: rows decoded plus rows refused equal rows read.

use super::{
    BatchRun, Kernel, NodeExec, Rows,
    node::{Inputs, external, rows_from},
};
use crate::ingest::{Again, DeadShare, REPLAYED, Replays};
use arrow_array::{
    Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, StringArray, TimestampMicrosecondArray,
    UInt64Array, cast::AsArray, types::TimestampMicrosecondType,
};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::{common::Result as DfResult, physical_plan::ExecutionPlan};
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};
use tidemill_core::{
    Block, Chunk, DeadLetter, Decoder, Error, Format, Offset, OffsetRange, PartitionId, Refusal, Result, Shape, Source,
    Timestamp, WatermarkSpec,
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
    event_time: OnceLock<TimeColumn>,
    /// The share of records that may be refused, where the stream says so itself.
    pub(crate) dead_share: OnceLock<DeadShare>,
    /// Dead letters that are run again; set when the program starts.
    replays: OnceLock<Arc<Replays>>,
}

/// Which column is a stream's event time, and how its watermark follows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimeColumn {
    /// Place in the stream's schema.
    pub(crate) column: usize,
    pub(crate) spec: WatermarkSpec,
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
        Ok(Self {
            name,
            source,
            format,
            schema: Arc::new(Schema::new(fields)),
            own: count,
            event_time: OnceLock::new(),
            read: Mutex::default(),
            dead_share: OnceLock::new(),
            replays: OnceLock::new(),
        })
    }

    /// What a leaf that reads the columns `wanted` decodes: those, then those of other leaves.
    fn decoded(&self, wanted: &[usize]) -> Vec<usize> {
        let read = self.read.lock();
        wanted.iter().copied().chain(read.iter().copied().filter(|column| !wanted.contains(column))).collect()
    }

    /// Declares the stream's event time; the first declaration counts.
    pub(crate) fn set_event_time(&self, time: TimeColumn) {
        let _declared_once = self.event_time.set(time);
    }

    /// The stream's event time, when it was declared.
    pub(crate) fn event_time(&self) -> Option<TimeColumn> {
        self.event_time.get().copied()
    }

    /// The partition under which a range's event time counts.
    fn time_partition(&self, range: &OffsetRange) -> PartitionId {
        if self.source.partitions_are_parallel() { range.partition.clone() } else { PartitionId::new("") }
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
    fn read(
        &self,
        range: OffsetRange,
        columns: &[usize],
        again: Option<&Again>,
    ) -> BoxStream<'static, Result<(OffsetRange, Chunk)>> {
        if &*range.partition.0 == REPLAYED {
            return match self.replays.get() {
                Some(replays) => replays.read(&self.name, &range, again),
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
    /// Whether rows name their partition ([`partition_of_rows`]).
    tags: bool,
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
        Ok(Self { input, projection, schema, partitions, tags: false }.node())
    }

    /// Of a plan that is such a leaf the same one, whose rows name their partition, and its
    /// stream; only for readers that pass no rows on.
    pub(crate) fn tagged_plan(plan: &Arc<dyn ExecutionPlan>) -> Option<(Arc<dyn ExecutionPlan>, String)> {
        let kernel: &dyn std::any::Any = plan.downcast_ref::<NodeExec>()?.kernel();
        let leaf = kernel.downcast_ref::<Self>()?;
        let (input, projection, schema) = (Arc::clone(&leaf.input), leaf.projection.clone(), Arc::clone(&leaf.schema));
        let tagged = Self { input, projection, schema, partitions: leaf.partitions, tags: true };
        Some((tagged.node(), leaf.input.name.clone()))
    }

    fn node(self) -> Arc<dyn ExecutionPlan> {
        let name = format!(
            "source {}: {:?}",
            self.input.name,
            self.schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>()
        );
        self.input.read.lock().extend(self.projection.iter().copied().filter(|column| *column < self.input.own));
        let (schema, partitions) = (Arc::clone(&self.schema), self.partitions);
        NodeExec::plan(name, self, vec![], schema, partitions)
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
            time: self.input.event_time().and_then(|time| {
                let place = self.projection.iter().position(|column| *column == time.column)?;
                Some((place, time.spec))
            }),
            part: partition,
            total: (0, 0),
            reading: None,
        };
        let (input, tags, again) = (Arc::clone(&self.input), self.tags, reader.run.again.clone());
        let run = Arc::clone(&reader.run);
        let chunks = stream::iter(ranges).flat_map(move |range| {
            let begun = run.work.now();
            input.read(range, &columns, again.as_ref()).map(move |item| (begun, item))
        });
        let rows = chunks.map(move |(begun, item)| {
            let rows = item.and_then(|(range, chunk)| {
                let before = reader.total.0;
                let rows = reader.rows(&range, &chunk)?;
                reader.tell(&range, begun, before);
                reader.observe(&range, &rows)?;
                if tags { tag(&reader.input.time_partition(&range), &rows) } else { Ok(rows) }
            });
            rows.map_err(external)
        });
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
    /// Place of the event time in the projection.
    time: Option<(usize, WatermarkSpec)>,
    /// Which part of the batch it reads, and how many records and bytes so far.
    part: usize,
    total: (u64, u64),
    /// The range that it is in, and the records before it.
    reading: Option<(OffsetRange, u64)>,
}

impl Reader {
    /// Tells how far it is in a range that it reads since `begun`; there were so many records `before` this chunk.
    fn tell(&mut self, range: &OffsetRange, begun: Option<Timestamp>, before: u64) {
        if self.reading.as_ref().is_none_or(|(reading, _)| reading != range) {
            self.reading = Some((range.clone(), before));
        }
        if let Some((_, before)) = &self.reading {
            self.run.work.read(&self.input.name, range, self.total.0 - before, begun);
        }
    }

    fn count(&mut self, records: usize, bytes: usize) {
        self.total.0 += records as u64;
        self.total.1 += bytes as u64;
        self.run.count_in(&self.input.name, self.part, self.total);
    }

    /// Shows the rows' event times to the stream's watermark.
    fn observe(&self, range: &OffsetRange, rows: &RecordBatch) -> Result<()> {
        let Some((place, spec)) = self.time else { return Ok(()) };
        if let Some(largest) = largest_time(rows.column(place), spec.latest(self.run.batch.time))? {
            self.run.observe(&self.input.name, &self.input.time_partition(range), largest);
        }
        Ok(())
    }

    fn rows(&mut self, range: &OffsetRange, chunk: &Chunk) -> Result<RecordBatch> {
        match chunk {
            Chunk::Columns { rows, base, times } => {
                self.count(rows.num_rows(), rows.get_array_memory_size());
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
            Chunk::Raw(block) => {
                let rows = self.decode(range, block)?;
                self.without_letters(range, block, rows)
            }
            Chunk::Refused { offset, .. } if self.is_known(range, *offset) => {
                self.count(1, 0);
                Ok(RecordBatch::new_empty(Arc::clone(&self.schema)))
            }
            Chunk::Refused { offset, reason, raw } => {
                self.count(1, raw.len());
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
        // Records are in order: with the line ends between them.
        let ends = block.spans.first().zip(block.spans.last());
        self.count(block.len(), ends.map_or(0, |(first, last)| last.end.saturating_sub(first.start) as usize));
        let decoder = self.decoder.as_mut().ok_or_else(|| Error::internal("raw records without a decoder"))?;
        self.refused.clear();
        let rows = decoder.decode(block, &mut self.refused)?;
        for refusal in &self.refused {
            if self.is_known(range, block.offset(refusal.row)) {
                continue;
            }
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

    /// Whether a record that is refused again has its letter.
    fn is_known(&self, range: &OffsetRange, offset: Offset) -> bool {
        self.run.again.as_ref().is_some_and(|again| again.is_known(&self.input.name, &range.partition, offset))
    }

    /// Of what is read again, the rows that are not left to their letters.
    fn without_letters(&self, range: &OffsetRange, block: &Block, rows: RecordBatch) -> Result<RecordBatch> {
        let Some(again) = &self.run.again else { return Ok(rows) };
        let mut refused = self.refused.iter().map(|r| r.row).peekable();
        let taken = (0..block.len()).filter(|row| refused.next_if_eq(row).is_none());
        let stays = |row| !again.leaves_out(&self.input.name, &range.partition, block.offset(row));
        let mask = BooleanArray::from(taken.map(stays).collect::<Vec<bool>>());
        let count = mask.true_count();
        if count == mask.len() {
            return Ok(rows);
        }
        let columns = rows.columns().iter().map(|column| arrow_select::filter::filter(column, &mask));
        let columns =
            columns.collect::<Result<_, _>>().map_err(|e| Error::internal("rows without letters").because(e))?;
        self.batch(columns, count)
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
            1 => Arc::new(repeated(&range.partition.0, rows)),
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

/// Times further from 1970 than this (some 146,000 years) are no times.
pub(crate) const FAR: i64 = i64::MAX / 2;

/// The largest time of a column that is a time and not after `latest`.
pub(crate) fn largest_time(column: &ArrayRef, latest: Timestamp) -> Result<Option<Timestamp>> {
    let DataType::Timestamp(_, zone) = column.data_type() else { return Ok(None) };
    let micros = DataType::Timestamp(TimeUnit::Microsecond, zone.clone());
    let column = match *column.data_type() == micros {
        true => Arc::clone(column),
        false => arrow_cast::cast(column, &micros).map_err(|e| Error::user("event times").because(e))?,
    };
    let times = column.as_primitive::<TimestampMicrosecondType>();
    let latest = latest.0.min(FAR);
    let fits = |time: i64| (-FAR..=latest).contains(&time);
    let largest = match times.nulls() {
        None => times.values().iter().copied().filter(|t| fits(*t)).max(),
        Some(_) => times.iter().flatten().filter(|t| fits(*t)).max(),
    };
    Ok(largest.map(Timestamp))
}

/// Key of the metadata by which the rows of a tagged leaf name their partition.
const TAG: &str = "tidemill.partition";

/// The rows under a schema that names their partition.
fn tag(partition: &PartitionId, rows: &RecordBatch) -> Result<RecordBatch> {
    let mut metadata = rows.schema().metadata().clone();
    metadata.insert(TAG.to_string(), partition.to_string());
    let schema = Arc::new(rows.schema().as_ref().clone().with_metadata(metadata));
    rows.clone().with_schema(schema).map_err(|e| Error::internal("rows of a partition").because(e))
}

/// The partition that tagged rows come from; the nameless one otherwise.
pub(crate) fn partition_of_rows(rows: &RecordBatch) -> PartitionId {
    PartitionId::new(rows.schema_ref().metadata().get(TAG).map_or("", String::as_str))
}

/// The next of the columns that a source or decoder was asked for.
fn next_column<'a>(columns: &mut impl Iterator<Item = &'a ArrayRef>) -> Result<ArrayRef> {
    columns.next().cloned().ok_or_else(|| Error::internal("a source or decoder gave too few columns"))
}

/// A text so many times.
fn repeated(text: &str, rows: usize) -> StringArray {
    let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(text.len(), rows));
    StringArray::new(offsets, text.repeat(rows).into_bytes().into(), None)
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
