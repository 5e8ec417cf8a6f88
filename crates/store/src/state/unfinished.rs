//! A snapshot that is written a piece at a time, while later versions are saved.
//!
//! ```text
//! 7.delta   8.delta   9.delta   10.delta
//!   └ 7.snap: piece ─ piece ─ piece ┘ synced, renamed
//! ```
//!
//! Its rows are those of its version, held by whoever began it, so nothing that
//! happens meanwhile is in it. Invariant: until it is finished it is a temporary
//! file, which nobody reads; a crash leaves the versions before it. The version
//! must have a delta, so that the chain of deltas does not need the snapshot.
//! Called by the engine after each commit.

use super::{StateFiles, StateKind, Writer};
use arrow_array::RecordBatch;
use std::collections::VecDeque;
use tidemill_core::{BatchId, Error, Result};

/// Rows are handed to the file in parts of about so many bytes.
const PART_BYTES: usize = 1 << 20;

/// A snapshot that is being written.
#[derive(Debug)]
pub struct Unfinished {
    version: BatchId,
    rows: VecDeque<RecordBatch>,
    writer: Writer,
}

impl Unfinished {
    /// The version whose rows it holds.
    pub fn version(&self) -> BatchId {
        self.version
    }

    /// Writes rows that whoever began it did not have at hand then, durably. [`StateFiles::go_on`] finishes it.
    ///
    /// # Errors
    /// When the columns don't fit or the disk refuses: then there is no such snapshot.
    pub fn add(&mut self, rows: &[RecordBatch]) -> Result<()> {
        for rows in rows.iter().filter(|rows| rows.num_rows() > 0) {
            self.writer.rows(rows)?;
        }
        self.writer.sync()
    }
}

impl StateFiles {
    /// Begins a snapshot of all rows of `version`, whose delta was saved.
    ///
    /// # Errors
    /// When there is no such delta, or the disk refuses.
    pub fn begin_snapshot(&self, version: BatchId, rows: &[RecordBatch]) -> Result<Unfinished> {
        if !self.files.contains(&(version.0, StateKind::Delta)) {
            return Err(Error::internal(format!("operator \"{}\": version {version} has no delta", self.name)));
        }
        let writer = self.create(version, StateKind::Snapshot, None, None)?;
        let rows = rows.iter().flat_map(|rows| {
            let a_row = rows.get_array_memory_size() / rows.num_rows().max(1);
            let part = (PART_BYTES / a_row.max(1)).max(1);
            (0..rows.num_rows()).step_by(part).map(move |at| rows.slice(at, part.min(rows.num_rows() - at)))
        });
        Ok(Unfinished { version, rows: rows.collect(), writer })
    }

    /// Writes about `bytes` more of a snapshot, durably; gives it back until it is finished.
    ///
    /// # Errors
    /// When the columns don't fit or the disk refuses: then there is no such snapshot.
    pub fn go_on(&mut self, mut snapshot: Unfinished, bytes: u64) -> Result<Option<Unfinished>> {
        let until = snapshot.writer.len()?.saturating_add(bytes);
        while let Some(rows) = snapshot.rows.pop_front() {
            snapshot.writer.rows(&rows)?;
            if snapshot.writer.len()? >= until && !snapshot.rows.is_empty() {
                snapshot.writer.sync()?;
                return Ok(Some(snapshot));
            }
        }
        let Unfinished { version, writer, .. } = snapshot;
        self.finish(version, StateKind::Snapshot, writer)?;
        Ok(None)
    }
}
