//! Version 1.1 of X's API: the filter stream, with its signed requests.
//!
//! Invariant: a request whose signature or time is wrong is refused with 401, as the network does.

use super::{
    Fault, Stage,
    feed::{Script, pieces},
    serve::{Answer, Asked, pairs},
};
use crate::social::{common::encode, proxy::decode};
use hyper::Method;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tidemill_core::Timestamp;

/// A request's time may be off by this much.
const SKEW: Duration = Duration::from_secs(300);

struct Lines {
    track: Vec<String>,
}

impl Script for Lines {
    fn render(&self, stage: &Stage, n: usize) -> Option<String> {
        let post = &stage.plan.posts[n];
        let value: Value = serde_json::from_str(&post.record).unwrap_or_default();
        let text = value["text"].as_str().unwrap_or_default().to_lowercase();
        let wanted = self.track.is_empty()
            || post.is_delete()
            || self.track.iter().any(|phrase| phrase.split(' ').all(|word| text.contains(word)));
        wanted.then(|| format!("{}\r\n", post.record))
    }

    fn keep_alive(&self) -> (&'static str, Duration) {
        ("\r\n", Duration::from_secs(30))
    }

    fn disconnect(&self) -> Option<String> {
        let said = json!({"disconnect": {"code": 4, "stream_name": "simulated", "reason": "Stall"}});
        Some(format!("{}\r\n{said}\r\n", json!({"limit": {"track": 17}})))
    }

    fn garbage(&self) -> String {
        "{\"id_str\": \r\n".to_string()
    }
}

pub(super) fn answer(asked: &Asked, stage: &Arc<Stage>) -> Answer {
    if asked.path != "/1.1/statuses/filter.json" || asked.method != Method::POST {
        return Answer::text(404, "text/html", "<html><body>404: no such stream</body></html>".to_string());
    }
    let form = pairs(&String::from_utf8_lossy(&asked.body));
    if !is_signed(asked, &form, stage) {
        return Answer::text(401, "text/html", "<html><body>401: Authorization Required</body></html>".to_string());
    }
    let filters = ["track", "follow", "locations"];
    if !form.iter().any(|(key, value)| filters.contains(&key.as_str()) && !value.is_empty()) {
        return Answer::text(
            406,
            "text/plain",
            "No filter parameters found. Expect at least one parameter: follow track locations\r\n".to_string(),
        );
    }
    let track = form.iter().find(|(key, _)| key == "track").map(|(_, value)| value.to_lowercase()).unwrap_or_default();
    let track = track.split(',').filter(|phrase| !phrase.is_empty()).map(str::to_string).collect();
    let from = stage.published();
    match stage.fault() {
        Fault::Status(code, after) => {
            let answer = Answer::text(code, "text/plain", format!("{code}: Enhance Your Calm\r\n"));
            match after {
                Some(seconds) => answer.with("retry-after", &seconds),
                None => answer,
            }
        }
        fault => Answer::stream("application/json", pieces(Arc::clone(stage), Lines { track }, from, fault)),
    }
}

fn is_signed(asked: &Asked, form: &[(String, String)], stage: &Stage) -> bool {
    let Some(keys) = &stage.plan.keys else { return true };
    let Some(header) = asked.header("authorization").and_then(|header| header.strip_prefix("OAuth ")) else {
        return false;
    };
    let own: Vec<(String, String)> = header
        .split(", ")
        .filter_map(|part| part.split_once('='))
        .map(|(key, value)| (key.to_string(), decode(value.trim_matches('"'))))
        .collect();
    let get = |name: &str| own.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone()).unwrap_or_default();
    let at = Timestamp::from_millis(get("oauth_timestamp").parse::<i64>().unwrap_or_default().saturating_mul(1000));
    let now = stage.plan.clock.now();
    if now.since(at) > SKEW || at.since(now) > SKEW || get("oauth_consumer_key") != keys.consumer_key.expose() {
        return false;
    }
    let url = format!("http://{}{}", asked.header("host").unwrap_or_default(), asked.path);
    let signed = own.iter().filter(|(key, _)| key != "oauth_signature").chain(form).cloned();
    encode(&keys.sign("POST", &url, signed)) == encode(&get("oauth_signature"))
}
