//! Connector `sse`: server-sent events of any server.
//!
//! | Option | Meaning |
//! |---|---|
//! | `url` | the stream's address; `http://` without a token only, or on this machine |
//! | `events` | such as `update,message`: takes only events of these kinds; one without a kind is a `message`; all unless said |
//! | `last_event_id` | where a first start begins, as the server names it; with what comes next unless said |
//! | `token_file`, `token_env` | where the bearer token is, if one is asked for: a file, or a variable |
//! | `proxy`, `user_agent`, `max_line`, `idle_timeout` (60s) | as all collectors have them |
//!
//! The record is the event's data, its lines joined by `\n`.
//!
//! **Nothing lost, nothing twice**, as far as the server has ids: with each block
//! goes the id of the last event, and a connection goes on from it
//! (`Last-Event-ID`). A server without ids goes on with what comes next: what
//! came meanwhile is lost, which the state tells. A server that answers 204
//! has no more, and the input ends.
//!
//! Invariant: the token is the id of the last event that was taken, or passed
//! over. Waits grow with failures, and do not heed the field `retry`.

#[cfg(test)]
mod tests;

use crate::social::{
    collect::{Collector, Ended, Framing, Messages, Out, Taken, follow, open, run},
    common::{Common, list},
    failure::Failure,
    http::{Request, is_local, place},
    secret::Place,
    sse::Event,
};
use async_trait::async_trait;
use hyper::{
    Uri,
    header::{ACCEPT, CACHE_CONTROL, HeaderName},
};
use std::{sync::Arc, time::Duration};
use tidemill_core::{Error, Input, Intake, Options, Receiver, Result, Stop};

/// Servers that have nothing to say send a comment now and then, by the standard's advice each 15 seconds.
const QUIET: Duration = Duration::from_secs(60);

/// A client of server-sent events.
#[derive(Debug, Clone)]
pub struct Sse {
    url: String,
    kinds: Vec<String>,
    from: Option<String>,
    token: Option<Place>,
    common: Common,
}

/// The credential that options name, if they name one.
///
/// # Errors
/// When it stands in the program, or would go over the network as it is: `secure` says whether it would not.
pub(crate) fn credential(options: &Options, usual: &str, url: &Uri, secure: bool) -> Result<Option<Place>> {
    // Also when neither is given: a token in the program's text is refused there.
    let place = Place::from_options(options, "token", usual)?;
    if options.get("token_file").is_none() && options.get("token_env").is_none() {
        return Ok(None);
    }
    if !secure && !is_local(url.host().unwrap_or_default()) {
        return Err(Error::user(format!(
            "{}: option `url`: a token goes to {} only by TLS, or on this machine",
            options.owner(),
            url.host().unwrap_or_default()
        )));
    }
    Ok(Some(place))
}

impl Sse {
    /// All events of the stream at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), kinds: Vec::new(), from: None, token: None, common: Common::new(QUIET) }
    }

    /// Only events of these kinds.
    #[must_use]
    pub fn events(mut self, kinds: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.kinds = kinds.into_iter().map(Into::into).collect();
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
        let mut client = Self::new(options.require("url", "it names the stream, such as https://example.org/events")?);
        Request::get(&client.url).map_err(|why| Error::user(format!("{owner}: option `url`: {why}")))?;
        let url: Uri = client.url.parse().map_err(|e| Error::user(format!("{owner}: option `url`")).because(e))?;
        client.common = Common::from_options(options, QUIET)?;
        client.kinds = options.get("events").map(list).unwrap_or_default();
        client.from = options.get("last_event_id").map(str::to_string);
        if client.from.as_deref().is_some_and(|id| !fits(id)) {
            return Err(Error::user(format!("{owner}: option `last_event_id` must be plain text of a line")));
        }
        client.token = credential(options, "SSE_TOKEN", &url, url.scheme_str() == Some("https"))?;
        Ok(Input::Receivers(vec![Arc::new(client)]))
    }
}

/// Whether an id can stand in a header.
fn fits(id: &str) -> bool {
    !id.is_empty() && !id.bytes().any(|b| b < b' ' || b == 0x7f)
}

struct Session {
    client: Sse,
    /// The id of the last event; empty before the first.
    last: String,
    /// Whether there was a connection before.
    again: bool,
}

#[async_trait]
impl Collector for Session {
    async fn session(&mut self, out: &Out) -> Result<Ended, Failure> {
        let mut request = Request::get(&self.client.url).map_err(|e| Failure::Fatal(Error::user(e)))?;
        request = request.header(ACCEPT, "text/event-stream").header(CACHE_CONTROL, "no-store");
        if let Some(place) = &self.client.token {
            request = request.authorization(&format!("Bearer {}", place.read_one()?.expose()));
        }
        if !self.last.is_empty() {
            request = request.header(HeaderName::from_static("last-event-id"), &self.last);
        }
        let Some(response) = open(&request, out).await? else { return Ok(Ended::Stopped) };
        if response.status.as_u16() == 204 {
            out.report("ended: the server has no more (204)");
            return Ok(Ended::Stopped);
        }
        let kind = response.header("content-type").unwrap_or_default();
        if !kind.to_ascii_lowercase().starts_with("text/event-stream") {
            let why = format!("{request:?} answered with `{kind}` and not with server-sent events; is `url` right?");
            return Err(Failure::Denied(why));
        }
        if self.again && self.last.is_empty() {
            out.report(&format!(
                "connected to {request:?}; its events have no ids, so those of the interruption are lost"
            ));
        }
        self.again = true;
        follow(self, response, out).await
    }
}

impl Messages for Session {
    fn framing(&self) -> Framing {
        Framing::EventsAndIds
    }

    fn common(&self) -> &Common {
        &self.client.common
    }

    fn sends_again(&self) -> bool {
        true
    }

    fn take(&mut self, message: Event) -> Taken {
        match message.id {
            // An id of nothing takes the place back, by the standard.
            Some(id) if id.is_empty() || fits(&id) => self.last = id,
            Some(_) => return Taken::Refuse("field \"id\": it can't be sent back in a header".to_string()),
            None => {}
        }
        let kind = if message.kind.is_empty() { "message" } else { &message.kind };
        let wanted = self.client.kinds.is_empty() || self.client.kinds.iter().any(|k| k == kind);
        if wanted && !message.data.is_empty() { Taken::Keep(message.data) } else { Taken::Pass }
    }

    fn token(&self) -> String {
        self.last.clone()
    }
}

#[async_trait]
impl Receiver for Sse {
    fn describe(&self) -> String {
        let url = self.url.parse().map_or_else(|_| "?".to_string(), |url| place(&url));
        format!("sse {url}")
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let last = intake.resume().or_else(|| self.from.clone()).unwrap_or_default();
        let session = Session { client: self.clone(), last, again: false };
        run(session, &self.common.link, self.common.gather, intake, stop).await
    }
}
