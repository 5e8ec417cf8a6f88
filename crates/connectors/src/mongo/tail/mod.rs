//! Stream `mongodb`: documents of a collection, as they are inserted, changed and deleted.
//!
//! | Option | Meaning |
//! |---|---|
//! | `url`, `database`, `password_env`, `password_file`, `auth_source` | as the sink `mongodb` has them |
//! | `collection` | the collection that is read |
//! | `changes` | `insert`, `update`, `delete`, with commas: which changes are records (`insert`) |
//! | `change_field` | the member of a record that says which change it is (`_change`); there when other changes than `insert` are read, or it is named |
//! | `start` | `earliest` (what is there, then what comes), `latest`, or a time such as `2026-01-31T15:00:00Z`; `earliest` unless said |
//! | `cursor` | for servers without change streams: the member that grows with each new document, such as `_id` |
//! | `every` | with `cursor`: how often it is looked for new documents (1s) |
//! | `wait_for_writers` | with `cursor`: how long documents wait for those before them, which may come later (2s) |
//! | `max_line` | bytes of a record at most; a longer one is a dead letter (1MB) |
//!
//! The record is the document as JSON, as the history has it. An update is the whole document as it is when the
//! server looks it up; a deletion, and an update of what is gone by then, the document's key.
//!
//! ```text
//! start = 'latest', a time    follow.rs    changes ─► blocks, each with the token behind its last change
//! start = 'earliest'          first.rs     documents by their ids, between changes; then as above
//! cursor = '_id'              poll.rs      documents behind the last one, up to the newest that has aged
//! ```
//!
//! Invariant: the token of a block (`place.rs`) tells a restart all that it needs, and a server that can't go on
//! from it ends the stream with an error: nothing is skipped in silence.

mod change;
#[cfg(test)]
pub(super) mod fake;
mod first;
mod follow;
mod place;
mod poll;
#[cfg(test)]
mod tests;

use self::place::Place;
use super::server::Server;
use crate::{
    format::time::instant,
    http::{Link, failure::Failure},
    lines,
    social::collect::{BLOCK, Collector, Ended, Out, run},
    websocket::link::PLACE,
};
use async_trait::async_trait;
use change::Wants;
use mongodb::{
    Collection,
    bson::{RawDocument, RawDocumentBuf},
};
use std::{sync::Arc, time::Duration};
use tidemill_core::{Error, Input, Intake, Options, Receiver, Result, Stop, Timestamp};

/// Documents that are read together, before the changes that came meanwhile.
const PAGE: usize = 10_000;
/// Of an answer with nothing in it, until the server is asked again, should it not have waited itself.
const PACE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 100 });

/// Where a first start begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    Earliest,
    Latest,
    Time(Timestamp),
}

impl Start {
    fn from_options(options: &Options) -> Result<Self> {
        match options.get("start").unwrap_or("earliest").trim() {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            text => {
                let at = instant(text).filter(|_| text.starts_with(|c: char| c.is_ascii_digit()));
                at.map(|at| Self::Time(Timestamp(at))).ok_or_else(|| {
                    Error::user(format!(
                        "{}: option `start` must be 'earliest', 'latest' or a time such as 2026-05-25T14:00:00Z, not `{text}`",
                        options.owner()
                    ))
                })
            }
        }
    }
}

/// How a server without change streams is asked.
#[derive(Debug, Clone)]
struct Polling {
    cursor: String,
    every: Duration,
    patience: Duration,
}

/// Documents of a collection as they come.
#[derive(Debug, Clone)]
pub struct MongoTail {
    server: Arc<Server>,
    collection: String,
    wants: Wants,
    start: Start,
    polling: Option<Polling>,
    max_line: usize,
    page: usize,
    link: Link,
}

impl MongoTail {
    /// From a stream's options.
    ///
    /// # Errors
    /// When one is missing or wrong, or a password stands in the program.
    pub fn input(options: &Options) -> Result<Input> {
        Ok(Input::Receivers(vec![Arc::new(Self::from_options(options)?)]))
    }

    fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        let server = Arc::new(Server::from_options(options)?);
        let collection = options.require("collection", "it names the collection that is read")?;
        if collection.is_empty() || collection.contains(['$', '\0']) {
            return Err(Error::user(format!("{owner}: option `collection`: `{collection}` can't be its name")));
        }
        let wants = Wants::from_options(options)?;
        let polling = match options.get("cursor") {
            None => {
                if let Some(option) = ["every", "wait_for_writers"].into_iter().find(|o| options.get(o).is_some()) {
                    return Err(Error::user(format!(
                        "{owner}: option `{option}` goes with `cursor` alone: without that the server tells of changes by itself"
                    )));
                }
                None
            }
            Some(cursor) => {
                if cursor.is_empty() || cursor.starts_with('$') || cursor.contains([',', '\0']) {
                    return Err(Error::user(format!(
                        "{owner}: option `cursor` names one member, such as `_id` or `created_at`"
                    )));
                }
                if !wants.is_inserts_alone() {
                    return Err(Error::user(format!(
                        "{owner}: option `cursor`: documents that are looked for are inserts alone; updates and deletions (option `changes`) are told by change streams"
                    )));
                }
                Some(Polling {
                    cursor: cursor.to_string(),
                    every: options.duration("every", Duration::from_secs(1))?.max(Duration::from_millis(10)),
                    patience: options.duration("wait_for_writers", Duration::from_secs(2))?,
                })
            }
        };
        Ok(Self {
            server,
            collection: collection.to_string(),
            wants,
            start: Start::from_options(options)?,
            polling,
            max_line: lines::max_line(options)?,
            page: PAGE,
            link: Link::default(),
        })
    }

    /// `database.collection`.
    fn name(&self) -> String {
        format!("{}.{}", self.server.database, self.collection)
    }

    fn cursor(&self) -> Option<&str> {
        self.polling.as_ref().map(|polling| polling.cursor.as_str())
    }

    async fn documents(&self) -> Result<Collection<RawDocumentBuf>> {
        Ok(self.server.database().await?.collection(&self.collection))
    }

    fn connected(&self, out: &Out) {
        out.report(&format!("connected to {}", self.server.place));
    }

    fn token(&self, place: &Place) -> String {
        place.token(&self.name(), self.cursor())
    }
}

/// Records on their way to the log.
struct Basket<'a> {
    out: &'a Out,
    most: usize,
    records: Vec<Vec<u8>>,
    bytes: usize,
    /// Whether something was refused since the last block.
    refused: bool,
}

impl<'a> Basket<'a> {
    fn new(tail: &MongoTail, out: &'a Out) -> Self {
        Self { out, most: tail.max_line, records: Vec::new(), bytes: 0, refused: false }
    }

    /// Takes a record; one that is too long, or could not be made of `raw`, is a dead letter.
    async fn add(&mut self, record: Result<Vec<u8>>, raw: &RawDocument) -> Result<(), Failure> {
        match record {
            Ok(record) if record.len() <= self.most => {
                self.bytes += record.len() + PLACE;
                self.records.push(record);
            }
            Ok(record) => {
                let (length, most) = (record.len(), self.most);
                let why = format!("a document of {length} bytes, over the bound of {most} (option `max_line`)");
                self.out.refuse(why, &record).await?;
                self.refused = true;
            }
            Err(error) => {
                self.out.refuse(error.chain(), raw.as_bytes()).await?;
                self.refused = true;
            }
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.bytes >= BLOCK
    }

    /// Hands on what there is, with the token that belongs to it.
    async fn hand(&mut self, token: impl FnOnce() -> String) -> Result<(), Failure> {
        if !self.records.is_empty() {
            self.out.put(&self.records, token()).await?;
        } else if self.refused {
            self.out.keep(token()).await?;
        }
        (self.refused, self.bytes) = (false, 0);
        self.records.clear();
        Ok(())
    }
}

/// Follows the changes, or reads what is there first.
struct Session {
    tail: MongoTail,
    place: Option<Place>,
    /// When the place was last kept without records.
    kept: Timestamp,
}

impl Session {
    /// Keeps a place without records.
    async fn keep(&mut self, place: Place, out: &Out) -> Result<(), Failure> {
        out.keep(self.tail.token(&place)).await?;
        self.place = Some(place);
        self.kept = out.clock().now();
        Ok(())
    }
}

#[async_trait]
impl Collector for Session {
    async fn session(&mut self, out: &Out) -> Result<Ended, Failure> {
        match &self.place {
            Some(Place::First(first)) => {
                let first = first.clone();
                self.read_first(Some(first), out).await
            }
            None if self.tail.start == Start::Earliest => self.read_first(None, out).await,
            _ => self.follow(out).await,
        }
    }
}

#[async_trait]
impl Receiver for MongoTail {
    fn describe(&self) -> String {
        let what = if self.polling.is_some() { "documents" } else { "changes" };
        format!("mongodb {}, {what} of {}", self.server.place, self.collection)
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let place = intake.resume().map(|token| Place::parse(&token, &self.name(), self.cursor())).transpose()?;
        match &self.polling {
            None => {
                let session = Session { tail: self.clone(), place, kept: self.link.clock.now() };
                run(session, &self.link, None, intake, stop).await
            }
            Some(polling) => {
                let session = poll::Session::new(self.clone(), polling.clone(), place);
                run(session, &self.link, None, intake, stop).await
            }
        }
    }
}
