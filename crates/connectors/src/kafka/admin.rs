//! What the command line does with a cluster: topics made, listed, described and deleted; records in and out.
//!
//! Invariant: what is said to be kept was acknowledged by all replicas in sync; what is shown is committed. Calls
//! wait for the network, so nobody calls from within an async task. Called by `tidemill topic|produce|consume --kafka`.

use super::{
    client::{Heard, Servers},
    cursor::Cursors,
    encode::Records,
    envelope::{Beside, parts},
    producer::{Flight, Sender, Sending},
    reader::{RangeReader, Reads},
    topics::{Cluster, Partition, Topics, is_topic},
};
use rdkafka::{
    Offset as At,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    error::{KafkaError, RDKafkaErrorCode as Code},
};
use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};
use tidemill_core::{Chunk, Error, Offset, OffsetRange, Options, Result};

/// How long the cluster may take to make or delete a topic.
const MAKE: Duration = Duration::from_secs(15);

/// A cluster in the hands of a person.
#[derive(Debug)]
pub struct Admin {
    servers: Servers,
    reads: Arc<Reads>,
}

/// A partition of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionInfo {
    /// Its number.
    pub number: i32,
    /// The oldest offset that is kept.
    pub first: u64,
    /// The offset of the next record, as far as transactions are committed.
    pub end: u64,
}

/// A record that is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown<'a> {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: u64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: &'a [u8],
}

impl Admin {
    /// Of a cluster.
    pub fn new(servers: Servers) -> Self {
        let reads = Reads {
            cluster: Cluster::new(servers.clone(), "tidemill"),
            cursors: Cursors::new(servers.clone(), "tidemill"),
            beside: Beside { key: true, headers: false },
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        };
        Self { servers, reads: Arc::new(reads) }
    }

    /// All topics with their numbers of partitions, those of the cluster itself excepted.
    ///
    /// # Errors
    /// When the cluster can't be asked.
    pub fn topics(&self) -> Result<Vec<(String, i32)>> {
        let topics = self.reads.cluster.described(None)?;
        Ok(topics.into_iter().filter(|(name, _)| !name.starts_with("__")).collect())
    }

    /// The partitions of a topic.
    ///
    /// # Errors
    /// When it is not there.
    pub fn describe(&self, topic: &str) -> Result<Vec<PartitionInfo>> {
        let partitions = self.partitions(topic)?;
        let first = self.reads.cluster.offsets(&partitions, At::Beginning)?;
        let ends = self.reads.cluster.offsets(&partitions, At::End)?;
        let at = |partition: &Partition| PartitionInfo {
            number: partition.number,
            first: first.get(partition).copied().unwrap_or_default(),
            end: ends.get(partition).copied().unwrap_or_default(),
        };
        Ok(partitions.iter().map(at).collect())
    }

    fn partitions(&self, topic: &str) -> Result<Vec<Partition>> {
        must_be_a_name(topic)?;
        self.reads.cluster.partitions(&Topics::List(vec![topic.to_string()]))
    }

    /// Makes a topic with Kafka's own settings, such as `retention.ms`, and waits until it is there.
    ///
    /// # Errors
    /// When there is one, or the cluster refuses.
    pub fn create(&self, topic: &str, partitions: i32, replicas: i32, settings: &[(&str, &str)]) -> Result<()> {
        must_be_a_name(topic)?;
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas));
        for (key, value) in settings {
            new = new.set(key, value);
        }
        let (admin, heard) = self.admin()?;
        let options = AdminOptions::new().request_timeout(Some(MAKE)).operation_timeout(Some(MAKE));
        let made = futures::executor::block_on(admin.create_topics([&new], &options));
        self.check("make", topic, made, &heard)?;
        self.partitions(topic).map(drop)
    }

    /// Deletes a topic.
    ///
    /// # Errors
    /// When it is not there, or the cluster refuses.
    pub fn delete(&self, topic: &str) -> Result<()> {
        must_be_a_name(topic)?;
        let (admin, heard) = self.admin()?;
        let options = AdminOptions::new().request_timeout(Some(MAKE)).operation_timeout(Some(MAKE));
        let gone = futures::executor::block_on(admin.delete_topics(&[topic], &options));
        self.check("delete", topic, gone, &heard)
    }

    /// Waits a while for the cluster to do what it was asked to.
    pub(super) fn rest(&self, span: Duration) {
        // A fault is told by whatever is asked next.
        let _rested = self.reads.cluster.rest(span);
    }

    fn admin(&self) -> Result<(AdminClient<Heard>, Heard)> {
        self.servers.client(&[])
    }

    fn check(
        &self,
        what: &str,
        topic: &str,
        done: Result<Vec<Result<String, (String, Code)>>, KafkaError>,
        heard: &Heard,
    ) -> Result<()> {
        let what = format!("{what} topic `{topic}`");
        let done = done.map_err(|e| self.servers.failed(&what, e, heard))?;
        if let Some((_, code)) = done.into_iter().find_map(Result::err) {
            return Err(match code {
                Code::TopicAlreadyExists => Error::user(format!("kafka: there is a topic `{topic}` already")),
                Code::UnknownTopicOrPartition | Code::UnknownTopic => {
                    Error::user(format!("kafka: there is no topic `{topic}` at {}", self.servers.brokers()))
                }
                Code::InvalidReplicationFactor => Error::user(format!(
                    "kafka: the cluster has too few servers for so many replicas of topic `{topic}`"
                )),
                code => self.servers.failed(&what, KafkaError::AdminOp(code), heard),
            });
        }
        Ok(())
    }

    /// Appends what `lines` gives until it gives `None`, and says how many were kept.
    ///
    /// # Errors
    /// When `lines` fails, or the cluster refuses one; those before may be kept.
    pub fn produce(
        &self,
        topic: &str,
        partition: Option<i32>,
        lines: &mut dyn FnMut() -> Result<Option<Vec<u8>>>,
    ) -> Result<u64> {
        let there = self.partitions(topic)?;
        if let Some(number) = partition.filter(|number| !there.iter().any(|p| p.number == *number)) {
            return Err(no_partition(topic, number, there.len()));
        }
        let sending = Sending::from_options(&Options::new("produce", [("", "")]))?;
        let (producer, heard) = sending.open(&self.servers, &[])?;
        let sender = Sender { servers: &self.servers, producer: &producer, heard: &heard, topic };
        let flight = Arc::new(Flight::default());
        let mut kept = 0;
        while let Some(line) = lines()? {
            sender.send_to(partition, &Records::of(line), &flight)?;
            kept += 1;
        }
        sender.land(&flight)?;
        Ok(kept)
    }

    /// Shows committed records of a topic, or of one partition: all, or about the newest `newest`, of which those that
    /// are too many are left out at the front. Ends when `show` says `false`, or at the end as it is now.
    ///
    /// # Errors
    /// When the topic is not there or can't be read.
    pub fn consume(
        &self,
        topic: &str,
        partition: Option<i32>,
        newest: Option<u64>,
        show: &mut dyn FnMut(Shown<'_>) -> Result<bool>,
    ) -> Result<()> {
        let all = self.describe(topic)?;
        if let Some(number) = partition.filter(|number| !all.iter().any(|p| p.number == *number)) {
            return Err(no_partition(topic, number, all.len()));
        }
        let chosen = all.into_iter().filter(|info| partition.is_none_or(|number| number == info.number));
        let chosen: Vec<PartitionInfo> = chosen.collect();
        let total: u64 = chosen.iter().map(|info| info.end - info.first).sum();
        let mut skip = newest.map_or(0, |newest| total.saturating_sub(newest));
        for info in chosen {
            let own = Partition::new(topic, info.number);
            let start = info.end.min(info.first + skip);
            skip -= start - info.first;
            let range = OffsetRange { partition: own.id(), start: Offset(start), end: Offset(info.end) };
            let mut reader = RangeReader::new(Arc::clone(&self.reads), own, &range);
            while let Some(chunk) = reader.next()? {
                let Chunk::Raw(block) = chunk else { continue };
                for (row, record) in block.records().enumerate() {
                    let (value, key, _) = parts(record);
                    let shown = Shown { partition: info.number, offset: block.offset(row).0, key, value };
                    if !show(shown)? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}

fn must_be_a_name(topic: &str) -> Result<()> {
    if is_topic(topic) {
        return Ok(());
    }
    Err(Error::user(format!("`{topic}` can't be a topic's name: take up to 249 letters, digits, `.`, `_` and `-`")))
}

fn no_partition(topic: &str, number: i32, count: usize) -> Error {
    Error::user(format!("topic `{topic}` has no partition {number}: it has {count} of them, counted from 0"))
}
