//! A proxy on the loopback that cuts, swallows, garbles and vanishes as a test tells it to.
//!
//! ```text
//!  client ──asked──►  proxy  ──asked──►  server
//!         ◄─answered─        ◄─answered─
//! ```
//!
//! An order comes at once, to all connections that are open ([`FaultProxy::all`]); a trap waits for a place in what
//! passes ([`FaultProxy::arm`]) and befalls the connection that comes there. Places are counted over all
//! connections from the moment at which a trap becomes the first one in the row.
//!
//! Invariant: the port stays the proxy's own also while nobody listens at it, so a client is refused then, and
//! never meets another server. Called by the suites of this folder, and by tests.

use super::carry::carry;
use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// What befalls a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Both sides see it closed.
    Close,
    /// Both sides see it reset.
    Reset,
    /// It is half open: nothing comes through any more, in either direction, but that a side closes it.
    Silence,
    /// What the client says is swallowed; the server is heard.
    Deaf,
    /// What the server says is swallowed; the client is heard.
    Mute,
    /// Half open, and the server does not learn either that its client is gone.
    Lost,
    /// The client hears this in the server's place, and then nothing more.
    Garbage(Vec<u8>),
    /// Each direction passes so many bytes at a time.
    Crumbs(usize),
}

impl Fault {
    /// In few words.
    pub(super) fn told(&self) -> String {
        format!("{self:?}").chars().take(24).collect()
    }
}

/// Where a trap snaps. A turn is what one side says before the other says something again: a request of a
/// protocol of questions and answers, or an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// In place of the client's turn that comes after so many.
    Asked(u64),
    /// In place of the server's turn that comes after so many: what was asked has arrived.
    Answered(u64),
    /// Behind so many bytes of the client, when one more comes.
    AskedBytes(u64),
    /// Behind so many bytes of the server, when one more comes.
    AnsweredBytes(u64),
}

/// What a proxy has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Landed {
    /// Connections that came through.
    pub connections: u64,
    /// Those of them that are open.
    pub open: u64,
    /// Bytes of clients that were passed on.
    pub asked: u64,
    /// Bytes of servers that were passed on.
    pub answered: u64,
    /// Bytes of either that were not.
    pub swallowed: u64,
    /// Traps that have snapped.
    pub faults: u64,
}

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Asked,
    Answered,
}

#[derive(Debug, Default)]
struct Traps {
    row: VecDeque<(When, Fault)>,
    /// Turns begun and bytes come since the first of the row is the first, of clients and of servers.
    turns: [u64; 2],
    bytes: [u64; 2],
}

/// What connections share.
#[derive(Debug)]
pub(super) struct Script {
    traps: Mutex<Traps>,
    /// The last order, and how many there were.
    orders: watch::Sender<(u64, Fault)>,
    landed: watch::Sender<Landed>,
}

impl Script {
    fn traps(&self) -> std::sync::MutexGuard<'_, Traps> {
        self.traps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut Landed)) {
        self.landed.send_modify(change);
    }

    pub(super) fn orders(&self) -> watch::Receiver<(u64, Fault)> {
        self.orders.subscribe()
    }

    /// How many of these bytes pass before a trap snaps, and what then happens.
    pub(super) fn come(&self, side: Side, begins: bool, count: usize) -> (usize, Option<Fault>) {
        let mut traps = self.traps();
        let at = usize::from(side == Side::Answered);
        traps.turns[at] += u64::from(begins);
        let before = traps.bytes[at];
        traps.bytes[at] += count as u64;
        let Some((when, _)) = traps.row.front() else { return (count, None) };
        let passes = match (when, side) {
            (When::Asked(turns), Side::Asked) | (When::Answered(turns), Side::Answered) => {
                (traps.turns[at] > *turns).then_some(0)
            }
            (When::AskedBytes(most), Side::Asked) | (When::AnsweredBytes(most), Side::Answered) => {
                (traps.bytes[at] > *most).then(|| usize::try_from(most.saturating_sub(before)).unwrap_or(count))
            }
            _ => None,
        };
        let Some(passes) = passes else { return (count, None) };
        let fault = traps.row.pop_front().map(|(_, fault)| fault);
        (traps.turns, traps.bytes) = ([0; 2], [0; 2]);
        drop(traps);
        self.note(|landed| landed.faults += 1);
        (passes, fault)
    }
}

/// A way to a server on which a test makes faults.
#[derive(Debug)]
pub struct FaultProxy {
    target: SocketAddr,
    address: SocketAddr,
    /// Keeps the port while nobody listens at it.
    _port: TcpSocket,
    script: Arc<Script>,
    listening: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        if let Some(listening) = self.listening().take() {
            listening.abort();
        }
    }
}

/// A socket at a port that others of ours may have as well, as long as one of them listens.
fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

impl FaultProxy {
    /// A way to this server, on which nothing happens yet.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn to(target: SocketAddr) -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into(), target)
    }

    /// A way to this server that begins here: where the server itself tells its clients to come.
    ///
    /// # Panics
    /// When the port is somebody else's.
    pub fn at(here: SocketAddr, target: SocketAddr) -> Self {
        let port = socket(here).expect("a free port");
        let address = port.local_addr().expect("its number");
        let script = Script {
            traps: Mutex::default(),
            orders: watch::channel((0, Fault::Close)).0,
            landed: watch::channel(Landed::default()).0,
        };
        let proxy = Self { target, address, _port: port, script: Arc::new(script), listening: Mutex::default() };
        proxy.come_back();
        proxy
    }

    fn listening(&self) -> std::sync::MutexGuard<'_, Option<JoinHandle<()>>> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where clients come to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has seen so far.
    pub fn landed(&self) -> Landed {
        *self.script.landed.borrow()
    }

    /// Sets a trap, behind those that are set.
    pub fn arm(&self, when: When, fault: Fault) {
        let mut traps = self.script.traps();
        if traps.row.is_empty() {
            (traps.turns, traps.bytes) = ([0; 2], [0; 2]);
        }
        traps.row.push_back((when, fault));
    }

    /// Takes away the traps that have not snapped; how many there were.
    pub fn disarm(&self) -> usize {
        std::mem::take(&mut self.script.traps().row).len()
    }

    /// What befalls all connections that are open, now.
    pub fn all(&self, fault: Fault) {
        self.script.orders.send_modify(|(number, order)| {
            *number += 1;
            *order = fault;
        });
    }

    /// The server is gone: whoever was connected is not, and whoever comes is refused.
    pub async fn go_away(&self) {
        let listening = self.listening().take();
        if let Some(listening) = listening {
            listening.abort();
            // Its sockets are closed when it has ended.
            let _aborted = listening.await;
        }
    }

    /// The server is back.
    ///
    /// # Panics
    /// When the port can't be listened at.
    pub fn come_back(&self) {
        let listener = socket(self.address).and_then(|socket| socket.listen(256)).expect("the port is ours");
        *self.listening() = Some(tokio::spawn(listen(listener, self.target, Arc::clone(&self.script))));
    }
}

async fn listen(listener: TcpListener, target: SocketAddr, script: Arc<Script>) {
    let mut carried = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_ended) = carried.join_next() => continue,
        };
        let Ok((client, _)) = accepted else { return };
        let script = Arc::clone(&script);
        // Heard by this connection from here on.
        let orders = script.orders();
        carried.spawn(async move {
            // A server that refuses is one that hangs up.
            if let Ok(server) = TcpStream::connect(target).await {
                carry(client, server, &script, orders).await;
            }
        });
    }
}
