//! Letters of batches that were never committed.
//!
//! ```text
//! letters of batch 8 durable ─► the machine stops ─► start: the last commit is that of batch 7
//! the program or its formats were changed, or records were lost: batch 8 is another one now
//! its commit ─► letters that it has, too, stay │ the others are noted as done: batches read their records again
//! ```
//!
//! Invariant: after the first commit of a life each letter is of a committed batch, or
//! noted, and what is noted is never run again. Until then no request for it is taken
//! ([`super::replay`]). Called by [`super::dead`].

use super::letters::{KeptLetter, letters};
use std::collections::{BTreeMap, BTreeSet};
use tidemill_core::{BatchId, DeadLetter, Result, Timestamp};
use tidemill_store::log::Topic;

/// Letters that are durable, and whose batches were not committed.
#[derive(Debug, Default)]
pub(super) struct Unsettled(Vec<KeptLetter>);

impl Unsettled {
    /// Those of batches after `last`, without the `noted` ones. Looks for them only when the topic's token says
    /// that there are some.
    ///
    /// # Errors
    /// When the topic can't be read.
    pub(super) fn find(dead: &Topic, noted: &BTreeSet<u64>, last: BatchId) -> Result<Self> {
        let token = dead.resume(0).and_then(|token| token.parse().ok()).unwrap_or(0);
        if token <= last.0 {
            return Ok(Self::default());
        }
        let mut found = Vec::new();
        for kept in letters(dead, dead.start(0), dead.end(0)) {
            let kept = kept?;
            if kept.letter.batch.is_some_and(|batch| batch > last) && !noted.contains(&kept.number) {
                found.push(kept);
            }
        }
        Ok(Self(found))
    }

    /// The number of the first one.
    pub(super) fn first(&self) -> Option<u64> {
        self.0.first().map(|kept| kept.number)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Of the letters that `batch` has now, those that are not there yet; and those that are there and that it
    /// does not have, as they are noted.
    pub(super) fn settled<'a>(&self, batch: BatchId, now: &'a [DeadLetter]) -> (Vec<&'a DeadLetter>, Vec<KeptLetter>) {
        if self.is_empty() {
            return (now.iter().collect(), Vec::new());
        }
        // Late rows may be the same in all of this.
        type Same<'a> = (&'a str, &'a str, u64, &'a str, &'a [u8]);
        fn same(letter: &DeadLetter) -> Same<'_> {
            (&letter.stream, &letter.partition.0, letter.offset.0, &letter.reason, &letter.raw)
        }
        let mut new: BTreeMap<Same<'_>, Vec<&DeadLetter>> = BTreeMap::new();
        for letter in now {
            new.entry(same(letter)).or_default().push(letter);
        }
        let mut others = Vec::new();
        for kept in &self.0 {
            let own = kept.letter.batch == Some(batch);
            if !own || new.get_mut(&same(&kept.letter)).and_then(Vec::pop).is_none() {
                others.push(note(kept.number, &kept.letter));
            }
        }
        (new.into_values().flatten().collect(), others)
    }
}

/// A letter as the topic of those that were run again notes that nothing of it is to be run: no stream is its own.
fn note(number: u64, letter: &DeadLetter) -> KeptLetter {
    let letter = DeadLetter { stream: String::new(), batch: None, raw: Vec::new(), ..letter.clone() };
    KeptLetter { number, letter, kept: Timestamp::default() }
}

/// Whether a row of that topic is such a note.
pub(super) fn is_note(letter: &DeadLetter) -> bool {
    letter.stream.is_empty()
}
