//! Partial rows of one pane: blocks as they came, merged now and then.
//!
//! Invariant: the rows in memory and those on disk together are the pane's, each partial row once;
//! several rows may be of one group. Called by [`super`] and [`super::rest`].

use arrow_array::{Array as _, ArrayRef, RecordBatch, cast::AsArray};
use tidemill_store::OverflowBlock;

/// A pane is not merged below this many rows.
pub(super) const MERGE_ROWS: usize = 16 * 1024;
/// Small blocks appended to a pane before it is merged however few rows they have.
pub(super) const MERGE_BATCHES: usize = 64;
/// Blocks of fewer rows are small.
const SMALL: usize = 4096;

/// Rows of some groups of a pane, on disk.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    pub(super) blocks: Vec<OverflowBlock>,
    pub(super) rows: usize,
    /// Rows after the last merge, and blocks appended since.
    pub(super) merged: usize,
    pub(super) appended: usize,
}

impl Bucket {
    pub(super) fn push(&mut self, blocks: Vec<OverflowBlock>) {
        let rows: usize = blocks.iter().map(|block| block.rows()).sum();
        if self.blocks.is_empty() {
            // Merged before they went.
            self.merged = rows;
        }
        self.rows += rows;
        self.appended += blocks.len();
        self.blocks.extend(blocks);
    }

    pub(super) fn wants_merge(&self) -> bool {
        self.rows > self.merged * 2 + MERGE_ROWS || self.appended > MERGE_BATCHES
    }
}

/// Partial rows of one pane.
#[derive(Debug, Default)]
pub(super) struct Pane {
    pub(super) rows: Vec<RecordBatch>,
    pub(super) count: usize,
    /// Rows, and values in lists of them.
    weight: usize,
    /// The weight after the last merge.
    merged: usize,
    /// Small blocks appended since.
    appended: usize,
    /// What its rows take.
    pub(super) bytes: usize,
    /// What of it is on disk, by bucket; none when nothing is.
    pub(super) stored: Vec<Bucket>,
}

impl Pane {
    pub(super) fn push(&mut self, rows: RecordBatch) {
        let weight = weight(&rows);
        if self.count == 0 {
            // Of one aggregate: there is nothing to merge yet.
            self.merged = weight;
        }
        self.count += rows.num_rows();
        self.weight += weight;
        self.appended += usize::from(rows.num_rows() < SMALL);
        self.bytes += bytes(&rows);
        self.rows.push(rows);
    }

    /// What it has in memory was merged to these.
    pub(super) fn replace(&mut self, rows: Vec<RecordBatch>) {
        self.count = rows.iter().map(RecordBatch::num_rows).sum();
        self.weight = rows.iter().map(weight).sum();
        self.bytes = rows.iter().map(bytes).sum();
        (self.merged, self.appended) = (self.weight, 0);
        self.rows = rows;
    }

    /// All blocks that it has on disk.
    pub(super) fn blocks(&self) -> impl Iterator<Item = OverflowBlock> + '_ {
        self.stored.iter().flat_map(|bucket| bucket.blocks.iter().copied())
    }

    pub(super) fn wants_merge(&self) -> bool {
        self.weight > self.merged * 2 + MERGE_ROWS || self.appended > MERGE_BATCHES
    }
}

/// What rows take, of arrays that may be parts of larger ones.
pub(super) fn bytes(rows: &RecordBatch) -> usize {
    let of = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or_default();
    rows.columns().iter().map(of).sum()
}

/// Rows, and values in their lists.
pub(super) fn weight(rows: &RecordBatch) -> usize {
    let lists = rows.columns().iter().filter_map(|column| column.as_list_opt::<i32>());
    let values = lists.map(|list| list.value_offsets().last().zip(list.value_offsets().first()));
    let values = values.flatten().map(|(last, first)| usize::try_from(last - first).unwrap_or_default());
    rows.num_rows() + values.sum::<usize>()
}
