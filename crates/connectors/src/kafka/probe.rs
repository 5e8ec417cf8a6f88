//! What tests see of a topic, and how they fill one: by librdkafka alone, beside the code under test.
//!
//! Invariant: records that are seen are those of committed transactions, in the order of each partition. Called by
//! tests here and above.

use super::client::Servers;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewPartitions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, BaseRecord, Producer},
};
use std::{collections::BTreeSet, time::Duration};

/// How long a step may take.
const STEP: Duration = Duration::from_secs(30);

/// The server that `TIDEMILL_KAFKA` names: `ci/services up` starts one. Without it a test is skipped, and fails if
/// `TIDEMILL_SERVICES=required`.
///
/// # Panics
/// When it is required and not there.
pub fn server() -> Option<String> {
    let Ok(brokers) = std::env::var("TIDEMILL_KAFKA") else {
        let required = std::env::var("TIDEMILL_SERVICES").is_ok_and(|services| services == "required");
        assert!(!required, "TIDEMILL_KAFKA is not set, and TIDEMILL_SERVICES=required");
        eprintln!("skipped: TIDEMILL_KAFKA is not set; ci/services up starts a server");
        return None;
    };
    Some(brokers)
}

/// The address of another listener of the test server: so many ports further.
///
/// # Panics
/// When the address has no port.
pub fn listener(brokers: &str, further: u16) -> String {
    let (host, port) = brokers.rsplit_once(':').expect("host:port");
    format!("{host}:{}", port.parse::<u16>().expect("a port") + further)
}

/// A topic that is new, whatever was there under its name.
///
/// # Panics
/// When the server refuses.
pub fn topic(brokers: &str, name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let admin = super::admin::Admin::new(Servers::new(brokers));
    // It may not be there.
    let _gone = admin.delete(name);
    for _ in 0..100 {
        match admin.create(name, partitions, 1, settings) {
            Ok(()) => return,
            // The old one goes in its own time.
            Err(error) if error.to_string().contains("already") => admin.rest(Duration::from_millis(50)),
            Err(error) => panic!("topic {name}: {}", error.chain()),
        }
    }
    panic!("topic {name} does not go away");
}

/// Appends records, each with its key, to a partition; in a transaction that is committed or aborted, if asked.
///
/// # Panics
/// When the server refuses.
pub fn produce(
    brokers: &str,
    topic: &str,
    partition: i32,
    records: impl IntoIterator<Item = (Option<String>, String)>,
    commits: Option<bool>,
) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("enable.idempotence", "true");
    if commits.is_some() {
        config.set("transactional.id", format!("probe-{topic}"));
    }
    let producer: BaseProducer = config.create().expect("a producer");
    if commits.is_some() {
        producer.init_transactions(STEP).expect("transactions");
        producer.begin_transaction().expect("a transaction");
    }
    for (key, value) in records {
        let mut record: BaseRecord<'_, str, str> = BaseRecord::to(topic).partition(partition).payload(&value);
        record.key = key.as_deref();
        producer.send(record).map_err(|(error, _)| error).expect("sent");
        producer.poll(Duration::ZERO);
    }
    producer.flush(STEP).expect("flushed");
    match commits {
        Some(true) => producer.commit_transaction(STEP).expect("committed"),
        Some(false) => producer.abort_transaction(STEP).expect("aborted"),
        None => {}
    }
}

/// All records of a topic, by partition and then in order: (partition, offset, key, value).
///
/// # Panics
/// When the server can't be asked.
pub fn committed(brokers: &str, topic: &str) -> Vec<(i32, i64, Option<String>, String)> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "probe")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .create()
        .expect("a consumer");
    let described = consumer.fetch_metadata(Some(topic), STEP).expect("a topic");
    let partitions: Vec<i32> = described.topics()[0].partitions().iter().map(|p| p.id()).collect();
    let mut list = TopicPartitionList::new();
    for partition in &partitions {
        list.add_partition_offset(topic, *partition, Offset::Beginning).expect("a partition");
    }
    consumer.assign(&list).expect("assigned");
    let (mut all, mut ended) = (Vec::new(), BTreeSet::new());
    while ended.len() < partitions.len() {
        match consumer.poll(STEP).expect("an answer") {
            Ok(record) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let key = record.key().map(text);
                all.push((record.partition(), record.offset(), key, text(record.payload().unwrap_or_default())));
            }
            Err(KafkaError::PartitionEOF(partition)) => drop(ended.insert(partition)),
            Err(error) => panic!("{topic}: {error}"),
        }
    }
    all.sort();
    all
}

/// What a group has committed for a partition.
///
/// # Panics
/// When the server can't be asked.
pub fn group_offset(brokers: &str, group: &str, topic: &str, partition: i32) -> Option<i64> {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", group).create().expect("a consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, partition);
    let found = consumer.committed_offsets(list, STEP).expect("offsets");
    let element = found.find_partition(topic, partition).expect("the partition");
    if let Offset::Offset(at) = element.offset() { Some(at) } else { None }
}

/// A new topic of which no transactions of a program named `test` are known.
///
/// # Panics
/// When the server refuses.
pub fn fresh(brokers: &str, name: &str, partitions: i32) {
    topic(brokers, name, partitions, &[]);
    forget(brokers, &format!("tidemill.test.{name}"));
}

/// Forgets what a group has committed.
///
/// # Panics
/// When the server can't be asked.
pub fn forget(brokers: &str, group: &str) {
    let (admin, options) = admin(brokers);
    let gone = futures::executor::block_on(admin.delete_groups(&[group], &options)).expect("an answer");
    for (name, code) in gone.into_iter().filter_map(Result::err) {
        assert_eq!(code, RDKafkaErrorCode::GroupIdNotFound, "group {name}");
    }
}

fn admin(brokers: &str) -> (AdminClient<DefaultClientContext>, AdminOptions) {
    let admin = ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a client");
    (admin, AdminOptions::new().request_timeout(Some(STEP)).operation_timeout(Some(STEP)))
}

/// Gives a topic more partitions.
///
/// # Panics
/// When the server refuses.
pub fn grow(brokers: &str, topic: &str, partitions: usize) {
    let (admin, options) = admin(brokers);
    let new = NewPartitions::new(topic, partitions);
    let grown = futures::executor::block_on(admin.create_partitions([&new], &options)).expect("an answer");
    assert!(grown.iter().all(Result::is_ok), "{grown:?}");
}

/// Removes the records of a partition before an offset, as retention does.
///
/// # Panics
/// When the server refuses.
pub fn cut(brokers: &str, topic: &str, partition: i32, before: i64) {
    let (admin, options) = admin(brokers);
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(before)).expect("a partition");
    futures::executor::block_on(admin.delete_records(&list, &options)).expect("an answer");
}

/// Sends records in a transaction that is never ended, as by a process that was killed.
///
/// # Panics
/// When the server refuses.
pub fn leave_open(brokers: &str, topic: &str, id: &str, records: &[&str]) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", brokers).set("transactional.id", id).create().expect("a producer");
    producer.init_transactions(STEP).expect("transactions");
    producer.begin_transaction().expect("a transaction");
    for record in records {
        producer.send(BaseRecord::<str, str>::to(topic).payload(record)).map_err(|(e, _)| e).expect("sent");
    }
    producer.flush(STEP).expect("flushed");
}

/// The end of a partition, transactions or not.
///
/// # Panics
/// When the server can't be asked.
pub fn end(brokers: &str, topic: &str, partition: i32) -> i64 {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("isolation.level", "read_uncommitted")
        .create()
        .expect("a consumer");
    consumer.fetch_watermarks(topic, partition, STEP).expect("an end").1
}
