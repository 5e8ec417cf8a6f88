//! `with_event_time`: windows by the records' own time, and by their number.
//!
//! ```text
//! records ─ time, pane ─ combine by (key, pane) ═ exchange ═ windows of each key ─ (window, key, value)
//! ```
//!
//! The watermark is that of the slowest partition of the input which is not idle,
//! where the stream reads a source through `map`, `filter` and `flat_map` alone;
//! behind other operators all records are one partition. A window is given when
//! the watermark passes its end, and again when a record came late that is still
//! allowed. A later one is a dead letter.
//!
//! State, under the operator's name: for each key one accumulator a pane (tumbling
//! and hopping windows), a session, or a pane of records (count windows).
//!
//! ```
//! # use tidemill_engine::testing::check_unordered;
//! # use std::time::Duration;
//! # use tidemill_core::Timestamp;
//! let at = |second: i64| Timestamp(second * 1_000_000);
//! check_unordered(
//!     [vec![(1_i64, 5_i64), (3, 1)], vec![(12, 7)], vec![(25, 0)]],
//!     |seconds| seconds
//!         .map(|(second, n)| ("all".to_string(), (second, n)))
//!         .with_event_time(move |(_, (second, _))| at(second), Duration::from_secs(2))
//!         .tumble(Duration::from_secs(10))
//!         .combine_by_key(|(_, n)| n, |sum, (_, n)| sum + n, |a, b| a + b),
//!     [
//!         vec![],
//!         vec![((at(0), at(10)), "all".to_string(), 6)],
//!         vec![((at(10), at(20)), "all".to_string(), 7)],
//!     ],
//! );
//! ```

mod assign;
mod windows;

#[cfg(test)]
mod tests;

use crate::{
    ops::keyed::{Combiner, Fold, Folding},
    plan::{Lowering, Operator, SourceExec, exchange, scattered},
    record::{Key, Record, schema_of},
    stream::{Chain, DStream},
};
use arrow_schema::SchemaRef;
use assign::{Assign, Row};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use std::{fmt, marker::PhantomData, sync::Arc};
use tidemill_core::{Duration, Error, Result, Timestamp, WatermarkSpec, WindowKind, WindowSpec};
use windows::{WindowKernel, Windows};

/// A window's first instant, and the first after it.
pub type TimeWindow = (Timestamp, Timestamp);
/// The number of a window's first record of a key, from 0, and of the first after it.
pub type CountWindow = (i64, i64);

/// What windows are bounded by.
pub trait Bounds: Record {
    /// From the two numbers.
    fn of(start: i64, end: i64) -> Self;
}

impl Bounds for TimeWindow {
    fn of(start: i64, end: i64) -> Self {
        (Timestamp(start), Timestamp(end))
    }
}

impl Bounds for CountWindow {
    fn of(start: i64, end: i64) -> Self {
        (start, end)
    }
}

/// When each record happened, and how late it may come.
struct Times<F> {
    time: Arc<F>,
    spec: WatermarkSpec,
    lateness: Duration,
}

impl<F> Clone for Times<F> {
    fn clone(&self) -> Self {
        Self { time: Arc::clone(&self.time), spec: self.spec, lateness: self.lateness }
    }
}

/// A stream whose records have a time of their own; made by [`DStream::with_event_time`].
pub struct EventStream<T: Record, C: Chain<Out = T>, F> {
    stream: DStream<T, C>,
    times: Times<F>,
}

impl<T: Record, C: Chain<Out = T>, F> fmt::Debug for EventStream<T, C, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "event time over {:?}", self.stream)
    }
}

impl<T: Record, C: Chain<Out = T>> DStream<T, C> {
    /// Says when a record happened, for windows by that time: the watermark trails
    /// the largest time by `bound`, so that records may come out of order by as much.
    ///
    /// A partition of the input that brings nothing for a minute of batch time holds
    /// no window open any more ([`EventStream::idle_after`]), and a record dated
    /// more than a day after its batch is a dead letter ([`EventStream::max_ahead`]).
    pub fn with_event_time<F>(&self, time: F, bound: Duration) -> EventStream<T, C, F>
    where
        F: for<'a> Fn(T::Ref<'a>) -> Timestamp + Send + Sync + 'static,
    {
        let times = Times { time: Arc::new(time), spec: WatermarkSpec::new(bound), lateness: Duration::ZERO };
        EventStream { stream: self.clone(), times }
    }
}

impl<T: Record, C: Chain<Out = T>, F> EventStream<T, C, F> {
    /// A partition that brings nothing for so long, by the time of batches, holds
    /// no window open; `None`: it always does.
    #[must_use]
    pub fn idle_after(mut self, span: Option<Duration>) -> Self {
        self.times.spec.idle_after = span;
        self
    }

    /// A record dated so much later than its batch is refused; `None`: none is.
    #[must_use]
    pub fn max_ahead(mut self, span: Option<Duration>) -> Self {
        self.times.spec.max_ahead = span;
        self
    }

    /// A closed window is kept so much longer, and given again, corrected, when a
    /// late record comes.
    #[must_use]
    pub fn allowed_lateness(mut self, span: Duration) -> Self {
        self.times.lateness = span;
        self
    }
}

impl<K, V, C, F> EventStream<(K, V), C, F>
where
    K: Key,
    V: Record,
    C: Chain<Out = (K, V)>,
    F: for<'a> Fn((K::Ref<'a>, V::Ref<'a>)) -> Timestamp + Send + Sync + 'static,
{
    /// Windows that touch and do not overlap, from multiples of `size` on.
    pub fn tumble(&self, size: Duration) -> EventWindows<K, V, C, F, TimeWindow> {
        self.windows(WindowSpec::tumble(micros(size)).map(WindowKind::Time))
    }

    /// Windows of `size`, one each `slide`.
    pub fn hop(&self, size: Duration, slide: Duration) -> EventWindows<K, V, C, F, TimeWindow> {
        self.windows(WindowSpec::hop(micros(size), micros(slide)).map(WindowKind::Time))
    }

    /// Runs of a key's records of which each comes less than `gap` after the one
    /// before; a session ends `gap` after its last record.
    pub fn session(&self, gap: Duration) -> EventWindows<K, V, C, F, TimeWindow> {
        self.windows(WindowKind::session(micros(gap)))
    }

    /// Windows of `size` records of a key, one each `slide` records, in the order
    /// in which they came. A window is given when it is full; time plays no part.
    pub fn count(&self, size: u32, slide: u32) -> EventWindows<K, V, C, F, CountWindow> {
        self.windows(WindowKind::count(i64::from(size), i64::from(slide)))
    }

    fn windows<B: Bounds>(&self, kind: Result<WindowKind>) -> EventWindows<K, V, C, F, B> {
        let kind = kind.unwrap_or_else(|error| {
            self.stream.declare.fail(error);
            WindowKind::Session(1)
        });
        EventWindows { stream: self.stream.clone(), times: self.times.clone(), kind, bounds: PhantomData }
    }
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

/// Windows of a keyed stream, to be folded.
pub struct EventWindows<K: Key, V: Record, C: Chain<Out = (K, V)>, F, B> {
    stream: DStream<(K, V), C>,
    times: Times<F>,
    kind: WindowKind,
    bounds: PhantomData<fn() -> B>,
}

impl<K: Key, V: Record, C: Chain<Out = (K, V)>, F, B> fmt::Debug for EventWindows<K, V, C, F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} over {:?}", self.kind, self.stream)
    }
}

impl<K, V, C, F, B> EventWindows<K, V, C, F, B>
where
    K: Key,
    V: Record,
    C: Chain<Out = (K, V)>,
    F: for<'a> Fn((K::Ref<'a>, V::Ref<'a>)) -> Timestamp + Send + Sync + 'static,
    B: Bounds,
{
    /// Folds the values of each key and window: `(window, key, value)`. `f` must be
    /// associative and commutative.
    pub fn reduce_by_key(&self, f: impl Fn(V, V) -> V + Send + Sync + 'static) -> DStream<(B, K, V)> {
        self.combined("reduce_event_windows", Folding(f))
    }

    /// Combines the values of each key and window into an accumulator of another
    /// type: `create` begins one, `merge` takes a value in, `join` makes one of two.
    pub fn combine_by_key<A: Record>(
        &self,
        create: impl Fn(V) -> A + Send + Sync + 'static,
        merge: impl Fn(A, V) -> A + Send + Sync + 'static,
        join: impl Fn(A, A) -> A + Send + Sync + 'static,
    ) -> DStream<(B, K, A)> {
        self.combined("combine_event_windows", Three(create, merge, join))
    }

    fn combined<A: Record, M: Combiner<V, A>>(&self, kind: &'static str, combiner: M) -> DStream<(B, K, A)> {
        let operator = Windowed {
            kind,
            chain: self.stream.chain.clone(),
            times: self.times.clone(),
            window: self.kind,
            combiner: Arc::new(combiner),
            types: PhantomData::<fn() -> (K, V, A, B)>,
        };
        DStream::of(&self.stream.declare, vec![self.stream.base()], operator)
    }
}

/// Three functions as a combiner.
struct Three<F, G, H>(F, G, H);

impl<V, A, F, G, H> Combiner<V, A> for Three<F, G, H>
where
    F: Fn(V) -> A + Send + Sync + 'static,
    G: Fn(A, V) -> A + Send + Sync + 'static,
    H: Fold<A>,
{
    fn create(&self, value: V) -> A {
        (self.0)(value)
    }

    fn merge(&self, so_far: A, value: V) -> A {
        (self.1)(so_far, value)
    }

    fn join(&self, a: A, b: A) -> A {
        (self.2)(a, b)
    }
}

/// The operator.
struct Windowed<K, V, A, B, C, F, M> {
    kind: &'static str,
    chain: C,
    times: Times<F>,
    window: WindowKind,
    combiner: Arc<M>,
    types: PhantomData<fn() -> (K, V, A, B)>,
}

impl<K, V, A, B, C, F, M> fmt::Debug for Windowed<K, V, A, B, C, F, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {:?}", self.kind, self.window)
    }
}

impl<K, V, A, B, C, F, M> Operator for Windowed<K, V, A, B, C, F, M>
where
    K: Key,
    V: Record,
    A: Record,
    B: Bounds,
    C: Chain<Out = (K, V)>,
    F: for<'a> Fn((K::Ref<'a>, V::Ref<'a>)) -> Timestamp + Send + Sync + 'static,
    M: Combiner<V, A>,
{
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn schema(&self) -> SchemaRef {
        schema_of::<(B, K, A)>()
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn lower(&self, mut inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        if inputs.is_empty() {
            return Err(Error::internal("windows without an input"));
        }
        let input = inputs.remove(0);
        // Rows straight from a source say which partition they are of.
        let (input, stream) = SourceExec::tagged_plan(&input).unwrap_or((input, String::new()));
        let schema = scattered(&schema_of::<Row<K, A>>());
        let count = input.output_partitioning().partition_count();
        let assign = Assign {
            name: cx.name.clone(),
            stream,
            chain: self.chain.clone(),
            times: self.times.clone(),
            window: self.window,
            combiner: Arc::clone(&self.combiner),
            partitions: cx.partitions,
            schema: Arc::clone(&schema),
            types: PhantomData::<fn() -> (K, V, A)>,
        };
        let routed = exchange(cx.node("panes by event time", assign, vec![input], schema, count), cx.partitions);
        let windows =
            Windows::<K, A>::new((cx.name.clone(), self.kind), self.window, self.times.lateness, cx.partitions);
        let combiner = Arc::clone(&self.combiner);
        let windows = Arc::new(windows.joining(Arc::new(move |a, b| combiner.join(a, b))));
        cx.states.register(Arc::clone(&windows) as _);
        let kernel = WindowKernel::<K, A, B>::new(windows, self.schema());
        Ok(cx.node("windows", kernel, vec![routed], self.schema(), cx.partitions))
    }
}
