//! Connector `tcp`: connects to a server and reads lines; reconnects by itself.
//!
//! | Option | Meaning |
//! |---|---|
//! | `address` | `host:port`, or several with commas |
//! | `receivers` | connections to open (one for each address by default), dealt out over the addresses |
//! | `max_line` | bytes of a line at most (1 MiB); a longer one is refused |
//! | `idle_timeout` | reconnect when nothing came for this long (never by default) |
//! | `on_close` | `reconnect` (default), or `end`: the input ends when the server closes the connection |
//!
//! Invariant: `run` ends only when told to, when the log fails, or at the
//! server's close with `on_close = 'end'`. A line that the connection broke in
//! the middle of is a dead letter.

use super::{End, receive};
use crate::{
    backoff::Backoff,
    lines::{self, LineCutter},
};
use async_trait::async_trait;
use std::{sync::Arc, time::Duration};
use tidemill_core::{Error, Input, Intake, Options, Receiver, Result, Stop};
use tokio::net::TcpStream;

/// A connection attempt is given up after this long.
const CONNECT: Duration = Duration::from_secs(10);

/// What to do when the server closes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnClose {
    /// Connect again.
    #[default]
    Reconnect,
    /// End the input.
    End,
}

/// A TCP client that reads lines.
#[derive(Debug, Clone)]
pub struct TcpClient {
    address: String,
    max_line: usize,
    idle: Option<Duration>,
    on_close: OnClose,
    backoff: Backoff,
}

impl TcpClient {
    /// A client of `address`, `host:port`. `seed` sets its reconnects apart from those of others.
    pub fn new(address: impl Into<String>, seed: u64) -> Self {
        let (max_line, backoff) = (lines::MAX_LINE, Backoff::new(seed));
        Self { address: address.into(), max_line, idle: None, on_close: OnClose::default(), backoff }
    }

    /// What to do when the server closes the connection.
    #[must_use]
    pub fn on_close(mut self, on_close: OnClose) -> Self {
        self.on_close = on_close;
        self
    }

    /// How long to wait before connecting again.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// All clients that a stream's options ask for.
    ///
    /// # Errors
    /// When an option is missing or wrong.
    pub fn input(options: &Options) -> Result<Input> {
        let owner = options.owner();
        let given = options.require("address", "it names the server, as host:port")?;
        let addresses: Vec<&str> = given.split(',').map(str::trim).filter(|a| !a.is_empty()).collect();
        for address in &addresses {
            let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none() {
                return Err(Error::user(format!("{owner}: option `address`: `{address}` is not host:port")));
            }
        }
        if addresses.is_empty() {
            return Err(Error::user(format!("{owner}: option `address` names no address: write host:port")));
        }
        let receivers = options.parse("receivers", addresses.len())?;
        if receivers < addresses.len() || receivers == 0 || receivers > 1024 {
            return Err(Error::user(format!(
                "{owner}: option `receivers` must be between the number of addresses ({}) and 1024, not {receivers}",
                addresses.len()
            )));
        }
        let max_line = lines::max_line(options)?;
        let idle = options.duration("idle_timeout", Duration::ZERO)?;
        let on_close = match options.get("on_close").unwrap_or("reconnect") {
            "reconnect" => OnClose::Reconnect,
            "end" => OnClose::End,
            other => {
                return Err(Error::user(format!(
                    "{owner}: option `on_close` must be `reconnect` or `end`, not `{other}`"
                )));
            }
        };
        let client = |i: usize| -> Arc<dyn Receiver> {
            let mut client = Self::new(addresses[i % addresses.len()], seed(i));
            (client.max_line, client.on_close) = (max_line, on_close);
            client.idle = (!idle.is_zero()).then_some(idle);
            Arc::new(client)
        };
        Ok(Input::Receivers((0..receivers).map(client).collect()))
    }

    async fn connect(&self) -> Result<TcpStream, String> {
        match tokio::time::timeout(CONNECT, TcpStream::connect(&self.address)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", CONNECT.as_secs())),
        }
    }
}

/// Processes differ, and so do the receivers of one.
fn seed(index: usize) -> u64 {
    u64::from(std::process::id()) << 32 | index as u64
}

#[async_trait]
impl Receiver for TcpClient {
    fn describe(&self) -> String {
        format!("tcp {}", self.address)
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let mut backoff = self.backoff.clone();
        loop {
            let connected = tokio::select! {
                biased;
                () = stop.stopped() => return Ok(()),
                connected = self.connect() => connected,
            };
            let why = match connected {
                Err(why) => why,
                Ok(stream) => {
                    intake.report(&format!("connected to {}", self.address));
                    let (heard, why) =
                        match receive(stream, LineCutter::new(self.max_line), self.idle, &intake, &stop).await? {
                            End::Stopped => return Ok(()),
                            End::Closed(_) if self.on_close == OnClose::End => {
                                intake.report("ended: the server closed the connection");
                                return Ok(());
                            }
                            End::Closed(heard) => (heard, "the server closed the connection".to_string()),
                            End::Broken(heard, error) => (heard, error.to_string()),
                        };
                    // A server that accepts and hangs up is not a success.
                    if heard > 0 {
                        backoff.reset();
                    }
                    why
                }
            };
            let wait = backoff.next_wait();
            tracing::info!(address = %self.address, %why, ?wait, "reconnecting");
            intake.report(&format!("reconnecting in {:.1} s: {why}", wait.as_secs_f64()));
            tokio::select! {
                biased;
                () = stop.stopped() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}
