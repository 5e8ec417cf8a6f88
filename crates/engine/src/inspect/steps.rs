//! A plan that has run once, as a graph with what each of its steps gave and took.
//!
//! Steps of ours are told by the work that was counted as their rows passed;
//! those of the query engine by its own metrics, which count one run, since the
//! plan was made for it. Invariant: bounded, by [`STEPS`] steps and [`TEXT`]
//! characters of each. Called by [`super`] for each output.

use crate::plan::Step;
use datafusion::physical_plan::{ExecutionPlan, displayable};
use std::{collections::HashMap, sync::Arc};
use tidemill_core::{OperatorReport, PlanNode, PlanReport};

/// Steps of a plan that are told of.
const STEPS: usize = 150;
/// Characters of what a step does.
const TEXT: usize = 300;

/// The plan of `output`.
pub(super) fn of(output: &str, plan: &dyn ExecutionPlan, operators: &[OperatorReport]) -> PlanReport {
    let mut graph = Graph { operators, known: HashMap::new(), nodes: Vec::new(), left_out: 0 };
    graph.add(plan);
    PlanReport { output: output.to_string(), nodes: graph.nodes, left_out: graph.left_out }
}

struct Graph<'a> {
    operators: &'a [OperatorReport],
    /// A step that several read is one.
    known: HashMap<*const (), String>,
    nodes: Vec<PlanNode>,
    left_out: u64,
}

impl Graph<'_> {
    /// Adds a step after those that it reads, and gives its `id`; `None` where there is no room for it.
    fn add(&mut self, plan: &dyn ExecutionPlan) -> Option<String> {
        let at = std::ptr::from_ref(plan).cast::<()>();
        if let Some(id) = self.known.get(&at) {
            return Some(id.clone());
        }
        let inputs: Vec<String> =
            plan.children().into_iter().filter_map(|child: &Arc<dyn ExecutionPlan>| self.add(child.as_ref())).collect();
        if self.nodes.len() >= STEPS {
            self.left_out += 1;
            return None;
        }
        let id = self.nodes.len().to_string();
        let node = PlanNode { id: id.clone(), inputs, ..self.node(plan) };
        self.nodes.push(node);
        self.known.insert(at, id.clone());
        Some(id)
    }

    fn node(&self, plan: &dyn ExecutionPlan) -> PlanNode {
        let line = displayable(plan).one_line().to_string();
        let line = line.trim();
        if let Some(step) = Step::of(line).filter(|_| plan.name() == "NodeExec") {
            let (operator, what) = step.names();
            let done = self.operators.iter().find(|known| known.name == operator).and_then(|known| {
                let of_step = known.steps.iter().find(|step| step.name == what);
                of_step.or((known.steps.len() < 2).then_some(known))
            });
            return PlanNode {
                name: operator.to_string(),
                what: cut(what),
                rows: done.map(|done| done.rows),
                busy_us: done.map(|done| done.busy_us),
                ..PlanNode::default()
            };
        }
        let (name, what) = line.split_once(": ").unwrap_or((line, ""));
        let metrics = plan.metrics();
        let counted = |n: Option<usize>| n.and_then(|n| u64::try_from(n).ok());
        PlanNode {
            name: cut(name),
            what: cut(what),
            rows: counted(metrics.as_ref().and_then(datafusion::physical_plan::metrics::MetricsSet::output_rows)),
            busy_us: counted(metrics.as_ref().and_then(|metrics| metrics.elapsed_compute())).map(|nanos| nanos / 1000),
            ..PlanNode::default()
        }
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}
