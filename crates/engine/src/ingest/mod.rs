//! From receivers into the log, and from the log into batches.
//!
//! ```text
//! socket ─ Receiver ─ Block ─► Port ─► topic partition ─► TopicSource ─► batch
//!                        ◄─ ack (durable) ─┘      └─ lag too long: the port waits
//! ```
//!
//! Invariant: a receiver has a partition of its own; its records keep their order.

mod dead;
mod letters;
mod past_letters;
mod port;
#[cfg(test)]
mod port_tests;
mod queue;
mod replay;
mod share;
#[cfg(test)]
pub(crate) mod tests;
mod topic_source;
mod unsettled;

pub(crate) use dead::{DeadLetters, dead_schema};
pub use letters::{KeptLetter, LetterFilter, Letters};
pub(crate) use past_letters::{Again, LeftOut, PastLetters, Reads};
pub(crate) use port::{Intakes, is_raw, raw_schema};
pub use queue::QueueSource;
pub(crate) use replay::{REPLAYED, Replays, replayed_schema};
pub use share::DeadShare;
pub(crate) use share::Watch;
pub(crate) use topic_source::{Start, TopicSource};

use crate::batch::Keep;
use std::sync::Arc;
use tidemill_core::{Error, Receiver, Result};
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
        Self { stream: stream.to_string(), receivers, retention, source: Arc::new(TopicSource::received(stream)) }
    }

    /// For people: from where, through which topic, and what that keeps.
    pub(crate) fn describe(&self) -> String {
        let mut from: Vec<String> = self.receivers.iter().map(|receiver| receiver.describe()).collect();
        from.dedup();
        let mut text = format!("{} through topic {}", from.join(" and "), self.stream);
        if let Some(Retention { max_age, max_bytes }) = self.retention {
            let age = max_age.map(|age| format!("{} s", age.as_secs_f64()));
            let bytes = max_bytes.map(|bytes| format!("{bytes} bytes a partition"));
            let kept: Vec<String> = [age, bytes].into_iter().flatten().collect();
            text.push_str(&format!(", which keeps {} at most", kept.join(" and ")));
        }
        text
    }

    /// What batches read.
    pub(crate) fn source(&self) -> Arc<TopicSource> {
        Arc::clone(&self.source)
    }
}

/// A stream that reads a topic which is there, or which another part of the program fills.
#[derive(Debug)]
pub(crate) struct TopicInput {
    pub(crate) stream: String,
    pub(crate) topic: String,
    pub(crate) source: Arc<TopicSource>,
}

impl TopicInput {
    /// Opens it when the log is open and all topics that the program fills are there.
    ///
    /// # Errors
    /// When there is no such topic, or it has other columns than were declared.
    pub(crate) fn open(&self, keep: &Keep) -> Result<()> {
        let Some(topic) = keep.log().topic(&self.topic) else {
            return Err(Error::user(format!(
                "stream `{}`: there is no topic `{}`: make it with `tidemill topic create {}`, or fill it with a sink",
                self.stream, self.topic, self.topic
            )));
        };
        self.source.fits(&self.stream, &topic)?;
        keep.reads(&self.stream, &topic)?;
        self.source.open(&self.stream, topic, &keep.position(&self.stream), 0)
    }
}
