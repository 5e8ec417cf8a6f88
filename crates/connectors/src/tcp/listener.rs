//! Connector `tcp-listen`: listens, and reads lines from all who connect.
//!
//! | Option | Meaning |
//! |---|---|
//! | `address` | where to listen, `127.0.0.1:9999`; port 0 takes a free one, which the state tells |
//! | `max_connections` | connections at the same time (1024) |
//! | `max_line` | bytes of a line at most (1 MiB); a longer one is refused |
//! | `idle_timeout` | a connection that said nothing for this long is closed (never by default) |
//!
//! Invariant: at most `max_connections` are served; further ones wait in the
//! system's queue until one ends. Lines of one connection keep their order.

use super::{End, accept, address_claim, bind, receive};
use crate::lines::{self, LineCutter};
use async_trait::async_trait;
use std::{sync::Arc, time::Duration};
use tidemill_core::{Claim, Input, Intake, Options, Receiver, Result, Stop};
use tokio::sync::Semaphore;

/// A TCP server that reads lines.
#[derive(Debug)]
pub struct TcpListen {
    address: String,
    max_connections: usize,
    max_line: usize,
    idle: Option<Duration>,
}

impl TcpListen {
    /// Listens at `address`.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), max_connections: 1024, max_line: lines::MAX_LINE, idle: None }
    }

    /// Connections at the same time at most.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections;
        self
    }

    /// The listener that a stream's options ask for.
    ///
    /// # Errors
    /// When an option is missing or wrong.
    pub fn input(options: &Options) -> Result<Input> {
        let mut listen = Self::new(options.require("address", "it says where to listen, such as 127.0.0.1:9999")?);
        listen.max_connections =
            options.parse("max_connections", listen.max_connections)?.clamp(1, Semaphore::MAX_PERMITS);
        listen.max_line = lines::max_line(options)?;
        let idle = options.duration("idle_timeout", Duration::ZERO)?;
        listen.idle = (!idle.is_zero()).then_some(idle);
        Ok(Input::Receivers(vec![Arc::new(listen)]))
    }
}

#[async_trait]
impl Receiver for TcpListen {
    fn describe(&self) -> String {
        format!("tcp-listen {}", self.address)
    }

    fn claim(&self) -> Option<Claim> {
        address_claim(&self.address)
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let listener = bind("tcp-listen", &self.address).await?;
        accept(&listener, self.max_connections, &intake, &stop, |stream, peer| {
            let (intake, stop, max_line, idle) = (Arc::clone(&intake), stop.clone(), self.max_line, self.idle);
            async move {
                if let End::Broken(_, error) = receive(stream, LineCutter::new(max_line), idle, &intake, &stop).await? {
                    tracing::info!(%peer, %error, "a connection broke");
                }
                Ok(())
            }
        })
        .await
    }
}
