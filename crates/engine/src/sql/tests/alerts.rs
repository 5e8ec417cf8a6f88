//! Alerts: when they begin and end, what they tell, and that crashes and restarts change nothing.

use super::*;
use crate::testing::{Trial, parts};
use arrow_array::{
    Array, BooleanArray,
    types::{Float64Type, TimestampMicrosecondType},
};
use tidemill_core::{AlertAsk, AlertReport, AlertState, Silence, Timestamp};

/// The changes as text: `a firing<-pending since 1 at 3 = 20`, with `silenced` behind those that are.
fn told(rows: &RecordBatch) -> Vec<String> {
    let text = |name: &str, row: usize| rows.column_by_name(name).unwrap().as_string::<i32>().value(row).to_string();
    let second = |name: &str, row: usize| {
        rows.column_by_name(name).unwrap().as_primitive::<TimestampMicrosecondType>().value(row) / 1_000_000
    };
    let value = rows.column_by_name("value").unwrap().as_primitive::<Float64Type>();
    let silenced: &BooleanArray = rows.column_by_name("silenced").unwrap().as_boolean();
    (0..rows.num_rows())
        .map(|row| {
            let mut line = format!("{} {}<-{}", text("key", row), text("state", row), text("was", row));
            line.push_str(&format!(" since {} at {}", second("since", row), second("at", row)));
            if value.is_valid(row) {
                line.push_str(&format!(" = {}", (value.value(row) * 1e6).round() / 1e6));
            }
            if silenced.value(row) {
                line.push_str(" silenced");
            }
            line
        })
        .collect()
}

/// What the alert `hot` gives in the next batch.
fn next(program: &SqlProgram) -> Vec<String> {
    let last = || program.context().board().view("hot").map(|view| (view.batch, view.rows.clone()));
    let before = last().map(|(batch, _)| batch);
    program.step().unwrap();
    last().filter(|(batch, _)| Some(*batch) != before).map_or(vec![], |(_, rows)| told(&rows))
}

/// Each batch has rows (tag, n), and the changes that it must give.
fn check(statements: &str, batches: &[(&[(&'static str, i64)], &[&str])]) {
    for partitions in [1, 3] {
        let entries = (0_i64..).zip(batches).map(|(at, (of, _))| {
            let of: Vec<Row> = of.iter().map(|(tag, n)| (at * 10, *tag, Some(*n))).collect();
            vec![rows(&of)]
        });
        let program = program(partitions, entries.collect(), statements);
        for (batch, (_, expected)) in batches.iter().enumerate() {
            assert_eq!(next(&program), *expected, "batch {}, {partitions} partitions", batch + 1);
        }
    }
}

fn report(program: &SqlProgram) -> AlertReport {
    program.context().board().alerts()[0].as_ref().clone()
}

#[test]
fn a_condition_has_to_hold_for_a_while_and_ends_by_another() {
    check(
        "CREATE ALERT hot ON posts KEY (tag) WHEN n > 10 CLEAR WHEN n < 5 FOR '2s'",
        &[
            (&[("a", 20), ("b", 1)], &["a pending<-ok since 1 at 1 = 20"]),
            (&[("a", 21)], &[]),
            // Nothing new of it: the last row is what is known.
            (&[("b", 2)], &["a firing<-pending since 1 at 3 = 21"]),
            (&[("a", 7)], &[]),
            (&[("a", 11)], &[]),
            (&[("a", 4), ("b", 30)], &["a ok<-firing since 6 at 6 = 4", "b pending<-ok since 6 at 6 = 30"]),
            (&[("b", 9)], &["b ok<-pending since 7 at 7 = 9"]),
            (&[("a", 9), ("a", 12)], &["a pending<-ok since 8 at 8 = 12"]),
            (&[], &[]),
            (&[("a", 3), ("a", 11)], &["a firing<-pending since 8 at 10 = 11"]),
            (&[("a", 3), ("a", 9)], &[]),
            (&[("a", 3), ("a", 4)], &["a ok<-firing since 12 at 12 = 4"]),
        ],
    );
}

#[test]
fn without_a_key_any_row_is_enough_and_without_a_duration_it_fires_at_once() {
    check(
        "CREATE ALERT hot ON posts WHEN n > 10 AND tag <> 'x'",
        &[
            (&[("a", 1), ("x", 90)], &[]),
            (&[("a", 1), ("b", 11), ("c", 2)], &[" firing<-ok since 2 at 2 = 11"]),
            (&[("b", 12)], &[]),
            (&[("b", 10)], &[" ok<-firing since 4 at 4 = 10"]),
        ],
    );
}

#[test]
fn a_key_that_vanishes_from_a_whole_result_is_well() {
    check(
        "CREATE VIEW v AS SELECT tag, sum(n) AS s FROM posts GROUP BY tag HAVING sum(n) > 0;
         CREATE ALERT hot ON v KEY (tag) WHEN s > 10 FOR '1s'",
        &[
            (&[("a", 20), ("b", 1)], &["a pending<-ok since 1 at 1 = 20"]),
            (&[("b", 30)], &["a firing<-pending since 1 at 2 = 20", "b pending<-ok since 2 at 2 = 31"]),
            (&[("a", -20), ("b", -31)], &["a ok<-firing since 3 at 3 = 20", "b ok<-pending since 3 at 3 = 31"]),
            (&[("a", 11)], &["a pending<-ok since 4 at 4 = 11"]),
            // The view gives its rows again, though nothing came.
            (&[], &["a firing<-pending since 4 at 5 = 11"]),
        ],
    );
}

#[test]
fn a_key_that_is_in_no_later_window_is_well() {
    check(
        "CREATE VIEW v AS SELECT window_end, tag, count(*) AS c FROM TUMBLE(posts, t, INTERVAL '10' SECOND)
         GROUP BY window_start, window_end, tag;
         CREATE VIEW w AS SELECT tag, c FROM v;
         CREATE ALERT hot ON w KEY (tag) WHEN c > 1",
        &[
            (&[("a", 1), ("a", 1), ("b", 1)], &[]),
            (&[("b", 1), ("b", 1)], &[]),
            (&[("b", 1)], &["a firing<-ok since 3 at 3 = 2"]),
            (&[], &[]),
            (&[("c", 1)], &["a ok<-firing since 5 at 5 = 2", "b firing<-ok since 5 at 5 = 2"]),
        ],
    );
}

#[test]
fn what_does_not_come_is_missing_until_it_does() {
    check(
        "CREATE ALERT hot ON posts KEY (tag) WHEN n > 10 MISSING '2s' WITH (forget = '4s')",
        &[
            (&[("a", 1), ("b", 50)], &["b firing<-ok since 1 at 1 = 50"]),
            (&[("b", 50)], &[]),
            (&[("b", 50)], &["a missing<-ok since 1 at 3"]),
            (&[("a", 20)], &["a firing<-missing since 4 at 4 = 20"]),
            (&[("a", 1)], &["a ok<-firing since 5 at 5 = 1", "b missing<-firing since 3 at 5"]),
            (&[], &[]),
            (&[], &["a missing<-ok since 5 at 7", "b ok<-missing since 7 at 7"]),
            (&[], &[]),
            (&[], &["a ok<-missing since 9 at 9"]),
            (&[], &[]),
        ],
    );
    // A whole result has its keys until they vanish.
    check(
        "CREATE VIEW v AS SELECT tag, sum(n) AS s FROM posts GROUP BY tag HAVING sum(n) > 0;
         CREATE ALERT hot ON v KEY (tag) WHEN s > 10 MISSING '2s'",
        &[
            (&[("a", 20)], &["a firing<-ok since 1 at 1 = 20"]),
            (&[], &[]),
            (&[], &[]),
            (&[("a", -20)], &[]),
            (&[], &[]),
            (&[], &["a missing<-firing since 4 at 6"]),
            (&[("a", 2)], &["a ok<-missing since 7 at 7 = 2"]),
        ],
    );
}

#[test]
fn a_stream_that_never_says_a_word_is_missing_too() {
    check(
        "CREATE ALERT hot ON posts MISSING '2s'",
        &[(&[], &[]), (&[], &[]), (&[], &[" missing<-ok since 1 at 3"]), (&[("a", 1)], &[" ok<-missing since 4 at 4"])],
    );
}

#[test]
fn a_row_is_compared_with_those_of_its_key_before_it() {
    check(
        "CREATE ALERT hot ON posts KEY (tag) WHEN abs(change(n)) >= 10 OR previous(n) = 7",
        &[
            (&[("a", 20), ("b", 1)], &[]),
            (&[("a", 29), ("b", 11)], &["b firing<-ok since 2 at 2 = 10"]),
            (&[("a", 7), ("b", 12)], &["a firing<-ok since 3 at 3 = -22", "b ok<-firing since 3 at 3 = 1"]),
            (&[("a", 8)], &[]),
            (&[("a", 9)], &["a ok<-firing since 5 at 5 = 1"]),
        ],
    );
    // The same of a view that gives its whole result.
    check(
        "CREATE VIEW v AS SELECT tag, sum(n) AS s FROM posts GROUP BY tag HAVING sum(n) <> 0;
         CREATE ALERT hot ON v KEY (tag) WHEN rate(s) > 5",
        &[
            (&[("a", 1)], &[]),
            (&[("a", 7)], &["a firing<-ok since 2 at 2 = 7"]),
            (&[], &["a ok<-firing since 3 at 3 = 0"]),
            (&[("a", -8)], &[]),
            // It was away, and is new.
            (&[("a", 99)], &[]),
            (&[("a", 1)], &[]),
        ],
    );
    let usual: [(&[(&'static str, i64)], &[&str]); 12] = std::array::from_fn(|at| {
        let usual: [&[(&'static str, i64)]; 2] = [&[("a", 10), ("b", 500)], &[("a", 12), ("b", 600)]];
        (usual[at % 2], &[] as &[&str])
    });
    let unusual: [(&[(&'static str, i64)], &[&str]); 2] = [
        (&[("a", 15), ("b", 610)], &["a firing<-ok since 13 at 13 = 4"]),
        (&[("a", 11)], &["a ok<-firing since 14 at 14 = -0.214423"]),
    ];
    let all: Vec<_> = usual.into_iter().chain(unusual).collect();
    check("CREATE ALERT hot ON posts KEY (tag) WHEN round(zscore(n)) > 3", &all);
}

#[test]
fn the_message_has_columns_of_the_row_and_sinks_take_all_alerts_alike() {
    let program = program(
        2,
        vec![vec![rows(&[(1, "a", Some(20)), (1, "b", Some(2))])]],
        "CREATE ALERT hot ON posts KEY (tag, x) WHEN n > 10 WITH (severity = 'page', message = '{tag} has {n}, {value}: {key}');
         CREATE ALERT plain ON posts KEY (tag) WHEN n > 10;
         CREATE VIEW all_of_them AS SELECT alert, severity, key, message FROM hot WHERE state <> 'pending' AND NOT silenced
         UNION ALL SELECT alert, severity, key, message FROM plain",
    );
    program.step().unwrap();
    assert_eq!(
        sorted(&[program.view("all_of_them").unwrap()]),
        ["|hot|page|tag=a, x=5.0|a has 20, 20: tag=a, x=5.0|", "|plain|warning|a|a: n > 10|"]
    );
}

#[test]
fn the_board_has_where_each_key_stands_and_a_restart_knows_it() {
    let dir = tempfile::tempdir().unwrap();
    let entries: Vec<Vec<Vec<Row>>> = vec![
        vec![vec![(1, "a", Some(20)), (1, "b", Some(30))]],
        vec![vec![(2, "b", Some(1))]],
        vec![vec![(3, "c", Some(1))]],
    ];
    let alert = "CREATE ALERT hot ON posts KEY (tag) WHEN n > 10";
    let first = kept_program(dir.path(), 2, &entries, alert);
    assert_eq!(report(&first).condition, "n > 10", "it is known before the first batch");
    first.step().unwrap();
    first.step().unwrap();
    let expected = |report: &AlertReport| {
        assert_eq!((report.pending, report.firing, report.missing), (0, 1, 0));
        let now: Vec<_> = report.now.iter().map(|now| (now.key.as_str(), now.state, now.value)).collect();
        assert_eq!(now, [("a", AlertState::Firing, Some(20.0))]);
        let changes: Vec<_> = report.changes.iter().map(|change| (change.key.as_str(), change.state)).collect();
        assert_eq!(changes, [("a", AlertState::Firing), ("b", AlertState::Firing), ("b", AlertState::Ok)]);
    };
    expected(&report(&first));
    let state = first.context().sql("SELECT tag, state, value FROM state.hot").unwrap();
    assert_eq!(sorted(&state), ["|a|firing|20.0|"]);
    let history = first.context().sql("SELECT seq, key, state FROM state.\"hot.history\"").unwrap();
    assert_eq!(sorted(&history), ["|1|a|firing|", "|2|b|firing|", "|3|b|ok|"]);
    drop(first);
    let second = kept_program(dir.path(), 3, &entries, alert);
    second.step().unwrap();
    expected(&report(&second));
}

#[test]
fn a_silence_is_told_with_each_change_and_its_end_to_those_who_waited() {
    let of = |n: i64| vec![rows(&[(1, "a", Some(n)), (1, "b", Some(n))])];
    let entries = vec![of(1), of(20), of(21), of(22), of(1), of(20), of(20)];
    let program = program(2, entries, "CREATE ALERT hot ON posts KEY (tag) WHEN n > 10");
    let board = program.context().board();
    let silence = |key: Option<&str>, until: i64| {
        let silence = Silence { key: key.map(str::to_string), until: Timestamp(until * 1_000_000), why: "work".into() };
        assert!(board.ask_alert("hot", AlertAsk::Silence(silence)));
    };
    assert!(!board.ask_alert("cold", AlertAsk::Test), "there is no such alert");
    assert_eq!(next(&program), [""; 0]);
    silence(Some("a"), 4);
    assert_eq!(next(&program), ["a firing<-ok since 2 at 2 = 20 silenced", "b firing<-ok since 2 at 2 = 20"]);
    assert_eq!(report(&program).silences.len(), 1);
    assert_eq!(next(&program), [""; 0]);
    assert_eq!(next(&program), ["a firing<-firing since 2 at 4 = 22"], "it is over, and it still fires");
    assert!(report(&program).silences.is_empty());
    silence(None, 100);
    assert_eq!(next(&program), ["a ok<-firing since 5 at 5 = 1 silenced", "b ok<-firing since 5 at 5 = 1 silenced"]);
    assert!(board.ask_alert("hot", AlertAsk::Test));
    assert_eq!(
        next(&program),
        [
            " test<-test since 6 at 6",
            "a firing<-ok since 6 at 6 = 20 silenced",
            "b firing<-ok since 6 at 6 = 20 silenced"
        ]
    );
    silence(None, 0);
    assert_eq!(next(&program), ["a firing<-firing since 6 at 7 = 20", "b firing<-firing since 6 at 7 = 20"]);
}

#[test]
fn alerts_survive_crashes_and_restarts() {
    let of = |of: &[(i64, &'static str, i64)]| {
        vec![rows(&of.iter().map(|(t, tag, n)| (*t, *tag, Some(*n))).collect::<Vec<_>>())]
    };
    let entries = || {
        vec![
            of(&[(1, "a", 20), (1, "b", 1)]),
            of(&[(5, "a", 21)]),
            of(&[(12, "a", 7), (13, "b", 30)]),
            of(&[(25, "a", 2), (26, "b", -60)]),
        ]
    };
    let trial = Trial::new(move |trial| {
        trial.context().provide_source("posts", parts(entries()));
        trial.context().declare_sql(&format!(
            "{POSTS}CREATE VIEW v AS SELECT tag, sum(n) AS s FROM posts GROUP BY tag HAVING sum(n) > 0;
             CREATE ALERT hot ON posts KEY (tag) WHEN n > 10 CLEAR WHEN n < 5 FOR '1s' MISSING '2s' WITH (forget = '3s');
             CREATE ALERT whole ON v KEY (tag) WHEN s > 25 OR change(s) < 0 OR zscore(s, 2) > 1 FOR '1s'"
        ))
    });
    trial.restart_at_every_batch(&[1, 3, 2]);
    trial.crash_at_every_step();
}

fn error_of(statements: &str) -> String {
    let mut sql = SqlProgram::new(1);
    sql.queue("posts", vec![vec![rows(&[(1, "a", None)])]]);
    sql.start(&format!("{POSTS}{statements}")).expect_err("an error").to_string()
}

#[test]
fn mistakes_are_told_with_their_place_and_the_way_out() {
    for (statements, expected) in [
        (
            "CREATE ALERT a ON pots WHEN n > 1",
            "line 2, column 19: CREATE ALERT a: there is no stream, table or view `pots`; did you mean `posts`?",
        ),
        ("CREATE ALERT a ON posts WHEN m > 1", "line 2, column 30: CREATE ALERT a: there is no column `m`"),
        (
            "CREATE ALERT a ON posts KEY (tagg) WHEN n > 1",
            "line 2, column 30: CREATE ALERT a: KEY: there is no column `tagg` in posts; did you mean `tag`?",
        ),
        (
            "CREATE ALERT a ON posts\nWHEN n + 1",
            "line 3, column 1: CREATE ALERT a: `WHEN` is no condition: n + 1 gives BIGINT; compare it with something, as in n + 1 > 100",
        ),
        (
            "CREATE ALERT a ON posts WHEN n > 1 CLEAR WHEN tag",
            "line 2, column 36: CREATE ALERT a: `CLEAR` is no condition: tag gives TEXT",
        ),
        (
            "CREATE ALERT a ON posts WHEN count(*) > 1",
            "`WHEN` looks at one row, and count(*) > 1 needs several: aggregate in the view",
        ),
        ("CREATE ALERT a ON posts WHEN n > (SELECT 1)", "`WHEN` has a query in it, and looks at one row"),
        ("CREATE ALERT a ON posts WHEN t < now()", "`now` would be the time of the program's start for ever"),
        (
            "CREATE ALERT a ON posts WHEN change(tag) > 1",
            "line 2, column 30: CREATE ALERT a: `change` needs a number, and tag is TEXT",
        ),
        ("CREATE ALERT a ON posts WHEN zscore(n, 1) > 1", "`zscore` reads: zscore(column), or zscore(column, 100)"),
        (
            "CREATE ALERT a ON posts WHEN n > 1 FOR 30",
            "line 2, column 40: FOR takes a duration with its unit (ms, s, m, h, d) in quotes, such as FOR '30s', and not `30`",
        ),
        (
            "CREATE ALERT a ON posts WHEN n > 1 FRO '30s'",
            "line 2, column 36: expected WHEN, CLEAR, FOR, MISSING, WITH or the end of the alert, found `FRO`",
        ),
        ("CREATE ALERT a ON posts WHEN n > 1 FOR '1s' FOR '2s'", "line 2, column 45: FOR is there twice"),
        (
            "CREATE ALERT a ON posts",
            "the alert `a` has neither WHEN nor MISSING; an alert reads: CREATE ALERT name ON view",
        ),
        (
            "CREATE ALERT a posts WHEN n > 1",
            "line 2, column 16: expected ON and the view that the alert looks at, found `posts`",
        ),
        ("CREATE ALERT a ON posts MISSING '1s' FOR '2s'", "go with WHEN, and there is none"),
        ("CREATE ALERT a ON posts WHEN n > 1 WITH (message = '{tagg}')", "option `message`: there is no column {tagg}"),
        ("CREATE ALERT a ON posts WHEN n > 1 WITH (severty = 'x')", "did you mean `severity`?"),
        (
            "CREATE ALERT a ON posts WHEN n > 1 MISSING '5s' WITH (forget = '5s')",
            "option `forget` must be longer than MISSING",
        ),
        ("CREATE ALERT posts ON posts WHEN n > 1", "there is a stream of that name; choose another"),
        (
            "CREATE VIEW v AS SELECT tag AS state, n FROM posts; CREATE ALERT a ON v KEY (state) WHEN n > 1",
            "the alert's own state has a column `state`: give it another name in the view",
        ),
    ] {
        let error = error_of(statements);
        assert!(error.contains(expected), "{statements}\n{error}");
    }
}
