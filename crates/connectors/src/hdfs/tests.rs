//! The sink against the HDFS that `TIDEMILL_HDFS` names: `ci/services up` starts one.
//! Without it they are skipped, and fail if `TIDEMILL_SERVICES=required`.

mod faults;
mod source;
mod springs;

use super::probe::{client, files, names, open, put, server};
use crate::{
    contract::{check_cut_off, check_sink, rows, stage},
    objects::{ObjectsSink, checks, probe::rows_of},
};
use futures::FutureExt;
use std::{path::Path, sync::Arc};
use tidemill_core::{BatchId, Guarantee, Options, Result, Sink};

fn made(url: &str, more: &[(&str, &str)]) -> Result<ObjectsSink> {
    let usual = [("url", url)];
    let options = Options::new("sink \"out\"", usual.iter().chain(more).copied());
    let sink = super::sink(&options)?;
    options.finish().map(|()| sink)
}

fn sink(url: &str, more: &[(&str, &str)], aside: &Path) -> ObjectsSink {
    let sink = made(url, more).unwrap();
    Sink::place(&sink, "p/out", aside);
    sink
}

/// What an answer gives, for those who can't wait in a future.
fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(work))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_a_sink() {
    let Some(hdfs) = server("contract").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let url = format!("{hdfs}/contract/out/words");
    let open = || Arc::new(sink(&url, &[], dir.path())) as Arc<dyn Sink>;
    assert_eq!(open().guarantee(), Guarantee::ExactlyOnce);
    assert_eq!(open().describe(), format!("{url} (parquet)"));
    let seen = || rows_of(&wait(files(&hdfs, "/contract/out/words")));
    check_sink(open, seen).await;
    let line = |batch: u8, part: u8, n: u8| {
        format!("batch-00000000000{batch}-part-0000{part}.parquet {{\"n\":{n},\"word\":\"word-{n}\"}}")
    };
    assert_eq!(seen(), [line(1, 0, 1), line(1, 0, 2), line(1, 0, 3), line(1, 1, 4), line(2, 0, 5)]);
    let all = files(&hdfs, "/contract/out/words").await;
    assert_eq!(all["_tidemill.json"], b"{\"batch\":2}");
    assert_eq!(all.len(), 4, "nothing else is there: {:?}", all.keys());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing staged is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_may_end_anywhere() {
    let Some(hdfs) = server("ends").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let url = format!("{hdfs}/ends/x");
    let open = || Arc::new(sink(&url, &[], dir.path())) as Arc<dyn Sink>;
    let number = |line: &String| line.rsplit_once("word-").unwrap().1.trim_end_matches("\"}").parse().unwrap();
    let seen = || rows_of(&wait(files(&hdfs, "/ends/x"))).iter().map(number).collect();
    check_cut_off(open, seen, 2).await;
}

/// What the sink of objects owes in any store, in a directory of the check's own.
async fn check(dir: &str, checked: impl AsyncFnOnce(&checks::Made<'_>)) {
    let Some(hdfs) = server(dir).await else { return };
    let aside = tempfile::tempdir().unwrap();
    let (url, root) = (format!("{hdfs}/{dir}/x"), format!("/{dir}/x"));
    let make = |more: &[(&str, &str)]| sink(&url, more, aside.path());
    let seen = || files(&hdfs, &root).boxed();
    checked(&checks::Made { url: &url, make: &make, seen: &seen }).await;
}

#[tokio::test]
async fn rows_are_dealt_out_and_a_commit_that_was_cut_off_is_made_whole() {
    check("dealt", checks::dealt_out).await;
}

#[tokio::test]
async fn a_rewind_moves_files_aside_and_a_directory_that_is_ahead_is_refused() {
    check("ahead", checks::rewind).await;
}

#[tokio::test]
async fn files_that_the_ledger_does_not_know_are_told_and_the_way_out_leads_on() {
    check("unknown", checks::unknown).await;
}

#[tokio::test]
async fn a_commit_under_other_options_leaves_no_file_of_the_earlier_ones() {
    check("changed", checks::other_options).await;
}

#[tokio::test]
async fn a_commit_that_is_repeated_leaves_its_files_as_they_are() {
    let Some(hdfs) = server("again").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let url = format!("{hdfs}/again");
    let first = sink(&url, &[("format", "json")], dir.path());
    first.open(rows([]).schema()).await.unwrap();
    let part = stage(&first, 1, 0, vec![rows(0..1000)]).await.unwrap();
    let parts = [part];
    // The files are there and the mark is not: so it is after a machine that stopped in between.
    first.commit(BatchId(1), &parts).await.unwrap();
    let file = "/again/batch-000000000001-part-00000.json";
    let before = client(&hdfs).get_file_info(file).await.unwrap();
    client(&hdfs).delete("/again/_tidemill.json", false).await.unwrap();
    let again = stage(&first, 1, 0, vec![rows(0..1000)]).await.unwrap();
    sink_again(&url, dir.path(), &[again]).await;
    let after = client(&hdfs).get_file_info(file).await.unwrap();
    assert_eq!(after.modification_time, before.modification_time, "who has read a part of it goes on");
    // What is there under its name and is not the same is replaced: half of it, and as many bytes of something else.
    for damage in ["x".repeat(before.length), "x".repeat(before.length / 2)] {
        put(&hdfs, file, damage).await;
        client(&hdfs).delete("/again/_tidemill.json", false).await.unwrap();
        let again = stage(&first, 1, 0, vec![rows(0..1000)]).await.unwrap();
        sink_again(&url, dir.path(), &[again]).await;
        let text =
            String::from_utf8(files(&hdfs, "/again").await["batch-000000000001-part-00000.json"].clone()).unwrap();
        assert!(text.lines().count() == 1000 && text.ends_with("{\"n\":999,\"word\":\"word-999\"}\n"));
    }
}

/// Another life, which repeats a commit and goes on.
async fn sink_again(url: &str, aside: &Path, parts: &[tidemill_core::StagedPart]) {
    let next = sink(url, &[("format", "json")], aside);
    next.open(rows([]).schema()).await.unwrap();
    next.commit(BatchId(1), parts).await.unwrap();
    next.recover(Some(BatchId(1))).await.unwrap();
}

#[tokio::test]
async fn what_a_life_that_was_cut_off_left_half_written_goes_with_the_next_start() {
    let Some(hdfs) = server("half").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let url = format!("{hdfs}/half");
    // One is still open, as by a machine that is gone; another is whole and was not renamed; others are not ours.
    let ours = ["day=1/.batch-000000000001-part-00000.json.7f3a0000.tmp", "._tidemill.json.7f3a0001.tmp"];
    let held = open(&hdfs, &format!("/half/{}", ours[0]), "{\"n\":").await;
    put(&hdfs, &format!("/half/{}", ours[1]), "{}").await;
    let others = [".batch-x.tmp", "_x/.batch-000000000001-part-00000.json.7f.tmp", "a.tmp"];
    for other in others {
        put(&hdfs, &format!("/half/{other}"), "x").await;
    }
    let next = sink(&url, &[("format", "json")], dir.path());
    next.open(rows([]).schema()).await.unwrap();
    next.recover(None).await.unwrap();
    let part = stage(&next, 1, 0, vec![rows([1])]).await.unwrap();
    next.commit(BatchId(1), &[part]).await.unwrap();
    let names: Vec<String> = files(&hdfs, "/half").await.into_keys().collect();
    let mut want = [&others[..], &["_tidemill.json", "batch-000000000001-part-00000.json"]].concat();
    want.sort_unstable();
    assert_eq!(names, want);
    drop(held);
}

#[tokio::test]
async fn files_of_many_blocks_are_whole() {
    let Some(hdfs) = server("blocks").await else { return };
    let dir = tempfile::tempdir().unwrap();
    let sink = sink(&format!("{hdfs}/blocks"), &[("format", "csv")], dir.path());
    sink.open(rows([]).schema()).await.unwrap();
    let part = stage(&sink, 1, 0, vec![rows(0..250_000)]).await.unwrap();
    sink.commit(BatchId(1), &[part]).await.unwrap();
    let name = "batch-000000000001-part-00000.csv";
    let status = client(&hdfs).get_file_info(&format!("/blocks/{name}")).await.unwrap();
    assert!(status.length as u64 > 2 * status.blocksize.unwrap(), "{status:?}");
    let text = String::from_utf8(files(&hdfs, "/blocks").await.remove(name).unwrap()).unwrap();
    assert!(text.lines().skip(1).enumerate().all(|(n, line)| line == format!("{n},word-{n}")));
    assert_eq!(text.lines().count(), 250_001);
}

#[tokio::test]
async fn what_is_wrong_is_told() {
    let told = |options: &[(&str, &str)]| {
        let options = Options::new("sink \"out\"", options.iter().copied());
        super::sink(&options).map(drop).and_then(|()| options.finish()).unwrap_err().chain()
    };
    let nowhere = tempfile::tempdir().unwrap();
    let nowhere = nowhere.path().to_str().unwrap();
    for (options, want) in [
        (&[][..], "option `url` is missing"),
        (&[("url", "s3://bucket/x")], "hdfs://namenode:8020/logs"),
        (&[("url", "hdfs://namenode/x")], "say the NameNode's port"),
        (&[("url", "hdfs:///x")], "`hdfs://` can't be reached so"),
        (&[("url", "hdfs://namenode:1/x//y")], "is no path"),
        (&[("url", "hdfs://namenode:1/x"), ("hadoop_conf", nowhere)], "no core-site.xml and no hdfs-site.xml in"),
        (&[("url", "hdfs://namenode:1/x"), ("format", "orc")], "`parquet`, `avro`"),
        (&[("url", "hdfs://namenode:1/x"), ("endpoint", "y")], "unknown option `endpoint`"),
    ] {
        let told = told(options);
        assert!(told.contains(want), "{told}");
    }
}

#[tokio::test]
async fn a_name_service_is_found_by_the_files_of_hadoop() {
    let Some(hdfs) = server("service").await else { return };
    let (conf, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let authority = hdfs.strip_prefix("hdfs://").unwrap();
    let property =
        |(name, value): (&str, &str)| format!("<property><name>{name}</name><value>{value}</value></property>");
    let write = |file: &str, all: &[(&str, &str)]| {
        let text: String = all.iter().copied().map(property).collect();
        std::fs::write(conf.path().join(file), format!("<configuration>{text}</configuration>")).unwrap();
    };
    write("core-site.xml", &[("fs.defaultFS", "hdfs://tide")]);
    // The first of the two is not there, as one that was taken down.
    let ha = [
        ("dfs.ha.namenodes.tide", "gone,there"),
        ("dfs.namenode.rpc-address.tide.gone", "127.0.0.1:1"),
        ("dfs.namenode.rpc-address.tide.there", authority),
    ];
    write("hdfs-site.xml", &ha);
    let conf = [("hadoop_conf", conf.path().to_str().unwrap()), ("format", "json")];
    for (batch, url) in [(1, "hdfs://tide/service"), (2, "hdfs:///service")] {
        let sink = sink(url, &conf, dir.path());
        sink.open(rows([]).schema()).await.unwrap();
        let part = stage(&sink, batch, 0, vec![rows([1])]).await.unwrap();
        sink.commit(BatchId(batch), &[part]).await.unwrap();
    }
    assert_eq!(files(&hdfs, "/service").await["_tidemill.json"], b"{\"batch\":2}");
}

#[tokio::test]
async fn a_user_without_rights_and_paths_through_files_are_for_a_human() {
    let Some(hdfs) = server("rights").await else { return };
    let dir = tempfile::tempdir().unwrap();
    put(&hdfs, "/rights/file", "x").await;
    let url = format!("{hdfs}/rights/x");
    let stranger = sink(&url, &[("user", "stranger")], dir.path());
    stranger.open(rows([]).schema()).await.unwrap();
    let part = stage(&stranger, 1, 0, vec![rows([1])]).await.unwrap();
    let error = stranger.commit(BatchId(1), std::slice::from_ref(&part)).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("another user in option `user`"), "{}", error.chain());
    assert!(error.chain().contains("stranger"), "{}", error.chain());
    // Who may is let in, and what it writes is its own.
    client(&hdfs).mkdirs("/rights/x", 0o777, true).await.unwrap();
    client(&hdfs).set_permission("/rights/x", 0o777).await.unwrap();
    stranger.commit(BatchId(1), &[part]).await.unwrap();
    let status = client(&hdfs).get_file_info("/rights/x/_tidemill.json").await.unwrap();
    assert_eq!(status.owner, "stranger");
    let through = sink(&format!("{hdfs}/rights/file/x"), &[], dir.path());
    let error = through.open(rows([]).schema()).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("is a file and no directory"), "{}", error.chain());
}
