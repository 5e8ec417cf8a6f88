//! What every source and every sink must pass, and an intake for tests.
//!
//! A new source calls [`check_source`], a new sink [`check_sink`]; both panic
//! with what is wrong. Receivers are tested against a [`Recorder`].
//!
//! Invariant: the suites know only the traits, so whoever passes them can be
//! run, replayed and recovered by the engine.

use crate::backoff::splitmix64;
use arrow_array::{Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use async_trait::async_trait;
use futures::{StreamExt, stream};
use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};
use tidemill_core::{
    Ack, BatchId, Block, Budget, Chunk, DeadLetter, Intake, OffsetRange, PartitionId, Position, Result, Shape, Sink,
    Source, StagedPart, Timestamp,
};
use tokio::sync::watch;

/// What a range gave: offset and record (or row, or reason of a refusal) in order.
pub type Records = Vec<(u64, Vec<u8>)>;

/// Everything that a source has, read within large budgets.
///
/// # Panics
/// When a plan or a read fails.
pub async fn read_all(source: &dyn Source) -> BTreeMap<PartitionId, Records> {
    let mut position = Position::new();
    let budget = Budget { records: u64::MAX, bytes: u64::MAX, parallelism: 1 };
    let mut all = BTreeMap::new();
    for _ in 0..1000 {
        let ranges = source.plan(&position, budget).await.expect("a plan");
        if !take(source, &mut position, &ranges, &mut all).await {
            break;
        }
    }
    all
}

/// Reads ranges that were planned at `position`; whether there was something in them.
async fn take(
    source: &dyn Source,
    position: &mut Position,
    ranges: &[OffsetRange],
    all: &mut BTreeMap<PartitionId, Records>,
) -> bool {
    let mut progress = false;
    for range in ranges {
        if let Some(at) = position.get(&range.partition) {
            assert_eq!(*at, range.start, "ranges of {} touch", range.partition);
        }
        let records = read(source, range).await;
        for (offset, _) in &records {
            assert!(*offset >= range.start.0 && *offset < range.end.0, "offset {offset} lies outside of {range}");
        }
        assert!(records.is_sorted_by(|a, b| a.0 < b.0), "each offset within {range} has one record");
        all.entry(range.partition.clone()).or_default().extend(records);
        position.insert(range.partition.clone(), range.end);
        progress |= !range.is_empty();
    }
    progress
}

/// Reads a range. A refusal may come behind the block that it lies within, so
/// the records are sorted by their offsets.
///
/// # Panics
/// When that fails.
pub async fn read(source: &dyn Source, range: &OffsetRange) -> Records {
    let mut records = Records::new();
    let mut chunks = source.read(range);
    while let Some(chunk) = chunks.next().await {
        match chunk.expect("a chunk") {
            Chunk::Raw(block) => {
                records.extend(block.records().enumerate().map(|(row, r)| (block.offset(row).0, r.to_vec())));
            }
            Chunk::Columns { rows, base, .. } => {
                let row = |i| format!("{:?}", rows.slice(i, 1).columns()).into_bytes();
                records.extend((0..rows.num_rows()).map(|i| (base.0 + i as u64, row(i))));
            }
            Chunk::Refused { offset, reason, .. } => records.push((offset.0, reason.into_bytes())),
        }
    }
    records.sort_by_key(|(offset, _)| *offset);
    records
}

/// Checks a source that has something and gets no more while this runs:
/// reading again gives the same, any budgets give the same, ranges touch, and
/// it ends. Gives all its records.
///
/// # Panics
/// When the source breaks its contract.
pub async fn check_source(source: &dyn Source, seed: u64) -> BTreeMap<PartitionId, Records> {
    let all = read_all(source).await;
    assert!(all.values().any(|records| !records.is_empty()), "the source has records");
    assert!(!source.describe().is_empty());
    let mut random = seed;
    let mut below = |most: u64| {
        random = random.wrapping_add(1);
        splitmix64(random) % most + 1
    };
    for round in 0..5 {
        let (mut position, mut again, mut planned) = (Position::new(), BTreeMap::new(), Vec::new());
        loop {
            let parallelism = usize::try_from(below(8)).unwrap_or(1);
            let most = 1 << below(20);
            let budget = Budget { records: below(most), bytes: below(most * 64), parallelism };
            let ranges = source.plan(&position, budget).await.expect("a plan");
            let repeated = source.plan(&position, budget).await.expect("a plan");
            assert_eq!(ranges, repeated, "a plan depends on the position and the budget only");
            if !take(source, &mut position, &ranges, &mut again).await {
                break;
            }
            planned.extend(ranges);
        }
        assert_eq!(again, all, "round {round}: other budgets give the same records");
        let mut replayed: BTreeMap<PartitionId, Records> = BTreeMap::new();
        for range in &planned {
            replayed.entry(range.partition.clone()).or_default().extend(read(source, range).await);
        }
        assert_eq!(replayed, all, "round {round}: the same ranges give the same records");
        if let (Shape::Columns(schema), Some(range)) = (source.shape(), planned.first()) {
            check_projection(source, range, schema.fields().len()).await;
        }
        assert_eq!(source.lag(&position).await.expect("a lag"), 0, "nothing is behind at the end");
    }
    all
}

/// Fewer columns, in another order, are those of the whole rows.
async fn check_projection(source: &dyn Source, range: &OffsetRange, columns: usize) {
    let rows = |chunk| match chunk {
        Chunk::Columns { rows, .. } => rows,
        other => panic!("a source of columns gave {other:?}"),
    };
    for projection in [(0..columns).rev().collect(), vec![columns - 1], vec![]] {
        let mut whole = source.read(range);
        let mut some = source.read_columns(range, &projection);
        while let Some(chunk) = whole.next().await {
            let expected = rows(chunk.expect("a chunk")).project(&projection).expect("a column of the schema");
            let got = rows(some.next().await.expect("as many chunks").expect("a chunk"));
            assert_eq!(got, expected, "columns {projection:?} of {range}");
        }
        assert!(some.next().await.is_none(), "as many chunks");
    }
}

/// Two columns, `n` and `word`, for sinks.
///
/// # Panics
/// Never: the columns fit the schema.
pub fn rows(numbers: impl IntoIterator<Item = i64>) -> RecordBatch {
    let numbers: Vec<i64> = numbers.into_iter().collect();
    let words = StringArray::from_iter_values(numbers.iter().map(|n| format!("word-{n}")));
    let schema = Schema::new(vec![Field::new("n", DataType::Int64, false), Field::new("word", DataType::Utf8, false)]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(Int64Array::from(numbers)), Arc::new(words)])
        .expect("the columns fit")
}

/// Stages `rows` as one part of a batch.
///
/// # Panics
/// When the sink fails.
pub async fn stage(sink: &dyn Sink, batch: u64, part: usize, batches: Vec<RecordBatch>) -> Option<StagedPart> {
    let rows = stream::iter(batches.into_iter().map(Ok)).boxed();
    sink.stage(BatchId(batch), Timestamp::from_millis(1000), part, rows).await.expect("staged")
}

/// Checks a sink that promises exactly once. `open` gives a new one at the same
/// place, as after a crash; `seen` gives what its readers see, in any order.
///
/// # Panics
/// When the sink breaks its contract.
pub async fn check_sink<S: PartialEq + Debug>(open: impl Fn() -> Arc<dyn Sink>, seen: impl Fn() -> Vec<S>) {
    let (nothing, schema) = (seen(), rows([]).schema());
    let sink = open();
    sink.open(Arc::clone(&schema)).await.expect("opened");
    sink.recover(None).await.expect("recovered");

    let mut parts = vec![stage(&*sink, 1, 0, vec![rows([1, 2]), rows([3])]).await.expect("a part")];
    parts.extend(stage(&*sink, 1, 1, vec![rows([4])]).await);
    assert_eq!(seen(), nothing, "what is staged is not seen");
    sink.commit(BatchId(1), &parts).await.expect("committed");
    let first = seen();
    assert_ne!(first, nothing, "what is committed is seen");
    sink.commit(BatchId(1), &parts).await.expect("committed again");
    assert_eq!(seen(), first, "a repeated commit changes nothing");

    // A crash between staging and the ledger: the next life repeats the last commit and recovers.
    stage(&*sink, 2, 0, vec![rows([50, 51])]).await;
    drop(sink);
    let sink = open();
    sink.open(Arc::clone(&schema)).await.expect("opened");
    sink.commit(BatchId(1), &parts).await.expect("committed by the next life");
    sink.recover(Some(BatchId(1))).await.expect("recovered");
    assert_eq!(seen(), first, "what was staged and not committed is gone");

    // The same batch again, other rows: only these count.
    stage(&*sink, 2, 0, vec![rows([60, 61])]).await;
    let part = stage(&*sink, 2, 0, vec![rows([5])]).await.expect("a part");
    // A crash between the ledger and the commit.
    drop(sink);
    let sink = open();
    sink.open(schema).await.expect("opened");
    sink.commit(BatchId(2), std::slice::from_ref(&part)).await.expect("committed by the next life");
    sink.recover(Some(BatchId(2))).await.expect("recovered");
    let second = seen();
    assert_ne!(second, first, "the second batch is seen");
    sink.commit(BatchId(2), &[part]).await.expect("committed again");
    assert_eq!(seen(), second, "a repeated commit changes nothing");

    assert_eq!(stage(&*sink, 3, 0, vec![]).await, None, "a quiet batch stages nothing");
    assert_eq!(stage(&*sink, 3, 1, vec![rows([])]).await, None, "nor do empty rows");
    sink.commit(BatchId(3), &[]).await.expect("committed");
    assert_eq!(seen(), second, "a quiet batch changes nothing");
}

/// Checks that a commit may end anywhere: each of `rounds` batches is committed by lives that end after one step,
/// then after two, and so on, until one comes to its end; `seen` gives the numbers
/// that readers see.
///
/// # Panics
/// When a row is lost or seen twice.
pub async fn check_cut_off(open: impl Fn() -> Arc<dyn Sink>, seen: impl Fn() -> Vec<i64>, rounds: u64) {
    let (schema, mut written) = (rows([]).schema(), Vec::new());
    for batch in 1..=rounds {
        let sink = open();
        sink.open(Arc::clone(&schema)).await.expect("opened");
        sink.recover((batch > 1).then(|| BatchId(batch - 1))).await.expect("recovered");
        let base = i64::try_from(batch).expect("few rounds") * 100;
        let mut parts = vec![stage(&*sink, batch, 0, vec![rows(base..base + 40)]).await.expect("a part")];
        parts.extend(stage(&*sink, batch, 1, vec![rows(base + 40..base + 60)]).await);
        drop(sink);
        for steps in 1.. {
            let sink = open();
            sink.open(Arc::clone(&schema)).await.expect("opened");
            let ended = {
                let mut commit = sink.commit(BatchId(batch), &parts);
                let mut left = steps;
                std::future::poll_fn(move |context| match commit.as_mut().poll(context) {
                    std::task::Poll::Ready(done) => std::task::Poll::Ready(Some(done)),
                    std::task::Poll::Pending if left == 1 => std::task::Poll::Ready(None),
                    std::task::Poll::Pending => {
                        left -= 1;
                        std::task::Poll::Pending
                    }
                })
                .await
            };
            if let Some(done) = ended {
                done.expect("committed");
                break;
            }
        }
        written.extend(base..base + 60);
        let mut seen = seen();
        seen.sort_unstable();
        assert_eq!(seen, written, "each row once");
    }
}

/// What a [`Recorder`] has heard.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// Records in order.
    pub records: Vec<Vec<u8>>,
    /// Blocks appended.
    pub blocks: usize,
    /// Refused lines: reason and what was kept.
    pub refused: Vec<(String, Vec<u8>)>,
    /// States reported.
    pub states: Vec<String>,
    /// The last resume token.
    pub resume: Option<String>,
}

/// An intake that keeps everything in memory.
#[derive(Debug)]
pub struct Recorder {
    heard: Mutex<Heard>,
    changed: watch::Sender<()>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { heard: Mutex::default(), changed: watch::channel(()).0 }
    }
}

impl Recorder {
    /// An intake whose last durable block left this token.
    pub fn resuming(token: Option<String>) -> Arc<Self> {
        let recorder = Self::default();
        recorder.change(|heard| heard.resume = token);
        Arc::new(recorder)
    }

    /// All so far.
    pub fn heard(&self) -> Heard {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until something holds of what was heard, and gives it.
    ///
    /// # Panics
    /// When it never does, which would otherwise hang the test.
    pub async fn until(&self, holds: impl Fn(&Heard) -> bool) -> Heard {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                let heard = self.heard();
                if holds(&heard) {
                    return heard;
                }
                // The sender lives as long as this recorder.
                let _alive = changed.changed().await;
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(30), wait).await;
        waited.unwrap_or_else(|_| panic!("waited in vain; heard {:?}", self.heard()))
    }

    fn change(&self, change: impl FnOnce(&mut Heard)) {
        change(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
    }
}

/// A log that is behind: appends wait until they are let through. All else goes to a [`Recorder`].
#[derive(Debug)]
pub struct Behind {
    /// What was let through.
    pub heard: Arc<Recorder>,
    room: tokio::sync::Semaphore,
    waiting: watch::Sender<usize>,
}

impl Behind {
    /// One that lets nothing through yet.
    pub fn new() -> Arc<Self> {
        let (heard, room) = (Recorder::resuming(None), tokio::sync::Semaphore::new(0));
        Arc::new(Self { heard, room, waiting: watch::channel(0).0 })
    }

    /// Waits until so many appends have begun.
    pub async fn entered(&self, count: usize) {
        let mut waiting = self.waiting.subscribe();
        // The sender is our own.
        let _alive = waiting.wait_for(|waiting| *waiting >= count).await;
    }

    /// Lets so many appends through.
    pub fn let_through(&self, count: usize) {
        self.room.add_permits(count);
    }
}

#[async_trait]
impl Intake for Behind {
    async fn append(&self, block: Block, resume: Option<String>) -> Result<Ack> {
        self.waiting.send_modify(|waiting| *waiting += 1);
        // It is never closed.
        if let Ok(room) = self.room.acquire().await {
            room.forget();
        }
        self.heard.append(block, resume).await
    }
    async fn refuse(&self, letter: DeadLetter) -> Result<()> {
        self.heard.refuse(letter).await
    }
    fn resume(&self) -> Option<String> {
        self.heard.resume()
    }
    fn report(&self, state: &str) {
        self.heard.report(state);
    }
}

#[async_trait]
impl Intake for Recorder {
    async fn append(&self, block: Block, resume: Option<String>) -> Result<Ack> {
        let (done, ack) = Ack::pair();
        self.change(|heard| {
            heard.records.extend(block.records().map(<[u8]>::to_vec));
            heard.blocks += 1;
            heard.resume = resume.or(heard.resume.take());
        });
        // Nobody may be waiting for it.
        let _unheard = done.send(Ok(()));
        Ok(ack)
    }

    async fn refuse(&self, letter: DeadLetter) -> Result<()> {
        self.change(|heard| heard.refused.push((letter.reason, letter.raw)));
        Ok(())
    }

    fn resume(&self) -> Option<String> {
        self.heard().resume
    }

    fn report(&self, state: &str) {
        self.change(|heard| heard.states.push(state.to_string()));
    }
}
