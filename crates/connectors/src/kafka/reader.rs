//! Reads a range of offsets of a partition, block by block.
//!
//! Not every offset has a record: those of a transaction's end, of one that was aborted, and of records that
//! compaction removed have none. A block has records of offsets that touch, so a gap ends it.
//!
//! When nothing more comes before the end of the range, the broker must say so: an end of the partition counts if it is
//! the first thing that a cursor hears after it was set to where the reading stands. Any other may be one of
//! earlier, with records behind it: these are waited for a moment, before the cursor is set.
//!
//! Invariant: all records of the range are given, in their order, or an error with the offsets that are gone; at most
//! [`PIECE`] bytes and a record are held. Called by the source, on a thread that may block.

use super::{
    client::passes,
    cursor::{Cursor, Cursors},
    envelope::Beside,
    topics::{Cluster, Partition, Topics},
};
use rdkafka::{
    Offset as At,
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::Message,
};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tidemill_core::{Block, Chunk, Error, Offset, OffsetRange, Result, Span, Timestamp};

/// Bytes of a block, about.
const PIECE: usize = 256 << 10;
/// How long a cursor waits for a record before it looks around.
const POLL: Duration = Duration::from_millis(100);
/// The same after an end of the partition, which may be one of earlier.
const BEHIND: Duration = Duration::from_millis(10);
/// How long nothing comes before the cursor is set, to be told of an end once more.
const SILENCE: Duration = Duration::from_secs(1);
/// How long nothing may come; then the read fails, and is tried again by whoever asked.
const PATIENCE: Duration = Duration::from_secs(8);

/// What the reads of a stream share.
#[derive(Debug)]
pub(super) struct Reads {
    pub(super) cluster: Cluster,
    pub(super) cursors: Cursors,
    pub(super) beside: Beside,
    /// Records and bytes so far, for the size of a record.
    pub(super) records: AtomicU64,
    pub(super) bytes: AtomicU64,
}

/// A range that is being read.
pub(super) struct RangeReader {
    reads: Arc<Reads>,
    partition: Partition,
    /// Where it stands: all before was given.
    at: u64,
    end: u64,
    cursor: Option<Cursor>,
    ready: VecDeque<Chunk>,
    /// Whether a piece of it was filled: then the next one is as large, perhaps.
    is_long: bool,
}

impl RangeReader {
    pub(super) fn new(reads: Arc<Reads>, partition: Partition, range: &OffsetRange) -> Self {
        Self {
            reads,
            partition,
            at: range.start.0,
            end: range.end.0,
            cursor: None,
            ready: VecDeque::new(),
            is_long: false,
        }
    }

    /// The next piece; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Chunk>> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Ok(Some(chunk));
            }
            if self.at >= self.end {
                if let Some(cursor) = self.cursor.take() {
                    self.reads.cursors.keep(cursor);
                }
                return Ok(None);
            }
            let mut cursor = match self.cursor.take() {
                Some(cursor) => cursor,
                None => self.reads.cursors.take(&self.partition, self.at)?,
            };
            // Of a cursor that failed nobody knows where it stands.
            self.fill(&mut cursor)?;
            self.cursor = Some(cursor);
        }
    }

    fn fill(&mut self, cursor: &mut Cursor) -> Result<()> {
        let mut piece = if std::mem::replace(&mut self.is_long, true) { Piece::large() } else { Piece::default() };
        // Whether the leader said, before the cursor was set, that it has the whole range.
        let (mut heard, mut waited, mut ended, mut sure) = (Instant::now(), false, false, false);
        while self.at < self.end && piece.before + piece.bytes.len() < PIECE {
            if let Some(held) = cursor.held.take() {
                if offset_of(&held) >= self.end {
                    cursor.held = Some(held);
                    self.at = self.end;
                } else {
                    self.take(&mut piece, &held)?;
                }
                continue;
            }
            // What has come already is taken without a look at the clock.
            let came = cursor.consumer.poll(Duration::ZERO).or_else(|| {
                waited = true;
                cursor.consumer.poll(if ended { BEHIND } else { POLL })
            });
            match came {
                Some(Ok(record)) => {
                    if std::mem::take(&mut waited) {
                        heard = Instant::now();
                    }
                    (cursor.fresh, ended) = (false, false);
                    if offset_of(&record) >= self.end {
                        cursor.held = Some(record.detach());
                        self.at = self.end;
                    } else if offset_of(&record) >= self.at {
                        self.take(&mut piece, &record)?;
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) if cursor.fresh && !sure => {
                    // It may be an end of earlier, as a new leader tells it that does not know better yet: only one
                    // that is heard after this counts.
                    self.must_reach_the_end()?;
                    cursor.set(&self.reads.cluster.servers, self.at)?;
                    sure = true;
                }
                Some(Err(KafkaError::PartitionEOF(_))) if cursor.fresh => {
                    // It says so once: the next range has to ask anew.
                    (self.at, cursor.fresh, cursor.spent) = (self.end, false, true);
                }
                Some(Err(KafkaError::PartitionEOF(_))) => ended = true,
                Some(Err(error)) => {
                    sure = false;
                    cursor.heard.note(&error, "");
                    self.look_into(cursor, error)?;
                    self.must_come_soon(cursor, heard)?;
                }
                None if !cursor.fresh && (ended || heard.elapsed() > SILENCE) => {
                    cursor.set(&self.reads.cluster.servers, self.at)?;
                    ended = false;
                }
                None => self.must_come_soon(cursor, heard)?,
            }
        }
        cursor.next = self.at;
        piece.end(&mut self.ready);
        Ok(())
    }

    fn take<M: Message>(&mut self, piece: &mut Piece, record: &M) -> Result<()> {
        let offset = offset_of(record);
        let size = piece.add(offset, record, self.reads.beside, &mut self.ready)?;
        self.reads.records.fetch_add(1, Relaxed);
        self.reads.bytes.fetch_add(size as u64, Relaxed);
        self.at = offset + 1;
        Ok(())
    }

    /// What an error means; `Ok` for one that may pass by itself.
    fn look_into(&self, cursor: &Cursor, error: KafkaError) -> Result<()> {
        let servers = &self.reads.cluster.servers;
        match error.rdkafka_error_code() {
            Some(Code::OffsetOutOfRange | Code::AutoOffsetReset) => {
                self.must_be_there()?;
                Err(servers.failed(&format!("read {} from offset {}", self.partition, self.at), error, &cursor.heard))
            }
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => self.must_be_known(),
            code if passes(code) => Ok(()),
            _ => Err(servers.failed(&format!("read {}", self.partition), error, &cursor.heard)),
        }
    }

    /// Whether a silence has lasted too long.
    fn must_come_soon(&self, cursor: &Cursor, heard: Instant) -> Result<()> {
        if heard.elapsed() < PATIENCE {
            return Ok(());
        }
        // Of a topic that was deleted nothing comes, and nobody says so.
        self.must_be_known()?;
        let what = format!("read {} from offset {}", self.partition, self.at);
        let silent = KafkaError::MessageConsumption(Code::OperationTimedOut);
        Err(self.reads.cluster.servers.failed(&what, silent, &cursor.heard))
    }

    /// Whether there is such a partition.
    fn must_be_known(&self) -> Result<()> {
        let (topic, cluster) = (&self.partition.topic, &self.reads.cluster);
        match cluster.partitions(&Topics::List(vec![topic.to_string()])) {
            Ok(there) if there.contains(&self.partition) => Ok(()),
            Err(error) if error.is_retryable() => Err(error),
            Err(error) if cluster.described(None)?.contains_key(&**topic) => Err(error),
            _ => Err(gone(&self.partition, self.at, self.end, "there is no such partition any more")),
        }
    }

    /// Whether the offsets still to be read are there.
    fn must_be_there(&self) -> Result<()> {
        let of = std::slice::from_ref(&self.partition);
        let at =
            |place| Ok::<_, Error>(self.reads.cluster.offsets(of, place)?.get(&self.partition).copied().unwrap_or(0));
        let (first, end) = (at(At::Beginning)?, at(At::End)?);
        if self.at < first {
            return Err(gone(&self.partition, self.at, first.min(self.end), "the topic's retention removed them"));
        }
        if end < self.end {
            return Err(gone(&self.partition, end.max(self.at), self.end, LOST));
        }
        Ok(())
    }

    /// Whether a partition that ends here ends at or behind the range.
    fn must_reach_the_end(&self) -> Result<()> {
        let of = std::slice::from_ref(&self.partition);
        let end = self.reads.cluster.offsets(of, At::End)?.get(&self.partition).copied().unwrap_or(0);
        if end < self.end { Err(gone(&self.partition, end.max(self.at), self.end, LOST)) } else { Ok(()) }
    }
}

/// Why a partition ends before what was read of it, or planned.
pub(super) const LOST: &str = "the topic was deleted and made anew, or has lost its end";

/// Offsets that were read, or planned, or kept for later, and are not there any more.
pub(super) fn gone(partition: &Partition, from: u64, to: u64, why: &str) -> Error {
    Error::user(format!(
        "kafka: topic `{}` partition {}: offsets [{from}, {to}) are needed and are gone: {why}. To go on with what is there, \
         give the stream another name, which begins where its option `start` says",
        partition.topic, partition.number
    ))
}

fn offset_of(record: &impl Message) -> u64 {
    u64::try_from(record.offset()).unwrap_or(0)
}

/// Records that will be a block.
#[derive(Default)]
struct Piece {
    bytes: Vec<u8>,
    spans: Vec<Span>,
    times: Vec<(u32, Timestamp)>,
    base: u64,
    /// Bytes of the blocks before.
    before: usize,
}

impl Piece {
    /// One with room for all of it, and for a last record that goes beyond.
    fn large() -> Self {
        Self { bytes: Vec::with_capacity(PIECE + (PIECE >> 3)), ..Self::default() }
    }

    /// Adds a record; what is before a gap becomes a block. Gives the record's size.
    fn add<M: Message>(
        &mut self,
        offset: u64,
        record: &M,
        beside: Beside,
        ready: &mut VecDeque<Chunk>,
    ) -> Result<usize> {
        if offset != self.base + self.spans.len() as u64 {
            self.end(ready);
            self.base = offset;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(record.payload().unwrap_or_default());
        beside.append(record, &mut self.bytes);
        let place = |at: usize| u32::try_from(at).map_err(|_| Error::internal("kafka: a block over 4 GiB"));
        self.spans.push(Span { start: place(start)?, end: place(self.bytes.len())? });
        let time = Timestamp::from_millis(record.timestamp().to_millis().unwrap_or(0));
        match self.times.last_mut() {
            Some((rows, last)) if *last == time => *rows += 1,
            _ => self.times.push((1, time)),
        }
        Ok(self.bytes.len() - start)
    }

    fn end(&mut self, ready: &mut VecDeque<Chunk>) {
        if self.spans.is_empty() {
            return;
        }
        self.before += self.bytes.len();
        let mut block = Block::new(std::mem::take(&mut self.bytes), std::mem::take(&mut self.spans));
        (block.base, block.times) = (Offset(self.base), std::mem::take(&mut self.times));
        ready.push_back(Chunk::Raw(block));
    }
}
