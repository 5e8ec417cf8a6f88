//! Faults on the way to the server of `TIDEMILL_S3`, which has Kinesis too.
//!
//! Invariant: the reader's clock stands still but for the suite. Run by `cargo test`.

use super::{
    moto::{put, stream},
    *,
};
use crate::faults::{Feed, Hands, Promise, check_receiver_faults};
use std::net::SocketAddr;

struct Numbers {
    client: Client,
    clock: Arc<ManualClock>,
    hands: Hands,
}

#[async_trait]
impl Feed for Numbers {
    fn address(&self) -> SocketAddr {
        self.client.endpoint.trim_start_matches("http://").parse().unwrap()
    }
    fn receiver(&self, at: SocketAddr) -> Arc<dyn Receiver> {
        Arc::new(reader(&format!("http://{at}"), &self.clock, &[("stream", self.client.stream.shown())]))
    }
    async fn publish(&self, number: u64) {
        let number = u32::try_from(number).unwrap();
        put(&self.client, number..number + 1).await;
    }
    fn number(&self, record: &[u8]) -> Option<u64> {
        serde_json::from_slice::<Value>(record).ok()?["n"].as_u64()
    }
    fn promise(&self) -> Promise {
        Promise::Once
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
    fn asks(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn records_of_shards_come_once_whatever_breaks_on_the_way() {
    let Some(client) = stream("faulty", 2).await else { return };
    let clock = Arc::new(ManualClock::at(Timestamp(0)));
    let hands = Hands::on_clock(Arc::clone(&clock));
    check_receiver_faults(&Numbers { client, clock, hands }).await;
}
