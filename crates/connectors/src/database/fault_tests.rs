//! The sink `postgres` with faults on the way to a real server, that of `TIDEMILL_POSTGRES`.
//!
//! Invariant: tokio's clock stands still but for the suites, so minutes without an answer take none. Run by
//! `cargo test` where `ci/services up` has started the server.

use super::{
    postgres_server::{Server, of},
    probe,
    tests::postgres_server::{server, sink},
};
use crate::{
    contract::{rows, stage},
    faults::{Fault, FaultProxy, Hands, Shelf, When, check_sink_faults},
};
use async_trait::async_trait;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tidemill_core::{BatchId, Options, Sink};

/// Where a server is.
pub(super) fn place(url: &str) -> SocketAddr {
    url.split('@').nth(1).unwrap().split('/').next().unwrap().parse().unwrap()
}

/// The same server by another way.
pub(super) fn through(url: &str, at: SocketAddr) -> String {
    url.replace(&place(url).to_string(), &at.to_string())
}

struct Words {
    url: String,
    table: &'static str,
    hands: Hands,
}

#[async_trait]
impl Shelf for Words {
    fn address(&self) -> SocketAddr {
        place(&self.url)
    }
    fn sink(&self, at: SocketAddr) -> Arc<dyn Sink> {
        sink(&through(&self.url, at), self.table, "")
    }
    async fn seen(&self) -> Vec<i64> {
        let all = probe::postgres(&self.url, &format!("SELECT n FROM {}", self.table)).await;
        all.iter().map(|n| n.parse().unwrap()).collect()
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
}

#[tokio::test]
async fn a_table_has_each_row_once_whatever_is_lost_on_the_way() {
    let Some(url) = server("faulty").await else { return };
    check_sink_faults(&Words { url, table: "faulty", hands: Hands::on_tokio() }).await;
}

/// A client that vanishes leaves its transaction open at the server, with the lock on the mark.
#[tokio::test]
async fn a_commit_whose_client_vanished_does_not_hold_up_the_next() {
    let Some(url) = server("vanished").await else { return };
    let proxy = FaultProxy::to(place(&url));
    // The server gives up such a transaction after half a second in place of the usual minute, as it has its own clock.
    let through = format!("{}?options=-c%20idle_in_transaction_session_timeout%3D500", through(&url, proxy.address()));
    let first = sink(&through, "vanished", "");
    first.open(rows([]).schema()).await.unwrap();
    first.recover(None).await.unwrap();
    let part = stage(&*first, 1, 0, vec![rows([1, 2])]).await.unwrap();
    // The transaction has begun and the mark is locked: then the machine is gone.
    proxy.arm(When::Answered(3), Fault::Lost);
    let (commit, parts) = (Arc::clone(&first), vec![part.clone()]);
    let gone = tokio::spawn(async move { commit.commit(BatchId(1), &parts).await });
    while proxy.landed().faults == 0 {
        tokio::task::yield_now().await;
    }
    gone.abort();
    let second = sink(&url, "vanished", "");
    second.open(rows([]).schema()).await.unwrap();
    second.commit(BatchId(1), std::slice::from_ref(&part)).await.unwrap();
    assert_eq!(probe::postgres(&url, "SELECT n FROM vanished ORDER BY n").await, ["1", "2"]);
    let usual = Server::from_options(&Options::new("sink", [("url", url.as_str())])).unwrap();
    let mut held = usual.client("vanished").await.unwrap();
    let shown = of(&mut held).unwrap().query_one("SHOW idle_in_transaction_session_timeout", &[]).await.unwrap();
    assert_eq!(shown.get::<_, String>(0), "1min");
}

#[tokio::test]
async fn a_server_that_takes_nothing_holds_a_stage_up_and_no_longer_than_an_answer_may_take() {
    let Some(url) = server("stalled").await else { return };
    let hands = Hands::on_tokio();
    let proxy = FaultProxy::to(place(&url));
    let sink = sink(&through(&url, proxy.address()), "stalled", "");
    sink.open(rows([]).schema()).await.unwrap();
    proxy.arm(When::Asked(2), Fault::Silence);
    let rows = futures::stream::iter([Ok(rows(0..200_000))]);
    let time = tidemill_core::Timestamp::from_millis(1);
    let staged = sink.stage(BatchId(1), time, 0, Box::pin(rows));
    let error = hands.during("a stage", || Duration::from_secs(20), staged).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("no answer in"), "{}", error.chain());
}

#[tokio::test]
async fn a_password_that_is_wrong_is_for_a_human() {
    let Some(url) = server("denied").await else { return };
    let proxy = FaultProxy::to(place(&url));
    // What a server says that asks for passwords; that of the tests lets everybody in.
    let said = b"SFATAL\0C28P01\0Mpassword authentication failed\0\0";
    let mut refusal = vec![b'E'];
    refusal.extend(u32::try_from(said.len() + 4).unwrap().to_be_bytes());
    refusal.extend(said);
    proxy.arm(When::Answered(0), Fault::Garbage(refusal));
    let error = sink(&through(&url, proxy.address()), "denied", "").open(rows([]).schema()).await.unwrap_err();
    assert!(!error.is_retryable() && error.chain().contains("password authentication failed"), "{}", error.chain());
}
