//! Operators under test: batches in, batches out, time moved by hand.
//!
//! ```
//! # use tidemill_engine::testing::check;
//! check([vec![1, 2], vec![3]], |s| s.map(|x: i32| x * 2), [vec![2, 4], vec![6]]);
//! ```
//!
//! Batch *i* has the time *i* seconds. Every operator's tests use this, and so
//! may a user's.

use crate::{
    StreamingContext, Trigger,
    batch::Pipeline,
    record::Record,
    stream::{Chain, DStream},
};
use parking_lot::Mutex;
use std::{fmt::Debug, sync::Arc};
use tidemill_core::{Result, Timestamp};

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
    let seen = Arc::new(Mutex::new(Vec::new()));
    let out = Arc::clone(&seen);
    program(left, right).foreach_batch(move |_, records| {
        out.lock().push(records);
        Ok(())
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .map_err(|e| tidemill_core::Error::external("can't start threads").because(e))?;
    runtime.block_on(async {
        let pipeline = Pipeline::open(&context.config, &context.declare, context.board())?;
        for batch in 1..=count {
            pipeline.step(Timestamp(i64::try_from(batch).unwrap_or(i64::MAX) * 1_000_000)).await?;
        }
        Ok::<_, tidemill_core::Error>(())
    })?;
    let mut seen = seen.lock();
    Ok(std::mem::take(&mut *seen))
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
    steps: std::ops::Range<usize>,
) -> Result<Vec<Vec<U>>>
where
    T: Record,
    U: Record,
    C: Chain<Out = U>,
{
    let context =
        StreamingContext::builder("test").trigger(Trigger::Drain).partitions(partitions).data_dir(dir).build();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let out = Arc::clone(&seen);
    program(context.queue_stream(input.to_vec())?).foreach_batch(move |_, records| {
        out.lock().push(records);
        Ok(())
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .map_err(|e| tidemill_core::Error::external("can't start threads").because(e))?;
    runtime.block_on(async {
        let pipeline = Pipeline::open(&context.config, &context.declare, context.board())?;
        for batch in steps {
            pipeline.step(Timestamp(i64::try_from(batch + 1).unwrap_or(i64::MAX) * 1_000_000)).await?;
        }
        Ok::<_, tidemill_core::Error>(())
    })?;
    let mut seen = seen.lock();
    Ok(std::mem::take(&mut *seen))
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
