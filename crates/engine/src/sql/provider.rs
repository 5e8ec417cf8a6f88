//! Tables of a planner that are planned at once.
//!
//! A [`Table`] makes a table provider of whatever can say its columns and its
//! plan without waiting. Its `scan` is written as `async_trait` would write it,
//! with a future that is there already: a coroutine would hold the filters, and
//! to prove it `Send` the compiler walks the whole tree of expressions anew in
//! each such method, which took most of the time of compiling this crate. Used by
//! [`super::tables`], [`super::topics`] and [`super::reload`].

use arrow_schema::SchemaRef;
use datafusion::{
    catalog::{Session, TableProvider},
    common::Result as DfResult,
    datasource::TableType,
    logical_expr::{Expr, TableProviderFilterPushDown},
    physical_plan::ExecutionPlan,
};
use std::{fmt::Debug, future::ready, pin::Pin, sync::Arc};

type Plan = DfResult<Arc<dyn ExecutionPlan>>;

/// What a [`Table`] is made of.
pub(super) trait Scan: Debug + Send + Sync + 'static {
    /// The columns.
    fn schema(&self) -> SchemaRef;

    /// Whether [`Self::plan`] heeds a filter.
    fn heeds(&self, _filter: &Expr) -> TableProviderFilterPushDown {
        TableProviderFilterPushDown::Unsupported
    }

    /// The plan of the columns `projection` (all, in order, when it is `None`).
    fn plan(&self, projection: Option<&Vec<usize>>, filters: &[Expr], limit: Option<usize>) -> Plan;
}

/// What can be scanned, as a planner takes it.
#[derive(Debug)]
pub(super) struct Table<T>(pub(super) T);

impl<T: Scan> TableProvider for Table<T> {
    fn schema(&self) -> SchemaRef {
        self.0.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DfResult<Vec<TableProviderFilterPushDown>> {
        Ok(filters.iter().map(|filter| self.0.heeds(filter)).collect())
    }

    fn scan<'own, 'session, 'columns, 'filters, 'scan>(
        &'own self,
        _session: &'session dyn Session,
        projection: Option<&'columns Vec<usize>>,
        filters: &'filters [Expr],
        limit: Option<usize>,
    ) -> Pin<Box<dyn Future<Output = Plan> + Send + 'scan>>
    where
        'own: 'scan,
        'session: 'scan,
        'columns: 'scan,
        'filters: 'scan,
        Self: 'scan,
    {
        Box::pin(ready(self.0.plan(projection, filters, limit)))
    }
}
