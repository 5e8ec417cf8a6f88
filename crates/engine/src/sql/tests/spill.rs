//! Groups that have no place in memory, and snapshots that are given in turn: results are the same.

use super::*;
use crate::{
    StreamingContext, Trigger, Versions,
    state::{StateOperator, Version},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};
use tidemill_core::BatchId;

/// States of one column and of several, of lists and of bytes; a key that may be null.
const MANY: &str = "SELECT tag, n, count(*) AS rows, sum(n) AS s, avg(x) AS a, min(t) AS lo, max(n) AS hi, \
     count(*) FILTER (WHERE n > 2) AS big, median(x) AS m, approx_distinct(t) AS d, bool_or(n > 1) AS some FROM posts GROUP BY tag, n";
/// Zeros of either sign are one group.
const FLOATS: &str = "SELECT x * CASE WHEN tag = 'a' THEN -1 ELSE 1 END * coalesce(n, 0) AS f, count(*) AS rows, sum(n) AS s \
     FROM posts GROUP BY x * CASE WHEN tag = 'a' THEN -1 ELSE 1 END * coalesce(n, 0)";
const PLAIN: &str = "SELECT n, count(*) AS c, sum(x) AS s FROM posts GROUP BY n";

/// Values that are counted once: by pairs where there is memory, and as lists where there is none.
const DISTINCT: &str =
    "SELECT tag, count(DISTINCT n) AS d, count(DISTINCT t) AS ts, sum(n) AS s FROM posts GROUP BY tag";

/// A program whose states may take so many bytes together.
pub(super) fn within(bytes: u64, dir: Option<&Path>, entries: Vec<Vec<RecordBatch>>, views: &str) -> SqlProgram {
    let builder = StreamingContext::builder("test").trigger(Trigger::Drain).partitions(2).state_memory(bytes);
    let builder = builder.keep_versions(Versions { batches: 1, ..Versions::default() });
    let mut program = SqlProgram::over(match dir {
        Some(dir) => builder.data_dir(dir).build(),
        None => builder.build(),
    });
    program.queue("posts", entries);
    program.start(&format!("{POSTS}{views}")).unwrap();
    program
}

pub(super) fn spilled(program: &SqlProgram) -> u64 {
    program.context().config.memory.spilled()
}

pub(super) fn state_of(program: &SqlProgram, name: &str) -> Arc<dyn StateOperator> {
    program.pipeline().states.all().into_iter().find(|state| state.name() == name).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn groups_without_memory_are_those_of_all_rows(
        entries in entries(),
        cut in 0..7_usize,
        query in prop::sample::select(vec![MANY, FLOATS, PLAIN, DISTINCT]),
        // Nothing may stay in memory, or something.
        bytes in prop::sample::select(vec![1, 30_000]),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let views = format!("CREATE VIEW v WITH (emit = 'update') AS {query}; CREATE VIEW w AS {query}");
        let start = || within(bytes, Some(dir.path()), batches(&entries), &views);
        let (mut running, mut read, mut seen) = (start(), Vec::new(), BTreeSet::new());
        for (batch, entry) in entries.iter().enumerate() {
            if batch == cut {
                drop(running);
                running = start();
            }
            running.step().unwrap();
            read.extend(batches(std::slice::from_ref(entry)).into_iter().flatten());
            let expected = sorted(&oracle(&read, query));
            if let Some(view) = running.context().board().view("v").filter(|view| view.batch.0 == batch as u64 + 1) {
                let changed = sorted(std::slice::from_ref(&view.rows));
                prop_assert!(changed.iter().all(|line| expected.contains(line)), "{changed:?} are not among {expected:?}");
                seen.extend(changed);
            }
            prop_assert!(expected.iter().all(|line| seen.contains(line)), "a group changed and was not given");
            let whole = running.view("w").map(|rows| sorted(&[rows])).unwrap_or_default();
            prop_assert_eq!(&whole, &expected, "the whole result beside it");
            if bytes == 1 && entry.iter().any(|part| !part.is_empty()) {
                prop_assert_eq!(spilled(&running), 2 * expected.len() as u64, "both views have theirs on disk");
            }
            let kept = running.context().sql("SELECT * FROM state.v").unwrap();
            prop_assert_eq!(sorted(&kept), expected);
        }
    }

    #[test]
    fn a_snapshot_in_turn_is_what_was_when_it_began(
        entries in entries(),
        begin in 0..6_usize,
        piece in 1..7_usize,
        query in prop::sample::select(vec![
            MANY,
            "SELECT tag, n, t, place FROM (SELECT *, row_number() OVER (PARTITION BY tag, n ORDER BY n DESC, t) AS place FROM posts) WHERE place <= 2",
            "SELECT tag, n, place FROM (SELECT *, rank() OVER (PARTITION BY tag ORDER BY n DESC NULLS LAST) AS place FROM posts) WHERE place <= 2",
            "SELECT n, place FROM (SELECT *, dense_rank() OVER (ORDER BY n DESC) AS place FROM posts) WHERE place <= 3",
        ]),
        bytes in prop::sample::select(vec![u64::MAX, 1, 30_000]),
    ) {
        // All first rows of one key are needed with each batch.
        let bytes = if query.contains("PARTITION") || query == MANY { bytes } else { u64::MAX };
        let program = within(bytes, None, batches(&entries), &format!("CREATE VIEW v AS {query}"));
        let state = state_of(&program, "v");
        let begin = begin.min(entries.len() - 1);
        let (mut read, mut given, mut later) = (Vec::new(), None::<Vec<RecordBatch>>, Vec::new());
        let (mut then, mut is_whole) = (Vec::new(), false);
        for (batch, entry) in entries.iter().enumerate() {
            program.step().unwrap();
            read.extend(batches(std::slice::from_ref(entry)).into_iter().flatten());
            let delta = state.delta(BatchId(batch as u64 + 1)).unwrap();
            if batch < begin {
                continue;
            }
            if given.is_none() {
                prop_assert!(state.sets_aside());
                then = sorted(&oracle(&read, query));
            } else {
                later.push(Version { whole: false, again: None, rows: delta });
            }
            if !is_whole {
                let swept = state.sweep(piece, given.is_none()).unwrap();
                is_whole = swept.whole;
                given.get_or_insert_default().extend(swept.rows);
            }
        }
        while !is_whole {
            let swept = state.sweep(piece, false).unwrap();
            is_whole = swept.whole;
            given.get_or_insert_default().extend(swept.rows);
        }
        let now = sorted(&oracle(&read, query));
        let snapshot = Version { whole: true, again: None, rows: given.unwrap() };
        if query == MANY {
            let groups: usize = snapshot.rows.iter().map(RecordBatch::num_rows).sum();
            prop_assert_eq!(groups, then.len(), "each group once");
        }
        for (versions, wanted) in [(vec![snapshot.clone()], then), ([vec![snapshot], later].concat(), now)] {
            state.restore(&versions).unwrap();
            if wanted.is_empty() {
                continue;
            }
            // One batch in which nothing comes: the whole result is given all the same.
            program.step().unwrap();
            prop_assert_eq!(program.view("v").map(|rows| sorted(&[rows])).unwrap_or_default(), wanted);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn first_rows_without_memory_are_those_of_all_rows(
        entries in entries(),
        cut in 0..7_usize,
        query in prop::sample::select(super::updates::TOPS.into_iter().filter(|query| query.contains("PARTITION")).collect::<Vec<_>>()),
        bytes in prop::sample::select(vec![1, 30_000]),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let start = || within(bytes, Some(dir.path()), batches(&entries), &format!("CREATE VIEW v AS {query}"));
        let (mut running, mut read) = (start(), Vec::new());
        for (batch, entry) in entries.iter().enumerate() {
            if batch == cut {
                drop(running);
                running = start();
            }
            running.step().unwrap();
            read.extend(batches(std::slice::from_ref(entry)).into_iter().flatten());
            let expected = sorted(&oracle(&read, query));
            let shown = running.view("v").map(|rows| sorted(&[rows])).unwrap_or_default();
            prop_assert_eq!(&shown, &expected, "batch {}: {}", batch + 1, query);
            prop_assert!(expected.is_empty() || bytes > 1 || spilled(&running) > 0, "keys are on disk");
        }
    }
}

/// Rows of these numbers in one part.
pub(super) fn numbers(of: impl Iterator<Item = i64>) -> Vec<RecordBatch> {
    let rows_of: Vec<Row> = of.map(|n| (1, "a", Some(n))).collect();
    vec![rows(&rows_of)]
}

/// Names of the files of a state.
fn files(dir: &Path, state: &str) -> Vec<String> {
    let files = std::fs::read_dir(dir.join("programs/test/state").join(state)).unwrap();
    let mut names: Vec<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_large_state_is_kept_again_in_turn_and_comes_back() {
    const GROUPS: i64 = 40_000;
    let few = |batch: i64| (0..20).map(move |i| (batch * 977 + i * 1009) % (GROUPS + 50));
    let entries: Vec<Vec<RecordBatch>> =
        std::iter::once(numbers(0..GROUPS)).chain((1..140).map(|batch| numbers(few(batch)))).collect();
    let all: Vec<RecordBatch> = entries.iter().flatten().cloned().collect();
    let view = format!("CREATE VIEW v WITH (emit = 'update') AS {PLAIN}");
    for bytes in [u64::MAX, 1 << 20] {
        let dir = tempfile::tempdir().unwrap();
        let start = || within(bytes, Some(dir.path()), entries.clone(), &view);
        let mut running = start();
        let mut snapshots = BTreeMap::new();
        for batch in 0..140 {
            if batch == 49 || batch == 110 {
                // The first has three pieces, of which two were written.
                drop(running);
                running = start();
            }
            running.step().unwrap();
            let names = files(dir.path(), "v");
            assert!(names.len() <= 2 * 48 + 8, "{} files after batch {batch}", names.len());
            for name in names.into_iter().filter(|name| name.ends_with(".snap")) {
                snapshots.entry(name).or_insert(batch + 1);
            }
        }
        // A start begins to count anew, and what was under way is begun again.
        assert!(snapshots.len() >= 2, "{snapshots:?}");
        for (name, seen) in &snapshots {
            let version: i64 = name.split('.').next().unwrap().parse().unwrap();
            assert_eq!(*seen, version + 2, "{name} has three pieces, a batch each");
        }
        let on_disk = spilled(&running);
        let wanted = if bytes < u64::MAX { 20_000..40_000 } else { 0..1 };
        assert!(wanted.contains(&on_disk), "{on_disk} groups are on disk, not among {wanted:?}");
        assert!(bytes == u64::MAX || running.context().config.memory.used() <= bytes);
        drop(running);
        let after = start();
        let kept = after.context().sql("SELECT * FROM state.v").unwrap();
        assert_eq!(sorted(&kept), sorted(&oracle(&all, PLAIN)));
        assert_eq!(spilled(&after) > 10_000, bytes < u64::MAX, "a start fills memory no further");
    }
}

#[test]
fn a_key_that_is_too_long_for_the_disk_stays_in_memory() {
    let long: &'static str = Box::leak("x".repeat(70_000).into_boxed_str());
    let entries = vec![
        vec![rows(&[(1, long, Some(1)), (1, "a", Some(2))])],
        vec![rows(&[(2, "b", Some(1))])],
        vec![rows(&[(3, long, Some(4)), (3, "a", Some(5))])],
    ];
    let all: Vec<RecordBatch> = entries.iter().flatten().cloned().collect();
    let query = "SELECT tag, sum(n) AS s FROM posts GROUP BY tag";
    let dir = tempfile::tempdir().unwrap();
    let program = within(1, Some(dir.path()), entries, &format!("CREATE VIEW v AS {query}"));
    (0..3).for_each(|_| program.step().unwrap());
    assert_eq!(spilled(&program), 2);
    assert_eq!(sorted(&[program.view("v").unwrap()]), sorted(&oracle(&all, query)));
}

#[test]
fn what_can_not_go_to_disk_is_counted_and_ends_the_program_before_memory_does() {
    let entries: Vec<_> = (0..4_i64).map(|batch| numbers(batch * 100..batch * 100 + 200)).collect();
    let all: Vec<RecordBatch> = entries.iter().flatten().cloned().collect();
    let query = "SELECT n, t FROM (SELECT *, row_number() OVER (ORDER BY t, n) AS place FROM posts) WHERE place < 1000";
    let dir = tempfile::tempdir().unwrap();
    let view = format!("CREATE VIEW v AS {query}");
    let start = |bytes| within(bytes, Some(dir.path()), entries.clone(), &view);
    let program = start(1_000);
    program.step().unwrap();
    let used = program.context().config.memory.used();
    assert!((3_200..1 << 20).contains(&used), "{used} bytes of 200 groups: {query}");
    let error = program.step().unwrap_err().to_string();
    let wanted = "start again with a higher `--state-memory`";
    assert!(error.contains("the state of `v` has 200 rows") && error.contains(wanted), "{error}");
    drop(program);
    // What was committed is there; with more memory it goes on.
    let program = start(1 << 30);
    (0..3).for_each(|_| program.step().unwrap());
    assert!(program.context().config.memory.used() > used);
    assert_eq!(sorted(&[program.view("v").unwrap()]), sorted(&oracle(&all, query)));
    drop(program);
}
