//! When batches begin.
//!
//! Invariant: batch times grow strictly, whatever the clock does. A tick that
//! nobody ran, because the program was away or more than [`QUEUE`] ticks behind,
//! reads nothing: what came meanwhile belongs to the next tick. It is run only
//! while a window by batch time holds rows, which it may give or expire, and
//! skipped otherwise; so a catch-up is bounded by the longest such window.

use tidemill_core::{Duration, Timestamp};

/// The rule that begins a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// At each multiple of the interval, whether there is input or not.
    Every(Duration),
    /// As soon as there is input and the batch before has run.
    Asap,
    /// One batch of what is there, then the program ends.
    Once,
    /// Batch after batch until the inputs are exhausted; then the windows by event
    /// time that are still open close, and the program ends. A stop before that closes none.
    Drain,
}

/// Ticks that may wait for a busy program; those before are missed.
pub(crate) const QUEUE: i64 = 10;

/// A batch that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tick {
    /// The batch's time.
    pub(crate) time: Timestamp,
    /// When it may begin: delays are counted from here.
    pub(crate) due: Timestamp,
    /// Ticks that already wait behind it.
    pub(crate) queued: usize,
    /// Nobody ran when it was due: it reads nothing.
    pub(crate) missed: bool,
}

impl Tick {
    /// A batch of `time` that may begin now and that no tick waits behind.
    pub(crate) fn now(time: Timestamp, now: Timestamp) -> Self {
        Self { time, due: now, queued: 0, missed: false }
    }
}

/// The next tick of `Every(interval)` after batch time `last`, as seen at `now`
/// by a program that is ready for batches since `began`.
///
/// The first tick is the next multiple of the interval, later ones follow at
/// the interval. Missed ticks are skipped unless `owed` says that a window needs them.
pub(crate) fn next_tick(
    interval: Duration,
    last: Option<Timestamp>,
    now: Timestamp,
    began: Timestamp,
    owed: impl FnOnce() -> bool,
) -> Tick {
    let width = i64::try_from(interval.as_micros()).unwrap_or(i64::MAX).max(1);
    let after = |at: Timestamp| Timestamp(at.floor(width).0.saturating_add(width));
    let following = after(last.unwrap_or(began));
    // Ticks before this were due while nobody ran.
    let horizon = began.max(Timestamp(now.0.saturating_sub(width.saturating_mul(QUEUE))));
    let missed = following < horizon && owed();
    let time = if following < horizon && !missed { after(Timestamp(horizon.0 - 1)) } else { following };
    if missed {
        return Tick { time, due: now, queued: 0, missed };
    }
    let queued = if time <= now { now.since(time).as_micros() / interval.as_micros().max(1) } else { 0 };
    // A clock that stepped back must not stop the ticks for as long as it stepped.
    let due = time.min(after(now));
    Tick { time, due, queued: usize::try_from(queued).unwrap_or(usize::MAX), missed }
}

/// The time of a batch that begins now: `now`, but after `last`.
pub(crate) fn after(last: Option<Timestamp>, now: Timestamp) -> Timestamp {
    last.map_or(now, |last| now.max(Timestamp(last.0 + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: f64) -> Timestamp {
        #[expect(clippy::cast_possible_truncation, reason = "small test values")]
        Timestamp((seconds * 1e6) as i64)
    }

    fn tick(last: Option<f64>, now: f64, began: f64, owed: bool) -> Tick {
        next_tick(SECOND, last.map(at), at(now), at(began), || owed)
    }

    fn plain(time: f64) -> Tick {
        Tick { time: at(time), due: at(time), queued: 0, missed: false }
    }

    #[test]
    fn ticks_stand_on_multiples_of_the_interval() {
        assert_eq!(tick(None, 10.3, 10.3, false), plain(11.0));
        assert_eq!(tick(None, 11.001, 10.3, false), plain(11.0), "the first one does not run away");
        assert_eq!(tick(Some(11.0), 11.2, 10.3, false), plain(12.0));
    }

    #[test]
    fn a_late_program_sees_how_many_ticks_wait() {
        assert_eq!(tick(Some(11.0), 14.5, 0.0, true), Tick { queued: 2, ..plain(12.0) });
    }

    #[test]
    fn a_program_too_far_behind_skips_ticks_unless_a_window_needs_them() {
        assert_eq!(tick(Some(0.0), 86_400.0, 0.0, false), Tick { queued: 10, ..plain(86_390.0) });
        let missed = tick(Some(0.0), 86_400.0, 0.0, true);
        assert_eq!(missed, Tick { time: at(1.0), due: at(86_400.0), queued: 0, missed: true });
    }

    #[test]
    fn ticks_before_a_start_are_missed_however_few_they_are() {
        assert_eq!(tick(Some(11.0), 14.5, 14.5, false), plain(15.0));
        assert_eq!(tick(Some(11.0), 15.0, 15.0, false), plain(15.0));
        assert!(tick(Some(11.0), 14.5, 14.5, true).missed);
        assert_eq!(tick(Some(14.0), 14.5, 14.5, true), plain(15.0), "none was missed");
    }

    #[test]
    fn a_clock_that_steps_back_brings_no_times_back_and_stops_no_ticks() {
        let back = tick(Some(100.0), 50.2, 99.0, false);
        assert_eq!(back, Tick { due: at(51.0), ..plain(101.0) });
        assert_eq!(tick(Some(100.0), -1e9, 99.0, false).time, at(101.0));
        assert_eq!(after(Some(at(100.0)), at(50.0)), Timestamp(at(100.0).0 + 1));
    }
}
