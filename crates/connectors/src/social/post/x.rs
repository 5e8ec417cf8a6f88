//! Posts of X, version 2: `{"data":{…},"includes":{"users":[…]},"matching_rules":[…]}`.
//!
//! Invariant: what `includes` has of the author is used, and its absence is no fault.

use super::{Author, Counts, Geo, Kind, Post, text::*};
use serde_json::Value;

pub(super) fn read(value: &Value) -> Result<Post, String> {
    // Compliance events: a notice about a post.
    if let Some(gone) = at(value, "data/delete").or_else(|| at(value, "delete")) {
        let id = id(gone, "tweet/id").ok_or_else(|| missing("delete.tweet.id"))?;
        let author = Author { id: self::id(gone, "tweet/author_id"), ..Author::default() };
        return Ok(Post { id, kind: Kind::Delete, created_at: instant(gone, "event_at"), author, ..Post::default() });
    }
    let post = at(value, "data").ok_or_else(|| missing("data"))?;
    let id = id(post, "id").ok_or_else(|| missing("data.id"))?;
    let author_id = self::id(post, "author_id");
    let user = items(value, "includes/users").find(|user| author_id.is_some() && self::id(user, "id") == author_id);
    let user = user.unwrap_or(&Value::Null);
    let place_id = filled(post, "geo/place_id");
    let place = items(value, "includes/places").find(|place| place_id.is_some() && filled(place, "id") == place_id);
    let edits = items(post, "edit_history_tweet_ids").count();
    let point = || {
        let coordinates = at(post, "geo/coordinates/coordinates")?.as_array()?;
        Some((coordinates.get(1)?.as_f64()?, coordinates.first()?.as_f64()?))
    };
    Ok(Post {
        id,
        // An edit is a post of its own, with its own id.
        kind: if edits > 1 { Kind::Edit } else { Kind::Post },
        created_at: instant(post, "created_at"),
        author: Author {
            name: filled(user, "username"),
            display: filled(user, "name"),
            followers: number(user, "public_metrics/followers_count"),
            id: author_id,
        },
        text: string(post, "text").map(|text| unescape(&text)),
        lang: filled(post, "lang").filter(|lang| lang != "und"),
        hashtags: items(post, "entities/hashtags").filter_map(|tag| filled(tag, "tag")).collect(),
        mentions: items(post, "entities/mentions").filter_map(|mention| filled(mention, "username")).collect(),
        urls: items(post, "entities/urls")
            .filter_map(|url| filled(url, "expanded_url").or_else(|| filled(url, "url")))
            .collect(),
        geo: Geo { point: point(), place: place.and_then(|place| filled(place, "full_name")).or(place_id) },
        counts: Counts {
            replies: number(post, "public_metrics/reply_count"),
            reposts: number(post, "public_metrics/retweet_count"),
            likes: number(post, "public_metrics/like_count"),
            quotes: number(post, "public_metrics/quote_count"),
        },
    })
}
