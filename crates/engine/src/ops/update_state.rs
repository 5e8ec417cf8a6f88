//! `update_state_by_key`: one state a key, carried from batch to batch.
//!
//! State: one row a key under the operator's name. The function is called for
//! each key that has new values in the batch; returning `None` removes the key.
//! (Spark calls it for every key of the state in every batch. Calling it only
//! for keys with news gives the same totals and costs what the batch costs, not
//! what the state costs.) Time plays no part, so nothing is late.
//!
//! ```
//! # use tidemill_engine::{testing::check_unordered, Str};
//! check_unordered(
//!     [vec!["a".to_string(), "b".into(), "a".into()], vec!["a".to_string()]],
//!     |words| words
//!         .map(|w| (Str::from(w), 1_i64))
//!         .update_state_by_key(|new, total: Option<i64>| Some(total.unwrap_or(0) + new.iter().sum::<i64>()))
//!         .changes(),
//!     [vec![(Str::from("a"), 2), (Str::from("b"), 1)], vec![(Str::from("a"), 3)]],
//! );
//! ```

use super::keyed::{ROWS, batches_of, scatter};
use crate::{
    plan::{BatchRun, Kernel, Lineage, Lowering, NodeInputs, Operator, Rows, external, rows_from},
    record::{Key, Record, schema_of},
    state::keyed::KeyedState,
    stream::{Chain, DStream},
};
use arrow_array::{Array, RecordBatch};
use arrow_schema::SchemaRef;
use datafusion::{common::Result as DfResult, physical_plan::ExecutionPlan};
use futures::{StreamExt, TryStreamExt};
use std::{
    fmt,
    marker::PhantomData,
    sync::{Arc, OnceLock},
};
use tidemill_core::{Error, Result};

type Cell<K, S> = Arc<OnceLock<Arc<KeyedState<K, S>>>>;

struct UpdateState<C, F, K, V, S> {
    chain: C,
    update: Arc<F>,
    state: Cell<K, S>,
    pair: PhantomData<fn() -> V>,
}

impl<C, F, K, V, S> fmt::Debug for UpdateState<C, F, K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpdateStateByKey")
    }
}

impl<C, F, K, V, S> Operator for UpdateState<C, F, K, V, S>
where
    K: Key,
    V: Record,
    S: Record,
    C: Chain<Out = (K, V)>,
    F: Fn(&[V], Option<S>) -> Option<S> + Send + Sync + 'static,
{
    fn kind(&self) -> &'static str {
        "update_state_by_key"
    }

    fn schema(&self) -> SchemaRef {
        schema_of::<(K, S)>()
    }

    fn is_stateful(&self) -> bool {
        true
    }

    fn lower(&self, mut inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let state = self.state.get_or_init(|| Arc::new(KeyedState::new(cx.name.clone(), self.kind(), cx.partitions)));
        cx.states.register(Arc::clone(state) as _);
        let pairs = scatter::<K, V, C>(inputs.remove(0), &self.chain, cx);
        let kernel = UpdateKernel::<F, K, V, S> {
            update: Arc::clone(&self.update),
            state: Arc::clone(state),
            pair: PhantomData,
        };
        Ok(cx.node("state", kernel, vec![pairs], self.schema(), cx.partitions))
    }
}

struct UpdateKernel<F, K, V, S> {
    update: Arc<F>,
    state: Arc<KeyedState<K, S>>,
    pair: PhantomData<fn() -> V>,
}

impl<F, K, V, S> fmt::Debug for UpdateKernel<F, K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("state")
    }
}

impl<F, K, V, S> Kernel for UpdateKernel<F, K, V, S>
where
    K: Key,
    V: Record,
    S: Record,
    F: Fn(&[V], Option<S>) -> Option<S> + Send + Sync + 'static,
{
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let rows = inputs.open(0, partition)?;
        let (state, update) = (Arc::clone(&self.state), Arc::clone(&self.update));
        let schema = schema_of::<(K, S)>();
        let out_schema = Arc::clone(&schema);
        let changed = async move {
            // All rows of the batch: their values are grouped by key before any is updated.
            let rows: Vec<RecordBatch> = rows.try_collect().await?;
            if rows.is_empty() {
                return Ok(vec![]);
            }
            let delta = state.part(partition).lock().update::<V>(run.batch.id, &rows, &*update)?;
            Ok(vec![present(&delta, &out_schema)?])
        };
        Ok(rows_from(schema, batches_of(changed)))
    }
}

/// The rows whose state is there, without nulls.
fn present(rows: &RecordBatch, schema: &SchemaRef) -> DfResult<RecordBatch> {
    let state = rows.column(1);
    let rows = match state.nulls() {
        Some(_) => {
            let keep = arrow_array::BooleanArray::from_iter((0..rows.num_rows()).map(|row| Some(state.is_valid(row))));
            &arrow_select::filter::filter_record_batch(rows, &keep)?
        }
        None => rows,
    };
    Ok(RecordBatch::try_new(Arc::clone(schema), rows.columns().to_vec())?)
}

/// Reads all rows of a state after its operator has run.
struct Snapshot<K, S> {
    state: Cell<K, S>,
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
        let state = self.state.get().ok_or_else(|| Error::internal("a snapshot was planned before its state"))?;
        Ok(cx.node("snapshot", SnapshotKernel(Arc::clone(state)), inputs, self.schema(), cx.partitions))
    }
}

struct SnapshotKernel<K, S>(Arc<KeyedState<K, S>>);

impl<K, S> fmt::Debug for SnapshotKernel<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("snapshot")
    }
}

impl<K: Key, S: Record> Kernel for SnapshotKernel<K, S> {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        let mut changes = inputs.open(0, partition)?;
        let state = Arc::clone(&self.0);
        let schema = schema_of::<(K, S)>();
        let out_schema = Arc::clone(&schema);
        let all = async move {
            while let Some(batch) = changes.next().await {
                batch?;
            }
            let rows = state.part(partition).lock().all(ROWS).map_err(external)?;
            rows.iter().map(|rows| present(rows, &out_schema)).collect()
        };
        Ok(rows_from(schema, batches_of(all)))
    }
}

/// The state of a keyed operator as streams.
pub struct StateStream<K: Key, S: Record> {
    changes: DStream<(K, S)>,
    node: Arc<Lineage>,
    state: Cell<K, S>,
}

impl<K: Key, S: Record> fmt::Debug for StateStream<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateStream of {}", self.node.name)
    }
}

impl<K: Key, S: Record> StateStream<K, S> {
    /// The keys that the batch changed, with their new states.
    pub fn changes(&self) -> DStream<(K, S)> {
        self.changes.clone()
    }

    /// All keys and states after each batch. Costs what the state costs, each batch.
    pub fn snapshot(&self) -> DStream<(K, S)> {
        let operator = Snapshot { state: Arc::clone(&self.state) };
        DStream::of(&self.changes.declare, vec![Arc::clone(&self.node)], operator)
    }
}

impl<K: Key, V: Record, C: Chain<Out = (K, V)>> DStream<(K, V), C> {
    /// Carries a state for each key: `f` gets the batch's new values of the key
    /// and its state, and returns the next state, or `None` to forget the key.
    pub fn update_state_by_key<S: Record>(
        &self,
        f: impl Fn(&[V], Option<S>) -> Option<S> + Send + Sync + 'static,
    ) -> StateStream<K, S> {
        let state = Cell::default();
        let operator = UpdateState {
            chain: self.chain.clone(),
            update: Arc::new(f),
            state: Arc::clone(&state),
            pair: PhantomData::<fn() -> V>,
        };
        let node = self.declare.node(vec![self.base()], operator);
        StateStream { changes: DStream::over(&self.declare, Arc::clone(&node)), node, state }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{check_restarts, run_kept};

    fn batches() -> Vec<Vec<(String, i64)>> {
        let of = |text: &str| text.split_whitespace().zip(1..).map(|(word, n)| (word.to_string(), n)).collect();
        vec![of("a b a c"), of(""), of("b d"), of("a e f b g"), of("a b")]
    }

    /// Totals; a key whose total passes ten is forgotten and begins anew.
    fn update(new: &[i64], total: Option<i64>) -> Option<i64> {
        let total = total.unwrap_or(0) + new.iter().sum::<i64>();
        (total <= 10).then_some(total)
    }

    #[test]
    fn a_restarted_state_goes_on_where_it_was() {
        for partitions in [(1, 3), (3, 2)] {
            check_restarts(&batches(), |s| s.update_state_by_key(update).changes(), partitions);
            check_restarts(&batches(), |s| s.update_state_by_key(update).snapshot(), partitions);
        }
    }

    #[test]
    fn two_states_of_a_program_are_kept_apart() {
        check_restarts(
            &batches(),
            |s| {
                let sums = s.with_name("sums").update_state_by_key(update);
                let counts = s.map_values(|_| 1).with_name("counts").update_state_by_key(update);
                sums.snapshot().join(&counts.snapshot())
            },
            (2, 3),
        );
    }

    #[test]
    fn a_state_whose_name_is_gone_is_not_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let named = |name: &'static str| {
            run_kept(dir.path(), &batches(), |s| s.with_name(name).update_state_by_key(update).changes(), 2, 0..1)
        };
        named("totals").unwrap();
        let error = named("total").unwrap_err().to_string();
        assert!(error.contains("`totals`") && error.contains("`total`"), "{error}");
    }
}
