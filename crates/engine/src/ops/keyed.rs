//! The two halves of every keyed operator.
//!
//! [`scatter`] runs a chain and sends each pair to the partition that owns its
//! key; [`combine`] first folds pairs of equal keys beside the input, the
//! largest single lever there is, and sends what is left. The second half
//! opens behind the exchange and differs by operator.
//!
//! Invariant: a key is hashed once before the exchange and all its pairs of a
//! batch meet in one partition.

use crate::{
    plan::{Kernel, Lowering, Rows, exchange, rows_from},
    plan::{NodeInputs, external, mark, scattered},
    record::{Key, Record, finish_batch, hash_key, partition_of, schema_of},
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

/// Rows of a batch that leaves a keyed operator.
pub(crate) const ROWS: usize = 16 * 1024;

/// A fold of two values of one key.
pub(crate) trait Fold<V>: Fn(V, V) -> V + Send + Sync + 'static {}
impl<V, F: Fn(V, V) -> V + Send + Sync + 'static> Fold<V> for F {}

/// Keys with one folded value each.
pub(crate) struct Table<K, V> {
    entries: HashTable<(K, V)>,
}

impl<K: Key, V: Record> Table<K, V> {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { entries: HashTable::with_capacity(capacity) }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Folds `value` into the entry of `key`.
    #[inline]
    pub(crate) fn fold(&mut self, key: K::Ref<'_>, value: V::Ref<'_>, f: &impl Fn(V, V) -> V) {
        let hash = hash_key::<K>(key);
        match self.entries.entry(hash, |e| K::same(e.0.borrow(), key), |e| hash_key::<K>(e.0.borrow())) {
            Entry::Occupied(mut at) => {
                let slot = &mut at.get_mut().1;
                *slot = f(slot.clone(), V::own(value));
            }
            Entry::Vacant(at) => {
                at.insert((K::own(key), V::own(value)));
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(K, V)> {
        self.entries.iter()
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

struct CombineKernel<C, F, K, V> {
    chain: C,
    fold: Arc<F>,
    partitions: usize,
    schema: SchemaRef,
    /// Keys of the last batch: the next table starts at that size.
    keys: Arc<AtomicUsize>,
    pair: PhantomData<fn() -> (K, V)>,
}

impl<C, F, K, V> fmt::Debug for CombineKernel<C, F, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("combine")
    }
}

impl<C, F, K, V> Kernel for CombineKernel<C, F, K, V>
where
    K: Key,
    V: Record,
    C: Chain<Out = (K, V)>,
    F: Fold<V>,
{
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<crate::plan::BatchRun>) -> DfResult<Rows> {
        let mut rows = inputs.open(0, partition)?;
        let (chain, fold, partitions, keys) =
            (self.chain.clone(), Arc::clone(&self.fold), self.partitions, Arc::clone(&self.keys));
        let combined = async move {
            let mut table = Table::<K, V>::with_capacity(0);
            while let Some(batch) = rows.next().await {
                let batch = batch?;
                if table.len() == 0 && batch.num_rows() > 0 {
                    // A small batch must not pay for the table of a large one.
                    table = Table::with_capacity(keys.load(Relaxed).min(batch.num_rows() * 64));
                }
                chain.drive(&batch, |(key, value)| table.fold(key, value, &*fold)).map_err(external)?;
            }
            keys.store(table.len(), Relaxed);
            let mut out = Scatter::<(K, V)>::new(partitions, table.len());
            for (key, value) in table.iter() {
                out.push(hash_key::<K>(key.borrow()), (key.borrow(), value.borrow()))?;
            }
            out.finish()?;
            Ok(out.ready)
        };
        Ok(rows_from(Arc::clone(&self.schema), batches_of(combined)))
    }
}

struct ScatterKernel<C, K, V> {
    chain: C,
    partitions: usize,
    schema: SchemaRef,
    pair: PhantomData<fn() -> (K, V)>,
}

impl<C, K, V> fmt::Debug for ScatterKernel<C, K, V> {
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
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<crate::plan::BatchRun>) -> DfResult<Rows> {
        let rows = inputs.open(0, partition)?;
        let out = Scatter::<(K, V)>::new(self.partitions, ROWS);
        let chain = self.chain.clone();
        let scattered = stream::unfold((rows, out, false), move |(mut rows, mut out, done)| {
            let chain = chain.clone();
            async move {
                if done {
                    return None;
                }
                loop {
                    let (last, step) = match rows.next().await {
                        Some(Ok(batch)) => (false, drive_scatter(&chain, &batch, &mut out)),
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

/// The first half with a fold, and the exchange: partitions of `(K, V)`.
pub(crate) fn combine<K, V, C, F>(
    input: Arc<dyn ExecutionPlan>,
    chain: &C,
    fold: &Arc<F>,
    cx: &Lowering<'_>,
) -> Arc<dyn ExecutionPlan>
where
    K: Key,
    V: Record,
    C: Chain<Out = (K, V)>,
    F: Fold<V>,
{
    let schema = scattered(&schema_of::<(K, V)>());
    let kernel = CombineKernel {
        chain: chain.clone(),
        fold: Arc::clone(fold),
        partitions: cx.partitions,
        schema: Arc::clone(&schema),
        keys: Arc::default(),
        pair: PhantomData,
    };
    let count = input.output_partitioning().partition_count();
    exchange(cx.node("combine", kernel, vec![input], schema, count), cx.partitions)
}

/// The first half without a fold, and the exchange: partitions of `(K, V)`.
pub(crate) fn scatter<K, V, C>(input: Arc<dyn ExecutionPlan>, chain: &C, cx: &Lowering<'_>) -> Arc<dyn ExecutionPlan>
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
        pair: PhantomData,
    };
    let count = input.output_partitioning().partition_count();
    exchange(cx.node("scatter", kernel, vec![input], schema, count), cx.partitions)
}

/// The batches that a future gives at once, as a stream.
pub(crate) fn batches_of(
    batches: impl Future<Output = DfResult<Vec<RecordBatch>>> + Send + 'static,
) -> impl futures::Stream<Item = DfResult<RecordBatch>> + Send + 'static {
    stream::once(batches).flat_map(|batches| match batches {
        Ok(batches) => stream::iter(batches.into_iter().map(Ok).collect::<Vec<_>>()),
        Err(error) => stream::iter(vec![Err(error)]),
    })
}
