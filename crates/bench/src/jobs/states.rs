//! W3: a running count by key, with a checkpoint each batch.
//!
//! The answer is not taken from memory: a second program on the same directory
//! recovers the state from its checkpoint and hands out its rows, outside of the
//! measured time. So a wrong checkpoint is a wrong answer.

use crate::{
    Result,
    check::Rows,
    input::events,
    kills,
    measure::{Side, timed},
};
use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};
use tidemill_connectors::files::{FileFormat, FilesSink};
use tidemill_connectors::generator::Generator;
use tidemill_core::{Options, Source};
use tidemill_engine::{StateStream, StreamingContext, Trigger};
use tidemill_store::RealDisk;

/// Events of a batch, and so of a checkpoint.
const BATCH: u64 = 500_000;

/// W3: events by key, from [`crate::input::events::key`], checkpoint on.
pub(crate) fn w3<'a>(seed: u64, items: u64, threads: usize) -> Option<Side<'a, u64, u64>> {
    Some(Box::new(move || {
        timed(
            || {
                let data = tempfile::tempdir()?;
                let (context, counts) =
                    program(data.path(), seed, items, threads, (Trigger::Drain, BATCH, events::KEYS))?;
                counts.changes().count().view("changed", &["keys"]);
                context.start()?;
                context.await_termination()?;
                Ok(data)
            },
            |data| recovered(data.path(), seed, items, threads),
        )
    }))
}

fn program(
    data: &Path,
    seed: u64,
    items: u64,
    threads: usize,
    (trigger, batch, keys): (Trigger, u64, u64),
) -> Result<(StreamingContext, StateStream<i64, i64>)> {
    let context = StreamingContext::builder("counts")
        .data_dir(data)
        .trigger(trigger)
        .batch_records(batch)
        .partitions(threads)
        .build();
    let options = Options::new(
        "events",
        [
            ("rows", items.to_string()),
            ("keys", keys.to_string()),
            ("seed", seed.to_string()),
            ("partitions", threads.to_string()),
        ],
    );
    let source: Arc<dyn Source> = Arc::new(Generator::from_options(&options)?);
    let counts = context
        .source_stream::<(i64, i64, i64)>("events", source, None)?
        .map(|(_, key, _)| (key, 1_i64))
        .update_state_by_key(|new, count: Option<i64>| Some(count.unwrap_or(0) + new.iter().sum::<i64>()));
    Ok((context, counts))
}

/// The rows of the state as a restarted program finds them.
fn recovered(data: &Path, seed: u64, items: u64, threads: usize) -> Result<Rows<u64, u64>> {
    let begun = Instant::now();
    let rows = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&rows);
    let (context, counts) = program(data, seed, items, threads, (Trigger::Once, BATCH, events::KEYS))?;
    counts.snapshot().foreach_batch(move |_, counts| {
        let mut rows = into.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
        rows.extend(counts.into_iter().map(|(key, n)| (whole(key), whole(n))));
        Ok(())
    });
    context.start()?;
    eprintln!("w3: recovered within {:.2} s", begun.elapsed().as_secs_f64());
    context.await_termination()?;
    let rows = std::mem::take(&mut *rows.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Rows::new(rows))
}

/// The program that [`crate::kills`] kills: what each batch changed, as files.
///
/// # Errors
/// As the engine.
pub(crate) fn killed_program(seed: u64, items: u64, base: &Path, threads: usize) -> Result<()> {
    let shape = (Trigger::Drain, kills::BATCH, kills::KEYS);
    let (context, counts) = program(&base.join("data"), seed, items, threads, shape)?;
    counts.changes().to_sink(Arc::new(FilesSink::new(base.join("out"), FileFormat::Json, Arc::new(RealDisk))));
    context.start()?;
    Ok(context.await_termination()?)
}
