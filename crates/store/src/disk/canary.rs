//! Whether tests would notice a sync that is left out.
//!
//! Invariant: a suite of crash tests is worth what it finds. Each sync of a life
//! is left out once, the machine is stopped at each operation after it, and the
//! suite's own check must fail for at least one of these. Syncs that nobody needs
//! are named by the test, with why. Called by the tests of
//! whatever has a crash test.

use super::{Fault, Forgotten, SimDisk};
use std::{
    cell::Cell,
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
};

/// Disks that the dice make after each stop, beside the two worst.
const SEEDS: u64 = 1;

thread_local! {
    /// Whether a panic is what is looked for.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Whether `act` panics; such a panic prints nothing.
fn panics(act: impl FnOnce()) -> bool {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let told = take_hook();
        set_hook(Box::new(move |panic| {
            if !EXPECTED.get() {
                told(panic);
            }
        }));
    });
    EXPECTED.set(true);
    let panicked = catch_unwind(AssertUnwindSafe(act)).is_err();
    EXPECTED.set(false);
    panicked
}

/// Asserts that each sync of `life` is needed: a crash shows when it is left out. `excuses` name
/// those that no crash shows and say why nobody needs them; each must be used.
/// `life` runs until something fails and gives what outsiders were told; `check`
/// panics when a disk does not hold that. Gives the number of syncs.
pub(crate) fn each_sync_is_needed<T: Clone>(
    life: impl Fn(&SimDisk) -> T,
    check: impl Fn(&SimDisk, T),
    excuses: &[(&str, fn(&Forgotten) -> bool)],
) -> u64 {
    let whole = SimDisk::new();
    life(&whole);
    let (mut missed, mut syncs, mut used) = (Vec::new(), 0, BTreeSet::new());
    for op in 0..whole.ops() {
        let without = SimDisk::new();
        without.fail_at(op, Fault::Forgotten);
        life(&without);
        // One that had nothing to do, such as of a file that a start found whole, is no loss.
        let Some(sync) = without.forgotten().pop().filter(|sync| !sync.idle) else { continue };
        syncs += 1;
        let shows = |stop: u64| {
            let disk = SimDisk::new();
            disk.fail_at(op, Fault::Forgotten);
            disk.fail_at(stop, Fault::Crash);
            let told = life(&disk);
            let worst = [true, false].map(|others| disk.crash_at_worst(others));
            let random = (0..SEEDS).map(|seed| disk.crash(op * 31 + stop * 7 + seed));
            worst.into_iter().chain(random).any(|found| panics(|| check(&found, told.clone())))
        };
        // The last stop is after all operations: power is lost once the life has ended.
        if (op + 1..=whole.ops() + 1).any(shows) {
            continue;
        }
        match excuses.iter().find(|(_, excused)| excused(&sync)) {
            Some((why, _)) => drop(used.insert(*why)),
            None => missed.push((op, sync)),
        }
    }
    assert!(missed.is_empty(), "{} of {syncs} syncs are left out and nothing shows it: {missed:#?}", missed.len());
    let idle: Vec<_> = excuses.iter().map(|(why, _)| *why).filter(|why| !used.contains(why)).collect();
    assert!(idle.is_empty(), "no sync needs the excuse: {idle:?}");
    syncs
}
