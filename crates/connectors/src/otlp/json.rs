//! OTLP's encoding as JSON, and what a collector answers in it.
//!
//! As the protocol has it: ids in hexadecimal, 64-bit integers as texts, enums as
//! numbers, names in lowerCamelCase. Invariant: what is not in the answer, or is no
//! JSON, means that all was taken: its status says so. Called by [`super::export`].

use super::spans::{Span, Value};
use serde_json::{Value as Json, json};

/// `SPAN_KIND_INTERNAL`.
const INTERNAL: u8 = 1;
/// `STATUS_CODE_ERROR`.
const ERROR: u8 = 2;
/// Characters of a collector's words that are shown.
const SHOWN: usize = 300;

/// A request with these spans of a program.
pub(super) fn request(program: &str, version: &str, spans: &[Span]) -> Vec<u8> {
    let resource = [text("service.name", program), text("service.version", version)];
    let request = json!({
        "resourceSpans": [{
            "resource": { "attributes": resource },
            "scopeSpans": [{
                "scope": { "name": "tidemill", "version": version },
                "spans": spans.iter().map(span).collect::<Vec<_>>(),
            }],
        }],
    });
    request.to_string().into_bytes()
}

fn span(span: &Span) -> Json {
    let mut json = json!({
        "traceId": hex(&span.trace),
        "spanId": hex(&span.id),
        "name": span.name,
        "kind": INTERNAL,
        "startTimeUnixNano": nanos(span.at.begun),
        "endTimeUnixNano": nanos(span.at.ended),
        "attributes": span.attributes.iter().map(|(key, value)| attribute(key, value)).collect::<Vec<_>>(),
    });
    if let Some(parent) = &span.parent {
        json["parentSpanId"] = hex(parent).into();
    }
    if let Some(error) = &span.error {
        json["status"] = json!({ "code": ERROR, "message": error });
    }
    if let Some(trouble) = &span.trouble {
        let attributes = [text("exception.message", trouble)];
        json["events"] =
            json!([{ "timeUnixNano": nanos(span.at.ended), "name": "exception", "attributes": attributes }]);
    }
    json
}

fn text(key: &str, value: &str) -> Json {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn attribute(key: &str, value: &Value) -> Json {
    match value {
        Value::Text(value) => text(key, value),
        Value::Whole(value) => json!({ "key": key, "value": { "intValue": value.to_string() } }),
        Value::Float(value) => json!({ "key": key, "value": { "doubleValue": value } }),
    }
}

/// Nanoseconds since 1970; a time before it is not known there.
fn nanos(at: tidemill_core::Timestamp) -> String {
    u64::try_from(at.0).unwrap_or(0).saturating_mul(1000).to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Spans that a collector has not taken though its answer is a success, and why.
pub(super) fn rejected(answer: &[u8]) -> (u64, String) {
    let Ok(answer) = serde_json::from_slice::<Json>(answer) else { return (0, String::new()) };
    let partial = &answer["partialSuccess"];
    let count = &partial["rejectedSpans"];
    let count = count.as_u64().or_else(|| count.as_str()?.parse().ok()).unwrap_or(0);
    let why = partial["errorMessage"].as_str().unwrap_or_default();
    (count, why.chars().filter(|c| !c.is_control()).take(SHOWN).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_and_nonsense_is_none() {
        let of = |text: &str| rejected(text.as_bytes());
        assert_eq!(of(r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"too\nold"}}"#), (3, "tooold".into()));
        assert_eq!(of(r#"{"partialSuccess":{"rejectedSpans":3}}"#), (3, String::new()));
        for none in [
            "",
            "{}",
            "[]",
            "\"x\"",
            "<html>",
            "{\"partialSuccess\":[]}",
            "{\"partialSuccess\":{\"rejectedSpans\":-1}}",
        ] {
            assert_eq!(of(none), (0, String::new()), "{none}");
        }
    }

    #[test]
    fn times_are_nanoseconds_and_ids_hexadecimal() {
        assert_eq!(nanos(tidemill_core::Timestamp(1_700_000_000_123_456)), "1700000000123456000");
        assert_eq!(nanos(tidemill_core::Timestamp(-5)), "0");
        assert_eq!(hex(&[0, 10, 255]), "000aff");
    }
}
