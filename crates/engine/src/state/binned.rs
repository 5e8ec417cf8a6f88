//! A batch's rows in the order of the tables that hold their keys.
//!
//! ```text
//! batches of rows ─ hash each key ─ count by bin ─ place each row ─► one batch, its hashes, where each bin ends
//! ```
//!
//! Rows of a bin keep their order. What it takes to sort them is kept for the
//! next batch: memory that is given back has to be cleared by the kernel before
//! it is had again, which costs as much as the sorting. Used by [`super::keyed`].

use super::bin::{BINS, bin_of, counts_to_starts, too_many_rows};
use crate::{
    plan::external,
    record::{Key, Record, hash_key, read_batch, schema_of},
};
use arrow_array::{RecordBatch, UInt32Array};
use arrow_select::{concat::concat_batches, take::take_record_batch};
use datafusion::common::Result as DfResult;

/// Rows for which room is kept.
const KEPT: usize = 1 << 20;

/// The order of the last rows.
#[derive(Debug, Default)]
pub(super) struct Binned {
    /// The hash of each row's key, as the rows came.
    came: Vec<u64>,
    /// The rows in order, counted over all batches.
    order: Vec<u32>,
    /// The hash of each row's key, in order.
    pub(super) hashes: Vec<u64>,
    /// Where each bin ends.
    pub(super) ends: Vec<u32>,
}

impl Binned {
    /// Sorts pairs of keys and values by the bins of their keys.
    pub(super) fn sort<K: Key, V: Record>(&mut self, rows: &[RecordBatch]) -> DfResult<RecordBatch> {
        let count = rows.iter().map(RecordBatch::num_rows).sum::<usize>();
        u32::try_from(count).map_err(|_| too_many_rows())?;
        let Self { came, order, hashes, ends } = self;
        came.clear();
        ends.clear();
        ends.resize(BINS, 0);
        for rows in rows {
            let column = read_batch::<(K, V)>(rows).map_err(external)?;
            came.extend((0..rows.num_rows()).map(|row| hash_key::<K>(<(K, V)>::get(&column, row).0)));
        }
        came.iter().for_each(|hash| ends[bin_of(*hash)] += 1);
        counts_to_starts(ends);
        order.resize(count, 0);
        hashes.resize(count, 0);
        for (row, hash) in (0_u32..).zip(&*came) {
            let end = &mut ends[bin_of(*hash)];
            (order[*end as usize], hashes[*end as usize]) = (row, *hash);
            *end += 1;
        }
        let whole = match rows {
            [] => return Ok(RecordBatch::new_empty(schema_of::<(K, V)>())),
            [rows] => rows.clone(),
            rows => concat_batches(rows[0].schema_ref(), rows)?,
        };
        // Lent to an array and taken back, so that it is not cleared for each batch.
        let indices = UInt32Array::new(std::mem::take(order).into(), None);
        let sorted = take_record_batch(&whole, &indices)?;
        *order = indices.into_parts().1.into_inner().into_vec().unwrap_or_default();
        Ok(sorted)
    }

    /// Gives back what an unusually large batch has taken.
    pub(super) fn shrink(&mut self) {
        if self.came.capacity() > KEPT {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{batch_of, records_of};

    #[test]
    fn rows_lie_bin_after_bin_as_they_came() {
        let rows: Vec<(i64, i64)> = (0..1_000).map(|row| (row * 7 % 130, row)).collect();
        let batches: Vec<RecordBatch> =
            [&rows[..1], &[], &rows[1..600], &rows[600..]].map(|part| batch_of(part.to_vec()).unwrap()).to_vec();
        let mut binned = Binned::default();
        // The second time in what the first has left.
        for _ in 0..2 {
            let sorted: Vec<(i64, i64)> = records_of(&binned.sort::<i64, i64>(&batches).unwrap()).unwrap();
            let mut expected = rows.clone();
            expected.sort_by_key(|(key, _)| bin_of(hash_key::<i64>(*key)));
            assert_eq!(sorted, expected);
            let hashes: Vec<u64> = sorted.iter().map(|(key, _)| hash_key::<i64>(*key)).collect();
            assert_eq!(binned.hashes, hashes);
            let ends: Vec<u32> = (0..BINS)
                .map(|bin| u32::try_from(hashes.iter().filter(|hash| bin_of(**hash) <= bin).count()).unwrap())
                .collect();
            assert_eq!(binned.ends, ends);
            assert_eq!(binned.sort::<i64, i64>(&[]).unwrap().num_rows(), 0);
            assert_eq!(binned.ends, [0; BINS]);
        }
    }
}
