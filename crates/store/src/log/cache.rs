//! The newest rows of a partition, in memory, for readers near the end.
//!
//! Invariant: entries touch and end at the partition's end, as readers see it.
//! Bounded by bytes and by number; a full cache forgets its oldest rows, which
//! are on disk.

use super::rows::LogRows;
use std::collections::VecDeque;

/// Entries at most, so that one-row appends don't grow the bookkeeping.
const MAX_ENTRIES: usize = 4096;

#[derive(Debug)]
pub(super) struct Tail {
    rows: VecDeque<(LogRows, usize)>,
    bytes: usize,
    limit: usize,
}

impl Tail {
    pub(super) fn new(limit: usize) -> Self {
        Self { rows: VecDeque::new(), bytes: 0, limit }
    }

    /// Adds rows that follow the last ones; `bytes` is their size.
    pub(super) fn push(&mut self, rows: LogRows, bytes: usize) {
        if self.rows.back().is_some_and(|(last, _)| last.next() != rows.base) {
            self.clear();
        }
        self.bytes += bytes;
        self.rows.push_back((rows, bytes));
        while self.bytes > self.limit || self.rows.len() > MAX_ENTRIES {
            let Some((_, bytes)) = self.rows.pop_front() else { break };
            self.bytes -= bytes;
        }
    }

    /// The entry that holds `offset`.
    pub(super) fn get(&self, offset: u64) -> Option<LogRows> {
        let after = self.rows.partition_point(|(rows, _)| rows.base.0 <= offset);
        let (rows, _) = self.rows.get(after.checked_sub(1)?)?;
        (offset < rows.next().0).then(|| rows.clone())
    }

    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.bytes = 0;
    }
}
