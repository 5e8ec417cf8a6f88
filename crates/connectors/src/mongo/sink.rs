//! Sink `mongodb`: rows as documents of a collection, exactly once in effect.
//!
//! The options are those of `server.rs` and
//!
//! | Option | Meaning |
//! |---|---|
//! | `collection` | the collection; the server makes it if it is not there |
//! | `key` | columns of the key, such as `id` or `day,lang`: a row replaces the document of its key; without it rows are added |
//! | `indexes` | indexes to have: `author, created_at desc; unique handle` |
//! | `ttl`, `ttl_field` | documents go this long after the time in that column: `30d`, `created_at` |
//! | `batch_field` | the member that holds the number of the batch that wrote a document (`_batch`) |
//!
//! ```text
//! stage    rows aside                                                    seen by nobody
//! commit   documents, in commands of up to 10,000 ─► durable             seen as they are written
//!          tidemill_batches: {_id: collection, batch}                    the batch is whole
//! ```
//!
//! **What is guaranteed.** After a commit each row of the batch is in the
//! collection once, and a commit that is repeated, as after a crash, changes
//! nothing: documents have ids that depend on rows alone (`_id` is the key, or
//! batch, part and number of the row), a batch writes each id once (of several
//! rows of a key the last), and a document of a later batch is never replaced by
//! one of an earlier batch, not even by a command that was given up as lost and
//! runs late on the server, because each write asks for `_batch` to be no later
//! than its own. **What is not:** a batch does not become visible at one instant,
//! for that would take a transaction; who must not see a part of one reads
//! `tidemill_batches` first and leaves out documents of a later `_batch`.
//!
//! Without a key a rewind removes the documents of the batches that it undoes.
//! With a key they stay, and are replaced as their keys come again.
//!
//! Invariant: a collection has one program, and one output of it. Rows stay
//! aside until the mark says that their batch is whole; nothing grows beside the
//! collection but one mark for it.

use super::{
    bulk::{Bulk, Way},
    encode::{Rows, is_known, is_name, put_text},
    index::Index,
    server::Server,
};
use crate::aside::{Aside, Part};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use futures::stream::BoxStream;
use mongodb::bson::{Bson, Document, doc};
use std::{collections::HashMap, path::Path};
use tidemill_core::{BatchId, Claim, Error, Guarantee, Options, Result, Sink, StagedPart, Timestamp};

/// The collection of marks.
const BATCHES: &str = "tidemill_batches";

/// A collection of a MongoDB.
#[derive(Debug)]
pub struct MongoSink {
    server: Server,
    collection: String,
    key: Vec<String>,
    indexes: Vec<Index>,
    mark: String,
    aside: Aside,
}

/// Number of a batch, as the server counts.
fn signed(batch: BatchId) -> Result<i64> {
    i64::try_from(batch.0).map_err(|_| Error::internal("a batch's number exceeds what a database counts"))
}

/// A name in a shell.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A batch's number, also as people write it in a shell.
fn number(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int64(batch) => Some(*batch),
        Bson::Int32(batch) => Some(i64::from(*batch)),
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and small")]
        Bson::Double(batch) if batch.fract() == 0.0 && batch.abs() < 9e15 => Some(*batch as i64),
        _ => None,
    }
}

/// The `_id` of a row that has no key, by the place of its batch: ids grow, and a batch's lie together.
fn place_of(batch: i64, part: usize, row: usize) -> String {
    format!("{batch:012}-{part:05}-{row:09}")
}

/// Batches after the last one that are looked for. Of what others have under texts that begin with digits little lies
/// among their ids.
const BEYOND: i64 = 1_000_000_000;

impl MongoSink {
    /// From a sink's options.
    ///
    /// # Errors
    /// When one is missing or wrong, or a password stands in the program.
    pub fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        let server = Server::from_options(options)?;
        let collection = options.require("collection", "it names the collection to write to")?;
        let fine = !collection.is_empty()
            && collection.len() <= 120
            && !collection.starts_with("system.")
            && !collection.starts_with("tidemill_")
            && !collection.contains(['$', '\0']);
        if !fine {
            return Err(Error::user(format!(
                "{owner}: option `collection`: `{collection}` can't be a collection's name here: up to 120 bytes, without $, not beginning with system. or tidemill_"
            )));
        }
        let key = options.get("key").unwrap_or_default().split(',').map(str::trim).filter(|k| !k.is_empty());
        let mark = options.get("batch_field").unwrap_or("_batch");
        if !is_name(mark) || mark == "_id" {
            return Err(Error::user(format!("{owner}: option `batch_field`: `{mark}` can't be a member's name")));
        }
        Ok(Self {
            collection: collection.to_string(),
            key: key.map(str::to_string).collect(),
            indexes: Index::from_options(options)?,
            mark: mark.to_string(),
            server,
            aside: Aside::default(),
        })
    }

    fn wrong(&self, why: &str) -> Error {
        Error::user(format!("mongodb: collection `{}`: {why}", self.collection))
    }

    /// The last batch that is whole in the collection.
    async fn last_whole(&self) -> Result<Option<i64>> {
        let marks = self.server.database().await?.collection::<Document>(BATCHES);
        let filter = doc! { "_id": &self.collection };
        let found = self.server.within("read its mark", async { marks.find_one(filter).await }).await?;
        Ok(found.and_then(|mark| number(mark.get("batch")?)))
    }

    /// The last batch after `last` of which there are documents, whole or not: the mark is written after them. Of
    /// keyed documents nobody needs to know, as they are written again.
    async fn last_begun(&self, last: i64) -> Result<Option<i64>> {
        if !self.key.is_empty() {
            return Ok(None);
        }
        let rows = self.server.database().await?.collection::<Document>(&self.collection);
        let beyond = doc! {
            "_id": { "$gte": place_of(last + 1, 0, 0), "$lt": place_of(last.saturating_add(BEYOND), 0, 0) },
            &self.mark: { "$gt": last },
        };
        let newest = async { rows.find_one(beyond).sort(doc! { "_id": -1 }).await };
        let found = self.server.within("look for documents of later batches", newest).await?;
        Ok(found.and_then(|document| number(document.get(&self.mark)?)))
    }

    /// Notes the last batch that is whole.
    async fn note(&self, batch: i64) -> Result<()> {
        let command = doc! {
            "update": BATCHES,
            "updates": [{ "q": { "_id": &self.collection }, "u": { "_id": &self.collection, "batch": batch }, "upsert": true }],
            "writeConcern": { "w": "majority", "j": true },
        };
        let database = self.server.database().await?;
        let answer = self.server.within("note the batch", async { database.run_command(command).await }).await?;
        if answer.contains_key("writeErrors") || answer.contains_key("writeConcernError") {
            return Err(Error::external(format!(
                "mongodb: can't note batch {batch} at {}: {answer}",
                self.server.place
            )));
        }
        Ok(())
    }

    /// Writes all rows of a batch. What was written by an earlier try is met again, and left as it is.
    async fn write(&self, batch: BatchId, parts: &[Part]) -> Result<()> {
        let number = signed(batch)?;
        let way = if self.key.is_empty() { Way::Insert } else { Way::Upsert };
        let mut bulk = Bulk::new(&self.server, &self.collection, way, number, &self.mark);
        let (mut id, mut members) = (Vec::new(), Vec::new());
        let last = self.last_of_keys(batch, parts).await?;
        let mut place = 0_usize;
        for (at, part) in parts.iter().enumerate() {
            let mut in_part = 0;
            for rows in self.aside.read(batch, part).await? {
                let rows = Rows::of(&rows, &self.key)?;
                for row in 0..rows.len() {
                    id.clear();
                    if self.key.is_empty() {
                        put_text(&mut id, "_id", &place_of(number, at, in_part));
                    } else {
                        rows.put_id(row, &mut id)?;
                    }
                    in_part += 1;
                    place += 1;
                    if last.get(&id).is_some_and(|last| *last != place) {
                        continue;
                    }
                    members.clear();
                    rows.put_members(row, &mut members);
                    bulk.add(&id, &members).await?;
                }
            }
        }
        bulk.flush().await
    }

    /// Of each key of a batch the place of its last row, counted from one. A batch writes each id once: were a
    /// command to run late, beside its own repetition, an earlier row could else end up over a later one.
    async fn last_of_keys(&self, batch: BatchId, parts: &[Part]) -> Result<HashMap<Vec<u8>, usize>> {
        let mut last = HashMap::new();
        if self.key.is_empty() {
            return Ok(last);
        }
        let mut place = 0;
        for part in parts {
            for rows in self.aside.read(batch, part).await? {
                let rows = Rows::of(&rows, &self.key)?;
                for row in 0..rows.len() {
                    place += 1;
                    let mut id = Vec::new();
                    rows.put_id(row, &mut id)?;
                    last.insert(id, place);
                }
            }
        }
        Ok(last)
    }
}

#[async_trait]
impl Sink for MongoSink {
    fn describe(&self) -> String {
        let how = if self.key.is_empty() { "added to".into() } else { format!("upsert by {}", self.key.join(", ")) };
        format!("mongodb {} (collection {}, {how})", self.server.place, self.collection)
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    fn claim(&self) -> Option<Claim> {
        Some(Claim::new(format!("collection {} of {}", self.collection, self.server.real_place())))
    }

    fn takes(&self, schema: &SchemaRef) -> Result<()> {
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        for field in schema.fields() {
            let name = field.name();
            if !is_known(field.data_type()) {
                return Err(self.wrong(&format!(
                    "column `{name}` is {}, which a document does not hold: CAST it to BIGINT, DOUBLE, TEXT or TIMESTAMP (members of structs are named without `.` and a `$` in front)",
                    field.data_type()
                )));
            }
            if !is_name(name) || *name == self.mark {
                return Err(
                    self.wrong(&format!("a column can't be called `{name}` there: give it another name with AS"))
                );
            }
        }
        if names.contains(&"_id") && self.key != ["_id"] {
            return Err(
                self.wrong("a column `_id` is the key: set option `key` to _id, or give it another name with AS")
            );
        }
        for key in &self.key {
            let Ok(field) = schema.field_with_name(key) else {
                return Err(self
                    .wrong(&format!("option `key`: the rows have no column `{key}`; there are {}", names.join(", "))));
            };
            if field.data_type().is_nested() {
                return Err(
                    self.wrong(&format!("option `key`: column `{key}` is {}, which is no key", field.data_type()))
                );
            }
        }
        self.indexes.iter().try_for_each(|index| index.check(schema).map_err(|why| self.wrong(&why)))
    }

    fn place(&self, owner: &str, aside: &Path) {
        self.aside.place(owner, aside);
    }

    fn undoes(&self) -> Option<String> {
        self.key.is_empty().then(|| format!("the documents of those batches are removed from {}", self.collection))
    }

    fn stays(&self) -> String {
        "its documents stay: those whose keys come again are replaced, the others are left".to_string()
    }

    async fn open(&self, schema: SchemaRef) -> Result<()> {
        self.takes(&schema)?;
        // Says at the start what is wrong with the way there.
        let database = self.server.database().await?;
        self.server.within("reach the server", async { database.run_command(doc! { "ping": 1 }).await }).await?;
        for index in &self.indexes {
            let command = index.command(&self.collection);
            let what = format!("make the index of option `{}`", index.option());
            self.server.within(&what, async { database.run_command(command).await }).await?;
        }
        self.aside.open(schema).await
    }

    async fn stage(
        &self,
        batch: BatchId,
        time: Timestamp,
        part: usize,
        rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        self.aside.stage(batch, time, part, rows).await
    }

    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        let (parts, number) = (Part::parse(parts)?, signed(batch)?);
        if parts.is_empty() {
            return Ok(());
        }
        if self.last_whole().await?.is_none_or(|last| last < number) {
            if !self.aside.has(&parts)? {
                return Err(self.wrong(&format!(
                    "rows of committed batch {batch} are neither aside nor noted in `{BATCHES}`: was that mark, or the data directory, changed by someone else?"
                )));
            }
            self.write(batch, &parts).await?;
            self.note(number).await?;
        }
        self.aside.remove(&parts).await
    }

    async fn undo(&self, to: BatchId, upto: BatchId) -> Result<()> {
        let (to, upto) = (signed(to)?, signed(upto)?);
        if self.key.is_empty() {
            let rows = self.server.database().await?.collection::<Document>(&self.collection);
            // Ids of a batch lie together: all from the first of one to before the first of another.
            let of = doc! {
                "_id": { "$gte": place_of(to + 1, 0, 0), "$lt": place_of(upto + 1, 0, 0) },
                &self.mark: { "$gt": to, "$lte": upto },
            };
            self.server.within("remove documents", async { rows.delete_many(of).await }).await?;
        }
        // Their numbers do not come again.
        match self.last_whole().await? {
            Some(last) if last > to => self.note(to).await,
            _ => Ok(()),
        }
    }

    async fn recover(&self, last_committed: Option<BatchId>) -> Result<()> {
        let last = last_committed.map_or(Ok(0), signed)?;
        let newest = self.last_whole().await?.max(self.last_begun(last).await?);
        if let Some(newest) = newest.filter(|newest| *newest > last) {
            let stands = match last_committed {
                Some(last) => format!("the program is at batch {last}: were its data restored from a backup?"),
                None => "the program has committed none: are its data new?".to_string(),
            };
            if self.key.is_empty() {
                let (name, mark) = (quoted(&self.collection), quoted(&self.mark));
                return Err(self.wrong(&format!(
                    "it has documents up to batch {newest}, and {stands} They would be taken for those that are still to come. Name another collection; or remove them, and say so: db.getCollection({name}).deleteMany({{{mark}: {{$gt: {last}}}}}); db.{BATCHES}.updateOne({{_id: {name}}}, {{$set: {{batch: {last}}}}}, {{upsert: true}})"
                )));
            }
            tracing::warn!(
                collection = self.collection,
                batch = newest,
                "the collection is ahead: {stands} Documents are written again by their key"
            );
            // Else what is written again would be taken for older than what is there.
            let rows = self.server.database().await?.collection::<Document>(&self.collection);
            let (ahead, now) = (doc! { &self.mark: { "$gt": last } }, doc! { "$set": { &self.mark: last } });
            self.server.within("take documents over", async { rows.update_many(ahead, now).await }).await?;
            self.note(last).await?;
        }
        // The last commit was repeated, so all that is left belongs to no commit.
        self.aside.clear().await
    }
}
