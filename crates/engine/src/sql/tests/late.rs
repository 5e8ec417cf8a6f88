//! Rows too late for every window.

use super::*;

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
    let columns = |from: u64, which: &[usize]| -> Vec<Vec<String>> {
        let all: Vec<RecordBatch> =
            topic.read(0, tidemill_core::Offset(from), topic.end(0)).map(|rows| rows.unwrap().rows).collect();
        let text = |column: usize| -> Vec<String> {
            let column =
                |rows: &RecordBatch| arrow_cast::cast(rows.column(column), &arrow_schema::DataType::Utf8).unwrap();
            all.iter()
                .flat_map(|r| column(r).as_string::<i32>().iter().map(|v| v.unwrap().to_string()).collect::<Vec<_>>())
                .collect()
        };
        which.iter().copied().map(text).collect()
    };
    let letters = |from: u64| <[Vec<String>; 4]>::try_from(columns(from, &[0, 3, 4, 5])).unwrap();
    let places = || columns(0, &[1, 2]);
    let [stream, batch, reason, raw] = letters(0);
    assert_eq!((stream, batch), (vec!["posts".to_string(); 2], vec!["2".to_string(); 2]));
    let at = "and the watermark of `v` was at 1970-01-01T00:00:40.000Z";
    let of = |time: &str| format!("late: `t` is 1970-01-01T00:00:{time}.000Z, {at}");
    assert_eq!(reason, [of("02"), of("30")]);
    assert_eq!(raw[0], r#"{"t":"1970-01-01T00:00:02Z","tag":"too \"late\"\n","n":null}"#);
    assert!(raw[1].contains(r#""tag":"b","n":1"#), "{}", raw[1]);
    assert_eq!(places(), [["0", "0"], ["0", "1"]].map(|c| c.map(str::to_string).to_vec()), "where they lay");
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

#[test]
fn rows_that_a_view_has_are_in_no_letter_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let late: Vec<Row> = vec![(2, "late", Some(1)); 3];
    let context =
        crate::StreamingContext::builder("p").trigger(crate::Trigger::Drain).partitions(1).data_dir(dir.path());
    let mut program = crate::testing::SqlProgram::over(context.build());
    program.queue("posts", vec![vec![rows(&[(50, "a", Some(1))])], vec![rows(&late)]]);
    let sums = "SELECT window_end, sum(n) AS s FROM TUMBLE(TABLE posts, DESCRIPTOR(t), INTERVAL '10' SECOND) GROUP BY window_start, window_end";
    program
        .start(&format!(
            "CREATE STREAM posts (WATERMARK FOR t AS t - INTERVAL '10' SECOND) WITH (connector = 'program');
             CREATE VIEW v WITH (late = 'x') AS {sums}; CREATE VIEW w AS {sums}"
        ))
        .unwrap();
    program.step().unwrap();
    program.step().unwrap();
    assert_eq!(program.view("x").unwrap().num_rows(), 3);
    let topic = program.pipeline().keep.as_ref().unwrap().log().topic("p.dead").unwrap();
    let letters: Vec<RecordBatch> =
        topic.read(0, tidemill_core::Offset(0), topic.end(0)).map(|rows| rows.unwrap().rows).collect();
    let reasons: Vec<&str> =
        letters.iter().flat_map(|rows| rows.column(4).as_string::<i32>().iter().flatten()).collect();
    let told = "late: `t` is 1970-01-01T00:00:02.000Z, and the watermark of `w` was at 1970-01-01T00:00:40.000Z";
    assert_eq!(reasons, [told; 3], "a letter for each row that `w` lost, and none about those that `x` has");
    assert_eq!(program.context().board().program().late, 6, "late for both views");
}

#[test]
fn an_event_dated_ten_years_ahead_makes_no_other_late() {
    let far = 10 * 365 * 86_400;
    let sums = |with_far: bool| {
        let mut first: Vec<Row> = vec![(1, "a", Some(1))];
        if with_far {
            first.push((far, "far", Some(1_000)));
        }
        let entries: [&[Row]; 4] =
            [&first, &[(4, "a", Some(2)), (12, "a", Some(4))], &[(9, "a", Some(8))], &[(30, "a", Some(16))]];
        let program = program(
            2,
            entries.iter().map(|entry| vec![rows(entry)]).collect(),
            "CREATE VIEW v AS SELECT window_end, sum(n) AS s
             FROM TUMBLE(TABLE posts, DESCRIPTOR(t), INTERVAL '10' SECOND) GROUP BY window_end",
        );
        let mut given = Vec::new();
        for _ in 0..4 {
            program.step().unwrap();
            given.push(program.view("v").map(|rows| sorted(&[rows])).unwrap_or_default());
        }
        (given, program.context().board().program().late)
    };
    let (without, late) = sums(false);
    assert_eq!(late, 0);
    assert!(without.concat().join("").contains("|11|"), "{without:?}");
    assert_eq!(sums(true), (without, 1), "only itself is refused");
}

#[test]
fn a_late_row_of_a_join_has_its_place_where_the_query_takes_it() {
    for (columns, place) in [("p._offset, p._partition, ", ["0", "1"]), ("", ["", "0"])] {
        let dir = tempfile::tempdir().unwrap();
        let context =
            crate::StreamingContext::builder("p").trigger(crate::Trigger::Drain).partitions(2).data_dir(dir.path());
        let mut program = crate::testing::SqlProgram::over(context.build());
        let entries = |first: &[Row], second: &[Row]| vec![vec![rows(first)], vec![rows(second)]];
        program.queue("posts", entries(&[(50, "a", Some(1))], &[(60, "b", Some(2)), (2, "late", Some(3))]));
        program.queue("likes", entries(&[(50, "a", Some(4))], &[(60, "b", Some(5))]));
        let watermark = "(WATERMARK FOR t AS t - INTERVAL '10' SECOND) WITH (connector = 'program')";
        program
            .start(&format!(
                "CREATE STREAM posts {watermark}; CREATE STREAM likes {watermark};
                 CREATE VIEW v AS SELECT {columns}p.tag, p.n AS posted, l.n AS liked FROM posts p JOIN likes l
                 ON p.tag = l.tag AND l.t BETWEEN p.t AND p.t + INTERVAL '10' SECOND"
            ))
            .unwrap();
        program.step().unwrap();
        program.step().unwrap();
        let topic = program.pipeline().keep.as_ref().unwrap().log().topic("p.dead").unwrap();
        let kept: Vec<RecordBatch> =
            topic.read(0, tidemill_core::Offset(0), topic.end(0)).map(|rows| rows.unwrap().rows).collect();
        let text = |column: usize| {
            let cast = arrow_cast::cast(kept[0].column(column), &arrow_schema::DataType::Utf8).unwrap();
            cast.as_string::<i32>().value(0).to_string()
        };
        assert_eq!(topic.end(0).0, 1, "{columns}");
        assert_eq!([text(1), text(2)], place, "{columns}");
        assert!(text(4).starts_with("late: ") && text(5).contains("\"late\""), "{} {}", text(4), text(5));
    }
}
