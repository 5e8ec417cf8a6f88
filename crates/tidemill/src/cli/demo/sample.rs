//! The demo's sample: real tweets as JSON lines that are stamped when sent.
//!
//! Invariant: every line is one JSON object `{"id", "text", "created_at"}`,
//! with the text as its writer saw it (the file has `&`, `<` and `>` escaped
//! for HTML). The sample and its licence stand in `data/`.

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use std::sync::Arc;
use tidemill::{connectors::replay::Recording, core::Clock, engine::SystemClock};

/// Tweets of the ground truth of VADER (MIT, © 2014 C.J. Hutto): id, mean sentiment, text.
const TWEETS: &str = include_str!("../../../data/vader-tweets-groundtruth.tsv");

/// The tweets without end, each stamped with the time at which it is taken.
pub(crate) fn recording() -> Recording {
    let heads: Arc<[String]> = TWEETS.lines().filter_map(head).collect();
    Arc::new(move || {
        let (heads, count) = (Arc::clone(&heads), heads.len());
        let line = move |i: usize| Ok(Bytes::from(format!("{}{}\"}}", heads[i], SystemClock.now())).into());
        stream::iter((0..count).map(line)).boxed()
    })
}

/// The tweets' texts, as their writers saw them.
pub(crate) fn texts() -> impl Iterator<Item = String> {
    TWEETS.lines().filter_map(|row| row.splitn(3, '\t').nth(2)).map(|text| unescape(text.trim()))
}

/// A tweet's line up to its time: `{"id":1,"text":"…","created_at":"`.
fn head(row: &str) -> Option<String> {
    let mut columns = row.splitn(3, '\t');
    let (id, _sentiment, text) = (columns.next()?.parse::<u64>().ok()?, columns.next()?, columns.next()?);
    let text = serde_json::Value::from(unescape(text.trim()));
    Some(format!("{{\"id\":{id},\"text\":{text},\"created_at\":\""))
}

/// Undoes the HTML escapes that the sample has, once.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        let escapes = [("&amp;", '&'), ("&lt;", '<'), ("&gt;", '>'), ("&quot;", '"'), ("&#39;", '\'')];
        let (escape, char) = escapes.into_iter().find(|(e, _)| rest.starts_with(e)).unwrap_or(("&", '&'));
        plain.push(char);
        rest = &rest[escape.len()..];
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn escapes_are_undone_once() {
        assert_eq!(unescape("a &lt;3 b &amp;amp; c & d &"), "a <3 b &amp; c & d &");
    }

    #[test]
    fn every_tweet_is_a_line_of_json_with_its_time() {
        let before = SystemClock.now().to_string();
        let lines: Vec<Bytes> =
            recording()().map(|line| line.unwrap().bytes).collect::<Vec<_>>().now_or_never().unwrap();
        assert_eq!(lines.len(), 4200);
        for line in &lines {
            let value: serde_json::Value = serde_json::from_slice(line).unwrap();
            assert!(value["id"].is_u64() && value["text"].is_string(), "{value}");
            assert!(value["created_at"].as_str().unwrap() >= before.as_str(), "{value}");
            assert!(!line.contains(&b'\n'));
        }
        let text = String::from_utf8_lossy(&lines[2]);
        assert!(text.contains("last night & the love"), "{text}");
    }
}
