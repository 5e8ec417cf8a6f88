//! Plans that end when they are told to, whatever they compute.
//!
//! Operators give way only where they read, and a join of large inputs computes
//! for minutes between two reads. So a [`Gate`] stands above each node of the
//! plan, and a condition of a join is asked through [`Watched`], which a nested
//! loop calls for every few thousand pairs even when none of them fits.
//!
//! Invariant: a plan gives the rows that it gives without gates. Made by
//! [`super::query`] for each question; programs' plans have none of this.

use super::mistakes::of_df;
use crate::plan::external;
use arrow_schema::DataType;
use datafusion::{
    common::{
        Result as DfResult,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    execution::{SendableRecordBatchStream, SessionState, TaskContext},
    logical_expr::{
        ColumnarValue, Expr, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
        expr::ScalarFunction,
    },
    physical_expr::PhysicalExpr,
    physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, stream::RecordBatchStreamAdapter},
};
use futures::StreamExt;
use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};
use tidemill_core::{Error, Progress, Result};

/// The plan that runs for `plan`, with gates.
///
/// # Errors
/// As the planner's.
pub(super) async fn planned(
    state: &SessionState,
    plan: &LogicalPlan,
    progress: &Arc<Progress>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let plan = state.optimize(plan).map_err(of_df)?;
    let watched = Arc::new(ScalarUDF::from(Watched {
        progress: Arc::clone(progress),
        signature: Signature::exact(vec![DataType::Boolean], Volatility::Immutable),
    }));
    // Behind the optimizer, which may look into conditions and not through a function.
    let plan = plan.transform_up(|node| watch(node, &watched)).map_err(of_df)?.data;
    let plan = state.query_planner().create_physical_plan(&plan, state).await.map_err(of_df)?;
    let gated = plan.transform_up(|of| Ok(Transformed::yes(Gate::above(of, Arc::clone(progress)))));
    Ok(gated.map_err(of_df)?.data)
}

fn watch(mut node: LogicalPlan, watched: &Arc<ScalarUDF>) -> DfResult<Transformed<LogicalPlan>> {
    if let LogicalPlan::Join(join) = &mut node
        && let Some(condition) = join.filter.take()
    {
        let condition = Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(watched), vec![condition]));
        join.filter = Some(condition);
        return Ok(Transformed::yes(node));
    }
    Ok(Transformed::no(node))
}

fn stopped() -> datafusion::common::DataFusionError {
    external(Error::user("the query was stopped"))
}

/// Passes rows on for as long as nobody has stopped the query, and counts those that were read.
#[derive(Debug)]
struct Gate {
    of: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    progress: Arc<Progress>,
}

impl Gate {
    fn above(of: Arc<dyn ExecutionPlan>, progress: Arc<Progress>) -> Arc<dyn ExecutionPlan> {
        let properties = Arc::clone(of.properties());
        Arc::new(Self { of, properties, progress })
    }
}

impl DisplayAs for Gate {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

impl ExecutionPlan for Gate {
    fn name(&self) -> &'static str {
        "Gate"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.of]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DfResult<TreeNodeRecursion>,
    ) -> DfResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let of = children.pop().unwrap_or_else(|| Arc::clone(&self.of));
        Ok(Self::above(of, Arc::clone(&self.progress)))
    }

    fn execute(&self, partition: usize, task: Arc<TaskContext>) -> DfResult<SendableRecordBatchStream> {
        let reads = self.of.children().is_empty();
        let progress = Arc::clone(&self.progress);
        let rows = self.of.execute(partition, task)?.map(move |rows| {
            if progress.is_stopped() {
                return Err(stopped());
            }
            if let (true, Ok(rows)) = (reads, &rows) {
                progress.add(rows.num_rows());
            }
            rows
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.of.schema(), rows)))
    }
}

/// A condition as it is, for as long as nobody has stopped the query.
#[derive(Debug)]
struct Watched {
    progress: Arc<Progress>,
    signature: Signature,
}

impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.progress, &other.progress)
    }
}

impl Eq for Watched {}

impl Hash for Watched {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl ScalarUDFImpl for Watched {
    fn name(&self) -> &'static str {
        "watched"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> DfResult<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        match args.args.pop() {
            Some(condition) if !self.progress.is_stopped() => Ok(condition),
            _ => Err(stopped()),
        }
    }
}
