//! Tests of the log; the parts by what they attack.

mod basic;
mod crash;
mod cut;
mod damage;
mod format;
mod model;
mod retention;
mod schedule;

use super::*;
use crate::SimDisk;
use arrow_array::{BinaryArray, Int64Array, RecordBatch, cast::AsArray, types::Int64Type};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use tidemill_core::{ManualClock, Offset, Timestamp};

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false), Field::new("raw", DataType::Binary, true)]))
}

/// Rows that know their number: `n` and a text of `width` bytes made from it.
fn rows(from: i64, count: i64, width: usize) -> RecordBatch {
    let numbers: Vec<i64> = (from..from + count).collect();
    let raw: Vec<Vec<u8>> = numbers.iter().map(|n| n.to_le_bytes().repeat(width / 8 + 1)[..width].to_vec()).collect();
    let raw = BinaryArray::from_iter_values(raw);
    RecordBatch::try_new(schema(), vec![Arc::new(Int64Array::from(numbers)), Arc::new(raw)]).unwrap()
}

fn numbers(rows: &RecordBatch) -> Vec<i64> {
    rows.column(0).as_primitive::<Int64Type>().values().to_vec()
}

/// All numbers in `[from, to)`, checked against their texts and offsets.
fn read(topic: &Topic, from: u64, to: u64) -> Result<Vec<i64>> {
    let mut all = Vec::new();
    for run in topic.read(0, Offset(from), Offset(to)) {
        let run = run?;
        assert_eq!(run.base.0, from + all.len() as u64);
        assert_eq!(run.times.iter().map(|t| t.0 as usize).sum::<usize>(), run.rows.num_rows());
        for (n, raw) in numbers(&run.rows).into_iter().zip(run.rows.column(1).as_binary::<i32>()) {
            assert!(raw.unwrap().chunks(8).all(|c| *c == n.to_le_bytes()[..c.len()]));
            all.push(n);
        }
    }
    Ok(all)
}

fn forget_cache(topic: &Topic) {
    topic.partitions().iter().for_each(|p| p.tail.lock().clear());
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(Timestamp(1_000_000)))
}

fn config(sync: Sync) -> TopicConfig {
    TopicConfig { sync, segment_bytes: 4096, ..TopicConfig::new(schema()) }
}

/// A log without threads.
fn quiet(disk: &SimDisk) -> Result<Log> {
    Log::quiet(Arc::new(disk.clone()), Path::new("/data/log"), clock())
}

fn tidy(topic: &Topic) {
    topic.partitions().iter().for_each(|p| tidy_one(p));
}
