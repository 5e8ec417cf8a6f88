//! A program looked at beside its batches: one batch run again, a state's first rows.
//!
//! Invariant: nothing that is asked here changes the program, its files or what
//! its outputs have shown, and every answer is bounded, however large the batch
//! was. The engine answers; a page asks, which names no engine.

use crate::{BatchId, LetterReport, OperatorReport, Result, Timestamp};
use arrow_array::RecordBatch;
use serde::Serialize;
use std::fmt;

/// Who can look at a running program beside its batches.
pub trait Inspect: fmt::Debug + Send + Sync {
    /// Runs a committed batch once more by the program of now, over the same
    /// records and the state before it. Writes nothing and shows nothing. Blocks, for seconds at most.
    ///
    /// # Errors
    /// A user's when the batch, its records or the state before it are not kept
    /// any more, or when the program can't be declared a second time; it says which.
    fn run_again(&self, batch: BatchId) -> Result<Rerun>;

    /// The first rows of an operator's state after the last commit; `None` when none is kept of this name. Blocks.
    ///
    /// # Errors
    /// A user's when it is too large to be looked at beside the program.
    fn state(&self, operator: &str) -> Result<Option<Sample>>;
}

/// The first rows of something, and how many it has.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// What it is of.
    pub name: String,
    /// Its first rows.
    pub rows: Vec<RecordBatch>,
    /// All its rows.
    pub total: u64,
}

impl Sample {
    /// Whether all rows are here.
    pub fn is_whole(&self) -> bool {
        self.rows.iter().map(|rows| rows.num_rows() as u64).sum::<u64>() == self.total
    }
}

/// Whether a batch was run by the program of now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProgramThen {
    /// By the same text.
    Same,
    /// By another one, of which the ledger knows the text.
    Other,
    /// The ledger does not know.
    #[default]
    Unknown,
}

/// A batch that was run again.
#[derive(Debug, Clone, Default)]
pub struct Rerun {
    /// Its number.
    pub batch: BatchId,
    /// Its time.
    pub time: Timestamp,
    /// How long it took this time, in microseconds, with all that was read for it.
    pub took_us: u64,
    /// By which program it was run then.
    pub program: ProgramThen,
    /// What it read, by stream.
    pub inputs: Vec<Sample>,
    /// What its operators gave and took this time.
    pub operators: Vec<OperatorReport>,
    /// The plan of each output, with what its steps gave and took this time.
    pub plans: Vec<PlanReport>,
    /// What its outputs would be given now, and what they were given then.
    pub outputs: Vec<RerunOutput>,
    /// What it changes in the states.
    pub states: Vec<RerunState>,
    /// How many records it refuses now.
    pub refused: u64,
    /// The first of them.
    pub letters: Vec<LetterReport>,
}

/// An output of a batch that was run again.
#[derive(Debug, Clone, Default)]
pub struct RerunOutput {
    /// Its rows now.
    pub now: Sample,
    /// Its rows then, where they are known, and from where.
    pub then: Option<(Kept, Sample)>,
    /// Why its rows then are not known.
    pub why: Option<String>,
}

/// From where it is known what an output was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// What the view showed is remembered.
    View,
    /// The rows are in the topic that they went to.
    Topic,
    /// The program that ran the batch then was run again, too.
    Program,
}

/// A state that a batch was run again on.
#[derive(Debug, Clone, Default)]
pub struct RerunState {
    /// The operator.
    pub operator: String,
    /// Rows before the batch, of the keys that it changes.
    pub before: Sample,
    /// And after it.
    pub after: Sample,
    /// Rows after the batch as they were kept then, and as they are now, of the
    /// keys that differ; `None` where the two can't be compared.
    pub differ: Option<(Sample, Sample)>,
    /// What is to be known about them.
    pub note: Option<String>,
}

/// The plan of an output, as a graph.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PlanReport {
    /// The output.
    pub output: String,
    /// Its steps; the last is the one whose rows the output is given.
    pub nodes: Vec<PlanNode>,
    /// Steps beyond those that are told of.
    pub left_out: u64,
}

/// A step of a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PlanNode {
    /// Unique in the plan.
    pub id: String,
    /// What it is, in a word.
    pub name: String,
    /// What it does.
    pub what: String,
    /// Steps whose rows it reads, by `id`.
    pub inputs: Vec<String>,
    /// Rows that it gave, where they are counted.
    pub rows: Option<u64>,
    /// Time that it computed, over all threads, in microseconds, where that is measured.
    pub busy_us: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::Int64Array;
    use std::sync::Arc;

    #[test]
    fn a_sample_knows_whether_it_is_all() {
        let column = Arc::new(Int64Array::from(vec![1, 2])) as _;
        let rows = vec![RecordBatch::try_from_iter([("n", column)]).unwrap()];
        assert!(Sample { rows: rows.clone(), total: 2, ..Sample::default() }.is_whole());
        assert!(!Sample { rows, total: 3, ..Sample::default() }.is_whole());
        assert!(Sample::default().is_whole());
    }
}
