//! How far a column's times have come: which rows can still come.
//!
//! A [`Time`] says of a column that no later row that is in time lies before a
//! watermark. It begins where a stream declares one (a [`WatermarkNode`] above
//! the stream's scan sees every row before anything filters it) or where windows
//! close, and is followed through what only passes the column on. Joins and
//! DISTINCT let go of state by it.

use super::{
    parse::Mark,
    shape::StateNode,
    tables::{NodeTable, StreamTable},
    window::{WindowNode, pane_column},
};
use crate::plan::{BatchRun, Kernel, NodeExec, NodeInputs, Rows, rows_from};
use arrow_array::{Array, ArrayRef, cast::AsArray, types::TimestampMicrosecondType};
use arrow_schema::{DataType, SchemaRef, TimeUnit};
use datafusion::{
    common::{
        Column, DFSchemaRef, ExprSchema, Result as DfResult, plan_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    datasource::source_as_provider,
    logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore},
    physical_plan::{ExecutionPlan, ExecutionPlanProperties},
};
use futures::StreamExt;
use std::{any::Any, cmp::Ordering, collections::HashMap, fmt, sync::Arc};
use tidemill_core::{Duration, Timestamp};

/// Times beyond this are no times.
const FAR: i64 = i64::MAX / 2;

/// No later row that is in time has a time before the watermark `mark` plus `shift`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Time {
    pub(super) mark: String,
    /// Microseconds.
    pub(super) shift: i64,
    /// The stream or view that it comes from, for letters about late rows.
    pub(super) stream: String,
}

impl Time {
    /// Where it is in this batch, as far as the batch has run.
    pub(super) fn now(&self, run: &BatchRun) -> Timestamp {
        self.of(run.watermark_now(&self.mark))
    }

    fn of(&self, mark: Timestamp) -> Timestamp {
        if mark == Timestamp::MIN { mark } else { Timestamp(mark.0.saturating_add(self.shift)) }
    }
}

/// Times in microseconds, whatever their unit and zone.
pub(super) fn micros(times: &ArrayRef) -> DfResult<ArrayRef> {
    let zone = match times.data_type() {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    Ok(arrow_cast::cast(times, &DataType::Timestamp(TimeUnit::Microsecond, zone))?)
}

/// Watches a stream's time on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct WatermarkNode {
    pub(super) input: LogicalPlan,
    pub(super) time: Column,
    /// How far the watermark trails the largest time, microseconds.
    bound: i64,
    pub(super) mark: Time,
}

impl PartialOrd for WatermarkNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl UserDefinedLogicalNodeCore for WatermarkNode {
    fn name(&self) -> &'static str {
        "Watermark"
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
        write!(f, "Watermark: {} µs behind {}", self.bound, self.time)
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> DfResult<Self> {
        let (Some(Expr::Column(time)), Some(input)) = (exprs.into_iter().next(), inputs.into_iter().next()) else {
            return plan_err!("a watermark's time must be a plain column");
        };
        Ok(Self { input, time, bound: self.bound, mark: self.mark.clone() })
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        // The time column is added by the caller: it is one of the expressions.
        Some(vec![output_columns.to_vec()])
    }
}

impl WatermarkNode {
    /// The node over the plan of its input.
    pub(super) fn plan(&self, input: Arc<dyn ExecutionPlan>) -> DfResult<Arc<dyn ExecutionPlan>> {
        let schema = input.schema();
        let partitions = input.output_partitioning().partition_count();
        let kernel = WatermarkKernel {
            mark: self.mark.mark.clone(),
            time: self.input.schema().index_of_column(&self.time)?,
            bound: Duration::from_micros(self.bound.unsigned_abs()),
            schema: Arc::clone(&schema),
        };
        let title = format!("watermark {} µs behind {}", self.bound, self.time.name);
        Ok(NodeExec::plan(title, kernel, vec![input], schema, partitions))
    }
}

#[derive(Debug)]
struct WatermarkKernel {
    mark: String,
    time: usize,
    bound: Duration,
    schema: SchemaRef,
}

impl Kernel for WatermarkKernel {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let (mark, time, bound) = (self.mark.clone(), self.time, self.bound);
        let rows = inputs.open(0, partition)?.map(move |rows| {
            let rows = rows?;
            let times = micros(rows.column(time))?;
            let times = times.as_primitive::<TimestampMicrosecondType>();
            let valid = times.values().iter().enumerate().filter(|(row, _)| times.is_valid(*row)).map(|(_, t)| *t);
            if let Some(largest) = valid.filter(|time| (-FAR..=FAR).contains(time)).max() {
                run.move_watermark(&mark, Timestamp(largest).minus(bound));
            }
            Ok(rows)
        });
        Ok(rows_from(Arc::clone(&self.schema), rows))
    }
}

/// The plan with the times of its streams watched, for the statement `name`.
pub(super) fn watch(plan: LogicalPlan, marks: &HashMap<String, Mark>, name: &str) -> DfResult<LogicalPlan> {
    let watched = plan.transform_down(|node| match &node {
        LogicalPlan::Extension(extension) => {
            let own: &dyn Any = extension.node.as_any();
            let ends = own.is::<WatermarkNode>() || own.is::<WindowNode>();
            let next = if ends { TreeNodeRecursion::Jump } else { TreeNodeRecursion::Continue };
            Ok(Transformed::new(node, false, next))
        }
        LogicalPlan::TableScan(scan) => {
            let provider = source_as_provider(&scan.source)?;
            let provider: &dyn Any = provider.as_ref();
            let stream = scan.table_name.table().to_string();
            let Some(declared) = marks.get(&stream).filter(|_| provider.is::<StreamTable>()) else {
                return Ok(Transformed::no(node));
            };
            let Some((qualifier, field)) =
                scan.projected_schema.iter().find(|(_, field)| *field.name() == declared.column)
            else {
                return Ok(Transformed::no(node));
            };
            let time = Column::from((qualifier, field));
            let mark = Time { mark: format!("{name}@{stream}"), shift: 0, stream };
            let node = WatermarkNode { bound: declared.bound, input: node, time, mark };
            let node = LogicalPlan::Extension(Extension { node: Arc::new(node) });
            Ok(Transformed::new(node, true, TreeNodeRecursion::Jump))
        }
        _ => Ok(Transformed::no(node)),
    })?;
    Ok(watched.data)
}

/// What is known of the times in column `at` of a plan whose windows close under `name`.
pub(super) fn time_of(plan: &LogicalPlan, at: usize, name: &str) -> DfResult<Option<Time>> {
    let column = Column::from(plan.schema().qualified_field(at));
    let below = |input: &LogicalPlan, column: &Column| match input.schema().index_of_column(column) {
        Ok(at) => time_of(input, at, name),
        Err(_) => Ok(None),
    };
    match plan {
        LogicalPlan::TableScan(scan) => {
            let provider = source_as_provider(&scan.source)?;
            let provider: &dyn Any = provider.as_ref();
            let Some(table) = provider.downcast_ref::<NodeTable>() else { return Ok(None) };
            let Ok(at) = table.node.schema().index_of(&column.name) else { return Ok(None) };
            Ok(table.times.get(at).cloned().flatten())
        }
        LogicalPlan::Extension(extension) => {
            let node: &dyn Any = extension.node.as_any();
            if let Some(watermark) = node.downcast_ref::<WatermarkNode>() {
                return Ok((watermark.time == column).then(|| watermark.mark.clone()));
            }
            let Some(state) = node.downcast_ref::<StateNode>() else { return Ok(None) };
            let (Some(window), Some(group)) = (state.window, state.aggregate.group_expr.get(at)) else {
                return Ok(None);
            };
            let Expr::Column(group) = group.clone().unalias_nested().data else { return Ok(None) };
            let role = pane_column(state.aggregate.input.schema().field_from_column(&group)?);
            // Windows to come end after the watermark.
            let shift = match role {
                Some("end") => 1,
                Some(_) => 1 - window.size(),
                None => return Ok(None),
            };
            Ok(Some(Time { mark: name.to_string(), shift, stream: name.to_string() }))
        }
        LogicalPlan::Projection(projection) => match projection.expr[at].clone().unalias_nested().data {
            Expr::Column(column) => below(&projection.input, &column),
            _ => Ok(None),
        },
        LogicalPlan::SubqueryAlias(alias) => time_of(&alias.input, at, name),
        LogicalPlan::Union(union) => {
            let mut times = union.inputs.iter().map(|input| time_of(input, at, name));
            let first = times.next().transpose()?.flatten();
            for time in times {
                if time? != first {
                    return Ok(None);
                }
            }
            Ok(first)
        }
        LogicalPlan::Filter(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Repartition(_)
        | LogicalPlan::Join(_)
        | LogicalPlan::Unnest(_)
        | LogicalPlan::Window(_) => {
            let holding = plan.inputs().into_iter().find(|input| input.schema().index_of_column(&column).is_ok());
            holding.map_or(Ok(None), |input| below(input, &column))
        }
        _ => Ok(None),
    }
}
