//! Goldens: what a program gives over random batches, with a restart in the
//! middle, is what plain DataFusion gives over all its input at once.

use super::{Row, entries, rows, session, sorted};
use crate::{
    StreamingContext, Trigger,
    testing::{SqlProgram, Trial, parts},
};
use arrow_array::RecordBatch;
use datafusion::datasource::MemTable;
use proptest::prelude::*;
use std::sync::Arc;

/// Two streams whose rows all come in time.
const STREAMS: &str = "
    CREATE STREAM a (WATERMARK FOR t AS t - INTERVAL '10' SECOND) WITH (connector = 'program');
    CREATE STREAM b (WATERMARK FOR t AS t - INTERVAL '10' SECOND) WITH (connector = 'program');\n";

/// A time after all others: with it all windows close and all rows are let go.
const END: i64 = 1_000;
/// The tag of the rows that come then.
const LAST: &str = "last";

/// What a view's rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gives {
    /// New rows in each batch: all of them together are the answer.
    New,
    /// The whole result: the last is the answer.
    Whole,
}

type Entries = Vec<Vec<Vec<Row>>>;

/// As many entries of both, the last one the end.
fn both() -> impl Strategy<Value = (Entries, Entries)> {
    (entries(), entries()).prop_map(|(mut a, mut b)| {
        let most = a.len().max(b.len());
        for entries in [&mut a, &mut b] {
            entries.resize(most, vec![vec![]]);
            // In each partition, since the watermark is that of the slowest.
            let parts = entries.iter().map(Vec::len).max().unwrap_or(1);
            entries.push(vec![vec![(END, LAST, None)]; parts]);
        }
        (a, b)
    })
}

fn batches(entries: &Entries) -> Vec<Vec<RecordBatch>> {
    entries.iter().map(|entry| entry.iter().map(|part| rows(part)).collect()).collect()
}

/// What DataFusion gives for a query over tables of all rows.
fn oracle(a: &Entries, b: &Entries, query: &str) -> Vec<String> {
    let rows = session::with_room(|| async {
        let session = session::session(session::config(2), None);
        for (name, entries) in [("a", a), ("b", b)] {
            let all: Vec<RecordBatch> = batches(entries).into_iter().flatten().collect();
            let table = MemTable::try_new(all[0].schema(), vec![all]).unwrap();
            session.register_table(name, Arc::new(table)).unwrap();
        }
        Ok(session.sql(query).await.unwrap().collect().await.unwrap())
    });
    sorted(&rows.unwrap())
}

/// What `v` of the program gives, with a restart before batch `cut`.
fn streamed(program: &str, gives: Gives, a: &Entries, b: &Entries, partitions: usize, cut: usize) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let context = StreamingContext::builder("golden")
            .trigger(Trigger::Drain)
            .partitions(partitions)
            .data_dir(dir.path())
            .build();
        let mut sql = SqlProgram::over(context);
        sql.queue("a", batches(a));
        sql.queue("b", batches(b));
        sql.start(&format!("{STREAMS}{program}")).unwrap();
        sql
    };
    let mut running = start();
    let mut out = Vec::new();
    for batch in 0..a.len() {
        if batch == cut {
            drop(running);
            running = start();
        }
        running.step().unwrap();
        let board = running.context().board();
        assert_eq!(board.program().late, 0, "all rows come in time");
        let Some(view) = board.view("v") else { continue };
        match gives {
            Gives::New if view.batch.0 == batch as u64 + 1 => out.push(view.rows.clone()),
            Gives::Whole => out = vec![view.rows.clone()],
            Gives::New => {}
        }
    }
    let mut lines: Vec<String> = out.iter().flat_map(|rows| sorted(std::slice::from_ref(rows))).collect();
    lines.sort();
    lines
}

/// Checks programs that define `v` against queries over all rows, for random input and cuts.
fn check(cases: u32, golden: &[(&str, Gives, &str)]) {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(cases));
    runner
        .run(&(both(), 1..4_usize, 0..8_usize), |((a, b), partitions, cut)| {
            for (program, gives, query) in golden {
                let expected = oracle(&a, &b, query);
                let got = streamed(program, *gives, &a, &b, partitions, cut.min(a.len() - 1));
                prop_assert_eq!(got, expected, "{}", program);
            }
            Ok(())
        })
        .unwrap();
}

/// A view and the same query over all rows.
fn same(query: &'static str, gives: Gives) -> (String, Gives, &'static str) {
    (format!("CREATE VIEW v AS {query}"), gives, query)
}

fn check_same(cases: u32, queries: &[&'static str], gives: Gives) {
    let golden: Vec<(String, Gives, &str)> = queries.iter().map(|query| same(query, gives)).collect();
    let golden: Vec<(&str, Gives, &str)> = golden.iter().map(|(p, g, q)| (p.as_str(), *g, *q)).collect();
    check(cases, &golden);
}

#[test]
fn interval_joins() {
    check_same(
        6,
        &[
            "SELECT a.tag, a.t, a.n, b.t AS bt, b.n AS bn FROM a JOIN b
             ON a.tag = b.tag AND b.t BETWEEN a.t - INTERVAL '2' SECOND AND a.t + INTERVAL '3' SECOND WHERE a.tag <> 'last'",
            "SELECT a.tag, a.t, a.n, b.t AS bt, b.n AS bn FROM a LEFT JOIN b
             ON a.tag = b.tag AND b.t BETWEEN a.t AND a.t + INTERVAL '5' SECOND AND b.n > a.n WHERE a.tag <> 'last'",
            "SELECT a.t, a.n, b.tag, b.t AS bt, b.n AS bn FROM a RIGHT JOIN b
             ON a.tag = b.tag AND a.n = b.n AND a.t >= b.t - INTERVAL '1' SECOND AND a.t < b.t + INTERVAL '1' SECOND
             WHERE b.tag <> 'last'",
            "SELECT a.tag, a.t, a.n, b.tag AS btag, b.t AS bt, b.n AS bn FROM a FULL JOIN b
             ON a.tag = b.tag AND a.n = b.n AND b.t - INTERVAL '4' SECOND <= a.t AND a.t <= b.t
             WHERE coalesce(a.tag, b.tag) <> 'last'",
        ],
        Gives::New,
    );
}

#[test]
fn joins_without_a_bound_and_with_one_side_of_it() {
    check_same(
        4,
        &[
            "SELECT a.tag, a.t, b.t AS bt FROM a, b WHERE a.tag = b.tag AND a.n = b.n AND a.n > 1 AND b.x < 0.7",
            "SELECT a.tag, a.t, b.t AS bt FROM a JOIN b ON a.tag = b.tag AND b.t >= a.t AND a.tag <> 'last'",
            "SELECT x.tag, x.t, y.t AS yt FROM a AS x JOIN a AS y
             ON x.tag = y.tag AND y.t > x.t AND y.t <= x.t + INTERVAL '3' SECOND",
        ],
        Gives::New,
    );
}

#[test]
fn aggregates_over_joins_and_joins_of_joins() {
    check_same(
        4,
        &[
            "SELECT a.tag, count(*) AS c, sum(b.n) AS s, count(DISTINCT a.n) AS d FROM a JOIN b
             ON a.tag = b.tag AND b.t BETWEEN a.t AND a.t + INTERVAL '4' SECOND GROUP BY a.tag",
            "SELECT tag, avg(best) AS best FROM (
               SELECT a.tag, a.n, max(b.x) AS best FROM a JOIN b ON a.tag = b.tag AND b.t BETWEEN a.t AND a.t + INTERVAL '4' SECOND
               GROUP BY a.tag, a.n) GROUP BY tag",
        ],
        Gives::Whole,
    );
}

#[test]
fn windows_are_joined_with_windows_and_with_streams() {
    let tumbled = "CREATE VIEW wa AS SELECT window_start, window_end, tag, max(n) AS n FROM TUMBLE(a, t, INTERVAL '5' SECOND)
                     GROUP BY window_start, window_end, tag;
                   CREATE VIEW wb AS SELECT window_start, window_end, tag, count(*) AS c FROM TUMBLE(b, t, INTERVAL '5' SECOND)
                     GROUP BY window_start, window_end, tag;\n";
    let wa = "(SELECT date_bin(INTERVAL '5' SECOND, t) AS window_start, tag, max(n) AS n FROM a WHERE tag <> 'last' GROUP BY 1, 2) wa";
    let wb = "(SELECT date_bin(INTERVAL '5' SECOND, t) AS window_start, tag, count(*) AS c FROM b WHERE tag <> 'last' GROUP BY 1, 2) wb";
    check(
        4,
        &[
            (
                &format!(
                    "{tumbled} CREATE VIEW v AS SELECT wa.window_start, wa.tag, n, c FROM wa JOIN wb
                     ON wa.window_start = wb.window_start AND wa.tag = wb.tag"
                ),
                Gives::New,
                &format!(
                    "SELECT wa.window_start, wa.tag, n, c FROM {wa} JOIN {wb} ON wa.window_start = wb.window_start AND wa.tag = wb.tag"
                ),
            ),
            (
                &format!(
                    "{tumbled} CREATE VIEW v AS SELECT wa.window_start, wa.tag, n, c FROM wa LEFT JOIN wb
                     ON wa.window_end = wb.window_end AND wa.tag = wb.tag"
                ),
                Gives::New,
                &format!(
                    "SELECT wa.window_start, wa.tag, n, c FROM {wa} LEFT JOIN {wb} ON wa.window_start = wb.window_start AND wa.tag = wb.tag"
                ),
            ),
            (
                &format!(
                    "{tumbled} CREATE VIEW v AS SELECT a.t, a.tag, a.n FROM a JOIN wa
                     ON a.n = wa.n AND a.tag = wa.tag AND a.t >= wa.window_start AND a.t < wa.window_end"
                ),
                Gives::New,
                &format!(
                    "SELECT a.t, a.tag, a.n FROM a JOIN {wa} ON a.n = wa.n AND a.tag = wa.tag
                     AND date_bin(INTERVAL '5' SECOND, a.t) = wa.window_start"
                ),
            ),
        ],
    );
}

#[test]
fn joins_survive_crashes_and_other_numbers_of_partitions() {
    let of = |from: i64| -> Vec<Vec<RecordBatch>> {
        let entry = |n: i64| {
            vec![rows(&[
                (n + from, "a", Some(n)),
                (n, "b", None),
                (n + 1, ["a", "c"][usize::from(n == 2)], Some(from)),
            ])]
        };
        vec![entry(0), entry(2), vec![rows(&[])], entry(7)]
    };
    let trial = Trial::new(|trial| {
        trial.context().provide_source("a", parts(of(0)));
        trial.context().provide_source("b", parts(of(1)));
        trial.context().declare_sql(&format!(
            "{}CREATE VIEW v AS SELECT a.tag, a.t, a.n, b.t AS bt, b.n AS bn FROM a FULL JOIN b
             ON a.tag = b.tag AND b.t BETWEEN a.t AND a.t + INTERVAL '2' SECOND",
            STREAMS.replace("'10'", "'1'")
        ))
    });
    trial.restart_at_every_batch(&[1, 3, 2]);
    trial.crash_at_every_step();
}

#[test]
fn windows_over_joins_follow_the_times_of_both_streams() {
    let joined = |kind: &str, on: &str| {
        format!("a.tag, a.t, a.n, b.t AS bt, b.n AS bn FROM a {kind} JOIN b ON a.tag = b.tag AND {on}")
    };
    let bound = "b.t BETWEEN a.t - INTERVAL '2' SECOND AND a.t + INTERVAL '3' SECOND";
    let golden = [
        ("", bound, "t"),
        ("", bound, "bt"),
        ("LEFT", "b.t >= a.t AND b.t < a.t + INTERVAL '4' SECOND AND b.n > a.n", "t"),
        ("FULL", bound, "t"),
    ]
    .map(|(kind, on, time)| {
        let joined = joined(kind, on);
        let program = format!(
            "CREATE VIEW j AS SELECT {joined} WHERE coalesce(a.tag, b.tag) <> 'last';
             CREATE VIEW timed AS SELECT * FROM j WHERE {time} IS NOT NULL;
             CREATE VIEW v AS SELECT window_start, tag, count(*) AS c, sum(n) AS s, sum(bn) AS bs
             FROM TUMBLE(timed, {time}, INTERVAL '5' SECOND) GROUP BY window_start, window_end, tag"
        );
        let query = format!(
            "SELECT date_bin(INTERVAL '5' SECOND, {time}) AS window_start, tag, count(*) AS c, sum(n) AS s, sum(bn) AS bs
             FROM (SELECT {joined} WHERE coalesce(a.tag, b.tag) <> 'last') WHERE {time} IS NOT NULL GROUP BY 1, 2"
        );
        (program, query)
    });
    let golden: Vec<(&str, Gives, &str)> = golden.iter().map(|(p, q)| (p.as_str(), Gives::New, q.as_str())).collect();
    check(6, &golden);
}

#[test]
fn distinct_rows_are_given_once() {
    check_same(
        5,
        &[
            "SELECT DISTINCT tag, n FROM a",
            "SELECT DISTINCT date_bin(INTERVAL '4' SECOND, t) AS at, tag FROM a WHERE n IS NOT NULL",
            "SELECT DISTINCT ON (tag, date_trunc('second', t)) tag, date_trunc('second', t) AS at FROM b",
            "SELECT tag, n FROM a UNION SELECT tag, n FROM b",
            "SELECT tag, n FROM a UNION ALL SELECT tag, n + 1 AS n FROM b WHERE n > 1",
        ],
        Gives::New,
    );
}

#[test]
fn what_is_computed_from_a_whole_result() {
    check_same(
        4,
        &[
            "SELECT n, count(*) AS c FROM (SELECT DISTINCT tag, n FROM a) GROUP BY n",
            "SELECT tag, count(*) AS c FROM (SELECT tag FROM a UNION ALL SELECT tag FROM b) GROUP BY tag HAVING count(*) > 2",
            "SELECT max(c) AS most, count(*) AS tags FROM (SELECT tag, count(*) AS c FROM a GROUP BY tag)",
            "SELECT DISTINCT c FROM (SELECT tag, count(*) AS c FROM a GROUP BY tag)",
            "SELECT tag, c FROM (SELECT tag, count(*) AS c FROM a GROUP BY tag) ORDER BY c DESC, tag LIMIT 2",
            "SELECT tag, c, rank() OVER (ORDER BY c DESC) AS r FROM (SELECT tag, count(*) AS c FROM a GROUP BY tag)",
            "SELECT x.tag, x.c, y.d FROM (SELECT tag, count(*) AS c FROM a GROUP BY tag) x
             FULL JOIN (SELECT tag, sum(n) AS d FROM b GROUP BY tag) y ON x.tag = y.tag",
            "SELECT tag, CASE WHEN sum(n) > 9 THEN 'many' WHEN sum(n) IS NULL THEN 'none' ELSE 'few' END AS much FROM a GROUP BY tag",
        ],
        Gives::Whole,
    );
    check(
        4,
        &[
            (
                "CREATE VIEW counts AS SELECT tag, count(*) AS c FROM a GROUP BY tag;
                 CREATE VIEW v AS SELECT c, count(*) AS tags FROM counts GROUP BY c",
                Gives::Whole,
                "SELECT c, count(*) AS tags FROM (SELECT tag, count(*) AS c FROM a GROUP BY tag) GROUP BY c",
            ),
            (
                "CREATE VIEW counts AS SELECT tag, count(*) AS c FROM a GROUP BY tag;
                 CREATE VIEW v AS SELECT tag FROM counts WHERE c = (SELECT max(c) FROM counts)",
                Gives::Whole,
                "WITH counts AS (SELECT tag, count(*) AS c FROM a GROUP BY tag)
                 SELECT tag FROM counts WHERE c = (SELECT max(c) FROM counts)",
            ),
        ],
    );
}

#[test]
fn the_first_of_each_key() {
    check_same(
        5,
        &[
            "SELECT tag, t, n FROM (SELECT *, row_number() OVER (PARTITION BY tag ORDER BY n DESC, t, x, n) AS place FROM a
             WHERE n IS NOT NULL) WHERE place <= 2 AND tag <> 'x'",
            "SELECT tag, n, place FROM (SELECT tag, n, rank() OVER (PARTITION BY tag ORDER BY n) AS place FROM a) WHERE place < 3",
            "SELECT n, place FROM (SELECT n, dense_rank() OVER (ORDER BY n DESC NULLS LAST) AS place FROM a) WHERE 2 >= place",
            "SELECT n, count(*) AS c FROM (SELECT n, row_number() OVER (PARTITION BY tag ORDER BY t DESC, n) AS place FROM a)
             WHERE place = 1 GROUP BY n",
        ],
        Gives::Whole,
    );
}

#[test]
fn aggregates_over_windows_in_one_statement() {
    check(
        4,
        &[
            (
                "CREATE VIEW v AS SELECT window_start, max(c) AS most FROM (
                   SELECT window_start, tag, count(*) AS c FROM TUMBLE(a, t, INTERVAL '5' SECOND) WHERE tag <> 'last' GROUP BY window_start, tag)
                 GROUP BY window_start",
                Gives::New,
                "SELECT at AS window_start, max(c) AS most FROM (
                   SELECT date_bin(INTERVAL '5' SECOND, t) AS at, tag, count(*) AS c FROM a WHERE tag <> 'last' GROUP BY 1, 2) GROUP BY at",
            ),
            (
                "CREATE VIEW v AS SELECT tag, max(c) AS most, count(*) AS windows FROM (
                   SELECT window_start, tag, count(*) AS c FROM TUMBLE(a, t, INTERVAL '5' SECOND) WHERE tag <> 'last' GROUP BY window_start, tag)
                 GROUP BY tag",
                Gives::Whole,
                "SELECT tag, max(c) AS most, count(*) AS windows FROM (
                   SELECT date_bin(INTERVAL '5' SECOND, t) AS at, tag, count(*) AS c FROM a WHERE tag <> 'last' GROUP BY 1, 2) GROUP BY tag",
            ),
        ],
    );
}
