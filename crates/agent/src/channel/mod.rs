//! Channels: where events wait between a source and its sinks.
//!
//! A put takes all of its events in or none, and says when they are safe; a take is handed on and then committed, or
//! rolled back. [`file`] is a topic of the embedded log and survives what may crash, [`memory`] is fast and goes with
//! the process.
//!
//! Invariant: a channel is bounded; one that is full lets its sources wait, and with them their peers. Between a put
//! that was acked and a commit an event is lost by nothing but, in memory, the end of the process.

pub(crate) mod file;
pub(crate) mod memory;
pub(crate) mod place;
pub(crate) mod rows;
#[cfg(test)]
mod tests;

use crate::event::Event;
use file::{FileChannel, Token};
use memory::Memory;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tidemill_core::{Ack, Error, Result, Stop, Timestamp};
use tokio::sync::watch;

/// Bytes of events that a sink takes at once, about.
pub(crate) const TAKE_BYTES: u64 = 16 << 20;

/// What a sink has taken and not committed.
#[derive(Debug)]
pub(crate) struct Taken {
    /// Where it begins: an offset, or the take's number.
    pub(crate) from: u64,
    /// Behind its last offset.
    pub(crate) to: u64,
    /// The events.
    pub(crate) events: Vec<Event>,
}

/// A channel and those who wait for it.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) name: String,
    kind: Kind,
    /// Counts what may let a sink go on: new events, and such as were given back.
    news: watch::Sender<u64>,
    /// Counts what may let a source go on.
    room: watch::Sender<u64>,
}

#[derive(Debug)]
enum Kind {
    /// With what sinks left; it is kept only where the agent has a data directory.
    Memory(Arc<(Memory, Mutex<Left>)>),
    File(Arc<FileChannel>),
}

/// What the sinks of a channel in memory left, and where that is kept.
#[derive(Debug, Default)]
struct Left {
    place: place::Place,
    file: Option<place::PlaceFile>,
}

impl Channel {
    /// A channel in memory; `kept` has what its sinks leave, where there is a data directory.
    pub(crate) fn memory(name: &str, memory: Memory, kept: Option<(place::PlaceFile, place::Place)>) -> Self {
        let left = kept.map_or_else(Left::default, |(file, place)| Left { place, file: Some(file) });
        Self::of(name, Kind::Memory(Arc::new((memory, Mutex::new(left)))))
    }

    /// A durable channel.
    pub(crate) fn file(name: &str, file: FileChannel) -> Self {
        Self::of(name, Kind::File(Arc::new(file)))
    }

    fn of(name: &str, kind: Kind) -> Self {
        Self { name: name.to_owned(), kind, news: watch::Sender::new(0), room: watch::Sender::new(0) }
    }

    /// Whether what it holds survives the process.
    pub(crate) fn is_durable(&self) -> bool {
        matches!(self.kind, Kind::File(_))
    }

    /// Events that are not committed.
    pub(crate) fn len(&self) -> u64 {
        match &self.kind {
            Kind::Memory(memory) => memory.0.len(),
            Kind::File(file) => file.len(),
        }
    }

    /// Where a source goes on.
    pub(crate) fn token(&self, source: &str) -> Option<Token> {
        match &self.kind {
            Kind::Memory(..) => None,
            Kind::File(file) => file.token(source),
        }
    }

    /// Takes all of the events in, or none: `None` when there is no room now. The ack completes when they are as safe
    /// as the channel makes them.
    ///
    /// # Errors
    /// When the log refuses: retryable while the disk is full; nothing was taken in.
    pub(crate) fn try_put(
        self: &Arc<Self>,
        events: &mut Vec<Event>,
        source: &str,
        token: Option<&Token>,
    ) -> Result<Option<Ack>> {
        let (done, ack) = Ack::pair();
        let put = match &self.kind {
            Kind::Memory(memory) => {
                let put = memory.0.put(events);
                if put {
                    // Whoever put may not care for the ack.
                    let _unheard = done.send(Ok(()));
                    self.news.send_modify(|n| *n += 1);
                }
                put
            }
            Kind::File(file) => {
                let channel = Arc::downgrade(self);
                let tell = move |result| {
                    // First the news, so that who was acked may take.
                    if let Some(channel) = channel.upgrade() {
                        channel.news.send_modify(|n| *n += 1);
                    }
                    drop(done.send(result));
                };
                file.put(events, source, token, Box::new(tell))?
            }
        };
        Ok(put.then_some(ack))
    }

    /// Takes all of the events in, as soon as there is room.
    ///
    /// # Errors
    /// As [`Channel::try_put`]; and when the agent stops meanwhile.
    pub(crate) async fn put(
        self: &Arc<Self>,
        events: &mut Vec<Event>,
        source: &str,
        token: Option<&Token>,
        stop: &Stop,
    ) -> Result<Ack> {
        let mut room = self.room.subscribe();
        loop {
            room.mark_unchanged();
            if let Some(ack) = self.try_put(events, source, token)? {
                return Ok(ack);
            }
            tokio::select! {
                // The channel lives as long as this call.
                _alive = room.changed() => {}
                () = stop.stopped() => {
                    return Err(Error::external(format!("the agent stops and channel \"{}\" is full", self.name)));
                }
            }
        }
    }

    /// The oldest events that nobody has; `None` when there are none now.
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) async fn try_take(&self, most: usize) -> Result<Option<Taken>> {
        match &self.kind {
            Kind::Memory(memory) => Ok(memory.0.take(most)),
            Kind::File(file) => {
                let file = Arc::clone(file);
                blocking(move || file.take(most, TAKE_BYTES)).await
            }
        }
    }

    /// Changes when something was committed.
    pub(crate) fn room(&self) -> watch::Receiver<u64> {
        self.room.subscribe()
    }

    /// Changes when there may be something to take.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// A sink has what it took, and leaves something for its next start.
    ///
    /// # Errors
    /// When that can't be kept: then it may be called again.
    pub(crate) async fn commit(&self, taken: &Arc<Taken>, sink: &str, left: Option<String>) -> Result<()> {
        match &self.kind {
            Kind::Memory(memory) => {
                let (memory, kept) = &**memory;
                if let Some(left) = left {
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.place.sinks.insert(sink.to_owned(), left);
                    if let Some(file) = &kept.file {
                        file.write(&kept.place)?;
                    }
                }
                memory.commit(taken);
            }
            Kind::File(file) => {
                let (file, taken, sink) = (Arc::clone(file), Arc::clone(taken), sink.to_owned());
                blocking(move || file.commit(&taken, &sink, left)).await?;
            }
        }
        self.room.send_modify(|n| *n += 1);
        Ok(())
    }

    /// Keeps what a sink leaves before it has had anything.
    ///
    /// # Errors
    /// When that can't be kept.
    pub(crate) async fn leave(&self, sink: &str, left: String) -> Result<()> {
        match &self.kind {
            Kind::Memory(memory) => {
                let kept = &memory.1;
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.place.sinks.insert(sink.to_owned(), left);
                kept.file.as_ref().map_or(Ok(()), |file| file.write(&kept.place))
            }
            Kind::File(file) => {
                let (file, sink) = (Arc::clone(file), sink.to_owned());
                blocking(move || file.leave(&sink, left)).await
            }
        }
    }

    /// A sink gives back what it took.
    pub(crate) fn roll_back(&self, taken: &Taken) {
        match &self.kind {
            Kind::Memory(memory) => memory.0.roll_back(taken),
            Kind::File(file) => file.roll_back(taken),
        }
        self.news.send_modify(|n| *n += 1);
    }

    /// What a sink left with its last commit.
    pub(crate) fn left_by(&self, sink: &str) -> Option<String> {
        match &self.kind {
            Kind::Memory(memory) => {
                memory.1.lock().unwrap_or_else(PoisonError::into_inner).place.sinks.get(sink).cloned()
            }
            Kind::File(file) => file.left_by(sink),
        }
    }

    /// Frees what need not be kept.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) async fn tidy(&self, now: Timestamp) -> Result<()> {
        match &self.kind {
            Kind::Memory(..) => Ok(()),
            Kind::File(file) => {
                let file = Arc::clone(file);
                blocking(move || file.tidy(now)).await
            }
        }
    }
}

/// Runs what blocks on a thread where that is fine.
pub(crate) async fn blocking<T: Send + 'static>(run: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(run).await.map_err(|e| Error::internal("a blocking step panicked").because(e))?
}

/// The channels of an agent by name.
pub(crate) type Channels = BTreeMap<String, Arc<Channel>>;
