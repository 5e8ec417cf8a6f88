//! What a rewind needs of topics that no batch has read, and who reads a topic.

use super::*;
use crate::{
    Ledger, Log, SimDisk, TopicConfig,
    ledger::Committed,
    log::{Retention, Sync},
};
use arrow_array::{Int64Array, RecordBatch};
use std::collections::BTreeMap;
use tidemill_core::{Batch, ManualClock, OffsetRange};

fn rows(count: i64) -> RecordBatch {
    RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from_iter_values(0..count)) as _)]).unwrap()
}

fn log(disk: &Arc<dyn Disk>) -> Log {
    Log::open(Arc::clone(disk), Path::new("/a/log"), Arc::new(ManualClock::default())).unwrap()
}

/// Makes a topic of so many rows, the first of which retention has removed; gives where it starts.
fn topic(disk: &Arc<dyn Disk>, name: &str, owner: Option<&str>) -> Offset {
    let log = log(disk);
    let retention = Retention { max_age: None, max_bytes: Some(20_000) };
    let config = TopicConfig { retention, sync: Sync::Always, ..TopicConfig::new(rows(0).schema()) };
    let topic = log.create_topic(name, &config).unwrap();
    for _ in 0..40 {
        topic.append(0, &rows(200), None).unwrap();
        topic.sync_to(0, topic.end(0)).unwrap();
        topic.apply_retention(Timestamp(2_000_000)).unwrap();
    }
    if let Some(owner) = owner {
        topic.pin(owner, &BTreeMap::from([(0, topic.start(0))])).unwrap();
    }
    assert!(topic.start(0) > Offset(0));
    topic.start(0)
}

/// Three batches of program `p`, the last of which has read these offsets of a stream.
fn batches(disk: &Arc<dyn Disk>, stream: &str, read: Option<(Offset, Offset)>) -> Past {
    let mut ledger = Ledger::open(Arc::clone(disk), Path::new("/a/programs/p/ledger")).unwrap();
    for id in 1..=3_u64 {
        let range = |(start, end)| OffsetRange { partition: 0.into(), start, end };
        let ranges = read.filter(|_| id == 3).map(range).into_iter().collect();
        let (batch, time) = (BatchId(id), Timestamp(id.cast_signed() * 1000));
        ledger.plan(&Batch { id: batch, time, ranges: [(stream.to_owned(), ranges)].into() }).unwrap();
        ledger.commit(Committed { batch, time, ..Committed::default() }).unwrap();
    }
    ledger.past()
}

#[test]
fn what_no_batch_has_read_is_not_missed() {
    let at = |to| move |disk: &Arc<dyn Disk>, past: &Past| check(disk, Path::new("/a"), "p", past, BatchId(to));
    let made = || -> (Arc<dyn Disk>, Offset) {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
        let start = topic(&disk, "t", Some("p/late"));
        (disk, start)
    };
    // A stream that begins with the newest record, before the first has come.
    let (disk, start) = made();
    let past = batches(&disk, "late", None);
    assert_eq!(at(1)(&disk, &past).unwrap(), [""; 0]);
    let gone = format!("topic `t` partition 0: offsets [0, {start}) were removed by retention");
    assert_eq!(at(0)(&disk, &past).unwrap(), [gone], "of the beginning it is said");
    // And after it.
    let (disk, start) = made();
    let past = batches(&disk, "late", Some((start, Offset(start.0 + 1))));
    assert_eq!(at(2)(&disk, &past).unwrap(), [""; 0]);
    let (disk, start) = made();
    let past = batches(&disk, "late", Some((Offset(7), start)));
    let error = at(2)(&disk, &past).unwrap_err().to_string();
    assert!(error.contains(&format!("offsets [7, {start}) were removed by retention")), "{error}");
}

#[test]
fn who_reads_a_topic_is_told_by_its_pins_and_by_ledgers() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
    topic(&disk, "t", Some("q/other"));
    batches(&disk, "t", Some((Offset(7), Offset(9))));
    let readers = || readers(&*disk, Path::new("/a"), "t").unwrap();
    let reader = |program: &str, stream: &str| (program.to_owned(), stream.to_owned());
    assert_eq!(readers(), [reader("p", "t"), reader("q", "other")]);
    // The stream reads another topic now.
    topic(&disk, "u", Some("p/t"));
    assert_eq!(readers(), [reader("q", "other")]);
    log(&disk).topic("u").unwrap().unpin("p/t").unwrap();
    assert_eq!(readers(), [reader("p", "t"), reader("q", "other")]);
    // And now none.
    let log = log(&disk);
    let topic = log.topic("t").unwrap();
    topic.pin("p/t", &BTreeMap::from([(0, topic.end(0))])).unwrap();
    topic.release("p/t").unwrap();
    topic.unpin("q/other").unwrap();
    assert_eq!(readers(), []);
}
