//! When the rows of a state are kept a second time, so that old files may go.
//!
//! ```text
//! rows may be kept again                 others (aggregates that all keys' windows share)
//! batch 7   delta + rows in turn         batch 7   delta; all rows are set aside, as they are
//! batch 8   delta + rows in turn         batch 8   delta; a piece of them is written
//! batch 9   delta + the last of them     batch 9   delta; the last piece: 7.snap
//!           files before 7 may go                  files before 7.snap may go
//! ```
//!
//! Rows that add up and lie where batches change them are set aside in turn ([`super::in_turn`]).
//!
//! What a batch changed is taken between two batches ([`StateEntry`]) and written
//! in its commit ([`StateKeep`]), maybe some batches later: taking waits for no disk.
//!
//! Invariants: no batch writes all rows of a state. What is left is a bounded
//! number of files and of rows that a start reads ([`pace`]), whatever the state
//! has been through. Called by [`super::Keep`] around the commit point.

use super::in_turn::{Given, Taking, Writing};
use crate::state::{StateOperator, Swept};
use arrow_array::RecordBatch;
use parking_lot::{Mutex, MutexGuard};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tidemill_core::{BatchId, Result};
use tidemill_store::state::{Again, KeptAgain, StateFiles, Unfinished};

/// Deltas may hold this many times the rows of the state before all are kept again.
const REPEAT_FACTOR: usize = 3;
/// And at least this many rows.
const REPEAT_ROWS: usize = 1_000_000;
/// Deltas of a small state before all rows are kept again all the same: each is a
/// file, and a start opens those of two rounds.
const ROUND_FILES: usize = 48;
/// Deltas of any state before that.
const ROUND_FILES_MOST: usize = 512;
/// In between, so many rows are kept again with each delta.
const ROWS_A_DELTA: usize = 2_000;
/// Bytes of a snapshot that are written after one commit, at least.
const PIECE_BYTES: u64 = 8 << 20;
/// Or this share of it, so that a round of deltas ends.
const PIECES: u64 = 32;

/// Rows of one state, to be kept as a batch's version.
#[derive(Debug)]
pub(crate) struct KeptState {
    pub(super) name: String,
    delta: Vec<RecordBatch>,
    /// Rows that are kept again, where they are told from others: how, and since when their round goes on.
    again: Option<(BatchId, Again, Vec<RecordBatch>)>,
    /// The deltas from here on hold all rows, this one included.
    since: Option<BatchId>,
    /// All rows, when a snapshot is due.
    whole: Option<Vec<RecordBatch>>,
    /// Some rows of a snapshot.
    given: Option<Given>,
    /// Whether older files may go after this.
    ends_round: bool,
}

impl KeptState {
    /// Bytes of its rows.
    pub(super) fn bytes(&self) -> usize {
        let again = self.again.iter().flat_map(|(_, _, rows)| rows);
        let given = self.given.iter().flat_map(|given| &given.rows);
        let all = self.delta.iter().chain(again).chain(self.whole.iter().flatten()).chain(given);
        all.map(RecordBatch::get_array_memory_size).sum()
    }
}

/// A state, and what of it was taken since all of it was.
#[derive(Debug)]
pub(crate) struct StateEntry {
    keep: StateKeep,
    /// Rows of deltas in this round: since a snapshot was due, or a sweep began.
    rows: usize,
    /// Number of those deltas.
    deltas: usize,
    /// The first version of the sweep that goes on.
    sweep: Option<BatchId>,
    /// The first version of the last sweep that ended.
    since: Option<BatchId>,
    /// A snapshot whose rows are taken in turn.
    taking: Taking,
}

/// The files of a state.
#[derive(Debug, Clone)]
pub(crate) struct StateKeep {
    written: Arc<Mutex<Written>>,
    /// Whether a snapshot of rows that were taken at once is to be finished.
    snapshots: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Written {
    files: StateFiles,
    /// A snapshot that is being written.
    snapshot: Option<(Unfinished, u64)>,
    /// One whose rows are taken in turn.
    writing: Writing,
}

/// Deltas of a round of a state of so many rows.
fn round(rows: usize) -> usize {
    (rows / ROWS_A_DELTA).clamp(ROUND_FILES, ROUND_FILES_MOST)
}

/// Rows to be kept again beside a delta of `delta` rows, when the deltas of the
/// round hold `before`: a round ends after so many deltas, or so many rows.
fn pace(rows: usize, delta: usize, before: usize) -> usize {
    let by_files = rows.div_ceil(round(rows));
    let by_rows = if before > rows.max(REPEAT_ROWS) { delta.div_ceil(REPEAT_FACTOR - 1) } else { 0 };
    by_files.max(by_rows).max(1)
}

impl StateEntry {
    pub(crate) fn new(files: StateFiles) -> Self {
        let written = Written { files, snapshot: None, writing: Writing::default() };
        let keep = StateKeep { written: Arc::new(Mutex::new(written)), snapshots: Arc::default() };
        Self { keep, rows: 0, deltas: 0, sweep: None, since: None, taking: Taking::default() }
    }

    /// Where it is kept.
    pub(super) fn keep(&self) -> StateKeep {
        self.keep.clone()
    }

    /// Sets the state back to a version; later ones are removed.
    pub(super) fn restore(&mut self, version: BatchId, operator: &dyn StateOperator) -> Result<()> {
        let Self { keep, rows, deltas, .. } = self;
        let mut written = keep.written();
        written.files.truncate_after(version)?;
        (*rows, *deltas, self.sweep, self.taking) = (0, 0, None, Taking::default());
        (written.snapshot, written.writing) = (None, Writing::default());
        keep.snapshots.store(false, Ordering::Release);
        if version.0 == 0 {
            self.since = None;
            return operator.restore(&[]);
        }
        let files = &mut written.files;
        self.since = files.since(version)?;
        operator.restore_from(&mut |each| {
            let mut whole = false;
            // A large state reads them more than once.
            (*rows, *deltas) = (0, 0);
            files.load_each(version, &mut |piece| {
                use tidemill_store::state::{Piece, StateKind};
                match &piece {
                    Piece::Version(_, kind) => {
                        whole = *kind == StateKind::Snapshot;
                        *deltas += usize::from(!whole);
                    }
                    Piece::Rows(batch) if !whole => *rows += batch.num_rows(),
                    Piece::Rows(_) | Piece::Reset | Piece::Again(_) => {}
                }
                each(piece)
            })
        })
    }

    /// Takes what a batch changed, and what is to be kept beside it.
    pub(super) fn gather(&mut self, batch: BatchId, operator: &dyn StateOperator) -> Result<KeptState> {
        let mut delta = operator.delta(batch)?;
        let count: usize = delta.iter().map(RecordBatch::num_rows).sum();
        let mut kept = KeptState {
            name: operator.name().to_string(),
            delta: Vec::new(),
            again: None,
            since: self.since,
            whole: None,
            given: None,
            ends_round: false,
        };
        if delta.is_empty() {
            return Ok(kept);
        }
        (self.rows, self.deltas) = (self.rows + count, self.deltas + 1);
        let all = operator.rows();
        if operator.sweeps() {
            let begin = self.sweep.is_none();
            if begin {
                (self.rows, self.deltas) = (count, 1);
            }
            let round = *self.sweep.get_or_insert(batch);
            let Swept { rows, whole } = operator.sweep(pace(all, count, self.rows), begin)?;
            match operator.marks() {
                Some(again) => kept.again = Some((round, again, rows)),
                None => delta.extend(rows),
            }
            if whole {
                self.since = self.sweep.take();
                (kept.since, kept.ends_round) = (self.since, true);
            }
        } else {
            let is_due = self.rows > (all * REPEAT_FACTOR).max(REPEAT_ROWS) || self.deltas >= round(all);
            let goes_on = self.taking.goes_on();
            let begins = is_due && !goes_on && !self.keep.snapshots.load(Ordering::Acquire);
            if begins {
                (self.rows, self.deltas) = (0, 0);
            }
            if goes_on || begins && operator.sets_aside() {
                kept.given = Some(self.taking.take(batch, pace(all, count, self.rows), operator)?);
            } else if begins {
                kept.whole = Some(operator.snapshot()?);
                self.keep.snapshots.store(true, Ordering::Release);
            }
        }
        kept.delta = delta;
        Ok(kept)
    }
}

impl StateKeep {
    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock()
    }

    /// Makes the version durable. May be repeated.
    pub(super) fn save(&self, version: BatchId, kept: &KeptState) -> Result<()> {
        let files = &mut self.written().files;
        match &kept.again {
            _ if kept.delta.is_empty() => Ok(()),
            Some((round, again, rows)) => {
                let again = KeptAgain { round: *round, again, rows };
                files.save_again(version, &kept.delta, &again, kept.since)
            }
            None => files.save_rolled(version, &kept.delta, kept.since),
        }
    }

    /// After the commit point: writes a piece of the snapshot that is under way,
    /// and removes the files of versions that nobody may go back to.
    pub(super) fn tidy(&self, version: BatchId, kept: &KeptState, oldest: BatchId, bytes: u64) -> Result<()> {
        let Written { files, snapshot, writing } = &mut *self.written();
        let mut ended = kept.ends_round;
        if let Some(given) = &kept.given {
            ended |= writing.write(files, given)?;
        }
        if let Some(rows) = &kept.whole {
            let size: usize = rows.iter().map(RecordBatch::get_array_memory_size).sum();
            let piece = (size as u64 / PIECES).max(PIECE_BYTES);
            *snapshot = Some((files.begin_snapshot(version, rows)?, piece));
        }
        if let Some((unfinished, piece)) = snapshot.take() {
            // One that the disk refuses is given up, and another one may begin.
            self.snapshots.store(false, Ordering::Release);
            *snapshot = files.go_on(unfinished, piece)?.map(|unfinished| (unfinished, piece));
            self.snapshots.store(snapshot.is_some(), Ordering::Release);
            ended |= snapshot.is_none();
        }
        if ended {
            let oldest = if files.bytes()? > bytes { files.oldest_within(bytes)?.max(oldest) } else { oldest };
            files.prune(oldest.min(version))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the batches change, a sweep ends within the files and the rows that it may take.
    #[test]
    fn a_round_is_bounded_in_files_and_rows() {
        for (state, delta) in
            [(1, 1), (7, 2), (1_000, 1_000), (100_000, 3), (1_000_000, 400_000), (10_000_000, 1_000), (50_000_000, 1)]
        {
            let (mut swept, mut files, mut rows) = (0, 0, 0);
            while swept < state {
                (files, rows) = (files + 1, rows + delta);
                swept += pace(state, delta, rows);
            }
            assert!(files <= ROUND_FILES_MOST, "{files} files of {state} rows, {delta} a batch");
            let most = state.max(REPEAT_ROWS) + (REPEAT_FACTOR - 1) * state + 2 * delta;
            assert!(rows <= most, "{rows} rows in deltas of {state}");
            assert!(pace(state, 1, 0) <= (state / ROUND_FILES_MOST).max(ROWS_A_DELTA) + 1, "a small batch of {state}");
        }
    }
}
