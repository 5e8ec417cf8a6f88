//! Which queries over streams mean something, and where their state is.
//!
//! [`arrange`] walks an analyzed plan from the leaves up, wraps the aggregate
//! over a stream in a [`StateNode`], which DataFusion's optimizer can't look
//! into, and refuses what has no meaning over batches, naming an alternative.
//! Called by [`super::lower`]. Invariant: a plan that passes has at most one
//! aggregate over streams, and all it reads of streams is below that.

use super::{
    panes::{KEY, WindowNode, pane_column},
    provider::Table,
    tables::{NodeTable, StreamTable},
    top::TopNode,
};
use datafusion::{
    common::{
        Column, DFSchemaRef, ExprSchema, JoinType, Result as DfResult, plan_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    datasource::source_as_provider,
    logical_expr::{Aggregate, Expr, Extension, LogicalPlan, UserDefinedLogicalNodeCore},
};
use std::{any::Any, cmp::Ordering, fmt, sync::Arc};
use tidemill_core::WindowKind;

/// Depth of an expression at most: evaluating one recurses.
const DEPTH: usize = 400;

/// Aggregates with a DISTINCT whose partial rows are other than they declare.
const NOT_DISTINCT: [&str; 1] = ["bit_xor"];

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

/// What a relation gives in each batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changes {
    /// The same rows for ever: a table.
    Nothing,
    /// Rows that are new, and stay.
    New,
    /// The whole result so far, again.
    Whole,
    /// Windows, some of them again: as they change, or corrected by late rows.
    Again,
}

/// What a plan's rows are.
pub(super) fn changes(plan: &LogicalPlan) -> DfResult<Changes> {
    let mut found = Changes::Nothing;
    match plan {
        LogicalPlan::TableScan(scan) => {
            let provider = source_as_provider(&scan.source)?;
            let provider: &dyn Any = provider.as_ref();
            if provider.is::<Table<StreamTable>>() {
                return Ok(Changes::New);
            }
            if let Some(Table(node)) = provider.downcast_ref::<Table<NodeTable>>() {
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
        found = match (found, changes(input)?) {
            (Changes::Again, _) | (_, Changes::Again) => Changes::Again,
            (Changes::New, _) | (_, Changes::New) => Changes::New,
            (Changes::Whole, _) | (_, Changes::Whole) => Changes::Whole,
            (Changes::Nothing, Changes::Nothing) => Changes::Nothing,
        };
    }
    Ok(found)
}

/// Places of the window columns.
fn pane_columns(schema: &DFSchemaRef) -> Vec<usize> {
    let fields = schema.fields().iter().enumerate();
    fields.filter(|(_, field)| pane_column(field).is_some()).map(|(at, _)| at).collect()
}

/// What of streams a plan has.
#[derive(Debug, Default, Clone, Copy)]
struct Reads {
    state: usize,
    windows: usize,
    /// An aggregate over windows that each key has of its own.
    own: bool,
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
                reads.tables |=
                    provider.downcast_ref::<Table<NodeTable>>().is_some_and(|t| t.0.gives == Changes::Nothing);
            }
            LogicalPlan::Extension(node) => {
                let node: &dyn Any = node.node.as_any();
                reads.state += usize::from(node.is::<StateNode>() || node.is::<TopNode>());
                let window = node.downcast_ref::<StateNode>().and_then(|state| state.window);
                reads.own |= matches!(window, Some(WindowKind::Session(_) | WindowKind::Count(_)));
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
pub(super) fn arrange(plan: LogicalPlan) -> DfResult<(LogicalPlan, Option<Cut>)> {
    let mut cut = None;
    let plan = plan
        .transform_up(|node| if cut.is_some() { Ok(Transformed::no(node)) } else { arrange_node(node, &mut cut) })?
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
            "SELECT from a window (TUMBLE, HOP, SESSION, COUNT_WINDOW) needs an aggregate: SELECT window_start, count(*) … GROUP BY window_start; \
             to have single rows, select from the stream itself"
        );
    }
    Ok((plan, None))
}

/// Refuses expressions too deep to be evaluated.
pub(super) fn check_depth(plan: &LogicalPlan) -> DfResult<()> {
    plan.apply_with_subqueries(|node| check_expressions(node).map(|()| TreeNodeRecursion::Continue)).map(drop)
}

fn arrange_node(node: LogicalPlan, cut: &mut Option<Cut>) -> DfResult<Transformed<LogicalPlan>> {
    check_expressions(&node)?;
    let inputs = node.inputs();
    let gives = inputs.iter().map(|input| changes(input)).collect::<DfResult<Vec<_>>>()?;
    let streams = gives.iter().filter(|gives| **gives != Changes::Nothing).count();
    if streams == 0 {
        return Ok(Transformed::no(node));
    }
    let below = inputs.iter().map(|input| reads(input)).collect::<DfResult<Vec<_>>>()?;
    let has_state = below.iter().any(|reads| reads.state > 0);
    if has_state && inputs.len() > 1 && (streams > 1 || below.iter().any(|reads| reads.tables)) {
        // Each part that has state becomes a node, so that what stands here reads rows.
        if let Some((part, _)) = inputs.iter().zip(&below).find(|(_, reads)| reads.state > 0) {
            *cut = Some(Cut::View((*part).clone()));
            return Ok(Transformed::no(node));
        }
    }
    if gives.contains(&Changes::Again) && (streams > 1 || !is_by_row(&node)) {
        return plan_err!(
            "{} over a view that gives windows or groups more than once (`emit`, `allowed_lateness`) would count it again and again: leave \
             those options out of that view, or read it as it is",
            title(&node)
        );
    }
    match &node {
        LogicalPlan::Aggregate(aggregate) if has_state && gives[0] == Changes::New => {
            let within = aggregate.group_expr.iter().any(|e| is_pane(e, aggregate.input.schema()));
            if !within || below[0].own {
                // Over all windows, not within each.
                *cut = Some(Cut::View(aggregate.input.as_ref().clone()));
            }
            return Ok(Transformed::no(node));
        }
        LogicalPlan::Distinct(_) if gives[0] == Changes::New => {
            let within = node.schema().fields().iter().any(|field| pane_column(field).is_some());
            if has_state && within && !below[0].own {
                return Ok(Transformed::no(node));
            }
            let input = inputs[0].clone();
            *cut = Some(if has_state { Cut::View(input) } else { Cut::Distinct(node.clone()) });
            return Ok(Transformed::no(node));
        }
        LogicalPlan::Filter(_) if gives[0] == Changes::New && !has_state => {
            return Ok(super::top::find(&node)?.map_or_else(|| Transformed::no(node), Transformed::yes));
        }
        LogicalPlan::Join(join) => {
            check_join(join.join_type, gives[0], gives[1])?;
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

/// Whether what a node gives of a row does not depend on other rows of its input.
fn is_by_row(node: &LogicalPlan) -> bool {
    matches!(
        node,
        LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Unnest(_)
            | LogicalPlan::Sort(_)
            | LogicalPlan::Limit(_)
            | LogicalPlan::Join(_)
    )
}

fn title(node: &LogicalPlan) -> &'static str {
    match node {
        LogicalPlan::Aggregate(_) => "an aggregate",
        LogicalPlan::Distinct(_) => "DISTINCT",
        LogicalPlan::Window(_) => "a window function (OVER)",
        LogicalPlan::Join(_) => "a join with a stream",
        LogicalPlan::Union(_) => "UNION",
        _ => "what compares rows",
    }
}

/// Refuses joins in which the rows of one side would be given again, or with NULLs too early.
fn check_join(kind: JoinType, left: Changes, right: Changes) -> DfResult<()> {
    let keeps_left =
        matches!(kind, JoinType::Left | JoinType::Full | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark);
    let keeps_right = matches!(
        kind,
        JoinType::Right | JoinType::Full | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark
    );
    let comes = |of: Changes| matches!(of, Changes::New | Changes::Again);
    let side = match (comes(left), comes(right)) {
        (false, true) if keeps_left => "left",
        (true, false) if keeps_right => "right",
        _ => return Ok(()),
    };
    plan_err!(
        "this join keeps the rows of its {side} side, and they would be given again in each batch: put the stream on the \
         side that is kept (stream LEFT JOIN table), or use JOIN"
    )
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
fn window_below(aggregate: &Aggregate) -> DfResult<WindowKind> {
    let schema = aggregate.input.schema();
    if !aggregate.group_expr.iter().any(|e| is_pane(e, schema)) {
        return plan_err!(
            "an aggregate over a window (TUMBLE, HOP, SESSION, COUNT_WINDOW) must be grouped by the window: add window_start (or window_end) to GROUP BY"
        );
    }
    for expr in aggregate.group_expr.iter().chain(&aggregate.aggr_expr).filter(|e| !is_pane(e, schema)) {
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
