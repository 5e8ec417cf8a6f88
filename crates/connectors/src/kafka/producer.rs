//! Sends records and knows which of them the brokers have.
//!
//! A [`Flight`] is what is sent together: it ends when the brokers have all of it, or with the first record that
//! they refuse. The queue of a producer is bounded; who sends waits while it is full.
//!
//! Invariant: a flight that ends well is on as many brokers as the topic asks for (`acks=all`); librdkafka's own
//! retries neither double nor reorder it (idempotence). Called by the sink and its transactions, on threads that may block.

use super::{
    client::{Heard, Servers},
    encode::Records,
};
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::{DeliveryResult, Message},
    producer::{BaseProducer, BaseRecord, ProducerContext},
};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire},
    },
    time::Duration,
};
use tidemill_core::{Error, Options, Result};

/// How long a wait for the brokers lasts before the flight is looked at again. The whole of it passes whatever comes
/// meanwhile, so a batch may end this much later than it could.
const LOOK: Duration = Duration::from_millis(1);
/// Records that a producer holds at most, and KiB of them.
const QUEUE: (&str, &str) = ("100000", "65536");

/// Records that were sent together.
#[derive(Debug, Default)]
pub(super) struct Flight {
    out: AtomicU64,
    failed: Mutex<Option<(KafkaError, i32)>>,
}

impl Flight {
    /// The first record that the brokers refused, if any: why, and its partition.
    fn failed(&self) -> Option<(KafkaError, i32)> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ProducerContext for Heard {
    type DeliveryOpaque = Arc<Flight>;

    fn delivery(&self, delivered: &DeliveryResult<'_>, flight: Arc<Flight>) {
        if let Err((error, record)) = delivered {
            let mut failed = flight.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert((error.clone(), record.partition()));
        }
        flight.out.fetch_sub(1, AcqRel);
    }
}

/// How records are sent.
#[derive(Debug, Clone)]
pub(super) struct Sending {
    compression: String,
    pub(super) timeout: Duration,
}

impl Sending {
    /// From `compression` and `delivery_timeout`.
    pub(super) fn from_options(options: &Options) -> Result<Self> {
        let compression = options.get("compression").unwrap_or("none").to_string();
        if !matches!(compression.as_str(), "none" | "gzip" | "snappy" | "lz4") {
            return Err(Error::user(format!(
                "{}: option `compression` must be none, gzip, snappy or lz4, not `{compression}`",
                options.owner()
            )));
        }
        Ok(Self { compression, timeout: options.duration("delivery_timeout", Duration::from_secs(30))? })
    }

    /// A producer with these settings beside the common ones.
    pub(super) fn open(&self, servers: &Servers, more: &[(&str, &str)]) -> Result<(BaseProducer<Heard>, Heard)> {
        let timeout = self.timeout.as_millis().clamp(1000, i32::MAX.cast_unsigned().into()).to_string();
        let mut settings = vec![
            ("enable.idempotence", "true"),
            ("acks", "all"),
            // As the clients of the Java world choose the partition of a key.
            ("partitioner", "murmur2_random"),
            ("compression.codec", &*self.compression),
            ("message.timeout.ms", &timeout),
            // A batch hands its records over at once: nothing is gained by waiting for more.
            ("linger.ms", "1"),
            ("batch.size", "1000000"),
            ("queue.buffering.max.messages", QUEUE.0),
            ("queue.buffering.max.kbytes", QUEUE.1),
        ];
        settings.extend_from_slice(more);
        servers.client(&settings)
    }
}

/// A producer in use.
pub(super) struct Sender<'a> {
    pub(super) servers: &'a Servers,
    pub(super) producer: &'a BaseProducer<Heard>,
    pub(super) heard: &'a Heard,
    pub(super) topic: &'a str,
}

impl Sender<'_> {
    /// Sends records; some may still be on their way when it returns.
    pub(super) fn send(&self, records: &Records, flight: &Arc<Flight>) -> Result<()> {
        self.send_to(None, records, flight)
    }

    /// The same to one partition, or to those that the keys choose.
    pub(super) fn send_to(&self, partition: Option<i32>, records: &Records, flight: &Arc<Flight>) -> Result<()> {
        for at in 0..records.len() {
            let mut record: BaseRecord<'_, [u8], [u8], Arc<Flight>> =
                BaseRecord::with_opaque_to(self.topic, Arc::clone(flight));
            (record.key, record.payload, record.partition) = (records.key(at), records.value(at), partition);
            flight.out.fetch_add(1, AcqRel);
            loop {
                match self.producer.send(record) {
                    Ok(()) => break,
                    Err((KafkaError::MessageProduction(Code::QueueFull), back)) => {
                        record = back;
                        self.producer.poll(LOOK);
                        if let Err(error) = self.must_fly(flight) {
                            // This one was not taken.
                            flight.out.fetch_sub(1, AcqRel);
                            return Err(error);
                        }
                    }
                    Err((error, _)) => {
                        flight.out.fetch_sub(1, AcqRel);
                        return Err(self.refused(error, None));
                    }
                }
            }
        }
        self.producer.poll(Duration::ZERO);
        self.must_fly(flight)
    }

    /// Waits until the brokers have all of a flight.
    pub(super) fn land(&self, flight: &Flight) -> Result<()> {
        while flight.out.load(Acquire) > 0 {
            self.producer.poll(LOOK);
            self.must_fly(flight)?;
        }
        self.must_fly(flight)
    }

    fn must_fly(&self, flight: &Flight) -> Result<()> {
        match flight.failed() {
            Some((error, partition)) => Err(self.refused(error, Some(partition))),
            None => Ok(()),
        }
    }

    /// Why a record was not taken.
    fn refused(&self, error: KafkaError, partition: Option<i32>) -> Error {
        let topic = self.topic;
        match error.rdkafka_error_code() {
            Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize) => Error::user(format!(
                "kafka: a record is larger than topic `{topic}` takes: see its setting max.message.bytes, and message.max.bytes in option `properties`"
            ))
            .because(error),
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => {
                Error::user(format!("kafka: there is no topic `{topic}` any more at {}", self.servers.brokers()))
                    .because(error)
            }
            Some(Code::InvalidRecord) => Error::user(format!(
                "kafka: topic `{topic}` refuses a record: one that is compacted takes none without a key (option `key_column`)"
            ))
            .because(error),
            _ => {
                let place = partition.filter(|p| *p >= 0).map(|p| format!(" partition {p}")).unwrap_or_default();
                self.servers.failed(&format!("write to topic `{topic}`{place}"), error, self.heard)
            }
        }
    }
}
