//! The rules of the filtered stream, kept in step with the program's.
//!
//! Invariant: only rules with our tag are removed; a rule that is there already,
//! under whatever tag, is not added again (X refuses a second one of the same
//! text). Called before each connection.

use super::request;
use crate::social::{collect::Out, failure::Failure, secret::Place};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Bytes of an answer about rules at most: a thousand rules of a kilobyte, and room.
const MOST: usize = 4 << 20;
const PATH: &str = "/2/tweets/search/stream/rules";

#[derive(Debug, Clone)]
struct Rule {
    id: String,
    value: String,
    tag: String,
}

/// Brings the rules in step; the ids of those that are the program's.
pub(super) async fn sync(
    url: &str,
    token: &Place,
    wanted: &[String],
    tag: &str,
    out: &Out,
) -> Result<BTreeSet<String>, Failure> {
    let there = rules_of(&ask(url, token, None, out).await?);
    let outdated: Vec<&str> = there
        .iter()
        .filter(|rule| rule.tag == tag && !wanted.contains(&rule.value))
        .map(|rule| rule.id.as_str())
        .collect();
    if !outdated.is_empty() {
        let answer = ask(url, token, Some(json!({"delete": {"ids": outdated}})), out).await?;
        errors(&answer)?;
    }
    let mut ours: BTreeSet<String> =
        there.iter().filter(|rule| wanted.contains(&rule.value)).map(|rule| rule.id.clone()).collect();
    let missing: Vec<Value> = wanted
        .iter()
        .filter(|value| !there.iter().any(|rule| rule.value == **value))
        .map(|value| json!({"value": value, "tag": tag}))
        .collect();
    if !missing.is_empty() {
        let count = missing.len();
        let answer = ask(url, token, Some(json!({"add": missing})), out).await?;
        errors(&answer)?;
        let added = rules_of(&answer);
        if added.len() != count {
            return Err(Failure::Http(format!("of {count} new rules the server took {}", added.len())));
        }
        ours.extend(added.into_iter().map(|rule| rule.id));
    }
    let others = there.iter().filter(|rule| rule.tag != tag && !ours.contains(&rule.id)).count();
    if others > 0 {
        out.report(&format!(
            "{others} rules of other programs use these credentials; what only they match is passed over"
        ));
    }
    Ok(ours)
}

async fn ask(url: &str, token: &Place, body: Option<Value>, out: &Out) -> Result<Value, Failure> {
    let mut request = request(url, PATH, token)?;
    if let Some(body) = body {
        request = request.post("application/json", body.to_string());
    }
    let mut answer = out.link.send(&request).await?;
    let status = answer.status;
    // A rule that can't be is told in an answer of 400 too.
    if !status.is_success() && status.as_u16() != 400 {
        return Err(answer.refusal().await);
    }
    let text = answer.whole(MOST).await?;
    let value: Value = serde_json::from_slice(&text)
        .map_err(|e| Failure::Http(format!("the answer about rules ({status}) is not JSON: {e}")))?;
    if !status.is_success() {
        errors(&value)?;
        return Err(Failure::Denied(format!("the server answered {status} to the rules")));
    }
    Ok(value)
}

fn rules_of(answer: &Value) -> Vec<Rule> {
    let text = |rule: &Value, key: &str| rule.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    let rules = answer.get("data").and_then(Value::as_array).into_iter().flatten();
    rules.map(|rule| Rule { id: text(rule, "id"), value: text(rule, "value"), tag: text(rule, "tag") }).collect()
}

/// What the server has against a rule, which a human mends.
fn errors(answer: &Value) -> Result<(), Failure> {
    let Some(first) = answer.get("errors").and_then(Value::as_array).and_then(|errors| errors.first()) else {
        return Ok(());
    };
    let text = |key: &str| first.get(key).and_then(Value::as_str).unwrap_or_default();
    let details: Vec<&str> =
        first.get("details").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let why = format!("rule `{}`: {} {}", text("value"), text("title"), details.join("; "));
    Err(Failure::Fatal(tidemill_core::Error::user(why.trim_end().to_string())))
}
