//! (key, state) rows in a mutable hash table, sharded by partition.
//!
//! ```text
//! hash ─► bucket: key, state, number of the key's group in this batch
//! ```
//!
//! A batch probes the table once a record, marks the bucket with the number of
//! its group, and then visits each touched bucket once by its index: the cost
//! follows the records of the batch, not the keys of the state. What was
//! touched is the batch's delta. Key, state and mark lie together, since each
//! place of memory that a record needs is a wait for the memory.

use super::{StateOperator, Version};
use crate::{
    plan::external,
    record::{Key, Record, finish_batch, hash_key, partition_of, read_batch, schema_of},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::common::Result as DfResult;
use hashbrown::{HashTable, hash_table::Entry};
use parking_lot::Mutex;
use std::fmt;
use tidemill_core::{BatchId, Error, Result};

const NONE: u32 = u32::MAX;

struct Slot<K, S> {
    key: K,
    state: Option<S>,
    /// Number of the group in the running batch, or [`NONE`].
    group: u32,
}

/// The keys that a batch touches, in the order in which they first appear.
#[derive(Default)]
struct Touched {
    /// Bucket of each group's key.
    buckets: Vec<usize>,
    /// Rows of each group; then, added up, where each group ends.
    ends: Vec<u32>,
}

/// One shard.
pub(crate) struct Part<K, S> {
    slots: HashTable<Slot<K, S>>,
    /// Rows that the last batch changed, until they are taken. A batch that
    /// nobody asked for (there is no data directory) is replaced by the next.
    delta: Option<(BatchId, RecordBatch)>,
}

impl<K: Key, S: Record> Part<K, S> {
    fn new() -> Self {
        Self { slots: HashTable::new(), delta: None }
    }

    /// The group of a key in this batch; a key's first row begins its group.
    #[inline]
    fn group(&mut self, key: K::Ref<'_>, touched: &mut Touched) -> DfResult<u32> {
        let hash = hash_key::<K>(key);
        let bucket = match self.slots.find_bucket_index(hash, |slot| K::same(slot.key.borrow(), key)) {
            Some(bucket) => bucket,
            None => self.insert(hash, key, touched),
        };
        let slot = self.slots.get_bucket_mut(bucket).ok_or_else(|| external(Error::internal("a bucket of a state")))?;
        if slot.group == NONE {
            slot.group = u32::try_from(touched.buckets.len())
                .ok()
                .filter(|group| *group != NONE)
                .ok_or_else(|| external(Error::user("over 4 billion keys in one batch")))?;
            touched.buckets.push(bucket);
            touched.ends.push(0);
        }
        touched.ends[slot.group as usize] += 1;
        Ok(slot.group)
    }

    /// A new key's bucket. Growing moves all buckets, so those of the batch are looked up again.
    #[cold]
    fn insert(&mut self, hash: u64, key: K::Ref<'_>, touched: &mut Touched) -> usize {
        if self.slots.len() == self.slots.capacity() {
            self.slots.reserve(self.slots.len().max(16), |slot| hash_key::<K>(slot.key.borrow()));
            for bucket in 0..self.slots.num_buckets() {
                if let Some(slot) = self.slots.get_bucket(bucket)
                    && slot.group != NONE
                {
                    touched.buckets[slot.group as usize] = bucket;
                }
            }
        }
        let slot = Slot { key: K::own(key), state: None, group: NONE };
        self.slots.insert_unique(hash, slot, |slot| hash_key::<K>(slot.key.borrow())).bucket_index()
    }

    /// Groups the rows by key and applies `update` to each group, in the order
    /// in which the keys first appear. Returns the rows that changed:
    /// `(key, state)`, a removed key with a null state.
    pub(crate) fn update<V: Record>(
        &mut self,
        batch: BatchId,
        rows: &[RecordBatch],
        update: &impl Fn(&[V], Option<S>) -> Option<S>,
    ) -> DfResult<RecordBatch> {
        // One run of rows, so that a row is one number.
        let rows = arrow_select::concat::concat_batches(&schema_of::<(K, V)>(), rows)?;
        let column = read_batch::<(K, V)>(&rows).map_err(external)?;
        let mut touched = Touched::default();
        let mut groups = Vec::with_capacity(rows.num_rows());
        for row in 0..rows.num_rows() {
            groups.push(self.group(<(K, V)>::get(&column, row).0, &mut touched)?);
        }
        let Touched { buckets, mut ends } = touched;
        // Rows by group: a counting sort, stable within a group.
        let mut sum = 0;
        for end in &mut ends {
            let start = sum;
            sum += *end;
            *end = start;
        }
        let mut order = vec![0_u32; rows.num_rows()];
        for (row, group) in (0_u32..).zip(&groups) {
            let place = &mut ends[*group as usize];
            order[*place as usize] = row;
            *place += 1;
        }
        // Now `ends[g]` is the end of group g.
        let mut delta = <(K, Option<S>)>::builder(buckets.len());
        let (mut values, mut start) = (Vec::new(), 0_usize);
        for (bucket, end) in buckets.iter().zip(&ends) {
            values.clear();
            let of_group = &order[start..*end as usize];
            values.extend(of_group.iter().map(|row| V::own(<(K, V)>::get(&column, *row as usize).1)));
            start = *end as usize;
            let slot =
                self.slots.get_bucket_mut(*bucket).ok_or_else(|| external(Error::internal("a bucket of a state")))?;
            slot.group = NONE;
            slot.state = update(&values, slot.state.take());
            <(K, Option<S>)>::append(&mut delta, (slot.key.borrow(), slot.state.as_ref().map(Record::borrow)));
            if slot.state.is_none()
                && let Ok(entry) = self.slots.get_bucket_entry(*bucket)
            {
                entry.remove();
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
        let mut builder = <(K, Option<S>)>::builder(limit.min(self.slots.len()));
        let mut pending = 0;
        for slot in self.slots.iter().filter(|slot| slot.state.is_some()) {
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
        let entry = self.slots.entry(hash, |s| K::same(s.key.borrow(), key), |s| hash_key::<K>(s.key.borrow()));
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
        self.parts.iter().map(|part| part.lock().slots.len()).sum()
    }
}
