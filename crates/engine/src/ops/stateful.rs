//! What all operators with a state a key share.
//!
//! ```text
//! pairs ─ scatter ═ exchange ═ step: values and alarms of each key ─► rows
//!                                   │
//! first states (in the first batch) ┘
//! ```
//!
//! An operator brings its [`Step`]; here are how its state begins and ends
//! ([`Keeping`]), its lowering, and the stream of all its states. Invariant:
//! the node is made when it is first read, so that what was said about its
//! state until then counts; its name is taken at once, so that names follow the
//! order of declaration. Used by `update_state_by_key`, `map_with_state` and
//! `with_timers`.

use super::keyed::{ROWS, ValueTime, scatter, scatter_by_time};
use crate::{
    declare::Declare,
    plan::{BatchRun, Kernel, Lineage, Lowering, NodeInputs, Operator, Rows, external, rows_once},
    record::{Key, Record, schema_of},
    state::{
        alarms::Micros,
        keyed::{KeyedState, Moment, Part, present},
        life::Life,
    },
    stream::{Chain, DStream, Read, chain::Input},
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::{common::Result as DfResult, physical_plan::ExecutionPlan};
use futures::{StreamExt, TryStreamExt};
use std::{
    fmt,
    marker::PhantomData,
    sync::{Arc, OnceLock},
};
use tidemill_core::{Duration, Error, Result, Timestamp};

/// What an operator does with one partition of its state in one batch: rows in, rows out.
pub(crate) type Step<K, S, L> =
    Arc<dyn Fn(&mut Part<K, S, L>, &Moment, &[RecordBatch]) -> DfResult<Vec<RecordBatch>> + Send + Sync>;

/// How the keys of a state end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With a last call of the function, so long after their last record.
    Timeout(Duration),
    /// In silence, so long after their last update.
    Ttl(Duration),
}

impl End {
    pub(crate) fn span(self) -> Duration {
        let (Self::Timeout(span) | Self::Ttl(span)) = self;
        span
    }
}

/// How a state begins and ends.
pub(crate) struct Keeping<K, S> {
    pub(crate) end: Option<End>,
    first: Vec<(K, S)>,
    first_of: Option<Arc<Lineage>>,
}

impl<K, S> Keeping<K, S> {
    fn span(&self) -> Option<Micros> {
        // Far beyond any program's life, and safe to add to a time.
        const MOST: Micros = Micros::MAX / 4;
        self.end.map(|end| Micros::try_from(end.span().as_micros()).unwrap_or(MOST).min(MOST))
    }
}

/// All states of an operator, whatever else its keys keep.
pub(crate) trait Whole: Send + Sync {
    /// Of one partition, as rows of `(K, S)`.
    fn rows(&self, partition: usize) -> DfResult<Vec<RecordBatch>>;
}

impl<K: Key, S: Record, L: Life<K, S>> Whole for KeyedState<K, S, L> {
    fn rows(&self, partition: usize) -> DfResult<Vec<RecordBatch>> {
        let rows = self.part(partition).lock().all(ROWS).map_err(external)?;
        rows.iter().map(present::<K, S>).collect()
    }
}

/// Filled when the operator is planned.
pub(crate) type Planned = Arc<OnceLock<Arc<dyn Whole>>>;

/// Makes the node of an operator from how its state begins and ends.
type Make<K, S> = Arc<dyn Fn(&Declare, String, &Keeping<K, S>, &Planned) -> Arc<Lineage> + Send + Sync>;

/// A stateful operator that is being declared.
pub(crate) struct Stateful<K: Key, S: Record> {
    pub(crate) declare: Declare,
    name: String,
    keeping: Keeping<K, S>,
    make: Make<K, S>,
    node: OnceLock<Arc<Lineage>>,
    planned: Planned,
}

impl<K: Key, S: Record> fmt::Debug for Stateful<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl<K: Key, S: Record> Stateful<K, S> {
    pub(crate) fn new(
        declare: &Declare,
        kind: &str,
        make: impl Fn(&Declare, String, &Keeping<K, S>, &Planned) -> Arc<Lineage> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: declare.name(kind),
            declare: declare.unnamed(),
            keeping: Keeping { end: None, first: Vec::new(), first_of: None },
            make: Arc::new(make),
            node: OnceLock::new(),
            planned: Planned::default(),
        }
    }

    /// The operator's node, from now on as it is.
    pub(crate) fn node(&self) -> Arc<Lineage> {
        let make = || (self.make)(&self.declare, self.name.clone(), &self.keeping, &self.planned);
        Arc::clone(self.node.get_or_init(make))
    }

    fn fail(&self, what: &str) {
        self.declare.fail(Error::user(format!("`{}`: {what}", self.name)));
    }

    fn change(&mut self, what: &str, change: impl FnOnce(&mut Keeping<K, S>)) {
        if self.node.get().is_some() {
            self.fail(&format!("say `{what}` before a stream of it is taken"));
            return;
        }
        change(&mut self.keeping);
    }

    pub(crate) fn end(&mut self, end: End) {
        if end.span().is_zero() {
            self.fail("a timeout or time to live must be longer than nothing");
            return;
        }
        if self.keeping.end.is_some_and(|before| before != end) {
            self.fail("its keys can end in one way: give one timeout or one time to live");
            return;
        }
        self.change("timeout` or `ttl", |keeping| keeping.end = Some(end));
    }

    pub(crate) fn begin(&mut self, first: impl IntoIterator<Item = (K, S)>) {
        let first: Vec<_> = first.into_iter().collect();
        self.change("initial_state", |keeping| keeping.first.extend(first));
    }

    pub(crate) fn begin_from<C: Chain<Out = (K, S)>>(&mut self, first: &DStream<(K, S), C>) {
        let rows = first.rows();
        self.change("initial_state_from", |keeping| keeping.first_of = Some(rows));
    }

    /// All keys and states after each batch.
    pub(crate) fn snapshots(&self) -> DStream<(K, S)> {
        let operator = Snapshot { planned: Arc::clone(&self.planned), types: PhantomData::<fn() -> (K, S)> };
        DStream::of(&self.declare, vec![self.node()], operator)
    }
}

/// A keyed operator with a state, declared.
pub(crate) struct StatefulNode<C, K: Key, V: Record, S: Record, L> {
    pub(crate) kind: &'static str,
    pub(crate) chain: C,
    pub(crate) out: SchemaRef,
    pub(crate) step: Step<K, S, L>,
    pub(crate) event_time: Option<ValueTime<V>>,
    first: Vec<(K, S)>,
    span: Option<Micros>,
    state: OnceLock<Arc<KeyedState<K, S, L>>>,
    planned: Planned,
}

impl<C, K: Key, V: Record, S: Record, L> fmt::Debug for StatefulNode<C, K, V, S, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind)
    }
}

impl<C, K, V, S, L> StatefulNode<C, K, V, S, L>
where
    K: Key,
    V: Record,
    S: Record,
    L: Life<K, S>,
    C: Chain<Out = (K, V)>,
{
    /// The node of an operator that reads `chain` and gives rows of `out`.
    pub(crate) fn declare(
        (declare, name): (&Declare, String),
        (kind, chain): (&'static str, &C),
        out: SchemaRef,
        step: Step<K, S, L>,
        event_time: Option<ValueTime<V>>,
        (keeping, planned): (&Keeping<K, S>, &Planned),
    ) -> Arc<Lineage> {
        let inputs = std::iter::once(&chain.input().0).chain(&keeping.first_of).map(Arc::clone).collect();
        let operator = Self {
            kind,
            chain: chain.clone(),
            out,
            step,
            event_time,
            first: keeping.first.clone(),
            span: keeping.span(),
            state: OnceLock::new(),
            planned: Arc::clone(planned),
        };
        declare.named_node(name, inputs, operator)
    }
}

impl<C, K, V, S, L> Operator for StatefulNode<C, K, V, S, L>
where
    K: Key,
    V: Record,
    S: Record,
    L: Life<K, S>,
    C: Chain<Out = (K, V)>,
{
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.out)
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn lower(&self, inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let name = (cx.name.clone(), self.kind);
        let state = || Arc::new(KeyedState::new(name, cx.partitions, self.span, self.first.clone(), cx.memory.clone()));
        let state = Arc::clone(self.state.get_or_init(state));
        cx.states.register(Arc::clone(&state) as _);
        // Planned again, it is the same state.
        let _same = self.planned.set(Arc::clone(&state) as _);
        let mut inputs = inputs.into_iter();
        let pairs = inputs.next().ok_or_else(|| Error::internal("a keyed operator without input"))?;
        let pairs = match &self.event_time {
            None => scatter::<K, V, C>(pairs, &self.chain, cx),
            Some(event_time) => scatter_by_time::<K, V, C>(pairs, &self.chain, event_time.clone(), cx),
        };
        let first = inputs.next().map(|rows| {
            // Its rows are pairs as they lie; the node that a chain reads is not asked for anything here.
            let read = Read::<(K, S)> { input: Input(Arc::clone(&self.chain.input().0)), record: PhantomData };
            scatter::<K, S, _>(rows, &read, cx)
        });
        let kernel = StateKernel {
            name: cx.name.clone(),
            by_event_time: self.event_time.is_some(),
            step: Arc::clone(&self.step),
            state,
            out: Arc::clone(&self.out),
        };
        let inputs = std::iter::once(pairs).chain(first).collect();
        Ok(cx.node("state", kernel, inputs, Arc::clone(&self.out), cx.partitions))
    }
}

struct StateKernel<K, S, L> {
    name: String,
    by_event_time: bool,
    step: Step<K, S, L>,
    state: Arc<KeyedState<K, S, L>>,
    out: SchemaRef,
}

impl<K, S, L> fmt::Debug for StateKernel<K, S, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("state")
    }
}

impl<K: Key, S: Record, L: Life<K, S>> Kernel for StateKernel<K, S, L> {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let rows = inputs.open(0, partition)?;
        // All partitions are fresh together, so all of the exchange is read or none.
        let begins = inputs.count() > 1 && self.state.part(partition).lock().is_fresh();
        let first = if begins { Some(inputs.open(1, partition)?) } else { None };
        let (state, step, by_event_time) = (Arc::clone(&self.state), Arc::clone(&self.step), self.by_event_time);
        let name = if by_event_time { self.name.clone() } else { String::new() };
        let changed = async move {
            // Both exchanges at once: the writers of one may wait for readers of the other.
            let first = async {
                match first {
                    Some(rows) => rows.try_collect::<Vec<_>>().await.map(Some),
                    None => Ok(None),
                }
            };
            // All rows of the batch: their values are grouped by key before any is seen.
            let (rows, first): (Vec<RecordBatch>, _) = futures::try_join!(rows.try_collect(), first)?;
            // The exchange has ended, so all rows have moved the watermark.
            let watermark = match by_event_time {
                true if run.batch.is_end() => Timestamp(i64::MAX),
                true => {
                    let at = run.stream_watermark(&name).at();
                    if at > Timestamp::MIN {
                        run.move_watermark(&name, at);
                    }
                    run.watermark_now(&name)
                }
                false => Timestamp::MIN,
            };
            let moment = Moment { batch: run.batch.id, time: run.batch.time, watermark };
            let mut part = state.part(partition).lock();
            if let Some(first) = first {
                part.begin(&first)?;
            }
            if rows.is_empty() && !part.is_due(&moment) {
                return Ok(vec![]);
            }
            step(&mut part, &moment, &rows)
        };
        Ok(rows_once(Arc::clone(&self.out), changed))
    }
}

/// Reads all rows of a state after its operator has run.
struct Snapshot<K, S> {
    planned: Planned,
    types: PhantomData<fn() -> (K, S)>,
}

impl<K, S> fmt::Debug for Snapshot<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Snapshot")
    }
}

impl<K: Key, S: Record> Operator for Snapshot<K, S> {
    fn kind(&self) -> &'static str {
        "snapshot"
    }

    fn schema(&self) -> SchemaRef {
        schema_of::<(K, S)>()
    }

    fn lower(&self, inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let state = self.planned.get().ok_or_else(|| Error::internal("a snapshot was planned before its state"))?;
        let kernel = SnapshotKernel { state: Arc::clone(state), schema: self.schema() };
        Ok(cx.node("snapshot", kernel, inputs, self.schema(), cx.partitions))
    }
}

struct SnapshotKernel {
    state: Arc<dyn Whole>,
    schema: SchemaRef,
}

impl fmt::Debug for SnapshotKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("snapshot")
    }
}

impl Kernel for SnapshotKernel {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let mut changes = inputs.open(0, partition)?;
        let state = Arc::clone(&self.state);
        let all = async move {
            while let Some(batch) = changes.next().await {
                batch?;
            }
            state.rows(partition)
        };
        Ok(rows_once(Arc::clone(&self.schema), all))
    }
}
