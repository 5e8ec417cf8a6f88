//! A change as the server tells it, and the record that it becomes.
//!
//! ```text
//! insert             the document
//! update, replace    the document as it is when the server looks it up; its key when it is gone by then
//! delete             the document's key
//! ```
//!
//! With `change_field` a record says in that member which of the three it is.
//!
//! Invariant: of a change that is wanted there is a record, or an error that becomes
//! a dead letter. Called by the tail alone.

use crate::{
    mongo::{
        encode::is_name,
        json::{put, put_with},
    },
    social::common::list,
};
use mongodb::bson::{Document, RawBsonRef, RawDocument, doc};
use tidemill_core::{Error, Options, Result};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Insert,
    Update,
    Delete,
    /// The collection was dropped or renamed, or its database dropped: the changes end behind this.
    End,
    /// Something else, such as an index that was made, or the collection's drop, behind which its end is told.
    Other,
}

impl What {
    /// What servers call it, and first what a record does.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Insert => &["insert"],
            Self::Update => &["update", "replace"],
            Self::Delete => &["delete"],
            Self::End => &["invalidate"],
            Self::Other => &[""],
        }
    }
}

/// Which changes are records, and how they are marked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wants {
    changes: Vec<What>,
    /// The member that says which change it is.
    field: Option<String>,
}

impl Wants {
    /// From the options `changes` and `change_field`.
    ///
    /// # Errors
    /// When one is wrong.
    pub(super) fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        let what = |name: &String| match name.as_str() {
            "insert" => Ok(What::Insert),
            "update" => Ok(What::Update),
            "delete" => Ok(What::Delete),
            other => Err(Error::user(format!(
                "{owner}: option `changes` names `insert`, `update` and `delete`, with commas between them, not `{other}`"
            ))),
        };
        let changes = list(options.get("changes").unwrap_or("insert")).iter().map(what).collect::<Result<Vec<_>>>()?;
        if changes.is_empty() {
            return Err(Error::user(format!("{owner}: option `changes` names none of `insert`, `update`, `delete`")));
        }
        let given = options.get("change_field");
        if given.is_some_and(|name| !is_name(name) || name == "_id") {
            return Err(Error::user(format!("{owner}: option `change_field` names a member, such as `_change`")));
        }
        let usual = changes.iter().any(|what| *what != What::Insert).then_some("_change");
        Ok(Self { changes, field: given.or(usual).map(str::to_string) })
    }

    pub(super) fn is_inserts_alone(&self) -> bool {
        self.changes.iter().all(|what| *what == What::Insert)
    }

    pub(super) fn contains(&self, what: What) -> bool {
        self.changes.contains(&what)
    }

    /// What the server needs not send.
    pub(super) fn filter(&self) -> Document {
        let wanted = self.changes.iter().chain(&[What::End]);
        let names: Vec<&str> = wanted.flat_map(|what| what.names()).copied().collect();
        doc! { "$match": { "operationType": { "$in": names } } }
    }

    /// The record of a document, changed so.
    ///
    /// # Errors
    /// When the document is malformed.
    pub(super) fn record(&self, document: &RawDocument, what: What) -> Result<Vec<u8>> {
        let mut record = Vec::with_capacity(document.as_bytes().len() + 64);
        match &self.field {
            None => put(document, &mut record)?,
            Some(field) => put_with(document, field, what.names()[0], &mut record)?,
        }
        Ok(record)
    }
}

/// A change.
#[derive(Debug)]
pub(super) struct Change<'a> {
    /// What the changes behind it are asked for by.
    pub(super) token: &'a RawDocument,
    pub(super) what: What,
    document: Option<&'a RawDocument>,
    key: Option<&'a RawDocument>,
}

impl<'a> Change<'a> {
    /// Of what the server sent; `None` when that is no change.
    pub(super) fn read(event: &'a RawDocument) -> Option<Self> {
        let within = |name: &str| match event.get(name) {
            Ok(Some(RawBsonRef::Document(document))) => Some(document),
            _ => None,
        };
        let what = match event.get_str("operationType").ok()? {
            "insert" => What::Insert,
            "update" | "replace" => What::Update,
            "delete" => What::Delete,
            "invalidate" => What::End,
            _ => What::Other,
        };
        Some(Self { token: within("_id")?, what, document: within("fullDocument"), key: within("documentKey") })
    }

    /// The `_id` of the document.
    pub(super) fn id(&self) -> Option<RawBsonRef<'a>> {
        [self.key, self.document].into_iter().flatten().find_map(|document| document.get("_id").ok().flatten())
    }

    /// Its record, if it is wanted.
    pub(super) fn record(&self, wants: &Wants) -> Option<Result<Vec<u8>>> {
        if !wants.contains(self.what) {
            return None;
        }
        let document = match self.what {
            What::Insert => self.document,
            What::Update => self.document.or(self.key),
            _ => self.key,
        };
        Some(match document {
            Some(document) => wants.record(document, self.what),
            None => Err(Error::external("mongodb: a change without its document").fatal()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mongodb::bson::{Bson, RawDocumentBuf};

    fn wants(options: &[(&str, &str)]) -> Result<Wants> {
        Wants::from_options(&Options::new("stream \"s\"", options.iter().copied()))
    }

    #[test]
    fn changes_become_records() {
        let event = |what: &str, document: Bson| {
            let event = doc! {
                "_id": { "_data": "82" }, "operationType": what, "fullDocument": document, "documentKey": { "_id": 7 }
            };
            RawDocumentBuf::try_from(&event).unwrap()
        };
        let full = || Bson::Document(doc! { "_id": 7, "n": 1 });
        let told = |wants: &Wants, event: &RawDocumentBuf| {
            let record = Change::read(event).unwrap().record(wants);
            record
                .map(|record| record.map(|record| String::from_utf8(record).unwrap()).unwrap_or_else(|e| e.to_string()))
        };
        let inserts = wants(&[]).unwrap();
        assert!(inserts.is_inserts_alone());
        assert_eq!(told(&inserts, &event("insert", full())).unwrap(), r#"{"_id":7,"n":1}"#);
        for other in ["update", "replace", "delete", "drop", "invalidate", "createIndexes"] {
            assert_eq!(told(&inserts, &event(other, full())), None, "{other}");
        }
        assert!(told(&inserts, &event("insert", Bson::Null)).unwrap().contains("without its document"));
        let all = wants(&[("changes", "insert, update,delete")]).unwrap();
        for (what, document, record) in [
            ("insert", full(), r#"{"_id":7,"n":1,"_change":"insert"}"#),
            ("update", full(), r#"{"_id":7,"n":1,"_change":"update"}"#),
            ("replace", full(), r#"{"_id":7,"n":1,"_change":"update"}"#),
            ("update", Bson::Null, r#"{"_id":7,"_change":"update"}"#),
            ("delete", Bson::Null, r#"{"_id":7,"_change":"delete"}"#),
            // Some servers tell what was deleted.
            ("delete", full(), r#"{"_id":7,"_change":"delete"}"#),
        ] {
            assert_eq!(told(&all, &event(what, document)).unwrap(), record);
        }
        let named = wants(&[("change_field", "how")]).unwrap();
        assert_eq!(told(&named, &event("insert", full())).unwrap(), r#"{"_id":7,"n":1,"how":"insert"}"#);
        let asked = all.filter().to_string();
        assert!(["insert", "update", "replace", "delete", "invalidate"].iter().all(|what| asked.contains(what)));
        let asked = inserts.filter().to_string();
        assert!(asked.contains("insert") && asked.contains("invalidate") && !asked.contains("replace"), "{asked}");
        for nonsense in [doc! {}, doc! { "_id": 7, "operationType": "insert" }, doc! { "_id": {}, "operationType": 7 }]
        {
            assert!(Change::read(&RawDocumentBuf::try_from(&nonsense).unwrap()).is_none());
        }
        for wrong in [("changes", "inserts"), ("changes", " , "), ("change_field", "a.b"), ("change_field", "_id")] {
            assert!(wants(&[wrong]).unwrap_err().to_string().contains(wrong.0));
        }
    }
}
