//! How far a batch that is run again may go.
//!
//! Invariant: within bounds, what is held of a table is its first rows, whatever
//! is read; the others are counted. Called by [`super`].

use arrow_array::RecordBatch;
use datafusion::common::Result as DfResult;
use futures::{Stream, TryStreamExt};
use tidemill_core::{Duration, Error, Result};

/// What a run may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Rows of each input that are held.
    pub(super) inputs: usize,
    /// Rows of each output that are held.
    pub(super) rows: usize,
    /// Rows of a state up to which it is told what changed.
    pub(super) state_rows: usize,
    /// Bytes that sorting and grouping may take.
    pub(super) memory: Option<usize>,
    /// How long it may take.
    pub(super) time: Option<Duration>,
    pub(super) threads: usize,
    /// Whether what was kept then is read, to be compared.
    pub(super) compares: bool,
}

impl Bounds {
    /// In a process of its own, for someone who waits for it.
    pub(super) const NONE: Self = Self {
        inputs: usize::MAX,
        rows: usize::MAX,
        state_rows: usize::MAX,
        memory: None,
        time: None,
        threads: 2,
        compares: false,
    };

    /// In the process that runs the program: one thread, so that the others are the batches'.
    pub(super) const BESIDE: Self = Self {
        inputs: 100,
        rows: 10_000,
        state_rows: 200_000,
        memory: Some(256 << 20),
        time: Some(Duration::from_secs(10)),
        threads: 1,
        compares: true,
    };

    /// What `run` gives, when it ends in time.
    pub(super) async fn in_time<T>(&self, run: impl Future<Output = Result<T>>) -> Result<T> {
        let Some(time) = self.time else { return run.await };
        match tokio::time::timeout(time, run).await {
            Ok(ended) => ended,
            Err(_late) => Err(Error::user(format!(
                "it did not end within {} s, which is the most beside the running program: `tidemill replay-batch` \
                 takes its time",
                time.as_secs()
            ))),
        }
    }
}

/// The first rows of a table, and the number of all.
#[derive(Debug, Clone, Default)]
pub(crate) struct Taken {
    pub(crate) rows: Vec<RecordBatch>,
    pub(crate) total: u64,
}

impl Taken {
    /// Takes the first `most` rows and counts all.
    pub(super) async fn of(mut rows: impl Stream<Item = DfResult<RecordBatch>> + Unpin, most: usize) -> DfResult<Self> {
        let mut taken = Self::default();
        while let Some(rows) = rows.try_next().await? {
            taken.take(rows, most);
        }
        Ok(taken)
    }

    /// Takes of these rows what there is room for.
    pub(super) fn take(&mut self, rows: RecordBatch, most: usize) {
        let count = rows.num_rows();
        self.total += count as u64;
        let held: usize = self.rows.iter().map(RecordBatch::num_rows).sum();
        let room = most.saturating_sub(held);
        if count > 0 && room > 0 {
            self.rows.push(if count > room { rows.slice(0, room) } else { rows });
        }
    }

    /// Takes what another part gave.
    pub(super) fn add(&mut self, other: Self, most: usize) {
        let total = self.total + other.total;
        other.rows.into_iter().for_each(|rows| self.take(rows, most));
        self.total = total;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::Int64Array;
    use std::sync::Arc;

    fn rows(n: i64) -> RecordBatch {
        RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from_iter_values(0..n)) as _)]).unwrap()
    }

    #[test]
    fn the_first_rows_are_held_and_all_are_counted() {
        let mut taken = Taken::default();
        [3, 0, 4, 5].into_iter().for_each(|n| taken.take(rows(n), 6));
        let held: Vec<_> = taken.rows.iter().map(RecordBatch::num_rows).collect();
        assert_eq!((held, taken.total), (vec![3, 3], 12));
        let mut all = Taken { rows: vec![rows(2)], total: 9 };
        all.add(taken, 7);
        let held: Vec<_> = all.rows.iter().map(RecordBatch::num_rows).collect();
        assert_eq!((held, all.total), (vec![2, 3, 2], 21));
    }

    #[test]
    fn what_does_not_end_is_ended() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let short = Bounds { time: Some(Duration::ZERO), ..Bounds::BESIDE };
        let never = short.in_time(std::future::pending::<Result<()>>());
        assert!(runtime.block_on(never).unwrap_err().to_string().contains("within 0 s"));
        assert_eq!(runtime.block_on(Bounds::NONE.in_time(async { Ok(7) })).unwrap(), 7);
    }
}
