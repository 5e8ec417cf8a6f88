//! Sink `webhook`: rows as JSON in POST requests, at least once.
//!
//! | Option | Meaning |
//! |---|---|
//! | `url` | where to; `http://` only on this machine |
//! | `url_file`, `url_env` | instead of `url`, where its path is a secret: the file or the environment's variable that holds it |
//! | `token_file`, `token_env` | the file or variable with a token, sent as `Authorization: Bearer …` |
//! | `body` | `array` (many rows a request, the default) or `row` (an object, a request a row) |
//! | `max_rows`, `max_bytes` | of a request at most (1000, 1MB); a row that is larger goes alone |
//! | `retry_for` | how long a request is tried again before the batch is reported as stuck, and tried from there on (30s) |
//! | `proxy`, `user_agent` | as collectors have them |
//!
//! ```text
//! stage    rows aside                                                  seen by nobody
//! commit   POST 0, POST 1, …   each with Idempotency-Key <program>/<output>-<batch>-<time>-<first row>+<rows>
//! ```
//!
//! A batch's rows are sent only after the ledger has the batch, one request after
//! another. What is sent again, because its answer was lost or the program was
//! killed before it was noted, has the same key and the same bytes: a receiver
//! that remembers keys takes each once. A key says which rows of the batch a
//! request has, so one that is cut otherwise, since an option has changed, has
//! another: its rows come twice then, and none is left out.
//!
//! A success is any 2xx. 408, 425, 429 and 5xx are tried again with growing waits,
//! and not before `Retry-After`; any other answer is an error that stops the
//! program and says what to change.
//!
//! Invariant: nothing is sent of a batch that was not committed; a row is left
//! out by no error; no token stands in a program, a log or an error.

mod cut;
#[cfg(test)]
mod tests;

use crate::{
    aside::{Aside, Part},
    backoff::Backoff,
    http::{
        Link, Request,
        clock::WallClock,
        failure::Failure,
        proxy::Proxy,
        secret::{Place, Secret},
    },
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use bytes::Bytes;
use cut::{Body, Cutter};
use futures::stream::BoxStream;
use hyper::header::HeaderName;
use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tidemill_core::{BatchId, Clock, Error, Guarantee, Options, Result, Sink, StagedPart, Timestamp};

/// Waits between tries grow from here …
const FIRST: Duration = Duration::from_millis(250);
/// … to here.
const MOST: Duration = Duration::from_secs(30);
/// A `Retry-After` beyond this is not believed.
const LONGEST: Duration = Duration::from_secs(3600);

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const BATCH: HeaderName = HeaderName::from_static("tidemill-batch");

/// Where requests go.
#[derive(Debug, Clone)]
enum Url {
    Given(String),
    Secret(Place),
}

/// Rows as POST requests.
#[derive(Debug)]
pub struct Webhook {
    url: Url,
    token: Option<Place>,
    body: Body,
    max_rows: usize,
    max_bytes: usize,
    retry_for: Duration,
    link: Link,
    clock: Arc<dyn Clock>,
    aside: Aside,
    /// Who writes, where that is not known: keys of other lives and of other outputs differ.
    life: String,
    state: Mutex<State>,
}

/// What is known in this life.
#[derive(Debug, Default)]
struct State {
    /// The batch under way, and how many of its requests were answered well: a commit that is repeated goes on there.
    sent: (BatchId, usize),
    /// The server wants no request before this.
    not_before: Timestamp,
}

/// What requests of a commit have in common.
struct Target {
    request: Request,
    token: Option<Secret>,
    server: String,
}

impl Webhook {
    /// To an address, with arrays of rows, without a token.
    ///
    /// # Errors
    /// When it is no address that requests can be sent to.
    pub fn new(url: &str) -> Result<Self> {
        Request::to_server(url).map_err(|why| Error::user(format!("webhook: `url`: {why}")))?;
        Ok(Self::at(Url::Given(url.to_string())))
    }

    fn at(url: Url) -> Self {
        static LIVES: AtomicU64 = AtomicU64::new(0);
        let (process, number) = (std::process::id(), LIVES.fetch_add(1, Ordering::Relaxed));
        Self {
            life: format!("tidemill-{process}-{}-{number}", WallClock.now().0),
            url,
            token: None,
            body: Body::Array,
            max_rows: 1000,
            max_bytes: 1_000_000,
            retry_for: Duration::from_secs(30),
            link: Link::default(),
            clock: Arc::new(WallClock),
            aside: Aside::default(),
            state: Mutex::default(),
        }
    }

    /// From a sink's options.
    ///
    /// # Errors
    /// When one is missing or wrong, or a token stands in the program.
    pub fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        let wrong = |key: &str, why: &str| Err(Error::user(format!("{owner}: option `{key}` {why}")));
        let given = |keys: [&str; 3]| keys.map(|key| options.get(key).is_some()).contains(&true);
        let mut sink = match (options.get("url"), options.get("url_file"), options.get("url_env")) {
            (Some(url), None, None) => {
                Request::to_server(url).map_err(|why| Error::user(format!("{owner}: option `url`: {why}")))?;
                Self::at(Url::Given(url.to_string()))
            }
            (None, Some(path), None) => Self::at(Url::Secret(Place::File(path.into()))),
            (None, None, Some(name)) => Self::at(Url::Secret(Place::Env(name.to_string()))),
            (None, None, None) => {
                let purpose = "it names where to send rows, such as https://example.org/hook (or give `url_env` where \
                               its path is a secret)";
                return Err(Error::user(format!("{owner}: option `url` is missing: {purpose}")));
            }
            _ => return wrong("url", "is given together with `url_file` or `url_env`: give one of them"),
        };
        if given(["token", "token_file", "token_env"]) {
            sink.token = Some(Place::from_options(options, "token", "TIDEMILL_WEBHOOK_TOKEN")?);
        }
        sink.body = match options.get("body").unwrap_or("array") {
            "array" => Body::Array,
            "row" => Body::Row,
            other => {
                return wrong("body", &format!("must be `array` (many rows a request) or `row` (one), not `{other}`"));
            }
        };
        sink.max_rows = options.parse("max_rows", sink.max_rows)?;
        if sink.max_rows == 0 {
            return wrong("max_rows", "must be at least 1");
        }
        let bytes = options.bytes("max_bytes", sink.max_bytes as u64)?;
        sink.max_bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        sink.retry_for = options.duration("retry_for", sink.retry_for)?;
        sink.link.proxy = Proxy::from_options(options)?;
        if let Some(agent) = crate::social::common::user_agent(options)? {
            sink.link.agent = agent;
        }
        Ok(sink)
    }

    /// With a token, sent as `Authorization: Bearer …`.
    #[must_use]
    pub fn token(mut self, token: Place) -> Self {
        self.token = Some(token);
        self
    }

    /// With a request for each row.
    #[must_use]
    pub fn row_by_row(mut self) -> Self {
        self.body = Body::Row;
        self
    }

    /// The server, for people; not the path, which may be a secret.
    fn server(&self) -> String {
        match &self.url {
            Url::Given(url) => Request::get(url).map_or_else(|_| url.clone(), |request| request.server().to_string()),
            Url::Secret(place) => format!("at the address in {place}"),
        }
    }

    /// Reads what is kept outside the program.
    fn target(&self) -> Result<Target> {
        let secret;
        let url = match &self.url {
            Url::Given(url) => url.as_str(),
            Url::Secret(place) => {
                secret = place.read_one()?;
                secret.expose()
            }
        };
        let wrong = |why: String| Error::user(format!("webhook {}: {why}", self.server()));
        let request = Request::to_server(url).map_err(wrong)?;
        let token = self.token.as_ref().map(Place::read_one).transpose()?;
        Ok(Target { server: request.server().to_string(), request, token })
    }

    fn state<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends a request until it is answered well.
    async fn post(&self, target: &Target, batch: BatchId, key: &str, body: Bytes) -> Result<()> {
        let mut request = target.request.clone().post("application/json", body).header(KEY, key);
        request = request.header(BATCH, &batch.to_string());
        if let Some(token) = &target.token {
            request = request.authorization(&format!("Bearer {}", token.expose()));
        }
        let begun = self.clock.now();
        let mut backoff = Backoff::between(FIRST, MOST, batch.0);
        loop {
            let not_before = self.state(|state| state.not_before);
            if not_before > self.clock.now() {
                self.clock.sleep_until(not_before).await;
            }
            let failure = match self.link.send(&request).await {
                Ok(answer) if answer.status.is_success() => return Ok(()),
                Ok(answer) => {
                    let code = answer.status.as_u16();
                    let to = answer.header("location").map(str::to_string);
                    let failure = answer.refusal().await;
                    if let Some(hint) = lasting(code, to.filter(|_| matches!(self.url, Url::Given(_))).as_deref()) {
                        return Err(Error::user(format!("webhook {}: {failure}; {hint}", target.server)));
                    }
                    failure
                }
                Err(failure) => failure,
            };
            let now = self.clock.now();
            let wait = match &failure {
                Failure::Limited(_, Some(until)) if until.since(now) <= LONGEST => until.since(now).max(FIRST),
                _ => backoff.next_wait(),
            };
            // Kept, so that the next try after an error waits as well.
            self.state(|state| state.not_before = now.plus(wait));
            if now.plus(wait).since(begun) > self.retry_for {
                return Err(Error::external(format!("webhook {}: {failure}", target.server)));
            }
            tracing::warn!(server = target.server, batch = batch.0, ?wait, "webhook: {failure}; will try again");
        }
    }
}

/// What to do about an answer that stays the same; `None` when trying again may help.
fn lasting(code: u16, to: Option<&str>) -> Option<String> {
    Some(match (code, to) {
        (300..=399, Some(to)) => format!("a POST is not sent on: set option `url` to {to} if that is right"),
        // Where it points to may be as secret as the address itself.
        (300..=399, None) => "a POST is not sent on: ask the server for its new address".to_string(),
        (408 | 420 | 425 | 429 | 500.., _) => return None,
        (401 | 403, _) => "option `token_env` or `token_file` says where the token is".to_string(),
        (404 | 405 | 410, _) => "check option `url`".to_string(),
        (413, _) => "lower option `max_bytes` or `max_rows`".to_string(),
        (415, _) => "it takes no application/json".to_string(),
        _ => "it will refuse these rows each time: see what it says, and change the query or the server".to_string(),
    })
}

#[async_trait]
impl Sink for Webhook {
    fn describe(&self) -> String {
        format!("webhook {} ({})", self.server(), self.body.name())
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn place(&self, owner: &str, aside: &Path) {
        self.aside.place(owner, aside);
    }

    fn takes(&self, schema: &SchemaRef) -> Result<()> {
        Cutter::new(self.body, 1, 1).add(&RecordBatch::new_empty(Arc::clone(schema))).map(drop)
    }

    fn stays(&self) -> String {
        "what was sent stays sent, and what is computed anew is sent after it, under new keys".to_string()
    }

    async fn open(&self, schema: SchemaRef) -> Result<()> {
        // A token that is not there is told at the start.
        self.target()?;
        self.aside.open(schema).await
    }

    async fn stage(
        &self,
        batch: BatchId,
        time: Timestamp,
        part: usize,
        rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        self.aside.stage(batch, time, part, rows).await
    }

    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        let parts = Part::parse(parts)?;
        let Some(time) = parts.first().map(|part| part.time) else { return Ok(()) };
        // Rows are let go only when all of them were sent.
        if !self.aside.has(&parts)? {
            return self.aside.remove(&parts).await;
        }
        let target = self.target()?;
        let owner = self.aside.owner().unwrap_or(&self.life);
        let done = self.state(|state| {
            if state.sent.0 != batch {
                state.sent = (batch, 0);
            }
            state.sent.1
        });
        let (mut number, mut first) = (0, 0);
        let mut cutter = Cutter::new(self.body, self.max_rows, self.max_bytes);
        for (at, part) in parts.iter().enumerate() {
            let mut bodies = Vec::new();
            for rows in self.aside.read(batch, part).await? {
                bodies.extend(cutter.add(&rows)?);
            }
            if at + 1 == parts.len() {
                bodies.extend(cutter.finish());
            }
            for (body, rows) in bodies {
                if number >= done {
                    let key = format!("{owner}-{batch}-{}-{first}+{rows}", time.millis());
                    self.post(&target, batch, &key, body).await?;
                    self.state(|state| state.sent.1 = number + 1);
                }
                number += 1;
                first += rows;
            }
        }
        self.aside.remove(&parts).await
    }

    async fn recover(&self, _last_committed: Option<BatchId>) -> Result<()> {
        // The last commit was repeated, so all that is left belongs to no commit.
        self.aside.clear().await
    }
}
