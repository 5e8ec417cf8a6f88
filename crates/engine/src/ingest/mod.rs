//! From receivers into the log, and from the log into batches.
//!
//! ```text
//! socket ─ Receiver ─ Block ─► Port ─► topic partition ─► TopicSource ─► batch
//!                        ◄─ ack (durable) ─┘      └─ lag too long: the port waits
//! ```
//!
//! Invariant: a receiver has a partition of its own; its records keep their order.

mod dead;
mod port;
mod queue;
#[cfg(test)]
pub(crate) mod tests;
mod topic_source;

pub(crate) use dead::{DeadLetters, dead_schema};
pub(crate) use port::Intakes;
pub use queue::QueueSource;
pub(crate) use topic_source::TopicSource;

use std::sync::Arc;
use tidemill_core::Receiver;
use tidemill_store::log::Retention;

/// A stream's receivers and the topic that they will fill.
#[derive(Debug)]
pub(crate) struct Ingest {
    pub(crate) stream: String,
    pub(crate) receivers: Vec<Arc<dyn Receiver>>,
    /// What its topic keeps; `None` leaves a topic that is there as it is.
    pub(crate) retention: Option<Retention>,
    source: Arc<TopicSource>,
}

impl Ingest {
    pub(crate) fn new(stream: &str, receivers: Vec<Arc<dyn Receiver>>, retention: Option<Retention>) -> Self {
        Self { stream: stream.to_string(), receivers, retention, source: Arc::default() }
    }

    /// What batches read.
    pub(crate) fn source(&self) -> Arc<TopicSource> {
        Arc::clone(&self.source)
    }
}
