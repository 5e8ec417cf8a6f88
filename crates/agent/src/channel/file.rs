//! A durable channel: a topic of the embedded log, and how far its sinks are.
//!
//! ```text
//! put ─► topic (one partition, group commit) ─► durable: acked, and only now handed out
//!                                                       │
//!          place file ◄─ commit (what was taken, what the sink left) ◄─ take
//! ```
//!
//! The position before which all is committed pins the topic, so that retention never passes it. With a source's
//! events goes a token in the same frame, by which the source goes on after a restart.
//!
//! Invariant: an event that was acked is handed out until a sink has committed it, whatever crashes meanwhile, and
//! never after that. Events that are not durable are not handed out: a crash could take them back from under a sink
//! that has them. All calls block. Called by [`super::Channel`].

use super::{
    Taken,
    place::{Place, PlaceFile},
    rows,
};
use crate::event::Event;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tidemill_core::{Error, Offset, Result, Timestamp};
use tidemill_store::{
    disk::Disk,
    log::{Log, OnDurable, Retention, Sync, Topic, TopicConfig},
};

/// What of a topic stays after its sinks have had it, unless the channel says otherwise.
pub(crate) const KEEP_BYTES: u64 = 64 << 20;

/// How a source goes on after a restart: what it left with the events that are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Token {
    /// Grows by one with each of the source's puts.
    pub(crate) number: u64,
    /// The source's own words; `None` before its first.
    pub(crate) resume: Option<String>,
}

/// How a durable channel is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileConfig {
    /// Events that are not committed, at most.
    pub(crate) capacity: u64,
    /// When what is put is made durable.
    pub(crate) sync: Sync,
    /// What stays of events that all sinks have had.
    pub(crate) keep: Retention,
}

/// A durable channel.
#[derive(Debug)]
pub(crate) struct FileChannel {
    topic: Arc<Topic>,
    owner: String,
    capacity: u64,
    /// By source; the lock also keeps the order of puts.
    tokens: Mutex<BTreeMap<String, Token>>,
    takes: Mutex<Takes>,
    file: PlaceFile,
    /// `low` of the place, for puts.
    low: AtomicU64,
}

#[derive(Debug)]
struct Takes {
    place: Place,
    /// Ranges that sinks have in hand.
    in_hand: BTreeMap<u64, u64>,
}

impl FileChannel {
    /// The channel `name` of `agent`, made if it is not there.
    ///
    /// # Errors
    /// When its files can't be read, or don't belong together.
    pub(crate) fn open(
        log: &Log,
        disk: Arc<dyn Disk>,
        dir: &Path,
        agent: &str,
        name: &str,
        config: &FileConfig,
    ) -> Result<Self> {
        let topic_name = topic_name(agent, name);
        let topic = match log.topic(&topic_name) {
            Some(topic) => topic,
            None => {
                let made =
                    TopicConfig { sync: config.sync, retention: config.keep, ..TopicConfig::new(rows::schema()) };
                log.create_topic(&topic_name, &made)?
            }
        };
        if topic.config().schema != rows::schema() {
            return Err(Error::user(format!(
                "channel \"{name}\" would be kept in the topic \"{topic_name}\", which holds something else: rename the channel"
            )));
        }
        // A topic keeps for good what it was made with.
        if topic.config().sync != config.sync {
            let [made, wanted] = [topic.config().sync, config.sync].map(sync_text);
            return Err(Error::user(format!(
                "channel \"{name}\" was made with `sync = \"{made}\"`, which can't be changed to \"{wanted}\": write the \
                 first, or give the channel another name (what still waits in it stays under this one)"
            )));
        }
        topic.set_retention(config.keep)?;
        let (file, place) = PlaceFile::open(disk, dir, name)?;
        let end = topic.end(0).0;
        if place.done.values().next_back().copied().unwrap_or(0).max(place.low) > end {
            return Err(file.beyond(&place, end));
        }
        let tokens = match topic.resume(0) {
            Some(text) => serde_json::from_str(&text).map_err(|e| {
                Error::external(format!("the tokens in topic \"{topic_name}\" can't be read")).because(e)
            })?,
            None => BTreeMap::new(),
        };
        // No program has such a name.
        let owner = format!("agent:{agent}");
        topic.pin(&owner, &BTreeMap::from([(0, Offset(place.low))]))?;
        let low = AtomicU64::new(place.low);
        let takes = Mutex::new(Takes { place, in_hand: BTreeMap::new() });
        Ok(Self { topic, owner, capacity: config.capacity, tokens: Mutex::new(tokens), takes, file, low })
    }

    /// Where a source goes on.
    pub(crate) fn token(&self, source: &str) -> Option<Token> {
        self.tokens.lock().get(source).cloned()
    }

    /// Appends all of the events, or none, with the source's token; whether there was room. No events and a token keep
    /// just that. `on_durable` is called when they are durable or never will be; not when nothing was appended.
    ///
    /// # Errors
    /// When the log refuses: then nothing was appended.
    pub(crate) fn put(
        &self,
        events: &mut Vec<Event>,
        source: &str,
        token: Option<&Token>,
        on_durable: OnDurable,
    ) -> Result<bool> {
        let rows = rows::rows_of(events)?;
        let mut tokens = self.tokens.lock();
        let held = self.len();
        if held > 0 && !events.is_empty() && held + events.len() as u64 > self.capacity {
            return Ok(false);
        }
        let text = match token {
            Some(token) => {
                let before = tokens.insert(source.to_owned(), token.clone());
                let text =
                    serde_json::to_string(&*tokens).map_err(|e| Error::internal("tokens of sources").because(e))?;
                Some((before, text))
            }
            None => None,
        };
        match self.topic.append_with(0, &rows, text.as_ref().map(|(_, text)| text.as_str()), on_durable) {
            Ok(_) => {
                events.clear();
                Ok(true)
            }
            Err(error) => {
                // What was not appended is not where the source goes on.
                match text {
                    Some((Some(before), _)) => drop(tokens.insert(source.to_owned(), before)),
                    Some((None, _)) => drop(tokens.remove(source)),
                    None => {}
                }
                Err(error)
            }
        }
    }

    /// The oldest durable events that nobody has, at most `most` of them and about `bytes`; `None` when there are none.
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) fn take(&self, most: usize, bytes: u64) -> Result<Option<Taken>> {
        let (from, to) = {
            let mut takes = self.takes.lock();
            let Some((from, to)) = takes.free(self.topic.durable_end(0).0, most as u64) else { return Ok(None) };
            takes.in_hand.insert(from, to);
            (from, to)
        };
        let mut events = Vec::new();
        let read = (|| {
            let mut size = 0;
            for rows in self.topic.read(0, Offset(from), Offset(to)) {
                let before = events.len();
                rows::events_in(&rows?.rows, &mut events)?;
                size += events[before..].iter().map(Event::size).sum::<u64>();
                if size >= bytes {
                    break;
                }
            }
            Ok(())
        })();
        let end = from + events.len() as u64;
        let mut takes = self.takes.lock();
        if let Err(error) = read {
            takes.in_hand.remove(&from);
            return Err(error);
        }
        takes.in_hand.insert(from, end);
        Ok(Some(Taken { from, to: end, events }))
    }

    /// A sink has what it took; durable when this returns, with what the sink leaves.
    ///
    /// # Errors
    /// When the disk refuses: then the sink still has it in hand, and this may be called again.
    pub(crate) fn commit(&self, taken: &Taken, sink: &str, left: Option<String>) -> Result<()> {
        let mut takes = self.takes.lock();
        let mut place = takes.place.clone();
        place.add(taken.from, taken.to);
        if let Some(left) = left {
            place.sinks.insert(sink.to_owned(), left);
        }
        self.file.write(&place)?;
        let low = place.low;
        takes.place = place;
        takes.in_hand.remove(&taken.from);
        // Under the lock still: of two that commit at once, the one behind must not be told before the other.
        self.low.store(low, Ordering::Release);
        self.topic.pin(&self.owner, &BTreeMap::from([(0, Offset(low))]))
    }

    /// Keeps what a sink leaves before it has had anything; durable when this returns.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn leave(&self, sink: &str, left: String) -> Result<()> {
        let mut takes = self.takes.lock();
        let mut place = takes.place.clone();
        place.sinks.insert(sink.to_owned(), left);
        self.file.write(&place)?;
        takes.place = place;
        Ok(())
    }

    /// A sink gives back what it took.
    pub(crate) fn roll_back(&self, taken: &Taken) {
        self.takes.lock().in_hand.remove(&taken.from);
    }

    /// What a sink left with its last commit.
    pub(crate) fn left_by(&self, sink: &str) -> Option<String> {
        self.takes.lock().place.sinks.get(sink).cloned()
    }

    /// Events that are not committed.
    pub(crate) fn len(&self) -> u64 {
        // Those that were committed out of turn count until the ones before them are, too.
        self.topic.end(0).0.saturating_sub(self.low.load(Ordering::Acquire))
    }

    /// Frees what retention no longer keeps.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn tidy(&self, now: Timestamp) -> Result<()> {
        self.topic.apply_retention(now).map(drop)
    }
}

impl Takes {
    /// The first range before `end` that is neither committed nor in hand.
    fn free(&self, end: u64, most: u64) -> Option<(u64, u64)> {
        let mut at = self.place.low;
        loop {
            let (from, to) = self.place.open_part(at, end)?;
            match self.in_hand.range(..=from).next_back() {
                Some((_, past)) if *past > from => at = *past,
                _ => {
                    let to = self.in_hand.range(from..).next().map_or(to, |(start, _)| to.min(*start));
                    return Some((from, to.min(from.saturating_add(most))));
                }
            }
        }
    }
}

/// As it is written in an agent's file.
fn sync_text(sync: Sync) -> String {
    match sync {
        Sync::Always => "0s".to_owned(),
        Sync::Every(span) => format!("{span:?}"),
        Sync::Never => "never".to_owned(),
    }
}

/// The topic of a channel.
pub(crate) fn topic_name(agent: &str, channel: &str) -> String {
    format!("{agent}.{channel}")
}
