//! Jetstream of Bluesky: frames over a WebSocket, from a cursor on.
//!
//! Invariant: a frame is sent when its time is after the cursor; without one, when it is published after the connection.

use super::{Fault, Stage};
use futures::{SinkExt, StreamExt};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{ErrorResponse, Request, Response},
        http::StatusCode,
    },
};

#[expect(clippy::result_large_err, reason = "the handshake's signature")]
pub(super) async fn serve(stream: TcpStream, stage: Arc<Stage>) {
    let mut cursor = None;
    let mut fault = Fault::Pass;
    let look = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        stage.note(format!("GET {}", request.uri()));
        let query = request.uri().query().unwrap_or_default();
        cursor = query.split('&').find_map(|pair| pair.strip_prefix("cursor=")).and_then(|c| c.parse::<i64>().ok());
        fault = stage.fault();
        match fault {
            Fault::Status(code, _) => {
                let mut refused = ErrorResponse::new(None);
                *refused.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                Err(refused)
            }
            _ => Ok(response),
        }
    };
    let Ok(mut socket) = accept_hdr_async(stream, look).await else { return };
    let mut published = stage.published.subscribe();
    let (mut next, mut sent) = (if cursor.is_some() { 0 } else { stage.published() }, 0);
    loop {
        match fault {
            Fault::Stall(after) if sent >= after => {
                while let Some(Ok(_)) = socket.next().await {}
                return;
            }
            // Dropped without a goodbye: a WebSocket has no half frames that a client could take for whole.
            Fault::HangUp(after) | Fault::Half(after) if sent >= after => return,
            Fault::Disconnect(after) if sent >= after => {
                // The client may be gone.
                let _gone = socket.close(None).await;
                return;
            }
            Fault::Garbage(after) if sent >= after => {
                if socket.send(Message::text("not json")).await.is_err() {
                    return;
                }
                fault = Fault::Pass;
            }
            _ => {}
        }
        if next < *published.borrow_and_update() {
            let post = &stage.plan.posts[next];
            next += 1;
            if cursor.is_none_or(|cursor| post.at.0 > cursor) {
                if socket.send(Message::text(post.record.clone())).await.is_err() {
                    return;
                }
                sent += 1;
            }
            continue;
        }
        tokio::select! {
            biased;
            frame = socket.next() => if !matches!(frame, Some(Ok(_))) { return },
            changed = published.changed() => if changed.is_err() { return },
        }
    }
}
