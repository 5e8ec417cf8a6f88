//! Windows that each key has of its own: sessions, and windows by number of rows.
//!
//! ```text
//! gap 10     key a   |-5--8----14-|              |-40-|        two sessions
//! batch brings 20                 ─20-|                        joins the first: [5, 30)
//! batch brings 25                      ─25-|                   and so on: [5, 35)
//! ```
//!
//! Kept are the batch's partial rows, one for each key, other group and pane, with
//! the least and the greatest time (or number) of the records in it. Two rows of
//! a key whose spans overlap are of one session; rows of a session are merged to
//! one when they pile up. So the state is as large as the open sessions, however
//! many records they have.
//!
//! On disk a row is what it adds, so a sweep gives all rows of a key together, marked:
//! they take the place of all that was read of the key before.
//!
//! Invariant: what is given follows from the rows and the watermark before the
//! batch, and after it; a closed session never grows again, since a record before
//! the watermark is late. So a state that was restored from old rows drops what
//! had been given, and goes on as before. Called by [`super::state`].

use super::{
    blocks::Blocks,
    number::Keys,
    state::{Layout, Role, feed},
    times::Emit,
};
use crate::{
    plan::BatchRun,
    state::{StateOperator, Swept, Version},
};
use arrow_array::{
    Array, ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray,
    cast::AsArray,
    types::{Int64Type, TimestampMicrosecondType},
};
use arrow_schema::{DataType, SchemaRef};
use datafusion::{
    common::{Result as DfResult, internal_datafusion_err},
    execution::TaskContext,
    physical_plan::ExecutionPlan,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
};
use tidemill_core::{BatchId, Error, Result, Timestamp, WindowKind, WindowSpec};
use tidemill_store::state::Again;

/// Rows are merged when there are more than twice as many as after the last time, and this many more.
const MERGE_ROWS: usize = 16 * 1024;
/// Or when they came in more blocks than this, so that what piles up of a few keys is soon one row each.
const MERGE_BLOCKS: usize = 64;

type Key = Arc<[u8]>;

/// A row of the state.
#[derive(Debug, Clone, Copy)]
struct Piece {
    pane: i64,
    block: usize,
    row: usize,
}

/// A session, or the records that a key's count windows need.
#[derive(Debug, Clone)]
struct Run {
    /// Least and greatest time, or number.
    low: i64,
    high: i64,
    pieces: Vec<Piece>,
    /// The last batch that brought something.
    touched: u64,
    /// Count windows that end by this number of records have been given.
    given: i64,
}

/// A window and the places of its rows.
struct Closing {
    start: i64,
    end: i64,
    pieces: Vec<Piece>,
}

#[derive(Debug, Default)]
struct Inner {
    blocks: Blocks,
    keys: BTreeMap<Key, Vec<Run>>,
    /// Ends of sessions, to find those that close.
    ends: BTreeSet<(i64, Key)>,
    /// Rows in use, and rows after the last merge.
    rows: usize,
    merged: usize,
    /// The last key that the sweep gave.
    swept: Option<Key>,
    delta: Option<(BatchId, Vec<RecordBatch>)>,
}

/// The state of an aggregate over sessions or count windows.
#[derive(Debug)]
pub(super) struct KeyedWindows {
    name: String,
    layout: Layout,
    window: WindowKind,
    keys: Keys,
    inner: Mutex<Inner>,
}

impl KeyedWindows {
    pub(super) fn new(name: String, layout: Layout, window: WindowKind) -> DfResult<Self> {
        let keys = Keys::new(layout.key.iter().map(|place| layout.kept.field(*place).data_type()))?;
        Ok(Self { name, layout, window, keys, inner: Mutex::default() })
    }

    /// One batch: takes partial rows, gives results.
    pub(super) async fn step(
        &self,
        came: Vec<RecordBatch>,
        run: &BatchRun,
        above: &Arc<dyn ExecutionPlan>,
        merge: &Arc<dyn ExecutionPlan>,
        task: &Arc<TaskContext>,
    ) -> DfResult<Vec<RecordBatch>> {
        let timing = &self.layout.timing;
        let (before, mut now) = timing.watermarks(&self.name, run);
        let closing = {
            let inner = &mut *self.inner.lock();
            // What came back with a restored state and was closed before it was kept.
            self.drop_closed(inner, timing.horizon(before));
            let mut touched = BTreeSet::new();
            for rows in &came {
                self.insert(inner, rows, run.batch.id.0, &mut touched)?;
            }
            inner.delta = Some((run.batch.id, came));
            if let (true, WindowKind::Session(_), Some((last, _))) =
                (run.batch.is_end(), self.window, inner.ends.last())
            {
                run.move_watermark(&self.name, Timestamp(*last));
                now = now.max(Timestamp(*last));
            }
            match self.window {
                WindowKind::Session(gap) => self.sessions(inner, gap, &touched, run.batch.id.0, before, now),
                WindowKind::Count(spec) | WindowKind::Time(spec) => count_windows(inner, spec, &touched),
            }
        };
        let rows = self.gather(&closing)?;
        let results = if rows.is_empty() { Vec::new() } else { feed(above, task, rows).await? };
        let piled = {
            let inner = &mut *self.inner.lock();
            self.drop_closed(inner, timing.horizon(now));
            inner.blocks.tidy()?;
            let many = if inner.blocks.came() > MERGE_BLOCKS { 0 } else { MERGE_ROWS };
            let piled = inner.blocks.rows() > inner.merged * 2 + many;
            if piled { Some(self.all(inner)?) } else { None }
        };
        if let Some(rows) = piled {
            let merged = if rows.is_empty() { rows } else { feed(merge, task, rows).await? };
            let inner = &mut *self.inner.lock();
            let merged = Version { whole: false, again: None, rows: merged };
            let rebuilt = self.read(&[merged])?;
            *inner = Inner { delta: inner.delta.take(), swept: inner.swept.take(), ..rebuilt };
        }
        Ok(results.into_iter().filter(|rows| rows.num_rows() > 0).collect())
    }

    /// The sessions that this batch gives.
    fn sessions(
        &self,
        inner: &Inner,
        gap: i64,
        touched: &BTreeSet<Key>,
        batch: u64,
        before: Timestamp,
        now: Timestamp,
    ) -> Vec<Closing> {
        let end = |session: &Run| session.high.saturating_add(gap);
        let is_given = |session: &Run| match self.layout.timing.emit {
            Emit::Append => end(session) <= now.0 && (end(session) > before.0 || session.touched == batch),
            Emit::Update => session.touched == batch,
            Emit::Complete => true,
        };
        let mut keys = touched.clone();
        match self.layout.timing.emit {
            Emit::Append if before < now => {
                let none: Key = Arc::from([]);
                let from = (before.0.saturating_add(1), Arc::clone(&none));
                keys.extend(inner.ends.range(from..(now.0.saturating_add(1), none)).map(|(_, key)| Arc::clone(key)));
            }
            Emit::Complete => keys.extend(inner.keys.keys().cloned()),
            Emit::Append | Emit::Update => {}
        }
        let sessions = keys.iter().flat_map(|key| inner.keys.get(key).into_iter().flatten());
        let mut given: Vec<Closing> = sessions
            .filter(|session| is_given(session))
            .map(|session| Closing { start: session.low, end: end(session), pieces: session.pieces.clone() })
            .collect();
        given.sort_by_key(|closing| (closing.end, closing.start));
        given
    }

    /// The rows of windows as `Final` reads them.
    fn gather(&self, windows: &[Closing]) -> DfResult<Vec<RecordBatch>> {
        let rows: Vec<(usize, usize)> =
            windows.iter().flat_map(|w| w.pieces.iter().map(|piece| (piece.block, piece.row))).collect();
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let bounds = |of: fn(&Closing) -> i64| -> Vec<i64> {
            windows.iter().flat_map(|w| std::iter::repeat_n(of(w), w.pieces.len())).collect()
        };
        let (starts, ends) = (bounds(|w| w.start), bounds(|w| w.end));
        let kept = self.interleaved(&self.inner.lock(), &rows)?;
        let columns = self
            .layout
            .roles
            .iter()
            .zip(self.layout.full.fields())
            .map(|(role, field)| match role {
                Role::Kept(at) => Arc::clone(kept.column(*at)),
                Role::Start => numbers(starts.clone(), field.data_type()),
                Role::End => numbers(ends.clone(), field.data_type()),
            })
            .collect();
        Ok(vec![RecordBatch::try_new(Arc::clone(&self.layout.full), columns)?])
    }

    fn interleaved(&self, inner: &Inner, rows: &[(usize, usize)]) -> DfResult<RecordBatch> {
        let rows = inner.blocks.gather(rows)?;
        Ok(rows.unwrap_or_else(|| RecordBatch::new_empty(Arc::clone(&self.layout.kept))))
    }

    /// All rows, those of a session in one pane.
    fn all(&self, inner: &Inner) -> DfResult<Vec<RecordBatch>> {
        let runs: Vec<&Run> = inner.keys.values().flatten().collect();
        Ok(self.rows_of(inner, &runs)?.into_iter().collect())
    }

    /// The rows of these runs, those of a session in one pane; `None` for none.
    fn rows_of(&self, inner: &Inner, runs: &[&Run]) -> DfResult<Option<RecordBatch>> {
        let places = runs.iter().flat_map(|run| run.pieces.iter().map(|piece| (piece.block, piece.row)));
        let Some(rows) = inner.blocks.gather(&places.collect::<Vec<_>>())? else { return Ok(None) };
        if !matches!(self.window, WindowKind::Session(_)) {
            return Ok(Some(rows));
        }
        let panes = runs.iter().flat_map(|run| std::iter::repeat_n(run.low, run.pieces.len())).collect();
        let mut columns = rows.columns().to_vec();
        columns[self.layout.pane] = numbers(panes, self.layout.kept.field(self.layout.pane).data_type());
        Ok(Some(RecordBatch::try_new(Arc::clone(&self.layout.kept), columns)?))
    }

    /// Adds partial rows.
    fn insert(&self, inner: &mut Inner, rows: &RecordBatch, batch: u64, touched: &mut BTreeSet<Key>) -> DfResult<()> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let [pane, low, high] = [self.layout.pane, self.layout.low, self.layout.high].map(|at| micros(rows.column(at)));
        let (pane, low, high) = (pane?, low?, high?);
        let keys: Vec<ArrayRef> = self.layout.key.iter().map(|at| Arc::clone(rows.column(*at))).collect();
        let block = inner.blocks.push(rows.clone());
        inner.rows += rows.num_rows();
        let Inner { keys: of, ends, .. } = inner;
        self.keys.each(&keys, rows.num_rows(), |row, key| {
            let key = match of.get_key_value(key) {
                Some((key, _)) => Arc::clone(key),
                None => Arc::from(key),
            };
            let piece = Piece { pane: pane.value(row), block, row };
            let (low, high) = (low.value(row), high.value(row));
            let new = Run { low, high, pieces: vec![piece], touched: batch, given: low };
            let runs = of.entry(Arc::clone(&key)).or_default();
            match self.window {
                WindowKind::Session(gap) => join(runs, new, gap, &key, ends),
                WindowKind::Count(_) | WindowKind::Time(_) => match runs.first_mut() {
                    Some(run) => {
                        (run.high, run.touched) = (run.high.max(high), batch);
                        run.low = run.low.min(low);
                        run.pieces.push(piece);
                    }
                    None => runs.push(new),
                },
            }
            touched.insert(key);
        })
    }

    /// Forgets what no open window needs.
    fn drop_closed(&self, inner: &mut Inner, horizon: Timestamp) {
        let Inner { keys, ends, rows, .. } = inner;
        match self.window {
            WindowKind::Session(gap) => {
                while ends.first().is_some_and(|(end, _)| *end <= horizon.0) {
                    let Some((end, key)) = ends.pop_first() else { break };
                    let Some(runs) = keys.get_mut(&key) else { continue };
                    runs.retain(|run| {
                        let open = run.high.saturating_add(gap) != end;
                        *rows -= if open { 0 } else { run.pieces.len() };
                        open
                    });
                    if runs.is_empty() {
                        keys.remove(&key);
                    }
                }
            }
            WindowKind::Count(_) | WindowKind::Time(_) => {}
        }
    }

    /// Forgets the keys of rows that take the place of all that was read of them.
    fn replace(&self, inner: &mut Inner, rows: &RecordBatch) -> DfResult<()> {
        let columns: Vec<ArrayRef> = self.layout.key.iter().map(|at| Arc::clone(rows.column(*at))).collect();
        let Inner { keys, ends, rows: count, .. } = inner;
        self.keys.each(&columns, rows.num_rows(), |_, key| {
            let Some((key, runs)) = keys.remove_entry(key) else { return };
            for run in runs {
                *count -= run.pieces.len();
                if let WindowKind::Session(gap) = self.window {
                    ends.remove(&(run.high.saturating_add(gap), Arc::clone(&key)));
                }
            }
        })
    }

    /// A state that holds what these versions do, of which everything that is closed was given.
    fn read(&self, versions: &[Version]) -> DfResult<Inner> {
        let (mut inner, mut touched) = (Inner::default(), BTreeSet::new());
        let from = versions.iter().rposition(|version| version.whole).unwrap_or(0);
        for version in &versions[from..] {
            let own = |rows: &RecordBatch| RecordBatch::try_new(Arc::clone(&self.layout.kept), rows.columns().to_vec());
            let blocks: Vec<RecordBatch> = version.rows.iter().map(own).collect::<std::result::Result<_, _>>()?;
            if version.again.is_some() {
                blocks.iter().try_for_each(|rows| self.replace(&mut inner, rows))?;
            }
            for rows in &blocks {
                self.insert(&mut inner, rows, 0, &mut touched)?;
            }
            inner.blocks.tidy()?;
        }
        if let WindowKind::Count(spec) = self.window {
            let _given_before = count_windows(&mut inner, spec, &touched);
        }
        inner.merged = inner.rows;
        Ok(inner)
    }
}

/// Puts a run into a key's sessions, joining those that it overlaps.
fn join(sessions: &mut Vec<Run>, new: Run, gap: i64, key: &Key, ends: &mut BTreeSet<(i64, Key)>) {
    let mut joined = new;
    sessions.retain_mut(|old| {
        if old.low >= joined.high.saturating_add(gap) || joined.low >= old.high.saturating_add(gap) {
            return true;
        }
        ends.remove(&(old.high.saturating_add(gap), Arc::clone(key)));
        let mut pieces = std::mem::take(&mut old.pieces);
        pieces.append(&mut joined.pieces);
        joined = Run {
            low: old.low.min(joined.low),
            high: old.high.max(joined.high),
            pieces,
            touched: old.touched.max(joined.touched),
            given: joined.given,
        };
        false
    });
    ends.insert((joined.high.saturating_add(gap), Arc::clone(key)));
    sessions.push(joined);
    sessions.sort_by_key(|session| session.low);
}

/// The count windows of the keys that have enough records now; forgets what no later one needs.
fn count_windows(inner: &mut Inner, spec: WindowSpec, touched: &BTreeSet<Key>) -> Vec<Closing> {
    let mut given = Vec::new();
    for key in touched {
        let Some(run) = inner.keys.get_mut(key).and_then(|runs| runs.first_mut()) else { continue };
        let has = run.high.saturating_add(1);
        for window in spec.closing(Timestamp(run.given), Timestamp(has)) {
            let inside = |piece: &&Piece| window.contains(Timestamp(piece.pane));
            let pieces: Vec<Piece> = run.pieces.iter().filter(inside).copied().collect();
            // A window that would begin before the first record is none.
            if window.start.0 >= 0 {
                given.push(Closing { start: window.start.0, end: window.end.0, pieces });
            }
        }
        run.given = has;
        let held = run.pieces.len();
        run.pieces.retain(|piece| spec.last_end(Timestamp(piece.pane)).0 > has);
        inner.rows -= held - run.pieces.len();
        if run.pieces.is_empty() {
            inner.keys.remove(key);
        }
    }
    given
}

/// Times or numbers as numbers.
fn micros(column: &ArrayRef) -> DfResult<Int64Array> {
    let values = match column.data_type() {
        DataType::Timestamp(..) => {
            column.as_primitive_opt::<TimestampMicrosecondType>().map(|times| times.reinterpret_cast::<Int64Type>())
        }
        _ => column.as_primitive_opt::<Int64Type>().cloned(),
    };
    values.ok_or_else(|| internal_datafusion_err!("a window column of type {}", column.data_type()))
}

/// Numbers as a column of a window's type.
fn numbers(values: Vec<i64>, kind: &DataType) -> ArrayRef {
    match kind {
        DataType::Timestamp(..) => Arc::new(TimestampMicrosecondArray::from(values).with_data_type(kind.clone())),
        _ => Arc::new(Int64Array::from(values)),
    }
}

impl StateOperator for KeyedWindows {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "aggregate"
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.layout.kept)
    }

    fn restore(&self, versions: &[Version]) -> Result<()> {
        let restored = self
            .read(versions)
            .map_err(|e| Error::user(format!("the state of `{}` has other columns", self.name)).because(e))?;
        *self.inner.lock() = restored;
        Ok(())
    }

    fn delta(&self, batch: BatchId) -> Result<Vec<RecordBatch>> {
        Ok(self.inner.lock().delta.take_if(|(of, _)| *of == batch).map(|(_, rows)| rows).unwrap_or_default())
    }

    fn sweeps(&self) -> bool {
        true
    }

    fn marks(&self) -> Option<Again> {
        Some(Again::InPlaceOf(self.layout.key.clone()))
    }

    fn sweep(&self, rows: usize, begin: bool) -> Result<Swept> {
        let inner = &mut *self.inner.lock();
        let from = inner.swept.take().filter(|_| !begin).map_or(Bound::Unbounded, Bound::Excluded);
        let (mut runs, mut count, mut whole) = (Vec::new(), 0, true);
        for (key, of_key) in inner.keys.range::<Key, _>((from, Bound::Unbounded)) {
            if count >= rows {
                whole = false;
                break;
            }
            count += of_key.iter().map(|run| run.pieces.len()).sum::<usize>();
            runs.extend(of_key);
            inner.swept = Some(Arc::clone(key));
        }
        let rows = self.rows_of(inner, &runs);
        let rows = rows.map_err(|e| Error::internal(format!("the state of `{}`", self.name)).because(e))?;
        Ok(Swept { rows: rows.into_iter().collect(), whole })
    }

    fn snapshot(&self) -> Result<Vec<RecordBatch>> {
        let inner = self.inner.lock();
        let places: Vec<_> =
            inner.keys.values().flatten().flat_map(|run| run.pieces.iter().map(|p| (p.block, p.row))).collect();
        let rows = self.interleaved(&inner, &places).map_err(|e| Error::internal("rows of a state").because(e))?;
        Ok(vec![rows])
    }

    fn rows(&self) -> usize {
        self.inner.lock().rows
    }

    fn fresh(&self) -> Option<Arc<dyn StateOperator>> {
        Self::new(self.name.clone(), self.layout.clone(), self.window).ok().map(|state| Arc::new(state) as _)
    }
}
