//! Many writes in one command.
//!
//! ```text
//! upsert   update  {q: {_id, _batch: not > n}, u: {_id, …, _batch: n}, upsert}  …   ordered
//! insert   insert  {_id: "batch-part-row", …, _batch: n}                        …
//! ```
//!
//! Invariant: a command holds at most [`INSERTS`] or [`UPSERTS`] writes and [`BYTES`] bytes,
//! below what servers take (100,000 and 48 MB; 16 MB a document); a write that a
//! server refuses because its document is there already is no error, and any
//! other refusal is one. Called by the sink.

use super::{
    encode::{begin, begin_member, end, put_bool, put_document, put_integer, put_text},
    server::Server,
};
use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use tidemill_core::{Error, Result};

/// Documents in a command at most.
pub(super) const INSERTS: usize = 10_000;
/// Upserts in a command at most. The server of the tests holds one of its hundred files for each until the command
/// ends, and waits for ever when there is none left.
pub(super) const UPSERTS: usize = if cfg!(test) { 30 } else { 10_000 };
/// Bytes of a command at most; and of a document nearly twice that, which then goes alone.
pub(super) const BYTES: usize = 8 << 20;
/// Bytes of a document at most: what servers take, less what stands around it.
const DOCUMENT: usize = (16 << 20) - (16 << 10);
/// The code of "duplicate key".
const DUPLICATE: i32 = 11000;

/// How a document goes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// In place of the document with its `_id`, unless that is of a later batch.
    Upsert,
    /// Beside the others; once.
    Insert,
}

/// Gathers writes to commands and sends them.
pub(super) struct Bulk<'a> {
    server: &'a Server,
    collection: &'a str,
    way: Way,
    batch: i64,
    /// The member of documents that says which batch wrote them.
    mark: &'a str,
    /// The writes of the command under way, each a whole document.
    writes: Vec<Vec<u8>>,
    /// The `_id` member of each, as the bytes of a document with it alone.
    ids: Vec<Vec<u8>>,
    bytes: usize,
}

impl<'a> Bulk<'a> {
    pub(super) fn new(server: &'a Server, collection: &'a str, way: Way, batch: i64, mark: &'a str) -> Self {
        Self { server, collection, way, batch, mark, writes: Vec::new(), ids: Vec::new(), bytes: 0 }
    }

    /// Adds a document: its `_id` member, and its other members, as bytes.
    ///
    /// # Errors
    /// When it is too large, or a command that is full now fails.
    pub(super) async fn add(&mut self, id: &[u8], members: &[u8]) -> Result<()> {
        let document = self.document(id, members);
        if document.len() > DOCUMENT {
            return Err(Error::user(format!(
                "mongodb: a row makes a document of {} bytes, and {DOCUMENT} is the most: leave out or cut what is large",
                document.len()
            )));
        }
        let write = if self.way == Way::Insert { document } else { self.upsert(id, &document) };
        let most = if self.way == Way::Insert { INSERTS } else { UPSERTS };
        if !self.writes.is_empty() && (self.writes.len() >= most || self.bytes + write.len() > BYTES) {
            self.flush().await?;
        }
        // With its name in the array.
        self.bytes += write.len() + 8;
        self.writes.push(write);
        self.ids.push(alone(id));
        Ok(())
    }

    fn document(&self, id: &[u8], members: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(id.len() + members.len() + 32);
        let at = begin(&mut out);
        out.extend_from_slice(id);
        out.extend_from_slice(members);
        put_integer(&mut out, self.mark, self.batch);
        end(&mut out, at);
        out
    }

    fn upsert(&self, id: &[u8], document: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(document.len() + id.len() + 80);
        let at = begin(&mut out);
        let q = begin_member(&mut out, "q", false);
        out.extend_from_slice(id);
        let mark = begin_member(&mut out, self.mark, false);
        let not = begin_member(&mut out, "$not", false);
        put_integer(&mut out, "$gt", self.batch);
        end(&mut out, not);
        end(&mut out, mark);
        end(&mut out, q);
        put_document(&mut out, "u", document);
        put_bool(&mut out, "upsert", true);
        end(&mut out, at);
        out
    }

    /// The command with all writes from one on.
    fn command(&self, from: usize) -> Result<RawDocumentBuf> {
        let (name, list) = match self.way {
            Way::Upsert => ("update", "updates"),
            Way::Insert => ("insert", "documents"),
        };
        let mut out = Vec::with_capacity(self.bytes + 256);
        let at = begin(&mut out);
        put_text(&mut out, name, self.collection);
        put_bool(&mut out, "ordered", self.way == Way::Upsert);
        let concern = begin_member(&mut out, "writeConcern", false);
        put_text(&mut out, "w", "majority");
        put_bool(&mut out, "j", true);
        end(&mut out, concern);
        let writes = begin_member(&mut out, list, true);
        for (n, write) in self.writes[from..].iter().enumerate() {
            put_document(&mut out, &n.to_string(), write);
        }
        end(&mut out, writes);
        end(&mut out, at);
        RawDocumentBuf::from_bytes(out).map_err(|e| Error::internal("mongodb: a command is malformed").because(e))
    }

    /// Sends what is gathered, and waits until a majority has it durably.
    ///
    /// # Errors
    /// When it was not all written.
    pub(super) async fn flush(&mut self) -> Result<()> {
        let mut from = 0;
        while from < self.writes.len() {
            let answer = self.server.run(&format!("write to `{}`", self.collection), self.command(from)?).await?;
            let refused = refusals(&answer).ok_or_else(|| {
                let what = "says that writes were refused, but not which";
                Error::external(format!("mongodb: `{}` at {} {what}", self.collection, self.server.place))
            })?;
            if let Some((_, code, text)) = refused.iter().find(|(_, code, _)| *code != DUPLICATE) {
                return Err(self.refused(*code, text));
            }
            // What is refused for its key must be there; else it is another index that refuses.
            let ids: Vec<&Vec<u8>> = refused.iter().filter_map(|(index, ..)| self.ids.get(from + index)).collect();
            if let (Some((.., text)), false) = (refused.first(), self.are_there(&ids).await?) {
                return Err(self.refused(DUPLICATE, text));
            }
            if let Ok(concern) = answer.get_document("writeConcernError") {
                let text = concern.get_str("errmsg").unwrap_or("no reason given");
                return Err(Error::external(format!(
                    "mongodb: `{}` at {}: a majority did not confirm a write: {text}",
                    self.collection, self.server.place
                )));
            }
            from = match (self.way, refused.first()) {
                // An ordered command ends at the first refusal.
                (Way::Upsert, Some((index, ..))) => from + index + 1,
                _ => self.writes.len(),
            };
        }
        self.writes.clear();
        self.ids.clear();
        self.bytes = 0;
        Ok(())
    }

    fn refused(&self, code: i32, text: &str) -> Error {
        let hint = if code == DUPLICATE { ": a unique index refuses it" } else { "" };
        Error::user(format!(
            "mongodb: `{}` at {} refuses a row{hint}: {text} (code {code})",
            self.collection, self.server.place
        ))
    }

    /// Whether documents of these ids are there, written by this batch or a later one.
    async fn are_there(&self, ids: &[&Vec<u8>]) -> Result<bool> {
        let database = self.server.database().await?;
        let collection = database.collection::<Document>(self.collection);
        for ids in ids.chunks(1000) {
            let ids = ids
                .iter()
                .map(|id| Document::from_reader(&id[..]).ok().and_then(|mut id| id.remove("_id")))
                .collect::<Option<Vec<Bson>>>()
                .ok_or_else(|| Error::internal("mongodb: an id that was written is malformed"))?;
            let count = ids.len() as u64;
            let filter = doc! { "_id": { "$in": ids }, self.mark: { "$gte": self.batch } };
            let found = self.server.within("count documents", async { collection.count_documents(filter).await });
            if found.await? < count {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A document with the member `_id` alone.
fn alone(id: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(id.len() + 5);
    let at = begin(&mut out);
    out.extend_from_slice(id);
    end(&mut out, at);
    out
}

/// The writes that were refused: their place in the command, code and reason; `None` of an answer that names none.
fn refusals(answer: &Document) -> Option<Vec<(usize, i32, String)>> {
    let number = |error: &Document, key: &str| match error.get(key)? {
        Bson::Int32(n) => Some(i64::from(*n)),
        Bson::Int64(n) => Some(*n),
        #[expect(clippy::cast_possible_truncation, reason = "some servers count in doubles; counts are small")]
        Bson::Double(n) => Some(*n as i64),
        _ => None,
    };
    let Some(errors) = answer.get("writeErrors") else { return Some(Vec::new()) };
    let of = |error: &Bson| {
        let error = error.as_document()?;
        let index = usize::try_from(number(error, "index")?).ok()?;
        let code = i32::try_from(number(error, "code")?).ok()?;
        Some((index, code, error.get_str("errmsg").unwrap_or("no reason given").to_string()))
    };
    errors.as_array()?.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_that_names_no_write_is_not_taken_for_the_first() {
        assert_eq!(refusals(&doc! { "ok": 1 }), Some(Vec::new()));
        let refused = doc! { "index": 3.0, "code": DUPLICATE, "errmsg": "twice" };
        assert_eq!(
            refusals(&doc! { "writeErrors": [refused.clone()] }),
            Some(vec![(3, DUPLICATE, "twice".to_string())])
        );
        for missing in ["index", "code"] {
            let mut error = refused.clone();
            error.remove(missing);
            assert_eq!(refusals(&doc! { "writeErrors": [error] }), None, "{missing}");
        }
        assert_eq!(refusals(&doc! { "writeErrors": "many" }), None);
    }
}
