//! (key, state) rows in a mutable hash table, sharded by partition.
//!
//! ```text
//! index: hash ─► slot number      slots: key, state, group mark
//! ```
//!
//! A batch probes the index once a record, marks the slot with the number of
//! its group, and then visits each touched slot once: the cost follows the
//! records of the batch, not the keys of the state. What was touched is the
//! batch's delta.

use super::{StateOperator, Version};
use crate::{
    plan::external,
    record::{Key, Record, finish_batch, hash_key, partition_of, read_batch, schema_of},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::common::Result as DfResult;
use hashbrown::HashTable;
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

/// One shard.
pub(crate) struct Part<K, S> {
    index: HashTable<u32>,
    slots: Vec<Slot<K, S>>,
    free: Vec<u32>,
    /// Rows that the last batch changed, until they are taken. A batch that
    /// nobody asked for (there is no data directory) is replaced by the next.
    delta: Option<(BatchId, RecordBatch)>,
}

impl<K: Key, S: Record> Part<K, S> {
    fn new() -> Self {
        Self { index: HashTable::new(), slots: Vec::new(), free: Vec::new(), delta: None }
    }

    #[inline]
    fn slot(&mut self, key: K::Ref<'_>) -> DfResult<u32> {
        let hash = hash_key::<K>(key);
        let slots = &self.slots;
        if let Some(at) = self.index.find(hash, |i| K::same(slots[*i as usize].key.borrow(), key)) {
            return Ok(*at);
        }
        let slot = Slot { key: K::own(key), state: None, group: NONE };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = slot;
                at
            }
            None => {
                let at = u32::try_from(self.slots.len())
                    .ok()
                    .filter(|at| *at != NONE)
                    .ok_or_else(|| external(Error::user("over 4 billion keys in one partition of a state")))?;
                self.slots.push(slot);
                at
            }
        };
        let slots = &self.slots;
        self.index.insert_unique(hash, at, |i| hash_key::<K>(slots[*i as usize].key.borrow()));
        Ok(at)
    }

    fn remove(&mut self, at: u32) {
        let hash = hash_key::<K>(self.slots[at as usize].key.borrow());
        if let Ok(entry) = self.index.find_entry(hash, |i| *i == at) {
            entry.remove();
            self.slots[at as usize].state = None;
            self.free.push(at);
        }
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
        let columns = rows.iter().map(read_batch::<(K, V)>).collect::<Result<Vec<_>>>().map_err(external)?;
        let total: usize = rows.iter().map(RecordBatch::num_rows).sum();
        let (mut touched, mut ends, mut groups) = (Vec::<u32>::new(), Vec::<u32>::new(), Vec::with_capacity(total));
        for (column, batch) in columns.iter().zip(rows) {
            for row in 0..batch.num_rows() {
                let at = self.slot(<(K, V)>::get(column, row).0)?;
                let slot = &mut self.slots[at as usize];
                if slot.group == NONE {
                    slot.group =
                        u32::try_from(touched.len()).map_err(|_| external(Error::internal("groups of a batch")))?;
                    touched.push(at);
                    ends.push(0);
                }
                groups.push(slot.group);
                ends[slot.group as usize] += 1;
            }
        }
        // Rows by group: a counting sort, stable within a group.
        let mut sum = 0;
        for end in &mut ends {
            let start = sum;
            sum += *end;
            *end = start;
        }
        let mut order = vec![(0_u32, 0_u32); total];
        let mut next = groups.iter();
        for (b, batch) in (0_u32..).zip(rows) {
            for row in 0..batch.num_rows() {
                let Some(group) = next.next() else { break };
                let place = &mut ends[*group as usize];
                order[*place as usize] =
                    (b, u32::try_from(row).map_err(|_| external(Error::internal("rows of a batch")))?);
                *place += 1;
            }
        }
        // Now `ends[g]` is the end of group g.
        let mut delta = <(K, Option<S>)>::builder(touched.len());
        let (mut values, mut start) = (Vec::new(), 0_usize);
        for (at, end) in touched.iter().zip(&ends) {
            values.clear();
            values.extend(
                order[start..*end as usize]
                    .iter()
                    .map(|(b, row)| V::own(<(K, V)>::get(&columns[*b as usize], *row as usize).1)),
            );
            start = *end as usize;
            let slot = &mut self.slots[*at as usize];
            slot.group = NONE;
            slot.state = update(&values, slot.state.take());
            <(K, Option<S>)>::append(&mut delta, (slot.key.borrow(), slot.state.as_ref().map(Record::borrow)));
            if slot.state.is_none() {
                self.remove(*at);
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
        let mut builder = <(K, Option<S>)>::builder(limit.min(self.index.len()));
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

    fn take(&mut self, key: K::Ref<'_>, state: Option<S::Ref<'_>>) -> Result<()> {
        let at = self.slot(key).map_err(|e| Error::internal("restoring state").because(e))?;
        match state {
            Some(state) => self.slots[at as usize].state = Some(S::own(state)),
            None => self.remove(at),
        }
        Ok(())
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
                    parts[partition_of(hash_key::<K>(key), count)].take(key, state)?;
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
        self.parts.iter().map(|part| part.lock().index.len()).sum()
    }
}
