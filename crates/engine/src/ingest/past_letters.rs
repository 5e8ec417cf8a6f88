//! Letters of the past, for a rebuild, which reads again what batches have read.
//!
//! A record that its batch refused is in no state; its letter may have been run
//! again since, or will be, and then it is. So a rebuild passes over the record
//! itself, also when the columns of now would take it, and reads the letters that
//! batches have read.
//!
//! Invariant: a rebuilt state has a record as often as batches have taken it, as
//! far as the columns of now take it. Letters that can't be run again keep nothing
//! out, nor do those of batches that were undone or never committed, whose records
//! others have read. Of all letters only those of the records that a run reads are in
//! memory; where many are kept, the rest lies on disk, sorted by place. Made by
//! [`crate::change`], asked by the leaves of plans.

use super::{
    DeadLetters, REPLAYED, Replays,
    letters::{KeptLetter, REBUILD, letter_of, letters},
    replay::number_of,
};
use crate::state::memory::StateMemory;
use arrow_array::RecordBatch;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::Bound,
    sync::Arc,
};
use tidemill_core::{Batch, BatchId, DeadLetter, Error, Offset, PartitionId, Result, reason_kind};
use tidemill_store::{OverflowPart, Past as PastBatches, ledger::Gone, log::Topic};

/// Letters that a rebuild writes at most; all are counted.
const MOST: usize = 10_000;
/// Letters whose places are held in memory; with more, all of them go to disk.
const IN_MEMORY: usize = if cfg!(test) { 2 } else { 100_000 };
/// Letters that are written there at once.
const PAGE: usize = 8 * 1024;

/// A letter, where its record is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Past {
    number: u64,
    batch: BatchId,
    /// Whether it can be run again.
    again: bool,
}

/// All letters of a program, by where their records lie.
#[derive(Debug)]
pub(crate) struct PastLetters {
    places: Places,
    replayed: Option<Arc<Topic>>,
    /// Those that rebuilds after `after` have written.
    rebuilt: HashSet<(String, PartitionId, Offset)>,
    after: BatchId,
}

/// Where letters are found: stream, partition, offset and number, and under it batch, and whether it can be run again.
#[derive(Debug)]
struct Places {
    rows: BTreeMap<Vec<u8>, [u8; VALUE]>,
    disk: Option<OverflowPart>,
}

/// Bytes under a place.
const VALUE: usize = 9;

/// Letters by the places of their records.
type Page = HashMap<String, HashMap<PartitionId, HashMap<Offset, Vec<Past>>>>;

/// What of the past a run reads again.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reads {
    /// What this batch read.
    Batch(BatchId),
    /// What the batches up to this one read of the sources.
    Sources(BatchId),
    /// What the batches up to this one read of letters that were run again.
    Letters(BatchId),
}

/// The letters of what one run reads.
#[derive(Debug, Clone)]
pub(crate) struct Again {
    letters: Arc<Page>,
    reads: Reads,
}

impl Places {
    /// The beginning of all keys of a place, or of a partition.
    fn key(stream: &str, partition: &PartitionId, offset: Offset, number: u64) -> Vec<u8> {
        // Neither name has a zero in it.
        let mut key = [stream.as_bytes(), &[0], partition.0.as_bytes(), &[0]].concat();
        key.extend(offset.0.to_be_bytes());
        key.extend(number.to_be_bytes());
        key
    }

    fn add(&mut self, letter: &DeadLetter, past: Past, memory: &StateMemory) -> Result<()> {
        let mut value = [0; VALUE];
        value[..8].copy_from_slice(&past.batch.0.to_le_bytes());
        value[8] = u8::from(past.again);
        self.rows.insert(Self::key(&letter.stream, &letter.partition, letter.offset, past.number), value);
        if self.disk.is_none() && self.rows.len() > IN_MEMORY {
            self.disk = Some(memory.overflow()?);
        }
        if self.rows.len() >= PAGE.min(IN_MEMORY) { self.write() } else { Ok(()) }
    }

    /// Lets go of the rows in memory, where others are on disk.
    fn write(&mut self) -> Result<()> {
        let Some(disk) = &self.disk else { return Ok(()) };
        disk.write(self.rows.iter().map(|(key, value)| (&key[..], &value[..])), std::iter::empty())?;
        self.rows.clear();
        Ok(())
    }

    /// Adds the letters of the records in `[from, to)` of a partition to a page.
    fn load(&self, page: &mut Page, stream: &str, partition: &PartitionId, from: Offset, to: Offset) -> Result<()> {
        let (from, to) = (Self::key(stream, partition, from, 0), Self::key(stream, partition, to, 0));
        let mut each = |key: &[u8], value: &[u8]| {
            if key >= &to[..] {
                return Ok(false);
            }
            let strange = || Error::internal("a letter's place on disk");
            let number = |bytes: Option<&[u8]>| bytes.and_then(|b| b.try_into().ok()).ok_or_else(strange);
            let (rest, last) = key.split_last_chunk::<8>().ok_or_else(strange)?;
            let offset = Offset(u64::from_be_bytes(number(rest.last_chunk::<8>().map(|chunk| &chunk[..]))?));
            let batch = BatchId(u64::from_le_bytes(number(value.get(..8))?));
            let past = Past { number: u64::from_be_bytes(*last), batch, again: value.last() == Some(&1) };
            let partitions = page.entry(stream.to_owned()).or_default();
            let found = partitions.entry(partition.clone()).or_default().entry(offset).or_default();
            if !found.contains(&past) {
                found.push(past);
            }
            Ok(true)
        };
        match &self.disk {
            Some(disk) => disk.scan(Bound::Included(&from), each),
            None => {
                for (key, value) in self.rows.range(from.clone()..) {
                    if !each(key, value)? {
                        break;
                    }
                }
                Ok(())
            }
        }
    }
}

/// Which letters are passed over.
struct Passed {
    noted: BTreeSet<u64>,
    gone: Gone,
    last: BatchId,
}

impl PastLetters {
    /// All that are kept, and those that were run again and are not kept any more, but those of batches that
    /// `past` does not have, for a rebuild after batch `after`.
    ///
    /// # Errors
    /// When their topics can't be read, or the disk refuses.
    pub(crate) fn of(
        dead: &DeadLetters,
        replays: &Replays,
        past: &PastBatches,
        after: BatchId,
        memory: &StateMemory,
    ) -> Result<Self> {
        let places = Places { rows: BTreeMap::new(), disk: None };
        let mut this = Self { places, replayed: replays.topic(), rebuilt: HashSet::new(), after };
        let last = past.last().map_or(BatchId(0), |last| last.batch);
        let passed = Passed { noted: replays.noted()?, gone: past.gone(), last };
        let topic = dead.topic();
        for kept in letters(topic, topic.start(0), topic.end(0)) {
            this.add(kept?, &passed, memory)?;
        }
        if let Some(topic) = replays.topic() {
            for rows in topic.read(0, topic.start(0), topic.end(0)) {
                let rows = rows?.rows;
                for row in 0..rows.num_rows() {
                    let (number, letter) = (number_of(&rows, row)?, letter_of(&rows, row)?);
                    let kept = KeptLetter { number, letter, kept: tidemill_core::Timestamp::default() };
                    this.add(kept, &passed, memory)?;
                }
            }
        }
        this.places.write()?;
        Ok(this)
    }

    fn add(&mut self, kept: KeptLetter, passed: &Passed, memory: &StateMemory) -> Result<()> {
        let again = kept.only_kept().is_none();
        let KeptLetter { number, letter, .. } = kept;
        // What a receiver refused is in no topic, and what came late was read well.
        let Some(batch) = letter.batch.filter(|_| !is_late(&letter)) else { return Ok(()) };
        if letter.reason.starts_with(REBUILD) {
            if batch == self.after {
                self.rebuilt.insert((letter.stream, letter.partition, letter.offset));
            }
            return Ok(());
        }
        if batch > passed.last || passed.gone.has(batch) || passed.noted.contains(&number) {
            return Ok(());
        }
        self.places.add(&letter, Past { number, batch, again }, memory)
    }

    /// As a run of `batch` looks at them, which reads this again.
    ///
    /// # Errors
    /// When they can't be read.
    pub(crate) fn seen(&self, reads: Reads, batch: &Batch) -> Result<Again> {
        let mut page = Page::new();
        for (stream, range) in batch.ranges.iter().flat_map(|(stream, all)| all.iter().map(move |one| (stream, one))) {
            if *range.partition.0 != *REPLAYED {
                self.places.load(&mut page, stream, &range.partition, range.start, range.end)?;
                continue;
            }
            let Some(topic) = &self.replayed else { continue };
            for rows in topic.read(0, range.start, range.end) {
                let rows = rows?.rows;
                for row in 0..rows.num_rows() {
                    let DeadLetter { stream: own, partition, offset, .. } = letter_of(&rows, row)?;
                    if own == *stream {
                        let end = Offset(offset.0.saturating_add(1));
                        self.places.load(&mut page, stream, &partition, offset, end)?;
                    }
                }
            }
        }
        Ok(Again { letters: Arc::new(page), reads })
    }
}

fn is_late(letter: &DeadLetter) -> bool {
    matches!(reason_kind(&letter.reason), "late" | "ahead")
}

impl Again {
    fn at(&self, stream: &str, partition: &PartitionId, offset: Offset) -> &[Past] {
        let found = self.letters.get(stream).and_then(|partitions| partitions.get(partition)?.get(&offset));
        found.map_or(&[], Vec::as_slice)
    }

    /// Whether a record is left to its letter.
    pub(crate) fn leaves_out(&self, stream: &str, partition: &PartitionId, offset: Offset) -> bool {
        let past = self.at(stream, partition, offset);
        match self.reads {
            Reads::Batch(batch) => past.iter().any(|past| past.again && past.batch == batch),
            Reads::Sources(upto) => past.iter().any(|past| past.again && past.batch <= upto),
            Reads::Letters(_) => false,
        }
    }

    /// Whether a record that is refused has a letter that says so.
    pub(crate) fn is_known(&self, stream: &str, partition: &PartitionId, offset: Offset) -> bool {
        let past = self.at(stream, partition, offset);
        match self.reads {
            Reads::Batch(batch) => past.iter().any(|past| past.batch == batch),
            Reads::Sources(upto) | Reads::Letters(upto) => past.iter().any(|past| past.batch <= upto),
        }
    }

    /// Whether a letter that was run again was taken then: when it was refused once more, there is a newer one.
    ///
    /// # Errors
    /// When the rows are none of letters that were run again.
    pub(super) fn takes(&self, rows: &RecordBatch, row: usize, letter: &DeadLetter) -> Result<bool> {
        let Reads::Letters(upto) = self.reads else { return Ok(true) };
        let number = number_of(rows, row)?;
        let past = self.at(&letter.stream, &letter.partition, letter.offset);
        Ok(past.iter().all(|past| past.batch > upto || past.number <= number))
    }
}

/// What a rebuild refused and batches had taken.
#[derive(Debug, Default)]
pub(crate) struct LeftOut {
    letters: Vec<DeadLetter>,
    /// All of them, by kind of reason.
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

impl LeftOut {
    /// Adds what one run refused.
    pub(crate) fn add(&mut self, mut refused: Vec<DeadLetter>) {
        refused.retain(|letter| !is_late(letter));
        // Each output that reads a stream refuses the same records.
        refused.sort_by(|a, b| (&a.stream, &a.partition, a.offset).cmp(&(&b.stream, &b.partition, b.offset)));
        refused.dedup_by(|a, b| (&a.stream, &a.partition, a.offset) == (&b.stream, &b.partition, b.offset));
        for letter in &refused {
            *self.counts.entry(reason_kind(&letter.reason)).or_default() += 1;
        }
        let room = MOST.saturating_sub(self.letters.len());
        self.letters.extend(refused.into_iter().take(room));
    }

    /// Writes the letters, which are only kept: the record is in all that was not rebuilt. A rebuild
    /// that a crash cut short has perhaps written some before.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn keep(&self, dead: &DeadLetters, past: &PastLetters) -> Result<(), Error> {
        let after = past.after;
        let new = |letter: &&DeadLetter| {
            let place = (letter.stream.clone(), letter.partition.clone(), letter.offset);
            !past.rebuilt.contains(&place)
        };
        let told = |letter: &DeadLetter| DeadLetter {
            batch: Some(after),
            reason: format!("{REBUILD} {}", letter.reason),
            ..letter.clone()
        };
        let letters: Vec<DeadLetter> = self.letters.iter().filter(new).map(told).collect();
        if letters.is_empty() { Ok(()) } else { dead.rebuilt(after, &letters) }
    }
}
