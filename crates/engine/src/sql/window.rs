//! `TUMBLE`, `HOP`, `SESSION` and `COUNT_WINDOW` in `FROM`.
//!
//! ```sql
//! FROM TUMBLE(TABLE posts, DESCRIPTOR(created), INTERVAL '10' SECOND)
//! FROM HOP(posts, created, INTERVAL '10' SECOND /* slide */, INTERVAL '60' SECOND /* size */)
//! FROM SESSION(TABLE posts, DESCRIPTOR(created), INTERVAL '30' SECOND)
//! FROM COUNT_WINDOW(TABLE posts, DESCRIPTOR(author), 100 /* size */, 10 /* slide */)
//! ```
//!
//! The table gets two columns more, `window_start` and `window_end`; what they
//! hold on the way to the aggregate is said in [`super::panes`]. Sessions are of
//! the other columns of GROUP BY, or of those that a second DESCRIPTOR names.
//!
//! Invariant: a call that is not of the form is refused with the form.

use super::{
    panes::WindowNode,
    parse::{ident, interval_micros, plain_name},
    progress::{Mark, Time},
    provider::Table,
    tables::NodeTable,
    times::StreamTime,
};
use datafusion::{
    catalog::TableProvider,
    common::{Column, DataFusionError, Result as DfResult, TableReference},
    datasource::{provider_as_source, source_as_provider},
    logical_expr::{
        Expr, Extension, LogicalPlan, LogicalPlanBuilder, TableSource,
        planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning},
    },
    sql::sqlparser::ast::{
        Expr as SqlExpr, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectName, TableFactor, Value,
    },
};
use std::{any::Any, collections::HashMap, sync::Arc};
use tidemill_core::{Duration, Error, WatermarkSpec, WindowKind, WindowSpec};

/// Names of the functions.
pub(super) const FUNCTIONS: [&str; 4] = ["tumble", "hop", "session", "count_window"];

/// Whether a name is that of a window function.
pub(super) fn is_function(name: &str) -> bool {
    FUNCTIONS.iter().any(|function| name.eq_ignore_ascii_case(function))
}

/// Key of the metadata by which a pane column is known on its way to the aggregate.
pub(super) const PANE: &str = "tidemill.pane";
/// Names of the two columns.
pub(super) const START: &str = "window_start";
pub(super) const END: &str = "window_end";

/// The event time that was declared, by stream.
pub(super) type Watermarks = Arc<parking_lot::Mutex<HashMap<String, StreamTime>>>;

/// Tables by name: DataFusion's planner knows only those that it finds by itself
/// in a statement, and does not look into arguments.
pub(super) type Tables = Arc<parking_lot::Mutex<HashMap<String, Arc<dyn TableProvider>>>>;

/// Plans the window functions in `FROM`.
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
            "SESSION" => {
                "SESSION(TABLE t, DESCRIPTOR(time), INTERVAL '30' SECOND), and DESCRIPTOR(key) after it when sessions are not of all columns of GROUP BY"
            }
            "COUNT_WINDOW" => {
                "COUNT_WINDOW(TABLE t, DESCRIPTOR(key), 100), with the number of rows from one window to the next after it when they overlap"
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
        let call = Call { function: &function, form, args: &args };
        let (table, time, kind, keys) = call.read()?;
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
        let column = |name: &String| input.schema().qualified_field_with_unqualified_name(name).map(Column::from);
        let (time, keys) =
            (time.as_ref().map(column).transpose()?, keys.iter().map(column).collect::<DfResult<Vec<_>>>()?);
        let mut times = Vec::new();
        if let Some(time) = &time {
            self.trace(&input, time, &mut times);
        }
        let node = Arc::new(WindowNode::new(input, time, kind, keys, times)?);
        let plan = LogicalPlan::Extension(Extension { node });
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias))))
    }
}

impl WindowPlanner {
    /// The event times of streams that a column comes from.
    fn trace(&self, plan: &LogicalPlan, column: &Column, found: &mut Vec<StreamTime>) {
        match plan {
            LogicalPlan::TableScan(scan) => {
                let watermarks = self.watermarks.lock();
                let declared = watermarks.get(scan.table_name.table()).cloned();
                found.extend(declared.filter(|time| time.column == column.name));
                // A view that is a node knows how far its own columns have come.
                if let Some(time) = time_of_node(&scan.source, &column.name) {
                    let spec = match time.mark {
                        Mark::Stream(spec) => spec,
                        Mark::Operator => WatermarkSpec { max_ahead: None, ..WatermarkSpec::new(Duration::ZERO) },
                    };
                    let lateness = watermarks.get(&time.stream).map(|declared| declared.lateness).unwrap_or_default();
                    let (stream, column) = (time.stream.clone(), column.name.clone());
                    found.push(StreamTime { stream, column, spec, lateness, time });
                }
            }
            LogicalPlan::Projection(projection) => {
                let Ok(at) = projection.schema.index_of_column(column) else { return };
                if let Expr::Column(below) = projection.expr[at].clone().unalias_nested().data {
                    self.trace(&projection.input, &below, found);
                }
            }
            LogicalPlan::SubqueryAlias(alias) => {
                if let Ok(at) = alias.schema.index_of_column(column) {
                    let below = Column::from(alias.input.schema().qualified_field(at));
                    self.trace(&alias.input, &below, found);
                }
            }
            LogicalPlan::Union(union) => {
                let Ok(at) = union.schema.index_of_column(column) else { return };
                for input in &union.inputs {
                    self.trace(input, &Column::from(input.schema().qualified_field(at)), found);
                }
            }
            other => {
                for input in other.inputs() {
                    if input.schema().index_of_column(column).is_ok() {
                        self.trace(input, column, found);
                    }
                }
            }
        }
    }
}

/// What is known of the times in a column of a node.
fn time_of_node(source: &Arc<dyn TableSource>, column: &str) -> Option<Time> {
    let provider = source_as_provider(source).ok()?;
    let provider: &dyn Any = provider.as_ref();
    let Table(table) = provider.downcast_ref::<Table<NodeTable>>()?;
    table.times.get(table.node.schema().index_of(column).ok()?).cloned().flatten()
}

/// A call of a window function.
struct Call<'a> {
    function: &'a str,
    form: &'static str,
    args: &'a [&'a SqlExpr],
}

impl Call<'_> {
    /// Table, time, window and keys.
    fn read(&self) -> DfResult<(ObjectName, Option<String>, WindowKind, Vec<String>)> {
        let form = self.form;
        let wrong = || DataFusionError::Plan(format!("{} reads: {form}", self.function));
        let [table, args @ ..] = self.args else { return Err(wrong()) };
        let table = name_of(table).ok_or_else(wrong)?;
        let named = |expr: &SqlExpr| match columns_of(expr).as_deref() {
            Some([one]) => Some(one.clone()),
            _ => None,
        };
        let of = |e: Error| DataFusionError::Plan(format!("{}: {e}; it reads: {form}", self.function));
        let micros = |expr: &SqlExpr| interval_micros(expr).map_err(of);
        if self.function == "COUNT_WINDOW" {
            let (keys, numbers) = match args {
                [first, rest @ ..] if rows_of(first).is_none() => (columns_of(first).ok_or_else(wrong)?, rest),
                all => (Vec::new(), all),
            };
            let numbers = numbers.iter().map(|n| rows_of(n).ok_or_else(wrong)).collect::<DfResult<Vec<_>>>()?;
            let kind = match numbers.as_slice() {
                [size] => WindowKind::count(*size, *size),
                [size, slide] => WindowKind::count(*size, *slide),
                _ => return Err(wrong()),
            };
            return Ok((table, None, kind.map_err(of)?, keys));
        }
        let [time, spans @ ..] = args else { return Err(wrong()) };
        let time = named(time).ok_or_else(wrong)?;
        let (kind, keys) = match (self.function, spans) {
            ("TUMBLE", [size]) => (WindowSpec::tumble(micros(size)?).map(WindowKind::Time), Vec::new()),
            ("HOP", [slide, size]) => {
                (WindowSpec::hop(micros(size)?, micros(slide)?).map(WindowKind::Time), Vec::new())
            }
            ("SESSION", [gap]) => (WindowKind::session(micros(gap)?), Vec::new()),
            ("SESSION", [gap, keys]) => (WindowKind::session(micros(gap)?), columns_of(keys).ok_or_else(wrong)?),
            _ => return Err(wrong()),
        };
        Ok((table, Some(time), kind.map_err(of)?, keys))
    }
}

fn name_of(expr: &SqlExpr) -> Option<ObjectName> {
    match expr {
        SqlExpr::Identifier(name) => Some(ObjectName::from(vec![name.clone()])),
        _ => None,
    }
}

/// The columns of `DESCRIPTOR(a, b)`, or of `a`.
fn columns_of(expr: &SqlExpr) -> Option<Vec<String>> {
    match expr {
        SqlExpr::Identifier(name) => Some(vec![ident(name)]),
        SqlExpr::Function(call) if plain_name(&call.name).is_some_and(|n| n == "descriptor") => {
            let FunctionArguments::List(list) = &call.args else { return None };
            let name = |arg: &FunctionArg| match arg {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(SqlExpr::Identifier(name))) => Some(ident(name)),
                _ => None,
            };
            list.args.iter().map(name).collect::<Option<Vec<_>>>().filter(|names| !names.is_empty())
        }
        _ => None,
    }
}

/// A number of rows.
fn rows_of(expr: &SqlExpr) -> Option<i64> {
    match expr {
        SqlExpr::Value(value) => match &value.value {
            Value::Number(number, _) => number.to_string().parse().ok(),
            _ => None,
        },
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
