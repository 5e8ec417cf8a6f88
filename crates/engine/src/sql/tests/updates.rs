//! Groups and first rows of keys as they change: `emit = 'update'` without a window.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

const MANY: &str = "SELECT tag, count(*) AS rows, count(n) AS c, sum(n) AS s, avg(n) AS a, min(n) AS lo, max(n) AS hi, \
     count(DISTINCT n) AS d, count(DISTINCT t) AS ts, count(DISTINCT x) AS xs, count(*) FILTER (WHERE n > 2) AS big, \
     count(DISTINCT n) FILTER (WHERE x > 0.3) AS ds, median(n) AS m FROM posts GROUP BY tag";
const DISTINCT_ALONE: &str = "SELECT tag, count(DISTINCT n) AS d, count(DISTINCT t) AS ts FROM posts GROUP BY tag";

/// The rows by their first column.
fn by_key(rows: &RecordBatch) -> BTreeMap<String, String> {
    let lines = sorted(std::slice::from_ref(rows));
    lines.into_iter().map(|line| (line.split('|').nth(1).unwrap_or_default().to_string(), line)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn changed_groups_put_together_are_the_whole_result(
        entries in entries(),
        partitions in 1..4_usize,
        cut in 0..7_usize,
        query in prop::sample::select(vec![MANY, DISTINCT_ALONE]),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let start = || kept_program(dir.path(), partitions, &entries, &format!("CREATE VIEW v WITH (emit = 'update') AS {query}; CREATE VIEW w AS {query}"));
        let mut running = start();
        let mut held = BTreeMap::new();
        let mut read = Vec::new();
        for (batch, entry) in entries.iter().enumerate() {
            if batch == cut {
                drop(running);
                running = start();
            }
            running.step().unwrap();
            read.extend(batches(std::slice::from_ref(entry)).into_iter().flatten());
            let tags: BTreeSet<String> = entry.iter().flatten().map(|row| row.1.to_string()).collect();
            let shown = running.context().board().view("v").filter(|view| view.batch.0 == batch as u64 + 1);
            let changed = shown.map(|view| by_key(&view.rows)).unwrap_or_default();
            prop_assert_eq!(changed.keys().cloned().collect::<BTreeSet<_>>(), tags, "batch {}", batch + 1);
            held.extend(changed);
            let expected = sorted(&oracle(&read, query));
            prop_assert_eq!(held.values().cloned().collect::<BTreeSet<_>>(), expected.iter().cloned().collect::<BTreeSet<_>>());
            let whole = running.view("w").map(|rows| sorted(&[rows])).unwrap_or_default();
            prop_assert_eq!(whole, expected, "the whole result beside it");
        }
    }
}

/// The first two of each tag, and of all; equal ones have equal rows.
pub(super) const TOPS: [&str; 6] = [
    "SELECT tag, n, t, place FROM (SELECT *, row_number() OVER (PARTITION BY tag ORDER BY n DESC, t) AS place FROM posts) WHERE place <= 2",
    "SELECT place, tag, t FROM (SELECT *, row_number() OVER (PARTITION BY tag ORDER BY t, n) AS place FROM posts) WHERE place = 1",
    "SELECT tag, n, place FROM (SELECT *, rank() OVER (PARTITION BY tag ORDER BY n DESC NULLS LAST) AS place FROM posts) WHERE place <= 2",
    "SELECT tag, n, place FROM (SELECT *, dense_rank() OVER (PARTITION BY tag ORDER BY n) AS place FROM posts) WHERE place < 3",
    "SELECT n, place FROM (SELECT *, dense_rank() OVER (ORDER BY n DESC) AS place FROM posts) WHERE place <= 2 AND n > 0",
    "SELECT upper(tag) AS tag, n + 1 AS m FROM (SELECT *, row_number() OVER (PARTITION BY tag, n ORDER BY t) AS place FROM posts) WHERE place <= 2 ORDER BY n LIMIT 100",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn first_rows_are_those_of_all_rows(
        entries in entries(),
        partitions in 1..4_usize,
        cut in 0..7_usize,
        query in prop::sample::select(TOPS.to_vec()),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let start = || kept_program(dir.path(), partitions, &entries, &format!("CREATE VIEW v AS {query}"));
        let mut running = start();
        let mut read = Vec::new();
        for (batch, entry) in entries.iter().enumerate() {
            if batch == cut {
                drop(running);
                running = start();
            }
            running.step().unwrap();
            read.extend(batches(std::slice::from_ref(entry)).into_iter().flatten());
            let shown = running.view("v").map(|rows| sorted(&[rows])).unwrap_or_default();
            prop_assert_eq!(shown, sorted(&oracle(&read, query)), "batch {}: {}", batch + 1, query);
        }
    }

    #[test]
    fn first_rows_of_changed_keys_put_together_are_the_whole_result(entries in entries(), cut in 0..7_usize) {
        let query = TOPS[0];
        let dir = tempfile::tempdir().unwrap();
        let start = || kept_program(dir.path(), 2, &entries, &format!("CREATE VIEW v WITH (emit = 'update') AS {query}"));
        let (mut running, mut read, mut held) = (start(), Vec::new(), BTreeMap::new());
        for (batch, entry) in entries.iter().enumerate() {
            if batch == cut {
                drop(running);
                running = start();
            }
            running.step().unwrap();
            read.extend(batches(std::slice::from_ref(entry)).into_iter().flatten());
            let tags: BTreeSet<&str> = entry.iter().flatten().map(|row| row.1).collect();
            if let Some(view) = running.context().board().view("v").filter(|view| view.batch.0 == batch as u64 + 1) {
                for line in sorted(std::slice::from_ref(&view.rows)) {
                    let fields: Vec<&str> = line.split('|').collect();
                    prop_assert!(tags.contains(fields[1]), "{} did not change", line);
                    held.insert((fields[1].to_string(), fields[4].to_string()), line.clone());
                }
            }
            let together: BTreeSet<String> = held.values().cloned().collect();
            prop_assert_eq!(together, sorted(&oracle(&read, query)).into_iter().collect::<BTreeSet<_>>());
            prop_assert!(running.states().iter().all(|rows| *rows <= 6), "two of each of three tags: {:?}", running.states());
        }
    }
}

#[test]
fn a_batch_without_a_better_row_changes_nothing() {
    let entries = vec![
        vec![rows(&[(1, "a", Some(3)), (1, "b", Some(1))])],
        vec![rows(&[(2, "a", Some(2))])],
        vec![rows(&[(3, "a", Some(4)), (3, "b", None)])],
    ];
    let query = "SELECT tag, n FROM (SELECT *, row_number() OVER (PARTITION BY tag ORDER BY n DESC NULLS LAST) AS place FROM posts) WHERE place = 1";
    let program = program(1, entries, &format!("CREATE VIEW v WITH (emit = 'update') AS {query}"));
    let given: Vec<Option<Vec<String>>> =
        shown(&program, 4, 1).into_iter().map(|rows| rows.map(|rows| sorted(&[rows]))).collect();
    let lines = |lines: &[&str]| Some(lines.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(given, [lines(&["|a|3|", "|b|1|"]), None, lines(&["|a|4|"]), None]);
}

#[test]
fn an_ungrouped_total_is_given_when_it_changes() {
    let entries = vec![vec![rows(&[(1, "a", Some(1))])], vec![rows(&[])], vec![rows(&[(2, "b", None)])]];
    let program =
        program(1, entries, "CREATE VIEW v WITH (emit = 'update') AS SELECT count(*) AS c, sum(n) AS s FROM posts");
    let given: Vec<Option<Vec<String>>> =
        shown(&program, 4, 1).into_iter().map(|rows| rows.map(|rows| sorted(&[rows]))).collect();
    let lines = |line: &str| Some(vec![line.to_string()]);
    assert_eq!(given, [lines("|1|1|"), None, lines("|2|1|"), None]);
}

#[test]
fn a_plan_says_that_groups_come_again() {
    let context = crate::StreamingContext::builder("test").check_only().partitions(2).build();
    let program = SqlProgram::over(context);
    program.queue("posts", vec![vec![rows(&[(1, "a", Some(1))])]]);
    let view = format!("{POSTS}CREATE VIEW v WITH (emit = 'update') AS {MANY}");
    program.context().declare_sql(&view).unwrap();
    let plan = program.context().explain().unwrap();
    let wanted = "gives the rows of the groups that the batch changed, as they stand, the same group again (update)";
    assert!(plan.contains(wanted), "{plan}");
}

#[test]
fn what_could_not_be_taken_back_is_refused() {
    let groups = "SELECT tag, count(*) AS c FROM posts GROUP BY tag";
    for (query, wanted) in [
        (
            format!("CREATE VIEW v WITH (emit = 'update') AS {groups} HAVING count(*) < 3"),
            "nothing takes back one that HAVING",
        ),
        (format!("CREATE VIEW v WITH (emit = 'update') AS {groups} ORDER BY c DESC LIMIT 3"), "nothing takes back one"),
        (
            "CREATE VIEW v WITH (emit = 'update') AS SELECT tag FROM (SELECT *, rank() OVER (PARTITION BY tag ORDER BY n) AS place FROM posts) WHERE place = 1".to_string(),
            "needs row_number()",
        ),
        (
            "CREATE VIEW v WITH (emit = 'update') AS SELECT tag FROM (SELECT *, row_number() OVER (PARTITION BY tag ORDER BY n) AS place FROM posts) WHERE place = 1 AND n > 3".to_string(),
            "WHERE over the number",
        ),
        (format!("CREATE VIEW v WITH (emit = 'complete') AS {groups}"), "leave the option out, or take 'update'"),
        (
            "CREATE VIEW v WITH (emit = 'update') AS SELECT tag FROM posts GROUP BY tag".to_string(),
            "about groups with an aggregate",
        ),
        (
            format!("CREATE VIEW v WITH (allowed_lateness = '1s') AS {groups}"),
            "option `allowed_lateness` is about windows",
        ),
        (
            format!("CREATE VIEW w WITH (emit = 'update') AS {groups}; CREATE VIEW v AS SELECT sum(c) AS c FROM w"),
            "gives windows or groups more than once",
        ),
    ] {
        let mut program = SqlProgram::new(1);
        program.queue("posts", vec![vec![rows(&[(1, "a", None)])]]);
        let error = program.start(&format!("{POSTS}{query}")).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}\ndoes not say: {wanted}");
    }
}
