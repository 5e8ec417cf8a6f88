//! Which partitions there are, and how far they go.
//!
//! Invariant: what is asked is answered as of now, or fails; nothing is remembered here. Ends are those of committed
//! transactions, as the readers see them. Called by the source, the sink and the command line.

use super::client::{CALL, Heard, Servers};
use glob::Pattern;
use rdkafka::{
    Offset as At, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::RDKafkaErrorCode as Code,
};
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tidemill_core::{Error, PartitionId, Result};

/// How long a topic that is not there is looked for: a broker that starts does not know all of them at once.
const APPEARS: Duration = Duration::from_secs(3);
/// How long one answer is waited for, before what the client has told is looked at.
const ANSWER: Duration = Duration::from_secs(2);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Partition {
    pub(super) topic: Arc<str>,
    pub(super) number: i32,
}

impl Partition {
    pub(super) fn new(topic: &str, number: i32) -> Self {
        Self { topic: topic.into(), number }
    }

    /// From `orders-0`, as Kafka's own tools write it; a topic's name may have more of `-`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (topic, number) = text.rsplit_once('-')?;
        let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        (plain && !topic.is_empty()).then(|| Some(Self::new(topic, number.parse().ok()?)))?
    }

    /// Its name in the ledger.
    pub(super) fn id(&self) -> PartitionId {
        PartitionId::new(self.to_string())
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.number)
    }
}

/// Topics by name, or all whose names fit a pattern.
#[derive(Debug, Clone)]
pub(super) enum Topics {
    List(Vec<String>),
    Pattern(Pattern),
}

impl Topics {
    /// From `orders`, `orders, refunds` or `orders-*`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.contains(['*', '?', '[']) {
            return Pattern::new(text.trim()).ok().map(Self::Pattern);
        }
        let names: Vec<String> = text.split(',').map(|name| name.trim().to_string()).collect();
        names.iter().all(|name| is_topic(name)).then_some(Self::List(names))
    }

    /// Whether a topic is one of them.
    pub(super) fn has(&self, topic: &str) -> bool {
        match self {
            Self::List(names) => names.iter().any(|name| name == topic),
            Self::Pattern(pattern) => pattern.matches(topic),
        }
    }
}

impl fmt::Display for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(names) => f.write_str(&names.join(", ")),
            Self::Pattern(pattern) => f.write_str(pattern.as_str()),
        }
    }
}

/// Whether Kafka takes it as a topic's name.
pub(super) fn is_topic(name: &str) -> bool {
    (1..=249).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// A connection that asks and reads nothing.
pub(super) struct Cluster {
    pub(super) servers: Servers,
    group: String,
    asking: Mutex<Option<(Arc<BaseConsumer<Heard>>, Heard)>>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("servers", &self.servers).field("group", &self.group).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Of a cluster; offsets are committed to `group`, if any are.
    pub(super) fn new(servers: Servers, group: &str) -> Self {
        Self { servers, group: group.to_string(), asking: Mutex::default() }
    }

    /// The client, which is made when it is first needed.
    pub(super) fn asking(&self) -> Result<(Arc<BaseConsumer<Heard>>, Heard)> {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let (client, heard) = match &*asking {
            Some(asking) => asking.clone(),
            None => {
                let settings = [
                    ("group.id", self.group.as_str()),
                    ("enable.auto.commit", "false"),
                    ("isolation.level", "read_committed"),
                ];
                let (client, heard) = self.servers.client::<BaseConsumer<Heard>>(&settings)?;
                asking.insert((Arc::new(client), heard)).clone()
            }
        };
        listen(&client, &heard, Duration::ZERO);
        Ok((client, heard))
    }

    /// Waits a while, and hears what the client has to tell meanwhile.
    pub(super) fn rest(&self, span: Duration) -> Result<()> {
        let (client, heard) = self.asking()?;
        let until = Instant::now() + span;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if let Some(Err(error)) = client.poll(left) {
                heard.note(&error, "");
            }
        }
        Ok(())
    }

    /// The partitions of `topics`.
    ///
    /// # Errors
    /// When a topic of a list is not there.
    pub(super) fn partitions(&self, topics: &Topics) -> Result<Vec<Partition>> {
        let mut found = match topics {
            Topics::Pattern(_) => self.described(None)?,
            Topics::List(names) => {
                let mut all = BTreeMap::new();
                for name in names {
                    all.append(&mut self.described(Some(name))?);
                }
                all
            }
        };
        found.retain(|topic, _| topics.has(topic));
        let partitions = |(topic, count): (String, i32)| (0..count).map(move |number| Partition::new(&topic, number));
        Ok(found.into_iter().flat_map(partitions).collect())
    }

    /// Topics with their numbers of partitions.
    pub(super) fn described(&self, topic: Option<&str>) -> Result<BTreeMap<String, i32>> {
        let begun = Instant::now();
        loop {
            let (client, heard) = self.asking()?;
            let answer = match client.fetch_metadata(topic, ANSWER) {
                Ok(answer) => answer,
                Err(error) => {
                    listen(&client, &heard, Duration::from_millis(2));
                    let error = self.servers.failed("ask for topics", error, &heard);
                    // Why there is no answer may have been told.
                    if error.is_retryable() && begun.elapsed() < CALL {
                        continue;
                    }
                    return Err(error);
                }
            };
            heard.forget();
            let mut found = BTreeMap::new();
            let mut missing = None;
            for described in answer.topics() {
                match described.error().map(Code::from) {
                    None if !described.partitions().is_empty() => {
                        let count = i32::try_from(described.partitions().len()).unwrap_or(i32::MAX);
                        found.insert(described.name().to_string(), count);
                    }
                    None | Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => {
                        missing = Some(described.name().to_string());
                    }
                    Some(code) => {
                        let error = rdkafka::error::KafkaError::MetadataFetch(code);
                        let what = format!("ask for topic `{}`", described.name());
                        let error = self.servers.failed(&what, error, &heard);
                        if !error.is_retryable() || begun.elapsed() > APPEARS {
                            return Err(error);
                        }
                        missing = Some(described.name().to_string());
                    }
                }
            }
            match missing {
                Some(name) if topic.is_some() && begun.elapsed() > APPEARS => {
                    let brokers = self.servers.brokers();
                    return Err(Error::user(format!(
                        "kafka: there is no topic `{name}` at {brokers}; make it with tidemill topic --kafka {brokers} create {name}"
                    )));
                }
                Some(_) if topic.is_some() => self.rest(LOOK)?,
                _ => return Ok(found),
            }
        }
    }

    /// The offset at a place of each partition: the beginning, the end, or a time in milliseconds.
    pub(super) fn offsets(&self, of: &[Partition], place: At) -> Result<BTreeMap<Partition, u64>> {
        if of.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (client, heard) = self.asking()?;
        let failed = |error| self.servers.failed("ask for offsets", error, &heard);
        let mut asked = TopicPartitionList::with_capacity(of.len());
        for partition in of {
            asked.add_partition_offset(&partition.topic, partition.number, place).map_err(failed)?;
        }
        let answer = client.offsets_for_times(asked, CALL).map_err(failed)?;
        let (mut found, mut behind) = (BTreeMap::new(), Vec::new());
        for element in answer.elements() {
            element.error().map_err(failed)?;
            let partition = Partition::new(element.topic(), element.partition());
            match element.offset() {
                At::Offset(at) => drop(found.insert(partition, u64::try_from(at).unwrap_or(0))),
                // No record is so new.
                _ => behind.push(partition),
            }
        }
        if !behind.is_empty() {
            if place == At::End {
                return Err(Error::external(format!("kafka: {} did not say where it ends", behind[0])));
            }
            found.append(&mut self.offsets(&behind, At::End)?);
        }
        Ok(found)
    }

    /// Commits offsets to the group, without waiting.
    pub(super) fn commit(&self, offsets: &[(Partition, u64)]) -> Result<()> {
        let (client, heard) = self.asking()?;
        let failed = |error| self.servers.failed("commit offsets", error, &heard);
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for (partition, offset) in offsets {
            let at = At::Offset(i64::try_from(*offset).unwrap_or(i64::MAX));
            list.add_partition_offset(&partition.topic, partition.number, at).map_err(failed)?;
        }
        client.commit(&list, CommitMode::Async).map_err(failed)
    }
}

/// Hears what a client has to tell, a few words at a time; it is assigned nothing, so no record can come. A poll that
/// gives nothing may have told something all the same.
fn listen(client: &BaseConsumer<Heard>, heard: &Heard, wait: Duration) {
    for _ in 0..16 {
        if let Some(Err(error)) = client.poll(wait) {
            heard.note(&error, "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_written_as_kafka_writes_them() {
        for (text, want) in [
            ("a-0", Some(("a", 0))),
            ("a-b-12", Some(("a-b", 12))),
            ("a", None),
            ("-1", None),
            ("a--1", Some(("a-", 1))),
        ] {
            let parsed = Partition::parse(text);
            assert_eq!(parsed, want.map(|(topic, number)| Partition::new(topic, number)), "{text}");
            if let Some(parsed) = parsed {
                assert_eq!(parsed.to_string(), text);
            }
        }
        assert_eq!(Partition::parse("a-+1"), None);
        assert_eq!(Partition::parse("a-99999999999"), None);
    }

    #[test]
    fn topics_are_names_or_a_pattern() {
        let topics = Topics::parse("orders, refunds").unwrap();
        assert!(topics.has("orders") && topics.has("refunds") && !topics.has("order"));
        let topics = Topics::parse("log.*-eu").unwrap();
        assert!(topics.has("log.web-eu") && !topics.has("logs-eu") && !topics.has("log.web-us"));
        for bad in ["", "a,,b", "a b", "a/b", "..", "[x"] {
            assert!(Topics::parse(bad).is_none(), "{bad}");
        }
    }
}
