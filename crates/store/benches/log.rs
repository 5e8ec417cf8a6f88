//! How fast the log appends and reads, beside what the disk does bare.
//!
//! `cargo bench -p tidemill-store`; set `TMPDIR` to choose the disk.

use arrow_array::{BinaryArray, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use std::{
    fs::File,
    hint::black_box,
    io::Write,
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tidemill_core::{ManualClock, Offset};
use tidemill_store::{
    RealDisk,
    log::{Log, Sync, Topic, TopicConfig},
};

const MIB: usize = 1 << 20;

/// Rows of 1 KiB, `bytes` in all.
fn rows(bytes: usize) -> RecordBatch {
    let row = [b'x'; 1024];
    let array = BinaryArray::from_iter_values(std::iter::repeat_n(row, bytes / 1024));
    let schema = Schema::new(vec![Field::new("raw", DataType::Binary, false)]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(array)]).expect("one column")
}

fn open(dir: &Path) -> Log {
    Log::open(Arc::new(RealDisk), dir, Arc::new(ManualClock::default())).expect("a log")
}

fn topic(sync: Sync) -> (TempDir, Log, Arc<Topic>) {
    let dir = TempDir::new().expect("a directory");
    let log = open(dir.path());
    let topic = log.create_topic("t", &TopicConfig { sync, ..TopicConfig::new(rows(1024).schema()) }).expect("a topic");
    (dir, log, topic)
}

fn append(c: &mut Criterion) {
    const FRAMES: u32 = 128;
    let mut group = c.benchmark_group("append unsynced");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).measurement_time(Duration::from_secs(3));
    for size in [MIB, 64 << 10] {
        let rows = rows(size);
        let frames = FRAMES * u32::try_from(MIB / size).expect("small");
        group.throughput(Throughput::Bytes(u64::from(frames) * size as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{} KiB frames", size >> 10)), |b| {
            b.iter_custom(|n| {
                (0..n)
                    .map(|_| {
                        let (_dir, _log, topic) = topic(Sync::Never);
                        let began = Instant::now();
                        for _ in 0..frames {
                            topic.append(0, &rows, None).expect("appended");
                        }
                        began.elapsed()
                    })
                    .sum()
            });
        });
    }
    group.finish();
}

fn synced(c: &mut Criterion) {
    const SIZE: usize = 64 << 10;
    let mut group = c.benchmark_group("append synced, 64 KiB");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).measurement_time(Duration::from_secs(3));
    group.throughput(Throughput::Bytes(SIZE as u64));
    let bytes = vec![b'x'; SIZE];
    let dir = TempDir::new().expect("a directory");
    let mut file = File::create(dir.path().join("bare")).expect("a file");
    group.bench_function("bare write and fdatasync", |b| {
        b.iter(|| {
            file.write_all(&bytes).expect("written");
            file.sync_data().expect("synced");
        });
    });
    let rows = rows(SIZE);
    // Once an hour: the bench itself syncs.
    let (_dir, _log, quiet) = topic(Sync::Every(Duration::from_secs(3600)));
    group.bench_function("log, one at a time", |b| {
        b.iter(|| {
            let at = quiet.append(0, &rows, None).expect("appended");
            quiet.sync_to(0, at.next).expect("synced");
        });
    });
    let (_dir, _log, topic) = topic(Sync::Always);
    group.throughput(Throughput::Bytes(64 * SIZE as u64));
    group.bench_function("log, 64 in flight", |b| {
        b.iter(|| {
            let (tx, rx) = mpsc::channel();
            for _ in 0..64 {
                let tx = tx.clone();
                let told = Box::new(move |r: tidemill_core::Result<()>| tx.send(r.is_ok()).expect("waited for"));
                topic.append_with(0, &rows, None, told).expect("appended");
            }
            drop(tx);
            assert!(rx.iter().all(|ok| ok));
        });
    });
    group.finish();
}

fn read(c: &mut Criterion) {
    const FRAMES: usize = 256;
    let mut group = c.benchmark_group("read from the page cache");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).measurement_time(Duration::from_secs(3));
    let (dir, log, topic) = topic(Sync::Never);
    let rows = rows(MIB);
    for _ in 0..FRAMES {
        topic.append(0, &rows, None).expect("appended");
    }
    drop((topic, log));
    let log = open(dir.path());
    let topic = log.topic("t").expect("the topic");
    group.throughput(Throughput::Bytes((FRAMES * MIB) as u64));
    group.bench_function("1 MiB frames", |b| {
        b.iter(|| {
            let mut count = 0;
            for run in topic.read(0, Offset(0), topic.end(0)) {
                count += black_box(run.expect("rows").rows).num_rows();
            }
            assert_eq!(count, FRAMES * 1024);
        });
    });
    group.finish();
}

criterion_group!(benches, append, synced, read);
criterion_main!(benches);
