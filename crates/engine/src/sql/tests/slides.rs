//! Hopping windows that slide by adding a pane and taking one away, against the model and one query over each window.

use super::*;

/// Sums that can be taken back, of numbers that may be missing: a group may have nothing but NULLs.
const SLID: &str = "SELECT window_start, window_end, tag, count(*) AS rows, count(n) AS c, sum(n) AS s, avg(n) AS a, \
     sum(CAST(n AS DECIMAL(12, 2)) + 1) AS d, count(*) FILTER (WHERE n > 2) AS big \
     FROM HOP(posts, t, INTERVAL '4' SECOND, INTERVAL '10' SECOND) GROUP BY window_start, window_end, tag";
/// The same with quarters, which end what is exact.
const QUARTERS: &str = "SELECT window_start, window_end, tag, count(*) AS rows, sum(x) AS s \
     FROM HOP(posts, t, INTERVAL '4' SECOND, INTERVAL '10' SECOND) GROUP BY window_start, window_end, tag";

/// The first two of each window, by an aggregate and an order of it.
fn first_two(by: &str) -> (String, String) {
    let all = "SELECT window_start, window_end, tag, count(*) AS c, sum(n) AS s, avg(n) AS a \
         FROM HOP(posts, t, INTERVAL '4' SECOND, INTERVAL '10' SECOND) GROUP BY window_start, window_end, tag";
    let streamed = format!("{all} ORDER BY window_end, {by}, tag LIMIT 2");
    let asked = format!(
        "SELECT window_start, window_end, tag, c, s, a FROM (
           SELECT *, row_number() OVER (PARTITION BY window_start ORDER BY {by}, tag) AS place FROM ({all})) WHERE place <= 2"
    );
    (streamed, asked)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_slides_equals_the_model(
        entries in entries(),
        partitions in 1..4_usize,
        query in prop::sample::select(vec![SLID, QUARTERS]),
    ) {
        equals_the_model(&entries, partitions, query)?;
    }

    #[test]
    fn the_first_of_each_window_are_those_of_all_its_groups(
        entries in entries(),
        by in prop::sample::select(vec!["s DESC", "s", "s DESC NULLS LAST", "s NULLS FIRST", "c DESC", "c", "a DESC", "a NULLS FIRST"]),
    ) {
        let (streamed, asked) = first_two(by);
        let (expected, _) = windows(&entries);
        let program = program(2, batches(&entries), &format!("CREATE VIEW v AS {streamed}"));
        for (got, expected) in shown(&program, entries.len(), 1).into_iter().zip(expected) {
            let got = got.map_or(vec![], |rows| sorted(&[rows]));
            prop_assert_eq!(got, windows_aggregated(&expected, &asked), "{}", by);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn a_restart_between_two_slides_changes_nothing(entries in entries(), cut in 0..7_usize) {
        let dir = tempfile::tempdir().unwrap();
        let (expected, _) = windows(&entries);
        let cut = cut.min(entries.len());
        let start = || kept_program(dir.path(), 2, &entries, &format!("CREATE VIEW v AS {SLID}"));
        let before = start();
        let mut got = shown(&before, cut, 1);
        drop(before);
        got.extend(shown(&start(), entries.len() - cut, cut as u64 + 1));
        for (got, expected) in got.into_iter().zip(expected) {
            prop_assert_eq!(got.map_or(vec![], |rows| sorted(&[rows])), windows_aggregated(&expected, SLID));
        }
    }
}

/// A second of each batch, and what comes in it.
fn by_second(of: &[&[(&'static str, Option<i64>)]]) -> Vec<Vec<RecordBatch>> {
    let second = |(second, parts): (i64, &&[(&'static str, Option<i64>)])| {
        vec![rows(&parts.iter().map(|(tag, n)| (second, *tag, *n)).collect::<Vec<_>>())]
    };
    (0_i64..).zip(of).map(second).collect()
}

const EACH_SECOND: &str = "CREATE STREAM posts (WATERMARK FOR t AS t) WITH (connector = 'program');\n";

#[test]
fn floats_do_not_drift() {
    // A quarter of a number is its x: ten to the 17th swallows what is added to it, and gives nothing back.
    let huge = 400_000_000_000_000_000;
    let of: &[&[(&str, Option<i64>)]] =
        &[&[("a", Some(huge))], &[("a", Some(6))], &[("a", Some(2))], &[("a", Some(1))], &[("a", Some(1))], &[], &[]];
    for (call, expected) in [("sum(x)", [2.5, 1.0]), ("avg(n)", [10.0 / 4.0, 4.0 / 3.0])] {
        let mut entries = by_second(of);
        entries.push(vec![rows(&[(30, "z", None)])]);
        let mut program = SqlProgram::new(1);
        let count = entries.len();
        program.queue("posts", entries);
        program
            .start(&format!(
                "{EACH_SECOND}CREATE VIEW v AS SELECT window_end, tag, {call} AS s FROM HOP(posts, t, INTERVAL '1' SECOND, INTERVAL '4' SECOND)
                 GROUP BY window_start, window_end, tag"
            ))
            .unwrap();
        let given = shown(&program, count, 1).into_iter().flatten().flat_map(|rows| {
            let values = rows.column(2).as_primitive::<arrow_array::types::Float64Type>();
            values.values().to_vec()
        });
        let given: Vec<f64> = given.collect();
        // Windows that end after 1, 2, 3, 4 s have the huge one; those after 5 s and 6 s don't.
        assert_eq!(given[4..6], expected, "{call}: {given:?}");
    }
}

#[test]
fn keys_that_vanish_are_forgotten_and_may_come_again() {
    let names: Vec<String> = (0..20_000).map(|i| format!("name {i}")).collect();
    let batch = |second: i64, tags: &[String], n: Option<i64>| {
        let time = TimestampMicrosecondArray::from_value(second * 1_000_000, tags.len()).with_timezone("UTC");
        let columns = [
            ("t", Arc::new(time) as arrow_array::ArrayRef, false),
            ("tag", Arc::new(StringArray::from_iter_values(tags)) as _, false),
            ("n", Arc::new(Int64Array::from(vec![n; tags.len()])) as _, true),
        ];
        vec![RecordBatch::try_from_iter_with_nullable(columns).unwrap()]
    };
    let few = &names[..2];
    let mut entries = vec![batch(0, &names, Some(1))];
    entries.extend((1..8).map(|second| batch(second, few, (second != 5).then_some(second))));
    entries.push(batch(8, &names[10..13], None));
    entries.push(batch(30, &names[..1], None));
    let mut program = SqlProgram::new(2);
    let count = entries.len();
    program.queue("posts", entries);
    program
        .start(&format!(
            "{EACH_SECOND}CREATE VIEW v AS SELECT window_end, tag, count(*) AS c, sum(n) AS s
             FROM HOP(posts, t, INTERVAL '1' SECOND, INTERVAL '4' SECOND) GROUP BY window_start, window_end, tag"
        ))
        .unwrap();
    let given: Vec<RecordBatch> = shown(&program, count, 1).into_iter().flatten().collect();
    let all: usize = given[..4].iter().map(RecordBatch::num_rows).sum();
    assert_eq!(all, 4 * 20_000, "the first four windows have them all");
    // The window that ends after 5 s has seconds 1 to 4, and so on; the one that ends at 9 s has 5 (NULL) to 8.
    assert_eq!(sorted(&given[4..5]), ["|1970-01-01T00:00:05Z|name 0|4|10|", "|1970-01-01T00:00:05Z|name 1|4|10|"]);
    let last = sorted(&given[8..]);
    let wanted = |line: &str| assert!(last.contains(&line.to_string()), "no {line} in {last:?}");
    wanted("|1970-01-01T00:00:09Z|name 0|3|13|");
    wanted("|1970-01-01T00:00:09Z|name 10|1||");
    wanted("|1970-01-01T00:00:12Z|name 12|1||");
    assert!(!last.iter().any(|line| line.starts_with("|1970-01-01T00:00:12Z|name 0|")), "it went: {last:?}");
}

#[test]
fn a_plan_says_that_a_window_slides() {
    let plan = |query: &str| {
        let context = crate::StreamingContext::builder("test").check_only().partitions(1).build();
        let program = SqlProgram::over(context);
        program.queue("posts", vec![vec![rows(&[(1, "a", Some(1))])]]);
        program.context().declare_sql(&format!("{POSTS}CREATE VIEW v AS {query}")).unwrap();
        program.context().explain().unwrap()
    };
    let slid = plan(&first_two("s DESC").0);
    assert!(slid.contains("v: state, a pane added and one taken away a slide, the first 2 groups"), "{slid}");
    let merged = plan(MERGED_HOPS);
    assert!(merged.contains("v: state\n") && !merged.contains("taken away"), "{merged}");
    let having = plan(&format!("{SLID} HAVING count(*) > 1 ORDER BY s DESC LIMIT 2"));
    assert!(having.contains("taken away a slide\n"), "what is filtered needs all groups: {having}");
}

#[test]
fn windows_that_take_late_rows_slide_as_well() {
    let mut entries =
        by_second(&[&[("a", Some(1))], &[("a", Some(2))], &[("a", Some(4))], &[("a", Some(8))], &[("a", Some(16))]]);
    // For the windows that end at 4, 5 and 6 s, of which the first two were given.
    entries.push(vec![rows(&[(3, "a", Some(100)), (5, "a", Some(32))])]);
    entries.push(vec![rows(&[(6, "a", None)])]);
    let count = entries.len();
    let mut program = SqlProgram::new(1);
    program.queue("posts", entries);
    program
        .start(&format!(
            "{EACH_SECOND}CREATE VIEW v WITH (allowed_lateness = '3s') AS SELECT window_end, sum(n) AS s, tag
             FROM HOP(posts, t, INTERVAL '1' SECOND, INTERVAL '4' SECOND) GROUP BY window_start, window_end, tag"
        ))
        .unwrap();
    let given: Vec<Vec<String>> =
        shown(&program, count, 1).into_iter().map(|rows| rows.map_or(vec![], |rows| sorted(&[rows]))).collect();
    let of = |second: i64, sum: i64| format!("|1970-01-01T00:00:0{second}Z|{sum}|a|");
    assert_eq!(given[4], [of(4, 15)]);
    assert_eq!(given[5], [of(4, 115), of(5, 130)], "what was given is given again, corrected");
    assert_eq!(given[6], [of(6, 160)]);
}
