//! Which groups a plan above an aggregate can give: those that may be among its first *n*.
//!
//! `ORDER BY sum(n) DESC, tag LIMIT 10` is a sort that keeps ten rows. Only groups
//! whose sum is at least the tenth largest can be among them, so only those are
//! handed to the plan, however many groups there are. Those that equal the tenth go
//! along: what decides between them is left to the plan.
//!
//! Invariant: the plan gives of the groups that are handed to it what it would give
//! of all. Called by [`super::lower`]; used by [`super::running`].

use super::{
    rows::Relabel,
    state::{FedLeaf, Layout, Role},
    tables::kernel_of,
};
use datafusion::{
    physical_expr::expressions::Column,
    physical_plan::{
        ExecutionPlan,
        aggregates::{AggregateExec, AggregateMode},
        projection::ProjectionExec,
        sorts::sort::SortExec,
    },
};
use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

/// What a plan wants: the first `limit` groups by an aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct First {
    pub(super) limit: usize,
    /// Which of the aggregates.
    pub(super) aggregate: usize,
    descending: bool,
    nulls_first: bool,
}

impl First {
    /// What the plan above a state wants, if it is that.
    pub(super) fn of(above: &Arc<dyn ExecutionPlan>, layout: &Layout) -> Option<Self> {
        if leaves(above) != 1 {
            return None;
        }
        let mut plan = above;
        loop {
            if let Some(first) = sorted(plan, layout) {
                return Some(first);
            }
            let [input] = plan.children()[..] else { return None };
            plan = input;
        }
    }

    /// Those of `groups` that may be among the first, in the order in which they came.
    pub(super) fn among(self, groups: &[u32], rank: impl Fn(usize) -> Option<i128>) -> Vec<u32> {
        if self.limit >= groups.len() {
            return groups.to_vec();
        }
        let rank = |group: &u32| match rank(*group as usize) {
            Some(rank) if self.descending => rank,
            // Turns the order around.
            Some(rank) => !rank,
            None if self.nulls_first => i128::MAX,
            None => i128::MIN,
        };
        let mut first = BinaryHeap::with_capacity(self.limit + 1);
        for group in groups {
            let rank = rank(group);
            if first.len() < self.limit {
                first.push(Reverse(rank));
            } else if let Some(mut least) = first.peek_mut()
                && rank > least.0
            {
                *least = Reverse(rank);
            }
        }
        let Some(Reverse(least)) = first.pop() else { return Vec::new() };
        groups.iter().filter(|group| rank(group) >= least).copied().collect()
    }
}

fn leaves(plan: &Arc<dyn ExecutionPlan>) -> usize {
    usize::from(kernel_of::<FedLeaf>(plan).is_some()) + plan.children().into_iter().map(leaves).sum::<usize>()
}

/// What a sort of the aggregate's rows wants.
fn sorted(plan: &Arc<dyn ExecutionPlan>, layout: &Layout) -> Option<First> {
    let sort = plan.downcast_ref::<SortExec>()?;
    let limit = sort.fetch()?;
    for by in sort.expr().iter() {
        let at = traced(sort.input(), by.expr.downcast_ref::<Column>()?.index())?;
        let groups = layout.full.fields().len().checked_sub(states(layout)?)?;
        if at >= groups {
            let (descending, nulls_first) = (by.options.descending, by.options.nulls_first);
            return Some(First { limit, aggregate: at - groups, descending, nulls_first });
        }
        // The window's bounds are the same for all of its groups.
        if !matches!(layout.roles.get(at)?, Role::Start | Role::End) {
            return None;
        }
    }
    None
}

/// How many columns the states of the aggregates have.
fn states(layout: &Layout) -> Option<usize> {
    layout.aggregates.iter().map(|aggregate| aggregate.state_fields().ok().map(|fields| fields.len())).sum()
}

/// Where in the rows of the aggregate a column of a plan comes from as it is.
fn traced(plan: &Arc<dyn ExecutionPlan>, column: usize) -> Option<usize> {
    if let Some(aggregate) = plan.downcast_ref::<AggregateExec>() {
        let is_last = *aggregate.mode() == AggregateMode::Final && kernel_of::<FedLeaf>(aggregate.input()).is_some();
        return is_last.then_some(column);
    }
    let [input] = plan.children()[..] else { return None };
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        let below = projection.expr().get(column)?.expr.downcast_ref::<Column>()?.index();
        return traced(input, below);
    }
    kernel_of::<Relabel>(plan)?;
    traced(input, column)
}
