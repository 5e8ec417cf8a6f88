//! Letters of the past, for a rebuild, which reads again what batches have read.
//!
//! A record that its batch refused is in no state; its letter may have been run
//! again since, or will be, and then it is. So a rebuild passes over the record
//! itself, also when the columns of now would take it, and reads the letters that
//! batches have read.
//!
//! Invariant: a rebuilt state has a record as often as batches have taken it, as
//! far as the columns of now take it. Letters that can't be run again keep nothing
//! out. Made by [`crate::change`], asked by the leaves of plans.

use super::{
    DeadLetters, Replays,
    letters::{KeptLetter, REBUILD, letter_of, letters},
    replay::number_of,
};
use arrow_array::RecordBatch;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};
use tidemill_core::{BatchId, DeadLetter, Error, Offset, PartitionId, Result, reason_kind};

/// Letters that a rebuild writes at most; all are counted.
const MOST: usize = 10_000;

/// A letter, where its record is known.
#[derive(Debug, Clone, Copy)]
struct Past {
    number: u64,
    batch: BatchId,
    /// Whether it can be run again.
    again: bool,
}

/// All letters of a program, by where their records lie.
#[derive(Debug, Default)]
pub(crate) struct PastLetters {
    places: HashMap<String, HashMap<PartitionId, HashMap<Offset, Vec<Past>>>>,
    /// Those that rebuilds after a batch have written.
    rebuilt: HashSet<(BatchId, String, PartitionId, Offset)>,
}

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

/// The letters, as one run looks at them.
#[derive(Debug, Clone)]
pub(crate) struct Again {
    letters: Arc<PastLetters>,
    reads: Reads,
}

impl PastLetters {
    /// All that are kept, and those that were run again and are not kept any more.
    ///
    /// # Errors
    /// When their topics can't be read.
    pub(crate) fn of(dead: &DeadLetters, replays: &Replays) -> Result<Self> {
        let mut this = Self::default();
        let topic = dead.topic();
        for kept in letters(topic, topic.start(0), topic.end(0)) {
            this.add(kept?);
        }
        if let Some(topic) = replays.topic() {
            for rows in topic.read(0, topic.start(0), topic.end(0)) {
                let rows = rows?.rows;
                for row in 0..rows.num_rows() {
                    let (number, letter) = (number_of(&rows, row)?, letter_of(&rows, row)?);
                    this.add(KeptLetter { number, letter, kept: tidemill_core::Timestamp::default() });
                }
            }
        }
        Ok(this)
    }

    fn add(&mut self, kept: KeptLetter) {
        let again = kept.only_kept().is_none();
        let KeptLetter { number, letter, .. } = kept;
        // What a receiver refused is in no topic, and what came late was read well.
        let Some(batch) = letter.batch.filter(|_| !is_late(&letter)) else { return };
        if letter.reason.starts_with(REBUILD) {
            self.rebuilt.insert((batch, letter.stream, letter.partition, letter.offset));
            return;
        }
        let partitions = self.places.entry(letter.stream).or_default();
        let past = partitions.entry(letter.partition).or_default().entry(letter.offset).or_default();
        if past.iter().all(|past| past.number != number) {
            past.push(Past { number, batch, again });
        }
    }

    fn at(&self, stream: &str, partition: &PartitionId, offset: Offset) -> &[Past] {
        let found = self.places.get(stream).and_then(|partitions| partitions.get(partition)?.get(&offset));
        found.map_or(&[], Vec::as_slice)
    }

    /// As a run looks at them that reads this again.
    pub(crate) fn seen(self: &Arc<Self>, reads: Reads) -> Again {
        Again { letters: Arc::clone(self), reads }
    }
}

fn is_late(letter: &DeadLetter) -> bool {
    matches!(reason_kind(&letter.reason), "late" | "ahead")
}

impl Again {
    /// Whether a record is left to its letter.
    pub(crate) fn leaves_out(&self, stream: &str, partition: &PartitionId, offset: Offset) -> bool {
        let past = self.letters.at(stream, partition, offset);
        match self.reads {
            Reads::Batch(batch) => past.iter().any(|past| past.again && past.batch == batch),
            Reads::Sources(upto) => past.iter().any(|past| past.again && past.batch <= upto),
            Reads::Letters(_) => false,
        }
    }

    /// Whether a record that is refused has a letter that says so.
    pub(crate) fn is_known(&self, stream: &str, partition: &PartitionId, offset: Offset) -> bool {
        let past = self.letters.at(stream, partition, offset);
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
        let past = self.letters.at(&letter.stream, &letter.partition, letter.offset);
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
    pub(crate) fn keep(&self, after: BatchId, dead: &DeadLetters, past: &PastLetters) -> Result<(), Error> {
        let new = |letter: &&DeadLetter| {
            let place = (after, letter.stream.clone(), letter.partition.clone(), letter.offset);
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
