//! Receivers that listen: `tcp-listen`, and `syslog` over TCP.
//!
//! Invariant: tokio's clock stands still but for the suite. Run by `cargo test`; `http` has tests of its own.

use super::super::*;
use async_trait::async_trait;
use std::sync::Arc;
use tidemill_core::{Input, Options, Receiver, Result};

struct Listens {
    input: fn(&Options) -> Result<Input>,
    more: Vec<(&'static str, &'static str)>,
    before: &'static str,
    hands: Hands,
}

#[async_trait]
impl Caller for Listens {
    fn receiver(&self) -> Arc<dyn Receiver> {
        let usual = [("address", "127.0.0.1:0"), ("idle_timeout", "60s")];
        match (self.input)(&Options::new("s", usual.into_iter().chain(self.more.clone()))).unwrap() {
            Input::Receivers(all) => Arc::clone(&all[0]),
            Input::Source(_) => panic!("a receiver"),
        }
    }
    fn frame(&self, number: u64) -> Vec<u8> {
        format!("{}{number:06};\n", self.before).into_bytes()
    }
    fn number(&self, record: &[u8]) -> Option<u64> {
        let digits = std::str::from_utf8(record).ok()?.strip_prefix(self.before)?.strip_suffix(';')?;
        (digits.len() == 6).then(|| digits.parse().ok()).flatten()
    }
    fn hands(&self) -> &Hands {
        &self.hands
    }
}

#[tokio::test]
async fn lines_that_are_listened_for_stand_each_fault() {
    let input = crate::tcp::TcpListen::input;
    check_listener_faults(&Listens { input, more: vec![], before: "line", hands: Hands::on_tokio() }).await;
}

#[tokio::test]
async fn syslog_over_tcp_stands_each_fault() {
    let (input, more) = (crate::syslog::input, vec![("transport", "tcp")]);
    check_listener_faults(&Listens { input, more, before: "<13>mill: ", hands: Hands::on_tokio() }).await;
}
