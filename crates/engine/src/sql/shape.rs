//! Which queries over streams mean something, and where their state is.
//!
//! [`arrange`] walks an analyzed plan from the leaves up, wraps the aggregate
//! over a stream in a [`StateNode`], which DataFusion's optimizer can't look
//! into, and refuses what has no meaning over batches, naming an alternative.
//! Called by [`super::lower`]. Invariant: a plan that passes has at most one
//! aggregate over streams, and all it reads of streams is below that.

use super::{
    panes::{KEY, WindowNode, pane_column},
    tables::{NodeTable, StreamTable},
};
use datafusion::{
    common::{
        Column, DFSchemaRef, ExprSchema, Result as DfResult, plan_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    datasource::source_as_provider,
    logical_expr::{Aggregate, Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore},
};
use std::{any::Any, cmp::Ordering, fmt, sync::Arc};
use tidemill_core::WindowKind;

/// Depth of an expression at most: evaluating one recurses.
const DEPTH: usize = 400;

/// An aggregate whose partial rows are kept from batch to batch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct StateNode {
    pub(super) aggregate: Aggregate,
    pub(super) window: Option<WindowKind>,
}

impl PartialOrd for StateNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl UserDefinedLogicalNodeCore for StateNode {
    fn name(&self) -> &'static str {
        "State"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.aggregate.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.aggregate.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        self.aggregate.group_expr.iter().chain(&self.aggregate.aggr_expr).cloned().collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "State: {} groups by, {} aggregates", self.aggregate.group_expr.len(), self.aggregate.aggr_expr.len())
    }

    fn with_exprs_and_inputs(&self, mut exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> DfResult<Self> {
        let Some(input) = inputs.into_iter().next() else { return plan_err!("an aggregate has one input") };
        let aggr_expr = exprs.split_off(self.aggregate.group_expr.len());
        // The schema stays: what is above refers to it by name.
        let schema = Arc::clone(&self.aggregate.schema);
        let aggregate = Aggregate::try_new_with_schema(Arc::new(input), exprs, aggr_expr, schema)?;
        Ok(Self { aggregate, window: self.window })
    }

    fn necessary_children_exprs(&self, _output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        // What its expressions use is added by the caller. Both columns of a window that a key has of its own are read,
        // whether grouped by or not.
        let columns = match self.window {
            Some(WindowKind::Session(_) | WindowKind::Count(_)) => pane_columns(self.aggregate.input.schema()),
            Some(WindowKind::Time(_)) | None => vec![],
        };
        Some(vec![columns])
    }
}

/// Places of the window columns.
fn pane_columns(schema: &DFSchemaRef) -> Vec<usize> {
    let fields = schema.fields().iter().enumerate();
    fields.filter(|(_, field)| pane_column(field).is_some()).map(|(at, _)| at).collect()
}

/// What of streams a plan reads.
#[derive(Debug, Default, Clone, Copy)]
struct Reads {
    stream: bool,
    /// A view whose rows are the whole result again in each batch.
    whole: bool,
    state: usize,
    windows: usize,
    /// A LIMIT, or an ORDER BY with one, that cuts each batch.
    limited: bool,
}

fn reads(plan: &LogicalPlan) -> DfResult<Reads> {
    let mut reads = Reads::default();
    plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::TableScan(scan) => {
                let provider = source_as_provider(&scan.source)?;
                let provider: &dyn Any = provider.as_ref();
                if provider.is::<StreamTable>() {
                    reads.stream = true;
                } else if let Some(node) = provider.downcast_ref::<NodeTable>() {
                    reads.stream = true;
                    reads.whole |= node.whole;
                }
            }
            LogicalPlan::Limit(_) => reads.limited = true,
            LogicalPlan::Extension(node) => {
                let node: &dyn Any = node.node.as_any();
                reads.state += usize::from(node.is::<StateNode>());
                reads.windows += usize::from(node.is::<WindowNode>());
            }
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(reads)
}

/// The plan with its aggregate over streams marked.
pub(super) fn arrange(plan: LogicalPlan) -> DfResult<LogicalPlan> {
    let plan = plan.transform_up(arrange_node)?.data;
    let all = reads(&plan)?;
    if all.state > 1 {
        return plan_err!("two aggregates over streams in one statement: make each a view of its own");
    }
    if all.windows > 0 && all.state == 0 {
        return plan_err!(
            "SELECT from a window (TUMBLE, HOP, SESSION, COUNT_WINDOW) needs an aggregate: SELECT window_start, count(*) … GROUP BY window_start; \
             to have single rows, select from the stream itself"
        );
    }
    Ok(plan)
}

/// Refuses expressions too deep to be evaluated.
pub(super) fn check_depth(plan: &LogicalPlan) -> DfResult<()> {
    plan.apply_with_subqueries(|node| check_expressions(node).map(|()| TreeNodeRecursion::Continue)).map(drop)
}

fn arrange_node(node: LogicalPlan) -> DfResult<Transformed<LogicalPlan>> {
    let inputs = node.inputs().into_iter().map(reads).collect::<DfResult<Vec<_>>>()?;
    let streams = inputs.iter().filter(|r| r.stream).count();
    check_expressions(&node)?;
    if streams == 0 {
        return Ok(Transformed::no(node));
    }
    let has_state = inputs.iter().any(|r| r.state > 0);
    match &node {
        LogicalPlan::Aggregate(_) => {}
        LogicalPlan::Distinct(_) if !has_state => {
            return plan_err!(
                "DISTINCT over a stream: use GROUP BY, which keeps what it has seen; or count(DISTINCT …) to count"
            );
        }
        LogicalPlan::Window(_) if !has_state => {
            return plan_err!(
                "window functions (OVER) over a stream: aggregate with GROUP BY over TUMBLE or HOP; \
                 OVER may stand above such an aggregate, and then works within each result"
            );
        }
        LogicalPlan::Join(_) if streams > 1 => {
            return plan_err!(
                "a join of two streams: join a stream with a table (CREATE TABLE), \
                 or use the typed interface, whose join works on batches and windows"
            );
        }
        LogicalPlan::Union(_) if has_state && streams > 1 => {
            return plan_err!(
                "UNION of an aggregate over a stream with another stream: make each part a view of its own"
            );
        }
        LogicalPlan::RecursiveQuery(_) => {
            return plan_err!("WITH RECURSIVE over a stream: it may only read tables");
        }
        _ => {}
    }
    let LogicalPlan::Aggregate(aggregate) = node else { return Ok(Transformed::no(node)) };
    let below = inputs[0];
    if has_state {
        return plan_err!(
            "an aggregate over an aggregate over a stream: make the inner one a view with a window and aggregate over that view"
        );
    }
    if below.whole {
        return plan_err!(
            "an aggregate over a view that gives its whole result in each batch, or its windows more than once, would count it again and again: \
             give the view a window (TUMBLE or HOP) without `emit` and `allowed_lateness`, or aggregate over the stream itself"
        );
    }
    if below.limited {
        return plan_err!("a LIMIT below an aggregate over a stream would cut each batch: put it above the aggregate");
    }
    if aggregate.group_expr.iter().any(|e| matches!(e, Expr::GroupingSet(_))) {
        return plan_err!("GROUPING SETS, ROLLUP and CUBE over a stream: make each grouping a view of its own");
    }
    let window = match below.windows {
        0 => None,
        1 => Some(window_below(&aggregate)?),
        _ => return plan_err!("an aggregate over two windows: make each a view of its own"),
    };
    let node = Arc::new(StateNode { aggregate, window });
    Ok(Transformed::yes(LogicalPlan::Extension(Extension { node })))
}

/// Checks what has to hold for the expressions of one node.
fn check_expressions(node: &LogicalPlan) -> DfResult<()> {
    for expr in node.expressions() {
        let (mut depth, mut deepest) = (0_usize, 0_usize);
        let mut over_stream = false;
        // A visitor counts the way down and up again.
        struct Depth<'a>(&'a mut usize, &'a mut usize, &'a mut bool);
        impl datafusion::common::tree_node::TreeNodeVisitor<'_> for Depth<'_> {
            type Node = Expr;
            fn f_down(&mut self, expr: &Expr) -> DfResult<TreeNodeRecursion> {
                *self.0 += 1;
                *self.1 = (*self.1).max(*self.0);
                let subquery = match expr {
                    Expr::ScalarSubquery(subquery) => Some(subquery),
                    Expr::Exists(exists) => Some(&exists.subquery),
                    Expr::InSubquery(within) => Some(&within.subquery),
                    _ => None,
                };
                if let Some(subquery) = subquery {
                    *self.2 |= reads(&subquery.subquery)?.stream;
                }
                Ok(TreeNodeRecursion::Continue)
            }
            fn f_up(&mut self, _expr: &Expr) -> DfResult<TreeNodeRecursion> {
                *self.0 -= 1;
                Ok(TreeNodeRecursion::Continue)
            }
        }
        expr.visit(&mut Depth(&mut depth, &mut deepest, &mut over_stream))?;
        if over_stream {
            return plan_err!(
                "a subquery over a stream inside an expression: it may read tables; \
                 compare streams with each other in the typed interface"
            );
        }
        if deepest > DEPTH {
            return plan_err!(
                "an expression nested over {DEPTH} deep: use IN (…) for long lists, or a table and a join"
            );
        }
    }
    Ok(())
}

/// The window below an aggregate, which must be grouped by it, and nothing in between may compute with it.
fn window_below(aggregate: &Aggregate) -> DfResult<WindowKind> {
    let schema = aggregate.input.schema();
    let is_pane = |expr: &Expr| match expr.clone().unalias_nested().data {
        Expr::Column(column) => schema.field_from_column(&column).is_ok_and(|f| pane_column(f).is_some()),
        _ => false,
    };
    if !aggregate.group_expr.iter().any(is_pane) {
        return plan_err!(
            "an aggregate over a window (TUMBLE, HOP, SESSION, COUNT_WINDOW) must be grouped by the window: add window_start (or window_end) to GROUP BY"
        );
    }
    for expr in aggregate.group_expr.iter().chain(&aggregate.aggr_expr).filter(|e| !is_pane(e)) {
        refuse_pane(expr, schema)?;
    }
    let mut found = None;
    let mut between = None;
    aggregate.input.apply(|node| {
        if let LogicalPlan::Extension(extension) = node {
            let node: &dyn Any = extension.node.as_any();
            if let Some(window) = node.downcast_ref::<WindowNode>() {
                found = Some((window.kind, window.keys.clone()));
                return Ok(TreeNodeRecursion::Jump);
            }
        }
        match node {
            LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) => {}
            other if between.is_none() => between = Some(other.display().to_string()),
            _ => {}
        }
        for input in node.inputs() {
            for expr in node.expressions() {
                let plain = matches!(expr.clone().unalias_nested().data, Expr::Column(_));
                if !plain || matches!(node, LogicalPlan::Sort(_) | LogicalPlan::Filter(_)) {
                    refuse_pane(&expr, input.schema())?;
                }
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    let Some((kind, keys)) = found else { return plan_err!("no window below the aggregate") };
    if let (WindowKind::Count(_), Some(between)) = (kind, between) {
        return plan_err!(
            "between COUNT_WINDOW and its aggregate stands `{between}`, and every row that was counted must come through: \
             make what filters or unfolds rows a view, and count the rows of that"
        );
    }
    if matches!(kind, WindowKind::Session(_) | WindowKind::Count(_)) && pane_columns(schema).len() < 2 {
        return plan_err!("a subquery over SESSION or COUNT_WINDOW selects both window_start and window_end");
    }
    let is_grouped = |key: &Column| {
        aggregate.group_expr.iter().any(|expr| match expr.clone().unalias_nested().data {
            Expr::Column(column) => {
                let field = schema.field_from_column(&column);
                field.is_ok_and(|f| f.metadata().contains_key(KEY) && f.name() == key.name())
            }
            _ => false,
        })
    };
    if let Some(key) = keys.iter().find(|key| !is_grouped(key)) {
        return plan_err!(
            "an aggregate over windows of each `{}` must be grouped by it: add {} to GROUP BY as it is",
            key.name,
            key.name
        );
    }
    Ok(kind)
}

fn refuse_pane(expr: &Expr, schema: &DFSchemaRef) -> DfResult<()> {
    for column in expr.column_refs() {
        if schema.field_from_column(column).is_ok_and(|f| pane_column(f).is_some()) {
            return plan_err!(
                "`{}` is known only when the window closes: group by it as it is, filter it with HAVING, \
                 and compute with it in the SELECT list",
                column.name
            );
        }
    }
    Ok(())
}
