//! What views showed lately, so that a page can go back along the batches.
//!
//! Invariant: bounded by steps a view and by bytes in all, whatever views hold
//! and however fast batches come: those that follow closer than [`GAP`] are
//! passed over. Filled by the watch, read by the API.

use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};
use tidemill_core::{BatchId, Duration, ViewSnapshot};

/// Steps of a view that are kept.
const STEPS: usize = 240;
/// The least batch time between two of them.
const GAP: Duration = Duration::from_millis(250);
/// Bytes of all views together.
const BYTES: usize = 64 << 20;

/// The last steps of every view.
#[derive(Debug, Default)]
pub(crate) struct Past(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    views: BTreeMap<String, VecDeque<Arc<ViewSnapshot>>>,
    bytes: usize,
}

impl Past {
    /// Takes what a view shows now.
    pub(crate) fn take(&self, snapshot: &Arc<ViewSnapshot>) {
        let size = size(snapshot);
        // One that is alone over the bound is on the board, and nowhere else.
        if size > BYTES / 4 {
            return;
        }
        let mut kept = self.0.lock();
        let Kept { views, bytes } = &mut *kept;
        let steps = views.entry(snapshot.name.clone()).or_default();
        if steps.back().is_some_and(|last| snapshot.time >= last.time && snapshot.time.since(last.time) < GAP) {
            return;
        }
        steps.push_back(Arc::clone(snapshot));
        *bytes += size;
        if steps.len() > STEPS {
            *bytes -= steps.pop_front().map_or(0, |gone| self::size(&gone));
        }
        while *bytes > BYTES {
            // The view with the longest past gives up its oldest step.
            let Some(longest) = views.values_mut().max_by_key(|steps| steps.len()) else { break };
            *bytes -= longest.pop_front().map_or(0, |gone| self::size(&gone));
        }
    }

    /// The steps of a view, the oldest first.
    pub(crate) fn of(&self, view: &str) -> Vec<Arc<ViewSnapshot>> {
        self.0.lock().views.get(view).map(|steps| steps.iter().cloned().collect()).unwrap_or_default()
    }

    /// What a view showed after a batch: the newest step that is not after it.
    pub(crate) fn at(&self, view: &str, batch: BatchId) -> Option<Arc<ViewSnapshot>> {
        let kept = self.0.lock();
        kept.views.get(view)?.iter().rev().find(|step| step.batch <= batch).cloned()
    }
}

fn size(snapshot: &ViewSnapshot) -> usize {
    snapshot.rows.get_array_memory_size() + snapshot.name.len() + 128
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Int64Array, RecordBatch, StringArray};
    use tidemill_core::Timestamp;

    fn step(name: &str, batch: u64, millis: i64, text: &str, rows: usize) -> Arc<ViewSnapshot> {
        let texts = StringArray::from_iter_values((0..rows).map(|_| text));
        let numbers = Int64Array::from_iter_values(0..i64::try_from(rows).unwrap());
        let rows = RecordBatch::try_from_iter([("t", Arc::new(texts) as _), ("n", Arc::new(numbers) as _)]).unwrap();
        Arc::new(ViewSnapshot {
            name: name.to_string(),
            batch: BatchId(batch),
            time: Timestamp::from_millis(millis),
            rows,
        })
    }

    #[test]
    fn a_day_of_batches_leaves_a_bounded_past() {
        let past = Past::default();
        // A batch each second for a day.
        for batch in 0..86_400 {
            past.take(&step("v", batch, i64::try_from(batch).unwrap() * 1000, "x", 3));
        }
        let steps = past.of("v");
        assert_eq!((steps.len(), steps[0].batch, steps[239].batch), (240, BatchId(86_160), BatchId(86_399)));
        assert_eq!(past.at("v", BatchId(86_200)).unwrap().batch, BatchId(86_200));
        assert!(past.at("v", BatchId(17)).is_none());
    }

    #[test]
    fn close_steps_are_passed_over_and_large_ones_push_out_the_oldest() {
        let past = Past::default();
        (0..1000).for_each(|batch| past.take(&step("fast", batch, i64::try_from(batch).unwrap(), "x", 1)));
        assert_eq!(past.of("fast").iter().map(|step| step.batch.0).collect::<Vec<_>>(), [0, 250, 500, 750]);
        assert_eq!(past.at("fast", BatchId(499)).unwrap().batch, BatchId(250), "the step before");
        let large = "x".repeat(1 << 20);
        (0..100).for_each(|batch| past.take(&step("large", batch, i64::try_from(batch).unwrap() * 1000, &large, 1)));
        let steps = past.of("large");
        assert!((40..64).contains(&steps.len()), "{}", steps.len());
        assert_eq!(steps.last().unwrap().batch, BatchId(99));
        assert!(past.0.lock().bytes <= BYTES);
        past.take(&step("huge", 1, 0, &large, 20));
        assert!(past.of("huge").is_empty());
    }
}
