//! From a logical join of two streams to what keeps it going: the keys, the
//! condition, and how long a row of each side waits.
//!
//! A part of the condition `l.t <= f(r)`, where `l.t` is a column of which it is
//! known how far its times have come, says that no partner of `r` comes later than
//! `f(r)`: `r` is kept until the left watermark has passed it. Any order of the
//! terms and intervals on either side are understood, and so is `=`.

use super::{
    JoinOperator, given,
    side::{Given, SidePlan},
    step::Condition,
};
use crate::sql::{
    panes::place_in,
    progress::{Mark, Time, time_of},
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::{
    common::{DFSchema, DFSchemaRef, JoinType, NullEquality, Result as DfResult, ScalarValue, plan_err},
    execution::SessionState,
    logical_expr::{
        BinaryExpr, Expr, LogicalPlan, Operator,
        logical_plan::Join,
        utils::{conjunction, split_conjunction},
    },
    physical_expr::utils::collect_columns,
    physical_plan::ExecutionPlan,
};
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock};

/// Makes the operator `name` of a join whose inputs have been planned.
///
/// # Errors
/// When rows could never be let go though an outer join has to give them, or there is no key.
pub(in crate::sql) fn plan(
    state: &SessionState,
    join: &Join,
    inputs: [Arc<dyn ExecutionPlan>; 2],
    schema: SchemaRef,
    name: &str,
) -> DfResult<JoinOperator> {
    let (keep_left, keep_right) = match join.join_type {
        JoinType::Inner => (false, false),
        JoinType::Left => (true, false),
        JoinType::Right => (false, true),
        JoinType::Full => (true, true),
        other => {
            return plan_err!(
                "a {other} join of two streams (IN, EXISTS, INTERSECT or EXCEPT): write it as JOIN … ON, \
                 with SELECT DISTINCT where a row may have several partners"
            );
        }
    };
    if join.on.is_empty() {
        return plan_err!(
            "a join of two streams without a column that must be equal: every row would meet every other; \
             add `a.key = b.key` to ON"
        );
    }
    if join.null_equality == NullEquality::NullEqualsNull {
        return plan_err!("a join of two streams in which NULL equals NULL: compare with `=`");
    }
    let (left, right) = (join.left.schema(), join.right.schema());
    let mut parts: Vec<Expr> = join.on.iter().map(|(l, r)| l.clone().eq(r.clone())).collect();
    if let Some(filter) = &join.filter {
        parts.extend(split_conjunction(filter).into_iter().cloned());
    }
    let times = |plan: &LogicalPlan| {
        (0..plan.schema().fields().len()).map(|at| time_of(plan, at, name)).collect::<DfResult<Vec<_>>>()
    };
    let (left_times, right_times) = (times(&join.left)?, times(&join.right)?);
    let left_waits = bound(&parts, left, right, &right_times);
    let right_waits = bound(&parts, right, left, &left_times);
    for (keeps, waits, side, other) in
        [(keep_left, &left_waits, "left", "right"), (keep_right, &right_waits, "right", "left")]
    {
        if keeps && waits.is_none() {
            return plan_err!(
                "an outer join of two streams gives a {side} row with NULLs when its time has passed, and ON does not say \
                 when: add a bound such as `{other}.time BETWEEN {side}.time - INTERVAL '1' MINUTE AND {side}.time + \
                 INTERVAL '1' MINUTE`, by a column for which CREATE STREAM has a WATERMARK"
            );
        }
    }
    let told = told(&left_waits, &right_waits);
    let own = |of: &DFSchemaRef, schema: &SchemaRef, range: std::ops::Range<usize>| -> SchemaRef {
        let fields =
            of.fields().iter().zip(&schema.fields()[range]).map(|(field, named)| {
                Arc::new(Field::new(named.name(), field.data_type().clone(), field.is_nullable()))
            });
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    };
    let width = left.fields().len();
    let physical = |expr: &Expr, of: &DFSchema| state.create_physical_expr(expr.clone(), of);
    let side = |of: &DFSchemaRef, schema: SchemaRef, keys: Vec<&Expr>, waits: &Option<Bound>, preserved| {
        Ok::<_, datafusion::common::DataFusionError>(SidePlan {
            schema,
            keys: keys.into_iter().map(|key| physical(key, of)).collect::<DfResult<_>>()?,
            until: waits.as_ref().map(|waits| physical(&waits.until, of)).transpose()?,
            time: None,
            place: place_in(of.fields()),
            preserved,
            given: None,
        })
    };
    let left_keys = join.on.iter().map(|(l, _)| l).collect();
    let right_keys = join.on.iter().map(|(_, r)| r).collect();
    let mut sides = [
        side(left, own(left, &schema, 0..width), left_keys, &left_waits, keep_left)?,
        side(right, own(right, &schema, width..schema.fields().len()), right_keys, &right_waits, keep_right)?,
    ];
    // A side that the other one waits for is late by the time that it waits for.
    sides[0].time = right_waits.as_ref().map(|waits| (waits.column, waits.time.clone()));
    sides[1].time = left_waits.as_ref().map(|waits| (waits.column, waits.time.clone()));
    let mut times: Vec<Option<Time>> = vec![None; schema.fields().len()];
    for (side, of, own, waits, first) in
        [(0, left, &left_times, &left_waits, 0), (1, right, &right_times, &right_waits, width)]
    {
        let Some((column, wait)) = waits.as_ref().and_then(|waits| after(&waits.until, of)) else { continue };
        if let Some(own) = own[column].clone() {
            sides[side].given = Some(Given { own, wait });
            times[first + column] = Some(Time { mark: Mark::Operator, shift: 0, stream: given(name, side) });
        }
    }
    let both = left.join(right)?;
    let condition = conjunction(parts).map_or_else(|| plan_err!("a join without a condition"), Ok)?;
    let expr = physical(&condition, &both)?;
    let mut columns: Vec<usize> = collect_columns(&expr).iter().map(|column| column.index()).collect();
    columns.sort_unstable();
    // Columns of both sides may have one name: the place tells them apart.
    let looked: Vec<Field> =
        columns.iter().map(|at| Field::new(format!("c{at}"), both.field(*at).data_type().clone(), true)).collect();
    let looked: SchemaRef = Arc::new(Schema::new(looked));
    let expr = by_place(expr, &columns)?;
    Ok(JoinOperator {
        name: name.to_string(),
        inputs,
        parts: Mutex::new(Some((sides, Condition { columns, schema: looked, expr }))),
        join: OnceLock::new(),
        schema,
        told,
        times,
    })
}

/// The column and the microseconds after it that an expression is.
fn after(expr: &Expr, schema: &DFSchemaRef) -> Option<(usize, i64)> {
    match expr {
        Expr::Column(column) => Some((schema.maybe_index_of_column(column)?, 0)),
        Expr::Alias(alias) => after(&alias.expr, schema),
        // A coarser unit is earlier, and so is what is concluded from it.
        Expr::Cast(cast) => after(&cast.expr, schema),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (term, span, sign) = match (op, left.as_ref(), right.as_ref()) {
                (Operator::Plus, term, Expr::Literal(span, _)) | (Operator::Plus, Expr::Literal(span, _), term) => {
                    (term, span, 1)
                }
                (Operator::Minus, term, Expr::Literal(span, _)) => (term, span, -1),
                _ => return None,
            };
            let (column, so_far) = after(term, schema)?;
            Some((column, so_far.checked_add(micros_of(span)?.checked_mul(sign)?)?))
        }
        _ => None,
    }
}

/// The microseconds of a span whose length does not depend on the calendar.
fn micros_of(span: &ScalarValue) -> Option<i64> {
    const DAY: i64 = 86_400_000_000;
    match span {
        ScalarValue::IntervalMonthDayNano(Some(span)) if span.months == 0 && span.nanoseconds % 1_000 == 0 => {
            i64::from(span.days).checked_mul(DAY)?.checked_add(span.nanoseconds / 1_000)
        }
        ScalarValue::IntervalDayTime(Some(span)) => {
            i64::from(span.days).checked_mul(DAY)?.checked_add(i64::from(span.milliseconds) * 1_000)
        }
        _ => None,
    }
}

/// The expression over the columns at `columns` alone.
fn by_place(
    expr: Arc<dyn datafusion::physical_expr::PhysicalExpr>,
    columns: &[usize],
) -> DfResult<Arc<dyn datafusion::physical_expr::PhysicalExpr>> {
    use datafusion::{
        common::tree_node::{Transformed, TreeNode},
        physical_expr::expressions::Column,
    };
    let moved = expr.transform_up(|node| {
        let Some(column) = node.downcast_ref::<Column>() else { return Ok(Transformed::no(node)) };
        let Ok(at) = columns.binary_search(&column.index()) else {
            return plan_err!("a condition reads a column that nothing gives");
        };
        let name = format!("c{}", column.index());
        Ok(Transformed::yes(Arc::new(Column::new(&name, at)) as _))
    })?;
    Ok(moved.data)
}

/// How long a row of one side waits: the column of the other side whose time has to pass, and what.
struct Bound {
    column: usize,
    time: Time,
    /// Over the waiting side's own columns.
    until: Expr,
}

/// The first part of the condition that bounds how long rows of `own` wait for rows of `other`.
fn bound(parts: &[Expr], own: &DFSchemaRef, other: &DFSchemaRef, times: &[Option<Time>]) -> Option<Bound> {
    parts.iter().find_map(|part| {
        let Expr::BinaryExpr(BinaryExpr { left, op, right }) = part else { return None };
        let orders: &[(&Expr, &Expr)] = match op {
            Operator::Lt | Operator::LtEq => &[(left, right)],
            Operator::Gt | Operator::GtEq => &[(right, left)],
            Operator::Eq => &[(left, right), (right, left)],
            _ => return None,
        };
        orders.iter().find_map(|(low, high)| {
            if !high.column_refs().iter().all(|column| own.has_column(column)) || !is_time(high, own) {
                return None;
            }
            let (column, until) = solve(low, (*high).clone(), other)?;
            let time = times.get(column)?.clone()?;
            Some(Bound { column, time, until })
        })
    })
}

fn is_time(expr: &Expr, schema: &DFSchemaRef) -> bool {
    use datafusion::logical_expr::ExprSchemable;
    matches!(expr.get_type(schema.as_ref()), Ok(DataType::Timestamp(..)))
}

/// From `low <= high` to `column <= …`, moving intervals to the other side.
fn solve(low: &Expr, high: Expr, schema: &DFSchemaRef) -> Option<(usize, Expr)> {
    match low {
        Expr::Column(column) => Some((schema.maybe_index_of_column(column)?, high)),
        Expr::Alias(alias) => solve(&alias.expr, high, schema),
        Expr::Cast(cast) => solve(&cast.expr, high, schema),
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (op, left.as_ref(), right.as_ref()) {
            (Operator::Minus, term, Expr::Literal(..)) => solve(term, sum(high, Operator::Plus, right), schema),
            (Operator::Plus, term, Expr::Literal(..)) => solve(term, sum(high, Operator::Minus, right), schema),
            (Operator::Plus, Expr::Literal(..), term) => solve(term, sum(high, Operator::Minus, left), schema),
            _ => None,
        },
        _ => None,
    }
}

fn sum(left: Expr, op: Operator, right: &Expr) -> Expr {
    Expr::BinaryExpr(BinaryExpr::new(Box::new(left), op, Box::new(right.clone())))
}

fn told(left: &Option<Bound>, right: &Option<Bound>) -> String {
    let side = |name: &str, waits: &Option<Bound>| match waits {
        Some(waits) => format!("a {name} row until the watermark of {} is past {}", waits.time.stream, waits.until),
        None => format!("every {name} row for good, since ON has no bound in time for it"),
    };
    format!("joins two streams; keeps {}, and {}", side("left", left), side("right", right))
}
