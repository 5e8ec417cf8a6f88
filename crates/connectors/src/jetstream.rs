//! Connector `bluesky`: the public stream of Bluesky, by the Jetstream protocol.
//!
//! Jetstream sends one JSON object a WebSocket frame; the record is the frame's
//! text as it came. No credentials are needed.
//!
//! | Option | Meaning |
//! |---|---|
//! | `url` | `wss://…/subscribe`, or several with commas, taken in turn when one fails |
//! | `collections` | kinds of records, with commas (`app.bsky.feed.post`) |
//! | `operations` | `create,delete` with `format = 'post'`, `create` with others; with commas also `update`; `all` takes account and identity events too |
//! | `max_line` | bytes of a frame at most (1 MiB); a longer one is refused |
//! | `idle_timeout` | reconnect when nothing came for this long (45s) |
//! | `proxy` | as all collectors have it |
//!
//! **Nothing lost, nothing twice.** Events carry a time, `time_us`, that a
//! connection can begin from; it is nearly ordered, not quite. So a reconnect
//! begins five seconds before the newest event seen, and the events of these
//! seconds are told apart by their repository, key and revision, which are the
//! same on every server. With each block goes a token that holds the newest
//! time and these events' marks, so that a restart of the program does the
//! same. At most 65,536 marks are kept; above 13,000 events a second the oldest
//! of the five seconds may come twice.
//!
//! Frames that arrive within a tenth of a second become one block, which keeps
//! the tokens small beside the posts.

use crate::{
    backoff::{Backoff, splitmix64},
    format::json::{Paths, Raw, scan, utf8},
    lines::{self, HEAD, letter},
    social::{failure::Failure, http::Link, proxy::Proxy},
    websocket::link::{self, End, Pace, Reader},
};
use async_trait::async_trait;
use hyper::HeaderMap;
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use std::{
    collections::{HashSet, VecDeque},
    fmt::Write,
    sync::Arc,
    time::Duration,
};
use tidemill_core::{Block, Error, Input, Intake, Options, Receiver, Result, Stop};

const PUBLIC: &str = "wss://jetstream2.us-east.bsky.network/subscribe,wss://jetstream1.us-west.bsky.network/subscribe";
/// A reconnect begins this much before the newest event.
const OVERLAP_US: i64 = 5_000_000;
/// A frame that is dated further ahead is refused.
const AHEAD: Duration = Duration::from_secs(24 * 3600);
/// Events told apart at most.
const MARKS: usize = 1 << 16;
/// Frames are gathered this long.
const GATHER: Duration = Duration::from_millis(100);
/// Bytes of a block, after which no more frames are gathered.
const BLOCK: usize = 256 << 10;

/// A client of the Jetstream protocol.
#[derive(Debug, Clone)]
pub struct Jetstream {
    urls: Vec<String>,
    collections: Vec<String>,
    /// `None` takes everything.
    operations: Option<Vec<String>>,
    max_line: usize,
    idle: Duration,
    backoff: Backoff,
    link: Link,
}

impl Jetstream {
    /// New posts from the servers at `urls`, taken in turn when one fails.
    pub fn new(urls: impl IntoIterator<Item = impl Into<String>>, seed: u64) -> Self {
        Self {
            urls: urls.into_iter().map(Into::into).collect(),
            collections: vec!["app.bsky.feed.post".to_string()],
            operations: Some(vec!["create".to_string()]),
            max_line: lines::MAX_LINE,
            idle: Duration::from_secs(45),
            backoff: Backoff::new(seed),
            link: Link::default(),
        }
    }

    /// How long to wait before connecting again.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// With another way to servers, and its clock.
    #[cfg(test)]
    pub(crate) fn link(mut self, link: Link) -> Self {
        self.link = link;
        self
    }

    /// The client that a stream's options ask for.
    ///
    /// # Errors
    /// When one is wrong.
    pub fn input(options: &Options) -> Result<Input> {
        Ok(Input::Receivers(vec![Arc::new(Self::from_options(options)?)]))
    }

    fn from_options(options: &Options) -> Result<Self> {
        let list = |text: &str| -> Vec<String> {
            text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_string).collect()
        };
        let mut client = Self::new(list(options.get("url").unwrap_or(PUBLIC)), u64::from(std::process::id()));
        let strange = client.urls.iter().find(|u| !u.starts_with("ws://") && !u.starts_with("wss://"));
        if client.urls.is_empty() || strange.is_some() {
            return Err(Error::user(format!(
                "{}: option `url` must begin with ws:// or wss://, not `{}`",
                options.owner(),
                strange.map_or("", String::as_str)
            )));
        }
        if let Some(collections) = options.get("collections") {
            client.collections = list(collections);
        }
        client.operations = match options.get("operations") {
            // Who reads posts is to hear of those that were deleted.
            None if options.get("format") == Some("post") => Some(list("create,delete")),
            None => client.operations,
            Some("all") => None,
            Some(operations) => Some(list(operations)),
        };
        client.max_line = lines::max_line(options)?;
        client.link.proxy = Proxy::from_options(options)?;
        client.idle = options.duration("idle_timeout", client.idle)?.max(Duration::from_secs(1));
        Ok(client)
    }

    /// The address with the subscription's parameters.
    fn request(&self, url: &str, cursor: Option<i64>) -> String {
        let mut request = url.to_string();
        let mut separator = if url.contains('?') { '&' } else { '?' };
        let mut add = |key: &str, value: &str| {
            // Writing to a string can't fail.
            let _never = write!(request, "{separator}{key}={value}");
            separator = '&';
        };
        self.collections.iter().for_each(|collection| add("wantedCollections", collection));
        if let Some(cursor) = cursor {
            add("cursor", &cursor.to_string());
        }
        request
    }

    async fn connect(&self, url: &str, cursor: Option<i64>) -> Result<Reader<'_>, Failure> {
        let (socket, _date) =
            link::open(&self.link, &self.request(url, cursor), &HeaderMap::new(), self.max_line).await?;
        let pace = Pace { quiet: self.idle, pings_count: false, ping: None, gather: GATHER, block: BLOCK };
        Ok(Reader::new(socket, pace, &*self.link.clock))
    }

    /// Takes frames until the connection ends; why it did, or `None` when told to stop.
    async fn receive(
        &self,
        reader: &mut Reader<'_>,
        seen: &mut Seen,
        intake: &Arc<dyn Intake>,
        stop: &Stop,
    ) -> Result<Option<String>> {
        loop {
            let (frames, ended) = reader.run(stop).await;
            let mut taken = Vec::with_capacity(frames.len());
            for frame in &frames {
                match utf8(frame).map_err(|fault| fault.to_string()).and_then(|text| self.take(text, seen)) {
                    Ok(true) => taken.push(frame),
                    Ok(false) => {}
                    Err(reason) => intake.refuse(letter(reason, frame[..frame.len().min(HEAD)].to_vec())).await?,
                }
            }
            if !taken.is_empty() {
                drop(intake.append(Block::from_records(taken), Some(seen.token())).await?);
            }
            match ended {
                None => {}
                Some(End::Stopped) => return Ok(None),
                Some(End::Lost(why)) => return Ok(Some(why)),
            }
        }
    }

    /// Whether a frame is wanted and new.
    fn take(&self, frame: &str, seen: &mut Seen) -> Result<bool, String> {
        if frame.len() > self.max_line {
            return Err(format!(
                "a frame of {} bytes, over the bound of {} (option `max_line`)",
                frame.len(),
                self.max_line
            ));
        }
        let mut found = [Raw::Null; 7];
        PATHS
            .with(|paths| scan(frame, paths, |i, raw| found[i] = raw))
            .map_err(|fault| format!("not JSON: {fault}"))?;
        let text = |i: usize| match found[i] {
            Raw::Text { text, .. } => text,
            _ => "",
        };
        let Raw::Number(time) = found[0] else { return Err("field \"time_us\": missing".to_string()) };
        let time: i64 = time.parse().map_err(|_| format!("field \"time_us\": expected an integer, found {time}"))?;
        // The place that a reconnect begins from must not be ahead of all that is to come.
        if time > self.link.clock.now().plus(AHEAD).0 {
            return Err(format!("field \"time_us\": {time} is more than a day ahead"));
        }
        let (did, kind, operation, collection) = (text(1), text(2), text(3), text(4));
        let wanted = self.operations.as_ref().is_none_or(|operations| {
            kind == "commit"
                && operations.iter().any(|o| o == operation)
                && (self.collections.is_empty() || self.collections.iter().any(|c| collection_fits(c, collection)))
        });
        if !wanted {
            seen.newest = seen.newest.max(time);
            return Ok(false);
        }
        let mark = if kind == "commit" {
            mark(&[did, operation, collection, text(5), text(6)])
        } else {
            mark(&[did, kind, &time.to_string()])
        };
        Ok(seen.is_new(time, mark))
    }
}

/// `app.bsky.graph.*` fits all collections below it.
fn collection_fits(wanted: &str, collection: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(prefix) => collection.starts_with(prefix),
        None => wanted == collection,
    }
}

thread_local! {
    static PATHS: Paths = Paths::new([
        ["time_us"].as_slice(),
        ["did"].as_slice(),
        ["kind"].as_slice(),
        ["commit", "operation"].as_slice(),
        ["commit", "collection"].as_slice(),
        ["commit", "rkey"].as_slice(),
        ["commit", "rev"].as_slice(),
    ]);
}

/// TLS as clients speak it, with the certificates that the web trusts.
pub(crate) fn tls() -> Result<Arc<ClientConfig>, String> {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// 48 bits that stand for an event, the same in every life of the program: FNV-1a, then mixed.
fn mark(parts: &[&str]) -> u64 {
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }
    splitmix64(hash) >> 16
}

/// The newest event, and the marks of those that a reconnect would send again.
#[derive(Debug)]
struct Seen {
    newest: i64,
    recent: VecDeque<(i64, u64)>,
    marks: HashSet<u64>,
}

impl Seen {
    /// From a token; nothing seen without one, or with a strange one.
    fn from_token(token: Option<&str>) -> Self {
        let mut seen = Self { newest: i64::MIN, recent: VecDeque::new(), marks: HashSet::new() };
        let Some((newest, marks)) = token.and_then(|t| t.split_once(';')) else { return seen };
        let Ok(newest) = newest.parse() else { return seen };
        seen.newest = newest;
        for mark in marks.split(',').filter_map(|m| u64::from_str_radix(m, 16).ok()) {
            seen.is_new(newest, mark);
        }
        seen
    }

    /// Newest time and marks, as text.
    fn token(&self) -> String {
        let mut token = format!("{};", self.newest);
        for (i, (_, mark)) in self.recent.iter().enumerate() {
            // Writing to a string can't fail.
            let _never = write!(token, "{}{mark:x}", if i == 0 { "" } else { "," });
        }
        token
    }

    fn cursor(&self) -> Option<i64> {
        (self.newest > i64::MIN).then(|| self.newest.saturating_sub(OVERLAP_US))
    }

    fn is_new(&mut self, time: i64, mark: u64) -> bool {
        self.newest = self.newest.max(time);
        if !self.marks.insert(mark) {
            return false;
        }
        self.recent.push_back((time, mark));
        // What a reconnect would not send again may be forgotten; the order of times is only nearly right,
        // so one that is too new keeps some old ones a little longer.
        let begin = self.newest.saturating_sub(OVERLAP_US);
        while let Some((time, mark)) = self.recent.front().copied()
            && (time < begin || self.recent.len() > MARKS)
        {
            self.recent.pop_front();
            self.marks.remove(&mark);
        }
        true
    }
}

#[async_trait]
impl Receiver for Jetstream {
    fn describe(&self) -> String {
        format!("bluesky {}", self.urls.first().map_or("", String::as_str))
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let mut backoff = self.backoff.clone();
        let mut seen = Seen::from_token(intake.resume().as_deref());
        for url in self.urls.iter().cycle() {
            let connected = tokio::select! {
                biased;
                () = stop.stopped() => return Ok(()),
                connected = self.connect(url, seen.cursor()) => connected,
            };
            let why = match connected {
                Err(failure) => failure.to_string(),
                Ok(mut reader) => {
                    intake.report(&format!("connected to {url}"));
                    let before = seen.newest;
                    let why = self.receive(&mut reader, &mut seen, &intake, &stop).await?;
                    if seen.newest > before {
                        backoff.reset();
                    }
                    let Some(why) = why else {
                        reader.close().await;
                        return Ok(());
                    };
                    why
                }
            };
            let wait = backoff.next_wait();
            tracing::info!(%url, %why, ?wait, "reconnecting");
            intake.report(&format!("reconnecting in {:.1} s: {why}", wait.as_secs_f64()));
            tokio::select! {
                biased;
                () = stop.stopped() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
        Err(Error::user("bluesky: option `url` names no server"))
    }
}

#[cfg(test)]
mod tests;
