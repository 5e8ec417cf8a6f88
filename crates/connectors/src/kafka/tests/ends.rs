//! Ends that move while they are read to: records that arrive, topics that go.

use super::*;
use crate::{
    contract::{read, read_all},
    kafka::{admin::Admin, client::Servers, probe},
};
use futures::StreamExt;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
};
use tidemill_core::{Budget, Chunk, Offset, OffsetRange, PartitionId, Position};

const ALL: Budget = Budget { records: u64::MAX, bytes: u64::MAX, parallelism: 1 };

/// One who writes to a topic until it is dropped: records without transactions, committed ones, aborted ones.
struct Arriving {
    stop: Arc<AtomicBool>,
    writer: Option<JoinHandle<()>>,
}

impl Arriving {
    fn begin(brokers: &str, topic: &str) -> Self {
        let (brokers, topic, stop) = (brokers.to_string(), topic.to_string(), Arc::new(AtomicBool::new(false)));
        let until = Arc::clone(&stop);
        let writer = std::thread::spawn(move || {
            for round in (0_u32..).take_while(|_| !until.load(Relaxed)) {
                let commits = [Some(false), None, Some(true)][usize::try_from(round % 3).unwrap()];
                let from = 1_000 + round * 10;
                probe::produce(&brokers, &topic, 0, numbered(from..from + 1 + round % 3), commits);
            }
        });
        Self { stop, writer: Some(writer) }
    }

    /// Waits until so much is there.
    fn has_written(brokers: &str, topic: &str, end: i64) {
        while probe::end(brokers, topic, 0) < end {}
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // That it panicked, the test sees by what is missing.
        let _ended = self.writer.take().map(JoinHandle::join);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bounded_read_ends_where_it_was_told_though_records_arrive() {
    let Some(brokers) = probe::server() else { return };
    probe::topic(&brokers, "arriving", 1, &[]);
    probe::produce(&brokers, "arriving", 0, numbered(0..50), None);
    // The range ends with offsets that have no record, behind which others come.
    probe::produce(&brokers, "arriving", 0, numbered(50..60), Some(false));
    let bounded = source(&with(&brokers, "arriving", &[("until", "latest")])).unwrap();
    let planned = bounded.plan(&Position::new(), ALL).await.unwrap();
    let there: Vec<(u64, Vec<u8>)> = (0..50).map(|n: u32| (n.into(), format!("record {n}").into_bytes())).collect();
    let arriving = Arriving::begin(&brokers, "arriving");
    for round in 0..8 {
        // With what arrived meanwhile behind the range, and with nothing there yet.
        Arriving::has_written(&brokers, "arriving", 61 + round * 4);
        assert_eq!(read(&bounded, &planned[0]).await, there, "round {round}");
    }
    let all = read_all(&bounded).await;
    assert_eq!(all.values().next().unwrap(), &there);
    let end = Position::from([(planned[0].partition.clone(), planned[0].end)]);
    assert!(bounded.is_exhausted(&end).await.unwrap(), "the end is where it was at the start");
    assert!(bounded.plan(&end, ALL).await.unwrap().is_empty());
    drop(arriving);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrives_while_it_reads_comes_once_and_whole() {
    let Some(brokers) = probe::server() else { return };
    probe::topic(&brokers, "chased", 1, &[]);
    let source = source(&with(&brokers, "chased", &[])).unwrap();
    let (partition, mut position, mut seen) = (PartitionId::new("chased-0"), Position::new(), Vec::new());
    let arriving = Arriving::begin(&brokers, "chased");
    // Each range ends at what was the partition's end a moment before.
    while position.get(&partition).is_none_or(|at| at.0 < 120) {
        for range in source.plan(&position, ALL).await.unwrap() {
            seen.extend(read(&source, &range).await);
            position.insert(range.partition, range.end);
        }
    }
    drop(arriving);
    for range in source.plan(&position, ALL).await.unwrap() {
        seen.extend(read(&source, &range).await);
    }
    let committed = probe::committed(&brokers, "chased").into_iter();
    let expected: Vec<(u64, Vec<u8>)> =
        committed.map(|(_, offset, _, value)| (u64::try_from(offset).unwrap(), value.into_bytes())).collect();
    assert_eq!(seen, expected);
}

/// Reads until it fails for good, as the engine does; the offset behind the last record of that try, and the error.
async fn fails(source: &KafkaSource, range: &OffsetRange, between: impl Fn()) -> (u64, String) {
    for _ in 0..20 {
        let (mut chunks, mut next) = (source.read(range), range.start.0);
        while let Some(chunk) = chunks.next().await {
            match chunk {
                Ok(Chunk::Raw(block)) => {
                    assert_eq!(block.base.0, next, "no record is left out");
                    next += u64::try_from(block.len()).unwrap();
                    between();
                }
                Ok(_) => panic!("raw records"),
                Err(error) if error.is_retryable() => break,
                Err(error) => return (next, error.chain()),
            }
        }
        assert!(next < range.end.0, "the whole range was read");
    }
    panic!("it is tried for ever");
}

/// Records of which a cursor does not fetch all ahead.
fn many() -> impl Iterator<Item = (Option<String>, String)> {
    (0..300).map(|n| (None, format!("{n} {}", "x".repeat(100_000))))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_under_a_reader_is_told_with_the_offsets() {
    let Some(brokers) = probe::server() else { return };
    let range = OffsetRange { partition: PartitionId::new("deleted-0"), start: Offset(0), end: Offset(300) };
    for topics in ["deleted", "deleted*"] {
        probe::topic(&brokers, "deleted", 1, &[]);
        probe::produce(&brokers, "deleted", 0, many(), None);
        let reader = source(&with(&brokers, topics, &[("refresh", "0s")])).unwrap();
        assert_eq!(reader.plan(&Position::new(), ALL).await.unwrap(), std::slice::from_ref(&range));
        let is_there = AtomicBool::new(true);
        let (at, error) = fails(&reader, &range, || {
            if is_there.swap(false, Relaxed) {
                Admin::new(Servers::new(&brokers)).delete("deleted").unwrap();
            }
        })
        .await;
        let says = format!(
            "topic `deleted` partition 0: offsets [{at}, 300) are needed and are gone: there is no such partition any more"
        );
        assert!(error.contains(&says), "{at}: {error}");
        // Whoever plans learns it as well, by whatever name the topic was found.
        let position = Position::from([(range.partition.clone(), Offset(7))]);
        let error = reader.plan(&position, ALL).await.unwrap_err();
        assert!(!error.is_retryable(), "{}", error.chain());
        let says =
            if topics == "deleted" { "there is no topic `deleted`" } else { "offsets [7, 8) are needed and are gone" };
        assert!(error.to_string().contains(says), "{}", error.chain());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_anew_under_a_reader_is_told_with_the_offsets() {
    let Some(brokers) = probe::server() else { return };
    probe::topic(&brokers, "anew", 1, &[]);
    probe::produce(&brokers, "anew", 0, many(), None);
    let reader = source(&with(&brokers, "anew", &[])).unwrap();
    let range = OffsetRange { partition: PartitionId::new("anew-0"), start: Offset(0), end: Offset(300) };
    let is_old = AtomicBool::new(true);
    let (at, error) = fails(&reader, &range, || {
        if is_old.swap(false, Relaxed) {
            probe::topic(&brokers, "anew", 1, &[]);
            probe::produce(&brokers, "anew", 0, numbered(0..3), None);
        }
    })
    .await;
    let from = at.max(3);
    let says =
        format!("topic `anew` partition 0: offsets [{from}, 300) are needed and are gone: the topic was deleted");
    assert!(error.contains(&says), "{at}: {error}");
}
