//! A Mastodon server: streams as server-sent events and over WebSockets, timelines as pages.
//!
//! Invariant: a stream begins with what is published after it was opened; a page has what is published and not deleted.

use super::{
    Fault, Stage,
    feed::{Pieces, Script, pieces},
    serve::{Answer, Asked},
};
use crate::social::{post::Network, seen::later};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// What a timeline is asked for.
#[derive(Default)]
struct Events {
    tag: Option<String>,
}

impl Events {
    fn has(&self, record: &Value) -> bool {
        let names = || record["tags"].as_array().into_iter().flatten().filter_map(|tag| tag["name"].as_str());
        self.tag.as_ref().is_none_or(|tag| names().any(|name| name.eq_ignore_ascii_case(tag)))
    }

    /// What post number `n` is in a stream that has it: its kind, and what goes with it.
    fn event<'a>(&self, stage: &'a Stage, n: usize) -> Option<(&'static str, &'a str)> {
        let post = &stage.plan.posts[n];
        if post.is_delete() {
            return Some(("delete", &post.id));
        }
        let value: Value = serde_json::from_str(&post.record).unwrap_or_default();
        let kind = if post.is_post() { "update" } else { "status.update" };
        self.has(&value).then_some((kind, &post.record))
    }
}

impl Script for Events {
    fn greeting(&self) -> Option<String> {
        Some(":)\n".to_string())
    }

    fn render(&self, stage: &Stage, n: usize) -> Option<String> {
        let (kind, data) = self.event(stage, n)?;
        Some(format!("event: {kind}\ndata: {data}\n\n"))
    }

    fn keep_alive(&self) -> (&'static str, Duration) {
        (":thump\n", Duration::from_secs(15))
    }

    fn disconnect(&self) -> Option<String> {
        None
    }

    fn garbage(&self) -> String {
        "event: update\ndata: {\"id\": \n\n".to_string()
    }
}

/// The same over a WebSocket: a message each.
struct Frames(Events);

impl Script for Frames {
    fn render(&self, stage: &Stage, n: usize) -> Option<String> {
        let (event, payload) = self.0.event(stage, n)?;
        Some(json!({"stream": ["public"], "event": event, "payload": payload}).to_string())
    }

    fn keep_alive(&self) -> (&'static str, Duration) {
        ("", Duration::from_secs(30))
    }

    fn disconnect(&self) -> Option<String> {
        None
    }

    fn garbage(&self) -> String {
        "{\"event\": ".to_string()
    }
}

fn unknown_token(asked: &Asked, stage: &Stage) -> Option<Answer> {
    let tokens = &stage.plan.tokens;
    let known = tokens.is_empty() || tokens.iter().any(|token| Some(token.expose()) == asked.bearer());
    (!known).then(|| Answer::json(401, &json!({"error": "The access token is invalid"})))
}

/// The messages of a WebSocket and how it fails, or the answer that there is none.
pub(super) fn frames(asked: &Asked, stage: &Arc<Stage>) -> Result<(Pieces, Fault), Answer> {
    if let Some(no) = unknown_token(asked, stage) {
        return Err(no);
    }
    let tag = match (asked.path.as_str(), asked.get("stream"), asked.get("tag")) {
        ("/api/v1/streaming", Some("public" | "public:local" | "public:remote"), _) => None,
        ("/api/v1/streaming", Some("hashtag"), Some(tag)) => Some(tag.to_string()),
        _ => return Err(Answer::json(404, &json!({"error": "Not found"}))),
    };
    let from = stage.published();
    match stage.fault() {
        Fault::Status(code, after) => Err(refused(code, after, stage)),
        fault => {
            // Half a message is no message of a WebSocket: the connection goes without a goodbye.
            let of_pieces = if let Fault::Half(after) = fault { Fault::HangUp(after) } else { fault };
            Ok((pieces(Arc::clone(stage), Frames(Events { tag }), from, of_pieces), fault))
        }
    }
}

pub(super) fn answer(asked: &Asked, stage: &Arc<Stage>) -> Answer {
    if let Some(no) = unknown_token(asked, stage) {
        return no;
    }
    if let Some(which) = asked.path.strip_prefix("/api/v1/streaming/") {
        let tag = asked.get("tag").map(str::to_string);
        let known = matches!(which, "public" | "public/local" | "public/remote") || which == "hashtag" && tag.is_some();
        if !known {
            return Answer::json(404, &json!({"error": "Not found"}));
        }
        let from = stage.published();
        return match stage.fault() {
            Fault::Status(code, after) => refused(code, after, stage),
            fault => Answer::stream("text/event-stream", pieces(Arc::clone(stage), Events { tag }, from, fault)),
        };
    }
    let Some(which) = asked.path.strip_prefix("/api/v1/timelines/") else {
        return Answer::json(404, &json!({"error": "Not found"}));
    };
    if let Some(code) = stage.refusal() {
        return refused(code, None, stage);
    }
    let events = Events { tag: which.strip_prefix("tag/").map(str::to_string) };
    let limit = asked.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(20).min(40);
    let after = asked.get("min_id").unwrap_or_default();
    let read = |record: &str| serde_json::from_str::<Value>(record).unwrap_or_default();
    let mut page: Vec<(&str, Value)> = stage
        .standing()
        .filter(|(_, post)| post.id != after && later(&post.id, after) == post.id)
        .map(|(_, post)| (post.id.as_str(), read(&post.record)))
        .filter(|(_, value)| events.has(value))
        .collect();
    page.sort_by(|(a, _), (b, _)| {
        if a == b {
            std::cmp::Ordering::Equal
        } else if later(a, b) == *a {
            std::cmp::Ordering::Greater
        } else {
            std::cmp::Ordering::Less
        }
    });
    // Right after the id, and the newest of these first.
    page.truncate(limit);
    Answer::json(200, &page.into_iter().rev().map(|(_, value)| value).collect())
}

fn refused(code: u16, after: Option<u64>, stage: &Stage) -> Answer {
    debug_assert_eq!(stage.plan.network, Network::Mastodon);
    let answer = Answer::json(code, &json!({"error": if code == 429 { "Too many requests" } else { "An error" }}));
    match after {
        Some(seconds) => {
            let reset = stage.plan.clock.now().plus(Duration::from_secs(seconds));
            answer.with("x-ratelimit-limit", &300).with("x-ratelimit-remaining", &0).with("x-ratelimit-reset", &reset)
        }
        None => answer,
    }
}
