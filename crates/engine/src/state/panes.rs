//! The batches of a window, kept as one pane of rows each.
//!
//! ```text
//! size 3, now batch 7:   [pane 5][pane 6][pane 7]     pane 4 has expired
//! ```
//!
//! A version on disk is the pane of its batch under the column `_batch_time`, and
//! older panes that are kept again, each whole, so that one takes the place of what
//! an older version has of its time. After a restart the panes of the last window
//! come back and the rows go to the partitions that own them now, which may be more
//! or fewer than before.
//!
//! Invariant: after the batch at time *t* a part holds the panes with times in
//! (*t* − size, *t*], and its total is that of these panes. Called by the
//! windows in `ops/window.rs`.

use super::{StateOperator, Swept, Version};
use crate::{
    plan::{BatchRun, external},
    record::{Key, Record, hash_key, partition_of, read_batch},
};
use arrow_array::{ArrayRef, RecordBatch, TimestampMicrosecondArray, UInt32Array, cast::AsArray, types};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::common::Result as DfResult;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};
use tidemill_core::{BatchId, Duration, Error, Result, Timestamp};

/// Name of the column of a pane's batch time.
const TIME: &str = "_batch_time";

/// What is kept of all panes together, so that a window need not visit each.
pub(crate) trait Total: Send + Sync + 'static {
    type Table: Default + Send + 'static;

    /// Takes a new pane in.
    fn add(&self, table: &mut Self::Table, pane: &RecordBatch) -> Result<()>;
    /// Takes an expired pane out.
    fn remove(&self, table: &mut Self::Table, pane: &RecordBatch) -> Result<()>;
}

/// No total: the window visits its panes.
impl Total for () {
    type Table = ();

    fn add(&self, _table: &mut (), _pane: &RecordBatch) -> Result<()> {
        Ok(())
    }
    fn remove(&self, _table: &mut (), _pane: &RecordBatch) -> Result<()> {
        Ok(())
    }
}

/// Deals rows out to `count` partitions.
pub(crate) type Route = fn(&RecordBatch, usize) -> Result<Vec<RecordBatch>>;

/// Rows that no partition owns: a slice each.
pub(crate) fn evenly(rows: &RecordBatch, count: usize) -> Result<Vec<RecordBatch>> {
    let at = |i: usize| rows.num_rows() * i / count;
    Ok((0..count).map(|i| rows.slice(at(i), at(i + 1) - at(i))).collect())
}

/// Rows of `(K, V)` to the partitions of their keys.
pub(crate) fn by_key<K: Key, V: Record>(rows: &RecordBatch, count: usize) -> Result<Vec<RecordBatch>> {
    let column = read_batch::<(K, V)>(rows)?;
    let mut places = vec![Vec::new(); count];
    for (at, row) in (0_u32..).zip(0..rows.num_rows()) {
        places[partition_of(hash_key::<K>(<(K, V)>::get(&column, row).0), count)].push(at);
    }
    places
        .into_iter()
        .map(|places| {
            arrow_select::take::take_record_batch(rows, &UInt32Array::from(places))
                .map_err(|e| Error::internal("rows of a pane").because(e))
        })
        .collect()
}

/// The panes of one partition.
pub(crate) struct Part<T> {
    pub(crate) panes: BTreeMap<Timestamp, Vec<RecordBatch>>,
    pub(crate) total: T,
    rows: usize,
    /// The last batch, until its pane was asked for.
    delta: Option<(BatchId, Timestamp)>,
}

impl<T: Default> Part<T> {
    fn new() -> Self {
        Self { panes: BTreeMap::new(), total: T::default(), rows: 0, delta: None }
    }
}

/// How far the panes have been kept again.
#[derive(Debug, Clone, Copy)]
struct Sweep {
    /// The first that was not.
    next: Timestamp,
    /// That of the batch with which the round began: it and later ones are in deltas.
    end: Timestamp,
    /// The pane of the last batch whose delta was taken.
    newest: Timestamp,
}

/// The panes of one window operator.
pub(crate) struct Panes<W: Total> {
    name: String,
    kind: &'static str,
    size: Duration,
    /// From one window to the next, microseconds.
    slide: i64,
    /// Columns on disk: [`TIME`], then the rows' own.
    stored: SchemaRef,
    rows: SchemaRef,
    route: Route,
    total: Arc<W>,
    parts: Vec<Mutex<Part<W::Table>>>,
    sweep: Mutex<Sweep>,
}

impl<W: Total> fmt::Debug for Panes<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panes of {} in {} parts", self.name, self.parts.len())
    }
}

impl<W: Total> Panes<W> {
    pub(crate) fn new(
        (name, kind): (String, &'static str),
        (size, slide): (Duration, i64),
        rows: &SchemaRef,
        route: Route,
        total: Arc<W>,
        partitions: usize,
    ) -> Self {
        let mut fields =
            vec![Arc::new(Field::new(TIME, DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false))];
        fields.extend(rows.fields().iter().cloned());
        Self {
            name,
            kind,
            size,
            slide,
            stored: Arc::new(Schema::new(fields)),
            rows: Arc::clone(rows),
            route,
            total,
            parts: (0..partitions).map(|_| Mutex::new(Part::new())).collect(),
            sweep: Mutex::new(Sweep { next: Timestamp::MIN, end: Timestamp::MIN, newest: Timestamp::MIN }),
        }
    }

    /// Takes in the batch's pane of a partition and drops those that expired.
    /// Returns what `emit` makes of the window.
    pub(crate) fn turn<R>(
        &self,
        partition: usize,
        run: &BatchRun,
        rows: Vec<RecordBatch>,
        emit: impl FnOnce(&Part<W::Table>) -> DfResult<R>,
    ) -> DfResult<R> {
        let now = run.batch.time;
        let mut part = self.parts[partition].lock();
        let part = &mut *part;
        let keep = part.panes.split_off(&Timestamp(now.minus(self.size).0.saturating_add(1)));
        for pane in std::mem::replace(&mut part.panes, keep).into_values().flatten() {
            self.total.remove(&mut part.total, &pane).map_err(external)?;
            part.rows -= pane.num_rows();
        }
        for pane in &rows {
            self.total.add(&mut part.total, pane).map_err(external)?;
            part.rows += pane.num_rows();
        }
        part.delta = None;
        if !rows.is_empty() {
            part.panes.insert(now, rows);
            part.delta = Some((run.batch.id, now));
        }
        emit(part)
    }

    /// A pane's rows as they are kept on disk.
    fn stored(&self, time: Timestamp, rows: &RecordBatch) -> Result<RecordBatch> {
        let times = TimestampMicrosecondArray::from_value(time.0, rows.num_rows()).with_timezone("UTC");
        let mut columns: Vec<ArrayRef> = vec![Arc::new(times)];
        columns.extend(rows.columns().iter().cloned());
        RecordBatch::try_new(Arc::clone(&self.stored), columns)
            .map_err(|e| Error::internal(format!("a pane of `{}`", self.name)).because(e))
    }

    /// Rows from disk as runs of one batch time each.
    fn runs(&self, stored: &RecordBatch) -> Result<Vec<(Timestamp, RecordBatch)>> {
        let broken = || Error::internal(format!("the kept rows of `{}` have no batch time", self.name));
        let times = stored.columns().first().ok_or_else(broken)?;
        let times = times.as_primitive_opt::<types::TimestampMicrosecondType>().ok_or_else(broken)?.values();
        let own = RecordBatch::try_new(Arc::clone(&self.rows), stored.columns()[1..].to_vec())
            .map_err(|e| Error::internal(format!("a pane of `{}`", self.name)).because(e))?;
        let (mut runs, mut start) = (Vec::new(), 0);
        for run in times.chunk_by(|a, b| a == b) {
            runs.push((Timestamp(run[0]), own.slice(start, run.len())));
            start += run.len();
        }
        Ok(runs)
    }
}

impl<W: Total> StateOperator for Panes<W> {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        self.kind
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.stored)
    }

    fn restore(&self, versions: &[Version]) -> Result<()> {
        let mut panes: BTreeMap<Timestamp, Vec<RecordBatch>> = BTreeMap::new();
        for version in versions {
            if version.whole {
                panes.clear();
            }
            let mut told = BTreeSet::new();
            for stored in &version.rows {
                for (time, rows) in self.runs(stored)? {
                    if told.insert(time) {
                        panes.remove(&time);
                    }
                    panes.entry(time).or_default().push(rows);
                }
            }
        }
        // Batches after the newest pane may have been empty; the next turn drops what they let expire.
        if let Some(newest) = panes.keys().next_back() {
            panes = panes.split_off(&Timestamp(newest.minus(self.size).0.saturating_add(1)));
        }
        for part in &self.parts {
            *part.lock() = Part::new();
        }
        for (time, batches) in panes {
            for rows in batches {
                for (part, rows) in self.parts.iter().zip((self.route)(&rows, self.parts.len())?) {
                    if rows.num_rows() > 0 {
                        let mut part = part.lock();
                        self.total.add(&mut part.total, &rows)?;
                        part.rows += rows.num_rows();
                        part.panes.entry(time).or_default().push(rows);
                    }
                }
            }
        }
        Ok(())
    }

    fn fresh(&self) -> Option<Arc<dyn StateOperator>> {
        let name = (self.name.clone(), self.kind);
        let spans = (self.size, self.slide);
        Some(Arc::new(Self::new(name, spans, &self.rows, self.route, Arc::clone(&self.total), 1)))
    }

    fn delta(&self, batch: BatchId) -> Result<Vec<RecordBatch>> {
        let (mut out, mut newest) = (Vec::new(), None);
        for part in &self.parts {
            let mut part = part.lock();
            if let Some((_, time)) = part.delta.take_if(|(of, _)| *of == batch) {
                newest = Some(time);
                for rows in part.panes.get(&time).into_iter().flatten() {
                    out.push(self.stored(time, rows)?);
                }
            }
        }
        if let Some(newest) = newest {
            self.sweep.lock().newest = newest;
        }
        Ok(out)
    }

    fn sweeps(&self) -> bool {
        true
    }

    fn sweep(&self, rows: usize, begin: bool) -> Result<Swept> {
        let mut sweep = self.sweep.lock();
        if begin {
            (sweep.next, sweep.end) = (Timestamp::MIN, sweep.newest);
        }
        let (mut out, mut count) = (Vec::new(), 0);
        loop {
            let first = |part: &Mutex<Part<W::Table>>| Some(*part.lock().panes.range(sweep.next..sweep.end).next()?.0);
            let Some(time) = self.parts.iter().filter_map(first).min() else {
                return Ok(Swept { rows: out, whole: true });
            };
            if count >= rows {
                return Ok(Swept { rows: out, whole: false });
            }
            for part in &self.parts {
                for rows in part.lock().panes.get(&time).into_iter().flatten() {
                    count += rows.num_rows();
                    out.push(self.stored(time, rows)?);
                }
            }
            sweep.next = Timestamp(time.0 + 1);
        }
    }

    fn snapshot(&self) -> Result<Vec<RecordBatch>> {
        let mut out = Vec::new();
        for part in &self.parts {
            for (time, pane) in &part.lock().panes {
                for rows in pane {
                    out.push(self.stored(*time, rows)?);
                }
            }
        }
        Ok(out)
    }

    fn due(&self, last: Timestamp, ending: bool) -> Option<Timestamp> {
        let newest = self.parts.iter().filter_map(|part| part.lock().panes.keys().next_back().copied()).max()?;
        let given = last.floor(self.slide);
        (newest > given || !ending).then(|| Timestamp(given.0.saturating_add(self.slide)))
    }

    fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.lock().rows).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{batch_of, schema_of};
    use tidemill_core::Batch;

    type Pair = (String, i64);

    fn panes(partitions: usize) -> Panes<()> {
        let name = ("sums".to_string(), "window");
        let size = Duration::from_micros(3);
        Panes::new(name, (size, 1), &schema_of::<Pair>(), by_key::<String, i64>, Arc::new(()), partitions)
    }

    /// What each part holds: the times and records of its panes.
    fn held(panes: &Panes<()>) -> Vec<(i64, Pair)> {
        let mut all = Vec::new();
        for (index, part) in panes.parts.iter().enumerate() {
            for (time, rows) in &part.lock().panes {
                for pair in rows.iter().flat_map(|rows| crate::record::records_of::<Pair>(rows).unwrap()) {
                    assert_eq!(partition_of(hash_key::<String>(&pair.0), panes.parts.len()), index, "{pair:?}");
                    all.push((time.0, pair));
                }
            }
        }
        all.sort();
        all
    }

    fn turn(panes: &Panes<()>, number: u8, keys: &[&str]) {
        let batch = Batch { id: BatchId(number.into()), time: Timestamp(number.into()), ..Batch::default() };
        let run = BatchRun::new(batch, BTreeMap::new());
        let rows = batch_of(keys.iter().map(|key| ((*key).to_string(), i64::from(number)))).unwrap();
        for (part, rows) in by_key::<String, i64>(&rows, panes.parts.len()).unwrap().into_iter().enumerate() {
            let rows = if rows.num_rows() > 0 { vec![rows] } else { vec![] };
            panes.turn(part, &run, rows, |_| Ok(())).unwrap();
        }
    }

    /// Deltas with older panes beside them give back the same panes, from where a round has begun.
    #[test]
    fn panes_that_are_kept_again_come_back_once() {
        let of = |partitions| {
            let name = ("sums".to_string(), "window");
            let size = Duration::from_micros(9);
            Panes::new(name, (size, 1), &schema_of::<Pair>(), by_key::<String, i64>, Arc::new(()), partitions)
        };
        for pace in 1..7 {
            let before = of(2);
            let (mut versions, mut sweep, mut rounds) = (Vec::new(), None, 0);
            for number in 1..60_u8 {
                let keys: &[&str] = match number % 4 {
                    0 => &["a", "b", "c", "d", "e"],
                    1 => &[],
                    _ => &["a", "f"],
                };
                turn(&before, number, keys);
                let mut rows = before.delta(BatchId(number.into())).unwrap();
                if rows.is_empty() {
                    continue;
                }
                let begin = sweep.is_none();
                let first = *sweep.get_or_insert(versions.len());
                let swept = before.sweep(pace, begin).unwrap();
                let given: usize = swept.rows.iter().map(RecordBatch::num_rows).sum();
                assert!(given < pace + 5, "{given} rows for {pace}");
                rows.extend(swept.rows);
                versions.push(Version { whole: false, again: None, rows });
                if swept.whole {
                    versions.drain(..first);
                    (sweep, rounds) = (None, rounds + 1);
                }
                let after = of(1 + usize::from(number % 3));
                after.restore(&versions).unwrap();
                assert_eq!(held(&after), held(&before), "after batch {number}, {pace} rows beside each");
                assert_eq!(after.rows(), before.rows());
            }
            assert!(rounds > 4 && versions.len() < 24, "{rounds} rounds, {} versions", versions.len());
        }
    }

    /// Snapshots and deltas, in any mix, give back the same panes at any number of partitions.
    #[test]
    fn versions_of_both_kinds_come_back_to_the_partitions_of_now() {
        let before = panes(2);
        let (mut versions, mut snapshots) = (Vec::new(), Vec::new());
        let batches: [&[&str]; 6] = [&["a", "b", "c"], &[], &["a", "d"], &["e"], &["b", "f"], &[]];
        for (number, keys) in (1..).zip(batches) {
            turn(&before, number, keys);
            let id = BatchId(number.into());
            versions.push(Version { whole: false, again: None, rows: before.delta(id).unwrap() });
            assert!(before.delta(id).unwrap().is_empty(), "a delta is taken once");
            snapshots.push(Version { whole: true, again: None, rows: before.snapshot().unwrap() });
            let alive = held(&before);
            assert!(alive.iter().all(|(time, _)| *time > i64::from(number) - 3), "{alive:?}");
            for partitions in 1..4 {
                for from in 0..=versions.len() {
                    // The snapshot of batch `from`, then the deltas after it.
                    let mut chain: Vec<_> = from.checked_sub(1).map(|at| snapshots[at].clone()).into_iter().collect();
                    chain.extend(versions[from..].iter().cloned());
                    let after = panes(partitions);
                    turn(&after, 1, &["old"]);
                    after.restore(&chain).unwrap();
                    // Empty batches after the newest pane let nothing expire until the next turn.
                    let got: Vec<_> = held(&after).into_iter().filter(|(t, _)| *t > i64::from(number) - 3).collect();
                    assert_eq!(got, alive, "after batch {number} from {from} into {partitions}");
                    assert_eq!(after.rows(), held(&after).len());
                }
            }
        }
    }
}
