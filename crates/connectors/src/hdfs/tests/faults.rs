//! The sink with faults on the way to the NameNode; the DataNode is reached past the proxy, at the address that the
//! NameNode tells.
//!
//! Invariant: tokio's clock stands still but for the suite. Run by `cargo test`.

use super::*;
use crate::faults::{Hands, Shelf, check_sink_faults};
use async_trait::async_trait;
use std::{collections::BTreeMap, net::SocketAddr, sync::Mutex};

struct Words {
    hdfs: String,
    dir: tempfile::TempDir,
    hands: Hands,
    /// The rows of files that were looked at: none is written over.
    known: Mutex<BTreeMap<String, Vec<i64>>>,
}

fn number(line: &str) -> i64 {
    line.rsplit_once("word-").unwrap().1.trim_end_matches("\"}").parse().unwrap()
}

#[async_trait]
impl Shelf for Words {
    fn address(&self) -> SocketAddr {
        self.hdfs.trim_start_matches("hdfs://").parse().unwrap()
    }
    fn sink(&self, at: SocketAddr) -> Arc<dyn Sink> {
        Arc::new(sink(&format!("hdfs://{at}/faulty/x"), &[], self.dir.path()))
    }
    async fn seen(&self) -> Vec<i64> {
        let client = client(&self.hdfs);
        let names = names(&self.hdfs, "/faulty/x").await;
        for path in names.iter().filter(|path| path.ends_with(".parquet")) {
            if !self.known.lock().unwrap().contains_key(path) {
                let file = client.read(path).await.unwrap();
                let bytes = file.read_range(0, file.file_length()).await.unwrap().to_vec();
                let rows = rows_of(&[(path.clone(), bytes)].into());
                self.known.lock().unwrap().insert(path.clone(), rows.iter().map(|line| number(line)).collect());
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
async fn a_directory_has_each_row_once_whatever_is_lost_on_the_way() {
    let Some(hdfs) = server("faulty").await else { return };
    let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::on_tokio());
    let words = Words { hdfs, dir, hands, known: Mutex::default() };
    check_sink_faults(&words).await;
    // And what they are in the end, with nothing left of what was cut off but what the next start removes.
    let (mut known, mut there) = (words.seen().await, Vec::<i64>::new());
    let all = files(&words.hdfs, "/faulty/x").await;
    there.extend(rows_of(&all).iter().map(|line| number(line)));
    known.sort_unstable();
    there.sort_unstable();
    assert_eq!(known, there);
    let last = sink(&format!("{}/faulty/x", words.hdfs), &[], words.dir.path());
    last.open(rows([]).schema()).await.unwrap();
    last.recover(Some(BatchId(1_000_000))).await.unwrap();
    let left: Vec<String> =
        files(&words.hdfs, "/faulty/x").await.into_keys().filter(|name| name.starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
}
