//! Source and sink with each fault on the way to the server, by the suites of [`crate::faults`].
//!
//! A client goes to the address that the broker tells, so the proxy stands there: at ports that listeners of
//! `ci/kafka` advertise. librdkafka has a clock of its own, which nobody moves: the waits that its settings bound are
//! short here, and a second of the suites is [`SECOND`] of real time.
//!
//! Invariant: what is published and what is seen goes past the proxy. Run by `cargo test` where `ci/services up` has
//! started the server.

use super::*;
use crate::{
    faults::{FaultProxy, Hands, Shelf, Spring, check_sink_faults, check_source_faults},
    kafka::probe,
};
use async_trait::async_trait;
use std::{net::SocketAddr, ops::Range, sync::Arc, time::Duration};

/// What stands for a second of the suites.
const SECOND: Duration = Duration::from_millis(20);

/// Waits of librdkafka, which are minutes where nobody says otherwise.
const SHORT: &str = "socket.timeout.ms=500, socket.connection.setup.timeout.ms=1000, api.version.request.timeout.ms=500, \
                     reconnect.backoff.ms=10, reconnect.backoff.max.ms=50, retry.backoff.ms=20, retry.backoff.max.ms=50";

/// Hands on no clock: time passes, and less of it than they say.
fn hands() -> Hands {
    Hands::moving(|span| Box::pin(tokio::time::sleep(SECOND.mul_f64(span.as_secs_f64()).min(SECOND * 10))))
}

fn listener(brokers: &str, further: u16) -> SocketAddr {
    probe::listener(brokers, further).parse().unwrap()
}

/// Listeners of the broker, each with the way for one test: at the port after it, to which it sends its clients.
const READ: u16 = 6;
const ONCE: u16 = 8;
const OFTEN: u16 = 10;

fn way(brokers: &str, listens: u16) -> FaultProxy {
    FaultProxy::at(listener(brokers, listens + 1), listener(brokers, listens))
}

/// Does what waits for the network beside the test, whose proxy goes on meanwhile.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// A topic of two partitions that is read.
struct Read {
    brokers: String,
    hands: Hands,
}

#[async_trait]
impl Spring for Read {
    fn address(&self) -> SocketAddr {
        listener(&self.brokers, READ)
    }
    fn way(&self) -> FaultProxy {
        way(&self.brokers, READ)
    }
    fn source(&self, at: SocketAddr) -> Arc<dyn Source> {
        let at = at.to_string();
        Arc::new(source(&with(&at, "ways-in", &[("properties", SHORT)])).unwrap())
    }
    async fn publish(&self, numbers: Range<u64>) {
        let brokers = self.brokers.clone();
        let records = numbers.map(|number| (None, format!("record {number}")));
        // To any of the partitions.
        beside(move || probe::produce(&brokers, "ways-in", -1, records, None)).await;
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
    fn turns(&self) -> u64 {
        // Cursors fetch ahead, so turns of a read have no end.
        8
    }
}

/// A topic that is written, exactly once or at least once.
struct Written {
    brokers: String,
    listens: u16,
    topic: &'static str,
    guarantee: &'static str,
    dir: tempfile::TempDir,
    hands: Hands,
}

#[async_trait]
impl Shelf for Written {
    fn address(&self) -> SocketAddr {
        listener(&self.brokers, self.listens)
    }
    fn way(&self) -> FaultProxy {
        way(&self.brokers, self.listens)
    }
    fn sink(&self, at: SocketAddr) -> Arc<dyn Sink> {
        let at = at.to_string();
        let more = [("properties", SHORT), ("guarantee", self.guarantee), ("delivery_timeout", "3s")];
        let sink = sink(&with(&at, self.topic, &more)).unwrap();
        sink.place(&format!("test/{}", self.topic), self.dir.path());
        Arc::new(sink)
    }
    async fn seen(&self) -> Vec<i64> {
        let (brokers, topic) = (self.brokers.clone(), self.topic);
        let all = beside(move || probe::committed(&brokers, topic)).await;
        let number = |value: &str| serde_json::from_str::<serde_json::Value>(value).unwrap()["n"].as_i64().unwrap();
        all.iter().map(|record| number(&record.3)).collect()
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
}

async fn written(listens: u16, topic: &'static str, guarantee: &'static str) {
    let Some(brokers) = probe::server() else { return };
    probe::fresh(&brokers, topic, 1);
    let dir = tempfile::tempdir().unwrap();
    check_sink_faults(&Written { brokers, listens, topic, guarantee, dir, hands: hands() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_read_once_whatever_is_lost_on_the_way() {
    let Some(brokers) = probe::server() else { return };
    probe::topic(&brokers, "ways-in", 2, &[]);
    check_source_faults(&Read { brokers, hands: hands() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_has_each_row_once_whatever_is_lost_on_the_way() {
    written(ONCE, "ways-once", "exactly once").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_has_each_row_at_least_once_whatever_is_lost_on_the_way() {
    written(OFTEN, "ways-often", "at least once").await;
}
