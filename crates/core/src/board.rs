//! What people watch: views, batch reports and inputs, folded from events.
//!
//! The engine publishes; the web pages, the terminal and `tidemill status`
//! read. Invariant: publishing never waits for a reader. A reader that falls
//! behind misses events and reads the newest snapshot instead; history is
//! bounded.

use crate::{AlertAsk, AlertReport, BatchDetail, BatchId, Graph, Offset, PartitionId, StreamName, Timestamp};
use arrow_array::RecordBatch;
use parking_lot::RwLock;
use serde::Serialize;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};
use tokio::sync::broadcast;

/// Batch reports kept for charts.
const HISTORY: usize = 600;
/// What may be asked of an alert before a batch has taken it.
const ASKS: usize = 100;
/// Events that a slow subscriber may lag behind before it misses some.
const EVENTS: usize = 256;

/// The rows of a view after a batch.
#[derive(Debug, Clone)]
pub struct ViewSnapshot {
    /// Its name.
    pub name: String,
    /// The batch that made it.
    pub batch: BatchId,
    /// That batch's time.
    pub time: Timestamp,
    /// All its rows, in the view's order.
    pub rows: RecordBatch,
}

/// What a batch did and cost.
#[derive(Debug, Clone, Default, Serialize)]
pub struct BatchReport {
    /// Its number.
    pub batch: BatchId,
    /// Its time.
    pub time: Timestamp,
    /// Records read.
    pub records_in: u64,
    /// Rows given to sinks and views.
    pub rows_out: u64,
    /// Records refused.
    pub refused: u64,
    /// Dead letters by the kind of their reason ([`crate::reason_kind`]).
    pub letters: BTreeMap<&'static str, u64>,
    /// Late records.
    pub late: u64,
    /// From the batch's time to its begin, in microseconds.
    pub scheduling_delay_us: u64,
    /// From begin to commit, in microseconds.
    pub processing_us: u64,
    /// Batches that were waiting when it began.
    pub queued: usize,
    /// Bytes that states take in memory.
    pub state_bytes: u64,
    /// Keys and groups of theirs that are on disk only, for want of memory.
    pub state_spilled: u64,
    /// The rate bound in records per second, if rate control has set one.
    pub rate_limit: Option<f64>,
    /// Event time believed complete after it, of the stream or operator that is furthest behind.
    pub watermark: Option<Timestamp>,
    /// More of it, for those who look at this batch alone; not told with the others.
    #[serde(skip)]
    pub detail: Arc<BatchDetail>,
}

/// How an input fares.
#[derive(Debug, Clone, Default, Serialize)]
pub struct InputReport {
    /// The stream.
    pub stream: StreamName,
    /// Which receiver, or 0.
    pub index: usize,
    /// For people: `tcp 127.0.0.1:9999`.
    pub describe: String,
    /// For people: `connected`, `reconnecting in 2 s: connection refused`.
    pub state: String,
    /// Why it ended for good before its input did: nothing comes of it until the program is started again.
    pub failed: Option<String>,
    /// Records taken since start.
    pub records: u64,
    /// Bytes taken since start.
    pub bytes: u64,
    /// When the last records were taken.
    pub last: Option<Timestamp>,
    /// Errors since start, those after which it connected again included.
    pub errors: u64,
    /// How often it has connected again.
    pub reconnects: u64,
    /// The last error.
    pub last_error: Option<String>,
    /// Records (or the source's own unit) that no batch has read; `None` where it can't be known.
    pub lag: Option<u64>,
    /// How far batches have read each partition; the first of them where there are many.
    pub partitions: Vec<PartitionReport>,
}

/// How far a partition of an input has been read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionReport {
    /// The partition.
    pub partition: PartitionId,
    /// The next offset to read.
    pub position: Offset,
    /// What is there and not read, where it is known.
    pub lag: Option<u64>,
}

/// Where the program stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Recovering and opening inputs.
    #[default]
    Starting,
    /// Running batches.
    Running,
    /// Finishing the last batch.
    Stopping,
    /// Ended as asked.
    Stopped,
    /// Ended by an error.
    Failed,
}

/// The program as a whole.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// When it started.
    pub started: Timestamp,
    /// Where it stands.
    pub phase: Phase,
    /// Why it failed.
    pub error: Option<String>,
    /// Records read since start.
    pub records_in: u64,
    /// Records refused since start.
    pub refused: u64,
    /// Dead letters since start by the kind of their reason ([`crate::reason_kind`]).
    pub letters: BTreeMap<&'static str, u64>,
    /// Late records since start.
    pub late: u64,
    /// Batches committed since start.
    pub batches: u64,
}

/// How the export of traces fares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TracesReport {
    /// Spans that the collector took.
    pub sent: u64,
    /// Spans that it did not, for whatever reason.
    pub dropped: u64,
}

/// Something happened; look at the board for what.
#[derive(Debug, Clone)]
pub enum Event {
    /// A view has new rows.
    View(Arc<ViewSnapshot>),
    /// A batch was committed.
    Batch(Arc<BatchReport>),
    /// A batch failed for good and ends the program; its detail has the error, and it is among no reports.
    Failed(Arc<BatchReport>),
    /// The program's phase changed.
    Phase(Phase),
    /// The program is well and has nothing to do: no batch is due, or there is nothing to read.
    Idle,
}

/// The shared board.
#[derive(Debug)]
pub struct Board {
    views: RwLock<BTreeMap<String, Arc<ViewSnapshot>>>,
    reports: RwLock<VecDeque<Arc<BatchReport>>>,
    inputs: RwLock<BTreeMap<(StreamName, usize), InputReport>>,
    program: RwLock<Program>,
    graph: RwLock<Arc<Graph>>,
    alerts: RwLock<BTreeMap<String, Arc<AlertReport>>>,
    /// What was asked of alerts and no batch has taken.
    asked: RwLock<BTreeMap<String, Vec<AlertAsk>>>,
    /// `None` while nobody exports traces.
    traces: RwLock<Option<TracesReport>>,
    events: broadcast::Sender<Event>,
}

impl Default for Board {
    fn default() -> Self {
        Self {
            views: RwLock::default(),
            reports: RwLock::default(),
            inputs: RwLock::default(),
            program: RwLock::default(),
            graph: RwLock::default(),
            alerts: RwLock::default(),
            asked: RwLock::default(),
            traces: RwLock::default(),
            events: broadcast::channel(EVENTS).0,
        }
    }
}

impl Board {
    /// Shows new rows of a view.
    pub fn publish_view(&self, snapshot: ViewSnapshot) {
        let snapshot = Arc::new(snapshot);
        self.views.write().insert(snapshot.name.clone(), Arc::clone(&snapshot));
        self.send(Event::View(snapshot));
    }

    /// Shows a committed batch.
    pub fn publish_batch(&self, report: BatchReport) {
        let report = Arc::new(report);
        {
            let mut program = self.program.write();
            program.records_in += report.records_in;
            program.refused += report.refused;
            program.late += report.late;
            for (kind, count) in &report.letters {
                *program.letters.entry(kind).or_default() += count;
            }
            program.batches += 1;
        }
        {
            let mut reports = self.reports.write();
            if reports.len() == HISTORY {
                reports.pop_front();
            }
            reports.push_back(Arc::clone(&report));
        }
        self.send(Event::Batch(report));
    }

    /// Shows a batch that failed for good.
    pub fn publish_failed(&self, report: BatchReport) {
        self.send(Event::Failed(Arc::new(report)));
    }

    /// Changes what is told of the export of traces.
    pub fn update_traces(&self, change: impl FnOnce(&mut TracesReport)) {
        change(self.traces.write().get_or_insert_default());
    }

    /// How the export of traces fares; `None` of a program that exports none.
    pub fn traces(&self) -> Option<TracesReport> {
        *self.traces.read()
    }

    /// Says that the program looked and that there is nothing to do.
    pub fn publish_idle(&self) {
        self.send(Event::Idle);
    }

    /// Changes the program's summary.
    pub fn update_program(&self, change: impl FnOnce(&mut Program)) {
        let phase = {
            let mut program = self.program.write();
            let before = program.phase;
            change(&mut program);
            (before != program.phase).then_some(program.phase)
        };
        if let Some(phase) = phase {
            self.send(Event::Phase(phase));
        }
    }

    /// Changes the report of receiver `index` of `stream`, making it if it is new.
    pub fn update_input(&self, stream: &str, index: usize, change: impl FnOnce(&mut InputReport)) {
        let mut inputs = self.inputs.write();
        let report = inputs.entry((stream.to_string(), index)).or_insert_with(|| InputReport {
            stream: stream.to_string(),
            index,
            ..InputReport::default()
        });
        change(report);
    }

    /// Shows the program as a graph.
    pub fn publish_graph(&self, graph: Graph) {
        *self.graph.write() = Arc::new(graph);
    }

    /// The program as a graph; empty before it was opened.
    pub fn graph(&self) -> Arc<Graph> {
        Arc::clone(&self.graph.read())
    }

    /// Shows how an alert stands.
    pub fn publish_alert(&self, report: AlertReport) {
        self.alerts.write().insert(report.name.clone(), Arc::new(report));
    }

    /// All alerts, by name.
    pub fn alerts(&self) -> Vec<Arc<AlertReport>> {
        self.alerts.read().values().cloned().collect()
    }

    /// Asks something of an alert; the next batch takes it. Whether it was taken in: there is such an alert, and
    /// not too much waits.
    pub fn ask_alert(&self, name: &str, ask: AlertAsk) -> bool {
        if !self.alerts.read().contains_key(name) {
            return false;
        }
        let mut asked = self.asked.write();
        let waiting = asked.entry(name.to_string()).or_default();
        let fits = waiting.len() < ASKS;
        if fits {
            waiting.push(ask);
        }
        fits
    }

    /// Whether something is asked of an alert.
    pub fn is_alert_asked(&self, name: &str) -> bool {
        self.asked.read().get(name).is_some_and(|waiting| !waiting.is_empty())
    }

    /// Takes what was asked of an alert.
    pub fn take_alert_asks(&self, name: &str) -> Vec<AlertAsk> {
        if !self.is_alert_asked(name) {
            return Vec::new();
        }
        self.asked.write().remove(name).unwrap_or_default()
    }

    /// The report of a batch that is still remembered.
    pub fn report(&self, batch: BatchId) -> Option<Arc<BatchReport>> {
        let reports = self.reports.read();
        let at = reports.binary_search_by_key(&batch, |report| report.batch).ok()?;
        reports.get(at).cloned()
    }

    /// Names of all views that have rows.
    pub fn view_names(&self) -> Vec<String> {
        self.views.read().keys().cloned().collect()
    }

    /// The newest rows of a view.
    pub fn view(&self, name: &str) -> Option<Arc<ViewSnapshot>> {
        self.views.read().get(name).cloned()
    }

    /// The last batches, the oldest first.
    pub fn reports(&self) -> Vec<Arc<BatchReport>> {
        self.reports.read().iter().cloned().collect()
    }

    /// All inputs.
    pub fn inputs(&self) -> Vec<InputReport> {
        self.inputs.read().values().cloned().collect()
    }

    /// The program's summary.
    pub fn program(&self) -> Program {
        self.program.read().clone()
    }

    /// Events from now on. A slow subscriber gets `Lagged` and should read the board anew.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    fn send(&self, event: Event) {
        // An error only says that nobody listens.
        let _nobody = self.events.send(event);
    }
}
