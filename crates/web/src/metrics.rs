//! `/metrics` in Prometheus' text format, as far as the board knows.
//!
//! Invariant: base units; no label by key or text, only by the program's own
//! stream names. Counters count since the process started. Called by the router.

use crate::{
    server::Shared,
    watch::{BUCKETS, Histogram},
};
use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use std::{fmt::Write as _, sync::Arc};
use tidemill_core::Phase;

/// `/metrics`
pub(crate) async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], render(&shared)).into_response()
}

/// Text under way.
#[derive(Debug, Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(&format!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, kind, help);
        self.line(&format!("{name} {value}"));
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
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

    page.head("tidemill_build_info", "gauge", "The version that runs, in a label.");
    page.line(concat!("tidemill_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"));
    page.head("tidemill_phase", "gauge", "1 for the phase in which the program is.");
    for (name, phase) in [
        ("starting", Phase::Starting),
        ("running", Phase::Running),
        ("stopping", Phase::Stopping),
        ("stopped", Phase::Stopped),
        ("failed", Phase::Failed),
    ] {
        page.line(&format!("tidemill_phase{{phase=\"{name}\"}} {}", u8::from(program.phase == phase)));
    }

    let inputs = board.inputs();
    for (name, help, of) in [
        ("tidemill_records_received_total", "Records taken by each input.", |i| i.records),
        ("tidemill_bytes_received_total", "Bytes taken by each input.", |i| i.bytes),
    ] as [(_, _, fn(&tidemill_core::InputReport) -> u64); 2]
    {
        page.head(name, "counter", help);
        for input in &inputs {
            let stream = escaped(&input.stream);
            page.line(&format!("{name}{{stream=\"{stream}\",receiver=\"{}\"}} {}", input.index, of(input)));
        }
    }
    page.one("tidemill_records_processed_total", "counter", "Records read by batches.", program.records_in);
    let name = "tidemill_records_dead_lettered_total";
    page.head(
        name,
        "counter",
        "Dead letters by the kind of their reason: refused records, and late rows that are kept.",
    );
    for (kind, count) in &program.letters {
        page.line(&format!("{name}{{reason=\"{kind}\"}} {count}"));
    }
    page.one(
        "tidemill_records_late_total",
        "counter",
        "Records that came after their window had closed.",
        program.late,
    );
    page.one("tidemill_batches_total", "counter", "Batches committed.", program.batches);
    page.histogram("tidemill_batch_duration_seconds", "From a batch's begin to its commit.", &seen.processing);
    page.histogram("tidemill_scheduling_delay_seconds", "From a batch's time to its begin.", &seen.scheduling);
    if let Some(last) = board.reports().last() {
        page.one("tidemill_batches_queued", "gauge", "Batches that waited when the last one began.", last.queued);
        page.one(
            "tidemill_state_memory_bytes",
            "gauge",
            "What states take in memory: keyed ones, and groups, first rows and windows of SQL.",
            last.state_bytes,
        );
        page.one(
            "tidemill_state_spilled_keys",
            "gauge",
            "Keys and groups of states that are on disk only.",
            last.state_spilled,
        );
        if let Some(limit) = last.rate_limit {
            page.one("tidemill_rate_limit_records_per_second", "gauge", "The bound set by rate control.", limit);
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
