//! Faults on the way to a real server, Mosquitto.
//!
//! Invariant: tokio's clock, by which the client's library waits too, stands still but for the suite. Run by `cargo test`.

use super::*;
use crate::faults::{Feed, Hands, Promise, check_receiver_faults};

struct Messages {
    server: SocketAddr,
    id: String,
    topic: String,
    hands: Hands,
}

#[async_trait]
impl Feed for Messages {
    fn address(&self) -> SocketAddr {
        self.server
    }
    fn receiver(&self, at: SocketAddr) -> Arc<dyn Receiver> {
        Arc::new(Mqtt::new(at.ip().to_string(), at.port(), &self.id, &self.topic))
    }
    async fn publish(&self, number: u64) {
        publish(self.server, &[(self.topic.clone(), number.to_string())], false).await;
    }
    fn number(&self, record: &[u8]) -> Option<u64> {
        std::str::from_utf8(record).ok()?.parse().ok()
    }
    fn promise(&self) -> Promise {
        Promise::AtLeastOnce
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
}

#[tokio::test]
async fn messages_come_at_least_once_whatever_breaks_on_the_way() {
    let Some(server) = server("TIDEMILL_MQTT") else { return };
    let (id, topic) = (name("faulty"), name("faults"));
    // A first life, whose session the server keeps: from here on it keeps what nobody hears.
    let first = subscribed(server, &client(server, &id, &topic), &topic).await;
    first.end().await;
    check_receiver_faults(&Messages { server, id, topic, hands: Hands::on_tokio() }).await;
}
