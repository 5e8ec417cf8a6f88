//! The changes of a collection, from a place on.
//!
//! The server is asked for what comes behind the last change; it answers when
//! there is something, or with nothing after a second. What it has at hand goes
//! to the log before it is waited for more. Now and then the place is kept while
//! nothing comes, since the server's history may be shorter than a silence.
//!
//! Invariant: what was read and not handed on is read again after a break, from the
//! place of the last block. Called by the tail's session.

use super::{Basket, MongoTail, PACE, Session, Start, change::Change, change::What, place::Place};
use crate::{
    http::failure::Failure,
    mongo::server::{COMMAND, Server, told},
    social::collect::{Ended, Out},
};
use futures::future::poll_immediate;
use mongodb::{
    bson::{
        Bson, Document, RawDocumentBuf, Timestamp as ServerTime, deserialize_from_bson, serialize_to_raw_document_buf,
    },
    change_stream::{ChangeStream, event::ResumeToken},
    error::ErrorKind,
    options::FullDocumentType,
};
use std::{pin::pin, time::Duration};
use tidemill_core::{Error, Result, Timestamp};

/// How long the server waits for changes before it answers that there are none.
const WAIT: Duration = Duration::from_secs(1);
/// How long an answer may take. The driver asks again by itself, and without a pause, after an answer that it can't
/// read; this ends that, too.
const READ: Duration = Duration::from_secs(if cfg!(test) { 5 } else { 30 });
/// How often a place is kept while nothing comes.
const KEEP: Duration = Duration::from_secs(60);
/// Codes of "history lost", "invalid resume token", "token not found", "fatal to the changes", "position lost".
const LOST: [i32; 6] = [286, 260, 40585, 40576, 280, 136];
/// Codes of "only on replica sets", "not implemented", "unknown stage", "not supported".
const NONE: [i32; 4] = [40573, 238, 40324, 115];
/// The code of "too large for an answer".
const LARGE: i32 = 10334;

/// From where on changes are heard.
#[derive(Debug, Clone)]
pub(super) enum Begin {
    Now,
    At(Timestamp),
    Behind(RawDocumentBuf),
}

/// What the server answers.
pub(super) enum Next {
    Change(RawDocumentBuf),
    /// Nothing, for now.
    Nothing,
    /// Nothing any more.
    End,
}

/// Changes as they are read.
pub(super) struct Changes {
    stream: ChangeStream<RawDocumentBuf>,
    /// Whether nothing was asked for since it began: its first answer may tell nothing at all.
    fresh: bool,
}

fn failed(tail: &MongoTail, error: &mongodb::error::Error) -> Error {
    let (name, place) = (&tail.collection, &tail.server.place);
    let what = format!("mongodb: can't read the changes of `{name}` at {place}");
    let code = if let ErrorKind::Command(command) = &*error.kind { command.code } else { 0 };
    let because = || Error::user(told(error));
    if LOST.contains(&code) {
        return lost(tail).because(because());
    }
    if NONE.contains(&code) {
        let text = "the server has no change streams: a replica set has them, also one of a single server; else read \
                    by a member that grows, option `cursor`, such as `cursor = '_id'`";
        return Error::user(format!("{what}: {text}")).because(because());
    }
    if code == LARGE {
        let text = "a change is larger than the server can tell (16 MB with all that belongs to it): give the stream \
                    another name and a time behind it in `start`";
        return Error::user(format!("{what}: {text}")).because(because());
    }
    tail.server.failed(&format!("read the changes of `{name}`"), error)
}

/// The server can't go on from the place.
pub(super) fn lost(tail: &MongoTail) -> Error {
    Error::user(format!(
        "mongodb: the server no longer has the changes of `{}` at {} from where this stream was, so what came meanwhile can't be told: give the stream another name, with `start = 'earliest'` to read the collection anew or `'latest'` to leave out what came; and give the server a longer history (its oplog) than the stream may be stopped for",
        tail.collection, tail.server.place
    ))
}

/// A document of the server's as it gives it, from the driver's.
fn raw(token: &ResumeToken) -> Option<RawDocumentBuf> {
    serialize_to_raw_document_buf(token).ok()
}

impl Changes {
    /// Begins to hear changes; all kinds, or those that are records.
    pub(super) async fn open(tail: &MongoTail, begin: &Begin, all: bool, wait: Duration) -> Result<Self, Failure> {
        let documents = tail.documents().await?;
        let mut watch = documents.watch().max_await_time(wait);
        match begin {
            Begin::Now => {}
            Begin::At(at) => {
                let time = u32::try_from(at.millis().div_euclid(1000)).unwrap_or(0);
                watch = watch.start_at_operation_time(ServerTime { time, increment: 0 });
            }
            Begin::Behind(token) => {
                // Also behind the end that a drop makes, where `resumeAfter` is refused.
                let token = Document::try_from(token.clone()).map(Bson::from).ok().map(deserialize_from_bson);
                let Some(Ok(token)) = token else { return Err(lost(tail).into()) };
                let token: ResumeToken = token;
                watch = watch.start_after(token);
            }
        }
        if tail.wants.contains(What::Update) {
            watch = watch.full_document(FullDocumentType::UpdateLookup);
        }
        if !all {
            watch = watch.pipeline([tail.wants.filter()]);
        }
        let opened = tail.server.answer("watch", COMMAND, async { watch.await }).await.map_err(Failure::of)?;
        let stream = opened.map_err(|e| Failure::of(failed(tail, &e)))?.with_type();
        Ok(Self { stream, fresh: true })
    }

    /// The next answer.
    pub(super) async fn next(&mut self, tail: &MongoTail) -> Result<Next, Failure> {
        loop {
            let answer =
                tail.server.answer("read changes", READ, self.stream.next_if_any()).await.map_err(Failure::of)?;
            let fresh = std::mem::take(&mut self.fresh);
            match answer.map_err(|e| Failure::of(failed(tail, &e)))? {
                Some(event) => return Ok(Next::Change(event)),
                None if !self.stream.is_alive() => return Ok(Next::End),
                None if fresh => {}
                None => return Ok(Next::Nothing),
            }
        }
    }

    /// The place behind all that was read.
    pub(super) fn place(&self) -> Option<RawDocumentBuf> {
        self.stream.resume_token().as_ref().and_then(raw)
    }
}

/// The server's time, after which nothing that was read before can have happened; none of a server that tells none.
pub(super) async fn server_time(server: &Server) -> Result<Option<ServerTime>> {
    let ping = mongodb::bson::rawdoc! { "ping": 1 };
    let answer = server.run("ask for the time", ping).await?;
    Ok(answer.get_timestamp("operationTime").ok())
}

/// The time of a place, as servers begin their tokens with it: a kind, seconds, and a number within the second.
pub(super) fn time_of(token: &RawDocumentBuf) -> Option<ServerTime> {
    let hex = token.get_str("_data").ok()?.strip_prefix("82")?;
    let number = |from: usize| u32::from_str_radix(hex.get(from..from + 8)?, 16).ok();
    Some(ServerTime { time: number(0)?, increment: number(8)? })
}

impl Session {
    /// Hands on what was read; it is the place then.
    async fn hand(&mut self, basket: &mut Basket<'_>, behind: Option<&RawDocumentBuf>) -> Result<(), Failure> {
        let Some(behind) = behind else { return Ok(()) };
        let place = Place::Behind(behind.clone());
        basket.hand(|| self.tail.token(&place)).await?;
        self.place = Some(place);
        Ok(())
    }

    /// Follows the changes until they break, or the program stops.
    pub(super) async fn follow(&mut self, out: &Out) -> Result<Ended, Failure> {
        let begin = match (&self.place, self.tail.start) {
            (Some(Place::Behind(token)), _) => Begin::Behind(token.clone()),
            (_, Start::Time(at)) => Begin::At(at),
            _ => Begin::Now,
        };
        let tail = self.tail.clone();
        let Some(opened) = out.unless_stopped(Changes::open(&tail, &begin, false, WAIT)).await else {
            return Ok(Ended::Stopped);
        };
        let mut changes = opened?;
        tail.connected(out);
        let mut behind = if let Begin::Behind(token) = begin { Some(token) } else { changes.place() };
        if let (None, Some(place)) = (&self.place, &behind) {
            // From now on a restart misses nothing, though nothing may have come yet.
            self.keep(Place::Behind(place.clone()), out).await?;
        }
        let mut basket = Basket::new(&tail, out);
        let mut is_over = false;
        loop {
            let asked = out.clock().now();
            let next = {
                let mut next = pin!(changes.next(&tail));
                match poll_immediate(next.as_mut()).await {
                    Some(next) => next,
                    None => {
                        self.hand(&mut basket, behind.as_ref()).await?;
                        let Some(next) = out.unless_stopped(next).await else { return Ok(Ended::Stopped) };
                        next
                    }
                }
            };
            let next = match next {
                Ok(next) => next,
                Err(failure) => {
                    self.hand(&mut basket, behind.as_ref()).await?;
                    return Err(failure);
                }
            };
            match next {
                Next::Change(event) => {
                    let change = Change::read(&event).ok_or_else(no_change)?;
                    if change.what == What::End {
                        out.report("the collection was dropped or renamed: waiting for the next of its name");
                        is_over = true;
                    }
                    if let Some(record) = change.record(&tail.wants) {
                        basket.add(record, &event).await?;
                    }
                    behind = Some(change.token.to_owned());
                    if basket.is_full() {
                        self.hand(&mut basket, behind.as_ref()).await?;
                        if out.is_stopped() {
                            return Ok(Ended::Stopped);
                        }
                    }
                }
                Next::Nothing => {
                    self.hand(&mut basket, behind.as_ref()).await?;
                    if let Some(place) = changes.place().filter(|place| behind.as_ref() != Some(place)) {
                        behind = Some(place.clone());
                        if out.clock().now().since(self.kept) >= KEEP {
                            self.keep(Place::Behind(place), out).await?;
                        }
                    }
                    // The server has waited itself, or else it is not asked without a pause.
                    let pause = out.clock().sleep_until(asked.plus(PACE));
                    if out.unless_stopped(pause).await.is_none() {
                        return Ok(Ended::Stopped);
                    }
                }
                Next::End => {
                    self.hand(&mut basket, behind.as_ref()).await?;
                    return if is_over {
                        Ok(Ended::Again(out.clock().now()))
                    } else {
                        Err(Failure::Network("the server ended the changes".to_string()))
                    };
                }
            }
        }
    }
}

pub(super) fn no_change() -> Failure {
    Failure::Network("the server sent what is no change".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mongodb::bson::rawdoc;

    #[test]
    fn the_time_of_a_token_is_read() {
        let token = rawdoc! { "_data": "8265F0A1B2000000072B0229296E04" };
        assert_eq!(time_of(&token), Some(ServerTime { time: 0x65F0_A1B2, increment: 7 }));
        for other in ["nx:12", "82", "8265F0A1B20000", "82zzzzzzzz00000007", ""] {
            assert_eq!(time_of(&rawdoc! { "_data": other }), None, "{other}");
        }
        assert_eq!(time_of(&rawdoc! { "_data": 82 }), None);
    }
}
