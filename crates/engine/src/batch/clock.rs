//! When batches begin.
//!
//! Invariant: batch times grow strictly, whatever the clock does; a program
//! that falls behind, or that was away for a day, catches up with a bounded
//! number of batches.

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
    /// Batch after batch until the inputs are exhausted, then the program ends.
    Drain,
}

/// Ticks that may wait; a program further behind skips the oldest.
pub(crate) const QUEUE: i64 = 10;

/// A batch that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tick {
    /// The batch's time.
    pub(crate) time: Timestamp,
    /// Ticks that already wait behind it.
    pub(crate) queued: usize,
}

/// The next tick of `Every(interval)` after batch time `last`, as seen at `now`.
///
/// The first tick is the next multiple of the interval. Later ones follow at
/// the interval; when more than [`QUEUE`] are due, the oldest are skipped.
pub(crate) fn next_tick(interval: Duration, last: Option<Timestamp>, now: Timestamp) -> Tick {
    let width = i64::try_from(interval.as_micros()).unwrap_or(i64::MAX).max(1);
    let first = now.floor(width).0.saturating_add(width);
    // A clock that stepped far back must not stop the ticks for as long as it stepped.
    let next = match last {
        Some(last) => last.floor(width).0.saturating_add(width).max(now.0.saturating_sub(width.saturating_mul(QUEUE))),
        None => first,
    };
    let next = if next % width == 0 { next } else { Timestamp(next).floor(width).0 + width };
    let queued = if next <= now.0 { (now.0 - next) / width } else { 0 };
    Tick { time: Timestamp(next), queued: usize::try_from(queued).unwrap_or(0) }
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

    #[test]
    fn ticks_stand_on_multiples_of_the_interval() {
        assert_eq!(next_tick(SECOND, None, at(10.3)).time, at(11.0));
        assert_eq!(next_tick(SECOND, Some(at(11.0)), at(11.2)).time, at(12.0));
    }

    #[test]
    fn a_late_program_sees_how_many_ticks_wait() {
        let tick = next_tick(SECOND, Some(at(11.0)), at(14.5));
        assert_eq!(tick, Tick { time: at(12.0), queued: 2 });
    }

    #[test]
    fn a_day_away_is_a_bounded_catch_up() {
        let tick = next_tick(SECOND, Some(at(0.0)), at(86_400.0));
        assert_eq!(tick.queued, 10);
        assert_eq!(tick.time, at(86_390.0));
    }

    #[test]
    fn a_clock_that_steps_back_does_not_bring_times_back() {
        let tick = next_tick(SECOND, Some(at(100.0)), at(50.0));
        assert_eq!(tick.time, at(101.0));
        assert_eq!(after(Some(at(100.0)), at(50.0)), Timestamp(at(100.0).0 + 1));
    }
}
