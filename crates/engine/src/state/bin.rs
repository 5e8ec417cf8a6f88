//! One hash table of a part, and the visits of its keys.
//!
//! A bin probes its table once a record, marks each bucket with the number of its
//! group, and visits each touched bucket once by its index. [`Visit`] is what
//! runs over a key; [`super::keyed`] brings the rows and takes what changed.
//!
//! Invariant: a slot's group is [`NONE`] between two batches.

use super::{
    alarms::{Alarm, Alarms, Micros},
    life::{Life, Ring},
};
use crate::{
    plan::external,
    record::{Key, Record, hash_key},
};
use datafusion::common::Result as DfResult;
use hashbrown::HashTable;
use tidemill_core::{BatchId, Error, Timestamp};

pub(super) const NONE: u32 = u32::MAX;

/// Of a slot's mark: the key was touched since the bin was last looked through.
pub(super) const WARM: u8 = 1;
/// The key has an older copy on disk.
pub(super) const COPY: u8 = 2;

/// Tables of a part: of a million keys in two parts, each then takes a quarter of a megabyte, which the core's own cache
/// holds.
pub(super) const BINS: usize = 128;

/// Which table of a part a hash belongs to; neither the bits that choose the
/// part nor those that a table looks at.
#[inline]
pub(super) fn bin_of(hash: u64) -> usize {
    (hash >> 32) as usize % BINS
}

/// A hash as the table of its bin takes it: neither the bits that chose the part nor those that chose the bin are
/// among its tag, the highest seven, by which most other keys are told apart before their memory is looked at.
#[inline]
pub(super) fn spread(hash: u64) -> u64 {
    hash.rotate_left(16)
}

pub(super) struct Slot<K, S, L> {
    pub(super) key: K,
    pub(super) state: Option<S>,
    pub(super) life: L,
    /// Number of the group in the running batch, or [`NONE`].
    pub(super) group: u32,
    /// [`WARM`], [`COPY`].
    pub(super) mark: u8,
}

impl<K: Key, S: Record, L: Life<K, S>> Slot<K, S, L> {
    /// Whether the key has anything that counts.
    pub(super) fn is_kept(&self) -> bool {
        self.state.is_some() || !self.life.is_bare()
    }

    /// The key's hash as its table takes it.
    #[inline]
    pub(super) fn spread(&self) -> u64 {
        spread(hash_key::<K>(self.key.borrow()))
    }

    /// Appends the row that is stored of the key.
    pub(super) fn append(&self, rows: &mut <L::Row as Record>::Builder) {
        L::Row::append(rows, self.life.row(self.key.borrow(), self.state.as_ref().map(Record::borrow)));
    }
}

/// The batch that visits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) batch: BatchId,
    pub(crate) time: Timestamp,
    /// Event time up to which timers ring.
    pub(crate) watermark: Timestamp,
}

/// A visited key's own.
pub(crate) struct Cell<'a, S, L> {
    pub(crate) state: &'a mut Option<S>,
    /// Whether the key's row has changed: set by the visitor.
    pub(crate) changed: &'a mut bool,
    pub(crate) life: &'a mut L,
    pub(super) alarms: &'a mut Alarms,
    pub(super) hash: u64,
    pub(super) now: Micros,
    pub(super) span: Option<Micros>,
}

impl<S, L> Cell<'_, S, L> {
    /// Notes news of the key, from which its end is counted. Its row changes with it if it has an end.
    pub(crate) fn touch<K: Key>(&mut self)
    where
        L: Life<K, S>,
        S: Record,
    {
        if L::TIMED && self.span.is_some() {
            *self.changed = true;
        }
        if let Some(at) = self.life.touch(self.now, self.span) {
            self.alarms.add(Alarm::Idle, at, self.hash);
        }
    }

    /// Has the key visited at a time.
    pub(crate) fn add_alarm(&mut self, alarm: Alarm, at: Micros) {
        self.alarms.add(alarm, at, self.hash);
    }
}

/// The values of a key in a batch, in the order in which they came.
pub(crate) struct Values<'a, V: Record> {
    pub(super) column: &'a V::Column,
    pub(super) rows: &'a [u32],
}

impl<'a, V: Record> Values<'a, V> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = V::Ref<'a>> + use<'a, V> {
        let column = self.column;
        self.rows.iter().map(move |row| V::get(column, *row as usize))
    }
}

/// What runs over the keys that a batch touches.
pub(crate) trait Visit<K: Key, V: Record, S: Record, L: Life<K, S>> {
    /// A key with values.
    fn values(&mut self, key: &K, values: &Values<'_, V>, cell: &mut Cell<'_, S, L>) -> DfResult<()>;

    /// A key whose alarm rings, at the time for which it was set. Only where [`Life::TIMED`].
    fn alarm(&mut self, key: &K, alarm: Alarm, at: Timestamp, cell: &mut Cell<'_, S, L>) -> DfResult<()>;
}

/// What a bin's rows touch, its keys in the order in which they first appear.
/// Emptied and used again for each bin.
#[derive(Default)]
pub(super) struct Touched {
    /// The bucket of each row's key.
    pub(super) buckets: Vec<usize>,
    /// Rows whose keys were not where they were looked for first.
    missed: Vec<u32>,
    /// The group of each row.
    pub(super) groups: Vec<u32>,
    /// The bucket of each group's key.
    pub(super) keys: Vec<usize>,
    /// Rows of each group; then, added up, where each group ends in `order`.
    pub(super) ends: Vec<u32>,
    /// The rows, group after group.
    pub(super) order: Vec<u32>,
    /// Of each group, whether its key's row has changed.
    pub(super) changed: Vec<bool>,
}

impl Touched {
    /// Sorts rows `[start, end)` by group, stable within one.
    pub(super) fn sort(&mut self, start: u32, end: u32) {
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
pub(super) fn counts_to_starts(counts: &mut [u32]) {
    let mut sum = 0;
    for count in counts {
        let start = sum;
        sum += *count;
        *count = start;
    }
}

/// One table.
pub(super) struct Bin<K, S, L> {
    pub(super) table: HashTable<Slot<K, S, L>>,
    pub(super) alarms: Alarms,
    /// Buckets before this one were given by the sweep that goes on.
    pub(super) swept: usize,
    /// Keys that were removed and have a copy on disk, until that is removed, too.
    pub(super) gone: Vec<K>,
}

impl<K: Key, S: Record, L: Life<K, S>> Bin<K, S, L> {
    pub(super) fn new() -> Self {
        Self { table: HashTable::new(), alarms: Alarms::default(), swept: 0, gone: Vec::new() }
    }

    /// Looks the bucket of each row's key up; new keys get one. In three loops, two of them short, so that the waits
    /// for memory of many rows overlap: the first reads tags alone, which fit the nearest cache; the second compares
    /// keys and branches nowhere; the third is for the few that are elsewhere or new.
    pub(super) fn find<'a>(&mut self, rows: &(impl Iterator<Item = (u64, K::Ref<'a>)> + Clone), touched: &mut Touched) {
        let Touched { buckets, missed, .. } = touched;
        'again: loop {
            buckets.clear();
            let candidate = |(hash, _)| self.table.find_bucket_index(spread(hash), |_| true).unwrap_or(usize::MAX);
            buckets.extend(rows.clone().map(candidate));
            missed.clear();
            missed.resize(buckets.len(), 0);
            let mut count = 0;
            for (row, ((_, key), bucket)) in (0_u32..).zip(rows.clone().zip(&*buckets)) {
                let found = self.table.get_bucket(*bucket).is_some_and(|slot| K::same(slot.key.borrow(), key));
                missed[count] = row;
                count += usize::from(!found);
            }
            let (mut left, mut at) = (rows.clone(), 0);
            for row in &missed[..count] {
                let row = *row as usize;
                let Some((hash, key)) = left.nth(row - at) else { break };
                at = row + 1;
                buckets[row] = match self.table.find_bucket_index(spread(hash), |slot| K::same(slot.key.borrow(), key))
                {
                    Some(bucket) => bucket,
                    None if self.table.len() < self.table.capacity() => {
                        let slot = Slot { key: K::own(key), state: None, life: L::default(), group: NONE, mark: 0 };
                        self.table.insert_unique(spread(hash), slot, Slot::spread).bucket_index()
                    }
                    None => {
                        // Growing moves all buckets: begin again.
                        self.grow();
                        continue 'again;
                    }
                };
            }
            return;
        }
    }

    /// Makes room. All buckets move, so a sweep of them begins again.
    pub(super) fn grow(&mut self) {
        self.swept = 0;
        self.table.reserve(self.table.len().max(16), Slot::spread);
    }

    /// Numbers the groups of the rows whose buckets were found.
    pub(super) fn group(&mut self, touched: &mut Touched) -> DfResult<()> {
        let Touched { buckets, groups, keys, ends, .. } = touched;
        groups.clear();
        keys.clear();
        ends.clear();
        for bucket in buckets {
            let slot = self.table.get_bucket_mut(*bucket).ok_or_else(no_bucket)?;
            if slot.group == NONE {
                slot.group = u32::try_from(keys.len()).map_err(|_| too_many_rows())?;
                slot.mark |= WARM;
                keys.push(*bucket);
                ends.push(0);
            }
            ends[slot.group as usize] += 1;
            groups.push(slot.group);
        }
        touched.changed.clear();
        touched.changed.resize(touched.keys.len(), false);
        Ok(())
    }

    /// Visits the keys with alarms due by `until`. Alarms that the visits add wait for another look.
    pub(super) fn ring<V: Record>(
        &mut self,
        until: (Timestamp, Timestamp),
        (now, span): (Micros, Option<Micros>),
        touched: &mut Touched,
        visitor: &mut impl Visit<K, V, S, L>,
    ) -> DfResult<()> {
        for (at, alarm, hash) in self.alarms.due(until.0.0, until.1.0) {
            // Hashes of two keys may be equal: then each has an entry, and each is found in turn.
            let found = self.table.find_bucket_index(spread(hash), |slot| {
                slot.life.is_set(alarm, at) && hash_key::<K>(slot.key.borrow()) == hash
            });
            let Some(bucket) = found else { continue };
            let slot = self.table.get_bucket_mut(bucket).ok_or_else(no_bucket)?;
            match slot.life.ring(alarm, at, until.0.0, span) {
                Ring::Stale => continue,
                Ring::Again(at) => {
                    self.alarms.add(alarm, at, hash);
                    continue;
                }
                Ring::Fire => {}
            }
            if slot.group == NONE {
                slot.group = u32::try_from(touched.keys.len()).map_err(|_| too_many_rows())?;
                touched.keys.push(bucket);
                touched.changed.push(false);
            }
            let changed = &mut touched.changed[slot.group as usize];
            *changed = true;
            let Slot { key, state, life, .. } = slot;
            let mut cell = Cell { state, changed, life, alarms: &mut self.alarms, hash, now, span };
            visitor.alarm(key, alarm, Timestamp(at), &mut cell)?;
            if alarm == Alarm::Idle {
                *cell.state = None;
            }
            if cell.state.is_none() {
                cell.life.end();
            }
        }
        Ok(())
    }

    /// Ends the visits of a bucket: a changed row goes into the delta, and a key that has nothing left goes.
    #[inline]
    pub(super) fn settle(
        &mut self,
        bucket: usize,
        changed: bool,
        delta: &mut <L::Row as Record>::Builder,
    ) -> DfResult<()> {
        let slot = self.table.get_bucket_mut(bucket).ok_or_else(no_bucket)?;
        slot.group = NONE;
        if changed {
            slot.append(delta);
        }
        if slot.state.is_none()
            && slot.life.is_bare()
            && let Ok(entry) = self.table.get_bucket_entry(bucket)
        {
            let (slot, _) = entry.remove();
            if slot.mark & COPY != 0 {
                self.gone.push(slot.key);
            }
        }
        Ok(())
    }
}

#[cold]
pub(super) fn no_bucket() -> datafusion::common::DataFusionError {
    external(Error::internal("a bucket of a state"))
}

#[cold]
pub(super) fn too_many_rows() -> datafusion::common::DataFusionError {
    external(Error::user("over 4 billion records for one partition of a state in one batch"))
}
