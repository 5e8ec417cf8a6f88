//! `TUMBLE` and `HOP`: rows to panes, and the watermark.
//!
//! ```sql
//! FROM TUMBLE(TABLE posts, DESCRIPTOR(created), INTERVAL '10' SECOND)
//! FROM HOP(posts, created, INTERVAL '10' SECOND /* slide */, INTERVAL '60' SECOND /* size */)
//! ```
//!
//! The table gets two columns more, `window_start` and `window_end`. Between
//! this node and the aggregate both hold the start of the row's **pane** (a row
//! has one pane and `size / pane` windows); the aggregate's state turns panes
//! into windows when they close, and nothing in between may look at them:
//! [`super::shape`] sees to that.
//!
//! Invariant: every row is seen by the watermark before anything filters it, and
//! a row all of whose windows have closed is late: not aggregated, but counted and
//! set aside ([`super::late`]). So is a row without a time. Lateness is judged by the watermark before the batch,
//! so that it does not depend on the order in which partitions run.

use super::{
    late::Late,
    parse::{ident, interval_micros, plain_name},
};
use crate::plan::{BatchRun, Kernel, NodeExec, NodeInputs, Rows, rows_from};
use arrow_array::{
    Array, ArrayRef, BooleanArray, RecordBatch, TimestampMicrosecondArray, cast::AsArray,
    types::TimestampMicrosecondType,
};
use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use datafusion::{
    catalog::TableProvider,
    common::{Column, DFSchema, DFSchemaRef, Result as DfResult, TableReference, plan_err},
    datasource::provider_as_source,
    logical_expr::{
        Expr, Extension, LogicalPlan, LogicalPlanBuilder, UserDefinedLogicalNodeCore,
        planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning},
    },
    physical_plan::{ExecutionPlan, ExecutionPlanProperties},
    sql::sqlparser::ast::{Expr as SqlExpr, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectName, TableFactor},
};
use futures::StreamExt;
use std::{
    cmp::Ordering,
    collections::HashMap,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};
use tidemill_core::{Duration, Timestamp, WindowSpec};

/// Key of the metadata by which a pane column is known on its way to the aggregate.
pub(super) const PANE: &str = "tidemill.pane";
/// Names of the two columns.
pub(super) const START: &str = "window_start";
pub(super) const END: &str = "window_end";

/// Times beyond this (some 146,000 years) are no times, and have no pane.
const FAR: i64 = i64::MAX / 2;

/// Which of the two columns a field is, if it is one.
pub(super) fn pane_column(field: &Field) -> Option<&str> {
    field.metadata().get(PANE).map(String::as_str)
}

/// Assigns rows to panes.
#[derive(Debug, Clone)]
pub(super) struct WindowNode {
    pub(super) input: LogicalPlan,
    pub(super) time: Column,
    pub(super) spec: WindowSpec,
    /// How far the watermark trails the largest time, in microseconds.
    pub(super) bound: i64,
    schema: DFSchemaRef,
}

impl WindowNode {
    fn new(input: LogicalPlan, time: Column, spec: WindowSpec, bound: i64) -> DfResult<Self> {
        let schema = input.schema();
        let (relation, field) = schema.qualified_field_from_column(&time)?;
        let DataType::Timestamp(_, zone) = field.data_type() else {
            return plan_err!(
                "a window needs a TIMESTAMP column, and `{}` is {}: declare it as TIMESTAMP in CREATE STREAM",
                time.name,
                field.data_type()
            );
        };
        let kind = DataType::Timestamp(TimeUnit::Microsecond, zone.clone());
        let relation = relation.cloned();
        if let Some(taken) = schema.fields().iter().find(|f| f.name() == START || f.name() == END) {
            return plan_err!(
                "the table has a column `{}` already: it can't be windowed again; rename the column in a view first",
                taken.name()
            );
        }
        let mut fields: Vec<(Option<TableReference>, FieldRef)> =
            schema.iter().map(|(relation, field)| (relation.cloned(), Arc::clone(field))).collect();
        fields.extend(pane_fields(&kind).map(|field| (relation.clone(), field)));
        let schema = Arc::new(DFSchema::new_with_metadata(fields, schema.metadata().clone())?);
        Ok(Self { input, time, spec, bound, schema })
    }

    /// The node over the plan of its input.
    pub(super) fn plan(&self, name: &str, input: Arc<dyn ExecutionPlan>) -> DfResult<Arc<dyn ExecutionPlan>> {
        let time = self.input.schema().index_of_column(&self.time)?;
        let DataType::Timestamp(_, zone) = input.schema().field(time).data_type().clone() else {
            return plan_err!("a window needs a TIMESTAMP column");
        };
        let kind = DataType::Timestamp(TimeUnit::Microsecond, zone);
        let fields: Vec<_> = input.schema().fields().iter().cloned().chain(pane_fields(&kind)).collect();
        let schema = Arc::new(Schema::new_with_metadata(fields, input.schema().metadata().clone()));
        let partitions = input.output_partitioning().partition_count();
        let late = Late {
            stream: stream_of(&self.input).unwrap_or_else(|| name.to_string()),
            operator: name.to_string(),
            column: self.time.name.clone(),
        };
        let kernel = WindowKernel {
            late,
            time,
            kind,
            spec: self.spec,
            bound: Duration::from_micros(self.bound.unsigned_abs()),
            schema: Arc::clone(&schema),
        };
        let title = format!("{name}: panes of {} µs by {}", self.spec.pane(), self.time.name);
        Ok(NodeExec::plan(title, kernel, vec![input], schema, partitions))
    }
}

/// The one stream or table that a plan reads, if it is one.
fn stream_of(plan: &LogicalPlan) -> Option<String> {
    match plan {
        LogicalPlan::TableScan(scan) => Some(scan.table_name.table().to_string()),
        other => match other.inputs().as_slice() {
            [input] => stream_of(input),
            _ => None,
        },
    }
}

fn pane_fields(kind: &DataType) -> impl Iterator<Item = FieldRef> + use<> {
    let kind = kind.clone();
    [(START, "start"), (END, "end")].into_iter().map(move |(name, role)| {
        let metadata = HashMap::from([(PANE.to_string(), role.to_string())]);
        Arc::new(Field::new(name, kind.clone(), false).with_metadata(metadata))
    })
}

impl PartialEq for WindowNode {
    fn eq(&self, other: &Self) -> bool {
        (&self.input, &self.time, self.spec, self.bound) == (&other.input, &other.time, other.spec, other.bound)
    }
}

impl Eq for WindowNode {}

impl Hash for WindowNode {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.input, &self.time, self.spec, self.bound).hash(state);
    }
}

impl PartialOrd for WindowNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl UserDefinedLogicalNodeCore for WindowNode {
    fn name(&self) -> &'static str {
        "Window"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![Expr::Column(self.time.clone())]
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window: size={} µs, slide={} µs by {}", self.spec.size(), self.spec.slide(), self.time)
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> DfResult<Self> {
        let (Some(Expr::Column(time)), Some(input)) = (exprs.into_iter().next(), inputs.into_iter().next()) else {
            return plan_err!("a window's time must be a plain column");
        };
        Self::new(input, time, self.spec, self.bound)
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        // The time column is added by the caller: it is one of the expressions.
        let count = self.input.schema().fields().len();
        Some(vec![output_columns.iter().copied().filter(|c| *c < count).collect()])
    }
}

/// Where a stream's watermark is declared: by stream, its column and bound.
pub(super) type Watermarks = Arc<parking_lot::Mutex<HashMap<String, super::parse::Mark>>>;

/// Tables by name: DataFusion's planner knows only those that it finds by itself
/// in a statement, and does not look into arguments.
pub(super) type Tables = Arc<parking_lot::Mutex<HashMap<String, Arc<dyn TableProvider>>>>;

/// Plans `TUMBLE` and `HOP` in `FROM`.
#[derive(Debug)]
pub(super) struct WindowPlanner {
    pub(super) watermarks: Watermarks,
    pub(super) tables: Tables,
}

impl RelationPlanner for WindowPlanner {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> DfResult<RelationPlanning> {
        let (function, args, alias) = match &relation {
            TableFactor::Table { name, args: Some(args), alias, .. } => (name, &args.args, alias),
            TableFactor::Function { name, args, alias, .. } => (name, args, alias),
            _ => return Ok(RelationPlanning::Original(Box::new(relation))),
        };
        let function = plain_name(function).unwrap_or_default().to_uppercase();
        let form = match function.as_str() {
            "TUMBLE" => "TUMBLE(TABLE t, DESCRIPTOR(time), INTERVAL '10' SECOND)",
            "HOP" => {
                "HOP(TABLE t, DESCRIPTOR(time), INTERVAL '10' SECOND, INTERVAL '60' SECOND), slide first and size last"
            }
            _ => return Ok(RelationPlanning::Original(Box::new(relation))),
        };
        let args: Vec<&SqlExpr> = args
            .iter()
            .filter_map(|arg| match arg {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
                _ => None,
            })
            .collect();
        let wanted = if function == "HOP" { 4 } else { 3 };
        if args.len() != wanted {
            return plan_err!("{function} reads: {form}");
        }
        let (Some(table), Some(time)) = (name_of(args[0]), time_of(args[1])) else {
            return plan_err!("{function} reads: {form}");
        };
        let micros = |expr: &SqlExpr| {
            interval_micros(expr)
                .map_err(|e| datafusion::common::DataFusionError::Plan(format!("{function}: {e}; it reads: {form}")))
        };
        let spec = match args.as_slice() {
            [_, _, slide, size] => WindowSpec::hop(micros(size)?, micros(slide)?),
            [_, _, size, ..] => WindowSpec::tumble(micros(size)?),
            _ => return plan_err!("{function} reads: {form}"),
        }
        .map_err(|e| datafusion::common::DataFusionError::Plan(format!("{function}: {e}; it reads: {form}")))?;
        let alias = alias.clone();
        let name = plain_name(&table).unwrap_or_default();
        let provider = self.tables.lock().get(&name).cloned();
        let input = match (context.plan(plain_table(table)), provider) {
            (Ok(plan), _) => plan,
            (Err(_), Some(provider)) => {
                LogicalPlanBuilder::scan(TableReference::bare(name), provider_as_source(provider), None)?.build()?
            }
            (Err(error), None) => return Err(error),
        };
        let time = input.schema().qualified_field_with_unqualified_name(&time).map(Column::from)?;
        let bound = self.bound(&input, &time);
        let node = Arc::new(WindowNode::new(input, time, spec, bound)?);
        let plan = LogicalPlan::Extension(Extension { node });
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias))))
    }
}

impl WindowPlanner {
    /// The bound that was declared for the stream's column that `column` comes from; 0 when none was.
    fn bound(&self, plan: &LogicalPlan, column: &Column) -> i64 {
        match plan {
            LogicalPlan::TableScan(scan) => match self.watermarks.lock().get(scan.table_name.table()) {
                Some(mark) if mark.column == column.name => mark.bound,
                _ => 0,
            },
            LogicalPlan::Projection(projection) => {
                let Ok(at) = projection.schema.index_of_column(column) else { return 0 };
                match projection.expr[at].clone().unalias_nested().data {
                    Expr::Column(below) => self.bound(&projection.input, &below),
                    _ => 0,
                }
            }
            LogicalPlan::SubqueryAlias(alias) => match alias.schema.index_of_column(column) {
                Ok(at) => {
                    let below = Column::from(alias.input.schema().qualified_field(at));
                    self.bound(&alias.input, &below)
                }
                Err(_) => 0,
            },
            other => other
                .inputs()
                .into_iter()
                .filter(|input| input.schema().index_of_column(column).is_ok())
                .map(|input| self.bound(input, column))
                .max()
                .unwrap_or(0),
        }
    }
}

fn name_of(expr: &SqlExpr) -> Option<ObjectName> {
    match expr {
        SqlExpr::Identifier(name) => Some(ObjectName::from(vec![name.clone()])),
        _ => None,
    }
}

/// The column of `DESCRIPTOR(time)` or `time`.
fn time_of(expr: &SqlExpr) -> Option<String> {
    match expr {
        SqlExpr::Identifier(name) => Some(ident(name)),
        SqlExpr::Function(call) if plain_name(&call.name).is_some_and(|n| n == "descriptor") => {
            let FunctionArguments::List(list) = &call.args else { return None };
            match list.args.as_slice() {
                [FunctionArg::Unnamed(FunctionArgExpr::Expr(SqlExpr::Identifier(name)))] => Some(ident(name)),
                _ => None,
            }
        }
        _ => None,
    }
}

fn plain_table(name: ObjectName) -> TableFactor {
    TableFactor::Table {
        name,
        alias: None,
        args: None,
        with_hints: vec![],
        version: None,
        with_ordinality: false,
        partitions: vec![],
        json_path: None,
        sample: None,
        index_hints: vec![],
    }
}

#[derive(Debug)]
struct WindowKernel {
    /// Whose rows may be late; its watermark is kept under the operator.
    late: Late,
    time: usize,
    kind: DataType,
    spec: WindowSpec,
    bound: Duration,
    schema: SchemaRef,
}

impl Kernel for WindowKernel {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        let rows = inputs.open(0, partition)?;
        let panes = Panes {
            time: self.time,
            kind: self.kind.clone(),
            spec: self.spec,
            schema: Arc::clone(&self.schema),
            before: run.watermark_before(&self.late.operator),
        };
        let (aside, bound) = (self.late.clone(), self.bound);
        let assigned = rows.map(move |rows| {
            let (rows, largest, late) = panes.assign(&rows?)?;
            if let Some(largest) = largest {
                run.move_watermark(&aside.operator, Timestamp(largest).minus(bound));
            }
            if let Some((rows, times)) = late {
                aside.set_aside(&run, &rows, &times);
            }
            Ok(rows)
        });
        Ok(rows_from(Arc::clone(&self.schema), assigned))
    }
}

/// Rows and their times.
type LateRows = (RecordBatch, TimestampMicrosecondArray);

struct Panes {
    time: usize,
    kind: DataType,
    spec: WindowSpec,
    schema: SchemaRef,
    before: Timestamp,
}

impl Panes {
    /// The rows that are in time with their pane, the largest time, and the rows that were late.
    fn assign(&self, rows: &RecordBatch) -> DfResult<(RecordBatch, Option<i64>, Option<LateRows>)> {
        let column = rows.column(self.time);
        let times =
            if *column.data_type() == self.kind { Arc::clone(column) } else { arrow_cast::cast(column, &self.kind)? };
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let (mut largest, mut smallest) = (i64::MIN, i64::MAX);
        for (row, time) in times.values().iter().enumerate() {
            if times.is_valid(row) {
                smallest = smallest.min(*time);
                if *time <= FAR {
                    largest = largest.max(*time);
                }
            }
        }
        let seen = (largest != i64::MIN && largest >= -FAR).then_some(largest);
        let far = seen.is_some_and(|_| smallest < -FAR) || times.values().iter().any(|t| *t > FAR);
        let in_time = |time: i64| {
            (-FAR..=FAR).contains(&time)
                && Timestamp(time).floor(self.spec.slide()).0.saturating_add(self.spec.size()) > self.before.0
        };
        let all = times.null_count() == 0 && !far && (rows.num_rows() == 0 || in_time(smallest));
        let (rows, times, late) = if all {
            (rows.clone(), times.clone(), None)
        } else {
            let keep: BooleanArray = times.iter().map(|time| Some(time.is_some_and(in_time))).collect();
            let of = |mask: &BooleanArray| {
                let rows = arrow_select::filter::filter_record_batch(rows, mask)?;
                let times = arrow_select::filter::filter(times, mask)?;
                Ok::<LateRows, arrow_schema::ArrowError>((rows, times.as_primitive().clone()))
            };
            let (kept, in_order) = of(&keep)?;
            let others: BooleanArray = keep.iter().map(|keep| keep.map(|keep| !keep)).collect();
            let late = (kept.num_rows() < rows.num_rows()).then(|| of(&others)).transpose()?;
            (kept, in_order, late)
        };
        let width = self.spec.pane();
        let mut last = i64::MAX;
        let panes: Vec<i64> = times
            .values()
            .iter()
            .map(|time| {
                // Times that follow each other are mostly of one pane: no division then.
                if *time < last || *time - last >= width {
                    last = Timestamp(*time).floor(width).0;
                }
                last
            })
            .collect();
        let panes: ArrayRef = Arc::new(TimestampMicrosecondArray::from(panes).with_data_type(self.kind.clone()));
        let mut columns = rows.columns().to_vec();
        columns.extend([Arc::clone(&panes), panes]);
        Ok((RecordBatch::try_new(Arc::clone(&self.schema), columns)?, seen, late))
    }
}
