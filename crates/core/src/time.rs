//! Instants and the clock that is handed in.
//!
//! Invariant: nothing in `core` or `engine` asks the operating system for the
//! time. A running program gets a system clock from the facade, a test gets a
//! [`ManualClock`] and moves it.

use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
};
use tokio::sync::Notify;

/// A span of time in microseconds.
pub type Duration = std::time::Duration;

/// Microseconds since 1970-01-01T00:00:00Z; negative before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The earliest instant.
    pub const MIN: Timestamp = Timestamp(i64::MIN);

    /// Whole milliseconds since the epoch, rounded down.
    pub fn millis(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// From milliseconds since the epoch.
    pub fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(1000))
    }

    /// This instant moved forward; saturates at the end of time.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(micros(span)))
    }

    /// This instant moved back; saturates at the beginning of time.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(micros(span)))
    }

    /// The span from `earlier` to this instant; zero when `earlier` is later.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The largest multiple of `width` microseconds that is not after this instant.
    #[must_use]
    pub fn floor(self, width: i64) -> Self {
        Self(self.0.div_euclid(width) * width)
    }
}

impl fmt::Display for Timestamp {
    /// ISO 8601 in UTC with milliseconds: `2026-05-25T14:23:28.778Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.millis();
        let (days, rest) = (millis.div_euclid(86_400_000), millis.rem_euclid(86_400_000));
        let (year, month, day) = civil(days);
        let (h, m, s, ms) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60, rest % 1000);
        write!(f, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
    }
}

/// Days since the epoch to (year, month, day): Howard Hinnant's `civil_from_days`.
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// Where the engine gets the time from.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The time now. It may step back; callers that need order keep their own maximum.
    fn now(&self) -> Timestamp;

    /// Completes when the clock has reached `deadline`.
    fn sleep_until(&self, deadline: Timestamp) -> BoxFuture<'_, ()>;
}

/// A clock that stands still until it is moved.
///
/// ```
/// use tidemill_core::{Clock, Duration, ManualClock, Timestamp};
/// let clock = ManualClock::at(Timestamp::from_millis(5));
/// clock.advance(Duration::from_millis(2));
/// assert_eq!(clock.now(), Timestamp::from_millis(7));
/// ```
#[derive(Debug, Default)]
pub struct ManualClock {
    now: Mutex<Timestamp>,
    moved: Notify,
    /// Those who wait, by the time that they wait for.
    waiting: Mutex<BTreeMap<Timestamp, usize>>,
}

impl ManualClock {
    /// A clock that shows `now`.
    pub fn at(now: Timestamp) -> Self {
        Self { now: Mutex::new(now), ..Self::default() }
    }

    /// The earliest time that somebody waits for now. Whoever moves the clock there, and not on while
    /// nobody waits, has a program whose work takes no time but what it says itself.
    pub fn waited_for(&self) -> Option<Timestamp> {
        self.waiting.lock().keys().next().copied()
    }

    /// Moves the clock to `now`, which may be back.
    pub fn set(&self, now: Timestamp) {
        *self.now.lock() = now;
        self.moved.notify_waiters();
    }

    /// Moves the clock forward.
    pub fn advance(&self, span: Duration) {
        let next = self.now.lock().plus(span);
        self.set(next);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.now.lock()
    }

    fn sleep_until(&self, deadline: Timestamp) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let _waits = Waits::of(self, deadline);
            loop {
                let moved = self.moved.notified();
                tokio::pin!(moved);
                // Registered before the check, so that a move in between is not missed.
                moved.as_mut().enable();
                if self.now() >= deadline {
                    return;
                }
                moved.await;
            }
        })
    }
}

/// Somebody who waits for a clock, until this is dropped.
struct Waits<'a> {
    clock: &'a ManualClock,
    deadline: Timestamp,
}

impl<'a> Waits<'a> {
    fn of(clock: &'a ManualClock, deadline: Timestamp) -> Self {
        *clock.waiting.lock().entry(deadline).or_default() += 1;
        Self { clock, deadline }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if let Entry::Occupied(mut here) = self.clock.waiting.lock().entry(self.deadline) {
            *here.get_mut() -= 1;
            if *here.get() == 0 {
                here.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn a_clock_tells_what_is_waited_for_until_it_is_reached_or_given_up() {
        let clock = ManualClock::at(Timestamp(10));
        assert_eq!(clock.waited_for(), None);
        let (mut soon, mut later) = (clock.sleep_until(Timestamp(20)), clock.sleep_until(Timestamp(30)));
        let mut again = clock.sleep_until(Timestamp(20));
        assert!([&mut soon, &mut later, &mut again].into_iter().all(|wait| wait.now_or_never().is_none()));
        assert_eq!(clock.waited_for(), Some(Timestamp(20)));
        drop(again);
        assert_eq!(clock.waited_for(), Some(Timestamp(20)), "another one waits for it still");
        clock.set(Timestamp(20));
        assert!((&mut soon).now_or_never().is_some());
        assert_eq!(clock.waited_for(), Some(Timestamp(30)));
        drop(later);
        assert_eq!(clock.waited_for(), None);
    }

    #[test]
    fn instants_print_as_iso_8601() {
        assert_eq!(Timestamp(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Timestamp(1_779_719_009_132_431).to_string(), "2026-05-25T14:23:29.132Z");
        assert_eq!(Timestamp(-1).to_string(), "1969-12-31T23:59:59.999Z");
        assert_eq!(Timestamp::from_millis(951_782_400_000).to_string(), "2000-02-29T00:00:00.000Z");
    }

    #[test]
    fn floor_goes_down_also_before_the_epoch() {
        assert_eq!(Timestamp(-1).floor(10), Timestamp(-10));
        assert_eq!(Timestamp(10).floor(10), Timestamp(10));
        assert_eq!(Timestamp(19).floor(10), Timestamp(10));
    }
}
