//! The way of a record from bytes to columns: cutting lines, reading files, decoding.
//!
//! `cargo bench -p tidemill-connectors`

use arrow_schema::{DataType, Field, Schema, TimeUnit};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures::{StreamExt, executor::block_on};
use std::{fmt::Write, hint::black_box, sync::Arc};
use tidemill_connectors::{
    files::FilesSource,
    format::{
        JsonFormat, TextFormat,
        json::{Paths, scan_bytes},
    },
    lines::{LineCutter, MAX_LINE},
};
use tidemill_core::{Block, Budget, Format, Position, Source};

/// A record of about 1.2 KB with 33 members, as X sends them.
fn tweet(n: usize) -> String {
    let text: String = (0..10 + n % 25).fold(String::new(), |mut text, i| {
        let word = ["tide", "mill", "#rust", "ハッシュタグ", "mañana", "data", "\\n", "😀"][(n * 7 + i * 3) % 8];
        // Writing to a string can't fail.
        let _never = write!(text, "{word} ");
        text
    });
    let lang = ["en", "ja", "es", "de"][n % 4];
    format!(
        r#"{{"created_at":"2026-05-25T14:23:28.778Z","id":{n},"id_str":"{n}","text":"{text}","source":"<a href=\"http://twitter.com/download/iphone\">Twitter for iPhone</a>","truncated":false,"in_reply_to_status_id":null,"in_reply_to_user_id":null,"in_reply_to_screen_name":null,"user":{{"id":{n},"name":"User {n}","screen_name":"user_{n}","location":"Somewhere","url":null,"description":"I write things about data and streams","verified":false,"followers_count":{n},"friends_count":12,"created_at":"Wed Oct 10 20:19:24 +0000 2018","profile_image_url":"http://pbs.twimg.com/profile_images/1234567890/abc_normal.jpg"}},"geo":null,"coordinates":null,"place":null,"is_quote_status":false,"quote_count":0,"reply_count":3,"retweet_count":{n},"favorite_count":7,"entities":{{"hashtags":[{{"text":"rust","indices":[10,15]}}],"urls":[],"user_mentions":[]}},"favorited":false,"retweeted":false,"lang":"{lang}","timestamp_ms":"1779719009132"}}"#
    )
}

fn json(c: &mut Criterion) {
    let block = Block::from_records((0..200).map(tweet));
    let mut group = c.benchmark_group("json");
    group.throughput(Throughput::Bytes(block.bytes.len() as u64));
    let paths = Paths::keys(["created_at", "text", "lang"]);
    group.bench_function("scan, 3 paths", |b| {
        b.iter(|| {
            for record in block.records() {
                scan_bytes(record, &paths, |i, raw| {
                    black_box((i, raw));
                })
                .expect("good records");
            }
        });
    });
    let columns = [
        ("created_at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
        ("text", DataType::Utf8),
        ("lang", DataType::Utf8),
    ];
    let fields: Vec<Field> = columns.into_iter().map(|(name, ty)| Field::new(name, ty, true)).collect();
    let format = JsonFormat::new(Arc::new(Schema::new(fields))).expect("types that can be decoded to");
    let mut decoder = format.decoder(&[0, 1, 2]);
    group.bench_function("decode, 3 columns", |b| b.iter(|| decoder.decode(&block, &mut Vec::new()).expect("rows")));
    group.finish();
}

fn text(c: &mut Criterion) {
    let lines: String = (0..4000).fold(String::new(), |mut lines, n| {
        // Writing to a string can't fail.
        let _never = writeln!(lines, "line {n} of about ten words as the word count has them");
        lines
    });
    let mut group = c.benchmark_group("text");
    group.throughput(Throughput::Bytes(lines.len() as u64));
    group.bench_function("cut", |b| {
        b.iter_batched(|| LineCutter::new(MAX_LINE), |mut cutter| cutter.push(lines.as_bytes()), BatchSize::SmallInput);
    });
    let block = LineCutter::new(MAX_LINE).push(lines.as_bytes()).block.expect("whole lines");
    let mut decoder = TextFormat::default().decoder(&[0]);
    group.bench_function("decode", |b| b.iter(|| decoder.decode(&block, &mut Vec::new()).expect("rows")));

    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("lines");
    std::fs::write(&path, lines.repeat(64)).expect("a file");
    let source = FilesSource::new(&path.to_string_lossy()).expect("a source");
    let budget = Budget { records: u64::MAX, bytes: u64::MAX, parallelism: 1 };
    group.throughput(Throughput::Bytes(lines.len() as u64 * 64));
    group.bench_function("files source, read", |b| {
        b.iter(|| {
            block_on(async {
                for range in source.plan(&Position::new(), budget).await.expect("a plan") {
                    let mut chunks = source.read(&range);
                    while let Some(chunk) = chunks.next().await {
                        black_box(chunk.expect("a chunk"));
                    }
                }
            });
        });
    });
    group.finish();
}

criterion_group!(benches, json, text);
criterion_main!(benches);
