//! Sends generated input over loopback TCP, for both sides of a job alike.
//!
//! Each address takes one connection, sends its share and closes. A reader that
//! is slow slows its sender down: nothing is queued but what the socket holds.

use super::files::Files;
use crate::Result;
use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    thread::{self, JoinHandle},
};

/// Bytes sent at once.
const PIECE: usize = 256 << 10;

/// Senders that wait for their reader.
#[derive(Debug)]
pub(crate) struct Served {
    /// Where to connect, once to each.
    pub(crate) addresses: Vec<SocketAddr>,
    senders: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Served {
    /// Waits until everything is sent. Hangs when an address was never connected to.
    ///
    /// # Errors
    /// When a reader went away early.
    pub(crate) fn finish(self) -> Result<()> {
        for sender in self.senders {
            let sent = sender.join().map_err(|_| "a sender panicked")?;
            sent.map_err(|e| format!("the reader went away before everything was sent: {e}"))?;
        }
        Ok(())
    }
}

/// Serves the files' lines on `connections` addresses; connection *i* sends part *i*, *i* + `connections` …
///
/// # Errors
/// When no port is free.
pub(crate) fn files(files: &Files, connections: usize) -> Result<Served> {
    let mut served = Served { addresses: Vec::new(), senders: Vec::new() };
    for i in 0..connections {
        let parts: Vec<PathBuf> = files.parts.iter().skip(i).step_by(connections).cloned().collect();
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|e| format!("no port to serve from: {e}"))?;
        served.addresses.push(listener.local_addr()?);
        served.senders.push(thread::spawn(move || {
            let (mut reader, _) = listener.accept()?;
            drop(listener);
            let mut buffer = vec![0; PIECE];
            for part in parts {
                let mut part = File::open(part)?;
                loop {
                    match part.read(&mut buffer)? {
                        0 => break,
                        n => reader.write_all(&buffer[..n])?,
                    }
                }
            }
            Ok(())
        }));
    }
    Ok(served)
}
