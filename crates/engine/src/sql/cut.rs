//! Where a plan is cut around its state.
//!
//! The physical planner meets our logical nodes here. A [`StateNode`] or a
//! [`TopNode`] leaves a [`Mark`] in the plan and what stands around the state
//! aside: the merge of its rows, and the last step over them. [`super::lower`]
//! puts them together.
//!
//! Invariant: a plan with a mark is never run.

use super::{
    lower::plain,
    panes::{KEY, WindowNode, pane_column},
    parts::{as_it_was, names},
    provider::Table,
    rows::labelled,
    shape::StateNode,
    side::LateNode,
    state::{Layout, Role},
    tables::{FedTable, fed},
    times::{Timing, ViewOptions},
    top::TopNode,
};
use crate::{
    plan::{BatchRun, Kernel, NodeExec, NodeInputs, Rows},
    state::StateOperator,
};
use arrow_schema::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    common::{ExprSchema, Result as DfResult, internal_datafusion_err, internal_err},
    datasource::provider_as_source,
    execution::SessionState,
    functions_aggregate::min_max::{max_udaf, min_udaf},
    logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNode, physical_planning_context::PhysicalPlanningContext},
    physical_expr::{
        aggregate::{AggregateExprBuilder, LoweredAggregateBuilder},
        expressions::Column,
    },
    physical_plan::{
        ExecutionPlan, PhysicalExpr,
        aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy},
    },
    physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner},
};
use futures::FutureExt;
use parking_lot::Mutex;
use std::{any::Any, sync::Arc};
use tidemill_core::WindowKind;

/// The physical plan, and the plans around its state if it has one.
pub(super) async fn physical(
    state: &SessionState,
    plan: &LogicalPlan,
    name: &str,
    options: &ViewOptions,
) -> DfResult<(Arc<dyn ExecutionPlan>, Option<Made>)> {
    let planner = Arc::new(Planner {
        name: name.to_string(),
        state: state.clone(),
        options: options.clone(),
        below: Mutex::default(),
        made: Mutex::default(),
    });
    let physical = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::clone(&planner) as _])
        .create_physical_plan(plan, state)
        .await?;
    let made = planner.made.lock().take();
    Ok((physical, made))
}

/// Name of the rows that a nested plan is fed.
pub(super) const FED: &str = "kept";

/// Marks the place of the state while the plan is made.
#[derive(Debug)]
pub(super) struct Mark;

impl Kernel for Mark {
    fn run(&self, _partition: usize, _inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        internal_err!("a plan was run before it was cut")
    }
}

/// The plans around a state.
pub(super) struct Made {
    pub(super) numbers: Option<Arc<dyn StateOperator>>,
    /// `Final` over the rows that the state gives.
    pub(super) last: Arc<dyn ExecutionPlan>,
    pub(super) merge: Arc<dyn ExecutionPlan>,
    pub(super) layout: Layout,
}

/// What a window says to the aggregate above it.
#[derive(Default, Clone)]
pub(super) struct Below {
    pub(super) timing: Timing,
    pub(super) numbers: Option<Arc<dyn StateOperator>>,
    pub(super) has_keys: bool,
}

/// Plans our logical nodes.
pub(super) struct Planner {
    name: String,
    state: SessionState,
    options: ViewOptions,
    below: Mutex<Below>,
    made: Mutex<Option<Made>>,
}

#[async_trait]
impl ExtensionPlanner for Planner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn Session,
        planning_ctx: &PhysicalPlanningContext,
    ) -> DfResult<Option<Arc<dyn ExecutionPlan>>> {
        let node: &dyn Any = node.as_any();
        let Some(input) = physical_inputs.first() else { return Ok(None) };
        if let Some(window) = node.downcast_ref::<WindowNode>() {
            let (plan, numbers) = window.plan(&self.name, Arc::clone(input), &self.options)?;
            let timing = Timing {
                streams: window.times.iter().map(|time| time.stream.clone()).collect(),
                lateness: self.options.lateness.unwrap_or_else(|| window.lateness()),
                emit: self.options.emit,
            };
            *self.below.lock() = Below { timing, numbers, has_keys: !window.keys.is_empty() };
            return Ok(Some(plan));
        }
        if let Some(late) = node.downcast_ref::<LateNode>() {
            return late.physical(Arc::clone(input)).map(Some);
        }
        if let Some(top) = node.downcast_ref::<TopNode>() {
            let schema = input.schema();
            let made = self.top(top, &schema).await?;
            let rows = labelled(Arc::clone(input), &made.layout.kept);
            *self.made.lock() = Some(made);
            return Ok(Some(NodeExec::plan(format!("{}: state", self.name), Mark, vec![rows], schema, 1)));
        }
        let Some(state) = node.downcast_ref::<StateNode>() else { return Ok(None) };
        let below = logical_inputs[0].schema();
        let expr = |e: &Expr| planner.create_physical_expr(e, below, session, planning_ctx);
        let (partial, made) = self.aggregate(state, below, Arc::clone(input), &expr, session, planning_ctx)?;
        let schema = made.last.schema();
        *self.made.lock() = Some(made);
        Ok(Some(NodeExec::plan(format!("{}: state", self.name), Mark, vec![partial], schema, 1)))
    }
}

impl Planner {
    /// The plans around the first rows of each key: what is kept are the rows.
    async fn top(&self, node: &TopNode, schema: &SchemaRef) -> DfResult<Made> {
        let own = datafusion::logical_expr::UserDefinedLogicalNodeCore::schema(node);
        let kept = names(own);
        let table = Arc::new(Table(FedTable(Arc::clone(&kept))));
        let rows = as_it_was(FED, provider_as_source(table), &kept, own)?;
        let cut = self.state.optimize(&node.cut(rows)?)?;
        let (merge, _) = physical(&self.state, &cut, &self.name, &self.options).boxed().await?;
        let roles = (0..kept.fields().len()).map(Role::Kept).collect();
        let layout = Layout {
            full: Arc::clone(&kept),
            kept: Arc::clone(&kept),
            roles,
            window: None,
            pane: 0,
            // Its rows are what they are: nothing can be added to one.
            keys: kept.fields().len(),
            show: fed(&kept),
            neutral: fed(&kept),
            key: Vec::new(),
            low: 0,
            high: 0,
            timing: Timing::default(),
            aggregates: Vec::new(),
            first: None,
            beyond: None,
            numbering: node.numbering(),
            ranking: None,
        };
        let (last, merge) = (labelled(fed(&layout.kept), schema), labelled(merge, &layout.kept));
        Ok(Made { numbers: None, last, merge, layout })
    }

    fn aggregate(
        &self,
        node: &StateNode,
        below: &datafusion::common::DFSchema,
        input: Arc<dyn ExecutionPlan>,
        physical: &dyn Fn(&Expr) -> DfResult<Arc<dyn PhysicalExpr>>,
        session: &dyn Session,
        planning_ctx: &PhysicalPlanningContext,
    ) -> DfResult<(Arc<dyn ExecutionPlan>, Made)> {
        let input_schema = input.schema();
        let (mut all, mut kept, mut roles, mut pane) = (Vec::new(), Vec::new(), Vec::new(), None);
        let below_window = self.below.lock().clone();
        let is_own = matches!(node.window, Some(WindowKind::Session(_) | WindowKind::Count(_)));
        let carried = |role: &str| -> DfResult<Arc<dyn PhysicalExpr>> {
            let at = input_schema.fields().iter().position(|f| pane_column(f) == Some(role));
            let at = at.ok_or_else(|| internal_datafusion_err!("the optimizer dropped the {role} of windows"))?;
            Ok(Arc::new(Column::new(input_schema.field(at).name(), at)))
        };
        let mut key = Vec::new();
        for (at, expr) in node.aggregate.group_expr.iter().enumerate() {
            let name = node.aggregate.schema.field(at).name().clone();
            let group = (physical(expr)?, name);
            all.push(group.clone());
            let role = match &expr.clone().unalias_nested().data {
                Expr::Column(column) => pane_column(below.field_from_column(column)?),
                _ => None,
            };
            match (role, node.window) {
                (Some(role), Some(_)) => {
                    roles.push(if role == "start" { Role::Start } else { Role::End });
                    // Both columns are the pane: it is kept once.
                    if pane.is_none() {
                        pane = Some(kept.len());
                        kept.push(if is_own { (carried("start")?, group.1) } else { group });
                    }
                }
                _ => {
                    let is_key = match &expr.clone().unalias_nested().data {
                        Expr::Column(column) => below.field_from_column(column)?.metadata().contains_key(KEY),
                        _ => false,
                    };
                    if is_key || !below_window.has_keys {
                        key.push(kept.len());
                    }
                    roles.push(Role::Kept(kept.len()));
                    kept.push(group);
                }
            }
        }
        let mut aggregates = Vec::new();
        let mut filters = Vec::new();
        for expr in &node.aggregate.aggr_expr {
            let props = session.execution_props();
            let lowered = LoweredAggregateBuilder::new(expr, below, &input_schema, props, planning_ctx).build()?;
            aggregates.push(lowered.aggregate);
            filters.push(lowered.filter);
        }
        // What a key's own windows are made of: the least and the greatest of what the rows carry.
        let own = aggregates.len();
        if is_own {
            for (function, name) in [(min_udaf(), LOW), (max_udaf(), HIGH)] {
                let spans = AggregateExprBuilder::new(function, vec![carried("end")?])
                    .schema(Arc::clone(&input_schema))
                    .alias(name)
                    .build()?;
                aggregates.push(Arc::new(spans));
                filters.push(None);
            }
        }
        let count = kept.len();
        let partial = AggregateExec::try_new(
            AggregateMode::Partial,
            group_by(kept.clone()),
            aggregates,
            filters,
            input,
            Arc::clone(&input_schema),
        )?;
        let aggregates = partial.aggr_expr().to_vec();
        let nones = vec![None; aggregates.len()];
        // Metadata of the input's schema would be carried along in every state file.
        let kept_schema = plain(&partial.schema());
        let (spans, places) = (if is_own { 2 } else { 0 }, kept_schema.fields().len());
        let states = kept_schema.fields()[count..places - spans].to_vec();
        roles.extend((count..count + states.len()).map(Role::Kept));
        let mut fields: Vec<_> = group_by(all.clone()).group_schema(&input_schema)?.fields().to_vec();
        fields.extend(states);
        let full = plain(&Arc::new(Schema::new(fields)));
        let over = |mode, groups: &[(Arc<dyn PhysicalExpr>, String)], count: usize, rows: &SchemaRef| {
            let (aggregates, nones) = (aggregates[..count].to_vec(), nones[..count].to_vec());
            AggregateExec::try_new(mode, by_place(groups), aggregates, nones, fed(rows), Arc::clone(&input_schema))
        };
        let last = over(AggregateMode::Final, &all, own, &full)?;
        let merge = over(AggregateMode::PartialReduce, &kept, aggregates.len(), &kept_schema)?;
        let show = over(AggregateMode::Final, &kept, aggregates.len(), &kept_schema)?;
        let neutral = AggregateExec::try_new(
            AggregateMode::Partial,
            PhysicalGroupBy::default(),
            aggregates,
            nones,
            fed(&input_schema),
            input_schema,
        )?;
        let layout = Layout {
            kept: kept_schema,
            full,
            roles,
            window: node.window,
            pane: pane.unwrap_or(0),
            keys: count,
            show: Arc::new(show),
            neutral: Arc::new(neutral),
            key,
            low: places - spans,
            high: places.saturating_sub(1),
            timing: below_window.timing,
            aggregates: partial.aggr_expr()[..own].to_vec(),
            first: None,
            beyond: None,
            numbering: None,
            ranking: None,
        };
        let made = Made { numbers: below_window.numbers, last: Arc::new(last), merge: Arc::new(merge), layout };
        Ok((Arc::new(partial), made))
    }
}

/// Columns of a state with the span of its rows.
const LOW: &str = "_low";
const HIGH: &str = "_high";

fn group_by(exprs: Vec<(Arc<dyn PhysicalExpr>, String)>) -> PhysicalGroupBy {
    if exprs.is_empty() { PhysicalGroupBy::default() } else { PhysicalGroupBy::new_single(exprs) }
}

/// Groups by the columns that a partial aggregate gave.
fn by_place(exprs: &[(Arc<dyn PhysicalExpr>, String)]) -> PhysicalGroupBy {
    group_by(
        exprs
            .iter()
            .enumerate()
            .map(|(at, (_, name))| (Arc::new(Column::new(name, at)) as Arc<dyn PhysicalExpr>, name.clone()))
            .collect(),
    )
}
