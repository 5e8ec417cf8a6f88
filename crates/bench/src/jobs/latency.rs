//! W4: from send to visible, at ten thousand events a second over TCP.
//!
//! A sender writes ten lines each millisecond and notes when. A record counts
//! as visible when the view of its batch is on the board, which is after the
//! batch's commit: log, ledger and their syncs lie in between. Records keep
//! their order on the one connection, so the n-th record read is the n-th sent.
//!
//! A bare thread sleeps to the same ticks meanwhile. Where it, too, is woken late,
//! the machine has run nobody: on a virtual one its host, on a busy one others.

use crate::{Result, measure::median};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    io::Write,
    net::{Ipv4Addr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};
use tidemill_connectors::{format::TextFormat, tcp::TcpClient};
use tidemill_core::{Event, Receiver};
use tidemill_engine::{Str, StreamingContext, Trigger, records_of};

/// Lines sent each millisecond.
const LINES: u64 = 10;
/// Interval of the second measurement.
const INTERVAL: Duration = Duration::from_millis(10);
/// Records at the beginning that are not measured: pages fault in, plans warm up.
const WARM: usize = 5_000;

/// The last line of the job's output.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    job: &'static str,
    /// From send to visible with the `Asap` trigger, milliseconds.
    p50_ms: f64,
    p99_ms: f64,
    /// The same with batches each 10 ms.
    every_10ms_p50_ms: f64,
    every_10ms_p99_ms: f64,
    /// Batches of those that began more than an interval late.
    every_10ms_late: usize,
    /// Ticks of those to which a bare thread was woken as late.
    bare_10ms_late: usize,
    /// Median processing time of a 10 ms batch, milliseconds.
    every_10ms_processing_ms: f64,
    exact: bool,
}

struct Measured {
    latencies: Vec<Duration>,
    late: usize,
    bare_late: usize,
    processing: Vec<f64>,
    exact: bool,
}

/// W4: `items` events with each trigger.
pub(crate) fn w4(items: u64, threads: usize) -> Result<Latency> {
    let mut asap = measure(items, threads, Trigger::Asap)?;
    let mut every = measure(items, threads, Trigger::Every(INTERVAL))?;
    Ok(Latency {
        job: "w4",
        p50_ms: quantile(&mut asap.latencies, 0.5),
        p99_ms: quantile(&mut asap.latencies, 0.99),
        every_10ms_p50_ms: quantile(&mut every.latencies, 0.5),
        every_10ms_p99_ms: quantile(&mut every.latencies, 0.99),
        every_10ms_late: every.late,
        bare_10ms_late: every.bare_late,
        every_10ms_processing_ms: median(&every.processing).unwrap_or(0.0),
        exact: asap.exact && every.exact,
    })
}

fn measure(items: u64, threads: usize, trigger: Trigger) -> Result<Measured> {
    let data = tempfile::tempdir()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?.to_string();
    let context =
        StreamingContext::builder("latency").data_dir(data.path()).trigger(trigger).partitions(threads).build();
    let receiver: Arc<dyn Receiver> = Arc::new(TcpClient::new(address, 1));
    context
        .receiver_stream::<String>("lines", vec![receiver], Arc::new(TextFormat::default()))?
        .flat_map::<Str, _>(|line, out| out.extend(line.split(' ')))
        .map(|word| (Str::from(word), 1_i64))
        .reduce_by_key(|a, b| a + b)
        .view("counts", &["word", "n"]);
    let board = context.board();
    let mut events = board.subscribe();
    context.start()?;
    let (mut socket, _) = listener.accept()?;
    socket.set_nodelay(true)?;
    let start = Instant::now();
    let sent: Arc<Vec<AtomicU64>> = Arc::new((0..items).map(|_| AtomicU64::new(0)).collect());
    let noted = Arc::clone(&sent);
    let sender = thread::spawn(move || -> std::io::Result<()> {
        let mut lines = Vec::new();
        for (tick, first) in (0..).zip((0..items).step_by(usize::try_from(LINES).unwrap_or(1))) {
            let due = start + Duration::from_millis(tick);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            lines.clear();
            for i in first..(first + LINES).min(items) {
                writeln!(lines, "event {} of {}", i % 1000, i % 7)?;
            }
            let now = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            for i in first..(first + LINES).min(items) {
                if let Some(at) = usize::try_from(i).ok().and_then(|i| noted.get(i)) {
                    at.store(now, Relaxed);
                }
            }
            socket.write_all(&lines)?;
        }
        Ok(())
    });
    let done = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&done);
    let bare = thread::spawn(move || late_ticks(&ended));
    let mut measured = Measured { latencies: Vec::new(), late: 0, bare_late: 0, processing: Vec::new(), exact: true };
    let mut counts: BTreeMap<Str, i64> = BTreeMap::new();
    let mut seen = 0_usize;
    while seen < sent.len() {
        match events.blocking_recv()? {
            Event::View(view) => {
                for (word, n) in records_of::<(Str, i64)>(&view.rows)? {
                    *counts.entry(word).or_default() += n;
                }
            }
            Event::Batch(report) => {
                let now = start.elapsed();
                let upto = seen + usize::try_from(report.records_in)?;
                for at in sent.get(seen..upto).ok_or("more records came than were sent")? {
                    measured.latencies.push(now.saturating_sub(Duration::from_nanos(at.load(Relaxed))));
                }
                seen = upto;
                measured.late += usize::from(Duration::from_micros(report.scheduling_delay_us) > INTERVAL);
                measured.processing.push(Duration::from_micros(report.processing_us).as_secs_f64() * 1e3);
            }
            Event::Phase(_) | Event::Failed(_) | Event::Idle => {}
        }
    }
    done.store(true, Relaxed);
    measured.bare_late = bare.join().map_err(|_| "the bare thread panicked")?;
    sender.join().map_err(|_| "the sender panicked")??;
    context.stop(true)?;
    measured.latencies.drain(..WARM.min(measured.latencies.len() / 2));
    measured.exact = counts == expected(items);
    Ok(measured)
}

/// Ticks to which this thread is woken more than an interval late, until `done`.
fn late_ticks(done: &AtomicBool) -> usize {
    let mut due = Instant::now();
    let mut late = 0;
    while !done.load(Relaxed) {
        due += INTERVAL;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        late += usize::from(due.elapsed() > INTERVAL);
    }
    late
}

fn expected(items: u64) -> BTreeMap<Str, i64> {
    let mut counts = BTreeMap::new();
    for i in 0..items {
        for word in format!("event {} of {}", i % 1000, i % 7).split(' ') {
            *counts.entry(Str::from(word)).or_default() += 1;
        }
    }
    counts
}

fn quantile(values: &mut [Duration], q: f64) -> f64 {
    values.sort_unstable();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let at = ((values.len() as f64 - 1.0) * q).max(0.0) as usize;
    values.get(at).map_or(0.0, |v| v.as_secs_f64() * 1e3)
}
