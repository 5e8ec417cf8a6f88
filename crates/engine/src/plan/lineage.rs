//! The user's graph.
//!
//! Invariant: a node never changes after it was made, and its name is unique in
//! its program: state and checkpoints are kept under it. Names are given by the
//! user or derived from the kind of operator and its place among its like, in
//! the order of declaration, which is the same in every process that runs the
//! same program.

use super::Lowering;
use arrow_schema::SchemaRef;
use datafusion::physical_plan::ExecutionPlan;
use std::{fmt, sync::Arc};
use tidemill_core::Result;

/// One step of a program.
pub(crate) trait Operator: Send + Sync + fmt::Debug {
    /// The verb: `reduce_by_key`.
    fn kind(&self) -> &'static str;

    /// Its output columns.
    fn schema(&self) -> SchemaRef;

    /// Makes the physical plan over the plans of its inputs.
    fn lower(&self, inputs: Vec<Arc<dyn ExecutionPlan>>, cx: &mut Lowering<'_>) -> Result<Arc<dyn ExecutionPlan>>;

    /// Whether it keeps state from batch to batch: it then runs once a batch
    /// however many outputs read it.
    fn is_stateful(&self) -> bool {
        false
    }

    /// What it computes, as text, where that is known: equal for equal queries.
    fn definition(&self) -> Option<String> {
        None
    }

    /// Whether its rows are computed once a batch for all who read them, though it keeps no state.
    fn is_shared(&self) -> bool {
        false
    }
}

/// A node of the user's graph.
pub(crate) struct Lineage {
    pub(crate) id: usize,
    pub(crate) name: String,
    pub(crate) inputs: Vec<Arc<Lineage>>,
    pub(crate) operator: Box<dyn Operator>,
}

impl fmt::Debug for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.name, self.operator)
    }
}

impl Lineage {
    /// Output columns.
    pub(crate) fn schema(&self) -> SchemaRef {
        self.operator.schema()
    }

    /// Calls `visit` with this node and all below, each once, inputs first.
    pub(crate) fn walk(
        self: &Arc<Self>,
        seen: &mut std::collections::HashSet<usize>,
        visit: &mut impl FnMut(&Arc<Lineage>),
    ) {
        if !seen.insert(self.id) {
            return;
        }
        for input in &self.inputs {
            input.walk(seen, visit);
        }
        visit(self);
    }
}
