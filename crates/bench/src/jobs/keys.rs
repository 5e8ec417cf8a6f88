//! A few changes among many keys: what a checkpoint costs when the state is large.
//!
//! The state begins with all keys. Then each batch changes a thousand of them,
//! and its checkpoint is durable before the next one's: the time from commit to
//! commit is what a batch costs, disk included. A second program on the same
//! directory then recovers, adds a batch, and sums all rows up.

use crate::{Result, measure::median};
use serde::Serialize;
use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Instant,
};
use tidemill_connectors::generator::Generator;
use tidemill_core::{Event, Options, Source};
use tidemill_engine::{StateStream, StreamingContext, Trigger};

/// Records of a batch; nearly as many keys change.
const CHANGES: u64 = 1_000;
/// Batches of the first program.
const BATCHES: u64 = 300;
/// Batches at its beginning that are not measured; the first one keeps all keys.
const WARM: usize = 20;

/// The last line of the job's output.
#[derive(Debug, Serialize)]
pub(crate) struct Kept {
    job: &'static str,
    keys: u64,
    changes: u64,
    /// From one commit to the next, milliseconds: half of the batches, 99 of 100, all.
    batch_ms_p50: f64,
    batch_ms_p99: f64,
    batch_ms_max: f64,
    /// From a start on the kept state until its first batch is committed, seconds.
    restart_s: f64,
    exact: bool,
}

/// Measures a state of `keys` keys.
///
/// # Errors
/// As the engine.
pub(crate) fn keys(seed: u64, keys: u64, threads: usize) -> Result<Kept> {
    let data = tempfile::tempdir()?;
    let (context, counts) = program(data.path(), seed, keys, threads, BATCHES)?;
    counts.changes().count().view("changed", &["keys"]);
    let times = Arc::new(Mutex::new(Vec::new()));
    let watching = watch(&context, &times);
    context.start()?;
    context.await_termination()?;
    drop((context, counts));
    watching.join().map_err(|_| "the watcher panicked")?;
    let times = std::mem::take(&mut *times.lock().unwrap_or_else(PoisonError::into_inner));
    let mut spans: Vec<f64> = times.windows(2).skip(WARM).map(|two| (two[1] - two[0]).as_secs_f64() * 1e3).collect();
    spans.sort_unstable_by(f64::total_cmp);

    let (context, counts) = program(data.path(), seed, keys, threads, BATCHES + 1)?;
    let sum = Arc::new(AtomicI64::new(0));
    let into = Arc::clone(&sum);
    counts.snapshot().map(|(_, n)| n).reduce(|a, b| a + b).foreach_batch(move |_, sums| {
        into.store(sums.iter().sum(), Relaxed);
        Ok(())
    });
    let mut events = context.board().subscribe();
    let begun = Instant::now();
    context.start()?;
    while !matches!(events.blocking_recv()?, Event::Batch(_)) {}
    let restart_s = begun.elapsed().as_secs_f64();
    context.await_termination()?;
    // The place below which so many of a hundred lie.
    let at = |percent: usize| spans.get((spans.len() * percent / 100).min(spans.len().saturating_sub(1))).copied();
    Ok(Kept {
        job: "keys",
        keys,
        changes: CHANGES,
        batch_ms_p50: median(&spans).unwrap_or_default(),
        batch_ms_p99: at(99).unwrap_or_default(),
        batch_ms_max: at(100).unwrap_or_default(),
        restart_s,
        exact: sum.load(Relaxed) == i64::try_from((BATCHES + 1) * CHANGES)?,
    })
}

/// Notes when each batch is committed, until the program is gone.
fn watch(context: &StreamingContext, times: &Arc<Mutex<Vec<Instant>>>) -> std::thread::JoinHandle<()> {
    let (mut events, times) = (context.board().subscribe(), Arc::clone(times));
    std::thread::spawn(move || {
        while let Ok(event) = events.blocking_recv() {
            if let Event::Batch(_) = event {
                times.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            }
        }
    })
}

fn program(
    data: &Path,
    seed: u64,
    keys: u64,
    threads: usize,
    batches: u64,
) -> Result<(StreamingContext, StateStream<i64, i64>)> {
    let context = StreamingContext::builder("keys")
        .data_dir(data)
        .trigger(Trigger::Drain)
        .batch_records(CHANGES)
        .partitions(threads)
        .build();
    let options = Options::new(
        "events",
        [
            ("rows", (batches * CHANGES).to_string()),
            ("keys", keys.to_string()),
            ("seed", seed.to_string()),
            ("partitions", threads.to_string()),
        ],
    );
    let source: Arc<dyn Source> = Arc::new(Generator::from_options(&options)?);
    let counts = context
        .source_stream::<(i64, i64, i64)>("events", source, None)?
        .map(|(_, key, _)| (key, 1_i64))
        .update_state_by_key(|new, count: Option<i64>| Some(count.unwrap_or(0) + new.iter().sum::<i64>()))
        .initial_state((0..i64::try_from(keys)?).map(|key| (key, 0)));
    Ok((context, counts))
}
