//! More than a program can take: a slow sink, a signal under load, queries without an end.

use crate::{
    run::{Ended, PATIENCE, run, start},
    tries::landed,
};
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use rustix::process::Signal;
use std::{
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Instant,
};
use tidemill::{
    BatchId, Duration, Options, Result, Timestamp,
    connectors::format::TextFormat,
    core::{Block, Clock, Guarantee, Intake, ManualClock, Receiver, Sink, StagedPart, Stop},
    store::{Past, RealDisk, disk::SimDisk},
};

const QUIET: [&str; 6] = ["run", "p.sql", "--headless", "--no-web", "--data", "d"];

/// Numbers without an end, as fast as they are read.
const NUMBERS: &str = r#"
CREATE STREAM numbers WITH (connector = 'generator', rows_per_plan = '20000');
CREATE SINK out WITH (connector = 'files', path = 'out', format = 'csv');
INSERT INTO out SELECT "offset" AS n FROM numbers;
CREATE VIEW total AS SELECT count(*) AS n, max("offset") AS most FROM numbers;
"#;

/// All numbers that the sink shows, in order.
fn shown(dir: &Path) -> Vec<u64> {
    let files = fs::read_dir(dir.join("out")).unwrap().map(|entry| entry.unwrap().path());
    let visible = files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("batch-"));
    let mut all: Vec<u64> = visible
        .flat_map(|path| {
            let text = fs::read_to_string(path).unwrap();
            text.lines().skip(1).map(|line| line.parse().unwrap()).collect::<Vec<u64>>()
        })
        .collect();
    all.sort_unstable();
    all
}

#[test]
fn a_signal_under_load_leaves_nothing_to_run_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("p.sql"), NUMBERS).unwrap();
    let mut last = 0;
    for life in 0..2 {
        let mut running = start(dir.path(), &[&QUIET[..], &["--interval", "20ms"]].concat(), "");
        for _ in 0..3 {
            running.wait_for("total: ");
        }
        let asked = Instant::now();
        running.signal(Signal::TERM);
        let ended = running.end();
        let seconds = asked.elapsed().as_secs_f64();
        ended.code(0);
        landed(format_args!("life {life}: ended {seconds:.1} s after SIGTERM under load"));
        assert!(seconds < 30.0, "it took {seconds} s");
        let past = Past::read(&RealDisk, &dir.path().join("d/programs/p/ledger")).unwrap().unwrap();
        assert_eq!(past.planned(), None, "no batch was begun and not committed");
        let now = past.last().unwrap().batch.0;
        assert!(now > last, "batches went on after {last}: {now}");
        last = now;
        let numbers = shown(dir.path());
        assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>(), "each number once, up to the end");
    }
}

/// Sends numbered lines as fast as it may.
#[derive(Debug)]
struct Flood {
    blocks: u64,
    sent: Arc<AtomicU64>,
}

const BLOCK: usize = 64;
const LINE: usize = 100;

#[async_trait]
impl Receiver for Flood {
    fn describe(&self) -> String {
        "a flood".to_string()
    }
    async fn run(&self, intake: Arc<dyn Intake>, _stop: Stop) -> Result<()> {
        for block in 0..self.blocks {
            let line = |row| format!("{:0LINE$}", block * BLOCK as u64 + row as u64);
            intake.append(Block::from_records((0..BLOCK).map(line)), None).await?;
            self.sent.fetch_add(BLOCK as u64, SeqCst);
        }
        Ok(())
    }
}

/// A sink that takes a hundred intervals for what comes in one.
#[derive(Debug)]
struct Slow {
    clock: Arc<ManualClock>,
    taken: Arc<Mutex<Vec<u64>>>,
    sent: Arc<AtomicU64>,
    /// The most that was sent and not yet taken.
    behind: Arc<AtomicU64>,
}

#[async_trait]
impl Sink for Slow {
    fn describe(&self) -> String {
        "a slow sink".to_string()
    }
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }
    async fn stage(
        &self,
        _batch: BatchId,
        _time: Timestamp,
        _part: usize,
        mut rows: BoxStream<'_, Result<arrow_array::RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        while let Some(rows) = rows.next().await {
            use arrow_array::cast::AsArray;
            let rows = rows?;
            let mut taken = self.taken.lock().unwrap();
            let lines = arrow_cast::cast(rows.column(0), &arrow_schema::DataType::Utf8).unwrap();
            taken.extend(lines.as_string::<i32>().iter().flatten().map(|line| line.parse::<u64>().unwrap()));
            let behind = self.sent.load(SeqCst).saturating_sub(taken.len() as u64);
            self.behind.fetch_max(behind, SeqCst);
            // A millisecond a line, which is what a hundred intervals of a flood are.
            self.clock.advance(Duration::from_millis(rows.num_rows() as u64));
        }
        Ok(None)
    }
    async fn commit(&self, _batch: BatchId, _parts: &[StagedPart]) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_sink_at_a_hundredth_of_the_rate_holds_the_sender_and_then_drains() {
    const BLOCKS: u64 = 2_000;
    const LAG: u64 = 256 << 10;
    const INTERVAL: Duration = Duration::from_millis(10);
    let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_000)));
    let (sent, behind, taken) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default(), Arc::default());
    let context = tidemill::context("slow")
        .interval(INTERVAL)
        .partitions(1)
        .clock(Arc::clone(&clock) as Arc<dyn Clock>)
        .disk(Arc::new(SimDisk::new()))
        .data_dir("/d")
        .max_lag_bytes(LAG)
        .build();
    let text = TextFormat::from_options(&Options::new("s", [("format", "text")]), None).unwrap();
    let flood = Flood { blocks: BLOCKS, sent: Arc::clone(&sent) };
    let lines = context.receiver_stream::<String>("lines", vec![Arc::new(flood)], Arc::new(text)).unwrap();
    let slow = Slow {
        clock: Arc::clone(&clock),
        taken: Arc::clone(&taken),
        sent: Arc::clone(&sent),
        behind: Arc::clone(&behind),
    };
    lines.to_sink(Arc::new(slow));
    context.start().unwrap();
    let all = BLOCKS * BLOCK as u64;
    let (until, mut queued) = (Instant::now() + PATIENCE, 0);
    while (taken.lock().unwrap().len() as u64) < all {
        // Time is what the sink takes, and what the program waits until the next batch: however fast the machine is.
        if let Some(tick) = clock.waited_for().filter(|tick| *tick <= clock.now().plus(INTERVAL)) {
            clock.set(tick.max(clock.now()));
        }
        queued = queued.max(context.board().reports().iter().map(|report| report.queued).max().unwrap_or(0));
        assert!(Instant::now() < until, "it does not drain: {:?}", context.board().program());
        std::thread::yield_now();
    }
    context.stop(true).unwrap();
    assert_eq!(*taken.lock().unwrap(), (0..all).collect::<Vec<_>>(), "each line once, in order");
    let behind = behind.load(SeqCst) * LINE as u64;
    landed(format_args!("{all} lines, at most {behind} bytes and {queued} batches behind"));
    // What the sender may be ahead, what a batch reads meanwhile, and the block that was let through.
    assert!(behind <= 3 * LAG, "{behind} bytes were sent and not taken");
    assert!(queued <= 10, "{queued} batches were queued");
    assert!(behind > LAG / 4, "the sink was never behind: {behind} bytes");
}

/// Gives up an append that waits for room, as a server does whose client has gone, and appends again when there is some.
#[derive(Debug)]
struct GivesUp {
    disk: SimDisk,
    /// Whether the program waited while there was no room, and what it says since.
    told: std::sync::mpsc::Sender<()>,
    go_on: Arc<tokio::sync::Notify>,
}

#[async_trait]
impl Receiver for GivesUp {
    fn describe(&self) -> String {
        "one that gives up".to_string()
    }
    async fn run(&self, intake: Arc<dyn Intake>, _stop: Stop) -> Result<()> {
        self.disk.set_space(Some(0));
        let waiting = intake.append(Block::from_records(["a"]), None);
        assert!(tokio::time::timeout(Duration::from_millis(50), waiting).await.is_err(), "there is no room");
        self.told.send(()).unwrap();
        self.go_on.notified().await;
        self.disk.set_space(None);
        intake.append(Block::from_records(["b"]), None).await?;
        self.told.send(()).unwrap();
        Ok(())
    }
}

#[test]
fn a_program_is_ready_again_though_whoever_found_no_room_gave_up() {
    let disk = SimDisk::new();
    let (told, heard) = std::sync::mpsc::channel();
    let go_on = Arc::new(tokio::sync::Notify::new());
    let receiver = GivesUp { disk: disk.clone(), told, go_on: Arc::clone(&go_on) };
    let context = tidemill::context("full")
        .trigger(tidemill::Trigger::Asap)
        .clock(Arc::new(ManualClock::at(Timestamp::from_millis(1_000))))
        .disk(Arc::new(disk))
        .data_dir("/d")
        .build();
    let text = TextFormat::from_options(&Options::new("s", [("format", "text")]), None).unwrap();
    let lines = context.receiver_stream::<String>("lines", vec![Arc::new(receiver)], Arc::new(text)).unwrap();
    lines.foreach_batch(|_, _: Vec<String>| Ok(()));
    context.start().unwrap();
    heard.recv_timeout(PATIENCE).unwrap();
    assert!(context.board().program().error.is_some(), "it waits for room");
    go_on.notify_one();
    heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!(context.board().program().error, None);
    context.stop(true).unwrap();
}

/// Runs a query and gives how it ended and the most memory that its process had.
fn query(dir: &Path, query: &str) -> (Ended, u64) {
    let running = start(dir, &["sql", "--data", "d", "-e", query], "");
    let mut most = 0;
    while fs::read_to_string(format!("/proc/{}/status", running.id())).is_ok_and(|text| text.contains("VmHWM")) {
        most = most.max(peak_of(running.id()));
        std::thread::yield_now();
    }
    (running.end(), most)
}

fn peak_of(id: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) << 10
}

#[test]
#[ignore = "half a minute on two cores; ci/reliability runs it"]
fn queries_that_are_too_big_are_refused_within_their_memory() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &["topic", "create", "t", "--data", "d"], "").code(0);
    run(dir.path(), &["produce", "t", "--data", "d"], &"a line\n".repeat(100)).code(0);
    let (small, base) = query(dir.path(), "SELECT count(*) AS n FROM t");
    small.code(0);
    const LIMIT: u64 = 256 << 20;
    let many = |name| format!("(SELECT unnest(range(1, 200000)) AS n) {name}");
    let (a, b) = (many("a"), many("b"));
    for (text, told) in [
        ("SELECT unnest(generate_series(1, 9000000000)) AS n".to_string(), "`generate_series` would make"),
        ("SELECT repeat('x', 2000000000) AS x".to_string(), "`repeat` would make 2000000000 bytes"),
        (format!("SELECT a.n, b.n AS m FROM {a} CROSS JOIN {b}"), "the answer has over 256 MiB"),
        (format!("SELECT a.n, b.n AS m FROM {a} CROSS JOIN {b} ORDER BY m, 1"), "Resources exhausted"),
        (format!("SELECT a.n % 7 AS k, array_agg(b.n) AS l FROM {a} CROSS JOIN {b} GROUP BY 1"), "Resources exhausted"),
        (
            format!("SELECT sum(b.n) OVER (PARTITION BY a.n % 3 ORDER BY b.n) AS s FROM {a} CROSS JOIN {b}"),
            "Resources exhausted",
        ),
    ] {
        let begun = Instant::now();
        let (ended, most) = query(dir.path(), &text);
        let grown = most.saturating_sub(base);
        ended.code(1).says(&["error: ", told]);
        landed(format_args!("{} MiB more, {:.1} s: {text}", grown >> 20, begun.elapsed().as_secs_f64()));
        assert!(grown <= LIMIT / 2 * 3, "{} MiB for {text}", grown >> 20);
    }
}
