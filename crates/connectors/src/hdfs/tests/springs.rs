//! The source with faults on the way to the NameNode; the DataNode is reached past the proxy, at the address that the
//! NameNode tells.
//!
//! Invariant: tokio's clock stands still but for the suite. Run by `cargo test`.

use super::*;
use crate::faults::{Hands, Spring, check_source_faults};
use async_trait::async_trait;
use std::{net::SocketAddr, ops::Range};
use tidemill_core::Source;
use tokio::runtime::Runtime;

struct Files {
    hdfs: String,
    hands: Hands,
}

#[async_trait]
impl Spring for Files {
    fn address(&self) -> SocketAddr {
        self.hdfs.trim_start_matches("hdfs://").parse().unwrap()
    }
    fn source(&self, at: SocketAddr) -> Arc<dyn Source> {
        Arc::new(source::made(&format!("hdfs://{at}/springs/in"), &[]).unwrap())
    }
    async fn publish(&self, numbers: Range<u64>) {
        let (hdfs, path) = (self.hdfs.clone(), format!("/springs/in/{:06}.log", numbers.start));
        let text: String = numbers.map(|number| format!("record {number}\n")).collect();
        // Who closes a file sleeps until the NameNode has it, and here the clock stands still.
        let put = move || Runtime::new().unwrap().block_on(put(&hdfs, &path, text));
        tokio::task::spawn_blocking(put).await.unwrap();
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
}

#[tokio::test]
async fn a_directory_is_read_once_whatever_is_lost_on_the_way() {
    let Some(hdfs) = server("springs").await else { return };
    check_source_faults(&Files { hdfs, hands: Hands::on_tokio() }).await;
}
