//! What a batch of a SQL program costs beside its records: an empty one, and one
//! of a thousand rows, on plans that are kept.
//!
//! `cargo bench -p tidemill-engine --bench sql`
//!
//! Timed by hand, as `ops` is, and for its reason.

use arrow_array::{RecordBatch, StringArray, TimestampMicrosecondArray};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tidemill_engine::testing::SqlProgram;

const BATCHES: usize = 2_000;

/// A thousand posts within a tenth of a second.
fn posts(batch: usize) -> RecordBatch {
    let rows = 0..1_000_usize;
    let time = rows.clone().map(|row| i64::try_from(batch * 100_000 + row * 100).expect("a small number"));
    let text = rows.clone().map(|row| format!("post {row} about #tag{} and #Rust", row * 7 % 50));
    let lang = rows.map(|row| if row % 3 == 0 { "en" } else { "de" });
    RecordBatch::try_from_iter([
        ("created", Arc::new(TimestampMicrosecondArray::from_iter_values(time).with_timezone("UTC")) as _),
        ("text", Arc::new(StringArray::from_iter_values(text)) as _),
        ("lang", Arc::new(StringArray::from_iter_values(lang)) as _),
    ])
    .expect("columns of one length")
}

/// Prints the best, the middle and the worst of many batches.
fn measure(name: &str, view: &str, entries: Vec<Vec<RecordBatch>>) {
    let count = entries.len();
    let mut program = SqlProgram::new(2);
    program.queue("posts", entries);
    let stream =
        "CREATE STREAM posts (WATERMARK FOR created AS created - INTERVAL '1' SECOND) WITH (connector = 'program');";
    program.start(&format!("{stream} CREATE VIEW v AS {view}")).expect("a good program");
    let mut times: Vec<Duration> = (0..count)
        .map(|_| {
            let begun = Instant::now();
            program.step().expect("the batch runs");
            begun.elapsed()
        })
        .collect();
    times.sort();
    println!("{name:<28} best {:>9.2?}  middle {:>9.2?}  worst {:>9.2?}", times[0], times[count / 2], times[count - 1]);
}

fn main() {
    let full: Vec<Vec<RecordBatch>> = (0..BATCHES).map(|batch| vec![posts(batch)]).collect();
    let empty: Vec<Vec<RecordBatch>> = (0..BATCHES).map(|_| vec![posts(0).slice(0, 0)]).collect();
    let trend = "SELECT window_end, lower(tag) AS tag, count(*) AS n FROM (
                     SELECT window_start, window_end, unnest(hashtags(text)) AS tag
                     FROM HOP(posts, created, INTERVAL '10' SECOND, INTERVAL '60' SECOND)
                     WHERE lang = 'en' OR text LIKE '%about%')
                 GROUP BY window_start, window_end, lower(tag) ORDER BY n DESC LIMIT 10";
    for (name, view) in [
        ("select", "SELECT upper(lang) AS lang FROM posts WHERE lang = 'en'"),
        ("group by", "SELECT lang, count(*) AS n FROM posts GROUP BY lang"),
        ("hop, top ten", trend),
    ] {
        measure(&format!("{name}, empty"), view, empty.clone());
        measure(&format!("{name}, 1k rows"), view, full.clone());
    }
}
