//! An event: headers, a body, and when the agent took it in; the model is Flume's.
//!
//! Invariant: a body is not copied on its way from a source to a sink; events of one read share its buffer. Only where
//! few of them stay in memory they get bytes of their own, so that they don't hold all of it (see the inlet).
//! Made by sources, changed by interceptors, kept by channels, given to sinks.

use bytes::Bytes;
use std::collections::BTreeMap;
use tidemill_core::{Block, Timestamp};

/// Named texts that travel with an event; by name, so that what is written of them is the same each time.
pub type Headers = BTreeMap<String, String>;

/// What passes through an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Named texts.
    pub headers: Headers,
    /// The record.
    pub body: Bytes,
    /// When the agent took it in.
    pub timestamp: Timestamp,
}

impl Event {
    /// An event without headers.
    pub fn new(body: impl Into<Bytes>, timestamp: Timestamp) -> Self {
        Self { headers: Headers::new(), body: body.into(), timestamp }
    }

    /// What it takes of memory and of a channel's bound, in bytes; about.
    pub fn size(&self) -> u64 {
        let headers: usize = self.headers.iter().map(|(key, value)| key.len() + value.len() + 64).sum();
        (headers + self.body.len() + 64) as u64
    }
}

/// The records of a block as events without headers, over the block's own bytes.
pub fn events_of(block: Block, now: Timestamp) -> Vec<Event> {
    let Block { bytes, spans, .. } = block;
    let bytes = shared(bytes);
    spans.iter().map(|span| Event::new(bytes.slice(span.start as usize..span.end as usize), now)).collect()
}

/// Bytes of an Arrow buffer, uncopied.
pub(crate) fn shared(buffer: arrow_buffer::Buffer) -> Bytes {
    struct Owner(arrow_buffer::Buffer);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            self.0.as_slice()
        }
    }
    Bytes::from_owner(Owner(buffer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_share_the_bytes_of_their_block() {
        let block = Block::from_records(["ebb", "", "flow"]);
        let start = block.bytes.as_ptr();
        let events = events_of(block, Timestamp(7));
        let bodies: Vec<&[u8]> = events.iter().map(|event| &event.body[..]).collect();
        assert_eq!(bodies, [&b"ebb"[..], b"", b"flow"]);
        assert!(events.iter().all(|event| event.timestamp == Timestamp(7) && event.headers.is_empty()));
        assert_eq!(events[0].body.as_ptr(), start);
        assert_eq!(events[2].body.as_ptr() as usize, start as usize + 3);
    }
}
