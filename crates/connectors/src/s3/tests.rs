//! The sink against the S3 server that `TIDEMILL_S3` names: `ci/services up` starts one.
//! Without it they are skipped, and fail if `TIDEMILL_SERVICES=required`.

mod faults;

use super::{
    probe::{objects, rows_of, server},
    *,
};
use crate::contract::{check_cut_off, check_sink, rows, stage};
use arrow_array::{ArrayRef, Int64Array, StringArray};
use std::sync::Arc;

fn sink(endpoint: &str, url: &str, more: &[(&str, &str)], dir: &Path) -> S3Sink {
    let options = [("url", url), ("endpoint", endpoint)];
    let options = Options::new("sink \"out\"", options.iter().chain(more).copied());
    let sink = S3Sink::from_options(&options).unwrap();
    options.finish().unwrap();
    Sink::place(&sink, "p/out", dir);
    sink
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_a_sink() {
    let Some(endpoint) = server("contract").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let open = || Arc::new(sink(&endpoint, "s3://contract/out/words", &[], dir.path())) as Arc<dyn Sink>;
    assert_eq!(open().guarantee(), Guarantee::ExactlyOnce);
    let seen = || {
        let objects = objects(&endpoint, "contract");
        rows_of(&tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(objects)))
    };
    check_sink(open, seen).await;
    let line = |batch: u8, part: u8, n: u8| {
        format!("out/words/batch-00000000000{batch}-part-0000{part}.parquet {{\"n\":{n},\"word\":\"word-{n}\"}}")
    };
    assert_eq!(seen(), [line(1, 0, 1), line(1, 0, 2), line(1, 0, 3), line(1, 1, 4), line(2, 0, 5)]);
    let all = objects(&endpoint, "contract").await;
    assert_eq!(all["out/words/_tidemill.json"], b"{\"batch\":2}");
    assert_eq!(all.len(), 4, "nothing else is there: {:?}", all.keys());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing staged is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_may_end_anywhere() {
    let Some(endpoint) = server("ends").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let open = || Arc::new(sink(&endpoint, "s3://ends/x", &[], dir.path())) as Arc<dyn Sink>;
    let seen = || {
        let objects = objects(&endpoint, "ends");
        let all = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(objects));
        rows_of(&all)
            .iter()
            .map(|line| line.rsplit_once("word-").unwrap().1.trim_end_matches("\"}").parse().unwrap())
            .collect()
    };
    check_cut_off(open, seen, 2).await;
}

#[tokio::test]
async fn rows_are_dealt_out_and_a_commit_that_was_cut_off_is_made_whole() {
    let Some(endpoint) = server("dealt").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let columns: [(&str, ArrayRef); 2] = [
        ("lang", Arc::new(StringArray::from(vec![Some("en"), Some("a/b c"), Some("en"), None]))),
        ("n", Arc::new(Int64Array::from(vec![1, 2, 3, 4]))),
    ];
    let all = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap();
    let open = async || {
        let sink = sink(&endpoint, "s3://dealt", &[("partition_by", "lang"), ("format", "json")], dir.path());
        sink.open(all.schema()).await.unwrap();
        sink
    };
    let first = open().await;
    let part = stage(&first, 3, 0, vec![all.clone()]).await.unwrap();
    // One object was written, half a second before the machine stopped.
    let parts = Part::parse(std::slice::from_ref(&part)).unwrap();
    let encoded = first.encoded(BatchId(3), 0, &first.aside.read(BatchId(3), &parts[0]).await.unwrap()).unwrap();
    assert_eq!(encoded.len(), 3);
    first.at.store.put(&first.key(&encoded[1].0).unwrap(), PutPayload::from(encoded[1].1.clone())).await.unwrap();
    let second = open().await;
    second.commit(BatchId(3), std::slice::from_ref(&part)).await.unwrap();
    let name = "batch-000000000003-part-00000.json";
    let want = [
        ("_tidemill.json".to_string(), "{\"batch\":3}"),
        (format!("lang=__HIVE_DEFAULT_PARTITION__/{name}"), "{\"n\":4}\n"),
        (format!("lang=a%2Fb c/{name}"), "{\"n\":2}\n"),
        (format!("lang=en/{name}"), "{\"n\":1}\n{\"n\":3}\n"),
    ];
    let mut stored = second.at.store.list(None).map_ok(|object| object.location).try_collect::<Vec<_>>().await.unwrap();
    stored.sort();
    let mut seen = Vec::new();
    for key in stored {
        let bytes = second.at.store.get(&key).await.unwrap().bytes().await.unwrap();
        seen.push((key.to_string(), String::from_utf8(bytes.to_vec()).unwrap()));
    }
    assert_eq!(seen, want.map(|(key, text)| (key, text.to_string())));
    // With the rows gone, and without the mark, nobody guesses.
    second.commit(BatchId(3), std::slice::from_ref(&part)).await.unwrap();
    second.at.store.delete(&second.key(MARK).unwrap()).await.unwrap();
    let error = second.commit(BatchId(3), &[part]).await.unwrap_err();
    assert!(error.to_string().contains("neither aside nor noted"), "{error}");
}

#[tokio::test]
async fn a_rewind_moves_objects_aside_and_a_bucket_that_is_ahead_is_refused() {
    let Some(endpoint) = server("ahead").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let open = async || {
        let sink = sink(&endpoint, "s3://ahead/x", &[], dir.path());
        sink.open(rows([]).schema()).await.unwrap();
        sink
    };
    let first = open().await;
    for batch in 1..=4_u64 {
        let part = stage(&first, batch, 0, vec![rows([i64::try_from(batch).unwrap()])]).await.unwrap();
        first.commit(BatchId(batch), &[part]).await.unwrap();
    }
    let error = open().await.recover(Some(BatchId(2))).await.unwrap_err().to_string();
    assert!(error.contains("objects of batches up to 4") && error.contains("rewind --to 2 --upto 4"), "{error}");
    let error = open().await.recover(None).await.unwrap_err().to_string();
    assert!(error.contains("committed none"), "{error}");
    let rewound = open().await;
    rewound.undo(BatchId(2), BatchId(4)).await.unwrap();
    rewound.undo(BatchId(2), BatchId(4)).await.unwrap();
    rewound.recover(Some(BatchId(2))).await.unwrap();
    let all = objects(&endpoint, "ahead").await;
    let name = |batch: u8| format!("batch-00000000000{batch}-part-00000.parquet");
    let want = [
        "x/_tidemill.json".to_string(),
        format!("x/_undone/2-4/{}", name(3)),
        format!("x/_undone/2-4/{}", name(4)),
        format!("x/{}", name(1)),
        format!("x/{}", name(2)),
    ];
    assert_eq!(all.keys().cloned().collect::<Vec<_>>(), want);
    assert_eq!(all["x/_tidemill.json"], b"{\"batch\":2}");
}

#[tokio::test]
async fn objects_that_the_ledger_does_not_know_are_told_and_the_way_out_leads_on() {
    let Some(endpoint) = server("unknown").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let open = async || {
        let sink = sink(&endpoint, "s3://unknown/x", &[], dir.path());
        sink.open(rows([]).schema()).await.unwrap();
        sink
    };
    let first = open().await;
    let mut parts = Vec::new();
    for batch in 1..=2_u64 {
        let part = stage(&first, batch, 0, vec![rows([i64::try_from(batch).unwrap()])]).await.unwrap();
        first.commit(BatchId(batch), std::slice::from_ref(&part)).await.unwrap();
        parts.push(part);
    }
    // Of batch 3 one object was written, and then the ledger lost it. Others have names like ours below.
    let put = async |rest: &str| first.at.store.put(&first.key(rest).unwrap(), PutPayload::from("x")).await.unwrap();
    for of_others in ["other/batch-000000000009-part-00000.json", "_undone/2-4/batch-000000000004-part-00000.json"] {
        put(of_others).await;
    }
    open().await.recover(Some(BatchId(2))).await.unwrap();
    put("lang=en/batch-000000000003-part-00000.json").await;
    let error = open().await.recover(Some(BatchId(2))).await.unwrap_err().to_string();
    assert!(error.contains("objects of batches up to 3") && error.contains("rewind --to 2 --upto 3"), "{error}");
    // A data directory of batch 1: what is told to do is done by hand, and the start after it repeats batch 1.
    let error = open().await.recover(Some(BatchId(1))).await.unwrap_err().to_string();
    let (_, mark) = error.split_once("let s3://unknown/x/_tidemill.json be ").unwrap();
    first.at.store.put(&first.key(MARK).unwrap(), PutPayload::from(mark.to_string())).await.unwrap();
    for rest in ["batch-000000000002-part-00000.parquet", "lang=en/batch-000000000003-part-00000.json"] {
        first.at.store.delete(&first.key(rest).unwrap()).await.unwrap();
    }
    let restored = open().await;
    restored.commit(BatchId(1), &parts[..1]).await.unwrap();
    restored.recover(Some(BatchId(1))).await.unwrap();
}

#[tokio::test]
async fn a_commit_under_other_options_leaves_no_object_of_the_earlier_ones() {
    let Some(endpoint) = server("changed").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let open = async |options: &[(&str, &str)]| {
        let sink = sink(&endpoint, "s3://changed/x", options, dir.path());
        sink.open(rows([]).schema()).await.unwrap();
        sink
    };
    let first = open(&[("format", "json"), ("partition_by", "word")]).await;
    let part = stage(&first, 1, 0, vec![rows([1, 2])]).await.unwrap();
    // One object was put, and the program ended.
    let parts = Part::parse(std::slice::from_ref(&part)).unwrap();
    let encoded = first.encoded(BatchId(1), 0, &first.aside.read(BatchId(1), &parts[0]).await.unwrap()).unwrap();
    first.at.store.put(&first.key(&encoded[0].0).unwrap(), PutPayload::from(encoded[0].1.clone())).await.unwrap();
    let second = open(&[("format", "csv")]).await;
    second.commit(BatchId(1), std::slice::from_ref(&part)).await.unwrap();
    second.recover(Some(BatchId(1))).await.unwrap();
    let keys: Vec<String> = objects(&endpoint, "changed").await.into_keys().collect();
    assert_eq!(keys, ["x/_tidemill.json", "x/batch-000000000001-part-00000.csv"]);
}

#[tokio::test]
async fn what_is_wrong_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let told = |options: &[(&str, &str)]| {
        let options = Options::new("sink \"out\"", options.iter().copied());
        S3Sink::from_options(&options).map(drop).and_then(|()| options.finish()).unwrap_err().chain()
    };
    for (options, want) in [
        (&[][..], "option `url` is missing"),
        (&[("url", "bucket/x")], "s3://bucket/posts"),
        (&[("url", "s3://a b/x")], "can't be a bucket's name"),
        (&[("url", "s3://bucket/x//y")], "can't begin names"),
        (&[("url", "s3://bucket/x"), ("format", "orc")], "`parquet`, `avro`"),
        (&[("url", "s3://bucket/x"), ("endpoint", "http://s3.example.org")], "http:// is for servers on this machine"),
        (&[("url", "s3://bucket/x"), ("prefix", "y")], "unknown option `prefix`"),
    ] {
        let told = told(options);
        assert!(told.contains(want), "{told}");
    }
    let one = sink("http://localhost:1", "s3://bucket/x/", &[("partition_by", "lang")], dir.path());
    assert_eq!(one.describe(), "s3://bucket/x at http://localhost:1 (parquet, partitioned)");
    assert!(one.takes(&rows([]).schema()).unwrap_err().to_string().contains("there is no column `lang`"));
    let Some(endpoint) = server("there").await else { return };
    let error = sink(&endpoint, "s3://not-there/x", &[], dir.path()).open(rows([]).schema()).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("there is no bucket `not-there`"), "{}", error.chain());
}

#[cfg(feature = "protobuf")]
#[tokio::test]
async fn rows_that_make_no_message_are_refused_before_their_batch_is_committed() {
    let Some(endpoint) = server("messages").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let narrow = "syntax = \"proto3\"; message Row { uint32 n = 1; }";
    let options = [("format", "protobuf"), ("schema", narrow), ("message", "Row"), ("partition_by", "word")];
    let sink = sink(&endpoint, "s3://messages/x", &options, dir.path());
    sink.open(rows([]).schema()).await.unwrap();
    sink.recover(None).await.unwrap();
    let staged = |n: i64| {
        let rows = stream::iter([Ok(rows([1, n]))]).boxed();
        sink.stage(BatchId(1), Timestamp(0), 0, rows)
    };
    let error = staged(-1).await.unwrap_err();
    assert!(error.to_string().contains("column `n`: -1 does not fit") && !error.is_retryable(), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is staged");
    let part = staged(300).await.unwrap().unwrap();
    sink.commit(BatchId(1), &[part]).await.unwrap();
    let all = objects(&endpoint, "messages").await;
    assert_eq!(all["x/word=word-300/batch-000000000001-part-00000.protobuf"], [3, 8, 0xac, 2]);
}
