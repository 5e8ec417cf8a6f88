//! How far a column's times have come: which rows can still come.
//!
//! A [`Time`] says of a column that no later row that is in time lies before a
//! watermark. It begins where a stream declares one, which its leaf moves before
//! anything filters a row, or where windows close, and is followed through what
//! only passes the column on. Joins and DISTINCT let go of state by it.
//!
//! Invariant: what asks for a time has read all rows that it comes from.

use super::{
    panes::pane_column,
    provider::Table,
    shape::StateNode,
    tables::{NodeTable, StreamTable},
};
use crate::plan::{BatchRun, FAR};
use arrow_array::ArrayRef;
use arrow_schema::{DataType, TimeUnit};
use datafusion::{
    common::{Column, ExprSchema, Result as DfResult},
    datasource::source_as_provider,
    logical_expr::{Expr, LogicalPlan},
};
use std::any::Any;
use tidemill_core::{Timestamp, WatermarkSpec, WindowKind};

/// Whose watermark it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Mark {
    /// A stream's.
    Stream(WatermarkSpec),
    /// An operator's, which closes windows.
    Operator,
}

/// No later row that is in time has a time before the watermark plus `shift`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Time {
    pub(super) mark: Mark,
    /// Microseconds.
    pub(super) shift: i64,
    /// The stream or operator whose watermark it is.
    pub(super) stream: String,
}

impl Time {
    /// Where it is in this batch. Final when all that it comes from is read.
    pub(super) fn now(&self, run: &BatchRun) -> Timestamp {
        let at = match self.mark {
            Mark::Stream(_) => run.stream_watermark(&self.stream).at(),
            Mark::Operator => run.watermark_now(&self.stream),
        };
        if at == Timestamp::MIN { at } else { Timestamp(at.0.saturating_add(self.shift)) }
    }

    /// Whether nothing has come for so long that nobody waits for it.
    pub(super) fn is_idle(&self, run: &BatchRun) -> bool {
        match self.mark {
            Mark::Stream(spec) => run.stream_watermark(&self.stream).is_idle(spec),
            Mark::Operator => false,
        }
    }

    /// The latest time that a row of this batch may have.
    pub(super) fn latest(&self, run: &BatchRun) -> Timestamp {
        match self.mark {
            Mark::Stream(spec) => Timestamp(spec.latest(run.batch.time).0.min(FAR)),
            Mark::Operator => Timestamp(FAR),
        }
    }
}

/// Times in microseconds, whatever their unit and zone.
pub(super) fn micros(times: &ArrayRef) -> DfResult<ArrayRef> {
    let zone = match times.data_type() {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    Ok(arrow_cast::cast(times, &DataType::Timestamp(TimeUnit::Microsecond, zone))?)
}

/// What is known of the times in column `at` of a plan whose windows close under `name`.
pub(super) fn time_of(plan: &LogicalPlan, at: usize, name: &str) -> DfResult<Option<Time>> {
    let column = Column::from(plan.schema().qualified_field(at));
    let below = |input: &LogicalPlan, column: &Column| match input.schema().index_of_column(column) {
        Ok(at) => time_of(input, at, name),
        Err(_) => Ok(None),
    };
    match plan {
        LogicalPlan::TableScan(scan) => {
            let provider = source_as_provider(&scan.source)?;
            let provider: &dyn Any = provider.as_ref();
            if let Some(Table(table)) = provider.downcast_ref::<Table<StreamTable>>() {
                let time = table.input.event_time();
                let time = time.filter(|time| *table.input.schema.field(time.column).name() == column.name);
                let stream = table.input.name.clone();
                return Ok(time.map(|time| Time { mark: Mark::Stream(time.spec), shift: 0, stream }));
            }
            let Some(Table(table)) = provider.downcast_ref::<Table<NodeTable>>() else { return Ok(None) };
            let Ok(at) = table.node.schema().index_of(&column.name) else { return Ok(None) };
            Ok(table.times.get(at).cloned().flatten())
        }
        LogicalPlan::Extension(extension) => {
            let node: &dyn Any = extension.node.as_any();
            let Some(state) = node.downcast_ref::<StateNode>() else { return Ok(None) };
            let (Some(window), Some(group)) = (state.window, state.aggregate.group_expr.get(at)) else {
                return Ok(None);
            };
            let Expr::Column(group) = group.clone().unalias_nested().data else { return Ok(None) };
            let role = pane_column(state.aggregate.input.schema().field_from_column(&group)?);
            // Windows to come end after the watermark.
            let shift = match (role, window) {
                (Some("end"), WindowKind::Time(_) | WindowKind::Session(_)) => 1,
                (Some(_), WindowKind::Time(window)) => 1 - window.size(),
                _ => return Ok(None),
            };
            Ok(Some(Time { mark: Mark::Operator, shift, stream: name.to_string() }))
        }
        LogicalPlan::Projection(projection) => match projection.expr[at].clone().unalias_nested().data {
            Expr::Column(column) => below(&projection.input, &column),
            _ => Ok(None),
        },
        LogicalPlan::SubqueryAlias(alias) => time_of(&alias.input, at, name),
        LogicalPlan::Union(union) => {
            let mut times = union.inputs.iter().map(|input| time_of(input, at, name));
            let first = times.next().transpose()?.flatten();
            for time in times {
                if time? != first {
                    return Ok(None);
                }
            }
            Ok(first)
        }
        LogicalPlan::Filter(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Repartition(_)
        | LogicalPlan::Join(_)
        | LogicalPlan::Unnest(_)
        | LogicalPlan::Window(_) => {
            let holding = plan.inputs().into_iter().find(|input| input.schema().index_of_column(&column).is_ok());
            holding.map_or(Ok(None), |input| below(input, &column))
        }
        _ => Ok(None),
    }
}
