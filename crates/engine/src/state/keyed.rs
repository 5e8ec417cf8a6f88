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
//! Keys may have alarms ([`super::alarms`]). In a batch at time *t* a bin visits
//! the keys whose alarms were due before *t*, then those with rows, then those
//! whose alarms are due by *t*, or by the watermark. So what happens to a key
//! depends on its rows and on times, and not on which quiet batches were run.
//!
//! The waits for memory are the price of a large state, so: key, state and mark
//! lie together; what one bin touches fits into the core's own cache; and the
//! loops are short, so that the waits of many records overlap.

use super::{
    Feed, StateOperator, Swept, Version,
    alarms::{Alarm, Micros},
    bin::{BINS, Bin, NONE, Slot, Touched, bin_of, no_bucket, spread},
    binned::Binned,
    cold::Cold,
    hand_out,
    life::Life,
    memory::{Share, StateMemory},
};
use crate::{
    plan::external,
    record::{Key, Record, finish_batch, hash_key, partition_of, read_batch, schema_of},
};
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch, cast::AsArray};
use arrow_schema::{Schema, SchemaRef};
use datafusion::common::Result as DfResult;
use hashbrown::hash_table::Entry;
use parking_lot::Mutex;
use std::{fmt, ops::Range, sync::Arc};
use tidemill_core::{BatchId, Result, Timestamp};
use tidemill_store::state::{Piece, StateKind};

pub(crate) use super::bin::{Cell, Moment, Values, Visit};

/// One shard.
pub(crate) struct Part<K, S, L> {
    pub(super) bins: Vec<Bin<K, S, L>>,
    /// Microseconds from a key's last news to its end.
    pub(super) span: Option<Micros>,
    /// Whether no version of this state was ever kept.
    fresh: bool,
    /// Whether the part was given its first states and they are in no version yet.
    begun: bool,
    /// Whether keys are here that no delta has told of yet, or that have no end though there is one.
    unsaved: bool,
    /// The watermark of the last batch.
    watermark: Timestamp,
    /// Bins before this one were given whole by the sweep that goes on.
    pub(super) sweep: usize,
    /// Of the bin that it is at, whether its table was given, and the last row on disk that was.
    pub(super) sweep_cold: Option<Vec<u8>>,
    /// What the part takes of the program's memory; one that is only looked at has no bound.
    pub(super) share: Option<Share>,
    /// Rows on disk, once there were any.
    pub(super) cold: Option<Cold>,
    /// The bin that was last looked through for keys that may go to disk.
    pub(super) hand: usize,
    /// Bytes of a key and its state beside its slot, as of the keys that were looked at, the last in this bin.
    pub(super) heap: usize,
    pub(super) weighed: usize,
    binned: Binned,
    /// Rows that the last batch changed, until they are taken. A batch that
    /// nobody asked for (there is no data directory) is replaced by the next.
    delta: Option<(BatchId, Vec<RecordBatch>)>,
}

impl<K: Key, S: Record, L: Life<K, S>> Part<K, S, L> {
    fn new(span: Option<Micros>, memory: Option<&Arc<StateMemory>>) -> Self {
        Self {
            bins: (0..BINS).map(|_| Bin::new()).collect(),
            span,
            fresh: true,
            begun: false,
            unsaved: false,
            watermark: Timestamp::MIN,
            sweep: 0,
            sweep_cold: None,
            share: memory.map(Share::of),
            cold: None,
            hand: 0,
            heap: 0,
            weighed: 0,
            binned: Binned::default(),
            delta: None,
        }
    }

    fn len(&self) -> usize {
        let on_disk = self.cold.as_ref().map_or(0, |cold| cold.alone);
        self.bins.iter().map(|bin| bin.table.len()).sum::<usize>() + on_disk
    }

    /// Whether no version of this state was ever kept: its first rows may be given.
    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Gives a fresh part its first states. Its first version then is kept even if it has no rows, and says that
    /// the state has begun.
    pub(crate) fn begin(&mut self, rows: &[RecordBatch]) -> DfResult<()> {
        for rows in rows {
            let column = read_batch::<(K, S)>(rows).map_err(external)?;
            for row in 0..rows.num_rows() {
                let (key, state) = <(K, S)>::get(&column, row);
                self.take(key, Some(state), L::default());
            }
        }
        (self.fresh, self.begun, self.unsaved) = (false, true, true);
        Ok(())
    }

    /// Whether a batch has something to do though it has no rows.
    pub(crate) fn is_due(&self, moment: &Moment) -> bool {
        self.unsaved || self.bins.iter().any(|bin| bin.alarms.is_due(moment.time.0, moment.watermark.0))
    }

    /// When a batch will have something to do though nothing comes.
    fn wakes(&self, last: Timestamp) -> Option<Timestamp> {
        if !L::TIMED {
            return None;
        }
        let event = |bin: &Bin<K, S, L>| bin.alarms.first_event().filter(|at| *at <= self.watermark.0);
        if self.bins.iter().any(|bin| event(bin).is_some()) {
            return Some(last);
        }
        self.bins.iter().filter_map(|bin| bin.alarms.first_batch()).min().map(Timestamp)
    }

    /// Groups the rows by key and visits each key that has rows, values in the
    /// order of the rows, or an alarm that is due. Returns the rows that
    /// changed, a removed key with a null state.
    pub(crate) fn visit<V: Record>(
        &mut self,
        moment: &Moment,
        rows: &[RecordBatch],
        visitor: &mut impl Visit<K, V, S, L>,
    ) -> DfResult<RecordBatch> {
        let mut binned = std::mem::take(&mut self.binned);
        let rows = binned.sort::<K, V>(rows)?;
        let Binned { hashes, ends, .. } = &binned;
        let column = read_batch::<(K, V)>(&rows).map_err(external)?;
        if self.cold.is_some() {
            // What the batch may touch, in one go.
            self.fetch(rows.column(0), &column.0, hashes, ends).map_err(external)?;
            if L::TIMED {
                self.fetch_due(moment).map_err(external)?;
            }
        }
        let mut delta = L::Row::builder(hashes.len().min(self.len().max(1024)));
        let (mut touched, mut start) = (Touched::default(), 0);
        let (now, span) = (moment.time.0, self.span);
        self.watermark = moment.watermark;
        if self.unsaved {
            self.touch_all(now).map_err(external)?;
        }
        for (bin, end) in self.bins.iter_mut().zip(ends.iter().copied()) {
            let range = start as usize..end as usize;
            let keys = range.clone().map(|row| <(K, V)>::get(&column, row).0);
            bin.find(&hashes[range].iter().copied().zip(keys), &mut touched);
            bin.group(&mut touched)?;
            touched.sort(start, end);
            start = end;
            let with_values = touched.keys.len();
            if L::TIMED {
                bin.ring((Timestamp(now.saturating_sub(1)), Timestamp::MIN), (now, span), &mut touched, visitor)?;
            }
            let mut first = 0;
            for group in 0..with_values {
                let (bucket, end) = (touched.keys[group], touched.ends[group]);
                let of_group = &touched.order[first..end as usize];
                first = end as usize;
                let hash = hashes[of_group[0] as usize];
                let Slot { key, state, life, .. } = bin.table.get_bucket_mut(bucket).ok_or_else(no_bucket)?;
                let changed = &mut touched.changed[group];
                let mut cell = Cell { state, changed, life, alarms: &mut bin.alarms, hash, now, span };
                let values = Values::<V> { column: &column.1, rows: of_group };
                visitor.values(key, &values, &mut cell)?;
                if L::TIMED && cell.state.is_none() {
                    cell.life.end();
                }
                if !L::TIMED {
                    let changed = touched.changed[group];
                    bin.settle(bucket, changed, &mut delta)?;
                }
            }
            if L::TIMED {
                bin.ring((moment.time, moment.watermark), (now, span), &mut touched, visitor)?;
                for (bucket, changed) in touched.keys.iter().zip(&touched.changed) {
                    bin.settle(*bucket, *changed, &mut delta)?;
                }
            }
        }
        binned.shrink();
        self.binned = binned;
        let delta = finish_batch::<L::Row>(&mut delta, &stored::<K, S, L>()).map_err(external)?;
        let mut kept = vec![delta.clone()];
        if std::mem::take(&mut self.unsaved) {
            kept.extend(self.all(64 * 1024).map_err(external)?);
        }
        if !std::mem::take(&mut self.begun) {
            kept.retain(|rows| rows.num_rows() > 0);
        }
        self.delta = Some((moment.batch, kept));
        self.trim().map_err(external)?;
        Ok(delta)
    }

    /// Gives keys an end that have none yet.
    fn touch_all(&mut self, now: Micros) -> Result<()> {
        let span = self.span;
        for bin in &mut self.bins {
            for slot in bin.table.iter_mut().filter(|slot| slot.state.is_some() && !slot.life.is_touched()) {
                if let Some(at) = slot.life.touch(now, span) {
                    bin.alarms.add(Alarm::Idle, at, hash_key::<K>(slot.key.borrow()));
                }
            }
        }
        if L::TIMED { self.touch_cold(now) } else { Ok(()) }
    }

    /// All rows as they are stored, in batches of `limit`.
    pub(crate) fn all(&self, limit: usize) -> Result<Vec<RecordBatch>> {
        let schema = stored::<K, S, L>();
        let mut out = Vec::new();
        let mut builder = L::Row::builder(limit.min(self.len()));
        let mut pending = 0;
        let slots = self.bins.iter().flat_map(|bin| bin.table.iter());
        for slot in slots.filter(|slot| slot.is_kept()) {
            slot.append(&mut builder);
            pending += 1;
            if pending == limit {
                out.push(finish_batch::<L::Row>(&mut builder, &schema)?);
                pending = 0;
            }
        }
        if pending > 0 {
            out.push(finish_batch::<L::Row>(&mut builder, &schema)?);
        }
        let mut after: Option<Vec<u8>> = None;
        loop {
            let (rows, last) = self.cold_page(after.as_deref(), &[], limit, false)?;
            out.extend(rows);
            let Some(last) = last else { return Ok(out) };
            after = Some(last);
        }
    }

    fn begin_sweep(&mut self) {
        (self.sweep, self.sweep_cold) = (0, None);
        self.bins.iter_mut().for_each(|bin| bin.swept = 0);
    }

    /// The next rows of the sweep, about `limit`. A key that moves on in its bin meanwhile has changed and is in
    /// a delta; where a table grows, its sweep begins again.
    fn sweep(&mut self, limit: usize) -> Result<Vec<RecordBatch>> {
        let mut builder = L::Row::builder(limit.min(self.len()));
        let mut found = 0;
        let mut from_disk = Vec::new();
        while let Some(bin) = self.bins.get_mut(self.sweep) {
            // Once it was given, what moves into the table or out of it is still on disk.
            let given = self.sweep_cold.is_some();
            while !given && bin.swept < bin.table.num_buckets() && found < limit {
                let slot = bin.table.get_bucket(bin.swept);
                bin.swept += 1;
                if let Some(slot) = slot.filter(|slot| slot.is_kept()) {
                    slot.append(&mut builder);
                    found += 1;
                }
            }
            if !given && bin.swept < bin.table.num_buckets() {
                break;
            }
            let within = [u8::try_from(self.sweep).unwrap_or(u8::MAX)];
            let mut after = self.sweep_cold.take().unwrap_or_else(|| within.to_vec());
            while found < limit {
                let (rows, last) = self.cold_page(Some(&after), &within, limit - found, true)?;
                found += rows.iter().map(RecordBatch::num_rows).sum::<usize>();
                from_disk.extend(rows);
                let Some(last) = last else {
                    after.clear();
                    break;
                };
                after = last;
            }
            if !after.is_empty() && self.cold.is_some() {
                self.sweep_cold = Some(after);
                break;
            }
            self.sweep += 1;
        }
        from_disk.push(finish_batch::<L::Row>(&mut builder, &stored::<K, S, L>())?);
        from_disk.retain(|rows| rows.num_rows() > 0);
        Ok(from_disk)
    }

    /// Adds the alarms of all keys of these bins.
    fn index(&mut self, bins: Range<usize>) {
        if !L::TIMED {
            return;
        }
        for Bin { table, alarms, .. } in &mut self.bins[bins] {
            for slot in table.iter_mut() {
                let due = slot.life.alarms(self.span);
                if due.is_empty() && slot.state.is_none() {
                    continue;
                }
                self.unsaved |= self.span.is_some() && slot.state.is_some() && !slot.life.is_touched();
                let hash = hash_key::<K>(slot.key.borrow());
                due.into_iter().for_each(|(alarm, at)| alarms.add(alarm, at, hash));
            }
        }
    }

    /// Forgets what the tables of these bins hold.
    fn empty(&mut self, bins: Range<usize>) {
        self.bins[bins].iter_mut().for_each(|bin| *bin = Bin::new());
    }

    /// Whether the part, while it is filled, has more than it may keep.
    fn is_too_large(&mut self) -> bool {
        self.share.is_some() && self.weigh().is_ok() && self.note().is_some()
    }

    /// Takes a row: without a state, and nothing else to keep, the key goes. [`Part::index`] ends a run of these.
    fn take(&mut self, key: K::Ref<'_>, state: Option<S::Ref<'_>>, life: L) {
        let hash = hash_key::<K>(key);
        let table = &mut self.bins[bin_of(hash)].table;
        let entry = table.entry(spread(hash), |s| K::same(s.key.borrow(), key), Slot::spread);
        if state.is_none() && life.is_bare() {
            if let Entry::Occupied(slot) = entry {
                slot.remove();
            }
            return;
        }
        let state = state.map(S::own);
        match entry {
            Entry::Occupied(mut slot) => (slot.get_mut().state, slot.get_mut().life) = (state, life),
            Entry::Vacant(place) => {
                place.insert(Slot { key: K::own(key), state, life, group: NONE, mark: 0 });
            }
        }
    }
}

/// Columns of the rows on disk.
pub(super) fn stored<K: Key, S: Record, L: Life<K, S>>() -> SchemaRef {
    let plain = schema_of::<L::Row>();
    if L::COLUMNS.is_empty() {
        return plain;
    }
    let names = ["_1", "_2"].iter().chain(L::COLUMNS);
    let fields: Vec<_> = plain.fields().iter().zip(names).map(|(f, n)| f.as_ref().clone().with_name(*n)).collect();
    Arc::new(Schema::new(fields))
}

/// Of stored rows, keys and states as a stream of `(K, S)` carries them; keys without a state are left out.
pub(crate) fn present<K: Key, S: Record>(rows: &RecordBatch) -> DfResult<RecordBatch> {
    let (keys, states) = (rows.column(0), rows.column(1));
    let (keys, states): (ArrayRef, ArrayRef) = match states.nulls() {
        Some(nulls) if nulls.null_count() > 0 => {
            let keep = BooleanArray::new(nulls.inner().clone(), None);
            (arrow_select::filter::filter(keys, &keep)?, arrow_select::filter::filter(states, &keep)?)
        }
        _ => (Arc::clone(keys), Arc::clone(states)),
    };
    // A state that may itself be null lies in a struct.
    let states = if S::nullable() { Arc::clone(states.as_struct().column(0)) } else { states };
    Ok(RecordBatch::try_new(schema_of::<(K, S)>(), vec![keys, states])?)
}

/// The state of one keyed operator.
pub(crate) struct KeyedState<K, S, L = ()> {
    name: String,
    kind: &'static str,
    span: Option<Micros>,
    /// What the state begins with.
    first: Vec<(K, S)>,
    parts: Vec<Mutex<Part<K, S, L>>>,
    memory: Option<Arc<StateMemory>>,
}

impl<K, S, L> fmt::Debug for KeyedState<K, S, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "state of {} in {} parts", self.name, self.parts.len())
    }
}

impl<K: Key, S: Record, L: Life<K, S>> KeyedState<K, S, L> {
    /// A state whose keys end `span` microseconds after their last news, and that begins with `first`. Beyond its
    /// share of `memory`, keys go to disk.
    pub(crate) fn new(
        (name, kind): (String, &'static str),
        partitions: usize,
        span: Option<Micros>,
        first: Vec<(K, S)>,
        memory: Option<Arc<StateMemory>>,
    ) -> Self {
        let parts = (0..partitions).map(|_| Mutex::new(Part::new(span, memory.as_ref()))).collect();
        let state = Self { name, kind, span, first, parts, memory };
        state.begin();
        state
    }

    /// The shard of a partition. Locked by the one task that runs it.
    pub(crate) fn part(&self, partition: usize) -> &Mutex<Part<K, S, L>> {
        &self.parts[partition]
    }

    /// As before the first batch.
    fn begin(&self) {
        let count = self.parts.len();
        let mut parts: Vec<_> = self.parts.iter().map(Mutex::lock).collect();
        for part in &mut parts {
            **part = Part::new(self.span, self.memory.as_ref());
        }
        for (key, state) in &self.first {
            let part = &mut parts[partition_of(hash_key::<K>(key.borrow()), count)];
            part.take(key.borrow(), Some(state.borrow()), L::default());
            part.unsaved = true;
        }
    }
}

impl<K: Key, S: Record, L: Life<K, S>> StateOperator for KeyedState<K, S, L> {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        self.kind
    }

    fn schema(&self) -> SchemaRef {
        stored::<K, S, L>()
    }

    fn restore(&self, versions: &[Version]) -> Result<()> {
        self.restore_from(&mut |each| hand_out(versions, each))
    }

    fn restore_from(&self, feed: &mut Feed<'_>) -> Result<()> {
        let count = self.parts.len();
        let mut parts: Vec<_> = self.parts.iter().map(Mutex::lock).collect();
        for part in &mut parts {
            **part = Part::new(self.span, self.memory.as_ref());
            part.fresh = false;
        }
        let mut nothing = true;
        // As many bins at once as have room in memory: all of them, or the files are read again for the others.
        let mut bins = 0..BINS;
        loop {
            feed(&mut |piece| {
                match piece {
                    Piece::Version(_, StateKind::Delta) => nothing = false,
                    Piece::Again(_) => {}
                    Piece::Version(_, StateKind::Snapshot) => {
                        parts.iter_mut().for_each(|part| part.empty(bins.clone()));
                        nothing = false;
                    }
                    Piece::Reset => {
                        parts.iter_mut().for_each(|part| part.empty(bins.clone()));
                        nothing = true;
                    }
                    Piece::Rows(rows) => {
                        let column = read_batch::<L::Row>(&rows)?;
                        for row in 0..rows.num_rows() {
                            let (key, state, life) = L::read(L::Row::get(&column, row));
                            let hash = hash_key::<K>(key);
                            if bins.contains(&bin_of(hash)) {
                                parts[partition_of(hash, count)].take(key, state, life);
                            }
                        }
                        while bins.len() > 1 && parts.iter_mut().any(|part| part.is_too_large()) {
                            let middle = bins.start.midpoint(bins.end);
                            parts.iter_mut().for_each(|part| part.empty(middle..bins.end));
                            bins.end = middle;
                        }
                    }
                }
                Ok(())
            })?;
            if nothing {
                drop(parts);
                self.begin();
                return Ok(());
            }
            parts.iter_mut().for_each(|part| part.index(bins.clone()));
            if bins.end == BINS {
                break;
            }
            for part in &mut parts {
                bins.clone().try_for_each(|bin| part.evict(bin, true))?;
                part.note();
            }
            bins = bins.end..BINS.min(bins.end + bins.len());
        }
        parts.iter_mut().try_for_each(|part| part.trim())
    }

    fn sweeps(&self) -> bool {
        true
    }

    fn sweep(&self, rows: usize, begin: bool) -> Result<Swept> {
        let mut parts: Vec<_> = self.parts.iter().map(Mutex::lock).collect();
        let (mut out, mut left, mut whole) = (Vec::new(), rows, true);
        for part in &mut parts {
            if begin {
                part.begin_sweep();
            }
            let found = part.sweep(left)?;
            left -= found.iter().map(RecordBatch::num_rows).sum::<usize>().min(left);
            out.extend(found);
            whole &= part.sweep == BINS;
        }
        Ok(Swept { rows: out, whole })
    }

    fn delta(&self, batch: BatchId) -> Result<Vec<RecordBatch>> {
        let mut rows = Vec::new();
        for part in &self.parts {
            let mut part = part.lock();
            rows.extend(part.delta.take_if(|(of, _)| *of == batch).into_iter().flat_map(|(_, rows)| rows));
            // Of parts that ran side by side, one that was done first did not see that others would grow.
            if self.memory.as_ref().is_some_and(|memory| memory.is_over()) {
                part.trim()?;
            }
        }
        Ok(rows)
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
        Some(Arc::new(Self::new((self.name.clone(), self.kind), 1, self.span, Vec::new(), None)))
    }

    fn wakes(&self, last: Timestamp) -> Option<Timestamp> {
        self.parts.iter().filter_map(|part| part.lock().wakes(last)).min()
    }
}
