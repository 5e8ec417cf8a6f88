//! A WebSocket as clients of streams use it: opened through the link, read in runs of messages.
//!
//! Invariant: nothing waits without an end: opening, each silence, and what is
//! sent are bounded by the injected clock. Called by [`super`] and by
//! [`crate::jetstream`].

use crate::http::{
    CONNECT, Link, Stream,
    failure::Failure,
    refusal::{self, Refusal},
};
use futures::{SinkExt, StreamExt};
use hyper::{HeaderMap, header};
use std::time::Duration;
use tidemill_core::{Clock, Stop, Timestamp};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, Bytes, Message, client::IntoClientRequest, protocol::WebSocketConfig},
};

/// An open WebSocket.
pub(crate) type Socket = WebSocketStream<Box<dyn Stream>>;

/// Bytes that a message costs beside its own.
pub(crate) const PLACE: usize = 64;
/// Bytes of a message at least that are let in, so that one over the stream's bound is refused alone.
const LET_IN: usize = 16 << 20;

/// Opens a WebSocket at `url`, for messages of `most` bytes; gives the server's time with it, where it says that.
///
/// # Errors
/// When the server can't be reached, or does not want to.
pub(crate) async fn open(
    link: &Link,
    url: &str,
    headers: &HeaderMap,
    most: usize,
) -> Result<(Socket, Option<Timestamp>), Failure> {
    let mut request = url.into_client_request().map_err(|e| Failure::Denied(format!("not an address: {e}")))?;
    request.headers_mut().extend(headers.clone());
    if let Ok(agent) = link.agent.parse() {
        request.headers_mut().insert(header::USER_AGENT, agent);
    }
    let uri = request.uri();
    let secure = uri.scheme_str() == Some("wss");
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_string();
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let network = |why: String| Failure::Network(format!("{host}: {why}"));
    let stream = link.within(CONNECT, link.dial(secure, &host, port)).await.map_err(network)?.map_err(network)?;
    let config =
        WebSocketConfig::default().max_message_size(Some(most.max(LET_IN))).max_frame_size(Some(most.max(LET_IN)));
    let opening = client_async_with_config(request, stream, Some(config));
    match link.within(CONNECT, opening).await.map_err(network)? {
        Ok((socket, answer)) => Ok((socket, refusal::date(answer.headers()))),
        Err(tungstenite::Error::Http(answer)) => Err(refused(&answer, &*link.clock)),
        Err(error) => Err(network(error.to_string())),
    }
}

/// Why a server that answers does not open one.
fn refused(answer: &hyper::Response<Option<Vec<u8>>>, clock: &dyn Clock) -> Failure {
    if answer.status().is_success() {
        return Failure::Denied(format!(
            "the server answered {} and opened no WebSocket; is `url` right?",
            answer.status()
        ));
    }
    let refusal = Refusal { status: answer.status(), headers: answer.headers(), clock };
    refusal.failure(answer.body().as_deref().unwrap_or_default())
}

/// How a WebSocket is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Silence after which the connection is taken for dead.
    pub(crate) quiet: Duration,
    /// Whether pings and pongs break a silence.
    pub(crate) pings_count: bool,
    /// How often the server is pinged.
    pub(crate) ping: Option<Duration>,
    /// How long messages are gathered to a run.
    pub(crate) gather: Duration,
    /// Bytes after which no more are gathered.
    pub(crate) block: usize,
}

/// Why there are no more messages.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// We were told to stop.
    Stopped,
    /// The connection is gone.
    Lost(String),
}

/// An open WebSocket that is read.
pub(crate) struct Reader<'a> {
    socket: Socket,
    pace: Pace,
    clock: &'a dyn Clock,
    heard: Timestamp,
    pinged: Timestamp,
    /// When nobody listened any more.
    left: Timestamp,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(socket: Socket, pace: Pace, clock: &'a dyn Clock) -> Self {
        let now = clock.now();
        Self { socket, pace, clock, heard: now, pinged: now, left: now }
    }

    /// Sends a message, or says that the connection is gone.
    pub(crate) async fn send(&mut self, message: Message) -> Result<(), End> {
        let until = self.clock.now().plus(self.pace.quiet);
        tokio::select! {
            biased;
            sent = self.socket.send(message) => sent.map_err(|error| End::Lost(error.to_string())),
            () = self.clock.sleep_until(until) => Err(End::Lost("the server takes nothing".to_string())),
        }
    }

    /// The next run of messages, each as its bytes, and the end if it has come to it.
    pub(crate) async fn run(&mut self, stop: &Stop) -> (Vec<Bytes>, Option<End>) {
        // While nobody listened, as the log was behind, nothing could be heard: that is no silence of the server.
        let away = self.clock.now().since(self.left);
        (self.heard, self.pinged) = (self.heard.plus(away), self.pinged.plus(away));
        let run = self.listen(stop).await;
        self.left = self.clock.now();
        run
    }

    async fn listen(&mut self, stop: &Stop) -> (Vec<Bytes>, Option<End>) {
        let (mut run, mut bytes, mut until) = (Vec::new(), 0, None);
        loop {
            let dead = self.heard.plus(self.pace.quiet);
            let ping = self.pace.ping.map(|ping| self.pinged.plus(ping));
            let next = [Some(dead), ping, until].into_iter().flatten().min().unwrap_or(dead);
            let message = tokio::select! {
                biased;
                () = stop.stopped() => return (run, Some(End::Stopped)),
                message = self.socket.next() => message,
                () = self.clock.sleep_until(next) => {
                    let now = self.clock.now();
                    if until.is_some_and(|until| now >= until) {
                        return (run, None);
                    }
                    if now >= dead {
                        let quiet = self.pace.quiet.as_secs();
                        return (run, Some(End::Lost(format!("nothing came for {quiet} s"))));
                    }
                    self.pinged = now;
                    match self.send(Message::Ping(Bytes::new())).await {
                        Ok(()) => continue,
                        Err(end) => return (run, Some(end)),
                    }
                }
            };
            let data = match message {
                None => return (run, Some(End::Lost("the server closed the connection".to_string()))),
                Some(Ok(Message::Close(close))) => {
                    let why = close.map(|c| format!(" ({} {})", u16::from(c.code), c.reason)).unwrap_or_default();
                    return (run, Some(End::Lost(format!("the server closed the connection{why}"))));
                }
                Some(Err(error)) => return (run, Some(End::Lost(error.to_string()))),
                Some(Ok(Message::Text(text))) => Bytes::from(text),
                Some(Ok(Message::Binary(data))) => data,
                // Pings are answered by the socket.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                    if self.pace.pings_count {
                        self.heard = self.clock.now();
                    }
                    continue;
                }
            };
            self.heard = self.clock.now();
            // A message costs its place, too: an endless row of empty ones is a block at last.
            bytes += data.len() + PLACE;
            run.push(data);
            if bytes >= self.pace.block || self.pace.gather.is_zero() {
                return (run, None);
            }
            until = until.or_else(|| Some(self.heard.plus(self.pace.gather)));
        }
    }

    /// Says goodbye; one that doesn't arrive is no harm.
    pub(crate) async fn close(mut self) {
        let _gone = tokio::time::timeout(Duration::from_millis(200), self.socket.close(None)).await;
    }
}
