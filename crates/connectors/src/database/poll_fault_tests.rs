//! The stream `postgres` with faults on the way to a real server, that of `TIDEMILL_POSTGRES`.
//!
//! Invariant: both clocks stand still but for the suite: the stream's own, by which it looks again, and tokio's, which
//! bounds each answer. Run by `cargo test` where `ci/services up` has started the server.

use super::*;
use crate::{
    contract::Recorder,
    database::{
        fault_tests::{place, through},
        probe,
        tests::postgres_server::server,
    },
    faults::{Fault, FaultProxy, Feed, Hands, Promise, When, check_receiver_faults},
};
use std::net::SocketAddr;
use tidemill_core::{Clock, ManualClock, StopHandle};

struct Changes {
    url: String,
    table: &'static str,
    clock: Arc<ManualClock>,
    hands: Hands,
}

impl Changes {
    /// A table of its own.
    async fn of(table: &'static str) -> Option<Self> {
        let url = server(table).await?;
        probe::postgres(&url, &format!("CREATE TABLE {table} (id BIGINT PRIMARY KEY)")).await;
        let clock = Arc::new(ManualClock::at(Timestamp(0)));
        let own = Arc::clone(&clock);
        let hands = Hands::moving(move |span| {
            own.advance(span);
            Box::pin(tokio::time::advance(span))
        });
        tokio::time::pause();
        Some(Self { url, table, clock, hands })
    }
}

#[async_trait]
impl Feed for Changes {
    fn address(&self) -> SocketAddr {
        place(&self.url)
    }
    fn receiver(&self, at: SocketAddr) -> Arc<dyn Receiver> {
        let url = through(&self.url, at);
        let options = Options::new("stream \"s\"", [("url", url.as_str()), ("table", self.table), ("cursor", "id")]);
        let mut rows = PostgresRows::from_options(&options).unwrap();
        rows.link.clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        Arc::new(rows)
    }
    async fn publish(&self, number: u64) {
        probe::postgres(&self.url, &format!("INSERT INTO {} VALUES ({number})", self.table)).await;
    }
    fn number(&self, record: &[u8]) -> Option<u64> {
        serde_json::from_slice::<serde_json::Value>(record).ok()?["id"].as_u64()
    }
    fn promise(&self) -> Promise {
        Promise::Once
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
}

#[tokio::test]
async fn new_rows_come_once_whatever_breaks_on_the_way() {
    let Some(changes) = Changes::of("faulty_rows").await else { return };
    check_receiver_faults(&changes).await;
}

/// Handshakes of a server that is silent may take a minute and more, and a stop does not wait for them.
#[tokio::test]
async fn a_stop_does_not_wait_for_a_server_that_is_silent() {
    let Some(changes) = Changes::of("faulty_stop").await else { return };
    // To the first word of a connection, and to the first question on it.
    for answers in [0, 1] {
        let proxy = FaultProxy::to(changes.address());
        proxy.arm(When::Answered(answers), Fault::Silence);
        let (receiver, intake) = (changes.receiver(proxy.address()), Recorder::resuming(None));
        let (stop, stopped) = StopHandle::new();
        let task = tokio::spawn(async move { receiver.run(intake, stopped).await });
        changes.hands.until(Duration::ZERO, "it asks", || proxy.landed().faults == 1).await;
        stop.stop();
        let ended = changes.hands.during("a stop while it connects", || Duration::ZERO, task).await;
        ended.expect("no panic").expect("stopped");
    }
}
