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

use super::{End, receive};
use crate::lines;
use async_trait::async_trait;
use std::{sync::Arc, time::Duration};
use tidemill_core::{Claim, Error, Input, Intake, Options, Receiver, Result, Stop};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

/// After a failed accept (no file descriptor free, say) wait this long.
const PAUSE: Duration = Duration::from_millis(100);

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
        // Port 0 is a free one for each.
        let (host, port) = self.address.rsplit_once(':').filter(|(_, port)| port.parse() != Ok(0_u16))?;
        let host = if host.eq_ignore_ascii_case("localhost") { "127.0.0.1" } else { host };
        Some(Claim::new(format!("TCP address {host}:{port}")))
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let listener = TcpListener::bind(&self.address).await.map_err(|e| {
            Error::user(format!("tcp-listen: can't listen at {}; choose another address or port", self.address))
                .because(e)
        })?;
        let address = listener.local_addr().map_or_else(|_| self.address.clone(), |a| a.to_string());
        // The number of permits is the bound; no permit is left when nobody more is let in.
        let places = Arc::new(Semaphore::new(self.max_connections));
        let mut served: JoinSet<Result<End>> = JoinSet::new();
        loop {
            let open = self.max_connections - places.available_permits();
            intake.report(&format!("listening on {address}, {open} connected"));
            let accepted = async {
                let place = Arc::clone(&places).acquire_owned().await.map_err(std::io::Error::other)?;
                listener.accept().await.map(|(stream, peer)| (place, stream, peer))
            };
            tokio::select! {
                biased;
                () = stop.stopped() => break,
                Some(done) = served.join_next() => ended(done)?,
                accepted = accepted => match accepted {
                    Ok((place, stream, peer)) => {
                        let (intake, stop, max_line, idle) = (Arc::clone(&intake), stop.clone(), self.max_line, self.idle);
                        served.spawn(async move {
                            let end = receive(stream, max_line, idle, &intake, &stop).await;
                            if let Ok(End::Broken(_, error)) = &end {
                                tracing::info!(%peer, %error, "a connection broke");
                            }
                            drop(place);
                            end
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%address, %error, "can't accept a connection");
                        intake.report(&format!("listening on {address}, can't accept: {error}"));
                        tokio::select! {
                            () = stop.stopped() => break,
                            () = tokio::time::sleep(PAUSE) => {}
                        }
                    }
                },
            }
        }
        // Each hands on what it has; they were told to stop too.
        while let Some(done) = served.join_next().await {
            ended(done)?;
        }
        Ok(())
    }
}

fn ended(done: Result<Result<End>, tokio::task::JoinError>) -> Result<()> {
    match done {
        Ok(end) => end.map(|_| ()),
        Err(error) => Err(Error::internal("serving a connection panicked").because(error)),
    }
}
