//! The filtered stream and the sample stream.
//!
//! Invariant: a post is taken once, whether the stream sent it or a search found
//! it. Called as the connectors `x` and `x-sample`.

use super::{
    FIELDS, MARKS, PUBLIC, QUIET, TOKEN, request, rules,
    search::{Round, Search},
    time_of,
};
use crate::{
    format::json::{Paths, Raw, items, scan, utf8},
    social::{
        collect::{Collector, Ended, Framing, Messages, Out, Taken, follow, open, run},
        common::Common,
        failure::Failure,
        http::base_url,
        secret::Place,
        seen::{Seen, later},
        sse::Event,
    },
};
use async_trait::async_trait;
use serde_json::json;
use std::{collections::BTreeSet, sync::Arc};
use tidemill_core::{Error, Input, Intake, Options, Receiver, Result, Stop};

/// A client of a stream.
#[derive(Debug, Clone)]
pub struct XStream {
    url: String,
    token: Place,
    /// `None` is the sample stream.
    filter: Option<Filter>,
    common: Common,
}

#[derive(Debug, Clone)]
struct Filter {
    rules: Vec<String>,
    tag: String,
    search: bool,
}

impl XStream {
    /// What `rules` match, from the server at `url`; without rules, what those of the credential match.
    pub fn filtered(url: impl Into<String>, token: Place, rules: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let rules = rules.into_iter().map(Into::into).collect();
        let filter = Some(Filter { rules, tag: "tidemill".to_string(), search: true });
        Self { url: url.into(), token, filter, common: Common::new(QUIET) }
    }

    /// A sample of all posts.
    pub fn sample(url: impl Into<String>, token: Place) -> Self {
        Self { url: url.into(), token, filter: None, common: Common::new(QUIET) }
    }

    /// Does not search for what an interruption missed.
    #[must_use]
    pub fn skip_gaps(mut self) -> Self {
        if let Some(filter) = &mut self.filter {
            filter.search = false;
        }
        self
    }

    /// With what all collectors have.
    #[must_use]
    pub fn common(mut self, common: Common) -> Self {
        self.common = common;
        self
    }

    /// The client of the filtered stream that a stream's options ask for.
    ///
    /// # Errors
    /// When one is wrong.
    pub fn input(options: &Options) -> Result<Input> {
        let owner = options.owner();
        let rules = options.get("rules").unwrap_or_default();
        let rules: BTreeSet<&str> = rules.split([';', '\n']).map(str::trim).filter(|r| !r.is_empty()).collect();
        let mut client = Self::filtered(
            base_url(options, Some(PUBLIC))?,
            Place::from_options(options, "token", TOKEN)?,
            rules.into_iter().map(str::to_string),
        );
        client.common = Common::from_options(options, QUIET)?;
        if let Some(filter) = &mut client.filter {
            if let Some(tag) = options.get("tag") {
                filter.tag = tag.to_string();
            }
            filter.search = match options.get("gaps").unwrap_or("search") {
                "search" => true,
                "skip" => false,
                other => {
                    return Err(Error::user(format!(
                        "{owner}: option `gaps` must be `search` or `skip`, not `{other}`"
                    )));
                }
            };
        }
        Ok(Input::Receivers(vec![Arc::new(client)]))
    }

    /// The client of the sample stream that a stream's options ask for.
    ///
    /// # Errors
    /// When one is wrong.
    pub fn sample_input(options: &Options) -> Result<Input> {
        let mut client = Self::sample(base_url(options, Some(PUBLIC))?, Place::from_options(options, "token", TOKEN)?);
        client.common = Common::from_options(options, QUIET)?;
        Ok(Input::Receivers(vec![Arc::new(client)]))
    }
}

struct Session {
    client: XStream,
    seen: Seen,
    round: Round,
    /// Ids of our rules; empty when all that comes is ours.
    ours: BTreeSet<String>,
    paths: Paths,
    rule: Paths,
}

impl Session {
    /// Fetches what came since the newest known post, rule by rule.
    async fn fill(&mut self, out: &Out) -> Result<(), Failure> {
        if self.round.since.is_empty() {
            return Ok(());
        }
        let Some(filter) = self.client.filter.clone() else {
            out.report("posts since the last connection are not to be had of the sample stream");
            return Ok(());
        };
        if !filter.search || filter.rules.is_empty() {
            return self.missed("it was not asked for (options `gaps`, `rules`)", out).await;
        }
        let search = Search { url: self.client.url.clone(), token: self.client.token.clone(), begin: None };
        // One round for all rules: its end is that of the last rule.
        let query = filter.rules.iter().map(|rule| format!("({rule})")).collect::<Vec<_>>().join(" OR ");
        // One that was broken off goes on where it was, and what came since then is another.
        let rounds = if self.round.until.is_empty() { 1 } else { 2 };
        for _ in 0..rounds {
            match search.round(&query, None, &mut self.round, &mut self.seen, out).await {
                Err(Failure::Denied(why)) => return self.missed(&why, out).await,
                done => done?,
            }
        }
        Ok(())
    }

    /// A gap that stays one.
    async fn missed(&mut self, why: &str, out: &Out) -> Result<(), Failure> {
        let (from, to) = (time_of(&self.round.since), out.clock().now());
        let from = from.map_or_else(|| self.round.since.clone(), |at| at.to_string());
        self.round.finish();
        let reason = format!("a gap: what was posted from {from} to {to} was not fetched: {why}");
        out.report(&reason);
        out.refuse(reason, json!({"gap": {"after": from, "before": to.to_string()}}).to_string().as_bytes()).await
    }
}

#[async_trait]
impl Collector for Session {
    async fn session(&mut self, out: &Out) -> Result<Ended, Failure> {
        let XStream { url, token, filter, .. } = self.client.clone();
        let path = match &filter {
            None => "/2/tweets/sample/stream",
            Some(filter) => {
                if !filter.rules.is_empty() {
                    let synced = out.unless_stopped(rules::sync(&url, &token, &filter.rules, &filter.tag, out)).await;
                    let Some(ours) = synced else { return Ok(Ended::Stopped) };
                    self.ours = ours?;
                }
                "/2/tweets/search/stream"
            }
        };
        let request = request(&url, &format!("{path}?{FIELDS}"), &token)?;
        // First the stream, so that nothing falls between it and what is searched.
        let Some(response) = open(&request, out).await? else { return Ok(Ended::Stopped) };
        self.fill(out).await?;
        if out.is_stopped() {
            return Ok(Ended::Stopped);
        }
        follow(self, response, out).await
    }
}

impl Messages for Session {
    fn framing(&self) -> Framing {
        Framing::Lines
    }

    fn common(&self) -> &Common {
        &self.client.common
    }

    fn sends_again(&self) -> bool {
        self.client.filter.as_ref().is_some_and(|filter| filter.search && !filter.rules.is_empty())
    }

    fn take(&mut self, message: Event) -> Taken {
        let mut found = [Raw::Null; 4];
        let scanned = utf8(&message.data).and_then(|text| scan(text, &self.paths, |i, raw| found[i] = raw));
        if let Err(fault) = scanned {
            return Taken::Refuse(format!("not JSON: {fault}"));
        }
        let [id, rules, errors, title] = found;
        let id = match id {
            Raw::Text { text, .. } => text,
            _ if errors != Raw::Null || title != Raw::Null => return Taken::End(disconnect(&message.data)),
            _ => return Taken::Refuse("field \"data.id\": missing".to_string()),
        };
        if let (Raw::Array(rules), false) = (rules, self.ours.is_empty()) {
            let mut ours = false;
            let looked = items::<crate::format::json::Fault>(rules, |rule| {
                if let Raw::Object(rule) = rule {
                    scan(rule, &self.rule, |_, raw| {
                        ours |= matches!(raw, Raw::Text { text, .. } if self.ours.contains(text));
                    })?;
                }
                Ok(())
            });
            if looked.is_ok() && !ours {
                return Taken::Pass;
            }
        }
        if !self.seen.is_new(&[id]) {
            return Taken::Pass;
        }
        self.round.since = later(&self.round.since, id).to_string();
        self.seen.place = self.round.place();
        Taken::Keep(message.data)
    }

    fn token(&self) -> String {
        self.seen.token()
    }
}

/// What a message without a post says, which is why the connection ends.
fn disconnect(message: &[u8]) -> Failure {
    let value: serde_json::Value = serde_json::from_slice(message).unwrap_or_default();
    let first = value.pointer("/errors/0").unwrap_or(&value);
    let text = |key: &str| first.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
    let why = format!("the server ends the stream: {}: {}", text("title"), text("detail"));
    // Too many connections are a matter of minutes; all else is over when we come back.
    let kind =
        format!("{} {}", text("title"), value.get("connection_issue").map(ToString::to_string).unwrap_or_default());
    if kind.contains("ConnectionException") || kind.contains("TooManyConnections") {
        Failure::Limited(why, None)
    } else {
        Failure::Network(why)
    }
}

#[async_trait]
impl Receiver for XStream {
    fn describe(&self) -> String {
        match &self.filter {
            None => "x-sample".to_string(),
            Some(filter) => format!("x {}", filter.rules.join("; ")),
        }
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let seen = Seen::from_token(intake.resume().as_deref(), MARKS);
        let round = Round::from_place(&seen.place);
        let paths = Paths::new([
            ["data", "id"].as_slice(),
            ["matching_rules"].as_slice(),
            ["errors"].as_slice(),
            ["title"].as_slice(),
        ]);
        let rule = Paths::keys(["id"]);
        let session = Session { client: self.clone(), seen, round, ours: BTreeSet::new(), paths, rule };
        run(session, &self.common.link, self.common.gather, intake, stop).await
    }
}
