//! More keys than have room in memory: what they cost, and whether they are exact.
//!
//! Each key gets one event, in batches with a checkpoint each; the state may
//! take a part of the memory that the whole process is to stay below. A second
//! program on the same directory recovers, and gives a tenth of the keys one
//! more event. Every count that a batch changes must be one in the first program
//! and two in the second, wherever its key was.

use crate::{Result, measure::peak_mb};
use serde::Serialize;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};
use tidemill_connectors::generator::Generator;
use tidemill_core::{Event, Options, Source};
use tidemill_engine::{StreamingContext, Trigger};

/// Records of a batch.
const BATCH: u64 = 500_000;
/// What the process is to stay below, in MiB.
const PROCESS_MB: u64 = 2048;
/// One of so many keys has news in the second program.
const AGAIN: u64 = 10;

/// The last line of the job's output.
#[derive(Debug, Serialize)]
pub(crate) struct Spilled {
    job: &'static str,
    keys: u64,
    /// Keys on disk only, at the end of the first program.
    spilled: u64,
    state_mb: u64,
    /// Memory of the process at its peak, over both programs, and what it is to stay below.
    rss_mb: f64,
    limit_mb: u64,
    /// New keys, checkpoints included.
    rows_per_s: f64,
    /// From a start on the kept state until its first batch is committed, seconds.
    restart_s: f64,
    /// Keys with news after the restart.
    again_rows_per_s: f64,
    /// The longest batch, of each program, in seconds.
    batch_s_max: [f64; 2],
    exact: bool,
}

/// Measures a state of `keys` keys, which may take so many bytes of memory.
///
/// # Errors
/// As the engine.
pub(crate) fn spill(keys: u64, bytes: u64, threads: usize) -> Result<Spilled> {
    let data = tempfile::tempdir()?;
    let first = life(data.path(), (keys, keys), bytes, threads)?;
    eprintln!("spill: {keys} keys in {:.1} s, {} of them on disk only", first.seconds, first.spilled);
    let second = life(data.path(), (keys, keys + keys / AGAIN), bytes, threads)?;
    let again = keys / AGAIN;
    let left = again.saturating_sub(BATCH.min(again));
    let rate = |rows: u64, seconds: f64| if seconds > 0.0 { rows as f64 / seconds } else { 0.0 };
    let rss_mb = peak_mb().unwrap_or_default();
    Ok(Spilled {
        job: "spill",
        keys,
        spilled: first.spilled,
        state_mb: first.state_bytes >> 20,
        rss_mb,
        limit_mb: PROCESS_MB,
        rows_per_s: rate(keys, first.seconds),
        restart_s: second.to_first,
        again_rows_per_s: rate(left, second.seconds - second.to_first),
        batch_s_max: [first.longest, second.longest],
        exact: first.right == i64::try_from(keys)? && second.right == i64::try_from(again)?,
    })
}

/// What a program did.
struct Life {
    seconds: f64,
    /// Until the first batch was committed.
    to_first: f64,
    /// The longest batch after the first.
    longest: f64,
    spilled: u64,
    state_bytes: u64,
    /// Changed rows with the right count, if there was none with another.
    right: i64,
}

fn life(data: &Path, (keys, events): (u64, u64), bytes: u64, threads: usize) -> Result<Life> {
    let context = StreamingContext::builder("spill")
        .data_dir(data)
        .trigger(Trigger::Drain)
        .batch_records(BATCH)
        .state_memory(bytes)
        .partitions(threads)
        .build();
    let options = Options::new("events", [("rows", events.to_string()), ("partitions", threads.to_string())]);
    let source: Arc<dyn Source> = Arc::new(Generator::from_options(&options)?);
    let (all, want) = (i64::try_from(keys)?, if events > keys { 2 } else { 1 });
    let counts = context
        .source_stream::<(i64, i64, i64)>("events", source, None)?
        .map(move |(number, _, _)| {
            (if number < all { number } else { (number - all) * i64::try_from(AGAIN).unwrap_or(1) }, 1_i64)
        })
        .update_state_by_key(|new, count: Option<i64>| Some(count.unwrap_or(0) + new.iter().sum::<i64>()));
    let right = Arc::new(AtomicI64::new(0));
    let into = Arc::clone(&right);
    counts.changes().map(move |(_, n)| if n == want { 1 } else { -all }).reduce(|a, b| a + b).foreach_batch(
        move |_, sums| {
            into.fetch_add(sums.iter().sum(), Relaxed);
            Ok(())
        },
    );
    let mut told = context.board().subscribe();
    let (spilled, state_bytes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (on_disk, in_memory) = (Arc::clone(&spilled), Arc::clone(&state_bytes));
    let begun = Instant::now();
    let watching = std::thread::spawn(move || {
        let mut times = Vec::new();
        while let Ok(event) = told.blocking_recv() {
            if let Event::Batch(report) = event {
                times.push(begun.elapsed().as_secs_f64());
                on_disk.store(report.state_spilled, Relaxed);
                in_memory.store(report.state_bytes, Relaxed);
            }
        }
        times
    });
    context.start()?;
    context.await_termination()?;
    let seconds = begun.elapsed().as_secs_f64();
    drop((context, counts));
    let times = watching.join().map_err(|_| "the watcher panicked")?;
    Ok(Life {
        seconds,
        to_first: times.first().copied().unwrap_or_default(),
        longest: times.windows(2).map(|two| two[1] - two[0]).fold(0.0, f64::max),
        spilled: spilled.load(Relaxed),
        state_bytes: state_bytes.load(Relaxed),
        right: right.load(Relaxed),
    })
}
