//! What passes where: counters of sources, channels and sinks, and the lines that people read.
//!
//! Invariant: an event that a source has taken in is counted once for each channel that it is put into, or as
//! filtered, missed or unrouted: nothing goes uncounted. Written by the parts of a running agent, read by who asks.

use crate::event::Event;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tidemill_core::Error;

/// Counts of one source or sink.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    events: AtomicU64,
    bytes: AtomicU64,
    filtered: AtomicU64,
    missed: AtomicU64,
    unrouted: AtomicU64,
    refused: AtomicU64,
    failures: AtomicU64,
    state: Mutex<String>,
    last_error: Mutex<Option<String>>,
}

/// What the counters of a source or sink say at a time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// Events taken in, or handed on.
    pub events: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Events that an interceptor has left out.
    pub filtered: u64,
    /// Events that an optional channel had no room for, once for each such channel.
    pub missed: u64,
    /// Events that the selector sent nowhere.
    pub unrouted: u64,
    /// Records that could not become events, such as lines over the bound.
    pub refused: u64,
    /// Failures, all of which were tried again.
    pub failures: u64,
    /// How it fares, for people.
    pub state: String,
    /// The newest failure.
    pub last_error: Option<String>,
}

impl Counters {
    fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn delivered(&self, events: &[Event]) {
        Self::add(&self.events, events.len() as u64);
        Self::add(&self.bytes, events.iter().map(|event| event.body.len() as u64).sum());
        self.last_error.lock().take();
    }

    pub(crate) fn filtered(&self, count: u64) {
        Self::add(&self.filtered, count);
    }

    pub(crate) fn missed(&self, count: u64) {
        Self::add(&self.missed, count);
    }

    pub(crate) fn unrouted(&self, count: u64) {
        Self::add(&self.unrouted, count);
    }

    pub(crate) fn refused(&self) {
        Self::add(&self.refused, 1);
    }

    pub(crate) fn failed(&self, error: &Error) {
        Self::add(&self.failures, 1);
        *self.last_error.lock() = Some(error.chain());
    }

    pub(crate) fn says(&self, state: &str) {
        state.clone_into(&mut self.state.lock());
    }

    pub(crate) fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            events: of(&self.events),
            bytes: of(&self.bytes),
            filtered: of(&self.filtered),
            missed: of(&self.missed),
            unrouted: of(&self.unrouted),
            refused: of(&self.refused),
            failures: of(&self.failures),
            state: self.state.lock().clone(),
            last_error: self.last_error.lock().clone(),
        }
    }
}

/// What a channel holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Events that no sink has had.
    pub events: u64,
    /// Whether they survive the process.
    pub durable: bool,
}

/// How an agent fares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Sources by name.
    pub sources: Vec<(String, Counts)>,
    /// Channels by name.
    pub channels: Vec<(String, Held)>,
    /// Sinks by name.
    pub sinks: Vec<(String, Counts)>,
}

impl Status {
    /// One line: `r1 1200 in · c1 30 waiting · k1 1170 out`.
    pub fn line(&self) -> String {
        let mut parts = Vec::new();
        for (name, counts) in &self.sources {
            let mut part = format!("{name} {} in", counts.events);
            for (count, what) in [
                (counts.filtered, "filtered"),
                (counts.missed, "missed by optional channels"),
                (counts.unrouted, "unrouted"),
                (counts.refused, "refused"),
                (counts.failures, "failures"),
            ] {
                if count > 0 {
                    part.push_str(&format!(", {count} {what}"));
                }
            }
            parts.push(part);
        }
        parts.extend(self.channels.iter().map(|(name, held)| format!("{name} {} waiting", held.events)));
        for (name, counts) in &self.sinks {
            let mut part = format!("{name} {} out", counts.events);
            if counts.failures > 0 {
                part.push_str(&format!(", {} failures", counts.failures));
            }
            if let Some(error) = &counts.last_error {
                part.push_str(&format!(" (failing: {error})"));
            }
            parts.push(part);
        }
        parts.join(" · ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_core::Timestamp;

    #[test]
    fn a_line_says_what_went_where() {
        let (source, sink) = (Counters::default(), Counters::default());
        source.delivered(&[Event::new("ebb", Timestamp(0)), Event::new("", Timestamp(0))]);
        source.filtered(3);
        sink.failed(&Error::external("no route"));
        let status = || Status {
            sources: vec![("r1".to_owned(), source.counts())],
            channels: vec![("c1".to_owned(), Held { events: 2, durable: true })],
            sinks: vec![("k1".to_owned(), sink.counts())],
        };
        assert_eq!(status().line(), "r1 2 in, 3 filtered · c1 2 waiting · k1 0 out, 1 failures (failing: no route)");
        assert_eq!(source.counts().bytes, 3);
        sink.delivered(&[]);
        assert_eq!(sink.counts().last_error, None);
    }
}
