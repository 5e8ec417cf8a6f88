//! Keyed state: hot in memory, one version a batch.
//!
//! A stateful operator registers itself here when its plan is made. The batch
//! loop takes its delta at each commit, and gives the rows back after a restart
//! or a failed batch. So that the deltas don't outgrow the state, it asks for
//! some of the other rows beside each delta ([`StateOperator::sweep`]), or where
//! later rows don't replace earlier ones, for a snapshot, at once or in turn.
//!
//! Invariant: the rows in memory equal the last committed version plus the
//! batch that is running; a failed batch is undone by restoring.

pub(crate) mod alarms;
mod bin;
mod binned;
mod cold;
#[cfg(test)]
mod cold_tests;
pub(crate) mod disk_rows;
pub(crate) mod keyed;
pub(crate) mod life;
pub(crate) mod look;
pub(crate) mod memory;
#[cfg(test)]
mod model_tests;
pub(crate) mod panes;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use parking_lot::Mutex;
use std::{fmt, sync::Arc};
use tidemill_core::{Batch, BatchId, Result, Timestamp};
use tidemill_store::state::{Again, Piece, StateKind};

/// Rows of a version as they come back from disk.
#[derive(Debug, Clone)]
pub(crate) struct Version {
    /// Whether these are all rows, or those that the batch changed.
    pub(crate) whole: bool,
    /// Of rows that the version before this one in the list kept again beside what it changed, how they
    /// go with those before them. Only of an operator that [`StateOperator::marks`] them.
    pub(crate) again: Option<Again>,
    pub(crate) rows: Vec<RecordBatch>,
}

/// Rows of a sweep, as they are now.
#[derive(Debug, Default)]
pub(crate) struct Swept {
    pub(crate) rows: Vec<RecordBatch>,
    /// Whether with these, all rows have been given that did not change meanwhile.
    pub(crate) whole: bool,
}

/// Hands versions out as they are read, the oldest first.
pub(crate) type Feed<'a> = dyn FnMut(&mut dyn FnMut(Piece) -> Result<()>) -> Result<()> + 'a;

/// All that a feed gives, in memory.
pub(crate) fn collected(feed: &mut Feed<'_>) -> Result<Vec<Version>> {
    let mut versions = Vec::new();
    feed(&mut |piece| {
        match piece {
            Piece::Reset => versions.clear(),
            Piece::Version(_, kind) => {
                versions.push(Version { whole: kind == StateKind::Snapshot, again: None, rows: Vec::new() });
            }
            Piece::Again(again) => versions.push(Version { whole: false, again: Some(again), rows: Vec::new() }),
            Piece::Rows(rows) => versions.iter_mut().last().into_iter().for_each(|v| v.rows.push(rows.clone())),
        }
        Ok(())
    })?;
    Ok(versions)
}

/// Hands versions out as they come from disk: the other way round of [`collected`].
pub(crate) fn hand_out(versions: &[Version], each: &mut dyn FnMut(Piece) -> Result<()>) -> Result<()> {
    for version in versions {
        each(match &version.again {
            Some(again) => Piece::Again(again.clone()),
            None if version.whole => Piece::Version(BatchId(0), StateKind::Snapshot),
            None => Piece::Version(BatchId(0), StateKind::Delta),
        })?;
        version.rows.iter().try_for_each(|rows| each(Piece::Rows(rows.clone())))?;
    }
    Ok(())
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

    /// As [`StateOperator::restore`], from versions as they are read: an operator
    /// that can need not have them in memory together.
    ///
    /// # Errors
    /// As [`StateOperator::restore`], or when they can't be read.
    fn restore_from(&self, feed: &mut Feed<'_>) -> Result<()> {
        self.restore(&collected(feed)?)
    }

    /// Whether rows may be kept again as they are, since a later row of a key replaces
    /// an earlier one or the operator [`StateOperator::marks`] them: then
    /// [`StateOperator::sweep`] is asked, and [`StateOperator::snapshot`] by people only.
    fn sweeps(&self) -> bool {
        false
    }

    /// How rows that are kept again are told from those that a batch changed when they are
    /// read, where they would add up. Of those rows, [`StateOperator::restore`] gets only such
    /// as the versions that it gets don't have otherwise, as a [`Version`] of their own.
    fn marks(&self) -> Option<Again> {
        None
    }

    /// About `rows` of the rows as they are now, which go on where the call before
    /// ended; `begin` begins anew. Called between batches, where [`StateOperator::sweeps`] or
    /// [`StateOperator::sets_aside`] says so.
    ///
    /// # Errors
    /// When the rows can't be read.
    fn sweep(&self, rows: usize, begin: bool) -> Result<Swept> {
        let _none_are_asked_for = (rows, begin);
        Ok(Swept { rows: Vec::new(), whole: false })
    }

    /// Whether [`StateOperator::sweep`] gives the rows as they were when it began, each once, whatever changes
    /// meanwhile: together they are a snapshot of then. So it is where rows add up and not all lie in columns that
    /// could be set aside at once.
    fn sets_aside(&self) -> bool {
        false
    }

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

    /// `batch` has happened: what it has to tell may be told.
    fn committed(&self, batch: BatchId) {
        let _nothing = batch;
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
