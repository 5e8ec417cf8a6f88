//! Lines over TCP: a client that connects (`tcp`) and a server that listens (`tcp-listen`).
//!
//! Both read what there is, cut it into lines and append each read's whole
//! lines at once, so a line waits for nothing. The read buffer grows with the
//! traffic, from 16 KiB to 256 KiB.
//!
//! Invariant: while the log is behind, nothing is read, and the sender is
//! slowed down by TCP itself.

mod accept;
mod client;
mod listener;
#[cfg(test)]
mod tests;

pub use client::{OnClose, TcpClient};
pub use listener::TcpListen;

pub(crate) use accept::{accept, address_claim, bind, claim, taken};

use crate::lines::{Cut, Cutter, letter};
use socket2::{SockRef, TcpKeepalive};
use std::{io, sync::Arc, time::Duration};
use tidemill_core::{Intake, Result, Stop};
use tokio::{io::AsyncReadExt, net::TcpStream};

const SMALLEST_READ: usize = 16 << 10;
const LARGEST_READ: usize = 256 << 10;

/// How a connection came to its end.
#[derive(Debug)]
pub(crate) enum End {
    /// We were told to stop.
    Stopped,
    /// The peer closed it; (bytes heard on it).
    Closed(u64),
    /// It broke; (bytes heard on it).
    Broken(u64, io::Error),
}

/// Notices within 40 seconds when the peer has vanished without a word.
pub(crate) fn watch(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
    #[cfg(not(windows))]
    let keepalive = keepalive.with_retries(5);
    if let Err(error) = SockRef::from(stream).set_tcp_keepalive(&keepalive) {
        tracing::debug!(%error, "this system can't watch idle connections");
    }
}

/// Hands on what was cut.
pub(crate) async fn hand_on(intake: &Arc<dyn Intake>, cut: Cut) -> Result<()> {
    if let Some(block) = cut.block {
        // The peer waits for no acknowledgement; a log that fails says so at the next append.
        drop(intake.append(block, None).await?);
    }
    for line in cut.refused {
        intake.refuse(line.into_letter()).await?;
    }
    Ok(())
}

/// Reads records until the connection ends, and hands on all of them.
pub(crate) async fn receive(
    mut stream: TcpStream,
    mut cutter: impl Cutter,
    idle: Option<Duration>,
    intake: &Arc<dyn Intake>,
    stop: &Stop,
) -> Result<End> {
    watch(&stream);
    let mut buffer = vec![0; SMALLEST_READ];
    let mut heard = 0;
    let stopped = stop.stopped();
    tokio::pin!(stopped);
    let end = loop {
        let read = async {
            match idle {
                None => stream.read(&mut buffer).await,
                Some(idle) => match tokio::time::timeout(idle, stream.read(&mut buffer)).await {
                    Ok(read) => read,
                    Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "idle for too long")),
                },
            }
        };
        let read = tokio::select! {
            biased;
            () = &mut stopped => break End::Stopped,
            read = read => read,
        };
        match read {
            Ok(0) => break End::Closed(heard),
            Err(error) => break End::Broken(heard, error),
            Ok(read) => {
                heard += read as u64;
                hand_on(intake, cutter.push(&buffer[..read])).await?;
                if read == buffer.len() && read < LARGEST_READ {
                    buffer = vec![0; read * 2];
                }
            }
        }
    };
    let why = match &end {
        End::Closed(_) => {
            hand_on(intake, cutter.finish()).await?;
            "the connection was closed"
        }
        End::Stopped => "receiving was stopped",
        End::Broken(..) => "the connection broke",
    };
    if let Some(begun) = cutter.abandon() {
        intake.refuse(letter(format!("{why} in the middle of this line"), begun)).await?;
    }
    Ok(end)
}
