//! `reduce_by_key`, `reduce`, `count`: folds of one batch.
//!
//! Equal keys are folded beside the input, then once more where the key's
//! partition lives. No state, and no notion of late.
//!
//! ```
//! # use tidemill_engine::{testing::check_unordered, Str};
//! check_unordered(
//!     [vec!["a".to_string(), "b".into(), "a".into()], vec![]],
//!     |words| words.map(|w| (Str::from(w), 1_i64)).reduce_by_key(|a, b| a + b),
//!     [vec![(Str::from("a"), 2), (Str::from("b"), 1)], vec![]],
//! );
//! ```

use super::keyed::{Fold, ROWS, Table, batches_of, combine};
use crate::{
    plan::{BatchRun, Kernel, Lowering, NodeInputs, Operator, Rows, external, rows_from},
    record::{Key, Record, batch_of, finish_batch, read_batch, records_of, schema_of},
    stream::{Chain, DStream, Read},
};
use arrow_schema::SchemaRef;
use datafusion::{
    common::Result as DfResult,
    physical_plan::{ExecutionPlan, ExecutionPlanProperties, coalesce_partitions::CoalescePartitionsExec},
};
use futures::StreamExt;
use std::{fmt, marker::PhantomData, sync::Arc};
use tidemill_core::Result;

/// Folds pairs by key within a batch.
pub(crate) struct ReduceByKey<C, F> {
    pub(crate) chain: C,
    pub(crate) fold: Arc<F>,
}

impl<C, F> fmt::Debug for ReduceByKey<C, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReduceByKey")
    }
}

impl<K: Key, V: Record, C: Chain<Out = (K, V)>, F: Fold<V>> Operator for ReduceByKey<C, F> {
    fn kind(&self) -> &'static str {
        "reduce_by_key"
    }

    fn schema(&self) -> SchemaRef {
        schema_of::<(K, V)>()
    }

    fn lower(&self, mut inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let pairs = combine::<K, V, C, F>(inputs.remove(0), &self.chain, &self.fold, cx);
        let kernel = MergeKernel::<F, K, V> { fold: Arc::clone(&self.fold), pair: PhantomData };
        Ok(cx.node("merge", kernel, vec![pairs], self.schema(), cx.partitions))
    }
}

/// The second half: folds the pairs of a partition.
struct MergeKernel<F, K, V> {
    fold: Arc<F>,
    pair: PhantomData<fn() -> (K, V)>,
}

impl<F, K, V> fmt::Debug for MergeKernel<F, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("merge")
    }
}

impl<K: Key, V: Record, F: Fold<V>> Kernel for MergeKernel<F, K, V> {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let mut rows = inputs.open(0, partition)?;
        let fold = Arc::clone(&self.fold);
        let schema = schema_of::<(K, V)>();
        let out_schema = Arc::clone(&schema);
        let merged = async move {
            let mut table: Option<Table<K, V>> = None;
            while let Some(batch) = rows.next().await {
                let batch = batch?;
                let column = read_batch::<(K, V)>(&batch).map_err(external)?;
                let table = table.get_or_insert_with(|| Table::with_capacity(batch.num_rows()));
                for row in 0..batch.num_rows() {
                    let (key, value) = <(K, V)>::get(&column, row);
                    table.fold(key, value, &*fold);
                }
            }
            let Some(table) = table else { return Ok(vec![]) };
            let mut builder = <(K, V)>::builder(table.len().min(ROWS));
            let (mut out, mut pending) = (Vec::new(), 0);
            for pair in table.iter() {
                <(K, V)>::append(&mut builder, pair.borrow());
                pending += 1;
                if pending == ROWS {
                    out.push(finish_batch::<(K, V)>(&mut builder, &out_schema).map_err(external)?);
                    pending = 0;
                }
            }
            if pending > 0 {
                out.push(finish_batch::<(K, V)>(&mut builder, &out_schema).map_err(external)?);
            }
            Ok(out)
        };
        Ok(rows_from(schema, batches_of(merged)))
    }
}

/// Folds all records of a batch to at most one.
struct Reduce<C, F> {
    chain: C,
    fold: Arc<F>,
}

impl<C, F> fmt::Debug for Reduce<C, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reduce")
    }
}

impl<T: Record, C: Chain<Out = T>, F: Fold<T>> Operator for Reduce<C, F> {
    fn kind(&self) -> &'static str {
        "reduce"
    }

    fn schema(&self) -> SchemaRef {
        schema_of::<T>()
    }

    fn lower(&self, mut inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let input = inputs.remove(0);
        let count = input.output_partitioning().partition_count();
        let first = ReduceKernel { chain: self.chain.clone(), fold: Arc::clone(&self.fold) };
        let partial = cx.node("reduce", first, vec![input], self.schema(), count);
        let single: Arc<dyn ExecutionPlan> = Arc::new(CoalescePartitionsExec::new(partial));
        let rows = Read::<T> { input: self.chain.input().clone(), record: PhantomData };
        let second = ReduceKernel { chain: rows, fold: Arc::clone(&self.fold) };
        Ok(cx.node("merge", second, vec![single], self.schema(), 1))
    }
}

/// Folds the records of a partition to at most one.
struct ReduceKernel<C, F> {
    chain: C,
    fold: Arc<F>,
}

impl<C, F> fmt::Debug for ReduceKernel<C, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("reduce")
    }
}

impl<T: Record, C: Chain<Out = T>, F: Fold<T>> Kernel for ReduceKernel<C, F> {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let mut rows = inputs.open(0, partition)?;
        let (chain, fold) = (self.chain.clone(), Arc::clone(&self.fold));
        let folded = async move {
            let mut whole: Option<T> = None;
            while let Some(batch) = rows.next().await {
                chain
                    .drive(&batch?, |record| {
                        let record = T::own(record);
                        whole = Some(match whole.take() {
                            Some(whole) => fold(whole, record),
                            None => record,
                        });
                    })
                    .map_err(external)?;
            }
            Ok(match whole {
                Some(whole) => vec![batch_of([whole]).map_err(external)?],
                None => vec![],
            })
        };
        Ok(rows_from(schema_of::<T>(), batches_of(folded)))
    }
}

/// Counts the records of a batch: always one row, also for an empty batch.
struct Count<C> {
    chain: C,
}

impl<C> fmt::Debug for Count<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Count")
    }
}

impl<C: Chain> Operator for Count<C> {
    fn kind(&self) -> &'static str {
        "count"
    }

    fn schema(&self) -> SchemaRef {
        schema_of::<i64>()
    }

    fn lower(&self, mut inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let input = inputs.remove(0);
        let count = input.output_partitioning().partition_count();
        let partial = cx.node("count", CountKernel { chain: self.chain.clone() }, vec![input], self.schema(), count);
        let single: Arc<dyn ExecutionPlan> = Arc::new(CoalescePartitionsExec::new(partial));
        Ok(cx.node("sum", SumKernel, vec![single], self.schema(), 1))
    }
}

struct CountKernel<C> {
    chain: C,
}

impl<C> fmt::Debug for CountKernel<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("count")
    }
}

impl<C: Chain> Kernel for CountKernel<C> {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let mut rows = inputs.open(0, partition)?;
        let chain = self.chain.clone();
        let counted = async move {
            let mut count = 0_i64;
            while let Some(batch) = rows.next().await {
                chain.drive(&batch?, |_| count += 1).map_err(external)?;
            }
            Ok(vec![batch_of([count]).map_err(external)?])
        };
        Ok(rows_from(schema_of::<i64>(), batches_of(counted)))
    }
}

/// Sums a column of counts to one row.
#[derive(Debug)]
struct SumKernel;

impl Kernel for SumKernel {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let mut rows = inputs.open(0, partition)?;
        let summed = async move {
            let mut sum = 0_i64;
            while let Some(batch) = rows.next().await {
                sum += records_of::<i64>(&batch?).map_err(external)?.into_iter().sum::<i64>();
            }
            Ok(vec![batch_of([sum]).map_err(external)?])
        };
        Ok(rows_from(schema_of::<i64>(), batches_of(summed)))
    }
}

impl<T: Record, C: Chain<Out = T>> DStream<T, C> {
    /// Folds all records of each batch to one; nothing for an empty batch.
    /// `f` must be associative and commutative.
    pub fn reduce(&self, f: impl Fn(T, T) -> T + Send + Sync + 'static) -> DStream<T> {
        let operator = Reduce { chain: self.chain.clone(), fold: Arc::new(f) };
        DStream::of(&self.declare, vec![self.base()], operator)
    }

    /// The number of records of each batch: one row a batch.
    pub fn count(&self) -> DStream<i64> {
        DStream::of(&self.declare, vec![self.base()], Count { chain: self.chain.clone() })
    }
}

impl<K: Key, V: Record, C: Chain<Out = (K, V)>> DStream<(K, V), C> {
    /// Folds the values of each key within each batch. `f` must be associative
    /// and commutative: it is applied beside the input first.
    pub fn reduce_by_key(&self, f: impl Fn(V, V) -> V + Send + Sync + 'static) -> DStream<(K, V)> {
        let operator = ReduceByKey { chain: self.chain.clone(), fold: Arc::new(f) };
        DStream::of(&self.declare, vec![self.base()], operator)
    }
}
