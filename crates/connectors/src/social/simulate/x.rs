//! Version 2 of X's API: the filtered stream with its rules, the sample stream, the recent search.
//!
//! Invariant: a rule matches a post that has all its words (operators such as
//! `lang:en` match everything); a post that no rule matches is not sent.

use super::{
    Fault, Stage,
    feed::{Script, pieces},
    serve::{Answer, Asked},
};
use crate::{format::time::instant, social::seen::later};
use hyper::Method;
use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The rules of the credential.
#[derive(Debug, Default)]
pub(super) struct Rules(Mutex<Vec<Rule>>);

#[derive(Debug, Clone)]
struct Rule {
    id: String,
    value: String,
    tag: String,
}

impl Rules {
    fn all(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rule {
    fn json(&self) -> Value {
        json!({"id": self.id, "value": self.value, "tag": self.tag})
    }
}

fn matches(rule: &str, text: &str) -> bool {
    let text = text.to_lowercase();
    rule.to_lowercase().split(" or ").any(|part| {
        let words = part.split_whitespace().map(|word| word.trim_matches(['(', ')', '"']));
        words.filter(|word| !word.contains(':') && !word.is_empty()).all(|word| text.contains(word))
    })
}

impl Stage {
    /// Puts a rule that another program has set.
    pub fn rule(&self, id: &str, value: &str, tag: &str) {
        let rule = Rule { id: id.to_string(), value: value.to_string(), tag: tag.to_string() };
        self.rules.all().push(rule);
    }

    /// The texts of the rules.
    pub fn rules(&self) -> Vec<String> {
        self.rules.all().iter().map(|rule| rule.value.clone()).collect()
    }
}

struct Lines {
    filtered: bool,
}

impl Script for Lines {
    fn render(&self, stage: &Stage, n: usize) -> Option<String> {
        let post = &stage.plan.posts[n];
        if !self.filtered {
            return Some(format!("{}\r\n", post.record));
        }
        let mut value: Value = serde_json::from_str(&post.record).unwrap_or_default();
        let text = value["data"]["text"].as_str().unwrap_or_default().to_string();
        let rules = stage.rules.all();
        let matching: Vec<Value> = rules
            .iter()
            .filter(|rule| matches(&rule.value, &text))
            .map(|rule| json!({"id": rule.id, "tag": rule.tag}))
            .collect();
        if matching.is_empty() {
            return None;
        }
        value["matching_rules"] = matching.into();
        Some(format!("{value}\r\n"))
    }

    fn keep_alive(&self) -> (&'static str, Duration) {
        ("\r\n", Duration::from_secs(20))
    }

    fn disconnect(&self) -> Option<String> {
        let error = json!({"errors": [{"title": "operational-disconnect", "disconnect_type": "UpstreamOperationalDisconnect",
            "detail": "This stream has been disconnected upstream for operational reasons.",
            "type": "https://api.x.com/2/problems/operational-disconnect"}]});
        Some(format!("{error}\r\n"))
    }

    fn garbage(&self) -> String {
        "{\"data\":{\"id\":\r\n".to_string()
    }
}

fn problem(code: u16, title: &str, detail: &str) -> Answer {
    Answer::json(code, &json!({"title": title, "detail": detail, "type": "about:blank", "status": code}))
}

pub(super) fn refused(code: u16, after: Option<u64>, stage: &Stage) -> Answer {
    let answer = match code {
        429 => problem(429, "Too Many Requests", "Too Many Requests"),
        _ => problem(code, "refused", "refused"),
    };
    match after {
        Some(seconds) => {
            let reset = stage.plan.clock.now().plus(Duration::from_secs(seconds)).millis().div_euclid(1000);
            answer.with("x-rate-limit-limit", &50).with("x-rate-limit-remaining", &0).with("x-rate-limit-reset", &reset)
        }
        None => answer,
    }
}

pub(super) fn answer(asked: &Asked, stage: &Arc<Stage>) -> Answer {
    let tokens = &stage.plan.tokens;
    if !tokens.is_empty() && !tokens.iter().any(|token| Some(token.expose()) == asked.bearer()) {
        return problem(401, "Unauthorized", "Unauthorized");
    }
    let streamed = match asked.path.as_str() {
        "/2/tweets/search/stream" => Some(true),
        "/2/tweets/sample/stream" => Some(false),
        _ => None,
    };
    if let Some(filtered) = streamed {
        let from = stage.published();
        return match stage.fault() {
            Fault::Status(code, after) => refused(code, after, stage),
            fault => Answer::stream("application/json", pieces(Arc::clone(stage), Lines { filtered }, from, fault)),
        };
    }
    if let Some(code) = stage.refusal() {
        return refused(code, None, stage);
    }
    match asked.path.as_str() {
        "/2/tweets/search/stream/rules" if asked.method == Method::POST => change_rules(asked, stage),
        "/2/tweets/search/stream/rules" => {
            let all: Vec<Value> = stage.rules.all().iter().map(Rule::json).collect();
            let mut answer = json!({"meta": {"result_count": all.len()}});
            if !all.is_empty() {
                answer["data"] = all.into();
            }
            Answer::json(200, &answer)
        }
        "/2/tweets/search/recent" => search(asked, stage),
        _ => problem(404, "Not Found", "Not Found"),
    }
}

fn change_rules(asked: &Asked, stage: &Stage) -> Answer {
    let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
    let mut rules = stage.rules.all();
    if let Some(ids) = body["delete"]["ids"].as_array() {
        let before = rules.len();
        rules.retain(|rule| !ids.iter().any(|id| id.as_str() == Some(&rule.id)));
        let deleted = before - rules.len();
        return Answer::json(
            200,
            &json!({"meta": {"summary": {"deleted": deleted, "not_deleted": ids.len() - deleted}}}),
        );
    }
    let (mut added, mut errors) = (Vec::new(), Vec::new());
    for wanted in body["add"].as_array().into_iter().flatten() {
        let text = |key: &str| wanted[key].as_str().unwrap_or_default().to_string();
        let value = text("value");
        if value.matches('(').count() != value.matches(')').count() {
            errors.push(json!({"value": value, "title": "UnprocessableEntity", "details": ["missing EOF at ')' (at position 1)"],
                "type": "https://api.x.com/2/problems/invalid-rules"}));
        } else if rules.iter().any(|rule| rule.value == value) {
            errors.push(json!({"value": value, "title": "DuplicateRule", "type": "https://api.x.com/2/problems/duplicate-rules"}));
        } else {
            let rule = Rule { id: (1_000 + rules.len() + added.len() * 7).to_string(), value, tag: text("tag") };
            added.push(rule.json());
            rules.push(rule);
        }
    }
    let summary =
        json!({"created": added.len(), "not_created": errors.len(), "valid": added.len(), "invalid": errors.len()});
    let status = if added.is_empty() { 400 } else { 201 };
    let mut answer = json!({"meta": {"summary": summary}});
    if !added.is_empty() {
        answer["data"] = added.into();
    }
    if !errors.is_empty() {
        answer["errors"] = errors.into();
    }
    Answer::json(status, &answer)
}

fn search(asked: &Asked, stage: &Stage) -> Answer {
    let query = asked.get("query").unwrap_or_default();
    let limit = asked.get("max_results").and_then(|n| n.parse().ok()).unwrap_or(10).clamp(10, 100);
    let after = |id: &str, other: &str| id != other && later(id, other) == id;
    let begin = asked.get("start_time").and_then(instant).unwrap_or(i64::MIN);
    let mut found: Vec<(&str, Value)> = stage
        .standing()
        .filter(|(_, post)| post.at.0 >= begin)
        .filter(|(_, post)| asked.get("since_id").is_none_or(|since| after(&post.id, since)))
        .filter(|(_, post)| asked.get("until_id").is_none_or(|until| after(until, &post.id)))
        .map(|(_, post)| (post.id.as_str(), serde_json::from_str(&post.record).unwrap_or_default()))
        .filter(|(_, value): &(_, Value)| matches(query, value["data"]["text"].as_str().unwrap_or_default()))
        .collect();
    found.reverse();
    let more = found.len() > limit;
    found.truncate(limit);
    let mut meta = json!({"result_count": found.len()});
    if let (Some((newest, _)), Some((oldest, _))) = (found.first(), found.last()) {
        meta["newest_id"] = (*newest).into();
        meta["oldest_id"] = (*oldest).into();
    }
    if more {
        meta["next_token"] = "b26v89c19zqg8o3f".into();
    }
    let mut answer = json!({"meta": meta});
    if !found.is_empty() {
        let mut users: Vec<&Value> =
            found.iter().flat_map(|(_, value)| value["includes"]["users"].as_array()).flatten().collect();
        users.sort_by_key(|user| user["id"].as_str().map(str::to_string));
        users.dedup();
        answer["includes"] = json!({"users": users});
        answer["data"] = found.iter().map(|(_, value)| value["data"].clone()).collect();
    }
    Answer::json(200, &answer)
}
