//! Blocks of rows that have no place in memory, each under a number of its own.
//!
//! ```text
//! number, big-endian  ─►  one message of rows in Arrow's IPC form
//! ```
//!
//! Invariant: a block is as it was put, until it is removed; a view has those that were there when it was made.
//! Called by the engine's states whose rows are added up whole, block by block, and never looked up by key.

use super::{OverflowPart, OverflowView};
use crate::ipc::{RowEncoder, decode_rows};
use arrow_array::RecordBatch;
use arrow_buffer::{Buffer, MutableBuffer};
use arrow_schema::SchemaRef;
use parking_lot::Mutex;
use tidemill_core::{Error, Result};

/// A block has about so many bytes at most.
const BLOCK_BYTES: usize = 1 << 20;

/// The blocks of one state.
#[derive(Debug)]
pub struct OverflowBlocks {
    part: OverflowPart,
    schema: SchemaRef,
    writing: Mutex<Writing>,
}

#[derive(Debug)]
struct Writing {
    encoder: RowEncoder,
    next: u64,
}

/// What was put: the number of the block, and how many rows it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverflowBlock {
    number: u64,
    rows: usize,
}

impl OverflowBlock {
    /// How many rows it has.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

impl OverflowBlocks {
    /// No blocks yet, of rows of these columns.
    ///
    /// # Errors
    /// When a column can't be stored.
    pub fn new(part: OverflowPart, schema: SchemaRef) -> Result<Self> {
        let encoder = RowEncoder::new(&schema)?;
        Ok(Self { part, schema, writing: Mutex::new(Writing { encoder, next: 0 }) })
    }

    /// Puts rows, in blocks of a bounded size.
    ///
    /// # Errors
    /// When the rows are of other columns, or the disk refuses.
    pub fn put(&self, rows: &RecordBatch) -> Result<Vec<OverflowBlock>> {
        if rows.num_rows() == 0 {
            return Ok(Vec::new());
        }
        let size: usize = rows.columns().iter().map(|c| c.to_data().get_slice_memory_size().unwrap_or_default()).sum();
        let each = (rows.num_rows() * BLOCK_BYTES / size.max(1)).clamp(1, rows.num_rows());
        let mut blocks = Vec::with_capacity(rows.num_rows().div_ceil(each));
        for from in (0..rows.num_rows()).step_by(each) {
            let rows = rows.slice(from, each.min(rows.num_rows() - from));
            let mut writing = self.writing.lock();
            let message: Vec<u8> = writing.encoder.encode(&rows)?.iter().flat_map(|b| b.iter().copied()).collect();
            let number = writing.next;
            writing.next += 1;
            self.part.write(std::iter::once((&number.to_be_bytes()[..], &message[..])), std::iter::empty())?;
            blocks.push(OverflowBlock { number, rows: rows.num_rows() });
        }
        Ok(blocks)
    }

    /// The rows of a block.
    ///
    /// # Errors
    /// When it was removed, or the disk refuses.
    pub fn get(&self, block: OverflowBlock) -> Result<RecordBatch> {
        self.rows(self.part.get(&block.number.to_be_bytes())?.as_ref().map(AsRef::as_ref))
    }

    /// Removes blocks.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(&self, blocks: &[OverflowBlock]) -> Result<()> {
        let keys: Vec<[u8; 8]> = blocks.iter().map(|block| block.number.to_be_bytes()).collect();
        self.part.write(std::iter::empty(), keys.iter().map(|key| &key[..]))
    }

    /// The blocks as they are now, whatever is removed afterwards.
    pub fn view(&self) -> OverflowView {
        self.part.view()
    }

    /// The rows of a block that was there when the view was made.
    ///
    /// # Errors
    /// When it was not there, or the disk refuses.
    pub fn seen(&self, view: &OverflowView, block: OverflowBlock) -> Result<RecordBatch> {
        self.rows(view.get(&block.number.to_be_bytes())?.as_ref().map(AsRef::as_ref))
    }

    fn rows(&self, message: Option<&[u8]>) -> Result<RecordBatch> {
        let message = message.ok_or_else(|| Error::internal("a block of rows that has no place in memory is gone"))?;
        // Columns share the memory of the message, which begins where columns may.
        let mut aligned = MutableBuffer::new(message.len());
        aligned.extend_from_slice(message);
        decode_rows(&Buffer::from(aligned), &self.schema)
            .map_err(|e| Error::external("a block of rows that has no place in memory can't be read").because(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Overflow;
    use arrow_array::{ArrayRef, Int64Array, StringArray};
    use std::sync::Arc;

    #[test]
    fn blocks_come_back_in_pieces_and_a_view_has_those_that_were_removed() {
        let dir = tempfile::tempdir().unwrap();
        let part = Overflow::create(&dir.path().join("spill.tmp")).unwrap().part().unwrap();
        let texts: ArrayRef = Arc::new(StringArray::from_iter((0..5_000).map(|n| (n % 7 > 0).then(|| "x".repeat(n)))));
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..5_000));
        let rows = RecordBatch::try_from_iter([("text", texts), ("n", numbers)]).unwrap();
        let blocks = OverflowBlocks::new(part, rows.schema()).unwrap();
        // A part of larger columns takes what is its own.
        let first = blocks.put(&rows.slice(3, 4)).unwrap();
        let all = blocks.put(&rows).unwrap();
        assert!(blocks.put(&rows.slice(0, 0)).unwrap().is_empty());
        assert_eq!((first.len(), first[0].rows()), (1, 4));
        assert!((10..20).contains(&all.len()), "{} blocks of about a mebibyte", all.len());
        assert_eq!(blocks.get(first[0]).unwrap(), rows.slice(3, 4));
        let read = |block: &OverflowBlock| blocks.get(*block).unwrap();
        let back: Vec<RecordBatch> = all.iter().map(read).collect();
        assert_eq!(arrow_select::concat::concat_batches(&rows.schema(), &back).unwrap(), rows);
        let view = blocks.view();
        let later = blocks.put(&rows.slice(1, 1)).unwrap();
        blocks.remove(&first).unwrap();
        assert!(blocks.get(first[0]).unwrap_err().to_string().contains("is gone"));
        assert_eq!(blocks.seen(&view, first[0]).unwrap(), rows.slice(3, 4));
        assert!(blocks.seen(&view, later[0]).is_err(), "it came later");
    }
}
