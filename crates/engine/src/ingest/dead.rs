//! Refused records, kept in the topic `<program>.dead`.
//!
//! Letters of a batch are appended at its commit, with the batch's number as
//! the frame's token: a commit that is repeated appends nothing, and one that a
//! crash has kept from being one leaves letters to be settled ([`super::unsettled`]). Letters of
//! receivers (a line over the bound, a gap) belong to no batch. They are durable at once: the
//! receiver may then tell its peer that it needs the record no more, or go on behind it.

use super::{Replays, unsettled::Unsettled};
use arrow_array::{
    RecordBatch,
    builder::{BinaryBuilder, StringBuilder, UInt64Builder},
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tidemill_core::{BatchId, DeadLetter, Error, Result};
use tidemill_store::log::Topic;

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
    kept: Mutex<Kept>,
    /// A receiver's letter came since the last commit, which lets it be run again.
    fresh: AtomicBool,
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
        Ok(Self { topic, kept: Mutex::new(Kept { batch: None, unsettled }), fresh: AtomicBool::new(false) })
    }

    /// Keeps a letter that belongs to no batch; it is durable when this returns.
    ///
    /// # Errors
    /// When the topic can't be written.
    pub(crate) fn now(&self, letter: &DeadLetter) -> Result<()> {
        tracing::warn!(stream = letter.stream, reason = letter.reason, "refused a record");
        // Not among the letters of a batch, and under the token that is there: that of the last batch with letters.
        let _alone = self.kept.lock();
        self.topic.append(0, &rows(&[letter])?, self.topic.resume(0).as_deref())?;
        self.topic.sync_to(0, self.topic.end(0))?;
        self.fresh.store(true, Ordering::Release);
        Ok(())
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

    /// Whether a receiver's letter came since the last commit.
    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh.load(Ordering::Acquire)
    }

    /// A batch is committed: what came before it is settled.
    pub(crate) fn settled(&self) {
        self.fresh.store(false, Ordering::Release);
    }

    /// Whether a life before left letters of a batch that it did not commit.
    pub(crate) fn is_unsettled(&self) -> bool {
        !self.kept.lock().unsettled.is_empty()
    }

    /// Appends the letters of a batch, once; may be repeated. What a life before left of batches that were not
    /// committed stays as far as this one has it, too; of the rest `replays` is told.
    pub(crate) fn commit(&self, batch: BatchId, letters: &[DeadLetter], replays: &Replays) -> Result<()> {
        let mut kept = self.kept.lock();
        if kept.batch != Some(batch) {
            let (new, others) = kept.unsettled.settled(batch, letters);
            if !others.is_empty() {
                let count = others.len();
                tracing::info!(count, "letters of a batch that was not committed: their records are read again");
                replays.note(&others)?;
            }
            if !new.is_empty() {
                self.topic.append(0, &rows(&new)?, Some(&batch.to_string()))?;
            }
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
