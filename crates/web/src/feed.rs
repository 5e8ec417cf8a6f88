//! `/api/v1/feed`: the live feed as a WebSocket, for programs that speak it.
//!
//! Each message is a text, `{"event":"view","data":…}`, with the events of
//! [`crate::live`] and the same bounds. Invariant: what a client sends is not
//! looked at and is small; a client that closes, or sends more, loses its seat.
//! Called by the router, behind the guard, which refuses foreign origins.

use crate::{api::problem, live, server::Shared};
use axum::{
    extract::{
        State,
        ws::{Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use std::{pin::pin, sync::Arc};
use tokio::sync::OwnedSemaphorePermit;

/// Bytes of a message that a client may send.
const MESSAGE: usize = 4096;

/// `/api/v1/feed`
pub(crate) async fn feed(
    State(shared): State<Arc<Shared>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(wrong) => {
            let why = wrong.body_text();
            return problem(wrong.into_response().status(), &format!("only a WebSocket is served here: {why}"));
        }
    };
    let seat = match live::seat(&shared) {
        Ok(seat) => seat,
        Err(refusal) => return *refusal,
    };
    // A browser that sent a token as a subprotocol hears which of them was taken; see [`crate::callers`].
    let upgrade = upgrade.protocols(["tidemill"]).max_message_size(MESSAGE).max_frame_size(MESSAGE);
    upgrade.on_upgrade(move |socket| tell(socket, shared, seat))
}

/// Tells until the client closes, breaks a rule, or the server stops.
async fn tell(socket: WebSocket, shared: Arc<Shared>, seat: OwnedSemaphorePermit) {
    let (mut to, mut from) = socket.split();
    let mut frames = pin!(live::feed(shared, seat));
    loop {
        tokio::select! {
            told = frames.next() => {
                let Some(Ok(frames)) = told else { break };
                // All but the last wait for it, so that they go together.
                for message in messages(&frames) {
                    if to.feed(Message::Text(message.into())).await.is_err() {
                        return;
                    }
                }
                if to.flush().await.is_err() {
                    return;
                }
            }
            heard = from.next() => match heard {
                // Pings are answered by the socket itself.
                Some(Ok(Message::Text(_) | Message::Binary(_) | Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
            },
        }
    }
    // The client may be gone already.
    let _gone = to.send(Message::Close(None)).await;
}

/// Frames of the event stream as messages.
fn messages(frames: &Bytes) -> impl Iterator<Item = String> {
    let text = std::str::from_utf8(frames).expect("frames are made of texts");
    text.split_terminator("\n\n").filter_map(|frame| {
        let (event, data) = frame.strip_prefix("event: ")?.split_once("\ndata: ")?;
        Some(format!("{{\"event\":\"{event}\",\"data\":{data}}}"))
    })
}
