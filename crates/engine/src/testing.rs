//! Operators under test: batches in, batches out, time moved by hand.
//!
//! ```
//! # use tidemill_engine::testing::check;
//! check([vec![1, 2], vec![3]], |s| s.map(|x: i32| x * 2), [vec![2, 4], vec![6]]);
//! ```
//!
//! Batch *i* has the time *i* seconds. Every operator's tests use this, and so
//! may a user's. [`check`] and its like look at one stream; [`check_survives`]
//! and [`Trial`] also stop the program dead at every step of its life, start it
//! again after every batch, and step its clock.

mod clock;
mod probe;
mod steps;
mod trial;
#[cfg(test)]
mod tries_tests;

pub use trial::{Setup, Shown, Trial};

use crate::{
    StreamingContext, Trigger,
    batch::Pipeline,
    record::Record,
    stream::{Chain, DStream},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use futures::StreamExt;
use parking_lot::Mutex;
use std::{fmt::Debug, ops::Range, sync::Arc};
use tidemill_core::{
    Budget, Chunk, ChunkStream, Offset, OffsetRange, PartitionId, Position, Result, Shape, Source, Timestamp,
};

/// What a program over queued batches gives for each batch.
///
/// # Errors
/// When the program can't be planned or a batch fails.
pub fn run<T, U, C>(
    input: impl IntoIterator<Item = Vec<T>>,
    program: impl FnOnce(DStream<T>) -> DStream<U, C>,
    partitions: usize,
) -> Result<Vec<Vec<U>>>
where
    T: Record,
    U: Record,
    C: Chain<Out = U>,
{
    run_two(input, Vec::<Vec<T>>::new(), |stream, _| program(stream), partitions)
}

/// As [`run`], with two inputs.
///
/// # Errors
/// When the program can't be planned or a batch fails.
pub fn run_two<T, R, U, C>(
    input: impl IntoIterator<Item = Vec<T>>,
    other: impl IntoIterator<Item = Vec<R>>,
    program: impl FnOnce(DStream<T>, DStream<R>) -> DStream<U, C>,
    partitions: usize,
) -> Result<Vec<Vec<U>>>
where
    T: Record,
    R: Record,
    U: Record,
    C: Chain<Out = U>,
{
    let input: Vec<Vec<T>> = input.into_iter().collect();
    let count = input.len();
    let context = StreamingContext::builder("test").trigger(Trigger::Drain).partitions(partitions).build();
    let (left, right) = (context.queue_stream(input)?, context.queue_stream(other)?);
    collect(&context, &program(left, right), 0..count)
}

/// Runs the batches `steps` and gives what each has in `stream`.
pub(crate) fn collect<U: Record, C: Chain<Out = U>>(
    context: &StreamingContext,
    stream: &DStream<U, C>,
    steps: Range<usize>,
) -> Result<Vec<Vec<U>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let out = Arc::clone(&seen);
    stream.foreach_batch(move |_, records| {
        out.lock().push(records);
        Ok(())
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .map_err(|e| tidemill_core::Error::external("can't start threads").because(e))?;
    runtime.block_on(async {
        let pipeline = Pipeline::open(&context.config, &context.declare, context.board(), None)?;
        for batch in steps {
            pipeline.step(Timestamp(i64::try_from(batch + 1).unwrap_or(i64::MAX) * 1_000_000)).await?;
        }
        Ok::<_, tidemill_core::Error>(())
    })?;
    Ok(std::mem::take(&mut *seen.lock()))
}

/// Asserts what a program gives for each batch, in order.
///
/// # Panics
/// When it gives something else, or fails.
pub fn check<T, U, C>(
    input: impl IntoIterator<Item = Vec<T>>,
    program: impl FnOnce(DStream<T>) -> DStream<U, C>,
    expected: impl IntoIterator<Item = Vec<U>>,
) where
    T: Record,
    U: Record + PartialEq + Debug,
    C: Chain<Out = U>,
{
    let got = run(input, program, 2).expect("the program runs");
    assert_eq!(got, expected.into_iter().collect::<Vec<_>>());
}

/// As [`check`], with the records of each batch in any order; also runs the
/// program with one and with three partitions.
///
/// # Panics
/// When it gives something else, or fails.
pub fn check_unordered<T, U, C>(
    input: impl IntoIterator<Item = Vec<T>>,
    program: impl Fn(DStream<T>) -> DStream<U, C>,
    expected: impl IntoIterator<Item = Vec<U>>,
) where
    T: Record,
    U: Record + Ord + Debug,
    C: Chain<Out = U>,
{
    let input: Vec<Vec<T>> = input.into_iter().collect();
    let expected = sorted(expected);
    for partitions in 1..=3 {
        let got = sorted(run(input.clone(), &program, partitions).expect("the program runs"));
        assert_eq!(got, expected, "with {partitions} partitions");
    }
}

/// Asserts that a program gives what an undisturbed run gives, batch by batch,
/// when the machine stops at any step of it ([`Trial::crash_at_every_step`]),
/// when it is restarted after every batch with one, two and three partitions
/// ([`Trial::restart_at_every_batch`]), and when its clock steps
/// ([`Trial::step_the_clock`]).
///
/// ```
/// # use tidemill_engine::testing::check_survives;
/// check_survives(
///     &[vec![("a".to_string(), 1)], vec![("a".to_string(), 2)]],
///     |pairs| pairs.update_state_by_key(|new, sum: Option<i32>| Some(sum.unwrap_or(0) + new.iter().sum::<i32>())).changes(),
/// );
/// ```
///
/// # Panics
/// When it gives something else, or fails.
pub fn check_survives<T, U, C>(input: &[Vec<T>], program: impl Fn(DStream<T>) -> DStream<U, C>)
where
    T: Record,
    U: Record,
    C: Chain<Out = U>,
{
    let trial = Trial::new(|setup| {
        setup.output("out", &program(setup.input(input.to_vec())?));
        Ok(())
    });
    trial.crash_at_every_step();
    trial.restart_at_every_batch(&[1, 2, 3]);
    trial.step_the_clock();
}

/// Asserts that a program which is stopped after any number of batches, and
/// started again with another number of partitions, gives what an undisturbed
/// one gives. The records of a batch may come in any order.
#[cfg(test)]
pub(crate) fn check_restarts<T, U, C>(
    input: &[Vec<T>],
    program: impl Fn(DStream<T>) -> DStream<U, C>,
    partitions: (usize, usize),
) where
    T: Record,
    U: Record + Ord + Debug,
    C: Chain<Out = U>,
{
    let whole = sorted(run(input.to_vec(), &program, partitions.0).expect("the program runs"));
    for stop in 0..=input.len() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut got = run_kept(dir.path(), input, &program, partitions.0, 0..stop).expect("the first part runs");
        got.extend(run_kept(dir.path(), input, &program, partitions.1, stop..input.len()).expect("the rest runs"));
        assert_eq!(sorted(got), whole, "stopped after {stop} batches, partitions {partitions:?}");
    }
}

/// Runs the batches `steps` of a program whose state is kept in `dir`.
#[cfg(test)]
pub(crate) fn run_kept<T, U, C>(
    dir: &std::path::Path,
    input: &[Vec<T>],
    program: impl Fn(DStream<T>) -> DStream<U, C>,
    partitions: usize,
    steps: Range<usize>,
) -> Result<Vec<Vec<U>>>
where
    T: Record,
    U: Record,
    C: Chain<Out = U>,
{
    run_built(StreamingContext::builder("test").partitions(partitions).data_dir(dir), input, program, steps)
}

/// Runs the batches `steps` of a program in a context of the caller's.
#[cfg(test)]
pub(crate) fn run_built<T, U, C>(
    builder: crate::ContextBuilder,
    input: &[Vec<T>],
    program: impl Fn(DStream<T>) -> DStream<U, C>,
    steps: Range<usize>,
) -> Result<Vec<Vec<U>>>
where
    T: Record,
    U: Record,
    C: Chain<Out = U>,
{
    let context = builder.trigger(Trigger::Drain).build();
    collect(&context, &program(context.queue_stream(input.to_vec())?), steps)
}

/// A SQL program over queued rows: batches in, views out.
///
/// ```
/// # use std::sync::Arc;
/// # use arrow_array::{Int64Array, RecordBatch, cast::AsArray, types::Int64Type};
/// # use tidemill_engine::testing::SqlProgram;
/// let rows = |of: Vec<i64>| RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from(of)) as _)]);
/// let mut program = SqlProgram::new(2);
/// program.queue("numbers", vec![vec![rows(vec![1, 2])?], vec![rows(vec![3])?]]);
/// program.start(
///     "CREATE STREAM numbers WITH (connector = 'program'); CREATE VIEW total AS SELECT sum(n) AS n FROM numbers",
/// )?;
/// program.step()?;
/// program.step()?;
/// let total = program.view("total").expect("a view that has rows");
/// assert_eq!(total.column(0).as_primitive::<Int64Type>().value(0), 6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SqlProgram {
    context: StreamingContext,
    runtime: tokio::runtime::Runtime,
    pipeline: Option<Arc<Pipeline>>,
}

impl SqlProgram {
    /// A program of so many partitions that keeps nothing on disk.
    ///
    /// # Panics
    /// When threads can't be started.
    pub fn new(partitions: usize) -> Self {
        Self::over(StreamingContext::builder("test").trigger(Trigger::Drain).partitions(partitions).build())
    }

    /// A program in a context of the caller's.
    ///
    /// # Panics
    /// When threads can't be started.
    pub fn over(context: StreamingContext) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("threads");
        Self { context, runtime, pipeline: None }
    }

    /// The context, for what SQL does not say.
    pub fn context(&self) -> &StreamingContext {
        &self.context
    }

    /// Queues rows for the stream `name` with connector `program`: each batch
    /// reads one entry, and the parts of an entry are read side by side.
    ///
    /// # Panics
    /// When there is no part at all: the columns would not be known.
    pub fn queue(&self, name: &str, entries: Vec<Vec<RecordBatch>>) {
        let schema = entries.iter().flatten().next().expect("at least one part").schema();
        self.context.provide_source(name, Arc::new(Parts { schema, entries }));
    }

    /// Declares the program and plans it.
    ///
    /// # Errors
    /// When it can't be.
    pub fn start(&mut self, program: &str) -> Result<()> {
        self.context.declare_sql(program)?;
        let _in_runtime = self.runtime.enter();
        let text = self.context.sql.text();
        let pipeline = Pipeline::open(&self.context.config, &self.context.declare, self.context.board(), text)?;
        self.context.started(&pipeline);
        self.pipeline = Some(pipeline);
        Ok(())
    }

    /// Runs one batch.
    ///
    /// # Errors
    /// When it fails, or nothing was started.
    pub fn step(&self) -> Result<()> {
        self.steps(1, || {})
    }

    /// Runs so many batches, one after the other, and tells of each when it has ended. As in
    /// a running program, the loop is one of the threads that run the batches.
    ///
    /// # Errors
    /// When one fails, or nothing was started.
    pub fn steps(&self, count: usize, mut ended: impl FnMut() + Send + 'static) -> Result<()> {
        let pipeline = self.pipeline.clone().ok_or_else(|| tidemill_core::Error::user("start the program first"))?;
        let run = async move {
            for _ in 0..count {
                let last = pipeline.previous_time().unwrap_or_default();
                pipeline.step(Timestamp(last.0 + 1_000_000)).await?;
                ended();
            }
            Ok(())
        };
        let ran = self.runtime.block_on(self.runtime.spawn(run));
        ran.map_err(|e| tidemill_core::Error::internal("a batch panicked").because(e))?
    }

    /// The program that was started.
    #[cfg(test)]
    pub(crate) fn pipeline(&self) -> &Arc<Pipeline> {
        self.pipeline.as_ref().expect("it was started")
    }

    /// Rows that each state holds.
    #[cfg(test)]
    pub(crate) fn states(&self) -> Vec<usize> {
        self.pipeline.iter().flat_map(|pipeline| pipeline.states.all()).map(|state| state.rows()).collect()
    }

    /// What a view shows now.
    pub fn view(&self, name: &str) -> Option<RecordBatch> {
        self.context.board().view(name).map(|shown| shown.rows.clone())
    }
}

/// A source of entries whose parts are partitions that go on side by side.
#[cfg(test)]
pub(crate) fn parts(entries: Vec<Vec<RecordBatch>>) -> Arc<dyn Source> {
    let schema = entries.iter().flatten().next().expect("at least one part").schema();
    Arc::new(Parts { schema, entries })
}

/// Queued rows whose entries have parts.
#[derive(Debug)]
struct Parts {
    schema: SchemaRef,
    entries: Vec<Vec<RecordBatch>>,
}

#[async_trait]
impl Source for Parts {
    fn describe(&self) -> String {
        format!("{} queued entries", self.entries.len())
    }

    fn shape(&self) -> Shape {
        Shape::Columns(Arc::clone(&self.schema))
    }

    async fn plan(&self, position: &Position, _budget: Budget) -> Result<Vec<OffsetRange>> {
        // Every part is a partition; all move on together.
        let at = position.values().copied().max().unwrap_or_default();
        let parts = usize::try_from(at.0).ok().and_then(|at| self.entries.get(at)).map_or(0, Vec::len);
        let range = |part: usize| OffsetRange {
            partition: PartitionId::new(part.to_string()),
            start: at,
            end: Offset(at.0 + 1),
        };
        Ok((0..parts).map(range).collect())
    }

    fn read(&self, range: &OffsetRange) -> ChunkStream {
        let part: Option<usize> = range.partition.0.parse().ok();
        let entry = usize::try_from(range.start.0).ok().and_then(|at| self.entries.get(at));
        let rows = entry.zip(part).and_then(|(entry, part)| entry.get(part)).cloned();
        let chunk = rows
            .map(|rows| Chunk::Columns { rows, base: Offset(0), times: Vec::new() })
            .ok_or_else(|| tidemill_core::Error::internal("no such part"));
        futures::stream::iter([chunk]).boxed()
    }

    async fn is_exhausted(&self, position: &Position) -> Result<bool> {
        let at = position.values().copied().max().unwrap_or_default();
        Ok(at.0 >= self.entries.len() as u64)
    }
}

fn sorted<U: Ord>(batches: impl IntoIterator<Item = Vec<U>>) -> Vec<Vec<U>> {
    batches
        .into_iter()
        .map(|mut batch| {
            batch.sort();
            batch
        })
        .collect()
}
