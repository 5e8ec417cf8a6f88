//! `window` and the windowed folds: groups of batches by batch time.
//!
//! ```text
//! size 3, slide 2
//! batch time   1   2   3   4   5   6
//! windows        [1,2]   [2,3,4] [4,5,6]
//! ```
//!
//! The window at batch time *t* holds the batches with times in
//! (*t* − size, *t*]. It is given in the batch at a multiple of the slide;
//! between, the stream's batches are empty. Where the trigger has an interval,
//! size and slide must be multiples of it; where it has none, an empty batch is
//! run at the multiple while a window holds rows, and at the end of an exhausted
//! input, so that every record is shown.
//!
//! State, under the operator's name: one pane a batch. `window` keeps rows;
//! the folds keep what they made of a batch, so a window of a million records
//! over ten keys is ten rows a batch. A record belongs to the batch that read
//! it, so nothing is late; windows by the records' own time are SQL's
//! `TUMBLE` and `HOP`.
//!
//! ```
//! # use tidemill_engine::testing::check;
//! # use std::time::Duration;
//! let second = Duration::from_secs(1);
//! check(
//!     [vec![1], vec![2], vec![3], vec![4]],
//!     |numbers| numbers.reduce_by_window(|a, b| a + b, 3 * second, 2 * second),
//!     [vec![], vec![1 + 2], vec![], vec![2 + 3 + 4]],
//! );
//! ```

use super::{
    keyed::{Combiner, Fold, Folding, Growing, Table, combine, join_rows},
    reduce::{Count, Reduce},
};
use crate::{
    plan::{BatchRun, Kernel, Lowering, NodeInputs, Operator, Rows, external, rows_once},
    record::{Key, Record, batch_of, hash_key, read_batch, records_of, schema_of},
    state::panes::{Panes, Part, Route, Total, by_key, evenly},
    stream::{Chain, DStream},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::{
    common::Result as DfResult,
    physical_plan::{ExecutionPlan, ExecutionPlanProperties},
};
use futures::TryStreamExt;
use hashbrown::{HashTable, hash_table::Entry};
use std::{fmt, marker::PhantomData, sync::Arc};
use tidemill_core::{Batch, Duration, Error, Result, WindowSpec};

type Plan = Arc<dyn ExecutionPlan>;
/// The plan of a pane's rows over the operator's inputs.
type Pane = Box<dyn Fn(Vec<Plan>, &mut Lowering<'_>) -> Result<Plan> + Send + Sync>;
/// What a partition's window gives.
type Emit<W> = Arc<dyn Fn(&Part<<W as Total>::Table>) -> DfResult<Vec<RecordBatch>> + Send + Sync>;

/// A window over panes.
struct Windowed<W: Total> {
    kind: &'static str,
    size: Duration,
    slide: Duration,
    /// Columns of panes and of windows.
    schema: SchemaRef,
    pane: Pane,
    route: Route,
    total: Arc<W>,
    emit: Emit<W>,
}

impl<W: Total> fmt::Debug for Windowed<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:?} each {:?}", self.kind, self.size, self.slide)
    }
}

impl<W: Total> Operator for Windowed<W> {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn lower(&self, inputs: Vec<Plan>, cx: &mut Lowering<'_>) -> Result<Plan> {
        let spec = spec(&cx.name, self.size, self.slide, cx.interval)?;
        let input = (self.pane)(inputs, cx)?;
        let partitions = input.output_partitioning().partition_count();
        let name = (cx.name.clone(), self.kind);
        let spans = (self.size, spec.slide());
        let panes = Panes::new(name, spans, &self.schema, self.route, Arc::clone(&self.total), partitions);
        let panes = Arc::new(panes);
        cx.states.register(Arc::clone(&panes) as _);
        let kernel = WindowKernel { panes, slide: spec.slide(), emit: Arc::clone(&self.emit), schema: self.schema() };
        Ok(cx.node("window", kernel, vec![input], self.schema(), partitions))
    }
}

/// Checks size and slide, also against the interval between batches.
fn spec(name: &str, size: Duration, slide: Duration, interval: Option<Duration>) -> Result<WindowSpec> {
    let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
    let spec =
        WindowSpec::hop(micros(size), micros(slide)).map_err(|e| Error::user(format!("window `{name}`: {e}")))?;
    if let Some(interval) = interval {
        for (what, span) in [("size", size), ("slide", slide)] {
            if micros(span) % micros(interval).max(1) != 0 {
                return Err(Error::user(format!(
                    "window `{name}`: its {what} of {span:?} is not a multiple of the batch interval, {interval:?}"
                )));
            }
        }
    }
    Ok(spec)
}

/// Whether a window ends with a batch. While it holds rows, the loop runs a batch at each multiple of the slide.
fn is_due(batch: &Batch, slide: i64) -> bool {
    batch.time.floor(slide) == batch.time
}

struct WindowKernel<W: Total> {
    panes: Arc<Panes<W>>,
    slide: i64,
    emit: Emit<W>,
    schema: SchemaRef,
}

impl<W: Total> fmt::Debug for WindowKernel<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("window")
    }
}

impl<W: Total> Kernel for WindowKernel<W> {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let rows = inputs.open(0, partition)?;
        let (panes, emit, slide) = (Arc::clone(&self.panes), Arc::clone(&self.emit), self.slide);
        let window = async move {
            let mut rows: Vec<RecordBatch> = rows.try_collect().await?;
            rows.retain(|rows| rows.num_rows() > 0);
            panes.turn(partition, &run, rows, |part| if is_due(&run.batch, slide) { emit(part) } else { Ok(vec![]) })
        };
        Ok(rows_once(Arc::clone(&self.schema), window))
    }
}

/// The fold of all keys over the panes of a window, with the number of panes
/// that each key stands in: a key that none has is gone without a trace.
struct Running<K, V> {
    entries: HashTable<(K, (V, usize))>,
}

impl<K, V> Default for Running<K, V> {
    fn default() -> Self {
        Self { entries: HashTable::new() }
    }
}

impl<K: Key, V: Record> Running<K, V> {
    fn change(
        &mut self,
        pane: &RecordBatch,
        change: impl Fn(Option<(V, usize)>, V) -> Result<Option<(V, usize)>>,
    ) -> Result<()> {
        let column = read_batch::<(K, V)>(pane)?;
        for row in 0..pane.num_rows() {
            let (key, value) = <(K, V)>::get(&column, row);
            let hash = hash_key::<K>(key);
            let found = self.entries.entry(hash, |e| K::same(e.0.borrow(), key), |e| hash_key::<K>(e.0.borrow()));
            match found {
                Entry::Occupied(at) => {
                    let ((key, before), at) = at.remove();
                    if let Some(after) = change(Some(before), V::own(value))? {
                        at.insert((key, after));
                    }
                }
                Entry::Vacant(at) => {
                    if let Some(after) = change(None, V::own(value))? {
                        at.insert((K::own(key), after));
                    }
                }
            }
        }
        Ok(())
    }
}

/// A total by a fold and its inverse.
struct Inverse<K, V, F, G> {
    fold: F,
    inverse: G,
    pair: PhantomData<fn() -> (K, V)>,
}

impl<K, V, F, G> Total for Inverse<K, V, F, G>
where
    K: Key,
    V: Record,
    F: Fold<V>,
    G: Fn(V, V) -> V + Send + Sync + 'static,
{
    type Table = Running<K, V>;

    fn add(&self, running: &mut Running<K, V>, pane: &RecordBatch) -> Result<()> {
        running.change(pane, |before, value| {
            Ok(Some(match before {
                Some((so_far, panes)) => ((self.fold)(so_far, value), panes + 1),
                None => (value, 1),
            }))
        })
    }

    fn remove(&self, running: &mut Running<K, V>, pane: &RecordBatch) -> Result<()> {
        running.change(pane, |before, value| match before {
            Some((_, 1)) => Ok(None),
            Some((so_far, panes)) => Ok(Some(((self.inverse)(so_far, value), panes - 1))),
            None => Err(Error::internal("a key left a window that it was not in")),
        })
    }
}

impl<T: Record, C: Chain<Out = T>> DStream<T, C> {
    /// All records of the last `size`, each `slide`.
    pub fn window(&self, size: Duration, slide: Duration) -> DStream<T> {
        let operator = Windowed {
            kind: "window",
            size,
            slide,
            schema: schema_of::<T>(),
            pane: Box::new(|mut inputs, _| Ok(inputs.remove(0))),
            route: evenly,
            total: Arc::new(()),
            emit: Arc::new(|part: &Part<()>| Ok(part.panes.values().flatten().cloned().collect())),
        };
        DStream::of(&self.declare, vec![self.rows()], operator)
    }

    /// Folds all records of the last `size` to one, each `slide`; nothing for a
    /// window without records. `f` must be associative and commutative.
    pub fn reduce_by_window(
        &self,
        f: impl Fn(T, T) -> T + Send + Sync + 'static,
        size: Duration,
        slide: Duration,
    ) -> DStream<T> {
        let f = Arc::new(f);
        let batch = Reduce { chain: self.chain.clone(), fold: Arc::clone(&f) };
        self.folded("reduce_by_window", (size, slide), move |inputs, cx| batch.lower(inputs, cx), f, None)
    }

    /// The number of records of the last `size`, each `slide`.
    pub fn count_by_window(&self, size: Duration, slide: Duration) -> DStream<i64> {
        // A pane for each batch without records would keep an idle program awake.
        let batch = Count { chain: self.chain.clone(), of_nothing: false };
        let add = Arc::new(|a: i64, b: i64| a + b);
        self.folded("count_by_window", (size, slide), move |inputs, cx| batch.lower(inputs, cx), add, Some(0))
    }

    /// A window over panes of at most one record; without any it gives `empty`.
    fn folded<U: Record>(
        &self,
        kind: &'static str,
        (size, slide): (Duration, Duration),
        pane: impl Fn(Vec<Plan>, &mut Lowering<'_>) -> Result<Plan> + Send + Sync + 'static,
        fold: Arc<impl Fold<U>>,
        empty: Option<U>,
    ) -> DStream<U> {
        let emit = move |part: &Part<()>| {
            let mut whole = empty.clone();
            for rows in part.panes.values().flatten() {
                for record in records_of::<U>(rows).map_err(external)? {
                    whole = Some(match whole.take() {
                        Some(whole) => fold(whole, record),
                        None => record,
                    });
                }
            }
            whole.into_iter().map(|whole| batch_of([whole]).map_err(external)).collect()
        };
        let operator = Windowed {
            kind,
            size,
            slide,
            schema: schema_of::<U>(),
            pane: Box::new(pane),
            route: evenly,
            total: Arc::new(()),
            emit: Arc::new(emit),
        };
        DStream::of(&self.declare, vec![self.base()], operator)
    }
}

impl<T: Key, C: Chain<Out = T>> DStream<T, C> {
    /// How often each value stood in the last `size`, each `slide`.
    pub fn count_by_value_and_window(&self, size: Duration, slide: Duration) -> DStream<(T, i64)> {
        let (add, subtract) = (|a: i64, b: i64| a + b, |a: i64, b: i64| a - b);
        self.with_one().inverted("count_by_value_and_window", (add, subtract), (size, slide), |_, _| true)
    }
}

impl<K: Key, V: Record, C: Chain<Out = (K, V)>> DStream<(K, V), C> {
    /// Folds the values of each key over the last `size`, each `slide`. `f` must
    /// be associative and commutative. A window costs what its panes hold.
    pub fn reduce_by_key_and_window(
        &self,
        f: impl Fn(V, V) -> V + Send + Sync + 'static,
        size: Duration,
        slide: Duration,
    ) -> DStream<(K, V)> {
        let schema = schema_of::<(K, V)>();
        let (fold, chain) = (Arc::new(Folding(f)), self.chain.clone());
        let (of_window, out) = (Arc::clone(&fold), Arc::clone(&schema));
        let emit = move |part: &Part<()>| {
            let largest = part.panes.values().map(|pane| pane.iter().map(RecordBatch::num_rows).sum()).max();
            let mut table = Table::<K, V>::with_capacity(largest.unwrap_or(0));
            for rows in part.panes.values().flatten() {
                join_rows(&mut table, rows, &*of_window)?;
            }
            table.batches(&out)
        };
        let operator = Windowed {
            kind: "reduce_by_key_and_window",
            size,
            slide,
            schema,
            pane: pane_of::<K, V, C, _>(chain, fold),
            route: by_key::<K, V>,
            total: Arc::new(()),
            emit: Arc::new(emit),
        };
        DStream::of(&self.declare, vec![self.base()], operator)
    }

    /// As [`DStream::reduce_by_key_and_window`], for long windows: `inverse`
    /// takes an expired value out of a result again (`a - b` for `a + b`), so
    /// that a batch costs what comes in and goes out. A key without a value in
    /// the window is gone; `keep_if` may leave more keys out of the result.
    ///
    /// The inverse must be exact. Sums of floating-point numbers are not: use
    /// the plain form for them.
    pub fn reduce_by_key_and_window_inv(
        &self,
        f: impl Fn(V, V) -> V + Send + Sync + 'static,
        inverse: impl Fn(V, V) -> V + Send + Sync + 'static,
        size: Duration,
        slide: Duration,
        keep_if: impl for<'a> Fn(K::Ref<'a>, V::Ref<'a>) -> bool + Send + Sync + 'static,
    ) -> DStream<(K, V)> {
        self.inverted("reduce_by_key_and_window", (f, inverse), (size, slide), keep_if)
    }

    fn inverted(
        &self,
        kind: &'static str,
        (f, inverse): (impl Fold<V>, impl Fold<V>),
        (size, slide): (Duration, Duration),
        keep_if: impl for<'a> Fn(K::Ref<'a>, V::Ref<'a>) -> bool + Send + Sync + 'static,
    ) -> DStream<(K, V)> {
        let schema = schema_of::<(K, V)>();
        let out_schema = Arc::clone(&schema);
        let emit = move |part: &Part<Running<K, V>>| {
            let entries = &part.total.entries;
            let mut out = Growing::<(K, V)>::new(&out_schema, entries.len());
            for (key, (value, _)) in entries {
                if keep_if(key.borrow(), value.borrow()) {
                    out.push((key.borrow(), value.borrow()))?;
                }
            }
            out.finish()
        };
        let f = Arc::new(f);
        let of_pane = Arc::clone(&f);
        let fold = Arc::new(Folding(move |a, b| of_pane(a, b)));
        let of_total = move |a, b| f(a, b);
        let operator = Windowed {
            kind,
            size,
            slide,
            schema,
            pane: pane_of::<K, V, C, _>(self.chain.clone(), fold),
            route: by_key::<K, V>,
            total: Arc::new(Inverse { fold: of_total, inverse, pair: PhantomData::<fn() -> (K, V)> }),
            emit: Arc::new(emit),
        };
        DStream::of(&self.declare, vec![self.base()], operator)
    }
}

/// Panes of one folded value a key.
fn pane_of<K, V, C, M>(chain: C, fold: Arc<M>) -> Pane
where
    K: Key,
    V: Record,
    C: Chain<Out = (K, V)>,
    M: Combiner<V, V>,
{
    Box::new(move |mut inputs, cx| Ok(combine::<K, V, V, C, M>(inputs.remove(0), &chain, &fold, cx)))
}

#[cfg(test)]
mod tests;
