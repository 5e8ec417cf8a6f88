//! (key, state) rows in mutable hash tables, sharded by partition.
//!
//! ```text
//! hash ─► partition ─► bin ─► bucket: key, state, number of the key's group in this batch
//! ```
//!
//! A partition's keys lie in [`BINS`] tables. A batch's rows are first sorted by
//! bin. Then each bin probes its table once a record, marks the bucket with the
//! number of its group, and visits each touched bucket once by its index: the
//! cost follows the records of the batch, not the keys of the state. What was
//! touched is the batch's delta.
//!
//! The waits for memory are the price of a large state, so: key, state and mark
//! lie together; what one bin touches fits into the core's own cache; and the
//! loops are short, so that the waits of many records overlap.

use super::{StateOperator, Version};
use crate::{
    plan::external,
    record::{Key, Record, finish_batch, hash_key, partition_of, read_batch, schema_of},
};
use arrow_array::{RecordBatch, UInt32Array};
use arrow_schema::SchemaRef;
use datafusion::common::Result as DfResult;
use hashbrown::{HashTable, hash_table::Entry};
use parking_lot::Mutex;
use std::{fmt, sync::Arc};
use tidemill_core::{BatchId, Error, Result};

const NONE: u32 = u32::MAX;

/// Tables of a part: of a million keys in two parts, each then takes a quarter of a megabyte.
const BINS: usize = 64;

/// Which table of a part a hash belongs to; neither the bits that choose the
/// part nor those that a table looks at.
#[inline]
fn bin_of(hash: u64) -> usize {
    (hash >> 32) as usize % BINS
}

struct Slot<K, S> {
    key: K,
    state: Option<S>,
    /// Number of the group in the running batch, or [`NONE`].
    group: u32,
}

/// What a bin's rows touch, its keys in the order in which they first appear.
/// Emptied and used again for each bin.
#[derive(Default)]
struct Touched {
    /// The bucket of each row's key.
    buckets: Vec<usize>,
    /// The group of each row.
    groups: Vec<u32>,
    /// The bucket of each group's key.
    keys: Vec<usize>,
    /// Rows of each group; then, added up, where each group ends in `order`.
    ends: Vec<u32>,
    /// The rows, group after group.
    order: Vec<u32>,
}

impl Touched {
    /// Sorts rows `[start, end)` by group, stable within one.
    fn sort(&mut self, start: u32, end: u32) {
        counts_to_starts(&mut self.ends);
        self.order.clear();
        self.order.resize(self.groups.len(), 0);
        for (row, group) in (start..end).zip(&self.groups) {
            let place = &mut self.ends[*group as usize];
            self.order[*place as usize] = row;
            *place += 1;
        }
    }
}

/// Of counts, where each run starts when runs lie end to end.
fn counts_to_starts(counts: &mut [u32]) {
    let mut sum = 0;
    for count in counts {
        let start = sum;
        sum += *count;
        *count = start;
    }
}

/// One table.
struct Bin<K, S>(HashTable<Slot<K, S>>);

impl<K: Key, S: Record> Bin<K, S> {
    /// Looks the bucket of each row's key up; new keys get one. A loop of its
    /// own and short, so that the waits for memory of many rows overlap.
    fn find<'a>(&mut self, rows: &(impl Iterator<Item = (u64, K::Ref<'a>)> + Clone), buckets: &mut Vec<usize>) {
        buckets.clear();
        let mut left = rows.clone();
        while let Some((hash, key)) = left.next() {
            let bucket = match self.0.find_bucket_index(hash, |slot| K::same(slot.key.borrow(), key)) {
                Some(bucket) => bucket,
                None if self.0.len() < self.0.capacity() => {
                    let slot = Slot { key: K::own(key), state: None, group: NONE };
                    self.0.insert_unique(hash, slot, |slot| hash_key::<K>(slot.key.borrow())).bucket_index()
                }
                None => {
                    // Growing moves all buckets: begin again.
                    self.0.reserve(self.0.len().max(16), |slot| hash_key::<K>(slot.key.borrow()));
                    buckets.clear();
                    left = rows.clone();
                    continue;
                }
            };
            buckets.push(bucket);
        }
    }

    /// Numbers the groups of the rows whose buckets were found.
    fn group(&mut self, touched: &mut Touched) -> DfResult<()> {
        let Touched { buckets, groups, keys, ends, .. } = touched;
        groups.clear();
        keys.clear();
        ends.clear();
        for bucket in buckets {
            let slot = self.0.get_bucket_mut(*bucket).ok_or_else(no_bucket)?;
            if slot.group == NONE {
                slot.group = u32::try_from(keys.len()).map_err(|_| too_many_rows())?;
                keys.push(*bucket);
                ends.push(0);
            }
            ends[slot.group as usize] += 1;
            groups.push(slot.group);
        }
        Ok(())
    }
}

#[cold]
fn no_bucket() -> datafusion::common::DataFusionError {
    external(Error::internal("a bucket of a state"))
}

#[cold]
fn too_many_rows() -> datafusion::common::DataFusionError {
    external(Error::user("over 4 billion records for one partition of a state in one batch"))
}

/// One shard.
pub(crate) struct Part<K, S> {
    bins: Vec<Bin<K, S>>,
    /// Rows that the last batch changed, until they are taken. A batch that
    /// nobody asked for (there is no data directory) is replaced by the next.
    delta: Option<(BatchId, RecordBatch)>,
}

impl<K: Key, S: Record> Part<K, S> {
    fn new() -> Self {
        Self { bins: (0..BINS).map(|_| Bin(HashTable::new())).collect(), delta: None }
    }

    fn len(&self) -> usize {
        self.bins.iter().map(|bin| bin.0.len()).sum()
    }

    /// Groups the rows by key and applies `update` to each group, whose values
    /// are in the order of the rows. Returns the rows that changed:
    /// `(key, state)`, a removed key with a null state.
    pub(crate) fn update<V: Record>(
        &mut self,
        batch: BatchId,
        rows: &[RecordBatch],
        update: &impl Fn(&[V], Option<S>) -> Option<S>,
    ) -> DfResult<RecordBatch> {
        let (rows, hashes, ends) = by_bin::<K, V>(rows)?;
        let column = read_batch::<(K, V)>(&rows).map_err(external)?;
        let mut delta = <(K, Option<S>)>::builder(hashes.len().min(self.len().max(1024)));
        let (mut touched, mut values, mut start) = (Touched::default(), Vec::new(), 0);
        for (bin, end) in self.bins.iter_mut().zip(ends) {
            let range = start as usize..end as usize;
            let keys = range.clone().map(|row| <(K, V)>::get(&column, row).0);
            bin.find(&hashes[range].iter().copied().zip(keys), &mut touched.buckets);
            bin.group(&mut touched)?;
            touched.sort(start, end);
            start = end;
            let mut first = 0;
            for (bucket, end) in touched.keys.iter().zip(&touched.ends) {
                let of_group = &touched.order[first..*end as usize];
                first = *end as usize;
                values.clear();
                values.extend(of_group.iter().map(|row| V::own(<(K, V)>::get(&column, *row as usize).1)));
                let slot = bin.0.get_bucket_mut(*bucket).ok_or_else(no_bucket)?;
                slot.group = NONE;
                slot.state = update(&values, slot.state.take());
                <(K, Option<S>)>::append(&mut delta, (slot.key.borrow(), slot.state.as_ref().map(Record::borrow)));
                if slot.state.is_none()
                    && let Ok(entry) = bin.0.get_bucket_entry(*bucket)
                {
                    entry.remove();
                }
            }
        }
        let delta = finish_batch::<(K, Option<S>)>(&mut delta, &schema_of::<(K, Option<S>)>()).map_err(external)?;
        self.delta = Some((batch, delta.clone()));
        Ok(delta)
    }

    /// All rows as `(key, state)` in batches of `limit` rows.
    pub(crate) fn all(&self, limit: usize) -> Result<Vec<RecordBatch>> {
        let schema = schema_of::<(K, Option<S>)>();
        let mut out = Vec::new();
        let mut builder = <(K, Option<S>)>::builder(limit.min(self.len()));
        let mut pending = 0;
        for slot in self.bins.iter().flat_map(|bin| bin.0.iter()).filter(|slot| slot.state.is_some()) {
            <(K, Option<S>)>::append(&mut builder, (slot.key.borrow(), slot.state.as_ref().map(Record::borrow)));
            pending += 1;
            if pending == limit {
                out.push(finish_batch::<(K, Option<S>)>(&mut builder, &schema)?);
                pending = 0;
            }
        }
        if pending > 0 {
            out.push(finish_batch::<(K, Option<S>)>(&mut builder, &schema)?);
        }
        Ok(out)
    }

    /// Takes a row from disk: a null state removes the key.
    fn take(&mut self, key: K::Ref<'_>, state: Option<S::Ref<'_>>) {
        let hash = hash_key::<K>(key);
        let bin = &mut self.bins[bin_of(hash)].0;
        let entry = bin.entry(hash, |s| K::same(s.key.borrow(), key), |s| hash_key::<K>(s.key.borrow()));
        match (entry, state) {
            (Entry::Occupied(mut slot), Some(state)) => slot.get_mut().state = Some(S::own(state)),
            (Entry::Occupied(slot), None) => drop(slot.remove()),
            (Entry::Vacant(place), Some(state)) => {
                place.insert(Slot { key: K::own(key), state: Some(S::own(state)), group: NONE });
            }
            (Entry::Vacant(_), None) => {}
        }
    }
}

/// The rows in the order of their bins, the hash of each row's key, and where each bin ends.
fn by_bin<K: Key, V: Record>(rows: &[RecordBatch]) -> DfResult<(RecordBatch, Vec<u64>, Vec<u32>)> {
    // One run of rows, so that a row is one number.
    let rows = arrow_select::concat::concat_batches(&schema_of::<(K, V)>(), rows)?;
    let count = u32::try_from(rows.num_rows()).map_err(|_| too_many_rows())?;
    let column = read_batch::<(K, V)>(&rows).map_err(external)?;
    let hashes: Vec<u64> = (0..rows.num_rows()).map(|row| hash_key::<K>(<(K, V)>::get(&column, row).0)).collect();
    let mut ends = vec![0; BINS];
    hashes.iter().for_each(|hash| ends[bin_of(*hash)] += 1);
    counts_to_starts(&mut ends);
    let (mut order, mut sorted) = (vec![0_u32; hashes.len()], vec![0_u64; hashes.len()]);
    for (row, hash) in (0..count).zip(hashes) {
        let end = &mut ends[bin_of(hash)];
        let place = *end as usize;
        *end += 1;
        order[place] = row;
        sorted[place] = hash;
    }
    let rows = arrow_select::take::take_record_batch(&rows, &UInt32Array::from(order))?;
    Ok((rows, sorted, ends))
}

/// The state of one keyed operator.
pub(crate) struct KeyedState<K, S> {
    name: String,
    kind: &'static str,
    parts: Vec<Mutex<Part<K, S>>>,
}

impl<K, S> fmt::Debug for KeyedState<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "state of {} in {} parts", self.name, self.parts.len())
    }
}

impl<K: Key, S: Record> KeyedState<K, S> {
    pub(crate) fn new(name: String, kind: &'static str, partitions: usize) -> Self {
        Self { name, kind, parts: (0..partitions).map(|_| Mutex::new(Part::new())).collect() }
    }

    /// The shard of a partition. Locked by the one task that runs it.
    pub(crate) fn part(&self, partition: usize) -> &Mutex<Part<K, S>> {
        &self.parts[partition]
    }
}

impl<K: Key, S: Record> StateOperator for KeyedState<K, S> {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        self.kind
    }

    fn schema(&self) -> SchemaRef {
        schema_of::<(K, Option<S>)>()
    }

    fn restore(&self, versions: &[Version]) -> Result<()> {
        let count = self.parts.len();
        let mut parts: Vec<_> = self.parts.iter().map(Mutex::lock).collect();
        for part in &mut parts {
            **part = Part::new();
        }
        for version in versions {
            if version.whole {
                for part in &mut parts {
                    **part = Part::new();
                }
            }
            for rows in &version.rows {
                let column = read_batch::<(K, Option<S>)>(rows)?;
                for row in 0..rows.num_rows() {
                    let (key, state) = <(K, Option<S>)>::get(&column, row);
                    parts[partition_of(hash_key::<K>(key), count)].take(key, state);
                }
            }
        }
        Ok(())
    }

    fn delta(&self, batch: BatchId) -> Result<Vec<RecordBatch>> {
        Ok(self
            .parts
            .iter()
            .filter_map(|part| part.lock().delta.take_if(|(of, _)| *of == batch))
            .map(|(_, rows)| rows)
            .filter(|rows| rows.num_rows() > 0)
            .collect())
    }

    fn snapshot(&self) -> Result<Vec<RecordBatch>> {
        let mut out = Vec::new();
        for part in &self.parts {
            out.extend(part.lock().all(64 * 1024)?);
        }
        Ok(out)
    }

    fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.lock().len()).sum()
    }

    fn fresh(&self) -> Option<Arc<dyn StateOperator>> {
        Some(Arc::new(Self::new(self.name.clone(), self.kind, 1)))
    }
}
