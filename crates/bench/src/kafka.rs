//! Kafka → count → Kafka: records of a kibibyte counted by key, beside librdkafka's own consumer and producer in a loop.
//!
//! Both sides read the same topic from its beginning to its end with one consumer's worth of settings, count the first
//! word of each record, and send the counts of each stretch of records to a topic of their own; the answer is the sum
//! of what is in that topic. The loop's stretch is [`STRETCH`] records, the engine's is a batch.
//!
//! Invariant: an answer is read back from Kafka, outside of the clock, and is what the seed says, so that neither side
//! can pass by an input that was cut off or filled twice. Called by the job `kafka`; needs a server at
//! `TIDEMILL_KAFKA`, such as `ci/services up` starts.

use crate::{
    Result,
    check::Rows,
    measure::{Outcome, Side, interleave, timed},
};
use hashbrown::HashMap;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, BaseRecord, Producer},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tidemill_connectors::{
    format::TextFormat,
    kafka::{KafkaSink, KafkaSource, probe},
};
use tidemill_core::Options;
use tidemill_engine::{Str, StreamingContext, Trigger};

/// Different keys.
const KEYS: u64 = 1000;
/// Partitions of the input.
const PARTITIONS: i32 = 2;
/// Records that the loop counts before it sends.
const STRETCH: u64 = 65_536;
/// How long a step may take.
const STEP: Duration = Duration::from_secs(60);

/// Runs both sides in turn.
///
/// # Errors
/// When there is no server, or a side fails.
pub(crate) fn run(items: u64, runs: usize, threads: usize, seed: u64) -> Result<Outcome> {
    let brokers =
        std::env::var("TIDEMILL_KAFKA").map_err(|_| "TIDEMILL_KAFKA is not set; ci/services up starts a server")?;
    let input = format!("bench-in-{seed}-{items}");
    fill(&brokers, &input, items, seed);
    let expected = expected(items, seed);
    let (hand, engine) = (brokers.clone(), brokers.clone());
    let (hand_input, engine_input) = (input.clone(), input);
    let by_hand: Side<'_, String, u64> = Box::new(move || {
        probe::topic(&hand, "bench-hand", 1, &[]);
        let ran = timed(|| by_hand(&hand, &hand_input, items), |()| Ok(answer(&hand, "bench-hand")))?;
        // The other side's answer is compared with this one.
        match ran.answer.difference_from(&expected) {
            Some(difference) => Err(format!("kafka: the loop's answer is wrong: {difference}").into()),
            None => Ok(ran),
        }
    });
    let by_engine: Side<'_, String, u64> = Box::new(move || {
        probe::topic(&engine, "bench-engine", 1, &[]);
        timed(|| by_engine(&engine, &engine_input, threads), |()| Ok(answer(&engine, "bench-engine")))
    });
    interleave("kafka", items, runs, by_hand, Some(by_engine))
}

/// Fills the input unless an earlier call did.
fn fill(brokers: &str, topic: &str, items: u64, seed: u64) {
    let config = || {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("group.id", "bench");
        config
    };
    let consumer: BaseConsumer = config().create().expect("a consumer");
    let there: i64 =
        (0..PARTITIONS).map(|p| consumer.fetch_watermarks(topic, p, STEP).map_or(0, |(low, high)| high - low)).sum();
    if there.cast_unsigned() == items {
        return;
    }
    probe::topic(brokers, topic, PARTITIONS, &[]);
    let producer: BaseProducer = config().set("linger.ms", "20").create().expect("a producer");
    let padding = "x".repeat(1024 - 16);
    for n in 0..items {
        let key = mixed(seed ^ n) % KEYS;
        let record = format!("key-{key:<11} {padding}");
        let partition = i32::try_from(n % PARTITIONS.cast_unsigned() as u64).unwrap_or(0);
        while let Err((error, _)) =
            producer.send(BaseRecord::<(), str>::to(topic).partition(partition).payload(&record))
        {
            assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), "sent");
            producer.poll(Duration::from_millis(50));
        }
    }
    producer.flush(STEP).expect("flushed");
}

/// splitmix64, as the generator of records has it.
fn mixed(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What both sides must find.
fn expected(items: u64, seed: u64) -> Rows<String, u64> {
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    (0..items).for_each(|n| *counts.entry(mixed(seed ^ n) % KEYS).or_default() += 1);
    Rows::new(counts.into_iter().map(|(key, n)| (format!("key-{key}"), n)).collect())
}

/// librdkafka alone.
fn by_hand(brokers: &str, input: &str, items: u64) -> Result<()> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "bench")
        .set("enable.auto.commit", "false")
        .set("fetch.queue.backoff.ms", "5")
        .create()?;
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", brokers).set("enable.idempotence", "true").create()?;
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(input, partition, Offset::Beginning)?;
    }
    consumer.assign(&list)?;
    let mut counts: HashMap<Vec<u8>, u64> = HashMap::new();
    let send = |counts: &mut HashMap<Vec<u8>, u64>| -> Result<()> {
        for (key, n) in counts.drain() {
            let value = format!("{{\"word\":\"{}\",\"n\":{n}}}", String::from_utf8_lossy(&key));
            producer.send(BaseRecord::to("bench-hand").key(&key).payload(&value)).map_err(|(error, _)| error)?;
            producer.poll(Duration::ZERO);
        }
        Ok(())
    };
    let mut read = 0;
    while read < items {
        let record = consumer.poll(STEP).ok_or("no record came")??;
        let word = record.payload().unwrap_or_default().split(|b| *b == b' ').next().unwrap_or_default();
        match counts.get_mut(word) {
            Some(n) => *n += 1,
            None => drop(counts.insert(word.to_vec(), 1)),
        }
        read += 1;
        if read % STRETCH == 0 {
            send(&mut counts)?;
        }
    }
    send(&mut counts)?;
    Ok(producer.flush(STEP)?)
}

/// The engine, with its ledger.
fn by_engine(brokers: &str, input: &str, threads: usize) -> Result<()> {
    let data = tempfile::tempdir()?;
    let context = StreamingContext::builder("bench")
        .data_dir(data.path())
        .trigger(Trigger::Drain)
        .batch_bytes(64 << 20)
        .partitions(threads)
        .build();
    let cluster = [("brokers", brokers)];
    let source = Options::new("stream \"in\"", cluster.into_iter().chain([("topic", input), ("until", "latest")]));
    let source = Arc::new(KafkaSource::from_options(&source)?);
    let sink = Options::new("sink \"out\"", cluster.into_iter().chain([("topic", "bench-engine")]));
    let sink = Arc::new(KafkaSink::from_options(&sink)?);
    let lines = context.source_stream::<String>("in", source, Some(Arc::new(TextFormat::default())))?;
    lines.map(|line: &str| Str::from(line.split(' ').next().unwrap_or_default())).count_by_value().to_sink(sink);
    context.start()?;
    Ok(context.await_termination()?)
}

/// The sums of what is in a topic of counts.
fn answer(brokers: &str, topic: &str) -> Rows<String, u64> {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for (_, _, _, value) in probe::committed(brokers, topic) {
        let row: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&value).unwrap_or_default();
        let word = row.values().find_map(|value| value.as_str()).unwrap_or_default();
        *sums.entry(word.to_string()).or_default() +=
            row.values().find_map(serde_json::Value::as_u64).unwrap_or_default();
    }
    Rows::new(sums.into_iter().collect())
}
