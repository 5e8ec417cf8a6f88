//! The source against a real HDFS: ranges, formats, files that come, grow, change and go.

use super::*;
use crate::{
    contract::{check_source, read, read_all},
    files::{Encoder, Encoding, FileFormat},
    objects::ObjectsSource,
};
use futures::StreamExt;
use tidemill_core::{Budget, Chunk, Position, Shape, Source};

const ALL: Budget = Budget { records: u64::MAX, bytes: u64::MAX, parallelism: 1 };

pub(super) fn made(url: &str, more: &[(&str, &str)]) -> Result<ObjectsSource> {
    let usual = [("url", url), ("refresh", "0s")];
    let options = Options::new("stream \"in\"", usual.iter().chain(more).copied());
    let source = crate::hdfs::source(&options)?;
    options.finish().map(|()| source)
}

/// What is new, as texts, and the position behind it.
async fn next(source: &ObjectsSource, position: &mut Position) -> Vec<String> {
    let mut texts = Vec::new();
    for range in source.plan(position, ALL).await.unwrap() {
        texts.extend(read(source, &range).await.into_iter().map(|(_, r)| String::from_utf8(r).unwrap()));
        position.insert(range.partition, range.end);
    }
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_a_source() {
    let Some(hdfs) = server("input").await else { return };
    let large: String = (0..200_000).map(|i| format!("line {i} {}\n", "x".repeat(i % 40))).collect();
    assert!(large.len() > 5 << 20);
    for (name, text) in [
        ("logs/2026/a b+ü%20.log", large.as_str()),
        ("logs/2026/b.log", "one\ntwo\n\nlast"),
        ("logs/2026/empty.log", ""),
        ("logs/_temporary/0/b.log", "no\n"),
        ("logs/2026/.b.log.7f.tmp", "no\n"),
        ("logs/c.log._COPYING_", "no\n"),
        ("logs/_SUCCESS", "no\n"),
        ("other/c.log", "no\n"),
    ] {
        put(&hdfs, &format!("/input/{name}"), text.to_string()).await;
    }
    client(&hdfs).mkdirs("/input/logs/no/files", 0o755, true).await.unwrap();
    let url = format!("{hdfs}/input/logs");
    let source = made(&url, &[]).unwrap();
    assert_eq!(source.describe(), url);
    let all = check_source(&source, 11).await;
    let names: Vec<&str> = all.keys().map(|id| id.0.rsplit_once('@').unwrap().0).collect();
    assert_eq!(names, ["2026/a b+ü%20.log", "2026/b.log"]);
    let lines: Vec<Vec<u8>> = all.values().next().unwrap().iter().map(|(_, line)| line.clone()).collect();
    assert_eq!(lines.len(), 200_000);
    assert!(lines.iter().zip(large.lines()).all(|(got, want)| got == want.as_bytes()));
    let some = made(&format!("{hdfs}/input/*/20*/b.*"), &[]).unwrap();
    assert_eq!(read_all(&some).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_sink_writes_is_read_by_ranges() {
    let Some(hdfs) = server("columns").await else { return };
    let dir = tempfile::tempdir().unwrap();
    for (format, at) in [("parquet", "p"), ("avro", "a"), ("json", "j")] {
        let aside = dir.path().join(at);
        let sink = sink(&format!("{hdfs}/columns/{at}"), &[("format", format)], &aside);
        sink.open(rows([]).schema()).await.unwrap();
        for batch in 0..3_i64 {
            let number = u64::try_from(batch).unwrap() + 1;
            let part = stage(&sink, number, 0, vec![rows(batch * 5000..batch * 5000 + 5000)]).await.unwrap();
            sink.commit(BatchId(number), &[part]).await.unwrap();
        }
    }
    let columns = made(&format!("{hdfs}/columns/p"), &[("format", "parquet")]).unwrap();
    columns.declare(None).unwrap();
    let Shape::Columns(schema) = columns.shape() else { panic!("columns") };
    assert_eq!(schema.field(1).name(), "word");
    let mut count = 0;
    for range in columns.plan(&Position::new(), Budget { parallelism: 2, ..ALL }).await.unwrap() {
        let mut chunks = columns.read_columns(&range, &[1]);
        while let Some(chunk) = chunks.next().await {
            let Chunk::Columns { rows, .. } = chunk.unwrap() else { panic!("columns") };
            assert_eq!(rows.num_columns(), 1);
            count += rows.num_rows();
        }
    }
    assert_eq!(count, 15_000);
    let records = made(&format!("{hdfs}/columns/a"), &[("format", "avro")]).unwrap();
    let format = records.format(None, &|_| panic!("not asked for")).unwrap();
    assert_eq!(format.schema().field(0).name(), "n");
    let all = check_source(&records, 2).await;
    assert_eq!(all.values().map(Vec::len).collect::<Vec<_>>(), [5000; 3]);
    let lines = read_all(&made(&format!("{hdfs}/columns/j"), &[]).unwrap()).await;
    let last = lines.values().last().unwrap().last().unwrap();
    assert_eq!(last.1, b"{\"n\":14999,\"word\":\"word-14999\"}");
}

/// A stream is declared in a life of its own: what that leaves of connections must serve those that come after.
#[test]
fn columns_are_found_without_a_runtime_and_rows_in_another() {
    let first = tokio::runtime::Runtime::new().unwrap();
    let Some(hdfs) = first.block_on(server("declared")) else { return };
    let mut encoder = Encoder::new(&Encoding::Of(FileFormat::Parquet));
    encoder.encode(&rows(0..100)).unwrap();
    encoder.finish().unwrap();
    first.block_on(put(&hdfs, "/declared/a.parquet", std::mem::take(encoder.bytes())));
    drop(first);
    let source = made(&format!("{hdfs}/declared"), &[("format", "parquet")]).unwrap();
    source.declare(None).unwrap();
    for _ in 0..2 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let planned = source.plan(&Position::new(), ALL).await.unwrap();
            let Some(Ok(Chunk::Columns { rows, .. })) = source.read(&planned[0]).next().await else { panic!("rows") };
            assert_eq!(rows.num_rows(), 100);
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_files_than_a_page_has_are_each_read_once() {
    // The server of tests tells a hundred at a time.
    let Some(hdfs) = server("pages").await else { return };
    let puts = (0..230).map(|n| {
        let hdfs = &hdfs;
        async move { put(hdfs, &format!("/pages/{}/{n:05}", n / 200), format!("{n}\n")).await }
    });
    futures::stream::iter(puts).buffer_unordered(16).collect::<Vec<()>>().await;
    let mut position = Position::new();
    let mut got = Vec::new();
    for life in 0..3 {
        let source = made(&format!("{hdfs}/pages"), &[]).unwrap();
        for range in source.plan(&position, Budget { bytes: 300, ..ALL }).await.unwrap() {
            got.extend(read(&source, &range).await.into_iter().map(|(_, r)| String::from_utf8(r).unwrap()));
            position.insert(range.partition, range.end);
        }
        // Its name comes before others that are there.
        put(&hdfs, &format!("/pages/1/0000{life}-"), format!("late {life}")).await;
    }
    let source = made(&format!("{hdfs}/pages"), &[]).unwrap();
    got.extend(next(&source, &mut position).await);
    got.sort();
    let mut want: Vec<String> = (0..230).map(|n| n.to_string()).chain((0..3).map(|n| format!("late {n}"))).collect();
    want.sort();
    assert_eq!(got, want);
    assert!(source.is_exhausted(&position).await.unwrap());
}

#[tokio::test]
async fn a_file_that_grows_is_taken_when_it_is_closed() {
    let Some(hdfs) = server("grows").await else { return };
    client(&hdfs).mkdirs("/grows", 0o755, true).await.unwrap();
    let source = made(&format!("{hdfs}/grows"), &[]).unwrap();
    let mut position = Position::new();
    let long = "x".repeat(1023) + "\n";
    // Nothing is known of its first block; then of one that is full; of a part of the second, by a sync.
    let mut small = open(&hdfs, "/grows/small", "a\n").await;
    let mut large = open(&hdfs, "/grows/large", long.repeat(1025)).await;
    let mut synced = open(&hdfs, "/grows/synced", "b\nc\n").await;
    synced.hsync().await.unwrap();
    let mut both = open(&hdfs, "/grows/both", long.repeat(1025)).await;
    both.hsync().await.unwrap();
    // The same where it is to have more copies than there are DataNodes.
    let options = hdfs_native::WriteOptions::default().block_size(1 << 20).replication(3);
    let mut copies = client(&hdfs).create("/grows/copies", options).await.unwrap();
    copies.write_bytes(long.repeat(1026).into()).await.unwrap();
    for (name, length) in [("copies", 1 << 20), ("small", 0), ("large", 1 << 20), ("synced", 4), ("both", 1025 << 10)] {
        let status = client(&hdfs).get_file_info(&format!("/grows/{name}")).await.unwrap();
        assert_eq!(status.length, length, "{name} is seen with so many bytes");
    }
    put(&hdfs, "/grows/whole", "w\n").await;
    assert_eq!(next(&source, &mut position).await, ["w"]);
    assert!(source.is_exhausted(&position).await.unwrap(), "nobody waits for what is not closed");
    synced.write_bytes("d\n".into()).await.unwrap();
    synced.close().await.unwrap();
    assert_eq!(next(&source, &mut position).await, ["b", "c", "d"]);
    for file in [&mut small, &mut large, &mut both, &mut copies] {
        file.close().await.unwrap();
    }
    let all = next(&source, &mut position).await;
    assert_eq!((all.len(), all.last().unwrap().as_str()), (3077, "a"));
    // As many bytes as full blocks have, and closed.
    put(&hdfs, "/grows/full", long.repeat(1024)).await;
    assert_eq!(next(&source, &mut position).await.len(), 1024);
    // One that is opened once more when it was read is told by its name.
    let mut more = client(&hdfs).append("/grows/synced").await.unwrap();
    more.write_bytes("e\n".into()).await.unwrap();
    more.close().await.unwrap();
    let error = source.plan(&position, ALL).await.unwrap_err();
    assert!(error.to_string().contains("/grows/synced was replaced") && !error.is_retryable(), "{}", error.chain());
}

#[tokio::test]
async fn what_is_copied_and_renamed_into_place_is_read_once() {
    let Some(hdfs) = server("moved").await else { return };
    let url = format!("{hdfs}/moved/in");
    put(&hdfs, "/moved/in/a.json._COPYING_", "1\n").await;
    put(&hdfs, "/moved/in/_work/b.json", "2\n").await;
    put(&hdfs, "/moved/c.json", "3\n").await;
    let source = made(&url, &[]).unwrap();
    let mut position = Position::new();
    assert_eq!(next(&source, &mut position).await, [""; 0]);
    let client = client(&hdfs);
    for (from, to) in [("in/a.json._COPYING_", "in/a.json"), ("in/_work/b.json", "in/b.json"), ("c.json", "in/c.json")]
    {
        client.rename(&format!("/moved/{from}"), &format!("/moved/{to}"), false).await.unwrap();
        assert_eq!(next(&source, &mut position).await.len(), 1, "{to}");
    }
    // What was read may be moved away; a restart knows what it has read.
    client.rename("/moved/in/a.json", "/moved/a.json", false).await.unwrap();
    assert_eq!(next(&made(&url, &[]).unwrap(), &mut position).await, [""; 0]);
    assert_eq!(next(&source, &mut position).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_or_went_between_plan_and_read_is_named() {
    let Some(hdfs) = server("changes").await else { return };
    for name in ["a", "b", "c"] {
        put(&hdfs, &format!("/changes/{name}"), "1\n2\n3\n").await;
    }
    let source = made(&format!("{hdfs}/changes"), &[]).unwrap();
    let planned = source.plan(&Position::new(), ALL).await.unwrap();
    put(&hdfs, "/changes/a", "7\n8\n9\n").await;
    client(&hdfs).delete("/changes/b", false).await.unwrap();
    put(&hdfs, "/changes/c", "").await;
    let told = ["/changes/a was replaced", "/changes/b is gone", "/changes/c was replaced"];
    for (range, told) in planned.iter().zip(told) {
        let error = source.read(range).next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains(told) && !error.is_retryable(), "{}", error.chain());
    }
}

#[tokio::test]
async fn wrong_paths_hosts_and_options_are_told() {
    let told = |options: &[(&str, &str)]| {
        let options = Options::new("stream \"in\"", options.iter().copied());
        crate::hdfs::source(&options).map(drop).and_then(|()| options.finish()).unwrap_err().chain()
    };
    for (options, want) in [
        (&[][..], "option `url` is missing"),
        (&[("url", "logs/x")], "hdfs://namenode:8020/logs"),
        (&[("url", "hdfs://namenode:1/x/[")], "is not a pattern"),
        (&[("url", "hdfs://namenode:1/x"), ("sweep", "1m")], "leave out `sweep`"),
        (&[("url", "hdfs://namenode:1/x"), ("start", "latest")], "unknown option `start`"),
    ] {
        let told = told(options);
        assert!(told.contains(want), "{told}");
    }
    tokio::time::pause();
    let error = made("hdfs://127.0.0.1:1/x", &[]).unwrap().plan(&Position::new(), ALL).await.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("can't list hdfs://127.0.0.1:1/x"), "{}", error.chain());
    tokio::time::resume();
    let Some(hdfs) = server("wrong").await else { return };
    put(&hdfs, "/wrong/file", "x\n").await;
    for (path, want) in [
        ("/wrong/typo", "there is no directory `/wrong/typo`: make it first"),
        ("/wrong/file", "is a file and no directory"),
        ("/wrong/file/below", "is a file and no directory"),
    ] {
        let error = made(&format!("{hdfs}{path}"), &[]).unwrap().plan(&Position::new(), ALL).await.unwrap_err();
        assert!(!error.is_retryable() && error.to_string().contains(want), "{path}: {}", error.chain());
    }
}
