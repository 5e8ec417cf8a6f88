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
    panes::{KEY, WindowNode, pane_column},
    shape::{StateNode, arrange, check_depth},
    side::LateNode,
    state::{AggregateKernel, FedLeaf, Layout, Role, WindowState},
    tables::{Leaf, kernel_of},
    times::{Emit, Timing, ViewOptions},
    window::PANE,
};
use crate::{
    plan::{BatchRun, Kernel, Lineage, Lowering, NodeExec, NodeInputs, Operator, Rows, SourceExec},
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
use parking_lot::Mutex;
use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
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

/// Plans a query whose state will be kept under `name`.
///
/// # Errors
/// When it has no meaning over streams, or columns do not fit.
pub(super) async fn plan(
    state: &SessionState,
    plan: LogicalPlan,
    name: &str,
    view: bool,
    options: &ViewOptions,
) -> DfResult<Planned> {
    // Before anything that takes time by the depth.
    check_depth(&plan)?;
    let analyzed = state.analyzer().execute_and_check(plan, state.config_options(), |_, _| {})?;
    let arranged = arrange(analyzed)?;
    let optimized = state.optimize(&arranged)?;
    let planner = Arc::new(Planner {
        name: name.to_string(),
        options: options.clone(),
        below: Mutex::default(),
        made: Mutex::default(),
    });
    let physical = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::clone(&planner) as _])
        .create_physical_plan(&optimized, state)
        .await?;
    let made = planner.made.lock().take();
    let schema = plain(&physical.schema());
    let (body, inputs, kind) = match made {
        None => {
            if let Some(given) = options.given() {
                return plan_err!("option `{given}` is about windows, and the view has none");
            }
            let inputs = leaves(&physical)?;
            (Body::Rows(physical), inputs, Shape::Stateless)
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
            let inputs = leaves(&partial)?;
            if !leaves(&above)?.is_empty() || !sources(&above)?.is_empty() {
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
                layout: made.layout,
                numbers: made.numbers,
                streams,
                repeats: view,
                state: OnceLock::new(),
            };
            (body, inputs, kind)
        }
    };
    Ok(Planned { select: Select { schema, body, view, whole: Vec::new(), definition: None }, inputs, kind })
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

/// The lineage nodes that a plan reads, each once.
fn leaves(plan: &Arc<dyn ExecutionPlan>) -> DfResult<Vec<Arc<Lineage>>> {
    let mut found: BTreeMap<usize, Arc<Lineage>> = BTreeMap::new();
    plan.apply(|node| {
        if let Some(leaf) = kernel_of::<Leaf>(node) {
            found.insert(leaf.node.id, Arc::clone(&leaf.node));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found.into_values().collect())
}

/// The streams that a plan reads itself.
fn sources(plan: &Arc<dyn ExecutionPlan>) -> DfResult<Vec<String>> {
    let mut found = BTreeSet::new();
    plan.apply(|node| {
        if let Some(source) = kernel_of::<SourceExec>(node) {
            found.insert(source.stream().to_string());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found.into_iter().collect())
}

/// A query as an operator.
#[derive(Debug)]
pub(super) struct Select {
    schema: SchemaRef,
    body: Body,
    /// Whether its rows are shown, not stored.
    view: bool,
    /// Inputs that give their whole result in each batch: what comes of them is
    /// not stored again while none of them has changed.
    pub(super) whole: Vec<String>,
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
        layout: Layout,
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
                let mut plan = put_in(plan, &inputs).map_err(of)?;
                let partitions = plan.output_partitioning().partition_count();
                if plan.schema() != self.schema {
                    plan = cx.node("columns", Relabel(self.schema()), vec![plan], self.schema(), partitions);
                }
                if !self.whole.is_empty() {
                    let kernel = Changed { whole: self.whole.clone(), schema: self.schema() };
                    plan = cx.node("what has changed", kernel, vec![plan], self.schema(), partitions);
                }
                if self.view {
                    let step = format!("the first {SHOWN} rows of each partition");
                    plan = cx.node(&step, Head(self.schema()), vec![plan], self.schema(), partitions);
                }
                Ok(plan)
            }
            Body::Aggregate { partial, above, merge, layout, numbers, streams, repeats, state } => {
                let made = WindowState::new(cx.name.clone(), layout.clone()).map_err(of)?;
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
                let inputs = vec![put_in(partial, &inputs).map_err(of)?, Arc::clone(above)];
                Ok(cx.node("state", kernel, inputs, self.schema(), 1))
            }
        }
    }
}

/// Puts the inputs' plans where their leaves stand.
fn put_in(plan: &Arc<dyn ExecutionPlan>, inputs: &[Arc<dyn ExecutionPlan>]) -> DfResult<Arc<dyn ExecutionPlan>> {
    let places: BTreeMap<usize, usize> = leaves(plan)?.iter().enumerate().map(|(at, node)| (node.id, at)).collect();
    let put = Arc::clone(plan).transform_up(|node| {
        let Some(leaf) = kernel_of::<Leaf>(&node) else { return Ok(Transformed::no(node)) };
        let input = places
            .get(&leaf.node.id)
            .and_then(|at| inputs.get(*at))
            .ok_or_else(|| internal_datafusion_err!("no plan for `{}`", leaf.node.name))?;
        Ok(Transformed::yes(Arc::clone(input)))
    })?;
    Ok(put.data)
}

/// Rows of a view without state that are shown of each partition of a batch: it
/// may have as many as the batch has records.
const SHOWN: usize = 10_000;

/// The first rows of each partition; the rest is run all the same, so that all
/// records are read and counted.
#[derive(Debug)]
struct Head(SchemaRef);

impl Kernel for Head {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        use futures::StreamExt;
        let mut left = SHOWN;
        let rows = inputs.open(0, partition)?.map(move |rows| {
            let rows = rows?;
            let rows = rows.slice(0, rows.num_rows().min(left));
            left -= rows.num_rows();
            Ok(rows)
        });
        Ok(crate::plan::rows_from(Arc::clone(&self.0), rows))
    }
}

/// No rows while none of the results that they are made of has changed.
#[derive(Debug)]
struct Changed {
    whole: Vec<String>,
    schema: SchemaRef,
}

impl Kernel for Changed {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, run: Arc<BatchRun>) -> DfResult<Rows> {
        use futures::StreamExt;
        let whole = self.whole.clone();
        // A row can only come after its input has said whether it changed.
        let rows = inputs.open(0, partition)?.map(move |rows| {
            let rows = rows?;
            Ok(if whole.iter().all(|name| run.has_stayed(name)) { rows.slice(0, 0) } else { rows })
        });
        Ok(crate::plan::rows_from(Arc::clone(&self.schema), rows))
    }
}

/// The same rows under a schema that differs in metadata.
#[derive(Debug)]
struct Relabel(SchemaRef);

impl Kernel for Relabel {
    fn run(&self, partition: usize, inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        use futures::StreamExt;
        let schema = Arc::clone(&self.0);
        let rows = inputs.open(0, partition)?.map(move |rows| {
            let rows = rows?;
            let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
            Ok(arrow_array::RecordBatch::try_new_with_options(Arc::clone(&schema), rows.columns().to_vec(), &options)?)
        });
        Ok(crate::plan::rows_from(Arc::clone(&self.0), rows))
    }
}

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
        };
        let made = Made { numbers: below_window.numbers, last: Arc::new(last), merge: Arc::new(merge), layout };
        Ok((Arc::new(partial), made))
    }
}

/// Columns of a state with the span of its rows.
const LOW: &str = "_low";
const HIGH: &str = "_high";

fn fed(schema: &SchemaRef) -> Arc<dyn ExecutionPlan> {
    NodeExec::plan("rows of the state", FedLeaf(Arc::clone(schema)), vec![], Arc::clone(schema), 1)
}

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
