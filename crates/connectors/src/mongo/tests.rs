//! The sink and the history against the server that `TIDEMILL_MONGODB` names: `ci/services up` starts one.
//! Without it they are skipped, and fail if `TIDEMILL_SERVICES=required`.

mod faults;

use super::*;
use crate::{
    contract::{check_cut_off, check_sink, rows, stage},
    replay::Line,
};
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Float64Array, Int16Array, Int64Array, ListArray, RecordBatch,
    StringArray, StructArray, TimestampNanosecondArray, UInt32Array,
    builder::{MapBuilder, StringBuilder},
    types::Int64Type,
};
use arrow_schema::{DataType, Field, Schema};
use futures::StreamExt;
use mongodb::bson::{Bson, DateTime, Document, doc};
use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
};
use tidemill_core::{BatchId, Blame, Guarantee, Options, Sink, Timestamp};

/// A sink into a collection of the same name in database `db`, with its rows aside in `dir`.
fn sink(url: &str, collection: &str, more: &[(&str, &str)], dir: &Path) -> Arc<dyn Sink> {
    let options = Options::new("sink", [("url", url), ("collection", collection)].iter().chain(more).copied());
    let sink = MongoSink::from_options(&options).unwrap();
    options.finish().unwrap();
    sink.place("p/out", dir);
    Arc::new(sink)
}

async fn server(collections: &[&str]) -> Option<String> {
    let url = probe::server("sink")?;
    probe::forget(&url, collections).await;
    Some(url)
}

/// The words of documents, sorted.
fn words(documents: &[String]) -> Vec<String> {
    let word = |line: &String| {
        let document: serde_json::Value = serde_json::from_str(line).unwrap();
        format!("{}|{}", document["n"], document["word"].as_str().unwrap())
    };
    let mut words: Vec<String> = documents.iter().map(word).collect();
    words.sort();
    words
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_a_sink() {
    let Some(url) = server(&["plain", "keyed"]).await else { return };
    for (name, key) in [("plain", ""), ("keyed", "n")] {
        let dir = tempfile::tempdir().unwrap();
        let open = || sink(&url, name, &[("key", key)], dir.path());
        assert_eq!(open().guarantee(), Guarantee::ExactlyOnce);
        let seen = || {
            let documents = probe::documents(&url, name);
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(documents))
        };
        check_sink(open, seen).await;
        let all = probe::documents(&url, name).await;
        assert_eq!(words(&all), ["1|word-1", "2|word-2", "3|word-3", "4|word-4", "5|word-5"]);
        let first = if key.is_empty() { "\"000000000001-00000-000000000\"" } else { "1" };
        assert_eq!(all[0], format!("{{\"_id\":{first},\"n\":1,\"word\":\"word-1\",\"_batch\":1}}"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing staged is left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_may_end_anywhere() {
    let Some(url) = server(&["ends", "ends-by-key"]).await else { return };
    for (name, key) in [("ends", ""), ("ends-by-key", "n")] {
        let dir = tempfile::tempdir().unwrap();
        let seen = || {
            let documents = probe::documents(&url, name);
            let all = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(documents));
            words(&all).iter().map(|word| word.split_once('|').unwrap().0.parse().unwrap()).collect()
        };
        check_cut_off(|| sink(&url, name, &[("key", key)], dir.path()), seen, 2).await;
    }
}

#[tokio::test]
async fn every_kind_of_column_is_written() {
    let Some(url) = server(&["kinds"]).await else { return };
    let times = TimestampNanosecondArray::from(vec![Some(-1_500_000), None]).with_timezone("Asia/Shanghai");
    let list = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None]);
    let place = StructArray::from(vec![(
        Arc::new(Field::new("town", DataType::Utf8, true)),
        Arc::new(StringArray::from(vec![Some("潮州"), None])) as ArrayRef,
    )]);
    let mut map = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    map.keys().append_value("en");
    map.values().append_value("tide");
    map.append(true).unwrap();
    map.append(false).unwrap();
    let columns: [(&str, ArrayRef); 11] = [
        ("i", Arc::new(Int16Array::from(vec![Some(-7), None]))),
        ("u", Arc::new(UInt32Array::from(vec![Some(u32::MAX), None]))),
        ("x", Arc::new(Float64Array::from(vec![Some(0.5), None]))),
        ("t", Arc::new(StringArray::from(vec![Some("tab\there \"潮\""), Some("second")]))),
        ("b", Arc::new(BooleanArray::from(vec![Some(true), None]))),
        ("raw", Arc::new(BinaryArray::from_opt_vec(vec![Some(b"ebb"), None]))),
        ("at", Arc::new(times)),
        ("day", Arc::new(Date32Array::from(vec![Some(1), None]))),
        ("list", Arc::new(list)),
        ("place", Arc::new(place)),
        ("map", Arc::new(map.finish())),
    ];
    let all = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let sink = sink(&url, "kinds", &[("key", "t"), ("batch_field", "by")], dir.path());
    sink.open(all.schema()).await.unwrap();
    let part = stage(&*sink, 4, 0, vec![all]).await.unwrap();
    sink.commit(BatchId(4), &[part]).await.unwrap();
    let want = [
        r#"{"_id":"second","t":"second","place":{},"by":4}"#,
        r#"{"_id":"tab\there \"潮\"","i":-7,"u":4294967295,"x":0.5,"t":"tab\there \"潮\"","b":true,"raw":"ZWJi","at":"1969-12-31T23:59:59.998Z","day":"1970-01-02T00:00:00.000Z","list":[1,null],"place":{"town":"潮州"},"map":{"en":"tide"},"by":4}"#,
    ];
    assert_eq!(probe::documents(&url, "kinds").await, want);
    // Dates are dates, and not texts.
    let typed =
        probe::command(&url, doc! { "count": "kinds", "query": { "at": { "$lt": DateTime::from_millis(0) } } }).await;
    assert_eq!(number(&typed, "n"), 1);
}

fn number(document: &Document, key: &str) -> i64 {
    let of = |n: &Bson| n.as_i64().or(n.as_i32().map(i64::from)).or_else(|| format!("{:.0}", n.as_f64()?).parse().ok());
    document.get(key).and_then(of).unwrap()
}

#[tokio::test]
async fn the_last_row_of_a_key_counts_and_a_later_batch_is_not_written_over() {
    let Some(url) = server(&["last"]).await else { return };
    let dir = tempfile::tempdir().unwrap();
    let sink = sink(&url, "last", &[("key", "word, kind")], dir.path());
    let row = |n: i64, word: &str| {
        let columns: [(&str, ArrayRef); 3] = [
            ("word", Arc::new(StringArray::from(vec![word]))),
            ("kind", Arc::new(StringArray::from(vec!["k"]))),
            ("n", Arc::new(Int64Array::from(vec![n]))),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    };
    sink.open(row(0, "").schema()).await.unwrap();
    let parts = [
        stage(&*sink, 5, 0, vec![row(1, "a"), row(2, "b"), row(3, "a")]).await.unwrap(),
        stage(&*sink, 5, 1, vec![row(4, "b"), row(5, "c")]).await.unwrap(),
    ];
    // As if a command of batch 6 had been written already, which one of batch 5 must not undo when it comes late.
    let later = doc! { "_id": { "word": "c", "kind": "k" }, "word": "c", "kind": "k", "n": 99_i64, "_batch": 6_i64 };
    probe::insert(&url, "last", vec![later]).await;
    sink.commit(BatchId(5), &parts).await.unwrap();
    assert_eq!(words(&probe::documents(&url, "last").await), ["3|a", "4|b", "99|c"]);
    // A row without a key can't be told from others.
    let columns: [(&str, ArrayRef, bool); 3] = [
        ("word", Arc::new(StringArray::from(vec![None::<&str>])), true),
        ("kind", Arc::new(StringArray::from(vec!["k"])), true),
        ("n", Arc::new(Int64Array::from(vec![1])), true),
    ];
    let null = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let keyed = self::sink(&url, "last", &[("key", "word, kind")], &dir.path().join("null"));
    keyed.open(null.schema()).await.unwrap();
    let part = stage(&*keyed, 7, 0, vec![null]).await.unwrap();
    let error = keyed.commit(BatchId(7), &[part]).await.unwrap_err();
    assert!(error.to_string().contains("column `word` of option `key` is null"), "{error}");
}

#[tokio::test]
async fn a_commit_that_was_cut_off_is_made_whole() {
    let Some(url) = server(&["cut", "cut-by-key"]).await else { return };
    // What is added goes in commands of ten thousand, upserts here in those of thirty.
    for (name, key, count) in [("cut", "", 10_500), ("cut-by-key", "n", 200)] {
        let dir = tempfile::tempdir().unwrap();
        let first = sink(&url, name, &[("key", key)], dir.path());
        first.open(rows([]).schema()).await.unwrap();
        let part = stage(&*first, 1, 0, vec![rows(0..count)]).await.unwrap();
        // Some of it was written, in a life that ended before the mark.
        let id = |n: i64| {
            if key.is_empty() {
                doc! { "_id": format!("000000000001-00000-{n:09}") }
            } else {
                doc! { "_id": n }
            }
        };
        let written = (0..count / 2).map(|n| {
            let mut document = id(n);
            document.extend(doc! { "n": n, "word": format!("word-{n}"), "_batch": 1_i64 });
            document
        });
        probe::insert(&url, name, written.collect()).await;
        drop(first);
        let second = sink(&url, name, &[("key", key)], dir.path());
        second.open(rows([]).schema()).await.unwrap();
        second.commit(BatchId(1), std::slice::from_ref(&part)).await.unwrap();
        second.recover(Some(BatchId(1))).await.unwrap();
        let all = words(&probe::documents(&url, name).await);
        let distinct = all.iter().collect::<BTreeSet<_>>().len();
        assert_eq!((all.len() as i64, distinct as i64), (count, count));
        // The mark alone says that it is whole: with the rows gone, and without it, nobody guesses.
        second.commit(BatchId(1), std::slice::from_ref(&part)).await.unwrap();
        probe::command(&url, doc! { "delete": "tidemill_batches", "deletes": [{ "q": { "_id": name }, "limit": 1 }] })
            .await;
        let error = second.commit(BatchId(1), &[part]).await.unwrap_err();
        assert!(error.to_string().contains("neither aside nor noted"), "{error}");
    }
}

#[tokio::test]
async fn a_collection_that_is_ahead_is_written_again_by_key_or_refused_and_a_rewind_removes() {
    let Some(url) = server(&["ahead", "ahead-by-key"]).await else { return };
    for (name, key) in [("ahead", ""), ("ahead-by-key", "word")] {
        let dir = tempfile::tempdir().unwrap();
        let open = async || {
            let sink = sink(&url, name, &[("key", key)], dir.path());
            sink.open(rows([]).schema()).await.unwrap();
            sink
        };
        let write = async |sink: &dyn Sink, batch: u64, n: i64| {
            let part = stage(sink, batch, 0, vec![rows([n])]).await.unwrap();
            sink.commit(BatchId(batch), std::slice::from_ref(&part)).await.unwrap();
            part
        };
        let first = open().await;
        let first_part = write(&*first, 1, 1).await;
        for batch in 2..=4 {
            write(&*first, batch, i64::try_from(batch).unwrap()).await;
        }
        // A rewind to 3: what is added to gives back, what is keyed stays.
        let rewound = open().await;
        assert_eq!(rewound.undoes().is_some(), key.is_empty());
        rewound.undo(BatchId(3), BatchId(4)).await.unwrap();
        rewound.undo(BatchId(3), BatchId(4)).await.unwrap();
        rewound.recover(Some(BatchId(3))).await.unwrap();
        let left = probe::documents(&url, name).await.len();
        assert_eq!(left, if key.is_empty() { 3 } else { 4 });
        write(&*rewound, 5, 5).await;
        assert_eq!(probe::documents(&url, name).await.len(), left + 1);
        // Restored from a backup at batch 1.
        let restored = open().await;
        let recovered = restored.recover(Some(BatchId(1))).await;
        if key.is_empty() {
            let error = recovered.unwrap_err().to_string();
            assert!(error.contains("up to batch 5, and the program is at batch 1"), "{error}");
            // What it says to do, and the start after that, which repeats batch 1.
            let told = [
                r#"db.getCollection("ahead").deleteMany({"_batch": {$gt: 1}})"#,
                r#"db.tidemill_batches.updateOne({_id: "ahead"}, {$set: {batch: 1}}, {upsert: true})"#,
            ];
            assert!(error.contains(&told.join("; ")), "{error}");
            let (beyond, of) = (doc! { "_batch": { "$gt": 1 } }, doc! { "_id": "ahead" });
            probe::command(&url, doc! { "delete": "ahead", "deletes": [{ "q": beyond, "limit": 0 }] }).await;
            let set = doc! { "q": of, "u": { "$set": { "batch": 1 } }, "upsert": true };
            probe::command(&url, doc! { "update": "tidemill_batches", "updates": [set] }).await;
        } else {
            recovered.unwrap();
        }
        let restored = open().await;
        restored.commit(BatchId(1), std::slice::from_ref(&first_part)).await.unwrap();
        restored.recover(Some(BatchId(1))).await.unwrap();
        write(&*restored, 2, 5).await;
        let all = probe::documents(&url, name).await;
        assert_eq!(all.len(), if key.is_empty() { 2 } else { left + 1 });
        assert!(all.iter().any(|line| line.contains("word-5") && line.contains("\"_batch\":2")), "{all:?}");
    }
}

#[tokio::test]
async fn documents_of_a_batch_that_the_ledger_does_not_know_are_told() {
    let Some(url) = server(&["unknown"]).await else { return };
    let dir = tempfile::tempdir().unwrap();
    let sink = sink(&url, "unknown", &[], dir.path());
    sink.open(rows([]).schema()).await.unwrap();
    let part = stage(&*sink, 1, 0, vec![rows([1])]).await.unwrap();
    sink.commit(BatchId(1), std::slice::from_ref(&part)).await.unwrap();
    // Others have documents there as well, under ids of their own.
    let document = |id: &str| doc! { "_id": id, "n": 7, "_batch": 2_i64 };
    probe::insert(&url, "unknown", vec![document("others"), document("")]).await;
    sink.recover(Some(BatchId(1))).await.unwrap();
    // Of batch 2 a part was written, without the mark, and then the ledger lost it.
    probe::insert(&url, "unknown", vec![document("000000000002-00000-000000000")]).await;
    let error = sink.recover(Some(BatchId(1))).await.unwrap_err().to_string();
    assert!(error.contains("up to batch 2, and the program is at batch 1"), "{error}");
}

#[tokio::test]
async fn indexes_are_made_and_what_they_refuse_is_told() {
    let Some(url) = server(&["indexed"]).await else { return };
    let dir = tempfile::tempdir().unwrap();
    let options = [("indexes", "n desc, word; unique word")];
    let open = async || {
        let sink = sink(&url, "indexed", &options, dir.path());
        sink.open(rows([]).schema()).await.unwrap();
        sink
    };
    let first = open().await;
    let _again = open().await;
    let listed = probe::command(&url, doc! { "listIndexes": "indexed" }).await;
    let listed = listed.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
    let names: BTreeSet<&str> =
        listed.iter().map(|index| index.as_document().unwrap().get_str("name").unwrap()).collect();
    assert_eq!(names, ["_id_", "n_-1_word_1", "word_1"].into());
    // Another row of the same word is no repetition.
    let part = stage(&*first, 1, 0, vec![rows([1, 2, 1])]).await.unwrap();
    let error = first.commit(BatchId(1), &[part]).await.unwrap_err();
    assert_eq!(error.blame(), Blame::User, "{}", error.chain());
    assert!(error.to_string().contains("a unique index refuses it"), "{error}");
}

#[tokio::test]
async fn documents_go_by_their_time() {
    // Another server: that of the other tests has no time to live.
    let Some(url) = probe::server_of("TIDEMILL_MONGODB_TTL", "sink") else { return };
    probe::forget(&url, &["ttl"]).await;
    let at = arrow_array::TimestampMicrosecondArray::from(vec![1]).with_timezone("UTC");
    let columns: [(&str, ArrayRef); 1] = [("at", Arc::new(at))];
    let schema = RecordBatch::try_from_iter(columns).unwrap().schema();
    let dir = tempfile::tempdir().unwrap();
    let open = |ttl: &str| sink(&url, "ttl", &[("ttl", ttl), ("ttl_field", "at")], dir.path());
    open("30d").open(Arc::clone(&schema)).await.unwrap();
    let listed = probe::command(&url, doc! { "listIndexes": "ttl" }).await;
    let listed = listed.get_document("cursor").unwrap().get_array("firstBatch").unwrap();
    let seconds: Vec<i64> = listed
        .iter()
        .filter_map(|index| index.as_document().filter(|index| index.contains_key("expireAfterSeconds")))
        .map(|index| number(index, "expireAfterSeconds"))
        .collect();
    assert_eq!(seconds, [30 * 86_400]);
}

#[tokio::test]
async fn a_server_that_is_not_there_may_come_back() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("mongodb://{free}/x?serverSelectionTimeoutMS=200");
    let dir = tempfile::tempdir().unwrap();
    tokio::time::pause();
    let error = sink(&url, "c", &[], dir.path()).open(rows([]).schema()).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("can't reach the server"), "{}", error.chain());
}

#[tokio::test]
async fn a_server_that_lets_nobody_in_needs_a_human() {
    let denied = |_: &Document| Some(doc! { "ok": 0, "code": 18, "errmsg": "Authentication failed." });
    let url = tail::fake::serve(Arc::new(denied)).await.replace("mongodb://", "mongodb://me@");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "hunter2\n").unwrap();
    let sink = sink(&url, "c", &[("password_file", file.to_str().unwrap())], dir.path());
    let error = sink.open(rows([]).schema()).await.unwrap_err();
    let text = error.chain();
    assert!(error.blame() == Blame::User && text.contains("check the user") && !text.contains("hunter2"), "{text}");
}

#[test]
fn slips_are_told_without_a_server() {
    let told = |options: &[(&str, &str)], schema: &Schema| {
        let base = [("url", "mongodb://localhost/x")];
        let options = Options::new("sink \"out\"", base.iter().chain(options).copied());
        let sink = MongoSink::from_options(&options).and_then(|sink| options.finish().map(|()| sink));
        sink.and_then(|sink| sink.takes(&Arc::new(schema.clone()))).unwrap_err().to_string()
    };
    let schema = |name: &str, ty| Schema::new(vec![Field::new(name, ty, true), Field::new("m", DataType::Int64, true)]);
    let fine = schema("n", DataType::Int64);
    let list = DataType::List(Arc::new(Field::new("item", DataType::Int64, true)));
    for (options, schema, want) in [
        (&[][..], &fine, "option `collection` is missing"),
        (&[("collection", "tidemill_x")], &fine, "can't be a collection's name"),
        (&[("collection", "a$b")], &fine, "can't be a collection's name"),
        (&[("collection", "c"), ("keys", "n")], &fine, "did you mean `key`?"),
        (&[("collection", "c"), ("key", "x")], &fine, "the rows have no column `x`; there are n, m"),
        (&[("collection", "c"), ("indexes", "x")], &fine, "option `indexes`: the rows have no column `x`"),
        (&[("collection", "c"), ("key", "n")], &schema("n", list), "which is no key"),
        (&[("collection", "c")], &schema("n", DataType::UInt64), "CAST it"),
        (&[("collection", "c")], &schema("n", DataType::Decimal128(9, 2)), "CAST it"),
        (&[("collection", "c")], &schema("$n", DataType::Int64), "can't be called `$n`"),
        (&[("collection", "c")], &schema("a.b", DataType::Int64), "can't be called `a.b`"),
        (&[("collection", "c")], &schema("_batch", DataType::Int64), "can't be called `_batch`"),
        (&[("collection", "c")], &schema("_id", DataType::Int64), "set option `key` to _id"),
    ] {
        let told = told(options, schema);
        assert!(told.contains(want), "{told}");
    }
    let dir = Path::new("x");
    let sink = sink("mongodb://localhost/x", "c", &[("key", "n,m")], dir);
    assert_eq!(sink.describe(), "mongodb localhost/x (collection c, upsert by n, m)");
    let other = self::sink("mongodb://127.0.0.1:27017/x?tls=false", "c", &[], dir);
    assert!(sink.claim().unwrap().clashes(&other.claim().unwrap()));
}

#[tokio::test]
async fn posts_that_were_deleted_are_not_played() {
    let Some(url) = server(&["gone"]).await else { return };
    let index = doc! { "key": { "created_at": 1 }, "name": "by-time" };
    probe::command(&url, doc! { "createIndexes": "gone", "indexes": [index] }).await;
    let post = |id: &str, kind: &str, source: &str, at: i64| {
        doc! { "id": id, "kind": kind, "source": source, "created_at": DateTime::from_millis(at), "text": format!("{source} {id}") }
    };
    let mut all: Vec<_> = (0..9).map(|n| post(&n.to_string(), "post", "mastodon", 1000 + n)).collect();
    all.push(post("3", "post", "x-v1", 1009));
    all.push(post("5", "delete", "x-v1", 1010));
    all.push(post("7", "delete", "mastodon", 90_000));
    // Of some networks a notice has no time.
    all.push(doc! { "id": "3", "kind": "delete", "source": "mastodon" });
    probe::insert(&url, "gone", all).await;
    let span = Span { from: Some(Timestamp::from_millis(1002)), to: Some(Timestamp::from_millis(1010)) };
    let history = MongoHistory::new(&format!("{url}.gone"), "created_at", span).unwrap();
    let lines = history.field(Some("text".to_string())).recording().await.unwrap();
    let texts: Vec<String> =
        lines().map(|line| String::from_utf8(line.unwrap().bytes.to_vec()).unwrap()).collect().await;
    let want = ["mastodon 2", "mastodon 4", "mastodon 5", "mastodon 6", "mastodon 8", "x-v1 3"];
    assert_eq!(texts, want);
    probe::forget(&url, &["gone"]).await;
}

/// The lines of a history, with their times.
async fn played(url: &str, collection: &str, time: &str, span: Span) -> Vec<Line> {
    let history = MongoHistory::new(&format!("{url}.{collection}"), time, span).unwrap();
    history.recording().await.unwrap()().map(|line| line.unwrap()).collect().await
}

#[tokio::test]
async fn a_history_is_played_by_its_times() {
    let Some(url) = server(&["posts"]).await else { return };
    const POSTS: i64 = 7000;
    // In another order than that of their times, several at one time.
    let post = |n: i64| {
        let n = n * 3677 % POSTS;
        let at = 1000 + n / 3;
        doc! { "_id": n, "created_at": DateTime::from_millis(at), "text": format!("post {n}"), "ms": at, "iso": Timestamp::from_millis(at).to_string() }
    };
    probe::insert(&url, "posts", (0..POSTS).map(post).collect()).await;
    let local = "2026-01-31T15:00:00+09:00";
    probe::insert(&url, "posts", vec![doc! { "_id": "untimed", "text": "x", "local": local }]).await;
    let none = MongoHistory::new(&format!("{url}.posts"), "created_at", Span::default()).unwrap().recording().await;
    let error = none.map(drop).unwrap_err().to_string();
    assert!(error.contains("db.posts.createIndex({\"created_at\": 1})"), "{error}");
    for time in ["created_at", "ms", "iso"] {
        let index = doc! { "key": { time: 1 }, "name": format!("by-{time}") };
        probe::command(&url, doc! { "createIndexes": "posts", "indexes": [index] }).await;
        let all = played(&url, "posts", time, Span::default()).await;
        assert!(all.is_sorted_by_key(|line| line.at), "{time}");
        let ids = |lines: &[Line]| -> Vec<i64> {
            let id = |line: &Line| serde_json::from_slice::<serde_json::Value>(&line.bytes).unwrap()["_id"].as_i64();
            lines.iter().map(|line| id(line).unwrap()).collect()
        };
        let mut seen = ids(&all);
        seen.sort_unstable();
        assert_eq!(seen, (0..POSTS).collect::<Vec<_>>(), "{time}: each once");
        assert_eq!(all[0].at, Some(Timestamp::from_millis(1000)));
        let span = Span { from: Some(Timestamp::from_millis(1500)), to: Some(Timestamp::from_millis(1502)) };
        let mut some = ids(&played(&url, "posts", time, span).await);
        some.sort_unstable();
        assert_eq!(some, (1500..1506).collect::<Vec<_>>(), "{time}");
    }
    let history = MongoHistory::new(&format!("{url}.posts"), "created_at", Span::default()).unwrap();
    let texts = history.field(Some("text".to_string())).recording().await.unwrap();
    let first = texts().next().await.unwrap().unwrap();
    assert!(first.bytes.starts_with(b"post ") && first.bytes.len() == 6, "{first:?}");
    for (time, field, want) in [
        ("at", None, "no document has a time in `at`"),
        ("text", None, "`text` holds no time"),
        ("local", None, "whose order is not that of their times"),
        ("ms", Some("ms"), "is no text"),
    ] {
        let history = MongoHistory::new(&format!("{url}.posts"), time, Span::default()).unwrap();
        let error = history.field(field.map(str::to_string)).recording().await.map(drop).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

/// Post `n` of a history; two have one time.
fn post(n: i64) -> Document {
    let text = "the tide comes in and goes out, twice a day, and a little later each day than the day before";
    doc! { "_id": n, "created_at": DateTime::from_millis(n / 2), "lang": "en", "author": n % 9973, "text": text }
}

/// Posts a second, of a history that is played as fast as it is taken; each of `posts` once, in order.
async fn full_speed(url: &str, posts: i64) -> f64 {
    let history = MongoHistory::new(&format!("{url}.million"), "created_at", Span::default()).unwrap();
    let mut lines = history.recording().await.unwrap()();
    let (begun, mut next) = (std::time::Instant::now(), 0);
    let mut pair = BTreeSet::new();
    while let Some(line) = lines.next().await {
        let line = line.unwrap();
        let id = serde_json::from_slice::<serde_json::Value>(&line.bytes).unwrap()["_id"].as_i64().unwrap();
        assert_eq!(line.at, Some(Timestamp::from_millis(id / 2)));
        // Two have one time, in the order that the server gives.
        assert!(id / 2 == next / 2 && pair.insert(id), "{id} after {next} others");
        next += 1;
        if next % 2 == 0 {
            pair.clear();
        }
    }
    assert_eq!(next, posts, "each post once");
    posts as f64 / begun.elapsed().as_secs_f64()
}

/// A server that makes its posts as they are asked for.
async fn quick(posts: i64) -> String {
    let given = AtomicI64::new(0);
    let answer = move |command: &Document| {
        let cursor = |id: i64, batch: &str, documents: Vec<Document>| {
            Some(doc! { "ok": 1, "cursor": { "id": id, "ns": "db.million", batch: documents } })
        };
        let batch = || {
            let from = given.fetch_add(2000, Relaxed);
            let to = posts.min(from + 2000);
            (i64::from(to < posts), (from..to).map(post).collect())
        };
        match command.keys().next().unwrap().as_str() {
            "listIndexes" => {
                let by_time = doc! { "v": 2, "key": { "created_at": 1 }, "name": "by-time" };
                cursor(0, "firstBatch", vec![by_time])
            }
            "find" if command.contains_key("sort") => {
                let (id, documents) = batch();
                cursor(id, "firstBatch", documents)
            }
            "find" => cursor(0, "firstBatch", vec![post(0)]),
            "getMore" => {
                let (id, documents) = batch();
                cursor(id, "nextBatch", documents)
            }
            _ => None,
        }
    };
    tail::fake::serve(Arc::new(answer)).await
}

/// `cargo test --release -p tidemill-connectors --features mongodb -- --ignored --nocapture a_stored_history`: a
/// million posts, or as many as `POSTS` says, played as fast as they are taken: from the server of the tests, beside
/// what the driver alone reads from it, and from one that is no bound. The last line is JSON.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a million documents take minutes to store"]
async fn a_stored_history_is_played_at_full_speed() {
    let Some(url) = server(&["million"]).await else { return };
    let posts: i64 = std::env::var("POSTS").ok().and_then(|posts| posts.parse().ok()).unwrap_or(1_000_000);
    let index = doc! { "key": { "created_at": 1 }, "name": "by-time" };
    probe::command(&url, doc! { "createIndexes": "million", "indexes": [index] }).await;
    for from in (0..posts).step_by(10_000) {
        probe::insert(&url, "million", (from..posts.min(from + 10_000)).map(post).collect()).await;
    }
    let ours = full_speed(&url, posts).await;
    let begun = std::time::Instant::now();
    assert_eq!(i64::try_from(probe::scan(&url, "million", doc! { "created_at": 1 }).await), Ok(posts));
    let bare = posts as f64 / begun.elapsed().as_secs_f64();
    let quick = full_speed(&quick(posts).await, posts).await;
    println!(
        r#"{{"job":"replay-mongodb","posts":{posts},"per_s":{ours:.0},"driver_per_s":{bare:.0},"ratio":{:.2},"quick_server_per_s":{quick:.0},"exact":true}}"#,
        ours / bare
    );
    probe::forget(&url, &["million"]).await;
}
