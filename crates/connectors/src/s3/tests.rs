//! The sink against the S3 server that `TIDEMILL_S3` names: `ci/services up` starts one.
//! Without it they are skipped, and fail if `TIDEMILL_SERVICES=required`.

mod faults;

use super::probe::{objects, rows_of, server};
use crate::{
    contract::{check_cut_off, check_sink, rows},
    objects::{ObjectsSink, checks},
};
use futures::FutureExt;
use std::{path::Path, sync::Arc};
use tidemill_core::{Guarantee, Options, Sink};

fn sink(endpoint: &str, url: &str, more: &[(&str, &str)], dir: &Path) -> ObjectsSink {
    let options = [("url", url), ("endpoint", endpoint)];
    let options = Options::new("sink \"out\"", options.iter().chain(more).copied());
    let sink = super::sink(&options).unwrap();
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

/// What the sink of objects owes in any store, in a bucket of the check's own.
async fn check(bucket: &str, prefix: &str, checked: impl AsyncFnOnce(&checks::Made<'_>)) {
    let Some(endpoint) = server(bucket).await else { return };
    let dir = tempfile::tempdir().unwrap();
    let url = format!("s3://{bucket}{prefix}");
    let make = |more: &[(&str, &str)]| sink(&endpoint, &url, more, dir.path());
    let seen = || {
        let all = objects(&endpoint, bucket);
        let rest = |(name, bytes): (String, _)| (format!("/{name}")[prefix.len() + 1..].to_string(), bytes);
        async move { all.await.into_iter().map(rest).collect() }.boxed()
    };
    checked(&checks::Made { url: &url, make: &make, seen: &seen }).await;
}

#[tokio::test]
async fn rows_are_dealt_out_and_a_commit_that_was_cut_off_is_made_whole() {
    check("dealt", "", checks::dealt_out).await;
}

#[tokio::test]
async fn a_rewind_moves_objects_aside_and_a_bucket_that_is_ahead_is_refused() {
    check("ahead", "/x", checks::rewind).await;
}

#[tokio::test]
async fn objects_that_the_ledger_does_not_know_are_told_and_the_way_out_leads_on() {
    check("unknown", "/x", checks::unknown).await;
}

#[tokio::test]
async fn a_commit_under_other_options_leaves_no_object_of_the_earlier_ones() {
    check("changed", "/x", checks::other_options).await;
}

#[tokio::test]
async fn what_is_wrong_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let told = |options: &[(&str, &str)]| {
        let options = Options::new("sink \"out\"", options.iter().copied());
        super::sink(&options).map(drop).and_then(|()| options.finish()).unwrap_err().chain()
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
    use futures::{StreamExt, stream};
    use tidemill_core::{BatchId, Timestamp};
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
