//! Follows the board for what no single look at it tells: when it last moved,
//! and how long batches took over the program's whole life.
//!
//! Invariant: each batch is counted once; a batch that left the board's
//! history before the follower saw it is missing from the histograms and from
//! nothing else. Made by the server, read by health and metrics.

use crate::past::Past;
use parking_lot::Mutex;
use std::sync::Arc;
use tidemill_core::{BatchReport, Board, Duration, Event, Stop};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::Instant,
};

/// Upper bounds of the histograms' buckets in seconds.
pub(crate) const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
/// Silence after which a running program counts as stalled. One without anything to do says so each second.
const STALL_AFTER: Duration = Duration::from_secs(30);
/// Reports from which the usual distance of two batches is taken.
const TYPICAL: usize = 32;

/// A histogram of seconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Histogram {
    /// How many fell into each bucket of [`BUCKETS`]; larger ones are only in `count`.
    pub(crate) buckets: [u64; BUCKETS.len()],
    pub(crate) count: u64,
    pub(crate) sum_us: u64,
}

impl Histogram {
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a batch are far below 2^53")]
    fn add(&mut self, us: u64) {
        let seconds = us as f64 / 1e6;
        if let Some(at) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            self.buckets[at] += 1;
        }
        self.count += 1;
        self.sum_us += us;
    }
}

/// What the follower has seen.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The newest batch that was counted.
    newest: Option<Arc<BatchReport>>,
    pub(crate) processing: Histogram,
    pub(crate) scheduling: Histogram,
    moved: Instant,
}

impl Seen {
    fn count(&mut self, report: &Arc<BatchReport>) {
        if self.newest.as_ref().is_none_or(|newest| newest.batch < report.batch) {
            self.processing.add(report.processing_us);
            self.scheduling.add(report.scheduling_delay_us);
            self.newest = Some(Arc::clone(report));
        }
    }

    fn count_all(&mut self, board: &Board) {
        for report in board.reports() {
            self.count(&report);
        }
    }
}

/// Follows one board.
#[derive(Debug)]
pub(crate) struct Watch {
    seen: Mutex<Seen>,
    events: Mutex<Option<Receiver<Event>>>,
    stall_after: Duration,
    /// What views showed lately.
    pub(crate) past: Past,
}

impl Watch {
    /// Subscribes now, so that nothing is missed until [`Watch::follow`] runs.
    pub(crate) fn new(board: &Board) -> Self {
        let events = board.subscribe();
        let seen = Seen {
            newest: None,
            processing: Histogram::default(),
            scheduling: Histogram::default(),
            moved: Instant::now(),
        };
        Self {
            seen: Mutex::new(seen),
            events: Mutex::new(Some(events)),
            stall_after: STALL_AFTER,
            past: Past::default(),
        }
    }

    pub(crate) fn set_stall_after(&mut self, span: Duration) {
        self.stall_after = span;
    }

    /// Follows until `stop`.
    pub(crate) async fn follow(&self, board: &Board, stop: &Stop) {
        let Some(mut events) = self.events.lock().take() else { return };
        self.seen.lock().count_all(board);
        self.look_at_views(board);
        loop {
            let event = tokio::select! {
                () = stop.stopped() => return,
                event = events.recv() => event,
            };
            let mut seen = self.seen.lock();
            match event {
                Ok(Event::Batch(report)) => {
                    seen.moved = Instant::now();
                    seen.count(&report);
                }
                Ok(Event::Phase(_) | Event::Failed(_) | Event::Idle) => seen.moved = Instant::now(),
                Ok(Event::View(snapshot)) => {
                    drop(seen);
                    self.past.take(&snapshot);
                }
                Err(RecvError::Lagged(_)) => {
                    seen.moved = Instant::now();
                    seen.count_all(board);
                    drop(seen);
                    self.look_at_views(board);
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// Takes what views show now; what they showed before may have been missed.
    fn look_at_views(&self, board: &Board) {
        board.view_names().iter().filter_map(|name| board.view(name)).for_each(|view| self.past.take(&view));
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().clone()
    }

    /// Time since a batch was committed, the phase changed, or the program said that it has nothing to do.
    pub(crate) fn silence(&self) -> Duration {
        self.seen.lock().moved.elapsed()
    }

    /// The longest silence that a running program may keep.
    pub(crate) fn stall_limit(&self, board: &Board) -> Duration {
        let reports = board.reports();
        let last = &reports[reports.len().saturating_sub(TYPICAL)..];
        let mut gaps: Vec<Duration> = last.windows(2).map(|pair| pair[1].time.since(pair[0].time)).collect();
        gaps.sort_unstable();
        let typical = gaps.get(gaps.len() / 2).copied().unwrap_or_default();
        self.stall_after.max(typical.saturating_mul(3))
    }
}
