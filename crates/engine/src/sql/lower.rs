//! From a query to a node of the lineage.
//!
//! A query is planned once, where it is declared: analyzed, arranged
//! ([`super::shape`]), optimized, made physical. If it has an aggregate over a
//! stream, the physical plan is cut there:
//!
//! ```text
//! source ─ panes ─ filter ─ projection ─ Partial ─┤ state ├─ Final ─ projection ─ top n
//!          all partitions, once a batch           │       │   once a result
//! ```
//!
//! Lowering then puts the plans of other nodes where their [`Leaf`]s stand and
//! registers the state. Invariant: the kept plan has no repartitioning that was
//! not asked for, since a batch is small.

use super::{
    leaves::{leaves, put_in, sources, whole_nodes},
    panes::{KEY, WindowNode, pane_column},
    parts::{Planning, as_it_was, names, replace},
    progress::{Time, time_of},
    rows::{Changed, Head, Relabel, SHOWN, labelled},
    shape::{Changes, Cut, StateNode, arrange, changes, check_depth},
    side::LateNode,
    state::{AggregateKernel, Layout, Role, WindowState},
    tables::{FedTable, fed, kernel_of},
    times::{Emit, Timing, ViewOptions},
    top::TopNode,
    window::PANE,
};
use crate::{
    plan::{BatchRun, Kernel, Lineage, Lowering, NodeExec, NodeInputs, Operator, Rows},
    state::StateOperator,
};
use arrow_schema::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    common::{
        ExprSchema, Result as DfResult, internal_datafusion_err, internal_err, plan_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    datasource::provider_as_source,
    execution::SessionState,
    functions_aggregate::min_max::{max_udaf, min_udaf},
    logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNode, physical_planning_context::PhysicalPlanningContext},
    physical_expr::{
        aggregate::{AggregateExprBuilder, LoweredAggregateBuilder},
        expressions::Column,
    },
    physical_plan::{
        ExecutionPlan, ExecutionPlanProperties, PhysicalExpr,
        aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy},
    },
    physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner},
};
use futures::FutureExt;
use parking_lot::Mutex;
use std::{
    any::Any,
    sync::{Arc, OnceLock},
};
use tidemill_core::{Error, Result, WindowKind};

/// A planned query.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) select: Select,
    /// Nodes whose rows it reads.
    pub(super) inputs: Vec<Arc<Lineage>>,
    pub(super) kind: Shape,
    /// What is known of the times of its columns.
    pub(super) times: Vec<Option<Time>>,
    /// Names of the parts that were made nodes of their own.
    pub(super) parts: Vec<String>,
}

/// What the rows of a batch are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Made of this batch's records alone.
    Stateless,
    /// The whole result so far.
    Whole,
    /// Results of windows that closed.
    Windowed,
    /// Results of windows, some of them again.
    Changing,
}

impl Shape {
    /// What readers of such rows have to know.
    pub(super) fn changes(self) -> Changes {
        match self {
            Self::Stateless | Self::Windowed => Changes::New,
            Self::Whole => Changes::Whole,
            Self::Changing => Changes::Again,
        }
    }
}

/// Plans a statement whose state will be kept under its name.
///
/// # Errors
/// When it has no meaning over streams, or columns do not fit.
pub(super) async fn plan(cx: &Planning<'_>, plan: LogicalPlan, view: bool, options: &ViewOptions) -> DfResult<Planned> {
    plan_as(cx, plan, cx.name, view, options).await
}

/// Plans a part of a statement under a name of its own; `view`: its rows are shown, or read by others, again in each batch.
pub(super) async fn plan_as(
    cx: &Planning<'_>,
    plan: LogicalPlan,
    name: &str,
    view: bool,
    options: &ViewOptions,
) -> DfResult<Planned> {
    let state = cx.state;
    // Before anything that takes time by the depth.
    check_depth(&plan)?;
    let mut plan = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})?;
    loop {
        let (arranged, cut) = arrange(plan)?;
        plan = arranged;
        let (part, read) = match cut {
            None => break,
            Some(Cut::View(part)) => (part.clone(), cx.view(&part).await?),
            Some(Cut::Distinct(part)) => (part.clone(), cx.distinct(&part).await?),
        };
        plan = replace(plan, &part, &read)?;
    }
    let optimized = cx.joined(state.optimize(&plan)?).await?;
    let times =
        (0..optimized.schema().fields().len()).map(|at| time_of(&optimized, at, name)).collect::<DfResult<Vec<_>>>()?;
    let (physical, made) = physical(state, &optimized, name, options).await?;
    let schema = plain(&physical.schema());
    let (body, inputs, kind) = match made {
        None => {
            if let Some(given) = options.given() {
                return plan_err!("option `{given}` is about windows, and the view has none");
            }
            let inputs = leaves(std::slice::from_ref(&physical))?;
            let kind = match changes(&optimized)? {
                Changes::Whole => Shape::Whole,
                Changes::Again => Shape::Changing,
                Changes::New | Changes::Nothing => Shape::Stateless,
            };
            (Body::Rows(physical), inputs, kind)
        }
        Some(made) => {
            if let (None, Some(given)) = (made.layout.window, options.given()) {
                return plan_err!(
                    "option `{given}` is about windows, and the view has none: a GROUP BY without a window gives its whole result in each batch"
                );
            }
            if let (Some(WindowKind::Count(_)), Some(given)) = (made.layout.window, options.given()) {
                return plan_err!(
                    "option `{given}` is about time, and a window by number of rows is given once, when it is full"
                );
            }
            let mut partial = None;
            let above = physical
                .transform_down(|node| {
                    if kernel_of::<Mark>(&node).is_none() {
                        return Ok(Transformed::no(node));
                    }
                    partial = node.children().first().map(|child| Arc::clone(child));
                    Ok(Transformed::new(Arc::clone(&made.last), true, TreeNodeRecursion::Jump))
                })?
                .data;
            let Some(partial) = partial else { return internal_err!("the optimizer dropped the state of `{name}`") };
            let inputs = leaves(std::slice::from_ref(&partial))?;
            if !leaves(std::slice::from_ref(&above))?.is_empty() || !sources(&above)?.is_empty() {
                return plan_err!(
                    "an aggregate over a stream together with another stream: make each part a view of its own"
                );
            }
            let streams = inputs.is_empty().then(|| sources(&partial)).transpose()?;
            let kind = match (made.layout.window, &made.layout.timing) {
                (None, _) => Shape::Whole,
                (Some(_), Timing { emit: Emit::Append, lateness, .. }) if lateness.is_zero() => Shape::Windowed,
                (Some(_), _) => Shape::Changing,
            };
            let body = Body::Aggregate {
                partial,
                above,
                merge: made.merge,
                layout: Box::new(made.layout),
                numbers: made.numbers,
                streams,
                repeats: view,
                state: OnceLock::new(),
            };
            (body, inputs, kind)
        }
    };
    let whole = if kind == Shape::Whole { whole_nodes(&optimized)? } else { Vec::new() };
    let shown = view && kind == Shape::Stateless && name == cx.name;
    Ok(Planned {
        select: Select { schema, body, gives: kind, view: shown, repeats: view, whole, definition: None },
        inputs,
        kind,
        times,
        parts: cx.parts.lock().clone(),
    })
}

/// The physical plan, and the plans around its state if it has one.
async fn physical(
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

impl Planning<'_> {
    /// The physical plan of an optimized part that has no state.
    pub(super) async fn physical(&self, plan: &LogicalPlan, name: &str) -> DfResult<Arc<dyn ExecutionPlan>> {
        match physical(self.state, plan, name, &ViewOptions::default()).await? {
            (plan, None) => Ok(plan),
            (_, Some(_)) => internal_err!("a part of `{name}` has state of its own"),
        }
    }
}

/// The schema without the marks of panes.
fn plain(schema: &SchemaRef) -> SchemaRef {
    let fields: Vec<_> = schema
        .fields()
        .iter()
        .map(|field| {
            let mut metadata = field.metadata().clone();
            metadata.remove(PANE);
            metadata.remove(KEY);
            Arc::new(field.as_ref().clone().with_metadata(metadata))
        })
        .collect();
    Arc::new(Schema::new(fields))
}

/// A query as an operator.
#[derive(Debug)]
pub(super) struct Select {
    schema: SchemaRef,
    body: Body,
    gives: Shape,
    /// Whether its rows are shown as they come, not stored.
    view: bool,
    /// Whether rows that have not changed are given again.
    repeats: bool,
    /// Inputs that give their whole result in each batch, when it does so itself: what
    /// comes of them is not stored again while none of them has changed.
    whole: Vec<String>,
    /// Its text, with that of the views which are put into it.
    pub(super) definition: Option<String>,
}

#[derive(Debug)]
enum Body {
    Rows(Arc<dyn ExecutionPlan>),
    Aggregate {
        partial: Arc<dyn ExecutionPlan>,
        above: Arc<dyn ExecutionPlan>,
        merge: Arc<dyn ExecutionPlan>,
        layout: Box<Layout>,
        /// The state that numbers the rows of a count window.
        numbers: Option<Arc<dyn StateOperator>>,
        streams: Option<Vec<String>>,
        repeats: bool,
        state: OnceLock<WindowState>,
    },
}

impl Operator for Select {
    fn kind(&self) -> &'static str {
        match self.body {
            Body::Rows(_) => "select",
            Body::Aggregate { .. } => "aggregate",
        }
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn gives(&self) -> &'static str {
        match self.gives {
            Shape::Stateless => "new rows in each batch, which stay (append)",
            Shape::Whole => "the whole result so far in each batch that changes it (complete)",
            Shape::Windowed => "the rows of each window once, when it closes (append)",
            Shape::Changing => "the rows of windows as they change, the same window again (update)",
        }
    }

    fn is_stateful(&self) -> bool {
        matches!(self.body, Body::Aggregate { .. })
    }

    fn definition(&self) -> Option<String> {
        self.definition.clone()
    }

    fn lower(&self, inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        let of = |e| Error::internal(format!("planning `{}`", cx.name)).because(e);
        match &self.body {
            Body::Rows(plan) => {
                let leaves = leaves(std::slice::from_ref(plan)).map_err(of)?;
                let mut plan = put_in(plan, &leaves, &inputs).map_err(of)?;
                let partitions = plan.output_partitioning().partition_count();
                if plan.schema() != self.schema {
                    plan = cx.node("columns", Relabel(self.schema()), vec![plan], self.schema(), partitions);
                }
                if !self.whole.is_empty() {
                    let (name, repeats) = (cx.name.clone(), self.repeats);
                    let kernel = Changed { name, repeats, whole: self.whole.clone(), schema: self.schema() };
                    plan = cx.node("what has changed", kernel, vec![plan], self.schema(), partitions);
                }
                if self.view {
                    let step = format!("the first {SHOWN} rows of each partition");
                    plan = cx.node(&step, Head(self.schema()), vec![plan], self.schema(), partitions);
                }
                Ok(plan)
            }
            Body::Aggregate { partial, above, merge, layout, numbers, streams, repeats, state } => {
                let made = WindowState::new(cx.name.clone(), layout.as_ref().clone()).map_err(of)?;
                let state = state.get_or_init(|| made);
                cx.states.register(state.operator());
                if let Some(numbers) = numbers {
                    cx.states.register(Arc::clone(numbers));
                }
                let kernel = AggregateKernel {
                    state: state.clone(),
                    merge: Arc::clone(merge),
                    streams: streams.clone(),
                    repeats: *repeats,
                    schema: self.schema(),
                };
                let leaves = leaves(std::slice::from_ref(partial)).map_err(of)?;
                let inputs = vec![put_in(partial, &leaves, &inputs).map_err(of)?, Arc::clone(above)];
                Ok(cx.node("state", kernel, inputs, self.schema(), 1))
            }
        }
    }
}

/// Name of the rows that a nested plan is fed.
const FED: &str = "kept";

/// Marks the place of the state while the plan is made.
#[derive(Debug)]
struct Mark;

impl Kernel for Mark {
    fn run(&self, _partition: usize, _inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        internal_err!("a plan was run before it was cut")
    }
}

/// The plans around a state.
struct Made {
    numbers: Option<Arc<dyn StateOperator>>,
    /// `Final` over the rows that the state gives.
    last: Arc<dyn ExecutionPlan>,
    merge: Arc<dyn ExecutionPlan>,
    layout: Layout,
}

/// What a window says to the aggregate above it.
#[derive(Default, Clone)]
struct Below {
    timing: Timing,
    numbers: Option<Arc<dyn StateOperator>>,
    has_keys: bool,
}

/// Plans our logical nodes.
struct Planner {
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
        let table = Arc::new(FedTable(Arc::clone(&kept)));
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
        let last = AggregateExec::try_new(
            AggregateMode::Final,
            by_place(&all),
            aggregates[..own].to_vec(),
            nones[..own].to_vec(),
            fed(&full),
            Arc::clone(&input_schema),
        )?;
        let merge = AggregateExec::try_new(
            AggregateMode::PartialReduce,
            by_place(&kept),
            aggregates.clone(),
            nones.clone(),
            fed(&kept_schema),
            Arc::clone(&input_schema),
        )?;
        let show = AggregateExec::try_new(
            AggregateMode::Final,
            by_place(&kept),
            aggregates.clone(),
            nones.clone(),
            fed(&kept_schema),
            Arc::clone(&input_schema),
        )?;
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
