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
//! Invariant: what is given follows from the rows and the watermark before the
//! batch, and after it; a closed session never grows again, since a record before
//! the watermark is late. So a state that was restored from old rows drops what
//! had been given, and goes on as before. Called by [`super::state`].

use super::{
    number::Keys,
    state::{Layout, Role, feed},
    times::Emit,
};
use crate::{
    plan::BatchRun,
    state::{StateOperator, Version},
};
use arrow_array::{
    Array, ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray,
    cast::AsArray,
    types::{Int64Type, TimestampMicrosecondType},
};
use arrow_schema::{DataType, SchemaRef};
use arrow_select::interleave::interleave_record_batch;
use datafusion::{
    common::{Result as DfResult, internal_datafusion_err},
    execution::TaskContext,
    physical_plan::ExecutionPlan,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tidemill_core::{BatchId, Error, Result, Timestamp, WindowKind, WindowSpec};

/// Rows are merged when there are more than twice as many as after the last time, and this many more.
const MERGE_ROWS: usize = 16 * 1024;
/// Blocks of rows that are held before they are merged however few they have.
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
    blocks: Vec<RecordBatch>,
    keys: BTreeMap<Key, Vec<Run>>,
    /// Ends of sessions, to find those that close.
    ends: BTreeSet<(i64, Key)>,
    /// Rows in use, and rows after the last merge.
    rows: usize,
    merged: usize,
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
            let held: usize = inner.blocks.iter().map(RecordBatch::num_rows).sum();
            let piled = held > inner.merged * 2 + MERGE_ROWS || inner.blocks.len() > MERGE_BLOCKS;
            if piled { Some(self.all(inner)?) } else { None }
        };
        if let Some(rows) = piled {
            let merged = if rows.is_empty() { rows } else { feed(merge, task, rows).await? };
            let inner = &mut *self.inner.lock();
            let delta = inner.delta.take();
            *inner = self.rebuilt(&merged)?;
            inner.delta = delta;
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
        if rows.is_empty() {
            return Ok(RecordBatch::new_empty(Arc::clone(&self.layout.kept)));
        }
        Ok(interleave_record_batch(&inner.blocks.iter().collect::<Vec<_>>(), rows)?)
    }

    /// All rows, those of a session in one pane.
    fn all(&self, inner: &Inner) -> DfResult<Vec<RecordBatch>> {
        let runs = || inner.keys.values().flatten();
        let places: Vec<(usize, usize)> = runs().flat_map(|run| run.pieces.iter().map(|p| (p.block, p.row))).collect();
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.interleaved(inner, &places)?;
        if !matches!(self.window, WindowKind::Session(_)) {
            return Ok(vec![rows]);
        }
        let panes = runs().flat_map(|run| std::iter::repeat_n(run.low, run.pieces.len())).collect();
        let mut columns = rows.columns().to_vec();
        columns[self.layout.pane] = numbers(panes, self.layout.kept.field(self.layout.pane).data_type());
        Ok(vec![RecordBatch::try_new(Arc::clone(&self.layout.kept), columns)?])
    }

    /// Adds partial rows.
    fn insert(&self, inner: &mut Inner, rows: &RecordBatch, batch: u64, touched: &mut BTreeSet<Key>) -> DfResult<()> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let [pane, low, high] = [self.layout.pane, self.layout.low, self.layout.high].map(|at| micros(rows.column(at)));
        let (pane, low, high) = (pane?, low?, high?);
        let keys: Vec<ArrayRef> = self.layout.key.iter().map(|at| Arc::clone(rows.column(*at))).collect();
        let block = inner.blocks.len();
        inner.blocks.push(rows.clone());
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

    /// A state that holds `blocks`, of which everything that is closed was given.
    fn rebuilt(&self, blocks: &[RecordBatch]) -> DfResult<Inner> {
        let (mut inner, mut touched) = (Inner::default(), BTreeSet::new());
        for rows in blocks {
            let rows = RecordBatch::try_new(Arc::clone(&self.layout.kept), rows.columns().to_vec())?;
            self.insert(&mut inner, &rows, 0, &mut touched)?;
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
        let from = versions.iter().rposition(|version| version.whole).unwrap_or(0);
        let blocks: Vec<RecordBatch> = versions[from..].iter().flat_map(|version| version.rows.clone()).collect();
        let restored = self
            .rebuilt(&blocks)
            .map_err(|e| Error::user(format!("the state of `{}` has other columns", self.name)).because(e))?;
        *self.inner.lock() = restored;
        Ok(())
    }

    fn delta(&self, batch: BatchId) -> Result<Vec<RecordBatch>> {
        Ok(self.inner.lock().delta.take_if(|(of, _)| *of == batch).map(|(_, rows)| rows).unwrap_or_default())
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
}
