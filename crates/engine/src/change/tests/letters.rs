//! Rebuilds beside dead letters: each record once, and what is left out is told.

use super::*;
use crate::{KeptLetter, Letters};

const STATE: &str = "SELECT value, \"count(*)\" AS n FROM state.top ORDER BY value";

fn all_letters(dir: &Path) -> Vec<KeptLetter> {
    let log = Log::look(&dir.join("log"), Arc::new(ManualClock::default())).unwrap();
    let letters = Letters::open(&log, dir, "p").unwrap();
    letters.all().map(Result::unwrap).collect()
}

/// Runs letters again, with the next batch.
fn replay(program: &SqlProgram, dir: &Path, numbers: &[u64]) {
    let log = Log::look(&dir.join("log"), Arc::new(ManualClock::default())).unwrap();
    let letters = Letters::open(&log, dir, "p").unwrap();
    letters.ask(&numbers.iter().copied().collect(), false, Timestamp(1_000_000_000)).unwrap();
    program.step().unwrap();
}

/// The rows of the state after these words.
fn counted(words: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let program = start(builder(dir.path()).registry(tests::mended_registry()), COUNT).unwrap();
    feed(&program, words);
    ask(&program, STATE)
}

#[test]
fn a_record_that_is_a_letter_is_counted_once_whether_the_rebuild_comes_before_its_replay_or_after() {
    for versions in [Versions::default(), Versions { batches: 1, ..Versions::default() }] {
        let dir = tempfile::tempdir().unwrap();
        let rebuilt = || {
            let builder = builder(dir.path()).registry(tests::mended_registry()).keep_versions(versions);
            start(builder.rebuild("top").accept_changes(), COUNT).unwrap()
        };
        let program = start(builder(dir.path()).keep_versions(versions), COUNT).unwrap();
        feed(&program, &["a refuse", "b refuse"]);
        // Once in vain: then there are two letters of one record.
        replay(&program, dir.path(), &[1]);
        feed(&program, &["c"]);
        assert_eq!(all_letters(dir.path()).len(), 3);
        drop(program);
        let program = rebuilt();
        assert_eq!(ask(&program, STATE), counted(&["a b c"]), "{versions:?}: they wait for their replay");
        replay(&program, dir.path(), &[0, 2]);
        feed(&program, &["d"]);
        let all = counted(&["a b c d refuse refuse"]);
        assert_eq!(ask(&program, STATE), all, "{versions:?}");
        drop(program);
        let program = rebuilt();
        assert_eq!(ask(&program, STATE), all, "{versions:?}: also when what was run again is read again");
        assert_eq!(program.context().board().program().refused, 0, "nothing new was left out");
        feed(&program, &["d"]);
        assert_eq!(ask(&program, STATE), counted(&["a b c d d refuse refuse"]), "{versions:?}");
    }
}

#[test]
fn what_a_rebuild_leaves_out_is_told_and_kept_and_comes_back_with_another_rebuild() {
    let dir = tempfile::tempdir().unwrap();
    let rebuilt = |mended: bool| {
        let registry = if mended { tests::mended_registry() } else { tests::registry() };
        start(builder(dir.path()).registry(registry).rebuild("top").accept_changes(), COUNT).unwrap()
    };
    let program = start(builder(dir.path()).registry(tests::mended_registry()), COUNT).unwrap();
    feed(&program, &["a refuse", "b"]);
    drop(program);
    // Twice without a batch between, as after a crash in the middle: one letter.
    for _ in 0..2 {
        let program = rebuilt(false);
        assert_eq!(ask(&program, STATE), counted(&["a b"]));
        let told = program.context().board().program();
        assert_eq!((told.refused, told.letters.values().sum::<u64>()), (1, 1));
        let letters = all_letters(dir.path());
        assert_eq!(letters.len(), 1);
        let letter = &letters[0].letter;
        assert_eq!((letter.offset, letter.batch), (Offset(1), Some(BatchId(2))));
        assert_eq!((letter.reason.as_str(), letter.raw.as_slice()), ("rebuild: no text", b"refuse".as_slice()));
        assert!(
            letters[0].only_kept().unwrap().contains("another rebuild"),
            "run again, it would count twice elsewhere"
        );
    }
    // One that its batch refuses is an ordinary letter, and no rebuild tells it again.
    let program = start(builder(dir.path()), COUNT).unwrap();
    feed(&program, &["refuse c"]);
    drop(program);
    let program = rebuilt(false);
    assert_eq!((ask(&program, STATE), program.context().board().program().refused), (counted(&["a b c"]), 1));
    drop(program);
    let program = rebuilt(true);
    assert_eq!(ask(&program, STATE), counted(&["a b c refuse"]), "the one that was left out, and not the letter");
    assert_eq!(program.context().board().program().refused, 0);
    let letters = all_letters(dir.path());
    let reasons: Vec<&str> = letters.iter().map(|kept| kept.letter.reason.as_str()).collect();
    assert_eq!(reasons, ["rebuild: no text", "no text", "rebuild: no text"]);
    replay(&program, dir.path(), &[1]);
    assert_eq!(ask(&program, STATE), counted(&["a b c refuse refuse"]));
}

#[test]
fn a_program_that_is_changed_before_a_commit_was_durable_keeps_its_own_letters() {
    let dir = tempfile::tempdir().unwrap();
    let program = start(builder(dir.path()), COUNT).unwrap();
    feed(&program, &["a refuse", "b refuse c"]);
    drop(program);
    lose_commits(dir.path(), 1);
    // Another program, so batch 2 is planned anew, and has read more than it had.
    let more = format!("{COUNT} CREATE VIEW total AS SELECT count(*) AS n FROM lines;");
    let program = start(builder(dir.path()).accept_changes(), &more).unwrap();
    feed(&program, &["refuse d"]);
    let letters: Vec<_> =
        all_letters(dir.path()).into_iter().map(|kept| (kept.letter.batch, kept.letter.offset)).collect();
    let batch = |batch| Some(BatchId(batch));
    assert_eq!(letters, [(batch(1), Offset(1)), (batch(2), Offset(3)), (batch(2), Offset(5))]);
    drop(program);
    // Once more, and now the records are taken: their letters are not to be run again.
    lose_commits(dir.path(), 1);
    let mended = || builder(dir.path()).registry(tests::mended_registry());
    let program = start(mended(), &more).unwrap();
    feed(&program, &["e"]);
    let all = counted(&["a b refuse c refuse d e"]);
    assert_eq!(ask(&program, STATE), all);
    replay(&program, dir.path(), &[1, 2]);
    assert_eq!(ask(&program, STATE), all);
    let log = Log::look(&dir.path().join("log"), Arc::new(ManualClock::default())).unwrap();
    let letters = Letters::open(&log, dir.path(), "p").unwrap();
    let undone: Vec<bool> = letters.all().map(|kept| letters.is_undone(&kept.unwrap())).collect();
    assert_eq!(undone, [false, true, true]);
    replay(&program, dir.path(), &[0]);
    assert_eq!(ask(&program, STATE), counted(&["a refuse b refuse c refuse d e"]));
}

#[test]
fn a_rebuild_counts_records_whose_letters_are_of_batches_that_were_undone() {
    let dir = tempfile::tempdir().unwrap();
    let program = start(builder(dir.path()), COUNT).unwrap();
    feed(&program, &["a refuse", "b refuse x refuse"]);
    drop(program);
    to(dir.path(), Goal::Batch(BatchId(1)));
    // What was read again was taken, and its batch is not kept any more.
    let mended = || {
        let builder = builder(dir.path()).registry(tests::mended_registry());
        builder.keep_versions(Versions { batches: 1, ..Versions::default() })
    };
    let program = start(mended(), COUNT).unwrap();
    feed(&program, &["c", "d"]);
    let all = counted(&["a b refuse x refuse c d"]);
    assert_eq!(ask(&program, STATE), all);
    drop(program);
    let program = start(mended().rebuild("top").accept_changes(), COUNT).unwrap();
    assert_eq!(ask(&program, STATE), all);
    replay(&program, dir.path(), &[0, 1, 2]);
    assert_eq!(ask(&program, STATE), counted(&["a b refuse x refuse c d refuse"]), "only the first is one");
}
