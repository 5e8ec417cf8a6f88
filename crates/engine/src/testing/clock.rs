//! A clock that is moved by hand and whose reading may step, as that of a machine does when it is set.
//!
//! Invariant: a sleep takes as long as it was going to take when it began,
//! whatever the reading does meanwhile. Used by [`super::trial`].

use futures::future::BoxFuture;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use tidemill_core::{Clock, ManualClock, Timestamp};
use tokio::sync::Notify;

/// A clock whose reading is off by what it was stepped.
#[derive(Debug)]
pub(super) struct SteppingClock {
    passed: ManualClock,
    off: AtomicI64,
    /// A sleep has begun.
    sleeps: Notify,
    /// When the sleep that began last ends.
    until: AtomicI64,
}

impl SteppingClock {
    /// A clock that reads 0.
    pub(super) fn new() -> Self {
        Self {
            passed: ManualClock::at(Timestamp(0)),
            off: AtomicI64::new(0),
            sleeps: Notify::new(),
            until: AtomicI64::new(0),
        }
    }

    /// Time that has passed since the clock was made, whatever it reads.
    pub(super) fn passed(&self) -> Timestamp {
        self.passed.now()
    }

    /// Lets time pass until `until`.
    pub(super) fn pass(&self, until: Timestamp) {
        self.passed.set(until);
    }

    /// Sets the reading forth by so many microseconds, or back.
    pub(super) fn step(&self, micros: i64) {
        self.off.fetch_add(micros, SeqCst);
    }

    /// Completes when a sleep has begun since this was last asked.
    pub(super) async fn sleeps(&self) {
        self.sleeps.notified().await;
    }

    /// When the sleep that began last ends, in the time that has passed.
    pub(super) fn sleeps_until(&self) -> Timestamp {
        Timestamp(self.until.load(SeqCst))
    }

    /// Whether the reading is the time that has passed.
    pub(super) fn is_right(&self) -> bool {
        self.off.load(SeqCst) == 0
    }
}

impl Clock for SteppingClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.passed.now().0 + self.off.load(SeqCst))
    }

    fn sleep_until(&self, deadline: Timestamp) -> BoxFuture<'_, ()> {
        let until = Timestamp(deadline.0.saturating_sub(self.off.load(SeqCst)));
        self.until.store(until.0, SeqCst);
        self.sleeps.notify_one();
        self.passed.sleep_until(until)
    }
}
