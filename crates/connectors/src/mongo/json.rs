//! Documents as lines of JSON.
//!
//! | In the document | In the line |
//! |---|---|
//! | numbers, text, booleans, null, documents, arrays | the same |
//! | date | text: `2026-01-31T15:00:00.000Z` |
//! | object id, decimal, other rare kinds | text |
//! | binary | text: base64 |
//! | a number that is none, or infinite | null |
//!
//! Invariant: a line holds no line end, and no document takes more of the stack than [`DEPTH`] levels do.
//! Called by the history and the tail.

use base64::{Engine, engine::general_purpose::STANDARD};
use mongodb::bson::{RawArray, RawBsonRef, RawDocument};
use std::io::Write;
use tidemill_core::{Error, Result, Timestamp};

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::external("mongodb: a document is malformed").because(error).fatal()
}

/// Levels of documents and arrays within each other, at most; servers take 100.
const DEPTH: usize = 200;

/// Writes a document.
///
/// # Errors
/// When it is malformed.
pub(super) fn put(document: &RawDocument, out: &mut Vec<u8>) -> Result<()> {
    put_document(document, DEPTH, out)
}

/// Writes a document with one more member, a text, which is there in place of the document's own of that name.
///
/// # Errors
/// When it is malformed.
pub(super) fn put_with(document: &RawDocument, name: &str, text: &str, out: &mut Vec<u8>) -> Result<()> {
    out.push(b'{');
    for member in document {
        let (key, value) = member.map_err(broken)?;
        if key.as_str() != name {
            put_text(key.as_str(), out);
            out.push(b':');
            put_value(value, DEPTH, out)?;
            out.push(b',');
        }
    }
    put_text(name, out);
    out.push(b':');
    put_text(text, out);
    out.push(b'}');
    Ok(())
}

fn deeper(depth: usize) -> Result<usize> {
    let error = || Error::external(format!("mongodb: a document of over {DEPTH} levels")).fatal();
    depth.checked_sub(1).ok_or_else(error)
}

fn put_document(document: &RawDocument, depth: usize, out: &mut Vec<u8>) -> Result<()> {
    let depth = deeper(depth)?;
    out.push(b'{');
    for (n, member) in document.iter().enumerate() {
        let (name, value) = member.map_err(broken)?;
        if n > 0 {
            out.push(b',');
        }
        put_text(name.as_str(), out);
        out.push(b':');
        put_value(value, depth, out)?;
    }
    out.push(b'}');
    Ok(())
}

fn put_array(array: &RawArray, depth: usize, out: &mut Vec<u8>) -> Result<()> {
    let depth = deeper(depth)?;
    out.push(b'[');
    for (n, value) in array.into_iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        put_value(value.map_err(broken)?, depth, out)?;
    }
    out.push(b']');
    Ok(())
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    // Writing to memory does not fail.
    let _written = serde_json::to_writer(out, text);
}

fn put_value(value: RawBsonRef<'_>, depth: usize, out: &mut Vec<u8>) -> Result<()> {
    match value {
        RawBsonRef::Document(document) => return put_document(document, depth, out),
        RawBsonRef::Array(array) => return put_array(array, depth, out),
        RawBsonRef::String(text) | RawBsonRef::Symbol(text) => put_text(text, out),
        RawBsonRef::Int32(n) => drop(write!(out, "{n}")),
        RawBsonRef::Int64(n) => drop(write!(out, "{n}")),
        RawBsonRef::Double(n) => drop(serde_json::to_writer(out, &n)),
        RawBsonRef::Boolean(b) => out.extend_from_slice(if b { b"true" } else { b"false" }),
        RawBsonRef::DateTime(at) => drop(write!(out, "\"{}\"", Timestamp::from_millis(at.timestamp_millis()))),
        RawBsonRef::ObjectId(id) => drop(write!(out, "\"{id}\"")),
        RawBsonRef::Binary(binary) => drop(write!(out, "\"{}\"", STANDARD.encode(binary.bytes))),
        RawBsonRef::Null | RawBsonRef::Undefined => out.extend_from_slice(b"null"),
        RawBsonRef::Decimal128(n) => put_text(&n.to_string(), out),
        other => put_text(&format!("{other:?}"), out),
    }
    Ok(())
}

/// The value of a member, which may lie within others: `user.created_at`.
pub(super) fn member<'a>(document: &'a RawDocument, path: &str) -> Option<RawBsonRef<'a>> {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let value = document.get(first).ok().flatten()?;
    match (value, rest) {
        (value, None) => Some(value),
        (RawBsonRef::Document(within), Some(rest)) => member(within, rest),
        _ => None,
    }
}

/// The time that a value is: a date, a text of ISO 8601, or milliseconds since 1970.
pub(super) fn time_of(value: RawBsonRef<'_>) -> Option<Timestamp> {
    match value {
        RawBsonRef::DateTime(at) => Some(Timestamp::from_millis(at.timestamp_millis())),
        RawBsonRef::String(text) => crate::format::time::instant(text).map(Timestamp),
        RawBsonRef::Int64(millis) => Some(Timestamp::from_millis(millis)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mongodb::bson::{Binary, Bson, DateTime, RawDocumentBuf, doc, oid::ObjectId, spec::BinarySubtype};

    #[test]
    fn documents_are_lines() {
        let document = doc! {
            "_id": ObjectId::parse_str("65f0a1b2c3d4e5f601234567").unwrap(), "n": 7, "m": 9_007_199_254_740_993_i64, "x": 0.5,
            "nan": f64::NAN, "text": "a \"b\"\n潮", "at": DateTime::from_millis(1_500), "yes": true, "none": Bson::Null,
            "list": [1, "two", { "three": 3 }], "within": { "at": "2026-01-31T15:00:00Z", "empty": {} },
            "raw": Binary { subtype: BinarySubtype::Generic, bytes: b"ebb".to_vec() },
        };
        let raw = RawDocumentBuf::try_from(&document).unwrap();
        let mut line = Vec::new();
        put(&raw, &mut line).unwrap();
        assert_eq!(
            String::from_utf8(line).unwrap(),
            "{\"_id\":\"65f0a1b2c3d4e5f601234567\",\"n\":7,\"m\":9007199254740993,\"x\":0.5,\"nan\":null,\
             \"text\":\"a \\\"b\\\"\\n潮\",\"at\":\"1970-01-01T00:00:01.500Z\",\"yes\":true,\"none\":null,\
             \"list\":[1,\"two\",{\"three\":3}],\"within\":{\"at\":\"2026-01-31T15:00:00Z\",\"empty\":{}},\"raw\":\"ZWJi\"}"
        );
        let time = |path| member(&raw, path).and_then(time_of);
        assert_eq!(time("at"), Some(Timestamp(1_500_000)));
        assert_eq!(time("within.at"), Some(Timestamp(1_769_871_600_000_000)));
        assert_eq!(time("m"), Some(Timestamp::from_millis(9_007_199_254_740_993)));
        assert_eq!((time("text"), time("no"), time("n.at")), (None, None, None));
    }

    #[test]
    fn a_member_more_takes_the_place_of_one_of_its_name() {
        let raw = RawDocumentBuf::try_from(&doc! { "_id": 1, "_change": { "own": true }, "n": 2 }).unwrap();
        let mut line = Vec::new();
        put_with(&raw, "_change", "insert", &mut line).unwrap();
        assert_eq!(String::from_utf8(line).unwrap(), r#"{"_id":1,"n":2,"_change":"insert"}"#);
        let mut line = Vec::new();
        put_with(&RawDocumentBuf::new(), "_change", "delete", &mut line).unwrap();
        assert_eq!(String::from_utf8(line).unwrap(), r#"{"_change":"delete"}"#);
    }

    #[test]
    fn what_is_nested_without_end_is_refused() {
        let nested = |levels: usize, kind: u8| {
            let mut bytes = vec![5, 0, 0, 0, 0];
            for _ in 0..levels {
                let mut outer = (i32::try_from(bytes.len()).unwrap() + 8).to_le_bytes().to_vec();
                outer.extend_from_slice(&[kind, b'0', 0]);
                outer.append(&mut bytes);
                outer.push(0);
                bytes = outer;
            }
            RawDocumentBuf::from_bytes(bytes).unwrap()
        };
        for kind in [3, 4] {
            put(&nested(150, kind), &mut Vec::new()).unwrap();
            let error = put(&nested(30_000, kind), &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains("over 200 levels"), "{error}");
        }
    }
}
