//! What one batch did in detail, for those who look at a single one.
//!
//! Invariant: bounded whatever the batch was: at most [`RANGES`] ranges a
//! stream, [`LETTERS`] dead letters, and [`TEXT`] characters of a text. What was
//! left out is counted. The engine makes it at the commit; the board keeps it
//! beside the batch's report.

use crate::{DeadLetter, Offset, OffsetRange, PartitionId, StreamName, Timestamp, reason_kind};
use serde::Serialize;
use std::collections::BTreeMap;

/// Ranges of a stream that are kept.
const RANGES: usize = 64;
/// Dead letters that are kept.
const LETTERS: usize = 20;
/// Characters of a text that are kept.
const TEXT: usize = 300;

/// From when to when something went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stretch {
    /// Its begin.
    pub begun: Timestamp,
    /// Its end.
    pub ended: Timestamp,
}

impl Stretch {
    /// The least stretch that holds both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self { begun: self.begun.min(other.begun), ended: self.ended.max(other.ended) }
    }
}

/// What goes on in a batch's life, in the order in which it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Inputs are asked what they have.
    Ranges,
    /// The ledger notes what the batch reads.
    Plan,
    /// The plans run.
    Run,
    /// A sink stages its rows, within the run.
    Stage,
    /// Another output takes its rows, within the run.
    Output,
    /// What changed in the states is gathered.
    Gather,
    /// All is made durable.
    Commit,
    /// The records that were read, within the commit.
    Inputs,
    /// Dead letters, within the commit.
    Letters,
    /// States, within the commit.
    Checkpoint,
    /// The ledger says committed, within the commit.
    Ledger,
    /// A sink shows what it staged.
    Show,
}

/// A stage of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageReport {
    /// Which it is.
    pub stage: Stage,
    /// The output that it is of.
    pub of: Option<String>,
    /// When it went on.
    pub at: Stretch,
    /// How often it was tried.
    pub tries: u32,
    /// The last error, cut short: of the whole stage if it `failed`, else of a try before the one that worked.
    pub error: Option<String>,
    /// Whether it did not work.
    pub failed: bool,
}

/// What was read of one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadReport {
    /// The stream.
    pub stream: StreamName,
    /// The range.
    pub range: OffsetRange,
    /// Records that were in it.
    pub records: u64,
    /// When it was read.
    pub at: Stretch,
}

/// A batch in detail.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct BatchDetail {
    /// What it read, by stream; ranges that touch are told as one.
    pub ranges: BTreeMap<StreamName, Vec<OffsetRange>>,
    /// Ranges beyond those that are kept.
    pub ranges_left_out: u64,
    /// Records read, by stream.
    pub records: BTreeMap<StreamName, u64>,
    /// Event time that each stream or operator believed complete after it.
    pub watermarks: BTreeMap<String, Timestamp>,
    /// What operators gave and took, in the order in which rows pass them.
    pub operators: Vec<OperatorReport>,
    /// What outputs were given.
    pub outputs: Vec<OperatorReport>,
    /// The first of its dead letters.
    pub letters: Vec<LetterReport>,
    /// Bytes of the records read, by stream; for traces, as what follows.
    #[serde(skip)]
    pub bytes: BTreeMap<StreamName, u64>,
    /// The first of its ranges, as they were read.
    #[serde(skip)]
    pub reads: Vec<ReadReport>,
    /// What went on in its life.
    #[serde(skip)]
    pub stages: Vec<StageReport>,
    /// Why it ended the program, of a batch that did.
    #[serde(skip)]
    pub error: Option<String>,
}

/// What an operator or an output did in a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct OperatorReport {
    /// Its name.
    pub name: String,
    /// Rows that it gave.
    pub rows: u64,
    /// Time that it computed, over all threads, in microseconds.
    pub busy_us: u64,
    /// Its steps, where it has several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<OperatorReport>,
    /// From its first look at rows to its last, over all threads; `None` of one that did not run by itself.
    #[serde(skip)]
    pub at: Option<Stretch>,
}

/// A dead letter as far as it is shown beside its batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LetterReport {
    /// Stream that it came from.
    pub stream: StreamName,
    /// Partition of the stream.
    pub partition: PartitionId,
    /// Its offset there.
    pub offset: Offset,
    /// The kind of its reason ([`reason_kind`]).
    pub kind: &'static str,
    /// Why it was refused.
    pub reason: String,
    /// Its beginning as text; bytes that are not UTF-8 are replaced.
    pub raw: String,
}

impl LetterReport {
    /// The first of `letters`.
    pub fn first(letters: &[DeadLetter]) -> Vec<Self> {
        let shown = |letter: &DeadLetter| Self {
            stream: letter.stream.clone(),
            partition: letter.partition.clone(),
            offset: letter.offset,
            kind: reason_kind(&letter.reason),
            reason: cut(&letter.reason),
            // A character has four bytes at most, so nothing that is shown is missed.
            raw: cut(&String::from_utf8_lossy(&letter.raw[..letter.raw.len().min(4 * TEXT + 4)])),
        };
        letters.iter().take(LETTERS).map(shown).collect()
    }
}

impl BatchDetail {
    /// Takes what a batch reads of `stream`.
    pub fn take_ranges(&mut self, stream: &str, ranges: &[OffsetRange]) {
        let mut joined: Vec<OffsetRange> = Vec::new();
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            let full = joined.len() == RANGES;
            match joined.last_mut() {
                Some(last) if last.partition == range.partition && last.end == range.start => last.end = range.end,
                _ if full => self.ranges_left_out += 1,
                _ => joined.push(range.clone()),
            }
        }
        self.ranges.insert(stream.to_string(), joined);
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(partition: &str, start: u64, end: u64) -> OffsetRange {
        OffsetRange { partition: PartitionId::new(partition), start: Offset(start), end: Offset(end) }
    }

    #[test]
    fn ranges_that_touch_are_one_and_many_are_counted() {
        let mut detail = BatchDetail::default();
        detail.take_ranges("s", &[range("0", 1, 4), range("0", 4, 9), range("0", 9, 9), range("1", 9, 10)]);
        assert_eq!(detail.ranges["s"], [range("0", 1, 9), range("1", 9, 10)]);
        let many: Vec<_> = (0..100).map(|n| range("0", 2 * n, 2 * n + 1)).collect();
        detail.take_ranges("m", &many);
        assert_eq!((detail.ranges["m"].len(), detail.ranges_left_out), (64, 36));
    }

    #[test]
    fn letters_are_few_and_short_and_always_text() {
        let letter = DeadLetter {
            stream: "s".to_string(),
            partition: PartitionId::new("0"),
            offset: Offset(7),
            batch: None,
            reason: "字".repeat(1000),
            raw: [&[0xff_u8][..], "潮".repeat(1000).as_bytes()].concat(),
        };
        let shown = LetterReport::first(&vec![letter; 50]);
        assert_eq!(shown.len(), 20);
        assert_eq!(shown[0].reason, format!("{}…", "字".repeat(300)));
        assert_eq!(shown[0].raw, format!("\u{fffd}{}…", "潮".repeat(299)));
        assert_eq!(shown[0].kind, "other");
    }
}
