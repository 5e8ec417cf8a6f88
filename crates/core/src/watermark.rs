//! Watermarks: how far a stream believes its event time complete.
//!
//! ```text
//! partition 0   largest time 12:00:40 ─ bound 5 s ─► 12:00:35 ┐
//! partition 1   largest time 12:00:20 ─ bound 5 s ─► 12:00:15 ┴─ the least ─► 12:00:15
//! partition 2   idle: nothing came for `idle_after`, holds nobody up
//! ```
//!
//! A stream's watermark is the least of those of its partitions that are not
//! idle; when all are, the greatest. How long a partition has been quiet is
//! added up from batch time alone, and a gap between two batches counts for at
//! most half of `idle_after`: time in which the program was down makes nobody
//! idle. A record dated more than `max_ahead` after the batch moves nothing.
//!
//! Invariant: a watermark never moves back, and follows from the one before and
//! from what the batch read, so a batch that runs again gives the same one.
//! The ledger keeps it; the engine's sources and window operators call this.

use crate::{Duration, PartitionId, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A partition without records for so long holds nobody up, unless the stream says otherwise.
const IDLE_AFTER: Duration = Duration::from_secs(60);
/// A record may be dated so much after its batch, unless the stream says otherwise.
const MAX_AHEAD: Duration = Duration::from_secs(24 * 3600);

/// How a stream's watermark follows its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WatermarkSpec {
    /// How far the watermark trails the largest time.
    pub bound: Duration,
    /// Batch time without records after which a partition is idle; `None`: never.
    pub idle_after: Option<Duration>,
    /// How much later than the batch's time a record may be dated; `None`: any amount.
    pub max_ahead: Option<Duration>,
}

impl WatermarkSpec {
    /// A watermark that trails by `bound`: a partition is idle after a minute,
    /// and a record may be dated a day ahead.
    pub fn new(bound: Duration) -> Self {
        Self { bound, idle_after: Some(IDLE_AFTER), max_ahead: Some(MAX_AHEAD) }
    }

    /// The latest time that a record of a batch may have.
    pub fn latest(&self, batch: Timestamp) -> Timestamp {
        self.max_ahead.map_or(Timestamp(i64::MAX), |ahead| batch.plus(ahead))
    }
}

/// What is known of the event time of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    /// Its largest time less the bound.
    at: Timestamp,
    /// Microseconds of batch time without a record, as far as they count.
    quiet: u64,
}

/// The event time that a stream believes complete, and what it follows from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    at: Timestamp,
    partitions: BTreeMap<PartitionId, Mark>,
}

impl Default for Watermark {
    fn default() -> Self {
        Self { at: Timestamp::MIN, partitions: BTreeMap::new() }
    }
}

impl Watermark {
    /// Takes notice of a batch: `largest` times by partition, which partitions
    /// were read at all, and the span since the batch before.
    pub fn advance<'a>(
        &mut self,
        spec: WatermarkSpec,
        largest: impl IntoIterator<Item = (&'a PartitionId, Timestamp)>,
        is_read: impl Fn(&PartitionId) -> bool,
        gap: Duration,
    ) {
        let counts = spec.idle_after.map_or(Duration::ZERO, |idle| gap.min(idle / 2));
        for (partition, mark) in &mut self.partitions {
            mark.quiet = if is_read(partition) { 0 } else { mark.quiet.saturating_add(micros(counts)) };
        }
        for (partition, largest) in largest {
            let at = largest.minus(spec.bound);
            // A partition counts from its first record.
            let mark = self.partitions.entry(partition.clone()).or_insert(Mark { at, quiet: 0 });
            *mark = Mark { at: mark.at.max(at), quiet: 0 };
        }
        let is_idle = |mark: &Mark| spec.idle_after.is_some_and(|idle| mark.quiet >= micros(idle));
        let least = self.partitions.values().filter(|mark| !is_idle(mark)).map(|mark| mark.at).min();
        let greatest = || self.partitions.values().map(|mark| mark.at).max();
        if let Some(at) = least.or_else(greatest) {
            self.at = self.at.max(at);
        }
    }

    /// Event time believed complete; [`Timestamp::MIN`] before the first record.
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// Whether a record of this event time comes too late.
    pub fn is_late(&self, at: Timestamp) -> bool {
        at < self.at
    }

    /// Whether all partitions are idle; false before the first record.
    pub fn is_idle(&self, spec: WatermarkSpec) -> bool {
        !self.partitions.is_empty() && self.next_idle(spec).is_none() && spec.idle_after.is_some()
    }

    /// The pause after which a batch that reads nothing brings the next partition nearer to being idle, as far as
    /// one pause counts; `None` when all are idle, or none ever is.
    pub fn next_idle(&self, spec: WatermarkSpec) -> Option<Duration> {
        let idle = spec.idle_after?;
        let left =
            self.partitions.values().map(|mark| micros(idle).saturating_sub(mark.quiet)).filter(|left| *left > 0);
        let pause = Duration::from_micros(left.min()?).min(idle / 2);
        Some(pause.max(Duration::from_micros(1)))
    }

    /// The watermark after so much quiet that every partition is idle, if it
    /// differs from now: what a stream on which nothing comes any more will reach.
    pub fn when_quiet(&self) -> Option<Timestamp> {
        self.partitions.values().map(|mark| mark.at).max().filter(|at| *at > self.at)
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn spec(bound: u64, idle: Option<u64>) -> WatermarkSpec {
        WatermarkSpec {
            bound: Duration::from_secs(bound),
            idle_after: idle.map(Duration::from_secs),
            ..WatermarkSpec::new(Duration::ZERO)
        }
    }

    /// One batch, `gap` seconds after the one before: each partition that was read with its largest time.
    fn batch(mark: &mut Watermark, spec: WatermarkSpec, read: &[(u32, i64)], gap: u64) -> i64 {
        let read: Vec<_> = read.iter().map(|(p, at)| (PartitionId::from(*p), Timestamp(at * SECOND))).collect();
        let is_read = |p: &PartitionId| read.iter().any(|(q, _)| p == q);
        mark.advance(spec, read.iter().map(|(p, at)| (p, *at)), is_read, Duration::from_secs(gap));
        mark.at().0.div_euclid(SECOND)
    }

    #[test]
    fn the_slowest_partition_holds_the_watermark_and_it_never_moves_back() {
        let (spec, mut mark) = (spec(5, None), Watermark::default());
        assert_eq!(mark.at(), Timestamp::MIN);
        assert_eq!(batch(&mut mark, spec, &[(0, 20)], 1), 15);
        assert_eq!(batch(&mut mark, spec, &[(0, 3)], 1), 15);
        assert_eq!(batch(&mut mark, spec, &[(1, 10)], 1), 15, "a partition that begins behind moves it not back");
        assert_eq!(batch(&mut mark, spec, &[(0, 60)], 1), 15, "it waits for the other");
        assert_eq!(batch(&mut mark, spec, &[(1, 40)], 1), 35);
        assert!(mark.is_late(Timestamp(34 * SECOND)) && !mark.is_late(Timestamp(35 * SECOND)));
    }

    #[test]
    fn an_idle_partition_holds_nobody_up_until_it_comes_back() {
        let (spec, mut mark) = (spec(0, Some(10)), Watermark::default());
        batch(&mut mark, spec, &[(0, 10), (1, 5)], 1);
        for second in 0..9 {
            assert_eq!(batch(&mut mark, spec, &[(0, 20 + second)], 1), 5);
        }
        assert_eq!(batch(&mut mark, spec, &[(0, 30)], 1), 30, "quiet for ten seconds");
        assert_eq!(batch(&mut mark, spec, &[(0, 40), (1, 31)], 1), 31, "it is back");
        for _ in 0..9 {
            assert_eq!(batch(&mut mark, spec, &[], 1), 31);
        }
        assert_eq!(mark.when_quiet(), Some(Timestamp(40 * SECOND)));
        assert_eq!(batch(&mut mark, spec, &[], 1), 40, "all are idle: the furthest counts");
        assert_eq!(mark.when_quiet(), None);
    }

    #[test]
    fn batches_that_read_nothing_make_all_idle_in_as_many_pauses_as_needed() {
        let (spec, mut mark) = (spec(0, Some(10)), Watermark::default());
        assert_eq!((mark.next_idle(spec), mark.is_idle(spec)), (None, false), "nothing came yet");
        batch(&mut mark, spec, &[(0, 10), (1, 5)], 1);
        batch(&mut mark, spec, &[(0, 11)], 3);
        let mut pauses = Vec::new();
        while let Some(pause) = mark.next_idle(spec) {
            assert!(!mark.is_idle(spec));
            batch(&mut mark, spec, &[], pause.as_secs());
            pauses.push((pause.as_secs(), mark.at().0.div_euclid(SECOND)));
        }
        assert_eq!(pauses, [(5, 5), (2, 11), (3, 11)], "a pause counts for half; then one partition, then the other");
        assert!(mark.is_idle(spec));
        assert_eq!(mark.next_idle(self::spec(0, None)), None);
    }

    #[test]
    fn time_without_batches_makes_nobody_idle_at_once() {
        let (spec, mut mark) = (spec(0, Some(10)), Watermark::default());
        batch(&mut mark, spec, &[(0, 10), (1, 5)], 1);
        assert_eq!(batch(&mut mark, spec, &[(0, 20)], 3600), 5, "the program was down");
        assert_eq!(batch(&mut mark, spec, &[(0, 21)], 3600), 21);
    }

    #[test]
    fn a_record_may_be_dated_so_far_ahead() {
        let spec = WatermarkSpec::new(Duration::ZERO);
        assert_eq!(spec.latest(Timestamp(0)), Timestamp(24 * 3600 * SECOND));
        assert_eq!(WatermarkSpec { max_ahead: None, ..spec }.latest(Timestamp(0)), Timestamp(i64::MAX));
    }
}
