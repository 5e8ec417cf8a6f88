//! Nexmark: an auction house as a benchmark for streaming SQL.
//!
//! The queries are files, `bench/nexmark`; [`generate`] makes the events.
//! Each query runs once as a program with a data directory, a checkpoint each
//! batch, and a sink that keeps the rows; then its answer is compared with that
//! of plain DataFusion over all the events at once. Where the query's own text
//! is not plain SQL (windows), `bench/nexmark/oracle` has one that is.
//!
//! The clock runs from building the program to its end; making the events is
//! inside, comparing is not.

mod generate;
#[cfg(test)]
mod restart;

use crate::Result;
use arrow_array::RecordBatch;
use arrow_cast::pretty::pretty_format_batches;
use async_trait::async_trait;
use datafusion::{datasource::MemTable, prelude::SessionContext};
use futures::{TryStreamExt, stream::BoxStream};
use generate::{Events, Kind};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tidemill_core::{BatchId, Guarantee, Sink, StagedPart, Timestamp};
use tidemill_engine::{StreamingContext, Trigger};

/// Events of a batch.
const BATCH: u64 = 200_000;
/// Keys of the side input.
const SIDE: i64 = 10_000;

/// What is run.
#[derive(Debug, Clone, Copy)]
struct Size {
    events: u64,
    /// Events of a batch, and so of a checkpoint.
    batch: u64,
    threads: usize,
    seed: u64,
}

/// What a query's rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gives {
    /// New rows in each batch: all of them together are the answer.
    New,
    /// The whole result again: the last is the answer.
    Whole,
}
use Gives::{New, Whole};

/// The queries and what they give.
const QUERIES: [(&str, Gives); 20] = [
    ("q0", New),
    ("q1", New),
    ("q2", New),
    ("q3", New),
    ("q4", Whole),
    ("q5", New),
    ("q6", Whole),
    ("q7", New),
    ("q8", New),
    ("q9", Whole),
    ("q11", New),
    ("q12", New),
    ("q13", New),
    ("q15", Whole),
    ("q16", Whole),
    ("q17", Whole),
    ("q18", Whole),
    ("q19", Whole),
    ("q20", New),
    ("q22", New),
];

/// A line of output.
#[derive(Debug, Serialize)]
struct Outcome {
    job: String,
    events: u64,
    seconds: f64,
    events_per_s: f64,
    /// By thread: what to compare with figures by core.
    events_per_s_core: f64,
    rows: usize,
    /// Whether the answer was that of one query over all events.
    exact: bool,
}

/// Runs one query, or all.
///
/// # Errors
/// When a query is not there or fails.
pub(crate) fn run(query: Option<&str>, events: u64, threads: usize, seed: u64) -> Result<()> {
    let wanted: Vec<&(&str, Gives)> = QUERIES.iter().filter(|(name, _)| query.is_none_or(|q| q == *name)).collect();
    if wanted.is_empty() {
        let names: Vec<&str> = QUERIES.iter().map(|(name, _)| *name).collect();
        return Err(format!("there is no query {}; there are {}", query.unwrap_or_default(), names.join(", ")).into());
    }
    let size = Size { events, batch: BATCH, threads, seed };
    let mut wrong = Vec::new();
    for (name, gives) in wanted {
        let side = side_input()?;
        let (elapsed, rows) = stream(name, *gives, size, side.path())?;
        let difference = compare(&rows, &oracle(name, size, side.path())?)?;
        if let Some(difference) = &difference {
            eprintln!("{name}: {difference}");
            wrong.push(*name);
        }
        println!("{}", serde_json::to_string(&outcome(name, size, elapsed, &rows, difference.is_none()))?);
    }
    if wrong.is_empty() { Ok(()) } else { Err(format!("wrong answers: {}", wrong.join(", ")).into()) }
}

#[expect(clippy::cast_precision_loss, reason = "rates for people")]
fn outcome(name: &str, size: Size, elapsed: Duration, rows: &[RecordBatch], exact: bool) -> Outcome {
    let seconds = elapsed.as_secs_f64();
    let rate = size.events as f64 / seconds;
    Outcome {
        job: format!("nexmark-{name}"),
        events: size.events,
        seconds: (seconds * 1e3).round() / 1e3,
        events_per_s: rate.round(),
        events_per_s_core: (rate / size.threads as f64).round(),
        rows: rows.iter().map(RecordBatch::num_rows).sum(),
        exact,
    }
}

fn queries() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/nexmark")
}

fn text(file: &str, side: &Path) -> Result<String> {
    let path = queries().join(file);
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(text.replace("$DIR", &side.to_string_lossy()))
}

/// The table that q13 joins.
fn side_input() -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    let rows: String = (0..SIDE).map(|key| format!("{key},value {key}\n")).collect();
    std::fs::write(dir.path().join("side_input.csv"), format!("key,value\n{rows}"))?;
    Ok(dir)
}

/// What a query gives as a program, and how long it took.
fn stream(name: &str, gives: Gives, size: Size, side: &Path) -> Result<(Duration, Vec<RecordBatch>)> {
    let program = format!("{}\n{}", text("streams.sql", side)?, text(&format!("{name}.sql"), side)?);
    let data = tempfile::tempdir()?;
    *collected() = Collected { gives, last: BatchId(0), rows: Vec::new() };
    let mut registry = tidemill_connectors::registry();
    registry.add_sink("collect", |_| Ok(Arc::new(Collect)));
    let begun = Instant::now();
    let context = StreamingContext::builder("nexmark")
        .data_dir(data.path())
        .trigger(Trigger::Drain)
        .batch_records(size.batch)
        .partitions(size.threads)
        .registry(registry)
        .build();
    for kind in Kind::ALL {
        context.provide_source(kind.name(), Arc::new(Events::new(kind, size.seed, size.events)));
    }
    context.declare_sql(&program)?;
    context.start()?;
    context.await_termination()?;
    let elapsed = begun.elapsed();
    let late = context.board().program().late;
    if late > 0 {
        return Err(format!("{name}: {late} rows were late, and none is").into());
    }
    Ok((elapsed, std::mem::take(&mut collected().rows)))
}

/// What the sink keeps: all rows, or those of the last batch that gave any.
#[derive(Debug)]
struct Collected {
    gives: Gives,
    last: BatchId,
    rows: Vec<RecordBatch>,
}

/// A registry makes sinks from nothing but options, so what they keep is in one place.
static COLLECTED: Mutex<Collected> = Mutex::new(Collected { gives: New, last: BatchId(0), rows: Vec::new() });

fn collected() -> MutexGuard<'static, Collected> {
    COLLECTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A sink into [`COLLECTED`].
#[derive(Debug)]
struct Collect;

#[async_trait]
impl Sink for Collect {
    fn describe(&self) -> String {
        "memory".to_string()
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn stage(
        &self,
        batch: BatchId,
        _time: Timestamp,
        _part: usize,
        rows: BoxStream<'_, tidemill_core::Result<RecordBatch>>,
    ) -> tidemill_core::Result<Option<StagedPart>> {
        let rows: Vec<RecordBatch> =
            rows.try_filter(|rows| std::future::ready(rows.num_rows() > 0)).try_collect().await?;
        let mut kept = collected();
        if kept.gives == Whole && !rows.is_empty() && kept.last != batch {
            (kept.last, kept.rows) = (batch, Vec::new());
        }
        kept.rows.extend(rows);
        Ok(None)
    }

    async fn commit(&self, _batch: BatchId, _parts: &[StagedPart]) -> tidemill_core::Result<()> {
        Ok(())
    }
}

/// What plain DataFusion gives over all events.
fn oracle(name: &str, size: Size, side: &Path) -> Result<Vec<RecordBatch>> {
    let own = text(&format!("oracle/{name}.sql"), side);
    let text = match own {
        Ok(text) => text,
        Err(_) => text(&format!("{name}.sql"), side)?,
    };
    let query = match text.split_once("INSERT INTO out") {
        Some((_, query)) => query.to_string(),
        None => text,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let session = SessionContext::new();
        for kind in Kind::ALL {
            let source = Events::new(kind, size.seed, size.events);
            let rows = source.all_with_arrival()?;
            let table = MemTable::try_new(rows.schema(), vec![vec![rows]])?;
            session.register_table(kind.name(), Arc::new(table))?;
        }
        let csv = side.join("side_input.csv");
        let options = datafusion::prelude::CsvReadOptions::new();
        session.register_csv("side_input", csv.to_string_lossy(), options).await?;
        Ok(session.sql(query.trim().trim_end_matches(';')).await?.collect().await?)
    })
}

/// Where two answers differ, whatever the order of their rows.
fn compare(got: &[RecordBatch], expected: &[RecordBatch]) -> Result<Option<String>> {
    let lines = |rows: &[RecordBatch]| -> Result<Vec<String>> {
        let mut all = Vec::new();
        for rows in rows {
            // A batch at a time: columns of a table are as wide as their widest cell.
            let text = pretty_format_batches(std::slice::from_ref(rows))?.to_string();
            let cells = |line: &str| line.split('|').map(str::trim).collect::<Vec<_>>().join("|");
            all.extend(text.lines().filter(|line| line.starts_with('|')).skip(1).map(cells));
        }
        all.sort_unstable();
        Ok(all)
    };
    let (got, expected) = (lines(got)?, lines(expected)?);
    if got == expected {
        return Ok(None);
    }
    let at = got.iter().zip(&expected).position(|(a, b)| a != b).unwrap_or(got.len().min(expected.len()));
    let line = |lines: &[String]| lines.get(at).cloned().unwrap_or_else(|| "nothing".to_string());
    Ok(Some(format!(
        "{} rows, {} expected; first: got {}, expected {}",
        got.len(),
        expected.len(),
        line(&got),
        line(&expected)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_query_gives_what_one_query_over_all_events_gives() {
        let side = side_input().unwrap();
        for (name, gives) in QUERIES {
            let size = Size { events: 30_000, batch: 7_000, threads: 2, seed: 7 };
            let (_, rows) = stream(name, gives, size, side.path()).unwrap();
            let expected = oracle(name, size, side.path()).unwrap();
            assert!(expected.iter().map(RecordBatch::num_rows).sum::<usize>() > 0, "{name} has an answer");
            assert_eq!(compare(&rows, &expected).unwrap(), None, "{name}");
        }
    }

    #[test]
    fn a_wrong_answer_is_told() {
        let rows = |n: i64| {
            let column: arrow_array::ArrayRef = Arc::new(arrow_array::Int64Array::from(vec![n, 2]));
            RecordBatch::try_from_iter([("n", column)]).unwrap()
        };
        assert_eq!(compare(&[rows(1)], &[rows(1)]).unwrap(), None);
        let told = compare(&[rows(1)], &[rows(3)]).unwrap().unwrap();
        assert!(told.contains("got |1|, expected |2|"), "{told}");
    }
}
