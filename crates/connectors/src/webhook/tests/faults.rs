//! The sink with faults on the way to the desk of this test.
//!
//! Invariant: its waits between tries are skipped, those for answers move with the suite. Run by `cargo test`.

use super::*;
use crate::faults::{Hands, Shelf, check_sink_faults};
use async_trait::async_trait;
use std::{collections::BTreeMap, net::SocketAddr};

struct Requests {
    desk: Arc<Desk>,
    url: String,
    dir: tempfile::TempDir,
    hands: Hands,
}

impl Requests {
    fn numbers(body: &str) -> Vec<i64> {
        let rows: Vec<serde_json::Value> = serde_json::from_str(body).unwrap();
        rows.iter().map(|row| row["n"].as_i64().unwrap()).collect()
    }
}

#[async_trait]
impl Shelf for Requests {
    fn address(&self) -> SocketAddr {
        self.url.trim_start_matches("http://").split('/').next().unwrap().parse().unwrap()
    }
    fn sink(&self, at: SocketAddr) -> Arc<dyn Sink> {
        let url = self.url.replace(&self.address().to_string(), &at.to_string());
        Arc::new(sink(&[("url", &url), ("retry_for", "1s")], self.dir.path()).0)
    }
    async fn seen(&self) -> Vec<i64> {
        self.desk.asked().iter().flat_map(|asked| Self::numbers(&asked.3)).collect()
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
}

#[tokio::test]
async fn each_row_is_sent_and_what_is_sent_again_has_its_key() {
    let (desk, url) = desk().await;
    let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::on_tokio());
    let requests = Requests { desk, url, dir, hands };
    check_sink_faults(&requests).await;
    // Whoever keeps to the keys has each row once.
    let by_key: BTreeMap<String, String> =
        requests.desk.asked().into_iter().map(|(key, _, _, body)| (key, body)).collect();
    let mut numbers: Vec<i64> = by_key.values().flat_map(|body| Requests::numbers(body)).collect();
    let all = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), all, "no row under two keys");
}
