//! From a logical join with a table that is asked by key to its operator.
//!
//! The columns of the key are followed from the join's condition down to the
//! table, through what leaves all rows of a key together (filters, projections,
//! a GROUP BY the key, an inner join with another table): then the answers to the
//! batch's keys give the join what the whole table would.

use super::{Asked, LookupOperator, LookupTable};
use crate::sql::{
    cut::FED,
    leaves,
    panes::WindowNode,
    parts::{Planning, as_it_was, names},
    provider::Table,
    rows::labelled,
    shape::{Changes, changes},
    tables::FedTable,
};
use arrow_schema::{Field, Schema, SchemaRef};
use datafusion::{
    common::{
        Column, JoinType, NullEquality, Result as DfResult, plan_err,
        tree_node::{TreeNode, TreeNodeRecursion},
    },
    datasource::{provider_as_source, source_as_provider},
    logical_expr::{Expr, LogicalPlan, logical_plan::Join},
};
use std::{
    any::Any,
    sync::{Arc, OnceLock},
};

/// The columns as a table outside has them: any may be NULL.
pub(super) fn nullable(schema: &SchemaRef) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| Field::new(field.name(), field.data_type().clone(), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The table that a scan asks by key.
fn asked_by(plan: &LogicalPlan) -> DfResult<Option<Arc<Asked>>> {
    let LogicalPlan::TableScan(scan) = plan else { return Ok(None) };
    let provider = source_as_provider(&scan.source)?;
    let provider: &dyn Any = provider.as_ref();
    Ok(provider.downcast_ref::<Table<LookupTable>>().map(|table| Arc::clone(&table.0.0)))
}

/// Tables that are asked by key in a plan.
fn asked_in(plan: &LogicalPlan) -> DfResult<Vec<Arc<Asked>>> {
    let mut found = Vec::new();
    plan.apply_with_subqueries(|node| {
        found.extend(asked_by(node)?);
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

/// Which side of a join is the table, when the other is a stream or a view.
pub(in crate::sql) fn in_join(join: &Join) -> DfResult<Option<usize>> {
    let sides = [&join.left, &join.right];
    for side in [1, 0] {
        let is_asked = changes(sides[side])? == Changes::Nothing && !asked_in(sides[side])?.is_empty();
        if is_asked && changes(sides[1 - side])? != Changes::Nothing && asked_in(sides[1 - side])?.is_empty() {
            return Ok(Some(side));
        }
    }
    Ok(None)
}

/// Refuses tables that are asked by key where there is no key to ask for.
pub(in crate::sql) fn check_none_left(plan: &LogicalPlan) -> DfResult<()> {
    match asked_in(plan)?.first() {
        Some(table) => plan_err!(
            "table `{}` is asked by its key ({}) and never read as a whole: join a stream or a view with it, \
             … JOIN {} ON stream.x = {}.{}",
            table.name,
            table.key_names().join(", "),
            table.name,
            table.name,
            table.key_names().join(" AND …")
        ),
        None => Ok(()),
    }
}

/// Makes the operator `name` of a join whose side `side` is a table that is asked by key.
pub(in crate::sql) async fn plan(cx: &Planning<'_>, join: &Join, side: usize, name: &str) -> DfResult<LookupOperator> {
    let sides = [&join.left, &join.right];
    let (table_side, stream) = (sides[side], sides[1 - side]);
    let tables = asked_in(table_side)?;
    let [table] = tables.as_slice() else {
        return plan_err!(
            "tables `{}` that are asked by key are joined with each other: join the stream with one after the other",
            tables.iter().map(|table| table.name.as_str()).collect::<Vec<_>>().join("` and `")
        );
    };
    if join.null_aware {
        return plan_err!(
            "NOT IN over table `{}`, which is asked by key: write NOT EXISTS (SELECT 1 FROM {} WHERE …)",
            table.name,
            table.name
        );
    }
    if join.null_equality == NullEquality::NullEqualsNull {
        return plan_err!("a join with table `{}` in which NULL equals NULL: compare with `=`", table.name);
    }
    check_windows(stream, table)?;
    let mut keys: Vec<Option<Expr>> = vec![None; table.key.len()];
    for (left, right) in &join.on {
        let (own, other) = if side == 0 { (left, right) } else { (right, left) };
        if let Some(column) = plain(own)
            && let Some(at) = key_of(table_side, column)?
            && let Some(key) = table.key.iter().position(|key| *key == at)
        {
            keys[key].get_or_insert_with(|| other.clone());
        }
    }
    let Some(keys) = keys.into_iter().collect::<Option<Vec<Expr>>>() else {
        return plan_err!(
            "table `{}` is asked by its key ({}), and the join does not say which: compare each of these columns with one of \
             the stream's, ON stream.x = {}.{}",
            table.name,
            table.key_names().join(", "),
            table.name,
            table.key_names().join(" AND …")
        );
    };
    let gives = changes(stream)?;
    let below = names(stream.schema());
    let keys = keys.iter().map(|key| cx.state.create_physical_expr(key.clone(), stream.schema()));
    let keys = keys.collect::<DfResult<Vec<_>>>()?;
    let input = labelled(cx.physical(stream, cx.name).await?, &below);
    let fed = provider_as_source(Arc::new(Table(FedTable(Arc::clone(&below)))));
    let fed = Arc::new(as_it_was(FED, fed, &below, stream.schema())?);
    let mut over = join.clone();
    *(if side == 0 { &mut over.right } else { &mut over.left }) = fed;
    let joined = cx.physical(&LogicalPlan::Join(over), name).await?;
    if !leaves::leaves(std::slice::from_ref(&joined))?.is_empty() {
        return plan_err!(
            "table `{}`, which is asked by key, is joined with a table that is read again before the stream is: join the \
             stream with one after the other",
            table.name
        );
    }
    let schema = names(&join.schema);
    let whole = if gives == Changes::Whole { leaves::whole_nodes(stream)? } else { Vec::new() };
    Ok(LookupOperator {
        name: name.to_string(),
        table: Arc::clone(table),
        input,
        joined: labelled(joined, &schema),
        keys,
        schema,
        gives,
        whole,
        cache: OnceLock::new(),
    })
}

/// A window's rows are on their way to an aggregate, and can't become a node's.
fn check_windows(stream: &LogicalPlan, table: &Asked) -> DfResult<()> {
    let mut windowed = false;
    stream.apply(|node| {
        if let LogicalPlan::Extension(extension) = node {
            let node: &dyn Any = extension.node.as_any();
            windowed |= node.is::<WindowNode>();
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    if windowed {
        return plan_err!(
            "a window (TUMBLE, HOP, SESSION, COUNT_WINDOW) joined with table `{}`, which is asked by key: join first, CREATE VIEW \
             joined AS SELECT … JOIN {} …, and window that view",
            table.name,
            table.name
        );
    }
    Ok(())
}

/// The column that an expression is, perhaps under another type.
fn plain(expr: &Expr) -> Option<&Column> {
    match expr {
        Expr::Column(column) => Some(column),
        Expr::Alias(alias) => plain(&alias.expr),
        Expr::Cast(cast) => plain(&cast.expr),
        _ => None,
    }
}

/// The place in the table of a column of a plan over it.
fn key_of(plan: &LogicalPlan, column: &Column) -> DfResult<Option<usize>> {
    let Ok(at) = plan.schema().index_of_column(column) else { return Ok(None) };
    let below = |expr: &Expr, input: &LogicalPlan| match plain(expr) {
        Some(column) => key_of(input, column),
        None => Ok(None),
    };
    match plan {
        LogicalPlan::TableScan(_) => match asked_by(plan)? {
            Some(table) => Ok(table.schema.index_of(&column.name).ok()),
            None => Ok(None),
        },
        LogicalPlan::Projection(projection) => below(&projection.expr[at], &projection.input),
        LogicalPlan::Aggregate(aggregate) => match aggregate.group_expr.get(at) {
            Some(Expr::GroupingSet(_)) | None => Ok(None),
            Some(group) => below(group, &aggregate.input),
        },
        LogicalPlan::SubqueryAlias(alias) => {
            key_of(&alias.input, &Column::from(alias.input.schema().qualified_field(at)))
        }
        LogicalPlan::Filter(filter) => key_of(&filter.input, column),
        LogicalPlan::Join(join) if join.join_type == JoinType::Inner => {
            let holding = [&join.left, &join.right].into_iter().find(|side| side.schema().has_column(column));
            holding.map_or(Ok(None), |side| key_of(side, column))
        }
        _ => Ok(None),
    }
}
