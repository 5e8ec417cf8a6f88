//! Inlets by themselves: where a source goes on, after a failure and after crashes, and what memory holds.

use super::{Inlet, Parts};
use crate::{
    channel::{
        Channel,
        file::{FileChannel, FileConfig, Token},
        memory::Memory,
    },
    event::Event,
    interceptor::Interceptor,
    selector::Selector,
    source::{Origin, read::Read, seq::Seq},
    status::Counters,
};
use async_trait::async_trait;
use futures::{StreamExt, stream};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tidemill_core::{
    Block, Budget, Chunk, ChunkStream, Clock, Error, Intake, ManualClock, Offset, OffsetRange, PartitionId, Position,
    Result, Shape, Source, StopHandle, Timestamp,
};
use tidemill_store::{
    Log, SimDisk,
    disk::Disk,
    log::{Retention, Sync},
};

/// The inlet `r1` that puts all into the channels, and what ends its waits.
pub(crate) async fn inlet(channels: &[&Arc<Channel>], interceptors: Vec<Interceptor>) -> (StopHandle, Arc<Inlet>) {
    let (handle, quit) = StopHandle::new();
    let parts = Parts {
        source: "r1".to_owned(),
        interceptors,
        selector: Selector::Replicating { optional: vec![] },
        channels: channels.iter().map(|channel| Arc::clone(channel)).collect(),
        counters: Arc::new(Counters::default()),
        clock: Arc::new(ManualClock::default()) as Arc<dyn Clock>,
        quit,
    };
    (handle, Arc::new(Inlet::open(parts).await.unwrap()))
}

pub(crate) fn memory(capacity: u64) -> Arc<Channel> {
    Arc::new(Channel::memory("c1", Memory::new(capacity, 1 << 20), None))
}

fn durable(disk: &SimDisk, name: &str) -> (Log, Arc<Channel>) {
    let disk = Arc::new(disk.clone()) as Arc<dyn Disk>;
    let log = Log::open(Arc::clone(&disk), Path::new("/d/log"), Arc::new(ManualClock::default())).unwrap();
    let keep = Retention { max_age: None, max_bytes: Some(1 << 20) };
    let config = FileConfig { capacity: 100, sync: Sync::Always, keep };
    let file = FileChannel::open(&log, disk, Path::new("/d/agents/a1"), "a1", name, &config).unwrap();
    (log, Arc::new(Channel::file(name, file)))
}

#[tokio::test]
async fn two_crashes_lose_nothing_for_the_channel_that_was_behind() {
    let [one, two] = [SimDisk::new(), SimDisk::new()];
    for (disk, name, at) in [(&one, "c1", 10), (&two, "c2", 8)] {
        let (_log, channel) = durable(disk, name);
        let token = Token { number: at, resume: Some(at.to_string()) };
        channel.try_put(&mut Vec::new(), "r1", Some(&token)).unwrap().unwrap().await.unwrap();
    }
    let ((_log1, first), (_log2, second)) = (durable(&one, "c1"), durable(&two, "c2"));
    let (_quit, begun) = inlet(&[&first, &second], vec![]).await;
    assert_eq!(begun.resumes().as_deref(), Some("8"));
    // The next put is durable in the second channel, and not yet in the first one.
    let one = one.fork();
    let put = begun.put(vec![Event::new("9", Timestamp(0))], Some("9".to_owned())).await.unwrap();
    put.all().await.unwrap();
    let two = two.fork();
    let ((_log1, first), (_log2, second)) = (durable(&one, "c1"), durable(&two, "c2"));
    let (_quit, begun) = inlet(&[&first, &second], vec![]).await;
    // The second channel has never had what is between 9 and 10.
    assert_eq!(begun.resumes().as_deref(), Some("8"));
}

#[tokio::test]
async fn a_source_that_is_begun_anew_goes_on_behind_its_last_put() {
    let channel = memory(100);
    let (_quit, begun) = inlet(&[&channel], vec![]).await;
    let (_handle, stop) = StopHandle::new();
    for _ in 0..2 {
        Seq { total: Some(3), batch_size: 1 }.run(Arc::clone(&begun), stop.clone()).await.unwrap();
    }
    assert_eq!(channel.len(), 3);
    assert_eq!(Intake::resume(&*begun).as_deref(), Some("3"));
}

/// Two partitions of a record each; the second one breaks when it is read for the first time.
#[derive(Debug, Default)]
struct Breaks(AtomicBool);

#[async_trait]
impl Source for Breaks {
    fn describe(&self) -> String {
        "breaks".to_owned()
    }

    fn shape(&self) -> Shape {
        Shape::Raw
    }

    async fn plan(&self, position: &Position, _budget: Budget) -> Result<Vec<OffsetRange>> {
        let left = ["a", "b"].map(PartitionId::new).into_iter().filter(|partition| !position.contains_key(partition));
        Ok(left.map(|partition| OffsetRange { partition, start: Offset(0), end: Offset(1) }).collect())
    }

    fn read(&self, range: &OffsetRange) -> ChunkStream {
        let breaks = &*range.partition.0 == "b" && !self.0.swap(true, Ordering::Relaxed);
        let chunk = if breaks {
            Err(Error::external("the line broke"))
        } else {
            Ok(Chunk::Raw(Block::from_records([&*range.partition.0])))
        };
        stream::iter([chunk]).boxed()
    }

    async fn is_exhausted(&self, position: &Position) -> Result<bool> {
        Ok(position.len() == 2)
    }
}

#[tokio::test]
async fn a_source_that_breaks_within_a_plan_gives_each_record_once() {
    let channel = memory(100);
    let (_quit, begun) = inlet(&[&channel], vec![]).await;
    let (_handle, stop) = StopHandle::new();
    let source = Read(Arc::new(Breaks::default()));
    assert!(source.run(Arc::clone(&begun), stop.clone()).await.unwrap_err().is_retryable());
    for _ in 0..2 {
        source.run(Arc::clone(&begun), stop.clone()).await.unwrap();
    }
    let bodies: Vec<_> = channel.try_take(10).await.unwrap().unwrap().events.into_iter().map(|e| e.body).collect();
    assert_eq!(bodies, ["a", "b"]);
}

#[tokio::test]
async fn few_events_of_a_block_do_not_hold_all_of_it_in_memory() {
    let filter = |text| Interceptor::Filter { regex: regex::bytes::Regex::new(text).unwrap(), exclude: false };
    for (text, copied) in [("^keep", true), (".", false)] {
        let channel = memory(100);
        let (_quit, begun) = inlet(&[&channel], vec![filter(text)]).await;
        let block = Block::from_records(["keep", "what goes is longer than that"]);
        let held = block.bytes.as_slice().as_ptr_range();
        let held = held.start as usize..held.end as usize;
        begun.append(block, None).await.unwrap().await.unwrap();
        let taken = channel.try_take(10).await.unwrap().unwrap();
        assert_eq!(taken.events[0].body, "keep");
        assert_eq!(!held.contains(&(taken.events[0].body.as_ptr() as usize)), copied, "{text}");
    }
}
