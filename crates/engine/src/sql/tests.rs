//! SQL programs against an oracle: plain DataFusion over all the input at once.

mod beside;
mod decoding;

use super::catalog;
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

/// What DataFusion gives for a query over a table of all rows.
fn oracle(all: &[RecordBatch], query: &str) -> Vec<RecordBatch> {
    catalog::with_room(|| async {
        let session = catalog::session(catalog::config(2), None);
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
        vec![rows(&[(9, "late but in time", Some(1))]), rows(&[(13, "b", Some(1))])],
        vec![rows(&[(2, "too late", Some(1)), (30, "c", Some(1))])],
    ];
    let program = program(
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

#[test]
fn late_rows_are_dead_letters() {
    let dir = tempfile::tempdir().unwrap();
    let late: Vec<(i64, &str, Option<i64>)> = vec![(2, "too late", Some(1)); 10_050];
    let entries = vec![
        vec![rows(&[(50, "a", Some(1))])],
        vec![rows(&[(2, "too \"late\"\n", None), (30, "b", Some(1)), (60, "c", None)])],
        vec![rows(&late)],
    ];
    let context =
        crate::StreamingContext::builder("p").trigger(crate::Trigger::Drain).partitions(2).data_dir(dir.path());
    let mut program = crate::testing::SqlProgram::over(context.build());
    program.queue("posts", entries);
    program
        .start(
            "CREATE STREAM posts (WATERMARK FOR t AS t - INTERVAL '10' SECOND) WITH (connector = 'program');
             CREATE VIEW v AS SELECT window_end, sum(n) AS s
             FROM TUMBLE(TABLE posts, DESCRIPTOR(t), INTERVAL '10' SECOND) WHERE tag <> '' GROUP BY window_start, window_end",
        )
        .unwrap();
    program.step().unwrap();
    program.step().unwrap();
    let topic = program.pipeline().keep.as_ref().unwrap().log().topic("p.dead").unwrap();
    let letters = |from: u64| {
        let all: Vec<RecordBatch> =
            topic.read(0, tidemill_core::Offset(from), topic.end(0)).map(|rows| rows.unwrap().rows).collect();
        let text = |column: usize| -> Vec<String> {
            let column =
                |rows: &RecordBatch| arrow_cast::cast(rows.column(column), &arrow_schema::DataType::Utf8).unwrap();
            all.iter()
                .flat_map(|r| column(r).as_string::<i32>().iter().map(|v| v.unwrap().to_string()).collect::<Vec<_>>())
                .collect()
        };
        [0, 3, 4, 5].map(text)
    };
    let [stream, batch, reason, raw] = letters(0);
    assert_eq!((stream, batch), (vec!["posts".to_string(); 2], vec!["2".to_string(); 2]));
    let at = "and the watermark of `v` was at 1970-01-01T00:00:40.000Z";
    let of = |time: &str| format!("late: `t` is 1970-01-01T00:00:{time}.000Z, {at}");
    assert_eq!(reason, [of("02"), of("30")]);
    assert_eq!(raw[0], r#"{"t":"1970-01-01T00:00:02Z","tag":"too \"late\"\n","n":null}"#);
    assert!(raw[1].contains(r#""tag":"b","n":1"#), "{}", raw[1]);
    let report = program.context().board().program();
    assert_eq!((report.late, report.refused), (2, 0));

    // Of very many, some are kept and the others counted.
    program.step().unwrap();
    let [_, _, reason, raw] = letters(2);
    assert_eq!((reason.len(), raw[10_000].as_str()), (10_001, ""));
    assert_eq!(reason[10_000], "late: 50 more rows of this batch, of which nothing else is kept");
    assert_eq!(topic.retention().max_bytes, Some(256 << 20), "dead letters are bounded");
    program.step().unwrap();
    assert_eq!(topic.end(0).0, 10_003, "each is kept once");
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
        let largest = entry.iter().flatten().map(|row| row.0).max().unwrap_or(i64::MIN + 3);
        watermark = watermark.max(largest - 3);
        let (closed, open) = kept.into_iter().partition(|(start, _)| start + 10 <= watermark);
        kept = open;
        out.push(closed);
    }
    (out, late)
}

/// The model's windows, aggregated by DataFusion.
fn windows_aggregated(closed: &[(i64, Row)]) -> Vec<String> {
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
    let query = HOPS.replace("HOP(posts, t, INTERVAL '4' SECOND, INTERVAL '10' SECOND)", "posts");
    sorted(&oracle(&[RecordBatch::try_from_iter(columns).unwrap()], &query))
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
    fn hops_equal_the_model(entries in entries(), partitions in 1..4_usize) {
        let (expected, late) = windows(&entries);
        let count = entries.len();
        let program = program(partitions, batches(&entries), &format!("CREATE VIEW v AS {HOPS}"));
        for (batch, (got, expected)) in shown(&program, count, 1).into_iter().zip(expected).enumerate() {
            let got = got.map_or(vec![], |rows| sorted(&[rows]));
            prop_assert_eq!(got, windows_aggregated(&expected), "batch {}", batch + 1);
        }
        prop_assert_eq!(program.context().board().program().late, late);
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
        let start = || {
            let context = crate::StreamingContext::builder("test")
                .trigger(crate::Trigger::Drain).partitions(2).data_dir(dir.path()).build();
            let mut program = SqlProgram::over(context);
            program.queue("posts", batches(&entries));
            program.start(&format!("{POSTS}CREATE VIEW v AS {HOPS}; CREATE VIEW totals AS {GROUPS}")).unwrap();
            program
        };
        let before = start();
        let mut got = shown(&before, cut, 1);
        drop(before);
        let after = start();
        got.extend(shown(&after, entries.len() - cut, cut as u64 + 1));
        for (got, expected) in got.into_iter().zip(expected) {
            prop_assert_eq!(got.map_or(vec![], |rows| sorted(&[rows])), windows_aggregated(&expected));
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

fn error_of(program: &str) -> String {
    let mut sql = SqlProgram::new(2);
    sql.queue("posts", vec![vec![rows(&[(1, "a", None)])]]);
    sql.start(&format!("{POSTS}{program}")).expect_err("an error").to_string()
}

#[test]
fn declared_columns_must_be_those_of_the_source() {
    for (columns, expected) in [
        ("(tagg TEXT)", "column `tagg` is declared and the source has no such column; it has t, tag, n, x"),
        ("(n TEXT)", "column `n` is declared as Utf8 and the source gives Int64"),
        ("(WATERMARK FOR tag AS tag)", "WATERMARK FOR `tag`: the column is TEXT, and event time is a TIMESTAMP"),
    ] {
        let mut sql = SqlProgram::new(1);
        sql.queue("posts", vec![vec![rows(&[(1, "a", None)])]]);
        let error = sql.start(&format!("CREATE STREAM posts {columns} WITH (connector = 'program')")).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn errors_name_the_place_and_the_way_out() {
    for (program, expected) in [
        (
            "CREATE STREEM x",
            "line 2, column 8: expected STREAM, TABLE, VIEW, SINK after CREATE, found `STREEM`; did you mean STREAM?",
        ),
        (
            "SELEC 1",
            "line 2, column 1: expected CREATE, INSERT, SELECT, WITH at the beginning of a statement, found `SELEC`; did you mean SELECT?",
        ),
        ("CREATE VIEW v AS SELECT FROM", "line 2, column"),
        ("CREATE VIEW v AS SELECT 1 AS a 2", "expected the end of the statement, found `2`"),
        ("CREATE VIEW v AS SELECT * FROM post", "there is no stream, table or view `post`; did you mean `posts`?"),
        ("CREATE VIEW posts AS SELECT 1 AS a", "there is a stream of that name"),
        (
            "CREATE VIEW v AS\n SELECT tagg FROM posts",
            "line 3, column 9: CREATE VIEW v: there is no column `tagg`; did you mean `tag`?",
        ),
        (
            "CREATE VIEW v AS SELECT window_end FROM posts",
            "line 2, column 25: CREATE VIEW v: there is no column `window_end`; it comes from TUMBLE or HOP in FROM",
        ),
        (
            "CREATE VIEW v AS SELECT coutn(*) AS n FROM posts",
            "line 2, column 25: CREATE VIEW v: there is no function `coutn`; did you mean `count`?",
        ),
        (
            "CREATE VIEW v AS SELECT tag, count(*) AS n FROM posts",
            "line 2, column 25: CREATE VIEW v: column `tag` stands beside an aggregate in SELECT: add it to GROUP BY",
        ),
        (
            "CREATE VIEW v AS SELECT count(*) AS c FROM posts GROUP BY tag HAVING n > 1",
            "line 2, column 70: CREATE VIEW v: column `n` stands beside an aggregate in HAVING",
        ),
        (
            "CREATE VIEW v AS SELECT sum(tag) AS n FROM posts",
            "line 2, column 25: CREATE VIEW v: function `sum` can't take TEXT: convert it, as in CAST(x AS BIGINT)",
        ),
        (
            "CREATE VIEW v AS SELECT n FROM posts WHERE tag = \"ebb\"",
            "line 2, column 50: CREATE VIEW v: there is no column `ebb`; there are t, tag, n, x; a text stands in single quotes: 'ebb'",
        ),
        ("CREATE VIEW v AS SELECT n FROM posts WHERE tag", "line 2, column 44: CREATE VIEW v: `tag` is no condition"),
        ("CREATE VIEW v AS SELECT CAST(n AS MONEY) AS n FROM posts", "there is no type `MONEY` here; use TEXT"),
        ("CREATE VIEW v AS SELECT substr(tag) AS n FROM posts", "`substr` needs a start"),
        ("CREATE VIEW v AS SELECT n AS a, n AS a FROM posts", "another name with AS"),
        ("CREATE VIEW v AS SELECT tag + 1 AS n FROM posts", "there is no TEXT + BIGINT: convert one side"),
        (
            "CREATE VIEW v AS SELECT n FROM posts WHERE t > '2026-13-01'",
            "line 2, column 48: CREATE VIEW v: `2026-13-01` is no time: write it as '2026-05-25 14:00:00'",
        ),
        ("CREATE VIEW v AS SELECT tag FROM posts WHERE", "in this statement: expected an expression, found its end"),
        ("SELECT 1", "a query alone shows nothing in a program"),
        ("INSERT INTO nowhere SELECT 1 AS a", "there is no sink `nowhere`"),
        ("INSERT INTO posts SELECT 1 AS a", "`posts` is a stream, and rows go into sinks only"),
        ("CREATE STREAM s (a TEXT, WATERMARK FOR b AS b) WITH (connector = 'x')", "there is no such column"),
        ("CREATE STREAM s (a MONEY) WITH (connector = 'x')", "there is no type MONEY here"),
        ("CREATE STREAM s WITH (connector = 'x', connector = 'y')", "option `connector` is there twice"),
        ("CREATE STREAM s (a TEXT)", "expected WITH"),
        ("CREATE STREAM s WITH (connector = 'program')", "gave no source of that name"),
        (
            "CREATE TABLE t WITH (connector = 'csv', path = '/nowhere/x.csv')",
            "there is no file or directory `/nowhere/x.csv`",
        ),
        ("CREATE TABLE t WITH (connector = 'cvs', path = '/')", "did you mean `csv`?"),
        ("CREATE TABLE t WITH (connector = 'csv', path = 's3://x/y')", "not a local path"),
        (
            "CREATE VIEW v AS SELECT count(*) AS n FROM TUMBLE(posts, t, INTERVAL '10' SECOND)",
            "must be grouped by the window",
        ),
        ("CREATE VIEW v AS SELECT tag FROM TUMBLE(posts, t, INTERVAL '10' SECOND)", "needs an aggregate"),
        (
            "CREATE VIEW v AS SELECT count(*) AS n FROM TUMBLE(posts, tag, INTERVAL '10' SECOND) GROUP BY window_start",
            "a window needs a TIMESTAMP column, and `tag` is Utf8",
        ),
        (
            "CREATE VIEW v AS SELECT count(*) AS n FROM HOP(posts, t, INTERVAL '60' SECOND, INTERVAL '10' SECOND) GROUP BY window_start",
            "a window's slide (60s) must not exceed its size (10s): records between two windows would be lost; it reads: HOP(",
        ),
        (
            "CREATE VIEW v AS SELECT count(*) AS n FROM TUMBLE(posts, t, INTERVAL '1' MONTH) GROUP BY window_start",
            "no fixed length",
        ),
        ("CREATE VIEW v AS SELECT count(*) AS n FROM TUMBLE(posts, t) GROUP BY window_start", "TUMBLE reads: TUMBLE("),
        (
            "CREATE VIEW v AS SELECT count(*) AS n FROM TUMBLE(posts, t, INTERVAL '10' SECOND) WHERE window_start > t GROUP BY window_start",
            "known only when the window closes",
        ),
        (
            "CREATE VIEW v AS SELECT max(n) AS n FROM (SELECT tag, count(*) AS n FROM posts GROUP BY tag)",
            "an aggregate over an aggregate over a stream",
        ),
        (
            "CREATE VIEW a AS SELECT tag, count(*) AS n FROM posts GROUP BY tag; CREATE VIEW v AS SELECT max(n) AS n FROM a",
            "again and again",
        ),
        ("CREATE VIEW v AS SELECT a.tag FROM posts a JOIN posts b ON a.tag = b.tag", "a join of two streams"),
        ("CREATE VIEW v AS SELECT DISTINCT tag FROM posts", "DISTINCT over a stream: use GROUP BY"),
        (
            "CREATE VIEW v AS SELECT row_number() OVER (ORDER BY t) AS n FROM posts",
            "window functions (OVER) over a stream",
        ),
        ("CREATE VIEW v AS SELECT tag FROM posts WHERE n = (SELECT max(n) FROM posts)", "a subquery over a stream"),
        ("CREATE VIEW v AS SELECT count(*) AS n FROM (SELECT * FROM posts LIMIT 3)", "a LIMIT below an aggregate"),
        ("CREATE VIEW v AS SELECT tag, count(*) AS n FROM posts GROUP BY ROLLUP(tag)", "ROLLUP"),
        ("CREATE VIEW v AS SELECT count(*) AS n FROM posts UNION ALL SELECT n FROM posts", "make each part a view"),
        ("CREATE VIEW v AS SELECT tag, upper(tag) AS tag FROM posts", "another name with AS"),
        ("CREATE VIEW \"a b\" AS SELECT tag FROM posts", "can't name a view"),
    ] {
        let error = error_of(program);
        assert!(error.contains(expected), "{program}\n  gave     {error}\n  expected {expected}");
        assert!(error.starts_with("line "), "{program} gave {error}");
    }
}

#[test]
fn statements_that_are_too_deep_or_too_long_are_refused() {
    let deep = format!("CREATE VIEW v AS SELECT {}1{} AS a", "(".repeat(10_000), ")".repeat(10_000));
    let long = format!("CREATE VIEW v AS SELECT 1{} AS a", " + 1".repeat(100_000));
    let ors = format!("CREATE VIEW v AS SELECT tag FROM posts WHERE n = 0{}", " OR n = 1".repeat(20_000));
    let chain = format!("CREATE VIEW v AS SELECT n{} AS a FROM posts", " + n".repeat(600));
    let minus = format!("CREATE VIEW v AS SELECT {}1 AS a", "- ".repeat(1_900));
    for (program, expected) in [
        (deep, "nested over 64 deep"),
        (long, "over 2000 operators"),
        (ors, "over 2000 operators"),
        (chain, "nested over 400 deep"),
        (minus, "nested too deep"),
    ] {
        let error = error_of(&program);
        assert!(error.contains(expected), "{}… gave {error}", &program[..60]);
    }
    let mut sql = SqlProgram::new(1);
    sql.queue("posts", vec![vec![rows(&[(1, "a", Some(1))])]]);
    sql.start(&format!("{POSTS}CREATE VIEW v AS SELECT tag FROM posts WHERE n = 0{}", " OR n + 0 = 1".repeat(380)))
        .unwrap();
    sql.step().unwrap();
    assert_eq!(sql.view("v").unwrap().num_rows(), 1, "what is within the bounds runs");
}

#[test]
fn a_query_can_only_select() {
    let program = program(2, vec![vec![rows(&[(1, "a", Some(1))])]], "CREATE VIEW v AS SELECT tag, n FROM posts");
    let context = program.context();
    assert_eq!(context.sql("SELECT * FROM v").unwrap()[0].num_rows(), 0, "a view without rows yet");
    for query in [
        "COPY v TO '/tmp/x.csv'",
        "SET a = 1",
        "INSERT INTO v SELECT 1 AS a",
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM \"/etc/passwd\"",
        "SELECT 1 AS a; SELECT 2 AS b",
        "EXPLAIN SELECT 1",
        "",
    ] {
        assert!(context.sql(query).is_err(), "{query}");
    }
    let error = context.sql("SELECT * FROM vv").unwrap_err().to_string();
    assert_eq!(error, "line 1, column 15: there is no view, table or topic `vv`; did you mean `v`?");
    program.step().unwrap();
    assert_eq!(sorted(&program.context().sql("SELECT n + 1 AS m FROM v").unwrap()), ["|2|"]);
}

#[test]
fn plans_say_what_they_do_without_being_started() {
    let context = crate::StreamingContext::builder("test").check_only().partitions(2).build();
    let program = SqlProgram::over(context);
    program.queue("posts", vec![vec![rows(&[(1, "a", Some(1))])]]);
    program.context().declare_sql(&format!("{POSTS}CREATE VIEW v AS {HOPS}")).unwrap();
    let plan = program.context().explain().unwrap();
    assert!(plan.starts_with("posts: reads 1 queued entries\n\nv: a view, shown after the commit\n"), "{plan}");
    for part in [
        "v: state",
        "mode=Final",
        "mode=Partial",
        "v: panes of 2000000 µs by t",
        "source posts: [\"t\", \"tag\", \"n\", \"x\"]",
    ] {
        assert!(plan.contains(part), "no {part} in\n{plan}");
    }
    assert!(!plan.contains("Repartition"), "{plan}");
    assert!(program.context().start().is_err());
}
