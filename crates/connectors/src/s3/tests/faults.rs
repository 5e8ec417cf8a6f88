//! The sink with faults on the way to a server.
//!
//! Invariant: tokio's clock stands still but for the suite. Run by `cargo test`.

use super::{
    super::{bucket, probe::names},
    *,
};
use crate::faults::{Hands, Shelf, check_sink_faults};
use async_trait::async_trait;
use object_store::ObjectStoreExt;
use std::{collections::BTreeMap, net::SocketAddr, sync::Mutex};

struct Words {
    endpoint: String,
    dir: tempfile::TempDir,
    hands: Hands,
    /// The rows of objects that were looked at: none is written over.
    known: Mutex<BTreeMap<String, Vec<i64>>>,
}

#[async_trait]
impl Shelf for Words {
    fn address(&self) -> SocketAddr {
        self.endpoint.trim_start_matches("http://").parse().unwrap()
    }
    fn sink(&self, at: SocketAddr) -> Arc<dyn Sink> {
        Arc::new(sink(&format!("http://{at}"), "s3://faulty/x", &[], self.dir.path()))
    }
    async fn seen(&self) -> Vec<i64> {
        let number = |line: &String| line.rsplit_once("word-").unwrap().1.trim_end_matches("\"}").parse().unwrap();
        let options = Options::new("s", [("endpoint", self.endpoint.as_str())]);
        let past = bucket::within(&options, "faulty", "").unwrap();
        let names = names(&self.endpoint, "faulty").await;
        for name in names.iter().filter(|name| name.ends_with(".parquet")) {
            if !self.known.lock().unwrap().contains_key(name) {
                let found = past.store.get(&past.key(name).unwrap()).await.unwrap().bytes().await.unwrap();
                let rows = rows_of(&[(name.clone(), found.to_vec())].into());
                self.known.lock().unwrap().insert(name.clone(), rows.iter().map(number).collect());
            }
        }
        let known = self.known.lock().unwrap();
        names.iter().filter_map(|name| known.get(name)).flatten().copied().collect()
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
}

#[tokio::test]
async fn a_bucket_has_each_row_once_whatever_is_lost_on_the_way() {
    let Some(endpoint) = server("faulty").await else { return };
    let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::on_tokio());
    let words = Words { endpoint, dir, hands, known: Mutex::default() };
    check_sink_faults(&words).await;
    // And what they are in the end.
    let (mut known, mut there) = (words.seen().await, Vec::<i64>::new());
    for line in rows_of(&objects(&words.endpoint, "faulty").await) {
        there.push(line.rsplit_once("word-").unwrap().1.trim_end_matches("\"}").parse().unwrap());
    }
    known.sort_unstable();
    there.sort_unstable();
    assert_eq!(known, there);
}
