//! What a query may not ask for, though the planner would take it.
//!
//! DataFusion makes a constant of `now()` when it plans, which a program does
//! once, at its start; it calls `random()` anew each time, and a batch must run
//! again alike; and it passes over `TABLESAMPLE` and `FOR UPDATE`. Here they are
//! told, with the way out. No function is evaluated once a batch: what a row
//! needs to know of time stands in its columns.
//!
//! Invariant: what is refused here is refused wherever it stands in the query.
//! Called by [`super::catalog`] for programs, and by [`super::query`] for
//! questions by hand, which run once and may ask for the time.

use datafusion::{
    execution::{FunctionRegistry, SessionState},
    logical_expr::Volatility,
    sql::sqlparser::ast::{Expr, ObjectName, Query, TableFactor, TableSampleKind, Visit, Visitor},
};
use std::ops::ControlFlow;
use tidemill_core::{Error, Result};

/// Refuses what a statement of a program can't mean.
///
/// # Errors
/// With the name, and what to write instead.
pub(super) fn check_program(query: &Query, state: &SessionState) -> Result<()> {
    check(query, Some(state))
}

/// Refuses what is passed over in any query.
///
/// # Errors
/// With the name, and what to write instead.
pub(super) fn check_query(query: &Query) -> Result<()> {
    check(query, None)
}

/// Refuses what the condition of an alert can't mean.
///
/// # Errors
/// With the name, and what to write instead.
pub(super) fn check_condition(condition: &Expr, state: &SessionState) -> Result<()> {
    match condition.visit(&mut Refusing(Some(state))) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(text) => Err(Error::user(text)),
    }
}

fn check(query: &Query, state: Option<&SessionState>) -> Result<()> {
    match query.visit(&mut Refusing(state)) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(text) => Err(Error::user(text)),
    }
}

/// With the functions of a program, when it is one.
struct Refusing<'a>(Option<&'a SessionState>);

impl Visitor for Refusing<'_> {
    type Break = String;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<String> {
        match query.locks.first() {
            None => ControlFlow::Continue(()),
            Some(lock) => ControlFlow::Break(format!(
                "FOR `{}` locks rows of a database, and there are none here: leave it out",
                lock.lock_type
            )),
        }
    }

    fn pre_visit_table_factor(&mut self, table: &TableFactor) -> ControlFlow<String> {
        let (TableFactor::Table { sample: Some(sample), .. } | TableFactor::Derived { sample: Some(sample), .. }) =
            table
        else {
            return ControlFlow::Continue(());
        };
        let (TableSampleKind::BeforeTableAlias(sample) | TableSampleKind::AfterTableAlias(sample)) = sample;
        ControlFlow::Break(format!(
            "`{}` is not done here: take rows by what they are, the same ones each time, as in WHERE id % 100 = 0",
            sample.modifier
        ))
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<String> {
        let (Some(state), Expr::Function(call)) = (self.0, expr) else { return ControlFlow::Continue(()) };
        let name = written(&call.name);
        let volatility = state.udf(&name.to_lowercase()).map_or(Volatility::Immutable, |f| f.signature().volatility);
        match volatility {
            Volatility::Immutable => ControlFlow::Continue(()),
            Volatility::Stable => ControlFlow::Break(format!(
                "`{name}` would be the time of the program's start for ever: take the row's own time, which is a column of \
                 event time, or `_timestamp` of what comes through the log; how far back a result goes is said by a window \
                 (TUMBLE, HOP, SESSION)"
            )),
            Volatility::Volatile => ControlFlow::Break(format!(
                "`{name}` gives another value each time, and a batch that runs again (after a crash, at a replay) must give \
                 what it gave: make the value of the row's columns; `_partition` and `_offset` name a row of a stream for good"
            )),
        }
    }
}

/// A function's name as it stands there, without what it is within.
fn written(name: &ObjectName) -> String {
    name.0.last().and_then(|part| part.as_ident()).map_or_else(|| name.to_string(), |ident| ident.value.clone())
}
