//! A message as a record.
//!
//! Invariant: the payload is in it whole ([`crate::payload`]). Called by
//! [`super::client`].

use super::Shape;
use crate::payload::beside;
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
            beside(&head, "payload", &message.payload)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumqttc::v5::mqttbytes::QoS;

    #[test]
    fn a_message_is_its_payload_or_an_object_with_it() {
        let mut message = Publish::new("a/\"b\"", QoS::AtLeastOnce, b"{\"t\": 21.5}".to_vec(), None);
        message.retain = true;
        assert_eq!(record(Shape::Payload, &message), b"{\"t\": 21.5}");
        let whole: serde_json::Value = serde_json::from_slice(&record(Shape::Message, &message)).unwrap();
        assert_eq!(whole, json!({"topic": "a/\"b\"", "qos": 1, "retain": true, "payload": {"t": 21.5}}));
    }
}
