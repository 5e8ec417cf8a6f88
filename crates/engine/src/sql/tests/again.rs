//! Rows that are kept again in turn: what comes back of them after any restarts, and what a quiet batch costs.

use super::*;
use crate::{StreamingContext, Trigger, Versions, state::look};
use std::path::Path;
use tidemill_core::BatchId;
use tidemill_store::{Disk, Past, RealDisk};

/// Views whose states keep rows again, with what they are called when a test fails.
const VIEWS: [(&str, &str); 9] = [
    ("every value", "SELECT DISTINCT tag, n FROM posts"),
    ("values that age", "SELECT DISTINCT n, date_bin(INTERVAL '4' SECOND, t) AS bin FROM posts"),
    (
        "an inner join",
        "SELECT a.tag, a.n, a.t, b.n AS bn, b.t AS bt FROM posts a JOIN posts b
         ON a.n = b.n AND b.t > a.t AND b.t <= a.t + INTERVAL '5' SECOND",
    ),
    (
        "a join that keeps one side for good",
        "SELECT a.tag, a.n, a.t, b.tag AS bt FROM posts a JOIN posts b ON a.n = b.n AND a.tag = b.tag AND b.t >= a.t",
    ),
    (
        "an outer join",
        "SELECT a.tag, a.n, a.t, b.tag AS btag, b.t AS bt FROM posts a FULL JOIN posts b
         ON a.n = b.n AND b.t > a.t AND b.t <= a.t + INTERVAL '5' SECOND",
    ),
    (
        "sessions",
        "SELECT window_start, window_end, n, tag, count(*) AS c, sum(x) AS s, count(DISTINCT t) AS d
         FROM SESSION(TABLE posts, DESCRIPTOR(t), INTERVAL '5' SECOND, DESCRIPTOR(n))
         GROUP BY window_start, window_end, n, tag",
    ),
    (
        "sessions of all rows",
        "SELECT window_start, window_end, count(*) AS c, sum(n) AS s
         FROM SESSION(TABLE posts, DESCRIPTOR(t), INTERVAL '2' SECOND) GROUP BY window_start, window_end",
    ),
    (
        "count windows",
        "SELECT window_start, window_end, n, count(*) AS c, sum(x) AS s FROM COUNT_WINDOW(TABLE posts, DESCRIPTOR(n), 5, 2)
         GROUP BY window_start, window_end, n",
    ),
    (
        "sessions as they change",
        "SELECT window_start, window_end, n, count(*) AS c FROM SESSION(TABLE posts, DESCRIPTOR(t), INTERVAL '5' SECOND, DESCRIPTOR(n))
         GROUP BY window_start, window_end, n",
    ),
];

fn view(at: usize) -> String {
    let (name, query) = VIEWS[at];
    let options =
        if name == "sessions as they change" { "WITH (emit = 'update', allowed_lateness = '2s')" } else { "" };
    format!("CREATE VIEW v {options} AS {query}")
}

/// The program over what `dir` keeps, which is no more than a start needs.
fn kept(dir: &Path, partitions: usize, entries: &[Vec<Vec<Row>>], view: &str) -> SqlProgram {
    let builder = StreamingContext::builder("test").trigger(Trigger::Drain).partitions(partitions).data_dir(dir);
    let builder = builder.keep_versions(Versions { batches: 1, age: None, bytes: u64::MAX });
    let mut program = SqlProgram::over(builder.build());
    program.queue("posts", batches(entries));
    program.start(&format!("{POSTS}{view}")).unwrap();
    program
}

/// The rows that each batch gave.
fn lines(program: &SqlProgram, batches: usize, first: usize) -> Vec<Option<Vec<String>>> {
    shown(program, batches, first as u64).into_iter().map(|rows| rows.map(|rows| sorted(&[rows]))).collect()
}

/// The same of a program that is started anew before each of the batches `cuts`, with other numbers of partitions.
fn restarted(dir: &Path, entries: &[Vec<Vec<Row>>], view: &str, cuts: &[usize]) -> Vec<Option<Vec<String>>> {
    let mut cuts: Vec<usize> = cuts.iter().copied().filter(|cut| *cut < entries.len()).collect();
    cuts.extend([0, entries.len()]);
    cuts.sort_unstable();
    cuts.dedup();
    let parts = cuts.windows(2).enumerate().map(|(at, part)| {
        let program = kept(dir, 1 + at % 3, entries, view);
        lines(&program, part[1] - part[0], part[0] + 1)
    });
    parts.flatten().collect()
}

/// Files of each state, in the order of their names: the number of the version, whether it is a snapshot, and how long it is.
fn files(dir: &Path) -> Vec<Vec<(u64, bool, u64)>> {
    let of_state = |state: &std::path::PathBuf| {
        let mut files: Vec<(u64, bool, u64)> = std::fs::read_dir(state)
            .unwrap()
            .map(|file| {
                let (name, length) = file.map(|file| (file.file_name(), file.metadata().unwrap().len())).unwrap();
                let name = name.into_string().unwrap();
                let (version, kind) = name.split_once('.').unwrap();
                (version.parse().unwrap(), kind == "snap", length)
            })
            .collect();
        files.sort_unstable();
        files
    };
    let states = std::fs::read_dir(dir.join("programs/test/state")).unwrap();
    let mut states: Vec<_> = states.map(|state| state.unwrap().path()).collect();
    states.sort();
    states.iter().map(of_state).collect()
}

/// Some rows a batch over many batches: states stay small, so that rounds end.
fn long() -> impl Strategy<Value = Vec<Vec<Vec<Row>>>> {
    let row = (0..4_i64, prop::sample::select(vec!["a", "b"]), prop::option::weighted(0.9, 0..4_i64));
    let part = prop::collection::vec(row, 0..3);
    prop::collection::vec(prop::collection::vec(part, 1..3), 30..45).prop_map(|mut entries| {
        for (batch, entry) in (0_i64..).zip(&mut entries) {
            entry.iter_mut().flatten().for_each(|row| row.0 += batch);
        }
        entries
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3))]

    #[test]
    fn restarts_over_rolled_files_change_nothing(entries in long(), cuts in prop::collection::vec(1..45_usize, 1..6)) {
        let mut rolled = 0;
        for (at, (name, _)) in VIEWS.iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let undisturbed = lines(&program(2, batches(&entries), &view(at)), entries.len(), 1);
            let got = restarted(dir.path(), &entries, &view(at), &cuts);
            for (batch, (got, expected)) in got.into_iter().zip(undisturbed).enumerate() {
                prop_assert_eq!(got, expected, "{}: batch {}", name, batch + 1);
            }
            rolled += files(dir.path()).iter().filter(|files| files.first().is_some_and(|first| first.0 > 1)).count();
        }
        prop_assert!(rolled > 3, "rounds end, and older files go");
    }
}

/// What is shown of a state as it was, by who has no program, is what the program shows.
#[test]
fn a_state_as_of_a_batch_has_each_row_once() {
    let row = |batch: i64, n: i64| (batch + n % 3, ["a", "b"][usize::from(batch % 3 == 0)], Some((batch * 5 + n) % 4));
    let entries: Vec<Vec<Vec<Row>>> =
        (0..40).map(|batch| vec![(0..1 + batch % 3).map(|n| row(batch, n)).collect()]).collect();
    let text = |found: look::LookedAt| {
        let rows: Vec<RecordBatch> = found.rows.into_iter().filter(|rows| rows.num_rows() > 0).collect();
        if rows.is_empty() { Vec::new() } else { sorted(&rows) }
    };
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    // Count windows that are over leave by their numbers, which only the program knows.
    for (at, (name, _)) in VIEWS.iter().enumerate().filter(|(_, (name, _))| *name != "count windows") {
        let dir = tempfile::tempdir().unwrap();
        let program = kept_program(dir.path(), 2, &entries, &view(at));
        lines(&program, entries.len(), 1);
        let root = dir.path().join("programs/test");
        let past = Past::read(&*disk, &root.join("ledger")).unwrap().unwrap();
        let states = program.pipeline().states.all();
        let mut shown = 0;
        for entry in past.program().operators {
            let state = states.iter().find(|state| state.name() == entry.name).unwrap();
            for version in 20..=40 {
                let found = |like| look::rows_at(&disk, &root.join("state"), &entry, BatchId(version), like).unwrap();
                let (alone, beside) = (text(found(None)), text(found(Some(state))));
                shown += beside.len();
                assert_eq!(alone, beside, "{name}: {} at batch {version}", entry.name);
            }
        }
        assert!(shown > 20, "{name}");
    }
}

/// Many keys come in the first batch, and a row or two in each after it.
fn quiet(keys: i64, batches: i64) -> Vec<Vec<Vec<Row>>> {
    let first = (0..keys).map(|n| (1, "a", Some(n))).collect();
    let later = (0..batches).map(|batch| vec![vec![(1, "b", Some(batch * 7)), (1, "b", Some(keys + batch))]]);
    std::iter::once(vec![first]).chain(later).collect()
}

#[test]
fn a_quiet_batch_among_many_keys_keeps_few_rows() {
    let entries = quiet(12_000, 60);
    for (at, (name, _)) in VIEWS.iter().enumerate().filter(|(_, (name, _))| *name != "sessions of all rows") {
        // Wider in time, so that all keys stay.
        let view = view(at).replace("INTERVAL '5' SECOND", "INTERVAL '1' HOUR");
        let dir = tempfile::tempdir().unwrap();
        let undisturbed = lines(&program(2, batches(&entries), &view), entries.len(), 1);
        let running = kept(dir.path(), 2, &entries, &view);
        let mut got = lines(&running, 2, 1);
        let first: Vec<u64> = files(dir.path()).iter().map(|files| files[0].2).collect();
        got.extend(lines(&running, 58, 3));
        drop(running);
        let files = files(dir.path());
        assert!(!files.is_empty() && files.len() == first.len(), "{name}: {files:?}");
        for (files, first) in files.iter().zip(first) {
            assert!(files.iter().all(|(_, is_snapshot, _)| !is_snapshot), "{name}: all rows at once: {files:?}");
            assert!(files.len() <= 2 * 48, "{name}: {files:?}");
            let most = files.iter().filter(|(version, ..)| *version > 1).map(|(.., length)| *length).max().unwrap();
            assert!(most * 8 < first, "{name}: {most} bytes in a batch, {first} of all rows: {files:?}");
        }
        got.extend(lines(&kept(dir.path(), 3, &entries, &view), 1, 61));
        assert_eq!(got, undisturbed, "{name}");
    }
}
