//! Streams over a WebSocket that a request was upgraded to: each piece of a stream is a message.
//!
//! Invariant: pings are answered, unless the stream has stalled; an empty piece
//! is a ping of our own. Called for networks that have streams of both kinds.

use super::{Fault, feed::Pieces, serve::Answer};
use futures::{SinkExt, StreamExt};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::{io, time::Duration};
use tokio::io::AsyncReadExt;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Bytes, Message, handshake::derive_accept_key, protocol::Role},
};

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The answer that opens the WebSocket of this key, whose messages are the pieces.
pub(super) fn answer(key: &str, on: OnUpgrade, pieces: Pieces, fault: Fault) -> Answer {
    tokio::spawn(async move {
        let Ok(upgraded) = on.await else { return };
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        // The client is gone, which is its right.
        let _gone = send(socket, pieces, fault).await;
    });
    Answer::text(101, "text/plain", String::new())
        .with("connection", &"upgrade")
        .with("upgrade", &"websocket")
        .with("sec-websocket-accept", &derive_accept_key(key.as_bytes()))
}

async fn send(mut socket: Socket, mut pieces: Pieces, fault: Fault) -> io::Result<()> {
    let mut sent = 0;
    loop {
        if matches!(fault, Fault::Stall(after) if sent >= after) {
            // What comes is read, so that its end is seen, and nothing is answered.
            let mut stream = socket.into_inner();
            let mut ignored = [0; 1024];
            while stream.read(&mut ignored).await? > 0 {}
            return Ok(());
        }
        let piece = tokio::select! {
            biased;
            frame = socket.next() => match frame {
                Some(Ok(_)) => continue,
                _ => return Ok(()),
            },
            piece = pieces.next() => piece,
        };
        let message = match piece.map(|piece| piece.map(|frame| frame.into_data().unwrap_or_default())) {
            Some(Ok(ping)) if ping.is_empty() => Message::Ping(Bytes::new()),
            Some(Ok(data)) => Message::text(String::from_utf8_lossy(&data).into_owned()),
            // A goodbye where the protocol has one, and else none.
            None if matches!(fault, Fault::Disconnect(_)) => {
                let goodbye = tokio::time::timeout(Duration::from_secs(1), socket.close(None)).await;
                return goodbye.map_err(io::Error::other)?.map_err(io::Error::other);
            }
            None | Some(Err(_)) => return Ok(()),
        };
        sent += usize::from(message.is_text());
        socket.send(message).await.map_err(io::Error::other)?;
    }
}
