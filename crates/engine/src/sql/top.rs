//! The first rows of each key, over a stream: `ROW_NUMBER() OVER (PARTITION BY … ORDER BY …) <= n`.
//!
//! ```sql
//! SELECT auction, price FROM (
//!   SELECT *, row_number() OVER (PARTITION BY auction ORDER BY price DESC) AS place FROM bids
//! ) WHERE place <= 10
//! ```
//!
//! A row that is behind the first `n` of its key will be so for ever, whatever
//! comes: so only the first `n` of each key are kept. [`find`] sees the pattern and
//! puts a [`TopNode`] below the window function; what stands above runs over the
//! kept rows, and gives the whole result. `rank` and `dense_rank` work as well.
//!
//! Called by [`super::shape`]; planned by [`super::lower`], with the state of
//! aggregates ([`super::state`]), whose merge here cuts to the first `n` again, and which
//! holds the rows ready ([`super::tops`]) where nothing stands between them and the function.

use super::tops::Numbering;
use datafusion::{
    common::{Column, DFSchemaRef, Result as DfResult, ScalarValue, plan_err},
    logical_expr::{
        BinaryExpr, Expr, Extension, LogicalPlan, LogicalPlanBuilder, Operator, UserDefinedLogicalNodeCore,
        WindowFunctionDefinition, logical_plan::Window, utils::split_conjunction,
    },
};
use std::{cmp::Ordering, fmt, sync::Arc};

/// Keeps the rows that a window function numbers up to `limit`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TopNode {
    pub(super) input: LogicalPlan,
    /// The window function.
    pub(super) function: Expr,
    pub(super) limit: u64,
}

impl PartialOrd for TopNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl UserDefinedLogicalNodeCore for TopNode {
    fn name(&self) -> &'static str {
        "Top"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![self.function.clone()]
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Top: {} <= {}", self.function, self.limit)
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> DfResult<Self> {
        let (Some(function), Some(input)) = (exprs.into_iter().next(), inputs.into_iter().next()) else {
            return plan_err!("the first rows of a key have one order and one input");
        };
        Ok(Self { input, function, limit: self.limit })
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        // What the function uses is added by the caller.
        Some(vec![output_columns.to_vec()])
    }
}

impl TopNode {
    /// How the function numbers rows, and up to which number they are kept.
    pub(super) fn numbering(&self) -> Option<(Numbering, u64)> {
        let mut function = &self.function;
        while let Expr::Alias(alias) = function {
            function = &alias.expr;
        }
        let Expr::WindowFunction(call) = function else { return None };
        Numbering::of(call.fun.name()).map(|numbering| (numbering, self.limit))
    }

    /// The plan that cuts `rows`, which have the node's columns, to those that are to be kept.
    pub(super) fn cut(&self, rows: LogicalPlan) -> DfResult<LogicalPlan> {
        let columns: Vec<Expr> = rows.schema().columns().into_iter().map(Expr::Column).collect();
        let numbered = Window::try_new(vec![self.function.clone()], Arc::new(rows))?;
        let place = Column::from(numbered.schema.qualified_field(columns.len()));
        let limit = Expr::Literal(ScalarValue::UInt64(Some(self.limit)), None);
        LogicalPlanBuilder::from(LogicalPlan::Window(numbered))
            .filter(Expr::Column(place).lt_eq(limit))?
            .project(columns)?
            .build()
    }
}

/// The plan with a [`TopNode`] below the window function that `plan`, a filter, bounds.
pub(super) fn find(plan: &LogicalPlan) -> DfResult<Option<LogicalPlan>> {
    let LogicalPlan::Filter(filter) = plan else { return Ok(None) };
    for part in split_conjunction(&filter.predicate) {
        let Some((column, limit)) = bound(part) else { continue };
        if let Some(input) = below(&filter.input, &column, limit)? {
            return plan.with_new_exprs(plan.expressions(), vec![input]).map(Some);
        }
    }
    Ok(None)
}

/// `column <= n`, in any of the ways to write it.
fn bound(part: &Expr) -> Option<(Column, u64)> {
    let Expr::BinaryExpr(BinaryExpr { left, op, right }) = part else { return None };
    let plain = |expr: &Expr| match expr {
        Expr::Cast(cast) => cast.expr.as_ref().clone(),
        other => other.clone(),
    };
    let (column, op, value) = match (plain(left), plain(right)) {
        (Expr::Column(column), Expr::Literal(value, _)) => (column, *op, value),
        (Expr::Literal(value, _), Expr::Column(column)) => (column, op.swap()?, value),
        _ => return None,
    };
    let value = match value.cast_to(&arrow_schema::DataType::UInt64).ok()? {
        ScalarValue::UInt64(Some(value)) => value,
        _ => return None,
    };
    match op {
        Operator::LtEq => Some((column, value)),
        Operator::Lt => Some((column, value.checked_sub(1)?)),
        Operator::Eq if value == 1 => Some((column, 1)),
        _ => None,
    }
}

/// The plan with the node put in below the window function that `column` comes from.
fn below(plan: &LogicalPlan, column: &Column, limit: u64) -> DfResult<Option<LogicalPlan>> {
    let again = |input: &LogicalPlan, column: &Column| match below(input, column, limit)? {
        Some(input) => plan.with_new_exprs(plan.expressions(), vec![input]).map(Some),
        None => Ok(None),
    };
    match plan {
        LogicalPlan::Projection(projection) => {
            let Ok(at) = projection.schema.index_of_column(column) else { return Ok(None) };
            match projection.expr[at].clone().unalias_nested().data {
                Expr::Column(column) => again(&projection.input, &column),
                _ => Ok(None),
            }
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let Ok(at) = alias.schema.index_of_column(column) else { return Ok(None) };
            again(&alias.input, &Column::from(alias.input.schema().qualified_field(at)))
        }
        LogicalPlan::Window(window) => {
            let Ok(at) = window.schema.index_of_column(column) else { return Ok(None) };
            let own = window.input.schema().fields().len();
            let ([function], true) = (window.window_expr.as_slice(), at >= own) else { return Ok(None) };
            if !numbers(function) || matches!(window.input.as_ref(), LogicalPlan::Window(_)) {
                return Ok(None);
            }
            let input = window.input.as_ref().clone();
            let node = Arc::new(TopNode { input, function: function.clone(), limit });
            let input = LogicalPlan::Extension(Extension { node });
            plan.with_new_exprs(plan.expressions(), vec![input]).map(Some)
        }
        _ => Ok(None),
    }
}

/// Whether the function numbers rows so that more rows never make a number smaller.
fn numbers(function: &Expr) -> bool {
    match function {
        Expr::Alias(alias) => numbers(&alias.expr),
        Expr::WindowFunction(call) => match &call.fun {
            WindowFunctionDefinition::WindowUDF(udf) => {
                matches!(udf.name(), "row_number" | "rank" | "dense_rank") && call.params.filter.is_none()
            }
            WindowFunctionDefinition::AggregateUDF(_) => false,
        },
        _ => false,
    }
}
