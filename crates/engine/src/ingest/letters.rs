//! The dead letters of a program, for those who look at them.
//!
//! A letter's number is its offset in the topic `<program>.dead`. It is *asked*
//! for while a request to run it again waits in the program's mailbox, and
//! *replayed* once it is in the topic `<program>.replayed`; see [`super::replay`].
//!
//! Invariant: looking changes nothing, and works beside the running program.
//! Called by `tidemill dead`.

use super::replay::{self, Request};
use arrow_array::{Array, RecordBatch, cast::AsArray, types::UInt64Type};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tidemill_core::{BatchId, DeadLetter, Error, Offset, PartitionId, Result, Timestamp};
use tidemill_store::{
    Past, RealDisk, atomic_write,
    disk::create_dir,
    ledger::Gone,
    log::{Log, Topic},
};

/// Begins the reason of a letter that a rebuild wrote.
pub(super) const REBUILD: &str = "rebuild:";

/// Requests of this process: no two have one name.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

/// A letter as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptLetter {
    /// Its offset in the topic of dead letters.
    pub number: u64,
    /// When it was kept.
    pub kept: Timestamp,
    /// What was refused, where it came from and why.
    pub letter: DeadLetter,
}

impl KeptLetter {
    /// Why it can't be run again; `None` when it can.
    pub fn only_kept(&self) -> Option<&'static str> {
        let reason = &self.letter.reason;
        if reason.starts_with(REBUILD) {
            return Some(
                "a rebuild left it out of the states that it computed, and it is in all others; under columns that take it, \
                 another rebuild finds it where it lies",
            );
        }
        if reason.starts_with("late:") || reason.starts_with("ahead:") {
            return Some(
                "a late row was read well, and so was one dated ahead; `tidemill rewind` computes its windows anew",
            );
        }
        let cut = self.letter.batch.is_none() || tidemill_core::reason_kind(reason) == "too_long";
        cut.then_some("only its beginning was kept")
    }
}

/// Which letters are meant.
#[derive(Debug, Clone, Default)]
pub struct LetterFilter {
    /// A part of the reason, in whatever case.
    pub reason: Option<String>,
    /// The stream.
    pub stream: Option<String>,
    /// Kept at this time or later.
    pub since: Option<Timestamp>,
    /// Kept before this time.
    pub until: Option<Timestamp>,
    /// One of these numbers; all when empty.
    pub numbers: BTreeSet<u64>,
}

impl LetterFilter {
    /// Whether a letter is meant.
    pub fn takes(&self, kept: &KeptLetter) -> bool {
        let letter = &kept.letter;
        let has = |part: &String| letter.reason.to_lowercase().contains(&part.to_lowercase());
        self.reason.as_ref().is_none_or(has)
            && self.stream.as_ref().is_none_or(|stream| *stream == letter.stream)
            && self.since.is_none_or(|since| kept.kept >= since)
            && self.until.is_none_or(|until| kept.kept < until)
            && (self.numbers.is_empty() || self.numbers.contains(&kept.number))
    }

    /// Whether it takes every letter.
    pub fn is_everything(&self) -> bool {
        self.reason.is_none()
            && self.stream.is_none()
            && self.since.is_none()
            && self.until.is_none()
            && self.numbers.is_empty()
    }
}

/// All letters of a program, and which of them were run again.
#[derive(Debug)]
pub struct Letters {
    topic: Arc<Topic>,
    mailbox: PathBuf,
    replayed: BTreeSet<u64>,
    noted: BTreeSet<u64>,
    asked: BTreeSet<u64>,
    gone: Gone,
}

impl Letters {
    /// The programs of a log that have dead letters, or could have some.
    pub fn programs(log: &Log) -> Vec<String> {
        log.topics().iter().filter_map(|topic| topic.name().strip_suffix(".dead").map(str::to_string)).collect()
    }

    /// The letters of `program` in the log of the data directory `data`.
    ///
    /// # Errors
    /// When there is no such program, or its topics can't be read.
    pub fn open(log: &Log, data: &Path, program: &str) -> Result<Self> {
        let topic = log
            .topic(&format!("{program}.dead"))
            .ok_or_else(|| Error::user(format!("program `{program}` has no dead letters in {}", data.display())))?;
        let mailbox = replay::mailbox(&data.join("programs").join(program));
        let (replayed, noted) = match log.topic(&replay::topic_name(program)) {
            Some(topic) => (replay::replayed(&topic)?, replay::noted(&topic)?),
            None => Default::default(),
        };
        let asked = replay::requests(&RealDisk, &mailbox)?
            .into_iter()
            .filter_map(|(_, request)| request.ok())
            .flat_map(|request| request.numbers().collect::<Vec<_>>())
            .collect();
        let ledger = data.join("programs").join(program).join("ledger");
        let gone = Past::read(&RealDisk, &ledger)?.map(|past| past.gone()).unwrap_or_default();
        Ok(Self { topic, mailbox, replayed, noted, asked, gone })
    }

    /// All letters, oldest first.
    pub fn all(&self) -> impl Iterator<Item = Result<KeptLetter>> {
        letters(&self.topic, self.topic.start(0), self.topic.end(0))
    }

    /// Whether a letter was run again, or will be with the program's next batches.
    pub fn is_replayed(&self, number: u64) -> bool {
        self.replayed.contains(&number)
    }

    /// Whether a request for it waits for the program.
    pub fn is_asked(&self, number: u64) -> bool {
        self.asked.contains(&number)
    }

    /// Whether the batch that refused it was undone by a rewind, or never committed, since the machine stopped: the
    /// record was read again since, or will be, and is never run again from its letter.
    pub fn is_undone(&self, kept: &KeptLetter) -> bool {
        self.noted.contains(&kept.number) || kept.letter.batch.is_some_and(|batch| self.gone.has(batch))
    }

    /// Asks the program to run these letters again: at once when it runs, else
    /// when it is started. `again` also those that were run again before.
    ///
    /// # Errors
    /// When the request can't be written.
    pub fn ask(&self, numbers: &BTreeSet<u64>, again: bool, now: Timestamp) -> Result<()> {
        let failed = |e| Error::external(format!("can't write to {}", self.mailbox.display())).because(e);
        create_dir(&RealDisk, &self.mailbox).map_err(failed)?;
        let request = Request::new(numbers, again);
        let number = REQUESTS.fetch_add(1, Ordering::Relaxed);
        let name = format!("{:020}-{}-{number}.json", now.0, std::process::id());
        atomic_write(&RealDisk, &self.mailbox.join(name), &request.to_bytes()).map_err(failed)
    }
}

/// The letters at offsets `[from, to)` of a topic of dead letters.
pub(super) fn letters(topic: &Topic, from: Offset, to: Offset) -> impl Iterator<Item = Result<KeptLetter>> + use<> {
    topic.read(0, from, to).flat_map(|rows| {
        let letters = match rows {
            Ok(rows) => {
                let mut times = rows.times.iter().flat_map(|(count, at)| std::iter::repeat_n(*at, *count as usize));
                let row = |row| {
                    let number = rows.base.0 + row as u64;
                    let kept = times.next().unwrap_or_default();
                    letter_of(&rows.rows, row).map(|letter| KeptLetter { number, kept, letter })
                };
                (0..rows.rows.num_rows()).map(row).collect()
            }
            Err(error) => vec![Err(error)],
        };
        letters.into_iter()
    })
}

/// A row of dead letters; the columns are looked up by name, so that rows with more of them are read, too.
pub(super) fn letter_of(rows: &RecordBatch, row: usize) -> Result<DeadLetter> {
    let strange = || Error::internal("the topic of dead letters has other columns");
    let column = |name: &str| rows.column_by_name(name).ok_or_else(strange);
    let text = |name: &str| Ok::<_, Error>(column(name)?.as_string_opt::<i32>().ok_or_else(strange)?.value(row));
    let numbers = |name: &str| column(name)?.as_primitive_opt::<UInt64Type>().ok_or_else(strange);
    let batch = numbers("batch")?;
    Ok(DeadLetter {
        stream: text("stream")?.to_string(),
        partition: PartitionId::new(text("partition")?),
        offset: Offset(numbers("offset")?.value(row)),
        batch: batch.is_valid(row).then(|| BatchId(batch.value(row))),
        reason: text("reason")?.to_string(),
        raw: column("raw")?.as_binary_opt::<i32>().ok_or_else(strange)?.value(row).to_vec(),
    })
}
