//! From a body to records.
//!
//! Invariant: all records of a body come out, in order, as they stand in it, or
//! none does and the refusal names the first that is at fault and its byte.
//! Called by [`super::desk`].

use super::{Limits, answer::Refusal};
use crate::format::json::{Fault, Paths, Raw, items, scan, utf8};
use hyper::{HeaderMap, StatusCode, header};
use tidemill_core::{Block, Span};

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An object, or an array of objects.
    Json,
    /// An object a line; empty lines are none.
    JsonLines,
    /// A record a line.
    Lines,
    /// One record of bytes.
    Bytes,
}

const KINDS: &str = "application/json, application/x-ndjson, text/plain, text/csv, application/octet-stream";

impl Kind {
    /// What the headers say.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let given = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let name = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match name.as_str() {
            "application/json" => Ok(Self::Json),
            other if other.starts_with("application/") && other.ends_with("+json") => Ok(Self::Json),
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/jsonlines"
            | "application/x-jsonlines" => Ok(Self::JsonLines),
            "text/plain" | "text/csv" => Ok(Self::Lines),
            "application/octet-stream"
            | "application/avro"
            | "avro/binary"
            | "application/protobuf"
            | "application/x-protobuf" => Ok(Self::Bytes),
            _ => {
                let error = if name.is_empty() {
                    "the request does not say what its body is"
                } else {
                    "the body's Content-Type is not one that is taken here"
                };
                let fix = format!("send it with one of Content-Type: {KINDS}");
                Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error, fix).with("accept", KINDS))
            }
        }
    }
}

/// The records of a body.
pub(super) fn records(kind: Kind, body: Vec<u8>, limits: &Limits) -> Result<Block, Refusal> {
    let mut spans = Vec::new();
    let count = match kind {
        Kind::Json => json(&body, limits, &mut spans)?,
        Kind::JsonLines | Kind::Lines => lines(kind, &body, limits, &mut spans)?,
        Kind::Bytes => {
            if body.len() > limits.record {
                return Err(over_long(body.len(), "the body", limits));
            }
            push(0, body.len(), 1, limits, &mut spans)?;
            1
        }
    };
    if count > limits.records {
        let error = format!("the request has {count} records, more than {}", limits.records);
        return Err(Refusal::too_large(error, "max_records"));
    }
    Ok(Block::new(body, spans))
}

/// The lines that are records, and how many there are; those beyond the bound are counted and not kept, as a body of
/// few bytes may expand to very many.
fn lines(kind: Kind, body: &[u8], limits: &Limits, spans: &mut Vec<Span>) -> Result<usize, Refusal> {
    let (mut start, mut count, mut number) = (0, 0, 0);
    let rest = (!body.is_empty() && !body.ends_with(b"\n")).then_some(body.len());
    for end in memchr::memchr_iter(b'\n', body).chain(rest) {
        let (line, at) = (&body[start..end], start);
        // At a line's end, and not at that of the body.
        let line = if end < body.len() { line.strip_suffix(b"\r").unwrap_or(line) } else { line };
        (start, number) = (end + 1, number + 1);
        if line.len() > limits.record {
            return Err(over_long(line.len(), &format!("line {number}, byte {at}"), limits));
        }
        if kind == Kind::JsonLines && line.trim_ascii().is_empty() {
            continue;
        }
        count += 1;
        if count <= limits.records {
            push(at, line.len(), number, limits, spans)?;
        }
    }
    Ok(count)
}

fn over_long(len: usize, place: &str, limits: &Limits) -> Refusal {
    let error = format!("a record of {len} bytes, over the bound of {}", limits.record);
    Refusal::too_large(error, "max_line").at(place)
}

/// The objects of a body, as [`lines`].
fn json(body: &[u8], limits: &Limits, spans: &mut Vec<Span>) -> Result<usize, Refusal> {
    let text = utf8(body).map_err(|fault| not_json(fault, 0, None))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let trimmed = text.trim_ascii();
    // Where it begins in the body: all are slices of it.
    let place = |part: &str| part.as_ptr() as usize - body.as_ptr() as usize;
    let begin = if trimmed.is_empty() { body.len() } else { place(trimmed) };
    if !trimmed.starts_with('[') {
        scan(trimmed, &Paths::keys([""; 0]), |_, _| {}).map_err(|fault| not_json(fault, begin, None))?;
        push(begin, trimmed.len(), 1, limits, spans)?;
        return Ok(1);
    }
    let (mut end, mut count) = (1, 0);
    items::<Unfit>(trimmed, |raw| {
        let Raw::Object(object) = raw else { return Err(Unfit::NoObject(count + 1)) };
        count += 1;
        end = place(object) - begin + object.len();
        if count > limits.records {
            return Ok(());
        }
        push(place(object), object.len(), count, limits, spans).map_err(Unfit::Long)
    })
    .map_err(|unfit| match unfit {
        Unfit::Fault(fault) => not_json(fault, begin, Some(count + 1)),
        Unfit::NoObject(number) => {
            let error = "an item of the array is no object, and each is a record";
            Refusal::bad(error, "send an array of objects, or lines of text with Content-Type: text/plain")
                .at(format!("item {number}, after byte {}", begin + end))
        }
        Unfit::Long(refusal) => refusal,
    })?;
    let behind = trimmed[end..].trim_ascii_start().strip_prefix(']').unwrap_or_default();
    if behind.trim_ascii().is_empty() {
        return Ok(count);
    }
    Err(Refusal::bad(
        "bytes after the array",
        "send one array, or an object a line with Content-Type: application/x-ndjson",
    )
    .at(format!("byte {}", place(behind.trim_ascii()))))
}

enum Unfit {
    Fault(Fault),
    NoObject(usize),
    Long(Refusal),
}

impl From<Fault> for Unfit {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

fn push(start: usize, len: usize, number: usize, limits: &Limits, spans: &mut Vec<Span>) -> Result<(), Refusal> {
    let (Ok(from), Ok(to)) = (u32::try_from(start), u32::try_from(start + len)) else {
        return Err(Refusal::too_large("the request has over 4 GiB", "max_expanded"));
    };
    if len > limits.record {
        return Err(over_long(len, &format!("record {number}, byte {start}"), limits));
    }
    spans.push(Span { start: from, end: to });
    Ok(())
}

fn not_json(fault: Fault, begin: usize, item: Option<usize>) -> Refusal {
    let fix = if fault.what == "bytes after the object" {
        "send one object or an array of objects, or an object a line with Content-Type: application/x-ndjson"
    } else {
        "send one JSON object, or an array of objects"
    };
    let at = begin + fault.at;
    let place = item.map_or_else(|| format!("byte {at}"), |item| format!("item {item}, byte {at}"));
    Refusal::bad(format!("the body is not JSON: {}", fault.what), fix).at(place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(kind: Kind, body: &str) -> Result<Vec<String>, Refusal> {
        let limits = Limits { record: 40, records: 5, ..Limits::default() };
        let block = records(kind, body.as_bytes().to_vec(), &limits)?;
        Ok(block.records().map(|r| String::from_utf8(r.to_vec()).unwrap()).collect())
    }

    #[test]
    fn bodies_are_cut_as_they_say() {
        for (kind, body, wanted) in [
            (Kind::Json, " {\"a\": [1, {}]}\n", vec!["{\"a\": [1, {}]}"]),
            (Kind::Json, "\u{feff}{\"a\":1}", vec!["{\"a\":1}"]),
            (Kind::Json, "[ ]", vec![]),
            (Kind::Json, "\u{feff} [{\"a\":\"]\"} ,\n {} ]\r\n", vec!["{\"a\":\"]\"}", "{}"]),
            (Kind::JsonLines, "{\"a\":1}\r\n\n  \nnot json\n{}", vec!["{\"a\":1}", "not json", "{}"]),
            (Kind::Lines, "a\n\nb\n", vec!["a", "", "b"]),
            (Kind::Lines, "", vec![]),
        ] {
            assert_eq!(cut(kind, body).unwrap(), wanted, "{body:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(40));
        for (kind, body, status, error, place) in [
            (Kind::Json, "", 400, "the record is empty", "byte 0"),
            (Kind::Json, "7", 400, "expected an object", "byte 0"),
            (Kind::Json, " {\"a\":1} {}", 400, "bytes after the object", "byte 9"),
            (Kind::Json, "[{}, {\"a\":1}, {\"a\"]", 400, "expected a colon", "item 3, byte 18"),
            (Kind::Json, "[{}, 7]", 400, "no object", "item 2, after byte 3"),
            (Kind::Json, "[{}] x", 400, "bytes after the array", "byte 5"),
            (Kind::Json, "[{}", 400, "ends too early", "item 2, byte 3"),
            (Kind::Json, &format!("[{{}},{long}]"), 413, "a record of 48 bytes", "record 2, byte 4"),
            (Kind::Lines, &format!("a\nb\n{long}\nc"), 413, "a record of 48 bytes", "line 3, byte 4"),
        ] {
            let refusal = cut(kind, body).unwrap_err();
            assert_eq!(refusal.status.as_u16(), status, "{body}: {refusal:?}");
            assert!(refusal.error.contains(error), "{body}: {refusal:?}");
            assert_eq!(refusal.place.as_deref(), Some(place), "{body}: {refusal:?}");
        }
        let many = cut(Kind::Lines, "1\n2\n3\n4\n5\n6\n").unwrap_err();
        assert!(many.error.contains("6 records") && many.fix.contains("`max_records`"), "{many:?}");
        let bytes = records(Kind::Json, b"{\"a\":\"\xff\"}".to_vec(), &Limits::default()).unwrap_err();
        assert_eq!(bytes.place.as_deref(), Some("byte 6"));
    }

    #[test]
    fn records_beyond_the_bound_are_counted_and_not_kept() {
        let (limits, mut spans) = (Limits { records: 5, ..Limits::default() }, Vec::new());
        assert_eq!(lines(Kind::Lines, &vec![b'\n'; 1 << 20], &limits, &mut spans).unwrap(), 1 << 20);
        assert!(spans.capacity() <= 16, "{}", spans.capacity());
        let (body, mut spans) = (format!("[{}{{}}]", "{},".repeat(1000)), Vec::new());
        assert_eq!(json(body.as_bytes(), &limits, &mut spans).unwrap(), 1001);
        assert!(spans.capacity() <= 16, "{}", spans.capacity());
    }

    proptest! {
        /// Objects written with any space between them come out as they went in; serde_json is the judge of the rest.
        #[test]
        fn arrays_are_cut_where_their_items_end(
            texts in prop::collection::vec("[ -~é\\n]{0,12}", 0..5),
            space in "[ \\n\\t]{0,3}",
        ) {
            let objects: Vec<String> = texts.iter().map(|t| serde_json::json!({ "t": t, "l": [t] }).to_string()).collect();
            let body = format!("{space}[{space}{}{space}]{space}", objects.join(&format!("{space},{space}")));
            let limits = Limits::default();
            let block = records(Kind::Json, body.into_bytes(), &limits).unwrap();
            let got: Vec<String> = block.records().map(|r| String::from_utf8(r.to_vec()).unwrap()).collect();
            prop_assert_eq!(got, objects);
        }

        /// Whatever comes, it does not panic, and what is taken as an array is one.
        #[test]
        fn nonsense_is_refused_or_right(body in "[\\[\\]{},\" a1:]{0,24}") {
            let taken = records(Kind::Json, body.clone().into_bytes(), &Limits::default());
            let judge: Result<serde_json::Value, _> = serde_json::from_str(&body);
            let right = match &judge {
                Ok(serde_json::Value::Object(_)) => Some(1),
                Ok(serde_json::Value::Array(items)) if items.iter().all(serde_json::Value::is_object) => Some(items.len()),
                _ => None,
            };
            prop_assert_eq!(taken.ok().map(|block| block.len()), right);
        }
    }
}
