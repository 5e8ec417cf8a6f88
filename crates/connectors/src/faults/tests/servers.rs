//! Small servers of this machine that publish what a test says: lines, server-sent events, WebSockets.
//!
//! Invariant: each says a record to whoever is connected, and never waits for one of them. Called by [`super::receivers`].

use futures::{SinkExt, StreamExt};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{broadcast, watch},
};
use tokio_tungstenite::{accept_async, tungstenite::Message};

/// A record as text.
pub(super) fn record(number: u64) -> String {
    format!("record {number:06};")
}

/// Its number, when it is whole.
pub(super) fn number(record: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(record).ok()?.strip_prefix("record ")?.strip_suffix(';')?;
    (digits.len() == 6).then(|| digits.parse().ok()).flatten()
}

/// Lines to all who are connected.
pub(super) struct Lines {
    pub(super) address: SocketAddr,
    listening: Arc<Mutex<Vec<TcpStream>>>,
}

impl Lines {
    pub(super) async fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, listening) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<TcpStream>>>::default());
        let all = Arc::clone(&listening);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                all.lock().unwrap().push(stream);
            }
        });
        Self { address, listening }
    }

    pub(super) fn publish(&self, record: &str) {
        let line = format!("{record}\n");
        self.listening.lock().unwrap().retain(|stream| stream.try_write(line.as_bytes()).is_ok());
    }
}

/// Events with ids, from the one after that which a client names, or from the first on.
pub(super) struct Events {
    pub(super) address: SocketAddr,
    published: watch::Sender<u64>,
}

impl Events {
    pub(super) async fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, published) = (listener.local_addr().unwrap(), watch::Sender::new(0));
        let source = published.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(tell(stream, source.subscribe()));
            }
        });
        Self { address, published }
    }

    pub(super) fn publish(&self, number: u64) {
        self.published.send_replace(number + 1);
    }
}

async fn tell(mut stream: TcpStream, mut published: watch::Receiver<u64>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?.to_ascii_lowercase();
    let last = head.lines().find_map(|line| line.strip_prefix("last-event-id: "));
    let mut next = last.map_or(0, |last| last.parse::<u64>().unwrap());
    let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    stream.write_all(answer.as_bytes()).await.ok()?;
    loop {
        let all = *published.borrow_and_update();
        while next < all {
            let event = format!("id: {}\ndata: {}\n\n", next + 1, record(next));
            stream.write_all(event.as_bytes()).await.ok()?;
            next += 1;
        }
        published.changed().await.ok()?;
    }
}

/// Messages to all whose WebSocket is open.
pub(super) struct Sockets {
    pub(super) address: SocketAddr,
    published: broadcast::Sender<String>,
}

impl Sockets {
    pub(super) async fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, published) = (listener.local_addr().unwrap(), broadcast::Sender::new(10_000));
        let source = published.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut messages = source.subscribe();
                tokio::spawn(async move {
                    let Ok(socket) = accept_async(stream).await else { return };
                    let (mut to, mut from) = socket.split();
                    loop {
                        tokio::select! {
                            message = messages.recv() => match message {
                                Ok(message) => if to.send(Message::text(message)).await.is_err() { return },
                                Err(_) => return,
                            },
                            heard = from.next() => if !matches!(heard, Some(Ok(_))) { return },
                        }
                    }
                });
            }
        });
        Self { address, published }
    }

    pub(super) fn publish(&self, record: String) {
        // Nobody may be there to hear it.
        let _unheard = self.published.send(record);
    }
}
