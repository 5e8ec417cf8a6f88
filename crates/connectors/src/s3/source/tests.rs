//! The source against the S3 server that `TIDEMILL_S3` names, and against servers that fail.
//!
//! Those of the first kind are skipped without it, and fail if `TIDEMILL_SERVICES=required`.

mod faults;

use super::*;
use crate::{
    contract::{check_source, read, read_all, rows},
    s3::{bucket, probe::server},
};
use futures::StreamExt;
use object_store::{ObjectStoreExt, PutPayload, path::Path as Key};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};
use tidemill_core::{BatchId, Budget, Chunk, Position, Shape, Sink, Source};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

const ALL: Budget = Budget { records: u64::MAX, bytes: u64::MAX, parallelism: 1 };

fn made(endpoint: &str, url: &str, more: &[(&str, &str)]) -> Result<ObjectsSource> {
    let usual = [("url", url), ("endpoint", endpoint), ("refresh", "0s")];
    let options = Options::new("stream \"in\"", usual.iter().chain(more).copied());
    let source = source(&options)?;
    options.finish().map(|()| source)
}

/// Puts objects by the client of the sink.
async fn put(endpoint: &str, bucket: &str, objects: impl IntoIterator<Item = (String, Vec<u8>)>) {
    let options = Options::new("s", [("endpoint", endpoint)]);
    let place = bucket::within(&options, bucket, "").unwrap();
    let puts = objects.into_iter().map(|(name, bytes)| {
        let store = Arc::clone(&place.store);
        async move { store.put(&Key::parse(name).unwrap(), PutPayload::from(bytes)).await.unwrap() }
    });
    futures::stream::iter(puts).buffer_unordered(8).count().await;
}

fn one(name: &str, text: impl Into<Vec<u8>>) -> Vec<(String, Vec<u8>)> {
    vec![(name.to_string(), text.into())]
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_a_source() {
    let Some(endpoint) = server("input").await else { return };
    let large: String = (0..200_000).map(|i| format!("line {i} {}\n", "x".repeat(i % 40))).collect();
    assert!(large.len() > 5 << 20);
    put(&endpoint, "input", one("logs/2026/a b+ü.log", large.clone())).await;
    put(&endpoint, "input", one("logs/2026/b.log", "one\ntwo\n\nlast")).await;
    put(&endpoint, "input", one("logs/_x/b.log", "no\n")).await;
    put(&endpoint, "input", one("other/c.log", "no\n")).await;
    let source = made(&endpoint, "s3://input/logs", &[]).unwrap();
    assert_eq!(source.describe(), format!("s3://input/logs at {endpoint}"));
    let all = check_source(&source, 11).await;
    let names: Vec<&str> = all.keys().map(|id| id.0.rsplit_once('@').unwrap().0).collect();
    assert_eq!(names, ["2026/a b+ü.log", "2026/b.log"]);
    let lines: Vec<Vec<u8>> = all.values().next().unwrap().iter().map(|(_, line)| line.clone()).collect();
    assert_eq!(lines.len(), 200_000);
    assert!(lines.iter().zip(large.lines()).all(|(got, want)| got == want.as_bytes()));
    let some = made(&endpoint, "s3://input/*/20*/b.*", &[]).unwrap();
    assert_eq!(read_all(&some).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_sink_writes_is_read_by_ranges() {
    use crate::files::{Encoder, Encoding, FileFormat};
    let Some(endpoint) = server("columns").await else { return };
    for (format, name) in [(FileFormat::Parquet, "p"), (FileFormat::Avro, "a")] {
        for part in 0..3_i64 {
            let mut encoder = Encoder::new(&Encoding::Of(format));
            encoder.encode(&crate::contract::rows(part * 5000..part * 5000 + 5000)).unwrap();
            encoder.finish().unwrap();
            put(&endpoint, "columns", one(&format!("{name}/part-{part}"), std::mem::take(encoder.bytes()))).await;
        }
    }
    let rows = made(&endpoint, "s3://columns/p", &[("format", "parquet")]).unwrap();
    rows.declare(None).unwrap();
    let Shape::Columns(schema) = rows.shape() else { panic!("columns") };
    assert_eq!(schema.field(1).name(), "word");
    let mut count = 0;
    for range in rows.plan(&Position::new(), Budget { parallelism: 2, ..ALL }).await.unwrap() {
        let mut chunks = rows.read_columns(&range, &[1]);
        while let Some(chunk) = chunks.next().await {
            let Chunk::Columns { rows, .. } = chunk.unwrap() else { panic!("columns") };
            assert_eq!(rows.num_columns(), 1);
            count += rows.num_rows();
        }
    }
    assert_eq!(count, 15_000);
    let records = made(&endpoint, "s3://columns/a", &[("format", "avro")]).unwrap();
    let format = records.format(None, &|_| panic!("not asked for")).unwrap();
    assert_eq!(format.schema().field(0).name(), "n");
    let all = check_source(&records, 2).await;
    assert_eq!(all.values().map(Vec::len).collect::<Vec<_>>(), [5000; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_objects_than_a_page_has_are_each_read_once() {
    let Some(endpoint) = server("pages").await else { return };
    put(&endpoint, "pages", (0..1100).map(|n| (format!("in/{n:05}"), format!("{n}\n").into_bytes()))).await;
    let mut position = Position::new();
    let mut got = Vec::new();
    for life in 0..3 {
        let source = made(&endpoint, "s3://pages/in", &[]).unwrap();
        for range in source.plan(&position, Budget { bytes: 2000, ..ALL }).await.unwrap() {
            got.extend(read(&source, &range).await.into_iter().map(|(_, r)| String::from_utf8(r).unwrap()));
            position.insert(range.partition, range.end);
        }
        put(&endpoint, "pages", one(&format!("in/0000{life}-"), format!("late {life}"))).await;
    }
    let source = made(&endpoint, "s3://pages/in", &[]).unwrap();
    for range in source.plan(&position, ALL).await.unwrap() {
        got.extend(read(&source, &range).await.into_iter().map(|(_, r)| String::from_utf8(r).unwrap()));
        position.insert(range.partition, range.end);
    }
    got.sort();
    let mut want: Vec<String> = (0..1100).map(|n| n.to_string()).chain((0..3).map(|n| format!("late {n}"))).collect();
    want.sort();
    assert_eq!(got, want);
    assert!(source.is_exhausted(&position).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_or_went_between_plan_and_read_is_named() {
    let Some(endpoint) = server("changes").await else { return };
    put(&endpoint, "changes", [one("in/a", "1\n"), one("in/b", "2\n")].concat()).await;
    let source = made(&endpoint, "s3://changes/in", &[]).unwrap();
    let planned = source.plan(&Position::new(), ALL).await.unwrap();
    put(&endpoint, "changes", one("in/a", "3\n")).await;
    let place = bucket::within(&Options::new("s", [("endpoint", endpoint.as_str())]), "changes", "in").unwrap();
    place.store.delete(&place.key("b").unwrap()).await.unwrap();
    for (range, told) in planned.iter().zip(["s3://changes/in/a was replaced", "s3://changes/in/b is gone"]) {
        let error = source.read(range).next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains(told) && !error.is_retryable(), "{}", error.chain());
    }
    let error = made(&endpoint, "s3://not-there/x", &[]).unwrap().plan(&Position::new(), ALL).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("there is no bucket `not-there`"), "{}", error.chain());
}

/// A server that gives one answer after the other, and the last one on and on; and how often it was asked.
async fn answers(all: Vec<(u16, &'static str)>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let (status, body) = all[count.fetch_add(1, Relaxed).min(all.len() - 1)];
            let answer =
                format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (endpoint, asked)
}

const LIST: &str = r#"<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>b</Name><KeyCount>1</KeyCount><IsTruncated>false</IsTruncated><Contents><Key>in/a</Key><LastModified>2026-05-01T00:00:00.000Z</LastModified><ETag>"x"</ETag><Size>3</Size></Contents></ListBucketResult>"#;

#[tokio::test]
async fn a_server_that_has_too_much_to_do_is_asked_again_and_wrong_credentials_are_named() {
    let (endpoint, asked) = answers(vec![(503, "slow down"), (500, ""), (200, LIST)]).await;
    let source = made(&endpoint, "s3://bucket/in", &[]).unwrap();
    let planned = source.plan(&Position::new(), ALL).await.unwrap();
    assert_eq!((planned.len(), planned[0].end.0, asked.load(Relaxed)), (1, 3, 3));
    let (endpoint, asked) = answers(vec![(403, "<Error><Code>SignatureDoesNotMatch</Code></Error>")]).await;
    let error = made(&endpoint, "s3://bucket/in", &[]).unwrap().plan(&Position::new(), ALL).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("AWS_ACCESS_KEY_ID"), "{}", error.chain());
    assert_eq!(asked.load(Relaxed), 1, "that is not tried again");
}

#[tokio::test]
async fn a_sink_whose_list_of_names_is_refused_needs_a_human() {
    let (endpoint, _) = answers(vec![(403, "<Error><Code>InvalidAccessKeyId</Code></Error>")]).await;
    let options = Options::new("sink", [("url", "s3://bucket/out"), ("endpoint", endpoint.as_str())]);
    let (sink, dir) = (crate::s3::sink(&options).unwrap(), tempfile::tempdir().unwrap());
    sink.place("p/out", dir.path());
    let opened = sink.open(rows([]).schema()).await;
    let error = opened.and(sink.recover(Some(BatchId(1))).await).unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("AWS_ACCESS_KEY_ID"), "{}", error.chain());
}

#[test]
fn what_is_wrong_is_told() {
    let told = |options: &[(&str, &str)]| {
        let options = Options::new("stream \"in\"", options.iter().copied());
        source(&options).map(drop).and_then(|()| options.finish()).unwrap_err().chain()
    };
    for (options, want) in [
        (&[][..], "option `url` is missing"),
        (&[("url", "bucket/x")], "s3://bucket/logs"),
        (&[("url", "s3://a b/x")], "can't be a bucket's name"),
        (&[("url", "s3://bucket/x/[")], "is not a pattern"),
        (&[("url", "s3://bucket/x"), ("endpoint", "http://s3.example.org")], "http:// is for servers on this machine"),
        (&[("url", "s3://bucket/x"), ("start", "latest")], "unknown option `start`"),
    ] {
        let told = told(options);
        assert!(told.contains(want), "{told}");
    }
}
