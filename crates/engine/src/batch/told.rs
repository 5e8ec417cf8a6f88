//! What people are told of a program and of each batch: the graph, a batch in
//! detail, and how inputs fare.
//!
//! Invariant: nothing here decides anything; what can't be found out is left
//! out, and costs a batch no more than a few microseconds. Called by
//! [`super::pipeline`] when it opens, and by [`super::run`] at each commit.

use super::{OutputPlan, Pipeline};
use crate::{
    emit::{Output, OutputKind},
    plan::{BatchRun, Lineage, StreamInput},
};
use arrow_schema::SchemaRef;
use datafusion::physical_plan::displayable;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};
use tidemill_core::{
    BatchDetail, BatchReport, DeadLetter, Duration, Graph, GraphColumn, GraphNode, Guarantee, LetterReport, NodeKind,
    OperatorReport, PartitionReport, Timestamp,
};
use tokio::task::JoinHandle;

/// Pause between two looks at what inputs have that was not read.
const EVERY: Duration = Duration::from_secs(1);
/// Partitions of an input that are told of.
const PARTITIONS: usize = 64;

/// When people were last told what inputs have, and the look that goes on.
#[derive(Debug, Default)]
pub(super) struct Told {
    last: Option<Timestamp>,
    task: Option<JoinHandle<()>>,
}

impl Pipeline {
    /// Adds to a batch's report what is known of its steps once it has run.
    pub(super) fn tell_of(&self, report: &mut BatchReport, run: &BatchRun, dead: &[DeadLetter]) {
        let mut detail = BatchDetail { letters: LetterReport::first(dead), ..BatchDetail::default() };
        for (stream, ranges) in &run.batch.ranges {
            detail.take_ranges(stream, ranges);
        }
        (detail.records, detail.bytes) = (run.records_by_stream(), run.bytes_by_stream());
        detail.reads = run.work.reads();
        let streams = run.streams_after();
        let known =
            run.watermarks_after().into_iter().chain(streams.iter().map(|(name, mark)| (name.clone(), mark.at())));
        detail.watermarks = known.filter(|(_, at)| *at > Timestamp::MIN).collect();
        report.watermark = detail.watermarks.values().min().copied();
        (detail.operators, detail.outputs) = self.work_of(run);
        let given = self.outputs.iter().zip(&detail.outputs).filter(|(o, _)| matches!(o.kind, OutputKind::Sink(_)));
        report.rows_out += given.map(|(_, told)| told.rows).sum::<u64>();
        report.detail = Arc::new(detail);
    }

    /// Adds what went on in the batch's life, its commit included.
    pub(super) fn tell_stages(&self, report: &mut BatchReport, run: &BatchRun) {
        // Nobody else has it yet.
        if let Some(detail) = Arc::get_mut(&mut report.detail) {
            detail.stages = run.stages.told();
        }
    }

    /// What the operators and the outputs gave and took in a run. Taken out of it: asked once.
    pub(crate) fn work_of(&self, run: &BatchRun) -> (Vec<OperatorReport>, Vec<OperatorReport>) {
        let mut outputs = Vec::new();
        for output in &self.outputs {
            outputs.push(run.work.take(&output.step, &output.name));
        }
        let mut operators = run.work.reports();
        self.fill_in(&mut operators, &outputs);
        (operators, outputs)
    }

    /// An operator that is one plan of the query engine has no step of ours: what its output was given is its work.
    fn fill_in(&self, operators: &mut Vec<OperatorReport>, outputs: &[OperatorReport]) {
        let mut more: Vec<OperatorReport> = Vec::new();
        for (output, told) in self.outputs.iter().zip(outputs) {
            match operators.iter_mut().find(|operator| operator.name == output.node) {
                Some(operator) => operator.busy_us += told.busy_us,
                None => more.push(OperatorReport { name: output.node.clone(), ..told.clone() }),
            }
        }
        operators.extend(more);
    }

    /// Says what the batch has read of inputs that no receiver tells of.
    pub(super) fn tell_of_records(&self, run: &BatchRun) {
        let now = self.now();
        for (stream, records) in run.records_by_stream() {
            if records > 0 && !self.is_received(&stream) {
                self.board.update_input(&stream, 0, |report| {
                    report.records += records;
                    report.last = Some(now);
                });
            }
        }
    }

    /// Begins to say what inputs have that no batch has read, when it is due. A source may ask a
    /// server for it, and no commit waits for that.
    pub(super) fn tell_of_lags_when_due(self: &Arc<Self>) {
        if self.lags_are_due() {
            let this = Arc::clone(self);
            let task = tokio::spawn(async move { this.tell_of_lags().await });
            self.told.lock().task = Some(task);
        }
    }

    /// The program has ended: a look that goes on tells nobody, and holds the data directory no longer.
    pub(super) async fn telling_ended(&self) {
        let task = self.told.lock().task.take();
        if let Some(task) = task {
            task.abort();
            let _ended = task.await;
        }
    }

    /// Whether it is time for a look, and none goes on; then it begins.
    pub(super) fn lags_are_due(&self) -> bool {
        let now = self.now();
        let mut told = self.told.lock();
        let recent = told.last.is_some_and(|last| now >= last && now.since(last) < EVERY);
        if recent || told.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return false;
        }
        told.last = Some(now);
        true
    }

    /// Says what inputs have that no batch has read.
    pub(super) async fn tell_of_lags(&self) {
        for input in &self.inputs {
            let position = self.progress.lock().positions.get(&input.name).cloned().unwrap_or_default();
            let lag = input.source.lag(&position).await.ok();
            let lags = input.source.partition_lags(&position).await.unwrap_or_default();
            let read = |(partition, at): (_, &_)| PartitionReport {
                lag: lags.get(partition).copied(),
                partition: Clone::clone(partition),
                position: *at,
            };
            let partitions: Vec<_> = position.iter().map(read).collect();
            if self.is_received(&input.name) {
                // A receiver fills the partition of its number.
                for (index, one) in partitions.into_iter().enumerate() {
                    self.board.update_input(&input.name, index, |report| {
                        report.lag = one.lag;
                        report.partitions = vec![one];
                    });
                }
                continue;
            }
            self.board.update_input(&input.name, 0, |report| {
                (report.lag, report.partitions) = (lag, partitions);
                report.partitions.truncate(PARTITIONS);
            });
        }
    }

    /// Whether receivers of this program fill the stream, and tell how they fare.
    fn is_received(&self, stream: &str) -> bool {
        self.received.contains(stream)
    }

    /// Shows inputs that no receiver tells of.
    pub(super) fn tell_of_sources(&self) {
        for input in self.inputs.iter().filter(|input| !self.is_received(&input.name)) {
            self.board.update_input(&input.name, 0, |report| {
                report.describe = input.source.describe();
                report.state = "reading".to_string();
            });
        }
    }
}

/// The program as people see it.
pub(super) fn graph(
    inputs: &[Arc<StreamInput>],
    (outputs, declared): (&[OutputPlan], &[Output]),
    reads: &BTreeMap<usize, BTreeSet<String>>,
) -> Graph {
    let mut nodes: Vec<GraphNode> = inputs.iter().map(|input| input_node(input)).collect();
    let mut seen = HashSet::new();
    for output in declared {
        output.node.walk(&mut seen, &mut |node| {
            if !is_stream(node) {
                nodes.push(operator_node(node, reads));
            }
        });
    }
    nodes.extend(outputs.iter().zip(declared).map(|(output, declared)| output_node(output, declared, reads)));
    Graph { nodes }
}

/// Whether a node of the lineage only reads a stream, which is shown as an input.
fn is_stream(node: &Lineage) -> bool {
    node.operator.kind() == "stream"
}

/// The nodes whose rows a node has.
fn ids(node: &Arc<Lineage>, reads: &BTreeMap<usize, BTreeSet<String>>) -> Vec<String> {
    if is_stream(node) {
        return reads.get(&node.id).into_iter().flatten().map(|stream| format!("input {stream}")).collect();
    }
    vec![format!("operator {}", node.name)]
}

fn input_node(input: &StreamInput) -> GraphNode {
    GraphNode {
        id: format!("input {}", input.name),
        name: input.name.clone(),
        kind: NodeKind::Input,
        what: input.source.describe(),
        inputs: Vec::new(),
        stateful: false,
        definition: None,
        columns: columns(&input.schema),
        plan: None,
    }
}

fn operator_node(node: &Arc<Lineage>, reads: &BTreeMap<usize, BTreeSet<String>>) -> GraphNode {
    let streams = reads.get(&node.id).into_iter().flatten().map(|stream| format!("input {stream}"));
    let mut inputs: Vec<String> = streams.chain(node.inputs.iter().flat_map(|input| ids(input, reads))).collect();
    inputs.sort_unstable();
    inputs.dedup();
    let (operator, name) = (&node.operator, node.name.clone());
    GraphNode {
        id: format!("operator {name}"),
        name,
        kind: NodeKind::Operator,
        what: operator.kind().to_string(),
        inputs,
        stateful: operator.is_stateful(),
        definition: operator.definition(),
        columns: columns(&operator.schema()),
        plan: None,
    }
}

fn output_node(output: &OutputPlan, declared: &Output, reads: &BTreeMap<usize, BTreeSet<String>>) -> GraphNode {
    let what = match &output.kind {
        OutputKind::Sink(sink) => match sink.guarantee() {
            Guarantee::ExactlyOnce => format!("exactly once into {}", sink.describe()),
            Guarantee::AtLeastOnce => format!("at least once into {}", sink.describe()),
        },
        OutputKind::View { .. } | OutputKind::Kept(_) => "view".to_string(),
        OutputKind::Call(_) => "callback".to_string(),
    };
    GraphNode {
        id: format!("output {}", output.name),
        name: output.name.clone(),
        kind: NodeKind::Output,
        what,
        inputs: ids(&declared.node, reads),
        stateful: false,
        definition: None,
        columns: columns(&declared.node.schema()),
        plan: Some(displayable(output.plan.as_ref()).indent(false).to_string()),
    }
}

fn columns(schema: &SchemaRef) -> Vec<GraphColumn> {
    let column = |field: &Arc<arrow_schema::Field>| GraphColumn {
        name: field.name().clone(),
        kind: field.data_type().to_string(),
    };
    schema.fields().iter().map(column).collect()
}
