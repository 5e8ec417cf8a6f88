//! Posts of X, version 1.1: a tweet, or the notice `{"delete":{"status":{…}}}`.
//!
//! Invariant: ids are the texts `id_str`; the numbers are too large for some readers, and are taken only without them.

use super::{Author, Counts, Geo, Kind, Post, text::*};
use serde_json::Value;
use tidemill_core::Timestamp;

pub(super) fn read(value: &Value) -> Result<Post, String> {
    if let Some(gone) = at(value, "delete/status") {
        let id = filled(gone, "id_str").or_else(|| id(gone, "id")).ok_or_else(|| missing("delete.status.id_str"))?;
        let author = filled(gone, "user_id_str").or_else(|| self::id(gone, "user_id"));
        let sent = string(value, "delete/timestamp_ms").and_then(|ms| ms.parse().ok()).map(Timestamp::from_millis);
        let author = Author { id: author, ..Author::default() };
        return Ok(Post { id, kind: Kind::Delete, created_at: sent, author, ..Post::default() });
    }
    let id = filled(value, "id_str").or_else(|| id(value, "id")).ok_or_else(|| missing("id_str"))?;
    // Long texts stand in a member of their own.
    let long = at(value, "extended_tweet").unwrap_or(value);
    let text = string(long, "full_text").or_else(|| string(value, "full_text")).or_else(|| string(value, "text"));
    let empty = Value::Null;
    let listed = at(long, "entities").unwrap_or(&empty);
    let entities = |list| items(listed, list);
    let point = || {
        let coordinates = at(value, "coordinates/coordinates")?.as_array()?;
        Some((coordinates.get(1)?.as_f64()?, coordinates.first()?.as_f64()?))
    };
    let millis = string(value, "timestamp_ms").and_then(|ms| ms.parse().ok()).map(Timestamp::from_millis);
    Ok(Post {
        id,
        kind: Kind::Post,
        created_at: millis.or_else(|| instant(value, "created_at")),
        author: Author {
            id: filled(value, "user/id_str").or_else(|| self::id(value, "user/id")),
            name: filled(value, "user/screen_name"),
            display: filled(value, "user/name"),
            followers: number(value, "user/followers_count"),
        },
        text: text.map(|text| unescape(&text)),
        lang: filled(value, "lang").filter(|lang| lang != "und"),
        hashtags: entities("hashtags").filter_map(|tag| filled(tag, "text")).collect(),
        mentions: entities("user_mentions").filter_map(|mention| filled(mention, "screen_name")).collect(),
        urls: entities("urls").filter_map(|url| filled(url, "expanded_url").or_else(|| filled(url, "url"))).collect(),
        geo: Geo { point: point(), place: filled(value, "place/full_name") },
        counts: Counts {
            replies: number(value, "reply_count"),
            reposts: number(value, "retweet_count"),
            likes: number(value, "favorite_count"),
            quotes: number(value, "quote_count"),
        },
    })
}
