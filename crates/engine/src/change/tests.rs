//! Programs are changed, rewound and crashed between two batches.

use super::Action;
use crate::{ContextBuilder, StreamingContext, Trigger, Versions, ingest::tests, testing::SqlProgram};
use arrow_array::RecordBatch;
use arrow_cast::pretty::pretty_format_batches;
use std::{path::Path, sync::Arc};
use tidemill_core::{BatchId, Clock, Duration, ManualClock, Offset, Result, Timestamp};
use tidemill_store::{
    Disk, Ledger, Log, RealDisk, SimDisk,
    disk::Fault,
    log::{Retention, Topic},
    rewind::{Goal, rewind},
};

mod again;
mod letters;
mod parts;

use parts::lose_commits;

const STREAM: &str = "CREATE STREAM lines WITH (connector = 'idle');";

fn builder(dir: &Path) -> ContextBuilder {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(Timestamp(1_000_000_000)));
    let builder = StreamingContext::builder("p").trigger(Trigger::Drain).partitions(2);
    builder.data_dir(dir).clock(clock).registry(tests::registry())
}

fn start(builder: ContextBuilder, views: &str) -> Result<SqlProgram> {
    let mut program = SqlProgram::over(builder.build());
    program.start(&format!("{STREAM}{views}"))?;
    Ok(program)
}

fn topic(program: &SqlProgram) -> Arc<Topic> {
    program.pipeline().keep.as_ref().unwrap().log().topic("lines").unwrap()
}

/// Runs a batch a word list; the words of batch `n` are those of the list.
fn feed(program: &SqlProgram, batches: &[&str]) {
    for words in batches {
        topic(program).append(0, &tests::lines(words.split(' ')), None).unwrap();
        program.step().unwrap();
    }
}

fn text(rows: &[RecordBatch]) -> String {
    pretty_format_batches(rows).unwrap().to_string()
}

fn ask(program: &SqlProgram, query: &str) -> String {
    text(&program.context().sql(query).unwrap())
}

/// What a program gives when it has been there from the start.
fn oracle(views: &str, batches: &[&str], query: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let program = start(builder(dir.path()), views).unwrap();
    feed(&program, batches);
    ask(&program, query)
}

const COUNT: &str = "CREATE VIEW top AS SELECT value, count(*) AS n FROM lines GROUP BY value;";
const SORTED: &str = "SELECT * FROM top ORDER BY value";
const BEFORE: [&str; 3] = ["a b a", "b c", "a d"];
const AFTER: [&str; 2] = ["a e", "c c"];

fn all() -> Vec<&'static str> {
    BEFORE.iter().chain(&AFTER).copied().collect()
}

fn actions(builder: ContextBuilder, views: &str) -> Vec<(String, Action, String)> {
    let context = builder.check_only().build();
    context.declare_sql(&format!("{STREAM}{views}")).unwrap();
    let changes = context.changes().unwrap().unwrap();
    changes.operators.into_iter().map(|c| (c.name, c.action, c.why)).collect()
}

/// Stops `before` after three batches and starts `now` in its place.
fn changed(dir: &Path, before: &str, now: &str, ask: impl Fn(ContextBuilder) -> ContextBuilder) -> Result<SqlProgram> {
    let program = start(builder(dir), before)?;
    feed(&program, &BEFORE);
    drop(program);
    start(ask(builder(dir)), now)
}

#[test]
fn partitions_interval_inputs_and_order_may_change_freely() {
    let other = "CREATE VIEW total AS SELECT count(*) AS n FROM lines;";
    let more = "CREATE STREAM others WITH (connector = 'idle'); CREATE VIEW third AS SELECT count(*) AS n FROM others;";
    let dir = tempfile::tempdir().unwrap();
    let want = oracle(COUNT, &all(), SORTED);
    let program = changed(dir.path(), &format!("{COUNT}{other}"), &format!("{other}{more}{COUNT}"), |b| {
        b.partitions(3).interval(Duration::from_millis(250))
    })
    .unwrap();
    feed(&program, &AFTER);
    assert_eq!(ask(&program, SORTED), want);
    assert!(ask(&program, "SELECT n FROM total").contains("| 11 |"), "{}", ask(&program, "SELECT n FROM total"));
    drop(program);
    // An input that is gone takes nothing with it but what read it.
    let free = actions(builder(dir.path()).partitions(1), &format!("{COUNT}{other}"));
    assert_eq!(
        free.iter().map(|(name, action, _)| (name.as_str(), *action)).collect::<Vec<_>>(),
        [("top", Action::Keep), ("total", Action::Keep), ("third", Action::Drop)]
    );
}

#[test]
fn an_aggregate_that_is_added_begins_empty_and_the_others_go_on() {
    let now = "CREATE VIEW top AS SELECT value, count(*) AS n, approx_distinct(value) AS d, max(value) AS m
               FROM lines GROUP BY value;";
    let dir = tempfile::tempdir().unwrap();
    let refused = changed(dir.path(), COUNT, now, |b| b).unwrap_err().to_string();
    assert!(refused.contains("migrate") && refused.contains("--accept-changes"), "{refused}");
    assert!(refused.contains("are new: empty for what has come so far"), "{refused}");
    // Nothing was changed by the refusal: the program before goes on.
    let program = start(builder(dir.path()), COUNT).unwrap();
    feed(&program, &AFTER[..1]);
    drop(program);
    let program = start(builder(dir.path()).accept_changes(), now).unwrap();
    feed(&program, &AFTER[1..]);
    assert_eq!(ask(&program, "SELECT value, n FROM top ORDER BY value"), oracle(COUNT, &all(), SORTED));
    // What came before the change is not in the new columns.
    let (c, a) = ("SELECT n, d, m FROM top WHERE value = 'c'", "SELECT n, d, m FROM top WHERE value = 'a'");
    assert!(ask(&program, c).contains("| 3 | 1 | c |"), "{}", ask(&program, c));
    assert!(ask(&program, a).contains("| 4 | 0 |   |"), "{}", ask(&program, a));
    drop(program);
    // And back again: the columns are dropped, the counts stay.
    let program = start(builder(dir.path()).accept_changes().partitions(1), COUNT).unwrap();
    feed(&program, &["e"]);
    assert_eq!(ask(&program, SORTED), oracle(COUNT, &[all(), vec!["e"]].concat(), SORTED));
}

#[test]
fn another_key_is_rebuilt_from_the_log_and_the_others_are_kept() {
    let total = "CREATE VIEW total AS SELECT count(*) AS n FROM lines;";
    let now = "CREATE VIEW top AS SELECT upper(value) AS value, count(*) AS n FROM lines GROUP BY upper(value);";
    for versions in [Versions::default(), Versions { batches: 1, ..Versions::default() }] {
        let dir = tempfile::tempdir().unwrap();
        let program = changed(dir.path(), &format!("{COUNT}{total}"), &format!("{total}{now}"), |b| {
            b.accept_changes().keep_versions(versions)
        });
        let program = program.unwrap();
        feed(&program, &AFTER);
        assert_eq!(ask(&program, SORTED), oracle(now, &all(), SORTED));
        assert_eq!(ask(&program, "SELECT * FROM total"), oracle(total, &all(), "SELECT * FROM total"));
        assert!(ask(&program, "SELECT count(*) AS n FROM state.top").contains("| 5 |"));
        drop(program);
        // The same program starts again freely.
        let free = actions(builder(dir.path()), &format!("{now}{total}"));
        assert!(free.iter().all(|(_, action, why)| *action == Action::Keep && why.is_empty()), "{free:?}");
    }
}

#[test]
fn another_filter_needs_consent_and_can_be_rebuilt() {
    let now = "CREATE VIEW top AS SELECT value, count(*) AS n FROM lines WHERE value <> 'b' GROUP BY value;";
    let dir = tempfile::tempdir().unwrap();
    let refused = changed(dir.path(), COUNT, now, |b| b).unwrap_err().to_string();
    assert!(refused.contains("its query reads other rows now") && refused.contains("--rebuild top"), "{refused}");
    let program = start(builder(dir.path()).accept_changes().rebuild("top"), now).unwrap();
    feed(&program, &AFTER);
    assert_eq!(ask(&program, SORTED), oracle(now, &all(), SORTED));
    drop(program);
    // What comes after the aggregate, and how the text is laid out, is no other query.
    let shown = "CREATE VIEW top AS SELECT   value, count(*) AS n FROM lines WHERE value <> 'b' GROUP BY value
                 HAVING count(*) > 1 ORDER BY n LIMIT 3;";
    assert_eq!(actions(builder(dir.path()), shown)[0].1, Action::Keep);
    start(builder(dir.path()), shown).unwrap();
    // A view without state is part of what reads it.
    let view = "CREATE VIEW some AS SELECT value FROM lines WHERE value <> 'b';
                CREATE VIEW top AS SELECT value, count(*) AS n FROM some GROUP BY value;";
    start(builder(dir.path()).accept_changes(), view).unwrap();
    let changed = actions(builder(dir.path()), &view.replace("'b'", "'c'"));
    assert!(changed[0].2.contains("reads other rows"), "{changed:?}");
}

#[test]
fn names_are_checked_and_suggested() {
    let dir = tempfile::tempdir().unwrap();
    let tops = COUNT.replace("VIEW top", "VIEW tops");
    let refused = changed(dir.path(), COUNT, &tops, |b| b).unwrap_err().to_string();
    assert!(refused.contains("drop") && refused.contains("--rename top=tops"), "{refused}");
    for (asked, says) in [
        (builder(dir.path()).rebuild("topz"), "did you mean `tops`?"),
        (builder(dir.path()).rename("tip", "tops"), "did you mean `top`?"),
        (builder(dir.path()).rename("top", "zzzzzzzz"), "there are tops"),
    ] {
        let error = start(asked.accept_changes(), &tops).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let rename = || builder(dir.path()).accept_changes().rename("top", "tops");
    let program = start(rename(), &tops).unwrap();
    feed(&program, &AFTER);
    let renamed = SORTED.replace("top", "tops");
    assert_eq!(ask(&program, &renamed), oracle(COUNT, &all(), SORTED));
    drop(program);
    // The same command may be given again.
    let program = start(rename(), &tops).unwrap();
    assert_eq!(
        ask(&program, "SELECT count(*) AS n FROM state.tops"),
        oracle(COUNT, &all(), "SELECT count(*) AS n FROM top")
    );
}

#[test]
fn typed_state_is_widened_and_kept_apart_by_kind() {
    use crate::testing::run_built;
    let input: Vec<Vec<(String, i32)>> =
        (0..4).map(|batch| vec![("a".to_string(), batch), (format!("k{batch}"), 1)]).collect();
    let wide: Vec<Vec<(String, i64)>> =
        input.iter().map(|batch| batch.iter().map(|(k, v)| (k.clone(), i64::from(*v))).collect()).collect();
    let dir = tempfile::tempdir().unwrap();
    let built = || StreamingContext::builder("test").data_dir(dir.path());
    let narrow = |s: crate::DStream<(String, i32)>| {
        s.with_name("sum")
            .update_state_by_key(|new: &[i32], sum: Option<i32>| Some(sum.unwrap_or(0) + new.iter().sum::<i32>()))
            .snapshot()
    };
    run_built(built(), &input, narrow, 0..2).unwrap();
    let program = |s: crate::DStream<(String, i64)>| {
        s.with_name("sum")
            .update_state_by_key(|new: &[i64], sum: Option<i64>| Some(sum.unwrap_or(0) + new.iter().sum::<i64>()))
            .snapshot()
    };
    let refused = run_built(built(), &wide, program, 2..3).unwrap_err().to_string();
    assert!(refused.contains("widened from Int32 to Int64"), "{refused}");
    let mut got = run_built(built().accept_changes(), &wide, program, 2..4).unwrap();
    let mut want = crate::testing::run(wide, program, 2).unwrap().split_off(2);
    got.iter_mut().chain(&mut want).for_each(|batch| batch.sort());
    assert_eq!(got, want);
}

fn to(dir: &Path, goal: Goal) -> tidemill_store::rewind::Rewound {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    rewind(&disk, dir, "p", goal.into()).unwrap()
}

#[test]
fn a_program_goes_back_and_comes_out_right_at_every_batch() {
    let right =
        "CREATE VIEW top AS SELECT value, count(*) AS n, min(value) AS m FROM lines WHERE value <> 'b' GROUP BY value;";
    let want = oracle(right, &all(), SORTED);
    for back in 0..=5 {
        let dir = tempfile::tempdir().unwrap();
        // Right until batch `back`, wrong after it.
        let program = start(builder(dir.path()), right).unwrap();
        feed(&program, &all()[..back]);
        drop(program);
        let wrong = start(builder(dir.path()).accept_changes(), COUNT).unwrap();
        feed(&wrong, &all()[back..]);
        drop(wrong);
        let done = to(dir.path(), Goal::Batch(BatchId(back as u64)));
        assert_eq!((done.to.0, done.upto.0), (back as u64, 5));
        // The program of then is in force: it starts freely.
        let program = start(builder(dir.path()), right).unwrap_or_else(|e| panic!("back to {back}: {e}"));
        program.step().unwrap();
        assert_eq!(ask(&program, SORTED), want, "back to {back}");
        let last = program.pipeline().keep.as_ref().unwrap().past().last().unwrap().batch;
        assert_eq!(last, BatchId(6), "numbers are not used again");
        // Back to the same batch once more: the undone ones between are passed over.
        drop(program);
        to(dir.path(), Goal::Batch(BatchId(back as u64)));
        let program = start(builder(dir.path()), right).unwrap();
        program.step().unwrap();
        assert_eq!(ask(&program, SORTED), want, "back to {back} again");
    }
}

#[test]
fn what_can_not_be_gone_back_to_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let words: Vec<&str> = std::iter::repeat_n("a b", 70).collect();
    let versions = Versions { batches: 1, ..Versions::default() };
    let program = start(builder(dir.path()).keep_versions(versions), COUNT).unwrap();
    feed(&program, &words);
    drop(program);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    for (goal, says) in [
        (Goal::Batch(BatchId(99)), "batch 99 is not kept: batches 1 ("),
        (Goal::Batch(BatchId(3)), "the state of `top` at batch 3 is not kept any more: the oldest is that of batch"),
        (Goal::At(Timestamp(0)), "--to 0 goes back to the beginning"),
    ] {
        let error = rewind(&disk, dir.path(), "p", goal.into()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let error = rewind(&disk, dir.path(), "q", Goal::Batch(BatchId(69)).into()).unwrap_err().to_string();
    assert!(error.contains("did you mean `p`?") || error.contains("there are p"), "{error}");
    assert_eq!(to(dir.path(), Goal::Batch(BatchId(69))).to, BatchId(69));
}

#[test]
fn states_are_asked_as_of_now_and_as_of_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    let views = "CREATE VIEW top AS SELECT value, count(*) AS n, avg(length(value)) AS mean FROM lines GROUP BY value
                 ORDER BY n DESC LIMIT 1;";
    let program = start(builder(dir.path()), views).unwrap();
    assert!(ask(&program, "SELECT count(*) AS n FROM state.top").contains("| 0 |"));
    let program_all =
        "CREATE VIEW top AS SELECT value, count(*) AS n, avg(length(value)) AS mean FROM lines GROUP BY value;";
    let columns = "value, \"count(*)\" AS n, \"avg(length(lines.value))\" AS mean";
    for (at, words) in (1..).zip(all()) {
        feed(&program, &[words]);
        let want = oracle(program_all, &all()[..at], SORTED);
        let now = ask(&program, &format!("SELECT {columns} FROM state.top ORDER BY value"));
        assert_eq!(now, want, "after batch {at}");
    }
    for at in 1..=5 {
        let want = oracle(program_all, &all()[..at], SORTED);
        let then = ask(&program, &format!("SELECT {columns} FROM state.\"top@{at}\" ORDER BY value"));
        assert_eq!(then, want, "as of batch {at}");
    }
    for (query, says) in [
        ("SELECT * FROM state.tup", "did you mean `state.\"top\"`?"),
        ("SELECT * FROM state.\"top@77\"", "kept are batches 1 to 5"),
        ("SELECT * FROM state.\"top@x\"", "a batch's number stands behind the @"),
    ] {
        let error = program.context().sql(query).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_batch_is_run_again_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let program = start(builder(dir.path()), COUNT).unwrap();
    feed(&program, &all());
    drop(program);
    let files = |dir: &Path| {
        let mut all: Vec<_> = Vec::new();
        let mut dirs = vec![dir.join("programs")];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap().map(std::result::Result::unwrap) {
                if entry.path().is_dir() {
                    dirs.push(entry.path());
                } else {
                    all.push((entry.path(), std::fs::read(entry.path()).unwrap()));
                }
            }
        }
        all.sort();
        all
    };
    let written = files(dir.path());
    let replay = |views: &str, batch: u64| {
        let context = builder(dir.path()).check_only().build();
        context.declare_sql(&format!("{STREAM}{views}")).unwrap();
        context.replay_batch(BatchId(batch))
    };
    let column = |rows: &[RecordBatch]| {
        let text = text(rows);
        let mut cells: Vec<String> =
            text.lines().filter(|l| l.starts_with("| ")).skip(1).map(|l| l.split_whitespace().collect()).collect();
        cells.sort();
        cells
    };
    let third = replay(COUNT, 3).unwrap();
    assert_eq!(third.inputs[0].1.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
    assert_eq!(column(&third.states[0].before), ["|a|2|"]);
    assert_eq!(column(&third.states[0].after), ["|a|3|", "|d|1|"]);
    assert_eq!(column(&third.outputs[0].1), ["|a|3|", "|b|2|", "|c|1|", "|d|1|"]);
    assert!(third.plans[0].1.contains("AggregateExec"));
    // By another program, over the state that it can take over.
    let mended = COUNT.replace("FROM lines", "FROM lines WHERE value <> 'a'");
    let other = replay(&mended, 3).unwrap();
    assert_eq!((column(&other.states[0].before), column(&other.states[0].after)), (vec![], vec!["|d|1|".to_string()]));
    let first = replay(COUNT, 1).unwrap();
    assert_eq!((first.states[0].before.len(), column(&first.states[0].after).len()), (0, 2));
    let error = replay(COUNT, 6).unwrap_err().to_string();
    assert!(error.contains("batches 1 to 5 are"), "{error}");
    assert_eq!(files(dir.path()), written);
    let program = start(builder(dir.path()), COUNT).unwrap();
    // Beside the running program, which goes on.
    let written = files(dir.path());
    let beside = replay(COUNT, 3).unwrap().states.remove(0);
    assert_eq!((column(&beside.before), column(&beside.after)), (vec!["|a|2|".into()], column(&third.states[0].after)));
    assert_eq!(files(dir.path()), written);
    program.step().unwrap();
    assert_eq!(
        ask(&program, "SELECT sum(\"count(*)\") AS n FROM state.top"),
        oracle(COUNT, &all(), "SELECT sum(n) AS n FROM top")
    );
}

/// A program on a simulated disk: three batches, a change with migration and rebuild, one batch, a rewind, one batch.
struct Life<'a> {
    dir: &'a Path,
    disk: SimDisk,
}

const OLD: &str = "CREATE VIEW top AS SELECT value, count(*) AS n FROM lines GROUP BY value;
                   CREATE VIEW keys AS SELECT value, max(value) AS m FROM lines GROUP BY value;
                   CREATE VIEW gone AS SELECT count(*) AS n FROM lines;";
const NEW: &str = "CREATE VIEW top AS SELECT value, count(*) AS n, sum(length(value)) AS l FROM lines GROUP BY value;
                   CREATE VIEW keys AS SELECT upper(value) AS value, max(value) AS m FROM lines GROUP BY upper(value);
                   CREATE VIEW kept AS SELECT count(*) AS n FROM lines;";
const TOP: &str = "SELECT value, n FROM top ORDER BY value";
const KEYS: &str = "SELECT * FROM keys ORDER BY value";

impl Life<'_> {
    fn builder(&self) -> ContextBuilder {
        builder(self.dir).disk(Arc::new(self.disk.clone())).sync(tidemill_store::log::Sync::Always)
    }

    fn old(&self) -> Result<SqlProgram> {
        start(self.builder(), OLD)
    }

    fn new_program(&self) -> Result<SqlProgram> {
        start(self.builder().accept_changes(), NEW)
    }
}

#[test]
fn a_crash_at_every_step_of_a_change_leaves_the_old_program_or_the_new() {
    let dir = tempfile::tempdir().unwrap();
    let before = Life { dir: dir.path(), disk: SimDisk::new() };
    let program = before.old().unwrap();
    feed(&program, &BEFORE);
    drop(program);
    let (want_top, want_keys) = (oracle(NEW, &BEFORE, TOP), oracle(NEW, &BEFORE, KEYS));
    let whole = Life { dir: dir.path(), disk: before.disk.fork() };
    drop(whole.new_program().unwrap());
    let old_top = oracle(OLD, &BEFORE, TOP);
    let (mut olds, mut news) = (0, 0);
    for op in 0..whole.disk.ops() {
        let life = Life { dir: dir.path(), disk: before.disk.fork() };
        life.disk.fail_at(op, Fault::Crash);
        drop(life.new_program());
        let found = life.disk.crash(op);
        let again = Life { dir: dir.path(), disk: found.fork() };
        // The old program goes on freely, or the new one has taken over and says so.
        match again.old() {
            Ok(program) => {
                olds += 1;
                program.step().unwrap();
                assert_eq!(ask(&program, TOP), old_top, "crash at {op}");
                assert!(ask(&program, "SELECT n FROM gone").contains("| 7 |"), "crash at {op}");
            }
            Err(error) => {
                news += 1;
                assert!(error.to_string().contains("differs from the one"), "crash at {op}: {error}");
            }
        }
        let again = Life { dir: dir.path(), disk: found };
        let program = again.new_program().unwrap_or_else(|e| panic!("crash at {op}: {}", e.chain()));
        let state = "SELECT value, \"count(*)\" AS n FROM state.top ORDER BY value";
        assert_eq!(ask(&program, state), want_top, "crash at {op}");
        let keys = "SELECT \"upper(lines.value)\" AS value, \"max(lines.value)\" AS m FROM state.keys ORDER BY value";
        assert_eq!(ask(&program, keys), want_keys, "crash at {op}");
    }
    assert!(olds > 5 && news > 2, "{olds} crashes left the old program, {news} the new one");
}

#[test]
fn a_crash_at_every_step_of_a_rewind_leaves_the_program_as_it_was_or_rewound() {
    let dir = tempfile::tempdir().unwrap();
    let before = Life { dir: dir.path(), disk: SimDisk::new() };
    let program = before.old().unwrap();
    feed(&program, &all());
    drop(program);
    let go = |disk: &SimDisk| {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        rewind(&shared, dir.path(), "p", Goal::Batch(BatchId(2)).into())
    };
    let life = |life: &Life<'_>| -> Result<()> {
        go(&life.disk)?;
        life.old()?.step()
    };
    let whole = Life { dir: dir.path(), disk: before.disk.fork() };
    life(&whole).unwrap();
    let (whole_top, top_of_two) = (oracle(OLD, &all(), TOP), oracle(OLD, &all()[..2], TOP));
    let (mut was, mut rewound, mut went_on) = (0, 0, 0);
    for op in 0..whole.disk.ops() {
        let crashed = Life { dir: dir.path(), disk: before.disk.fork() };
        crashed.disk.fail_at(op, Fault::Crash);
        let _crashed = life(&crashed);
        let found = Life { dir: dir.path(), disk: crashed.disk.crash(op) };
        let past = Ledger::open(Arc::new(found.disk.clone()), &dir.path().join("programs/p/ledger")).unwrap().past();
        let (version, last) = (past.version().0, past.last().unwrap().batch.0);
        match (version, last) {
            (5, 5) => was += 1,
            (2, 5) => rewound += 1,
            (6, 6) => went_on += 1,
            other => panic!("crash at {op}: version {} after batch {}", other.0, other.1),
        }
        let program = found.old().unwrap_or_else(|e| panic!("crash at {op}: {}", e.chain()));
        let then = if version == 2 { &top_of_two } else { &whole_top };
        let state = "SELECT value, \"count(*)\" AS n FROM state.top ORDER BY value";
        assert_eq!(&ask(&program, state), then, "crash at {op}");
        program.step().unwrap();
        assert_eq!(ask(&program, state), whole_top, "crash at {op}");
    }
    assert!(
        was >= 2 && rewound > 5 && went_on > 2,
        "{was} crashes left it as it was, {rewound} rewound, {went_on} after the batch that came then"
    );
}

#[test]
fn a_ledger_that_has_lost_its_last_commits_is_refused_and_can_be_rewound() {
    for lost in 1..=5_u64 {
        let dir = tempfile::tempdir().unwrap();
        let program = start(builder(dir.path()), COUNT).unwrap();
        feed(&program, &all());
        drop(program);
        lose_commits(dir.path(), usize::try_from(lost).unwrap());
        let started = start(builder(dir.path()), COUNT);
        if lost > 1 {
            let error = started.unwrap_err().to_string();
            assert!(error.contains("commits are missing") && error.contains("tidemill rewind --to"), "{error}");
            let done = to(dir.path(), Goal::Batch(BatchId(5 - lost)));
            assert_eq!((done.to.0, done.upto.0), (5 - lost, 5));
        } else {
            // One batch may be ahead of the ledger: a crash does that, and it is run again.
            drop(started.unwrap());
        }
        let program = start(builder(dir.path()), COUNT).unwrap();
        program.step().unwrap();
        assert_eq!(ask(&program, SORTED), oracle(COUNT, &all(), SORTED), "{lost} commits lost");
    }
}

#[test]
fn a_snapshot_that_is_damaged_is_passed_over_or_refused() {
    let words: Vec<String> = (0..70).map(|i| format!("w{} all", i % 9)).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let want = oracle(COUNT, &words, SORTED);
    for (batches, survives) in [(10_000, true), (1, false)] {
        let dir = tempfile::tempdir().unwrap();
        let versions = Versions { batches, ..Versions::default() };
        let program = start(builder(dir.path()).keep_versions(versions), COUNT).unwrap();
        feed(&program, &words);
        drop(program);
        let state = dir.path().join("programs/p/state/top");
        let mut snapshots: Vec<_> = std::fs::read_dir(&state).unwrap().map(|e| e.unwrap().path()).collect();
        snapshots.retain(|path| path.extension().is_some_and(|e| e == "snap"));
        snapshots.sort();
        let newest = snapshots.last().unwrap();
        let mut bytes = std::fs::read(newest).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(newest, bytes).unwrap();
        let started = start(builder(dir.path()), COUNT);
        if survives {
            let program = started.unwrap();
            program.step().unwrap();
            assert_eq!(ask(&program, SORTED), want, "the deltas before it lead there, too");
        } else {
            let error = started.unwrap_err().chain();
            assert!(error.contains("can't be restored") && error.contains("damaged at byte"), "{error}");
        }
    }
}

#[test]
fn records_that_are_needed_and_gone_fail_the_program_with_the_gap() {
    let dir = tempfile::tempdir().unwrap();
    let program = start(builder(dir.path()), COUNT).unwrap();
    feed(&program, &all()[..2]);
    drop(program);
    // Behind the program's back its hold on the topic is taken away, and what is old is removed.
    let clock = Arc::new(ManualClock::at(Timestamp(2_000_000_000)));
    let log = Log::open(Arc::new(RealDisk), &dir.path().join("log"), Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
    let topic = log.topic("lines").unwrap();
    topic.unpin("p/lines").unwrap();
    topic.set_retention(Retention { max_age: Some(Duration::from_secs(60)), max_bytes: None }).unwrap();
    for _ in 0..20 {
        topic.append(0, &tests::lines(["x", "y", "z"]), None).unwrap();
        topic.sync_to(0, topic.end(0)).unwrap();
        clock.advance(Duration::from_secs(30));
        topic.apply_retention(clock.now()).unwrap();
    }
    let first = topic.start(0);
    assert!(first > Offset(5), "{first}");
    drop((topic, log));
    // The hold that it had, as if it had never been taken away.
    let pins = r#"{"version": 1, "pins": {"p/lines": {"0": 5}}}"#;
    std::fs::write(dir.path().join("log/lines/pins.json"), pins).unwrap();

    let error = rewind(&(Arc::new(RealDisk) as Arc<dyn Disk>), dir.path(), "p", Goal::Batch(BatchId(1)).into());
    let error = error.unwrap_err().to_string();
    assert!(error.contains(&format!("offsets [3, {first}) were removed by retention")), "{error}");
    let context = builder(dir.path()).build();
    context.declare_sql(&format!("{STREAM}{COUNT}")).unwrap();
    let error = context.start().unwrap_err().to_string();
    assert!(
        error.contains(&format!("needs offset 5, the oldest that is kept is {first}: [5, {first}) is gone")),
        "{error}"
    );
    drop(context);
    // A rebuild says from where it can be: the plan names the offset.
    let changes = actions(builder(dir.path()).rebuild("top"), COUNT);
    assert!(changes[0].2.contains(&format!("`lines` from offset {first} of partition 0")), "{changes:?}");
}
