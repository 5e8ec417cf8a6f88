//! `remember` and `slice`: the last batches of a stream, read while it runs.
//!
//! What is remembered lives in this process and is bounded by time: a restarted
//! program begins with nothing. It appears after its batch was committed.
//!
//! ```
//! # use tidemill_engine::{StreamingContext, Trigger};
//! # use std::time::Duration;
//! let context = StreamingContext::builder("words").trigger(Trigger::Drain).build();
//! let words = context.queue_stream([vec!["to".to_string(), "be".to_string()]])?;
//! let last = words.remember(Duration::from_secs(60));
//! context.start()?;
//! context.await_termination()?;
//! let batches = last.slice(last.newest().unwrap(), last.newest().unwrap())?;
//! assert_eq!(batches[0].1, ["to", "be"]);
//! # Ok::<(), tidemill_core::Error>(())
//! ```

use super::{BatchInfo, OutputKind};
use crate::{
    record::{Record, records_of},
    stream::{Chain, DStream},
};
use arrow_array::RecordBatch;
use parking_lot::Mutex;
use std::{collections::VecDeque, fmt, marker::PhantomData, sync::Arc};
use tidemill_core::{Duration, Result, Timestamp};

/// Batches by time, the oldest first. Bounded by the span that is remembered.
type Batches = Arc<Mutex<VecDeque<(BatchInfo, Vec<RecordBatch>)>>>;

/// The last batches of a stream. Clones read the same memory.
pub struct Remembered<T: Record> {
    batches: Batches,
    record: PhantomData<fn() -> T>,
}

impl<T: Record> Clone for Remembered<T> {
    fn clone(&self) -> Self {
        Self { batches: Arc::clone(&self.batches), record: PhantomData }
    }
}

impl<T: Record> fmt::Debug for Remembered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remembered({} batches)", self.batches.lock().len())
    }
}

impl<T: Record> Remembered<T> {
    /// The batches with times in `[from, to]`, both included as the field has
    /// it, with their records, the oldest first. What is older than the
    /// remembered span, or yet to come, is not among them.
    ///
    /// # Errors
    /// When rows are not of the stream's type, which would be a bug.
    pub fn slice(&self, from: Timestamp, to: Timestamp) -> Result<Vec<(BatchInfo, Vec<T>)>> {
        // Rows are shared columns: they are taken out at once and read without the lock.
        let batches: Vec<_> =
            self.batches.lock().iter().filter(|(info, _)| (from..=to).contains(&info.time)).cloned().collect();
        batches
            .into_iter()
            .map(|(info, rows)| {
                let mut records = Vec::new();
                for rows in &rows {
                    records.extend(records_of::<T>(rows)?);
                }
                Ok((info, records))
            })
            .collect()
    }

    /// The time of the newest batch.
    pub fn newest(&self) -> Option<Timestamp> {
        self.batches.lock().back().map(|(info, _)| info.time)
    }
}

impl<T: Record, C: Chain<Out = T>> DStream<T, C> {
    /// Keeps the rows of the batches of the last `span` in memory, where
    /// [`Remembered::slice`] reads them while the program runs.
    pub fn remember(&self, span: Duration) -> Remembered<T> {
        let batches = Batches::default();
        let kept = Arc::clone(&batches);
        let call = move |info: &BatchInfo, rows: &[RecordBatch]| {
            let mut kept = kept.lock();
            kept.push_back((*info, rows.to_vec()));
            let oldest = info.time.minus(span);
            while kept.front().is_some_and(|(info, _)| info.time <= oldest) {
                kept.pop_front();
            }
            Ok(())
        };
        self.output(self.declare.name("remember"), OutputKind::Kept(Arc::new(call)));
        Remembered { batches, record: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::run;
    use std::time::Duration;
    use tidemill_core::Timestamp;

    #[test]
    fn the_last_batches_can_be_sliced_by_time() {
        let (mut first, mut all) = (None, None);
        run(
            (1..=5).map(|n| vec![n, n * 10]).collect::<Vec<_>>(),
            |s| {
                all = Some(s.remember(Duration::from_secs(3)));
                first = Some(s.filter(|n| n < 10).remember(Duration::from_secs(100)));
                s
            },
            2,
        )
        .unwrap();
        let (first, all) = (first.unwrap(), all.unwrap());
        let at = |seconds: i64| Timestamp(seconds * 1_000_000);
        let times = |from, to| all.slice(at(from), at(to)).unwrap().iter().map(|(i, _)| i.time).collect::<Vec<_>>();
        assert_eq!(times(0, 100), vec![at(3), at(4), at(5)], "three seconds are kept");
        assert_eq!(times(4, 4), vec![at(4)]);
        assert_eq!(times(6, 9), vec![]);
        assert_eq!(all.newest(), Some(at(5)));
        let small = first.slice(at(2), at(3)).unwrap();
        assert_eq!(small.iter().map(|(_, records)| records.clone()).collect::<Vec<_>>(), vec![vec![2], vec![3]]);
    }
}
