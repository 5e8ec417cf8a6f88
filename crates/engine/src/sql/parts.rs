//! A statement whose parts need the rows of each other.
//!
//! A node of the lineage has one state at most. A statement that asks for more
//! (an aggregate over a windowed aggregate, a join of two streams, DISTINCT below
//! GROUP BY) is cut, as if each inner part had been written as a view of its own:
//! the part becomes a node under a name made of the statement's (`totals.part`,
//! `totals.join`, `totals.distinct`, the next of a kind `totals.part-2`), and the
//! statement reads that. Called by [`super::lower`].
//!
//! Invariant: the same statement is cut into the same parts under the same names,
//! whatever stands around it. Another statement may be cut into parts whose names
//! stand for something else, so each part is defined by the whole statement: a
//! start under a changed one says so.

use super::{
    distinct::DistinctOperator,
    join, leaves, lookup, lower,
    progress::{Time, time_of},
    provider::Table,
    shape::{Changes, changes},
    tables::NodeTable,
    times::ViewOptions,
};
use crate::{
    declare::Declare,
    plan::{Lineage, Lowering, Operator},
};
use arrow_schema::{Field, Schema, SchemaRef};
use datafusion::{
    common::{
        Column, DFSchemaRef, Result as DfResult, TableReference, plan_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    datasource::provider_as_source,
    execution::SessionState,
    logical_expr::{Distinct, Expr, LogicalPlan, LogicalPlanBuilder, TableSource},
    physical_plan::ExecutionPlan,
};
use parking_lot::Mutex;
use std::{collections::BTreeSet, sync::Arc};
use tidemill_core::Result;

/// Where a statement is planned, and what its parts have been called so far.
pub(super) struct Planning<'a> {
    pub(super) state: &'a SessionState,
    pub(super) declare: &'a Declare,
    pub(super) partitions: usize,
    /// The statement's name: state is kept under it.
    pub(super) name: &'a str,
    /// The statement's text, as far as it decides what its parts hold.
    pub(super) text: &'a str,
    /// Names of parts.
    pub(super) parts: Mutex<Vec<String>>,
}

/// A join that becomes a node.
enum Joined {
    /// Of two streams.
    Streams,
    /// With a table that is asked by key, on this side.
    Asked(usize),
}

impl Joined {
    fn of(node: &LogicalPlan) -> DfResult<Option<Self>> {
        let LogicalPlan::Join(join) = node else { return Ok(None) };
        if changes(&join.left)? == Changes::New && changes(&join.right)? == Changes::New {
            return Ok(Some(Self::Streams));
        }
        Ok(lookup::in_join(join)?.map(Self::Asked))
    }
}

impl Planning<'_> {
    fn part_name(&self, kind: &str) -> String {
        let mut parts = self.parts.lock();
        let first = format!("{}.{kind}", self.name);
        let count = parts.iter().filter(|name| **name == first || name.starts_with(&format!("{first}-"))).count();
        let name = if count == 0 { first } else { format!("{first}-{}", count + 1) };
        parts.push(name.clone());
        name
    }

    /// A part as a node of its own, and the plan that reads it in its place.
    pub(super) async fn view(&self, part: &LogicalPlan) -> DfResult<LogicalPlan> {
        let name = self.part_name("part");
        let names = names(part.schema());
        let columns = part.schema().columns().into_iter().zip(names.fields());
        let columns = columns.map(|(column, field)| Expr::Column(column).alias(field.name()));
        let named = LogicalPlanBuilder::from(part.clone()).project(columns.collect::<Vec<_>>())?.build()?;
        let planned = Box::pin(lower::plan_as(self, named, &name, true, &ViewOptions::default())).await?;
        let gives = planned.kind.changes();
        let times = planned.times.clone();
        self.read(&name, planned.inputs, planned.select, gives, times, part.schema())
    }

    /// DISTINCT as a node of its own, and the plan that reads it in its place.
    pub(super) async fn distinct(&self, distinct: &LogicalPlan) -> DfResult<LogicalPlan> {
        let LogicalPlan::Distinct(of) = distinct else { return plan_err!("no DISTINCT") };
        let name = self.part_name("distinct");
        let (projection, keys) = match of {
            Distinct::All(input) => (input.as_ref().clone(), None),
            Distinct::On(on) => {
                if on.sort_expr.is_some() {
                    return plan_err!(
                        "DISTINCT ON with ORDER BY over a stream: a later row could come before one that was given; leave \
                         ORDER BY out to have the first that comes, or number the rows: row_number() OVER (PARTITION BY key \
                         ORDER BY …) in a subquery, and WHERE that number = 1 around it"
                    );
                }
                let keys = on.on_expr.iter().enumerate().map(|(at, key)| key.clone().alias(format!("key{}", at + 1)));
                let given =
                    on.select_expr.iter().enumerate().map(|(at, e)| e.clone().alias(format!("given{}", at + 1)));
                let all: Vec<Expr> = keys.chain(given).collect();
                let plan = LogicalPlanBuilder::from(on.input.as_ref().clone()).project(all)?.build()?;
                (plan, Some(on.on_expr.len()))
            }
        };
        let optimized = self.state.optimize(&projection)?;
        let optimized = self.joined(optimized).await?;
        let input = self.physical(&optimized, &name).await?;
        let schema = names(distinct.schema());
        let operator = DistinctOperator::new(self.state, &optimized, keys, Arc::clone(&input), schema, &name)?;
        let inputs = leaves::leaves(std::slice::from_ref(&input))?;
        self.read(&name, inputs, operator, Changes::New, vec![], distinct.schema())
    }

    /// The optimized plan with its joins of two streams, and those with a table that is asked by key, as nodes of
    /// their own.
    pub(super) async fn joined(&self, mut plan: LogicalPlan) -> DfResult<LogicalPlan> {
        loop {
            let mut found = None;
            // The last one that a walk from the top finds in its first branch has no other below it.
            plan.apply(|node| {
                if let Some(cut) = Joined::of(node)? {
                    let mut deeper = false;
                    for input in node.inputs() {
                        input.apply(|below| {
                            deeper |= Joined::of(below)?.is_some();
                            Ok(TreeNodeRecursion::Continue)
                        })?;
                    }
                    if !deeper {
                        found = Some((node.clone(), cut));
                        return Ok(TreeNodeRecursion::Stop);
                    }
                }
                Ok(TreeNodeRecursion::Continue)
            })?;
            let Some((part, cut)) = found else { break };
            let LogicalPlan::Join(join) = &part else { break };
            let read = match cut {
                Joined::Streams => {
                    let name = self.part_name("join");
                    let inputs = [self.physical(&join.left, &name).await?, self.physical(&join.right, &name).await?];
                    let operator = join::plan(self.state, join, inputs.clone(), names(&join.schema), &name)?;
                    let times = operator.times.clone();
                    self.read(&name, leaves::leaves(&inputs)?, operator, Changes::New, times, &join.schema)?
                }
                Joined::Asked(side) => {
                    let name = self.part_name("lookup");
                    let operator = lookup::plan(self, join, side, &name).await?;
                    let (inputs, gives) = (operator.reads()?, operator.gives);
                    // Its rows are those of the stream's side, in the same batch.
                    let times = (0..join.schema.fields().len()).map(|at| time_of(&part, at, &name));
                    let times = times.collect::<DfResult<_>>()?;
                    self.read(&name, inputs, operator, gives, times, &join.schema)?
                }
            };
            plan = replace(plan, &part, &read)?;
        }
        lookup::check_none_left(&plan)?;
        Ok(plan)
    }

    fn read(
        &self,
        name: &str,
        inputs: Vec<Arc<Lineage>>,
        operator: impl Operator + 'static,
        gives: Changes,
        times: Vec<Option<Time>>,
        schema: &DFSchemaRef,
    ) -> DfResult<LogicalPlan> {
        let operator = Defined { operator, text: self.text.to_string() };
        let node = self.declare.named_node(name.to_string(), inputs, operator);
        let columns = node.schema();
        let table = Table(NodeTable { node, gives, partitions: self.partitions, times });
        let table = provider_as_source(Arc::new(table));
        as_it_was(name, table, &columns, schema)
    }
}

/// The operator of a part, with the statement that it is part of.
#[derive(Debug)]
struct Defined<O> {
    operator: O,
    text: String,
}

impl<O: Operator> Operator for Defined<O> {
    fn kind(&self) -> &'static str {
        self.operator.kind()
    }

    fn schema(&self) -> SchemaRef {
        self.operator.schema()
    }

    fn gives(&self) -> &'static str {
        self.operator.gives()
    }

    fn lower(&self, inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>> {
        self.operator.lower(inputs, cx)
    }

    fn is_stateful(&self) -> bool {
        self.operator.is_stateful()
    }

    fn definition(&self) -> Option<String> {
        Some(self.text.clone())
    }

    fn is_shared(&self) -> bool {
        self.operator.is_shared()
    }
}

/// The table `name` of these columns under the names that they had in a plan of `schema`.
pub(super) fn as_it_was(
    name: &str,
    table: Arc<dyn TableSource>,
    columns: &SchemaRef,
    schema: &DFSchemaRef,
) -> DfResult<LogicalPlan> {
    let relation = TableReference::bare(name);
    let read = LogicalPlanBuilder::scan(relation.clone(), table, None)?;
    let as_before = schema.iter().zip(columns.fields()).map(|((qualifier, field), column)| {
        let column = Expr::Column(Column::new(Some(relation.clone()), column.name()));
        column.alias_qualified(qualifier.cloned(), field.name())
    });
    read.project(as_before.collect::<Vec<_>>())?.build()
}

/// The plan with `part` in it replaced.
pub(super) fn replace(plan: LogicalPlan, part: &LogicalPlan, by: &LogicalPlan) -> DfResult<LogicalPlan> {
    let replaced = plan.transform_down(|node| {
        if node == *part {
            return Ok(Transformed::new(by.clone(), true, TreeNodeRecursion::Jump));
        }
        Ok(Transformed::no(node))
    })?;
    Ok(replaced.data)
}

/// Plain columns for a schema in which two may have one name.
pub(super) fn names(schema: &DFSchemaRef) -> SchemaRef {
    let mut taken = BTreeSet::new();
    let fields = schema.fields().iter().map(|field| {
        let mut name = field.name().clone();
        let mut count = 1;
        while !taken.insert(name.clone()) {
            count += 1;
            name = format!("{}_{count}", field.name());
        }
        Field::new(name, field.data_type().clone(), field.is_nullable())
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}
