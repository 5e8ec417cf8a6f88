//! EventStreams of Wikimedia: server-sent events with ids that a client can go on from.
//!
//! Invariant: ids count in milliseconds, so a client that goes on is sent the last event once more; each tenth event is followed by a canary.

use super::{
    Fault, Stage,
    feed::{Script, pieces},
    serve::{Answer, Asked},
};
use crate::format::time::instant;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

struct Events;

impl Script for Events {
    fn greeting(&self) -> Option<String> {
        Some(":ok\n\n".to_string())
    }

    fn render(&self, stage: &Stage, n: usize) -> Option<String> {
        let post = &stage.plan.posts[n];
        let id = json!([
            {"topic": "eqiad.mediawiki.recentchange", "partition": 0, "timestamp": post.at.millis()},
            {"topic": "codfw.mediawiki.recentchange", "partition": 0, "offset": -1}
        ]);
        let event = |data: &str| format!("event: message\nid: {id}\ndata: {data}\n\n");
        let mut text = event(&post.record);
        if n % 10 == 9 {
            let canary = json!({"meta": {"domain": "canary", "id": format!("canary-{n}"), "dt": post.at.to_string()}});
            text.push_str(&event(&canary.to_string()));
        }
        Some(text)
    }

    fn keep_alive(&self) -> (&'static str, Duration) {
        (":keep-alive\n\n", Duration::from_secs(15))
    }

    fn disconnect(&self) -> Option<String> {
        None
    }

    fn garbage(&self) -> String {
        "event: message\ndata: {\"meta\": \n\n".to_string()
    }
}

pub(super) fn answer(asked: &Asked, stage: &Arc<Stage>) -> Answer {
    if !asked.path.starts_with("/v2/stream/") {
        return Answer::json(404, &json!({"httpStatus": 404, "detail": "no such stream"}));
    }
    if asked.header("user-agent").is_none_or(str::is_empty) {
        return Answer::json(403, &json!({"httpStatus": 403, "detail": "set a user agent"}));
    }
    let at_least = |micros: i64| {
        let posts = &stage.plan.posts;
        posts.iter().position(|post| post.at.0 >= micros).unwrap_or(posts.len())
    };
    let last = asked.header("last-event-id").map(|id| serde_json::from_str::<Value>(id).unwrap_or_default());
    let from = match (last, asked.get("since").and_then(instant)) {
        (Some(last), _) => match last[0]["timestamp"].as_i64() {
            Some(ms) => at_least(ms * 1000),
            None => {
                return Answer::json(400, &json!({"httpStatus": 400, "detail": "Last-Event-ID is no list of offsets"}));
            }
        },
        (None, Some(since)) => at_least(since),
        (None, None) => stage.published(),
    };
    match stage.fault() {
        Fault::Status(code, after) => {
            let answer = Answer::json(code, &json!({"httpStatus": code, "detail": "refused"}));
            match after {
                Some(seconds) => answer.with("retry-after", &seconds),
                None => answer,
            }
        }
        fault => Answer::stream("text/event-stream; charset=utf-8", pieces(Arc::clone(stage), Events, from, fault)),
    }
}
