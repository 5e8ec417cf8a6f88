//! A topic of the embedded log as a source: of the receivers that fill it, and
//! of any stream that reads a topic where it lies.
//!
//! Offsets count records. A partition with more than a few thousand new
//! records is cut into ranges that touch, so that one receiver's records are
//! still decoded by all threads.

use super::is_raw;
use arrow_array::{Array, BinaryArray, cast::AsArray};
use async_trait::async_trait;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};
use tidemill_core::{
    Batch, Block, Budget, Chunk, ChunkStream, Error, Format, Notices, Offset, OffsetRange, OffsetStep, Options,
    PartitionId, Position, Result, Shape, Source, Span,
};
use tidemill_store::log::{LogRows, Topic};
use tokio::sync::{Notify, watch};

/// Fewer records than this are not worth a second thread.
const SPLIT: u64 = 4096;

/// Where a stream begins in a partition of which its program has no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// With the oldest record that is kept.
    Earliest,
    /// With the first that comes after the program began.
    Latest,
}

impl Start {
    /// From the option `start`; the earliest when it is not given.
    pub(crate) fn from_options(options: &Options) -> Result<Self> {
        match options.get("start") {
            None | Some("earliest") => Ok(Self::Earliest),
            Some("latest") => Ok(Self::Latest),
            Some(other) => Err(Error::user(format!(
                "{}: option `start` must be 'earliest' or 'latest', not `{other}`",
                options.owner()
            ))),
        }
    }
}

/// A topic as a source. Made when the stream is declared, filled when the log is open.
#[derive(Debug)]
pub(crate) struct TopicSource {
    name: String,
    shape: Shape,
    start: Start,
    /// Whether receivers of this program fill it for as long as it runs.
    received: bool,
    /// Where partitions without a position begin; fixed when the topic is opened.
    begin: OnceLock<Vec<Offset>>,
    topic: OnceLock<Arc<Topic>>,
    stream: OnceLock<String>,
    /// Where batches have been committed, by partition: what is behind it is no lag.
    consumed: Mutex<BTreeMap<u32, Offset>>,
    /// Whose notices take back earlier records.
    notices: OnceLock<Arc<dyn Notices>>,
    /// Rung when `consumed` moves: receivers that wait for the engine listen.
    pub(crate) moved: Notify,
    /// Receivers that fill the topic, and how many of them have come to the end of their input.
    receivers: OnceLock<usize>,
    ended: watch::Sender<usize>,
    /// Why a receiver ended before its input did.
    failed: OnceLock<String>,
    /// The end that `wait` has told of.
    told: AtomicUsize,
    /// Records and bytes appended by this process, for the size of a record.
    records: AtomicU64,
    bytes: AtomicU64,
}

impl TopicSource {
    /// The topic that receivers of the stream `name` fill.
    pub(crate) fn received(name: &str) -> Self {
        Self { received: true, ..Self::over(name, Shape::Raw, Start::Earliest) }
    }

    /// The topic `name`, which holds what `shape` says.
    pub(crate) fn over(name: &str, shape: Shape, start: Start) -> Self {
        Self {
            name: name.to_string(),
            shape,
            start,
            received: false,
            begin: OnceLock::new(),
            topic: OnceLock::new(),
            stream: OnceLock::new(),
            consumed: Mutex::default(),
            notices: OnceLock::new(),
            moved: Notify::new(),
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            receivers: OnceLock::new(),
            ended: watch::Sender::new(0),
            failed: OnceLock::new(),
            told: AtomicUsize::new(0),
        }
    }

    /// Says how its records are decoded: the topic keeps whose notices are in it, for those who show its history.
    pub(crate) fn decoded_by(&self, format: &dyn Format) {
        if let Some(notices) = format.notices() {
            // A stream has one format.
            let _set = self.notices.set(notices);
        }
    }

    /// Whether the topic holds what was declared.
    ///
    /// # Errors
    /// With the columns of both.
    pub(crate) fn fits(&self, stream: &str, topic: &Topic) -> Result<()> {
        let own = &topic.config().schema;
        let what = match &self.shape {
            Shape::Raw if is_raw(own) => return Ok(()),
            Shape::Raw => "has columns of its own and takes no `format`".to_string(),
            Shape::Columns(_) if is_raw(own) => "holds raw records: say their `format`".to_string(),
            Shape::Columns(declared) => {
                let same = declared.fields().len() == own.fields().len()
                    && declared.fields().iter().zip(own.fields()).all(|(declared, own)| {
                        declared.name() == own.name()
                            && declared.data_type() == own.data_type()
                            && (declared.is_nullable() || !own.is_nullable())
                    });
                if same {
                    return Ok(());
                }
                let columns: Vec<String> = own
                    .fields()
                    .iter()
                    .map(|f| {
                        format!("{} {}{}", f.name(), f.data_type(), if f.is_nullable() { "" } else { " NOT NULL" })
                    })
                    .collect();
                format!("has the columns ({}): declare those, or leave the columns out", columns.join(", "))
            }
        };
        Err(Error::user(format!("stream `{stream}`: topic `{}` {what}", topic.name())))
    }

    /// Reads `topic` from now on.
    ///
    /// # Errors
    /// When the topic can't keep whose notices are in it.
    pub(crate) fn open(&self, stream: &str, topic: Arc<Topic>, consumed: &Position, receivers: usize) -> Result<()> {
        if let Some(notices) = self.notices.get() {
            topic.set_notices(notices.name())?;
        }
        let begin = |p: u32| match self.start {
            Start::Earliest => topic.start(p),
            Start::Latest => topic.end(p),
        };
        let _begun = self.begin.set((0..topic.config().partitions).map(begin).collect());
        *self.consumed.lock() = consumed.iter().filter_map(|(p, at)| Some((p.0.parse().ok()?, *at))).collect();
        // Opened once by the pipeline; a second call would be a bug and changes nothing.
        let _opened = (self.topic.set(topic), self.stream.set(stream.to_string()), self.receivers.set(receivers));
        Ok(())
    }

    /// A receiver has appended the last of its input, or `failed` for good.
    pub(crate) fn end_one(&self, failed: Option<String>) {
        if let Some(failed) = failed {
            // The first one tells.
            let _told = self.failed.set(failed);
        }
        self.ended.send_modify(|ended| *ended += 1);
    }

    pub(crate) fn topic(&self) -> Result<&Arc<Topic>> {
        self.topic.get().ok_or_else(|| Error::internal("a topic was read before the log was open"))
    }

    /// Counts what a receiver appended.
    pub(crate) fn appended(&self, records: u64, bytes: u64) {
        self.records.fetch_add(records, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// Mean bytes of a record; a guess of 128 before the first.
    fn record_bytes(&self) -> u64 {
        if let (false, Some(topic)) = (self.received, self.topic.get()) {
            let records: u64 = (0..topic.config().partitions).map(|p| topic.end(p).0 - topic.start(p).0).sum();
            return topic.bytes().checked_div(records).map_or(128, |mean| mean.max(1));
        }
        self.bytes.load(Relaxed).checked_div(self.records.load(Relaxed)).map_or(128, |mean| mean.max(1))
    }

    /// Bytes of a partition that no committed batch has read, about.
    pub(crate) fn lag_bytes(&self, partition: u32) -> Result<u64> {
        let topic = self.topic()?;
        let consumed = self.consumed.lock().get(&partition).copied().unwrap_or_else(|| topic.start(partition));
        Ok(topic.end(partition).0.saturating_sub(consumed.0) * self.record_bytes())
    }

    fn at(&self, position: &Position, partition: u32) -> Result<Offset> {
        let topic = self.topic()?;
        Ok(match (position.get(&PartitionId::from(partition)), self.start) {
            (Some(at), _) => *at,
            (None, Start::Earliest) => topic.start(partition),
            (None, Start::Latest) => {
                let begin = self.begin.get().and_then(|begin| begin.get(partition as usize)).copied();
                begin.ok_or_else(|| Error::internal("a topic was read before it was opened"))?
            }
        })
    }
}

#[async_trait]
impl Source for TopicSource {
    fn describe(&self) -> String {
        let from = match self.start {
            _ if self.received => ", which receivers fill",
            Start::Earliest => "",
            Start::Latest => ", from its end",
        };
        format!("topic {}{from}", self.name)
    }

    fn shape(&self) -> Shape {
        self.shape.clone()
    }

    async fn plan(&self, position: &Position, budget: Budget) -> Result<Vec<OffsetRange>> {
        let topic = self.topic()?;
        let count = topic.config().partitions;
        let total = budget.records.min(budget.bytes / self.record_bytes()).max(1);
        let share = (total / u64::from(count.max(1))).max(1);
        let mut ranges = Vec::new();
        for partition in 0..count {
            let start = self.at(position, partition)?;
            let first = topic.start(partition);
            if start < first {
                return Err(Error::user(format!(
                    "topic `{}` partition {partition}: offsets [{start}, {first}) are needed and were removed by retention",
                    topic.name()
                )));
            }
            let end = Offset(topic.end(partition).0.min(start.0 + share));
            let id = PartitionId::from(partition);
            if start == end && self.start == Start::Latest && !position.contains_key(&id) {
                // An empty range, so that the ledger knows where the stream begins.
                ranges.push(OffsetRange { partition: id, start, end });
            } else {
                split(&id, start, end, budget.parallelism, &mut ranges);
            }
        }
        Ok(ranges)
    }

    fn read(&self, range: &OffsetRange) -> ChunkStream {
        let raw = matches!(self.shape, Shape::Raw);
        match self.topic().and_then(|topic| Ok((topic, number(&range.partition)?))) {
            Ok((topic, partition)) => stream::iter(topic.read(partition, range.start, range.end))
                .map(move |rows| rows.and_then(|r| if raw { chunk(&r) } else { Ok(columns(r)) }))
                .boxed(),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn lag(&self, position: &Position) -> Result<u64> {
        let topic = self.topic()?;
        (0..topic.config().partitions).map(|p| Ok(topic.end(p).0.saturating_sub(self.at(position, p)?.0))).sum()
    }

    async fn partition_lags(&self, position: &Position) -> Result<BTreeMap<PartitionId, u64>> {
        let topic = self.topic()?;
        let lag = |p| Ok((PartitionId::from(p), topic.end(p).0.saturating_sub(self.at(position, p)?.0)));
        (0..topic.config().partitions).map(lag).collect()
    }

    fn committed(&self, batch: &Batch) {
        let Some(stream) = self.stream.get() else { return };
        let mut consumed = self.consumed.lock();
        for range in batch.ranges.get(stream).into_iter().flatten() {
            if let Ok(partition) = number(&range.partition) {
                let at = consumed.entry(partition).or_default();
                *at = (*at).max(range.end);
            }
        }
        drop(consumed);
        self.moved.notify_waiters();
    }

    async fn is_exhausted(&self, position: &Position) -> Result<bool> {
        if let Some(failed) = self.failed.get() {
            // An input that broke off has not ended: nobody may take it for whole.
            let stream = self.stream.get().map_or("", String::as_str);
            return Err(Error::external(format!("stream `{stream}` can't be read to its end: {failed}")).fatal());
        }
        // Before the ends are looked at: a receiver ends after its last append.
        if self.received && self.receivers.get().is_none_or(|count| *count == 0 || *self.ended.borrow() < *count) {
            return Ok(false);
        }
        let topic = self.topic()?;
        for partition in 0..topic.config().partitions {
            if self.at(position, partition)? < topic.end(partition) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn wait(&self, position: &Position) {
        let Some(topic) = self.topic.get() else { return std::future::pending().await };
        let (mut appended, mut ended) = (topic.wait_handle(), self.ended.subscribe());
        loop {
            appended.borrow_and_update();
            // Told once: another stream may go on for long.
            let count = *ended.borrow_and_update();
            if self.told.swap(count, Relaxed) != count {
                return;
            }
            let news = (0..topic.config().partitions).any(|p| self.at(position, p).is_ok_and(|at| topic.end(p) > at));
            if news {
                return;
            }
            tokio::select! {
                // A closed log appends no more.
                appended = appended.changed() => if appended.is_err() { return },
                // The sender is our own.
                _ = ended.changed() => {}
            }
        }
    }

    fn can_wait(&self) -> bool {
        true
    }
}

fn number(partition: &PartitionId) -> Result<u32> {
    partition.0.parse().map_err(|_| Error::user(format!("partition `{partition}` of a topic is not a number")))
}

/// Cuts `[start, end)` into at most `parallelism` ranges that touch.
fn split(partition: &PartitionId, start: Offset, end: Offset, parallelism: usize, out: &mut Vec<OffsetRange>) {
    let total = end.0.saturating_sub(start.0);
    let pieces = (total / SPLIT).clamp(1, parallelism.max(1) as u64);
    if total == 0 {
        return;
    }
    for piece in 0..pieces {
        let range = |i: u64| Offset(start.0 + total * i / pieces);
        out.push(OffsetRange { partition: partition.clone(), start: range(piece), end: range(piece + 1) });
    }
}

/// Rows of the log as they are.
fn columns(rows: LogRows) -> Chunk {
    Chunk::Columns { rows: rows.rows, base: rows.base, times: rows.times }
}

/// Rows of the log as a block of raw records.
fn chunk(rows: &LogRows) -> Result<Chunk> {
    let values: &BinaryArray = rows
        .rows
        .column(0)
        .as_binary_opt::<i32>()
        .ok_or_else(|| Error::internal("a receiver's topic holds no raw records"))?;
    let at = |offset: i32| u32::try_from(offset).unwrap_or(0);
    let spans = values.value_offsets().windows(2).map(|pair| Span { start: at(pair[0]), end: at(pair[1]) }).collect();
    debug_assert_eq!(values.len(), rows.rows.num_rows());
    Ok(Chunk::Raw(Block {
        bytes: values.values().clone(),
        spans,
        base: rows.base,
        step: OffsetStep::Row,
        times: rows.times.clone(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_touch_and_cover() {
        let mut ranges = Vec::new();
        split(&PartitionId::from(0), Offset(5), Offset(5 + 3 * SPLIT + 1), 2, &mut ranges);
        assert_eq!(ranges.len(), 2);
        assert_eq!((ranges[0].start, ranges[1].end), (Offset(5), Offset(5 + 3 * SPLIT + 1)));
        assert_eq!(ranges[0].end, ranges[1].start);
    }

    #[test]
    fn few_records_stay_in_one_range() {
        let mut ranges = Vec::new();
        split(&PartitionId::from(0), Offset(0), Offset(10), 8, &mut ranges);
        assert_eq!(ranges.len(), 1);
        split(&PartitionId::from(0), Offset(7), Offset(7), 8, &mut ranges);
        assert_eq!(ranges.len(), 1, "nothing new gives no range");
    }
}
