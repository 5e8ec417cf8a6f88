//! A snapshot whose rows an operator gives in turn, as they were when it began.
//!
//! ```text
//! batch 7   delta; the first rows        after it: a piece of 7.snap
//! batch 8   delta; the next rows         after it: a piece of 7.snap
//! batch 9   delta; the last rows         after it: the last piece, synced, renamed
//! ```
//!
//! Rows are taken between two batches, and written after the commit of their own, which may
//! be some batches later. Invariant: a snapshot is finished only when each piece
//! of it was written once; where one is lost, with a disk that refused, the snapshot is never finished, and a later
//! one takes its place. Called by [`super::states`].

use crate::state::{StateOperator, Swept};
use arrow_array::RecordBatch;
use tidemill_core::{BatchId, Result};
use tidemill_store::state::{StateFiles, Unfinished};

/// Rows that are taken at once, at least.
const ROWS: usize = 16 * 1024;

/// Rows of a snapshot.
#[derive(Debug)]
pub(super) struct Given {
    /// The version whose rows they are.
    version: BatchId,
    /// Which piece it is, from 0 on.
    piece: usize,
    pub(super) rows: Vec<RecordBatch>,
    is_last: bool,
}

/// The snapshot whose rows are taken: its version, and how many pieces were.
#[derive(Debug, Default)]
pub(super) struct Taking(Option<(BatchId, usize)>);

/// The snapshot that is written: its file, and how many pieces it has.
#[derive(Debug, Default)]
pub(super) struct Writing(Option<(Unfinished, usize)>);

impl Taking {
    /// Whether rows are still to be taken.
    pub(super) fn goes_on(&self) -> bool {
        self.0.is_some()
    }

    /// Takes about `rows` of the rows: the next ones, or of a new snapshot, that of `batch`, the first.
    pub(super) fn take(&mut self, batch: BatchId, rows: usize, operator: &dyn StateOperator) -> Result<Given> {
        let (version, piece) = self.0.unwrap_or((batch, 0));
        let Swept { rows, whole } = operator.sweep(rows.max(ROWS), piece == 0)?;
        self.0 = (!whole).then_some((version, piece + 1));
        Ok(Given { version, piece, rows, is_last: whole })
    }
}

impl Writing {
    /// Writes what was taken, after the commit of its batch. Whether the snapshot is finished. May be repeated.
    pub(super) fn write(&mut self, files: &mut StateFiles, given: &Given) -> Result<bool> {
        let mut snapshot = match self.0.take() {
            _ if given.piece == 0 => files.begin_snapshot(given.version, &[])?,
            Some((snapshot, pieces)) if snapshot.version() == given.version && pieces == given.piece => snapshot,
            // It was written, and the commit is repeated for the sake of another state.
            Some((snapshot, pieces)) if snapshot.version() == given.version && pieces > given.piece => {
                self.0 = Some((snapshot, pieces));
                return Ok(false);
            }
            _ => return Ok(false),
        };
        snapshot.add(&given.rows)?;
        if given.is_last {
            return Ok(files.go_on(snapshot, u64::MAX)?.is_none());
        }
        self.0 = Some((snapshot, given.piece + 1));
        Ok(false)
    }
}
