//! Receivers that connect to servers of this machine: `tcp`, `sse`, `websocket`.
//!
//! Invariant: what waits in them waits on a clock that the suite moves: tokio's own, which stands still, or the one that
//! collectors are given. Run by `cargo test`.

use super::{
    super::*,
    servers::{Events, Lines, Sockets, number, record},
};
use crate::{
    http::{Link, proxy::Proxy},
    social::common::Common,
    sse::Sse,
    tcp::TcpClient,
    websocket::WebSocket,
};
use async_trait::async_trait;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tidemill_core::{Clock, Input, ManualClock, Options, Receiver, Timestamp};

/// What collectors have, on a clock that the hands move.
fn common() -> (Common, Hands) {
    let clock = Arc::new(ManualClock::at(Timestamp(0)));
    let mut common = Common::new(Duration::from_secs(60));
    common.link = Link { clock: Arc::clone(&clock) as Arc<dyn Clock>, proxy: Proxy::Direct, ..Link::default() };
    common.gather = Some(Duration::ZERO);
    (common, Hands::on_clock(clock))
}

struct OverTcp(Lines, Hands);

#[async_trait]
impl Feed for OverTcp {
    fn address(&self) -> SocketAddr {
        self.0.address
    }
    fn receiver(&self, at: SocketAddr) -> Arc<dyn Receiver> {
        let address = at.to_string();
        let options = Options::new("s", [("address", address.as_str()), ("idle_timeout", "60s")]);
        match TcpClient::input(&options).unwrap() {
            Input::Receivers(all) => Arc::clone(&all[0]),
            Input::Source(_) => panic!("a receiver"),
        }
    }
    async fn publish(&self, number: u64) {
        self.0.publish(&record(number));
    }
    fn number(&self, record: &[u8]) -> Option<u64> {
        number(record)
    }
    fn promise(&self) -> Promise {
        Promise::Forgotten
    }
    fn hands(&self) -> &Hands {
        &self.1
    }
}

#[tokio::test]
async fn lines_over_tcp_stand_each_fault() {
    let server = Lines::serve().await;
    check_receiver_faults(&OverTcp(server, Hands::on_tokio())).await;
}

struct OverSse(Events, Common, Hands);

#[async_trait]
impl Feed for OverSse {
    fn address(&self) -> SocketAddr {
        self.0.address
    }
    fn receiver(&self, at: SocketAddr) -> Arc<dyn Receiver> {
        Arc::new(Sse::new(format!("http://{at}/events")).common(self.1.clone()))
    }
    async fn publish(&self, number: u64) {
        self.0.publish(number);
    }
    fn number(&self, record: &[u8]) -> Option<u64> {
        number(record)
    }
    fn promise(&self) -> Promise {
        Promise::Once
    }
    fn hands(&self) -> &Hands {
        &self.2
    }
}

#[tokio::test]
async fn server_sent_events_stand_each_fault() {
    let (common, hands) = common();
    check_receiver_faults(&OverSse(Events::serve().await, common, hands)).await;
}

struct OverWebSocket(Sockets, Common, Hands);

#[async_trait]
impl Feed for OverWebSocket {
    fn address(&self) -> SocketAddr {
        self.0.address
    }
    fn receiver(&self, at: SocketAddr) -> Arc<dyn Receiver> {
        Arc::new(WebSocket::new([format!("ws://{at}/feed")]).common(self.1.clone()))
    }
    async fn publish(&self, number: u64) {
        self.0.publish(record(number));
    }
    fn number(&self, record: &[u8]) -> Option<u64> {
        number(record)
    }
    fn promise(&self) -> Promise {
        Promise::Forgotten
    }
    fn hands(&self) -> &Hands {
        &self.2
    }
}

#[tokio::test]
async fn a_websocket_stands_each_fault() {
    let (common, hands) = common();
    check_receiver_faults(&OverWebSocket(Sockets::serve().await, common, hands)).await;
}
