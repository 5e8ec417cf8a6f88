//! A batch in one transaction, with the batch's number, so that it happens once.
//!
//! ```text
//! init_transactions      an open transaction of an earlier life is ended: aborted, or committed if its commit had begun
//! read the mark          offset of group <id> for partition 0 of the topic = number of the last batch in the topic
//! batch = mark           it is in: nothing to do
//! batch > mark           begin · the rows · the mark := batch (in the same transaction) · commit
//! ```
//!
//! The rows of a batch become visible with the mark or not at all, so whoever comes later, in this life or the next, learns
//! from the mark alone whether the batch has to be sent. A fault at any point drops the producer; the next try
//! begins above, which settles what was left open. Two that write under one id fence each other off.
//!
//! Kafka forgets the mark of a group that is quiet for long (`offsets.retention.minutes`, seven days). A mark
//! that is not there means *not in* only for a commit that was begun less than [`SURE`] ago; later the commit is
//! refused and a human has to look.
//!
//! Invariant: one transaction at a time; a batch whose mark was seen is never sent again. Called by the sink.

use super::{
    client::{CALL, Heard, Servers},
    encode::Records,
    producer::{Flight, Sender, Sending},
};
use rdkafka::{
    Offset as At, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata},
    error::{KafkaError, RDKafkaErrorCode as Code},
    producer::{BaseProducer, Producer},
};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tidemill_core::{BatchId, Error, Result};

/// How long a missing mark proves that a commit has not happened.
const SURE: Duration = Duration::from_secs(24 * 3600);
/// How long `init_transactions` and a commit may take in all; both may wait for another transaction's end.
const FINISH: Duration = Duration::from_secs(15);
/// So often in a row another producer may take our place before a human is asked.
const FENCED: u32 = 5;

/// What writes batches into a topic under one transactional id.
pub(super) struct Transactions {
    servers: Servers,
    sending: Sending,
    topic: String,
    pub(super) id: String,
    timeout: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    live: Option<Live>,
    /// Reads marks, and is nobody's rival.
    marks: Option<(BaseConsumer<Heard>, Heard)>,
    /// When a commit began of which nobody knows the end.
    doubtful: Option<(BatchId, Instant)>,
    fenced: u32,
}

struct Live {
    producer: BaseProducer<Heard>,
    heard: Heard,
    mark: Option<u64>,
    /// What names the group of the mark.
    group: ConsumerGroupMetadata,
}

impl fmt::Debug for Transactions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transactions").field("topic", &self.topic).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Transactions {
    pub(super) fn new(servers: Servers, sending: Sending, topic: &str, id: String, timeout: Duration) -> Self {
        Self { servers, sending, topic: topic.to_string(), id, timeout, state: Mutex::default() }
    }

    /// Writes a batch unless it is in the topic already. `staged` is how long ago an earlier life set it aside; `None`
    /// when this one did.
    pub(super) fn write(
        &self,
        batch: BatchId,
        staged: Option<Duration>,
        rows: &mut dyn FnMut(&mut dyn FnMut(&Records) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let live = match state.live.take() {
            Some(live) => live,
            None => self.begin(state, batch, staged)?,
        };
        if self.is_in(live.mark, batch)? {
            (state.live, state.doubtful) = (Some(live), None);
            return Ok(());
        }
        // Whatever fails: the next try makes a new producer, which ends what this one left open.
        let sent = self.send(&live, batch, rows).and_then(|()| {
            state.doubtful = Some((batch, Instant::now()));
            live.producer.commit_transaction(FINISH).map_err(|e| self.failed("commit", e, &live.heard))
        });
        match sent {
            Ok(()) => {
                (state.doubtful, state.fenced) = (None, 0);
                state.live = Some(Live { mark: Some(batch.0), ..live });
                Ok(())
            }
            Err(error) if error.is_fenced || is_fenced(live.producer.client().fatal_error().map(|(code, _)| code)) => {
                state.fenced += 1;
                let fenced = Error::external(format!(
                    "kafka: another producer writes under the transactional id `{}`: give this output an id of its own in option `transactional_id`",
                    self.id
                ))
                .because(error.error);
                Err(if state.fenced >= FENCED { fenced.fatal() } else { fenced })
            }
            Err(error) => Err(error.error),
        }
    }

    /// Whether a batch is in the topic, by the mark that is there.
    fn is_in(&self, mark: Option<u64>, batch: BatchId) -> Result<bool> {
        match mark {
            Some(mark) if mark > batch.0 => Err(self.ahead(mark, Some(batch))),
            mark => Ok(mark == Some(batch.0)),
        }
    }

    /// The number of the last batch in the topic, without a part in its transactions.
    pub(super) fn mark(&self) -> Result<Option<u64>> {
        self.read_mark(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn read_mark(&self, state: &mut State) -> Result<Option<u64>> {
        let (client, heard) = self.marks(state)?;
        let failed = |e| self.servers.failed(&format!("read the mark of `{}`", self.id), e, heard);
        let mut asked = TopicPartitionList::with_capacity(1);
        asked.add_partition(&self.topic, 0);
        let answer = client.committed_offsets(asked, CALL).map_err(failed)?;
        let element = answer.find_partition(&self.topic, 0);
        let Some(element) = element else { return Ok(None) };
        element.error().map_err(failed)?;
        Ok(if let At::Offset(at) = element.offset() { u64::try_from(at).ok() } else { None })
    }

    fn marks<'a>(&self, state: &'a mut State) -> Result<&'a (BaseConsumer<Heard>, Heard)> {
        if state.marks.is_none() {
            let settings = [
                ("group.id", self.id.as_str()),
                ("enable.auto.commit", "false"),
                // A mark of a transaction that is still open is waited for.
                ("isolation.level", "read_committed"),
            ];
            state.marks = Some(self.servers.client::<BaseConsumer<Heard>>(&settings)?);
        }
        state.marks.as_ref().ok_or_else(|| Error::internal("kafka: no client for marks"))
    }

    /// A producer that is the only one of its id, and the mark that it finds.
    fn begin(&self, state: &mut State, batch: BatchId, staged: Option<Duration>) -> Result<Live> {
        let timeout = self.timeout.as_millis().to_string();
        let delivery = self.sending.timeout.min(self.timeout).as_millis().to_string();
        let ours = [
            ("transactional.id", self.id.as_str()),
            ("transaction.timeout.ms", &timeout),
            // librdkafka asks that a record is given up before its transaction is.
            ("message.timeout.ms", &delivery),
        ];
        let (producer, heard) = self.sending.open(&self.servers, &ours)?;
        producer.init_transactions(FINISH).map_err(|e| self.failed("begin", e, &heard).error)?;
        let mark = self.read_mark(state)?;
        let begun = state.doubtful.filter(|(doubtful, _)| *doubtful == batch).map(|(_, since)| since.elapsed());
        let age = begun.or(staged).unwrap_or_default();
        if mark.is_none() && age > SURE {
            return Err(Error::user(format!(
                "kafka: nobody knows whether batch {batch} is in topic `{}`: its commit was begun more than a day ago, and the mark of group `{}` is not there (any more). Look into the topic. If the rows are there, remove the files of batch {batch} in the output's folder below `staged` of the data directory; if they are not, touch these files",
                self.topic, self.id
            )));
        }
        let group = self.marks(state)?.0.group_metadata();
        let group = group.ok_or_else(|| Error::internal("kafka: a group without metadata"))?;
        Ok(Live { producer, heard, mark, group })
    }

    fn send(
        &self,
        live: &Live,
        batch: BatchId,
        rows: &mut dyn FnMut(&mut dyn FnMut(&Records) -> Result<()>) -> Result<()>,
    ) -> Result<(), Failed> {
        let Live { producer, heard, group, .. } = live;
        let failed = |what: &str, e| self.failed(what, e, heard);
        producer.begin_transaction().map_err(|e| failed("begin", e))?;
        let sender = Sender { servers: &self.servers, producer, heard, topic: &self.topic };
        let flight = Arc::new(Flight::default());
        rows(&mut |records| sender.send(records, &flight))?;
        sender.land(&flight)?;
        let mut mark = TopicPartitionList::with_capacity(1);
        let number = i64::try_from(batch.0).map_err(|_| Error::internal("kafka: the number of a batch"))?;
        let set = mark.add_partition_offset(&self.topic, 0, At::Offset(number));
        set.map_err(|e| failed("mark", e))?;
        producer.send_offsets_to_transaction(&mark, group, FINISH).map_err(|e| failed("mark", e))
    }

    fn failed(&self, what: &str, error: KafkaError, heard: &Heard) -> Failed {
        let is_fenced = is_fenced(error.rdkafka_error_code());
        let what = format!("{what} a transaction of `{}` into topic `{}`", self.id, self.topic);
        Failed { error: self.servers.failed(&what, error, heard), is_fenced }
    }

    /// The topic has batches that the program does not know.
    pub(super) fn ahead(&self, mark: u64, last: Option<BatchId>) -> Error {
        let at = last.map_or_else(|| "has none yet".to_string(), |last| format!("is at batch {last}"));
        Error::user(format!(
            "kafka: topic `{}` has the rows of `{}` up to batch {mark}, and the program {at}: its data were restored or begun anew, and the batches after that would be written again. Give the output another id in option `transactional_id` if what is in the topic may stay, and the rest come once more",
            self.topic, self.id
        ))
    }
}

/// Whether an error says that another producer has our id.
fn is_fenced(code: Option<Code>) -> bool {
    matches!(code, Some(Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch))
}

/// An error, and whether it says that another producer has our id.
struct Failed {
    error: Error,
    is_fenced: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, is_fenced: false }
    }
}
