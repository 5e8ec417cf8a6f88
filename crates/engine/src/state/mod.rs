//! Keyed state: hot in memory, one version a batch.
//!
//! A stateful operator registers itself here when its plan is made. The batch
//! loop takes its delta at each commit, asks for a snapshot when the deltas
//! outgrow the state, and gives the rows back after a restart or a failed batch.
//!
//! Invariant: the rows in memory equal the last committed version plus the
//! batch that is running; a failed batch is undone by restoring.

pub(crate) mod alarms;
mod bin;
pub(crate) mod keyed;
pub(crate) mod life;
pub(crate) mod look;
#[cfg(test)]
mod model_tests;
pub(crate) mod panes;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use parking_lot::Mutex;
use std::{fmt, sync::Arc};
use tidemill_core::{Batch, BatchId, Result, Timestamp};

/// Rows of a version as they come back from disk.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    /// Whether these are all rows, or those that the batch changed.
    pub(crate) whole: bool,
    pub(crate) rows: Vec<RecordBatch>,
}

/// What the batch loop needs of a stateful operator.
pub(crate) trait StateOperator: Send + Sync + fmt::Debug {
    /// The operator's name: its files are kept under it.
    fn name(&self) -> &str;

    /// The verb, for `plan`.
    fn kind(&self) -> &'static str;

    /// Columns of its rows on disk.
    fn schema(&self) -> SchemaRef;

    /// Forgets everything and takes these versions, the oldest first.
    ///
    /// # Errors
    /// When the rows are not of this operator's types.
    fn restore(&self, versions: &[Version]) -> Result<()>;

    /// Takes the rows that `batch` changed.
    fn delta(&self, batch: BatchId) -> Result<Vec<RecordBatch>>;

    /// All rows as they are now; called between batches.
    fn snapshot(&self) -> Result<Vec<RecordBatch>>;

    /// Number of rows now.
    fn rows(&self) -> usize;

    /// How many of the columns are the key: the first ones.
    fn keys(&self) -> usize {
        1
    }

    /// One row: what the columns hold before the first record, where that is
    /// known. It fills columns that are new.
    ///
    /// # Errors
    /// When it can't be computed.
    fn neutral(&self) -> Result<Option<RecordBatch>> {
        Ok(None)
    }

    /// An empty state of the same kind and columns: it takes old versions, to be looked at.
    fn fresh(&self) -> Option<Arc<dyn StateOperator>> {
        None
    }

    /// Whether what a batch was told from outside is in its version, so that [`StateOperator::recall`] has something to say.
    fn recalls(&self) -> bool {
        false
    }

    /// `batch` is run again, for people, after [`StateOperator::restore`] of the version before it: it takes what it was
    /// told then from the versions that lead to its own.
    ///
    /// # Errors
    /// When the rows are not of this operator's types.
    fn recall(&self, batch: &Batch, after: &[Version]) -> Result<()> {
        let _nothing = (batch, after);
        Ok(())
    }

    /// All rows for people: as they would be used now, a row a key.
    ///
    /// # Errors
    /// When they can't be computed.
    fn shown(&self) -> Result<Vec<RecordBatch>> {
        self.snapshot()
    }

    /// The time after the last batch at which this state needs a batch though
    /// nothing comes: a window by batch time that holds rows is given, or lets
    /// them expire. With `ending`, only when it has rows that no window has shown.
    fn due(&self, last: Timestamp, ending: bool) -> Option<Timestamp> {
        let _nothing_waits = (last, ending);
        None
    }

    /// From which time on this state has something to do though nothing comes: a
    /// timeout, a timer. One batch at that time or any time later does all of it,
    /// so, unlike [`StateOperator::due`], no tick is run for it that was missed.
    fn wakes(&self, last: Timestamp) -> Option<Timestamp> {
        let _never = last;
        None
    }
}

/// The stateful operators of a program.
#[derive(Debug, Default)]
pub(crate) struct StateRegistry {
    operators: Mutex<Vec<Arc<dyn StateOperator>>>,
}

impl StateRegistry {
    pub(crate) fn register(&self, operator: Arc<dyn StateOperator>) {
        let mut operators = self.operators.lock();
        if !operators.iter().any(|o| o.name() == operator.name()) {
            operators.push(operator);
        }
    }

    pub(crate) fn all(&self) -> Vec<Arc<dyn StateOperator>> {
        self.operators.lock().clone()
    }
}
