//! Connector `x-v1`: the filter stream of version 1.1 of X's API, and of servers that speak it.
//!
//! X itself has turned it off for most; programs, archives and stand-ins still speak it.
//!
//! | Option | Meaning |
//! |---|---|
//! | `track` | words and phrases, with commas; 400 at most |
//! | `follow` | ids of authors, with commas; 5,000 at most |
//! | `locations` | boxes of `west,south,east,north` in degrees, one after another; 25 at most |
//! | `languages` | such as `en,de`: of what the others match, only these |
//! | `keys_file`, `keys_env` | where consumer key, consumer secret, access token and its secret are, in this order: lines of a file, or of a variable (`X_V1_KEYS`) |
//! | `deletes` | `keep` (default): notices of deleted posts are records too; `drop` |
//! | `url` | the server (`https://stream.twitter.com`) |
//! | `proxy`, `user_agent`, `max_line`, `idle_timeout` (90s) | as all collectors have them |
//!
//! The record is a tweet, or the notice `{"delete":…}`, as it came. Of other
//! messages, `limit` (posts that the server left out), `warning` and
//! `disconnect` are reported.
//!
//! **What is lost.** The stream has no place to go on from and nothing to fill a
//! gap with: what is posted while no connection is there is lost, and each gap
//! is kept as a dead letter. What the server repeats is told apart by its id.

use super::{
    collect::{Collector, Ended, Framing, Messages, Out, Taken, follow, open, run},
    common::{Common, list, query},
    failure::Failure,
    http::{Request, base_url},
    oauth::{Keys, nonce},
    secret::Place,
    seen::Seen,
    sse::Event,
};
use crate::format::json::{Paths, Raw, scan_bytes};
use async_trait::async_trait;
use std::{sync::Arc, time::Duration};
use tidemill_core::{Error, Input, Intake, Options, Receiver, Result, Stop};

const PUBLIC: &str = "https://stream.twitter.com";
const PATH: &str = "/1.1/statuses/filter.json";
/// A living server sends an empty line every 30 seconds; the guide says to wait for three.
const QUIET: Duration = Duration::from_secs(90);
const MARKS: usize = 256;

/// A client of the filter stream.
#[derive(Debug, Clone)]
pub struct XV1 {
    url: String,
    keys: Place,
    /// The form: what is wanted.
    wanted: Vec<(String, String)>,
    deletes: bool,
    common: Common,
}

impl XV1 {
    /// What has one of the words `track`, from the server at `url`.
    pub fn new(url: impl Into<String>, keys: Place, track: &str) -> Self {
        let wanted = vec![("track".to_string(), track.to_string())];
        Self { url: url.into(), keys, wanted, deletes: true, common: Common::new(QUIET) }
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
        let keys = Place::from_options(options, "keys", "X_V1_KEYS")?;
        let mut client = Self::new(base_url(options, Some(PUBLIC))?, keys, "");
        client.common = Common::from_options(options, QUIET)?;
        client.wanted.clear();
        for (key, most, parts) in [("track", 400, 1), ("follow", 5_000, 1), ("locations", 25, 4)] {
            let Some(text) = options.get(key) else { continue };
            let all = list(text);
            let wrong = |why: String| Error::user(format!("{owner}: option `{key}`: {why}"));
            if all.is_empty() || all.len() > most * parts {
                return Err(wrong(format!("names {}, between 1 and {most} may be", all.len() / parts)));
            }
            if key == "follow" && !all.iter().all(|id| id.bytes().all(|b| b.is_ascii_digit())) {
                return Err(wrong("takes ids of authors, which are numbers, not their names".to_string()));
            }
            if key == "locations" && !is_boxes(&all) {
                return Err(wrong("takes boxes of west,south,east,north in degrees".to_string()));
            }
            client.wanted.push((key.to_string(), all.join(",")));
        }
        if client.wanted.is_empty() {
            return Err(Error::user(format!(
                "{owner}: one of the options `track`, `follow` and `locations` is needed"
            )));
        }
        if let Some(languages) = options.get("languages") {
            client.wanted.push(("language".to_string(), list(languages).join(",")));
        }
        client.deletes = match options.get("deletes").unwrap_or("keep") {
            "keep" => true,
            "drop" => false,
            other => {
                return Err(Error::user(format!("{owner}: option `deletes` must be `keep` or `drop`, not `{other}`")));
            }
        };
        Ok(Input::Receivers(vec![Arc::new(client)]))
    }

    fn request(&self, out: &Out) -> Result<Request, Failure> {
        let keys = Keys::from_secrets(self.keys.read()?)?;
        let mut form = self.wanted.clone();
        form.push(("stall_warnings".to_string(), "true".to_string()));
        let url = format!("{}{PATH}", self.url);
        // The time of now: a signature of another time is refused.
        let header = keys.header("POST", &url, &form, out.clock().now(), &nonce()?);
        let body = query(form.iter().map(|(key, value)| (key.as_str(), value.clone())));
        let request = Request::get(&url).map_err(|e| Failure::Fatal(Error::user(e)))?;
        Ok(request.post("application/x-www-form-urlencoded", body).authorization(&header))
    }
}

/// Whether numbers are boxes: west and south before east and north.
fn is_boxes(all: &[String]) -> bool {
    let numbers: Vec<f64> = all.iter().filter_map(|text| text.parse().ok()).collect();
    numbers.len() == all.len()
        && numbers.len().is_multiple_of(4)
        && numbers
            .chunks(4)
            .all(|b| b[0] < b[2] && b[1] < b[3] && b[0] >= -180.0 && b[2] <= 180.0 && b[1] >= -90.0 && b[3] <= 90.0)
}

struct Session {
    client: XV1,
    seen: Seen,
    paths: Paths,
    /// What messages said that is no record, to be reported.
    said: Vec<String>,
}

#[async_trait]
impl Collector for Session {
    async fn session(&mut self, out: &Out) -> Result<Ended, Failure> {
        let request = self.client.request(out)?;
        let Some(response) = open(&request, out).await? else { return Ok(Ended::Stopped) };
        // Until a post says its time, what is not to be had begins here the next time.
        let to = out.clock().now();
        let from = std::mem::replace(&mut self.seen.place, to.to_string());
        if !from.is_empty() {
            let reason = format!("a gap: what was posted from {from} to {to} is not to be had");
            out.refuse(reason, format!(r#"{{"gap":{{"after":"{from}","before":"{to}"}}}}"#).as_bytes()).await?;
        }
        let ended = follow(self, response, out).await;
        for said in self.said.drain(..) {
            out.report(&said);
        }
        ended
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
        false
    }

    fn take(&mut self, message: Event) -> Taken {
        let mut found = [Raw::Null; 7];
        if let Err(fault) = scan_bytes(&message.data, &self.paths, |i, raw| found[i] = raw) {
            return Taken::Refuse(format!("not JSON: {fault}"));
        }
        let [id, gone, disconnect, code, limit, warning, time] = found;
        if let Raw::Text { text: ms, .. } = time
            && let Ok(ms) = ms.parse()
        {
            self.seen.place = tidemill_core::Timestamp::from_millis(ms).to_string();
        }
        match (id, gone) {
            (Raw::Text { text: id, .. }, _) => {
                if self.seen.is_new(&[id]) {
                    Taken::Keep(message.data)
                } else {
                    Taken::Pass
                }
            }
            (_, Raw::Text { text: id, .. }) => {
                if self.client.deletes && self.seen.is_new(&["delete", id]) {
                    Taken::Keep(message.data)
                } else {
                    Taken::Pass
                }
            }
            _ => {
                if let Raw::Object(text) = disconnect {
                    let why = format!("the server ends the stream: {text}");
                    return Taken::End(match code {
                        // The token was revoked.
                        Raw::Number("6") => Failure::Denied(why),
                        // Another connection of the same credentials took the place of this one.
                        Raw::Number("2" | "7") => Failure::Http(why),
                        _ => Failure::Network(why),
                    });
                }
                for (what, raw) in [("left out posts", limit), ("warns", warning)] {
                    if let (Raw::Object(text), true) = (raw, self.said.len() < 100) {
                        tracing::warn!(%text, "the server {what}");
                        self.said.push(format!("the server {what}: {text}"));
                    }
                }
                Taken::Pass
            }
        }
    }

    fn token(&self) -> String {
        self.seen.token()
    }
}

#[async_trait]
impl Receiver for XV1 {
    fn describe(&self) -> String {
        let wanted: Vec<String> = self.wanted.iter().map(|(key, value)| format!("{key} {value}")).collect();
        format!("x-v1 {}", wanted.join(", "))
    }

    async fn run(&self, intake: Arc<dyn Intake>, stop: Stop) -> Result<()> {
        let seen = Seen::from_token(intake.resume().as_deref(), MARKS);
        let paths = Paths::new([
            ["id_str"].as_slice(),
            ["delete", "status", "id_str"].as_slice(),
            ["disconnect"].as_slice(),
            ["disconnect", "code"].as_slice(),
            ["limit"].as_slice(),
            ["warning"].as_slice(),
            ["timestamp_ms"].as_slice(),
        ]);
        let session = Session { client: self.clone(), seen, paths, said: Vec::new() };
        run(session, &self.common.link, self.common.gather, intake, stop).await
    }
}
