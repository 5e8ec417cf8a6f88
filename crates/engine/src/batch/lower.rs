//! Every output of a program as a kept plan.
//!
//! Invariant: what depends on a batch is in no plan. Called by
//! [`super::pipeline`] when it opens, and by those who look at a program without running it.

use super::{OutputPlan, Trigger};
use crate::{
    config::Config,
    emit::Output,
    plan::{Lowering, Step},
    state::StateRegistry,
};
use datafusion::physical_plan::{ExecutionPlan, displayable};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tidemill_core::Result;

/// Plans every output, once.
pub(crate) fn lower(config: &Config, states: &StateRegistry, outputs: Vec<Output>) -> Result<Vec<OutputPlan>> {
    lowered(config, states, outputs).map(|(outputs, _)| outputs)
}

/// Streams that nodes of the lineage read themselves, by number.
pub(super) type Reads = BTreeMap<usize, BTreeSet<String>>;

/// The same, with the streams that operators read.
pub(super) fn lowered(
    config: &Config,
    states: &StateRegistry,
    outputs: Vec<Output>,
) -> Result<(Vec<OutputPlan>, Reads)> {
    let nodes: Vec<_> = outputs.iter().map(|output| Arc::clone(&output.node)).collect();
    let interval = match config.trigger {
        Trigger::Every(interval) => Some(interval),
        Trigger::Asap | Trigger::Once | Trigger::Drain => None,
    };
    let mut lowering = Lowering::new(config.partitions, states, &nodes).with_interval(interval).within(&config.memory);
    let outputs = outputs
        .into_iter()
        .map(|output| {
            let plan = lowering.lower(&output.node)?;
            let resets = needs_reset(&plan);
            tracing::debug!(output = output.name, resets, plan = %displayable(plan.as_ref()).indent(false), "planned");
            let (node, step) = (output.node.name.clone(), Step::named(&output.name, "output", false));
            Ok(OutputPlan { name: output.name, kind: output.kind, plan, resets, node, step })
        })
        .collect::<Result<_>>()?;
    Ok((outputs, lowering.reads))
}

/// Our nodes keep nothing between runs; DataFusion's keep at least the metrics of
/// each run, which would pile up.
fn needs_reset(plan: &Arc<dyn ExecutionPlan>) -> bool {
    plan.name() != "NodeExec" || plan.children().into_iter().any(needs_reset)
}
