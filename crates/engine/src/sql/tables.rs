//! Streams as tables of a planner.
//!
//! A [`StreamTable`] is an input stream: its scan decodes the asked columns and
//! no others. A [`NodeTable`] is a node of the lineage: a typed stream, or a view
//! with state; its scan is a [`Leaf`] that lowering replaces by the node's plan.
//! Both are "the rows of the batch". Made by [`super::catalog`].

use super::{progress::Time, provider::Scan, shape::Changes, state::FedLeaf};
use crate::plan::{BatchRun, Kernel, Lineage, NodeExec, NodeInputs, Rows, SourceExec, StreamInput};
use arrow_schema::{Schema, SchemaRef};
use datafusion::{
    common::{Result as DfResult, internal_err},
    logical_expr::Expr,
    physical_expr::{PhysicalExpr, expressions::Column},
    physical_plan::{ExecutionPlan, projection::ProjectionExec},
};
use std::{any::Any, sync::Arc};

/// An input stream as a table.
#[derive(Debug)]
pub(super) struct StreamTable {
    pub(super) input: Arc<StreamInput>,
    /// Places of the visible columns in the stream's schema.
    visible: Vec<usize>,
    schema: SchemaRef,
    partitions: usize,
}

impl StreamTable {
    /// With the stream's own columns and those of `META` for which `shows` says so.
    pub(super) fn new(input: Arc<StreamInput>, partitions: usize, shows: impl Fn(&str) -> bool) -> Self {
        let mut visible = input.own_columns();
        visible.extend((visible.len()..input.schema.fields().len()).filter(|i| shows(input.schema.field(*i).name())));
        let fields: Vec<_> = visible.iter().map(|i| Arc::clone(&input.schema.fields()[*i])).collect();
        Self { input, visible, schema: Arc::new(Schema::new(fields)), partitions }
    }
}

impl Scan for StreamTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn plan(
        &self,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let columns = match projection {
            Some(projection) => projection.iter().map(|i| self.visible[*i]).collect(),
            None => self.visible.clone(),
        };
        SourceExec::plan(Arc::clone(&self.input), columns, self.partitions).map_err(crate::plan::external)
    }
}

/// A node of the lineage as a table.
#[derive(Debug)]
pub(super) struct NodeTable {
    pub(super) node: Arc<Lineage>,
    /// What its rows of a batch are.
    pub(super) gives: Changes,
    pub(super) partitions: usize,
    /// What is known of the times of its columns; may be shorter than they are.
    pub(super) times: Vec<Option<Time>>,
}

impl Scan for NodeTable {
    fn schema(&self) -> SchemaRef {
        self.node.schema()
    }

    fn plan(
        &self,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let schema = self.node.schema();
        let leaf = NodeExec::plan(
            format!("node {}", self.node.name),
            Leaf { node: Arc::clone(&self.node) },
            vec![],
            Arc::clone(&schema),
            // More than one, so that what needs all rows together gathers them.
            self.partitions.max(2),
        );
        projected(leaf, projection)
    }
}

/// The columns of a leaf that are asked for.
pub(super) fn projected(
    leaf: Arc<dyn ExecutionPlan>,
    projection: Option<&Vec<usize>>,
) -> DfResult<Arc<dyn ExecutionPlan>> {
    let Some(projection) = projection else { return Ok(leaf) };
    let schema = leaf.schema();
    let columns = projection
        .iter()
        .map(|i| {
            let name = schema.field(*i).name();
            let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(name, *i));
            (column, name.clone())
        })
        .collect::<Vec<_>>();
    Ok(Arc::new(ProjectionExec::try_new(columns, leaf)?))
}

/// Stands for a node's plan until lowering.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) node: Arc<Lineage>,
}

impl Kernel for Leaf {
    fn run(&self, _partition: usize, _inputs: &NodeInputs<'_>, _run: Arc<BatchRun>) -> DfResult<Rows> {
        internal_err!("the plan of `{}` was not put in", self.node.name)
    }
}

/// The kernel of a node of ours, when it is a `K`.
pub(super) fn kernel_of<K: Kernel>(plan: &Arc<dyn ExecutionPlan>) -> Option<&K> {
    let kernel: &dyn Kernel = plan.downcast_ref::<NodeExec>()?.kernel();
    (kernel as &dyn Any).downcast_ref::<K>()
}

/// Rows that a nested plan is fed, as a table.
#[derive(Debug)]
pub(super) struct FedTable(pub(super) SchemaRef);

/// The leaf that gives them.
pub(super) fn fed(schema: &SchemaRef) -> Arc<dyn ExecutionPlan> {
    NodeExec::plan("rows of the state", FedLeaf(Arc::clone(schema)), vec![], Arc::clone(schema), 1)
}

impl Scan for FedTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.0)
    }

    fn plan(
        &self,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        projected(fed(&self.0), projection)
    }
}
