//! Posts of Bluesky: events of Jetstream about the collection `app.bsky.feed.post`.
//!
//! Invariant: an id is the post's address, `at://<did>/<collection>/<rkey>`, the same for its edits and its deletion.

use super::{Author, Counts, Geo, Kind, Post, text::*};
use serde_json::Value;
use tidemill_core::Timestamp;

pub(super) fn read(value: &Value) -> Result<Post, String> {
    let did = filled(value, "did").ok_or_else(|| missing("did"))?;
    let collection = filled(value, "commit/collection").ok_or_else(|| missing("commit.collection"))?;
    let rkey = filled(value, "commit/rkey").ok_or_else(|| missing("commit.rkey"))?;
    let kind = match at(value, "commit/operation").and_then(Value::as_str) {
        Some("create") => Kind::Post,
        Some("update") => Kind::Edit,
        Some("delete") => Kind::Delete,
        _ => return Err(missing("commit.operation")),
    };
    let empty = Value::Null;
    let record = at(value, "commit/record").unwrap_or(&empty);
    let text = string(record, "text");
    let features = || items(record, "facets").flat_map(|facet| items(facet, "features"));
    // Facets count in bytes of UTF-8; what is named stands in the text, so the handle is read from there.
    let named = |facet: &Value| -> Option<String> {
        let place = |key| usize::try_from(number(facet, key)?).ok();
        let slice = text.as_deref()?.get(place("index/byteStart")?..place("index/byteEnd")?)?;
        slice.strip_prefix('@').map(str::to_string)
    };
    let mentions = items(record, "facets")
        .filter_map(|facet| {
            let did = items(facet, "features").find_map(|feature| filled(feature, "did"))?;
            named(facet).or(Some(did))
        })
        .collect();
    let sent = number(value, "time_us").map(Timestamp);
    Ok(Post {
        id: format!("at://{did}/{collection}/{rkey}"),
        kind,
        // The author's clock says when; of a notice, the server's.
        created_at: instant(record, "createdAt").or(sent),
        author: Author { id: Some(did), ..Author::default() },
        lang: items(record, "langs").find_map(Value::as_str).map(str::to_string),
        hashtags: features().filter_map(|feature| filled(feature, "tag")).collect(),
        mentions,
        urls: features().filter_map(|feature| filled(feature, "uri")).collect(),
        geo: Geo::default(),
        counts: Counts::default(),
        text,
    })
}
