//! Connector `weibo`: the public timeline of Weibo, asked for again and again.
//!
//! | Option | Meaning |
//! |---|---|
//! | `tokens_file`, `tokens_env` | where the access tokens are, one a line: a file, or a variable (`WEIBO_TOKENS`) |
//! | `every` | how often the timeline is asked for at most (10s) |
//! | `count` | posts of an answer (200, which is the most) |
//! | `url` | the server (`https://api.weibo.com`) |
//! | `proxy`, `user_agent`, `max_line` | as all collectors have them |
//!
//! The record is a status as it came.
//!
//! **Limits.** Each token may ask so often an hour. What is left of it is asked
//! of `rate_limit_status`, and the token with the most left asks next, so that
//! none is refused; when all that is left would not last at that pace, it asks
//! less often. A token that is refused all the same rests until its hour is
//! over, and one that is no longer valid is left out until the file holds
//! another. When all rest, the collector waits for the first.
//!
//! **Nothing twice; what the network gives.** The timeline has no place to go on
//! from: each answer holds the newest posts, those that were there before are
//! told apart by their ids, of which the last 1,024 are kept. An answer
//! with nothing known in it says that posts were missed, and that is reported.

use super::{
    collect::{Collector, Ended, Out, run},
    common::{Common, query},
    failure::Failure,
    http::{Request, base_url},
    secret::{Place, Secret},
    seen::Seen,
};
use crate::format::json::{Fault, Paths, Raw, items, scan, utf8};
use async_trait::async_trait;
use serde_json::Value;
use std::{sync::Arc, time::Duration};
use tidemill_core::{Error, Input, Intake, Options, Receiver, Result, Stop, Timestamp};

const PUBLIC: &str = "https://api.weibo.com";
/// Posts told apart at most: some answers full.
const MARKS: usize = 1024;
/// Bytes of an answer at most.
const MOST: usize = 16 << 20;
/// An hour, in which limits are counted.
const HOUR: Duration = Duration::from_secs(3600);

/// A client of the public timeline.
#[derive(Debug, Clone)]
pub struct Weibo {
    url: String,
    tokens: Place,
    every: Duration,
    count: u32,
    common: Common,
}

impl Weibo {
    /// The public timeline of the server at `url`.
    pub fn new(url: impl Into<String>, tokens: Place) -> Self {
        let common = Common::new(Duration::from_secs(30));
        Self { url: url.into(), tokens, every: Duration::from_secs(10), count: 200, common }
    }

    /// Asks so often.
    #[must_use]
    pub fn every(mut self, every: Duration) -> Self {
        self.every = every;
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
        let tokens = Place::from_options(options, "tokens", "WEIBO_TOKENS")?;
        let mut client = Self::new(base_url(options, Some(PUBLIC))?, tokens);
        client.common = Common::from_options(options, client.common.quiet)?;
        client.every = options.duration("every", client.every)?.max(Duration::from_secs(1));
        client.count = options.parse("count", client.count)?;
        if !(1..=200).contains(&client.count) {
            let owner = options.owner();
            return Err(Error::user(format!(
                "{owner}: option `count` must be between 1 and 200, not {}",
                client.count
            )));
        }
        Ok(Input::Receivers(vec![Arc::new(client)]))
    }
}

/// A token and what is left of it.
#[derive(Debug)]
struct Token {
    secret: Secret,
    /// Requests left in this hour, if it is known.
    left: Option<u64>,
    /// When the hour is over.
    reset: Timestamp,
    /// It is no longer valid.
    spent: bool,
}

/// What the network has against a request.
struct Complaint {
    code: u64,
    text: String,
}

impl Complaint {
    fn of(value: &Value) -> Option<Self> {
        let code = value.get("error_code")?;
        let code = code.as_u64().or_else(|| code.as_str()?.parse().ok())?;
        let text = value.get("error").and_then(Value::as_str).unwrap_or_default().chars().take(200).collect();
        Some(Self { code, text })
    }

    fn is_limit(&self) -> bool {
        matches!(self.code, 10_022..=10_024)
    }

    /// Expired, revoked, or of another program.
    fn is_spent(&self) -> bool {
        matches!(self.code, 21_314..=21_319 | 21_327 | 21_332 | 10_006)
    }
}

struct Session {
    client: Weibo,
    seen: Seen,
    tokens: Vec<Token>,
    paths: Paths,
    /// Whether an answer came before, in this life or an earlier one.
    began: bool,
}

enum Answer {
    Whole(Vec<u8>),
    Complaint(Complaint),
}

impl Session {
    /// Takes up tokens that are new, and lets go of those that are gone.
    fn read_tokens(&mut self) -> Result<(), Failure> {
        let now = self.client.tokens.read()?;
        self.tokens.retain(|token| now.contains(&token.secret));
        for secret in now {
            if !self.tokens.iter().any(|token| token.secret == secret) {
                self.tokens.push(Token { secret, left: None, reset: Timestamp::MIN, spent: false });
            }
        }
        Ok(())
    }

    async fn ask(
        &self,
        path: &str,
        token: &Secret,
        more: Option<(&str, String)>,
        out: &Out,
    ) -> Result<Answer, Failure> {
        let pairs = [("access_token", token.expose().to_string())].into_iter().chain(more);
        let url = format!("{}/2/{path}?{}", self.client.url, query(pairs));
        let request = Request::get(&url).map_err(|e| Failure::Fatal(Error::user(e)))?;
        let mut answer = out.link.send(&request).await?;
        let status = answer.status;
        if status.is_server_error() || status.as_u16() == 429 {
            return Err(answer.refusal().await);
        }
        let whole = answer.whole(MOST).await?;
        // Complaints come with codes such as 400 and 403, and with 200 too.
        let complaint =
            (whole.len() < 64 << 10).then(|| serde_json::from_slice(&whole).ok().as_ref().and_then(Complaint::of));
        match complaint.flatten() {
            Some(complaint) => Ok(Answer::Complaint(complaint)),
            None if status.is_success() => Ok(Answer::Whole(whole)),
            None => Err(Failure::Http(format!("the server answered {status}"))),
        }
    }

    /// What is left of each token whose count is not known.
    async fn count_up(&mut self, out: &Out) -> Result<(), Failure> {
        let now = out.clock().now();
        for i in 0..self.tokens.len() {
            if self.tokens[i].spent || self.tokens[i].left.is_some() && self.tokens[i].reset > now {
                continue;
            }
            match self.ask("account/rate_limit_status.json", &self.tokens[i].secret.clone(), None, out).await? {
                Answer::Whole(text) => {
                    let value: Value = serde_json::from_slice(&text)
                        .map_err(|e| Failure::Http(format!("the rate limits are not JSON: {e}")))?;
                    let number = |key: &str| value.get(key).and_then(Value::as_u64);
                    let left = [number("remaining_user_hits"), number("remaining_ip_hits")].into_iter().flatten().min();
                    let reset = number("reset_time_in_seconds").map_or(HOUR, Duration::from_secs).min(HOUR);
                    let token = &mut self.tokens[i];
                    (token.left, token.reset) = (Some(left.unwrap_or(150)), now.plus(reset));
                }
                Answer::Complaint(complaint) => self.complained(i, &complaint, out)?,
            }
        }
        Ok(())
    }

    fn complained(&mut self, i: usize, complaint: &Complaint, out: &Out) -> Result<(), Failure> {
        let Complaint { code, text } = complaint;
        let now = out.clock().now();
        if complaint.is_limit() {
            let token = &mut self.tokens[i];
            token.left = Some(0);
            if token.reset <= now {
                token.reset = now.plus(HOUR);
            }
            out.report(&format!(
                "token {} of {} rests until {}: {code} {text}",
                i + 1,
                self.tokens.len(),
                self.tokens[i].reset
            ));
            Ok(())
        } else if complaint.is_spent() {
            self.tokens[i].spent = true;
            out.report(&format!("token {} of {} is not valid any more: {code} {text}", i + 1, self.tokens.len()));
            Ok(())
        } else {
            Err(Failure::Http(format!("the server answered {code}: {text}")))
        }
    }

    /// The token that asks next.
    fn choose(&self, now: Timestamp) -> Result<usize, Failure> {
        let valid = || self.tokens.iter().enumerate().filter(|(_, token)| !token.spent);
        let best = valid().filter(|(_, token)| token.left != Some(0) || token.reset <= now);
        // Of equals the first.
        let best = best.max_by_key(|(i, token)| (token.left, usize::MAX - i)).map(|(i, _)| i);
        best.ok_or_else(|| match valid().map(|(_, token)| token.reset).min() {
            Some(reset) => Failure::Limited("all tokens are at their limits".to_string(), Some(reset)),
            None => Failure::Denied(format!("no token is valid any more: put others into {}", self.client.tokens)),
        })
    }

    /// How long to wait so that what is left lasts.
    fn pace(&self, now: Timestamp) -> Duration {
        let valid = || self.tokens.iter().filter(|token| !token.spent && token.reset > now);
        let left: u64 = valid().filter_map(|token| token.left).sum();
        let span = valid().map(|token| token.reset.since(now)).max().unwrap_or_default();
        let even = u32::try_from(left.max(1)).map_or(Duration::ZERO, |left| span / left);
        self.client.every.max(even.min(HOUR))
    }

    /// The new posts of an answer, oldest first; and how many there were.
    fn new_posts(&mut self, text: &[u8]) -> Result<(Vec<Vec<u8>>, usize), String> {
        let text = utf8(text).map_err(|fault| fault.to_string())?;
        let mut list = Raw::Null;
        scan(text.trim_ascii(), &Paths::keys(["statuses"]), |_, raw| list = raw).map_err(|fault| fault.to_string())?;
        let Raw::Array(list) = list else { return Err("field \"statuses\": missing".to_string()) };
        let mut posts = Vec::new();
        items::<Fault>(list, |raw| {
            if let Raw::Object(post) = raw {
                posts.push(post);
            }
            Ok(())
        })
        .map_err(|fault| fault.to_string())?;
        let mut records = Vec::new();
        for post in posts.iter().rev() {
            let mut names = [Raw::Null; 2];
            scan(post, &self.paths, |name, raw| names[name] = raw).map_err(|fault| fault.to_string())?;
            let [id, deleted] = names;
            let (Raw::Number(id) | Raw::Text { text: id, .. }) = id else {
                return Err("field \"id\": missing".to_string());
            };
            // What was deleted is listed once more, as a notice in its own place.
            let is_new = match deleted {
                Raw::Number("1") => self.seen.is_new(&["delete", id]),
                _ => self.seen.is_new(&[id]),
            };
            if is_new {
                records.push(post.as_bytes().to_vec());
            }
        }
        Ok((records, posts.len()))
    }

    /// Asks once. What asks is broken off by a stop; what was fetched is handed on, as no later answer has it.
    async fn round(&mut self, out: &Out) -> Result<Ended, Failure> {
        self.read_tokens()?;
        let Some(counted) = out.unless_stopped(self.count_up(out)).await else { return Ok(Ended::Stopped) };
        counted?;
        // Each token is tried once at most.
        for _ in 0..=self.tokens.len() {
            let i = self.choose(out.clock().now())?;
            let count = ("count", self.client.count.to_string());
            let secret = self.tokens[i].secret.clone();
            let asking = self.ask("statuses/public_timeline.json", &secret, Some(count), out);
            let Some(answer) = out.unless_stopped(asking).await else { return Ok(Ended::Stopped) };
            let text = match answer? {
                Answer::Whole(text) => text,
                Answer::Complaint(complaint) => {
                    self.complained(i, &complaint, out)?;
                    continue;
                }
            };
            if let Some(left) = &mut self.tokens[i].left {
                *left = left.saturating_sub(1);
            }
            let before = self.seen.clone();
            let (records, all) = match self.new_posts(&text) {
                Ok(found) => found,
                Err(why) => {
                    // What was not handed on is not known.
                    self.seen = before;
                    return Err(Failure::Http(format!("the answer is no timeline: {why}")));
                }
            };
            let now = out.clock().now();
            let (new, wait) = (records.len(), self.pace(now));
            out.put(&records, self.seen.token()).await?;
            let left: u64 = self.tokens.iter().filter_map(|token| token.left).sum();
            let missed = if self.began && new == all && all > 1 { "; all were new, so some were missed" } else { "" };
            out.report(&format!(
                "{new} new posts of {all}{missed}; the next time in {:.0} s, {left} requests left this hour",
                wait.as_secs_f64()
            ));
            self.began |= all > 0;
            return Ok(Ended::Again(now.plus(wait)));
        }
        Err(Failure::Http("no token was taken".to_string()))
    }
}

#[async_trait]
impl Collector for Session {
    async fn session(&mut self, out: &Out) -> Result<Ended, Failure> {
        self.round(out).await
    }
}

#[async_trait]
impl Receiver for Weibo {
    fn describe(&self) -> String {
        format!("weibo {}", self.url)
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let resume = intake.resume();
        let seen = Seen::from_token(resume.as_deref(), MARKS);
        let paths = Paths::keys(["id", "deleted"]);
        let session = Session { client: self.clone(), seen, tokens: Vec::new(), paths, began: resume.is_some() };
        run(session, &self.common.link, self.common.gather, intake, stop).await
    }
}
