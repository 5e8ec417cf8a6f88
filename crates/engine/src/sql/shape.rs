//! Which queries over streams mean something, and where their state is.
//!
//! [`arrange`] walks an analyzed plan from the leaves up, wraps the aggregate
//! over a stream in a [`StateNode`], which DataFusion's optimizer can't look
//! into, and refuses what has no meaning over batches, naming an alternative.
//! Called by [`super::lower`]. Invariant: a plan that passes has at most one
//! aggregate over streams, and all it reads of streams is below that.

use super::{
    parse::Mark,
    tables::{NodeTable, StreamTable},
    top::TopNode,
    window::{WindowNode, pane_column},
};
use datafusion::{
    common::{
        DFSchemaRef, ExprSchema, JoinType, Result as DfResult, plan_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    datasource::source_as_provider,
    logical_expr::{Aggregate, Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore},
};
use std::{any::Any, cmp::Ordering, collections::HashMap, fmt, sync::Arc};
use tidemill_core::WindowSpec;

/// Depth of an expression at most: evaluating one recurses.
const DEPTH: usize = 400;

/// Aggregates with a DISTINCT whose partial rows are other than they declare.
const NOT_DISTINCT: [&str; 1] = ["bit_xor"];

/// An aggregate whose partial rows are kept from batch to batch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct StateNode {
    pub(super) aggregate: Aggregate,
    pub(super) window: Option<WindowSpec>,
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
        // What its expressions use is added by the caller.
        Some(vec![vec![]])
    }
}

/// What a relation gives in each batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changes {
    /// The same rows for ever: a table.
    Nothing,
    /// Rows that are new, and stay.
    New,
    /// The whole result so far, again.
    Whole,
}

/// What a plan's rows are.
pub(super) fn changes(plan: &LogicalPlan) -> DfResult<Changes> {
    let mut found = Changes::Nothing;
    match plan {
        LogicalPlan::TableScan(scan) => {
            let provider = source_as_provider(&scan.source)?;
            let provider: &dyn Any = provider.as_ref();
            if provider.is::<StreamTable>() {
                return Ok(Changes::New);
            }
            if let Some(node) = provider.downcast_ref::<NodeTable>() {
                return Ok(node.gives);
            }
            return Ok(Changes::Nothing);
        }
        LogicalPlan::Extension(node) => {
            let node: &dyn Any = node.node.as_any();
            if node.is::<TopNode>() || node.downcast_ref::<StateNode>().is_some_and(|state| state.window.is_none()) {
                return Ok(Changes::Whole);
            }
        }
        _ => {}
    }
    for input in plan.inputs() {
        match changes(input)? {
            Changes::New => return Ok(Changes::New),
            Changes::Whole => found = Changes::Whole,
            Changes::Nothing => {}
        }
    }
    Ok(found)
}

/// What of streams a plan has.
#[derive(Debug, Default, Clone, Copy)]
struct Reads {
    state: usize,
    windows: usize,
    /// A table that is read again, whose rows come with the batch.
    tables: bool,
    /// A LIMIT, or an ORDER BY with one, that cuts each batch.
    limited: bool,
}

fn reads(plan: &LogicalPlan) -> DfResult<Reads> {
    let mut reads = Reads::default();
    plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::Limit(_) => reads.limited = true,
            LogicalPlan::TableScan(scan) => {
                let provider = source_as_provider(&scan.source)?;
                let provider: &dyn Any = provider.as_ref();
                reads.tables |= provider.downcast_ref::<NodeTable>().is_some_and(|t| t.gives == Changes::Nothing);
            }
            LogicalPlan::Extension(node) => {
                let node: &dyn Any = node.node.as_any();
                reads.state += usize::from(node.is::<StateNode>() || node.is::<TopNode>());
                reads.windows += usize::from(node.is::<WindowNode>());
            }
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(reads)
}

/// A part of a statement that has to be a node of its own before the rest can be arranged.
pub(super) enum Cut {
    /// As a view.
    View(LogicalPlan),
    /// A DISTINCT over a stream.
    Distinct(LogicalPlan),
}

/// The plan with its aggregate over streams marked, as far as the first part that must be cut out.
pub(super) fn arrange(
    plan: LogicalPlan,
    marks: &HashMap<String, Mark>,
    name: &str,
) -> DfResult<(LogicalPlan, Option<Cut>)> {
    let mut cut = None;
    let plan = plan
        .transform_up(|node| {
            if cut.is_some() { Ok(Transformed::no(node)) } else { arrange_node(node, marks, name, &mut cut) }
        })?
        .data;
    if cut.is_some() {
        return Ok((plan, cut));
    }
    plan.apply(|node| {
        if let LogicalPlan::Window(window) = node
            && changes(&window.input)? == Changes::New
            && reads(&window.input)?.state == 0
        {
            return plan_err!(
                "window functions (OVER) over a stream: aggregate with GROUP BY over TUMBLE or HOP; \
                 OVER may stand above such an aggregate, and then works within each result; or keep the first of \
                 each key: row_number() OVER (PARTITION BY key ORDER BY …) AS n in a subquery, and WHERE n <= 10 around it"
            );
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    let all = reads(&plan)?;
    if all.state > 1 {
        return plan_err!("two aggregates over streams in one statement: make each a view of its own");
    }
    if all.windows > 0 && all.state == 0 {
        return plan_err!(
            "SELECT from TUMBLE or HOP needs an aggregate: SELECT window_start, count(*) … GROUP BY window_start; \
             to have single rows, select from the stream itself"
        );
    }
    Ok((plan, None))
}

/// Refuses expressions too deep to be evaluated.
pub(super) fn check_depth(plan: &LogicalPlan) -> DfResult<()> {
    plan.apply_with_subqueries(|node| check_expressions(node).map(|()| TreeNodeRecursion::Continue)).map(drop)
}

fn arrange_node(
    node: LogicalPlan,
    marks: &HashMap<String, Mark>,
    name: &str,
    cut: &mut Option<Cut>,
) -> DfResult<Transformed<LogicalPlan>> {
    check_expressions(&node)?;
    let inputs = node.inputs();
    let gives = inputs.iter().map(|input| changes(input)).collect::<DfResult<Vec<_>>>()?;
    let streams = gives.iter().filter(|gives| **gives != Changes::Nothing).count();
    if streams == 0 {
        return Ok(Transformed::no(node));
    }
    let below = inputs.iter().map(|input| reads(input)).collect::<DfResult<Vec<_>>>()?;
    let has_state = below.iter().any(|reads| reads.state > 0);
    if has_state && (streams > 1 || inputs.iter().map(|input| reads(input)).any(|r| r.is_ok_and(|r| r.tables))) {
        // Each part that has state becomes a node, so that what stands here reads rows.
        if let Some((part, _)) = inputs.iter().zip(&below).find(|(_, reads)| reads.state > 0) {
            *cut = Some(Cut::View((*part).clone()));
            return Ok(Transformed::no(node));
        }
    }
    match &node {
        LogicalPlan::Aggregate(aggregate) if has_state && gives[0] == Changes::New => {
            if !aggregate.group_expr.iter().any(|e| is_pane(e, aggregate.input.schema())) {
                // Over all windows, not within each.
                *cut = Some(Cut::View(aggregate.input.as_ref().clone()));
            }
            return Ok(Transformed::no(node));
        }
        LogicalPlan::Distinct(_) if gives[0] == Changes::New => {
            let within = node.schema().fields().iter().any(|field| pane_column(field).is_some());
            if has_state && within {
                return Ok(Transformed::no(node));
            }
            *cut = Some(if has_state {
                Cut::View(inputs[0].clone())
            } else {
                Cut::Distinct(watched(&node, marks, name)?)
            });
            // What is cut out is found by being the same.
            let node = match &cut {
                Some(Cut::Distinct(watched)) => Transformed::yes(watched.clone()),
                _ => Transformed::no(node),
            };
            return Ok(node);
        }
        LogicalPlan::Filter(_) if gives[0] == Changes::New && !has_state => {
            return Ok(super::top::find(&node)?.map_or_else(|| Transformed::no(node), Transformed::yes));
        }
        LogicalPlan::Join(join) => {
            check_join(join.join_type, gives[0], gives[1])?;
            if gives[0] == Changes::New && gives[1] == Changes::New {
                return Ok(Transformed::yes(watched(&node, marks, name)?));
            }
            return Ok(Transformed::no(node));
        }
        LogicalPlan::Union(_) if gives.iter().any(|one| *one != gives[0]) => {
            return plan_err!(
                "UNION of a stream with a table, or with a view that gives its whole result in each batch: the latter's rows \
                 would come again in each batch; take streams, or such views, or tables, on all sides"
            );
        }
        LogicalPlan::RecursiveQuery(_) => {
            return plan_err!("WITH RECURSIVE over a stream: it may only read tables");
        }
        _ => {}
    }
    if let LogicalPlan::Aggregate(aggregate) = &node {
        check_aggregates(aggregate)?;
    }
    if gives[0] == Changes::Whole {
        // Computed anew from the whole result.
        return Ok(Transformed::no(node));
    }
    let below = below[0];
    let LogicalPlan::Aggregate(aggregate) = node else { return Ok(Transformed::no(node)) };
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

/// The node with the times of the streams below it watched.
fn watched(node: &LogicalPlan, marks: &HashMap<String, Mark>, name: &str) -> DfResult<LogicalPlan> {
    super::progress::watch(node.clone(), marks, name)
}

/// Refuses aggregates whose state DataFusion can't hand out and take back.
fn check_aggregates(aggregate: &Aggregate) -> DfResult<()> {
    for expr in &aggregate.aggr_expr {
        let Expr::AggregateFunction(call) = expr.clone().unalias() else { continue };
        let name = call.func.name();
        if call.params.distinct && NOT_DISTINCT.contains(&name) {
            return plan_err!(
                "`{name}` of DISTINCT values over a stream, whose state can't be kept: take DISTINCT rows first, \
                 SELECT {name}(x) … FROM (SELECT DISTINCT key, x FROM …)"
            );
        }
    }
    Ok(())
}

/// Refuses joins in which the rows of a batch would be given again, or with NULLs too early.
fn check_join(kind: JoinType, left: Changes, right: Changes) -> DfResult<()> {
    let keeps = |side: &str| {
        plan_err!(
            "this join keeps the rows of its {side} side, and they would be given again in each batch: put the stream on the \
             side that is kept (stream LEFT JOIN table), or use JOIN"
        )
    };
    match (left, right) {
        (Changes::New, Changes::New) | (_, Changes::Nothing) | (Changes::New | Changes::Nothing, Changes::Whole)
            if !matches!(
                kind,
                JoinType::Right | JoinType::Full | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark
            ) =>
        {
            Ok(())
        }
        (Changes::New, Changes::New)
        | (Changes::Whole, Changes::Whole | Changes::Nothing)
        | (Changes::Nothing, Changes::Whole | Changes::Nothing) => Ok(()),
        (Changes::New, _) => keeps("right"),
        (_, Changes::New) => match kind {
            JoinType::Inner | JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => {
                Ok(())
            }
            _ => keeps("left"),
        },
    }
}

fn is_pane(expr: &Expr, schema: &DFSchemaRef) -> bool {
    match expr.clone().unalias_nested().data {
        Expr::Column(column) => schema.field_from_column(&column).is_ok_and(|f| pane_column(f).is_some()),
        _ => false,
    }
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
                    *self.2 |= changes(&subquery.subquery)? == Changes::New || reads(&subquery.subquery)?.state > 0;
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
                "a subquery over a stream inside an expression: it may read tables, and views that give their whole result; \
                 join the stream instead (JOIN … ON with a bound in time), or make the subquery a view without a window"
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
fn window_below(aggregate: &Aggregate) -> DfResult<WindowSpec> {
    let schema = aggregate.input.schema();
    if !aggregate.group_expr.iter().any(|e| is_pane(e, schema)) {
        return plan_err!(
            "an aggregate over TUMBLE or HOP must be grouped by the window: add window_start (or window_end) to GROUP BY"
        );
    }
    for expr in aggregate.group_expr.iter().chain(&aggregate.aggr_expr).filter(|e| !is_pane(e, schema)) {
        refuse_pane(expr, schema)?;
    }
    let mut spec = None;
    aggregate.input.apply(|node| {
        if let LogicalPlan::Extension(extension) = node {
            let node: &dyn Any = extension.node.as_any();
            if let Some(window) = node.downcast_ref::<WindowNode>() {
                spec = Some(window.spec);
                return Ok(TreeNodeRecursion::Jump);
            }
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
    match spec {
        Some(spec) => Ok(spec),
        None => plan_err!("no window below the aggregate"),
    }
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
