//! Where a key's partition lives: its panes and sessions, and what they give.
//!
//! A key has **runs**: sessions, or the one run of all its panes. A version on
//! disk is what came in a batch, row by row as it came from the exchange (count
//! windows: with its number), so a restored state adds up the same rows again, and
//! drops what the watermark had closed. The rows of a key that are kept again are
//! marked: they take the place of all that was read of it before.
//!
//! Invariant: what a batch gives follows from the rows and the watermark before
//! and after it. A closed session never grows, since a record before the watermark
//! is late. A batch looks at the keys that it touches, and at those of which a window
//! ends, or is let go: each key has an entry at the watermark at which that is.

mod given;
#[cfg(test)]
mod tests;

use super::{Bounds, assign::Row};
use crate::{
    ops::keyed::Growing,
    plan::{BatchRun, Kernel, NodeInputs, Rows, external, rows_once},
    record::{Key, Record, hash_key, partition_of, read_batch, schema_of},
    state::{
        StateOperator, Swept, Version,
        alarms::{Alarm, Alarms},
    },
};
use arrow_array::{RecordBatch, UInt32Array};
use arrow_schema::SchemaRef;
use datafusion::common::Result as DfResult;
use futures::TryStreamExt;
use hashbrown::{HashTable, hash_table::Entry};
use parking_lot::Mutex;
use std::{collections::BTreeSet, fmt, marker::PhantomData, sync::Arc};
use tidemill_core::{BatchId, Duration, Error, Result, Timestamp, WindowKind, WindowSpec};
use tidemill_store::state::Again;

type Join<A> = Arc<dyn Fn(A, A) -> A + Send + Sync>;

/// A session, or the panes of a key.
struct Run<A> {
    /// Least and greatest time, or number.
    low: i64,
    high: i64,
    /// Accumulators by pane; of a session one.
    panes: Vec<(i64, A)>,
    /// The last batch that brought something.
    touched: u64,
    /// Panes of that batch.
    news: BTreeSet<i64>,
}

/// A key and its runs.
struct Held<K, A> {
    key: K,
    runs: Vec<Run<A>>,
    /// The watermark at which it is looked at next.
    wake: Option<i64>,
}

struct Part<K, A> {
    keys: HashTable<Held<K, A>>,
    delta: Option<(BatchId, Vec<RecordBatch>)>,
    rows: usize,
    /// Buckets before this one were given by the sweep that goes on.
    swept: usize,
    /// Hashes of the keys that are to be looked at, by watermark.
    wakes: Alarms,
    /// Hashes of the keys to which the batch has brought something.
    touched: Vec<u64>,
    /// Whether the rows came back from disk, and nobody has looked at them.
    is_back: bool,
    /// Keys that batches have looked at.
    #[cfg(test)]
    looks: usize,
}

impl<K, A> Default for Part<K, A> {
    fn default() -> Self {
        Self {
            keys: HashTable::new(),
            delta: None,
            rows: 0,
            swept: 0,
            wakes: Alarms::default(),
            touched: Vec::new(),
            is_back: false,
            #[cfg(test)]
            looks: 0,
        }
    }
}

fn hash_of<K: Key, A>(held: &Held<K, A>) -> u64 {
    hash_key::<K>(held.key.borrow())
}

fn panes_of<A>(runs: &[Run<A>]) -> usize {
    runs.iter().map(|run| run.panes.len()).sum()
}

/// The windows of one operator.
pub(super) struct Windows<K, A> {
    name: String,
    kind: &'static str,
    window: WindowKind,
    lateness: Duration,
    join: Option<Join<A>>,
    parts: Vec<Mutex<Part<K, A>>>,
}

impl<K, A> fmt::Debug for Windows<K, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "windows of {}", self.name)
    }
}

impl<K: Key, A: Record> Windows<K, A> {
    pub(super) fn new(
        (name, kind): (String, &'static str),
        window: WindowKind,
        lateness: Duration,
        partitions: usize,
    ) -> Self {
        let parts = (0..partitions).map(|_| Mutex::default()).collect();
        Self { name, kind, window, lateness, join: None, parts }
    }

    pub(super) fn joining(self, join: Join<A>) -> Self {
        Self { join: Some(join), ..self }
    }

    fn joined(&self, a: A, b: A) -> A {
        match &self.join {
            Some(join) => join(a, b),
            None => a,
        }
    }

    /// Adds rows. `batch` is 0 for rows that come back from disk.
    fn insert(&self, part: &mut Part<K, A>, rows: &RecordBatch, batch: u64) -> Result<()> {
        let column = read_batch::<Row<K, A>>(rows)?;
        for row in 0..rows.num_rows() {
            let (key, pane, low, high, value) = <Row<K, A>>::get(&column, row);
            let hash = hash_key::<K>(key);
            if part.keys.len() == part.keys.capacity() {
                // Growing moves all buckets: a sweep of them begins again.
                part.swept = 0;
                part.keys.reserve(part.keys.len().max(16), hash_of);
            }
            if batch > 0 {
                part.touched.push(hash);
            }
            let runs = match part.keys.entry(hash, |e| K::same(e.key.borrow(), key), hash_of) {
                Entry::Occupied(at) => &mut at.into_mut().runs,
                Entry::Vacant(at) => {
                    &mut at.insert(Held { key: K::own(key), runs: Vec::new(), wake: None }).into_mut().runs
                }
            };
            let news = BTreeSet::from([pane]);
            let new = Run { low, high, panes: vec![(pane, A::own(value))], touched: batch, news };
            let before = panes_of(runs);
            match self.window {
                WindowKind::Session(gap) => self.join_sessions(runs, new, gap),
                WindowKind::Time(_) | WindowKind::Count(_) => match runs.pop() {
                    Some(old) => runs.push(self.merged(old, new)),
                    None => runs.push(new),
                },
            }
            part.rows = (part.rows + panes_of(runs)).saturating_sub(before);
        }
        Ok(())
    }

    fn join_sessions(&self, sessions: &mut Vec<Run<A>>, new: Run<A>, gap: i64) {
        let mut joined = new;
        let mut at = 0;
        while at < sessions.len() {
            let old = &sessions[at];
            if old.low < joined.high.saturating_add(gap) && joined.low < old.high.saturating_add(gap) {
                let old = sessions.swap_remove(at);
                joined = self.merged(old, joined);
                // All of a session is one pane.
                let all = joined.panes.drain(..).map(|(_, value)| value).reduce(|a, b| self.joined(a, b));
                joined.panes.extend(all.map(|value| (joined.low, value)));
            } else {
                at += 1;
            }
        }
        sessions.push(joined);
        sessions.sort_by_key(|session| session.low);
    }

    fn merged(&self, old: Run<A>, new: Run<A>) -> Run<A> {
        let mut panes = old.panes;
        for (pane, value) in new.panes {
            match panes.binary_search_by_key(&pane, |(pane, _)| *pane) {
                Ok(at) => {
                    let (_, so_far) = panes.remove(at);
                    panes.insert(at, (pane, self.joined(so_far, value)));
                }
                Err(at) => panes.insert(at, (pane, value)),
            }
        }
        let mut news = if old.touched == new.touched { old.news } else { BTreeSet::new() };
        news.extend(new.news);
        Run {
            low: old.low.min(new.low),
            high: old.high.max(new.high),
            panes,
            touched: old.touched.max(new.touched),
            news,
        }
    }

    /// Gives the records of a batch their numbers, in the order of their places.
    fn numbered(&self, part: &Part<K, A>, rows: &[RecordBatch], spec: WindowSpec) -> DfResult<Vec<RecordBatch>> {
        let columns = rows.iter().map(read_batch::<Row<K, A>>).collect::<Result<Vec<_>>>().map_err(external)?;
        let mut order: Vec<(i64, usize, usize)> = Vec::new();
        for (at, column) in columns.iter().enumerate() {
            order.extend((0..rows[at].num_rows()).map(|row| (<Row<K, A>>::get(column, row).2, at, row)));
        }
        order.sort_unstable();
        let mut next: HashTable<(K, i64)> = HashTable::new();
        let mut out = Growing::<Row<K, A>>::new(&schema_of::<Row<K, A>>(), order.len());
        for (_, at, row) in order {
            let (key, _, _, _, value) = <Row<K, A>>::get(&columns[at], row);
            let hash = hash_key::<K>(key);
            let slot = match next.entry(hash, |e| K::same(e.0.borrow(), key), |e| hash_key::<K>(e.0.borrow())) {
                Entry::Occupied(at) => at.into_mut(),
                Entry::Vacant(vacant) => {
                    let had = part.keys.find(hash, |e| K::same(e.key.borrow(), key));
                    let from = had.and_then(|held| held.runs.first()).map_or(0, |run| run.high + 1);
                    vacant.insert((K::own(key), from)).into_mut()
                }
            };
            let number = slot.1;
            slot.1 += 1;
            out.push((key, spec.pane_of(Timestamp(number)).0, number, number, value))?;
        }
        out.finish()
    }

    /// One batch: takes rows, gives windows.
    fn turn<B: Bounds>(
        &self,
        index: usize,
        run: &BatchRun,
        rows: Vec<RecordBatch>,
        schema: &SchemaRef,
    ) -> DfResult<Vec<RecordBatch>> {
        let part = &mut *self.parts[index].lock();
        let batch = run.batch.id.0;
        let before = run.watermark_before(&self.name);
        let mut now = before;
        if !matches!(self.window, WindowKind::Count(_)) {
            // All input has been read: the exchange is at its end.
            let at = run.stream_watermark(&self.name).at();
            if at > Timestamp::MIN {
                run.move_watermark(&self.name, at);
            }
            now = now.max(at);
        }
        if std::mem::take(&mut part.is_back) {
            // What came back with a restored state and was closed before it was kept; of the rest, when it ends.
            self.drop_closed(part, before.minus(self.lateness));
            let hashes: Vec<u64> = part.keys.iter().map(hash_of).collect();
            for hash in hashes {
                self.look(part, hash, before, |_, _| Ok(()))?;
            }
        }
        let rows = match self.window {
            WindowKind::Count(spec) => self.numbered(part, &rows, spec)?,
            WindowKind::Time(_) | WindowKind::Session(_) => rows,
        };
        for rows in &rows {
            self.insert(part, rows, batch).map_err(external)?;
        }
        if run.batch.is_end() && !matches!(self.window, WindowKind::Count(_)) {
            let last = part.keys.iter().flat_map(|held| &held.runs).map(|run| self.last_end(run)).max();
            if let Some(last) = last {
                run.move_watermark(&self.name, Timestamp(last));
                now = now.max(Timestamp(last));
            }
        }
        part.delta = Some((run.batch.id, rows));
        let mut out = Growing::<(B, K, A)>::new(schema, part.keys.len().min(1024));
        if before < now || part.delta.as_ref().is_some_and(|(_, rows)| !rows.is_empty()) {
            let mut looks = std::mem::take(&mut part.touched);
            looks.extend(part.wakes.due(i64::MIN, now.0).into_iter().map(|(_, _, hash)| hash));
            // In an order that a restart repeats.
            looks.sort_unstable();
            looks.dedup();
            for hash in looks {
                self.look(part, hash, now, |key, of_key| {
                    for given in self.given(of_key, batch, before, now) {
                        let bounds = B::of(given.start, given.end);
                        out.push((bounds.borrow(), key.borrow(), given.value.borrow()))?;
                    }
                    Ok(())
                })?;
            }
        }
        out.finish()
    }

    /// Looks at the keys of a hash: `give` is told of each of their runs, then goes what no open window needs, and the
    /// next look is noted. The watermark is at `now`.
    fn look(
        &self,
        part: &mut Part<K, A>,
        hash: u64,
        now: Timestamp,
        mut give: impl FnMut(&K, &Run<A>) -> DfResult<()>,
    ) -> DfResult<()> {
        let horizon = now.minus(self.lateness);
        let mut emptied = false;
        for held in part.keys.iter_hash_mut(hash).filter(|held| hash_of(held) == hash) {
            #[cfg(test)]
            {
                part.looks += 1;
            }
            held.runs.iter().try_for_each(|run| give(&held.key, run))?;
            let before = panes_of(&held.runs);
            self.drop_closed_of(&mut held.runs, horizon);
            part.rows = (part.rows + panes_of(&held.runs)).saturating_sub(before);
            emptied |= held.runs.is_empty();
            // Its entry, if it came up, is taken out.
            held.wake = held.wake.filter(|wake| *wake > now.0);
            let next = held.runs.iter().filter_map(|run| self.next_look(run, now)).min();
            if let Some(next) = next.filter(|next| held.wake.is_none_or(|wake| *next < wake)) {
                part.wakes.add(Alarm::Event, next, hash);
                held.wake = Some(next);
            }
        }
        while emptied && let Ok(found) = part.keys.find_entry(hash, |held| held.runs.is_empty()) {
            found.remove();
        }
        Ok(())
    }

    /// Forgets the keys of rows that take the place of all that was read of them.
    fn replace(part: &mut Part<K, A>, rows: &RecordBatch) -> Result<()> {
        let column = read_batch::<Row<K, A>>(rows)?;
        for row in 0..rows.num_rows() {
            let key = <Row<K, A>>::get(&column, row).0;
            if let Ok(found) = part.keys.find_entry(hash_key::<K>(key), |e| K::same(e.key.borrow(), key)) {
                let (held, _) = found.remove();
                part.rows = part.rows.saturating_sub(panes_of(&held.runs));
            }
        }
        Ok(())
    }

    /// Adds the rows of a run as they are kept.
    fn append(&self, out: &mut Growing<Row<K, A>>, key: &K, run: &Run<A>) -> Result<()> {
        // Only the span of the run counts, and each of its rows says it; a count's rows say how many there were.
        let low = if matches!(self.window, WindowKind::Count(_)) { run.high } else { run.low };
        for (pane, value) in &run.panes {
            out.push((key.borrow(), *pane, low, run.high, value.borrow())).map_err(broken)?;
        }
        Ok(())
    }

    /// Forgets what no open window needs, of all keys.
    fn drop_closed(&self, part: &mut Part<K, A>, horizon: Timestamp) {
        let Part { keys, rows, .. } = part;
        keys.retain(|held| {
            let before = panes_of(&held.runs);
            self.drop_closed_of(&mut held.runs, horizon);
            *rows = (*rows + panes_of(&held.runs)).saturating_sub(before);
            !held.runs.is_empty()
        });
    }

    /// Forgets what no open window needs, of one key.
    fn drop_closed_of(&self, runs: &mut Vec<Run<A>>, horizon: Timestamp) {
        match self.window {
            WindowKind::Session(gap) => runs.retain(|run| run.high.saturating_add(gap) > horizon.0),
            WindowKind::Time(spec) => {
                for run in runs.iter_mut() {
                    run.panes.retain(|(pane, _)| spec.last_end(Timestamp(*pane)) > horizon);
                }
                runs.retain(|run| !run.panes.is_empty());
            }
            WindowKind::Count(spec) => {
                for run in runs.iter_mut() {
                    // Windows up to here were given; the last pane stays, since it tells how many there were.
                    run.low = run.high + 1;
                    let (has, last) = (run.low, run.panes.last().map_or(0, |(pane, _)| *pane));
                    run.panes.retain(|(pane, _)| *pane == last || spec.last_end(Timestamp(*pane)).0 > has);
                }
            }
        }
    }
}

impl<K: Key, A: Record> StateOperator for Windows<K, A> {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        self.kind
    }

    fn schema(&self) -> SchemaRef {
        schema_of::<Row<K, A>>()
    }

    fn restore(&self, versions: &[Version]) -> Result<()> {
        for part in &self.parts {
            *part.lock() = Part { is_back: true, ..Part::default() };
        }
        let from = versions.iter().rposition(|version| version.whole).unwrap_or(0);
        for version in &versions[from..] {
            let mut own = Vec::new();
            for rows in &version.rows {
                let column = read_batch::<Row<K, A>>(rows)?;
                let mut places = vec![Vec::new(); self.parts.len()];
                for (at, row) in (0_u32..).zip(0..rows.num_rows()) {
                    let key = <Row<K, A>>::get(&column, row).0;
                    places[partition_of(hash_key::<K>(key), self.parts.len())].push(at);
                }
                for (part, places) in self.parts.iter().zip(places) {
                    let rows = arrow_select::take::take_record_batch(rows, &UInt32Array::from(places));
                    own.push((part, rows.map_err(broken)?));
                }
            }
            if version.again.is_some() {
                own.iter().try_for_each(|(part, rows)| Self::replace(&mut part.lock(), rows))?;
            }
            own.iter().try_for_each(|(part, rows)| self.insert(&mut part.lock(), rows, 0))?;
        }
        if let WindowKind::Count(_) = self.window {
            self.parts.iter().for_each(|part| self.drop_closed(&mut part.lock(), Timestamp::MIN));
        }
        Ok(())
    }

    fn delta(&self, batch: BatchId) -> Result<Vec<RecordBatch>> {
        let deltas = self.parts.iter().filter_map(|part| part.lock().delta.take_if(|(of, _)| *of == batch));
        Ok(deltas.flat_map(|(_, rows)| rows).filter(|rows| rows.num_rows() > 0).collect())
    }

    fn sweeps(&self) -> bool {
        true
    }

    fn marks(&self) -> Option<Again> {
        Some(Again::InPlaceOf(vec![0]))
    }

    fn sweep(&self, rows: usize, begin: bool) -> Result<Swept> {
        let mut out = Growing::<Row<K, A>>::new(&self.schema(), rows.min(1024));
        let (mut count, mut whole) = (0, true);
        for part in &self.parts {
            let part = &mut *part.lock();
            if begin {
                part.swept = 0;
            }
            while count < rows && part.swept < part.keys.num_buckets() {
                if let Some(Held { key, runs, .. }) = part.keys.get_bucket(part.swept) {
                    runs.iter().try_for_each(|run| self.append(&mut out, key, run))?;
                    count += panes_of(runs);
                }
                part.swept += 1;
            }
            whole &= part.swept >= part.keys.num_buckets();
        }
        let mut rows = out.finish().map_err(broken)?;
        rows.retain(|rows| rows.num_rows() > 0);
        Ok(Swept { rows, whole })
    }

    fn snapshot(&self) -> Result<Vec<RecordBatch>> {
        let mut out = Growing::<Row<K, A>>::new(&self.schema(), 1024);
        for part in &self.parts {
            for Held { key, runs, .. } in &part.lock().keys {
                runs.iter().try_for_each(|run| self.append(&mut out, key, run))?;
            }
        }
        out.finish().map_err(broken)
    }

    fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.lock().rows).sum()
    }

    fn fresh(&self) -> Option<Arc<dyn StateOperator>> {
        let windows = Self::new((self.name.clone(), self.kind), self.window, self.lateness, 1);
        Some(Arc::new(Self { join: self.join.clone(), ..windows }))
    }
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::internal("rows of windows").because(error)
}

/// Runs the windows of a partition.
pub(super) struct WindowKernel<K, A, B> {
    windows: Arc<Windows<K, A>>,
    schema: SchemaRef,
    bounds: PhantomData<fn() -> B>,
}

impl<K, A, B> WindowKernel<K, A, B> {
    pub(super) fn new(windows: Arc<Windows<K, A>>, schema: SchemaRef) -> Self {
        Self { windows, schema, bounds: PhantomData }
    }
}

impl<K, A, B> fmt::Debug for WindowKernel<K, A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("windows")
    }
}

impl<K: Key, A: Record, B: Bounds> Kernel for WindowKernel<K, A, B> {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let rows = inputs.open(0, partition)?;
        let (windows, schema) = (Arc::clone(&self.windows), Arc::clone(&self.schema));
        let given = async move {
            let mut rows: Vec<RecordBatch> = rows.try_collect().await?;
            rows.retain(|rows| rows.num_rows() > 0);
            windows.turn::<B>(partition, &run, rows, &schema)
        };
        Ok(rows_once(Arc::clone(&self.schema), given))
    }
}
