//! Rows by number: each number has one row, and the last that was put holds.
//!
//! Rows lie in blocks as they were put; what was put again leaves a dead row behind.
//! A block is merged with the one before it when that is not much larger, so there are few, and
//! a row is copied a few times in its life. Invariant: a row lives when `places` of its owner says
//! so. Called by [`super::held`] and [`super::tops`].

use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::SchemaRef;
use arrow_select::{concat::concat_batches, filter::filter_record_batch, interleave::interleave_record_batch};
use datafusion::common::{DataFusionError, Result as DfResult};

/// Dead rows may be so many, and as many as live ones, before they are let go.
const DEAD: usize = 16 * 1024;
/// The place of a number without a row.
const NONE: (u32, u32) = (u32::MAX, u32::MAX);

/// Rows that came together.
struct Block {
    rows: RecordBatch,
    owners: Vec<u32>,
    bytes: usize,
}

impl Block {
    fn new(rows: RecordBatch, owners: Vec<u32>) -> Self {
        let bytes = rows.get_array_memory_size() + owners.capacity() * size_of::<u32>();
        Self { rows, owners, bytes }
    }
}

/// The rows.
pub(super) struct Table {
    schema: SchemaRef,
    blocks: Vec<Block>,
    /// Block and row, by number.
    places: Vec<(u32, u32)>,
    rows: usize,
    alive: usize,
}

impl Table {
    /// Without rows.
    pub(super) fn new(schema: SchemaRef) -> Self {
        Self { schema, blocks: Vec::new(), places: Vec::new(), rows: 0, alive: 0 }
    }

    /// The columns.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Whether a number has a row.
    pub(super) fn has(&self, number: u32) -> bool {
        self.places.get(number as usize).is_some_and(|place| *place != NONE)
    }

    /// Puts the rows of these numbers, each of which is there once.
    pub(super) fn put(&mut self, owners: Vec<u32>, rows: RecordBatch) -> DfResult<()> {
        if owners.is_empty() {
            return Ok(());
        }
        self.alive += owners.iter().filter(|owner| !self.has(**owner)).count();
        self.rows += owners.len();
        self.blocks.push(Block::new(rows, owners));
        self.place(self.blocks.len() - 1)?;
        while let [.., before, last] = self.blocks.as_slice()
            && before.owners.len() <= 2 * last.owners.len()
        {
            self.merge(self.blocks.len() - 2)?;
        }
        if self.rows > 2 * self.alive + DEAD {
            self.merge(0)?;
        }
        Ok(())
    }

    /// Lets go of the row of a number, if it has one.
    pub(super) fn remove(&mut self, number: u32) {
        if self.has(number) {
            self.places[number as usize] = NONE;
            self.alive -= 1;
        }
    }

    /// How many rows there are.
    pub(super) fn len(&self) -> usize {
        self.alive
    }

    /// Bytes that they take, those that are dead and not let go yet among them.
    pub(super) fn bytes(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(|block| block.bytes).sum();
        blocks + self.places.capacity() * size_of::<(u32, u32)>()
    }

    /// Only the rows of these numbers, which all have one, under the numbers from 0 on.
    pub(super) fn only(&self, numbers: &[u32]) -> DfResult<Self> {
        let mut table = Self::new(SchemaRef::clone(&self.schema));
        table.put((0_u32..).take(numbers.len()).collect(), self.of(numbers)?)?;
        Ok(table)
    }

    /// Notes where the rows of a block are.
    fn place(&mut self, block: usize) -> DfResult<()> {
        let at = u32::try_from(block).map_err(|e| DataFusionError::External(Box::new(e)))?;
        for (row, owner) in (0_u32..).zip(&self.blocks[block].owners) {
            let owner = *owner as usize;
            if self.places.len() <= owner {
                self.places.resize(owner + 1, NONE);
            }
            self.places[owner] = (at, row);
        }
        Ok(())
    }

    fn living(&self, block: usize) -> (Vec<u32>, BooleanArray) {
        let rows = (0_u32..).zip(&self.blocks[block].owners);
        let lives: Vec<bool> = rows
            .map(|(row, owner)| {
                let (at, place) = self.places[*owner as usize];
                at as usize == block && place == row
            })
            .collect();
        let owners = self.blocks[block].owners.iter().zip(&lives).filter(|(_, lives)| **lives).map(|(owner, _)| *owner);
        (owners.collect(), BooleanArray::from(lives))
    }

    /// Makes the blocks from `first` on one, of their living rows.
    fn merge(&mut self, first: usize) -> DfResult<()> {
        let (mut owners, mut parts) = (Vec::new(), Vec::new());
        for block in first..self.blocks.len() {
            let (living, mask) = self.living(block);
            parts.push(filter_record_batch(&self.blocks[block].rows, &mask)?);
            owners.extend(living);
        }
        let rows = concat_batches(&self.schema, &parts)?;
        let before: usize = self.blocks.drain(first..).map(|block| block.owners.len()).sum();
        self.rows = self.rows - before + owners.len();
        self.blocks.push(Block::new(rows, owners));
        self.place(first)
    }

    /// The rows of these numbers, which all have one, in this order.
    pub(super) fn of(&self, numbers: &[u32]) -> DfResult<RecordBatch> {
        if numbers.is_empty() {
            return Ok(RecordBatch::new_empty(SchemaRef::clone(&self.schema)));
        }
        let blocks: Vec<&RecordBatch> = self.blocks.iter().map(|block| &block.rows).collect();
        let place = |number: &u32| {
            let (block, row) = self.places[*number as usize];
            (block as usize, row as usize)
        };
        let places: Vec<(usize, usize)> = numbers.iter().map(place).collect();
        Ok(interleave_record_batch(&blocks, &places)?)
    }

    /// All rows, those that were put last at the end.
    pub(super) fn all(&self) -> DfResult<Vec<RecordBatch>> {
        Ok(self.all_owned()?.into_iter().map(|(_, rows)| rows).collect())
    }

    /// As [`Self::all`], with their numbers.
    pub(super) fn all_owned(&self) -> DfResult<Vec<(Vec<u32>, RecordBatch)>> {
        let living = |block: usize| {
            let (owners, mask) = self.living(block);
            Ok((owners, filter_record_batch(&self.blocks[block].rows, &mask)?))
        };
        (0..self.blocks.len()).map(living).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Int64Array, cast::AsArray, types::Int64Type};
    use proptest::prelude::*;
    use std::{collections::BTreeMap, sync::Arc};

    proptest! {
        #[test]
        fn the_last_row_of_a_number_holds(puts in prop::collection::vec(prop::collection::btree_map(0..50_u32, any::<i64>(), 0..30), 0..40)) {
            let rows = |of: &BTreeMap<u32, i64>| {
                RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from_iter_values(of.values().copied())) as _)]).unwrap()
            };
            let values = |rows: &RecordBatch| rows.column(0).as_primitive::<Int64Type>().values().to_vec();
            let mut model = BTreeMap::new();
            let mut table = Table::new(rows(&BTreeMap::from([(0, 0)])).schema());
            for (step, put) in puts.iter().enumerate() {
                table.put(put.keys().copied().collect(), rows(put)).unwrap();
                model.extend(put.clone());
                // Some go, and may come again.
                for number in (0..50).filter(|number| (*number as usize + step).is_multiple_of(7)) {
                    table.remove(number);
                    model.remove(&number);
                }
                prop_assert_eq!(table.len(), model.len());
                let numbers: Vec<u32> = model.keys().rev().copied().collect();
                prop_assert_eq!(values(&table.of(&numbers).unwrap()), model.values().rev().copied().collect::<Vec<_>>());
                let mut all: Vec<i64> = table.all().unwrap().iter().flat_map(values).collect();
                let mut wanted: Vec<i64> = model.values().copied().collect();
                all.sort_unstable();
                wanted.sort_unstable();
                prop_assert_eq!(all, wanted);
                prop_assert!(!table.has(50) && table.blocks.len() <= 8, "{} blocks", table.blocks.len());
                let only = table.only(&numbers).unwrap();
                prop_assert_eq!(values(&only.of(&(0_u32..).take(only.len()).collect::<Vec<_>>()).unwrap()), model.values().rev().copied().collect::<Vec<_>>());
                prop_assert!(only.rows == only.alive && only.bytes() >= 16 * only.len());
            }
        }
    }
}
