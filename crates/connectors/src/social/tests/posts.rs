//! One text, in the dress of each network, is one post; real frames and the documented examples too.

use super::*;
use crate::social::post::{Kind, Post, PostFormat, notices, schema};
use arrow_array::cast::AsArray;
use arrow_array::types::TimestampMicrosecondType;
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use tidemill_core::{Block, Format, Options};

#[test]
fn a_text_is_the_same_post_on_each_network() {
    for network in Network::ALL {
        let post = network.read(posts(network, 8)[7].record.as_bytes()).unwrap();
        let whole_seconds = network == Network::Weibo;
        let at = if whole_seconds { "2026-05-01T00:00:02.000Z" } else { "2026-05-01T00:00:02.331Z" };
        assert_eq!(post.created_at.unwrap().to_string(), at, "{network:?}");
        assert_eq!(post.kind, Kind::Post);
        let text = post.text.clone().unwrap();
        let tagged = if network == Network::Weibo {
            "tea & <cake> number 7 #tea# #n7# for @ada"
        } else {
            "tea & <cake> number 7 #tea #n7 for @ada"
        };
        assert_eq!(text, tagged, "{network:?}");
        assert_eq!(post.lang.as_deref(), Some("en"), "{network:?}");
        if network != Network::Wikimedia {
            assert_eq!(post.hashtags, ["tea", "n7"], "{network:?}");
            assert_eq!(post.mentions, ["ada"], "{network:?}");
        }
        if !matches!(network, Network::Bluesky | Network::Wikimedia) {
            assert_eq!((post.author.name.as_deref(), post.author.followers), (Some("a7"), Some(70)), "{network:?}");
            assert_eq!(post.counts.replies, Some(0), "{network:?}");
        }
        assert_eq!(post.id, wanted(network, 8)[7]);
    }
}

#[test]
fn records_that_are_no_posts_are_refused_with_their_field() {
    for network in Network::ALL {
        assert_eq!(network.read(b"[]").unwrap_err(), "byte 0: expected an object");
        assert!(network.read(b"{\"a\":").unwrap_err().starts_with("byte "), "{network:?}");
        assert!(network.read(b"{}").unwrap_err().starts_with("field \""), "{network:?}");
        assert!(network.read(b"\xff").unwrap_err().starts_with("byte "), "{network:?}");
    }
}

fn read(network: Network, record: &serde_json::Value) -> Post {
    network.read(record.to_string().as_bytes()).unwrap()
}

#[test]
fn notices_of_deletions_name_their_posts() {
    for network in [Network::Mastodon, Network::XV1, Network::Bluesky, Network::Weibo] {
        let id = wanted(network, 3).remove(2);
        let gone = network.read(Posted::deletion(network, &id, 9).record.as_bytes()).unwrap();
        assert_eq!((gone.id, gone.kind, gone.text), (id, Kind::Delete, None), "{network:?}");
    }
    let gone = serde_json::json!({"data": {"delete": {"event_at": "2026-05-01T00:00:00Z", "tweet": {"id": "7", "author_id": "8"}}}});
    assert_eq!(read(Network::X, &gone).kind, Kind::Delete);
    let gone = serde_json::json!({"created_at": "Tue May 31 17:46:55 +0800 2011", "id": 7, "text": "抱歉，此微博已被删除。", "deleted": 1});
    let gone = read(Network::Weibo, &gone);
    assert_eq!((gone.kind, gone.text), (Kind::Delete, None));
}

/// The ids that a record shows.
fn shown(network: Network, record: &str) -> Vec<String> {
    let mut ids = Vec::new();
    notices::of(network).unwrap().shown(record.as_bytes(), &mut |id| ids.push(id.to_string()));
    ids.dedup();
    ids
}

#[test]
fn what_a_record_shows_and_takes_back_has_the_ids_of_its_posts() {
    assert!(notices::of(Network::Wikimedia).is_none());
    for network in Network::ALL.into_iter().filter(|network| *network != Network::Wikimedia) {
        let reader = notices::of(network).unwrap();
        assert_eq!(reader.name(), format!("posts of {}", network.name()));
        for (post, id) in posts(network, 9).iter().zip(wanted(network, 9)) {
            assert_eq!(shown(network, &post.record), [id], "{network:?}");
            assert_eq!(reader.taken_back(post.record.as_bytes()), None);
        }
        let id = wanted(network, 3).remove(2);
        let gone = match network {
            Network::X => serde_json::json!({"data": {"delete": {"tweet": {"id": id, "author_id": "8"}}}}).to_string(),
            _ => Posted::deletion(network, &id, 9).record,
        };
        assert_eq!(reader.taken_back(gone.as_bytes()), Some(id.clone()), "{network:?}");
        // A notice of Weibo is the post without what it said.
        let own = if network == Network::Weibo { vec![id] } else { vec![] };
        assert_eq!(shown(network, &gone), own, "{network:?}");
        assert_eq!((shown(network, "{\"id\":"), reader.taken_back(b"{\"delete\":")), (vec![], None));
    }
    let talk = posts(Network::Mastodon, 1)[0].record.replace("<p>", "<p>delete ");
    assert_eq!(notices::of(Network::Mastodon).unwrap().taken_back(talk.as_bytes()), None, "a post about deleting");
}

#[test]
fn who_passes_a_post_on_or_quotes_it_shows_it() {
    let json = |value: serde_json::Value| value.to_string();
    let of = [
        (Network::Mastodon, json(serde_json::json!({"id": "1", "reblog": {"id": "2"}})), vec!["1", "2"]),
        (
            Network::Mastodon,
            json(
                serde_json::json!({"id": "1", "reblog": null, "quote": {"state": "accepted", "quoted_status": {"id": "2"}}}),
            ),
            vec!["1", "2"],
        ),
        (
            Network::XV1,
            json(serde_json::json!({"id": 1, "retweeted_status": {"id_str": "2", "quoted_status": {"id": 3}}})),
            vec!["1", "2", "3"],
        ),
        (
            Network::X,
            json(
                serde_json::json!({"data": {"id": "1"}, "includes": {"users": [{"id": "9"}], "tweets": [{"id": "2"}, {"id": "3"}]}}),
            ),
            vec!["1", "2", "3"],
        ),
        (
            Network::Weibo,
            json(serde_json::json!({"idstr": "1", "retweeted_status": {"id": 2}, "user": {"id": 7}})),
            vec!["1", "2"],
        ),
    ];
    for (network, record, ids) in of {
        assert_eq!(shown(network, &record), ids, "{network:?}");
    }
}

/// The status of Weibo's reference, and texts as they are written there.
#[test]
fn weibo_as_it_is_documented() {
    let post = read(
        Network::Weibo,
        &serde_json::json!({"created_at": "Tue May 31 17:46:55 +0800 2011", "id": 11488058246_u64,
            "text": "求关注。#春茶#和#两个 字# @阿茶: http://t.cn/aBc，", "geo": {"type": "Point", "coordinates": [39.9, 116.4]},
            "reposts_count": 8, "comments_count": 9, "user": {"id": 1404376560, "screen_name": "zaku", "followers_count": 1204}}),
    );
    assert_eq!((post.id.as_str(), post.counts.reposts, post.counts.replies), ("11488058246", Some(8), Some(9)));
    assert_eq!(post.created_at.unwrap().to_string(), "2011-05-31T09:46:55.000Z");
    assert_eq!(post.hashtags, ["春茶", "两个 字"]);
    assert_eq!((post.mentions, post.urls), (vec!["阿茶".to_string()], vec!["http://t.cn/aBc".to_string()]));
    assert_eq!(post.geo.point, Some((39.9, 116.4)));
    assert_eq!((post.author.id.as_deref(), post.author.name.as_deref()), (Some("1404376560"), Some("zaku")));
}

#[test]
fn mastodon_boosts_edits_and_links() {
    let said = serde_json::json!({"id": "1", "created_at": "2026-04-30T00:00:00Z", "language": "de", "edited_at": null, "tags": [{"name": "tee"}],
        "content": "<p>See <a href=\"https://a.example/?x=1&amp;y=2\" rel=\"nofollow\"><span class=\"invisible\">https://</span>a.example</a> <a href=\"https://m.example/tags/tee\" class=\"mention hashtag\">#<span>tee</span></a></p>"});
    let boost = serde_json::json!({"id": "2", "created_at": "2026-05-01T00:00:00Z", "reblog": said, "content": "",
        "account": {"id": "9", "acct": "ada@b.example", "display_name": ""}});
    let post = read(Network::Mastodon, &boost);
    assert_eq!(
        (post.id.as_str(), post.author.name.as_deref(), post.author.display),
        ("2", Some("ada@b.example"), None)
    );
    assert_eq!(post.text.as_deref(), Some("See https://a.example #tee"));
    assert_eq!(post.urls, ["https://a.example/?x=1&y=2"]);
    assert_eq!((post.hashtags, post.lang.as_deref()), (vec!["tee".to_string()], Some("de")));
    let mut edited = said;
    edited["edited_at"] = "2026-05-01T00:00:00Z".into();
    assert_eq!(read(Network::Mastodon, &edited).kind, Kind::Edit);
}

#[test]
fn x_places_edits_and_long_texts() {
    let v2 = serde_json::json!({"data": {"id": "1", "text": "a", "lang": "und", "author_id": "5", "edit_history_tweet_ids": ["0", "1"],
        "geo": {"place_id": "p1", "coordinates": {"type": "Point", "coordinates": [-122.4, 37.8]}},
        "entities": {"urls": [{"url": "https://t.co/x", "expanded_url": "https://a.example"}]}},
        "includes": {"users": [{"id": "6", "username": "wrong"}, {"id": "5", "username": "ada"}], "places": [{"id": "p1", "full_name": "San Francisco, CA"}]}});
    let post = read(Network::X, &v2);
    assert_eq!((post.kind, post.lang, post.author.name.as_deref()), (Kind::Edit, None, Some("ada")));
    assert_eq!((post.geo.point, post.geo.place.as_deref()), (Some((37.8, -122.4)), Some("San Francisco, CA")));
    assert_eq!(post.urls, ["https://a.example"]);
    let v1 = serde_json::json!({"id": 1, "text": "short…", "extended_tweet": {"full_text": "long &amp; whole", "entities": {"hashtags": [{"text": "t"}]}}});
    let post = read(Network::XV1, &v1);
    assert_eq!(
        (post.id.as_str(), post.text.as_deref(), post.hashtags),
        ("1", Some("long & whole"), vec!["t".to_string()])
    );
}

#[test]
fn bluesky_handles_stand_in_the_text() {
    let mut frame: serde_json::Value = serde_json::from_str(&posts(Network::Bluesky, 1)[0].record).unwrap();
    frame["commit"]["record"]["text"] = "🍵 @ada.example!".into();
    frame["commit"]["record"]["facets"] = serde_json::json!([
        {"index": {"byteStart": 5, "byteEnd": 17}, "features": [{"$type": "app.bsky.richtext.facet#mention", "did": "did:plc:x"}]},
        {"index": {"byteStart": 1, "byteEnd": 900}, "features": [{"did": "did:plc:y"}, {"uri": "https://a.example"}]}]);
    let post = read(Network::Bluesky, &frame);
    assert_eq!(post.mentions, ["ada.example", "did:plc:y"]);
    assert_eq!(post.urls, ["https://a.example"]);
}

fn format(pairs: &[(&str, &str)], columns: Option<Schema>) -> Result<PostFormat> {
    PostFormat::from_options(&Options::new("stream \"s\"", pairs.iter().copied()), columns.map(Arc::new))
}

#[test]
fn the_format_decodes_what_is_asked_for_and_refuses_the_rest() {
    let format = format(&[("connector", "mastodon"), ("format", "post")], None).unwrap();
    assert_eq!(format.schema(), schema());
    let records: Vec<Vec<u8>> = posts(Network::Mastodon, 3).iter().map(|p| p.record.clone().into_bytes()).collect();
    let block = Block::from_records([&records[0][..], b"no post", &records[1], b"{}", &records[2]]);
    let all: Vec<usize> = (0..schema().fields().len()).collect();
    let mut refused = Vec::new();
    let rows = format.decoder(&all).decode(&block, &mut refused).unwrap();
    assert_eq!(rows.num_rows(), 3);
    assert_eq!(refused.iter().map(|r| r.row).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(refused[1].reason, "field \"id\": missing, so it is no post");
    let text = |name: &str| rows.column_by_name(name).unwrap().as_string::<i32>().clone();
    assert_eq!(text("raw").value(1).as_bytes(), records[1]);
    assert_eq!((text("source").value(0), text("kind").value(2)), ("mastodon", "post"));
    let times = rows.column_by_name("created_at").unwrap().as_primitive::<TimestampMicrosecondType>();
    assert_eq!(times.value(1), 1_777_593_600_333_000);
    let tags = rows.column_by_name("hashtags").unwrap().as_list::<i32>().value(2);
    assert_eq!(tags.as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["tea", "n2"]);
    assert!(rows.column_by_name("geo").unwrap().is_null(0));
    let author = rows.column_by_name("author").unwrap().as_struct();
    assert_eq!(author.column_by_name("name").unwrap().as_string::<i32>().value(2), "a2");
    // No column at all: the rows are counted.
    let rows = format.decoder(&[]).decode(&block, &mut Vec::new()).unwrap();
    assert_eq!((rows.num_rows(), rows.num_columns()), (3, 0));
}

#[test]
fn declared_columns_are_some_of_them_in_forms_that_fit() {
    let declared = Schema::new(vec![
        Field::new("counts", DataType::Struct(vec![Field::new("likes", DataType::Int64, true)].into()), true),
        Field::new("text", DataType::Utf8View, false),
        Field::new("created_at", DataType::Timestamp(TimeUnit::Millisecond, None), true),
        Field::new("hashtags", DataType::List(Arc::new(Field::new("element", DataType::Utf8View, true))), true),
    ]);
    let format = format(&[("network", "mastodon"), ("connector", "files")], Some(declared.clone())).unwrap();
    let gone = Posted::deletion(Network::Mastodon, "7", 1).record;
    let block = Block::from_records([posts(Network::Mastodon, 1)[0].record.clone(), gone]);
    let mut refused = Vec::new();
    let rows = format.decoder(&[3, 2, 1, 0]).decode(&block, &mut refused).unwrap();
    assert_eq!(rows.num_rows(), 1);
    assert_eq!(rows.schema().field(3), declared.field(0));
    assert_eq!(rows.column(2).as_string_view().value(0), "tea & <cake> number 0 #tea #n0 for @ada");
    assert_eq!(refused[0].reason, "field \"text\": missing, and declared NOT NULL");

    let bad =
        |field: Field| self::format(&[("connector", "x")], Some(Schema::new(vec![field]))).unwrap_err().to_string();
    assert!(bad(Field::new("txt", DataType::Utf8, true)).contains("did you mean `text`?"));
    assert!(bad(Field::new("text", DataType::Int64, true)).contains("does not fit"));
    assert!(bad(Field::new("author", DataType::Utf8, true)).contains("does not fit"));
    let wrong = |pairs: &[(&str, &str)]| self::format(pairs, None).unwrap_err().to_string();
    assert!(wrong(&[("connector", "tcp")]).contains("set option `network`"));
    assert!(wrong(&[("network", "mastodn")]).contains("did you mean `mastodon`?"));
    assert!(format_of("x-search").is_ok() && format_of("x-sample").is_ok() && format_of("bluesky").is_ok());
}

fn format_of(connector: &str) -> Result<PostFormat> {
    format(&[("connector", connector)], None)
}
