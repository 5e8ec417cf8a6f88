//! What a plan may know of the batch that it is run for.
//!
//! Made by `batch::run` for each batch and reached by every node through the
//! task's session configuration. Invariant: nodes hold nothing of a batch
//! between two runs except versioned state.

use super::{Stages, Work};
use crate::ingest::Again;
use datafusion::execution::TaskContext;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tidemill_core::{Batch, Clock, DeadLetter, Duration, PartitionId, Timestamp, Watermark, WatermarkSpec};

/// The batch that is running.
#[derive(Debug)]
pub(crate) struct BatchRun {
    /// Number, time and ranges.
    pub(crate) batch: Batch,
    /// Records read.
    pub(crate) records_in: AtomicU64,
    /// Records and bytes read by stream and part, by the reader that is ahead.
    read: Mutex<BTreeMap<String, BTreeMap<usize, (u64, u64)>>>,
    /// Late records, but for those that a view of their own has.
    pub(crate) late: AtomicU64,
    /// Late records that a view of their own has.
    pub(crate) late_aside: AtomicU64,
    /// Those of them that are kept; bounded by who sets them aside.
    pub(crate) late_letters: Mutex<Vec<DeadLetter>>,
    /// Refused records, gathered until the commit. Bounded by the batch.
    pub(crate) dead: Mutex<Vec<DeadLetter>>,
    /// The letters of what it reads again; `None` of a batch that reads for the first time.
    pub(crate) again: Option<Again>,
    /// Watermarks before this batch, by operator.
    before: BTreeMap<String, Timestamp>,
    /// Watermarks that this batch moved.
    moved: Mutex<BTreeMap<String, Timestamp>>,
    /// Event time of streams.
    times: Mutex<Times>,
    /// Operators that gave the rows of the batch before again.
    unchanged: Mutex<BTreeSet<String>>,
    /// Steps that end before the batch does, whoever reads them. One a partition of a shared node.
    steps: Mutex<Vec<Step>>,
    /// What its steps gave and took.
    pub(crate) work: Work,
    /// What went on in the batch's life.
    pub(crate) stages: Stages,
}

/// Event time of the streams of a program, before a batch and as it reads on.
#[derive(Debug, Default)]
struct Times {
    /// Watermarks before the batch, and the batch time since which they stand.
    before: BTreeMap<String, Watermark>,
    gap: Duration,
    /// How each follows its records, and the stream whose partitions it has.
    specs: BTreeMap<String, (WatermarkSpec, String)>,
    /// Largest times that the batch has read.
    largest: BTreeMap<String, BTreeMap<PartitionId, Timestamp>>,
}

/// A step that runs by itself; the future says when it has ended.
struct Step(BoxFuture<'static, datafusion::common::Result<()>>);

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Step")
    }
}

impl BatchRun {
    pub(crate) fn new(batch: Batch, before: BTreeMap<String, Timestamp>) -> Self {
        Self {
            batch,
            records_in: AtomicU64::new(0),
            read: Mutex::default(),
            late: AtomicU64::new(0),
            late_aside: AtomicU64::new(0),
            late_letters: Mutex::default(),
            dead: Mutex::default(),
            again: None,
            before,
            moved: Mutex::default(),
            times: Mutex::default(),
            unchanged: Mutex::default(),
            steps: Mutex::default(),
            work: Work::default(),
            stages: Stages::default(),
        }
    }

    /// With its steps timed by `clock`.
    pub(crate) fn timed(self, clock: &Arc<dyn Clock>) -> Self {
        Self { work: Work::timed(clock), ..self }
    }

    /// Records that were read, by stream.
    pub(crate) fn records_by_stream(&self) -> BTreeMap<String, u64> {
        self.read_by_stream(|(records, _)| records)
    }

    /// Bytes of the records that were read, by stream; of sources that give columns those in memory.
    pub(crate) fn bytes_by_stream(&self) -> BTreeMap<String, u64> {
        self.read_by_stream(|(_, bytes)| bytes)
    }

    fn read_by_stream(&self, of: impl Fn((u64, u64)) -> u64) -> BTreeMap<String, u64> {
        let sum = |parts: &BTreeMap<usize, (u64, u64)>| parts.values().map(|part| of(*part)).sum();
        self.read.lock().iter().map(|(stream, parts)| (stream.clone(), sum(parts))).collect()
    }

    /// With the watermarks of streams before this batch, which comes `gap` after the one before.
    pub(crate) fn with_streams(self, before: BTreeMap<String, Watermark>, gap: Duration) -> Self {
        *self.times.lock() = Times { before, gap, ..Times::default() };
        self
    }

    /// From now on the watermark `name` follows what is read of `stream`.
    pub(crate) fn follow(&self, name: &str, spec: WatermarkSpec, stream: &str) {
        self.times.lock().specs.insert(name.to_string(), (spec, stream.to_string()));
    }

    /// What each watermark follows its records by.
    pub(crate) fn followed(&self) -> BTreeMap<String, WatermarkSpec> {
        self.times.lock().specs.iter().map(|(name, (spec, _))| (name.clone(), *spec)).collect()
    }

    /// A partition of what `name` follows has a record of this time.
    pub(crate) fn observe(&self, name: &str, partition: &PartitionId, largest: Timestamp) {
        let mut times = self.times.lock();
        let of_stream = match times.largest.get_mut(name) {
            Some(found) => found,
            None => times.largest.entry(name.to_string()).or_default(),
        };
        match of_stream.get_mut(partition) {
            Some(before) => *before = (*before).max(largest),
            None => drop(of_stream.insert(partition.clone(), largest)),
        }
    }

    /// The watermark `name` as far as this batch has moved it. Final when all that it follows is read.
    pub(crate) fn stream_watermark(&self, name: &str) -> Watermark {
        let times = self.times.lock();
        self.advanced(&times, name)
    }

    fn advanced(&self, times: &Times, name: &str) -> Watermark {
        let mut mark = times.before.get(name).cloned().unwrap_or_default();
        let Some((spec, stream)) = times.specs.get(name) else { return mark };
        let ranges = self.batch.ranges.get(stream).map_or(&[][..], Vec::as_slice);
        let any = ranges.iter().any(|range| !range.is_empty());
        let is_read = |partition: &PartitionId| {
            // The nameless partition is all of a stream whose partitions do not go on side by side.
            (partition.0.is_empty() && any) || ranges.iter().any(|r| !r.is_empty() && r.partition == *partition)
        };
        let largest = times.largest.get(name).into_iter().flatten().map(|(partition, at)| (partition, *at));
        mark.advance(*spec, largest, is_read, times.gap);
        mark
    }

    /// The watermarks of all streams after this batch.
    pub(crate) fn streams_after(&self) -> BTreeMap<String, Watermark> {
        let times = self.times.lock();
        let mut after = times.before.clone();
        for name in times.specs.keys() {
            let mark = self.advanced(&times, name);
            if mark.at() > Timestamp::MIN {
                after.insert(name.clone(), mark);
            }
        }
        after
    }

    /// The batch ends after this step, which runs by itself.
    pub(crate) fn finish_first(&self, step: BoxFuture<'static, datafusion::common::Result<()>>) {
        self.steps.lock().push(Step(step));
    }

    /// Waits until all steps have ended.
    ///
    /// # Errors
    /// That of the first step that failed.
    pub(crate) async fn finish(&self) -> datafusion::common::Result<()> {
        let steps = std::mem::take(&mut *self.steps.lock());
        let mut ended = Ok(());
        for step in steps {
            let this = step.0.await;
            ended = ended.and(this);
        }
        ended
    }

    /// The run that a node's task belongs to.
    pub(crate) fn of(task: &TaskContext) -> datafusion::common::Result<Arc<BatchRun>> {
        task.session_config()
            .get_extension::<BatchRun>()
            .ok_or_else(|| datafusion::common::internal_datafusion_err!("a streaming node was run outside of a batch"))
    }

    /// A reader of part `part` of `stream` has read `total` records of so many bytes so far.
    /// Several outputs may read the same records, which are counted once.
    pub(crate) fn count_in(&self, stream: &str, part: usize, (total, bytes): (u64, u64)) {
        let mut read = self.read.lock();
        let parts = match read.get_mut(stream) {
            Some(parts) => parts,
            None => read.entry(stream.to_string()).or_default(),
        };
        let (seen, of) = parts.entry(part).or_default();
        if total > *seen {
            self.records_in.fetch_add(total - *seen, Relaxed);
            *seen = total;
        }
        *of = (*of).max(bytes);
    }

    /// Records of a stream that were read.
    pub(crate) fn records_of(&self, stream: &str) -> u64 {
        self.read.lock().get(stream).map_or(0, |parts| parts.values().map(|(records, _)| records).sum())
    }

    pub(crate) fn refuse(&self, letter: DeadLetter) {
        self.dead.lock().push(letter);
    }

    /// Counts late rows and gives how many of them may be kept, when `most` of a batch may.
    pub(crate) fn count_late(&self, rows: usize, most: u64) -> usize {
        let before = self.late.fetch_add(rows as u64, Relaxed);
        rows.min(usize::try_from(most.saturating_sub(before)).unwrap_or(usize::MAX))
    }

    /// The watermark of `operator` before this batch; [`Timestamp::MIN`] at first.
    pub(crate) fn watermark_before(&self, operator: &str) -> Timestamp {
        self.before.get(operator).copied().unwrap_or(Timestamp::MIN)
    }

    /// The watermark of `operator` as far as this batch has moved it.
    pub(crate) fn watermark_now(&self, operator: &str) -> Timestamp {
        let moved = self.moved.lock().get(operator).copied().unwrap_or(Timestamp::MIN);
        moved.max(self.watermark_before(operator))
    }

    /// Moves the watermark of `operator` forward to `at`; it never moves back.
    pub(crate) fn move_watermark(&self, operator: &str, at: Timestamp) {
        let mut moved = self.moved.lock();
        match moved.get_mut(operator) {
            Some(now) => *now = (*now).max(at),
            None => {
                moved.insert(operator.to_string(), at);
            }
        }
    }

    /// `operator` gives the rows of the batch before again. Said before it gives any.
    pub(crate) fn stays(&self, operator: &str) {
        self.unchanged.lock().insert(operator.to_string());
    }

    /// Whether `operator` said so in this batch.
    pub(crate) fn has_stayed(&self, operator: &str) -> bool {
        self.unchanged.lock().contains(operator)
    }

    /// All watermarks after this batch.
    pub(crate) fn watermarks_after(&self) -> BTreeMap<String, Timestamp> {
        let mut after = self.before.clone();
        for (operator, at) in &*self.moved.lock() {
            let entry = after.entry(operator.clone()).or_insert(*at);
            *entry = (*entry).max(*at);
        }
        after
    }
}
