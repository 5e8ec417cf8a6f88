//! The engine's side of a receiver: its port into the log.
//!
//! Invariant: a block is appended whole and in order, with its resume token in
//! the same frame; the ack completes when the log says so. While the batches
//! are more than the allowed bytes behind, `append` waits, and with it the
//! receiver's socket. A receiver that fails for good before it has received
//! anything ends the program ([`Intakes::failed`]); one that fails later stands
//! on the board as failed, and the program is not ready.

use super::{Ingest, TopicSource};
use crate::{batch::Keep, config::Config};
use arrow_array::{BinaryArray, RecordBatch};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use futures::FutureExt;
use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tidemill_core::{
    Ack, Blame, Block, Board, Clock, DeadLetter, Duration, Error, InputReport, Intake, Receiver, Result, Stop,
    StopHandle,
};
use tidemill_store::log::Topic;
use tokio::{sync::Mutex, task::JoinSet};

/// Pause between tries when the disk is full.
const RETRY: Duration = Duration::from_millis(200);

/// The column of a receiver's topic.
pub(crate) fn raw_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("value", DataType::Binary, false)]))
}

/// Whether a topic of these columns holds raw records.
pub(crate) fn is_raw(schema: &Schema) -> bool {
    *schema == *raw_schema()
}

/// All receivers of a program.
pub(crate) struct Intakes {
    ports: Vec<(Arc<dyn Receiver>, Arc<Port>)>,
    stop: StopHandle,
    stopping: Stop,
    tasks: parking_lot::Mutex<JoinSet<()>>,
    /// Why the first receiver that could not even begin has ended.
    failed: Arc<parking_lot::Mutex<Option<Error>>>,
    clock: Arc<dyn Clock>,
    board: Arc<Board>,
}

impl std::fmt::Debug for Intakes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} receivers", self.ports.len())
    }
}

impl Intakes {
    /// Opens the topics of all receivers.
    pub(crate) fn open(ingests: Vec<Ingest>, keep: &Keep, config: &Config, board: &Arc<Board>) -> Result<Self> {
        let mut ports = Vec::new();
        let (stop, stopping) = StopHandle::new();
        for ingest in ingests {
            let source = ingest.source();
            let count = u32::try_from(ingest.receivers.len()).map_err(|_| Error::user("too many receivers"))?;
            let topic = keep.topic(&ingest.stream, raw_schema(), count, config.sync, ingest.retention)?;
            source.open(&ingest.stream, Arc::clone(&topic), &keep.position(&ingest.stream), ingest.receivers.len())?;
            for (index, (partition, receiver)) in (0..count).zip(ingest.receivers).enumerate() {
                board.update_input(&ingest.stream, index, |report| report.describe = receiver.describe());
                let port = Port {
                    stream: ingest.stream.clone(),
                    index,
                    partition,
                    topic: Arc::clone(&topic),
                    source: Arc::clone(&source),
                    dead: keep.dead(),
                    board: Arc::clone(board),
                    clock: Arc::clone(&config.clock),
                    max_lag_bytes: config.max_lag_bytes / u64::from(count),
                    stopping: stopping.clone(),
                    order: Mutex::default(),
                    failing: AtomicBool::default(),
                };
                ports.push((receiver, Arc::new(port)));
            }
        }
        let (clock, board) = (Arc::clone(&config.clock), Arc::clone(board));
        let (tasks, failed) = (parking_lot::Mutex::default(), Arc::default());
        Ok(Self { ports, stop, stopping, tasks, failed, clock, board })
    }

    /// Starts all receivers.
    pub(crate) fn start(&self) {
        let mut tasks = self.tasks.lock();
        for (receiver, port) in &self.ports {
            let (receiver, port, stop) = (Arc::clone(receiver), Arc::clone(port), self.stopping.clone());
            let (clock, board, failed) = (Arc::clone(&self.clock), Arc::clone(&self.board), Arc::clone(&self.failed));
            tasks.spawn(async move {
                let mut pause = Duration::from_millis(250);
                loop {
                    let receiving = receiver.run(Arc::clone(&port) as Arc<dyn Intake>, stop.clone());
                    let ended = AssertUnwindSafe(receiving).catch_unwind().await;
                    let ended = ended.unwrap_or_else(|_| Err(Error::internal("a receiver panicked")));
                    let state = match &ended {
                        Ok(()) => "ended".to_string(),
                        Err(error) => format!("failed: {}", error.chain()),
                    };
                    board.update_input(&port.stream, port.index, |report| {
                        if let Err(error) = &ended {
                            report.errors += 1;
                            report.last_error = Some(error.chain());
                        }
                        report.state = state;
                    });
                    match ended {
                        Err(error) if error.is_retryable() && !stop.is_stopped() => {
                            tracing::warn!(
                                stream = port.stream,
                                error = error.chain(),
                                "a receiver failed and will be started again"
                            );
                            tokio::select! {
                                () = clock.sleep_until(clock.now().plus(pause)) => {}
                                () = stop.stopped() => return,
                            }
                            pause = (pause * 2).min(Duration::from_secs(30));
                        }
                        Err(error) => {
                            tracing::error!(stream = port.stream, error = error.chain(), "a receiver ended");
                            let reason = error.chain();
                            if !stop.is_stopped() {
                                port.has_failed(&reason, error, &failed);
                            }
                            port.source.end_one(Some(reason));
                            return;
                        }
                        Ok(()) => {
                            if !stop.is_stopped() {
                                port.source.end_one(None);
                            }
                            return;
                        }
                    }
                }
            });
        }
    }

    /// Why the program can't go on: a receiver failed for good and had received nothing. Told once.
    pub(crate) fn failed(&self) -> Option<Error> {
        self.failed.lock().take()
    }

    /// Stops all receivers and waits until what they hold is appended.
    pub(crate) async fn close(self) {
        self.stop.stop();
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        while tasks.join_next().await.is_some() {}
    }
}

/// One receiver's way into the log.
struct Port {
    stream: String,
    index: usize,
    partition: u32,
    topic: Arc<Topic>,
    source: Arc<TopicSource>,
    dead: Arc<super::DeadLetters>,
    board: Arc<Board>,
    clock: Arc<dyn Clock>,
    /// Bytes that this receiver may be ahead of the batches; then `append` waits.
    max_lag_bytes: u64,
    stopping: Stop,
    /// Held from the wait to the append: blocks keep the order of the calls.
    order: Mutex<()>,
    /// The last try found no room. Whoever appends may give up meanwhile, and another one gets through.
    failing: AtomicBool,
}

impl Port {
    /// Its receiver has ended by an error that no further try mends: fatal when it has received
    /// nothing, as nothing of it ever worked; else told for as long as the program runs.
    fn has_failed(&self, reason: &str, error: Error, fatal: &parking_lot::Mutex<Option<Error>>) {
        let mut received = 0;
        self.board.update_input(&self.stream, self.index, |report| {
            report.failed = Some(reason.to_string());
            received = report.records;
        });
        if received == 0 {
            let what = format!("stream `{}` can't be received", self.stream);
            let error = match error.blame() {
                Blame::User => Error::user(what).because(error),
                Blame::External => Error::external(what).because(error).fatal(),
                Blame::Internal => Error::internal(what).because(error),
            };
            // The first one tells.
            fatal.lock().get_or_insert(error);
        }
    }

    /// Waits while the batches are too far behind.
    async fn wait_for_room(&self) -> Result<()> {
        loop {
            let moved = self.source.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            // A program that is stopping takes what its receivers still hold.
            if self.source.lag_bytes(self.partition)? <= self.max_lag_bytes || self.stopping.is_stopped() {
                return Ok(());
            }
            tokio::select! {
                () = moved => {}
                () = self.stopping.stopped() => {}
            }
        }
    }
}

impl Port {
    /// Tries until it works, or no further try mends it; tells of the trouble meanwhile, and of its end.
    async fn until_done<T>(&self, mut act: impl FnMut() -> Result<T>) -> Result<T> {
        loop {
            match act() {
                Ok(done) => {
                    if self.failing.swap(false, Ordering::AcqRel) {
                        self.board.update_program(|program| program.error = None);
                        self.report("receiving again");
                    }
                    return Ok(done);
                }
                Err(error) if error.is_retryable() && !self.stopping.is_stopped() => {
                    self.failing.store(true, Ordering::Release);
                    self.board.update_program(|program| program.error = Some(error.chain()));
                    self.report(&format!("waiting: {}", error.chain()));
                    self.clock.sleep_until(self.clock.now().plus(RETRY)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

#[async_trait]
impl Intake for Port {
    async fn append(&self, block: Block, resume: Option<String>) -> Result<Ack> {
        let (records, bytes) = (block.len() as u64, block.bytes.len() as u64);
        let rows = rows_of(&block)?;
        let _in_order = self.order.lock().await;
        self.wait_for_room().await?;
        let ack = self
            .until_done(|| {
                let (done, ack) = Ack::pair();
                // The receiver may not care for its ack.
                let tell = Box::new(move |result| drop(done.send(result)));
                self.topic.append_with(self.partition, &rows, resume.as_deref(), tell).map(|_| ack)
            })
            .await?;
        self.source.appended(records, bytes);
        self.board.update_input(&self.stream, self.index, |report| {
            report.records += records;
            report.bytes += bytes;
            // A place that is kept alone is nothing that was received.
            if records > 0 {
                report.last = Some(self.clock.now());
            }
        });
        Ok(ack)
    }

    async fn refuse(&self, mut letter: DeadLetter) -> Result<()> {
        letter.stream.clone_from(&self.stream);
        letter.partition = self.partition.into();
        letter.offset = self.topic.end(self.partition);
        self.until_done(|| tokio::task::block_in_place(|| self.dead.now(&letter))).await?;
        self.board.update_program(|program| program.refused += 1);
        Ok(())
    }

    fn resume(&self) -> Option<String> {
        self.topic.resume(self.partition)
    }

    fn report(&self, state: &str) {
        self.board.update_input(&self.stream, self.index, |report| note(report, state));
    }
}

/// What a receiver says of itself, counted as far as it says that it lost its peer or found it again.
fn note(report: &mut InputReport, state: &str) {
    let again = state.strip_prefix("reconnecting").and_then(|told| told.split_once(": ")).map(|(_, why)| why);
    if let Some(why) = again.or_else(|| state.strip_prefix("waiting: ")) {
        report.errors += 1;
        report.last_error = Some(why.to_string());
    } else if report.state.starts_with("reconnecting") {
        report.reconnects += 1;
    }
    report.state = state.to_string();
}

/// The records of a block, without what lies between them, as rows of a topic.
pub(super) fn rows_of(block: &Block) -> Result<RecordBatch> {
    let total: usize = block.spans.iter().map(|s| (s.end - s.start) as usize).sum();
    let mut values = Vec::with_capacity(total);
    let mut offsets = Vec::with_capacity(block.len() + 1);
    offsets.push(0_i32);
    for record in block.records() {
        values.extend_from_slice(record);
        offsets.push(i32::try_from(values.len()).map_err(|_| Error::internal("a block of over 2 GiB"))?);
    }
    let array = BinaryArray::try_new(OffsetBuffer::new(ScalarBuffer::from(offsets)), Buffer::from(values), None);
    array
        .and_then(|array| RecordBatch::try_new(raw_schema(), vec![Arc::new(array)]))
        .map_err(|e| Error::internal("rows of a block").because(e))
}
