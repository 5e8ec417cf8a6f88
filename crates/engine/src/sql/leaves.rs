//! What a plan reads of other nodes: found, and put in when it is lowered.
//! Called by [`super::lower`] and by the operators that hold plans of their own.
//!
//! Invariant: nodes are in the order of their numbers, so that inputs and leaves meet.

use super::{
    provider::Table,
    shape::Changes,
    tables::{Leaf, NodeTable, kernel_of},
};
use crate::plan::{Lineage, SourceExec};
use datafusion::{
    common::{
        Result as DfResult, internal_datafusion_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    datasource::source_as_provider,
    logical_expr::LogicalPlan,
    physical_plan::ExecutionPlan,
};
use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The lineage nodes that plans read, each once.
pub(super) fn leaves(plans: &[Arc<dyn ExecutionPlan>]) -> DfResult<Vec<Arc<Lineage>>> {
    let mut found: BTreeMap<usize, Arc<Lineage>> = BTreeMap::new();
    for plan in plans {
        plan.apply(|node| {
            if let Some(leaf) = kernel_of::<Leaf>(node) {
                found.insert(leaf.node.id, Arc::clone(&leaf.node));
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    Ok(found.into_values().collect())
}

/// The streams that a plan reads itself.
pub(super) fn sources(plan: &Arc<dyn ExecutionPlan>) -> DfResult<Vec<String>> {
    let mut found = BTreeSet::new();
    plan.apply(|node| {
        if let Some(source) = kernel_of::<SourceExec>(node) {
            found.insert(source.stream().to_string());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found.into_iter().collect())
}

/// The nodes that give their whole result again in each batch and that a plan reads.
pub(super) fn whole_nodes(plan: &LogicalPlan) -> DfResult<Vec<String>> {
    let mut found = BTreeSet::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let provider = source_as_provider(&scan.source)?;
            let provider: &dyn Any = provider.as_ref();
            if let Some(Table(table)) = provider.downcast_ref::<Table<NodeTable>>()
                && table.gives != Changes::New
            {
                found.insert(table.node.name.clone());
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found.into_iter().collect())
}

/// Puts the plans of `leaves` where they stand.
pub(super) fn put_in(
    plan: &Arc<dyn ExecutionPlan>,
    leaves: &[Arc<Lineage>],
    inputs: &[Arc<dyn ExecutionPlan>],
) -> DfResult<Arc<dyn ExecutionPlan>> {
    let places: BTreeMap<usize, usize> = leaves.iter().enumerate().map(|(at, node)| (node.id, at)).collect();
    let put = Arc::clone(plan).transform_up(|node| {
        let Some(leaf) = kernel_of::<Leaf>(&node) else { return Ok(Transformed::no(node)) };
        let input = places
            .get(&leaf.node.id)
            .and_then(|at| inputs.get(*at))
            .ok_or_else(|| internal_datafusion_err!("no plan for `{}`", leaf.node.name))?;
        Ok(Transformed::yes(Arc::clone(input)))
    })?;
    Ok(put.data)
}
