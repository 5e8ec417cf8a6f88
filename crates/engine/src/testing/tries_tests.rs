//! Programs that fail for a while, or for good, and states without memory, under a trial.
//!
//! A trial waits for nothing: what sleeps until the next try is woken, and what fails for good ends it.

use super::{Setup, Trial};
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};
use tidemill_core::{Board, Error, Result};

fn totals(new: &[i64], total: Option<i64>) -> Option<i64> {
    Some(total.unwrap_or(0) + new.iter().sum::<i64>())
}

fn input() -> Vec<Vec<(String, i64)>> {
    let pairs = |text: &str| text.split(' ').zip(1..).map(|(word, n)| (word.to_string(), n)).collect();
    vec![pairs("a b c d"), pairs("b a"), vec![], pairs("e a f")]
}

/// Totals, and a callback that calls `outside`.
fn declared(setup: &Setup<'_>, outside: impl Fn(u64) -> Result<()> + Send + Sync + 'static) -> Result<()> {
    let words = setup.input(input())?;
    words.foreach_batch(move |info, _| outside(info.id.0));
    setup.output("totals", &words.update_state_by_key(totals).snapshot());
    Ok(())
}

#[test]
fn what_fails_for_a_while_is_tried_again_and_changes_nothing() {
    let whole = Trial::new(|setup| declared(setup, |_| Ok(()))).run().unwrap();
    let failed = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&failed);
    let trial = Trial::new(move |setup| {
        let failed = Arc::clone(&counted);
        declared(setup, move |batch| {
            // Twice in each batch.
            let so_far = failed.fetch_add(1, Relaxed);
            if so_far % 3 == 2 { Ok(()) } else { Err(Error::external(format!("batch {batch}: the line is busy"))) }
        })
    });
    let shown = trial.run().unwrap();
    assert_eq!(shown.of::<(String, i64)>("totals").unwrap(), whole.of::<(String, i64)>("totals").unwrap());
    assert_eq!(shown.times(), whole.times(), "a batch that is tried again keeps its time");
    assert_eq!(failed.load(Relaxed) % 3, 0);
    assert!(failed.load(Relaxed) >= 12, "each of the batches failed twice");
}

#[test]
fn what_fails_for_good_ends_the_trial_and_says_what_it_was() {
    let busy = |batch| if batch == 2 { Err(Error::external("the line is busy")) } else { Ok(()) };
    let trial = Trial::new(|setup| declared(setup, busy));
    let error = trial.run().unwrap_err().chain();
    for says in ["after batch 1 something failed 20 times", "the line is busy", "`.fatal()`"] {
        assert!(error.contains(says), "{says}: {error}");
    }
}

#[test]
fn a_state_without_memory_comes_through_the_same() {
    let board: Arc<Mutex<Option<Arc<Board>>>> = Arc::default();
    let last = Arc::clone(&board);
    let trial = Trial::new(move |setup| {
        *last.lock() = Some(setup.context().board());
        setup.output("totals", &setup.input(input())?.update_state_by_key(totals).snapshot());
        Ok(())
    });
    let spilled = || {
        let board = board.lock().clone().unwrap();
        board.reports().iter().map(|report| report.state_spilled).max().unwrap_or(0)
    };
    let whole = trial.run().unwrap().of::<(String, i64)>("totals").unwrap();
    assert_eq!(spilled(), 0, "so few keys have room");
    let trial = trial.state_memory(1);
    let sorted = |mut batches: Vec<Vec<(String, i64)>>| {
        batches.iter_mut().for_each(|batch| batch.sort());
        batches
    };
    assert_eq!(sorted(trial.run().unwrap().of("totals").unwrap()), sorted(whole));
    assert!(spilled() > 0, "keys at rest lie on disk");
    trial.crash_at_every_step();
    trial.restart_at_every_batch(&[1, 3]);
}
