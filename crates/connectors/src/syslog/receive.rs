//! Where messages are received: datagrams, and connections.
//!
//! Invariant: datagrams that the system holds are read as long as the log takes
//! them; what it drops meanwhile is not known here. Made by [`input`].

use super::frames::Frames;
use crate::{
    lines::{self, HEAD, LongLine},
    tcp::{End, accept, address_claim, bind, claim, receive, taken},
};
use async_trait::async_trait;
use socket2::SockRef;
use std::{io, sync::Arc, time::Duration};
use tidemill_core::{Block, Claim, Error, Input, Intake, Options, Receiver, Result, Span, Stop};
use tokio::{net::UdpSocket, sync::Semaphore};

/// Bytes of a datagram at most, as UDP has it.
const DATAGRAM: usize = 64 << 10;
/// Bytes of a block, after which no more datagrams are gathered.
const BLOCK: usize = 256 << 10;
/// Blocks of datagrams that a stop still reads.
const LAST: usize = 64;
/// How long a stop looks for them.
const LOOK: Duration = Duration::from_millis(20);
/// After a failed read wait this long.
const PAUSE: Duration = Duration::from_millis(100);

/// The receivers that a stream's options ask for.
///
/// # Errors
/// When an option is missing or wrong.
pub fn input(options: &Options) -> Result<Input> {
    let owner = options.owner();
    let address = options.require("address", "it says where to listen, such as 127.0.0.1:5514")?;
    let max_line = lines::max_line(options)?;
    let mut tcp = SyslogTcp::new(address);
    tcp.max_connections = options.parse("max_connections", tcp.max_connections)?.clamp(1, Semaphore::MAX_PERMITS);
    let idle = options.duration("idle_timeout", Duration::ZERO)?;
    tcp.idle = (!idle.is_zero()).then_some(idle);
    tcp.max_line = max_line;
    let mut udp = SyslogUdp::new(address);
    let buffer = options.bytes("receive_buffer", udp.buffer as u64)?;
    udp.buffer = usize::try_from(buffer)
        .ok()
        .filter(|bytes| *bytes <= 1 << 30)
        .ok_or_else(|| Error::user(format!("{owner}: option `receive_buffer` must be 1GiB at most")))?;
    udp.max_line = max_line;
    let (udp, tcp): (Arc<dyn Receiver>, Arc<dyn Receiver>) = (Arc::new(udp), Arc::new(tcp));
    Ok(Input::Receivers(match options.get("transport").unwrap_or("both") {
        "both" => vec![udp, tcp],
        "udp" => vec![udp],
        "tcp" => vec![tcp],
        other => {
            return Err(Error::user(format!(
                "{owner}: option `transport` must be `both`, `udp` or `tcp`, not `{other}`"
            )));
        }
    }))
}

/// Messages over TCP.
#[derive(Debug)]
pub struct SyslogTcp {
    address: String,
    max_connections: usize,
    max_line: usize,
    idle: Option<Duration>,
}

impl SyslogTcp {
    /// Listens at `address`.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), max_connections: 1024, max_line: lines::MAX_LINE, idle: None }
    }
}

#[async_trait]
impl Receiver for SyslogTcp {
    fn describe(&self) -> String {
        format!("syslog tcp {}", self.address)
    }

    fn claim(&self) -> Option<Claim> {
        address_claim(&self.address)
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let listener = bind("syslog", &self.address).await?;
        accept(&listener, self.max_connections, &intake, &stop, |stream, peer| {
            let (intake, stop, idle) = (Arc::clone(&intake), stop.clone(), self.idle);
            let frames = Frames::new(self.max_line);
            async move {
                if let End::Broken(_, error) = receive(stream, frames, idle, &intake, &stop).await? {
                    tracing::info!(%peer, %error, "a connection broke");
                }
                Ok(())
            }
        })
        .await
    }
}

/// Messages over UDP, a datagram each.
#[derive(Debug)]
pub struct SyslogUdp {
    address: String,
    max_line: usize,
    buffer: usize,
}

impl SyslogUdp {
    /// Listens at `address`.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), max_line: lines::MAX_LINE, buffer: 4 << 20 }
    }

    /// Takes what the system holds, to a block, and hands it on; whether there was something.
    async fn take(&self, socket: &UdpSocket, datagram: &mut [u8], intake: &Arc<dyn Intake>) -> Result<bool> {
        let (mut bytes, mut spans, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        while bytes.len() < BLOCK {
            let length = match socket.try_recv(datagram) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::warn!(address = self.address, %error, "can't read a datagram");
                    intake.report(&format!("waiting: can't read a datagram: {error}"));
                    tokio::time::sleep(PAUSE).await;
                    break;
                }
            };
            let message = datagram[..length].trim_ascii_end();
            if message.len() > self.max_line {
                let head = message[..message.len().min(HEAD)].to_vec();
                refused.push(LongLine { head, len: message.len() as u64, max_line: self.max_line });
            } else if !message.is_empty() {
                let start = u32::try_from(bytes.len()).map_err(|_| Error::internal("a block of datagrams"))?;
                bytes.extend_from_slice(message);
                let end = u32::try_from(bytes.len()).map_err(|_| Error::internal("a block of datagrams"))?;
                spans.push(Span { start, end });
            }
        }
        let some = !spans.is_empty() || !refused.is_empty();
        if !spans.is_empty() {
            // Nobody waits for an acknowledgement; a log that fails says so at the next append.
            drop(intake.append(Block::new(bytes, spans), None).await?);
        }
        for line in refused {
            intake.refuse(line.into_letter()).await?;
        }
        Ok(some)
    }
}

#[async_trait]
impl Receiver for SyslogUdp {
    fn describe(&self) -> String {
        format!("syslog udp {}", self.address)
    }

    fn claim(&self) -> Option<Claim> {
        claim("UDP", &self.address)
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let socket = UdpSocket::bind(&self.address).await.map_err(|e| taken("syslog", &self.address, e))?;
        if let Err(error) = SockRef::from(&socket).set_recv_buffer_size(self.buffer) {
            tracing::debug!(%error, "the system gives no larger buffer");
        }
        let address = socket.local_addr().map_or_else(|_| self.address.clone(), |a| a.to_string());
        intake.report(&format!("listening on {address}"));
        let mut datagram = vec![0; DATAGRAM];
        loop {
            tokio::select! {
                biased;
                () = stop.stopped() => break,
                ready = socket.readable() => match ready {
                    Ok(()) => drop(self.take(&socket, &mut datagram, &intake).await?),
                    Err(error) => return Err(Error::external("syslog: the socket failed").because(error)),
                },
            }
        }
        // What came before the stop: the runtime is asked, as it may not have looked yet.
        for _ in 0..LAST {
            let ready = tokio::time::timeout(LOOK, socket.readable()).await;
            if ready.is_err() || !self.take(&socket, &mut datagram, &intake).await? {
                break;
            }
        }
        Ok(())
    }
}
