//! Push input, made replayable by the log.
//!
//! A receiver listens or connects, cuts what it hears into [`Block`]s and
//! hands them to its [`Intake`]. It acks its peer, where the protocol can,
//! only after the [`Ack`] says that the block is durable.
//!
//! Invariant: `append` waits while the log or the engine is behind, so a slow
//! engine slows the sender and memory stays bounded. A receiver reconnects by
//! itself; it returns an error only when a human has to act.

use crate::{Block, Claim, DeadLetter, Error, Result};
use async_trait::async_trait;
use std::{fmt, future::Future, pin::Pin, sync::Arc, task};
use tokio::sync::{oneshot, watch};

/// Completes when a block is durable (as far as the topic's `sync` promises).
#[derive(Debug)]
pub struct Ack(oneshot::Receiver<Result<()>>);

impl Ack {
    /// An ack and the handle that completes it.
    pub fn pair() -> (oneshot::Sender<Result<()>>, Self) {
        let (tx, rx) = oneshot::channel();
        (tx, Self(rx))
    }
}

impl Future for Ack {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|done| {
            done.unwrap_or_else(|_| Err(Error::external("the log was closed before the block was durable")))
        })
    }
}

/// Where a receiver hands its blocks: one partition of a topic.
#[async_trait]
pub trait Intake: Send + Sync {
    /// Queues a block; waits while the queue is full. `resume` is kept with the
    /// block, atomically, and is given back by [`Intake::resume`] after a restart.
    /// A block without records keeps its `resume` alone.
    ///
    /// # Errors
    /// When the log is closed or broken: the receiver must stop.
    async fn append(&self, block: Block, resume: Option<String>) -> Result<Ack>;

    /// Keeps a record that can't be appended at all (a line over the bound) as a dead letter. It is durable when
    /// this returns, so that its peer may be told that it is needed no more.
    async fn refuse(&self, letter: DeadLetter) -> Result<()>;

    /// The `resume` of the last block that is durable, from any earlier life.
    fn resume(&self) -> Option<String>;

    /// Says how the receiver fares, for status and pages: `connected to 127.0.0.1:9999`.
    fn report(&self, state: &str);
}

/// Push input.
#[async_trait]
pub trait Receiver: Send + Sync + fmt::Debug {
    /// For people: `tcp 127.0.0.1:9999`.
    fn describe(&self) -> String;

    /// What it reads alone: a second stream of a program that reads the same is
    /// refused. `None` when each reader gets all of it.
    fn claim(&self) -> Option<Claim> {
        None
    }

    /// Receives until `stop`, or until the input ends for good.
    ///
    /// # Errors
    /// When a human has to act; passing faults are retried inside.
    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()>;
}

/// Tells tasks to end. Cloned freely.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

/// The other end of a [`Stop`].
#[derive(Debug)]
pub struct StopHandle(watch::Sender<bool>);

impl StopHandle {
    /// A handle and what it stops.
    pub fn new() -> (Self, Stop) {
        let (tx, rx) = watch::channel(false);
        (Self(tx), Stop(rx))
    }

    /// Stops, for good.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Completes when told to stop, or when the handle is gone.
    pub async fn stopped(&self) {
        let mut rx = self.0.clone();
        // An error means that the handle is gone, which also is a stop.
        let _gone = rx.wait_for(|stop| *stop).await;
    }

    /// Whether told to stop.
    pub fn is_stopped(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}
