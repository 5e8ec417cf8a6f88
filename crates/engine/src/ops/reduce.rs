//! `reduce_by_key`, `combine_by_key`, `reduce`, `count`: folds of one batch.
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
//!
//! // The largest and the number of values of a key.
//! check_unordered(
//!     [vec![(1, 5_i64), (2, 7), (1, 9)]],
//!     |pairs| pairs.combine_by_key(
//!         |v| (v, 1_i64),
//!         |(max, n), v| (v.max(max), n + 1),
//!         |(a, n), (b, m)| (a.max(b), n + m),
//!     ),
//!     [vec![(1, (9, 2)), (2, (7, 1))]],
//! );
//! ```

use super::keyed::{Combiner, Fold, Folding, combine};
use crate::{
    plan::{BatchRun, Kernel, Lowering, NodeInputs, Operator, Rows, external, rows_once},
    record::{Key, Record, batch_of, records_of, schema_of},
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

/// Combines pairs by key within a batch.
struct CombineByKey<C, M, V, A> {
    kind: &'static str,
    chain: C,
    combiner: Arc<M>,
    types: PhantomData<fn() -> (V, A)>,
}

impl<C, M, V, A> fmt::Debug for CombineByKey<C, M, V, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind)
    }
}

impl<K, V, A, C, M> Operator for CombineByKey<C, M, V, A>
where
    K: Key,
    V: Record,
    A: Record,
    C: Chain<Out = (K, V)>,
    M: Combiner<V, A>,
{
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn schema(&self) -> SchemaRef {
        schema_of::<(K, A)>()
    }

    fn lower(&self, mut inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(combine::<K, V, A, C, M>(inputs.remove(0), &self.chain, &self.combiner, cx))
    }
}

/// The three functions of `combine_by_key`.
struct Three<A, B, D>(A, B, D);

impl<V, A, F, G, H> Combiner<V, A> for Three<F, G, H>
where
    F: Fn(V) -> A + Send + Sync + 'static,
    G: Fn(A, V) -> A + Send + Sync + 'static,
    H: Fn(A, A) -> A + Send + Sync + 'static,
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

/// Folds all records of a batch to at most one.
pub(super) struct Reduce<C, F> {
    pub(super) chain: C,
    pub(super) fold: Arc<F>,
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
        Ok(rows_once(schema_of::<T>(), folded))
    }
}

/// Counts the records of a batch: one row.
pub(super) struct Count<C> {
    pub(super) chain: C,
    /// Whether a batch without records gives a row, 0.
    pub(super) of_nothing: bool,
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
        Ok(cx.node("sum", SumKernel { of_nothing: self.of_nothing }, vec![single], self.schema(), 1))
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
        Ok(rows_once(schema_of::<i64>(), counted))
    }
}

/// Sums a column of counts to one row.
#[derive(Debug)]
struct SumKernel {
    of_nothing: bool,
}

impl Kernel for SumKernel {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let mut rows = inputs.open(0, partition)?;
        let of_nothing = self.of_nothing;
        let summed = async move {
            let mut sum = 0_i64;
            while let Some(batch) = rows.next().await {
                sum += records_of::<i64>(&batch?).map_err(external)?.into_iter().sum::<i64>();
            }
            let sum = (of_nothing || sum > 0).then_some(sum);
            Ok(vec![batch_of(sum).map_err(external)?])
        };
        Ok(rows_once(schema_of::<i64>(), summed))
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
        DStream::of(&self.declare, vec![self.base()], Count { chain: self.chain.clone(), of_nothing: true })
    }
}

impl<K: Key, V: Record, C: Chain<Out = (K, V)>> DStream<(K, V), C> {
    /// Folds the values of each key within each batch. `f` must be associative
    /// and commutative: it is applied beside the input first.
    pub fn reduce_by_key(&self, f: impl Fn(V, V) -> V + Send + Sync + 'static) -> DStream<(K, V)> {
        self.combine("reduce_by_key", Folding(f))
    }

    /// As [`DStream::reduce_by_key`] with a result of another type: `create`
    /// begins it with a key's first value, `merge_value` takes one more, and
    /// `merge_combiners` joins two that were made apart.
    pub fn combine_by_key<A: Record>(
        &self,
        create: impl Fn(V) -> A + Send + Sync + 'static,
        merge_value: impl Fn(A, V) -> A + Send + Sync + 'static,
        merge_combiners: impl Fn(A, A) -> A + Send + Sync + 'static,
    ) -> DStream<(K, A)> {
        self.combine("combine_by_key", Three(create, merge_value, merge_combiners))
    }

    pub(super) fn combine<A: Record>(&self, kind: &'static str, combiner: impl Combiner<V, A>) -> DStream<(K, A)> {
        let operator = CombineByKey {
            kind,
            chain: self.chain.clone(),
            combiner: Arc::new(combiner),
            types: PhantomData::<fn() -> (V, A)>,
        };
        DStream::of(&self.declare, vec![self.base()], operator)
    }
}
