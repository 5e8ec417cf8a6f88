//! The sink with faults on the way to the mail server of this test.
//!
//! Invariant: its waits between tries are skipped, those for answers move with the suite. Run by `cargo test`.

use super::*;
use crate::faults::{Hands, Shelf, check_sink_faults};
use async_trait::async_trait;
use std::net::SocketAddr;

struct Letters {
    post: Arc<Post>,
    server: String,
    dir: tempfile::TempDir,
    hands: Hands,
}

#[async_trait]
impl Shelf for Letters {
    fn address(&self) -> SocketAddr {
        self.server.parse().unwrap()
    }
    fn sink(&self, at: SocketAddr) -> Arc<dyn Sink> {
        Arc::new(sink(&at.to_string(), &[PLAIN, ("retry_for", "1s")], self.dir.path()))
    }
    async fn seen(&self) -> Vec<i64> {
        let mails = self.post.mails();
        let numbers = |mail: &String| {
            let body = opened(mail).1;
            body.lines().filter_map(|line| line.strip_prefix("n: ")?.parse().ok()).collect::<Vec<i64>>()
        };
        mails.iter().flat_map(numbers).collect()
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
}

#[tokio::test]
async fn no_mail_is_lost_whatever_is_lost_on_the_way() {
    let (post, server) = post().await;
    let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::on_tokio());
    check_sink_faults(&Letters { post, server, dir, hands }).await;
}
