//! Rows that came too late for a view, as a view of their own.
//!
//! ```sql
//! CREATE VIEW tags WITH (late = 'late_posts') AS SELECT … FROM TUMBLE(TABLE posts, …) …;
//! CREATE VIEW how_many AS SELECT count(*) AS n FROM late_posts;
//! ```
//!
//! The view reads what the window reads, once more, and keeps the rows that the
//! window leaves out: that follows from the watermark before the batch alone. It
//! has the columns of the window's table, and the rows of each batch.
//!
//! Invariant: a row that comes here is in no window of the other view, and in no
//! dead letter. Called by [`super::catalog`] and [`super::lower`].

use super::{
    panes::{Judge, Timed, WindowNode, parted, times_of},
    times::ViewOptions,
};
use crate::plan::{BatchRun, Kernel, NodeExec, NodeInputs, Rows, rows_from};
use arrow_schema::{DataType, SchemaRef, TimeUnit};
use datafusion::{
    common::{Column, DFSchemaRef, Result as DfResult, plan_err},
    logical_expr::{Expr, Extension, LogicalPlan, LogicalPlanBuilder, UserDefinedLogicalNodeCore},
    physical_plan::{ExecutionPlan, ExecutionPlanProperties},
};
use futures::StreamExt;
use std::{
    any::Any,
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

/// Keeps the rows that are late for the windows of another view.
#[derive(Debug, Clone)]
pub(super) struct LateNode {
    input: LogicalPlan,
    time: Column,
    judge: Judge,
    /// The operator whose watermark says what is late.
    of: String,
}

impl LateNode {
    /// The late rows of the view `of`, whose query is `plan`.
    pub(super) fn plan_of(plan: &LogicalPlan, of: &str, options: &ViewOptions) -> DfResult<LogicalPlan> {
        let Some(window) = window_in(plan) else {
            return plan_err!("option `late`: the view has no window, so nothing comes too late for it");
        };
        let Some(time) = window.time.clone() else {
            return plan_err!(
                "option `late`: a window by number of rows knows no time, so nothing comes too late for it"
            );
        };
        // Where a row lay is not one of the table's columns.
        let shown: Vec<Expr> = window
            .input
            .schema()
            .iter()
            .filter(|(_, field)| !crate::plan::META[..2].contains(&field.name().as_str()) || *field.name() == time.name)
            .map(|pair| Expr::Column(Column::from(pair)))
            .collect();
        let node = Self { input: window.input.clone(), time, judge: window.judge(options), of: of.to_string() };
        LogicalPlanBuilder::from(LogicalPlan::Extension(Extension { node: Arc::new(node) })).project(shown)?.build()
    }

    /// The node over the plan of its input.
    pub(super) fn physical(&self, input: Arc<dyn ExecutionPlan>) -> DfResult<Arc<dyn ExecutionPlan>> {
        let time = self.input.schema().index_of_column(&self.time)?;
        let schema = input.schema();
        let DataType::Timestamp(_, zone) = schema.field(time).data_type().clone() else {
            return plan_err!("a window needs a TIMESTAMP column");
        };
        let kind = DataType::Timestamp(TimeUnit::Microsecond, zone);
        let partitions = input.output_partitioning().partition_count();
        let kernel = LateKernel { time, kind, judge: self.judge, of: self.of.clone(), schema: Arc::clone(&schema) };
        Ok(NodeExec::plan(format!("late rows of {}", self.of), kernel, vec![input], schema, partitions))
    }
}

/// The window that a query reads.
fn window_in(plan: &LogicalPlan) -> Option<&WindowNode> {
    if let LogicalPlan::Extension(extension) = plan {
        let node: &dyn Any = extension.node.as_any();
        if let Some(window) = node.downcast_ref::<WindowNode>() {
            return Some(window);
        }
    }
    plan.inputs().into_iter().find_map(window_in)
}

impl PartialEq for LateNode {
    fn eq(&self, other: &Self) -> bool {
        (&self.input, &self.time, &self.of) == (&other.input, &other.time, &other.of)
    }
}

impl Eq for LateNode {}

impl Hash for LateNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.input, &self.time, &self.of).hash(state);
    }
}

impl PartialOrd for LateNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl UserDefinedLogicalNodeCore for LateNode {
    fn name(&self) -> &'static str {
        "Late"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![Expr::Column(self.time.clone())]
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Late: of {} by {}", self.of, self.time)
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> DfResult<Self> {
        let (Some(Expr::Column(time)), Some(input)) = (exprs.into_iter().next(), inputs.into_iter().next()) else {
            return plan_err!("the time of late rows must be a plain column");
        };
        Ok(Self { input, time, judge: self.judge, of: self.of.clone() })
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        Some(vec![output_columns.to_vec()])
    }
}

#[derive(Debug)]
struct LateKernel {
    time: usize,
    kind: DataType,
    judge: Judge,
    of: String,
    schema: SchemaRef,
}

impl Kernel for LateKernel {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let (time, kind, judge, of) = (self.time, self.kind.clone(), self.judge, self.of.clone());
        let rows = inputs.open(0, partition)?.map(move |rows| {
            let rows = rows?;
            let times = times_of(&rows, time, &kind)?;
            match judge.judge(&times, run.watermark_before(&of), run.batch.time).in_time {
                None => Ok(rows.slice(0, 0)),
                Some(mask) => {
                    let [_, (late, _)]: [Timed; 2] = parted(&rows, &times, &mask)?;
                    Ok(late)
                }
            }
        });
        Ok(rows_from(Arc::clone(&self.schema), rows))
    }
}
