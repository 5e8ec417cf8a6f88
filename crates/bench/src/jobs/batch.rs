//! What a batch costs beside its records: an empty one, and one of a thousand
//! rows, on plans that are kept.
//!
//! In memory: no data directory, so no disk is measured. A batch here is planned,
//! run and shown as in a started program.

use crate::{Result, measure::median};
use arrow_array::{RecordBatch, StringArray, TimestampMicrosecondArray};
use serde::Serialize;
use std::{sync::Arc, time::Instant};
use tidemill_engine::testing::SqlProgram;

/// Batches of each kind.
const BATCHES: usize = 2_000;
/// Batches at the beginning that are not measured.
const WARM: usize = 200;

/// What is asked of the stream: a filter, a running count, a trend.
const VIEWS: [(&str, &str); 3] = [
    ("select", "SELECT upper(lang) AS lang FROM posts WHERE lang = 'en'"),
    ("group by", "SELECT lang, count(*) AS n FROM posts GROUP BY lang"),
    (
        "hop, top ten",
        "SELECT window_end, lower(tag) AS tag, count(*) AS n FROM (
             SELECT window_start, window_end, unnest(hashtags(text)) AS tag
             FROM HOP(posts, created, INTERVAL '10' SECOND, INTERVAL '60' SECOND)
             WHERE lang = 'en' OR text LIKE '%about%')
         GROUP BY window_start, window_end, lower(tag) ORDER BY n DESC LIMIT 10",
    ),
];

/// The last line of the job's output: medians of the dearest of [`VIEWS`].
#[derive(Debug, Serialize)]
pub(crate) struct Cost {
    job: &'static str,
    /// An empty batch, microseconds.
    empty_us: f64,
    /// A batch of a thousand rows, microseconds.
    thousand_us: f64,
}

/// Measures every view with empty batches and with batches of a thousand rows.
///
/// # Errors
/// As the engine.
pub(crate) fn batch() -> Result<Cost> {
    let full = (0..BATCHES).map(|batch| Ok(vec![posts(batch)?])).collect::<Result<Vec<_>>>()?;
    let mut cost = Cost { job: "batch", empty_us: 0.0, thousand_us: 0.0 };
    for (name, view) in VIEWS {
        let (of_full, of_empty) = measure(view, &full)?;
        eprintln!("batch: {name}: empty {of_empty:.0} µs, a thousand rows {of_full:.0} µs, medians of {BATCHES}");
        cost.empty_us = cost.empty_us.max(of_empty);
        cost.thousand_us = cost.thousand_us.max(of_full);
    }
    Ok(cost)
}

/// The medians of a batch with rows, and of one after them to which nothing has come, microseconds.
fn measure(view: &str, batches: &[Vec<RecordBatch>]) -> Result<(f64, f64)> {
    let mut program = SqlProgram::new(2);
    program.queue("posts", batches.to_vec());
    let stream =
        "CREATE STREAM posts (WATERMARK FOR created AS created - INTERVAL '1' SECOND) WITH (connector = 'program');";
    program.start(&format!("{stream} CREATE VIEW v AS {view}"))?;
    let median_of = |count: usize| -> Result<f64> {
        let (tell, ended) = std::sync::mpsc::channel();
        let mut begun = Instant::now();
        program.steps(count, move || {
            let now = Instant::now();
            // Nobody leaves before the end.
            let _heard = tell.send(now - begun);
            begun = Instant::now();
        })?;
        let times: Vec<f64> = ended.iter().map(|time| time.as_secs_f64() * 1e6).collect();
        Ok(median(&times[WARM..]).unwrap_or_default())
    };
    Ok((median_of(batches.len())?, median_of(BATCHES)?))
}

/// A thousand posts within a tenth of a second.
fn posts(batch: usize) -> Result<RecordBatch> {
    let rows = 0..1_000_usize;
    let times = rows
        .clone()
        .map(|row| i64::try_from(batch * 100_000 + row * 100))
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let text = rows.clone().map(|row| format!("post {row} about #tag{} and #Rust", row * 7 % 50));
    let lang = rows.map(|row| if row % 3 == 0 { "en" } else { "de" });
    Ok(RecordBatch::try_from_iter([
        ("created", Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")) as _),
        ("text", Arc::new(StringArray::from_iter_values(text)) as _),
        ("lang", Arc::new(StringArray::from_iter_values(lang)) as _),
    ])?)
}
