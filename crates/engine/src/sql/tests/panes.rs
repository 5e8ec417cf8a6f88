//! Windows that have no place in memory: what they give, and what is kept of them, is the same.

use super::{
    spill::{numbers, spilled, state_of, within},
    *,
};
use crate::state::Version;
use std::collections::BTreeSet;
use tidemill_core::BatchId;

/// States of one column and of several, of lists and of bytes; a key that may be null.
const TUMBLES: &str = "SELECT window_end, tag, n, count(*) AS rows, sum(n) AS s, avg(x) AS a, min(t) AS lo, median(x) AS m, \
     approx_distinct(t) AS d, count(DISTINCT t) AS ts FROM TUMBLE(posts, t, INTERVAL '5' SECOND) \
     GROUP BY window_start, window_end, tag, n";
/// Panes are merged ahead where there is memory.
const HOPS: &str = "SELECT window_end, tag, count(*) AS rows, min(n) AS lo, max(x) AS hi \
     FROM HOP(posts, t, INTERVAL '2' SECOND, INTERVAL '10' SECOND) GROUP BY window_start, window_end, tag";
/// Panes are added and taken away where there is memory.
const SUMS: &str = "SELECT window_end, tag, count(*) AS rows, sum(n) AS s \
     FROM HOP(posts, t, INTERVAL '2' SECOND, INTERVAL '10' SECOND) GROUP BY window_start, window_end, tag";
const NO_GROUPS: &str = "SELECT window_end, count(*) AS rows, sum(n) AS s \
     FROM HOP(posts, t, INTERVAL '2' SECOND, INTERVAL '10' SECOND) GROUP BY window_start, window_end";
const FIRST: &str = "SELECT window_end, tag, n, count(*) AS rows FROM TUMBLE(posts, t, INTERVAL '5' SECOND) \
     GROUP BY window_start, window_end, tag, n ORDER BY window_end, rows DESC, tag, n LIMIT 2";
/// None of its panes is over.
const OPEN: &str = "SELECT window_end, tag, n, count(*) AS rows, median(x) AS m \
     FROM HOP(posts, t, INTERVAL '5' SECOND, INTERVAL '1000' SECOND) GROUP BY window_start, window_end, tag, n";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn windows_without_memory_are_those_with_it(
        entries in entries(),
        cut in 0..7_usize,
        query in prop::sample::select(vec![TUMBLES, HOPS, SUMS, NO_GROUPS, FIRST]),
        options in prop::sample::select(vec![
            "",
            "WITH (allowed_lateness = '5s')",
            "WITH (emit = 'update', allowed_lateness = '5s')",
            "WITH (emit = 'complete')",
        ]),
        // Nothing may stay in memory, or something.
        bytes in prop::sample::select(vec![1, 3_000]),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let view = format!("CREATE VIEW v {options} AS {query}");
        let roomy = within(u64::MAX, None, batches(&entries), &view);
        let start = || within(bytes, Some(dir.path()), batches(&entries), &view);
        let mut running = start();
        for (batch, entry) in entries.iter().enumerate() {
            if batch == cut {
                drop(running);
                running = start();
            }
            let given = |program: &SqlProgram| {
                program.step().unwrap();
                let view = program.context().board().view("v").filter(|view| view.batch.0 == batch as u64 + 1);
                view.map_or(vec![], |view| sorted(std::slice::from_ref(&view.rows)))
            };
            prop_assert_eq!(given(&running), given(&roomy), "batch {}", batch + 1);
            let state = state_of(&running, "v");
            if bytes == 1 && entry.iter().any(|part| !part.is_empty()) {
                prop_assert_eq!(spilled(&running), state.rows() as u64, "all of it is on disk");
            }
            let shown = |state: &dyn crate::state::StateOperator| sorted(&state.shown().unwrap());
            prop_assert_eq!(shown(&*state), shown(&*state_of(&roomy, "v")), "batch {}", batch + 1);
        }
    }

    #[test]
    fn a_snapshot_of_panes_in_turn_is_what_was_when_it_began(
        entries in entries(),
        begin in 0..6_usize,
        piece in 1..7_usize,
        bytes in prop::sample::select(vec![1, 3_000]),
    ) {
        let program = within(bytes, None, batches(&entries), &format!("CREATE VIEW v AS {OPEN}"));
        let state = state_of(&program, "v");
        let shown = || sorted(&state.shown().unwrap());
        let (mut given, mut later, mut then, mut is_whole) = (None::<Vec<RecordBatch>>, Vec::new(), Vec::new(), false);
        let sweep = |given: &mut Option<Vec<RecordBatch>>| {
            let swept = state.sweep(piece, given.is_none()).unwrap();
            given.get_or_insert_default().extend(swept.rows);
            swept.whole
        };
        for batch in 0..entries.len() {
            program.step().unwrap();
            let delta = state.delta(BatchId(batch as u64 + 1)).unwrap();
            if given.is_some() {
                later.push(Version { whole: false, again: None, rows: delta });
            } else if batch >= begin && state.sets_aside() {
                then = shown();
            } else {
                continue;
            }
            if !is_whole {
                is_whole = sweep(&mut given);
            }
        }
        prop_assume!(given.is_some());
        while !is_whole {
            is_whole = sweep(&mut given);
        }
        let now = shown();
        let snapshot = Version { whole: true, again: None, rows: given.unwrap() };
        for (versions, wanted) in [(vec![snapshot.clone()], then), ([vec![snapshot], later].concat(), now)] {
            state.restore(&versions).unwrap();
            prop_assert_eq!(shown(), wanted);
        }
    }
}

#[test]
fn a_window_beyond_memory_is_merged_on_disk_and_given_whole() {
    const GROUPS: i64 = 20_000;
    const BATCHES: i64 = 30;
    let mut entries: Vec<Vec<RecordBatch>> = (0..BATCHES).map(|_| numbers(0..GROUPS)).collect();
    let all: Vec<RecordBatch> = entries.iter().flatten().cloned().collect();
    entries.push(vec![rows(&[(200, "a", Some(1))])]);
    let view = "CREATE VIEW v AS SELECT n, count(*) AS c, sum(x) AS s FROM TUMBLE(posts, t, INTERVAL '100' SECOND) \
         GROUP BY window_start, window_end, n";
    let bound = 256 << 10;
    let program = within(bound, None, entries, view);
    let mut counts = BTreeSet::new();
    for _ in 0..BATCHES {
        program.step().unwrap();
        let memory = &program.context().config.memory;
        assert!(memory.used() <= bound, "{} bytes", memory.used());
        counts.insert(memory.spilled());
    }
    let most = *counts.last().unwrap() as i64;
    assert!((GROUPS..20 * GROUPS).contains(&most), "{most} partial rows of {GROUPS} groups on disk");
    program.step().unwrap();
    let query = "SELECT n, count(*) AS c, sum(x) AS s FROM posts GROUP BY n";
    assert_eq!(sorted(&[program.view("v").unwrap()]), sorted(&oracle(&all, query)));
    assert_eq!(state_of(&program, "v").rows(), 1, "the window is over, and the next has one row");
    assert!(spilled(&program) <= 1);
}
