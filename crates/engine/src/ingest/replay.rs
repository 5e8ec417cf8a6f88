//! Dead letters that are run again, exactly once.
//!
//! ```text
//! tidemill dead replay ─► programs/<program>/replay/<time>-<pid>-<n>.json   a request in the mailbox
//!                                   │ between two batches
//!                                   ▼
//!                         topic <program>.replayed                       the mark, durable; then the request goes
//!                                   │ offsets in the ranges of the stream, partition `//replayed`
//!                                   ▼
//!                         the next batch reads them as records of their stream
//! ```
//!
//! The mailbox is the one place where another process writes into a data
//! directory that is owned: a file that appears whole. A request names numbers
//! of letters; those that are in the topic already are passed over, unless it
//! says *again*. A crash between the topic and the removal of the request
//! changes nothing: the frames in the topic carry the request's name and how
//! much of it they hold.
//!
//! A record that is run again has the partition and the offset that it was
//! refused under. Refused once more, it is a new letter of the same origin.
//!
//! A letter of a batch that was undone by a rewind is passed over, also where it
//! is in the topic already: the record that it holds is read again with the others.
//! So is one of a batch that a crash has kept from its commit: a request waits until
//! all letters that it names are of committed batches, and those of no batch are
//! noted in the topic, in rows that are no stream's.
//!
//! Invariant: the ledger counts the topic's offsets as it counts those of the
//! source, so a letter in the topic is read by exactly one batch that was not undone.

use super::{
    Again, dead_schema,
    letters::{KeptLetter, letter_of, letters},
    unsettled::is_note,
};
use arrow_array::{RecordBatch, UInt64Array, cast::AsArray, types::UInt64Type};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use futures::{StreamExt, stream, stream::BoxStream};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tidemill_core::{Block, Chunk, Duration, Error, Offset, OffsetRange, PartitionId, Result, Timestamp};
use tidemill_store::{
    disk::{Disk, read_file},
    ledger::Gone,
    log::{Log, Sync, Topic, TopicConfig},
    small,
};

#[cfg(test)]
mod tests;

/// The partition of a stream under which the ledger counts what is run again.
/// No file is called so, and no topic's partition.
pub(crate) const REPLAYED: &str = "//replayed";
/// Letters that one batch runs again at most.
const A_BATCH: u64 = 20_000;
/// Letters, and bytes of them, that are appended together.
const A_FRAME: (usize, usize) = (if cfg!(test) { 3 } else { 4096 }, 8 << 20);
/// Time between two looks into the mailbox.
const LOOK: Duration = Duration::from_millis(500);

pub(super) fn topic_name(program: &str) -> String {
    format!("{program}.replayed")
}

pub(super) fn mailbox(program_dir: &Path) -> PathBuf {
    program_dir.join("replay")
}

/// Columns of the topic: the letter's number, then those of the dead letters.
pub(crate) fn replayed_schema() -> SchemaRef {
    let mut fields = vec![Arc::new(Field::new("letter", DataType::UInt64, false))];
    fields.extend(dead_schema().fields().iter().cloned());
    Arc::new(Schema::new(fields))
}

/// A request to run letters again.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    version: u32,
    /// Also those that were run again before.
    again: bool,
    /// Numbers `[from, to)`, ascending.
    letters: Vec<(u64, u64)>,
}

impl Request {
    pub(super) fn new(numbers: &BTreeSet<u64>, again: bool) -> Self {
        let mut letters: Vec<(u64, u64)> = Vec::new();
        for number in numbers {
            match letters.last_mut() {
                Some((_, to)) if *to == *number => *to += 1,
                _ => letters.push((*number, number + 1)),
            }
        }
        Self { version: small::VERSION, again, letters }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        small::sealed(self)
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.letters.iter().flat_map(|(from, to)| *from..*to)
    }
}

/// The requests in a mailbox, oldest first; none when it is not there.
pub(super) fn requests(disk: &dyn Disk, mailbox: &Path) -> Result<Vec<(String, Result<Request>)>> {
    let failed = |path: &Path, e| tidemill_store::io_error("read", path, e);
    let names = match disk.list(mailbox) {
        Ok(names) => names,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(mailbox, e)),
    };
    let mut all = Vec::new();
    for name in names.into_iter().filter(|name| name.ends_with(".json")) {
        let path = mailbox.join(&name);
        let bytes = match read_file(disk, &path) {
            Ok(bytes) => bytes,
            // Taken by the program meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(failed(&path, e)),
        };
        let request = small::opened::<Request>(&bytes, &path)
            .map_err(|e| Error::user(format!("{} is no request", path.display())).because(e));
        all.push((name, request));
    }
    Ok(all)
}

/// Numbers of the letters in a topic of those that were run again.
pub(super) fn replayed(topic: &Topic) -> Result<BTreeSet<u64>> {
    let mut numbers = BTreeSet::new();
    for rows in topic.read(0, topic.start(0), topic.end(0)) {
        numbers.extend(numbers_of(&rows?.rows)?.values().iter().copied());
    }
    Ok(numbers)
}

/// Numbers of the letters that it notes as those of no batch.
pub(super) fn noted(topic: &Topic) -> Result<BTreeSet<u64>> {
    let mut numbers = BTreeSet::new();
    for rows in topic.read(0, topic.start(0), topic.end(0)) {
        let rows = rows?.rows;
        for row in 0..rows.num_rows() {
            if is_note(&letter_of(&rows, row)?) {
                numbers.insert(number_of(&rows, row)?);
            }
        }
    }
    Ok(numbers)
}

fn numbers_of(rows: &RecordBatch) -> Result<&UInt64Array> {
    let numbers = rows.column_by_name("letter").and_then(|column| column.as_primitive_opt::<UInt64Type>());
    numbers.ok_or_else(|| Error::internal("the topic of replayed letters has other columns"))
}

/// The number of the letter in a row.
pub(super) fn number_of(rows: &RecordBatch, row: usize) -> Result<u64> {
    numbers_of(rows).map(|numbers| numbers.value(row))
}

/// What a program runs again.
#[derive(Debug)]
pub(crate) struct Replays {
    log: Arc<Log>,
    dead: Arc<Topic>,
    disk: Arc<dyn Disk>,
    program: String,
    mailbox: PathBuf,
    /// Batches whose letters are passed over.
    gone: Gone,
    /// Letters below this number are of committed batches.
    settled: AtomicU64,
    /// Made with the first request.
    topic: Mutex<Option<Arc<Topic>>>,
    looked: Mutex<Option<Timestamp>>,
}

impl Replays {
    /// Of the program whose files are in `program_dir`.
    ///
    /// # Errors
    /// When the topic has other columns.
    pub(crate) fn open(
        log: &Arc<Log>,
        dead: &Arc<Topic>,
        disk: &Arc<dyn Disk>,
        program: &str,
        program_dir: &Path,
    ) -> Result<Self> {
        let topic = log.topic(&topic_name(program));
        if let Some(topic) = topic.as_ref().filter(|topic| topic.config().schema != replayed_schema()) {
            return Err(Error::user(format!(
                "topic `{}` exists with other columns: it would hold the dead letters that are run again; rename the program",
                topic.name()
            )));
        }
        Ok(Self {
            log: Arc::clone(log),
            dead: Arc::clone(dead),
            disk: Arc::clone(disk),
            program: program.to_string(),
            mailbox: mailbox(program_dir),
            gone: Gone::default(),
            settled: AtomicU64::new(0),
            topic: Mutex::new(topic),
            looked: Mutex::default(),
        })
    }

    /// Passes over letters of these batches: what they refused is read again.
    #[must_use]
    pub(crate) fn without(mut self, gone: Gone) -> Self {
        self.gone = gone;
        self
    }

    pub(super) fn topic(&self) -> Option<Arc<Topic>> {
        self.topic.lock().clone()
    }

    /// The letters before this number are of committed batches, or noted.
    pub(super) fn settled_upto(&self, number: u64) {
        self.settled.store(number, Ordering::Release);
    }

    /// A batch was committed: all letters are settled.
    pub(crate) fn settled(&self) {
        self.settled_upto(self.dead.end(0).0);
    }

    /// Numbers of the letters that are noted as those of no batch.
    pub(super) fn noted(&self) -> Result<BTreeSet<u64>> {
        self.topic().map_or_else(|| Ok(BTreeSet::new()), |topic| noted(&topic))
    }

    /// Notes letters as those of no batch; durable when this returns.
    pub(super) fn note(&self, notes: &[KeptLetter]) -> Result<()> {
        let topic = self.made()?;
        for notes in notes.chunks(A_FRAME.0) {
            // The token stays that of the request which was taken last.
            append(&topic, notes, &topic.resume(0).unwrap_or_default())?;
        }
        topic.sync_to(0, topic.end(0))
    }

    /// Whether a request names letters of a batch that is not committed yet.
    fn is_early(&self, request: &Request) -> bool {
        let (settled, end) = (self.settled.load(Ordering::Acquire), self.dead.end(0).0);
        request.letters.iter().any(|(from, to)| *from < end && *to > settled && settled < end)
    }

    /// Takes the requests in the mailbox, if it was not looked into just now.
    ///
    /// # Errors
    /// When the disk refuses; the requests stay.
    pub(crate) fn take_requests(&self, now: Timestamp, at_once: bool) -> Result<()> {
        {
            let mut looked = self.looked.lock();
            if !at_once && looked.is_some_and(|last| now >= last && now.since(last) < LOOK) {
                return Ok(());
            }
            *looked = Some(now);
        }
        for (name, request) in requests(&*self.disk, &self.mailbox)? {
            let path = self.mailbox.join(&name);
            let failed = |what, e| Error::external(format!("can't {what} {}", path.display())).because(e);
            match request {
                Ok(request) if self.is_early(&request) => {}
                Ok(request) => {
                    self.take(&name, &request)?;
                    self.disk.remove(&path).map_err(|e| failed("remove", e))?;
                }
                Err(error) => {
                    tracing::error!(error = error.chain(), "a request to replay dead letters was set aside");
                    self.disk.rename(&path, &path.with_extension("bad")).map_err(|e| failed("rename", e))?;
                }
            }
        }
        Ok(())
    }

    /// Puts the letters of a request into the topic.
    fn take(&self, name: &str, request: &Request) -> Result<()> {
        let topic = self.made()?;
        // How much of this request a life before this one has done.
        let done =
            topic.resume(0).and_then(|token| token.strip_prefix(name)?.trim().parse::<usize>().ok()).unwrap_or(0);
        let before = if request.again { noted(&topic)? } else { replayed(&topic)? };
        let (mut count, mut bytes, mut frame) = (if request.again { 0 } else { done }, 0, Vec::new());
        let skip = if request.again { done } else { 0 };
        let mut skipped = 0;
        for (from, to) in &request.letters {
            let from = Offset(*from).max(self.dead.start(0));
            let to = Offset(*to).min(self.dead.end(0));
            for kept in letters(&self.dead, from, to.max(from)) {
                let kept = kept?;
                let is_gone = kept.letter.batch.is_some_and(|batch| self.gone.has(batch));
                if before.contains(&kept.number) || kept.only_kept().is_some() || is_gone {
                    continue;
                }
                if skipped < skip {
                    (skipped, count) = (skipped + 1, count + 1);
                    continue;
                }
                bytes += kept.letter.raw.len();
                frame.push(kept);
                if frame.len() >= A_FRAME.0 || bytes >= A_FRAME.1 {
                    count += frame.len();
                    append(&topic, &std::mem::take(&mut frame), &format!("{name} {count}"))?;
                    bytes = 0;
                }
            }
        }
        if !frame.is_empty() {
            count += frame.len();
            append(&topic, &frame, &format!("{name} {count}"))?;
        }
        topic.sync_to(0, topic.end(0))?;
        tracing::info!(letters = count, "dead letters are run again");
        Ok(())
    }

    fn made(&self) -> Result<Arc<Topic>> {
        let mut topic = self.topic.lock();
        if let Some(topic) = &*topic {
            return Ok(Arc::clone(topic));
        }
        let config = TopicConfig { sync: Sync::Always, ..TopicConfig::new(replayed_schema()) };
        let made = self.log.create_topic(&topic_name(&self.program), &config)?;
        *topic = Some(Arc::clone(&made));
        Ok(made)
    }

    /// What of the topic a stream has not read yet, at most one batch's share.
    pub(crate) fn next(&self, at: Option<Offset>) -> Option<OffsetRange> {
        let topic = self.topic()?;
        let start = at.unwrap_or_default().max(topic.start(0));
        let end = topic.end(0).min(Offset(start.0 + A_BATCH));
        (start < end).then(|| OffsetRange { partition: PartitionId::new(REPLAYED), start, end })
    }

    /// The letters of `stream` in a range of the topic: each as a block of one
    /// record, under the partition and offset where it came from. A rebuild passes over some ([`Again::takes`]).
    pub(crate) fn read(
        &self,
        stream: &str,
        range: &OffsetRange,
        again: Option<&Again>,
    ) -> BoxStream<'static, Result<(OffsetRange, Chunk)>> {
        let Some(topic) = self.topic() else {
            let gone = Error::user(format!(
                "topic `{}` is gone, and a batch reads dead letters from it: restore it",
                topic_name(&self.program)
            ));
            return stream::once(async { Err(gone) }).boxed();
        };
        let (own, gone, again) = (stream.to_string(), self.gone.clone(), again.cloned());
        let records = topic.read(0, range.start, range.end).flat_map(move |rows| {
            let records = match rows {
                Ok(rows) => {
                    let mut times = rows.times.iter().flat_map(|(count, at)| std::iter::repeat_n(*at, *count as usize));
                    let mut records = Vec::new();
                    for row in 0..rows.rows.num_rows() {
                        let at = times.next().unwrap_or_default();
                        let letter = letter_of(&rows.rows, row).and_then(|letter| {
                            if letter.batch.is_some_and(|batch| gone.has(batch)) {
                                return Ok(None);
                            }
                            let taken =
                                again.as_ref().map_or(Ok(true), |again| again.takes(&rows.rows, row, &letter))?;
                            Ok(Some(letter).filter(|letter| taken && letter.stream == own))
                        });
                        match letter {
                            Ok(Some(letter)) => {
                                let (start, end) = (letter.offset, Offset(letter.offset.0.saturating_add(1)));
                                let block = Block {
                                    base: letter.offset,
                                    times: vec![(1, at)],
                                    ..Block::from_records([letter.raw])
                                };
                                let origin = OffsetRange { partition: letter.partition, start, end };
                                records.push(Ok((origin, Chunk::Raw(block))));
                            }
                            Ok(None) => {}
                            Err(error) => records.push(Err(error)),
                        }
                    }
                    records
                }
                Err(error) => vec![Err(error)],
            };
            records.into_iter()
        });
        stream::iter(records).boxed()
    }
}

fn append(topic: &Topic, letters: &[KeptLetter], token: &str) -> Result<()> {
    let rows = super::dead::rows(&letters.iter().map(|kept| &kept.letter).collect::<Vec<_>>())?;
    let mut columns: Vec<arrow_array::ArrayRef> =
        vec![Arc::new(UInt64Array::from_iter_values(letters.iter().map(|kept| kept.number)))];
    columns.extend(rows.columns().iter().cloned());
    let rows = RecordBatch::try_new(replayed_schema(), columns)
        .map_err(|e| Error::internal("rows of replayed letters").because(e))?;
    topic.append(0, &rows, Some(token)).map(drop)
}
