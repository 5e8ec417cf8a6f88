//! Source `kafka`: topics of Apache Kafka, read by offset ranges that the ledger keeps.
//!
//! | Option | Meaning |
//! |---|---|
//! | `brokers`, `user`, … | the cluster: see `client.rs` |
//! | `topic` | a topic, several (`orders, refunds`), or a pattern of them (`orders-*`) |
//! | `start` | where it begins in a partition that it has not read before: `earliest` (default), `latest`, a time, or offsets |
//! | `until` | where it ends, for a bounded read with the trigger `drain`: written as `start` is, and fixed at the start |
//! | `group` | a consumer group that the offsets of each batch are committed to, for tools that show lag |
//! | `partition_records` | records of one partition in a batch at most |
//! | `refresh` | how often it looks for new partitions and topics (5s) |
//! | `key_column`, `headers_column` | columns for key and headers: see `envelope.rs` |
//! | `format`, … | how a record's value is decoded; text when it is not given |
//!
//! Beside the value's columns every stream has `_partition` (`orders-0`), `_offset` and `_timestamp`, the record's own.
//!
//! A partition is named as Kafka's tools name it, `orders-0`, and has its place in the ledger from the first batch on,
//! also when it is empty. Partitions and topics that appear later are read from their beginning. Records of
//! transactions are read when these are committed. A record without a value is an empty one.
//!
//! Invariant: the next offset that a position names is read next, or the stream fails with the offsets that are gone:
//! removed by retention, or with a topic that was deleted and made anew. (One that was made anew and has grown
//! beyond the position before anyone looked can't be told from the first.)

use super::{
    blocking,
    client::Servers,
    cursor::Cursors,
    envelope::{Beside, Envelope},
    place::Place,
    reader::{LOST, RangeReader, Reads, gone},
    topics::{Cluster, Partition, Topics},
};
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use futures::{StreamExt, stream};
use rdkafka::Offset as At;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tidemill_core::{
    Batch, Budget, ChunkStream, Error, Format, Offset, OffsetRange, Options, PartitionId, Position, Result, Shape,
    Source,
};

/// How often new partitions are looked for, unless the options say so.
const REFRESH: Duration = Duration::from_secs(5);
/// Pause between looks at the ends while nothing is new.
const IDLE: Duration = Duration::from_millis(10);
/// How often an end that lies before what was read is looked at again: a broker that has just started may not know it yet.
const LOOKS: u32 = 20;
/// Pause between those looks.
const LOOK: Duration = Duration::from_millis(200);
/// The group that librdkafka asks for, where none is given; nothing is ever committed to it.
const NO_GROUP: &str = "tidemill";

/// Topics of a cluster.
#[derive(Debug, Clone)]
pub struct KafkaSource(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    topics: Topics,
    start: Place,
    until: Option<Place>,
    group: Option<String>,
    partition_records: u64,
    refresh: Duration,
    key: Option<String>,
    headers: Option<String>,
    /// The name of the stream that it is, if the options say it.
    stream: Option<String>,
    reads: Arc<Reads>,
    seen: Mutex<Seen>,
}

/// What this life knows.
#[derive(Debug, Default)]
struct Seen {
    partitions: Vec<Partition>,
    /// When they were looked for; `None` before the first time.
    looked: Option<Instant>,
    /// The oldest offsets at that time.
    first: BTreeMap<Partition, u64>,
    /// Where partitions begin that a position does not name.
    begin: BTreeMap<Partition, u64>,
    /// Where partitions end for good.
    until: BTreeMap<Partition, u64>,
}

impl KafkaSource {
    /// From a stream's options.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        let servers = Servers::from_options(options)?;
        let text = options.require("topic", "it names a topic, several (a, b), or a pattern of them (logs-*)")?;
        let topics = Topics::parse(text).ok_or_else(|| {
            Error::user(format!(
                "{owner}: option `topic`: `{text}` names no topics: take letters, digits, `.`, `_` and `-`, and `*` for a pattern"
            ))
        })?;
        let start = Place::parse(options, "start")?.unwrap_or(Place::Earliest);
        let until = Place::parse(options, "until")?;
        for partition in start.named().chain(until.iter().flat_map(Place::named)) {
            if !topics.has(&partition.topic) {
                return Err(Error::user(format!(
                    "{owner}: an offset is given for {partition}, which `topic` does not name"
                )));
            }
        }
        let group = options.get("group").map(str::to_string);
        if group.as_deref() == Some("") {
            return Err(Error::user(format!("{owner}: option `group` must name a consumer group, or be left out")));
        }
        let partition_records = options.parse("partition_records", u64::MAX)?;
        if partition_records == 0 {
            return Err(Error::user(format!("{owner}: option `partition_records` must be positive")));
        }
        let key = options.get("key_column").map(str::to_string);
        let headers = options.get("headers_column").map(str::to_string);
        let beside = Beside { key: key.is_some(), headers: headers.is_some() };
        let name = group.as_deref().unwrap_or(NO_GROUP);
        let reads = Reads {
            cluster: Cluster::new(servers.clone(), name),
            cursors: Cursors::new(servers, name),
            beside,
            records: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        };
        Ok(Self(Arc::new(Inner {
            topics,
            start,
            until,
            partition_records,
            refresh: options.duration("refresh", REFRESH)?,
            key,
            headers,
            stream: owner.strip_prefix("stream \"").and_then(|rest| rest.strip_suffix('"')).map(str::to_string),
            group,
            reads: Arc::new(reads),
            seen: Mutex::default(),
        })))
    }
}

impl Inner {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        // What it holds is looked up anew on each use, so a panic elsewhere leaves nothing half done.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for partitions when it is time to, and checks that those of `position` are there.
    fn look(&self, seen: &mut Seen, position: &Position) -> Result<()> {
        if seen.looked.is_some_and(|looked| looked.elapsed() < self.refresh) {
            return Ok(());
        }
        let cluster = &self.reads.cluster;
        let there = cluster.partitions(&self.topics)?;
        let known: BTreeMap<PartitionId, u64> = position.iter().map(|(id, at)| (id.clone(), at.0)).collect();
        for (id, at) in &known {
            let Some(partition) = Partition::parse(&id.0).filter(|partition| self.topics.has(&partition.topic)) else {
                // Of a topic that the program has let go of.
                continue;
            };
            let unread = seen.begin.contains_key(&partition) || matches!(self.topics, Topics::List(_));
            if !there.contains(&partition) && unread {
                return Err(gone(&partition, *at, at.saturating_add(1), "there is no such partition any more"));
            }
        }
        for named in self.start.named().chain(self.until.iter().flat_map(Place::named)) {
            if seen.looked.is_none() && !there.contains(named) {
                return Err(Error::user(format!(
                    "kafka: an offset is given for {named}, and there is no such partition"
                )));
            }
        }
        seen.first = cluster.offsets(&there, At::Beginning)?;
        // Where partitions begin that this life has not met yet.
        let new: Vec<Partition> = there.iter().filter(|p| !seen.begin.contains_key(*p)).cloned().collect();
        let topics_read: BTreeSet<Arc<str>> =
            known.keys().filter_map(|id| Some(Partition::parse(&id.0)?.topic)).collect();
        let by_start = |partition: &Partition| {
            // One that appeared while the program ran, or while it stood still, came after its start.
            let appeared = seen.looked.is_some()
                || topics_read.contains(&partition.topic)
                || matches!(self.topics, Topics::Pattern(_)) && !known.is_empty();
            !appeared
        };
        let (fresh, later): (Vec<Partition>, Vec<Partition>) = new.iter().cloned().partition(by_start);
        let mut begin = self.start.resolve(cluster, &fresh)?;
        begin.append(&mut Place::Earliest.resolve(cluster, &later)?);
        if let Some(until) = &self.until {
            seen.until.append(&mut until.resolve(cluster, &new)?);
        }
        if seen.looked.is_some() && !later.is_empty() {
            tracing::info!(topics = %self.topics, partitions = later.len(), "new partitions were found");
        }
        seen.begin.append(&mut begin);
        self.reads.cursors.partitions.store(there.len(), Relaxed);
        (seen.partitions, seen.looked) = (there, Some(Instant::now()));
        Ok(())
    }

    /// Where each partition stands and ends.
    fn open(&self, seen: &mut Seen, position: &Position) -> Result<Vec<(Partition, u64, u64)>> {
        self.look(seen, position)?;
        let mut looks = 0;
        loop {
            let ends = self.reads.cluster.offsets(&seen.partitions, At::End)?;
            let mut open = Vec::with_capacity(seen.partitions.len());
            let mut lost = None;
            for partition in &seen.partitions {
                let at = position.get(&partition.id()).map(|at| at.0);
                let at = at.or_else(|| seen.begin.get(partition).copied()).unwrap_or_default();
                let end = ends.get(partition).copied().unwrap_or_default();
                let first = seen.first.get(partition).copied().unwrap_or_default();
                if at < first {
                    return Err(gone(partition, at, first, "the topic's retention removed them"));
                }
                if at > end {
                    lost = Some(gone(partition, end, at, LOST));
                }
                let until = seen.until.get(partition).copied().unwrap_or(u64::MAX);
                open.push((partition.clone(), at, end.min(until).max(at)));
            }
            match lost {
                None => return Ok(open),
                Some(lost) if looks == LOOKS => return Err(lost),
                Some(_) => {
                    looks += 1;
                    self.reads.cluster.rest(LOOK)?;
                }
            }
        }
    }

    /// Mean bytes of a record; a guess of 256 before the first.
    fn record_bytes(&self) -> u64 {
        self.reads.bytes.load(Relaxed).checked_div(self.reads.records.load(Relaxed)).map_or(256, |mean| mean.max(1))
    }

    fn plan(&self, position: &Position, budget: Budget) -> Result<Vec<OffsetRange>> {
        let mut seen = self.seen();
        let open = self.open(&mut seen, position)?;
        let total = budget.records.min(budget.bytes / self.record_bytes()).max(1);
        let ahead: u128 = open.iter().map(|(_, at, end)| u128::from(end - at)).sum();
        let mut left = total;
        let mut ranges = Vec::with_capacity(open.len());
        for (partition, at, end) in open {
            let new = end - at;
            // In proportion to what is new, so that all partitions catch up together.
            let share = if ahead <= u128::from(total) {
                new
            } else {
                u64::try_from(u128::from(new) * u128::from(total) / ahead).unwrap_or(total).max(1).min(new)
            };
            let share = share.min(left).min(self.partition_records);
            left -= share;
            let id = partition.id();
            // An empty range as well, so that the ledger knows where a partition begins.
            if share > 0 || !position.contains_key(&id) {
                ranges.push(OffsetRange { partition: id, start: Offset(at), end: Offset(at + share) });
            }
        }
        Ok(ranges)
    }

    fn lag(&self, position: &Position) -> Result<u64> {
        let mut seen = self.seen();
        Ok(self.open(&mut seen, position)?.iter().map(|(_, at, end)| end - at).sum())
    }
}

#[async_trait]
impl Source for KafkaSource {
    fn describe(&self) -> String {
        let Inner { topics, group, .. } = &*self.0;
        let group = group.as_ref().map(|group| format!(", offsets to group {group}")).unwrap_or_default();
        format!("kafka {} topic {topics}{group}", self.0.reads.cluster.servers.brokers())
    }

    fn shape(&self) -> Shape {
        Shape::Raw
    }

    fn format(
        &self,
        columns: Option<SchemaRef>,
        make: &dyn Fn(Option<SchemaRef>) -> Result<Arc<dyn Format>>,
    ) -> Result<Arc<dyn Format>> {
        match (self.0.key.as_deref(), self.0.headers.as_deref()) {
            (None, None) => make(columns),
            beside => Envelope::over(beside, columns, make),
        }
    }

    async fn plan(&self, position: &Position, budget: Budget) -> Result<Vec<OffsetRange>> {
        let (inner, position) = (Arc::clone(&self.0), position.clone());
        blocking(move || inner.plan(&position, budget)).await
    }

    fn read(&self, range: &OffsetRange) -> ChunkStream {
        let Some(partition) = Partition::parse(&range.partition.0) else {
            let error = Error::user(format!("kafka: there is no partition `{}`", range.partition));
            return stream::iter([Err(error)]).boxed();
        };
        let reader = RangeReader::new(Arc::clone(&self.0.reads), partition, range);
        let step = |reader: Option<RangeReader>| async move {
            let mut reader = reader?;
            let next = blocking(move || {
                let next = reader.next();
                Ok((next, reader))
            });
            match next.await {
                Ok((Ok(None), _)) => None,
                Ok((Ok(Some(chunk)), reader)) => Some((Ok(chunk), Some(reader))),
                Ok((Err(error), _)) | Err(error) => Some((Err(error), None)),
            }
        };
        stream::unfold(Some(reader), step).boxed()
    }

    async fn is_exhausted(&self, position: &Position) -> Result<bool> {
        Ok(self.lag(position).await? == 0)
    }

    async fn lag(&self, position: &Position) -> Result<u64> {
        let (inner, position) = (Arc::clone(&self.0), position.clone());
        blocking(move || inner.lag(&position)).await
    }

    fn committed(&self, batch: &Batch) {
        if self.0.group.is_none() {
            return;
        }
        let own = |stream: &String| self.0.stream.as_ref().is_none_or(|own| own == stream);
        let mut offsets: BTreeMap<Partition, u64> = BTreeMap::new();
        for range in batch.ranges.iter().filter(|(stream, _)| own(stream)).flat_map(|(_, ranges)| ranges) {
            let Some(partition) = Partition::parse(&range.partition.0) else { continue };
            if self.0.topics.has(&partition.topic) && !range.is_empty() {
                let at = offsets.entry(partition).or_default();
                *at = (*at).max(range.end.0);
            }
        }
        let offsets: Vec<(Partition, u64)> = offsets.into_iter().collect();
        if offsets.is_empty() {
            return;
        }
        // For tools alone: what is read next says the ledger.
        if let Err(error) = self.0.reads.cluster.commit(&offsets) {
            tracing::warn!(error = error.chain(), "offsets could not be committed to the group");
        }
    }

    async fn wait(&self, position: &Position) {
        // A fault is told by the plan that comes next.
        while matches!(self.lag(position).await, Ok(0)) {
            tokio::time::sleep(IDLE).await;
        }
    }

    fn can_wait(&self) -> bool {
        true
    }
}
