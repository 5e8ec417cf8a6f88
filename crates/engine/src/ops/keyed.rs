//! The two halves of every keyed operator.
//!
//! [`scatter`] runs a chain and sends each pair to the partition that owns its
//! key. [`combine`] first combines pairs of equal keys beside the input, the
//! largest single lever there is, sends what is left, and combines once more
//! behind the exchange. What follows differs by operator.
//!
//! Invariant: all pairs of a key of a batch meet in one partition.

use crate::{
    plan::{FAR, Kernel, Lowering, Rows, SourceExec, exchange, partition_of_rows, rows_from, rows_once},
    plan::{NodeInputs, external, mark, scattered},
    record::{Key, Record, finish_batch, hash_key, partition_of, read_batch, schema_of},
    stream::Chain,
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::{
    common::Result as DfResult,
    physical_plan::{ExecutionPlan, ExecutionPlanProperties},
};
use futures::{StreamExt, stream};
use hashbrown::{HashTable, hash_table::Entry};
use std::{
    fmt,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};
use tidemill_core::{Timestamp, WatermarkSpec};

/// Rows of a batch that leaves a keyed operator.
pub(crate) const ROWS: usize = 16 * 1024;

/// A fold of two values of one key.
pub(crate) trait Fold<V>: Fn(V, V) -> V + Send + Sync + 'static {}
impl<V, F: Fn(V, V) -> V + Send + Sync + 'static> Fold<V> for F {}

/// How the values of a key become one accumulator.
pub(crate) trait Combiner<V, A>: Send + Sync + 'static {
    /// The accumulator of a key's first value.
    fn create(&self, value: V) -> A;
    /// One more value.
    fn merge(&self, so_far: A, value: V) -> A;
    /// Two accumulators of one key.
    fn join(&self, a: A, b: A) -> A;
}

/// A [`Fold`] as a combiner: the accumulator is a value.
pub(crate) struct Folding<F>(pub(crate) F);

impl<V, F: Fold<V>> Combiner<V, V> for Folding<F> {
    #[inline]
    fn create(&self, value: V) -> V {
        value
    }
    #[inline]
    fn merge(&self, so_far: V, value: V) -> V {
        (self.0)(so_far, value)
    }
    #[inline]
    fn join(&self, a: V, b: V) -> V {
        (self.0)(a, b)
    }
}

/// Keys with one accumulator each.
pub(crate) struct Table<K, A> {
    entries: HashTable<(K, A)>,
}

impl<K: Key, A: Record> Table<K, A> {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { entries: HashTable::with_capacity(capacity) }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Changes the accumulator of `key` with `more`, or begins it with `first`.
    #[inline]
    pub(crate) fn upsert(&mut self, key: K::Ref<'_>, first: impl FnOnce() -> A, more: impl FnOnce(A) -> A) {
        let hash = hash_key::<K>(key);
        match self.entries.entry(hash, |e| K::same(e.0.borrow(), key), |e| hash_key::<K>(e.0.borrow())) {
            Entry::Occupied(mut at) if !std::mem::needs_drop::<A>() => {
                // Plain bytes: the clone is a copy.
                let slot = &mut at.get_mut().1;
                *slot = more(slot.clone());
            }
            Entry::Occupied(at) => {
                // Taken out and put back, since cloning a list at each of its items would cost its square.
                let ((key, so_far), at) = at.remove();
                at.insert((key, more(so_far)));
            }
            Entry::Vacant(at) => {
                at.insert((K::own(key), first()));
            }
        }
    }

    /// Joins an accumulator into that of `key`.
    #[inline]
    pub(crate) fn join<V>(&mut self, key: K::Ref<'_>, value: A::Ref<'_>, with: &impl Combiner<V, A>) {
        self.upsert(key, || A::own(value), |so_far| with.join(so_far, A::own(value)));
    }

    /// All pairs as batches with the columns of `(K, A)`.
    pub(crate) fn batches(&self, schema: &SchemaRef) -> DfResult<Vec<RecordBatch>> {
        let mut out = Growing::<(K, A)>::new(schema, self.len());
        for (key, value) in self.iter() {
            out.push((key.borrow(), value.borrow()))?;
        }
        out.finish()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(K, A)> {
        self.entries.iter()
    }
}

/// Rows that become batches of at most [`ROWS`].
pub(crate) struct Growing<T: Record> {
    builder: T::Builder,
    rows: usize,
    schema: SchemaRef,
    pub(crate) ready: Vec<RecordBatch>,
}

impl<T: Record> Growing<T> {
    pub(crate) fn new(schema: &SchemaRef, capacity: usize) -> Self {
        Self { builder: T::builder(capacity.min(ROWS)), rows: 0, schema: Arc::clone(schema), ready: Vec::new() }
    }

    #[inline]
    pub(crate) fn push(&mut self, record: T::Ref<'_>) -> DfResult<()> {
        T::append(&mut self.builder, record);
        self.rows += 1;
        if self.rows == ROWS { self.flush() } else { Ok(()) }
    }

    pub(crate) fn flush(&mut self) -> DfResult<()> {
        if self.rows > 0 {
            self.rows = 0;
            self.ready.push(finish_batch::<T>(&mut self.builder, &self.schema).map_err(external)?);
        }
        Ok(())
    }

    /// All batches.
    pub(crate) fn finish(mut self) -> DfResult<Vec<RecordBatch>> {
        self.flush()?;
        Ok(self.ready)
    }
}

/// Grows one batch for each partition and hands out those that are full.
pub(crate) struct Scatter<T: Record> {
    builders: Vec<(T::Builder, usize)>,
    schema: SchemaRef,
    scattered: SchemaRef,
    pub(crate) ready: Vec<RecordBatch>,
}

impl<T: Record> Scatter<T> {
    pub(crate) fn new(partitions: usize, capacity: usize) -> Self {
        let schema = schema_of::<T>();
        let scattered = scattered(&schema);
        Self {
            builders: (0..partitions).map(|_| (T::builder(capacity.min(ROWS)), 0)).collect(),
            schema,
            scattered,
            ready: Vec::new(),
        }
    }

    #[inline]
    pub(crate) fn push(&mut self, hash: u64, record: T::Ref<'_>) -> DfResult<()> {
        let partition = partition_of(hash, self.builders.len());
        let (builder, rows) = &mut self.builders[partition];
        T::append(builder, record);
        *rows += 1;
        if *rows == ROWS { self.flush(partition) } else { Ok(()) }
    }

    fn flush(&mut self, partition: usize) -> DfResult<()> {
        let (builder, rows) = &mut self.builders[partition];
        if *rows > 0 {
            *rows = 0;
            let batch = finish_batch::<T>(builder, &self.schema).map_err(external)?;
            self.ready.push(mark(&batch, partition, &self.scattered)?);
        }
        Ok(())
    }

    pub(crate) fn finish(&mut self) -> DfResult<()> {
        (0..self.builders.len()).try_for_each(|p| self.flush(p))
    }
}

struct CombineKernel<C, M, K, V, A> {
    chain: C,
    combiner: Arc<M>,
    partitions: usize,
    schema: SchemaRef,
    /// Keys of the last batch: the next table starts at that size.
    keys: Arc<AtomicUsize>,
    types: PhantomData<fn() -> (K, V, A)>,
}

impl<C, M, K, V, A> fmt::Debug for CombineKernel<C, M, K, V, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("combine")
    }
}

impl<C, M, K, V, A> Kernel for CombineKernel<C, M, K, V, A>
where
    K: Key,
    V: Record,
    A: Record,
    C: Chain<Out = (K, V)>,
    M: Combiner<V, A>,
{
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<crate::plan::BatchRun>) -> DfResult<Rows> {
        let mut rows = inputs.open(0, partition)?;
        let (chain, combiner, partitions, keys) =
            (self.chain.clone(), Arc::clone(&self.combiner), self.partitions, Arc::clone(&self.keys));
        let combined = async move {
            let mut table = Table::<K, A>::with_capacity(0);
            while let Some(batch) = rows.next().await {
                let batch = batch?;
                if table.len() == 0 && batch.num_rows() > 0 {
                    // A small batch must not pay for the table of a large one.
                    table = Table::with_capacity(keys.load(Relaxed).min(batch.num_rows() * 64));
                }
                chain
                    .drive(&batch, |(key, value)| {
                        table.upsert(
                            key,
                            || combiner.create(V::own(value)),
                            |so_far| combiner.merge(so_far, V::own(value)),
                        );
                    })
                    .map_err(external)?;
            }
            keys.store(table.len(), Relaxed);
            let mut out = Scatter::<(K, A)>::new(partitions, table.len());
            for (key, value) in table.iter() {
                out.push(hash_key::<K>(key.borrow()), (key.borrow(), value.borrow()))?;
            }
            out.finish()?;
            Ok(out.ready)
        };
        Ok(rows_once(Arc::clone(&self.schema), combined))
    }
}

/// The second half of a combination: joins the accumulators of a partition.
struct MergeKernel<M, K, V, A> {
    combiner: Arc<M>,
    types: PhantomData<fn() -> (K, V, A)>,
}

impl<M, K, V, A> fmt::Debug for MergeKernel<M, K, V, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("merge")
    }
}

impl<K: Key, V: Record, A: Record, M: Combiner<V, A>> Kernel for MergeKernel<M, K, V, A> {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<crate::plan::BatchRun>) -> DfResult<Rows> {
        let mut rows = inputs.open(0, partition)?;
        let combiner = Arc::clone(&self.combiner);
        let schema = schema_of::<(K, A)>();
        let out_schema = Arc::clone(&schema);
        let merged = async move {
            let mut table: Option<Table<K, A>> = None;
            while let Some(batch) = rows.next().await {
                let batch = batch?;
                let table = table.get_or_insert_with(|| Table::with_capacity(batch.num_rows()));
                join_rows(table, &batch, &*combiner)?;
            }
            table.map_or_else(|| Ok(vec![]), |table| table.batches(&out_schema))
        };
        Ok(rows_once(schema, merged))
    }
}

/// Joins rows of `(K, A)` into a table.
pub(crate) fn join_rows<K: Key, V, A: Record>(
    table: &mut Table<K, A>,
    rows: &RecordBatch,
    combiner: &impl Combiner<V, A>,
) -> DfResult<()> {
    let column = read_batch::<(K, A)>(rows).map_err(external)?;
    for row in 0..rows.num_rows() {
        let (key, value) = <(K, A)>::get(&column, row);
        table.join(key, value, combiner);
    }
    Ok(())
}

/// Where values have their event time, and how the watermark follows it.
pub(crate) struct ValueTime<V: Record> {
    pub(crate) of: Arc<dyn Fn(V::Ref<'_>) -> Timestamp + Send + Sync>,
    pub(crate) spec: WatermarkSpec,
}

impl<V: Record> Clone for ValueTime<V> {
    fn clone(&self) -> Self {
        Self { of: Arc::clone(&self.of), spec: self.spec }
    }
}

struct ScatterKernel<C, K, V: Record> {
    chain: C,
    partitions: usize,
    schema: SchemaRef,
    /// Whose watermark the rows move, if they do, and the stream whose partitions they name.
    event_time: Option<(String, String, ValueTime<V>)>,
    pair: PhantomData<fn() -> (K, V)>,
}

impl<C, K, V: Record> fmt::Debug for ScatterKernel<C, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("scatter")
    }
}

impl<C, K, V> Kernel for ScatterKernel<C, K, V>
where
    K: Key,
    V: Record,
    C: Chain<Out = (K, V)>,
{
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, run: Arc<crate::plan::BatchRun>) -> DfResult<Rows> {
        let rows = inputs.open(0, partition)?;
        let out = Scatter::<(K, V)>::new(self.partitions, ROWS);
        let chain = self.chain.clone();
        let event_time = self.event_time.clone();
        if let Some((name, stream, time)) = &event_time {
            run.follow(name, time.spec, stream);
        }
        let scattered = stream::unfold((rows, out, false), move |(mut rows, mut out, done)| {
            let (chain, event_time, run) = (chain.clone(), event_time.clone(), Arc::clone(&run));
            async move {
                if done {
                    return None;
                }
                loop {
                    let (last, step) = match rows.next().await {
                        Some(Ok(batch)) => (
                            false,
                            match &event_time {
                                None => drive_scatter(&chain, &batch, &mut out),
                                Some((name, _, time)) => {
                                    let latest = Timestamp(time.spec.latest(run.batch.time).0.min(FAR));
                                    scatter_timed(&chain, &batch, &mut out, time, latest).map(|largest| {
                                        if let Some(largest) = largest {
                                            run.observe(name, &partition_of_rows(&batch), largest);
                                        }
                                    })
                                }
                            },
                        ),
                        Some(Err(error)) => (true, Err(error)),
                        None => (true, out.finish()),
                    };
                    let ready: Vec<DfResult<RecordBatch>> = match step {
                        Ok(()) => out.ready.drain(..).map(Ok).collect(),
                        Err(error) => vec![Err(error)],
                    };
                    if last || !ready.is_empty() {
                        return Some((stream::iter(ready), (rows, out, last)));
                    }
                }
            }
        })
        .flatten();
        Ok(rows_from(Arc::clone(&self.schema), scattered))
    }
}

fn drive_scatter<C, K, V>(chain: &C, batch: &RecordBatch, out: &mut Scatter<(K, V)>) -> DfResult<()>
where
    K: Key,
    V: Record,
    C: Chain<Out = (K, V)>,
{
    let mut failed = Ok(());
    chain
        .drive(batch, |(key, value)| {
            if failed.is_ok() {
                failed = out.push(hash_key::<K>(key), (key, value));
            }
        })
        .map_err(external)?;
    failed
}

/// As [`drive_scatter`]; gives the largest event time of the batch that is not after `latest`.
fn scatter_timed<C, K, V>(
    chain: &C,
    batch: &RecordBatch,
    out: &mut Scatter<(K, V)>,
    time: &ValueTime<V>,
    latest: Timestamp,
) -> DfResult<Option<Timestamp>>
where
    K: Key,
    V: Record,
    C: Chain<Out = (K, V)>,
{
    let (mut failed, mut largest) = (Ok(()), None);
    chain
        .drive(batch, |(key, value)| {
            if failed.is_ok() {
                let at = (time.of)(value);
                if (-FAR..=latest.0).contains(&at.0) {
                    largest = largest.max(Some(at));
                }
                failed = out.push(hash_key::<K>(key), (key, value));
            }
        })
        .map_err(external)?;
    failed.map(|()| largest)
}

/// Both halves of a combination and the exchange between: partitions of `(K, A)`, each key once.
pub(crate) fn combine<K, V, A, C, M>(
    input: Arc<dyn ExecutionPlan>,
    chain: &C,
    combiner: &Arc<M>,
    cx: &Lowering<'_>,
) -> Arc<dyn ExecutionPlan>
where
    K: Key,
    V: Record,
    A: Record,
    C: Chain<Out = (K, V)>,
    M: Combiner<V, A>,
{
    let pairs = schema_of::<(K, A)>();
    let schema = scattered(&pairs);
    let kernel = CombineKernel {
        chain: chain.clone(),
        combiner: Arc::clone(combiner),
        partitions: cx.partitions,
        schema: Arc::clone(&schema),
        keys: Arc::default(),
        types: PhantomData::<fn() -> (K, V, A)>,
    };
    let count = input.output_partitioning().partition_count();
    let routed = exchange(cx.node("combine", kernel, vec![input], schema, count), cx.partitions);
    let merge = MergeKernel { combiner: Arc::clone(combiner), types: PhantomData::<fn() -> (K, V, A)> };
    cx.node("merge", merge, vec![routed], pairs, cx.partitions)
}

/// The first half without a fold, and the exchange: partitions of `(K, V)`.
pub(crate) fn scatter<K, V, C>(input: Arc<dyn ExecutionPlan>, chain: &C, cx: &Lowering<'_>) -> Arc<dyn ExecutionPlan>
where
    K: Key,
    V: Record,
    C: Chain<Out = (K, V)>,
{
    scattering::<K, V, C>(input, chain, None, cx)
}

/// As [`scatter`]; the rows move the watermark of the operator that is planned, each partition of the source its own
/// where the rows come straight from one. It stands when the exchange has ended.
pub(crate) fn scatter_by_time<K, V, C>(
    input: Arc<dyn ExecutionPlan>,
    chain: &C,
    event_time: ValueTime<V>,
    cx: &Lowering<'_>,
) -> Arc<dyn ExecutionPlan>
where
    K: Key,
    V: Record,
    C: Chain<Out = (K, V)>,
{
    // Rows straight from a source say which partition they are of.
    let (input, stream) = SourceExec::tagged_plan(&input).unwrap_or((input, String::new()));
    scattering::<K, V, C>(input, chain, Some((cx.name.clone(), stream, event_time)), cx)
}

fn scattering<K, V, C>(
    input: Arc<dyn ExecutionPlan>,
    chain: &C,
    event_time: Option<(String, String, ValueTime<V>)>,
    cx: &Lowering<'_>,
) -> Arc<dyn ExecutionPlan>
where
    K: Key,
    V: Record,
    C: Chain<Out = (K, V)>,
{
    let schema = scattered(&schema_of::<(K, V)>());
    let kernel = ScatterKernel {
        chain: chain.clone(),
        partitions: cx.partitions,
        schema: Arc::clone(&schema),
        event_time,
        pair: PhantomData,
    };
    let count = input.output_partitioning().partition_count();
    exchange(cx.node("scatter", kernel, vec![input], schema, count), cx.partitions)
}
