//! A payload of any bytes within a JSON object.
//!
//! Invariant: the payload is in it whole: as it is where it is JSON, else as
//! text, else (no UTF-8) as base64 under another name. Called by receivers
//! whose messages have something beside their payload.

use crate::format::json::{Fault, Paths, items, scan};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

/// The object `head`, which has at least one field, with the payload as its last: `name`, or `name_base64`.
pub(crate) fn beside(head: &Value, name: &str, payload: &[u8]) -> Vec<u8> {
    let (suffix, value) = match std::str::from_utf8(payload) {
        Ok(text) if is_json(text) => ("", text.trim().to_string()),
        Ok(text) => ("", json!(text).to_string()),
        Err(_) => ("_base64", json!(STANDARD.encode(payload)).to_string()),
    };
    let head = head.to_string();
    // Numbers stay as they were written, which reading them would not warrant.
    let head = head.strip_suffix('}').unwrap_or(&head);
    format!("{head},\"{name}{suffix}\":{value}}}").into_bytes()
}

fn is_json(text: &str) -> bool {
    let array = format!("[{text}]");
    let mut count = 0;
    // One value, and nothing behind it.
    let whole = items::<Fault>(&array, |_| {
        count += 1;
        Ok(())
    });
    whole.is_ok() && count == 1 && scan(&format!("{{\"a\":{text}}}"), &Paths::keys([""; 0]), |_, _| {}).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_in_it_whole() {
        for (payload, wanted) in [
            (&b" {\"t\": 21.50} "[..], json!({"t": 21.5})),
            (b"21.50", json!(21.5)),
            (b"[1,2]", json!([1, 2])),
            (b"on", json!("on")),
            (b"", json!("")),
            (b"1,2", json!("1,2")),
            (b"1],[2", json!("1],[2")),
            (b"1}, {", json!("1}, {")),
            (b"1,\"b\":2", json!("1,\"b\":2")),
        ] {
            // A field that ends by a brace of its own stays whole.
            let whole = beside(&json!({"z": {"a": {}}}), "payload", payload);
            let whole: Value = serde_json::from_slice(&whole).unwrap();
            assert_eq!(whole, json!({"z": {"a": {}}, "payload": wanted}), "{payload:?}");
        }
        let whole = beside(&json!({"a": 1}), "data", b"\xff\x00");
        assert_eq!(whole, b"{\"a\":1,\"data_base64\":\"/wA=\"}");
        assert_eq!(beside(&json!({"a": 1}), "data", b"1.50"), b"{\"a\":1,\"data\":1.50}");
    }
}
