//! From lineage to a physical plan.
//!
//! Invariant: a node that several parts of the program read is lowered once
//! and shared when it keeps state; stateless nodes are lowered anew for each
//! reader, as the field's own engines recompute them, unless `cache` was asked
//! for.

use super::{Lineage, NodeExec, SharedKernel, node::Kernel};
use crate::state::StateRegistry;
use arrow_schema::SchemaRef;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};
use tidemill_core::{Duration, Result};

/// Lowers the outputs of one program.
pub(crate) struct Lowering<'a> {
    /// Partitions that keyed operators use.
    pub(crate) partitions: usize,
    /// Where stateful operators register.
    pub(crate) states: &'a StateRegistry,
    /// Name of the node being lowered: state is kept under it.
    pub(crate) name: String,
    /// Interval between two batches, when the trigger has one.
    pub(crate) interval: Option<Duration>,
    readers: HashMap<usize, usize>,
    shared: HashMap<usize, Arc<dyn ExecutionPlan>>,
}

impl<'a> Lowering<'a> {
    /// Prepares to lower `outputs`.
    pub(crate) fn new(partitions: usize, states: &'a StateRegistry, outputs: &[Arc<Lineage>]) -> Self {
        let mut readers: HashMap<usize, usize> = HashMap::new();
        let mut seen = HashSet::new();
        for output in outputs {
            *readers.entry(output.id).or_default() += 1;
            output.walk(&mut seen, &mut |node| {
                for input in &node.inputs {
                    *readers.entry(input.id).or_default() += 1;
                }
            });
        }
        Self { partitions, states, name: String::new(), interval: None, readers, shared: HashMap::new() }
    }

    /// With the interval between two batches, which windows by batch time are checked against.
    pub(crate) fn with_interval(mut self, interval: Option<Duration>) -> Self {
        self.interval = interval;
        self
    }

    /// The physical plan of a node.
    ///
    /// # Errors
    /// When an operator can't be planned.
    pub(crate) fn lower(&mut self, node: &Arc<Lineage>) -> Result<Arc<dyn ExecutionPlan>> {
        if let Some(plan) = self.shared.get(&node.id) {
            return Ok(Arc::clone(plan));
        }
        let inputs = node.inputs.iter().map(|input| self.lower(input)).collect::<Result<Vec<_>>>()?;
        self.name.clone_from(&node.name);
        let plan = node.operator.lower(inputs, self)?;
        let below_is_stateful = {
            let (mut seen, mut stateful) = (HashSet::new(), false);
            node.walk(&mut seen, &mut |n| stateful |= n.operator.is_stateful());
            stateful
        };
        if (below_is_stateful || node.operator.is_shared()) && self.readers.get(&node.id).copied().unwrap_or(0) > 1 {
            let plan = share(plan);
            self.shared.insert(node.id, Arc::clone(&plan));
            return Ok(plan);
        }
        Ok(plan)
    }

    /// A node of ours over `inputs`, named after the operator being lowered.
    pub(crate) fn node(
        &self,
        step: &str,
        kernel: impl Kernel,
        inputs: Vec<Arc<dyn ExecutionPlan>>,
        schema: SchemaRef,
        partitions: usize,
    ) -> Arc<dyn ExecutionPlan> {
        NodeExec::new(format!("{}: {step}", self.name), kernel, inputs, schema, partitions)
    }
}

/// Wraps a plan so that it runs once a batch.
pub(crate) fn share(plan: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
    let (schema, partitions) = (plan.schema(), plan.output_partitioning().partition_count());
    NodeExec::new("shared", SharedKernel::new(Arc::clone(&schema)), vec![plan], schema, partitions)
}
