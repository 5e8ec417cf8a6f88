//! A message as a record.
//!
//! Invariant: the payload is in it whole: as it is where it is JSON, else as
//! text, else (no UTF-8) as base64 under another name. Called by
//! [`super::client`].

use super::Shape;
use crate::format::json::{Fault, Paths, items, scan};
use base64::{Engine, engine::general_purpose::STANDARD};
use rumqttc::v5::mqttbytes::v5::Publish;
use serde_json::json;

/// The record of a message.
pub(super) fn record(shape: Shape, message: &Publish) -> Vec<u8> {
    match shape {
        Shape::Payload => message.payload.to_vec(),
        Shape::Message => {
            let head = json!({
                "topic": String::from_utf8_lossy(&message.topic),
                "qos": message.qos as u8,
                "retain": message.retain,
            });
            let (name, value) = match std::str::from_utf8(&message.payload) {
                Ok(text) if is_json(text) => ("payload", text.trim().to_string()),
                Ok(text) => ("payload", json!(text).to_string()),
                Err(_) => ("payload_base64", json!(STANDARD.encode(&message.payload)).to_string()),
            };
            let head = head.to_string();
            // Numbers stay as they were written, which reading them would not warrant.
            format!("{},\"{name}\":{value}}}", head.trim_end_matches('}')).into_bytes()
        }
    }
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
    use rumqttc::v5::mqttbytes::QoS;

    fn message(payload: &[u8]) -> serde_json::Value {
        let mut message = Publish::new("a/\"b\"", QoS::AtLeastOnce, payload.to_vec(), None);
        message.retain = true;
        assert_eq!(record(Shape::Payload, &message), payload);
        serde_json::from_slice(&record(Shape::Message, &message)).unwrap()
    }

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
            let wanted = json!({"topic": "a/\"b\"", "qos": 1, "retain": true, "payload": wanted});
            assert_eq!(message(payload), wanted, "{payload:?}");
        }
        assert_eq!(message(b"\xff\x00")["payload_base64"], "/wA=");
    }
}
