//! Keys of a part that are at rest, on disk.
//!
//! ```text
//! batch ─► keys that are in no table ─ sorted, looked up ─► slots, each with an older copy on disk
//! after it, over the bound: bin after bin, what was not touched since the last look ─► disk
//!
//! bin (1) │ hash (8, the most significant first) │ key      ─►   alarm (8) │ the other columns
//! ```
//!
//! Invariants: a key in a table is as the table has it, whatever a copy on disk
//! says; any other is as the disk has it. A key that is taken into a table stays
//! on disk, so a sweep that reads the table of a bin and then its rows on disk
//! misses none. Keys and columns are in Arrow's row form, which sorts. While
//! nothing is on disk, none of this costs a batch more than a look at the sizes.
//! Called by [`super::keyed`].

use super::{
    bin::{BINS, Bin, COPY, NONE, Slot, WARM, bin_of, spread},
    disk_rows::{DiskRows, PAGE, Stored, broken},
    keyed::{Moment, Part, stored},
    life::Life,
};
use crate::record::{Key, Record, finish_batch, hash_key, read_batch};
use arrow_array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow_schema::DataType;
use std::{collections::BTreeSet, ops::Bound, sync::Arc};
use tidemill_core::Result;
use tidemill_store::OverflowPart;

/// Bytes of a key on disk before the key itself.
const PREFIX: usize = 9;
/// Bytes of the other columns before them.
const HINT: usize = 8;
/// Bytes of an allocation beside what it holds.
const ALLOCATION: usize = 32;
/// Keys that are looked at to learn what one takes.
const SAMPLE: usize = 64;

/// The rows of a part that are on disk.
pub(super) struct Cold {
    rows: DiskRows,
    /// Keys that are in no table.
    pub(super) alone: usize,
}

fn prefix(hash: u64) -> [u8; PREFIX] {
    let mut prefix = [0; PREFIX];
    prefix[0] = u8::try_from(bin_of(hash)).unwrap_or(u8::MAX);
    prefix[1..].copy_from_slice(&hash.to_be_bytes());
    prefix
}

fn hash_of(stored: &[u8]) -> u64 {
    stored.get(1..PREFIX).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// Whether a value of the type takes no memory beside its own.
pub(super) fn is_flat(kind: &DataType) -> bool {
    match kind {
        DataType::Struct(fields) => fields.iter().all(|field| is_flat(field.data_type())),
        other => other.is_primitive() || matches!(other, DataType::Boolean | DataType::Null),
    }
}

impl Cold {
    fn new(rows: OverflowPart, columns: &[DataType]) -> Result<Self> {
        Ok(Self { rows: DiskRows::new(rows, columns, 1)?, alone: 0 })
    }

    /// Keys as they are on disk.
    fn keys(&self, column: &ArrayRef, hashes: impl Iterator<Item = u64>) -> Result<Vec<Vec<u8>>> {
        self.rows.keys(std::slice::from_ref(column), hashes.map(prefix))
    }

    /// Rows as they are on disk, sorted.
    fn encode(&self, rows: &RecordBatch, hashes: &[u64], hints: &[i64]) -> Result<Vec<Stored>> {
        let keys = self.keys(rows.column(0), hashes.iter().copied())?;
        let values = self.rows.rest(&rows.columns()[1..], hints.iter().map(|hint| hint.to_le_bytes()))?;
        let mut out: Vec<Stored> = keys.into_iter().zip(values).collect();
        out.sort_unstable();
        Ok(out)
    }

    /// The columns of rows from disk, and their alarms.
    fn decode(&self, found: &[Stored]) -> Result<(Vec<ArrayRef>, Vec<i64>)> {
        let mut columns = self.rows.keys_of(found, PREFIX)?;
        columns.extend(self.rows.rest_of(found, HINT)?);
        let hint = |row: &Vec<u8>| row.get(..HINT).and_then(|b| b.try_into().ok()).map_or(0, i64::from_le_bytes);
        Ok((columns, found.iter().map(|(_, row)| hint(row)).collect()))
    }

    fn write(&self, rows: &[Stored]) -> Result<()> {
        self.rows.write(rows)
    }

    /// Up to `limit` rows after a key, of those that begin with `within`.
    fn page(&self, after: Bound<&[u8]>, within: &[u8], limit: usize) -> Result<Vec<Stored>> {
        self.rows.page(after, within, limit)
    }
}

impl<K: Key, S: Record, L: Life<K, S>> Part<K, S, L> {
    /// Bytes of the part in memory.
    pub(super) fn bytes(&self) -> u64 {
        let of = |bin: &Bin<K, S, L>| bin.table.allocation_size() + bin.alarms.bytes() + bin.table.len() * self.heap;
        self.bins.iter().map(of).sum::<usize>() as u64
    }

    /// Looks at some keys to learn what one takes beside its place in a table.
    pub(super) fn weigh(&mut self) -> Result<()> {
        let schema = stored::<K, S, L>();
        if schema.fields().iter().all(|field| is_flat(field.data_type())) {
            return Ok(());
        }
        self.weighed = (self.weighed + 1) % BINS;
        let mut builder = L::Row::builder(SAMPLE);
        let mut count = 0;
        for slot in self.bins[self.weighed].table.iter().take(SAMPLE) {
            slot.append(&mut builder);
            count += 1;
        }
        if count == 0 {
            return Ok(());
        }
        let rows = finish_batch::<L::Row>(&mut builder, &schema)?;
        let bytes = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or_default();
        let now = rows.columns().iter().map(bytes).sum::<usize>() / count + ALLOCATION;
        self.heap = if self.heap == 0 { now } else { (self.heap * 7 + now).div_ceil(8) };
        Ok(())
    }

    /// Notes what the part takes; gives what it must shrink to, when it must.
    pub(super) fn note(&mut self) -> Option<u64> {
        let spilled = self.cold.as_ref().map_or(0, |cold| cold.alone as u64);
        let bytes = self.bytes();
        self.share.as_mut().and_then(|share| share.note(bytes, spilled))
    }

    /// Ends a batch: removes what is gone from disk, and shrinks the part if it must.
    pub(super) fn trim(&mut self) -> Result<()> {
        if self.share.is_none() {
            return Ok(());
        }
        self.forget()?;
        self.weigh()?;
        let Some(target) = self.note() else { return Ok(()) };
        // Twice around: what was touched goes when nothing else is left.
        for _ in 0..2 * BINS {
            self.hand = (self.hand + 1) % BINS;
            self.evict(self.hand, false)?;
            if self.bytes() <= target {
                break;
            }
        }
        self.note();
        Ok(())
    }

    /// Writes keys of a bin to disk: all, or those that were not touched since the last time.
    pub(super) fn evict(&mut self, bin: usize, all: bool) -> Result<()> {
        let schema = stored::<K, S, L>();
        let is_swept = bin == self.sweep && self.sweep_cold.is_none();
        if self.cold.is_none()
            && let Some(share) = &self.share
        {
            let kinds: Vec<DataType> = schema.fields().iter().map(|field| field.data_type().clone()).collect();
            self.cold = Some(Cold::new(share.memory.overflow()?, &kinds)?);
        }
        let Some(cold) = &mut self.cold else { return Ok(()) };
        let bin = &mut self.bins[bin];
        let leaves = |slot: &mut Slot<K, S, L>| {
            let warm = slot.mark & WARM != 0;
            slot.mark &= !WARM;
            all || !warm
        };
        let mut rows = L::Row::builder(PAGE);
        let (mut hashes, mut hints) = (Vec::with_capacity(PAGE), Vec::with_capacity(PAGE));
        let mut leaving = bin.table.extract_if(leaves);
        loop {
            let slot = leaving.next();
            if let Some(slot) = &slot {
                slot.append(&mut rows);
                hashes.push(hash_key::<K>(slot.key.borrow()));
                hints.push(slot.life.hint());
            }
            if hashes.len() == PAGE || slot.is_none() && !hashes.is_empty() {
                let rows = finish_batch::<L::Row>(&mut rows, &schema)?;
                cold.write(&cold.encode(&rows, &hashes, &hints)?)?;
                cold.alone += hashes.len();
                hashes.clear();
                hints.clear();
            }
            if slot.is_none() {
                break;
            }
        }
        drop(leaving);
        // What leaves is given from disk. But a table that shrinks moves its buckets, and a sweep of them begins again:
        // where one has come into this table it goes on first, or it would never end.
        if bin.table.is_empty() || !is_swept || bin.swept == 0 {
            bin.table.shrink_to(0, Slot::spread);
            bin.swept = 0;
        }
        Ok(())
    }

    /// Takes the keys of `rows` into memory that are on disk. `hashes` are theirs, and `ends` where each bin ends.
    pub(super) fn fetch(&mut self, column: &ArrayRef, keys: &K::Column, hashes: &[u64], ends: &[u32]) -> Result<()> {
        let Some(cold) = self.cold.as_ref().filter(|cold| cold.alone > 0) else { return Ok(()) };
        let (mut missing, mut start) = (Vec::new(), 0);
        for (bin, end) in self.bins.iter().zip(ends) {
            for row in start..*end {
                let (hash, key) = (hashes[row as usize], K::get(keys, row as usize));
                if bin.table.find(spread(hash), |slot| K::same(slot.key.borrow(), key)).is_none() {
                    missing.push(row);
                }
            }
            start = *end;
        }
        if missing.is_empty() {
            return Ok(());
        }
        let of: Vec<u64> = missing.iter().map(|row| hashes[*row as usize]).collect();
        let column = arrow_select::take::take(column, &UInt32Array::from(missing), None).map_err(broken)?;
        let mut keys = cold.keys(&column, of.into_iter())?;
        keys.sort_unstable();
        keys.dedup();
        let mut found = Vec::new();
        for key in keys {
            found.extend(cold.rows.get(&key)?.map(|row| (key, row)));
        }
        self.warm(&found)
    }

    /// Takes the keys into memory whose alarms are due.
    pub(super) fn fetch_due(&mut self, moment: &Moment) -> Result<()> {
        let Some(cold) = self.cold.as_ref().filter(|cold| cold.alone > 0) else { return Ok(()) };
        let due = self.bins.iter().flat_map(|bin| bin.alarms.hashes_due(moment.time.0, moment.watermark.0));
        let mut found = Vec::new();
        for hash in due.collect::<BTreeSet<u64>>() {
            let prefix = prefix(hash);
            found.extend(cold.page(Bound::Included(&prefix), &prefix, usize::MAX)?);
        }
        self.warm(&found)
    }

    /// Takes rows from disk into the tables, unless they are there.
    fn warm(&mut self, found: &[Stored]) -> Result<()> {
        let Some(cold) = &mut self.cold else { return Ok(()) };
        for found in found.chunks(PAGE) {
            let (rows, hints) = cold.decode(found)?;
            let rows = RecordBatch::try_new(stored::<K, S, L>(), rows).map_err(broken)?;
            let column = read_batch::<L::Row>(&rows)?;
            for (row, hint) in hints.into_iter().enumerate() {
                let (key, state, mut life) = L::read(L::Row::get(&column, row));
                let hash = hash_of(&found[row].0);
                let bin = &mut self.bins[bin_of(hash)];
                if bin.table.find(spread(hash), |slot| K::same(slot.key.borrow(), key)).is_some() {
                    continue;
                }
                life.take_hint(hint);
                if bin.table.len() == bin.table.capacity() {
                    bin.grow();
                }
                let slot = Slot { key: K::own(key), state: state.map(S::own), life, group: NONE, mark: COPY };
                bin.table.insert_unique(spread(hash), slot, Slot::spread);
                cold.alone -= 1;
            }
        }
        Ok(())
    }

    /// Removes the copies of keys that are gone.
    fn forget(&mut self) -> Result<()> {
        let Some(cold) = &self.cold else { return Ok(()) };
        let mut builder = K::builder(0);
        let mut hashes = Vec::new();
        for key in self.bins.iter_mut().flat_map(|bin| bin.gone.drain(..)) {
            hashes.push(hash_key::<K>(key.borrow()));
            K::append(&mut builder, key.borrow());
        }
        if hashes.is_empty() {
            return Ok(());
        }
        let mut keys = cold.keys(&K::finish(&mut builder), hashes.into_iter())?;
        keys.sort_unstable();
        cold.rows.remove(keys.iter().map(|key| &key[..]))
    }

    /// A page of rows on disk after a key, as they count now: those of `within` with the rows of keys that are in a
    /// table as the table has them, or left out. Gives the last key that was read; `None` at the end.
    pub(super) fn cold_page(
        &self,
        after: Option<&[u8]>,
        within: &[u8],
        limit: usize,
        with_tables: bool,
    ) -> Result<(Vec<RecordBatch>, Option<Vec<u8>>)> {
        let Some(cold) = &self.cold else { return Ok((Vec::new(), None)) };
        let from = after.map_or(Bound::Included(within), Bound::Excluded);
        let found = cold.page(from, within, limit.min(PAGE))?;
        let Some((last, _)) = found.last().cloned() else { return Ok((Vec::new(), None)) };
        let schema = stored::<K, S, L>();
        let rows = RecordBatch::try_new(Arc::clone(&schema), cold.decode(&found)?.0).map_err(broken)?;
        let column = read_batch::<L::Row>(&rows)?;
        let mut alone = Vec::with_capacity(found.len());
        let mut builder = L::Row::builder(0);
        let mut in_tables = false;
        for (row, (stored, _)) in (0_u32..).zip(&found) {
            let (key, ..) = L::read(L::Row::get(&column, row as usize));
            let hash = hash_of(stored);
            match self.bins[bin_of(hash)].table.find(spread(hash), |slot| K::same(slot.key.borrow(), key)) {
                None => alone.push(row),
                Some(slot) if with_tables => {
                    slot.append(&mut builder);
                    in_tables = true;
                }
                Some(_) => {}
            }
        }
        let mut out = vec![arrow_select::take::take_record_batch(&rows, &UInt32Array::from(alone)).map_err(broken)?];
        if in_tables {
            out.push(finish_batch::<L::Row>(&mut builder, &schema)?);
        }
        out.retain(|rows| rows.num_rows() > 0);
        Ok((out, Some(last)))
    }

    /// Gives keys on disk an end that have none yet.
    pub(super) fn touch_cold(&mut self, now: i64) -> Result<()> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let Some(cold) = &self.cold else { return Ok(()) };
            let found = cold.page(after.as_deref().map_or(Bound::Unbounded, Bound::Excluded), &[], PAGE)?;
            let Some((last, _)) = found.last() else { return Ok(()) };
            after = Some(last.clone());
            let (rows, hints) = cold.decode(&found)?;
            let rows = RecordBatch::try_new(stored::<K, S, L>(), rows).map_err(broken)?;
            let column = read_batch::<L::Row>(&rows)?;
            let mut builder = L::Row::builder(found.len());
            let mut new_hints = Vec::with_capacity(found.len());
            for (row, hint) in hints.into_iter().enumerate() {
                let (key, state, mut life) = L::read(L::Row::get(&column, row));
                life.take_hint(hint);
                let hash = hash_of(&found[row].0);
                if state.is_some()
                    && !life.is_touched()
                    && let Some(at) = life.touch(now, self.span)
                {
                    self.bins[bin_of(hash)].alarms.add(super::alarms::Alarm::Idle, at, hash);
                }
                L::Row::append(&mut builder, life.row(key, state));
                new_hints.push(life.hint());
            }
            let rows = finish_batch::<L::Row>(&mut builder, &stored::<K, S, L>())?;
            let hashes: Vec<u64> = found.iter().map(|(key, _)| hash_of(key)).collect();
            let Some(cold) = &self.cold else { return Ok(()) };
            cold.write(&cold.encode(&rows, &hashes, &new_hints)?)?;
        }
    }
}
