//! `/metrics` in Prometheus' text format, as far as the board knows.
//!
//! Invariant: base units; no label by key or text, only by the program's own
//! stream names. Counters count since the process started. Called by the router.

use crate::{
    health::readiness,
    server::Shared,
    watch::{BUCKETS, Histogram},
};
use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use std::{fmt::Write as _, sync::Arc};
use tidemill_core::{InputReport, Phase};

/// `/metrics`
pub(crate) async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], render(&shared)).into_response()
}

/// A metric: what `/metrics` says of it, and what the dashboard is made of.
#[derive(Debug)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub(crate) kind: &'static str,
    pub(crate) help: &'static str,
    pub(crate) labels: &'static [&'static str],
}

const fn metric(name: &'static str, kind: &'static str, help: &'static str, labels: &'static [&'static str]) -> Metric {
    Metric { name, kind, help, labels }
}

const INPUT: &[&str] = &["stream", "receiver"];

/// All metrics, the version first.
pub(crate) const METRICS: &[Metric] = &[
    metric("tidemill_build_info", "gauge", "The version that runs, in a label.", &["version"]),
    metric("tidemill_phase", "gauge", "1 for the phase in which the program is.", &["phase"]),
    metric("tidemill_ready", "gauge", "1 while the program works; 0 also when it is stalled.", &[]),
    metric("tidemill_records_received_total", "counter", "Records taken by each input.", INPUT),
    metric("tidemill_bytes_received_total", "counter", "Bytes taken by each input.", INPUT),
    metric(
        "tidemill_input_errors_total",
        "counter",
        "Errors of each input, also of those that connected again.",
        INPUT,
    ),
    metric(
        "tidemill_input_failed",
        "gauge",
        "1 for an input that ended by an error and receives nothing until the next start.",
        INPUT,
    ),
    metric("tidemill_source_lag_records", "gauge", "What an input has, in its own unit, and no batch has read.", INPUT),
    metric("tidemill_records_processed_total", "counter", "Records read by batches.", &[]),
    metric(
        "tidemill_records_dead_lettered_total",
        "counter",
        "Dead letters by the kind of their reason: refused records, and late rows that are kept.",
        &["reason"],
    ),
    metric("tidemill_records_late_total", "counter", "Records that came after their window had closed.", &[]),
    metric("tidemill_batches_total", "counter", "Batches committed.", &[]),
    metric("tidemill_batch_duration_seconds", "histogram", "From a batch's begin to its commit.", &[]),
    metric("tidemill_scheduling_delay_seconds", "histogram", "From a batch's time to its begin.", &[]),
    metric("tidemill_batches_queued", "gauge", "Batches that waited when the last one began.", &[]),
    metric("tidemill_watermark_lag_seconds", "gauge", "How far the slowest watermark is behind the last batch.", &[]),
    metric(
        "tidemill_state_memory_bytes",
        "gauge",
        "What states take in memory: keyed ones, and groups, first rows and windows of SQL.",
        &[],
    ),
    metric("tidemill_state_spilled_keys", "gauge", "Keys and groups of states that are on disk only.", &[]),
    metric("tidemill_rate_limit_records_per_second", "gauge", "The bound set by rate control.", &[]),
    metric("tidemill_spans_exported_total", "counter", "Spans of traces that their collector took.", &[]),
    metric(
        "tidemill_spans_dropped_total",
        "counter",
        "Spans that no collector took, as it was away, slow, or refused them; one for each batch that was missed.",
        &[],
    ),
    metric("tidemill_alert_keys", "gauge", "Keys of each alert by the state that they are in.", &["alert", "state"]),
];

/// Text under way.
#[derive(Debug, Default)]
struct Page(String);

impl Page {
    /// What stands before a metric's values, from the list.
    fn head(&mut self, name: &str) {
        let metric = METRICS.iter().find(|metric| metric.name == name).expect("each metric is in the list");
        self.line(&format!("# HELP {name} {}\n# TYPE {name} {}", metric.help, metric.kind));
    }

    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn one(&mut self, name: &str, value: impl std::fmt::Display) {
        self.head(name);
        self.line(&format!("{name} {value}"));
    }

    /// A value for each input that has one.
    fn inputs(&mut self, name: &str, inputs: &[InputReport], of: impl Fn(&InputReport) -> Option<u64>) {
        self.head(name);
        for input in inputs {
            let Some(value) = of(input) else { continue };
            let stream = escaped(&input.stream);
            self.line(&format!("{name}{{stream=\"{stream}\",receiver=\"{}\"}} {value}", input.index));
        }
    }

    fn histogram(&mut self, name: &str, histogram: &Histogram) {
        self.head(name);
        let mut below = 0;
        for (bound, count) in BUCKETS.iter().zip(histogram.buckets) {
            below += count;
            self.line(&format!("{name}_bucket{{le=\"{bound}\"}} {below}"));
        }
        self.line(&format!("{name}_bucket{{le=\"+Inf\"}} {}", histogram.count));
        self.line(&format!("{name}_sum {}", seconds(histogram.sum_us)));
        self.line(&format!("{name}_count {}", histogram.count));
    }
}

fn render(shared: &Shared) -> String {
    let (board, seen) = (&shared.board, shared.watch.seen());
    let program = board.program();
    let mut page = Page::default();

    page.head("tidemill_build_info");
    page.line(concat!("tidemill_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"));
    page.head("tidemill_phase");
    for (name, phase) in [
        ("starting", Phase::Starting),
        ("running", Phase::Running),
        ("stopping", Phase::Stopping),
        ("stopped", Phase::Stopped),
        ("failed", Phase::Failed),
    ] {
        page.line(&format!("tidemill_phase{{phase=\"{name}\"}} {}", u8::from(program.phase == phase)));
    }
    page.one("tidemill_ready", u8::from(readiness(board, &shared.watch).ready));

    let inputs = board.inputs();
    page.inputs("tidemill_records_received_total", &inputs, |input| Some(input.records));
    page.inputs("tidemill_bytes_received_total", &inputs, |input| Some(input.bytes));
    page.inputs("tidemill_input_errors_total", &inputs, |input| Some(input.errors));
    page.inputs("tidemill_input_failed", &inputs, |input| Some(input.failed.is_some().into()));
    page.inputs("tidemill_source_lag_records", &inputs, |input| input.lag);
    page.one("tidemill_records_processed_total", program.records_in);
    let name = "tidemill_records_dead_lettered_total";
    page.head(name);
    for (kind, count) in &program.letters {
        page.line(&format!("{name}{{reason=\"{kind}\"}} {count}"));
    }
    page.one("tidemill_records_late_total", program.late);
    page.one("tidemill_batches_total", program.batches);
    page.histogram("tidemill_batch_duration_seconds", &seen.processing);
    page.histogram("tidemill_scheduling_delay_seconds", &seen.scheduling);
    if let Some(last) = board.reports().last() {
        page.one("tidemill_batches_queued", last.queued);
        if let Some(watermark) = last.watermark {
            let behind = u64::try_from(last.time.since(watermark).as_micros()).unwrap_or(u64::MAX);
            page.one("tidemill_watermark_lag_seconds", seconds(behind));
        }
        page.one("tidemill_state_memory_bytes", last.state_bytes);
        page.one("tidemill_state_spilled_keys", last.state_spilled);
        if let Some(limit) = last.rate_limit {
            page.one("tidemill_rate_limit_records_per_second", limit);
        }
    }
    if let Some(traces) = board.traces() {
        page.one("tidemill_spans_exported_total", traces.sent);
        page.one("tidemill_spans_dropped_total", traces.dropped);
    }
    let name = "tidemill_alert_keys";
    page.head(name);
    for alert in board.alerts() {
        for (state, keys) in [("pending", alert.pending), ("firing", alert.firing), ("missing", alert.missing)] {
            page.line(&format!("{name}{{alert=\"{}\",state=\"{state}\"}} {keys}", escaped(&alert.name)));
        }
    }
    page.0
}

/// Seconds as a decimal, exact to the microsecond.
fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

/// A label's value, with what the format reserves escaped.
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            // A carriage return would end the line for some readers.
            c if c.is_control() => write!(text, "\\\\u{:04x}", u32::from(c)).expect("a String takes any text"),
            c => text.push(c),
        }
    }
    text
}
