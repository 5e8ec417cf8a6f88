//! Sink `kafka`: rows as records of a topic; each at least once, or exactly once if asked.
//!
//! | Option | Meaning |
//! |---|---|
//! | `brokers`, `user`, … | the cluster: see `client.rs` |
//! | `topic` | the topic, which must be there |
//! | `format` | `json` (an object of all columns, the default), `avro` or `protobuf` (a record of all columns), or `text` (the one column beside the key, TEXT or BYTEA) |
//! | `record_name` | of Avro: the name of the record; the topic's, with `_` for what is no letter or digit, unless given |
//! | `descriptor`, `schema_file`, `schema`, `message` | of Protobuf: the message that a row becomes; with a registry they may be left out: see `format/protobuf/topic.rs` |
//! | `timestamp` | of Protobuf: what a TIMESTAMP counts in a field of numbers: `s`, `ms`, `us` |
//! | `registry`, `subject`, … | of both: where the schema is registered, and each record framed with its id: see `format/registry` |
//! | `key_column` | the column that becomes the record's key, and so chooses its partition, as Java's clients choose it |
//! | `guarantee` | `at least once` (default), or `exactly once` |
//! | `transactional_id` | of transactions: `tidemill.<program>.<output>` unless given; one for each that writes |
//! | `transaction_timeout` | how long a batch's transaction may be open (60s) |
//! | `compression` | `none` (default), `gzip`, `snappy`, `lz4` |
//! | `delivery_timeout` | how long a record is tried to be delivered before the batch is run again (30s) |
//!
//! ```text
//! at least once   stage: sent, and acknowledged by all replicas in sync       seen before the batch's commit; again after a crash
//! exactly once    stage: rows aside, in programs/<program>/staged/<output>/   seen by nobody
//!                 commit: one transaction, with the batch's number            seen by who reads what is committed, once
//! ```
//!
//! Consumers must read with `isolation.level=read_committed`, as librdkafka does by default and Java's clients do
//! when told to; else they see rows of transactions that are aborted later.
//!
//! Invariant: exactly once, a batch's rows are sent only after the ledger has the batch, and the rows are kept
//! aside until the transaction is committed; `transaction.rs` says why they are seen once.

use super::{
    blocking,
    client::{Heard, Servers},
    encode::Encoder,
    producer::{Flight, Sender, Sending},
    topics::{Cluster, Topics, is_topic},
    transaction::Transactions,
};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use rdkafka::producer::{BaseProducer, Producer};
use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};
use tidemill_core::{BatchId, Claim, Error, Guarantee, Options, Result, Sink, StagedPart, Timestamp};
use tidemill_store::{Disk, RealDisk, StagedFiles};

/// A producer, shared by the parts of a batch.
type Shared = Arc<(BaseProducer<Heard>, Heard)>;

/// A topic of a cluster.
pub struct KafkaSink(Arc<Inner>);

struct Inner {
    servers: Servers,
    topic: String,
    encoder: Encoder,
    sending: Sending,
    guarantee: Guarantee,
    id: Option<String>,
    timeout: Duration,
    place: OnceLock<(String, PathBuf)>,
    opened: OnceLock<Opened>,
    producer: Mutex<Option<Shared>>,
}

/// What exactly once needs.
struct Opened {
    dir: PathBuf,
    staged: StagedFiles,
    transactions: Transactions,
    /// Parts that this life has staged: nobody else can have begun their commit.
    own: Mutex<BTreeSet<String>>,
}

impl fmt::Debug for KafkaSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { servers, topic, guarantee, .. } = &*self.0;
        f.debug_struct("KafkaSink")
            .field("servers", servers)
            .field("topic", topic)
            .field("guarantee", guarantee)
            .finish_non_exhaustive()
    }
}

impl KafkaSink {
    /// From a sink's options.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn from_options(options: &Options) -> Result<Self> {
        let owner = options.owner();
        let servers = Servers::from_options(options)?;
        let topic = options.require("topic", "it names the topic to write to")?.to_string();
        if !is_topic(&topic) {
            return Err(Error::user(format!(
                "{owner}: option `topic`: `{topic}` can't be a topic's name: take up to 249 letters, digits, `.`, `_` and `-`"
            )));
        }
        let guarantee = match options.get("guarantee").map(|text| text.replace(['-', '_'], " ")).as_deref() {
            None | Some("at least once") => Guarantee::AtLeastOnce,
            Some("exactly once") => Guarantee::ExactlyOnce,
            Some(other) => {
                return Err(Error::user(format!(
                    "{owner}: option `guarantee` must be 'at least once' (default) or 'exactly once', not `{other}`"
                )));
            }
        };
        let id = options.get("transactional_id").map(str::to_string);
        let timeout = options.duration("transaction_timeout", Duration::from_secs(60))?;
        if guarantee == Guarantee::AtLeastOnce && id.is_some() {
            return Err(Error::user(format!(
                "{owner}: option `transactional_id` goes with guarantee = 'exactly once'"
            )));
        }
        if !(Duration::from_secs(1)..=Duration::from_secs(900)).contains(&timeout) {
            return Err(Error::user(format!("{owner}: option `transaction_timeout` must be 1s to 15m")));
        }
        Ok(Self(Arc::new(Inner {
            servers,
            topic,
            encoder: Encoder::from_options(options)?,
            sending: Sending::from_options(options)?,
            guarantee,
            id,
            timeout,
            place: OnceLock::new(),
            opened: OnceLock::new(),
            producer: Mutex::default(),
        })))
    }
}

impl Inner {
    fn opened(&self) -> Result<&Opened> {
        self.opened.get().ok_or_else(|| Error::internal("a Kafka sink is used before it was opened"))
    }

    fn producer(&self) -> Result<Shared> {
        let mut producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        // One that has met a fatal error sends nothing any more.
        if let Some(live) = producer.as_ref().filter(|live| live.0.client().fatal_error().is_none()) {
            return Ok(Arc::clone(live));
        }
        let made = Arc::new(self.sending.open(&self.servers, &[])?);
        Ok(Arc::clone(producer.insert(made)))
    }

    fn open(&self, schema: SchemaRef) -> Result<()> {
        // Says at the start what is wrong with the way there, or with the name.
        let cluster = Cluster::new(self.servers.clone(), "tidemill");
        cluster.partitions(&Topics::List(vec![self.topic.clone()]))?;
        self.encoder.register(&schema)?;
        if self.guarantee == Guarantee::AtLeastOnce {
            return Ok(());
        }
        let Some((owner, dir)) = self.place.get() else {
            return Err(Error::user(format!(
                "kafka: guarantee = 'exactly once' for topic `{}` keeps a batch aside until its transaction is committed: give the program a data directory",
                self.topic
            )));
        };
        let id = self.id.clone().unwrap_or_else(|| format!("tidemill.{}", owner.replace('/', ".")));
        let staged = StagedFiles::open(Arc::new(RealDisk), dir, owner, schema)?;
        let (servers, sending) = (self.servers.clone(), self.sending.clone());
        let transactions = Transactions::new(servers, sending, &self.topic, id, self.timeout);
        // Opened once.
        let _set = self.opened.set(Opened { dir: dir.clone(), staged, transactions, own: Mutex::default() });
        Ok(())
    }

    /// Writes a committed batch unless it is there.
    fn write(&self, batch: BatchId, parts: &[String]) -> Result<()> {
        let opened = self.opened()?;
        // The files go when their transaction is committed.
        let left: Vec<&str> = parts.iter().map(String::as_str).filter(|name| opened.staged.exists(name)).collect();
        if left.is_empty() {
            return Ok(());
        }
        let own = opened.own.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let foreign = left.iter().filter(|name| !own.contains(**name));
        let age = foreign.filter_map(|name| RealDisk.age(&opened.dir.join(name))).max();
        if left.len() < parts.len() {
            // Only after the transaction is a file removed.
            opened.staged.remove(left)?;
            return Ok(());
        }
        opened.transactions.write(batch, age, &mut |send| {
            for name in parts {
                for rows in opened.staged.read(batch, name)? {
                    send(&self.encoder.encode(&rows)?)?;
                }
            }
            Ok(())
        })?;
        opened.staged.remove(left)?;
        opened.own.lock().unwrap_or_else(PoisonError::into_inner).retain(|name| !parts.contains(name));
        Ok(())
    }
}

#[async_trait]
impl Sink for KafkaSink {
    fn describe(&self) -> String {
        format!("kafka {} topic {} ({})", self.0.servers.brokers(), self.0.topic, self.0.encoder.name())
    }

    fn guarantee(&self) -> Guarantee {
        self.0.guarantee
    }

    fn claim(&self) -> Option<Claim> {
        self.0.id.as_ref().map(|id| Claim::new(format!("transactional id {id} of {}", self.0.servers.brokers())))
    }

    fn place(&self, owner: &str, aside: &Path) {
        // Placed once by the pipeline; a second call would be a bug and changes nothing.
        let _placed = self.0.place.set((owner.to_string(), aside.to_owned()));
    }

    fn takes(&self, schema: &SchemaRef) -> Result<()> {
        self.0.encoder.check(schema)
    }

    async fn open(&self, schema: SchemaRef) -> Result<()> {
        self.0.encoder.check(&schema)?;
        let inner = Arc::clone(&self.0);
        blocking(move || inner.open(schema)).await
    }

    async fn stage(
        &self,
        batch: BatchId,
        _time: Timestamp,
        part: usize,
        mut rows: BoxStream<'_, Result<RecordBatch>>,
    ) -> Result<Option<StagedPart>> {
        if self.0.guarantee == Guarantee::ExactlyOnce {
            let mut all = Vec::new();
            while let Some(rows) = rows.next().await {
                all.extend(Some(rows?).filter(|rows| rows.num_rows() > 0));
            }
            if all.is_empty() {
                return Ok(None);
            }
            let inner = Arc::clone(&self.0);
            return blocking(move || {
                let opened = inner.opened()?;
                // A row that makes no record must not be found when the ledger has the batch.
                all.iter().try_for_each(|rows| inner.encoder.prove(rows))?;
                let name = opened.staged.stage(batch, part, all.into_iter())?;
                opened.own.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
                Ok(Some(StagedPart(name)))
            })
            .await;
        }
        let flight = Arc::new(Flight::default());
        let mut sent = 0;
        while let Some(rows) = rows.next().await {
            let rows = rows?;
            if rows.num_rows() == 0 {
                continue;
            }
            sent += rows.num_rows();
            let (inner, flight) = (Arc::clone(&self.0), Arc::clone(&flight));
            blocking(move || inner.send(|sender| sender.send(&inner.encoder.encode(&rows)?, &flight))).await?;
        }
        if sent == 0 {
            return Ok(None);
        }
        let inner = Arc::clone(&self.0);
        blocking(move || inner.send(|sender| sender.land(&flight))).await?;
        Ok(Some(StagedPart(format!("{sent} records"))))
    }

    async fn commit(&self, batch: BatchId, parts: &[StagedPart]) -> Result<()> {
        if self.0.guarantee == Guarantee::AtLeastOnce || parts.is_empty() {
            return Ok(());
        }
        let inner = Arc::clone(&self.0);
        let parts: Vec<String> = parts.iter().map(|part| part.0.clone()).collect();
        blocking(move || inner.write(batch, &parts)).await
    }

    fn stays(&self) -> String {
        "its records stay in the topic, and what is computed anew comes after them".to_string()
    }

    async fn recover(&self, last_committed: Option<BatchId>) -> Result<()> {
        if self.0.guarantee == Guarantee::AtLeastOnce {
            return Ok(());
        }
        let inner = Arc::clone(&self.0);
        blocking(move || {
            let opened = inner.opened()?;
            if let Some(mark) = opened.transactions.mark()?
                && last_committed.is_none_or(|last| mark > last.0)
            {
                return Err(opened.transactions.ahead(mark, last_committed));
            }
            // The last commit was repeated, so all that is left belongs to no commit.
            opened.staged.clear()
        })
        .await
    }
}

impl Inner {
    fn send(&self, act: impl FnOnce(&Sender<'_>) -> Result<()>) -> Result<()> {
        let shared = self.producer()?;
        let (producer, heard) = &*shared;
        act(&Sender { servers: &self.servers, producer, heard, topic: &self.topic })
    }
}
