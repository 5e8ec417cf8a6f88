//! Whether tests would notice a sync that is left out.
//!
//! Invariant: a suite of crash tests is worth what it finds. Each sync of a life
//! is left out once, the machine is stopped at the operations after it, and the
//! suite's own check must fail for at least one of these. Called by the tests of
//! whatever has a crash test.

use super::{Fault, SimDisk};
use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    sync::Once,
};

/// Operations after the sync at which the machine is stopped.
const AFTER: u64 = 24;
/// Disks that are found after each stop.
const SEEDS: u64 = 6;

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

/// The operations of `life` that are syncs and whose lack no crash shows.
/// `life` runs until something fails and gives what outsiders were told; `check`
/// panics when a disk does not hold that.
pub(crate) fn unnoticed<T: Clone>(life: impl Fn(&SimDisk) -> T, check: impl Fn(&SimDisk, T)) -> (Vec<u64>, u64) {
    let whole = SimDisk::new();
    life(&whole);
    let (mut unnoticed, mut syncs) = (Vec::new(), 0);
    for op in 0..whole.ops() {
        let without = SimDisk::new();
        without.fail_at(op, Fault::Forgotten);
        life(&without);
        if without.forgotten() == 0 {
            continue;
        }
        syncs += 1;
        let shows = |stop: u64| {
            let disk = SimDisk::new();
            disk.fail_at(op, Fault::Forgotten);
            disk.fail_at(stop, Fault::Crash);
            let told = life(&disk);
            (0..SEEDS).any(|seed| {
                let found = disk.crash(op * 31 + stop * 7 + seed);
                panics(|| check(&found, told.clone()))
            })
        };
        if !(op + 1..=op + AFTER).any(shows) {
            unnoticed.push(op);
        }
    }
    (unnoticed, syncs)
}
