//! Posts of Mastodon: a `Status` as it came, or the notice `{"event":"delete","payload":"<id>"}`.
//!
//! Invariant: of a boost the row is the boost (its id, who boosted, when) with the text of what was boosted.

use super::{Author, Counts, Geo, Kind, Post, text::*};
use serde_json::Value;

pub(super) fn read(value: &Value) -> Result<Post, String> {
    if value.get("event").and_then(Value::as_str) == Some("delete") {
        let id = id(value, "payload").ok_or_else(|| missing("payload"))?;
        return Ok(Post { id, kind: Kind::Delete, ..Post::default() });
    }
    let id = id(value, "id").ok_or_else(|| missing("id"))?;
    let said = at(value, "reblog").unwrap_or(value);
    let kind = if at(value, "edited_at").is_some() { Kind::Edit } else { Kind::Post };
    Ok(Post {
        id,
        kind,
        created_at: instant(value, "created_at"),
        author: Author {
            id: self::id(value, "account/id"),
            name: filled(value, "account/acct"),
            display: filled(value, "account/display_name"),
            followers: number(value, "account/followers_count"),
        },
        text: string(said, "content").map(|html| plain(&html)),
        lang: filled(said, "language"),
        hashtags: items(said, "tags").filter_map(|tag| filled(tag, "name")).collect(),
        mentions: items(said, "mentions").filter_map(|mention| filled(mention, "acct")).collect(),
        urls: links(said.get("content").and_then(Value::as_str).unwrap_or_default()),
        geo: Geo::default(),
        counts: Counts {
            replies: number(said, "replies_count"),
            reposts: number(said, "reblogs_count"),
            likes: number(said, "favourites_count"),
            quotes: number(said, "quotes_count"),
        },
    })
}

/// Where links lead that are neither tags nor names.
fn links(html: &str) -> Vec<String> {
    let anchors = html.split("<a ").skip(1).filter_map(|rest| rest.split('>').next());
    anchors
        .filter(|attributes| !attributes.contains("mention") && !attributes.contains("hashtag"))
        .filter_map(|attributes| attributes.split("href=\"").nth(1)?.split('"').next())
        .map(unescape)
        .collect()
}
