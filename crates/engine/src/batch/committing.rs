//! Batches that have run and wait for their commit.
//!
//! ```text
//! run      │ 7 │ 8 │ 9 │10 │11 │12 │        each on time
//! commit       │ 7 │ 8: the disk is slow    │ 9 │10 │11 │
//! ```
//!
//! Invariants: batches are committed one at a time, in the order in which they
//! ran; after one that failed none is. What waits is bounded in number and in
//! bytes; beyond that the next batch is late, as it is at once where the run
//! itself waits for the disk. Called by the loop in [`super::pipeline`].

use super::{Trigger, pipeline::Pipeline, run::Ran};
use crate::emit::OutputKind;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tidemill_core::{Error, Result};
use tokio::{sync::mpsc, task::JoinHandle};

/// Batches that may wait while one before them is committed.
pub(super) const WAITING: usize = 16;
/// Bytes of what they gave and changed; a batch beyond it waits for all before.
const BYTES: usize = 64 << 20;

/// The commits that are still to end.
#[derive(Debug)]
pub(super) struct Committing {
    waiting: usize,
    /// With the bytes that each holds.
    queue: Option<mpsc::Sender<(Ran, usize)>>,
    task: Option<JoinHandle<Result<()>>>,
    bytes: Arc<AtomicUsize>,
}

impl Committing {
    /// Of a program that has not run a batch.
    ///
    /// Where batches begin as soon as they can, records wait for the next one rather than a batch for its commit:
    /// it is larger then, and one commit is for all of them. A sink stages on the disk that is waited for, so that
    /// batches could not run on time anyway.
    pub(super) fn of(pipeline: &Pipeline) -> Self {
        let is_timed = matches!(pipeline.config.trigger, Trigger::Every(_));
        let stages = pipeline.outputs.iter().any(|output| matches!(output.kind, OutputKind::Sink(_)));
        let waiting = if is_timed && !stages { WAITING } else { 0 };
        Self { waiting, queue: None, task: None, bytes: Arc::default() }
    }

    /// Whether all that ran is known to be committed.
    pub(super) fn is_settled(&self) -> bool {
        self.task.is_none()
    }

    /// Commits a batch after those before it; waits until it may wait.
    ///
    /// # Errors
    /// That of a commit before it; this one has not happened then.
    pub(super) async fn push(&mut self, pipeline: &Arc<Pipeline>, ran: Ran) -> Result<()> {
        let bytes = if self.waiting > 0 { ran.bytes() } else { 0 };
        if self.waiting == 0 || self.bytes.load(Ordering::Acquire).saturating_add(bytes) > BYTES {
            self.settle().await?;
        }
        let queue = self.queue.get_or_insert_with(|| {
            let (queue, waiting) = mpsc::channel(self.waiting.max(1));
            self.task = Some(tokio::spawn(commit_all(Arc::clone(pipeline), waiting, Arc::clone(&self.bytes))));
            queue
        });
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        if queue.send((ran, bytes)).await.is_err() {
            return self.settle().await;
        }
        Ok(())
    }

    /// Waits until all is committed. Whoever gives up waiting has what goes on still here.
    ///
    /// # Errors
    /// That of the commit that failed.
    pub(super) async fn settle(&mut self) -> Result<()> {
        self.queue = None;
        let Some(task) = self.task.as_mut() else { return Ok(()) };
        let ended = task.await;
        self.task = None;
        self.bytes.store(0, Ordering::Release);
        ended.map_err(|e| Error::internal("a commit panicked").because(e))?
    }

    /// Killed: the commit ends at its next wait, and holds the data directory no longer when this returns.
    pub(super) async fn abort(mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let _killed = task.await;
        }
    }
}

async fn commit_all(
    pipeline: Arc<Pipeline>,
    mut waiting: mpsc::Receiver<(Ran, usize)>,
    held: Arc<AtomicUsize>,
) -> Result<()> {
    while let Some((ran, bytes)) = waiting.recv().await {
        let run = Arc::clone(&ran.run);
        if let Err(error) = pipeline.commit(ran).await {
            pipeline.tell_failed(&run.batch, &run.stages, &error);
            return Err(error);
        }
        held.fetch_sub(bytes, Ordering::AcqRel);
        pipeline.retain_when_due();
        pipeline.tell_of_lags_when_due();
    }
    Ok(())
}
