//! Idle partitions, records dated ahead, late rows within what is allowed, the
//! modes of a view, and views of late rows, one by one.

use super::*;

#[test]
fn a_stream_that_fell_quiet_holds_no_window_of_a_union_open() {
    let program = |idle: &str| {
        let mut program = SqlProgram::new(2);
        // Batches are a second apart; the first stream has only one record.
        program.queue("a", vec![vec![rows(&[(3, "a", None)])]]);
        program.queue("b", (0..6).map(|n| vec![rows(&[(20 + n, "b", None)])]).collect());
        let stream = |name: &str| {
            format!(
                "CREATE STREAM {name} (WATERMARK FOR t AS t - INTERVAL '0' SECOND) WITH (connector = 'program', idle_after = '{idle}');"
            )
        };
        let (a, b) = (stream("a"), stream("b"));
        program
            .start(&format!(
                "{a} {b} CREATE VIEW both AS SELECT t, tag FROM a UNION ALL SELECT t, tag FROM b;
                 CREATE VIEW v AS SELECT tag, count(*) AS c FROM TUMBLE(both, t, INTERVAL '10' SECOND) GROUP BY window_start, window_end, tag"
            ))
            .unwrap();
        let step = |_| {
            program.step().unwrap();
            program.view("v").map(|rows| sorted(&[rows]))
        };
        (0..6).map(step).collect::<Vec<_>>()
    };
    let given = || Some(vec!["|a|1|".to_string()]);
    assert_eq!(program("never"), vec![None; 6]);
    assert_eq!(program("3s"), [None, None, None, given(), given(), given()]);
}

const SUMS: &str = "SELECT window_end, sum(n) AS s FROM TUMBLE(TABLE posts, DESCRIPTOR(t), INTERVAL '10' SECOND) GROUP BY window_start, window_end";

/// A program over parts of (second, number), with options of the stream and of the view.
fn start(entries: &[&[&[(i64, i64)]]], stream: &str, view: &str, query: &str) -> SqlProgram {
    let part = |part: &&[(i64, i64)]| rows(&part.iter().map(|(t, n)| (*t, "a", Some(*n))).collect::<Vec<_>>());
    let entries = entries.iter().map(|entry| entry.iter().map(part).collect()).collect();
    let mut program = SqlProgram::new(2);
    program.queue("posts", entries);
    program
        .start(&format!(
            "CREATE STREAM posts (WATERMARK FOR t AS t - INTERVAL '0' SECOND) WITH (connector = 'program'{stream});
             CREATE VIEW v {view} AS {query}"
        ))
        .unwrap();
    program
}

/// What `v` gave in the next batch: the seconds at which windows end, and their sums.
fn next(program: &SqlProgram) -> Vec<(i64, i64)> {
    program.step().unwrap();
    let now = program.pipeline().previous_time();
    let Some(view) = program.context().board().view("v").filter(|view| Some(view.time) == now) else { return vec![] };
    let ends = view.rows.column(0).as_primitive::<arrow_array::types::TimestampMicrosecondType>();
    let sums = view.rows.column(1).as_primitive::<arrow_array::types::Int64Type>();
    let mut pairs: Vec<_> = ends.values().iter().map(|e| e / 1_000_000).zip(sums.values().iter().copied()).collect();
    pairs.sort_unstable();
    pairs
}

#[test]
fn an_idle_partition_holds_no_window_open() {
    let entries: &[&[&[(i64, i64)]]] = &[
        &[&[(1, 1)], &[(2, 1)]],
        &[&[(12, 1)]],
        &[&[(13, 1)]],
        &[&[(14, 1)]],
        &[&[(15, 1)], &[(16, 5)]],
        &[&[(25, 1)], &[(3, 1)]],
    ];
    let program = start(entries, ", idle_after = '3s'", "", SUMS);
    let given: Vec<_> = (0..6).map(|_| next(&program)).collect();
    assert_eq!(given, [vec![], vec![], vec![], vec![(10, 2)], vec![], vec![]], "quiet for three seconds of batch time");
    assert_eq!(program.context().board().program().late, 1, "what comes after is late");

    let program = start(entries, ", idle_after = 'never'", "", SUMS);
    let given: Vec<_> = (0..5).map(|_| next(&program)).collect();
    assert_eq!(given, [vec![], vec![], vec![], vec![], vec![(10, 2)]], "it waits for the partition");
}

#[test]
fn one_record_dated_years_ahead_makes_no_other_late() {
    let far = 10 * 365 * 86_400;
    let entries: &[&[&[(i64, i64)]]] = &[&[&[(1, 1), (far, 7)]], &[&[(2, 1)]], &[&[(11, 1)]]];
    let program = start(entries, "", "", SUMS);
    assert_eq!([next(&program), next(&program), next(&program)], [vec![], vec![], vec![(10, 2)]]);
    assert_eq!(program.context().board().program().late, 1, "it is counted");

    let program = start(entries, ", max_ahead = 'any'", "", SUMS);
    assert_eq!([next(&program), next(&program), next(&program)], [vec![(10, 1)], vec![], vec![]]);
    assert_eq!(program.context().board().program().late, 2, "as was asked for");
}

#[test]
fn a_late_row_within_what_is_allowed_corrects_its_window() {
    let entries: &[&[&[(i64, i64)]]] =
        &[&[&[(1, 1), (12, 1)]], &[&[(2, 5)]], &[&[(17, 1)]], &[&[(3, 1)]], &[&[(40, 1)]]];
    for (stream, view) in [(", allowed_lateness = '5s'", ""), ("", "WITH (allowed_lateness = '5s')")] {
        let program = start(entries, stream, view, SUMS);
        let given: Vec<_> = (0..5).map(|_| next(&program)).collect();
        assert_eq!(given, [vec![(10, 1)], vec![(10, 6)], vec![], vec![], vec![(20, 2)]]);
        assert_eq!(program.context().board().program().late, 1);
        assert_eq!(program.states(), [1], "what is closed for good is forgotten");
    }
}

#[test]
fn a_view_gives_what_changed_or_all_that_is_kept() {
    let entries: &[&[&[(i64, i64)]]] = &[&[&[(1, 1), (12, 1)]], &[&[(13, 5)]], &[]];
    let given = |view: &str| -> Vec<_> {
        let program = start(entries, "", view, SUMS);
        (0..3).map(|_| next(&program)).collect()
    };
    assert_eq!(given("WITH (emit = 'update')"), [vec![(10, 1), (20, 1)], vec![(20, 6)], vec![]]);
    assert_eq!(given("WITH (emit = 'complete')"), [vec![(10, 1), (20, 1)], vec![(20, 6)], vec![(20, 6)]]);
    assert_eq!(given("WITH (emit = 'append')"), [vec![(10, 1)], vec![], vec![]]);
}

#[test]
fn late_rows_can_be_a_view_of_their_own() {
    let entries: &[&[&[(i64, i64)]]] = &[&[&[(1, 1), (12, 1)]], &[&[(2, 5), (13, 1)]], &[&[(4, 6)]]];
    let query = format!("{SUMS}; CREATE VIEW how_many AS SELECT count(*) AS c, sum(n) AS s FROM too_late");
    let program = start(entries, "", "WITH (late = 'too_late')", &query);
    assert_eq!([next(&program), next(&program), next(&program)], [vec![(10, 1)], vec![], vec![]]);
    assert_eq!(sorted(&[program.view("too_late").unwrap()]), ["|1970-01-01T00:00:04Z|a|6|1.5|"]);
    assert_eq!(sorted(&[program.view("how_many").unwrap()]), ["|2|11|"]);
    assert_eq!(program.context().board().program().late, 2);
}

#[test]
fn a_session_is_corrected_and_joined() {
    let sessions = "SELECT window_end, sum(n) AS s FROM SESSION(TABLE posts, DESCRIPTOR(t), INTERVAL '5' SECOND) GROUP BY window_start, window_end";
    let entries: &[&[&[(i64, i64)]]] =
        &[&[&[(1, 1), (9, 2)]], &[&[(15, 3)]], &[&[(5, 10)]], &[&[(6, 1)]], &[&[(30, 1)]], &[&[(14, 1)]]];
    let program = start(entries, ", allowed_lateness = '10s'", "", sessions);
    let given: Vec<_> = (0..6).map(|_| next(&program)).collect();
    let wanted = [
        vec![(6, 1)],
        vec![(14, 2)],
        // It comes between two that were given, and makes one of them.
        vec![(14, 13)],
        vec![(14, 14)],
        vec![(20, 3)],
        vec![],
    ];
    assert_eq!(given, wanted);
    assert_eq!(program.context().board().program().late, 1);

    let program = start(entries, "", "WITH (emit = 'update')", sessions);
    let given: Vec<_> = (0..2).map(|_| next(&program)).collect();
    assert_eq!(given, [vec![(6, 1), (14, 2)], vec![(20, 3)]]);
}

#[test]
fn sessions_may_be_of_fewer_columns_than_the_groups() {
    let entries =
        vec![vec![rows(&[(1, "a", Some(1)), (4, "b", Some(2)), (20, "a", Some(1))])], vec![rows(&[(100, "z", None)])]];
    let program = program(
        2,
        entries,
        "CREATE VIEW of_all AS SELECT tag, window_start, window_end, count(*) AS c
           FROM SESSION(TABLE posts, DESCRIPTOR(t), INTERVAL '5' SECOND, DESCRIPTOR(x)) GROUP BY x, tag, window_start, window_end;
         CREATE VIEW v AS SELECT tag, window_end, count(*) AS c
           FROM (SELECT window_start, window_end, tag, 1 AS one FROM SESSION(posts, t, INTERVAL '5' SECOND)) GROUP BY window_end, tag, one",
    );
    program.step().unwrap();
    assert_eq!(sorted(&[program.view("v").unwrap()]), ["|a|1970-01-01T00:00:06Z|1|", "|b|1970-01-01T00:00:09Z|1|"]);
    assert_eq!(program.view("of_all").unwrap().num_rows(), 2);
    program.step().unwrap();
    assert_eq!(sorted(&[program.view("v").unwrap()]), ["|a|1970-01-01T00:00:25Z|1|"]);
}

#[test]
fn what_makes_no_sense_is_told_with_the_way_out() {
    let windowed = format!("CREATE VIEW v AS {SUMS}");
    for (stream, views, wanted) in [
        ("", "CREATE VIEW v WITH (emit = 'updates') AS SELECT 1 AS a FROM posts", "did you mean 'update'?"),
        ("", "CREATE VIEW v WITH (emit = 'update') AS SELECT tag FROM posts", "option `emit` is about windows"),
        ("", "CREATE VIEW v WITH (late = 'x') AS SELECT count(*) AS c FROM posts", "option `late` is about windows"),
        (
            "",
            "CREATE VIEW v WITH (emit = 'append') AS SELECT count(*) AS c FROM posts",
            "option `emit` = 'append': no row of this view stays, it gives the whole result so far in each batch that changes it (complete)",
        ),
        (
            "",
            "CREATE VIEW u AS SELECT tag, count(*) AS c FROM posts GROUP BY tag;
             CREATE VIEW v WITH (emit = 'append') AS SELECT tag FROM u WHERE c > 1",
            "it gives the whole result so far",
        ),
        (
            "",
            "CREATE VIEW u WITH (emit = 'update') AS SELECT tag, count(*) AS c FROM posts GROUP BY tag;
             CREATE VIEW v WITH (emit = 'append') AS SELECT tag FROM u WHERE c > 1",
            "it gives the rows of windows or groups as they change",
        ),
        ("", "CREATE VIEW v WITH (emits = 'x') AS SELECT count(*) AS c FROM posts", "did you mean `emit`?"),
        (", idle_after = 'soon'", windowed.as_str(), "must be a duration with its unit (ms, s, m, h, d), such as '30s' or '1h', or 'never'"),
        (", idle_after = '30'", windowed.as_str(), "must be a duration with its unit (ms, s, m, h, d)"),
        (
            "",
            "CREATE VIEW v AS SELECT count(*) AS c FROM SESSION(TABLE posts, DESCRIPTOR(t)) GROUP BY window_start",
            "SESSION reads: SESSION(TABLE t, DESCRIPTOR(time), INTERVAL '30' SECOND)",
        ),
        (
            "",
            "CREATE VIEW v AS SELECT count(*) AS c FROM COUNT_WINDOW(TABLE posts, DESCRIPTOR(tag), 5, 9) GROUP BY window_start, tag",
            "the slide at most the size",
        ),
        (
            "",
            "CREATE VIEW v AS SELECT count(*) AS c FROM COUNT_WINDOW(TABLE posts, DESCRIPTOR(tag), 5) GROUP BY window_start",
            "add tag to GROUP BY as it is",
        ),
        (
            "",
            "CREATE VIEW v AS SELECT count(*) AS c FROM COUNT_WINDOW(TABLE posts, 5) WHERE tag = 'a' GROUP BY window_start",
            "make what filters or unfolds rows a view",
        ),
        (
            "",
            "CREATE VIEW v WITH (emit = 'update') AS SELECT count(*) AS c FROM COUNT_WINDOW(TABLE posts, 5) GROUP BY window_start",
            "is about time, and a window by number of rows",
        ),
        (
            "",
            "CREATE VIEW w WITH (emit = 'update') AS SELECT window_end, count(*) AS c FROM TUMBLE(posts, t, INTERVAL '9' SECOND) GROUP BY window_end;
             CREATE VIEW v AS SELECT sum(c) AS c FROM w",
            "count it again and again",
        ),
    ] {
        let mut program = SqlProgram::new(1);
        program.queue("posts", vec![vec![rows(&[(1, "a", None)])]]);
        let text = format!("CREATE STREAM posts (WATERMARK FOR t AS t) WITH (connector = 'program'{stream}); {views}");
        let error = program.start(&text).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}\ndoes not say: {wanted}");
    }
    let mut program = SqlProgram::new(1);
    program.queue("posts", vec![vec![rows(&[(1, "a", None)])]]);
    let error = program.start("CREATE STREAM posts WITH (connector = 'program', idle_after = '1s')").unwrap_err();
    assert!(error.to_string().contains("declare WATERMARK FOR a column"), "{error}");
}
