//! From lineage to a physical plan.
//!
//! Invariant: a node that keeps state is lowered once, shared by all its
//! readers, and runs to its end in each batch that reads it; stateless nodes
//! are lowered anew for each reader, as the field's own engines recompute them,
//! unless `cache` was asked for.

use super::{Lineage, NodeExec, SharedKernel, SourceExec, Step, node::Kernel};
use crate::state::{StateRegistry, memory::StateMemory};
use arrow_schema::SchemaRef;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};
use tidemill_core::{Duration, Result};

/// Lowers the outputs of one program.
pub(crate) struct Lowering<'a> {
    /// Partitions that keyed operators use.
    pub(crate) partitions: usize,
    /// Where stateful operators register.
    pub(crate) states: &'a StateRegistry,
    /// Name of the node being lowered: state is kept under it.
    pub(crate) name: String,
    /// Interval between two batches, when the trigger has one.
    pub(crate) interval: Option<Duration>,
    /// What states may take together.
    pub(crate) memory: Option<Arc<StateMemory>>,
    /// Streams that nodes read themselves, by the node's number.
    pub(crate) reads: BTreeMap<usize, BTreeSet<String>>,
    readers: HashMap<usize, usize>,
    shared: HashMap<usize, Arc<dyn ExecutionPlan>>,
}

impl<'a> Lowering<'a> {
    /// Prepares to lower `outputs`.
    pub(crate) fn new(partitions: usize, states: &'a StateRegistry, outputs: &[Arc<Lineage>]) -> Self {
        let mut readers: HashMap<usize, usize> = HashMap::new();
        let mut seen = HashSet::new();
        for output in outputs {
            *readers.entry(output.id).or_default() += 1;
            output.walk(&mut seen, &mut |node| {
                for input in &node.inputs {
                    *readers.entry(input.id).or_default() += 1;
                }
            });
        }
        Self {
            partitions,
            states,
            name: String::new(),
            interval: None,
            memory: None,
            reads: BTreeMap::new(),
            readers,
            shared: HashMap::new(),
        }
    }

    /// With the interval between two batches, which windows by batch time are checked against.
    pub(crate) fn with_interval(mut self, interval: Option<Duration>) -> Self {
        self.interval = interval;
        self
    }

    /// With a bound on what states take.
    pub(crate) fn within(mut self, memory: &Arc<StateMemory>) -> Self {
        self.memory = Some(Arc::clone(memory));
        self
    }

    /// The physical plan of a node.
    ///
    /// # Errors
    /// When an operator can't be planned.
    pub(crate) fn lower(&mut self, node: &Arc<Lineage>) -> Result<Arc<dyn ExecutionPlan>> {
        if let Some(plan) = self.shared.get(&node.id) {
            return Ok(Arc::clone(plan));
        }
        let inputs = node.inputs.iter().map(|input| self.lower(input)).collect::<Result<Vec<_>>>()?;
        self.name.clone_from(&node.name);
        let below = inputs.clone();
        let plan = node.operator.lower(inputs, self)?;
        streams(&plan, &below, self.reads.entry(node.id).or_default());
        let read_by_many = self.readers.get(&node.id).copied().unwrap_or(0) > 1;
        if node.operator.is_stateful() || (node.operator.is_shared() && read_by_many) {
            let plan = shared(&node.name, plan);
            self.shared.insert(node.id, Arc::clone(&plan));
            return Ok(plan);
        }
        Ok(plan)
    }

    /// A node of ours over `inputs`, named after the operator being lowered.
    pub(crate) fn node(
        &self,
        step: &str,
        kernel: impl Kernel,
        inputs: Vec<Arc<dyn ExecutionPlan>>,
        schema: SchemaRef,
        partitions: usize,
    ) -> Arc<dyn ExecutionPlan> {
        NodeExec::plan(format!("{}: {step}", self.name), kernel, inputs, schema, partitions)
    }
}

/// Wraps the plan of `operator` so that it runs once a batch.
fn shared(operator: &str, plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    let (schema, partitions) = (plan.schema(), plan.output_partitioning().partition_count());
    let step = Step::named(operator, "rows for all who read it", true);
    NodeExec::told_as(Some(step), "shared", SharedKernel::new(Arc::clone(&schema)), vec![plan], schema, partitions)
}

/// The streams that a plan reads, but for what the plans `below` do.
fn streams(plan: &Arc<dyn ExecutionPlan>, below: &[Arc<dyn ExecutionPlan>], found: &mut BTreeSet<String>) {
    if below.iter().any(|input| Arc::ptr_eq(input, plan)) {
        return;
    }
    let kernel = plan.downcast_ref::<NodeExec>().map(NodeExec::kernel);
    if let Some(source) = kernel.and_then(|kernel| (kernel as &dyn std::any::Any).downcast_ref::<SourceExec>()) {
        found.insert(source.stream().to_string());
    }
    plan.children().into_iter().for_each(|child| streams(child, below, found));
}

#[cfg(test)]
mod tests {
    use crate::{
        StreamingContext, Trigger,
        batch::Pipeline,
        plan::{BatchRun, Kernel, Lowering, NodeInputs, Operator, Rows, rows_from},
        record::schema_of,
        stream::DStream,
    };
    use arrow_schema::SchemaRef;
    use datafusion::{common::Result as DfResult, physical_plan::ExecutionPlan};
    use futures::StreamExt;
    use std::sync::Arc;
    use tidemill_core::{Result, Timestamp};

    /// Reads one block of its input's first partition and stops, as a `LIMIT` does.
    #[derive(Debug)]
    struct First;

    impl Operator for First {
        fn kind(&self) -> &'static str {
            "first"
        }
        fn schema(&self) -> SchemaRef {
            schema_of::<(i64, i64)>()
        }
        fn lower(&self, inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
            Ok(cx.node("first", Self, inputs, self.schema(), 1))
        }
    }

    impl Kernel for First {
        fn run(&self, _partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
            Ok(rows_from(self.schema(), inputs.open(0, 0)?.take(1)))
        }
    }

    #[test]
    fn a_reader_that_stops_early_does_not_cost_the_state_a_record() {
        let context = StreamingContext::builder("test").trigger(Trigger::Drain).partitions(4).build();
        let pairs = |from: i64| (from..from + 50_000).map(|n| (n, n)).collect::<Vec<_>>();
        let stream = context.queue_stream([pairs(0), pairs(25_000)]).unwrap();
        let state =
            stream.update_state_by_key(|new, sum: Option<i64>| Some(sum.unwrap_or(0) + new.iter().sum::<i64>()));
        let first: DStream<(i64, i64)> = DStream::of(&context.declare, vec![state.changes().rows()], First);
        first.foreach_batch(|_, _| Ok(()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let pipeline = Pipeline::open(&context.config, &context.declare, context.board(), None).unwrap();
            for (time, rows) in [(1, 50_000), (2, 75_000)] {
                pipeline.step(Timestamp(time)).await.unwrap();
                assert_eq!(pipeline.states.all()[0].rows(), rows);
            }
        });
    }
}
