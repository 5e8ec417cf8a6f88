//! What each step of a batch gave, and how long it computed.
//!
//! A step's rows pass through [`counted`], which adds up rows and time. A poll
//! of a step polls the steps below it, so the time of those is taken off: what
//! is left is the step's own, with that of DataFusion's nodes between it and
//! the next step of ours. Invariant: times of all steps together are the time
//! that threads computed, each moment once; a step that is polled by nobody of
//! ours (a task of DataFusion's own) is missing. Called by [`super::node`] and by
//! `batch::run`, read after the batch.

use super::{BatchRun, Rows};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::{common::Result as DfResult, execution::RecordBatchStream};
use futures::Stream;
use parking_lot::Mutex;
use std::{
    cell::Cell,
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};
use tidemill_core::{Clock, OffsetRange, OperatorReport, PartitionId, ReadReport, Stretch, Timestamp};

/// Ranges that are told as they were read.
const READS: usize = 64;

thread_local! {
    /// Time of the steps below the one that is polled on this thread.
    static BELOW: Cell<u64> = const { Cell::new(0) };
}

/// Which step it is: made once, with the plan.
#[derive(Debug)]
pub(crate) struct Step {
    /// Grows from the leaves up, as plans are made.
    order: u64,
    /// The operator that it is of.
    operator: String,
    /// What it does.
    what: String,
    /// Whether rows are counted where they come in: those that it gives are the same, once a reader.
    pub(crate) takes: bool,
}

impl Step {
    /// Of a node named `operator: what`; without the colon it has no operator of its own.
    pub(crate) fn of(name: &str) -> Option<Arc<Self>> {
        let (operator, what) = match name.strip_prefix("source ") {
            Some(source) => (source.split(": ").next().unwrap_or(source), "read and decoded"),
            None => name.split_once(": ")?,
        };
        Some(Self::named(operator, what, false))
    }

    /// Its operator, and what it does.
    pub(crate) fn names(&self) -> (&str, &str) {
        (&self.operator, &self.what)
    }

    /// Of a step that is shared by its readers, or of an output.
    pub(crate) fn named(operator: &str, what: &str, takes: bool) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let order = NEXT.fetch_add(1, Relaxed);
        Arc::new(Self { order, operator: operator.to_string(), what: what.to_string(), takes })
    }
}

/// Rows and microseconds of a step.
#[derive(Debug, Default, Clone, Copy)]
struct Done {
    rows: u64,
    busy_us: u64,
    at: Option<Stretch>,
}

/// The lesser stretch that holds both, as far as they are known.
fn joined(one: Option<Stretch>, other: Option<Stretch>) -> Option<Stretch> {
    one.into_iter().chain(other).reduce(Stretch::with)
}

/// A range by its stream, partition and first offset.
type Place = (String, PartitionId, u64);

/// What the steps of one batch did.
#[derive(Debug, Default)]
pub(crate) struct Work {
    clock: Option<Arc<dyn Clock>>,
    done: Mutex<BTreeMap<u64, (Arc<Step>, Done)>>,
    /// The first ranges that were read, at most [`READS`].
    reads: Mutex<BTreeMap<Place, ReadReport>>,
}

impl Work {
    /// Timed by `clock`; without one nothing is counted.
    pub(crate) fn timed(clock: &Arc<dyn Clock>) -> Self {
        Self { clock: Some(Arc::clone(clock)), ..Self::default() }
    }

    /// The time, where there is a clock.
    pub(crate) fn now(&self) -> Option<Timestamp> {
        self.clock.as_ref().map(|clock| clock.now())
    }

    /// A reader of `range` has read `records` of it so far, since `begun`. Of several readers the one that is ahead counts.
    pub(crate) fn read(&self, stream: &str, range: &OffsetRange, records: u64, begun: Option<Timestamp>) {
        let Some((begun, ended)) = begun.zip(self.now()) else { return };
        let place = (stream.to_string(), range.partition.clone(), range.start.0);
        let mut reads = self.reads.lock();
        if reads.len() >= READS && !reads.contains_key(&place) {
            return;
        }
        let at = Stretch { begun, ended };
        let known = reads.entry(place).or_insert_with(|| ReadReport {
            stream: stream.to_string(),
            range: range.clone(),
            records: 0,
            at,
        });
        known.records = known.records.max(records);
        known.at = known.at.with(at);
    }

    /// The ranges that were read, by stream and partition.
    pub(crate) fn reads(&self) -> Vec<ReadReport> {
        self.reads.lock().values().cloned().collect()
    }

    fn add(&self, step: &Arc<Step>, new: Done) {
        let mut done = self.done.lock();
        let (_, done) = done.entry(step.order).or_insert_with(|| (Arc::clone(step), Done::default()));
        done.rows += new.rows;
        done.busy_us += new.busy_us;
        done.at = joined(done.at, new.at);
    }

    /// By operator, leaves first. An operator gave what the last of its steps did.
    pub(crate) fn reports(&self) -> Vec<OperatorReport> {
        let mut reports: Vec<OperatorReport> = Vec::new();
        for (step, done) in self.done.lock().values() {
            let at = match reports.iter().position(|report| report.name == step.operator) {
                Some(at) => at,
                None => {
                    reports.push(OperatorReport { name: step.operator.clone(), ..OperatorReport::default() });
                    reports.len() - 1
                }
            };
            let report = &mut reports[at];
            report.rows = done.rows;
            report.busy_us += done.busy_us;
            report.at = joined(report.at, done.at);
            // A step without state is there once for each of its readers.
            match report.steps.iter_mut().find(|known| known.name == step.what) {
                Some(known) => {
                    known.rows = known.rows.max(done.rows);
                    known.busy_us += done.busy_us;
                    known.at = joined(known.at, done.at);
                }
                None => report.steps.push(OperatorReport {
                    name: step.what.clone(),
                    rows: done.rows,
                    busy_us: done.busy_us,
                    steps: Vec::new(),
                    at: done.at,
                }),
            }
        }
        reports
    }

    /// Takes a step out, as that of an output, which is no operator.
    pub(crate) fn take(&self, step: &Step, name: &str) -> OperatorReport {
        let done = self.done.lock().remove(&step.order).map_or_else(Done::default, |(_, done)| done);
        let Done { rows, busy_us, at } = done;
        OperatorReport { name: name.to_string(), rows, busy_us, steps: Vec::new(), at }
    }
}

/// The rows of a step, timed, and counted if `counts`.
pub(crate) fn counted(step: Option<&Arc<Step>>, counts: bool, rows: Rows, run: &Arc<BatchRun>) -> Rows {
    match step {
        Some(step) if run.work.clock.is_some() => {
            let (step, run) = (Arc::clone(step), Arc::clone(run));
            Box::pin(Counted { rows, step, counts, run, done: Done::default() })
        }
        _ => rows,
    }
}

struct Counted {
    rows: Rows,
    step: Arc<Step>,
    counts: bool,
    run: Arc<BatchRun>,
    done: Done,
}

impl Counted {
    fn tell(&mut self) {
        self.run.work.add(&self.step, std::mem::take(&mut self.done));
    }
}

impl Stream for Counted {
    type Item = DfResult<RecordBatch>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(clock) = &this.run.work.clock else { return this.rows.as_mut().poll_next(cx) };
        let outer = BELOW.replace(0);
        let begun = clock.now();
        let polled = this.rows.as_mut().poll_next(cx);
        let ended = clock.now();
        let took = u64::try_from(ended.since(begun).as_micros()).unwrap_or(u64::MAX);
        let below = BELOW.replace(outer.saturating_add(took));
        this.done.busy_us += took.saturating_sub(below);
        this.done.at = joined(this.done.at, Some(Stretch { begun, ended }));
        match &polled {
            Poll::Ready(Some(Ok(rows))) if this.counts => this.done.rows += rows.num_rows() as u64,
            Poll::Ready(None) => this.tell(),
            Poll::Ready(Some(_)) | Poll::Pending => {}
        }
        polled
    }
}

impl RecordBatchStream for Counted {
    fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // Of a reader that stopped early.
        if self.done.rows > 0 || self.done.busy_us > 0 {
            self.tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::rows_from;
    use arrow_array::{ArrayRef, Int64Array};
    use futures::{StreamExt, executor::block_on, stream};
    use tidemill_core::{Batch, Duration, ManualClock, Timestamp};

    /// Rows each of which costs `cost` microseconds of `clock`, on top of what is below.
    fn costly(clock: &Arc<ManualClock>, cost: u64, below: Rows) -> Rows {
        let (schema, clock) = (below.schema(), Arc::clone(clock));
        let rows = below.map(move |rows| {
            clock.advance(Duration::from_micros(cost));
            rows
        });
        rows_from(schema, rows)
    }

    #[test]
    fn a_step_is_told_its_own_time_and_not_that_of_the_steps_below() {
        let clock = Arc::new(ManualClock::at(Timestamp(5)));
        let time = Arc::clone(&clock) as Arc<dyn Clock>;
        let run = BatchRun::new(Batch::default(), BTreeMap::new()).timed(&time);
        let run = Arc::new(run);
        let column = |n: i64| Arc::new(Int64Array::from_iter_values(0..n)) as ArrayRef;
        let batches: Vec<_> = [3, 4].map(|n| RecordBatch::try_from_iter([("n", column(n))]).unwrap()).into();
        let schema = batches[0].schema();
        let source = rows_from(schema, stream::iter(batches.into_iter().map(Ok)));
        let (leaf, top) = (Step::of("source posts: [\"n\"]"), Step::of("top: state, of all"));
        let shared = Step::named("top", "shared", true);
        let below = counted(leaf.as_ref(), true, costly(&clock, 10, source), &run);
        // A node of DataFusion's own between two of ours.
        let between = costly(&clock, 5, below);
        let above = counted(top.as_ref(), true, costly(&clock, 1, between), &run);
        let rows = counted(Some(&shared), true, above, &run);
        assert_eq!(block_on(rows.count()), 2);
        let told = run.work.reports();
        let told: Vec<_> = told.iter().map(|r| (r.name.as_str(), r.rows, r.busy_us, r.steps.len())).collect();
        assert_eq!(told, [("posts", 7, 20, 1), ("top", 7, 12, 2)]);
        // From the first look of any of its steps to the last.
        let whole = Some(Stretch { begun: Timestamp(5), ended: clock.now() });
        assert!(run.work.reports().iter().all(|report| report.at == whole), "{:?}", run.work.reports());
        assert_eq!(Step::of("columns").map(|step| step.order), None);
    }
}
