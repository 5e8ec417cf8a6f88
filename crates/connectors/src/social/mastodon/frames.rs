//! A timeline over a WebSocket: `{"stream":["public"],"event":"update","payload":"<the status as JSON>"}`.
//!
//! Invariant: as over server-sent events, what came since the newest known post
//! is fetched when the connection is open, and before it is read. Called by the
//! session of [`super`].

use super::{Mastodon, Session, Timeline};
use crate::{
    lines::HEAD,
    social::{
        collect::{Ended, Messages, Out, Taken},
        common::encode,
        failure::Failure,
        sse::Event,
    },
    websocket::link::{self, End, Pace, Reader},
};
use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, HeaderValue},
};
use serde_json::Value;
use tidemill_core::Error;

/// Bytes of a block, after which no more are gathered.
const BLOCK: usize = 256 << 10;

fn url(client: &Mastodon) -> String {
    let stream = match &client.timeline {
        Timeline::Public => "public".to_string(),
        Timeline::Local => "public:local".to_string(),
        Timeline::Remote => "public:remote".to_string(),
        Timeline::Hashtag(tag) => format!("hashtag&tag={}", encode(tag)),
    };
    // `http` becomes `ws`, and `https` becomes `wss`.
    let server = client.url.strip_prefix("http").unwrap_or(&client.url);
    format!("ws{server}/api/v1/streaming?stream={stream}")
}

fn headers(client: &Mastodon) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    if let Some(place) = &client.token {
        // What can't stand in a header is refused where it is read.
        let mut value = HeaderValue::from_str(&format!("Bearer {}", place.read_one()?.expose()))
            .map_err(|_| Failure::Fatal(Error::user(format!("the credential in {place} can't be sent"))))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

/// One connection to its end.
pub(super) async fn session(session: &mut Session, out: &Out) -> Result<Ended, Failure> {
    let (url, headers) = (url(&session.client), headers(&session.client)?);
    let (quiet, most) = (session.common().quiet, session.common().max_line);
    // A payload is a text within a text, which may double its bytes.
    let opening = link::open(&out.link, &url, &headers, most.saturating_mul(2));
    let Some(opened) = out.unless_stopped(opening).await else { return Ok(Ended::Stopped) };
    let (socket, date) = opened?;
    out.report(&format!("connected to {url}"));
    session.fill(date, out).await?;
    if out.is_stopped() {
        return Ok(Ended::Stopped);
    }
    // The server pings every half a minute, and answers pings.
    let pace = Pace { quiet, pings_count: true, ping: Some(quiet / 3), gather: out.gather, block: BLOCK };
    let mut reader = Reader::new(socket, pace, out.clock());
    loop {
        let (run, end) = reader.run(out.stop()).await;
        let (mut records, mut failed) = (Vec::with_capacity(run.len()), None);
        for message in &run {
            match event(message, most).map_or_else(Taken::Refuse, |event| taken(session, event)) {
                Taken::Keep(record) => records.push(record),
                Taken::Pass => {}
                Taken::Refuse(reason) => out.refuse(reason, &message[..message.len().min(HEAD)]).await?,
                Taken::End(failure) => {
                    failed = Some(failure);
                    break;
                }
            }
        }
        // What came before the end counts.
        out.put(&records, session.token()).await?;
        match (failed, end) {
            (Some(failure), _) => return Err(failure),
            (None, None) => {}
            (None, Some(End::Lost(why))) => return Err(Failure::Network(why)),
            (None, Some(End::Stopped)) => {
                reader.close().await;
                return Ok(Ended::Stopped);
            }
        }
    }
}

fn taken(session: &mut Session, frame: Result<Event, Failure>) -> Taken {
    match frame {
        Ok(event) => session.take(event),
        Err(failure) => Taken::End(failure),
    }
}

/// What a message says: an event, or that the server does not want to; else why it is no message.
fn event(message: &[u8], most: usize) -> Result<Result<Event, Failure>, String> {
    let mut frame: Value =
        serde_json::from_slice(message).map_err(|error| format!("no message of a stream: {error}"))?;
    if let Some(error) = frame.get("error").and_then(Value::as_str) {
        return Ok(Err(Failure::Denied(format!("the server says: {error}"))));
    }
    let mut text = |name: &str| match frame.get_mut(name).map(Value::take) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    };
    let (kind, data) = (text("event"), text("payload").into_bytes());
    if data.len() > most {
        return Err(format!("a message of {} bytes, over the bound of {most} (option `max_line`)", data.len()));
    }
    Ok(Ok(Event { kind, id: None, data }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_asked_for_where_the_server_has_it() {
        let of = |timeline| url(&Mastodon::new("https://m.example").timeline(timeline));
        assert_eq!(of(Timeline::Local), "wss://m.example/api/v1/streaming?stream=public:local");
        let tag = of(Timeline::Hashtag("a&b".to_string()));
        assert_eq!(tag, "wss://m.example/api/v1/streaming?stream=hashtag&tag=a%26b");
        assert!(url(&Mastodon::new("http://127.0.0.1:1")).starts_with("ws://127.0.0.1:1/"));
    }

    #[test]
    fn messages_are_events_or_what_the_server_says() {
        let message = br#"{"stream":["public"],"event":"update","payload":"{\"id\":\"1\"}"}"#;
        let update = event(message, 10).unwrap().unwrap();
        assert_eq!((update.kind.as_str(), &update.data[..]), ("update", &br#"{"id":"1"}"#[..]));
        assert!(event(message, 9).unwrap_err().contains("over the bound of 9"));
        let error = event(br#"{"error":"Missing access token","status":401}"#, 10).unwrap().unwrap_err();
        assert!(error.to_string().contains("Missing access token"), "{error}");
        assert!(event(b"{", 10).unwrap_err().starts_with("no message of a stream: "));
    }
}
