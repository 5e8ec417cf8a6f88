//! The source: its contract, where it begins, what it finds, what is gone.

use super::*;
use crate::{
    contract::{check_source, read, read_all},
    kafka::probe,
};
use std::{collections::BTreeMap, sync::Arc};
use tidemill_core::{Batch, BatchId, Budget, Offset, OffsetRange, PartitionId, Position, Timestamp};

const ALL: Budget = Budget { records: u64::MAX, bytes: u64::MAX, parallelism: 2 };

/// What a source must give, as a consumer of committed records sees it.
fn expected(brokers: &str, topics: &[&str]) -> BTreeMap<PartitionId, Vec<(u64, Vec<u8>)>> {
    let mut all: BTreeMap<PartitionId, Vec<(u64, Vec<u8>)>> = BTreeMap::new();
    for topic in topics {
        for (partition, offset, _, value) in probe::committed(brokers, topic) {
            let id = PartitionId::new(format!("{topic}-{partition}"));
            all.entry(id).or_default().push((u64::try_from(offset).unwrap(), value.into_bytes()));
        }
    }
    all
}

/// Moves a position past ranges.
fn past(position: &mut Position, ranges: &[OffsetRange]) {
    for range in ranges {
        let at = position.entry(range.partition.clone()).or_default();
        *at = (*at).max(range.end);
    }
}

fn sizes(ranges: &[OffsetRange]) -> Vec<String> {
    ranges.iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_a_source() {
    let Some(brokers) = probe::server() else { return };
    probe::topic(&brokers, "contract-a", 2, &[]);
    probe::topic(&brokers, "contract-b", 1, &[]);
    probe::produce(&brokers, "contract-a", 0, numbered(0..100), None);
    // Between, before and behind the records that count: ends of transactions, and records of aborted ones.
    probe::produce(&brokers, "contract-a", 1, numbered(0..20), Some(false));
    probe::produce(&brokers, "contract-a", 1, numbered(20..50), Some(true));
    probe::produce(&brokers, "contract-a", 1, numbered(50..60), None);
    probe::produce(&brokers, "contract-a", 1, numbered(60..70), Some(false));
    probe::produce(&brokers, "contract-b", 0, numbered(0..3), Some(true));
    let source = source(&with(&brokers, "contract-a, contract-b", &[])).unwrap();
    let all = check_source(&source, 1).await;
    let expected = expected(&brokers, &["contract-a", "contract-b"]);
    assert_eq!(expected.values().map(Vec::len).sum::<usize>(), 143);
    assert_eq!(all, expected);
    let pattern = super::source(&with(&brokers, "contract-?", &[])).unwrap();
    assert_eq!(read_all(&pattern).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_takes_its_share_of_each_partition() {
    let Some(brokers) = probe::server() else { return };
    probe::topic(&brokers, "shares", 3, &[]);
    probe::produce(&brokers, "shares", 0, numbered(0..600), None);
    probe::produce(&brokers, "shares", 2, numbered(0..300), None);
    let source = source(&with(&brokers, "shares", &[])).unwrap();
    let ranges = source.plan(&Position::new(), Budget { records: 90, ..ALL }).await.unwrap();
    assert_eq!(sizes(&ranges), ["shares-0[0, 60)", "shares-1[0, 0)", "shares-2[0, 30)"]);
    assert_eq!(source.lag(&Position::new()).await.unwrap(), 900);
    let bounded = super::source(&with(&brokers, "shares", &[("partition_records", "40")])).unwrap();
    let ranges = bounded.plan(&Position::new(), ALL).await.unwrap();
    assert_eq!(sizes(&ranges), ["shares-0[0, 40)", "shares-1[0, 0)", "shares-2[0, 40)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_begins_where_it_is_told_and_ends_there_too() {
    let Some(brokers) = probe::server() else { return };
    probe::topic(&brokers, "places", 2, &[]);
    probe::produce(&brokers, "places", 0, numbered(0..10), None);
    // A moment that lies between two records, by the server's own account of them.
    let between = loop {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        probe::produce(&brokers, "places", 1, numbered(0..1), None);
        let later = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        if later > now + 1 {
            break Timestamp::from_millis(i64::try_from(later).unwrap() + 1);
        }
    };
    while Timestamp::from_millis(
        i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()).unwrap(),
    ) <= between
    {
        std::hint::spin_loop();
    }
    probe::produce(&brokers, "places", 0, numbered(10..15), None);
    let time = between.to_string();
    let first_of_1 = probe::committed(&brokers, "places").iter().filter(|r| r.0 == 1).count();
    for (start, want) in [
        ("earliest", [0, 0]),
        ("latest", [15, first_of_1]),
        (time.as_str(), [10, first_of_1]),
        ("places-0:12", [12, 0]),
        ("2999-01-01", [15, first_of_1]),
    ] {
        let from = source(&with(&brokers, "places", &[("start", start)])).unwrap();
        let ranges = from.plan(&Position::new(), ALL).await.unwrap();
        let starts: Vec<usize> = ranges.iter().map(|range| usize::try_from(range.start.0).unwrap()).collect();
        assert_eq!(starts, want, "{start}");
        let until = source(&with(&brokers, "places", &[("until", start)])).unwrap();
        let mut position = Position::new();
        let ranges = until.plan(&position, ALL).await.unwrap();
        past(&mut position, &ranges);
        let ends: Vec<usize> = position.values().map(|at| usize::try_from(at.0).unwrap()).collect();
        assert_eq!(ends, want, "until {start}");
        assert!(until.is_exhausted(&position).await.unwrap());
    }
    // What comes later is behind the end.
    let until = source(&with(&brokers, "places", &[("until", "latest")])).unwrap();
    let mut position = Position::new();
    let ranges = until.plan(&position, ALL).await.unwrap();
    past(&mut position, &ranges);
    probe::produce(&brokers, "places", 0, numbered(15..20), None);
    assert!(until.is_exhausted(&position).await.unwrap());
    let error = source(&with(&brokers, "places", &[("start", "places-7:1")])).unwrap();
    let error = error.plan(&Position::new(), ALL).await.unwrap_err().to_string();
    assert!(error.contains("there is no such partition"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_appears_while_it_runs_is_read_from_its_beginning() {
    let Some(brokers) = probe::server() else { return };
    for topic in ["grown-a", "grown-b"] {
        probe::topic(&brokers, topic, 1, &[]);
    }
    // Only `grown-a` is there at first.
    crate::kafka::admin::Admin::new(crate::kafka::Servers::new(&brokers)).delete("grown-b").unwrap();
    probe::produce(&brokers, "grown-a", 0, numbered(0..5), None);
    let source = source(&with(&brokers, "grown-*", &[("start", "latest"), ("refresh", "0s")])).unwrap();
    let mut position = Position::new();
    let ranges = source.plan(&position, ALL).await.unwrap();
    assert_eq!(sizes(&ranges), ["grown-a-0[5, 5)"], "its place is in the ledger though nothing is new");
    past(&mut position, &ranges);
    assert!(source.plan(&position, ALL).await.unwrap().is_empty());

    probe::topic(&brokers, "grown-b", 1, &[]);
    probe::grow(&brokers, "grown-a", 2);
    probe::produce(&brokers, "grown-b", 0, numbered(0..2), None);
    probe::produce(&brokers, "grown-a", 1, numbered(0..3), None);
    let ranges = source.plan(&position, ALL).await.unwrap();
    assert_eq!(sizes(&ranges), ["grown-a-1[0, 3)", "grown-b-0[0, 2)"]);
    // Also when the program stood still meanwhile.
    let later = super::source(&with(&brokers, "grown-*", &[("start", "latest")])).unwrap();
    assert_eq!(later.plan(&position, ALL).await.unwrap(), ranges);
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_that_are_gone_are_named_exactly() {
    let Some(brokers) = probe::server() else { return };
    probe::topic(&brokers, "gone", 1, &[]);
    probe::produce(&brokers, "gone", 0, numbered(0..50), None);
    let at = |offset| Position::from([(PartitionId::new("gone-0"), Offset(offset))]);
    let open = || source(&with(&brokers, "gone", &[("refresh", "0s")])).unwrap();
    let kept = open();
    let planned = kept.plan(&at(10), ALL).await.unwrap();
    probe::cut(&brokers, "gone", 0, 30);
    let error = open().plan(&at(10), ALL).await.unwrap_err().to_string();
    assert!(
        error.contains("topic `gone` partition 0: offsets [10, 30) are needed and are gone: the topic's retention"),
        "{error}"
    );
    // A batch that was planned before learns it when it reads.
    let mut chunks = kept.read(&planned[0]);
    let error = futures::StreamExt::next(&mut chunks).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("offsets [10, 30) are needed and are gone"), "{}", error.chain());
    assert!(!error.is_retryable());
    assert_eq!(open().plan(&at(30), ALL).await.unwrap()[0].len(), 20, "nothing else is gone");

    probe::topic(&brokers, "gone", 1, &[]);
    probe::produce(&brokers, "gone", 0, numbered(0..8), None);
    let error = open().plan(&at(50), ALL).await.unwrap_err().to_string();
    assert!(error.contains("offsets [8, 50) are needed and are gone: the topic was deleted and made anew"), "{error}");
    let error = read_error(&open(), 5, 50).await;
    assert!(error.contains("offsets [8, 50) are needed and are gone"), "{error}");
    crate::kafka::admin::Admin::new(crate::kafka::Servers::new(&brokers)).delete("gone").unwrap();
    let error = open().plan(&at(50), ALL).await.unwrap_err().to_string();
    assert!(error.contains(&format!("there is no topic `gone` at {brokers}; make it with tidemill topic")), "{error}");
}

/// The error that ends a read, of which the records before come.
async fn read_error(source: &KafkaSource, start: u64, end: u64) -> String {
    let range = OffsetRange { partition: PartitionId::new("gone-0"), start: Offset(start), end: Offset(end) };
    let mut chunks = source.read(&range);
    loop {
        match futures::StreamExt::next(&mut chunks).await.expect("an error") {
            Ok(_) => {}
            Err(error) => return error.chain(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_go_to_the_group_for_those_who_look() {
    let Some(brokers) = probe::server() else { return };
    probe::topic(&brokers, "lagging", 1, &[]);
    probe::produce(&brokers, "lagging", 0, numbered(0..9), None);
    let source = source(&with(&brokers, "lagging", &[("group", "lag-watchers")])).unwrap();
    let partition = PartitionId::new("lagging-0");
    let range = |start, end| OffsetRange { partition: partition.clone(), start: Offset(start), end: Offset(end) };
    let mut batch = Batch { id: BatchId(1), ..Batch::default() };
    batch.ranges.insert("s".into(), vec![range(0, 4), range(4, 7)]);
    // Another stream of the program, over another cluster perhaps.
    batch.ranges.insert("other".into(), vec![range(0, 9)]);
    source.committed(&batch);
    let mut seen = None;
    for _ in 0..100 {
        seen = probe::group_offset(&brokers, "lag-watchers", "lagging", 0);
        if seen == Some(7) {
            break;
        }
    }
    assert_eq!(seen, Some(7));
    // It is no place to begin: the ledger's position is.
    assert_eq!(source.plan(&Position::new(), ALL).await.unwrap()[0], range(0, 9));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_read_once_whatever_their_sizes() {
    let Some(brokers) = probe::server() else { return };
    probe::topic(&brokers, "sizes", 1, &[]);
    let record = |n: u32| (None, format!("{n}:{}", "x".repeat((n as usize * 7919) % 60_000)));
    probe::produce(&brokers, "sizes", 0, (0..300).map(record).chain([(None, String::new())]), None);
    let source = source(&with(&brokers, "sizes", &[])).unwrap();
    let all = expected(&brokers, &["sizes"]);
    assert_eq!(read_all(&source).await, all);
    let of = all.values().next().unwrap();
    // Two readers of one partition, and ranges that do not follow each other.
    let source = Arc::new(source);
    let partition = PartitionId::new("sizes-0");
    let range =
        |start: u64, end: u64| OffsetRange { partition: partition.clone(), start: Offset(start), end: Offset(end) };
    for (start, end) in [(200, 301), (0, 10), (5, 250), (250, 260), (260, 301), (300, 301)] {
        let again = range(0, 50);
        let other = range(start, end);
        let (one, two) = tokio::join!(read(&*source, &other), read(&*source, &again));
        let slice = |from: u64, to: u64| of[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()].to_vec();
        assert_eq!((one, two), (slice(start, end), slice(0, 50)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_was_at_the_end_goes_on_with_what_comes() {
    let Some(brokers) = probe::server() else { return };
    probe::topic(&brokers, "tail", 1, &[]);
    let source = source(&with(&brokers, "tail", &[])).unwrap();
    let (mut position, mut seen) = (Position::new(), Vec::new());
    for round in 0..24_u32 {
        let commits = [None, Some(true), Some(false)][usize::try_from(round % 3).unwrap()];
        probe::produce(&brokers, "tail", 0, numbered(round * 10..round * 10 + 1 + round % 4), commits);
        source.wait(&position).await;
        let ranges = source.plan(&position, ALL).await.unwrap();
        for range in &ranges {
            // In pieces: the cursor is kept from one to the next.
            let middle = Offset(range.start.0 + range.len() / 2);
            for part in [OffsetRange { end: middle, ..range.clone() }, OffsetRange { start: middle, ..range.clone() }] {
                seen.extend(read(&source, &part).await);
            }
        }
        past(&mut position, &ranges);
    }
    assert_eq!(BTreeMap::from([(PartitionId::new("tail-0"), seen)]), expected(&brokers, &["tail"]));
}
