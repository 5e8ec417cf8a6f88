//! SQL programs against an oracle: plain DataFusion over all the input at once.

use super::catalog;
use crate::testing::SqlProgram;
use arrow_array::{Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_cast::pretty::pretty_format_batches;
use datafusion::datasource::MemTable;
use std::sync::Arc;

/// A row of the test stream: time in seconds, tag, number.
type Row = (i64, &'static str, Option<i64>);

fn rows(of: &[Row]) -> RecordBatch {
    let time = TimestampMicrosecondArray::from_iter_values(of.iter().map(|r| r.0 * 1_000_000)).with_timezone("UTC");
    RecordBatch::try_from_iter_with_nullable([
        ("t", Arc::new(time) as _, false),
        ("tag", Arc::new(StringArray::from_iter_values(of.iter().map(|r| r.1))) as _, false),
        ("n", Arc::new(Int64Array::from_iter(of.iter().map(|r| r.2))) as _, true),
        ("x", Arc::new(Float64Array::from_iter_values(of.iter().map(|r| r.2.unwrap_or(1) as f64 / 4.0))) as _, false),
    ])
    .unwrap()
}

const POSTS: &str = "CREATE STREAM posts (WATERMARK FOR t AS t - INTERVAL '3' SECOND) WITH (connector = 'program');\n";

/// The rows as text, in an order of their own.
fn sorted(batches: &[RecordBatch]) -> Vec<String> {
    let text = pretty_format_batches(batches).unwrap().to_string();
    let mut lines: Vec<String> = text.lines().filter(|l| l.starts_with('|')).skip(1).map(squeeze).collect();
    lines.sort();
    lines
}

fn squeeze(line: &str) -> String {
    line.split('|').map(str::trim).collect::<Vec<_>>().join("|")
}

fn program(partitions: usize, entries: Vec<Vec<RecordBatch>>, views: &str) -> SqlProgram {
    let mut program = SqlProgram::new(partitions);
    program.queue("posts", entries);
    program.start(&format!("{POSTS}{views}")).unwrap();
    program
}

/// What DataFusion gives for a query over a table of all rows.
fn oracle(all: &[RecordBatch], query: &str) -> Vec<RecordBatch> {
    catalog::with_room(|| async {
        let session = catalog::session(catalog::config(2));
        let table = MemTable::try_new(all[0].schema(), vec![all.to_vec()]).unwrap();
        session.register_table("posts", Arc::new(table)).unwrap();
        Ok(session.sql(query).await.unwrap().collect().await.unwrap())
    })
    .unwrap()
}

#[test]
fn a_select_gives_the_rows_of_the_batch() {
    let entries = vec![vec![rows(&[(1, "a", Some(1)), (2, "b", None)])], vec![rows(&[(3, "c", Some(3))])]];
    let mut program =
        program(2, entries, "CREATE VIEW v AS SELECT upper(tag) AS tag, n + 1 AS m FROM posts WHERE n > 0");
    program.step().unwrap();
    assert_eq!(sorted(&[program.view("v").unwrap()]), ["|A|2|"]);
    program.step().unwrap();
    assert_eq!(sorted(&[program.view("v").unwrap()]), ["|C|4|"]);
}

#[test]
fn a_group_by_goes_on_from_batch_to_batch() {
    let entries = vec![
        vec![rows(&[(1, "a", Some(1)), (2, "b", None)]), rows(&[(2, "a", Some(5))])],
        vec![rows(&[(3, "c", Some(3))]), rows(&[(2, "a", Some(1))])],
    ];
    let all: Vec<RecordBatch> = entries.iter().flatten().cloned().collect();
    let query = "SELECT tag, count(*) AS rows, count(n) AS c, sum(n) AS s, avg(x) AS a, min(n) AS lo, max(n) AS hi, count(DISTINCT n) AS d FROM posts GROUP BY tag";
    let mut program = program(2, entries, &format!("CREATE VIEW v AS {query}"));
    program.step().unwrap();
    program.step().unwrap();
    assert_eq!(sorted(&[program.view("v").unwrap()]), sorted(&oracle(&all, query)));
    program.step().unwrap();
    assert_eq!(sorted(&[program.view("v").unwrap()]), sorted(&oracle(&all, query)), "an idle batch changes nothing");
}

#[test]
fn a_window_is_given_once_when_it_closes() {
    let entries = vec![
        vec![rows(&[(1, "a", Some(1)), (11, "b", Some(2))]), rows(&[(5, "a", Some(3))])],
        vec![rows(&[(9, "late but in time", Some(1))]), rows(&[(13, "b", Some(1))])],
        vec![rows(&[(2, "too late", Some(1)), (30, "c", Some(1))])],
    ];
    let mut program = program(
        2,
        entries,
        "CREATE VIEW v AS SELECT window_start, window_end, tag, sum(n) AS s
         FROM TUMBLE(TABLE posts, DESCRIPTOR(t), INTERVAL '10' SECOND) GROUP BY window_start, window_end, tag",
    );
    program.step().unwrap();
    assert!(program.view("v").is_none(), "the watermark is at 8 s");
    program.step().unwrap();
    let first = sorted(&[program.view("v").unwrap()]);
    assert_eq!(
        first,
        [
            "|1970-01-01T00:00:00Z|1970-01-01T00:00:10Z|a|4|",
            "|1970-01-01T00:00:00Z|1970-01-01T00:00:10Z|late but in time|1|"
        ]
    );
    program.step().unwrap();
    assert_eq!(sorted(&[program.view("v").unwrap()]), ["|1970-01-01T00:00:10Z|1970-01-01T00:00:20Z|b|3|"]);
    assert_eq!(program.context().board().program().late, 1);
}
