//! Servers without change streams: new documents are looked for, by a member that grows.
//!
//! ```text
//! look    the newest document c
//! wait    as long as writers may take to write one before it     none at or before c comes any more
//! read    documents behind the last one read, up to c, in order
//! ```
//!
//! Documents of one value of the member are told apart by their `_id`. As the
//! server compares values of one kind alone, and leaves others out, all values
//! must be of one kind.
//!
//! Invariant: the token is the last document of its block, and what was read and
//! not handed on is read again. Called by the tail.

use super::{Basket, MongoTail, Polling, Start, change::What, place::Place, place::Row};
use crate::{
    http::failure::Failure,
    mongo::{ids::kind, json::member},
    social::collect::{Collector, Ended, Out},
};
use async_trait::async_trait;
use mongodb::bson::{Bson, DateTime, Document, RawBsonRef, RawDocument, RawDocumentBuf, doc, oid::ObjectId};
use tidemill_core::{Error, Result, Timestamp};

/// The newest document when it was looked.
struct Newest {
    row: Row,
    seen: Timestamp,
}

/// Looks, waits and reads.
pub(super) struct Session {
    tail: MongoTail,
    polling: Polling,
    /// The last document that was handed on; `None` before the first.
    place: Option<Row>,
    newest: Option<Newest>,
    /// Where it begins, until the first look.
    start: Option<Start>,
    is_connected: bool,
    is_checked: bool,
}

/// The kind of a value for people.
fn kind_name(value: &RawBsonRef<'_>) -> String {
    format!("{:?}", value.element_type())
}

impl Session {
    pub(super) fn new(tail: MongoTail, polling: Polling, place: Option<Place>) -> Self {
        let (start, place) = match place {
            Some(Place::Row(row)) => (None, row),
            _ => (Some(tail.start), None),
        };
        Self { tail, polling, place, newest: None, start, is_connected: false, is_checked: false }
    }

    fn is_by_id(&self) -> bool {
        self.polling.cursor == "_id"
    }

    fn named(&self, why: &str) -> Error {
        let (cursor, name, place) = (&self.polling.cursor, &self.tail.collection, &self.tail.server.place);
        Error::user(format!("mongodb: option `cursor`: `{cursor}` in `{name}` at {place} {why}"))
    }

    /// Where a document stands.
    fn row(&self, document: &RawDocument) -> Result<Row> {
        let value = member(document, &self.polling.cursor).ok_or_else(|| self.named("is missing in a document"))?;
        let is_known = matches!(
            value,
            RawBsonRef::Int32(_)
                | RawBsonRef::Int64(_)
                | RawBsonRef::Double(_)
                | RawBsonRef::Decimal128(_)
                | RawBsonRef::String(_)
                | RawBsonRef::Binary(_)
                | RawBsonRef::ObjectId(_)
                | RawBsonRef::DateTime(_)
                | RawBsonRef::Timestamp(_)
        );
        if !is_known {
            let why = format!(
                "holds a value ({}) that does not grow: numbers, texts, dates, times and object ids do",
                kind_name(&value)
            );
            return Err(self.named(&why));
        }
        let owned = |value: RawBsonRef<'_>| {
            Bson::try_from(value).map_err(|e| Error::external("mongodb: a document is malformed").because(e))
        };
        let id = if self.is_by_id() { None } else { document.get("_id").ok().flatten().map(owned).transpose()? };
        Ok(Row { value: owned(value)?, id })
    }

    /// The first or last document by the member.
    async fn end(&self, order: i32) -> Result<Option<RawDocumentBuf>> {
        let (cursor, server) = (&self.polling.cursor, &self.tail.server);
        let sort = if self.is_by_id() {
            doc! { "_id": order }
        } else {
            doc! { cursor: order, "_id": order }
        };
        let documents = self.tail.documents().await?;
        let find = async { documents.find_one(doc! { cursor: { "$ne": Bson::Null } }).sort(sort).await };
        server.within(&format!("read `{}`", self.tail.collection), find).await
    }

    /// Whether values are of the kind of the newest: the server gives no others.
    async fn check(&mut self, newest: &RawDocument) -> Result<()> {
        let Some(oldest) = self.end(1).await? else { return Ok(()) };
        let of = |document| member(document, &self.polling.cursor);
        let kinds = of(&oldest).zip(of(newest)).filter(|(oldest, newest)| kind(*oldest) != kind(*newest));
        if let Some((oldest, newest)) = kinds {
            let (oldest, newest) = (kind_name(&oldest), kind_name(&newest));
            return Err(self.named(&format!(
                "holds values of several kinds ({oldest}, {newest}), of which those of one would be left out: name another member"
            )));
        }
        self.is_checked = true;
        Ok(())
    }

    /// The place before all documents from a time on.
    fn before(&self, at: Timestamp, newest: &Row) -> Result<Row> {
        let value = match &newest.value {
            Bson::DateTime(_) => Bson::DateTime(DateTime::from_millis(at.millis().saturating_sub(1))),
            Bson::ObjectId(_) => {
                let seconds = u32::try_from(at.millis().div_euclid(1000)).unwrap_or(0).saturating_sub(1);
                let mut bytes = [0xff; 12];
                bytes[..4].copy_from_slice(&seconds.to_be_bytes());
                Bson::ObjectId(ObjectId::from_bytes(bytes))
            }
            _ => {
                return Err(self.named("has no times in it, which `start` asks for: dates and object ids have"));
            }
        };
        Ok(Row { value, id: None })
    }

    /// Documents behind the place, up to a row.
    fn filter(&self, upto: &Row) -> Document {
        let cursor = &self.polling.cursor;
        let mut bounds = doc! { "$lte": upto.value.clone() };
        if let Some(place) = &self.place {
            let op = if place.id.is_none() { "$gt" } else { "$gte" };
            bounds.insert(op, place.value.clone());
        }
        let mut filter = doc! { cursor: bounds };
        let side = |row: &Row, beyond: &str, id_beyond: &str| {
            let id = row.id.clone()?;
            let same = doc! { cursor: row.value.clone(), "_id": { id_beyond: id } };
            Some(doc! { "$or": [{ cursor: { beyond: row.value.clone() } }, same] })
        };
        let sides = [self.place.as_ref().and_then(|place| side(place, "$gt", "$gt")), side(upto, "$lt", "$lte")];
        let sides: Vec<Document> = sides.into_iter().flatten().collect();
        if !sides.is_empty() {
            filter.insert("$and", sides);
        }
        filter
    }

    /// Looks, waits or reads.
    async fn round(&mut self, out: &Out) -> Result<Ended, Failure> {
        let again = |out: &Out, every| Ended::Again(out.clock().now().plus(every));
        let every = self.polling.every;
        if self.newest.is_none() {
            let newest = self.end(-1).await.map_err(Failure::of)?;
            if !self.is_connected {
                self.tail.connected(out);
                self.is_connected = true;
            }
            let begins = self.start.is_some_and(|start| start == Start::Latest);
            let Some(newest) = newest else {
                if begins {
                    // There is nothing to pass over, and what comes is not passed over by a restart.
                    self.keep(out).await?;
                }
                return Ok(again(out, every));
            };
            if !self.is_checked {
                self.check(&newest).await.map_err(Failure::of)?;
            }
            let row = self.row(&newest)?;
            match self.start {
                Some(Start::Latest) => {
                    self.place = Some(row);
                    self.keep(out).await?;
                    return Ok(again(out, every));
                }
                Some(Start::Time(at)) => self.place = Some(self.before(at, &row)?),
                Some(Start::Earliest) | None => {}
            }
            self.start = None;
            if self.place.as_ref() == Some(&row) {
                return Ok(again(out, every));
            }
            self.newest = Some(Newest { row, seen: out.clock().now() });
        }
        let Some(newest) = &self.newest else { return Ok(again(out, every)) };
        let ready = newest.seen.plus(self.polling.patience);
        if out.clock().now() < ready {
            return Ok(Ended::Again(ready.min(out.clock().now().plus(every))));
        }
        let upto = newest.row.clone();
        while self.read(&upto, out).await? {}
        self.newest = None;
        Ok(again(out, every))
    }

    /// Keeps the place without records.
    async fn keep(&mut self, out: &Out) -> Result<(), Failure> {
        out.keep(self.tail.token(&Place::Row(self.place.clone()))).await?;
        self.start = None;
        Ok(())
    }

    /// Reads documents up to a row, at most a page. Whether there may be more.
    async fn read(&mut self, upto: &Row, out: &Out) -> Result<bool, Failure> {
        let (server, what) = (&self.tail.server, format!("read `{}`", self.tail.collection));
        let documents = self.tail.documents().await.map_err(Failure::of)?;
        let cursor = &self.polling.cursor;
        let sort = if self.is_by_id() {
            doc! { "_id": 1 }
        } else {
            doc! { cursor: 1, "_id": 1 }
        };
        let limit = i64::try_from(self.tail.page).unwrap_or(i64::MAX);
        let filter = self.filter(upto);
        let find = async { documents.find(filter).sort(sort).limit(limit).await };
        let mut answer = server.within(&what, find).await.map_err(Failure::of)?;
        let mut basket = Basket::new(&self.tail, out);
        let (mut count, mut last) = (0, None);
        let done = loop {
            match server.within(&what, answer.advance()).await.map_err(Failure::of) {
                Ok(true) => {}
                Ok(false) => break Ok(count == self.tail.page),
                Err(failure) => break Err(failure),
            }
            let document = answer.current();
            last = Some(self.row(document)?);
            basket.add(self.tail.wants.record(document, What::Insert), document).await?;
            count += 1;
            if basket.is_full() {
                basket.hand(|| self.tail.token(&Place::Row(last.clone()))).await?;
                self.place.clone_from(&last);
            }
        };
        if last.is_some() {
            basket.hand(|| self.tail.token(&Place::Row(last.clone()))).await?;
            self.place = last;
        }
        done
    }
}

#[async_trait]
impl Collector for Session {
    async fn session(&mut self, out: &Out) -> Result<Ended, Failure> {
        let stop = out.stop().clone();
        let done = tokio::select! {
            biased;
            () = stop.stopped() => return Ok(Ended::Stopped),
            done = self.round(out) => done,
        };
        if done.is_err() {
            // The next answer is a first one, and says that the server is there.
            self.is_connected = false;
        }
        done
    }
}
