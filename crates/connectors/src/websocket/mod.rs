//! Connector `websocket`: the messages of any WebSocket.
//!
//! | Option | Meaning |
//! |---|---|
//! | `url` | `wss://…`, or several with commas, taken in turn when one fails; `ws://` without a token only, or on this machine |
//! | `subscribe` | what is sent after each opening, such as `{"op":"subscribe","channel":"trades"}`; `{token}` stands for the token |
//! | `token_file`, `token_env` | where the token is, if one is asked for; it goes into `subscribe` where that has `{token}`, else into the header `Authorization: Bearer` |
//! | `protocol` | the subprotocol that is asked for |
//! | `ping` | how often the server is pinged (20s) |
//! | `proxy`, `user_agent`, `max_line`, `idle_timeout` (60s) | as all collectors have them |
//!
//! A record is a message, of text or of bytes; an empty one is none.
//!
//! The protocol has no place that a connection goes on from: what is sent while
//! there is none is lost, which the state tells. Who needs all takes a
//! connector that knows the server, as `bluesky` does, or [`crate::sse`].
//!
//! Invariant: a connection that is silent for `idle_timeout`, pings and all, is
//! taken for dead and opened anew, with the waits of all collectors.

pub(crate) mod link;
#[cfg(test)]
mod tests;

use crate::{
    social::{
        collect::{Collector, Ended, Out, run},
        common::{Common, list},
        failure::Failure,
        http::place,
        secret::Place,
    },
    sse::credential,
};
use async_trait::async_trait;
use hyper::{HeaderMap, Uri, header};
use link::{End, Pace, Reader};
use std::{sync::Arc, time::Duration};
use tidemill_core::{Error, Input, Intake, Options, Receiver, Result, Stop};
use tokio_tungstenite::tungstenite::Message;

/// Silence beyond this is no silence of a server that answers pings.
const QUIET: Duration = Duration::from_secs(60);
/// Bytes of a block, after which no more messages are gathered.
const BLOCK: usize = 256 << 10;
/// What stands for the token.
const TOKEN: &str = "{token}";

/// A client of a WebSocket.
#[derive(Debug, Clone)]
pub struct WebSocket {
    urls: Vec<String>,
    subscribe: Option<String>,
    protocol: Option<String>,
    token: Option<Place>,
    ping: Duration,
    common: Common,
}

impl WebSocket {
    /// The messages of the servers at `urls`, taken in turn when one fails.
    pub fn new(urls: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let urls = urls.into_iter().map(Into::into).collect();
        let (ping, common) = (Duration::from_secs(20), Common::new(QUIET));
        Self { urls, subscribe: None, protocol: None, token: None, ping, common }
    }

    /// Sends this after each opening.
    #[must_use]
    pub fn subscribe(mut self, message: impl Into<String>) -> Self {
        self.subscribe = Some(message.into());
        self
    }

    /// With a token.
    #[must_use]
    pub fn token(mut self, token: Place) -> Self {
        self.token = Some(token);
        self
    }

    /// With what all collectors have.
    #[must_use]
    pub fn common(mut self, common: Common) -> Self {
        self.common = common;
        self
    }

    /// The client that a stream's options ask for.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn input(options: &Options) -> Result<Input> {
        let owner = options.owner();
        let wrong = |why: &str| Error::user(format!("{owner}: {why}"));
        let mut client =
            Self::new(list(options.require("url", "it names the server, such as wss://example.org/feed")?));
        if client.urls.is_empty() {
            return Err(wrong("option `url` names no server"));
        }
        client.common = Common::from_options(options, QUIET)?;
        client.subscribe = options.get("subscribe").map(str::to_string);
        client.protocol = options.get("protocol").map(str::to_string);
        if client.protocol.as_deref().is_some_and(|name| name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic()))
        {
            return Err(wrong("option `protocol` must be one plain word"));
        }
        client.ping = options.duration("ping", client.ping)?;
        if client.ping.is_zero() || client.ping >= client.common.quiet {
            return Err(wrong(
                "option `ping` must be more than nothing, and less than `idle_timeout`: the answers keep a silent connection alive",
            ));
        }
        for url in &client.urls {
            let parsed: Option<Uri> = url.parse().ok().filter(|url: &Uri| url.host().is_some_and(|h| !h.is_empty()));
            let secure = match parsed.as_ref().and_then(Uri::scheme_str) {
                Some("wss") => true,
                Some("ws") => false,
                _ => return Err(wrong("option `url` must begin with wss:// (or ws://) and name a host")),
            };
            if let Some(parsed) = &parsed {
                client.token = credential(options, "WEBSOCKET_TOKEN", parsed, secure)?;
            }
        }
        if client.token.is_none() && client.subscribe.as_deref().is_some_and(|message| message.contains(TOKEN)) {
            return Err(wrong("option `subscribe` has {token}: say with `token_file` or `token_env` where it is"));
        }
        Ok(Input::Receivers(vec![Arc::new(client)]))
    }

    /// What is sent after the opening, and the headers of it, with the token as it is now.
    fn opening(&self) -> Result<(HeaderMap, Option<String>)> {
        let mut headers = HeaderMap::new();
        let mut subscribe = self.subscribe.clone();
        if let Some(place) = &self.token {
            let token = place.read_one()?;
            match &mut subscribe {
                Some(message) if message.contains(TOKEN) => *message = message.replace(TOKEN, token.expose()),
                _ => {
                    if let Ok(mut value) = header::HeaderValue::from_str(&format!("Bearer {}", token.expose())) {
                        value.set_sensitive(true);
                        headers.insert(header::AUTHORIZATION, value);
                    }
                }
            }
        }
        if let Some(Ok(protocol)) = self.protocol.as_deref().map(str::parse) {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        Ok((headers, subscribe))
    }
}

/// The address without its query, which may hold a credential.
fn shown(url: &str) -> String {
    url.parse().map_or_else(|_| "?".to_string(), |url| place(&url))
}

struct Session {
    client: WebSocket,
    /// Which of the servers is next.
    turn: usize,
    /// Whether there was a connection before.
    again: bool,
}

#[async_trait]
impl Collector for Session {
    async fn session(&mut self, out: &Out) -> Result<Ended, Failure> {
        let client = &self.client;
        let url = &client.urls[self.turn % client.urls.len()];
        self.turn += 1;
        let most = client.common.max_line;
        let (headers, subscribe) = client.opening()?;
        let Some(opened) = out.unless_stopped(link::open(&out.link, url, &headers, most)).await else {
            return Ok(Ended::Stopped);
        };
        let pace = Pace {
            quiet: client.common.quiet,
            pings_count: true,
            ping: Some(client.ping),
            gather: out.gather,
            block: BLOCK,
        };
        let (socket, _date) = opened?;
        let mut reader = Reader::new(socket, pace, out.clock());
        let lost = if self.again { "; what was sent during the interruption is lost" } else { "" };
        out.report(&format!("connected to {}{lost}", shown(url)));
        self.again = true;
        if let Some(message) = subscribe {
            match out.unless_stopped(reader.send(Message::text(message))).await {
                Some(Ok(())) => {}
                Some(Err(End::Lost(why))) => return Err(Failure::Network(why)),
                Some(Err(End::Stopped)) | None => return Ok(Ended::Stopped),
            }
        }
        loop {
            let (run, end) = reader.run(out.stop()).await;
            let mut records = Vec::with_capacity(run.len());
            for message in &run {
                if message.len() > most {
                    let reason =
                        format!("a message of {} bytes, over the bound of {most} (option `max_line`)", message.len());
                    out.refuse(reason, message).await?;
                } else if !message.is_empty() {
                    records.push(message.to_vec());
                }
            }
            out.put(&records, String::new()).await?;
            match end {
                None => {}
                Some(End::Lost(why)) => return Err(Failure::Network(why)),
                Some(End::Stopped) => {
                    reader.close().await;
                    return Ok(Ended::Stopped);
                }
            }
        }
    }
}

#[async_trait]
impl Receiver for WebSocket {
    fn describe(&self) -> String {
        format!("websocket {}", self.urls.first().map_or_else(String::new, |url| shown(url)))
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let session = Session { client: self.clone(), turn: 0, again: false };
        run(session, &self.common.link, self.common.gather, intake, stop).await
    }
}
