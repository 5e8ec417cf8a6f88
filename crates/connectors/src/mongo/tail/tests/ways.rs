//! Faults on the way to nx-27017 (`TIDEMILL_MONGODB_TTL`), which has change streams.
//!
//! Invariant: tokio's clock, by which the driver waits too, stands still but for the suite. Run by `cargo test`.

use super::*;
use crate::faults::{Feed, Hands, Promise, check_receiver_faults};
use std::net::SocketAddr;

struct Documents {
    url: String,
    way: Way,
    hands: Hands,
}

#[async_trait]
impl Feed for Documents {
    fn address(&self) -> SocketAddr {
        self.way.url.trim_start_matches("mongodb://").split('/').next().unwrap().parse().unwrap()
    }
    fn receiver(&self, at: SocketAddr) -> Arc<dyn Receiver> {
        Arc::new(tail(&format!("mongodb://{at}/tail"), "faulty", &[]))
    }
    async fn publish(&self, number: u64) {
        let n = i64::try_from(number).unwrap();
        probe::insert(&self.url, "faulty", vec![doc! { "_id": format!("{n:05}"), "n": n }]).await;
    }
    fn number(&self, record: &[u8]) -> Option<u64> {
        serde_json::from_slice::<serde_json::Value>(record).ok()?["n"].as_u64()
    }
    fn promise(&self) -> Promise {
        Promise::Once
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
    fn mends(&self) -> bool {
        // The driver asks again for changes by itself, once.
        true
    }
}

#[tokio::test]
async fn documents_come_once_whatever_breaks_on_the_way() {
    let Some((url, way)) = streaming("faulty").await else { return };
    check_receiver_faults(&Documents { url, way, hands: Hands::on_tokio() }).await;
}
