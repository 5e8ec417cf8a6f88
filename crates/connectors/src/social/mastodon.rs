//! Connector `mastodon`: a timeline of a Mastodon server, as it grows.
//!
//! | Option | Meaning |
//! |---|---|
//! | `url` | the server, such as `https://mastodon.example` |
//! | `timeline` | `public` (default), `local`, `remote`, or `hashtag` |
//! | `tag` | the tag of timeline `hashtag`, without `#` |
//! | `transport` | `sse` (default): server-sent events; `websocket`: for servers and proxies that let only these through |
//! | `token_file`, `token_env` | where the access token is: a file, or a variable (`MASTODON_TOKEN`); without one it asks without |
//! | `deletes` | `keep` (default): notices of deleted posts are records too; `drop` |
//! | `gap_posts` | posts that are fetched at most after an interruption (10,000) |
//! | `proxy`, `user_agent`, `max_line`, `idle_timeout` (45s) | as all collectors have them |
//!
//! The record of a post, or of an edit, is its `Status`; of a deletion it is
//! `{"event":"delete","payload":"<id>"}`.
//!
//! **Nothing lost, nothing twice.** The stream itself begins with now. So a
//! connection is opened first, and then what came since the newest known post
//! is fetched over REST, page by page, from ten seconds before it, as ids are
//! nearly ordered, not quite; known posts are told apart by their ids. A gap of
//! more than `gap_posts` is not fetched to its end, and is kept as a dead letter
//! that names its ends. Edits and deletions that happen while nothing listens
//! are not to be had.

mod frames;

use super::{
    collect::{Collector, Ended, Framing, Messages, Out, Taken, follow, open, run},
    common::{Common, encode},
    failure::Failure,
    http::{Request, base_url},
    secret::Place,
    seen::{Seen, later},
    sse::Event,
};
use crate::format::json::{Fault, Paths, Raw, items, scan, utf8};
use async_trait::async_trait;
use std::{sync::Arc, time::Duration};
use tidemill_core::{Error, Input, Intake, Options, Receiver, Result, Stop, Timestamp};

/// Silence beyond this is no silence of a living server, which sends `:thump` every 15 seconds.
const QUIET: Duration = Duration::from_secs(45);
/// Fetching begins this much before the newest known post.
const OVERLAP_MS: u64 = 10_000;
/// Fetching ends this much after the stream was opened.
const LEAD: Duration = Duration::from_secs(10);
/// Posts told apart at most: those of the overlap.
const MARKS: usize = 1024;
/// Posts of a page.
const PAGE: usize = 40;
/// Bytes of a page at most.
const PAGE_BYTES: usize = 16 << 20;

/// A timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Timeline {
    /// All public posts that the server knows.
    Public,
    /// Those of its own users.
    Local,
    /// Those of other servers.
    Remote,
    /// Those with a tag.
    Hashtag(String),
}

/// By what the stream comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// Server-sent events.
    #[default]
    Events,
    /// A WebSocket.
    WebSocket,
}

/// A client of a Mastodon server.
#[derive(Debug, Clone)]
pub struct Mastodon {
    url: String,
    timeline: Timeline,
    transport: Transport,
    token: Option<Place>,
    deletes: bool,
    gap_posts: usize,
    common: Common,
}

impl Mastodon {
    /// The public timeline of the server at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        let common = Common::new(QUIET);
        let url = url.into();
        let (timeline, transport) = (Timeline::Public, Transport::default());
        Self { url, timeline, transport, token: None, deletes: true, gap_posts: 10_000, common }
    }

    /// With another timeline.
    #[must_use]
    pub fn timeline(mut self, timeline: Timeline) -> Self {
        self.timeline = timeline;
        self
    }

    /// With another way for the stream.
    #[must_use]
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// With an access token.
    #[must_use]
    pub fn token(mut self, token: Place) -> Self {
        self.token = Some(token);
        self
    }

    /// Fetches at most so many posts after an interruption.
    #[must_use]
    pub fn gap_posts(mut self, most: usize) -> Self {
        self.gap_posts = most;
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
        let mut client = Self::new(base_url(options, None)?);
        client.common = Common::from_options(options, QUIET)?;
        let tag = options.get("tag").map(|tag| tag.trim_start_matches('#').to_string()).filter(|tag| !tag.is_empty());
        client.timeline = match (options.get("timeline"), tag) {
            (None | Some("hashtag"), Some(tag)) => Timeline::Hashtag(tag),
            (Some("hashtag"), None) => {
                return Err(Error::user(format!("{owner}: option `tag` is missing: the tag of timeline `hashtag`")));
            }
            (Some(_), Some(_)) => {
                return Err(Error::user(format!("{owner}: option `tag` is for timeline `hashtag`")));
            }
            (None | Some("public"), None) => Timeline::Public,
            (Some("local"), None) => Timeline::Local,
            (Some("remote"), None) => Timeline::Remote,
            (Some(other), None) => {
                return Err(Error::user(format!(
                    "{owner}: option `timeline` must be `public`, `local`, `remote` or `hashtag`, not `{other}`"
                )));
            }
        };
        client.transport = match options.get("transport").unwrap_or("sse") {
            "sse" => Transport::Events,
            "websocket" => Transport::WebSocket,
            other => {
                let what = "option `transport` must be `sse` or `websocket`";
                return Err(Error::user(format!("{owner}: {what}, not `{other}`")));
            }
        };
        client.deletes = match options.get("deletes").unwrap_or("keep") {
            "keep" => true,
            "drop" => false,
            other => {
                return Err(Error::user(format!("{owner}: option `deletes` must be `keep` or `drop`, not `{other}`")));
            }
        };
        client.gap_posts = options.parse("gap_posts", client.gap_posts)?;
        let place = Place::from_options(options, "token", "MASTODON_TOKEN")?;
        // The usual variable need not be set: some servers ask for no token.
        let optional =
            matches!(&place, Place::Env(name) if name == "MASTODON_TOKEN" && std::env::var_os(name).is_none());
        client.token = (!optional).then_some(place);
        Ok(Input::Receivers(vec![Arc::new(client)]))
    }

    fn request(&self, path: &str) -> Result<Request, Failure> {
        let mut request = Request::get(&format!("{}{path}", self.url)).map_err(|e| Failure::Fatal(Error::user(e)))?;
        if let Some(place) = &self.token {
            request = request.authorization(&format!("Bearer {}", place.read_one()?.expose()));
        }
        Ok(request)
    }

    fn stream_path(&self) -> String {
        match &self.timeline {
            Timeline::Public => "/api/v1/streaming/public".to_string(),
            Timeline::Local => "/api/v1/streaming/public/local".to_string(),
            Timeline::Remote => "/api/v1/streaming/public/remote".to_string(),
            Timeline::Hashtag(tag) => format!("/api/v1/streaming/hashtag?tag={}", encode(tag)),
        }
    }

    /// The page of posts that come right after `after`.
    fn page_path(&self, after: &str) -> String {
        let (path, more) = match &self.timeline {
            Timeline::Public => ("public".to_string(), ""),
            Timeline::Local => ("public".to_string(), "&local=true"),
            Timeline::Remote => ("public".to_string(), "&remote=true"),
            Timeline::Hashtag(tag) => (format!("tag/{}", encode(tag)), ""),
        };
        format!("/api/v1/timelines/{path}?limit={PAGE}&min_id={}{more}", encode(after))
    }
}

/// The id that begins ten seconds before that of a post; ids that hold no time stay.
fn before(id: &str) -> String {
    match id.parse::<u64>() {
        Ok(id) => ((id >> 16).saturating_sub(OVERLAP_MS) << 16).to_string(),
        Err(_) => id.to_string(),
    }
}

/// When a post of this id was written; `None` for ids that hold no time.
fn time_of(id: &str) -> Option<Timestamp> {
    i64::try_from(id.parse::<u64>().ok()? >> 16).ok().map(Timestamp::from_millis)
}

struct Session {
    client: Mastodon,
    seen: Seen,
    paths: Paths,
}

impl Session {
    /// Fetches what came since the newest known post, until the stream was opened.
    async fn fill(&mut self, opened: Option<Timestamp>, out: &Out) -> Result<(), Failure> {
        if self.seen.place.is_empty() {
            return Ok(());
        }
        let mut after = before(&self.seen.place);
        let mut fetched = 0;
        loop {
            let request = self.client.request(&self.client.page_path(&after))?;
            let Some(answer) = out.unless_stopped(out.link.ask(&request)).await else { return Ok(()) };
            let mut answer = answer?;
            let Some(page) = out.unless_stopped(answer.whole(PAGE_BYTES)).await else { return Ok(()) };
            let page = page?;
            let page = utf8(&page).map_err(|fault| Failure::Http(format!("a page is no list of posts: {fault}")))?;
            let mut posts = Vec::new();
            items::<Unfit>(page.trim_ascii(), |raw| match raw {
                Raw::Object(text) => {
                    posts.push(text);
                    Ok(())
                }
                _ => Err(Unfit("an item that is no object".to_string())),
            })
            .map_err(|Unfit(why)| Failure::Http(format!("a page is no list of posts: {why}")))?;
            // The newest is the first of a page.
            let (mut records, mut last) = (Vec::new(), after.clone());
            for text in posts.iter().rev() {
                let [id, edited] = self.names(text).map_err(Failure::Http)?;
                last = later(&last, &id).to_string();
                if self.is_new(&id, &edited) {
                    records.push(text.as_bytes().to_vec());
                }
            }
            out.put(&records, self.seen.token()).await?;
            fetched += posts.len();
            // Else it would run after a busy server for ever. What has an id of that time and comes later, comes by
            // the stream.
            let enough = opened.zip(time_of(&last)).is_some_and(|(opened, last)| last > opened.plus(LEAD));
            if posts.is_empty() || last == after || enough || out.is_stopped() {
                return Ok(());
            }
            after = last;
            if fetched >= self.client.gap_posts {
                let reason = format!(
                    "a gap: posts after {after} were not fetched, as there are over {fetched} (option `gap_posts`); it ends with the next post"
                );
                out.report(&reason);
                return out.refuse(reason, format!(r#"{{"gap":{{"after":"{after}"}}}}"#).as_bytes()).await;
            }
        }
    }

    /// Id and time of the last edit of a status.
    fn names(&self, text: &str) -> Result<[String; 2], String> {
        let mut found = [Raw::Null; 2];
        scan(text, &self.paths, |i, raw| found[i] = raw).map_err(|fault| fault.to_string())?;
        let names = found.map(|raw| match raw {
            Raw::Text { text, .. } | Raw::Number(text) => text.to_string(),
            _ => String::new(),
        });
        if names[0].is_empty() { Err("field \"id\": missing".to_string()) } else { Ok(names) }
    }

    fn is_new(&mut self, id: &str, edited: &str) -> bool {
        if edited.is_empty() {
            self.seen.place = later(&self.seen.place, id).to_string();
        }
        self.seen.is_new(&[id, edited])
    }
}

struct Unfit(String);

impl From<Fault> for Unfit {
    fn from(fault: Fault) -> Self {
        Self(fault.to_string())
    }
}

#[async_trait]
impl Collector for Session {
    async fn session(&mut self, out: &Out) -> Result<Ended, Failure> {
        if self.client.transport == Transport::WebSocket {
            return frames::session(self, out).await;
        }
        let request = self.client.request(&self.client.stream_path())?;
        // First the stream, so that nothing falls between it and what is fetched.
        let Some(response) = open(&request, out).await? else { return Ok(Ended::Stopped) };
        let kind = response.header("content-type").unwrap_or_default();
        if !kind.starts_with("text/event-stream") {
            let why = format!("{request:?} answered with `{kind}` and not with a stream; is `url` a Mastodon server?");
            return Err(Failure::Denied(why));
        }
        let opened = response.date();
        self.fill(opened, out).await?;
        if out.is_stopped() {
            return Ok(Ended::Stopped);
        }
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
        match message.kind.as_str() {
            "update" | "status.update" => {
                let text = match utf8(&message.data) {
                    Ok(text) => text,
                    Err(fault) => return Taken::Refuse(fault.to_string()),
                };
                match self.names(text) {
                    Err(reason) => Taken::Refuse(reason),
                    Ok([id, edited]) if self.is_new(&id, &edited) => Taken::Keep(message.data),
                    Ok(_) => Taken::Pass,
                }
            }
            "delete" if self.client.deletes => {
                let id = String::from_utf8_lossy(&message.data);
                let id = id.trim();
                if id.is_empty() || !self.seen.is_new(&["delete", id]) {
                    return Taken::Pass;
                }
                Taken::Keep(serde_json::json!({"event": "delete", "payload": id}).to_string().into_bytes())
            }
            _ => Taken::Pass,
        }
    }

    fn token(&self) -> String {
        self.seen.token()
    }
}

#[async_trait]
impl Receiver for Mastodon {
    fn describe(&self) -> String {
        let timeline = match &self.timeline {
            Timeline::Public => "public".to_string(),
            Timeline::Local => "local".to_string(),
            Timeline::Remote => "remote".to_string(),
            Timeline::Hashtag(tag) => format!("#{tag}"),
        };
        format!("mastodon {} {timeline}", self.url)
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let seen = Seen::from_token(intake.resume().as_deref(), MARKS);
        let paths = Paths::new([["id"], ["edited_at"]]);
        let session = Session { client: self.clone(), seen, paths };
        run(session, &self.common.link, self.common.gather, intake, stop).await
    }
}
