//! Weibo: the public timeline with tokens that may ask so often an hour.
//!
//! Invariant: each question of the timeline is counted against its token, and refused with 10023 when nothing is left.

use super::{
    Fault, Posted, Stage,
    serve::{Answer, Asked},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tidemill_core::Timestamp;

const HOUR_US: i64 = 3_600_000_000;

/// Questions of each token in its hour.
#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<BTreeMap<String, (Timestamp, u64)>>);

fn complaint(code: u16, error_code: u64, error: &str, asked: &Asked) -> Answer {
    Answer::json(code, &json!({"request": asked.path, "error_code": error_code, "error": error}))
}

/// The posts that are published; a notice stands in the place of a post that was deleted.
fn listed(stage: &Stage) -> impl Iterator<Item = &Posted> {
    let posts = &stage.plan.posts[..stage.published()];
    let gone: BTreeMap<&str, &Posted> =
        posts.iter().filter(|post| post.is_delete()).map(|post| (post.id.as_str(), post)).collect();
    posts.iter().filter(|post| post.is_post()).map(move |post| gone.get(post.id.as_str()).copied().unwrap_or(post))
}

pub(super) fn answer(asked: &Asked, stage: &Arc<Stage>) -> Answer {
    let token = asked.get("access_token").unwrap_or_default();
    if !stage.plan.tokens.is_empty() && !stage.plan.tokens.iter().any(|known| known.expose() == token) {
        return complaint(400, 21_332, "invalid_access_token", asked);
    }
    let mut counts = stage.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
    let now = stage.plan.clock.now();
    let hour = now.floor(HOUR_US);
    let count = counts.entry(token.to_string()).or_insert((hour, 0));
    if count.0 != hour {
        *count = (hour, 0);
    }
    match asked.path.as_str() {
        "/2/account/rate_limit_status.json" => {
            let reset = hour.plus(std::time::Duration::from_secs(3600)).since(now).as_secs();
            let left = stage.plan.limit.saturating_sub(count.1);
            Answer::json(
                200,
                &json!({"ip_limit": 10_000, "limit_time_unit": "HOURS", "remaining_ip_hits": 10_000,
                "remaining_user_hits": left, "reset_time_in_seconds": reset, "user_limit": stage.plan.limit}),
            )
        }
        "/2/statuses/public_timeline.json" => {
            let fault = stage.fault();
            if let Fault::Status(code, after) = fault {
                let answer = complaint(code, 10_001, "system error", asked);
                return match after {
                    Some(seconds) => answer.with("retry-after", &seconds),
                    None => answer,
                };
            }
            if count.1 >= stage.plan.limit {
                return complaint(403, 10_023, "User requests out of rate limit!", asked);
            }
            count.1 += 1;
            let most = asked.get("count").and_then(|n| n.parse().ok()).unwrap_or(20).min(200);
            let mut all: Vec<Value> =
                listed(stage).map(|post| serde_json::from_str(&post.record).unwrap_or_default()).collect();
            all.reverse();
            all.truncate(most);
            let text = json!({"statuses": all, "total_number": all.len()}).to_string();
            match fault {
                // Half an answer, which says that it is whole.
                Fault::Half(_) | Fault::Garbage(_) => {
                    Answer::text(200, "application/json", text.chars().take(text.len() / 2).collect())
                }
                _ => Answer::text(200, "application/json", text),
            }
        }
        _ => complaint(404, 10_020, "Request Api not found!", asked),
    }
}
