//! The recent search: by itself (`x-search`), and for what the filtered stream missed.
//!
//! Answers come newest first. A search remembers what it has still to ask for
//! ([`Round`]), so that it goes on in the middle after a restart.
//!
//! Invariant: a round's place moves on to its newest post only when all pages of
//! it were handed on. A page goes to the log with the place that follows it.

use super::{FIELDS, MARKS, PUBLIC, QUIET, TOKEN, before, request, time_of};
use crate::{
    format::time::instant,
    social::{
        collect::{Collector, Ended, Out, run},
        common::{Common, encode},
        failure::Failure,
        http::base_url,
        secret::Place,
        seen::{Seen, later},
    },
};
use async_trait::async_trait;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tidemill_core::{Error, Input, Intake, Options, Receiver, Result, Stop, Timestamp};

/// Posts of a page.
const PAGE: usize = 100;
/// Bytes of a page at most.
const PAGE_BYTES: usize = 16 << 20;
/// The search knows the last seven days; a little less, as the clock goes on while we ask.
const REACH: Duration = Duration::from_secs(7 * 86_400 - 120);

/// What is still to be asked for: posts after `since`, and, within a round, before `until`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Round {
    /// The newest post of the rounds before.
    pub(super) since: String,
    /// The oldest post of this round so far, while there is a round.
    pub(super) until: String,
    /// The newest post of this round.
    pub(super) newest: String,
}

impl Round {
    /// As text, without `;` and line ends.
    pub(super) fn place(&self) -> String {
        format!("{} {} {}", self.since, self.until, self.newest)
    }

    pub(super) fn from_place(place: &str) -> Self {
        let mut parts = place.split(' ').map(str::to_string);
        let mut next = || parts.next().unwrap_or_default();
        Self { since: next(), until: next(), newest: next() }
    }

    /// All was handed on.
    pub(super) fn finish(&mut self) {
        let newest = std::mem::take(&mut self.newest);
        self.since = later(&self.since, &newest).to_string();
        self.until.clear();
    }
}

/// Where searches are asked.
#[derive(Debug, Clone)]
pub(super) struct Search {
    pub(super) url: String,
    pub(super) token: Place,
    /// Where a first round begins.
    pub(super) begin: Option<Timestamp>,
}

impl Search {
    /// Asks for all that `query` finds in the round, and hands it on; `rule` is said to have matched it.
    pub(super) async fn round(
        &self,
        query: &str,
        rule: Option<&str>,
        round: &mut Round,
        seen: &mut Seen,
        out: &Out,
    ) -> Result<(), Failure> {
        loop {
            let oldest = out.clock().now().minus(REACH);
            let mut path = format!("/2/tweets/search/recent?query={}&max_results={PAGE}&{FIELDS}", encode(query));
            match time_of(&round.since).filter(|_| !round.since.is_empty()) {
                Some(since) if since > oldest => path.push_str(&format!("&since_id={}", before(&round.since))),
                known => {
                    if let Some(since) = known {
                        let reason =
                            format!("a gap: the search knows nothing before {oldest}, and the last post is of {since}");
                        out.report(&reason);
                        let letter =
                            json!({"gap": {"query": query, "after": round.since, "before": oldest.to_string()}});
                        out.refuse(reason, letter.to_string().as_bytes()).await?;
                        round.since.clear();
                    }
                    let begin = self.begin.map_or(oldest, |begin| begin.max(oldest));
                    path.push_str(&format!("&start_time={}", encode(&begin.to_string())));
                }
            }
            if !round.until.is_empty() {
                path.push_str(&format!("&until_id={}", round.until));
            }
            let request = request(&self.url, &path, &self.token)?;
            let Some(answer) = out.unless_stopped(out.link.ask(&request)).await else { return Ok(()) };
            let mut answer = answer?;
            let Some(text) = out.unless_stopped(answer.whole(PAGE_BYTES)).await else { return Ok(()) };
            let text = text?;
            let page: Value = serde_json::from_slice(&text)
                .map_err(|e| Failure::Http(format!("the answer to a search is not JSON: {e}")))?;
            let posts = page.get("data").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let mut records = Vec::new();
            for id in posts.iter().filter_map(|post| post.get("id")?.as_str()) {
                round.newest = later(&round.newest, id).to_string();
            }
            // Only these may be sent again after this round. Marks of older ones would drive out those of the last
            // overlap, which stands on the last page.
            let overlap = before(&round.newest);
            // The newest is the first of a page.
            for post in posts.iter().rev() {
                let Some(id) = post.get("id").and_then(Value::as_str) else { continue };
                if round.until.is_empty() || later(&round.until, id) == round.until {
                    round.until = id.to_string();
                }
                let is_new = if later(id, &overlap) == id { seen.is_new(&[id]) } else { !seen.knows(&[id]) };
                if is_new {
                    records.push(as_streamed(post, &page, rule).to_string().into_bytes());
                }
            }
            let more = page.get("meta").and_then(|meta| meta.get("next_token")).is_some();
            if !more || posts.is_empty() {
                round.finish();
            }
            seen.place = round.place();
            out.put(&records, seen.token()).await?;
            if !more || posts.is_empty() || out.is_stopped() {
                return Ok(());
            }
        }
    }
}

/// A post of a page in the form of the streams: with what it refers to, and nothing of the others.
fn as_streamed(post: &Value, page: &Value, rule: Option<&str>) -> Value {
    let mut includes = serde_json::Map::new();
    for (list, own) in [("users", post.get("author_id")), ("places", post.pointer("/geo/place_id"))] {
        let Some(own) = own else { continue };
        let all = page.pointer(&format!("/includes/{list}")).and_then(Value::as_array);
        let found: Vec<&Value> = all.into_iter().flatten().filter(|item| item.get("id") == Some(own)).collect();
        if !found.is_empty() {
            includes.insert(list.to_string(), json!(found));
        }
    }
    let mut streamed = json!({"data": post});
    if !includes.is_empty() {
        streamed["includes"] = Value::Object(includes);
    }
    if let Some(rule) = rule {
        streamed["matching_rules"] = json!([{"id": rule}]);
    }
    streamed
}

/// A client of the recent search.
#[derive(Debug, Clone)]
pub struct XSearch {
    query: String,
    every: Duration,
    search: Search,
    common: Common,
}

impl XSearch {
    /// What `query` finds at the server at `url`, asked for every minute.
    pub fn new(url: impl Into<String>, token: Place, query: impl Into<String>) -> Self {
        let search = Search { url: url.into(), token, begin: None };
        Self { query: query.into(), every: Duration::from_secs(60), search, common: Common::new(QUIET) }
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
        let url = base_url(options, Some(PUBLIC))?;
        let query = options.require("query", "it says what is searched, such as `#tea lang:en`")?;
        let mut client = Self::new(url, Place::from_options(options, "token", TOKEN)?, query);
        client.common = Common::from_options(options, QUIET)?;
        // 450 searches in a quarter of an hour are the documented limit of an app.
        client.every = options.duration("every", client.every)?.max(Duration::from_secs(2));
        if let Some(since) = options.get("since") {
            client.search.begin = Some(Timestamp(instant(since).ok_or_else(|| {
                Error::user(format!(
                    "{owner}: option `since` must be a time such as 2026-05-01T00:00:00Z, not `{since}`"
                ))
            })?));
        }
        Ok(Input::Receivers(vec![Arc::new(client)]))
    }
}

struct Session {
    client: XSearch,
    seen: Seen,
}

#[async_trait]
impl Collector for Session {
    async fn session(&mut self, out: &Out) -> Result<Ended, Failure> {
        let mut round = Round::from_place(&self.seen.place);
        let XSearch { search, query, .. } = &self.client;
        let done = search.round(query, None, &mut round, &mut self.seen, out).await;
        self.seen.place = round.place();
        done?;
        let next = out.clock().now().plus(self.client.every);
        out.report(&format!("searched {}; the next time in {} s", search.url, self.client.every.as_secs()));
        Ok(Ended::Again(next))
    }
}

#[async_trait]
impl Receiver for XSearch {
    fn describe(&self) -> String {
        format!("x-search {}", self.query)
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let seen = Seen::from_token(intake.resume().as_deref(), MARKS);
        let session = Session { client: self.clone(), seen };
        run(session, &self.common.link, self.common.gather, intake, stop).await
    }
}
