//! Recent changes of Wikimedia's projects: an edit is the post, its comment the text.
//!
//! Invariant: an id is the event's `meta.id`, which is the same whenever the event is sent.

use super::{Author, Counts, Geo, Kind, Post, text::*};
use serde_json::Value;
use tidemill_core::Timestamp;

pub(super) fn read(value: &Value) -> Result<Post, String> {
    let id = filled(value, "meta/id").ok_or_else(|| missing("meta.id"))?;
    let user = filled(value, "user");
    let seconds = number(value, "timestamp").and_then(|s| s.checked_mul(1_000_000)).map(Timestamp);
    // `en` of `en.wikipedia.org`; projects without a language, such as `commons`, have none.
    let host = string(value, "server_name").unwrap_or_default();
    let lang = host.split_once('.').map(|(first, _)| first).filter(|first| {
        let wiki = at(value, "wiki").and_then(Value::as_str).unwrap_or_default();
        (2..=3).contains(&first.len()) && wiki.starts_with(&first.replace('-', "_"))
    });
    Ok(Post {
        id,
        kind: Kind::Post,
        created_at: instant(value, "meta/dt").or(seconds),
        author: Author { id: user.clone(), name: user, ..Author::default() },
        text: string(value, "comment"),
        lang: lang.map(str::to_string),
        hashtags: Vec::new(),
        mentions: Vec::new(),
        urls: filled(value, "meta/uri").into_iter().collect(),
        geo: Geo { point: None, place: filled(value, "wiki") },
        counts: Counts::default(),
    })
}
