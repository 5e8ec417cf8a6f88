//! A batch's report as a trace: one span for the batch, and one for each thing that went on in it.
//!
//! ```text
//! batch ─┬─ ranges, plan
//!        ├─ run ─┬─ read STREAM ── range …      operators with their steps
//!        │       └─ operator …, stage SINK, output VIEW
//!        ├─ gather
//!        ├─ commit ── inputs, letters, checkpoint, ledger
//!        └─ show SINK
//! ```
//!
//! Invariant: the same report under the same seed is the same trace; a span lies
//! within its parent, whatever the clock did meanwhile; a trace has at most
//! [`MOST`] spans, and says how many were left out. Called by [`super::export`].

use ring::digest::{SHA256, digest};
use tidemill_core::{BatchReport, OperatorReport, ReadReport, Stage, StageReport, Stretch, Timestamp};

/// Spans of a batch at most.
const MOST: usize = 500;

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Whole(i64),
    Float(f64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_string())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Whole(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<Timestamp> for Value {
    fn from(at: Timestamp) -> Self {
        Self::Text(at.to_string())
    }
}

pub(super) type Attributes = Vec<(&'static str, Value)>;

/// One span.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Span {
    pub(super) trace: [u8; 16],
    pub(super) id: [u8; 8],
    pub(super) parent: Option<[u8; 8]>,
    pub(super) name: String,
    pub(super) at: Stretch,
    pub(super) attributes: Attributes,
    /// Why it failed.
    pub(super) error: Option<String>,
    /// What went wrong and was overcome.
    pub(super) trouble: Option<String>,
}

/// Makes traces of a program's reports.
#[derive(Debug, Clone)]
pub(super) struct Tracer {
    pub(super) program: String,
    /// Traces of two processes have other ids, though they ran the same batch.
    pub(super) seed: u64,
}

/// A trace under way.
struct Tree {
    trace: [u8; 16],
    spans: Vec<Span>,
    left_out: u64,
}

impl Tree {
    /// Adds a span, and gives its place; `None` where there are too many, as below one that was left out.
    fn add(&mut self, parent: Option<usize>, name: String, at: Stretch, attributes: Attributes) -> Option<usize> {
        if self.spans.len() == MOST {
            self.left_out += 1;
            return None;
        }
        let number = self.spans.len() as u64;
        let within = parent.and_then(|parent| self.spans.get(parent));
        let at = within.map_or(at, |parent| clamped(at, parent.at));
        let parent = within.map(|parent| parent.id);
        let id = digits(&[&self.trace, &number.to_be_bytes()]);
        let span = Span { trace: self.trace, id, parent, name, at, attributes, error: None, trouble: None };
        self.spans.push(span);
        Some(self.spans.len() - 1)
    }
}

/// A stretch as far as it lies in another.
fn clamped(at: Stretch, within: Stretch) -> Stretch {
    let begun = at.begun.clamp(within.begun, within.ended);
    Stretch { begun, ended: at.ended.clamp(begun, within.ended) }
}

/// An id from what it is of; never zero, which stands for none.
fn digits<const N: usize>(of: &[&[u8]]) -> [u8; N] {
    let digest = digest(&SHA256, &of.concat());
    let mut id = [0; N];
    id.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    if id == [0; N] {
        id[N - 1] = 1;
    }
    id
}

impl Tracer {
    /// The spans of a batch, the root first, parents before their children.
    pub(super) fn spans(&self, report: &BatchReport) -> Vec<Span> {
        let (batch, time) = (report.batch.0.to_be_bytes(), report.time.0.to_be_bytes());
        let trace = digits(&[&self.seed.to_be_bytes(), &batch, &time, self.program.as_bytes()]);
        let mut tree = Tree { trace, spans: Vec::new(), left_out: 0 };
        let detail = &report.detail;
        let root = tree.add(None, "batch".to_string(), whole(report), self.attributes(report));
        let stages = &detail.stages;
        // The parts of a stage come right after it.
        let mut last = root;
        for stage in stages.iter().filter(|stage| !is_in_run(stage.stage)) {
            let parent = if is_in_commit(stage.stage) { last } else { root };
            let at = add_stage(&mut tree, parent, stage, Vec::new());
            if !is_in_commit(stage.stage) {
                last = at;
            }
            if stage.stage == Stage::Run && !stage.failed {
                add_run(&mut tree, at.or(root), report);
            }
        }
        if !stages.iter().any(|stage| stage.stage == Stage::Run) && detail.error.is_none() {
            add_run(&mut tree, root, report);
        }
        let left_out = tree.left_out;
        if let Some(root) = tree.spans.first_mut() {
            root.error.clone_from(&detail.error);
            if left_out > 0 {
                root.attributes.push(("tidemill.spans_left_out", left_out.into()));
            }
        }
        tree.spans
    }

    fn attributes(&self, report: &BatchReport) -> Attributes {
        let detail = &report.detail;
        let outcome = if detail.error.is_some() { "failed" } else { "committed" };
        let mut attributes = vec![
            ("tidemill.program", self.program.as_str().into()),
            ("tidemill.batch", report.batch.0.into()),
            ("tidemill.batch_time", report.time.into()),
            ("tidemill.outcome", outcome.into()),
        ];
        if detail.error.is_some() {
            return attributes;
        }
        attributes.extend([
            ("tidemill.records", report.records_in.into()),
            ("tidemill.bytes", detail.bytes.values().fold(0_u64, |sum, bytes| sum.saturating_add(*bytes)).into()),
            ("tidemill.rows_out", report.rows_out.into()),
            ("tidemill.dead_letters", report.letters.values().sum::<u64>().into()),
            ("tidemill.late", report.late.into()),
            ("tidemill.scheduling_delay_us", report.scheduling_delay_us.into()),
            ("tidemill.processing_us", report.processing_us.into()),
            ("tidemill.queued", (report.queued as u64).into()),
            ("tidemill.state_bytes", report.state_bytes.into()),
        ]);
        attributes.extend(report.watermark.map(|at| ("tidemill.watermark", at.into())));
        attributes.extend(report.rate_limit.map(|rate| ("tidemill.rate_limit", Value::Float(rate))));
        attributes
    }
}

/// From the first thing that went on to the last; parts lie within theirs.
fn whole(report: &BatchReport) -> Stretch {
    let stages = report.detail.stages.iter().filter(|stage| !is_in_run(stage.stage) && !is_in_commit(stage.stage));
    stages.map(|stage| stage.at).reduce(Stretch::with).unwrap_or_else(|| {
        let micros = tidemill_core::Duration::from_micros;
        let begun = report.time.plus(micros(report.scheduling_delay_us));
        Stretch { begun, ended: begun.plus(micros(report.processing_us)) }
    })
}

fn is_in_run(stage: Stage) -> bool {
    matches!(stage, Stage::Stage | Stage::Output)
}

fn is_in_commit(stage: Stage) -> bool {
    matches!(stage, Stage::Inputs | Stage::Letters | Stage::Checkpoint | Stage::Ledger)
}

fn word(stage: Stage) -> &'static str {
    match stage {
        Stage::Ranges => "ranges",
        Stage::Plan => "plan",
        Stage::Run => "run",
        Stage::Stage => "stage",
        Stage::Output => "output",
        Stage::Gather => "gather",
        Stage::Commit => "commit",
        Stage::Inputs => "inputs",
        Stage::Letters => "letters",
        Stage::Checkpoint => "checkpoint",
        Stage::Ledger => "ledger",
        Stage::Show => "show",
    }
}

fn add_stage(tree: &mut Tree, parent: Option<usize>, stage: &StageReport, mut more: Attributes) -> Option<usize> {
    let mut name = word(stage.stage).to_string();
    if let Some(of) = &stage.of {
        name.push(' ');
        name.push_str(of);
        more.push(("tidemill.output", of.as_str().into()));
    }
    if stage.tries > 1 {
        more.push(("tidemill.tries", u64::from(stage.tries).into()));
    }
    let at = tree.add(parent, name, stage.at, more)?;
    let span = &mut tree.spans[at];
    *(if stage.failed { &mut span.error } else { &mut span.trouble }) = stage.error.clone();
    Some(at)
}

/// What was read and computed, within the run.
fn add_run(tree: &mut Tree, run: Option<usize>, report: &BatchReport) {
    let detail = &report.detail;
    let Some(whole) = run.and_then(|run| tree.spans.get(run)).map(|span| span.at) else { return };
    for operator in &detail.operators {
        if detail.ranges.contains_key(&operator.name) {
            let reads: Vec<&ReadReport> = detail.reads.iter().filter(|read| read.stream == operator.name).collect();
            // A stream that had nothing is asked all the same, and has no ranges.
            let number = |map: &std::collections::BTreeMap<String, u64>| map.get(&operator.name).copied().unwrap_or(0);
            let mut more = vec![
                ("tidemill.stream", operator.name.as_str().into()),
                ("tidemill.records", number(&detail.records).into()),
                ("tidemill.bytes", number(&detail.bytes).into()),
            ];
            more.extend(work(operator));
            let read = tree.add(run, format!("read {}", operator.name), stretch_of(operator, whole), more);
            reads.into_iter().for_each(|range| add_range(tree, read.or(run), range));
            continue;
        }
        let mut more = vec![("tidemill.operator", operator.name.as_str().into())];
        more.extend(work(operator));
        let at = tree.add(run, format!("operator {}", operator.name), stretch_of(operator, whole), more);
        // One step is the operator itself.
        for step in operator.steps.iter().filter(|_| operator.steps.len() > 1) {
            tree.add(at.or(run), step.name.clone(), stretch_of(step, whole), work(step).into());
        }
    }
    for stage in detail.stages.iter().filter(|stage| is_in_run(stage.stage)) {
        let told = detail.outputs.iter().find(|output| Some(&output.name) == stage.of.as_ref());
        add_stage(tree, run, stage, told.map(work).into_iter().flatten().collect());
    }
}

fn add_range(tree: &mut Tree, read: Option<usize>, range: &ReadReport) {
    let more = vec![
        ("tidemill.stream", range.stream.as_str().into()),
        ("tidemill.partition", (&*range.range.partition.0).into()),
        ("tidemill.start", range.range.start.0.into()),
        ("tidemill.end", range.range.end.0.into()),
        ("tidemill.records", range.records.into()),
    ];
    tree.add(read, "range".to_string(), range.at, more);
}

fn work(operator: &OperatorReport) -> [(&'static str, Value); 2] {
    [("tidemill.rows", operator.rows.into()), ("tidemill.busy_us", operator.busy_us.into())]
}

/// When an operator ran; of one that is known only by its work, that work from the run's begin on.
fn stretch_of(operator: &OperatorReport, run: Stretch) -> Stretch {
    let busy = tidemill_core::Duration::from_micros(operator.busy_us);
    operator.at.unwrap_or(Stretch { begun: run.begun, ended: run.begun.plus(busy) })
}
