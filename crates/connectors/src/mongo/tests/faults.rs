//! The sink with faults on the way to a real server.
//!
//! Invariant: tokio's clock, by which the driver waits too, stands still but for the suite. Run by `cargo test`.

use super::*;
use crate::faults::{Hands, Shelf, check_sink_faults};
use async_trait::async_trait;
use std::net::SocketAddr;

struct Words {
    url: String,
    dir: tempfile::TempDir,
    hands: Hands,
}

#[async_trait]
impl Shelf for Words {
    fn address(&self) -> SocketAddr {
        self.url.trim_start_matches("mongodb://").split('/').next().unwrap().parse().unwrap()
    }
    fn sink(&self, at: SocketAddr) -> Arc<dyn Sink> {
        sink(&format!("mongodb://{at}/sink"), "faulty", &[], self.dir.path())
    }
    async fn seen(&self) -> Vec<i64> {
        let number = |line: &String| serde_json::from_str::<serde_json::Value>(line).unwrap()["n"].as_i64().unwrap();
        probe::documents(&self.url, "faulty").await.iter().map(number).collect()
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
}

#[tokio::test]
async fn a_collection_has_each_row_once_whatever_is_lost_on_the_way() {
    let Some(url) = server(&["faulty"]).await else { return };
    let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::on_tokio());
    check_sink_faults(&Words { url, dir, hands }).await;
}
