//! HTTP for the networks that are simulated: requests in, answers or streams out.
//!
//! Invariant: every request is noted before it is answered, and every answer has
//! the server's own date. Called for each connection.

use super::{Stage, feed::Pieces, frames, mastodon, weibo, wikimedia, x, x_v1};
use crate::social::post::Network;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::net::TcpStream;

/// Bytes of a request's body at most.
const BODY: usize = 1 << 20;

/// A request as the networks see it.
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) pairs: Vec<(String, String)>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Asked {
    /// A parameter of the query.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The token after `Bearer `.
    pub(super) fn bearer(&self) -> Option<&str> {
        self.header("authorization")?.strip_prefix("Bearer ")
    }
}

/// What is answered.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) kind: &'static str,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Pieces,
}

impl Answer {
    /// A whole text.
    pub(super) fn text(status: u16, kind: &'static str, text: String) -> Self {
        let body = stream::iter([Ok(Frame::data(Bytes::from(text)))]).boxed();
        Self { status, kind, headers: Vec::new(), body }
    }

    /// JSON.
    pub(super) fn json(status: u16, value: &serde_json::Value) -> Self {
        Self::text(status, "application/json; charset=utf-8", value.to_string())
    }

    /// A stream.
    pub(super) fn stream(kind: &'static str, body: Pieces) -> Self {
        Self { status: 200, kind, headers: Vec::new(), body }
    }

    pub(super) fn with(mut self, name: &'static str, value: &impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }
}

/// `a=1&b=2`, decoded.
pub(super) fn pairs(query: &str) -> Vec<(String, String)> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let plain = |text: &str| crate::http::proxy::decode(&text.replace('+', " "));
            (plain(key), plain(value))
        })
        .collect()
}

/// Serves one connection to its end.
pub(super) async fn serve(stream: TcpStream, stage: Arc<Stage>) {
    let service = service_fn(move |request| {
        let stage = Arc::clone(&stage);
        async move { Ok::<_, Infallible>(answer(request, &stage).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30))
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "simulate: a connection ended");
    }
}

async fn answer(mut request: Request<Incoming>, stage: &Arc<Stage>) -> Response<StreamBody<Pieces>> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY).collect().await.map(|whole| whole.to_bytes()).unwrap_or_default();
    let query = head.uri.query().unwrap_or_default();
    let last = head.headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let last = last.map(|id| format!(" [last-event-id {id}]")).unwrap_or_default();
    stage.note(format!("{} {}{last}", head.method, head.uri));
    let asked = Asked {
        method: head.method,
        path: head.uri.path().to_string(),
        pairs: pairs(query),
        headers: head.headers,
        body,
    };
    let answer = match stage.plan.network {
        Network::Mastodon => match asked.header("sec-websocket-key") {
            Some(key) => mastodon::frames(&asked, stage)
                .map_or_else(|no| no, |(pieces, fault)| frames::answer(key, upgrade, pieces, fault)),
            None => mastodon::answer(&asked, stage),
        },
        Network::Wikimedia => wikimedia::answer(&asked, stage),
        Network::X => x::answer(&asked, stage),
        Network::XV1 => x_v1::answer(&asked, stage),
        // Bluesky is served over WebSockets.
        Network::Weibo | Network::Bluesky => weibo::answer(&asked, stage),
    };
    let mut response = Response::new(StreamBody::new(answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.kind));
    let now = std::time::UNIX_EPOCH + stage.plan.clock.now().since(tidemill_core::Timestamp(0));
    let mut put = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    };
    put("date", &httpdate::fmt_http_date(now));
    for (name, value) in &answer.headers {
        put(name, value);
    }
    response
}
