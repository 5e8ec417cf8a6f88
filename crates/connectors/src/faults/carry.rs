//! One connection through the proxy, in both directions, until it ends or is ended.
//!
//! Invariant: both directions are one task, so that an end is one for both; each holds what one read
//! gave and no more, so that a side that does not read slows the other down. Called by [`super::proxy`].

use super::proxy::{Fault, Script, Side};
use std::{
    convert::Infallible,
    future::pending,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, watch},
};

/// Bytes of a read.
const READ: usize = 64 << 10;

/// How a connection is ended by the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    Closed,
    Reset,
}

/// What has befallen a connection so far.
#[derive(Debug, Default)]
struct Mood {
    /// Whose bytes are swallowed.
    swallows: [bool; 2],
    /// Whether the end of one side is kept from the other.
    lost: bool,
    crumbs: Option<usize>,
    /// What the client is still to hear.
    garbage: Option<Vec<u8>>,
    last: Option<Side>,
}

struct Connection<'a> {
    script: &'a Script,
    mood: Mutex<Mood>,
    /// There is garbage to say.
    says: Notify,
}

/// A connection is counted as open as long as this lives.
struct Open<'a>(&'a Script);

impl<'a> Open<'a> {
    fn new(script: &'a Script) -> Self {
        script.note(|landed| {
            landed.connections += 1;
            landed.open += 1;
        });
        Self(script)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.note(|landed| landed.open -= 1);
    }
}

impl Connection<'_> {
    fn mood<T>(&self, act: impl FnOnce(&mut Mood) -> T) -> T {
        act(&mut self.mood.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn meets(&self, fault: Fault) -> Result<(), Cut> {
        self.mood(|mood| {
            match fault {
                Fault::Close => return Err(Cut::Closed),
                Fault::Reset => return Err(Cut::Reset),
                Fault::Silence => mood.swallows = [true; 2],
                Fault::Deaf => mood.swallows[0] = true,
                Fault::Mute => mood.swallows[1] = true,
                Fault::Lost => (mood.swallows, mood.lost) = ([true; 2], true),
                Fault::Garbage(bytes) => {
                    (mood.swallows, mood.garbage) = ([true; 2], Some(bytes));
                    self.says.notify_one();
                }
                Fault::Crumbs(bytes) => mood.crumbs = Some(bytes.max(1)),
            }
            Ok(())
        })
    }

    /// Passes bytes on, or does not.
    async fn pass(&self, side: Side, bytes: &[u8], to: &mut (impl AsyncWrite + Unpin)) -> Result<(), Cut> {
        let at = usize::from(side == Side::Answered);
        let (swallows, crumbs) = self.mood(|mood| (mood.swallows[at], mood.crumbs));
        if swallows {
            self.script.note(|landed| landed.swallowed += bytes.len() as u64);
            return Ok(());
        }
        for crumb in bytes.chunks(crumbs.unwrap_or(READ)) {
            to.write_all(crumb).await.map_err(|_| Cut::Closed)?;
            self.script.note(|landed| match side {
                Side::Asked => landed.asked += crumb.len() as u64,
                Side::Answered => landed.answered += crumb.len() as u64,
            });
            if crumbs.is_some() {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    /// One direction, to its end.
    async fn pump(
        &self,
        side: Side,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> Result<(), Cut> {
        let mut buffer = vec![0; READ];
        loop {
            let read = tokio::select! {
                biased;
                () = self.says.notified(), if side == Side::Answered => {
                    let garbage = self.mood(|mood| mood.garbage.take()).unwrap_or_default();
                    to.write_all(&garbage).await.map_err(|_| Cut::Closed)?;
                    continue;
                }
                read = from.read(&mut buffer) => read,
            };
            let count = match read {
                Ok(count) if count > 0 => count,
                _ if self.mood(|mood| mood.lost) => pending().await,
                Ok(_) => {
                    // Who has gone already hears no more of it.
                    let _gone = to.shutdown().await;
                    return Ok(());
                }
                Err(_) => return Err(Cut::Closed),
            };
            let begins = self.mood(|mood| mood.last.replace(side) != Some(side));
            let (passes, fault) = self.script.come(side, begins, count);
            self.pass(side, &buffer[..passes], &mut to).await?;
            if let Some(fault) = fault {
                self.meets(fault)?;
                self.pass(side, &buffer[passes..count], &mut to).await?;
            }
        }
    }

    /// Obeys what is said to all connections.
    async fn obey(&self, mut orders: watch::Receiver<(u64, Fault)>) -> Result<Infallible, Cut> {
        loop {
            if orders.changed().await.is_err() {
                // Nobody is left to give one.
                pending::<()>().await;
            }
            let (_, fault) = orders.borrow_and_update().clone();
            self.meets(fault)?;
        }
    }
}

/// Carries a connection.
pub(super) async fn carry(
    mut client: TcpStream,
    mut server: TcpStream,
    script: &Script,
    orders: watch::Receiver<(u64, Fault)>,
) {
    let _open = Open::new(script);
    for stream in [&client, &server] {
        // A failure only costs delay.
        let _delayed = stream.set_nodelay(true);
    }
    let connection = Connection { script, mood: Mutex::default(), says: Notify::new() };
    let ended = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let asked = connection.pump(Side::Asked, from_client, to_server);
        let answered = connection.pump(Side::Answered, from_server, to_client);
        tokio::select! {
            biased;
            Err(cut) = connection.obey(orders) => Err(cut),
            ended = async { tokio::try_join!(asked, answered) } => ended.map(drop),
        }
    };
    if ended == Err(Cut::Reset) {
        for stream in [&client, &server] {
            // Closing at once, with zero linger, resets the connection.
            let _plain = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}
