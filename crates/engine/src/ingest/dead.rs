//! Refused records, kept in the topic `<program>.dead`.
//!
//! Letters of a batch are appended at its commit, with the batch's number as
//! the frame's token: a commit that is repeated appends nothing, and one that a
//! crash has kept from being one leaves letters to be settled ([`super::unsettled`]). Letters of
//! receivers (a line over the bound) wait here for the next commit; should the
//! process die first, the peer's line is refused again or gone with the
//! connection, as it was never acked.

use super::{Replays, unsettled::Unsettled};
use arrow_array::{
    RecordBatch,
    builder::{BinaryBuilder, StringBuilder, UInt64Builder},
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use parking_lot::Mutex;
use std::sync::Arc;
use tidemill_core::{BatchId, DeadLetter, Error, Result};
use tidemill_store::log::Topic;

/// Letters of receivers that wait for a commit; beyond it the oldest is dropped and counted in the log.
const WAITING: usize = 10_000;

/// Columns of the topic.
pub(crate) fn dead_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("stream", DataType::Utf8, false),
        Field::new("partition", DataType::Utf8, false),
        Field::new("offset", DataType::UInt64, false),
        Field::new("batch", DataType::UInt64, true),
        Field::new("reason", DataType::Utf8, false),
        Field::new("raw", DataType::Binary, false),
    ]))
}

/// The dead letters of a program.
#[derive(Debug)]
pub(crate) struct DeadLetters {
    topic: Arc<Topic>,
    waiting: Mutex<Vec<DeadLetter>>,
    kept: Mutex<Kept>,
}

/// What is known of the topic's end.
#[derive(Debug, Default)]
struct Kept {
    /// The batch whose letters were appended last in this life.
    batch: Option<BatchId>,
    /// Letters of a life before that no commit has settled yet.
    unsettled: Unsettled,
}

impl DeadLetters {
    /// Those of a program whose last commit is that of batch `last`.
    ///
    /// # Errors
    /// When letters of a later batch are there and can't be read.
    pub(crate) fn open(topic: Arc<Topic>, replays: &Replays, last: BatchId) -> Result<Self> {
        let unsettled = Unsettled::find(&topic, &replays.noted()?, last)?;
        replays.settled_upto(unsettled.first().unwrap_or(topic.end(0).0));
        Ok(Self { topic, waiting: Mutex::default(), kept: Mutex::new(Kept { batch: None, unsettled }) })
    }

    /// Keeps a letter that belongs to no batch, for the next commit.
    pub(crate) fn now(&self, letter: DeadLetter) {
        tracing::warn!(stream = letter.stream, reason = letter.reason, "refused a record");
        let mut waiting = self.waiting.lock();
        if waiting.len() == WAITING {
            let lost = waiting.remove(0);
            tracing::error!(
                stream = lost.stream,
                reason = lost.reason,
                "dropped the oldest refused record: too many between two batches"
            );
        }
        waiting.push(letter);
    }

    /// Where they are kept.
    pub(super) fn topic(&self) -> &Topic {
        &self.topic
    }

    /// Appends what a rebuild after batch `after` left out.
    pub(super) fn rebuilt(&self, after: BatchId, letters: &[DeadLetter]) -> Result<()> {
        // The token stays that of a batch: letters of earlier ones are not appended again.
        let last = self.topic.resume(0).and_then(|token| token.parse().ok()).unwrap_or(0).max(after.0);
        self.topic.append(0, &rows(&letters.iter().collect::<Vec<_>>())?, Some(&last.to_string()))?;
        self.topic.sync_to(0, self.topic.end(0))
    }

    /// Letters of receivers that no commit has kept yet.
    pub(crate) fn waiting(&self) -> Vec<DeadLetter> {
        self.waiting.lock().clone()
    }

    /// Whether a letter waits for a commit.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.lock().is_empty()
    }

    /// Whether a life before left letters of a batch that it did not commit.
    pub(crate) fn is_unsettled(&self) -> bool {
        !self.kept.lock().unsettled.is_empty()
    }

    /// Appends the letters of a batch, and `waiting` ones with them, once; may be repeated. What a life before
    /// left of batches that were not committed stays as far as this one has it, too; of the rest `replays` is told.
    pub(crate) fn commit(
        &self,
        batch: BatchId,
        letters: &[DeadLetter],
        waiting: &[DeadLetter],
        replays: &Replays,
    ) -> Result<()> {
        let mut kept = self.kept.lock();
        if kept.batch != Some(batch) {
            let (mut new, others) = kept.unsettled.settled(batch, letters);
            if !others.is_empty() {
                let count = others.len();
                tracing::info!(count, "letters of a batch that was not committed: their records are read again");
                replays.note(&others)?;
            }
            new.extend(waiting);
            if !new.is_empty() {
                self.topic.append(0, &rows(&new)?, Some(&batch.to_string()))?;
            }
            let mut left = self.waiting.lock();
            let kept_now = waiting.len().min(left.len());
            left.drain(..kept_now);
            *kept = Kept { batch: Some(batch), unsettled: Unsettled::default() };
        }
        self.topic.sync_to(0, self.topic.end(0))
    }
}

pub(super) fn rows(letters: &[&DeadLetter]) -> Result<RecordBatch> {
    let (mut stream, mut partition, mut reason) = (StringBuilder::new(), StringBuilder::new(), StringBuilder::new());
    let (mut offset, mut batch, mut raw) = (UInt64Builder::new(), UInt64Builder::new(), BinaryBuilder::new());
    for letter in letters {
        stream.append_value(&letter.stream);
        partition.append_value(&letter.partition.0);
        offset.append_value(letter.offset.0);
        batch.append_option(letter.batch.map(|b| b.0));
        reason.append_value(&letter.reason);
        raw.append_value(&letter.raw);
    }
    let columns: Vec<arrow_array::ArrayRef> = vec![
        Arc::new(stream.finish()),
        Arc::new(partition.finish()),
        Arc::new(offset.finish()),
        Arc::new(batch.finish()),
        Arc::new(reason.finish()),
        Arc::new(raw.finish()),
    ];
    RecordBatch::try_new(dead_schema(), columns).map_err(|e| Error::internal("rows of dead letters").because(e))
}
