//! Posts of Weibo: a status of the public timeline.
//!
//! Invariant: tags, names and links are what the text has of them, as the network sends no lists: `#tag#`, `@name`, `http…`.

use super::{Author, Counts, Geo, Kind, Post, text::*};
use serde_json::Value;

pub(super) fn read(value: &Value) -> Result<Post, String> {
    let id = filled(value, "idstr").or_else(|| id(value, "id")).ok_or_else(|| missing("id"))?;
    // A post that its author took away is still listed, without what it said.
    let gone = number(value, "deleted") == Some(1);
    let text = string(value, "text").filter(|_| !gone);
    let said = text.as_deref().unwrap_or_default();
    let point = || {
        let coordinates = at(value, "geo/coordinates")?.as_array()?;
        Some((coordinates.first()?.as_f64()?, coordinates.get(1)?.as_f64()?))
    };
    Ok(Post {
        id,
        kind: if gone { Kind::Delete } else { Kind::Post },
        created_at: instant(value, "created_at"),
        author: Author {
            id: filled(value, "user/idstr").or_else(|| self::id(value, "user/id")),
            name: filled(value, "user/screen_name"),
            display: filled(value, "user/name"),
            followers: number(value, "user/followers_count"),
        },
        lang: filled(value, "lang"),
        hashtags: tags(said),
        mentions: words(said, '@', |c| c.is_alphanumeric() || c == '_' || c == '-'),
        urls: links(said),
        geo: Geo { point: point(), place: None },
        counts: Counts {
            replies: number(value, "comments_count"),
            reposts: number(value, "reposts_count"),
            likes: number(value, "attitudes_count"),
            quotes: None,
        },
        text,
    })
}

/// What stands between two `#` on a line.
fn tags(text: &str) -> Vec<String> {
    let mut tags = Vec::new();
    for line in text.lines() {
        let parts: Vec<&str> = line.split('#').collect();
        // The last part has no `#` behind it.
        let closed = parts.len().saturating_sub(1);
        tags.extend(
            parts[..closed].iter().skip(1).step_by(2).filter(|t| !t.trim().is_empty()).map(ToString::to_string),
        );
    }
    tags
}

/// What follows each `mark`, as long as it is part of a word.
fn words(text: &str, mark: char, part: fn(char) -> bool) -> Vec<String> {
    let after = text.split(mark).skip(1);
    after.filter_map(|rest| rest.split(|c| !part(c)).next()).filter(|w| !w.is_empty()).map(str::to_string).collect()
}

fn links(text: &str) -> Vec<String> {
    let starts = text.match_indices("http").map(|(at, _)| &text[at..]);
    starts
        .filter(|rest| rest.starts_with("http://") || rest.starts_with("https://"))
        .filter_map(|rest| rest.split(|c: char| !c.is_ascii_graphic()).next())
        .map(str::to_string)
        .collect()
}
