//! Which windows of a key a batch gives, and at which watermark that is asked again.
//!
//! Invariant: a window is given when the watermark passes its end, and again when a late
//! record came to it; between two looks at a run that nothing was added to, there is none.
//! Called by [`super`].

use super::{Run, Windows};
use crate::record::{Key, Record};
use std::collections::BTreeSet;
use tidemill_core::{Timestamp, WindowKind};

/// A window of a key.
pub(super) struct Given<A> {
    pub(super) start: i64,
    pub(super) end: i64,
    pub(super) value: A,
}

impl<K: Key, A: Record> Windows<K, A> {
    /// The watermark at which a window of the run ends next, or some of it is let go; `None` of what rows alone end.
    pub(super) fn next_look(&self, run: &Run<A>, now: Timestamp) -> Option<i64> {
        let gone = |end: i64| Timestamp(end).plus(self.lateness).0;
        match self.window {
            WindowKind::Session(gap) => {
                let end = run.high.saturating_add(gap);
                Some(if end > now.0 { end } else { gone(end) })
            }
            WindowKind::Time(spec) => {
                let next = |(pane, _): &(i64, A)| {
                    let until = Timestamp(pane.saturating_add(spec.size()));
                    let window = spec.closing(now.max(Timestamp(*pane)), until).next();
                    window.map_or_else(|| gone(spec.last_end(Timestamp(*pane)).0), |window| window.end.0)
                };
                run.panes.iter().map(next).min()
            }
            WindowKind::Count(_) => None,
        }
    }

    /// When all windows of a run have closed.
    pub(super) fn last_end(&self, run: &Run<A>) -> i64 {
        match self.window {
            WindowKind::Session(gap) => run.high.saturating_add(gap),
            WindowKind::Time(spec) | WindowKind::Count(spec) => spec.last_end(Timestamp(run.high)).0,
        }
    }

    /// The windows of a run that this batch gives.
    pub(super) fn given(&self, run: &Run<A>, batch: u64, before: Timestamp, now: Timestamp) -> Vec<Given<A>> {
        let fold = |from: i64, to: i64| {
            let inside = run.panes.iter().filter(|(pane, _)| (from..to).contains(pane));
            inside.map(|(_, value)| value.clone()).reduce(|a, b| self.joined(a, b))
        };
        match self.window {
            WindowKind::Session(gap) => {
                let end = run.high.saturating_add(gap);
                let is_given = end <= now.0 && (end > before.0 || run.touched == batch);
                let value = is_given.then(|| fold(i64::MIN, i64::MAX)).flatten();
                value.map(|value| Given { start: run.low, end, value }).into_iter().collect()
            }
            WindowKind::Time(spec) => {
                let mut windows = BTreeSet::new();
                let mut take = |pane: i64, after: i64, until: i64| {
                    let (from, to) = (after.max(pane), until.min(pane.saturating_add(spec.size())));
                    if from < to {
                        windows.extend(spec.closing(Timestamp(from), Timestamp(to)).map(|w| (w.end.0, w.start.0)));
                    }
                };
                run.panes.iter().for_each(|(pane, _)| take(*pane, before.0, now.0));
                if run.touched == batch {
                    // Closed before, and a late record came.
                    run.news.iter().for_each(|pane| take(*pane, before.minus(self.lateness).0, before.0));
                }
                let given = |(end, start)| Some(Given { start, end, value: fold(start, end)? });
                windows.into_iter().filter_map(given).collect()
            }
            WindowKind::Count(spec) => {
                if run.touched != batch {
                    return Vec::new();
                }
                // The first number of this batch is the least of its panes' that were not full before.
                let had = run.low;
                let windows = spec.closing(Timestamp(had), Timestamp(run.high + 1)).filter(|w| w.start.0 >= 0);
                windows
                    .filter_map(|w| Some(Given { start: w.start.0, end: w.end.0, value: fold(w.start.0, w.end.0)? }))
                    .collect()
            }
        }
    }
}
