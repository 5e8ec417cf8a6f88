//! SQL programs against an oracle: plain DataFusion over all the input at once.

mod again;
mod aggregates;
mod alerts;
mod asked;
mod beside;
mod decoding;
mod event_time;
mod fuzz;
mod goldens;
mod late;
mod lookup;
mod mistakes;
mod modes;
mod panes;
mod slides;
mod spill;
mod stops;
mod tables;
mod updates;

use super::session;
use crate::testing::SqlProgram;
use arrow_array::{Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, cast::AsArray};
use arrow_cast::pretty::pretty_format_batches;
use datafusion::datasource::MemTable;
use proptest::prelude::*;
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

/// The same over what `dir` keeps of it.
fn kept_program(dir: &std::path::Path, partitions: usize, entries: &[Vec<Vec<Row>>], views: &str) -> SqlProgram {
    let builder = crate::StreamingContext::builder("test").trigger(crate::Trigger::Drain).partitions(partitions);
    let mut program = SqlProgram::over(builder.data_dir(dir).build());
    program.queue("posts", batches(entries));
    program.start(&format!("{POSTS}{views}")).unwrap();
    program
}

/// What DataFusion gives for a query over a table of all rows.
fn oracle(all: &[RecordBatch], query: &str) -> Vec<RecordBatch> {
    session::with_room(|| async {
        let session = session::session(session::config(2), None);
        let table = MemTable::try_new(all[0].schema(), vec![all.to_vec()]).unwrap();
        session.register_table("posts", Arc::new(table)).unwrap();
        Ok(session.sql(query).await.unwrap().collect().await.unwrap())
    })
    .unwrap()
}

#[test]
fn a_select_gives_the_rows_of_the_batch() {
    let entries = vec![vec![rows(&[(1, "a", Some(1)), (2, "b", None)])], vec![rows(&[(3, "c", Some(3))])]];
    let program = program(2, entries, "CREATE VIEW v AS SELECT upper(tag) AS tag, n + 1 AS m FROM posts WHERE n > 0");
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
    let program = program(2, entries, &format!("CREATE VIEW v AS {query}"));
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
        vec![rows(&[(9, "late but in time", Some(1)), (13, "b", Some(1))]), rows(&[(13, "b", Some(0))])],
        vec![rows(&[(2, "too late", Some(1)), (30, "c", Some(1))]), rows(&[(23, "c", Some(1))])],
    ];
    let program = program(
        2,
        entries,
        "CREATE VIEW v AS SELECT window_start, window_end, tag, sum(n) AS s
         FROM TUMBLE(TABLE posts, DESCRIPTOR(t), INTERVAL '10' SECOND) GROUP BY window_start, window_end, tag",
    );
    program.step().unwrap();
    assert!(program.view("v").is_none(), "the watermark is at 2 s, held by the second partition");
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

/// Runs all entries and gives what `v` showed anew in each batch.
fn shown(program: &SqlProgram, batches: usize, first: u64) -> Vec<Option<RecordBatch>> {
    (0..batches as u64)
        .map(|batch| {
            program.step().unwrap();
            let view = program.context().board().view("v");
            view.filter(|view| view.batch.0 == first + batch).map(|view| view.rows.clone())
        })
        .collect()
}

const GROUPS: &str = "SELECT tag, count(*) AS rows, count(n) AS c, sum(n) AS s, avg(x) AS a, min(n) AS lo, max(n) AS hi, \
     count(DISTINCT n) AS d, count(*) FILTER (WHERE n > 2) AS big FROM posts GROUP BY tag";
/// Hops whose aggregates can all be merged pane by pane.
const MERGED_HOPS: &str = "SELECT window_start, window_end, tag, count(*) AS rows, sum(n) AS s, min(n) AS lo, avg(x) AS a \
     FROM HOP(posts, t, INTERVAL '4' SECOND, INTERVAL '10' SECOND) GROUP BY window_start, window_end, tag";
const HOPS: &str = "SELECT window_start, window_end, tag, count(*) AS rows, sum(n) AS s, count(DISTINCT n) AS d, avg(x) AS a \
     FROM HOP(posts, t, INTERVAL '4' SECOND, INTERVAL '10' SECOND) GROUP BY window_start, window_end, tag";

/// Random rows, cut into batches and parts. Times run forward with some disorder.
fn entries() -> impl Strategy<Value = Vec<Vec<Vec<Row>>>> {
    let row = (0..9_i64, prop::sample::select(vec!["a", "b", "c"]), prop::option::of(0..4_i64));
    let part = prop::collection::vec(row, 0..8);
    prop::collection::vec(prop::collection::vec(part, 1..4), 1..7).prop_map(|mut entries| {
        for (batch, entry) in (0_i64..).zip(&mut entries) {
            entry.iter_mut().flatten().for_each(|row| row.0 += batch * 4);
        }
        entries
    })
}

fn batches(entries: &[Vec<Vec<Row>>]) -> Vec<Vec<RecordBatch>> {
    entries.iter().map(|entry| entry.iter().map(|part| rows(part)).collect()).collect()
}

/// What HOP of 10 s each 4 s with a bound of 3 s must give: for each batch the
/// rows of each window that closes, once for each window that they are in; and
/// the number of late rows.
fn windows(entries: &[Vec<Vec<Row>>]) -> (Vec<Vec<(i64, Row)>>, u64) {
    let (mut watermark, mut kept, mut out, mut late) = (i64::MIN, Vec::<(i64, Row)>::new(), Vec::new(), 0);
    let mut parts = std::collections::BTreeMap::<usize, i64>::new();
    for entry in entries {
        for row in entry.iter().flatten() {
            let last = row.0.div_euclid(4) * 4;
            if last + 10 <= watermark {
                late += 1;
                continue;
            }
            let starts = (0..3).map(|i| last - 4 * i).filter(|start| *start + 10 > row.0 && *start + 10 > watermark);
            kept.extend(starts.map(|start| (start, *row)));
        }
        for (part, rows) in entry.iter().enumerate() {
            if let Some(largest) = rows.iter().map(|row| row.0).max() {
                parts.entry(part).and_modify(|at| *at = largest.max(*at)).or_insert(largest);
            }
        }
        // Nobody is idle so soon: the slowest partition holds the watermark.
        watermark = watermark.max(parts.values().min().map_or(i64::MIN, |largest| largest - 3));
        let (closed, open) = kept.into_iter().partition(|(start, _)| start + 10 <= watermark);
        kept = open;
        out.push(closed);
    }
    (out, late)
}

/// The model's windows, aggregated by DataFusion.
fn windows_aggregated(closed: &[(i64, Row)], query: &str) -> Vec<String> {
    if closed.is_empty() {
        return vec![];
    }
    let all = rows(&closed.iter().map(|(_, row)| *row).collect::<Vec<_>>());
    let start =
        TimestampMicrosecondArray::from_iter_values(closed.iter().map(|(s, _)| s * 1_000_000)).with_timezone("UTC");
    let end = TimestampMicrosecondArray::from_iter_values(closed.iter().map(|(s, _)| (s + 10) * 1_000_000))
        .with_timezone("UTC");
    let mut columns: Vec<(String, arrow_array::ArrayRef)> =
        all.schema().fields().iter().map(|f| f.name().clone()).zip(all.columns().iter().cloned()).collect();
    columns
        .extend([("window_start".to_string(), Arc::new(start) as _), ("window_end".to_string(), Arc::new(end) as _)]);
    let query = query.replace("HOP(posts, t, INTERVAL '4' SECOND, INTERVAL '10' SECOND)", "posts");
    sorted(&oracle(&[RecordBatch::try_from_iter(columns).unwrap()], &query))
}

/// Each window of a query gives what the model has, and as many rows are late.
fn equals_the_model(entries: &[Vec<Vec<Row>>], partitions: usize, query: &str) -> Result<(), TestCaseError> {
    let (expected, late) = windows(entries);
    let program = program(partitions, batches(entries), &format!("CREATE VIEW v AS {query}"));
    for (batch, (got, expected)) in shown(&program, entries.len(), 1).into_iter().zip(expected).enumerate() {
        let got = got.map_or(vec![], |rows| sorted(&[rows]));
        prop_assert_eq!(got, windows_aggregated(&expected, query), "batch {}", batch + 1);
    }
    prop_assert_eq!(program.context().board().program().late, late);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_group_by_equals_one_query_over_all_rows(entries in entries(), partitions in 1..4_usize) {
        let batches = batches(&entries);
        let all: Vec<RecordBatch> = batches.iter().flatten().cloned().collect();
        let count = batches.len();
        let program = program(partitions, batches, &format!("CREATE VIEW v AS {GROUPS}"));
        let last = shown(&program, count, 1).pop().flatten().expect("a whole result each batch");
        prop_assert_eq!(sorted(&[last]), sorted(&oracle(&all, GROUPS)));
    }

    #[test]
    fn hops_equal_the_model(
        entries in entries(),
        partitions in 1..4_usize,
        query in prop::sample::select(vec![HOPS, MERGED_HOPS]),
    ) {
        equals_the_model(&entries, partitions, query)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn a_restart_in_between_changes_nothing(entries in entries(), cut in 0..7_usize) {
        let dir = tempfile::tempdir().unwrap();
        let (expected, _) = windows(&entries);
        let all: Vec<RecordBatch> = batches(&entries).into_iter().flatten().collect();
        let cut = cut.min(entries.len());
        let start = || kept_program(dir.path(), 2, &entries, &format!("CREATE VIEW v AS {HOPS}; CREATE VIEW totals AS {GROUPS}"));
        let before = start();
        let mut got = shown(&before, cut, 1);
        drop(before);
        let after = start();
        got.extend(shown(&after, entries.len() - cut, cut as u64 + 1));
        for (got, expected) in got.into_iter().zip(expected) {
            prop_assert_eq!(got.map_or(vec![], |rows| sorted(&[rows])), windows_aggregated(&expected, HOPS));
        }
        // One batch more, in which nothing comes: the restored whole result is there.
        after.step().unwrap();
        prop_assert_eq!(sorted(&[after.view("totals").unwrap()]), sorted(&oracle(&all, GROUPS)));
    }
}

#[test]
fn partial_rows_are_merged_when_they_pile_up() {
    const TAGS: [&str; 3] = ["a", "b", "c"];
    let total = "SELECT count(*) AS c, sum(n) AS s, count(DISTINCT n) AS d, avg(x) AS a FROM posts";
    let entries: Vec<Vec<RecordBatch>> = (0..150_i64)
        .map(|i| vec![rows(&[(i / 20, TAGS[usize::try_from(i % 3).unwrap()], (i % 7 > 0).then_some(i % 5))])])
        .collect();
    let all: Vec<RecordBatch> = entries.iter().flatten().cloned().collect();
    let program = program(2, entries, &format!("CREATE VIEW v AS {GROUPS}; CREATE VIEW total AS {total}"));
    for _ in 0..150 {
        program.step().unwrap();
    }
    assert_eq!(sorted(&[program.view("v").unwrap()]), sorted(&oracle(&all, GROUPS)));
    assert_eq!(sorted(&[program.view("total").unwrap()]), sorted(&oracle(&all, total)));
    let held: Vec<usize> = program.states();
    assert!(held.iter().all(|rows| *rows <= 2 * 65 + 3), "rows are merged: {held:?}");
}

#[test]
fn the_top_is_taken_within_each_window() {
    let entries = vec![
        vec![rows(&[
            (1, "a", None),
            (1, "a", None),
            (2, "b", None),
            (11, "c", None),
            (11, "d", None),
            (12, "d", None),
        ])],
        vec![rows(&[(40, "e", None)])],
    ];
    let program = program(
        2,
        entries,
        "CREATE VIEW v AS SELECT tag, count(*) AS n FROM TUMBLE(posts, t, INTERVAL '10' SECOND)
         GROUP BY window_start, tag HAVING count(*) > 0 ORDER BY n DESC, tag LIMIT 1",
    );
    program.step().unwrap();
    program.step().unwrap();
    let text = pretty_format_batches(&[program.view("v").unwrap()]).unwrap().to_string();
    let lines: Vec<String> = text.lines().filter(|l| l.starts_with('|')).skip(1).map(squeeze).collect();
    assert_eq!(lines, ["|a|2|", "|d|2|"], "the oldest window first");
}

#[test]
fn an_ungrouped_total_and_a_having_that_empties_the_view() {
    let entries = vec![vec![rows(&[(1, "a", Some(1))])], vec![rows(&[(2, "a", Some(1))])]];
    let program = program(
        2,
        entries,
        "CREATE VIEW total AS SELECT count(*) AS n FROM posts;
         CREATE VIEW once AS SELECT tag, count(*) AS n FROM posts GROUP BY tag HAVING count(*) < 2",
    );
    program.step().unwrap();
    assert_eq!(sorted(&[program.view("once").unwrap()]), ["|a|1|"]);
    program.step().unwrap();
    assert_eq!(program.view("once").unwrap().num_rows(), 0);
    assert_eq!(sorted(&[program.view("total").unwrap()]), ["|2|"]);
}

#[test]
fn views_read_views_and_streams_join_tables() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("names.csv");
    std::fs::write(&path, "tag,name\na,Anna\nb,Bert\n").unwrap();
    let entries = vec![vec![rows(&[(1, "a", Some(1)), (2, "b", Some(7)), (2, "c", Some(9))])]];
    let program = program(
        2,
        entries,
        &format!(
            "CREATE EXTERNAL TABLE names STORED AS CSV LOCATION '{}';
             CREATE VIEW big AS SELECT tag, n FROM posts WHERE n > 5;
             CREATE VIEW named AS SELECT big.tag, name, n FROM big LEFT JOIN names ON big.tag = names.tag;
             CREATE VIEW sums AS SELECT name, sum(n) AS s FROM named GROUP BY name;
             CREATE VIEW shouted AS SELECT upper(name) AS name, s FROM sums WHERE name IS NOT NULL",
            path.display()
        ),
    );
    program.step().unwrap();
    assert_eq!(sorted(&[program.view("named").unwrap()]), ["|b|Bert|7|", "|c||9|"]);
    assert_eq!(sorted(&[program.view("sums").unwrap()]), ["|Bert|7|", "||9|"]);
    assert_eq!(sorted(&[program.view("shouted").unwrap()]), ["|BERT|7|"]);
    let answer = program.context().sql("SELECT s, names.name FROM sums JOIN names ON sums.name = names.name").unwrap();
    assert_eq!(sorted(&answer), ["|7|Bert|"]);
}

#[test]
fn hashtags_of_an_array_and_meta_columns() {
    let entries = vec![vec![rows(&[(1, "#Rust and #SQL", None), (2, "none", None)])]];
    let program = program(
        2,
        entries,
        "CREATE VIEW v AS SELECT lower(tag) AS tag, count(*) AS n
         FROM (SELECT unnest(hashtags(tag)) AS tag FROM posts) GROUP BY lower(tag);
         CREATE VIEW places AS SELECT _partition, _offset, json_get_int('{\"a\":[5,{\"b\":6}]}', 'a[1].b') AS six FROM posts LIMIT 1;
         CREATE VIEW everything AS SELECT * FROM posts",
    );
    program.step().unwrap();
    assert_eq!(sorted(&[program.view("v").unwrap()]), ["|rust|1|", "|sql|1|"]);
    assert_eq!(sorted(&[program.view("places").unwrap()]), ["|0|0|6|"]);
    assert_eq!(program.view("everything").unwrap().num_columns(), 4, "a stream's own columns come when they are named");
}

#[test]
fn a_query_can_only_select() {
    let program = program(2, vec![vec![rows(&[(1, "a", Some(1))])]], "CREATE VIEW tags AS SELECT tag, n FROM posts");
    let context = program.context();
    assert_eq!(context.sql("SELECT * FROM tags").unwrap()[0].num_rows(), 0, "a view without rows yet");
    for query in [
        "COPY tags TO '/tmp/x.csv'",
        "SET a = 1",
        "INSERT INTO tags SELECT 1 AS a",
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM \"/etc/passwd\"",
        "SELECT 1 AS a; SELECT 2 AS b",
        "EXPLAIN SELECT 1",
        "",
    ] {
        assert!(context.sql(query).is_err(), "{query}");
    }
    let error = context.sql("SELECT * FROM tag").unwrap_err().to_string();
    assert_eq!(error, "line 1, column 15: there is no view, table or topic `tag`; did you mean `tags`?");
    program.step().unwrap();
    assert_eq!(sorted(&program.context().sql("SELECT n + 1 AS m FROM tags").unwrap()), ["|2|"]);
}

#[test]
fn plans_say_what_they_do_without_being_started() {
    let context = crate::StreamingContext::builder("test").check_only().partitions(2).build();
    let program = SqlProgram::over(context);
    program.queue("posts", vec![vec![rows(&[(1, "a", Some(1))])]]);
    program.context().declare_sql(&format!("{POSTS}CREATE VIEW v AS {HOPS}")).unwrap();
    let plan = program.context().explain().unwrap();
    assert!(plan.starts_with("posts: reads 1 queued entries\n\nv: a view, shown after the commit; gives the rows of each window once, when it closes (append)\n"), "{plan}");
    for part in [
        "v: state",
        "mode=Final",
        "mode=Partial",
        "v: panes of 2000000 µs by t",
        "source posts: [\"t\", \"tag\", \"n\", \"x\", \"_offset\", \"_partition\"]",
    ] {
        assert!(plan.contains(part), "no {part} in\n{plan}");
    }
    assert!(!plan.contains("Repartition"), "{plan}");
    assert!(program.context().start().is_err());
}
