//! The sink with faults on the way to a real node.
//!
//! Invariant: tokio's clock, by which the driver waits too, stands still but for the suite. Run by `cargo test`.

use super::*;
use crate::faults::{Hands, Shelf, check_sink_faults};
use async_trait::async_trait;
use std::net::SocketAddr;
use tokio::runtime::Runtime;

struct Words {
    server: String,
    /// Of a runtime whose clock goes on: who makes a session sleeps meanwhile.
    session: Arc<Session>,
    beside: &'static Runtime,
    dir: tempfile::TempDir,
    hands: Hands,
}

#[async_trait]
impl Shelf for Words {
    fn address(&self) -> SocketAddr {
        self.server.parse().unwrap()
    }
    fn sink(&self, at: SocketAddr) -> Arc<dyn Sink> {
        sink(&at.to_string(), "faulty", &[("key", "n"), ("requests", "1")], self.dir.path())
    }
    async fn seen(&self) -> Vec<i64> {
        let (session, query) = (Arc::clone(&self.session), format!("SELECT n FROM {}.faulty", keyspace()));
        let look = async move { session.query_unpaged(query, ()).await.unwrap().into_rows_result().unwrap() };
        let rows = self.beside.spawn(look).await.unwrap();
        rows.rows::<(i64,)>().unwrap().map(|row| row.unwrap().0).collect()
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
}

#[tokio::test]
async fn a_table_has_each_row_once_whatever_is_lost_on_the_way() {
    let Some(server) = server().await else { return };
    // A runtime can't be dropped where one runs.
    let beside: &Runtime = Box::leak(Box::new(Runtime::new().unwrap()));
    let to = server.clone();
    let session = beside.spawn(async move { session(&to).await }).await.unwrap();
    let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::on_tokio());
    check_sink_faults(&Words { server, session, beside, dir, hands }).await;
}
