//! What a slide costs: windows of 60 s each second over a million keys, beside
//! windows of 60 s that do not overlap.
//!
//! The same aggregates of the same records; of each window the top ten, which is
//! what such a window is for. With all groups given HOP gives sixty times as many
//! rows: that is measured too, over fewer seconds, and told as rows a second.
//!
//! In memory: no data directory, so no disk is measured. A batch is a second of
//! event time; measured is a minute of it, after the first window is full.

use crate::Result;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use serde::Serialize;
use std::{sync::Arc, time::Instant};
use tidemill_engine::testing::SqlProgram;

/// Keys, of which each record has any.
const KEYS: u64 = 1_000_000;
/// Batches before those that are measured, and these.
const WARM: i64 = 62;
const MEASURED: i64 = 60;
/// Seconds of which all groups are given.
const ALL: i64 = 5;
/// Columns of keys that take turns.
const COLUMNS: u64 = 8;

/// The last line of the job's output.
#[derive(Debug, Serialize)]
pub(crate) struct Slides {
    job: &'static str,
    /// Seconds for a minute of event time.
    tumble_s: f64,
    hop_s: f64,
    /// The second over the first.
    ratio: f64,
    /// Rows a second of HOP without a LIMIT.
    hop_all_rows_per_s: f64,
}

/// Measures both with so many records a second of event time.
///
/// # Errors
/// As the engine.
pub(crate) fn windows(seed: u64, rows: u64, threads: usize) -> Result<Slides> {
    let keys: Vec<ArrayRef> = (0..COLUMNS).map(|column| keys(seed ^ column, rows)).collect();
    let batches = (0..WARM + MEASURED)
        .zip(keys.iter().cycle())
        .map(|(second, keys)| Ok(vec![batch(second, keys)?]))
        .collect::<Result<Vec<_>>>()?;
    let of = |window: &str| -> Result<f64> {
        let (took, _) = measure(window, TOP, &batches, threads)?;
        eprintln!("windows: {window}: {took:.2} s for a minute of {rows} records a second");
        Ok(took)
    };
    let tumble_s = of("TUMBLE(events, t, INTERVAL '60' SECOND)")?;
    let hop_s = of("HOP(events, t, INTERVAL '1' SECOND, INTERVAL '60' SECOND)")?;
    let some = &batches[..usize::try_from(WARM + ALL)?];
    let (took, given) = measure("HOP(events, t, INTERVAL '1' SECOND, INTERVAL '60' SECOND)", "", some, threads)?;
    eprintln!("windows: HOP with all groups: {given} rows in {took:.2} s");
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let hop_all_rows_per_s = given as f64 / took;
    Ok(Slides { job: "windows", tumble_s, hop_s, ratio: hop_s / tumble_s, hop_all_rows_per_s })
}

/// The end of a query that gives the top ten of each window.
const TOP: &str = "ORDER BY s DESC LIMIT 10";

/// The seconds that the batches behind [`WARM`] take, and the rows that they give.
fn measure(window: &str, end: &str, batches: &[Vec<RecordBatch>], threads: usize) -> Result<(f64, usize)> {
    let mut program = SqlProgram::new(threads);
    program.queue("events", batches.to_vec());
    program.start(&format!(
        "CREATE STREAM events (WATERMARK FOR t AS t) WITH (connector = 'program');
         CREATE VIEW v AS SELECT window_end, key, count(*) AS n, sum(n) AS s FROM {window}
           GROUP BY window_start, window_end, key {end}"
    ))?;
    let (mut begun, mut given) = (Instant::now(), 0);
    for second in 0..batches.len() {
        let is_measured = i64::try_from(second)? >= WARM;
        if i64::try_from(second)? == WARM {
            begun = Instant::now();
        }
        program.step()?;
        given += program.view("v").filter(|_| is_measured).map_or(0, |rows| rows.num_rows());
    }
    Ok((begun.elapsed().as_secs_f64(), given))
}

fn keys(seed: u64, rows: u64) -> ArrayRef {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let key = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % KEYS).cast_signed()
    };
    Arc::new(Int64Array::from_iter_values((0..rows).map(key)))
}

fn batch(second: i64, keys: &ArrayRef) -> Result<RecordBatch> {
    let rows = i64::try_from(keys.len())?;
    let times = (0..rows).map(|row| second * 1_000_000 + row * 1_000_000 / rows.max(1));
    Ok(RecordBatch::try_from_iter([
        ("t", Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")) as ArrayRef),
        ("key", Arc::clone(keys)),
        ("n", Arc::new(Int64Array::from_iter_values(0..rows)) as ArrayRef),
    ])?)
}
