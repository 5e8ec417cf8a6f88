//! Connector `wikimedia`: EventStreams, the changes of Wikimedia's projects. No credentials are needed.
//!
//! | Option | Meaning |
//! |---|---|
//! | `stream` | `recentchange` (default), or another stream's name |
//! | `wikis` | such as `enwiki,dewiki`: takes only these; all unless said |
//! | `since` | where a first start begins: a time such as `2026-05-01T00:00:00Z`; with now unless said |
//! | `url` | the server (`https://stream.wikimedia.org`) |
//! | `user_agent` | the operators ask for one that says who you are: `name (contact)` |
//! | `proxy`, `max_line`, `idle_timeout` (60s) | as all collectors have them |
//!
//! The record is the event's JSON. Canary events, by which the operators watch
//! the streams, are left out.
//!
//! **Nothing lost, nothing twice.** Each event's `id` is a list of offsets, and a
//! connection goes on from the last one that it is told (`Last-Event-ID`). With
//! each block goes that id. As ids may count in milliseconds, the last events
//! come again, and are told apart by their `meta.id`. The server hangs up after
//! about a quarter of an hour, which is no fault.

use super::{
    collect::{Collector, Ended, Framing, Messages, Out, Taken, follow, open, run},
    common::{Common, encode, list},
    failure::Failure,
    http::{Request, base_url},
    seen::Seen,
    sse::Event,
};
use crate::format::{
    json::{Paths, Raw, scan_bytes},
    time::instant,
};
use async_trait::async_trait;
use hyper::header::{ACCEPT, HeaderName};
use std::{sync::Arc, time::Duration};
use tidemill_core::{Error, Input, Intake, Options, Receiver, Result, Stop};

const PUBLIC: &str = "https://stream.wikimedia.org";
/// Quiet streams say nothing for a while; a comment comes now and then.
const QUIET: Duration = Duration::from_secs(60);
/// Events told apart at most: those that share the last moment.
const MARKS: usize = 256;

/// A client of EventStreams.
#[derive(Debug, Clone)]
pub struct Wikimedia {
    url: String,
    stream: String,
    wikis: Vec<String>,
    since: Option<String>,
    common: Common,
}

impl Wikimedia {
    /// Recent changes from the server at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        let (stream, common) = ("recentchange".to_string(), Common::new(QUIET));
        Self { url: url.into(), stream, wikis: Vec::new(), since: None, common }
    }

    /// Only changes of these wikis, such as `enwiki`.
    #[must_use]
    pub fn wikis(mut self, wikis: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.wikis = wikis.into_iter().map(Into::into).collect();
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
    /// When one is wrong.
    pub fn input(options: &Options) -> Result<Input> {
        let owner = options.owner();
        let mut client = Self::new(base_url(options, Some(PUBLIC))?);
        client.common = Common::from_options(options, QUIET)?;
        if let Some(stream) = options.get("stream") {
            client.stream = stream.to_string();
        }
        client.wikis = options.get("wikis").map(list).unwrap_or_default();
        client.since = options.get("since").map(str::to_string);
        if let Some(since) = &client.since
            && instant(since).is_none()
        {
            return Err(Error::user(format!(
                "{owner}: option `since` must be a time such as 2026-05-01T00:00:00Z, not `{since}`"
            )));
        }
        Ok(Input::Receivers(vec![Arc::new(client)]))
    }
}

struct Session {
    client: Wikimedia,
    seen: Seen,
    paths: Paths,
}

#[async_trait]
impl Collector for Session {
    async fn session(&mut self, out: &Out) -> Result<Ended, Failure> {
        let Wikimedia { url, stream, since, .. } = &self.client;
        let mut address = format!("{url}/v2/stream/{}", encode(stream));
        let place = &self.seen.place;
        if let (Some(since), true) = (since, place.is_empty()) {
            address.push_str(&format!("?since={}", encode(since)));
        }
        let mut request = Request::get(&address).map_err(|e| Failure::Fatal(Error::user(e)))?;
        request = request.header(ACCEPT, "text/event-stream");
        if !place.is_empty() {
            request = request.header(HeaderName::from_static("last-event-id"), place);
        }
        let Some(response) = open(&request, out).await? else { return Ok(Ended::Stopped) };
        follow(self, response, out).await
    }
}

impl Messages for Session {
    fn framing(&self) -> Framing {
        Framing::Events
    }

    fn common(&self) -> &Common {
        &self.client.common
    }

    fn sends_again(&self) -> bool {
        true
    }

    fn take(&mut self, message: Event) -> Taken {
        if let Some(id) = message.id.filter(|id| !id.is_empty() && !id.contains('\n')) {
            self.seen.place = id;
        }
        let mut found = [Raw::Null; 3];
        if let Err(fault) = scan_bytes(&message.data, &self.paths, |i, raw| found[i] = raw) {
            return Taken::Refuse(format!("not JSON: {fault}"));
        }
        let text = |i: usize| match found[i] {
            Raw::Text { text, .. } => text,
            _ => "",
        };
        let (domain, id, wiki) = (text(0), text(1), text(2));
        let wanted = self.client.wikis.is_empty() || self.client.wikis.iter().any(|w| w == wiki);
        if domain == "canary" || !wanted {
            return Taken::Pass;
        }
        if id.is_empty() {
            return Taken::Refuse("field \"meta.id\": missing".to_string());
        }
        if self.seen.is_new(&[id]) { Taken::Keep(message.data) } else { Taken::Pass }
    }

    fn token(&self) -> String {
        self.seen.token()
    }
}

#[async_trait]
impl Receiver for Wikimedia {
    fn describe(&self) -> String {
        format!("wikimedia {} {}", self.url, self.stream)
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let seen = Seen::from_token(intake.resume().as_deref(), MARKS);
        let paths = Paths::new([["meta", "domain"].as_slice(), ["meta", "id"].as_slice(), ["wiki"].as_slice()]);
        let session = Session { client: self.clone(), seen, paths };
        run(session, &self.common.link, self.common.gather, intake, stop).await
    }
}
