//! Every collector with faults on the way to its simulated network.
//!
//! Those of [`super::once`] are made by the network itself, with its answers; these by a proxy, which knows no HTTP.
//!
//! Invariant: collectors' clocks stand still but for the suite. Run by `cargo test`.

use super::*;
use crate::{
    faults::{Feed, Hands, Promise, check_receiver_faults},
    http::Link,
};
use async_trait::async_trait;
use std::{collections::BTreeMap, net::SocketAddr};

/// Posts that a test may publish at most.
const MOST: usize = 600;

struct Posts {
    server: Server,
    network: Network,
    numbers: BTreeMap<String, u64>,
    hands: Hands,
    transport: Transport,
}

impl Posts {
    async fn of(network: Network) -> Self {
        // Questions are asked for hours here.
        let server = serve(Plan { limit: 1_000_000, ..plan(network, MOST) }).await;
        let numbers = wanted(network, MOST).into_iter().zip(0..).collect();
        let hands = Hands::on_clock(Arc::clone(&server.clock));
        Self { server, network, numbers, hands, transport: Transport::Events }
    }
}

#[async_trait]
impl Feed for Posts {
    fn address(&self) -> SocketAddr {
        self.server.url.trim_start_matches("http://").parse().unwrap()
    }
    fn receiver(&self, at: SocketAddr) -> Arc<dyn Receiver> {
        let (url, common) = (format!("http://{at}"), self.server.common(30));
        match self.network {
            Network::Bluesky => {
                let clock = Arc::clone(&self.server.clock) as Arc<dyn Clock>;
                let link = Link { clock, proxy: Proxy::Direct, ..Link::default() };
                let quick = crate::backoff::Backoff::between(Duration::from_millis(1), Duration::from_millis(50), 1);
                let client = crate::jetstream::Jetstream::new([format!("ws://{at}/subscribe")], 1);
                Arc::new(client.backoff(quick).link(link))
            }
            Network::Mastodon => {
                let client = Mastodon::new(url).transport(self.transport).token("sesame".into());
                Arc::new(client.common(common))
            }
            _ => {
                let clock = Arc::clone(&self.server.clock);
                let stage = Arc::clone(&self.server.stage);
                let at = Server { stage, url, clock, _stop: StopHandle::new().0 };
                at.receiver(self.network)
            }
        }
    }
    async fn publish(&self, _number: u64) {
        assert!(self.server.stage.published() < MOST, "more posts are wanted than there are");
        self.server.stage.publish(1);
    }
    fn number(&self, record: &[u8]) -> Option<u64> {
        self.numbers.get(&self.network.read(record).ok()?.id).copied()
    }
    fn promise(&self) -> Promise {
        if self.network == Network::XV1 { Promise::Forgotten } else { Promise::Once }
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
    fn asks(&self) -> bool {
        self.network == Network::Weibo
    }
    fn is_well(&self, state: &str) -> bool {
        state.starts_with("connected") || state.contains(" new posts of ")
    }
}

#[tokio::test]
async fn bluesky_stands_each_fault() {
    check_receiver_faults(&Posts::of(Network::Bluesky).await).await;
}

#[tokio::test]
async fn mastodon_stands_each_fault() {
    check_receiver_faults(&Posts::of(Network::Mastodon).await).await;
}

#[tokio::test]
async fn mastodon_over_a_websocket_stands_each_fault() {
    let posts = Posts { transport: Transport::WebSocket, ..Posts::of(Network::Mastodon).await };
    check_receiver_faults(&posts).await;
}

#[tokio::test]
async fn wikimedia_stands_each_fault() {
    check_receiver_faults(&Posts::of(Network::Wikimedia).await).await;
}

#[tokio::test]
async fn x_stands_each_fault() {
    check_receiver_faults(&Posts::of(Network::X).await).await;
}

#[tokio::test]
async fn version_1_of_x_stands_each_fault() {
    check_receiver_faults(&Posts::of(Network::XV1).await).await;
}

#[tokio::test]
async fn weibo_stands_each_fault() {
    check_receiver_faults(&Posts::of(Network::Weibo).await).await;
}
