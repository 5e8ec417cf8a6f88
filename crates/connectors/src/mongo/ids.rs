//! What is known of values that the server orders, such as `_id`.
//!
//! A server compares by kind first (numbers, texts, documents, binary, object
//! ids, …), and `$gt` finds values of the kind of its operand alone: who reads
//! on behind a value must ask for the later kinds as well.
//!
//! Invariant: values of two kinds, or two values, have different marks. Called by
//! the history and the tail.

use mongodb::bson::{Bson, RawBsonRef};

/// The kinds that an `_id` may be of and `$type` may name, in the server's order.
const KINDS: [(u8, &[&str]); 9] = [
    (1, &["null"]),
    (2, &["int", "long", "double", "decimal"]),
    (3, &["string", "symbol"]),
    (4, &["object"]),
    (6, &["binData"]),
    (7, &["objectId"]),
    (8, &["bool"]),
    (9, &["date"]),
    (10, &["timestamp"]),
];

/// The place of a value's kind among the kinds.
pub(super) fn kind(value: RawBsonRef<'_>) -> u8 {
    match value {
        RawBsonRef::MinKey => 0,
        RawBsonRef::Null | RawBsonRef::Undefined => 1,
        RawBsonRef::Int32(_) | RawBsonRef::Int64(_) | RawBsonRef::Double(_) | RawBsonRef::Decimal128(_) => 2,
        RawBsonRef::String(_) | RawBsonRef::Symbol(_) => 3,
        RawBsonRef::Document(_) => 4,
        RawBsonRef::Array(_) => 5,
        RawBsonRef::Binary(_) => 6,
        RawBsonRef::ObjectId(_) => 7,
        RawBsonRef::Boolean(_) => 8,
        RawBsonRef::DateTime(_) => 9,
        RawBsonRef::Timestamp(_) => 10,
        RawBsonRef::MaxKey => 12,
        _ => 11,
    }
}

/// The names of the kinds behind one.
pub(super) fn kinds_after(kind: u8) -> Vec<Bson> {
    KINDS
        .iter()
        .filter(|(place, _)| *place > kind)
        .flat_map(|(_, names)| *names)
        .map(|name| Bson::from(*name))
        .collect()
}

/// A value as bytes that tell it from others.
pub(super) fn mark(value: RawBsonRef<'_>) -> Vec<u8> {
    let mut mark = vec![kind(value)];
    match value {
        RawBsonRef::ObjectId(value) => mark.extend_from_slice(&value.bytes()),
        RawBsonRef::String(text) => mark.extend_from_slice(text.as_bytes()),
        RawBsonRef::Int32(n) => mark.extend_from_slice(&i64::from(n).to_le_bytes()),
        RawBsonRef::Int64(n) => mark.extend_from_slice(&n.to_le_bytes()),
        RawBsonRef::Document(document) => mark.extend_from_slice(document.as_bytes()),
        // No whole number looks like this.
        other => mark.extend_from_slice(format!("{other:?}").as_bytes()),
    }
    mark
}

/// Whether a value surely lies behind another, by an order that no collation changes.
pub(super) fn is_beyond(value: RawBsonRef<'_>, other: RawBsonRef<'_>) -> bool {
    let whole = |value| match value {
        RawBsonRef::Int32(n) => Some(i64::from(n)),
        RawBsonRef::Int64(n) => Some(n),
        _ => None,
    };
    match (value, other) {
        (RawBsonRef::ObjectId(value), RawBsonRef::ObjectId(other)) => value.bytes() > other.bytes(),
        (value, other) => matches!((whole(value), whole(other)), (Some(value), Some(other)) if value > other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mongodb::bson::{DateTime, RawDocumentBuf, doc, oid::ObjectId};
    use std::collections::HashSet;

    fn raw(value: impl Into<Bson>) -> RawDocumentBuf {
        RawDocumentBuf::try_from(&doc! { "_id": value.into() }).unwrap()
    }

    #[test]
    fn marks_tell_values_apart_and_kinds_are_in_order() {
        let id = ObjectId::from_bytes(*b"twelve bytes");
        let values: [Bson; 8] = [
            Bson::Null,
            7_i64.into(),
            "twelve bytes".into(),
            "\u{7}\0\0\0\0\0\0\0".into(),
            doc! { "a": 1 }.into(),
            id.into(),
            true.into(),
            DateTime::from_millis(7).into(),
        ];
        let all: Vec<RawDocumentBuf> = values.iter().cloned().map(raw).collect();
        let of = |at: usize| all[at].get("_id").unwrap().unwrap();
        let marks: HashSet<Vec<u8>> = (0..all.len()).map(|at| mark(of(at))).collect();
        assert_eq!(marks.len(), all.len());
        assert!((1..all.len()).all(|at| kind(of(at - 1)) <= kind(of(at))));
        assert_eq!(mark(of(1)), mark(raw(7).get("_id").unwrap().unwrap()), "as the server compares them");
        assert_eq!(kinds_after(7), ["bool", "date", "timestamp"].map(Bson::from));
        assert_eq!(kinds_after(2)[0], Bson::from("string"));
    }

    #[test]
    fn only_what_no_collation_changes_is_beyond() {
        let beyond = |a: RawDocumentBuf, b: RawDocumentBuf| {
            is_beyond(a.get("_id").unwrap().unwrap(), b.get("_id").unwrap().unwrap())
        };
        let id = |last: u8| ObjectId::from_bytes([1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, last]);
        assert!(beyond(raw(id(2)), raw(id(1))) && !beyond(raw(id(1)), raw(id(1))) && !beyond(raw(id(1)), raw(id(2))));
        assert!(beyond(raw(8_i64), raw(7)) && !beyond(raw(7), raw(7_i64)));
        assert!(!beyond(raw("b"), raw("a")) && !beyond(raw(id(1)), raw(7)) && !beyond(raw(7.5), raw(7)));
    }
}
