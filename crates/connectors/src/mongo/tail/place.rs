//! Where a restart goes on from, as the text that is kept with each block.
//!
//! ```text
//! {of, behind}                      behind this change
//! {of, from, events, upto, after}   still reading what was there: documents behind `after`, up to `upto`;
//!                                   changes since `from`, of which those up to `events` were handed on
//! {of, cursor, row}                 behind this document, by that member
//! ```
//!
//! What is BSON (tokens of the server, ids, times) is base64 of its bytes, and so
//! comes back as it was, whatever kind it is of.
//!
//! Invariant: a place of another collection, or of another way to read it, is
//! refused, as one of the two would be read wrongly. Called by the tail alone.

use base64::{Engine, engine::general_purpose::STANDARD};
use mongodb::bson::{Bson, Document, RawDocumentBuf, doc};
use serde_json::{Map, Value, json};
use tidemill_core::{Error, Result};

/// A document, by the member that it is told by.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) value: Bson,
    /// Its `_id`, where it is told by another member; none of a time, behind all documents of which it is.
    pub(super) id: Option<Bson>,
}

/// While what was there is read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct First {
    /// The server's token from which on changes are heard.
    pub(super) from: RawDocumentBuf,
    /// That of the last change that was handed on.
    pub(super) events: Option<RawDocumentBuf>,
    /// The `_id` of the last document that was there when it began.
    pub(super) upto: RawDocumentBuf,
    /// The `_id` of the last document that was handed on.
    pub(super) after: Option<RawDocumentBuf>,
}

/// Where a stream is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Place {
    /// Behind the change of this token.
    Behind(RawDocumentBuf),
    First(First),
    /// Behind this document; of none yet, at the beginning of what comes.
    Row(Option<Row>),
}

fn text(document: &RawDocumentBuf) -> Value {
    Value::String(STANDARD.encode(document.as_bytes()))
}

fn document(value: &Value) -> Option<RawDocumentBuf> {
    RawDocumentBuf::from_bytes(STANDARD.decode(value.as_str()?).ok()?).ok()
}

/// What may be missing and is not malformed.
fn optional<T>(value: &Value, read: impl FnOnce(&Value) -> Option<T>) -> Option<Option<T>> {
    if value.is_null() { Some(None) } else { read(value).map(Some) }
}

fn row(value: &Value) -> Option<Row> {
    let mut row = Document::try_from(document(value)?).ok()?;
    Some(Row { value: row.remove("value")?, id: row.remove("id") })
}

fn row_text(row: &Row) -> Value {
    let mut kept = doc! { "value": row.value.clone() };
    if let Some(id) = &row.id {
        kept.insert("id", id.clone());
    }
    RawDocumentBuf::try_from(&kept).map_or(Value::Null, |kept| text(&kept))
}

impl Place {
    /// The text of this place in a collection that is read by `cursor`, or by its changes.
    pub(super) fn token(&self, of: &str, cursor: Option<&str>) -> String {
        let token = match self {
            Self::Behind(behind) => json!({ "of": of, "behind": text(behind) }),
            Self::First(First { from, events, upto, after }) => json!({
                "of": of, "from": text(from), "events": events.as_ref().map(text), "upto": text(upto),
                "after": after.as_ref().map(text),
            }),
            Self::Row(row) => json!({ "of": of, "cursor": cursor, "row": row.as_ref().map(row_text) }),
        };
        token.to_string()
    }

    /// The place that a text tells.
    ///
    /// # Errors
    /// When it is of another collection or another way to read, or none at all.
    pub(super) fn parse(token: &str, of: &str, cursor: Option<&str>) -> Result<Self> {
        let refused = |was: String| {
            Error::user(format!(
                "mongodb: the stream {was} before: make that so again, or give it another name, under which it begins as `start` says"
            ))
        };
        let kept: Map<String, Value> =
            serde_json::from_str(token).map_err(|_| refused("was of another connector".to_string()))?;
        let get = |key: &str| kept.get(key).unwrap_or(&Value::Null);
        let was = get("of").as_str().ok_or_else(|| refused("was of another connector".to_string()))?;
        if was != of {
            return Err(refused(format!("read `{was}`, and not `{of}`,")));
        }
        let by = get("cursor").as_str();
        if by != cursor {
            let by = by.map_or("by its changes".to_string(), |by| format!("by `cursor = '{by}'`"));
            return Err(refused(format!("read `{of}` {by}")));
        }
        let place = if by.is_some() {
            optional(get("row"), row).map(Self::Row)
        } else if kept.contains_key("behind") {
            document(get("behind")).map(Self::Behind)
        } else {
            let first = || {
                Some(First {
                    from: document(get("from"))?,
                    events: optional(get("events"), document)?,
                    upto: document(get("upto"))?,
                    after: optional(get("after"), document)?,
                })
            };
            first().map(Self::First)
        };
        place.ok_or_else(|| Error::internal(format!("mongodb: the place `{token}` that was kept can't be read")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mongodb::bson::{DateTime, oid::ObjectId, spec::BinarySubtype};

    #[test]
    fn places_come_back_as_they_were() {
        let raw = |document: &Document| RawDocumentBuf::try_from(document).unwrap();
        let id = raw(&doc! { "_id": ObjectId::from_bytes([7; 12]) });
        let token = raw(&doc! { "_data": "8265F0", "more": { "a": [1, 2.5] } });
        let first = |events, after| Place::First(First { from: token.clone(), events, upto: id.clone(), after });
        let bytes = Bson::Binary(mongodb::bson::Binary { subtype: BinarySubtype::Uuid, bytes: vec![0, 255] });
        for place in [
            Place::Behind(token.clone()),
            first(None, None),
            first(Some(token.clone()), Some(raw(&doc! { "_id": bytes.clone() }))),
        ] {
            assert_eq!(Place::parse(&place.token("db.c", None), "db.c", None).unwrap(), place);
            for (of, cursor, why) in [("db.d", None, "read `db.c`, and not `db.d`"), ("db.c", Some("n"), "its changes")]
            {
                let error = Place::parse(&place.token("db.c", None), of, cursor).unwrap_err().to_string();
                assert!(error.contains(why) && error.contains("another name"), "{error}");
            }
        }
        let row = |value: Bson, id| Place::Row(Some(Row { value, id }));
        for place in [
            Place::Row(None),
            row(Bson::DateTime(DateTime::from_millis(-5)), Some(bytes)),
            row("x".into(), None),
            row(Bson::Int64(i64::MAX), Some(Bson::MinKey)),
        ] {
            assert_eq!(Place::parse(&place.token("db.c", Some("n")), "db.c", Some("n")).unwrap(), place);
            let error = Place::parse(&place.token("db.c", Some("n")), "db.c", None).unwrap_err().to_string();
            assert!(error.contains("by `cursor = 'n'`"), "{error}");
        }
        for nonsense in ["", "7", "[\"1\"]", "{}", r#"{"of":7}"#] {
            let error = Place::parse(nonsense, "db.c", None).unwrap_err().to_string();
            assert!(error.contains("another connector"), "{error}");
        }
        for broken in [r#"{"of":"c"}"#, r#"{"of":"c","behind":"?"}"#, r#"{"of":"c","behind":"BQAAAAE="}"#] {
            assert!(Place::parse(broken, "c", None).unwrap_err().to_string().contains("can't be read"));
        }
    }
}
