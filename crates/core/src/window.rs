//! Windows as pure arithmetic.
//!
//! A hopping window of `size` each `slide` is kept by **panes** of width
//! `gcd(size, slide)`: each record belongs to exactly one pane, and a window is
//! the union of `size / pane` panes.
//!
//! ```text
//! size 6, slide 2, pane 2
//! time     0   2   4   6   8
//! panes    |-A-|-B-|-C-|-D-|
//! windows  [-----ABC---)
//!              [-----BCD---)
//! ```
//!
//! A **session** is a run of records of a key of which each comes less than `gap`
//! after the one before: records at *t* cover `[t, t + gap)`, and what overlaps
//! is one session. A **count window** is a window over the numbers of a key's
//! records instead of their times.
//!
//! Invariant: intervals are half-open, `[start, end)`, in microseconds.
//! The engine's window operators and SQL's `TUMBLE`, `HOP`, `SESSION` and
//! `COUNT_WINDOW` call this.

use crate::{Duration, Error, Result, Timestamp};
use serde::{Deserialize, Serialize};

/// A half-open range of time, `[start, end)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Interval {
    /// First instant inside.
    pub start: Timestamp,
    /// First instant after.
    pub end: Timestamp,
}

impl Interval {
    /// Whether the instant lies inside.
    pub fn contains(&self, at: Timestamp) -> bool {
        self.start <= at && at < self.end
    }
}

/// Which records are aggregated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WindowKind {
    /// Windows of fixed length by event time.
    Time(WindowSpec),
    /// Sessions of a key that end after so many microseconds without a record.
    Session(i64),
    /// Windows over the numbers of a key's records, the first of which is 0.
    Count(WindowSpec),
}

impl WindowKind {
    /// Sessions that end after `gap` microseconds without a record.
    ///
    /// # Errors
    /// When `gap` is not positive.
    pub fn session(gap: i64) -> Result<Self> {
        if gap <= 0 {
            return Err(Error::user(format!("a session's gap must be positive, not {gap} µs")));
        }
        Ok(Self::Session(gap))
    }

    /// Windows of `size` records of a key, one each `slide` records.
    ///
    /// # Errors
    /// When a number is not positive, or records between two windows would be lost.
    pub fn count(size: i64, slide: i64) -> Result<Self> {
        if size <= 0 || slide <= 0 || slide > size || size > 1 << 40 {
            return Err(Error::user(format!(
                "a count window of {size} rows each {slide}: both must be positive, and the slide at most the size"
            )));
        }
        let spec = WindowSpec { size, slide };
        if size / spec.pane() > PANES {
            return Err(Error::user(format!(
                "a count window of {size} rows each {slide} has {} panes; at most {PANES} are kept: choose a slide that divides the size",
                size / spec.pane()
            )));
        }
        Ok(Self::Count(spec))
    }

    /// Whether all windows of a record of this time have closed when the watermark
    /// is at `at`: it then comes too late. A session that is closed never grows
    /// again, so a record before the watermark is too late for any. Count windows
    /// know no time.
    pub fn is_closed(&self, time: Timestamp, at: Timestamp) -> bool {
        match self {
            Self::Time(spec) => spec.last_end(time) <= at,
            Self::Session(_) => time < at,
            Self::Count(_) => false,
        }
    }
}

/// Panes of one window at most.
const PANES: i64 = 100_000;

/// Size and slide of a window, both in microseconds (or records) and positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WindowSpec {
    size: i64,
    slide: i64,
}

impl WindowSpec {
    /// Windows that touch and do not overlap.
    ///
    /// # Errors
    /// When `size` is not positive.
    pub fn tumble(size: i64) -> Result<Self> {
        Self::hop(size, size)
    }

    /// Windows of `size` that begin each `slide`.
    ///
    /// # Errors
    /// When either is not positive, or `slide` is larger than `size` (records
    /// between two windows would be dropped in silence), or a window would
    /// consist of more than 100,000 panes.
    pub fn hop(size: i64, slide: i64) -> Result<Self> {
        if size <= 0 || slide <= 0 {
            return Err(Error::user(format!(
                "a window's size and slide must be positive, not {size} µs and {slide} µs"
            )));
        }
        if slide > size {
            return Err(Error::user(format!(
                "a window's slide ({:?}) must not exceed its size ({:?}): records between two windows would be lost",
                span(slide),
                span(size)
            )));
        }
        let spec = Self { size, slide };
        if size / spec.pane() > PANES {
            return Err(Error::user(format!(
                "a window of {:?} each {:?} has {} panes; at most {PANES} are kept: choose a slide that divides the size",
                span(size),
                span(slide),
                size / spec.pane()
            )));
        }
        Ok(spec)
    }

    /// Length of a window in microseconds.
    pub fn size(&self) -> i64 {
        self.size
    }

    /// Distance between the starts of two windows in microseconds.
    pub fn slide(&self) -> i64 {
        self.slide
    }

    /// Whether windows do not overlap.
    pub fn is_tumbling(&self) -> bool {
        self.size == self.slide
    }

    /// Width of a pane: the greatest width of which size and slide are multiples.
    pub fn pane(&self) -> i64 {
        let (mut a, mut b) = (self.size, self.slide);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    }

    /// Start of the pane that an instant belongs to.
    pub fn pane_of(&self, at: Timestamp) -> Timestamp {
        at.floor(self.pane())
    }

    /// End of the last window that contains the instant.
    pub fn last_end(&self, at: Timestamp) -> Timestamp {
        Timestamp(at.floor(self.slide).0.saturating_add(self.size))
    }

    /// The windows that contain the instant, the earliest first.
    pub fn windows_of(&self, at: Timestamp) -> impl Iterator<Item = Interval> + use<> {
        let (size, slide) = (self.size, self.slide);
        let last = at.floor(slide).0;
        // The earliest start is the first multiple of slide after at - size.
        let first = (at.0.saturating_sub(size)).div_euclid(slide) * slide + slide;
        (0..=(last - first) / slide).map(move |i| {
            let start = first + i * slide;
            Interval { start: Timestamp(start), end: Timestamp(start + size) }
        })
    }

    /// The windows whose end lies in `(from, to]`: those that close when the
    /// watermark moves from `from` to `to`. Bounded by the caller, who asks
    /// only for the span that its panes cover.
    pub fn closing(&self, from: Timestamp, to: Timestamp) -> impl Iterator<Item = Interval> + use<> {
        let (size, slide) = (self.size, self.slide);
        let first = from.0.saturating_sub(size).div_euclid(slide).saturating_mul(slide).saturating_add(slide);
        (0..)
            .map(move |i| Interval { start: Timestamp(first + i * slide), end: Timestamp(first + i * slide + size) })
            .take_while(move |w| w.end <= to)
    }
}

/// Microseconds for people.
fn span(micros: i64) -> Duration {
    Duration::from_micros(micros.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_agrees_with_a_search_over_all_starts() {
        for (size, slide) in [(6, 2), (5, 2), (7, 7), (1, 1), (60, 10), (10, 3)] {
            let spec = WindowSpec::hop(size, slide).unwrap();
            for at in -40..40 {
                let got: Vec<i64> = spec.windows_of(Timestamp(at)).map(|w| w.start.0).collect();
                let want: Vec<i64> = (-200..200).filter(|s| s % slide == 0 && *s <= at && at < s + size).collect();
                assert_eq!(got, want, "size {size} slide {slide} at {at}");
            }
        }
    }

    #[test]
    fn closing_agrees_with_a_search_over_all_ends() {
        for (size, slide) in [(6, 2), (5, 2), (7, 7)] {
            let spec = WindowSpec::hop(size, slide).unwrap();
            for (from, to) in [(-10, 10), (0, 0), (3, 4), (0, 21)] {
                let got: Vec<i64> = spec.closing(Timestamp(from), Timestamp(to)).map(|w| w.end.0).collect();
                let want: Vec<i64> = (-200..200)
                    .filter(|s| s % slide == 0)
                    .map(|s| s + size)
                    .filter(|e| *e > from && *e <= to)
                    .collect();
                assert_eq!(got, want, "size {size} slide {slide} from {from} to {to}");
            }
        }
    }

    #[test]
    fn panes_tile_windows() {
        let spec = WindowSpec::hop(60, 25).unwrap();
        assert_eq!(spec.pane(), 5);
        assert_eq!(spec.pane_of(Timestamp(-1)), Timestamp(-5));
    }

    #[test]
    fn a_slide_that_would_drop_records_is_refused() {
        assert!(WindowSpec::hop(5, 10).is_err());
        assert!(WindowSpec::hop(0, 1).is_err());
    }
}
