//! One side of a join as it is kept: rows, found by the hash of their key, until their time is over.
//!
//! ```text
//! table: hash ─► newest slot ─► older slot ─► …        slot = (chunk, row)
//! chunks: the rows as they came, one chunk a batch; small ones are merged
//! ```
//!
//! Invariant: a row that is gone is never found, and its place is given back when
//! as many are gone as are kept. A batch costs what it brings and what leaves. Kept
//! rows stay in the order in which they came, so what a sweep has still to give is
//! one run of them ([`Chunk::due`]), whatever is merged meanwhile. Called by
//! [`super::step`] and, after a restart, by [`super::side`].

use arrow_array::{ArrayRef, RecordBatch, UInt32Array};
use arrow_schema::SchemaRef;
use datafusion::common::Result as DfResult;
use hashbrown::HashTable;
use std::ops::Range;

/// No slot, or no chunk.
const NONE: u32 = u32::MAX;
/// Chunks that are not merged.
const CHUNKS: usize = 16;
/// Slots of gone rows that are left where they are.
const GONE: usize = 16 * 1024;
/// Rows of a chunk that are looked at together when their time may be over.
const BLOCK: usize = 1024;

/// Rows on their way into a store, or past it.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) rows: RecordBatch,
    pub(super) hashes: Vec<u64>,
    /// Rows whose key has no NULL.
    pub(super) keyed: Vec<bool>,
    /// The last time at which a partner may come, microseconds.
    pub(super) until: Vec<i64>,
    /// Whether a partner came; empty when nobody asks.
    pub(super) matched: Vec<bool>,
    /// Numbers of the rows; empty when nobody asks.
    pub(super) ids: Vec<u64>,
}

impl Incoming {
    pub(super) fn len(&self) -> usize {
        self.hashes.len()
    }

    /// The rows at `places`.
    pub(super) fn take(&self, places: &[u32]) -> DfResult<Self> {
        fn of<T: Copy>(from: &[T], places: &[u32]) -> Vec<T> {
            if from.is_empty() { Vec::new() } else { places.iter().map(|at| from[*at as usize]).collect() }
        }
        Ok(Self {
            rows: arrow_select::take::take_record_batch(&self.rows, &UInt32Array::from(places.to_vec()))?,
            hashes: of(&self.hashes, places),
            keyed: of(&self.keyed, places),
            until: of(&self.until, places),
            matched: of(&self.matched, places),
            ids: of(&self.ids, places),
        })
    }
}

/// Where a row is.
pub(super) type At = (usize, usize);

#[derive(Debug, Clone, Copy)]
struct Slot {
    chunk: u32,
    row: u32,
    next: u32,
}

#[derive(Debug)]
struct Chunk {
    rows: Incoming,
    gone: Vec<bool>,
    /// The row's slot; `NONE` for one without a key.
    slots: Vec<u32>,
    live: usize,
    /// No live row's `until` is below; and of each [`BLOCK`] of rows.
    first: i64,
    firsts: Vec<i64>,
    /// Rows that the sweep has still to give.
    due: Range<usize>,
}

impl Chunk {
    /// Rows that are all kept.
    fn new(rows: Incoming, slots: Vec<u32>, due: Range<usize>) -> Self {
        let count = rows.len();
        let firsts: Vec<i64> = rows.until.chunks(BLOCK).filter_map(|block| block.iter().copied().min()).collect();
        let first = firsts.iter().copied().min().unwrap_or(i64::MAX);
        Self { gone: vec![false; count], slots, live: count, first, firsts, due, rows }
    }

    /// Kept rows among the first so many.
    fn live_before(&self, row: usize) -> usize {
        self.gone[..row].iter().filter(|gone| !**gone).count()
    }
}

/// What of chunks is due, in the numbers that their kept rows have when they are one.
fn due_of(chunks: &[Chunk]) -> Range<usize> {
    let (mut due, mut before) = (0..0, 0);
    for chunk in chunks {
        if !chunk.due.is_empty() {
            let (from, to) = (chunk.live_before(chunk.due.start), chunk.live_before(chunk.due.end));
            due = if due.is_empty() { before + from..before + to } else { due.start..before + to };
        }
        before += chunk.live;
    }
    due
}

/// The kept rows of one side.
#[derive(Debug)]
pub(super) struct Store {
    schema: SchemaRef,
    chunks: Vec<Chunk>,
    table: HashTable<(u64, u32)>,
    slots: Vec<Slot>,
    live: usize,
    gone: usize,
}

impl Store {
    pub(super) fn new(schema: SchemaRef) -> Self {
        Self { schema, chunks: Vec::new(), table: HashTable::new(), slots: Vec::new(), live: 0, gone: 0 }
    }

    /// Rows that are kept.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Adds rows as a chunk of their own and gives its place, good until [`Store::tidy`].
    pub(super) fn insert(&mut self, rows: Incoming) -> Option<usize> {
        if rows.len() == 0 {
            return None;
        }
        let (at, count) = (self.chunks.len(), rows.len());
        let mut chunk = Chunk::new(rows, vec![NONE; count], 0..0);
        link(&mut self.table, &mut self.slots, &mut chunk, at);
        self.live += count;
        self.chunks.push(chunk);
        Some(at)
    }

    /// Begins a sweep over the kept rows, without the last `new` of them.
    pub(super) fn begin_sweep(&mut self, new: usize) {
        let mut left = new;
        for chunk in self.chunks.iter_mut().rev() {
            let mut end = chunk.gone.len();
            if left >= chunk.live {
                (left, end) = (left - chunk.live, 0);
            }
            while left > 0 {
                end -= 1;
                left -= usize::from(!chunk.gone[end]);
            }
            chunk.due = 0..end;
        }
    }

    /// The places of the next rows of the sweep, up to `limit`, and whether they are the last.
    pub(super) fn sweep(&mut self, limit: usize) -> (Vec<At>, bool) {
        let mut found = Vec::new();
        for (at, chunk) in self.chunks.iter_mut().enumerate() {
            while found.len() < limit
                && let Some(row) = chunk.due.next()
            {
                if !chunk.gone[row] {
                    found.push((at, row));
                }
            }
        }
        let whole = self.chunks.iter().all(|chunk| chunk.due.is_empty());
        (found, whole)
    }

    /// Calls `found` with the place of each kept row of this hash.
    pub(super) fn find(&self, hash: u64, mut found: impl FnMut(At)) {
        let Some((_, head)) = self.table.find(hash, |(of, _)| *of == hash) else { return };
        let mut next = *head;
        while next != NONE {
            let slot = self.slots[next as usize];
            if slot.chunk != NONE && !self.chunks[slot.chunk as usize].gone[slot.row as usize] {
                found((slot.chunk as usize, slot.row as usize));
            }
            next = slot.next;
        }
    }

    /// Column `column` of the rows at `places`.
    pub(super) fn gather(&self, column: usize, places: &[At]) -> DfResult<ArrayRef> {
        let columns: Vec<&dyn arrow_array::Array> =
            self.chunks.iter().map(|chunk| chunk.rows.rows.column(column).as_ref()).collect();
        Ok(arrow_select::interleave::interleave(&columns, places)?)
    }

    /// Notes that the row has a partner; whether it had none before.
    pub(super) fn mark(&mut self, (chunk, row): At) -> bool {
        let matched = &mut self.chunks[chunk].rows.matched;
        matched.get_mut(row).is_some_and(|matched| !std::mem::replace(matched, true))
    }

    /// The rows at `places` with all that is known of them.
    pub(super) fn rows_at(&self, places: &[At]) -> DfResult<Incoming> {
        let columns =
            (0..self.schema.fields().len()).map(|column| self.gather(column, places)).collect::<DfResult<Vec<_>>>()?;
        let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(places.len()));
        let of = |(chunk, row): &At| (&self.chunks[*chunk].rows, *row);
        Ok(Incoming {
            rows: RecordBatch::try_new_with_options(SchemaRef::clone(&self.schema), columns, &options)?,
            hashes: places.iter().map(of).map(|(rows, row)| rows.hashes[row]).collect(),
            keyed: places.iter().map(of).map(|(rows, row)| rows.keyed[row]).collect(),
            until: places.iter().map(of).map(|(rows, row)| rows.until[row]).collect(),
            matched: places.iter().map(of).filter_map(|(rows, row)| rows.matched.get(row).copied()).collect(),
            ids: places.iter().map(of).filter_map(|(rows, row)| rows.ids.get(row).copied()).collect(),
        })
    }

    /// Places of the rows of a chunk that stay when what ends before `at` goes.
    pub(super) fn staying(&self, chunk: usize, at: i64) -> Vec<At> {
        let until = self.chunks[chunk].rows.until.iter().enumerate();
        until.filter(|(_, until)| **until >= at).map(|(row, _)| (chunk, row)).collect()
    }

    /// The last `until` that is kept.
    pub(super) fn last(&self) -> Option<i64> {
        let live = self.chunks.iter().filter(|chunk| chunk.live > 0);
        live.flat_map(|chunk| chunk.rows.until.iter().zip(&chunk.gone))
            .filter(|(_, gone)| !**gone)
            .map(|(u, _)| *u)
            .max()
    }

    /// Lets go of the rows whose `until` is before `at`, and gives the places of those that had no
    /// partner when partners are noted; they can be read until [`Store::tidy`].
    pub(super) fn expire(&mut self, at: i64) -> Vec<At> {
        let mut alone = Vec::new();
        for (index, chunk) in self.chunks.iter_mut().enumerate() {
            if chunk.live == 0 || chunk.first >= at {
                continue;
            }
            for (block, first) in chunk.firsts.iter_mut().enumerate().filter(|(_, first)| **first < at) {
                *first = i64::MAX;
                for row in block * BLOCK..chunk.gone.len().min((block + 1) * BLOCK) {
                    if chunk.gone[row] {
                        continue;
                    }
                    if chunk.rows.until[row] >= at {
                        *first = (*first).min(chunk.rows.until[row]);
                        continue;
                    }
                    chunk.gone[row] = true;
                    chunk.live -= 1;
                    self.live -= 1;
                    self.gone += 1;
                    if chunk.rows.matched.get(row).is_some_and(|matched| !matched) {
                        alone.push((index, row));
                    }
                }
            }
            chunk.first = chunk.firsts.iter().copied().min().unwrap_or(i64::MAX);
        }
        alone
    }

    /// Merges small chunks and gives back the room of gone rows.
    pub(super) fn tidy(&mut self) -> DfResult<()> {
        let many = self.gone > self.live + GONE;
        if many || self.chunks.iter().all(|chunk| chunk.live == 0) {
            let (kept, due) = (self.all()?, due_of(&self.chunks));
            *self = Self::new(SchemaRef::clone(&self.schema));
            if let Some(at) = kept.and_then(|kept| self.insert(kept)) {
                self.chunks[at].due = due;
            }
            return Ok(());
        }
        while self.chunks.len() > CHUNKS {
            // The sizes double from the youngest to the oldest, as in a log-structured tree.
            let sizes: Vec<usize> = self.chunks.iter().map(|chunk| chunk.live).collect();
            let pair = (1..sizes.len()).rev().find(|i| sizes[i - 1] <= 2 * sizes[*i]);
            let first = pair.map_or(sizes.len() - 2, |i| i - 1);
            self.merge(first)?;
        }
        Ok(())
    }

    /// Merges the chunks at `first` and behind it.
    fn merge(&mut self, first: usize) -> DfResult<()> {
        let places: Vec<At> = (first..first + 2).flat_map(|chunk| self.live_of(chunk)).collect();
        let merged = self.rows_at(&places)?;
        let slots: Vec<u32> = places.iter().map(|(chunk, row)| self.chunks[*chunk].slots[*row]).collect();
        for chunk in &self.chunks[first..first + 2] {
            for (slot, gone) in chunk.slots.iter().zip(&chunk.gone) {
                if *gone && *slot != NONE {
                    self.slots[*slot as usize].chunk = NONE;
                }
            }
        }
        let chunk = Chunk::new(merged, slots, due_of(&self.chunks[first..first + 2]));
        self.chunks.splice(first..first + 2, [chunk]);
        for (at, chunk) in self.chunks.iter().enumerate().skip(first) {
            for (row, (slot, gone)) in chunk.slots.iter().zip(&chunk.gone).enumerate() {
                if *slot != NONE && !gone {
                    let slot = &mut self.slots[*slot as usize];
                    (slot.chunk, slot.row) = (narrow(at), narrow(row));
                } else if *slot != NONE {
                    self.slots[*slot as usize].chunk = NONE;
                }
            }
        }
        Ok(())
    }

    fn live_of(&self, chunk: usize) -> impl Iterator<Item = At> + '_ {
        self.chunks[chunk].gone.iter().enumerate().filter(|(_, gone)| !**gone).map(move |(row, _)| (chunk, row))
    }

    /// All kept rows; `None` when there are none.
    pub(super) fn all(&self) -> DfResult<Option<Incoming>> {
        let places: Vec<At> = (0..self.chunks.len()).flat_map(|chunk| self.live_of(chunk)).collect();
        if places.is_empty() { Ok(None) } else { self.rows_at(&places).map(Some) }
    }
}

/// Puts the rows of a chunk in front of the chains of their hashes.
fn link(table: &mut HashTable<(u64, u32)>, slots: &mut Vec<Slot>, chunk: &mut Chunk, at: usize) {
    for row in 0..chunk.rows.len() {
        if !chunk.rows.keyed[row] {
            continue;
        }
        let hash = chunk.rows.hashes[row];
        let slot = narrow(slots.len());
        let entry = table.entry(hash, |(of, _)| *of == hash, |(of, _)| *of);
        let next = match entry {
            hashbrown::hash_table::Entry::Occupied(mut found) => std::mem::replace(&mut found.get_mut().1, slot),
            hashbrown::hash_table::Entry::Vacant(free) => {
                free.insert((hash, slot));
                NONE
            }
        };
        slots.push(Slot { chunk: narrow(at), row: narrow(row), next });
        chunk.slots[row] = slot;
    }
}

fn narrow(at: usize) -> u32 {
    u32::try_from(at).expect("a side of a join holds under four billion rows")
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Int64Array, cast::AsArray, types::Int64Type};
    use std::{collections::BTreeMap, sync::Arc};

    fn incoming(of: &[(i64, i64)]) -> Incoming {
        let rows = RecordBatch::try_from_iter([(
            "n",
            Arc::new(Int64Array::from_iter_values(of.iter().map(|(n, _)| *n))) as ArrayRef,
        )]);
        Incoming {
            rows: rows.unwrap(),
            hashes: of.iter().map(|(n, _)| (*n % 5).unsigned_abs()).collect(),
            keyed: of.iter().map(|(n, _)| n % 7 != 0).collect(),
            until: of.iter().map(|(_, until)| *until).collect(),
            matched: vec![false; of.len()],
            ids: of.iter().map(|(n, _)| n.unsigned_abs()).collect(),
        }
    }

    fn numbers(store: &Store, places: &[At]) -> Vec<i64> {
        let mut all = store.gather(0, places).unwrap().as_primitive::<Int64Type>().values().to_vec();
        all.sort_unstable();
        all
    }

    proptest::proptest! {
        /// What was there when a sweep began is given once, unless it went before its turn.
        #[test]
        fn a_sweep_gives_each_row_once(
            steps in proptest::collection::vec((proptest::collection::vec(0..90_i64, 0..9), 0..3_i64, 1..9_usize), 1..150)
        ) {
            let mut store = Store::new(incoming(&[]).rows.schema());
            let mut kept: BTreeMap<i64, i64> = BTreeMap::new();
            let (mut next, mut time, mut left, mut sweeps) = (0, 0, None::<BTreeMap<i64, i64>>, false);
            for (untils, ahead, limit) in steps {
                let rows: Vec<(i64, i64)> = untils.iter().map(|until| { next += 1; (next, time + until) }).collect();
                let before = kept.clone();
                store.insert(incoming(&rows));
                time += ahead;
                store.expire(time);
                store.tidy().unwrap();
                kept.extend(rows.iter().copied());
                kept.retain(|_, until| *until >= time);
                if !sweeps {
                    store.begin_sweep(rows.iter().filter(|(_, until)| *until >= time).count());
                    left = Some(before);
                }
                let left = left.as_mut().unwrap();
                left.retain(|_, until| *until >= time);
                let (places, whole) = store.sweep(limit);
                let given = if places.is_empty() { Vec::new() } else { numbers(&store, &places) };
                let expected: Vec<i64> = left.keys().copied().take(limit).collect();
                proptest::prop_assert_eq!(&given, &expected);
                given.iter().for_each(|n| { left.remove(n); });
                sweeps = !whole;
                proptest::prop_assert!(!whole || left.is_empty());
            }
        }

        #[test]
        fn it_holds_what_a_map_holds(
            steps in proptest::collection::vec((proptest::collection::vec(0..30_i64, 0..6), 0..3_i64), 1..80)
        ) {
            let schema = incoming(&[]).rows.schema();
            let mut store = Store::new(schema);
            let mut model: BTreeMap<i64, i64> = BTreeMap::new();
            let (mut next, mut time) = (1, 0);
            for (untils, ahead) in steps {
                let rows: Vec<(i64, i64)> = untils.iter().map(|until| { next += 1; (next, time + until) }).collect();
                store.insert(incoming(&rows));
                model.extend(rows);
                time += ahead;
                let alone = store.expire(time);
                let expected: Vec<i64> = model.iter().filter(|(_, until)| **until < time).map(|(n, _)| *n).collect();
                if !expected.is_empty() {
                    proptest::prop_assert_eq!(numbers(&store, &alone), expected);
                } else {
                    proptest::prop_assert!(alone.is_empty());
                }
                store.tidy().unwrap();
                model.retain(|_, until| *until >= time);
                proptest::prop_assert_eq!(store.live(), model.len());
                proptest::prop_assert_eq!(store.last(), model.values().max().copied());
                proptest::prop_assert!(store.chunks.len() <= CHUNKS);
                let dues = store.chunks.iter().filter(|chunk| !chunk.due.is_empty()).count();
                proptest::prop_assert_eq!(dues, 0, "nobody sweeps");
                for hash in 0..5_u64 {
                    let mut places = Vec::new();
                    store.find(hash, |at| places.push(at));
                    let expected: Vec<i64> = model.keys().filter(|n| (**n % 5).unsigned_abs() == hash && **n % 7 != 0).copied().collect();
                    if expected.is_empty() {
                        proptest::prop_assert!(places.is_empty());
                    } else {
                        proptest::prop_assert_eq!(numbers(&store, &places), expected);
                    }
                }
            }
        }
    }
}
