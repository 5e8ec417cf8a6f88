//! Output that stages, then commits under the batch's number.
//!
//! ```text
//! stage(7, part 0) ─┐
//! stage(7, part 1) ─┴─► ledger: 7 committed, with the tokens ─► commit(7, tokens)
//! ```
//!
//! Invariant: nothing staged is visible before `commit`; `commit` may be called
//! again with the same tokens, after a crash, and must leave the same output.
//! A sink that can't says so in [`Sink::guarantee`].

use crate::{BatchId, Claim, OffsetRange, Result, Timestamp};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use std::{fmt, path::Path};

/// What a sink promises when a batch runs twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Guarantee {
    /// The output shows each batch once.
    ExactlyOnce,
    /// The output may show a batch again after a crash.
    AtLeastOnce,
}

/// What `stage` leaves for `commit`; kept in the ledger, so small and plain text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedPart(pub String);

/// Output.
#[async_trait]
pub trait Sink: Send + Sync + fmt::Debug {
    /// For people: `files out/top (json)`.
    fn describe(&self) -> String;

    /// What it promises.
    fn guarantee(&self) -> Guarantee;

    /// What it has for itself alone: a second sink of a program that takes the
    /// same is refused. `None` when several may write there side by side.
    fn claim(&self) -> Option<Claim> {
        None
    }

    /// Whether it can take rows of these columns, as far as that is known
    /// without connecting or writing: a program is checked by it before it starts.
    ///
    /// # Errors
    /// With the column, and what to change.
    fn takes(&self, schema: &SchemaRef) -> Result<()> {
        let _ = schema;
        Ok(())
    }

    /// Says, before `open`, who writes (`program/output`: stays the same over restarts) and which directory is the
    /// sink's own for what it stages on this machine. Not called for a program without a data directory.
    fn place(&self, owner: &str, aside: &Path) {
        let _ = (owner, aside);
    }

    /// Called once before the first batch with the columns to come.
    ///
    /// # Errors
    /// When the sink can't take these columns.
    async fn open(&self, schema: SchemaRef) -> Result<()> {
        let _ = schema;
        Ok(())
    }

    /// Writes one partition of a batch where nobody sees it yet, durably.
    /// `None` when there was nothing to write. Replaces what an earlier,
    /// uncommitted run of the same batch staged.
    async fn stage(
        &self,
        batch: BatchId,
        time: Timestamp,
        part: usize,
        rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>>;

    /// Makes the batch visible. Idempotent.
    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()>;

    /// What [`Sink::undo`] does, in words that follow the sink's name: `moves
    /// their files aside`. `None` when the sink can't take anything back: then a
    /// program that is rewound asks whether what it wrote may stay.
    fn undoes(&self) -> Option<String> {
        None
    }

    /// Of a sink that can't take anything back: what becomes of what it wrote, for people.
    fn stays(&self) -> String {
        "it stays, and what is computed anew comes after it".to_string()
    }

    /// Takes back what the batches after `to`, up to `upto`, have shown: the
    /// program was rewound, and what comes in their place has other numbers.
    /// Called after `open`, again after a crash, and so idempotent.
    async fn undo(&self, to: BatchId, upto: BatchId) -> Result<()> {
        let _ = (to, upto);
        Ok(())
    }

    /// The topic of the program's own log that it fills; `None` for all that write elsewhere.
    /// A topic goes with the data directory: a copy has its own, and a rewind cuts it.
    fn topic(&self) -> Option<&str> {
        None
    }

    /// Of a sink into a topic: where the rows of these parts will lie. Called when the
    /// commit of the batch before has ended; the ledger keeps it with the batch's own.
    ///
    /// # Errors
    /// When the parts are not its own.
    fn written(&self, parts: &[StagedPart]) -> Result<Vec<OffsetRange>> {
        let _ = parts;
        Ok(Vec::new())
    }

    /// Removes what uncommitted batches staged; called at start with the last
    /// committed batch, after that batch's `commit` was repeated.
    async fn recover(&self, last_committed: Option<BatchId>) -> Result<()> {
        let _ = last_committed;
        Ok(())
    }
}
