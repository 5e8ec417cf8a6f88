//! One `ExecutionPlan` for all operators of ours.
//!
//! An operator brings a [`Kernel`]: from input partitions to rows. The rest of
//! DataFusion's trait (properties, children, display) is the same for all and
//! lives here. Kernels write their rows as a plain async loop with [`rows_from`].

use super::{BatchRun, Step, counted};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use datafusion::{
    common::{DataFusionError, Result as DfResult, tree_node::TreeNodeRecursion},
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::{EquivalenceProperties, PhysicalExpr},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
        execution_plan::{Boundedness, EmissionType},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use std::{fmt, sync::Arc};
use tidemill_core::Error;
use tokio::task::JoinSet;

/// The rows of one partition.
pub(crate) type Rows = SendableRecordBatchStream;

/// What an operator does with one partition of one batch.
pub(crate) trait Kernel: std::any::Any + Send + Sync + fmt::Debug {
    /// The rows of output partition `partition`. `open` opens a partition of an input.
    fn run(&self, partition: usize, inputs: &Inputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows>;
}

/// The inputs of a node while it runs.
pub(crate) struct Inputs<'a> {
    plans: &'a [Arc<dyn ExecutionPlan>],
    task: &'a Arc<TaskContext>,
    step: Option<&'a Arc<Step>>,
    run: &'a Arc<BatchRun>,
}

impl Inputs<'_> {
    /// Opens partition `partition` of input `input`.
    pub(crate) fn open(&self, input: usize, partition: usize) -> DfResult<Rows> {
        let rows = self.plans[input].execute(partition, Arc::clone(self.task))?;
        // What stands between this node and the next of ours is done for this one.
        Ok(counted(self.step, self.step.is_some_and(|step| step.takes), rows, self.run))
    }

    /// All rows of input `input`, read side by side and given one partition after the other, without empty batches.
    /// Of the partitions all but the first are tasks of their own: a small batch has rows in one, and no thread to wake.
    pub(crate) fn collect(
        &self,
        input: usize,
    ) -> DfResult<impl Future<Output = DfResult<Vec<RecordBatch>>> + Send + use<>> {
        let mut others = JoinSet::new();
        for partition in 1..self.partitions(input) {
            let rows = self.open(input, partition)?;
            others.spawn(async move { rows.try_collect::<Vec<_>>().await.map(|rows| (partition, rows)) });
        }
        let first = if self.partitions(input) > 0 { Some(self.open(input, 0)?) } else { None };
        Ok(async move {
            let mut came = Vec::new();
            if let Some(rows) = first {
                came.push((0, rows.try_collect::<Vec<_>>().await?));
            }
            while let Some(part) = others.join_next().await {
                came.push(part.map_err(|e| DataFusionError::ExecutionJoin(Box::new(e)))??);
            }
            came.sort_by_key(|(partition, _)| *partition);
            Ok(came.into_iter().flat_map(|(_, rows)| rows).filter(|rows| rows.num_rows() > 0).collect())
        })
    }

    /// Number of partitions of input `input`.
    pub(crate) fn partitions(&self, input: usize) -> usize {
        self.plans[input].properties().output_partitioning().partition_count()
    }

    /// Number of inputs.
    pub(crate) fn count(&self) -> usize {
        self.plans.len()
    }

    /// The task that runs, for kernels that read its extensions.
    pub(crate) fn task(&self) -> &Arc<TaskContext> {
        self.task
    }

    /// The plan of input `input`, for kernels that run it themselves.
    pub(crate) fn plan(&self, input: usize) -> &Arc<dyn ExecutionPlan> {
        &self.plans[input]
    }
}

/// A node of a physical plan that runs a [`Kernel`].
#[derive(Debug)]
pub(crate) struct NodeExec {
    name: String,
    kernel: Arc<dyn Kernel>,
    inputs: Vec<Arc<dyn ExecutionPlan>>,
    properties: Arc<PlanProperties>,
    /// Under what its rows and its time are told; `None` of what no operator is named for.
    step: Option<Arc<Step>>,
}

impl NodeExec {
    /// A node of a plan, ready to stand in one.
    pub(crate) fn plan(
        name: impl Into<String>,
        kernel: impl Kernel,
        inputs: Vec<Arc<dyn ExecutionPlan>>,
        schema: SchemaRef,
        partitions: usize,
    ) -> Arc<dyn ExecutionPlan> {
        let name = name.into();
        let step = Step::of(&name);
        Self::told_as(step, name, kernel, inputs, schema, partitions)
    }

    /// The same, its rows and time told as `step`.
    pub(crate) fn told_as(
        step: Option<Arc<Step>>,
        name: impl Into<String>,
        kernel: impl Kernel,
        inputs: Vec<Arc<dyn ExecutionPlan>>,
        schema: SchemaRef,
        partitions: usize,
    ) -> Arc<dyn ExecutionPlan> {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let (name, kernel, properties) = (name.into(), Arc::new(kernel), Arc::new(properties));
        Arc::new(Self { name, kernel, inputs, properties, step })
    }
}

impl NodeExec {
    /// What it runs.
    pub(crate) fn kernel(&self) -> &dyn Kernel {
        self.kernel.as_ref()
    }
}

impl DisplayAs for NodeExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl ExecutionPlan for NodeExec {
    fn name(&self) -> &'static str {
        "NodeExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        self.inputs.iter().collect()
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false; self.inputs.len()]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, inputs: Vec<Arc<dyn ExecutionPlan>>) -> DfResult<Arc<dyn ExecutionPlan>> {
        let count = |plan: &Arc<dyn ExecutionPlan>| plan.properties().output_partitioning().partition_count();
        let own = self.properties.output_partitioning().partition_count();
        // A step that has its input's partitions has those of the input that is put in for a leaf.
        let partitions = match (self.inputs.as_slice(), inputs.as_slice()) {
            ([before], [now]) if count(before) == own => count(now),
            _ => own,
        };
        let properties = if partitions == own {
            Arc::clone(&self.properties)
        } else {
            Arc::new(self.properties.as_ref().clone().with_partitioning(Partitioning::UnknownPartitioning(partitions)))
        };
        let (kernel, step) = (Arc::clone(&self.kernel), self.step.clone());
        Ok(Arc::new(Self { name: self.name.clone(), kernel, inputs, properties, step }))
    }

    fn execute(&self, partition: usize, task: Arc<TaskContext>) -> DfResult<Rows> {
        let run = BatchRun::of(&task)?;
        let step = self.step.as_ref();
        let rows = self.kernel.run(
            partition,
            &Inputs { plans: &self.inputs, task: &task, step, run: &run },
            Arc::clone(&run),
        )?;
        Ok(counted(step, step.is_some_and(|step| !step.takes), rows, &run))
    }
}

/// Rows from an async stream of batches.
pub(crate) fn rows_from(schema: SchemaRef, stream: impl Stream<Item = DfResult<RecordBatch>> + Send + 'static) -> Rows {
    Box::pin(RecordBatchStreamAdapter::new(schema, stream.boxed()))
}

/// Rows from a future that gives all of them at once.
pub(crate) fn rows_once(
    schema: SchemaRef,
    batches: impl Future<Output = DfResult<Vec<RecordBatch>>> + Send + 'static,
) -> Rows {
    let batches = stream::once(batches).flat_map(|batches| match batches {
        Ok(batches) => stream::iter(batches.into_iter().map(Ok).collect::<Vec<_>>()),
        Err(error) => stream::iter(vec![Err(error)]),
    });
    rows_from(schema, batches)
}

/// Our error inside DataFusion's.
pub(crate) fn external(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
