//! What is there is read first, and nothing is lost or doubled between that and what comes.
//!
//! ```text
//! hear      changes, from now on; then the newest `_id`, behind which only changes tell
//! page      documents behind the last one, by `_id`                            ┐
//! time      the server's time: all that the page shows happened before it      │ until a page
//! changes   up to that time, to the log as they come                           │ ends the collection
//! page      to the log, but for documents that a change has told already       ┘
//! follow    the changes
//! ```
//!
//! A document that was inserted while this goes on may be in a page, and its
//! insertion is among the changes: the change counts, and the page's is left out.
//! As a page is handed on only behind all changes that it may show, what was
//! inserted and what of it is still to be met in pages is known from the changes
//! alone; so a restart hears them again from the beginning, without handing them
//! on twice, and knows the same.
//!
//! Invariant: memory holds a page, and the ids of at most [`IDS`] documents that were
//! inserted meanwhile and may lie before its end. Called by the tail's session.

use super::{
    Basket, MongoTail, PACE, Session,
    change::{Change, What},
    follow::{Begin, Changes, Next, lost, no_change, server_time, time_of},
    place::{First, Place},
};
use crate::{
    http::failure::Failure,
    mongo::ids::{is_beyond, kind, kinds_after, mark},
    social::collect::{Ended, Out},
};
use mongodb::{
    bson::{Bson, Document, RawBsonRef, RawDocument, RawDocumentBuf, Timestamp as ServerTime, doc},
    options::ReadConcern,
};
use std::{collections::HashSet, time::Duration};
use tidemill_core::{Error, Result};

/// How long the server waits for changes while there is something else to do.
const WAIT: Duration = Duration::from_millis(20);
/// How long its changes may be behind its documents, until that is told.
const SLOW: Duration = Duration::from_secs(30);
/// Bytes of a page from which on it is full.
const PAGE_BYTES: usize = 8 << 20;
/// Documents that were inserted meanwhile, at most; their ids are remembered.
const IDS: usize = if cfg!(test) { 1000 } else { 1_000_000 };

/// What is known of changes while pages are read.
#[derive(Default)]
struct Known {
    /// Marks of documents that were inserted, and not met in a page.
    inserted: HashSet<Vec<u8>>,
    /// Marks of documents that changed otherwise since the page was asked for.
    touched: HashSet<Vec<u8>>,
    /// Whether so many did that they are not remembered: the page is read again.
    is_stale: bool,
    /// The token up to which changes were handed on in an earlier life.
    again: Option<RawDocumentBuf>,
}

/// How the changes up to a time ended.
#[derive(PartialEq, Eq)]
enum Heard {
    All,
    /// The collection is no more.
    Over,
    Stopped,
}

/// A document with the `_id` of another alone.
fn id_of(document: &RawDocument) -> Result<RawDocumentBuf, Failure> {
    let id = document.get("_id").ok().flatten().and_then(|id| Bson::try_from(id).ok());
    let alone = id.and_then(|id| RawDocumentBuf::try_from(&doc! { "_id": id }).ok());
    alone.ok_or_else(|| Failure::Network("the server sent a document without an _id".to_string()))
}

fn id(of: &RawDocument) -> RawBsonRef<'_> {
    of.get("_id").ok().flatten().unwrap_or(RawBsonRef::Null)
}

/// Documents in the order of their ids.
struct Page {
    documents: Vec<RawDocumentBuf>,
    /// Whether there were no more.
    is_last: bool,
}

impl MongoTail {
    /// Documents, as most of the servers have them and will not lose.
    async fn page(&self, filter: Document, order: i32, most: usize) -> Result<Page, Failure> {
        let documents = self.documents().await?;
        let what = format!("read `{}`", self.collection);
        let find = async {
            let find = documents.find(filter).sort(doc! { "_id": order });
            let limit = i64::try_from(most).unwrap_or(i64::MAX);
            let find = find.limit(limit).batch_size(u32::try_from(most).unwrap_or(u32::MAX));
            find.read_concern(ReadConcern::majority()).await
        };
        let mut cursor = self.server.within(&what, find).await.map_err(Failure::of)?;
        let mut page = Page { documents: Vec::new(), is_last: false };
        let mut bytes = 0;
        while bytes < PAGE_BYTES {
            if !self.server.within(&what, cursor.advance()).await.map_err(Failure::of)? {
                page.is_last = page.documents.len() < most;
                break;
            }
            let document = cursor.current().to_owned();
            bytes += document.as_bytes().len();
            page.documents.push(document);
        }
        Ok(page)
    }

    /// The documents behind the last one; of later kinds of ids when those of its kind are all read.
    async fn page_behind(&self, after: Option<&RawDocumentBuf>, is_later: bool) -> Result<Page, Failure> {
        let filter = match after.map(|after| id(after)) {
            None => doc! {},
            Some(after) if is_later => {
                let kinds = kinds_after(kind(after));
                if kinds.is_empty() {
                    return Ok(Page { documents: Vec::new(), is_last: true });
                }
                doc! { "_id": { "$type": kinds } }
            }
            Some(after) => {
                let after = Bson::try_from(after).map_err(|e| Error::internal("mongodb: an id").because(e))?;
                doc! { "_id": { "$gt": after } }
            }
        };
        self.page(filter, 1, self.page).await
    }
}

impl Session {
    /// Reads what is there, from a place on or from the beginning.
    pub(super) async fn read_first(&mut self, place: Option<First>, out: &Out) -> Result<Ended, Failure> {
        let stop = out.stop().clone();
        tokio::select! {
            biased;
            () = stop.stopped() => Ok(Ended::Stopped),
            done = self.reading(place, out) => done,
        }
    }

    async fn reading(&mut self, place: Option<First>, out: &Out) -> Result<Ended, Failure> {
        let tail = self.tail.clone();
        let begin = place.as_ref().map_or(Begin::Now, |place| Begin::Behind(place.from.clone()));
        let mut changes = Changes::open(&tail, &begin, true, WAIT).await?;
        tail.connected(out);
        let mut first = match place {
            Some(first) => first,
            None => {
                let Some(from) = changes.place() else {
                    return Err(Failure::Network("the server names no place in its changes".to_string()));
                };
                let newest = tail.page(doc! {}, -1, 1).await?.documents;
                let Some(newest) = newest.first() else {
                    return self.is_read(from, out).await;
                };
                let first = First { from, events: None, upto: id_of(newest)?, after: None };
                self.keep(Place::First(first.clone()), out).await?;
                first
            }
        };
        let mut known = Known { again: first.events.clone(), ..Known::default() };
        let mut is_later = false;
        loop {
            let page = tail.page_behind(first.after.as_ref(), is_later).await?;
            let time = server_time(&tail.server).await.map_err(Failure::of)?;
            match self.hear(&mut changes, &mut first, &mut known, time, out).await? {
                Heard::All => {}
                Heard::Stopped => return Ok(Ended::Stopped),
                // What was there is gone; what comes under its name is told by changes.
                Heard::Over => return self.is_read(first.events.unwrap_or(first.from), out).await,
            }
            if std::mem::take(&mut known.is_stale) {
                known.touched.clear();
                continue;
            }
            let mut basket = Basket::new(&tail, out);
            let mut is_done = false;
            for document in &page.documents {
                let id = id(document);
                if is_beyond(id, self::id(&first.upto)) {
                    is_done = true;
                    break;
                }
                first.after = Some(id_of(document)?);
                let mark = mark(id);
                if !known.inserted.remove(&mark) && !known.touched.contains(&mark) {
                    basket.add(tail.wants.record(document, What::Insert), document).await?;
                    if basket.is_full() {
                        self.hand_first(&mut basket, &first).await?;
                    }
                }
            }
            known.touched.clear();
            self.hand_first(&mut basket, &first).await?;
            if page.is_last {
                let last = first.after.as_ref().map(|after| kind(self::id(after)));
                is_done |= is_later && page.documents.is_empty()
                    || last.is_none_or(|last| last >= kind(self::id(&first.upto)));
                is_later = true;
            } else {
                is_later = false;
            }
            if is_done {
                return self.is_read(first.events.unwrap_or(first.from), out).await;
            }
        }
    }

    /// All that was there is read: the changes are followed from now on.
    async fn is_read(&mut self, behind: RawDocumentBuf, out: &Out) -> Result<Ended, Failure> {
        self.keep(Place::Behind(behind), out).await?;
        Ok(Ended::Again(out.clock().now()))
    }

    async fn hand_first(&mut self, basket: &mut Basket<'_>, first: &First) -> Result<(), Failure> {
        let place = Place::First(first.clone());
        basket.hand(|| self.tail.token(&place)).await?;
        self.place = Some(place);
        Ok(())
    }

    /// Hands on the changes up to a time of the server's.
    async fn hear(
        &mut self,
        changes: &mut Changes,
        first: &mut First,
        known: &mut Known,
        time: Option<ServerTime>,
        out: &Out,
    ) -> Result<Heard, Failure> {
        let tail = self.tail.clone();
        let mut basket = Basket::new(&tail, out);
        let (begun, mut told) = (out.clock().now(), false);
        loop {
            let event = match changes.next(&tail).await? {
                Next::Change(event) => event,
                Next::End => return Err(Failure::Network("the server ended the changes".to_string())),
                Next::Nothing => {
                    self.hand_first(&mut basket, first).await?;
                    let at = changes.place().as_ref().and_then(time_of);
                    if time.zip(at).is_none_or(|(time, at)| at >= time) {
                        // They were there before, and the server does not tell them again.
                        return if known.again.is_some() { Err(lost(&tail).into()) } else { Ok(Heard::All) };
                    }
                    let now = out.clock().now();
                    if now.since(begun) >= SLOW && !told {
                        out.report("waits for the server to tell its changes up to what was read");
                        told = true;
                    }
                    if out.unless_stopped(out.clock().sleep_until(now.plus(PACE))).await.is_none() {
                        return Ok(Heard::Stopped);
                    }
                    continue;
                }
            };
            let change = Change::read(&event).ok_or_else(no_change)?;
            if let Some(id) = change.id() {
                if change.what == What::Insert {
                    if !is_beyond(id, self::id(&first.upto)) {
                        known.inserted.insert(mark(id));
                    }
                } else if tail.wants.contains(change.what) && known.again.is_none() {
                    known.touched.insert(mark(id));
                    if known.touched.len() > IDS {
                        known.touched.clear();
                        known.is_stale = true;
                    }
                }
                if known.inserted.len() > IDS {
                    return Err(Error::user(format!(
                        "mongodb: over {IDS} documents were inserted in `{}` while what was there was read, among it and not behind it: begin with `start = 'latest'`, and read what is there by `tidemill replay`",
                        tail.collection
                    ))
                    .into());
                }
            }
            if let Some(again) = &known.again {
                if **again == *change.token {
                    known.again = None;
                }
                continue;
            }
            first.events = Some(change.token.to_owned());
            if change.what == What::End {
                self.hand_first(&mut basket, first).await?;
                return Ok(Heard::Over);
            }
            if let Some(record) = change.record(&tail.wants) {
                basket.add(record, &event).await?;
                if basket.is_full() {
                    self.hand_first(&mut basket, first).await?;
                }
            }
        }
    }
}
