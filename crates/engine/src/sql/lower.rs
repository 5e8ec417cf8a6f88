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
    cut::{Mark, physical},
    first::First,
    leaves::{leaves, put_in, sources, whole_nodes},
    panes::KEY,
    parts::{Planning, replace},
    progress::{Time, time_of},
    rows::{Changed, Head, Relabel, SHOWN},
    shape::{Changes, Cut, arrange, changes, check_depth},
    state::{AggregateKernel, Layout, WindowState},
    tables::{fed, kernel_of},
    times::{Emit, Timing, ViewOptions},
    tops::Ranking,
    window::PANE,
};
use crate::{
    plan::{Lineage, Lowering, Operator},
    state::StateOperator,
};
use arrow_schema::{Schema, SchemaRef};
use datafusion::{
    common::{
        Result as DfResult, internal_err, plan_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    logical_expr::LogicalPlan,
    physical_plan::{ExecutionPlan, ExecutionPlanProperties, aggregates::AggregateExec, projection::ProjectionExec},
};
use std::sync::{Arc, OnceLock};
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
    /// Results of the groups that changed.
    Changed,
}

impl Shape {
    /// For people: which rows a batch gives.
    fn told(self) -> &'static str {
        match self {
            Self::Stateless => "new rows in each batch, which stay (append)",
            Self::Whole => "the whole result so far in each batch that changes it (complete)",
            Self::Windowed => "the rows of each window once, when it closes (append)",
            Self::Changed => {
                "the rows of the groups that the batch changed, as they stand, the same group again (update)"
            }
            Self::Changing => "the rows of windows or groups as they change, the same one again (update)",
        }
    }

    /// What readers of such rows have to know.
    pub(super) fn changes(self) -> Changes {
        match self {
            Self::Stateless | Self::Windowed => Changes::New,
            Self::Whole => Changes::Whole,
            Self::Changing | Self::Changed => Changes::Again,
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
    let fixed = changes(&plan)? == Changes::Nothing;
    if fixed && !view {
        return plan_err!(
            "its rows come from no stream, and would be written again in each batch: read a stream, or a view of one, and \
             join the table to it; a view shows a table's rows"
        );
    }
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
                return plan_err!(
                    "option `{given}` is about windows and groups of a stream, and the view has none of its own"
                );
            }
            let inputs = leaves(std::slice::from_ref(&physical))?;
            let kind = match changes(&optimized)? {
                Changes::Whole => Shape::Whole,
                Changes::Again => Shape::Changing,
                Changes::New | Changes::Nothing => Shape::Stateless,
            };
            (Body::Rows(physical), inputs, kind)
        }
        Some(mut made) => {
            if made.layout.window.is_none() {
                check_without_window(&made.layout, options)?;
                made.layout.timing.emit = options.emit;
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
            made.layout.first = First::of(&above, &made.layout);
            made.layout.beyond = beyond(&above, &made.last)?;
            if let Some((numbering, limit)) = made.layout.numbering
                && let Some((ranking, numbered)) = Ranking::of(&above, &made.last, numbering, limit)?
            {
                (made.layout.ranking, made.layout.beyond) = (Some(ranking), Some(numbered));
            }
            if made.layout.window.is_none() && options.emit == Emit::Update {
                check_by_group(&above, &made.layout)?;
            }
            let streams = inputs.is_empty().then(|| sources(&partial)).transpose()?;
            let kind = match (made.layout.window, &made.layout.timing) {
                (None, Timing { emit: Emit::Update, .. }) => Shape::Changed,
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
    let again = kind == Shape::Whole || (kind == Shape::Changing && matches!(body, Body::Rows(_)));
    if options.stays && again {
        return plan_err!(
            "option `emit` = 'append': no row of this view stays, it gives {}; leave the option out, or group by a window \
             (TUMBLE, HOP, SESSION), whose rows come once, when it closes",
            kind.told()
        );
    }
    let whole = if kind == Shape::Whole { whole_nodes(&optimized)? } else { Vec::new() };
    let shown = view && kind == Shape::Stateless && name == cx.name;
    Ok(Planned {
        select: Select { schema, body, gives: kind, fixed, view: shown, repeats: view, whole, definition: None },
        inputs,
        kind,
        times,
        parts: cx.parts.lock().clone(),
    })
}

/// The plan without the last step of its aggregate, whose rows it reads instead.
fn beyond(above: &Arc<dyn ExecutionPlan>, last: &Arc<dyn ExecutionPlan>) -> DfResult<Option<Arc<dyn ExecutionPlan>>> {
    let mut found = 0;
    let beyond = Arc::clone(above).transform_down(|node| {
        if !Arc::ptr_eq(&node, last) {
            return Ok(Transformed::no(node));
        }
        found += 1;
        Ok(Transformed::new(fed(&node.schema()), true, TreeNodeRecursion::Jump))
    })?;
    Ok((found == 1 && last.is::<AggregateExec>()).then_some(beyond.data))
}

/// Refuses options of a view without a window that would have no effect.
fn check_without_window(layout: &Layout, options: &ViewOptions) -> DfResult<()> {
    match options.given() {
        None => Ok(()),
        Some("emit") if options.emit == Emit::Complete => plan_err!(
            "option `emit` = 'complete': a GROUP BY without a window gives its whole result in each batch that changes it \
             anyway; leave the option out, or take 'update' for the groups that a batch changed"
        ),
        Some("emit") if layout.aggregates.is_empty() && layout.numbering.is_none() => plan_err!(
            "option `emit` = 'update' is about windows and about groups with an aggregate (count, sum, …), and the view has neither"
        ),
        Some("emit") => Ok(()),
        Some(given) => plan_err!("option `{given}` is about windows, and the view has none"),
    }
}

/// Refuses what compares groups, or lets go of some, above an aggregate of which only changed groups are given.
fn check_by_group(above: &Arc<dyn ExecutionPlan>, layout: &Layout) -> DfResult<()> {
    if layout.numbering.is_some() {
        return match &layout.ranking {
            Some(ranking) if ranking.stays => Ok(()),
            _ => plan_err!(
                "option `emit` = 'update' over the first rows of each key needs row_number() and nothing above it but \
                 WHERE over the number: nothing takes back a row that is left out from then on; leave the option out to \
                 have the whole result"
            ),
        };
    }
    let mut plan = above;
    while !plan.is::<AggregateExec>() {
        let is_by_row = plan.is::<ProjectionExec>() || kernel_of::<Relabel>(plan).is_some();
        let ([input], true) = (&plan.children()[..], is_by_row) else {
            return plan_err!(
                "option `emit` = 'update' gives the groups that a batch changed, and nothing takes back one that HAVING, \
                 ORDER BY … LIMIT, OVER or a join would leave out from then on: leave that to who reads the rows, or leave \
                 the option out to have the whole result"
            );
        };
        plan = input;
    }
    Ok(())
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
pub(super) fn plain(schema: &SchemaRef) -> SchemaRef {
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
    /// Whether it reads tables only.
    fixed: bool,
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
            Shape::Stateless if self.fixed => "the rows of tables, as they stand, in each batch (complete)",
            gives => gives.told(),
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
                let made =
                    WindowState::new(cx.name.clone(), layout.as_ref().clone(), cx.memory.as_ref()).map_err(of)?;
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
                Ok(cx.node(&layout.told().map_err(of)?, kernel, inputs, self.schema(), 1))
            }
        }
    }
}
