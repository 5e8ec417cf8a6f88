//! How long what fails outside is tried again.
//!
//! Invariant: without a stop, for as long as it takes; after a graceful one, for
//! [`DRAIN`] on the program's clock, counted from the first look at the stop.
//! Nothing is lost by giving up: what was planned runs again at the next start.
//! Called by the loops in [`super::pipeline`].

use std::sync::OnceLock;
use tidemill_core::{Clock, Duration, Error, Stop, Timestamp};

/// How long a graceful stop goes on: with batches over what was received, and with tries.
pub(super) const DRAIN: Duration = Duration::from_secs(10);
/// Longest pause between two tries of something outside that fails.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Knows of the stop that ends the tries.
#[derive(Debug, Default)]
pub(super) struct Patience {
    stop: OnceLock<Stop>,
    /// When it ends; fixed by the first who sees the stop.
    until: OnceLock<Timestamp>,
}

impl Patience {
    /// From now on it ends after `stop`. The first stop counts.
    pub(super) fn ends_after(&self, stop: &Stop) {
        let _set_once = self.stop.set(stop.clone());
    }

    /// When it ends, a stop having been asked for.
    pub(super) fn end(&self, clock: &dyn Clock) -> Timestamp {
        *self.until.get_or_init(|| clock.now().plus(DRAIN))
    }

    /// Completes when it has ended; never without a stop.
    async fn ended(&self, clock: &dyn Clock) {
        let Some(stop) = self.stop.get() else { return std::future::pending().await };
        stop.stopped().await;
        clock.sleep_until(self.end(clock)).await;
    }
}

/// The tries of one thing.
#[derive(Debug)]
pub(super) struct Tries<'a> {
    patience: &'a Patience,
    clock: &'a dyn Clock,
    pause: Duration,
}

impl<'a> Tries<'a> {
    pub(super) fn new(patience: &'a Patience, clock: &'a dyn Clock) -> Self {
        Self { patience, clock, pause: Duration::from_millis(100) }
    }

    /// Waits before the next try of what ended with `error`.
    ///
    /// # Errors
    /// With `error` behind it, when there is to be no further one.
    pub(super) async fn rest(&mut self, error: Error) -> Result<(), Error> {
        let next = self.clock.now().plus(self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        tokio::select! {
            biased;
            () = self.patience.ended(self.clock) => {
                let what = "a stop was asked for while the program waited for something outside, which did not come in \
                            time; nothing is lost: the next start goes on from here";
                Err(Error::external(what).because(error).fatal())
            }
            () = self.clock.sleep_until(next) => Ok(()),
        }
    }
}
