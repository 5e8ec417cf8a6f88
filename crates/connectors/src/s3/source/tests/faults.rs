//! The source with faults on the way to a server.
//!
//! Invariant: tokio's clock stands still but for the suite. Run by `cargo test`.

use super::*;
use crate::faults::{Hands, Spring, check_source_faults};
use async_trait::async_trait;
use std::{net::SocketAddr, ops::Range};

struct Objects {
    endpoint: String,
    hands: Hands,
}

#[async_trait]
impl Spring for Objects {
    fn address(&self) -> SocketAddr {
        self.endpoint.trim_start_matches("http://").parse().unwrap()
    }
    fn source(&self, at: SocketAddr) -> Arc<dyn Source> {
        Arc::new(made(&format!("http://{at}"), "s3://springs/in", &[]).unwrap())
    }
    async fn publish(&self, numbers: Range<u64>) {
        // Two objects of what is new.
        let middle = numbers.start + (numbers.end - numbers.start) / 2;
        for part in [numbers.start..middle, middle..numbers.end] {
            let name = format!("in/{:06}.log", part.start);
            let text: String = part.map(|number| format!("record {number}\n")).collect();
            put(&self.endpoint, "springs", one(&name, text)).await;
        }
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
}

#[tokio::test]
async fn a_bucket_is_read_once_whatever_is_lost_on_the_way() {
    let Some(endpoint) = server("springs").await else { return };
    check_source_faults(&Objects { endpoint, hands: Hands::on_tokio() }).await;
}
