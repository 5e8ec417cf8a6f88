//! Consumers that stand at an offset of a partition, and are kept for the range that comes next there.
//!
//! ```text
//! range [0, 100) ─► cursor at 100, which fetches ahead ─► range [100, 250) goes on without a question
//! range [0, 100) again ─► the cursor is set back
//! ```
//!
//! A cursor has one partition, so that its end is its own and a queue of records of a known size; at most
//! [`KEPT`] wait idle. Together they fetch ahead [`AHEAD`] bytes at most, and each at least a mebibyte.
//!
//! Invariant: a cursor that is kept gives the records from `next` on, in their order. One that failed is not kept.
//! Called by the reader of ranges.

use super::{
    client::{Heard, Servers},
    topics::Partition,
};
use rdkafka::{
    Offset as At, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::OwnedMessage,
};
use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};
use tidemill_core::Result;

/// Cursors that wait for their next range at most.
const KEPT: usize = 64;
/// Bytes that all cursors of a stream fetch ahead.
const AHEAD: usize = 64 << 20;

/// A consumer of one partition.
pub(super) struct Cursor {
    pub(super) consumer: BaseConsumer<Heard>,
    pub(super) heard: Heard,
    pub(super) partition: Partition,
    /// The offset that it gives next, or the first one after.
    pub(super) next: u64,
    /// A record that came and lies behind the range that was read.
    pub(super) held: Option<OwnedMessage>,
    /// Whether it was set to `next` and nothing has come since.
    pub(super) fresh: bool,
    /// Whether it has told of the end, and must be set before it tells of another.
    pub(super) spent: bool,
}

impl Cursor {
    /// Sets it to an offset, whatever it had fetched.
    pub(super) fn set(&mut self, servers: &Servers, next: u64) -> Result<()> {
        let failed = |e| servers.failed(&format!("read {}", self.partition), e, &self.heard);
        let mut assigned = TopicPartitionList::with_capacity(1);
        let at = At::Offset(i64::try_from(next).unwrap_or(i64::MAX));
        assigned.add_partition_offset(&self.partition.topic, self.partition.number, at).map_err(failed)?;
        self.consumer.assign(&assigned).map_err(failed)?;
        (self.next, self.held, self.fresh, self.spent) = (next, None, true, false);
        Ok(())
    }
}

/// The cursors of a stream.
pub(super) struct Cursors {
    servers: Servers,
    group: String,
    idle: Mutex<VecDeque<Cursor>>,
    /// Partitions of the stream, which share what is fetched ahead.
    pub(super) partitions: AtomicUsize,
}

impl fmt::Debug for Cursors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursors").field("servers", &self.servers).finish_non_exhaustive()
    }
}

impl Cursors {
    pub(super) fn new(servers: Servers, group: &str) -> Self {
        Self { servers, group: group.to_string(), idle: Mutex::default(), partitions: AtomicUsize::new(1) }
    }

    /// A cursor that stands at an offset.
    pub(super) fn take(&self, partition: &Partition, at: u64) -> Result<Cursor> {
        let kept = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            let place = idle.iter().position(|cursor| cursor.partition == *partition);
            place.and_then(|place| idle.remove(place))
        };
        match kept {
            Some(cursor) if cursor.next == at && !cursor.spent => Ok(cursor),
            Some(mut cursor) => {
                cursor.set(&self.servers, at)?;
                Ok(cursor)
            }
            None => self.open(partition, at),
        }
    }

    /// Keeps a cursor for the next range.
    pub(super) fn keep(&self, cursor: Cursor) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push_back(cursor);
        let gone = if idle.len() > KEPT { idle.pop_front() } else { None };
        drop(idle);
        // Closing takes a moment.
        drop(gone);
    }

    fn open(&self, partition: &Partition, at: u64) -> Result<Cursor> {
        let ahead = (AHEAD / self.partitions.load(Relaxed).max(1)).clamp(1 << 20, 16 << 20) >> 10;
        let settings = [
            // librdkafka asks for one; no part of reading has to do with it.
            ("group.id", self.group.as_str()),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("enable.partition.eof", "true"),
            ("isolation.level", "read_committed"),
            ("queued.max.messages.kbytes", &ahead.to_string()),
            // A queue that was full is filled again at once: a batch takes what it fetches ahead in a blink.
            ("fetch.queue.backoff.ms", "5"),
            ("fetch.error.backoff.ms", "100"),
            ("fetch.wait.max.ms", "100"),
        ];
        let (consumer, heard) = self.servers.client::<BaseConsumer<Heard>>(&settings)?;
        let partition = partition.clone();
        let mut cursor = Cursor { consumer, heard, partition, next: at, held: None, fresh: true, spent: false };
        cursor.set(&self.servers, at)?;
        Ok(cursor)
    }
}
