//! Posts in the dress of a network: recorded ones as they are, plain texts as the network would send them.
//!
//! Invariant: what is made depends only on the text and its number; ids grow
//! with the number and hold the time, where the network's do. Texts have their
//! tags (`#tea`) and names (`@ada`) in the lists where the network has lists.

use crate::social::post::{Kind, Network};
use serde_json::{Value, json};
use tidemill_core::Timestamp;

/// The time of the first post that is made: 2026-05-01T00:00:00Z.
const BEGIN_MS: i64 = 1_777_593_600_000;
/// From one to the next.
const STEP_MS: i64 = 333;

/// A post, or a notice about one, as a network sends it.
#[derive(Debug, Clone)]
pub struct Posted {
    /// Its id.
    pub id: String,
    /// When it was written.
    pub at: Timestamp,
    /// The record.
    pub record: String,
    kind: Kind,
}

impl Posted {
    /// One of these lines: a record of the network, or another object without a member `text`, as it is; the text of
    /// another object, and any other line, in the network's dress.
    pub fn from_line(network: Network, line: &str, number: usize) -> Self {
        if let Ok(post) = network.read(line.as_bytes()) {
            let at = post.created_at.unwrap_or_else(|| time(number));
            return Self { id: post.id, at, record: line.to_string(), kind: post.kind };
        }
        let value: Option<Value> = serde_json::from_str(line).ok().filter(Value::is_object);
        match value.as_ref().map(|value| value.get("text").and_then(Value::as_str)) {
            None => Self::of_text(network, line, number),
            Some(Some(text)) => Self::of_text(network, text, number),
            // Something else that the network sends: an account's event, a warning.
            Some(None) => {
                let sent = value.as_ref().and_then(|value| value.get("time_us")).and_then(Value::as_i64).map(Timestamp);
                let (id, at) = (format!("line {number}"), sent.unwrap_or_else(|| time(number)));
                Self { id, at, record: line.to_string(), kind: Kind::Edit }
            }
        }
    }

    /// A text, number `number`.
    pub fn of_text(network: Network, text: &str, number: usize) -> Self {
        let at = time(number);
        let ms = at.millis();
        let low = number as u64 & 0xFFF;
        let tall = u64::try_from(ms).unwrap_or_default();
        let author = number % 50;
        let tags = after(text, '#');
        let names = after(text, '@');
        let (id, value) = match network {
            Network::Bluesky => {
                let (did, rkey) = (format!("did:plc:author{author}"), format!("3k{number:011}"));
                let id = format!("at://{did}/app.bsky.feed.post/{rkey}");
                let facets: Vec<Value> = marks(text)
                    .map(|(start, end)| {
                        let word = &text[start + 1..end];
                        let feature = if text[start..].starts_with('#') {
                            json!({"$type": "app.bsky.richtext.facet#tag", "tag": word})
                        } else {
                            json!({"$type": "app.bsky.richtext.facet#mention", "did": format!("did:plc:{word}")})
                        };
                        json!({"index": {"byteStart": start, "byteEnd": end}, "features": [feature]})
                    })
                    .collect();
                let value = json!({"did": did, "time_us": at.0, "kind": "commit", "commit": {
                    "rev": format!("r{number}"), "operation": "create", "collection": "app.bsky.feed.post", "rkey": rkey,
                    "record": {"$type": "app.bsky.feed.post", "createdAt": at.to_string(), "langs": ["en"], "text": text,
                        "facets": facets}, "cid": format!("c{number}")}});
                (id, value)
            }
            Network::Mastodon => {
                let id = (tall << 16 | low).to_string();
                let tags: Vec<Value> = tags
                    .iter()
                    .map(|tag| json!({"name": tag, "url": format!("https://m.example/tags/{tag}")}))
                    .collect();
                let names: Vec<Value> = names.iter().map(|name| json!({"id": "7", "username": name, "acct": name, "url": format!("https://m.example/@{name}")})).collect();
                let value = json!({"id": id, "created_at": at.to_string(), "in_reply_to_id": null, "sensitive": false,
                    "spoiler_text": "", "visibility": "public", "language": "en", "uri": format!("https://m.example/users/a{author}/statuses/{id}"),
                    "url": format!("https://m.example/@a{author}/{id}"), "replies_count": 0, "reblogs_count": 0, "favourites_count": 0,
                    "edited_at": null, "content": format!("<p>{}</p>", escape(text).replace('\n', "<br>")), "reblog": null,
                    "account": {"id": author.to_string(), "username": format!("a{author}"), "acct": format!("a{author}"),
                        "display_name": format!("Author {author}"), "followers_count": author * 10},
                    "media_attachments": [], "mentions": names, "tags": tags, "emojis": [], "card": null, "poll": null});
                (id, value)
            }
            Network::Wikimedia => {
                let id = format!("00000000-0000-4000-8000-{number:012}");
                let value = json!({"$schema": "/mediawiki/recentchange/1.0.0",
                    "meta": {"uri": format!("https://en.wikipedia.org/wiki/Page_{number}"), "id": id, "dt": at.to_string(),
                        "domain": "en.wikipedia.org", "stream": "mediawiki.recentchange", "topic": "eqiad.mediawiki.recentchange",
                        "partition": 0, "offset": number},
                    "id": number, "type": "edit", "namespace": 0, "title": format!("Page {number}"), "comment": text,
                    "timestamp": ms / 1000, "user": format!("a{author}"), "bot": false, "minor": false,
                    "server_name": "en.wikipedia.org", "wiki": "enwiki"});
                (id, value)
            }
            Network::X => {
                let id = (tall.saturating_sub(1_288_834_974_657) << 22 | low).to_string();
                let tags: Vec<Value> = tags.iter().map(|tag| json!({"tag": tag})).collect();
                let names: Vec<Value> = names.iter().map(|name| json!({"username": name})).collect();
                let value = json!({"data": {"id": id, "edit_history_tweet_ids": [id], "text": escape(text), "author_id": author.to_string(),
                        "created_at": at.to_string(), "lang": "en", "entities": {"hashtags": tags, "mentions": names},
                        "public_metrics": {"retweet_count": 0, "reply_count": 0, "like_count": 0, "quote_count": 0}},
                    "includes": {"users": [{"id": author.to_string(), "name": format!("Author {author}"),
                        "username": format!("a{author}"), "public_metrics": {"followers_count": author * 10}}]}});
                (id, value)
            }
            Network::XV1 => {
                let number_id = tall.saturating_sub(1_288_834_974_657) << 22 | low;
                let id = number_id.to_string();
                let tags: Vec<Value> = tags.iter().map(|tag| json!({"text": tag})).collect();
                let names: Vec<Value> = names.iter().map(|name| json!({"screen_name": name})).collect();
                let value = json!({"created_at": ruby(at), "id": number_id, "id_str": id, "text": escape(text), "truncated": false,
                    "user": {"id": author, "id_str": author.to_string(), "name": format!("Author {author}"),
                        "screen_name": format!("a{author}"), "followers_count": author * 10},
                    "geo": null, "coordinates": null, "place": null, "entities": {"hashtags": tags, "urls": [], "user_mentions": names},
                    "quote_count": 0, "reply_count": 0, "retweet_count": 0, "favorite_count": 0, "lang": "en", "timestamp_ms": ms.to_string()});
                (id, value)
            }
            Network::Weibo => {
                let number_id = 5_000_000_000_000_000_u64 + number as u64;
                let mut text = text.to_string();
                // A tag stands between two signs here.
                for tag in &tags {
                    text = text.replace(&format!("#{tag}"), &format!("#{tag}#"));
                }
                let value = json!({"created_at": ruby(at), "id": number_id, "idstr": number_id.to_string(), "text": text,
                    "source": "web", "favorited": false, "truncated": false, "geo": null, "reposts_count": 0, "comments_count": 0,
                    "attitudes_count": 0, "lang": "en",
                    "user": {"id": author, "idstr": author.to_string(), "screen_name": format!("a{author}"),
                        "name": format!("Author {author}"), "followers_count": author * 10}});
                (number_id.to_string(), value)
            }
        };
        Self { id, at, record: value.to_string(), kind: Kind::Post }
    }

    /// The notice that a post was deleted; where the network sends none, the post stays and this is empty.
    pub fn deletion(network: Network, id: &str, number: usize) -> Self {
        let at = time(number);
        let record = match network {
            Network::Mastodon => json!({"event": "delete", "payload": id}).to_string(),
            Network::XV1 => json!({"delete": {"status": {"id": id.parse::<u64>().unwrap_or_default(), "id_str": id, "user_id": 1, "user_id_str": "1"},
                "timestamp_ms": at.millis().to_string()}})
            .to_string(),
            Network::Bluesky => {
                let mut parts = id.trim_start_matches("at://").split('/');
                let mut next = || parts.next().unwrap_or_default();
                json!({"did": next(), "time_us": at.0, "kind": "commit",
                    "commit": {"rev": format!("r{number}"), "operation": "delete", "collection": next(), "rkey": next()}})
                .to_string()
            }
            Network::Weibo => json!({"created_at": ruby(at), "id": id.parse::<u64>().unwrap_or_default(), "idstr": id,
                "text": "抱歉，此微博已被作者删除。", "deleted": 1})
            .to_string(),
            Network::Wikimedia | Network::X => String::new(),
        };
        Self { id: id.to_string(), at, record, kind: Kind::Delete }
    }

    pub(super) fn is_delete(&self) -> bool {
        self.kind == Kind::Delete
    }

    pub(super) fn is_post(&self) -> bool {
        self.kind == Kind::Post
    }
}

fn time(number: usize) -> Timestamp {
    Timestamp::from_millis(BEGIN_MS + i64::try_from(number).unwrap_or_default() * STEP_MS)
}

/// `Fri May 01 00:00:00 +0000 2026`, in whole seconds.
fn ruby(at: Timestamp) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let iso = at.to_string();
    let day = usize::try_from(at.millis().div_euclid(86_400_000).rem_euclid(7)).unwrap_or_default();
    let month = iso[5..7].parse::<usize>().unwrap_or(1) - 1;
    format!("{} {} {} {} +0000 {}", DAYS[day % 7], MONTHS[month % 12], &iso[8..10], &iso[11..19], &iso[..4])
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// From each `#` or `@` at the beginning of a word to the word's end, in bytes.
fn marks(text: &str) -> impl Iterator<Item = (usize, usize)> {
    text.match_indices(['#', '@']).filter_map(|(start, _)| {
        let begins = text[..start].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '#' && c != '&');
        let word = &text[start + 1..];
        let length = word.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(word.len());
        (begins && length > 0).then_some((start, start + 1 + length))
    })
}

fn after(text: &str, mark: char) -> Vec<String> {
    marks(text)
        .filter(|(start, _)| text[*start..].starts_with(mark))
        .map(|(start, end)| text[start + 1..end].to_string())
        .collect()
}
