//! Rows in blocks as they came, found by the number of their block, however blocks are put together.
//!
//! ```text
//! came:    0   1   2   3   4      ─► where each lies now:  (0, 0) (0, 7) (1, 0) (2, 0) (2, 1)
//! blocks: [0   1] [2] [3   4]
//! ```
//!
//! Invariant: a row that is named by the number that its block was given and its place
//! there is found until all is built anew. Blocks are as many as a logarithm of their
//! rows at most, and putting them together costs as much a row. Called by [`super::keyed`].

use arrow_array::RecordBatch;
use arrow_select::{concat::concat_batches, interleave::interleave_record_batch};
use datafusion::common::Result as DfResult;

/// Blocks that are not put together.
const BLOCKS: usize = 16;

#[derive(Debug)]
struct Block {
    rows: RecordBatch,
    /// Number of the first that lies in it.
    first: usize,
}

/// Blocks of rows with one schema.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    blocks: Vec<Block>,
    /// Of each block as it came, the block that has its rows, and from which row on.
    places: Vec<(usize, usize)>,
    rows: usize,
}

impl Blocks {
    /// Takes a block and gives its number.
    pub(super) fn push(&mut self, rows: RecordBatch) -> usize {
        let number = self.places.len();
        self.rows += rows.num_rows();
        self.places.push((self.blocks.len(), 0));
        self.blocks.push(Block { rows, first: number });
        number
    }

    /// Rows of all blocks.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Blocks that came.
    pub(super) fn came(&self) -> usize {
        self.places.len()
    }

    /// The rows with these numbers of blocks and places there; `None` for none.
    pub(super) fn gather(&self, rows: &[(usize, usize)]) -> DfResult<Option<RecordBatch>> {
        if rows.is_empty() {
            return Ok(None);
        }
        let now = |(number, row): &(usize, usize)| {
            let (block, from) = self.places[*number];
            (block, from + row)
        };
        let rows: Vec<(usize, usize)> = rows.iter().map(now).collect();
        Ok(Some(interleave_record_batch(&self.blocks.iter().map(|block| &block.rows).collect::<Vec<_>>(), &rows)?))
    }

    /// Puts small blocks together when there are many.
    pub(super) fn tidy(&mut self) -> DfResult<()> {
        while self.blocks.len() > BLOCKS {
            // The sizes double from the youngest to the oldest, as in a log-structured tree.
            let size = |at: usize| self.blocks[at].rows.num_rows();
            let pair = (1..self.blocks.len()).rev().find(|at| size(at - 1) <= 2 * size(*at));
            self.merge(pair.unwrap_or(self.blocks.len() - 1) - 1)?;
        }
        Ok(())
    }

    /// Puts the block at `at` and the next one together.
    fn merge(&mut self, at: usize) -> DfResult<()> {
        let [one, two] = [&self.blocks[at], &self.blocks[at + 1]];
        let (before, moved) = (one.rows.num_rows(), two.first);
        let end = self.blocks.get(at + 2).map_or(self.places.len(), |next| next.first);
        let merged = Block { rows: concat_batches(&one.rows.schema(), [&one.rows, &two.rows])?, first: one.first };
        self.places[moved..end].iter_mut().for_each(|(_, from)| *from += before);
        self.places[moved..].iter_mut().for_each(|(block, _)| *block -= 1);
        self.blocks.splice(at..at + 2, [merged]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, Int64Array, cast::AsArray, types::Int64Type};
    use std::sync::Arc;

    proptest::proptest! {
        #[test]
        fn a_row_is_found_by_the_block_that_it_came_in(sizes in proptest::collection::vec(0..40_usize, 1..120)) {
            let (mut blocks, mut all, mut next) = (Blocks::default(), Vec::new(), 0_i64);
            for size in sizes {
                let values: Vec<i64> = (next..).take(size).collect();
                next += i64::try_from(size).unwrap();
                let column = Arc::new(Int64Array::from(values.clone())) as ArrayRef;
                let number = blocks.push(RecordBatch::try_from_iter([("n", column)]).unwrap());
                all.extend(values.into_iter().enumerate().map(|(row, value)| ((number, row), value)));
                blocks.tidy().unwrap();
                proptest::prop_assert!(blocks.blocks.len() <= BLOCKS);
                proptest::prop_assert_eq!(blocks.rows(), all.len());
                let (rows, values): (Vec<_>, Vec<i64>) = all.iter().rev().step_by(3).copied().unzip();
                let got = blocks.gather(&rows).unwrap();
                let got = got.map(|rows| rows.column(0).as_primitive::<Int64Type>().values().to_vec());
                proptest::prop_assert_eq!(got.unwrap_or_default(), values);
            }
        }
    }
}
