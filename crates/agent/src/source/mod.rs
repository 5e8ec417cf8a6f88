//! Sources: where events come from.
//!
//! A source of an agent is an [`Origin`]. [`Received`] makes one of any receiver of the registry, [`read`] of any
//! replayable source; [`avro`], [`spool`] and [`seq`] are the agent's own.
//!
//! Invariant: a source waits while its channels are full, and goes on after a restart where its tokens say, if it can.

pub(crate) mod avro;
pub(crate) mod read;
pub(crate) mod seq;
pub(crate) mod spool;

use crate::inlet::Inlet;
use async_trait::async_trait;
use std::sync::Arc;
use tidemill_core::{Claim, Intake, Receiver, Result, Stop};

/// Where events come from.
#[async_trait]
pub(crate) trait Origin: Send + Sync {
    /// For people: `tcp-listen 127.0.0.1:44444`.
    fn describe(&self) -> String;

    /// What it reads alone.
    fn claim(&self) -> Option<Claim> {
        None
    }

    /// Whether what it reads is there now, without reading; `None` when that can't be told.
    fn probe(&self) -> Option<Result<String, String>> {
        None
    }

    /// Hands events on until `stop`, or until there will be no more.
    ///
    /// # Errors
    /// Retryable ones begin it anew after a pause; others end the agent.
    async fn run(&self, inlet: Arc<Inlet>, stop: Stop) -> Result<()>;
}

/// A receiver of the registry.
pub(crate) struct Received(pub(crate) Arc<dyn Receiver>);

#[async_trait]
impl Origin for Received {
    fn describe(&self) -> String {
        self.0.describe()
    }

    fn claim(&self) -> Option<Claim> {
        self.0.claim()
    }

    async fn run(&self, inlet: Arc<Inlet>, stop: Stop) -> Result<()> {
        self.0.run(inlet as Arc<dyn Intake>, stop).await
    }
}
